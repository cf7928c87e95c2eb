"""Features on a grid that remember the names of their channels, and tokens as such features."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import timm
import torch
from einops import rearrange
from torch import Tensor, nn

from ctrace.check import check_features, check_names, one_of
from ctrace.world.models import describe, load_model
from ctrace.world.photos import as_list, load_images_helper
from ctrace.world.tokens import TimmViTPatchBackbone, patch_tokens


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

    features: Tensor
    names: tuple[str, ...]
    grid_hw: tuple[int, int]
    n_images: int = 1

    def __post_init__(self):
        n, c = check_features(self.features, rows_at_least=1).shape
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


def prepare_grid_features(
    images: Sequence,
    transform: Callable,
    extract: Callable,
    num_prefix_tokens: int = 1,
    grid_hw: tuple[int, int] | None = None,
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
