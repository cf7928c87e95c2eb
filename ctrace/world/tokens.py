"""From what a model puts out to features on a grid: which patch does each token stand for?

Transformers keep patches in a row behind 0, 1, 2 or 5 prefix tokens (none in SigLIP, a class token,
a second one for distillation, four registers), on grids that need not be square and may reach
beyond the image when it was padded. `patch_grid` reads the grid off a model and `patch_tokens` cuts
the prefix off; the layers of Grad-CAM, CARROT's backbone and the features of channel tracing all go
through these two.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from ctrace.arguments import Count, Whole, checked
from ctrace.world.models import describe, load_model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode for the time of a block; each of its modules gets its own mode
    back.
    """
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True


# --- one way from tokens to the grid


def patch_grid(model: nn.Module | None, image_size: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of patches that a timm model cuts an image ``(height, width)`` into."""
    embed = getattr(model, "patch_embed", None)
    if image_size is None or not hasattr(embed, "dynamic_feat_size"):
        call = "tokens_to_map(tokens, num_prefix_tokens=1, grid=(h, w))"
        hint = f"Use {call}; in GradCAM, to_map=lambda tokens: ..."
        raise ValueError(f"grid: cannot be read off this model. {hint}")
    return tuple(embed.dynamic_feat_size(image_size))


def patch_tokens(tokens: Tensor, num_prefix_tokens: int, grid: tuple[int, int]) -> Tensor:
    """The tokens behind the prefix ``(b, h * w, c)``, row by row of the grid.

    Raises:
        ValueError: their number is not ``num_prefix_tokens + h * w``.
    """
    if tokens.ndim != 3:
        raise ValueError(
            f"tokens: expected (b, n, c), received {tuple(tokens.shape)}. A model or layer that "
            "drops or pools its tokens has none left to lay on a grid."
        )
    expected = num_prefix_tokens + math.prod(grid)
    if tokens.shape[1] != expected:
        hint = "Are tokens dropped, merged or windowed, or is num_prefix_tokens wrong?"
        for axis, turn in ((0, "transpose(0, 1)"), (2, "transpose(1, 2)")):
            if tokens.shape[axis] == expected:
                hint = f"The tokens are on axis {axis}: {turn}."
        raise ValueError(
            f"tokens: expected {num_prefix_tokens} prefix + {grid[0]} x {grid[1]} patch = "
            f"{expected} tokens on axis 1, received {tuple(tokens.shape)}. {hint}"
        )
    return tokens[:, num_prefix_tokens:]


@checked
def tokens_to_map(
    tokens: Tensor,
    model: nn.Module | None = None,
    image_size: tuple[int, int] | None = None,
    num_prefix_tokens: Whole | None = None,
    grid: tuple[Count, Count] | None = None,
) -> Tensor:
    """Drop the prefix tokens and lay the others on their grid: ``(b, n, c)`` to ``(b, c, h, w)``.

    Args:
        tokens: n = prefix + h * w, row by row.
        model: a timm model; gives the prefix count and the grid.
        image_size: ``(height, width)`` of the input; needed with ``model`` unless ``grid`` is
            given.
        num_prefix_tokens, grid: for other models, or to overrule.

    Raises:
        ValueError: the count does not fit; nothing is guessed from square roots.

    >>> import torch
    >>> tokens_to_map(torch.arange(7.0).view(1, 7, 1), num_prefix_tokens=1, grid=(2, 3))[0, 0]
    tensor([[1., 2., 3.],
            [4., 5., 6.]])
    """
    if num_prefix_tokens is None:
        num_prefix_tokens = getattr(model, "num_prefix_tokens", None)
    grid = patch_grid(model, image_size) if grid is None else grid
    if num_prefix_tokens is None:
        hint = "Pass 0, 1 (class token), 2 or 5: how many stand before the patches."
        raise ValueError(f"num_prefix_tokens: the model does not say. {hint}")
    patches = patch_tokens(tokens, num_prefix_tokens, grid)
    return rearrange(patches, "b (h w) c -> b c h w", h=grid[0])


def layer_to_map(
    output: Tensor, model: nn.Module, module: nn.Module, image_size: tuple[int, int]
) -> Tensor:
    """Any layer's output as ``(b, c, h, w)``: convolution maps as they are, channels-last maps
    turned, tokens laid on the grid.

    Raises:
        ValueError: no spatial axes, a single cell, or a grid of another shape than the image's
            (axes in the wrong order).
    """
    if output.ndim == 3:
        return tokens_to_map(output, model, image_size)
    if output.ndim != 4:
        hint = "Name the last block, (b, c, h, w) or (b, n, c), not the pooling or the head."
        raise ValueError(f"the layer's output {tuple(output.shape)} has no image axes. {hint}")
    if _channels_last(model, module):
        output = rearrange(output, "b h w c -> b c h w")
    h, w = output.shape[2:]
    if h * w == 1:
        raise ValueError("the layer's grid is 1 x 1, points nowhere: name one before the pooling.")
    if not 0.5 <= (h * image_size[1]) / (w * image_size[0]) <= 2:
        raise ValueError(
            f"the layer's output {tuple(output.shape)} is no (b, c, h, w) for a {image_size} "
            "image. Are its channels last? Pass to_map=lambda x: x.permute(0, 3, 1, 2)."
        )
    return output


def _channels_last(model: nn.Module, module: nn.Module) -> bool:
    # Linear and LayerNorm act on the last axis, so that is where the channels are.
    if type(module) in (nn.Linear, nn.LayerNorm):
        return True
    fmt = str(getattr(model, "output_fmt", ""))
    return fmt.endswith("NHWC") and not isinstance(module, nn.Conv2d)


def covered_size(
    model: nn.Module, output: Tensor, grid: tuple[int, int], image_size: tuple[int, int]
) -> tuple[int, int]:
    """Pixels ``(height, width)`` under the grid: more than the image's where the model padded it to
    whole patches.
    """
    embed = getattr(model, "patch_embed", None)
    if output.ndim == 3 and getattr(embed, "dynamic_img_pad", False):
        return grid[0] * embed.patch_size[0], grid[1] * embed.patch_size[1]
    return image_size


# --- the patch tokens of a timm model


def patch_centers(grid_hw: tuple[int, int]) -> Tensor:
    """Centres of the cells of a grid ``(h * w, 2)``, float64: x then y, row by row, in [-1, 1].

    >>> patch_centers((1, 2))
    tensor([[-0.5000,  0.0000],
            [ 0.5000,  0.0000]], dtype=torch.float64)
    """
    y, x = ((2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1 for side in grid_hw)
    return torch.cartesian_prod(y, x).flip(1)  # (h * w, 2)


@dataclass(frozen=True, eq=False)
class PatchOutput:
    """Tokens of a batch of images, without gradient; unpacks as ``H, P = backbone(images)``.

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

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.H, self.P))


