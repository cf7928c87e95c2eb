"""How strongly channels fire: read off a model, kept as count, mean and variance by group, compared
by Welch's test.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce as fold
from itertools import accumulate

import torch
import torch.distributed as dist
from einops import reduce
from scipy import special
from torch import Tensor, nn

from ctrace.look.hooks import check_reached, find_layers, watch


def mean_activation(output: Tensor) -> Tensor:
    """Spatial mean of a convolution's output after a ReLU, ``(b, c)`` from ``(b, c, h, w)``; in
    float32 at least.
    """
    precise = output.relu().to(torch.promote_types(output.dtype, torch.float32))
    return reduce(precise, "b c h w -> b c", "mean")


@contextmanager
def channel_means(model: nn.Module, layers=None) -> Iterator[Callable]:
    """Yields a function from images to the model's output and the `mean_activation` of the
    convolutions side by side ``(b, channels)``.

    Nothing larger than that is kept, and the hooks are gone when the context closes.

    Args:
        layers: as in `ctrace.look.hooks.find_layers`; all convolutions by default.

    Raises:
        ValueError: a layer that is not reached, is used twice, or whose rows are not images.
    """
    convs, seen = find_layers(model, layers, nn.Conv2d), {}

    def see(name: str, output: Tensor) -> None:
        if name in seen:
            raise ValueError(f"layer {name!r} is used twice in one pass. Leave it out of layers.")
        seen[name] = mean_activation(output)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        output, b = model(images), len(images)
        check_reached(convs, seen)
        wrong = [f"{name!r} put out {len(rows)}" for name, rows in seen.items() if len(rows) != b]
        if wrong:
            raise ValueError(f"{wrong[0]} rows for {b} images. Leave it out of layers.")
        return output, torch.cat([seen[name] for name in convs], 1)

    with watch(model, convs, see, seen.clear):
        yield run


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
        return cls(*(torch.zeros(k, n, dtype=torch.double, device=device) for n in (1, c, c)))

    @classmethod
    def of_groups(cls, values: Tensor, group: Tensor, k: int) -> "Moments":
        """From values ``(n, c)`` and the group of each ``(n,)``; every group below ``k`` must
        occur.

        >>> values = torch.tensor([[1.0], [3.0], [5.0]])
        >>> Moments.of_groups(values, torch.tensor([0, 0, 1]), 2).mean[:, 0].tolist()
        [2.0, 5.0]
        """
        values, order = values.double(), torch.arange(len(group), device=group.device)
        nowhere = order.new_full((k,), len(group))
        first = values[nowhere.scatter_reduce(0, group, order, "amin")]  # (k, c), one of each group
        zero = torch.zeros_like(first)
        count = zero[:, :1].index_add(0, group, torch.ones_like(values[:, :1]))
        mean = first + zero.index_add(0, group, values - first[group]) / count
        return cls(count, mean, zero.index_add(0, group, (values - mean[group]).square()))

    def merge(self, other: "Moments") -> "Moments":
        """Group by group, the moments of both together (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        share = torch.where(count > 0, other.count / count, 0.0)
        step = other.mean - self.mean
        spread = step.square() * self.count * share
        return Moments(count, self.mean + step * share, self.m2 + other.m2 + spread)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Moments":
        """The same change of all three tables: to another device, or to some of their rows."""
        return Moments(change(self.count), change(self.mean), change(self.m2))

    def __getitem__(self, groups) -> "Moments":
        """Some of the groups, by slice or by index ``(k',)``."""
        return self.map(lambda table: table[groups])

    def channels(self, of: slice) -> "Moments":
        """The moments of some of the channels."""
        return Moments(self.count, self.mean[:, of], self.m2[:, of])

    def total(self) -> "Moments":
        """All groups as one ``(1, c)``."""
        return fold(Moments.merge, self._groups())

    def all_but_one(self) -> "Moments":
        """For every group, the moments of all the others together ``(k, c)``.

        By merging alone: all groups before it with all groups behind it. Subtracting a group from
        the total would cancel digits where the group holds most of the variance.
        """
        groups, none = self._groups(), Moments.zeros(1, self.mean.shape[1], self.mean.device)
        before = list(accumulate(groups[:-1], Moments.merge, initial=none))
        behind = list(accumulate(groups[:0:-1], Moments.merge, initial=none))[::-1]
        others = [a.merge(b) for a, b in zip(before, behind)]
        tables = zip(*((m.count, m.mean, m.m2) for m in others))
        return Moments(*map(torch.cat, tables))

    def all_reduce(self) -> "Moments":
        """The moments of all processes of ``torch.distributed`` together, the same in each. Sums
        travel, not copies of all.
        """
        n, mean = self.count.clone(), torch.where(self.count > 0, self.mean, -torch.inf)
        dist.all_reduce(n)
        # some process's mean: sums of distances from it keep a constant channel exact
        dist.all_reduce(mean, dist.ReduceOp.MAX)
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

    def _groups(self) -> list["Moments"]:
        return [self[i : i + 1] for i in range(len(self.count))]


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
    t = gap / both.sqrt()
    # Welch-Satterthwaite, free of underflow
    share = torch.where(both != 0, va / both, 0.5)
    freedom = 1 / (share.square() / (a.count - 1) + (1 - share).square() / (b.count - 1))
    moving = (both != 0) | (gap != 0)
    t = torch.where(moving, t, 0.0)
    p = torch.from_numpy(special.stdtr(freedom.cpu().numpy(), -t.cpu().numpy())).to(t.device)
    return t, torch.where(moving, p, 1.0)
