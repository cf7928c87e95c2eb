"""Which channels of a layer to keep: those that fire more for a class, or those that fire more than usual on this image."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ctrace.channel_pass import mean_activation
from ctrace.channel_statistics import ChannelStatistics

__all__ = ["ClassTest", "InstanceTest", "Selection"]


@dataclass(frozen=True)
class Selection:
    """How strict the choice is.

    Attributes:
        quantile: keep this share of a layer's channels, ``max(1, int(quantile * c))`` of them; wins over ``alpha``.
        alpha: or keep the channels with a p-value of at most this.
        p_value_threshold: keep only channels whose Shapiro p is below it (needs a sample in the statistics); None: no such gate.
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
            raise ValueError("which channels to keep is not said: pass quantile, the share to keep, or alpha, the largest p-value to keep.")
        if self.quantile is not None and not 0 < self.quantile <= 1:
            raise ValueError(f"quantile: expected a share in (0, 1], received {self.quantile}. 1 keeps all channels.")
        for name in ("alpha", "p_value_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a p-value in [0, 1], received {value}.")

    def at(self, statistics: ChannelStatistics, layer: str, device) -> Callable[[Tensor, Tensor], Tensor]:
        """The choice at one layer: from p-values and channels ordered by strength, ``(n, c)`` each, to the kept ones ``(n, c)``."""
        c, gate, other = statistics.layers[layer], None, None
        if self.p_value_threshold is not None:
            gate = (statistics.shapiro_pvalues(layer)[layer] < self.p_value_threshold).to(device)
        if self.shuffle is not None:  # one draw per layer, the same for all rows, so that a batch equals one by one
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.shuffle} {layer}".encode()))
            other = torch.randperm(c, generator=generator).to(device)

        def choose(p: Tensor, order: Tensor) -> Tensor:
            if self.quantile is None:
                kept = p <= self.alpha
            else:
                first = order[:, : max(1, int(self.quantile * c + 1e-9))]  # int(0.29 * 100) alone would be 28
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
    """Channels that fire more on this image than they usually do: ``p = P(N > (activation - mean) / std)``, all classes together.

    A channel that never moved has no scale to be unusual on: p = 1.
    """

    def __init__(self, statistics: ChannelStatistics, layer: str, device):
        total = statistics.of_layer(layer).total()
        if total.count < 2:
            raise ValueError("instance masks need a standard deviation, and these statistics hold one image. Collect over more.")
        self.mean, self.std = total.mean.to(device), total.variance().sqrt().to(device)  # (1, c)

    def __call__(self, activation: Tensor) -> tuple[Tensor, Tensor]:
        """p and order ``(b, c)`` from the convolution's output ``(b, c, h, w)``."""
        z = torch.where(self.std > 0, (mean_activation(activation) - self.mean) / self.std, -torch.inf)
        return torch.special.ndtr(-z), z.argsort(dim=1, descending=True, stable=True)
