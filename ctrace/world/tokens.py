"""From what a layer puts out to maps ``(b, c, h, w)``: where each token sits in the image.

Transformers keep patches in a row behind 0, 1, 2 or 5 prefix tokens (none in SigLIP, a class token,
a second one for distillation, four registers), on grids that need not be square and may reach
beyond the image when it was padded.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ctrace.world.features import GridFeatures
from ctrace.world.models import BUNDLED, load_model
from ctrace.world.photos import close_names, load_images_helper

__all__ = [
    "PatchOutput",
    "TimmViTPatchBackbone",
    "covered_size",
    "forward_tokens",
    "layer_to_map",
    "patch_centers",
    "prepare_grid_features",
    "timm_features",
    "tokens_to_map",
]


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
        transform: image to tensor ``(3, H, W)``, the same shape for all images.
        extract: batch ``(b, 3, H, W)`` to tokens ``(b, num_prefix_tokens + h * w, c)``.
        num_prefix_tokens: tokens before the patches (class, distillation, registers), dropped here:
            0, 1, 2, 5, ...
        grid_hw: patches ``(h, w)``; needed when their number is not a square.

    Raises:
        ValueError: no images, tokens of the wrong shape, or a token count that does not fit the
            grid.
    """
    if not len(images):
        raise ValueError("expected at least one image, received an empty list.")
    tokens = extract(
        torch.stack([transform(image) for image in images])
    )  # (b, num_prefix_tokens + h * w, c)
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or len(tokens) != len(images):
        got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(
            f"expected tokens of shape ({len(images)}, tokens, channels) from extract, received {got}. "
            "A pooled embedding or a convolutional map (b, c, h, w) has no token axis; return the tokens."
        )
    h, w = _token_grid(tokens.shape[1], num_prefix_tokens, grid_hw)
    return tokens[:, num_prefix_tokens:].flatten(0, 1), len(tokens), h, w


def _token_grid(
    n_tokens: int, num_prefix_tokens: int, grid_hw: tuple[int, int] | None
) -> tuple[int, int]:
    n = n_tokens - num_prefix_tokens
    if num_prefix_tokens < 0 or n < 1:
        raise ValueError(
            f"{n_tokens} tokens cannot hold {num_prefix_tokens} prefix tokens and a patch."
        )
    if grid_hw is not None and math.prod(grid_hw) != n:
        raise ValueError(
            f"expected h * w = {n} patches ({n_tokens} tokens less {num_prefix_tokens} prefix tokens), "
            f"received grid_hw = {tuple(grid_hw)} with {math.prod(grid_hw)} cells. A wrong "
            "num_prefix_tokens or another input size is the usual cause."
        )
    side = math.isqrt(n)
    if grid_hw is None and side * side != n:
        fits = [
            p
            for p in (0, 1, 2, 5)
            if p < n_tokens and math.isqrt(n_tokens - p) ** 2 == n_tokens - p
        ]
        hint = f" (num_prefix_tokens = {fits[0]} would leave a square)" if fits else ""
        raise ValueError(
            f"{n} patches ({n_tokens} tokens less {num_prefix_tokens} prefix tokens) are no square grid"
            f"{hint}. Pass grid_hw=(h, w) for an oblong image, or the right num_prefix_tokens."
        )
    return tuple(grid_hw) if grid_hw is not None else (side, side)


def timm_features(
    images, model, pretrained: bool = True, checkpoint: str | Path | None = None, **model_kwargs
) -> GridFeatures:
    """Patch tokens of a timm vision transformer, channels named ``ch 0``, ``ch 1``, ...

    Tokens come from the model's `forward_features` (final norm included), prefix tokens dropped.
    Size, mean, deviation and interpolation come from the model's own data configuration; the
    photograph is squeezed to the input size, not cropped, so that the grid covers all of it. The
    model runs in evaluation mode, without gradients, and is left as it was found.

    Args:
        images: one or several PIL images or paths.
        model: timm model name, or a module, which is used as it is.
        pretrained: for a name, load timm's published weights. False means random weights, on
            purpose.
        checkpoint: for a name, a local weight file, used instead of the published weights.
        **model_kwargs: passed to `timm.create_model`, e.g. ``img_size=(224, 448)`` or
            ``pretrained_cfg_overlay``.

    Raises:
        ValueError: unknown name (close names are listed), or a model without patch tokens.
        FileNotFoundError: no file at `checkpoint`.
        RuntimeError: the published weights cannot be had; the message names model, reason and ways
            on. Without a network this takes a minute of retries; the environment variable
            ``HF_HUB_OFFLINE=1`` ends them at once.
    """
    from timm.data import (  # the import of timm takes seconds
        create_transform,
        resolve_model_data_config,
    )

    model = (
        _timm_model(model, pretrained, checkpoint, model_kwargs)
        if isinstance(model, str)
        else model
    )
    missing = [
        name
        for name in ("forward_features", "num_prefix_tokens", "patch_embed")
        if not hasattr(model, name)
    ]
    if missing:
        raise ValueError(
            f"{type(model).__name__} has no {', '.join(missing)}: it is not a timm token model. "
            "Use a vision transformer (vit_*, deit_*, eva*), or filter_bank for features without a model."
        )
    config = resolve_model_data_config(model)
    height, width = _input_size(model, config)
    transform = create_transform(
        **{**config, "input_size": (3, height, width), "crop_pct": 1.0, "crop_mode": "squash"}
    )
    device = next(model.parameters()).device
    features, b, h, w = prepare_grid_features(
        load_images_helper(images),
        transform,
        lambda batch: forward_tokens(model, batch.to(device)),
        model.num_prefix_tokens,
        _input_grid(model, height, width),
    )
    return GridFeatures(features, tuple(f"ch {i}" for i in range(features.shape[1])), (h, w), b)


def _timm_model(name: str, pretrained: bool, checkpoint, model_kwargs: dict) -> torch.nn.Module:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise ValueError(
            f"timm has no model named {name!r}. {close_names(name, timm.list_models())}"
        )
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            raise FileNotFoundError(
                f"no weight file at {str(checkpoint)!r} (looked from {Path.cwd()})."
            )
        return timm.create_model(
            name, pretrained=False, checkpoint_path=str(checkpoint), **model_kwargs
        )
    if not pretrained:
        return timm.create_model(name, pretrained=False, **model_kwargs)
    try:
        return timm.create_model(name, pretrained=True, **model_kwargs)
    except Exception as error:  # hubs fail in many types; each means that there are no weights
        reason = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
        raise RuntimeError(
            f"no pretrained weights for {name!r} ({type(error).__name__}: {reason}). Ways on: (a) run once with a "
            "network; (b) pass checkpoint='weights.safetensors', or pretrained_cfg_overlay=dict(file=...), with a file "
            "you have; (c) pass pretrained=False for random weights, whose segments show architecture, not learning."
        ) from error


def _input_size(model, config: dict) -> tuple[int, int]:
    # A model built with its own img_size may carry the data configuration of the published size.
    size = getattr(model.patch_embed, "img_size", None) or config["input_size"][1:]
    return tuple(size)


def _input_grid(model, height: int, width: int) -> tuple[int, int]:
    embed = model.patch_embed
    grid = (
        embed.dynamic_feat_size((height, width))
        if hasattr(embed, "dynamic_feat_size")
        else embed.grid_size
    )
    return tuple(grid)
