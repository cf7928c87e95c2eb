"""What is kept of a stream of activations: count, mean and variance by group, compared by Welch's
test, and a bounded fair sample.
"""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from scipy import special
from torch import Tensor

__all__ = ["FairSample", "Moments", "welch_greater"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of ``c`` channels in ``k`` groups, in float64.

    Values that are all equal have ``m2`` exactly 0, however they were streamed and merged: every
    difference is taken before it is summed. A difference of two large sums would leave a small
    variance there, and a test would find the channel significant.

    Attributes:
        count: values seen in each group ``(k, 1)``.
        mean: ``(k, c)``; 0 in a group without values.
        m2: sum of squared distances from the mean ``(k, c)``.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    @classmethod
    def zeros(cls, k: int, c: int, device=None) -> "Moments":
        """Moments of no values, of k groups and c channels."""
        count, mean, m2 = (
            torch.zeros(k, width, dtype=torch.float64, device=device) for width in (1, c, c)
        )
        return cls(count, mean, m2)

    @classmethod
    def of_groups(cls, values: Tensor, group: Tensor, k: int) -> "Moments":
        """From values ``(n, c)`` and the group of each ``(n,)``; every group below ``k`` must
        occur.

        >>> Moments.of_groups(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2).mean[:, 0].tolist()
        [2.0, 5.0]
        """
        values, order = values.double(), torch.arange(len(group), device=group.device)
        first = values[
            order.new_full((k,), len(group)).scatter_reduce(0, group, order, "amin")
        ]  # (k, c), one value of each group
        zero = torch.zeros_like(first)
        count = zero[:, :1].index_add(0, group, torch.ones_like(values[:, :1]))
        mean = first + zero.index_add(0, group, values - first[group]) / count
        return cls(count, mean, zero.index_add(0, group, (values - mean[group]).square()))

    def merge(self, other: "Moments") -> "Moments":
        """Group by group, the moments of both together (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        share = torch.where(count > 0, other.count / count, 0.0)
        step = other.mean - self.mean
        return Moments(
            count, self.mean + step * share, self.m2 + other.m2 + step.square() * self.count * share
        )

    def __getitem__(self, groups) -> "Moments":
        """Some of the groups, by slice or by index ``(k',)``."""
        return Moments(self.count[groups], self.mean[groups], self.m2[groups])

    def channels(self, of: slice) -> "Moments":
        """The moments of some of the channels."""
        return Moments(self.count, self.mean[:, of], self.m2[:, of])

    def to(self, device) -> "Moments":
        """The same on another device."""
        return Moments(self.count.to(device), self.mean.to(device), self.m2.to(device))

    def total(self) -> "Moments":
        """All groups as one ``(1, c)``."""
        return self if len(self.count) == 1 else self._pairs().total()

    def all_but_one(self) -> "Moments":
        """For every group, the moments of all the others together ``(k, c)``.

        By merging alone: whatever is outside a pair of groups joins the sibling. Subtracting a
        group from the total would cancel digits where the group holds most of the variance.
        """
        k, c = self.mean.shape
        if k == 1:
            return Moments.zeros(1, c, self.mean.device)
        even = self._even()
        outside = even._pairs().all_but_one()
        left, right = outside.merge(even[1::2]), outside.merge(even[0::2])  # (k / 2, c) each
        woven = (
            torch.stack([a, b], 1).flatten(0, 1)[:k]
            for a, b in zip(left._fields(), right._fields())
        )
        return Moments(*woven)

    def all_reduce(self) -> "Moments":
        """The moments of all processes of ``torch.distributed`` together, the same in each. Sums
        travel, not copies of all.
        """
        n, mean = self.count.clone(), torch.where(self.count > 0, self.mean, -torch.inf)
        dist.all_reduce(n)
        dist.all_reduce(
            mean, dist.ReduceOp.MAX
        )  # some process's mean: sums of distances from it keep a constant channel exact
        start = torch.where(n > 0, mean, 0.0)
        shift = self.count * (self.mean - start)
        dist.all_reduce(shift)
        joint = start + torch.where(n > 0, shift / n, 0.0)
        m2 = self.m2 + self.count * (self.mean - joint).square()
        dist.all_reduce(m2)
        return Moments(n, joint, m2)

    def variance(self) -> Tensor:
        """Unbiased ``(k, c)``; NaN in a group of fewer than two values."""
        return torch.where(self.count > 1, self.m2 / (self.count - 1), torch.nan)

    def _fields(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.count, self.mean, self.m2

    def _even(self) -> "Moments":
        missing = len(self.count) % 2
        return Moments(*(torch.nn.functional.pad(x, (0, 0, 0, missing)) for x in self._fields()))

    def _pairs(self) -> "Moments":
        even = self._even()
        return even[0::2].merge(even[1::2])


def welch_greater(a: Moments, b: Moments) -> tuple[Tensor, Tensor]:
    """Welch's test that the mean of ``a`` exceeds that of ``b``: t and one-sided p, ``(k, c)`` each
    (Welch 1947).

    Equals ``scipy.stats.ttest_ind(..., equal_var=False, alternative="greater")`` of the values
    themselves. Two constants: where they are equal t = 0 and p = 1, so that a channel that never
    moves is never chosen (scipy gives NaN); otherwise t is infinite and p is 0 or 1. NaN where
    either side has fewer than two values.
    """
    va, vb = a.variance() / a.count, b.variance() / b.count
    gap, both = a.mean - b.mean, va + vb
    moving = both != 0
    t = gap / both.sqrt()
    share = torch.where(moving, va / both, 0.5)
    freedom = 1 / (
        share.square() / (a.count - 1) + (1 - share).square() / (b.count - 1)
    )  # Welch-Satterthwaite, free of underflow
    t = torch.where(moving | (gap != 0), t, 0.0)
    p = torch.from_numpy(special.stdtr(freedom.cpu().numpy(), -t.cpu().numpy())).to(t.device)
    return t, torch.where(moving | (gap != 0), p, 1.0)


@dataclass(frozen=True, eq=False)
class FairSample:
    """At most ``cap`` of all rows shown so far, each with the same chance.

    Every row draws a random key and the smallest keys stay, so that two samples merge into a fair
    sample of both streams.

    Attributes:
        rows: ``(n, c)`` float32, on the CPU.
        keys: ``(n,)`` float64, ascending.
        cap: the most rows to hold.
    """

    rows: Tensor
    keys: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    cap: int = 0

    def draw(self, rows: Tensor, generator: torch.Generator) -> "FairSample":
        """The sample after these rows ``(b, c)`` have been shown too. Most of a long stream is
        turned away without being copied.
        """
        keys = torch.rand(len(rows), generator=generator, dtype=torch.float64)
        good = keys < (self.keys[-1] if len(self.keys) == self.cap else torch.inf)
        return (
            self.merge(FairSample(rows[good.to(rows.device)].float().cpu(), keys[good], self.cap))
            if bool(good.any())
            else self
        )

    def merge(self, other: "FairSample") -> "FairSample":
        """A fair sample of both streams."""
        cap = max(self.cap, other.cap)
        keys, order = torch.cat([self.keys, other.keys]).sort()
        return FairSample(torch.cat([self.rows, other.rows])[order[:cap]], keys[:cap], cap)
