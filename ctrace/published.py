"""The calls of the original texts, under their names, for readers who come from there.

The five steps of channel tracing, over `ctrace.cut`::

    eigvec, kway_eigvec = differentiable_kway_ncut(features, n_segment)
    grad = channel_gradient_from_cluster(features, mask, kway_eigvec, cluster_idx)
    order = rank_channels(grad)
    channels, maps = extract_topk_maps(reshape_for_view(features, b, h, w), order)

The calls of ParchGrad, over `ctrace.look.parchgrad`, and what they stand for::

    model = get_pretrained_model(encoder)                               # load_model
    wrapper = get_hook_wrapper(encoder, model, "cls")                   # which masks
    wrapper.prepare_parchgrad(base_directory)                           # ChannelStatistics.load
    convolutions = wrapper.get_default_hook_convolutions(layer_ratio)   # default_convs
    wrapper.set_hook_modules(convolutions)                              # ParchGrad
    attribution = get_input_attrib("grad")(wrapper, x, y, alpha=0.1)    # ParchGrad.attribute

What differs is deliberate. The gradient of a segment is that of its score, not of its negative.
Each image of a batch is partitioned for its own class; the gradient is that of the logit, without
the factor of the softmax that breaks the completeness of integrated gradients; noisy gradients are
averaged with their sign.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from ctrace.arguments import (
    Count,
    Features,
    Whole,
    check_places,
    checked,
    numbering,
    real,
    truth,
    warn,
)
from ctrace.check import check_number, one_of, seen
from ctrace.cut.kway import kway_ncut
from ctrace.cut.ncut import Ncut
from ctrace.cut.tracing import ORDERS
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.parchgrad import ATTRIBUTIONS, ParchGrad
from ctrace.look.partition import METHODS, default_convs
from ctrace.world.models import load_model

STATISTICS_FILE = "statistics.safetensors"  # in place of four pickles


@checked
def differentiable_kway_ncut(features: Features, n_segment: Count, **ncut) -> tuple[Tensor, Tensor]:
    """Eigenvectors ``(n, k)`` and k-way scores ``(n, k)``, differentiable in ``features (n, c)``.

    Raises:
        ValueError: features that do not require a gradient.
    """
    if not features.requires_grad:
        raise ValueError("features: expected requires_grad=True: x.clone().requires_grad_(True).")
    eigvec = Ncut(n_eig=n_segment, track_grad=True, **ncut).fit_transform(features)
    return eigvec, kway_ncut(eigvec)


@checked
def channel_gradient_from_cluster(
    features: Tensor,
    cluster_mask: truth("n"),
    kway_eigvec: real("n k"),
    cluster_idx: Whole,
    order: str = "effect",
) -> Tensor:
    """Gradient of the segment's mean absolute score, averaged over the segment: ``(c,)``, signed.

    The published helper of this name differentiates the *negated* score; ``order="literal"``
    returns that. ``features.grad`` is left alone.

    Raises:
        ValueError: an empty mask, or features that the scores do not depend on.
    """
    one_of("order", order, ORDERS)
    check_number("cluster_idx", cluster_idx, below=kway_eigvec.shape[1])
    if not bool(cluster_mask.any()):
        raise ValueError(f"cluster_mask: segment {cluster_idx} is empty: nothing to do. Skip it.")
    if not (features.requires_grad and kway_eigvec.requires_grad):
        message = "features: the scores carry no gradient."
        raise ValueError(f"{message} Compute both with differentiable_kway_ncut(features, k).")
    score = kway_eigvec[cluster_mask.to(kway_eigvec.device), cluster_idx].abs().mean()
    (grad,) = torch.autograd.grad(score, features, retain_graph=True)
    grad = grad[cluster_mask.to(grad.device)].mean(0)
    return grad if order == "effect" else -grad


@checked
def rank_channels(grad: Tensor, descending: bool = True) -> Tensor:
    """Channel numbers sorted by value ``(c,)``."""
    return torch.argsort(grad, descending=descending, stable=True)


@checked
def reshape_for_view(features: Features, b: Count, h: Count, w: Count):
    """Rows ``(b*h*w, c)`` as an array of maps ``(b, h, w, c)``."""
    if len(features) != b * h * w:
        raise ValueError(f"features: expected b*h*w = {b * h * w} rows, received {len(features)}.")
    return rearrange(features.detach(), "(b h w) c -> b h w c", b=b, h=h, w=w).cpu().numpy()


@checked
def extract_topk_maps(
    feature_grid, channel_indices: numbering("k"), image_index: Whole = 0, topk: Count = 5
):
    """The first ``topk`` channel numbers, and the map ``(h, w)`` of each in one image."""
    if not isinstance(feature_grid, np.ndarray | Tensor) or feature_grid.ndim != 4:
        raise ValueError(f"feature_grid: expected maps (b, h, w, c), got {seen(feature_grid)}.")
    check_number("image_index", image_index, below=len(feature_grid))
    channels = channel_indices[:topk].tolist()
    check_places("channel_indices", channels, feature_grid.shape[3])
    return channels, [feature_grid[image_index, :, :, c] for c in channels]


def get_pretrained_model(name: str) -> nn.Module:
    """A model with trained weights, in eval mode, see `ctrace.world.models.load_model`."""
    return load_model(name, "pretrained")


def get_hook_wrapper(encoder: str, model: nn.Module, method: str) -> "HookWrapper":
    """A model and the kind of its masks, ``"cls"`` or ``"ins"``. Any model will do: its ``encoder``
    name chooses nothing here.
    """
    return HookWrapper(model, one_of("method", method, METHODS))


@dataclass
class HookWrapper:
    """A model on its way to a `ParchGrad`, which `set_hook_modules` completes."""

    model: nn.Module
    method: str
    statistics: ChannelStatistics | None = None
    parchgrad: ParchGrad | None = None

    def prepare_parchgrad(self, base_directory, device="cpu") -> None:
        """Read the statistics from ``statistics.safetensors`` in a folder."""
        self.statistics = ChannelStatistics.load(Path(base_directory) / STATISTICS_FILE, device)

    def get_default_hook_convolutions(self, layer_ratio: float | None = None) -> list[nn.Module]:
        """The model's default layers to edit, see `default_convs`."""
        return [self.model.get_submodule(name) for name in default_convs(self.model, layer_ratio)]

    def set_hook_modules(self, convolutions) -> None:
        """Say where to edit; nothing is hooked before an attribution runs, nor after."""
        if self.statistics is None:
            raise ValueError("no statistics yet: call prepare_parchgrad(base_directory) first.")
        self.parchgrad = ParchGrad(self.model, self.statistics, convolutions)


