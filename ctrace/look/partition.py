"""What ParchGrad does at one layer: choose the channels to keep, and weigh the gradients of the two
parts anew.

Kept are the channels that fire more for a class, or those that fire more than usual on this image.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ctrace.check import at_least_float32
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.convs import mean_activation

__all__ = ["ClassTest", "InstanceTest", "Selection", "reweigh"]


@dataclass(frozen=True)
class Selection:
    """How strict the choice is.

    Attributes:
        quantile: keep this share of a layer's channels, ``max(1, int(quantile * c))`` of them; wins
            over ``alpha``.
        alpha: or keep the channels with a p-value of at most this.
        p_value_threshold: keep only channels whose Shapiro p is below it (needs a sample in the
            statistics); None: no such gate.
        shuffle: a seed: keep as many channels, but others, drawn at random. The control.

    Raises:
        ValueError: neither of the first two given, or one out of range.
    """

    quantile: float | None = None
    alpha: float | None = None
    p_value_threshold: float | None = None
    shuffle: int | None = None

    def __post_init__(self):
        if self.quantile is None and self.alpha is None:
            raise ValueError(
                "which channels to keep is not said: pass quantile, the share to keep, or alpha, the largest p-value to keep."
            )
        if self.quantile is not None and not 0 < self.quantile <= 1:
            raise ValueError(
                f"quantile: expected a share in (0, 1], received {self.quantile}. 1 keeps all channels."
            )
        for name in ("alpha", "p_value_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a p-value in [0, 1], received {value}.")

    def at(
        self, statistics: ChannelStatistics, layer: str, device
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The choice at one layer: from p-values and channels ordered by strength, ``(n, c)`` each,
        to the kept ones ``(n, c)``.
        """
        c, gate, other = statistics.layers[layer], None, None
        if self.p_value_threshold is not None:
            gate = (statistics.shapiro_pvalues(layer)[layer] < self.p_value_threshold).to(device)
        if (
            self.shuffle is not None
        ):  # one draw per layer, the same for all rows, so that a batch equals one by one
            generator = torch.Generator().manual_seed(
                zlib.crc32(f"{self.shuffle} {layer}".encode())
            )
            other = torch.randperm(c, generator=generator).to(device)

        def choose(p: Tensor, order: Tensor) -> Tensor:
            if self.quantile is None:
                kept = p <= self.alpha
            else:
                first = order[
                    :, : max(1, int(self.quantile * c + 1e-9))
                ]  # int(0.29 * 100) alone would be 28
                kept = torch.zeros_like(p, dtype=torch.bool).scatter(1, first, True)
            kept = kept if gate is None else kept & gate
            return kept if other is None else kept[:, other]

        return choose


