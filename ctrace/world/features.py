"""Features on a grid that remember the names of their channels; tokens and convolution maps as such
features.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import to_2tuple
from torch import Tensor, nn

from ctrace.arguments import Count, Features, Whole, check_fields, checked
from ctrace.check import at_least_float32, check_names, check_number, one_of
from ctrace.world.models import describe, load_model
from ctrace.world.photos import as_list, as_pixels, load_images_helper
from ctrace.world.tokens import TimmViTPatchBackbone, evaluating, layer_to_map, patch_tokens


@dataclass(frozen=True, eq=False)
class GridFeatures:
    """Feature vectors on a grid, with a name for each channel.

    Invariant: ``n = n_images * h * w`` and row ``(image * h + y) * w + x`` is the cell ``(y, x)``
    of that image.

    Attributes:
        features: floating-point tensor ``(n, c)``.
        names: ``c`` different names.
        grid_hw: cells ``(h, w)`` of one image.
        n_images: how many images are stacked.

    Raises:
        ValueError: shapes that contradict each other, integer features, repeated names.

    >>> import torch
    >>> grid = GridFeatures(torch.arange(12.0).reshape(6, 2), ("a", "b"), (2, 3), 1)
    >>> grid.maps().shape
    torch.Size([1, 2, 3, 2])
    >>> grid.maps()[0, 1, 2, grid.index("b")]
    tensor(11.)
    """

    features: Features
    names: tuple[str, ...]
    grid_hw: tuple[Count, Count]
    n_images: Count = 1

    def __post_init__(self):
        check_fields(self)
        n, c = self.features.shape
        object.__setattr__(self, "names", check_names(self.names, c, "channels"))
        object.__setattr__(self, "grid_hw", tuple(self.grid_hw))
        if len(self.grid_hw) != 2 or n != self.n_images * math.prod(self.grid_hw):
            raise ValueError(
                f"expected n = n_images * h * w rows, received n = {n} with n_images = "
                f"{self.n_images} and grid_hw = {self.grid_hw}. Prefix tokens left in the rows and "
                "a swapped (h, w) are the usual causes."
            )

    def maps(self) -> Tensor:
        """The features as images: a view ``(b, h, w, c)``."""
        h, w = self.grid_hw
        return rearrange(self.features, "(b h w) c -> b h w c", h=h, w=w)

    def zscores(self) -> Tensor:
        """``(b, h, w, c)`` maps for the eye: each channel centred and divided by its standard
        deviation over all rows.

        A constant channel is zero everywhere. The result is detached.
        """
        x = self.features.detach()
        return replace(self, features=standardise(x, 1e-6 * x.abs().amax(0))).maps()

    def to(self, *args, **kwargs) -> GridFeatures:
        """The same features on another device or in another floating-point type, as
        `torch.Tensor.to`.
        """
        return replace(self, features=self.features.to(*args, **kwargs))

    def index(self, name: str) -> int:
        """Column of the channel called `name`; ValueError with close names where there is none."""
        return self.names.index(one_of("channel", name, self.names))


def standardise(x: Tensor, least) -> Tensor:
    """Columns of ``x (n, c)`` to mean 0 and standard deviation 1; those that deviate by no more
    than ``least`` are constant but for rounding and become 0.
    """
    centred = x - x.mean(0)
    variance = centred.pow(2).mean(0)
    flat = variance <= least**2
    # Filled before the root: its slope at 0 is infinite.
    return centred / variance.masked_fill(flat, 1).sqrt() * ~flat


@checked
def timm_features(
    images, model, pretrained: bool = True, checkpoint: str | os.PathLike | None = None, **options
) -> GridFeatures:
    """Patch tokens of a timm vision transformer, channels named ``ch 0``, ``ch 1``, ...

    Size, mean, deviation and interpolation come from the model's own data configuration; the
    photograph is squeezed to the input size, not cropped, so that the grid covers all of it. The
    tokens are those of `TimmViTPatchBackbone`.

    Args:
        images: one or several PIL images or paths.
        model: a timm token model, or a name for `ctrace.world.models.load_model`.
        pretrained: for a name, insist on trained weights; False draws random ones, on purpose.
        checkpoint: for a name, a local weight file.
        **options: for a name, passed to `timm.create_model`, e.g. ``img_size=(224, 448)``.

    Raises:
        ValueError: an unknown name, weights out of reach, or a model without patch tokens.
    """
    if not isinstance(model, nn.Module):
        model = load_model(
            model, checkpoint or ("pretrained" if pretrained else "random"), **options
        )
    backbone, config = TimmViTPatchBackbone(model), timm.data.resolve_model_data_config(model)
    config |= {"input_size": describe(model).input_size, "crop_pct": 1.0, "crop_mode": "squash"}
    transform = timm.data.create_transform(**config)
    out = backbone(torch.stack([transform(image) for image in load_images_helper(images)]))
    names = tuple(f"ch {i}" for i in range(out.H.shape[2]))
    return GridFeatures(rearrange(out.H, "b n c -> (b n) c"), names, out.grid_hw, len(out.H))


@checked
def conv_features(
    images, model, layer: str, pad: int = 48, unit: bool = True, centre: bool = True
) -> GridFeatures:
    """Maps of a layer of a convolutional network, of photographs in their own size, channels named
    ``features.10/0``, ``features.10/1``, ... after the layer.

    A network that pads with zeros sees a dark frame around every photograph, and a cut finds the
    frame. Here the photograph is continued by its mirror image, and the cells of the continuation
    are cut off again: of a layer with stride s and a photograph of H pixels ``round(H / s)`` cells
    a side are left. The middle of their grid is the middle of the photograph to half a pixel, which
    the layer's own grid is not: each convolution and pool moves its first cell.

    Args:
        images: one or several of one size: PIL images, paths, tensors ``(3, H, W)`` in [0, 1].
            Gradients flow from the features to tensors that ask for them.
        model: a convolutional network, or a name for `ctrace.world.models.load_model`. Mean and
            deviation are those of `ctrace.world.models.ModelInfo`; nothing is resized.
        layer: dotted name of a module.
        pad: pixels of mirror image on each side, at least; 0 gives the layer's own grid as a plain
            forward pass has it.
        unit: scale each row to length 1.
        centre: then take the mean of all rows, of all photographs jointly, off each.

    Returns:
        `GridFeatures`, the photographs stacked for a joint cut.

    Raises:
        ValueError: no such layer, photographs of different size or too small for `pad`, a layer
            whose cells cannot be placed, or a cell where no channel fires with `unit`.

    >>> from ctrace.world.photos import load_photo
    >>> grid = conv_features(load_photo("chelsea", 240), "squeezenet", "features.10")
    squeezenet: bundled weights, 1000 classes, 0 prefix tokens
    >>> grid.grid_hw, grid.names[271]
    ((20, 30), 'features.10/271')
    """
    pixels = as_pixels(images)
    sizes = {tuple(x.shape[1:]) for x in pixels}
    if len(sizes) > 1:
        how = "load_photo(name, (width, height)) crops to one"
        raise ValueError(f"images: expected one size, received {sorted(sizes)}. Use {how}.")
    model = model if isinstance(model, nn.Module) else load_model(model)
    one_of("layer", layer, [name for name, _ in model.named_modules() if name])
    info, like = getattr(model, "info", None) or describe(model), next(model.parameters())
    batch = info.preprocess(torch.stack(pixels).to(like), *sizes)
    asked = torch.is_grad_enabled() and batch.requires_grad
    with evaluating(model), torch.set_grad_enabled(asked):
        maps = _mirrored(model, layer, batch, pad) if pad else _layer_maps(model, layer, batch)[0]
    b, c, *grid_hw = maps.shape
    rows = rearrange(at_least_float32(maps), "b c h w -> (b h w) c")
    if unit and not bool(rows.any(1).all()):
        raise ValueError(f"{layer}: cells where no channel fires have no direction: unit=False.")
    rows = F.normalize(rows, dim=1) if unit else rows
    rows = rows - rows.mean(0) if centre else rows
    return GridFeatures(rows, tuple(f"{layer}/{i}" for i in range(c)), tuple(grid_hw), b)


def _layer_maps(model: nn.Module, layer: str, x: Tensor) -> tuple[Tensor, dict]:
    """The layer's maps ``(b, c, h, w)``; and for each size of a map on the way to it the pixels
    from cell to cell and the pixel under the middle of cell 0, along height and width.
    """
    size, kept, hooks = tuple(x.shape[2:]), [], []
    places = {size: [(1, 0.0), (1, 0.0)]}

    def read(module, args, output):
        before, after = tuple(args[0].shape[2:]), tuple(output.shape[2:])
        words = ("kernel_size", "stride", "padding", "dilation")
        sides = zip(*(to_2tuple(getattr(module, word, 1)) for word in words))
        if before in places and after not in places and not isinstance(module.padding, str):
            places[after] = [
                (step * s, first + step * (d * (k - 1) / 2 - p))
                for (step, first), (k, s, p, d) in zip(places[before], sides)
            ]

    for module in model.modules():  # subclasses may pad in a way of their own
        if type(module) in (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d):
            hooks.append(module.register_forward_hook(read))
    module = model.get_submodule(layer)
    # A copy: an activation behind the layer may work in place.
    keep = lambda m, args, output: kept.append(output.clone() if torch.is_tensor(output) else None)
    hooks.append(module.register_forward_hook(keep))
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    if len(kept) != 1 or kept[0] is None:
        saw = f"{len(kept)} calls" if len(kept) != 1 else "another kind of output"
        raise ValueError(f"{layer}: expected one call and one map, saw {saw}. Name another.")
    return layer_to_map(kept[0], model, module, size), places


def _mirrored(model: nn.Module, layer: str, x: Tensor, pad: int) -> Tensor:
    with torch.no_grad():
        maps, places = _layer_maps(model, layer, x[:1])
    sides, grid = tuple(x.shape[2:]), tuple(maps.shape[2:])
    if grid not in places:
        why = f"its {grid[0]} x {grid[1]} grid is not one of plain convolutions and pools alone"
        raise ValueError(f"{layer}: which pixels is a cell? {why}. Use pad=0.")
    fits = [_placement(side, *place, pad) for side, place in zip(sides, places[grid])]
    (h, top, north), (w, left, west) = fits
    if max(north, west, pad) >= min(sides):
        have = f"{max(north, west)} of mirror image and photographs of {min(sides)}"
        raise ValueError(f"pad: expected less than a side, received {have} pixels. Enlarge them.")
    maps, _ = _layer_maps(model, layer, F.pad(x, (west, pad, north, pad), mode="reflect"))
    maps = maps[:, :, top : top + h, left : left + w]
    if maps.shape[2:] != (h, w):
        raise ValueError(f"pad: {pad} pixels are fewer than the layer cuts off. Double them.")
    return maps


def _placement(side: int, step: int, first: float, pad: int) -> tuple[int, int, int]:
    """Cells of a side, how many to cut off before them, and pixels to put before the photograph, at
    least ``pad``, for the middle of the cells to be the middle of the side.
    """
    cells = max(1, round(side / step))
    ahead = first + (step * (cells - 1) - (side - 1)) / 2  # pixels, when no cell is cut off
    cut = math.ceil((check_number("pad", pad, whole=True, above=0) - ahead) / step)
    return cells, cut, round(ahead + cut * step)


@checked
def prepare_grid_features(
    images: Sequence,
    transform: Callable,
    extract: Callable,
    num_prefix_tokens: Whole = 1,
    grid_hw: tuple[Count, Count] | None = None,
) -> tuple[Tensor, int, int, int]:
    """Token features of several images as one matrix: ``(features (b * h * w, c), b, h, w)``.

    Args:
        images: what `transform` takes, usually PIL images.
        transform: image to tensor ``(3, height, width)``, the same shape for all images.
        extract: batch ``(b, 3, height, width)`` to tokens ``(b, num_prefix_tokens + h * w, c)``.
        num_prefix_tokens: tokens before the patches (class, distillation, registers), dropped here:
            0, 1, 2, 5, ...
        grid_hw: patches ``(h, w)``; may be left out for square images in square patches alone.

    Raises:
        ValueError: no images, tokens of the wrong shape, or a token count that does not fit the
            grid.
    """
    images = as_list(images)
    batch = torch.stack([transform(image) for image in images])
    tokens = extract(batch)
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or len(tokens) != len(images):
        got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(
            f"expected tokens of shape ({len(images)}, tokens, channels) from extract, received "
            f"{got}. A pooled embedding or a map (b, c, h, w) has no token axis; return the tokens."
        )
    if grid_hw is None:
        n = tokens.shape[1] - num_prefix_tokens
        grid_hw = (math.isqrt(max(n, 0)),) * 2
        if n < 1 or math.prod(grid_hw) != n or batch.shape[-1] != batch.shape[-2]:
            raise ValueError(
                f"grid_hw: {n} patches ({tokens.shape[1]} tokens less {num_prefix_tokens} prefix "
                f"tokens) of images {tuple(batch.shape[1:])} do not say their grid; only a square "
                "number of a square image does. Pass grid_hw=(h, w), or the right "
                "num_prefix_tokens."
            )
    patches = patch_tokens(tokens, num_prefix_tokens, grid_hw)
    return rearrange(patches, "b n c -> (b n) c"), len(tokens), *grid_hw
