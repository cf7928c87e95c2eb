"""Ridge regression in closed form: the two ways to solve it, and how well each penalty of a grid
would predict every training image from the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ctrace.check import check_classes, check_features, check_number, one_of

LEAST_ROOM = 1e-10  # 1 - leverage below this has lost ten digits of sixteen to the subtraction
LEAST_PIVOT = 1e-12  # smallest over largest: below this the solution has lost twelve


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
        """Whether the best lam is the first or the last: a wider grid might hold a better one."""
        return int(self.squared_error.argmin()) in (0, len(self.lams) - 1)


def leave_one_out_path(
    G: Tensor, y: Tensor, lams: Sequence[float], scale="none", intercept=False, num_classes=None
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
    n, penalties = len(G), [penalty(lam, scale, len(G)) for lam in lams]
    if not penalties or n < 2:
        raise ValueError(
            f"expected at least 1 lam and 2 training images, received {len(penalties)} and {n}."
        )
    U, s, _ = torch.linalg.svd(G - G.mean(0) * intercept, full_matrices=False)  # (n, a), (a,)
    centred = Y - Y.mean(0) * intercept
    inside = U.T @ centred  # (a, k)
    outside, room_outside = centred - U @ inside, 1 - U.square().sum(1) - intercept / n
    errors, hits = [], []
    for lam, r in zip(lams, penalties):
        kept = r / (s.square() + r)  # (a,), the share of each direction left over
        room = room_outside + U.square() @ kept  # (n,)
        if room.min() < LEAST_ROOM:
            raise ArithmeticError(
                f"lam = {lam:.1e}: training image {int(room.argmin())} has a leverage of 1 to "
                "rounding. Start the grid higher."
            )
        residuals = (outside + U @ (kept[:, None] * inside)) / room[:, None]  # (n, k)
        errors.append(residuals.square().mean())
        hits.append(((Y - residuals).argmax(1) == Y.argmax(1)).double().mean())
    grid = torch.as_tensor([float(lam) for lam in lams], dtype=torch.double)
    return RidgePath(grid, torch.stack(errors).cpu(), torch.stack(hits).cpu())


def one_hot(y: Tensor, num_classes: int | None = None) -> Tensor:
    """Class numbers ``(n,)`` as targets ``(n, k)`` in float64; ``k`` is the largest label plus one
    unless it is given.

    >>> one_hot(torch.tensor([1, 0]), 3).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    k = int(y.max()) + 1 if num_classes is None else num_classes
    return F.one_hot(check_classes(y, len(y), k, "labels"), k).double()


def training_set(G: Tensor, y: Tensor, num_classes: int | None) -> tuple[Tensor, Tensor]:
    """Embeddings ``(n, c)`` and targets ``(n, k)`` in float64, checked."""
    G = check_features(G, rows_at_least=1)
    if y.ndim not in (1, 2) or len(y) != len(G) or (y.ndim == 1) == y.is_floating_point():
        raise ValueError(
            f"y: expected {len(G)} class numbers, or targets (n, k), not {y.dtype} {(*y.shape,)}."
        )
    Y = one_hot(y, num_classes) if y.ndim == 1 else y
    G, Y = G.detach().double(), Y.detach().to(G.device, torch.double)
    if bad := int((~torch.isfinite(Y)).any(1).sum()):
        raise ValueError(f"y: {bad} of {len(Y)} rows hold NaN or infinity.")
    return G, Y


def penalty(lam: float, scale: str, n: int) -> float:
    """``r = lam`` or ``n lam``."""
    per = n if one_of("scale", scale, ("none", "n")) == "n" else 1
    return per * check_number("lam", lam, above=0)


def solve_primal(G: Tensor, Y: Tensor, r: float, share: float):
    """``theta (c, k)``, ``smooth (c, n)``, residuals ``(n, k)`` and 1 - leverage ``(n,)``, of
    centred rows.
    """
    factor = _cholesky(over_processes(G.T @ G), r)
    theta = torch.cholesky_solve(over_processes(G.T @ Y), factor)
    smooth = torch.cholesky_solve(G.T, factor)
    return theta, smooth, Y - G @ theta, 1 - share - (G * smooth.T).sum(1)


def solve_dual(G: Tensor, Y: Tensor, r: float, share: float):
    """The same from the ``(n, n)`` products."""
    products, n = G @ G.T, len(G)
    # Centred embeddings know no constant: its eigenvalue, 0, may be any other, and a middling one
    # keeps the digits of the rest.
    constant = float(products.trace()) / n * bool(share)
    inverse = torch.cholesky_inverse(_cholesky(products + constant / n, r))
    # Residuals and room by multiplication: as differences they would lose the digits of a small
    # penalty.
    residuals = r * inverse @ Y
    room = r * (inverse.diagonal() - share / (constant + r))
    return G.T @ residuals / r, G.T @ inverse, residuals, room


def _cholesky(products: Tensor, r: float) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(
        products + r * torch.eye(len(products), dtype=products.dtype, device=products.device)
    )
    pivots = factor.diagonal()
    if failed or (pivots.min() / pivots.max()) ** 2 < LEAST_PIVOT:
        raise ArithmeticError(
            f"the penalty {r:.1e} is lost in the rounding of products up to {products.max():.1e}, "
            "and the embeddings are too alike to do without. Raise lam, or scale them."
        )
    return factor


def over_processes(total: Tensor) -> Tensor:
    """The sum over all processes of ``torch.distributed``; what it was where there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total


def each(weights: Tensor, values: Tensor, target) -> Tensor:
    """``weights (..., n)`` times ``values (n, k)``: ``(..., n, k)``, or only the target class of
    each ``(..., n)``.
    """
    if target is None:
        return weights[..., None] * values
    b = 1 if weights.ndim == 1 else len(weights)
    classes = check_classes(target, b, values.shape[1]).to(values.device)
    return weights * values.T[classes[0] if weights.ndim == 1 else classes]
