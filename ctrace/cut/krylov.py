"""Two iterations that know a symmetric operator only by its products with a few columns: the top of
its spectrum (`leading_eigenpairs`) and linear systems (`conjugate_gradients`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["SPARE", "LONGEST", "leading_eigenpairs", "conjugate_gradients"]

SPARE = 8  # eigenpairs carried beyond the k asked for: they speed up both iterations
LONGEST = 8  # the basis grows to this many blocks of k + SPARE columns
KEPT = 2  # blocks that a restart keeps: twice what is followed preserves the speed of a long basis
TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-12}  # |A u - lam u|, wanted
FLOOR = 30  # times the tolerance: where rounding may stop the residual
PROGRESS, PATIENCE = 0.7, 4  # steps that do not shrink the residual so far, and how many to wait
CONNECTED = 1e-4  # the gap after the first eigenvalue beyond which it stands alone
GAP_SHARE = 1e-2  # of the gap below k: how well it must be known
DEPENDENT = 1e-4  # share of a column beside the others, below which its direction is rounding
RECOMPUTE = 10  # steps of conjugate gradients between residuals that are computed anew


def leading_eigenpairs(
    product: Callable, known: Tensor, k: int, seed: int = 0, max_products: int = 2000
) -> tuple[Tensor, Tensor]:
    """Leading eigenpairs of a symmetric operator by thick-restarted block Krylov (Wu and Simon
    2000, in residual form); check what it returns, `max_products` may have ended it.

    The basis grows by the residuals of the unconverged leading pairs, so a restart costs no product
    and loses nothing that matters.

    Args:
        product: ``(n, m) -> (n, m)``.
        known: one vector ``(n, 1)`` known to be an eigenvector, the start of the basis.
        k: pairs wanted; ``LONGEST * (k + SPARE)`` must not exceed ``n``.
        seed: for the rest of the start.

    Returns:
        vectors ``(n, k + SPARE)`` and values, descending: k accurate ones, the next value to a
        hundredth of the gap, the others rough.
    """
    block, tolerance = k + SPARE, TOLERANCE[known.dtype]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(known), block - 1, generator=generator, dtype=known.dtype)
    basis = _orthonormal(torch.cat([known, noise.to(known.device)], 1), known[:, :0])
    image, best, stalled = product(basis), float("inf"), 0
    for _ in range(max_products):
        values, turn = _rayleigh_ritz(basis, image)
        if basis.shape[1] > (LONGEST - 1) * block:
            basis, image = _restarted(basis, image, turn[:, : KEPT * block])
            values, turn = _rayleigh_ritz(basis, image)
        values, turn = values[:block], turn[:, :block]
        vectors = basis @ turn
        residual = image @ turn - vectors * values
        size = residual.norm(dim=0)
        if values[0] - values[1] > CONNECTED:
            size[0] = 0  # the first pair is `known`, and its residual the rounding of the degrees
        # The pair after the last one wanted often lies at the edge of a crowd, where its vector
        # would take long and serve nobody. Its value is off by less than its residual.
        following = size[k] if size[k] > GAP_SHARE * (values[k - 1] - values[k]) else 0.0
        worst = max(float(size[:k].max()), float(following))
        # In float32 the residual stops at rounding, a little above or below the tolerance: going on
        # would only shuffle noise.
        best, stalled = (worst, 0) if worst < PROGRESS * best else (best, stalled + 1)
        if worst <= tolerance or (stalled >= PATIENCE and worst <= FLOOR * tolerance):
            break
        fresh = _orthonormal(residual[:, size > tolerance], basis)
        if fresh.shape[1] == 0:
            break  # the basis holds all that the operator can reach
        basis, image = torch.cat([basis, fresh], 1), torch.cat([image, product(fresh)], 1)
    return vectors, values


def _rayleigh_ritz(basis: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the operator within the basis, descending, and the vectors' coordinates."""
    inside = (basis.T @ image).double()
    values, turn = torch.linalg.eigh((inside + inside.T) / 2)
    return values.flip(0).to(basis.dtype), turn.flip(1).to(basis.dtype)


def _restarted(basis: Tensor, image: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """The leading part of the basis, without the rounding that would grow from restart to restart,
    and its image.
    """
    wide, triangle = torch.linalg.qr((basis @ turn).double())
    image = torch.linalg.solve_triangular(triangle, (image @ turn).double(), upper=True, left=False)
    return wide.to(basis.dtype), image.to(basis.dtype)


def _orthonormal(block: Tensor, against: Tensor) -> Tensor:
    """Orthonormal columns spanning the block, orthogonal to ``against``. Twice, since once leaves
    rounding of the removed part; in float64, since float32 leaves a floor under every residual.
    """
    wide, against = block.double(), against.double()
    for _ in range(2):
        wide = wide - against @ (against.T @ wide)
        wide, triangle = torch.linalg.qr(wide / wide.norm(dim=0))
        # A column that depends on those before it leaves rounding, which spoils the basis.
        wide = wide[:, triangle.diagonal().abs() > DEPENDENT]
    return wide.to(block.dtype)


def conjugate_gradients(
    product: Callable,
    rhs: Tensor,
    tolerance: float,
    precondition: Callable | None = None,
    attainable: float = 0.0,
    max_steps: int = 5000,
) -> Tensor:
    """Solves ``A X = B`` for all columns of ``B (n, m)`` at once, ``A`` symmetric and positive
    definite where ``B`` lies (Hestenes and Stiefel 1952).

    A column that has converged rests while the others go on. The residual is recomputed every ten
    steps: between, it is updated, and would drift from the truth by rounding.

    Args:
        product: ``A``, ``(n, m) -> (n, m)``; may differ from column to column.
        rhs: ``B``.
        tolerance: on ``|A x - b| / |b|`` of each column.
        precondition: an approximate inverse of ``A``, ``(n, m) -> (n, m)``.
        attainable: where to stop all the same, as ``|A x - b| / |x|``: what a product rounds to.
        max_steps: before giving up.

    Raises:
        ArithmeticError: a column has not converged within ``max_steps``.

    >>> conjugate_gradients(lambda v: torch.tensor([[2.0], [4.0]]) * v, torch.ones(2, 1), 1e-6).T
    tensor([[0.5000, 0.2500]])
    """
    x, residual, length = torch.zeros_like(rhs), rhs, rhs.norm(dim=0)
    direction, rz = torch.zeros_like(rhs), torch.zeros_like(length)
    for step in range(max_steps):
        size = residual.norm(dim=0)
        resting = size <= torch.maximum(tolerance * length, attainable * x.norm(dim=0))
        if bool(resting.all()):
            return x
        z = residual if precondition is None else precondition(residual)
        rz, before = (residual * z).sum(0), rz
        direction = z + torch.where(before > 0, rz / before, 0) * direction
        direction = torch.where(resting, 0, direction)  # woken by a new residual, it starts afresh
        image = product(direction)
        curvature = (direction * image).sum(0)
        stride = torch.where(curvature > 0, rz / curvature, 0)
        x = x + stride * direction
        anew = step % RECOMPUTE == RECOMPUTE - 1
        residual = rhs - product(x) if anew else residual - stride * image
    worst = float((size / length)[length > 0].max())
    raise ArithmeticError(
        f"conjugate gradients: a relative residual of {worst:.1e} after {max_steps} steps, expected"
        f" {tolerance:.1e}. Likely cause: a nearly singular system. Try float64 or more tolerance."
    )
