"""The calls of the original texts, under their names, for readers who come from there.

The five steps of channel tracing, over `ctrace.cut`::

    eigvec, kway_eigvec = differentiable_kway_ncut(features, n_segment)
    grad = channel_gradient_from_cluster(features, mask, kway_eigvec, cluster_idx)
    order = rank_channels(grad)
    channels, maps = extract_topk_maps(reshape_for_view(features, b, h, w), order)

The calls of ParchGrad, over `ctrace.look.parchgrad`::

    wrapper = get_hook_wrapper(encoder, model, "cls")                     # which masks
    wrapper.prepare_parchgrad(base_directory)                             # ChannelStatistics.load
    convolutions = wrapper.get_default_hook_convolutions(layer_ratio)     # default_convs
    wrapper.set_hook_modules(convolutions)                                # ParchGrad(model,
        statistics, layers)
    attribution = get_input_attrib("grad")(wrapper, x, y, quantile=0.1)   # ParchGrad.attribute,
        colours averaged

What differs is deliberate. Each image of a batch is partitioned for its own class; the gradient is
that of the logit, without the factor of the softmax that breaks the completeness of integrated
gradients; noisy gradients are averaged with their sign.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from ctrace.cut.kway import kway_ncut
from ctrace.cut.ncut import Ncut
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.convs import default_convs
from ctrace.look.parchgrad import ATTRIBUTIONS, METHODS, ParchGrad

__all__ = [
    "differentiable_kway_ncut",
    "channel_gradient_from_cluster",
    "rank_channels",
    "reshape_for_view",
    "extract_topk_maps",
    "STATISTICS_FILE",
    "HookWrapper",
    "get_hook_wrapper",
    "get_input_attrib",
]

ORDERS = ("effect", "literal")  # the slope of raising a channel, or the published recipe's negative

STATISTICS_FILE = "statistics.safetensors"  # in place of four pickles


def differentiable_kway_ncut(features: Tensor, n_segment: int, **ncut) -> tuple[Tensor, Tensor]:
    """Eigenvectors ``(n, k)`` and k-way scores ``(n, k)``, differentiable in ``features (n, c)``.

    Raises:
        ValueError: features that do not require a gradient.
    """
    if not features.requires_grad:
        raise ValueError(
            "features: expected requires_grad=True, received a tensor without. "
            "Use features.clone().requires_grad_(True)."
        )
    eigvec = Ncut(n_eig=n_segment, track_grad=True, **ncut).fit_transform(features)
    return eigvec, kway_ncut(eigvec)


def channel_gradient_from_cluster(
    features: Tensor,
    cluster_mask: Tensor,
    kway_eigvec: Tensor,
    cluster_idx: int,
    order: str = "effect",
) -> Tensor:
    """Gradient of the segment's mean absolute score, averaged over the segment: ``(c,)``, signed.

    The published helper of this name differentiates the *negated* score; ``order="literal"``
    returns that. ``features.grad`` is left alone.

    Raises:
        ValueError: an empty mask, or features that the scores do not depend on.
    """
    if order not in ORDERS:
        raise ValueError(f"order: expected one of {', '.join(ORDERS)}, received {order!r}.")
    if not bool(cluster_mask.any()):
        raise ValueError(
            f"cluster_mask: segment {cluster_idx} is empty: nothing to differentiate. Skip it."
        )
    if not (features.requires_grad and kway_eigvec.requires_grad):
        raise ValueError(
            "features: the scores carry no gradient. "
            "Compute both with differentiable_kway_ncut(features, k)."
        )
    mask = cluster_mask.to(kway_eigvec.device)
    score = kway_eigvec[mask, cluster_idx].abs().mean()
    (grad,) = torch.autograd.grad(score, features, retain_graph=True)
    grad = grad[mask.to(grad.device)].mean(0)
    return grad if order == "effect" else -grad


def rank_channels(grad: Tensor, descending: bool = True) -> Tensor:
    """Channel numbers sorted by value ``(c,)``."""
    return torch.argsort(grad, descending=descending, stable=True)


def reshape_for_view(features: Tensor, b: int, h: int, w: int):
    """Rows ``(b*h*w, c)`` as an array of maps ``(b, h, w, c)``."""
    if len(features) != b * h * w:
        raise ValueError(
            f"features: expected b*h*w = {b * h * w} rows for {b} grids of {h} x {w}, "
            f"received {len(features)}."
        )
    return rearrange(features.detach(), "(b h w) c -> b h w c", b=b, h=h, w=w).cpu().numpy()


def extract_topk_maps(feature_grid, channel_indices: Tensor, image_index: int = 0, topk: int = 5):
    """The first ``topk`` channel numbers, and the map ``(h, w)`` of each in one image."""
    channels = channel_indices[:topk].tolist()
    return channels, [feature_grid[image_index, :, :, c] for c in channels]


def get_hook_wrapper(encoder: str, model: nn.Module, method: str) -> "HookWrapper":
    """A model and the kind of its masks, ``"cls"`` or ``"ins"``. Any model will do: its ``encoder``
    name chooses nothing here.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, received {method!r}.")
    return HookWrapper(model, method)


