"""The tokens of a vision transformer as features on a grid.

Nothing here opens a connection, except `timm_features(..., pretrained=True)`, which asks timm for
weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ctrace.world.features import GridFeatures
from ctrace.world.photos import close_names, load_images_helper
from ctrace.world.tokens import forward_tokens


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
        _patch_grid(model, height, width),
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


def _patch_grid(model, height: int, width: int) -> tuple[int, int]:
    embed = model.patch_embed
    grid = (
        embed.dynamic_feat_size((height, width))
        if hasattr(embed, "dynamic_feat_size")
        else embed.grid_size
    )
    return tuple(grid)
