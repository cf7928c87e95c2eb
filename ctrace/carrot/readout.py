"""From the diffused regions of an image to its embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from ctrace.carrot.graph import RegionGraph

__all__ = ["READOUTS", "GraphReadout"]

READOUTS = (
    "mean",
    "sum",
    "max",
    "mean_max",
    "mean_var",
    "residual",
    "residual_abs",
    "topk",
    "degree",
)
LINEAR = ("mean", "sum", "degree")
DOUBLE = ("mean_max", "mean_var", "residual", "residual_abs")


class GraphReadout:
    """One embedding ``g (b, p)`` per image, from diffused tokens ``H'`` and original tokens ``H``.

    - ``mean``, ``sum``, ``max`` of ``H'``; ``mean_max`` and ``mean_var`` put two side by side (variance over regions, biased)
    - ``residual``: mean of ``H`` beside mean of ``H' - H``; ``residual_abs``: mean of ``H`` beside mean of ``|H' - H|``
    - ``topk``: mean of the ``k`` longest rows of ``H'``
    - ``degree``: mean of ``H'`` weighted by degree

    Args:
        kind: one of `READOUTS`.
        k: for ``topk``; all regions where there are fewer.

    Raises:
        ValueError: an unknown kind, or a ``k`` below 1.
    """

    def __init__(self, kind: str = "mean", k: int = 8):
        if kind not in READOUTS:
            raise ValueError(f"readout: expected one of {', '.join(READOUTS)}, received {kind!r}.")
        if k < 1:
            raise ValueError(f"k: expected at least 1 region, received {k}.")
        self.kind, self.k = kind, k

    def __call__(self, diffused: Tensor, H: Tensor, graph: RegionGraph) -> Tensor:
        """``g (b, p)`` with ``p = size(c)``, in the precision of ``diffused``."""
        H = H.to(diffused)
        if self.is_linear:
            return torch.einsum("bm,bmc->bc", self.weights(graph.d.to(diffused)), diffused)
        if self.kind == "max":
            return diffused.amax(1)
        if self.kind == "topk":
            longest = diffused.norm(dim=2).topk(min(self.k, H.shape[1]), dim=1).indices  # (b, k)
            return diffused.take_along_dim(longest[..., None], 1).mean(1)
        first, second = {
            "mean_max": lambda: (diffused.mean(1), diffused.amax(1)),
            "mean_var": lambda: (diffused.mean(1), diffused.var(1, correction=0)),
            "residual": lambda: (H.mean(1), (diffused - H).mean(1)),
            "residual_abs": lambda: (H.mean(1), (diffused - H).abs().mean(1)),
        }[self.kind]()
        return torch.cat([first, second], 1)

    def size(self, c: int) -> int:
        """Length of the embedding of tokens with ``c`` channels."""
        return 2 * c if self.kind in DOUBLE else c

    @property
    def is_linear(self) -> bool:
        """Whether ``g`` is a weighted sum of the rows of ``H'``, with weights that do not depend on
        them.
        """
        return self.kind in LINEAR

    def weights(self, d: Tensor, keep: Tensor | None = None) -> Tensor:
        """What a linear readout multiplies each region with, ``g = sum_i weights_i h'_i``.

        Args:
            d: degrees ``(b, m, ...)``.
            keep: 1 for the regions that are there, 0 for those removed, like ``d``; all when None.

        Raises:
            ValueError: a readout that is not linear.
        """
        if not self.is_linear:
            raise ValueError(
                f"readout {self.kind!r} is no weighted sum of regions; {', '.join(LINEAR)} are."
            )
        keep = torch.ones_like(d) if keep is None else keep
        raw = keep * d if self.kind == "degree" else keep
        return raw if self.kind == "sum" else raw / raw.sum(1, keepdim=True)
