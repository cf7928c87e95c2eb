"""The leading eigenvectors of a graph, with a gradient that stays finite where eigenvalues repeat.

``U (n, k)`` holds the k largest eigenvectors of ``S = D^-1/2 W D^-1/2`` (Shi and Malik 2000): unit
columns, eigenvalues descending, the first one 1. Forward is a thick-restarted block Krylov
iteration, backward is one conjugate-gradient solve with all right-hand sides; neither needs the
other n - k eigenvectors, nor ``S`` itself.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ctrace.cut.graph import Graph, PrecomputedGraph

__all__ = ["ncut_eigenvectors", "Spectrum", "solve", "eigenvector_factors"]

DENSE_UP_TO = 512  # below this many points the whole eigendecomposition is the fastest way
ROUNDING = {
    torch.float32: 1e-6,
    torch.float64: 1e-13,
}  # a smaller gap between eigenvalues cannot be told from none
INVARIANCE = {
    torch.float32: 1e-5,
    torch.float64: 1e-11,
}  # what a loss that ignores rotations leaves of its twist, relative
SPARE = 8  # eigenpairs carried beyond the k asked for: they speed up both solves
SOLVE_TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-12}  # |S u - lam u|
CONNECTED = 1e-4  # the gap after the first eigenvalue beyond which there is no second eigenvalue 1
GAP_SHARE = 1e-2  # of the gap below k: how well it must be known
IMPLICIT_TOLERANCE = {
    torch.float32: 1e-5,
    torch.float64: 1e-12,
}  # of the gradient's linear system, relative
ATTAINABLE = 8  # times rounding times |v|: what the residual of that system can fall to


@dataclass
class Spectrum:
    """What the solver knows beside the eigenvectors.

    Attributes:
        eigval: the k largest eigenvalues of ``S``, descending ``(k,)``.
        next_eigval: the (k+1)-th, ``-inf`` when there are only k points.
        residual: largest ``|S u - lam u|`` over the k pairs.
        spare, spare_eigval: a few approximate eigenpairs below the k-th, ``(n, e)`` and ``(e,)``.
    """

    eigval: Tensor
    next_eigval: float
    residual: float
    spare: Tensor
    spare_eigval: Tensor

    @property
    def eigengap(self) -> float:
        """``lam_k - lam_(k+1)``: how well the k-dimensional subspace is defined."""
        return float(self.eigval[-1]) - self.next_eigval

    @property
    def rounding(self) -> float:
        """The size of a gap that this precision cannot tell from zero."""
        return ROUNDING[self.eigval.dtype]


def ncut_eigenvectors(
    graph: Graph | PrecomputedGraph, n_eig: int, seed: int = 0
) -> tuple[Tensor, Spectrum]:
    """The ``n_eig`` leading eigenvectors of a graph, differentiable in the graph's features.

    The gradient is that of Magnus (1985) restricted to the block. A loss that does not change when
    ``U`` is rotated within the block (k-way scores, projectors) has a finite gradient at any
    repeated eigenvalue inside it.

    Args:
        graph: a `Graph` or `PrecomputedGraph`; its features may require a gradient.
        n_eig: how many, k.
        seed: for the start of the iteration; the answer depends on it only through rounding.

    Returns:
        ``U (n, k)`` with orthonormal columns, each signed so that its largest entry is positive,
            and the `Spectrum`.

    Raises:
        ValueError: more eigenvectors than points.
        ArithmeticError: a gradient is asked for and the gap below the k-th eigenvalue is closed; or
            the iteration stalls.
    """
    if not 1 <= n_eig <= graph.n:
        raise ValueError(
            f"n_eig: expected between 1 and the {graph.n} points, received {n_eig}. A graph of n points has n eigenvectors: "
            "ask for fewer, or give more points."
        )
    with torch.no_grad():
        U, spectrum = solve(graph, n_eig, seed)
    closed = spectrum.eigengap <= spectrum.rounding
    if graph.x.requires_grad and torch.is_grad_enabled():
        if closed:
            raise ArithmeticError(_gap_closed(spectrum) + " Its gradient does not exist.")
        return _Eigenvectors.apply(graph.x, graph, U, spectrum), spectrum
    if closed:
        warnings.warn(_gap_closed(spectrum), RuntimeWarning, stacklevel=2)
    return U, spectrum


def _gap_closed(spectrum: Spectrum) -> str:
    k, tail = len(spectrum.eigval), [f"{v:.6g}" for v in spectrum.eigval[-3:].tolist()]
    return (
        f"The cut at k={k} falls inside a group of equal eigenvalues: the last kept are {', '.join(tail)}, the next is "
        f"{spectrum.next_eigval:.6g} (gap {spectrum.eigengap:.1e}). Which k-dimensional subspace is meant is undefined. Likely causes: "
        "more connected components than k, a symmetric scene, or a bandwidth so small that points stand alone. "
        "Try k+1 or k-1, a wider sigma, or look at diagnose(...)."
    )


# ----------------------------------------------------------------------------------------------------------------
# forward


def solve(graph: Graph | PrecomputedGraph, k: int, seed: int = 0) -> tuple[Tensor, Spectrum]:
    """Eigenvectors and `Spectrum`, without gradient and whatever the gap: `ncut_eigenvectors` is
    the careful way in.
    """
    root = graph.degree.rsqrt()[:, None]
    if graph.n <= max(DENSE_UP_TO, 4 * (k + SPARE)):
        S = (
            root * graph.matmul(torch.eye(graph.n, dtype=root.dtype, device=root.device)) * root.T
        ).double()
        eigval, eigvec = torch.linalg.eigh((S + S.T) / 2)
        residual = float((S @ eigvec[:, -k:] - eigvec[:, -k:] * eigval[-k:]).norm(dim=0).max())
        eigval, eigvec = eigval.flip(0).to(root.dtype), eigvec.flip(1).to(root.dtype)
    else:
        eigvec, eigval, residual = _block_krylov(
            lambda v: root * graph.matmul(root * v), 1 / root, k, seed
        )
    stop = min(k + SPARE, eigvec.shape[1])
    following = float(eigval[k]) if graph.n > k else float("-inf")
    return _fix_sign(eigvec[:, :k]), Spectrum(
        eigval[:k], following, residual, eigvec[:, k:stop], eigval[k:stop]
    )


def _fix_sign(U: Tensor) -> Tensor:
    """Makes each column's largest-magnitude entry positive. (The sum of a balanced column is zero:
    its sign is noise.)
    """
    peak = U.gather(0, U.abs().argmax(0, keepdim=True))
    return U * torch.where(peak < 0, -1.0, 1.0).to(U.dtype)


def _block_krylov(
    product, known: Tensor, k: int, seed: int, max_products: int = 2000
) -> tuple[Tensor, Tensor, float]:
    """Leading eigenpairs of a symmetric operator by thick-restarted block Krylov (Wu and Simon
    2000, in residual form).

    The basis grows by the residuals of the unconverged leading pairs, so a restart costs no product
    and loses nothing that matters. The pair after the last one asked for is followed until its
    eigenvalue is known to a hundredth of the gap, which is part of the answer: it often lies at the
    edge of a crowd, where its vector would take long and serve nobody.

    Args:
        product: ``(n, m) -> (n, m)``.
        known: one vector ``(n, 1)`` known to be an eigenvector, the start of the basis.
        k: pairs wanted.

    Returns:
        vectors ``(n, k + SPARE)``, values, and the largest residual of the first k.
    """
    n, keep = len(known), k + SPARE
    noise = torch.randn(
        n, keep - 1, generator=torch.Generator().manual_seed(seed), dtype=known.dtype
    )
    basis = _orthonormal(torch.cat([known, noise.to(known.device)], 1))
    image = product(basis)
    tolerance, best, stalled = SOLVE_TOLERANCE[known.dtype], float("inf"), 0
    for _ in range(max_products):
        theta, turn = torch.linalg.eigh(_symmetric(basis.T @ image).double())
        theta, turn = theta.flip(0).to(known.dtype), turn.flip(1).to(known.dtype)
        if (
            basis.shape[1] > 7 * keep
        ):  # thick restart: twice the block is kept, which preserves the speed of a long basis
            basis, image = _reorthonormalized(
                basis @ turn[:, : 2 * keep], image @ turn[:, : 2 * keep]
            )
            theta, turn = (
                theta[: 2 * keep],
                torch.eye(2 * keep, dtype=known.dtype, device=known.device),
            )
        vectors = basis @ turn[:, :keep]
        residual = image @ turn[:, :keep] - vectors * theta[:keep]
        size = residual.norm(dim=0)
        achieved = float(size[:k].max())
        if (
            theta[0] - theta[1] > CONNECTED
        ):  # then the first pair is `known`, and its residual the rounding of the degrees
            size[0] = 0
        gap = float(theta[k - 1] - theta[k])
        following = (
            float(size[k]) if size[k] > GAP_SHARE * gap else 0.0
        )  # an eigenvalue is off by less than its residual
        worst = max(float(size[:k].max()), following)
        # In float32 the residual stops at rounding, a little above or below the tolerance: going on
        # would only shuffle noise.
        best, stalled = (worst, 0) if worst < 0.7 * best else (best, stalled + 1)
        if worst <= tolerance or (stalled >= 4 and worst <= 30 * tolerance):
            return vectors, theta[:keep], achieved
        # What is below the tolerance is rounding, with no direction of its own: as a column it
        # would spoil the basis.
        fresh = _orthonormal(residual[:, size > tolerance], basis)
        basis, image = torch.cat([basis, fresh], 1), torch.cat([image, product(fresh)], 1)
    raise ArithmeticError(
        f"eigenvectors: the residual is {worst:.1e} after {max_products} products, wanted {tolerance:.1e}. Likely cause: eigenvalues "
        f"{theta[k - 1]:.6g} and {theta[k]:.6g} nearly equal at k={k}. Try another k, a wider sigma, or float64."
    )


def _reorthonormalized(basis: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Takes the rounding out of a basis that has been turned, and its image along; otherwise it
    grows from restart to restart.
    """
    wide, triangle = torch.linalg.qr(basis.double())
    return wide.to(basis.dtype), torch.linalg.solve_triangular(
        triangle, image.double(), upper=True, left=False
    ).to(image.dtype)


