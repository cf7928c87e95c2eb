"""Colour, texture, contrast and position of a photograph: channels whose names a reader
understands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ctrace.world.features import GridFeatures
from ctrace.world.photos import as_rgb

CELL_PX = 4
"""Pixels of the working image per grid cell. "8 px" in a channel name counts these pixels: two cells."""

TEXTURE_PX = (4, 8, 16)
"""Wavelengths of the texture channels."""

CONTRAST_PX = (8, 24)
"""Window widths of the local contrast channels."""

WEIGHTS = {"colour": 1.0, "texture": 0.35, "contrast": 0.2, "position": 0.3}
"""Default weight of each family. The family's channels together have the variance weight squared."""

# Channels vary by less than this (units of L*, where 2.3 is a just noticeable difference) only
# through rounding.
_CONSTANT = 0.01
# Degrees along which the light varies, that is, across the lines; y points down.
_ORIENTATIONS = {"horizontal": 90.0, "rising": 45.0, "vertical": 0.0, "falling": 135.0}


def filter_bank(
    images, grid: int | tuple[int, int] = 72, weights: Mapping[str, float] | None = None
) -> GridFeatures:
    """Colour, texture, contrast and position of photographs, one named channel each.

    Every photograph is brought to a working image of `CELL_PX` pixels per grid cell, so the
    channels do not depend on its resolution. Channels, in this order:

    - ``L* lightness``, ``a* green-red``, ``b* blue-yellow``: CIE L*a*b* (sRGB, D65), averaged over the cell and
      its rim.
    - ``horizontal texture 4 px`` and so on: local amplitude of a Gabor quadrature pair on L*, for lines that lie
      horizontally, rise to the right, stand vertically, fall to the right; wavelengths
          `TEXTURE_PX`.
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
    weights = _check_weights(weights)
    tensors = [_as_tensor(image) for image in _as_list(images)]
    h, w = _grid_hw([tuple(t.shape[-2:]) for t in tensors], grid)
    lab = torch.cat([_working_lab(t, h, w) for t in tensors])  # (b, 3, height, width)
    families = {
        "colour": _colour,
        "texture": _texture,
        "contrast": _contrast,
        "position": _position,
    }
    columns, names = [], []
    for family, weight in weights.items():
        if weight > 0:
            channels = families[family](lab)  # name -> (b, h, w)
            values = _standardise(
                torch.stack(list(channels.values()), -1).flatten(0, 2)
            )  # (n, channels of the family)
            columns.append(values * (weight / math.sqrt(len(channels))))
            names += channels
    features = torch.cat(columns, 1)
    _check_structure(features, names)
    return GridFeatures(features, tuple(names), (h, w), len(tensors))


def _check_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    unknown = set(weights or {}) - set(WEIGHTS)
    if unknown:
        raise ValueError(
            f"unknown channel families {sorted(unknown)}; the families are {list(WEIGHTS)}."
        )
    merged = {**WEIGHTS, **(weights or {})}
    if not all(0 <= weight < math.inf for weight in merged.values()) or not any(merged.values()):
        raise ValueError(
            f"weights must be finite, not negative and not all zero; received {merged}. "
            "A weight of 0 removes a family."
        )
    return merged


def _check_structure(features: Tensor, names: list[str]) -> None:
    visible = [i for i, name in enumerate(names) if not name.startswith("position")]
    if visible and not bool((features[:, visible] != 0).any()):
        raise ValueError(
            "every colour, texture and contrast channel is constant: the photographs are one flat colour. "
            "A segmentation would show position alone; check that the right images were loaded."
        )


def _as_list(images) -> list:
    images = [images] if isinstance(images, (str, Path, Image.Image)) else images
    if isinstance(images, Tensor):
        images = [images] if images.ndim == 3 else list(images)
    if not len(images):
        raise ValueError("expected at least one image, received none.")
    return list(images)


def _as_tensor(image) -> Tensor:
    """One image as sRGB values ``(3, H, W)`` in [0, 1]."""
    if not isinstance(image, Tensor):
        image = as_rgb(image)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        image = pixels.reshape(image.height, image.width, 3).permute(2, 0, 1)
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"expected an image tensor of shape (3, H, W), received {tuple(image.shape)}. "
            "Channels come first: permute(2, 0, 1)."
        )
    if image.dtype == torch.uint8:
        return image / 255
    # Written so that NaN fails too.
    if not image.is_floating_point() or not bool(((image >= 0) & (image <= 1)).all()):
        raise ValueError(
            f"expected uint8 or floating-point values in [0, 1], received {image.dtype} from "
            f"{image.min()} to {image.max()}. Was a model's mean and standard deviation applied? "
            "Pass the pixels before that."
        )
    return image


def _grid_hw(sizes: list[tuple[int, int]], grid: int | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(grid, int):
        found = {tuple(grid)}
    else:
        found = {tuple(max(1, round(side * grid / max(size))) for side in size) for size in sizes}
    if len(found) > 1:
        raise ValueError(
            f"photographs of different aspect get different grids at grid={grid}: {sorted(found)}. "
            "Pass grid=(h, w), or crop them alike with load_photo(name, size=(width, height))."
        )
    (hw,) = found
    if len(hw) != 2 or min(hw) < 2:
        raise ValueError(
            f"expected a grid of at least 2 x 2 cells, received grid={grid!r}, which gives {hw}."
        )
    return hw


def _working_lab(image: Tensor, h: int, w: int) -> Tensor:
    """The working image, ``(1, 3, h * CELL_PX, w * CELL_PX)``, in L*a*b*."""
    size = (h * CELL_PX, w * CELL_PX)
    image = F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)
    return rgb_to_lab(image)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """CIE L*a*b* (D65, 2 degrees) of sRGB values in [0, 1]; channels in dimension -3,
    differentiable.

    L* runs from 0 to 100; a* is negative for green, positive for red; b* is negative for blue,
    positive for yellow.

    >>> rgb_to_lab(torch.tensor([1.0, 1.0, 1.0]).reshape(3, 1, 1)).flatten().round().abs().tolist()
    [100.0, 0.0, 0.0]
    """
    to_xyz = rgb.new_tensor(
        [
            [0.412453, 0.357580, 0.180423],
            [0.212671, 0.715160, 0.072169],
            [0.019334, 0.119193, 0.950227],
        ]
    )
    to_xyz = to_xyz / to_xyz.sum(
        1, keepdim=True
    )  # so that white is (1, 1, 1) exactly and grey has no colour
    to_lab = rgb.new_tensor([[0, 116, 0], [500, -500, 0], [0, 200, -200]])
    # The clamps keep the branch that `where` does not take finite, in the derivative as well.
    linear = torch.where(
        rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92
    )
    xyz = torch.einsum("ij,...jhw->...ihw", to_xyz, linear)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.einsum("ij,...jhw->...ihw", to_lab, f) - rgb.new_tensor([16, 0, 0]).reshape(
        3, 1, 1
    )


def _colour(lab: Tensor) -> dict[str, Tensor]:
    names = ("L* lightness", "a* green-red", "b* blue-yellow")
    # Blurred over about one cell on each side: fur and stained tissue otherwise fall apart into
    # speckles.
    return dict(zip(names, F.avg_pool2d(_blur(lab, 0.75 * CELL_PX), CELL_PX).unbind(1)))


def _texture(lab: Tensor) -> dict[str, Tensor]:
    channels = {}
    for px in TEXTURE_PX:
        kernels = torch.stack(
            [part for angle in _ORIENTATIONS.values() for part in _gabor(px, angle)]
        ).to(lab)
        responses = _filter(lab[:, :1], kernels[:, None])  # (b, 2 * orientations, height, width)
        energy = (
            responses.pow(2).unflatten(1, (-1, 2)).sum(2)
        )  # the pair's sum does not depend on the phase
        energy = F.avg_pool2d(_blur(energy, px / 2), CELL_PX)
        names = (f"{orientation} texture {px} px" for orientation in _ORIENTATIONS)
        channels.update(zip(names, _amplitude(energy).unbind(1)))
    return channels


def _contrast(lab: Tensor) -> dict[str, Tensor]:
    light = lab[:, :1]
    channels = {}
    for px in CONTRAST_PX:
        variance = _blur(
            (light - _blur(light, px / 4)) ** 2, px / 4
        )  # a Gaussian of width px / 4 spans px pixels
        channels[f"contrast {px} px"] = _amplitude(F.avg_pool2d(variance, CELL_PX))[:, 0]
    return channels


def _position(lab: Tensor) -> dict[str, Tensor]:
    shape = (len(lab), lab.shape[2] // CELL_PX, lab.shape[3] // CELL_PX)  # (b, h, w)
    y, x = torch.meshgrid(torch.arange(shape[1]) + 0.5, torch.arange(shape[2]) + 0.5, indexing="ij")
    return {"position x": x.to(lab).expand(shape), "position y": y.to(lab).expand(shape)}


def _standardise(values: Tensor) -> Tensor:
    """Columns of ``(n, c)`` to mean 0 and standard deviation 1; constant columns to 0."""
    centred = values - values.mean(0)
    variance = centred.pow(2).mean(0)
    flat = variance < _CONSTANT**2
    return (
        centred / variance.masked_fill(flat, 1).sqrt() * ~flat
    )  # filled before the root: its slope at 0 is infinite


def _amplitude(energy: Tensor) -> Tensor:
    return (
        energy + 1e-6
    ).sqrt()  # the square root has no derivative at 0; 0.001 of an L* unit is invisible


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
    envelope = (
        2 * envelope / envelope.sum()
    )  # half of a grating's energy lies at the opposite frequency
    even = torch.cos(2 * math.pi * along / px)
    even = (
        even - (even * envelope).sum() / 2
    ) * envelope  # zero mean: a flat patch must give nothing
    return even, torch.sin(2 * math.pi * along / px) * envelope


def _blur(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of ``(b, channels, height, width)``, `sigma` in pixels, one axis after the
    other.
    """
    r = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1.0)
    g = torch.exp(-(r**2) / (2 * sigma**2)).to(maps)
    flat = maps.flatten(0, 1)[:, None]
    for kernel in (g[None, :], g[:, None]):
        flat = _filter(flat, (kernel / g.sum())[None, None])
    return flat.reshape(maps.shape)


def _filter(maps: Tensor, kernels: Tensor) -> Tensor:
    # Repeated border pixels: zeros would draw a frame of texture around every photograph.
    pad_y, pad_x = kernels.shape[-2] // 2, kernels.shape[-1] // 2
    return F.conv2d(F.pad(maps, (pad_x, pad_x, pad_y, pad_y), mode="replicate"), kernels)
