"""How well each penalty would predict every training image from the others, for a whole grid of
penalties from one decomposition.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ctrace.carrot.head import LEAST_ROOM, penalty, training_set

__all__ = ["RidgePath", "leave_one_out_path"]


@dataclass(frozen=True, eq=False)
class RidgePath:
    """Leave-one-out errors over a grid of penalties.

    Attributes:
        lams: the grid ``(l,)``.
        squared_error: mean over images and classes of the squared leave-one-out residual ``(l,)``.
        accuracy: share of images whose largest leave-one-out logit is their class ``(l,)``.
    """

    lams: Tensor
    squared_error: Tensor
    accuracy: Tensor

    @property
    def best(self) -> float:
        """The lam with the smallest squared error."""
        return float(self.lams[self.squared_error.argmin()])

    @property
    def at_edge(self) -> bool:
        """Whether the best lam is the first or the last, so that a wider grid might hold a better
        one.
        """
        return int(self.squared_error.argmin()) in (0, len(self.lams) - 1)


def leave_one_out_path(
    G: Tensor,
    y: Tensor,
    lams: Sequence[float],
    scale: str = "none",
    intercept: bool = False,
    num_classes: int | None = None,
) -> RidgePath:
    """Leave-one-out errors at every lam, without fitting once: the training images alone choose
    lam, and the test split stays unseen.

    With ``G = U s V^T`` (about the mean where there is an intercept) the residuals are ``U diag(r /
    (s^2 + r)) U^T Y`` plus what lies outside U, and the leverages are a row sum of ``U^2``; both
    cost ``O(n c)`` a lam. Errors are those of `RidgeHead.loo_residuals`.

    Args:
        G: embeddings ``(n, c)``.
        y: class numbers ``(n,)``, or targets ``(n, k)``.
        lams: the grid.
        scale, intercept, num_classes: as in `RidgeHead`.

    Raises:
        ValueError: as `RidgeHead.fit`, or an empty grid.
        ArithmeticError: a lam so small that a leverage is 1 to rounding.
    """
    G, Y = training_set(G, y, num_classes)
    if not len(lams) or len(G) < 2:
        raise ValueError(
            f"expected at least 1 lam and 2 training images, received {len(lams)} and {len(G)}."
        )
    U, s, _ = torch.linalg.svd(G - G.mean(0) * intercept, full_matrices=False)  # (n, a), (a,)
    centred = Y - Y.mean(0) * intercept
    inside = U.T @ centred  # (a, k)
    outside, room_outside = (
        centred - U @ inside,
        1 - U.square().sum(1) - intercept / len(G),
    )  # (n, k), (n,)
    errors, hits = [], []
    for lam in lams:
        kept = penalty(lam, scale, len(G)) / (
            s.square() + penalty(lam, scale, len(G))
        )  # (a,), the share of each direction left over
        room = room_outside + U.square() @ kept
        if room.min() < LEAST_ROOM:
            raise ArithmeticError(
                f"lam = {float(lam):.1e} leaves training image {int(room.argmin())} a leverage of 1 to rounding. Start the grid higher."
            )
        residuals = (outside + U @ (kept[:, None] * inside)) / room[:, None]  # (n, k)
        errors.append(residuals.square().mean())
        hits.append(((Y - residuals).argmax(1) == Y.argmax(1)).double().mean())
    return RidgePath(
        torch.as_tensor([float(lam) for lam in lams], dtype=torch.double),
        torch.stack(errors).cpu(),
        torch.stack(hits).cpu(),
    )