class HookWrapper:
    """A model on its way to a `ParchGrad`, which `set_hook_modules` completes."""

    def __init__(self, model: nn.Module, method: str):
        self.model, self.method, self.statistics, self.parchgrad = model, method, None, None

    def prepare_parchgrad(self, base_directory, device="cpu") -> None:
        """Read the statistics from ``statistics.safetensors`` in a folder."""
        self.statistics = ChannelStatistics.load(Path(base_directory) / STATISTICS_FILE, device)

    def get_default_hook_convolutions(self, layer_ratio: float | None = None) -> list[nn.Module]:
        """The model's default layers to edit, see `ctrace.look.convs.default_convs`."""
        return [self.model.get_submodule(name) for name in default_convs(self.model, layer_ratio)]

    def set_hook_modules(self, convolutions) -> None:
        """Say where to edit; nothing is hooked before an attribution runs, nor after."""
        if self.statistics is None:
            raise ValueError(
                "no statistics yet: call prepare_parchgrad(base_directory) before set_hook_modules."
            )
        self.parchgrad = ParchGrad(self.model, self.statistics, convolutions)


def get_input_attrib(name: str) -> Callable[..., Tensor]:
    """One of ``"grad"``, ``"inputgrad"``, ``"smoothgrad"``, ``"ig"`` as a function of a wrapper,
    images and classes.
    """
    if name not in ATTRIBUTIONS:
        raise ValueError(
            f"input attribution: expected one of {', '.join(ATTRIBUTIONS)}, received {name!r}."
        )

    def input_attrib(
        wrapper: HookWrapper,
        x: Tensor,
        y,
        cls=None,
        modify_gradient: bool = True,
        gamma_infinity: bool = True,
        gamma: float = 1.0,
        enable_forward_hook: bool | None = None,
        **selection,
    ) -> Tensor:
        """Absolute attribution averaged over colours ``(b, height, width)``.

        Args:
            x, y: images ``(b, 3, height, width)`` and the class of each.
            cls: the class to partition for: ``y`` as it is, each image for its own, which is the
                default; or one for all.
            modify_gradient: False gives the plain attribution.
            gamma_infinity, gamma: stop the other channels, or the finite gamma, which the authors'
                code leaves undefined.
            enable_forward_hook: changes nothing: the activation that instance masks need is always
                at hand.
            **selection: quantile, alpha, p_value_threshold, variance_conservation, exact_variance.
        """
        if not modify_gradient:
            return ATTRIBUTIONS[name](wrapper.model, x, y).abs().mean(1)
        if wrapper.parchgrad is None:
            raise ValueError(
                "no layers yet: call set_hook_modules(get_default_hook_convolutions()) first."
            )
        selection |= {
            "method": wrapper.method,
            "classes": _one_class(cls, y),
            "gamma": math.inf if gamma_infinity else gamma,
        }
        return wrapper.parchgrad.attribute(name, x, y, **selection).abs().mean(1)

    return input_attrib


def _one_class(cls, y) -> int | None:
    """None where each image is partitioned for the class it is asked about."""
    if cls is None or torch.equal(torch.as_tensor(cls).cpu(), torch.as_tensor(y).cpu()):
        return None
    if torch.as_tensor(cls).numel() != 1:
        raise ValueError(
            f"cls: expected y itself or a single class, received {cls}. Other classes image by image: one call each."
        )
    return int(cls)