def get_input_attrib(name: str) -> Callable[..., Tensor]:
    """One of ``"grad"``, ``"inputgrad"``, ``"smoothgrad"``, ``"ig"`` as a function of a wrapper,
    images and classes: `input_attrib` without its first argument.
    """
    return partial(input_attrib, one_of("input attribution", name, ATTRIBUTIONS))


def input_attrib(
    name: str,
    wrapper: HookWrapper,
    x: Tensor,
    y,
    cls=None,
    modify_gradient: bool = True,
    gamma_infinity: bool = True,
    gamma: float = 1.0,
    enable_forward_hook: bool | None = None,
    p_value_threshold: float | None = None,
    **selection,
) -> Tensor:
    """Absolute attribution averaged over colours ``(b, height, width)``.

    Args:
        name: a key of `ctrace.look.parchgrad.ATTRIBUTIONS`.
        x, y: images ``(b, 3, height, width)`` and the class of each.
        cls: the class to partition for: ``y`` as it is, each image for its own, which is the
            default; or one for all.
        modify_gradient: False gives the plain attribution.
        gamma_infinity, gamma: stop the other channels, or the finite gamma, which the authors'
            code leaves undefined.
        enable_forward_hook: changes nothing: the activation that instance masks need is always at
            hand.
        p_value_threshold: left out with a warning, unless 1: with many images every channel passes
            the test of normality that it asks for.
        **selection: quantile, alpha, variance_conservation, exact_variance.

    Raises:
        ValueError: a wrapper without layers, or a class for each image that is not its own.
    """
    if p_value_threshold is not None and p_value_threshold < 1:
        warn("p_value_threshold is left out: with many images all pass.")
    if not modify_gradient:
        return ATTRIBUTIONS[name](wrapper.model, x, y).abs().mean(1)
    if wrapper.parchgrad is None:
        raise ValueError("no layers yet: call set_hook_modules(convolutions) first.")
    own = cls is None or torch.equal(torch.as_tensor(cls).cpu(), torch.as_tensor(y).cpu())
    if not own and torch.as_tensor(cls).numel() != 1:
        message = f"cls: expected y itself or a single class, received {cls}."
        raise ValueError(f"{message} Other classes image by image: one call each.")
    selection |= {
        "method": wrapper.method,
        "classes": None if own else int(cls),
        "gamma": math.inf if gamma_infinity else gamma,
    }
    return wrapper.parchgrad.attribute(name, x, y, **selection).abs().mean(1)
