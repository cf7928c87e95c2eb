"""Colour, texture, contrast and position of a photograph: channels whose names a reader
understands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from torch import Tensor

from ctrace.arguments import Count, checked
from ctrace.check import check_number, one_of
from ctrace.world.features import GridFeatures, standardise
from ctrace.world.photos import as_pixels

CELL_PX = 4
"""Pixels of the working image per grid cell; "8 px" in a channel name is two cells."""

TEXTURE_PX = (4, 8, 16)
"""Wavelengths of the texture channels."""

CONTRAST_PX = (8, 24)
"""Window widths of the local contrast channels."""

WEIGHTS = {"colour": 1.0, "texture": 0.35, "contrast": 0.2, "position": 0.3}
"""Default weight of each family, whose channels together have the variance weight squared."""

# Channels vary by less than this (units of L*, where 2.3 is a just noticeable difference) only
# through rounding.
CONSTANT = 0.01
# Degrees along which the light varies, that is, across the lines; y points down.
ORIENTATIONS = {"horizontal": 90.0, "rising": 45.0, "vertical": 0.0, "falling": 135.0}


@checked
def filter_bank(
    images, grid: Count | tuple[Count, Count] = 72, weights: Mapping[str, float] | None = None
) -> GridFeatures:
    """Colour, texture, contrast and position of photographs, one named channel each.

    Every photograph is brought to a working image of `CELL_PX` pixels per grid cell, so the
    channels do not depend on its resolution. Channels, in this order:

    - ``L* lightness``, ``a* green-red``, ``b* blue-yellow``: CIE L*a*b* (sRGB, D65), averaged over
      the cell and its rim.
    - ``horizontal texture 4 px`` and so on: local amplitude of a Gabor quadrature pair on L*, for
      lines that lie horizontally, rise to the right, stand vertically, fall to the right;
      wavelengths `TEXTURE_PX`.
    - ``contrast 8 px`` and so on: standard deviation of L* in windows of `CONTRAST_PX`.
    - ``position x``, ``position y``: centre of the cell, rightwards and downwards.

    Each channel is standardised over all images jointly, then multiplied by its family's weight
    over the square root of the family's size: squared distances within a family of weight w average
    ``2 w**2``, however many scales it has. The default weights are meant for a Normalized Cut with
    rbf affinity and local scaling. A channel that is constant (a* and b* of a grey photograph)
    carries no distance: it keeps its place and its name and is exactly zero.

    Args:
        images: one or several of: PIL image, path, tensor ``(3, H, W)`` in [0, 1] or uint8.
            Gradients flow from the features to a tensor that asks for them.
        grid: cells along the longer side, the other side following the aspect ratio; or ``(h, w)``.
        weights: replaces entries of `WEIGHTS`; 0 removes a family, and its channels, altogether.

    Returns:
        `GridFeatures` with ``b * h * w`` rows, float32 (or the type of a floating-point tensor
            input).

    Raises:
        ValueError: no image, a tensor outside [0, 1], unknown weights, photographs of different
            aspect with an int `grid`, or photographs without any visible structure.

    >>> from ctrace.world.photos import load_photo
    >>> bank = filter_bank(load_photo("chelsea", 200), grid=24)
    >>> bank.grid_hw, bank.names[:3]
    ((16, 24), ('L* lightness', 'a* green-red', 'b* blue-yellow'))
    """
    asked = {one_of("weights", name, WEIGHTS): weight for name, weight in (weights or {}).items()}
    tensors = as_pixels(images)
    h, w = _grid_hw([tuple(t.shape[-2:]) for t in tensors], grid)
    resized = [_resize(t, (h * CELL_PX, w * CELL_PX)) for t in tensors]
    lab = rgb_to_lab(torch.cat(resized))  # (b, 3, h * CELL_PX, w * CELL_PX)
    columns, names, flat = [], [], True
    for family, read in FAMILIES.items():
        weight = check_number(f"weight of {family}", asked.get(family, WEIGHTS[family]), at_least=0)
        if weight > 0:
            channels = read(lab)  # name -> (b, h, w)
            values = rearrange(list(channels.values()), "c b h w -> (b h w) c")
            columns.append(standardise(values, CONSTANT) * (weight / math.sqrt(len(channels))))
            flat = flat and (family == "position" or not columns[-1].any())
            names += channels
    if not names:
        raise ValueError("weights: 0 removes a family, and every family has weight 0.")
    if flat and names != ["position x", "position y"]:
        raise ValueError(
            "every colour, texture and contrast channel is constant: the photographs are one flat "
            "colour, and segments would show position alone. Were the right images loaded?"
        )
    return GridFeatures(torch.cat(columns, 1), tuple(names), (h, w), len(tensors))


def _grid_hw(sizes: list[tuple[int, int]], grid: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(grid, int):
        found = {tuple(max(1, round(side * grid / max(size))) for side in size) for size in sizes}
    else:
        found = {tuple(grid)}
    if len(found) > 1:
        raise ValueError(
            f"photographs of different aspect get different grids at grid={grid}: {sorted(found)}. "
            "Pass grid=(h, w), or crop them alike with load_photo(name, size=(width, height))."
        )
    (hw,) = found
    if len(hw) != 2 or min(hw) < 2:
        raise ValueError(f"expected a grid of at least 2 x 2 cells, received {grid!r}: {hw}.")
    return hw


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """CIE L*a*b* (D65, 2 degrees) of sRGB values in [0, 1]; channels in dimension -3,
    differentiable.

    L* runs from 0 to 100; a* is negative for green, positive for red; b* is negative for blue,
    positive for yellow.

    >>> rgb_to_lab(torch.tensor([1.0, 1.0, 1.0]).reshape(3, 1, 1)).flatten().round().abs().tolist()
    [100.0, 0.0, 0.0]
    """
    x = 0.412453, 0.357580, 0.180423
    y = 0.212671, 0.715160, 0.072169
    z = 0.019334, 0.119193, 0.950227
    to_xyz = rgb.new_tensor([x, y, z])
    # Rows that sum to 1: white is (1, 1, 1) exactly and grey has no colour.
    to_xyz = to_xyz / to_xyz.sum(1, keepdim=True)
    to_lab = rgb.new_tensor([[0, 116, 0], [500, -500, 0], [0, 200, -200]])
    # The clamps keep the branch that `where` does not take finite, in the derivative as well.
    bright = ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    linear = torch.where(rgb > 0.04045, bright, rgb / 12.92)
    xyz = einsum(to_xyz, linear, "xyz rgb, ... rgb h w -> ... xyz h w")
    f = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    lab = einsum(to_lab, f, "lab xyz, ... xyz h w -> ... lab h w")
    return lab - rgb.new_tensor([16, 0, 0])[:, None, None]


def _colour(lab: Tensor) -> dict[str, Tensor]:
    names = ("L* lightness", "a* green-red", "b* blue-yellow")
    # Blurred over about one cell on each side: fur otherwise falls apart into speckles.
    return dict(zip(names, F.avg_pool2d(_blur(lab, 0.75 * CELL_PX), CELL_PX).unbind(1)))


def _texture(lab: Tensor) -> dict[str, Tensor]:
    channels = {}
    for px in TEXTURE_PX:
        kernels = [part for angle in ORIENTATIONS.values() for part in _gabor(px, angle)]
        responses = _filter(lab[:, :1], torch.stack(kernels)[:, None].to(lab))
        # The pair's sum does not depend on the phase.
        energy = reduce(responses**2, "b (line pair) h w -> b line h w", "sum", pair=2)
        energy = F.avg_pool2d(_blur(energy, px / 2), CELL_PX)
        names = (f"{orientation} texture {px} px" for orientation in ORIENTATIONS)
        channels.update(zip(names, _amplitude(energy).unbind(1)))
    return channels


def _contrast(lab: Tensor) -> dict[str, Tensor]:
    light = lab[:, :1]
    channels = {}
    for px in CONTRAST_PX:
        # A Gaussian of width px / 4 spans px pixels.
        variance = _blur((light - _blur(light, px / 4)) ** 2, px / 4)
        channels[f"contrast {px} px"] = _amplitude(F.avg_pool2d(variance, CELL_PX))[:, 0]
    return channels


def _position(lab: Tensor) -> dict[str, Tensor]:
    b, _, height, width = lab.shape
    x, y = (torch.arange(side // CELL_PX).to(lab) + 0.5 for side in (width, height))
    shape = (b, len(y), len(x))
    return {"position x": x.expand(shape), "position y": y[:, None].expand(shape)}


FAMILIES = {"colour": _colour, "texture": _texture, "contrast": _contrast, "position": _position}


def _amplitude(energy: Tensor) -> Tensor:
    # The square root has no derivative at 0; 0.001 of an L* unit is invisible.
    return (energy + 1e-6).sqrt()


def _gabor(px: float, angle: float) -> tuple[Tensor, Tensor]:
    """Even and odd Gabor kernels, ``(size, size)``; waves of `px` pixels travel along `angle`
    degrees (y down).

    Scaled so that the pair answers a grating of its own wavelength and orientation with the
    grating's amplitude.
    """
    sigma = 0.4 * px
    r = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1.0)
    along = r[None, :] * math.cos(math.radians(angle)) + r[:, None] * math.sin(math.radians(angle))
    envelope = torch.exp(-(r[None, :] ** 2 + r[:, None] ** 2) / (2 * sigma**2))
    # Half of a grating's energy lies at the opposite frequency.
    envelope = 2 * envelope / envelope.sum()
    even = torch.cos(2 * math.pi * along / px)
    # Zero mean: a flat patch must give nothing.
    even = (even - (even * envelope).sum() / 2) * envelope
    return even, torch.sin(2 * math.pi * along / px) * envelope


def _blur(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of ``(b, channels, height, width)``, `sigma` in pixels, one axis after the
    other.
    """
    r = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1.0)
    g = torch.exp(-(r**2) / (2 * sigma**2)).to(maps)
    one_by_one = rearrange(maps, "b c h w -> (b c) 1 h w")
    for kernel in (g[None, :], g[:, None]):
        one_by_one = _filter(one_by_one, (kernel / g.sum())[None, None])
    return rearrange(one_by_one, "(b c) 1 h w -> b c h w", b=len(maps))


def _filter(maps: Tensor, kernels: Tensor) -> Tensor:
    # Repeated border pixels: zeros would draw a frame of texture around every photograph.
    pad_y, pad_x = kernels.shape[-2] // 2, kernels.shape[-1] // 2
    return F.conv2d(F.pad(maps, (pad_x, pad_x, pad_y, pad_y), mode="replicate"), kernels)
