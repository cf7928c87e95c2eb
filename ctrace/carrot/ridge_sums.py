"""What ridge regression needs to know of its training data: counts, means and products, additive
over batches and processes.
"""

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

__all__ = ["RidgeSums"]


@dataclass(frozen=True, eq=False)
class RidgeSums:
    """Count, means and products about the means of ``n`` rows ``(g_i, Y_i)``, in float64.

    About the means, because ``G^T G - n mean mean^T`` would cancel digits where the mean is large;
    the way back to the raw products only adds.

    >>> import torch
    >>> G, Y = torch.randn(6, 3), torch.randn(6, 2)
    >>> parts = RidgeSums.of(G[:2], Y[:2]).merge(RidgeSums.of(G[2:], Y[2:]))
    >>> torch.allclose(parts.raw()[0], G.double().T @ G.double())
    True

    Attributes:
        count: rows seen.
        mean_g: ``(c,)``.
        mean_y: ``(k,)``.
        gg: ``sum (g_i - mean_g)(g_i - mean_g)^T`` ``(c, c)``.
        gy: ``sum (g_i - mean_g)(Y_i - mean_y)^T`` ``(c, k)``.
    """

    count: int
    mean_g: Tensor
    mean_y: Tensor
    gg: Tensor
    gy: Tensor

    @classmethod
    def of(cls, G: Tensor, Y: Tensor) -> "RidgeSums":
        """From embeddings ``(n, c)`` and targets ``(n, k)``; a share without rows counts for
        nothing.
        """
        G, Y = G.double(), Y.double()
        mean_g, mean_y = G.sum(0) / max(len(G), 1), Y.sum(0) / max(len(G), 1)
        centred = G - mean_g  # (n, c)
        return cls(len(G), mean_g, mean_y, centred.T @ centred, centred.T @ (Y - mean_y))

    def merge(self, other: "RidgeSums") -> "RidgeSums":
        """The sums of both sets of rows together.

        Raises:
            ValueError: another number of channels or classes.
        """
        if self.gy.shape != other.gy.shape:
            raise ValueError(
                f"merge: {tuple(self.gy.shape)} and {tuple(other.gy.shape)} channels and classes do not go together."
            )
        count = self.count + other.count
        step_g, step_y = other.mean_g - self.mean_g, other.mean_y - self.mean_y
        share, weight = other.count / count, self.count * other.count / count
        gg = self.gg + other.gg + weight * step_g.outer(step_g)
        gy = self.gy + other.gy + weight * step_g.outer(step_y)
        return RidgeSums(count, self.mean_g + share * step_g, self.mean_y + share * step_y, gg, gy)

    def raw(self) -> tuple[Tensor, Tensor]:
        """``G^T G`` ``(c, c)`` and ``G^T Y`` ``(c, k)``."""
        gg = self.gg + self.count * self.mean_g.outer(self.mean_g)
        return gg, self.gy + self.count * self.mean_g.outer(self.mean_y)

    def all_reduce(self) -> "RidgeSums":
        """The sums of all processes of ``torch.distributed`` together, the same in each."""
        kinds = [None] * dist.get_world_size()
        dist.all_gather_object(kinds, tuple(self.gy.shape))
        if any(kind != kinds[0] for kind in kinds):
            raise ValueError(
                f"torch.distributed: every process needs the same channels and classes, they have {kinds}. Pass num_classes."
            )
        count = self.mean_g.new_tensor([self.count])
        mean_g, mean_y = self.count * self.mean_g, self.count * self.mean_y
        for total in (count, mean_g, mean_y):
            dist.all_reduce(total)
        mean_g, mean_y = mean_g / count, mean_y / count
        step_g, step_y = self.mean_g - mean_g, self.mean_y - mean_y
        gg, gy = (
            self.gg + self.count * step_g.outer(step_g),
            self.gy + self.count * step_g.outer(step_y),
        )
        dist.all_reduce(gg)
        dist.all_reduce(gy)
        return RidgeSums(int(count), mean_g, mean_y, gg, gy)
