"""Patch tokens and where they sit: any timm token model, read through its own `forward_features`."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctrace.world.models import BUNDLED, load_model
from ctrace.world.tokens import forward_tokens

__all__ = ["PatchOutput", "TimmViTPatchBackbone", "patch_centers"]


@dataclass(frozen=True, eq=False)
class PatchOutput:
    """Tokens of a batch of images, without gradient.

    Attributes:
        H: patch tokens ``(b, n, c)``, row by row, prefix tokens dropped.
        P: patch centres ``(n, 2)``, x then y, each in [-1, 1] over the image.
        grid_hw: rows and columns of patches, ``n = h * w``.
        patch_hw: pixels of one patch.
    """

    H: Tensor
    P: Tensor
    grid_hw: tuple[int, int]
    patch_hw: tuple[int, int]


class TimmViTPatchBackbone:
    """Prepared images ``(b, 3, height, width)`` to `PatchOutput`; no hooks, no gradient, the model
    left as it was found.

    The tokens are what `forward_features` returns, whose last step is the model's final norm: it is
    not applied again.

    Args:
        model_or_name: a timm token model (as from `ctrace.world.models.load_model`), a bundled name, or a
            timm name.
        pretrained: for a timm name, insist on published weights; False draws random ones, on
            purpose.
        img_size: another input size, one number or (height, width); position embeddings are
            interpolated. A model that was passed in is copied before it is resized.
        device: where the model goes; None leaves it where it is.

    Raises:
        ValueError: no token model, an unknown name or weights out of reach (see `load_model`), or
            an input whose size the patch does not divide or the model does not accept.
    """

    def __init__(self, model_or_name, pretrained: bool = True, img_size=None, device=None):
        self.model = _load(model_or_name, pretrained, device)
        _check_tokens(self.model)
        if img_size is not None:
            self.model = _resized(self.model, img_size)

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Pixels ``(height, width)`` under one token."""
        return tuple(int(side) for side in self.model.patch_embed.feat_ratio(as_scalar=False))

    def __call__(self, images: Tensor) -> PatchOutput:
        """The patch tokens of prepared images (scaled and normalised as the model was trained)."""
        grid = self._grid(images)
        tokens = forward_tokens(
            self.model, images.to(next(self.model.parameters()).device)
        )  # (b, prefix + n, c)
        prefix, n = self.model.num_prefix_tokens, grid[0] * grid[1]
        if tokens.ndim != 3 or tokens.shape[1] != prefix + n:
            raise ValueError(
                f"{type(self.model).__name__}: expected tokens (b, {prefix} prefix + {grid[0]} x {grid[1]} patches, c) from forward_features, "
                f"received {tuple(tokens.shape)}. A model that merges, drops or pools its tokens has none left to tie together."
            )
        return PatchOutput(tokens[:, prefix:], patch_centers(grid).to(tokens), grid, self.patch_hw)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images: expected (b, 3, height, width), received {tuple(images.shape)}. A single image needs image[None]."
            )
        size, patch, embed = tuple(images.shape[2:]), self.patch_hw, self.model.patch_embed
        if any(side % step for side, step in zip(size, patch)):
            raise ValueError(
                f"images: {size[0]} x {size[1]} pixels are not whole patches of {patch[0]} x {patch[1]}; the rest would belong to no "
                f"token. Resize to {size[0] // patch[0] * patch[0]} x {size[1] // patch[1] * patch[1]}, or to the model's own size."
            )
        own = tuple(embed.img_size) if getattr(embed, "img_size", None) is not None else size
        if size != own and not getattr(self.model, "dynamic_img_size", False):
            raise ValueError(
                f"images: expected {own[0]} x {own[1]} pixels, received {size[0]} x {size[1]}. Resize the images, or the model: "
                f"TimmViTPatchBackbone(model, img_size={size})."
            )
        return size[0] // patch[0], size[1] // patch[1]


def patch_centers(grid_hw: tuple[int, int]) -> Tensor:
    """Centres of the cells of a grid ``(h * w, 2)``, float64: x then y, row by row, in [-1, 1].

    >>> patch_centers((1, 2))
    tensor([[-0.5000,  0.0000],
            [ 0.5000,  0.0000]], dtype=torch.float64)
    """
    y, x = ((2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1 for side in grid_hw)
    return torch.stack([x.repeat(grid_hw[0]), y.repeat_interleave(grid_hw[1])], 1)  # (n, 2)


def _load(model_or_name, pretrained: bool, device) -> nn.Module:
    if isinstance(model_or_name, nn.Module):
        return model_or_name if device is None else model_or_name.to(device)
    weights = "pretrained" if pretrained else "random"
    return load_model(
        model_or_name, "auto" if model_or_name in BUNDLED and pretrained else weights, device=device
    )


def _check_tokens(model: nn.Module) -> None:
    missing = [
        name
        for name in ("forward_features", "num_prefix_tokens", "patch_embed")
        if not hasattr(model, name)
    ]
    if missing or not hasattr(model.patch_embed, "feat_ratio"):
        raise ValueError(
            f"{type(model).__name__} has no {', '.join(missing) or 'patch_embed.feat_ratio'}: it is not a timm token model. A convolutional "
            "network has a feature map instead of tokens. Use vit_*, deit_*, eva* or 'aviary-vit-0'."
        )


def _resized(model: nn.Module, img_size) -> nn.Module:
    if not hasattr(model, "set_input_size"):
        raise ValueError(
            f"img_size: {type(model).__name__} cannot change its input size. Leave img_size out and resize the images."
        )
    model = copy.deepcopy(model)
    model.set_input_size(
        img_size=(img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    )
    return model