class ClassTest:
    """Channels that fire more for the class than for all other images, by Welch's test.

    The order among p-values that are equal, or too small to tell from 0, is that of t.
    """

    def __init__(self, statistics: ChannelStatistics, layer: str, device):
        t, p = statistics.welch(layer)  # (classes, c)
        by_t = t.argsort(dim=1, descending=True, stable=True)
        self.order = by_t.gather(1, p.gather(1, by_t).argsort(dim=1, stable=True)).to(device)
        self.p = p.to(device)

    def __call__(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """p and order ``(b, c)`` for classes ``(b,)``."""
        return self.p[classes], self.order[classes]


class InstanceTest:
    """Channels that fire more on this image than they usually do: ``p = P(N > (activation - mean) /
    std)``, all classes together.

    A channel that never moved has no scale to be unusual on: p = 1.
    """

    def __init__(self, statistics: ChannelStatistics, layer: str, device):
        total = statistics.of_layer(layer).total()
        if total.count < 2:
            raise ValueError(
                "instance masks need a standard deviation, and these statistics hold one image. Collect over more."
            )
        self.mean, self.std = total.mean.to(device), total.variance().sqrt().to(device)  # (1, c)

    def __call__(self, activation: Tensor) -> tuple[Tensor, Tensor]:
        """p and order ``(b, c)`` from the convolution's output ``(b, c, h, w)``."""
        z = torch.where(
            self.std > 0, (mean_activation(activation) - self.mean) / self.std, -torch.inf
        )
        return torch.special.ndtr(-z), z.argsort(dim=1, descending=True, stable=True)


def reweigh(
    gradient: Tensor,
    kept: Tensor,
    gamma: float = math.inf,
    variance_conservation: bool = True,
    exact_variance: bool = False,
) -> Tensor:
    """The gradient at a convolution's output with its two groups of channels weighed anew (Park,
    Jeon and Choi 2023).

    M and N are the spatial variances of the channel sum of the kept and of the other part (of 1 x 1
    maps, which have none, the absolute sum). Kept channels are multiplied by ``ghat * beta`` and
    the others by ``beta``, where ``ghat = gamma sqrt(N / M)`` and ``beta = sqrt((M + N) / (M ghat^2
    + N))``, or 1 without ``variance_conservation``. With an infinite gamma the others become 0 and
    the kept are multiplied by ``sqrt((M + N) / M)``, or 1. A row that keeps everything is returned
    as it is. A square root counts as 1 where a part has no variance: no factor could give it any.

    Args:
        gradient: ``(b, c, h, w)``; not changed.
        kept: ``(b, c)`` boolean.
        gamma: how much stronger than the others the kept part becomes, as a ratio of standard
            deviations.
        variance_conservation: as above; conserves the variance of the channel sum where the two
            parts do not covary.
        exact_variance: conserves it exactly, whatever gamma is: all is divided by what the variance
            has grown by.
    """
    g = at_least_float32(gradient)
    parts = torch.stack([kept, ~kept], 1).to(g)  # (b, 2, c)
    sums = (parts @ g.flatten(2)).unflatten(2, g.shape[2:])  # (b, 2, h, w)
    m, n = _spread(sums).unbind(1)  # (b,) each
    conserve = (
        variance_conservation and not exact_variance
    )  # an exact scale undoes any other common factor
    factors = torch.stack(_factors(m, n, gamma, conserve), 1)  # (b, 2)
    factors = torch.where(kept.all(1, keepdim=True), 1.0, factors)
    if exact_variance:
        factors = factors * _exact(sums, factors)[:, None]
    scale = torch.where(kept, factors[:, :1], factors[:, 1:])
    return (g * scale[:, :, None, None]).to(gradient.dtype)


def _factors(m: Tensor, n: Tensor, gamma: float, conserve: bool) -> tuple[Tensor, Tensor]:
    """Factors of the kept and of the other part ``(b,)``.

    With conservation, ``ghat * beta`` and ``beta`` are written out, so that neither overflows where
    a part is nearly silent: after them the two variances are to each other as gamma^2 to 1 and sum
    to M + N.
    """
    one = torch.ones_like(m)
    if math.isinf(gamma):
        return (_root(m + n, m) if conserve else one), torch.zeros_like(m)
    if not conserve:
        return gamma * _root(n, m), one
    share = gamma / math.hypot(gamma, 1)
    return share * _root(m + n, m), share / gamma * _root(m + n, n)


def _root(above: Tensor, below: Tensor) -> Tensor:
    return torch.where((above > 0) & (below > 0), (above / below).sqrt(), 1.0)


def _spread(sums: Tensor) -> Tensor:
    """Spatial variance of maps ``(..., h, w)``, exactly 0 where only rounding varies; the absolute
    value of 1 x 1 maps.
    """
    flat = sums.flatten(-2)
    if flat.shape[-1] == 1:
        return flat[..., 0].abs()
    variance, size = flat.var(-1), flat.square().mean(-1)
    return torch.where(variance > (16 * torch.finfo(sums.dtype).eps) ** 2 * size, variance, 0.0)


def _exact(sums: Tensor, factors: Tensor) -> Tensor:
    """What to multiply by ``(b,)`` so that the channel sum keeps the spread it had."""
    before, after = _spread(sums.sum(1)), _spread((sums * factors[:, :, None, None]).sum(1))
    ratio = torch.where(after > 0, before / after, 1.0)
    return ratio if sums.shape[-1] * sums.shape[-2] == 1 else ratio.sqrt()
