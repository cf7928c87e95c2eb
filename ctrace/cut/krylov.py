"""Ways to the top of a symmetric operator's spectrum (`ways_to_eigenpairs`): an iteration that
knows it only by its products with a few columns (`leading_eigenpairs`), and LAPACK. And linear
systems (`conjugate_gradients`).
"""

from collections.abc import Callable, Iterator

import scipy.linalg
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

__all__ = ["ways_to_eigenpairs", "leading_eigenpairs", "conjugate_gradients"]

PRECISE_UP_TO = 256  # below this many points LAPACK takes no longer in float64 than in float32
DENSE_UP_TO = 1024  # below this many LAPACK is the fastest way, or nearly
DENSE_AT_MOST = 4096  # up to here it stands in for an iteration that failed: 0.2 GB
# What both ways cost, measured on one core and counted in weights that meet a column: LAPACK's
# leading pairs cost 2.3 n^3, a step of the iteration m n (n + 60 times the columns of its basis).
LAPACK_COST, BASIS_COST = 2.3, 60
ADVANCE = 0.45  # the share of LAPACK's cost after which an iteration gives way to it
FEWEST_STEPS = 6  # hardly an iteration converges in fewer: where they do not pay, none is begun
FEW = 8  # LAPACK picks single pairs where they are at most one in so many; else it finds all
SPARE = 8  # eigenpairs followed beyond the k asked for: a crowd next to the k-th delays only them
LONGEST = 8  # the basis grows to this many blocks of k + SPARE columns
# Blocks that a restart keeps, as good as never restarting: 2 take a step more, 4 none less. They
# are returned too, since they precondition what is solved later: 16 steps instead of 29 in a crowd.
KEPT = 3
TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-12}  # |A u - lam u|, wanted
FLOOR = 30  # times the tolerance: where rounding may stop the residual
PROGRESS, PATIENCE = 0.9, 2  # steps that do not shrink the residual so far, and how many to wait
CONNECTED = 1e-4  # the gap after the first eigenvalue beyond which it stands alone
GAP_SHARE = 1e-2  # of the gap below k: how well it must be known
DEPENDENT = 1e-4  # share of a column beside the others, below which its direction is rounding
MOST_STEPS = 2000
RECOMPUTE = 10  # steps of conjugate gradients between residuals that are computed anew


def ways_to_eigenpairs(product, k: int, seed: int, tolerance) -> Iterator[tuple[Tensor, Tensor]]:
    """Leading eigenpairs by one way after the other, each to be checked before the next is taken:
    the iteration, LAPACK in the graph's precision, LAPACK in float64.

    Args:
        product: the product with ``S``, its ``graph`` and its ``root``, ``D^-1/2``.
        k, seed, tolerance: see `leading_eigenpairs`, which says what is yielded too.
    """
    known, n, m = 1 / product.root, product.graph.n, k + SPARE
    fits, small = LONGEST * m <= n, n <= DENSE_UP_TO  # the basis among the points
    whole = small or n <= DENSE_AT_MOST or not fits  # LAPACK is there to fall back upon
    lapack, basis = LAPACK_COST * n**3, BASIS_COST * LONGEST * m
    steps = int(ADVANCE * lapack / (m * n * (n + basis))) if whole else MOST_STEPS
    if fits and not small and steps >= FEWEST_STEPS:
        yield leading_eigenpairs(product, known, k, seed, steps, tolerance)
    if whole and n > PRECISE_UP_TO and known.dtype == torch.float32:
        yield _decomposed(product, m, torch.float32)
    if whole:
        yield _decomposed(product, m, torch.float64)


# scipy's threads wait by spinning: where other work wants the cores, two took up to 40 times as
# long as one for 256 points, and a small decomposition has little to share out.
_SCIPY_THREADS = ThreadpoolController().select(internal_api="openblas")
ONE_THREAD_UP_TO = 1024