def _symmetric(H: Tensor) -> Tensor:
    return (H + H.T) / 2


def _orthonormal(block: Tensor, against: Tensor | None = None) -> Tensor:
    """Orthonormal columns spanning the block, orthogonal to ``against``; twice, since once leaves
    rounding of the removed part.

    In float64: beside a product with the graph it costs little, and what float32 leaves here is the
    floor of every residual.
    """
    wide, against = block.double(), None if against is None else against.double()
    for _ in range(2):
        if against is not None:
            wide = wide - against @ (against.T @ wide)
        wide = torch.linalg.qr(wide / wide.norm(dim=0))[0]
    return wide.to(block.dtype)


# ---------------------------------------------------------------------------------------------------------------
# backward


class _Eigenvectors(torch.autograd.Function):
    """``U(x)`` for a solved graph; backward in `eigenvector_factors`."""

    @staticmethod
    def forward(ctx, x, graph, U, spectrum):
        ctx.graph, ctx.spectrum = graph, spectrum
        ctx.save_for_backward(U)
        return U.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (U,) = ctx.saved_tensors
        ((left, right),) = eigenvector_factors(ctx.graph, U, ctx.spectrum, [g])
        return ctx.graph.send(left, right), None, None, None


def eigenvector_factors(
    graph, U: Tensor, spectrum: Spectrum, pulls: list[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """For each of several losses, the factors of ``dl/dW = (left right^T + right left^T) / 2`` from
    its ``g = dl/dU (n, k)``.

    ``dl/dS = (B U^T + U B^T) / 2`` with ``B = V + U C``: ``V`` solves ``(lam_j - S) v_j = (1 - U
    U^T) g_j`` outside the block, ``C_ij = (m_ij - m_ji) / (2 (lam_j - lam_i))`` with ``m = U^T g``
    is the turning inside it. Degrees follow ``W``, so the normalisation adds ``r 1^T`` with ``r_i =
    -(B * S U + U * S B)_i / (2 d_i)``. All losses share one solve.

    Raises:
        ArithmeticError: a loss depends on which vectors stand for a repeated eigenvalue; or the
            solve stalls.
    """
    root, k = graph.degree.rsqrt()[:, None], U.shape[1]

    def product(v):
        return root * graph.matmul(root * v)

    inside = [U.T @ g for g in pulls]  # (k, k) each
    V = _solve_outside(product, U, spectrum, torch.cat(pulls, 1))
    turned = [
        U @ _turning(m, spectrum, float(g.norm())) for g, m in zip(pulls, inside, strict=True)
    ]
    B = V + torch.cat(turned, 1)  # (n, losses * k)
    factors = []
    for b, s_b in zip(B.split(k, 1), product(B).split(k, 1), strict=True):
        r = -(b * U * spectrum.eigval + U * s_b).sum(1, keepdim=True) / (2 * graph.degree[:, None])
        factors.append((torch.cat([root * b, r], 1), torch.cat([root * U, torch.ones_like(r)], 1)))
    return factors


def _turning(inside: Tensor, spectrum: Spectrum, scale: float) -> Tensor:
    """The block's own part ``C (k, k)``. It vanishes for a loss that ignores rotations, whatever
    the eigenvalues.
    """
    twist = inside - inside.T
    # An invariant loss leaves rounding here; divided by the gap of a repeated eigenvalue it would
    # swamp the gradient.
    twist = torch.where(twist.abs() <= INVARIANCE[inside.dtype] * scale, 0, twist)
    gap = spectrum.eigval[None, :] - spectrum.eigval[:, None]  # lam_j - lam_i
    broken = (twist != 0) & (gap.abs() <= spectrum.rounding)
    if bool(broken.any()):
        i, j = broken.nonzero()[0].tolist()
        raise ArithmeticError(
            f"gradient: eigenvalues {i} and {j} are equal ({float(spectrum.eigval[i]):.6g}), and the loss depends on which vectors "
            "stand for them, a choice that the data does not make. Use a loss that ignores rotations: k-way scores "
            "(kway_ncut), the projector U U^T, or an association."
        )
    return torch.where(twist == 0, 0, twist / (2 * gap))


def _solve_outside(
    product, U: Tensor, spectrum: Spectrum, rhs: Tensor, max_products: int = 5000
) -> Tensor:
    """Solves ``(lam_j - S) v_j = (1 - U U^T) rhs_j`` on the complement of ``U`` for all columns at
    once, by conjugate gradients.

    Column ``j`` of the ``(n, losses * k)`` right-hand sides belongs to eigenvalue ``j mod k``. The
    spare eigenpairs precondition it: along them the solution is known, and what is left is as easy
    as the gap below *them*.
    """
    lam, spare = spectrum.eigval.repeat(rhs.shape[1] // U.shape[1]), spectrum.spare
    gain = 1 / (lam - spectrum.spare_eigval[:, None]).clamp_min(spectrum.rounding) - 1  # (e, k)

    def outside(v):
        return v - U @ (U.T @ v)

    def precondition(v):
        return outside(v + spare @ (gain * (spare.T @ v)))

    # Twice: most of rhs may lie in the block, and what rounding leaves of that, no step could
    # remove.
    residual, v = outside(outside(rhs)), torch.zeros_like(rhs)
    whole = residual.norm(dim=0)
    # A column that lies within the block leaves rounding, not a system to solve.
    whole = torch.where(whole > 100 * torch.finfo(rhs.dtype).eps * rhs.norm(dim=0), whole, 0)
    residual = residual * (whole > 0)
    z = precondition(residual)
    p, rz = z, (residual * z).sum(0)
    for _ in range(max_products):
        size = residual.norm(dim=0)
        # A product rounds in proportion to |v|, which a small gap makes large: beyond that, steps
        # would only add noise.
        attainable = ATTAINABLE * torch.finfo(rhs.dtype).eps * v.norm(dim=0)
        converged = size <= torch.maximum(IMPLICIT_TOLERANCE[U.dtype] * whole, attainable)
        if bool(converged.all()):
            return v
        q = outside(lam * p - product(p))
        pq = (p * q).sum(0)
        step = torch.where((pq > 0) & ~converged, rz / pq, 0)
        v, residual = v + step * p, residual - step * q
        z = precondition(residual)
        rz, before = (residual * z).sum(0), rz
        p = z + torch.where(before > 0, rz / before, 0) * p
    worst = float((size[whole > 0] / whole[whole > 0]).max())
    raise ArithmeticError(
        f"gradient: the implicit solve stands at a relative residual of {worst:.1e} after {max_products} products. The eigengap at "
        f"k={U.shape[1]} is {spectrum.eigengap:.1e}: try another k, a wider sigma, or float64."
    )