class TimmViTPatchBackbone(nn.Module):
    """Prepared images ``(b, 3, height, width)`` to `PatchOutput`; no hooks, no gradient, the modes
    of the model left as they were found.

    Args:
        model: a name for `ctrace.world.models.load_model`, or a timm token model, which is used as
            it is.
        pretrained: for a name, insist on trained weights; False draws random ones, on purpose.
        img_size: another input size, one number or (height, width); position embeddings are
            interpolated. A model that was passed in is copied before it is resized.
        freeze: for a name, take the gradients off the model's parameters.
        out_norm: end with the model's final norm, applied once; False ends before it.
        device: where the model goes; None takes a GPU for a name, and leaves a model where it is.

    Raises:
        ValueError: no token model, an unknown name or weights out of reach (see `load_model`), or
            an input whose size the patch does not divide or the model does not accept.
    """

    def __init__(
        self, model, pretrained=True, img_size=None, freeze=True, out_norm=True, device=None
    ):
        super().__init__()
        named = not isinstance(model, nn.Module)
        if named:
            model = load_model(model, "pretrained" if pretrained else "random", device)
            model.requires_grad_(not freeze)
        _check_tokens(model)
        if img_size is not None:
            model = model if named else copy.deepcopy(model)
            model.set_input_size(img_size)
            if hasattr(model, "info"):
                model.info = describe(
                    model, model.info.name, model.info.weights, model.info.classes
                )
        self.model, self.out_norm = model if device is None else model.to(device), out_norm

    @checked
    @torch.no_grad()
    def forward(self, images: Tensor) -> PatchOutput:
        """The patch tokens of prepared images (scaled and normalised as the model was trained)."""
        model, grid, patch = self.model, *self._grid(images)
        images = images.to(next(model.parameters()))
        with evaluating(model):
            if self.out_norm:
                H = patch_tokens(model.forward_features(images), model.num_prefix_tokens, grid)
            else:  # timm drops the prefix itself
                (H,) = model.forward_intermediates(
                    images, indices=1, norm=False, output_fmt="NLC", intermediates_only=True
                )
        if not bool(torch.isfinite(H).all()):
            raise ValueError("images: the model makes NaN or infinity of them. Are they scaled?")
        return PatchOutput(H, patch_centers(grid).to(H), grid, patch)

    def _grid(self, images: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            got = f"received {images.dtype} {tuple(images.shape)}. A single image needs image[None]"
            raise ValueError(f"images: expected (b, 3, height, width), {got}.")
        size, embed = tuple(images.shape[2:]), self.model.patch_embed
        patch = tuple(int(side) for side in embed.feat_ratio(as_scalar=False))
        if any(side % step for side, step in zip(size, patch)):
            raise ValueError(
                f"images: {size[0]} x {size[1]} pixels are not whole patches of {patch[0]} x "
                f"{patch[1]}. Resize to "
                f"{' x '.join(str(side // step * step) for side, step in zip(size, patch))}."
            )
        own = tuple(getattr(embed, "img_size", None) or size)
        if size != own and not getattr(self.model, "dynamic_img_size", False):
            raise ValueError(
                f"images: expected {own[0]} x {own[1]} pixels, received {size[0]} x {size[1]}. "
                f"Resize the images, or the model: TimmViTPatchBackbone(model, img_size={size})."
            )
        return patch_grid(self.model, size), patch


def _check_tokens(model: nn.Module) -> None:
    needed = ("forward_features", "num_prefix_tokens", "patch_embed")
    missing = [name for name in needed if not hasattr(model, name)]
    if missing or not hasattr(model.patch_embed, "feat_ratio"):
        raise ValueError(
            f"{type(model).__name__} has no {', '.join(missing) or 'patch_embed.feat_ratio'}: it "
            "is not a timm token model. Use vit_*, deit_*, eva* or 'aviary-vit-0'."
        )
