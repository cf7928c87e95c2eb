"""From eigenvectors to k segments: the rotation of Yu and Shi (2003), differentiated with the
scores.

``U`` is defined up to a rotation within the block. The search below finds the rotation ``R`` that
brings the rows closest to one-hot vectors, and because ``R`` turns against ``U``, the scores ``Z =
U R`` do not depend on which ``U`` was given. That holds for derivatives too, but only when ``R`` is
differentiated: a frozen ``R`` gives another, wrong gradient.
"""

from numbers import Integral

import torch
from torch import Tensor

from ctrace.arguments import checked, real
from ctrace.cut.affinity import in_plain_mode

__all__ = ["kway_ncut", "row_normalize"]

STARTS = 4  # first rows tried; the best final objective wins
MAX_ITERATIONS = 300


@in_plain_mode
@checked
def kway_ncut(eigvec: real("n m"), n_clusters: int | None = None, return_rotation: bool = False):
    """Scores ``Z = U R (n, k)``; ``Z.argmax(1)`` is the segment of each point.

    The answer does not change when the eigenvectors change sign, order or basis, and follows a
    permutation of the rows. Segments are ordered by size, the largest first, those of equal size by
    the first row they hold; a segment that won no point keeps its column. Differentiable in
    ``eigvec``, through the rotation too, with the assignment held fixed.

    Args:
        eigvec: ``U (n, m)``, orthonormal columns, from `ctrace.cut.eigenvectors`.
        n_clusters: k; the first k columns are used. All m when ``None``.
        return_rotation: also return ``R (k, k)``.

    Raises:
        ValueError: more clusters than columns or points, NaN, or a row of zeros.

    >>> U = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    >>> kway_ncut(U).argmax(1)
    tensor([0, 0, 1])
    """
    U = _check(eigvec, n_clusters)
    with torch.no_grad():
        # in float64: in float32 the alternation would stop a few points early
        assigned = _search(row_normalize(U.double()))
    E = torch.nn.functional.one_hot(assigned, U.shape[1]).to(U.dtype)  # (n, k)
    R = _Polar.apply(row_normalize(U).T @ E)
    return (U @ R, R) if return_rotation else U @ R


@checked
def row_normalize(U: real("n m")) -> Tensor:
    """``Y``: the rows of ``U`` scaled to length one (Ng, Jordan and Weiss 2002)."""
    length = U.norm(dim=1, keepdim=True)
    if bool((length.detach() == 0).any()):
        raise ValueError(
            "eigvec: a row of zeros belongs to no segment. Keep more eigenvectors, or check that "
            "the point has neighbours."
        )
    return U / length


def _check(eigvec: Tensor, n_clusters: int | None) -> Tensor:
    if eigvec.ndim != 2 or not torch.isfinite(eigvec).all():
        raise ValueError(
            f"eigvec: expected finite eigenvectors (n, m), received shape {tuple(eigvec.shape)}, "
            "or NaN in it."
        )
    n, m = eigvec.shape
    k = m if n_clusters is None else n_clusters
    if not isinstance(k, Integral) or not 1 <= k <= min(n, m):
        raise ValueError(
            f"n_clusters: expected a whole number from 1 to {min(n, m)} (k segments need k points "
            f"and k eigenvectors), received {k!r}. Compute more eigenvectors: Ncut(n_eig=k)."
        )
    return eigvec[:, :k]


def _search(Y: Tensor) -> Tensor:
    """The best assignment ``(n,)`` over several starts, relabelled by size, equal sizes by the
    first row they hold.
    """
    found = [_alternate(Y, _spread_rows(Y, first)) for first in _first_rows(Y)]
    assigned, _ = max(found, key=lambda pair: pair[1])
    n, k = Y.shape
    size = torch.bincount(assigned, minlength=k)
    first = torch.full_like(size, n).scatter_reduce(
        0, assigned, torch.arange(n, device=Y.device), "amin"
    )
    return torch.argsort(torch.argsort(size * (n + 1) - first, descending=True))[assigned]


def _first_rows(Y: Tensor) -> list[int]:
    """Rows to start from, chosen by what no rotation or permutation changes: how central a row is
    among all rows.
    """
    central = Y @ Y.mean(0)  # (n,)
    order = torch.argsort(central)
    places = torch.linspace(0, len(order) - 1, STARTS, dtype=torch.float64).round().long()
    return sorted(set(order[places.to(order.device)].tolist()))


def _spread_rows(Y: Tensor, first: int) -> Tensor:
    """``R0 (k, k)``: k rows, each as orthogonal as possible to those before it, made orthogonal."""
    rows, overlap = [first], torch.zeros(len(Y), dtype=Y.dtype, device=Y.device)
    for _ in range(Y.shape[1] - 1):
        overlap = overlap + (Y @ Y[rows[-1]]).abs()
        rows.append(int(overlap.argmin()))
    return _polar(Y[rows].T)[0]


def _alternate(Y: Tensor, R: Tensor) -> tuple[Tensor, float]:
    """Alternates the nearest one-hot matrix and the nearest rotation until the objective stops (Yu
    and Shi 2003, section 4).
    """
    before = -float("inf")
    for _ in range(MAX_ITERATIONS):
        assigned = (Y @ R).argmax(1)
        M = torch.zeros_like(R).index_add_(1, assigned, Y.T)  # Y^T E, (k, k)
        R, singular = _polar(M)
        value = float(singular.sum())
        if value <= before * (1 + torch.finfo(Y.dtype).eps):
            break
        before = value
    return assigned, value


def _polar(M: Tensor) -> tuple[Tensor, Tensor]:
    """The orthogonal factor ``A B^T`` of ``M = A diag(s) B^T``, and ``s``."""
    A, s, Bt = torch.linalg.svd(M)
    return A @ Bt, s


class _Polar(torch.autograd.Function):
    """Orthogonal polar factor. Its derivative divides by sums of singular values, never by
    differences.
    """

    @staticmethod
    def forward(ctx, M):
        A, s, Bt = torch.linalg.svd(M)
        ctx.save_for_backward(A, s, Bt)
        return A @ Bt

    @staticmethod
    @torch.autograd.function.once_differentiable
    @in_plain_mode
    def backward(ctx, g):
        A, s, Bt = ctx.saved_tensors
        sums = s[:, None] + s[None, :]
        off = ~torch.eye(len(s), dtype=torch.bool, device=s.device)
        if bool((sums[off] <= 1e-6 * s.max()).any()):
            raise ArithmeticError(
                f"k-way gradient: two of the {len(s)} segments are empty, so the rotation is not "
                "determined. Use fewer segments."
            )
        turned = A.T @ g @ Bt.T
        return A @ torch.where(off, (turned - turned.T) / sums, 0) @ Bt
