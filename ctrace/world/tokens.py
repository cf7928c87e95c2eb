"""From what a layer puts out to maps ``(b, c, h, w)``: where each token sits in the image.

Transformers keep patches in a row behind 0, 1, 2 or 5 prefix tokens (none in SigLIP, a class token,
a second one for distillation, four registers), on grids that need not be square and may reach
beyond the image when it was padded.
"""

import math

import torch
from torch import Tensor, nn

__all__ = ["covered_size", "forward_tokens", "layer_to_map", "tokens_to_map"]


def forward_tokens(model: nn.Module, images: Tensor) -> Tensor:
    """All tokens ``(b, prefix + n, c)`` of prepared images from a timm model in eval mode, which is
    left in the mode it was in.
    """
    training = model.training
    try:
        with torch.no_grad():
            return model.eval().forward_features(images)
    finally:
        model.train(training)


def tokens_to_map(
    tokens: Tensor,
    model: nn.Module | None = None,
    image_size: tuple[int, int] | None = None,
    num_prefix_tokens: int | None = None,
    grid: tuple[int, int] | None = None,
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
    if tokens.ndim != 3:
        raise ValueError(f"tokens: expected (b, n, c), received {tuple(tokens.shape)}.")
    prefix = (
        getattr(model, "num_prefix_tokens", None)
        if num_prefix_tokens is None
        else num_prefix_tokens
    )
    h, w = grid = _patch_grid(model, image_size) if grid is None else grid
    if prefix is None:
        raise ValueError(
            "num_prefix_tokens: the model does not say how many stand before the patches. Pass 0, 1 (class token), 2 or 5."
        )
    if tokens.shape[1] != prefix + h * w:
        raise ValueError(_misfit(tokens, prefix, grid))
    return tokens[:, prefix:].transpose(1, 2).unflatten(2, (h, w))


def _patch_grid(model: nn.Module | None, image_size: tuple[int, int] | None) -> tuple[int, int]:
    embed = getattr(model, "patch_embed", None)
    if image_size is None or not hasattr(embed, "dynamic_feat_size"):
        raise ValueError(
            "grid: cannot be read off this model. Pass tokens_to_map(tokens, num_prefix_tokens=1, grid=(h, w)); inside GradCAM, "
            "to_map=lambda tokens: tokens_to_map(tokens, num_prefix_tokens=1, grid=(h, w))."
        )
    return embed.dynamic_feat_size(image_size)


def _misfit(tokens: Tensor, prefix: int, grid: tuple[int, int]) -> str:
    expected = prefix + math.prod(grid)
    received = f"expected {prefix} prefix + {grid[0]} x {grid[1]} patch = {expected} tokens on axis 1, received {tuple(tokens.shape)}."
    if tokens.shape[2] == expected:
        return f"tokens: {received} The tokens are on axis 2: transpose(1, 2)."
    if tokens.shape[0] == expected:
        return f"tokens: {received} The tokens are on axis 0: transpose(0, 1)."
    return f"tokens: {received} Does the layer drop, merge or window its tokens, or has the model more prefix tokens?"


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
        raise ValueError(
            f"the layer puts out {tuple(output.shape)}, which has no image axes. Name one whose output is (b, c, h, w) or (b, n, c): "
            "in a convolutional network the last block, not the pooling or the head."
        )
    if _channels_last(model, module):
        output = output.permute(0, 3, 1, 2)
    h, w = output.shape[2:]
    if h * w == 1:
        raise ValueError(
            "the layer's grid is 1 x 1: behind the pooling nothing can point anywhere. Name a layer before the pooling."
        )
    if not 0.5 <= (h * image_size[1]) / (w * image_size[0]) <= 2:
        raise ValueError(
            f"the layer's output {tuple(output.shape)} read as (b, c, h, w) has a {h} x {w} grid for a {image_size[0]} x {image_size[1]} "
            "image. Are its channels last? Pass to_map=lambda x: x.permute(0, 3, 1, 2)."
        )
    return output


def _channels_last(model: nn.Module, module: nn.Module) -> bool:
    if type(module) in (
        nn.Linear,
        nn.LayerNorm,
    ):  # these act on the last axis, so that is where the channels are
        return True
    return str(getattr(model, "output_fmt", "")).endswith("NHWC") and not isinstance(
        module, nn.Conv2d
    )


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