def _decomposed(product, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The leading m eigenpairs by LAPACK, or what a GPU has for it."""
    root, n = product.root.to(dtype), product.graph.n
    S = root * product.graph.rows().to(dtype) * root.T  # only one of its triangles is read
    m = min(m, n)
    if S.device.type == "cpu" and FEW * m <= n:
        span = [n - m, n - 1]
        # transposed, it has the order of Fortran, and is not copied
        with _SCIPY_THREADS.limit(limits=1 if n <= ONE_THREAD_UP_TO else None):
            found = scipy.linalg.eigh(
                S.T.numpy(), subset_by_index=span, overwrite_a=True, check_finite=False
            )
        eigval, eigvec = map(torch.from_numpy, found)
    else:
        eigval, eigvec = torch.linalg.eigh(S)
    return eigvec[:, -m:].flip(1).to(product.root), eigval[-m:].flip(0).to(product.root)


def leading_eigenpairs(
    product: Callable,
    known: Tensor,
    k: int,
    seed: int = 0,
    max_steps: int = MOST_STEPS,
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Leading eigenpairs of a symmetric operator by thick-restarted block Krylov (Wu and Simon
    2000, in residual form); check what it returns, `max_steps` may have ended it.

    The basis grows by the residuals of the unconverged leading pairs, so a restart costs no product
    and loses nothing that matters.

    Args:
        product: ``(n, m) -> (n, m)``.
        known: one vector ``(n, 1)`` known to be an eigenvector, the start of the basis.
        k: pairs wanted; ``LONGEST * (k + SPARE)`` must not exceed ``n``.
        seed: for the rest of the start.
        max_steps: products at most.
        tolerance: on ``|A u - lam u|``; `TOLERANCE` when ``None``.

    Returns:
        vectors ``(n, e)`` and values, descending, ``k < e <= KEPT * (k + SPARE)``: k accurate ones,
        the next value to a hundredth of the gap, the others rough.
    """
    block, tolerance = k + SPARE, tolerance or TOLERANCE[known.dtype]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(known), block - 1, generator=generator, dtype=known.dtype)
    basis = _orthonormal(torch.cat([known, noise.to(known.device)], 1), known[:, :0])
    image, best, stalled = product(basis), float("inf"), 0
    for step in range(1, max_steps + 1):
        values, turn = _rayleigh_ritz(basis, image)
        if basis.shape[1] > (LONGEST - 1) * block:
            basis, image = _restarted(basis, image, turn[:, : KEPT * block])
            values, turn = _rayleigh_ritz(basis, image)
        ahead = turn[:, :block]
        residual = image @ ahead - basis @ (ahead * values[:block])
        size = residual.norm(dim=0)
        if values[0] - values[1] > CONNECTED:
            size[0] = 0  # the first pair is known, and its residual the rounding of the degrees
        # The pair after the last one wanted often lies at the edge of a crowd, where its vector
        # would take long and serve nobody. Its value is off by less than its residual.
        following = size[k] if size[k] > GAP_SHARE * (values[k - 1] - values[k]) else 0.0
        worst = max(float(size[:k].max()), float(following))
        # In float32 the residual stops at rounding, a little above or below the tolerance: going on
        # would only shuffle noise.
        best, stalled = (worst, 0) if worst < PROGRESS * best else (best, stalled + 1)
        finished = worst <= tolerance or (stalled >= PATIENCE and worst <= FLOOR * tolerance)
        if finished or step == max_steps:
            break
        fresh = _orthonormal(residual[:, size > tolerance], basis)
        if fresh.shape[1] == 0:
            break  # the basis holds all that the operator can reach
        basis, image = torch.cat([basis, fresh], 1), torch.cat([image, product(fresh)], 1)
    return basis @ turn[:, : KEPT * block], values[: KEPT * block]


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
    wide = wide / wide.norm(dim=0)
    for _ in range(2):
        rest = wide - against @ (against.T @ wide)
        wide, triangle = torch.linalg.qr(rest)
        # A column that depends on the others leaves rounding, which would spoil the basis.
        keep = triangle.diagonal().abs() > DEPENDENT
        wide = wide if bool(keep.all()) else torch.linalg.qr(rest[:, keep])[0]
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
