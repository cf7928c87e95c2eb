"""A bounded random sample from a stream of unknown length, mergeable."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["FairSample"]


@dataclass(frozen=True, eq=False)
class FairSample:
    """At most ``cap`` of all rows shown so far, each with the same chance.

    Every row draws a random key and the smallest keys stay, so that two samples merge into a fair sample of both streams.

    Attributes:
        rows: ``(n, c)`` float32, on the CPU.
        keys: ``(n,)`` float64, ascending.
        cap: the most rows to hold.
    """

    rows: Tensor
    keys: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    cap: int = 0

    def draw(self, rows: Tensor, generator: torch.Generator) -> "FairSample":
        """The sample after these rows ``(b, c)`` have been shown too. Most of a long stream is turned away without being copied."""
        keys = torch.rand(len(rows), generator=generator, dtype=torch.float64)
        good = keys < (self.keys[-1] if len(self.keys) == self.cap else torch.inf)
        return self.merge(FairSample(rows[good.to(rows.device)].float().cpu(), keys[good], self.cap)) if bool(good.any()) else self

    def merge(self, other: "FairSample") -> "FairSample":
        """A fair sample of both streams."""
        cap = max(self.cap, other.cap)
        keys, order = torch.cat([self.keys, other.keys]).sort()
        return FairSample(torch.cat([self.rows, other.rows])[order[:cap]], keys[:cap], cap)
