"""Normalized Cut eigenvectors of a graph, with a gradient that stays finite where eigenvalues repeat.

The embedding is ``U (n, k)``, the k largest eigenvectors of ``S = D^-1/2 W D^-1/2`` (Shi and Malik 2000): unit columns,
eigenvalues descending, the first one 1. Forward is a thick-restarted block Krylov iteration, backward is one conjugate-gradient
solve with all k right-hand sides; neither needs the other n - k eigenvectors, nor ``S`` itself.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ctrace.affinity import Graph, PrecomputedGraph, check_features
from ctrace.nystrom import farthest_points, propagate

__all__ = ["Ncut", "ncut_eigenvectors", "Spectrum"]

DENSE_UP_TO = 512  # below this many points the whole eigendecomposition is the fastest way
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-13}  # a smaller gap between eigenvalues cannot be told from none
INVARIANCE = {torch.float32: 1e-5, torch.float64: 1e-11}  # what a loss that ignores rotations leaves of its twist, relative
SPARE = 8  # eigenpairs carried beyond the k asked for: they speed up both solves
SOLVE_TOLERANCE = {torch.float32: 3e-7, torch.float64: 1e-12}  # |S u - lam u|
IMPLICIT_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # of the gradient's linear system, relative


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


def ncut_eigenvectors(graph: Graph | PrecomputedGraph, n_eig: int, seed: int = 0) -> tuple[Tensor, Spectrum]:
    """The ``n_eig`` leading eigenvectors of a graph, differentiable in the graph's features.

    The gradient is that of Magnus (1985) restricted to the block. A loss that does not change when ``U`` is rotated within
    the block (k-way scores, projectors) has a finite gradient at any repeated eigenvalue inside it.

    Args:
        graph: a `Graph` or `PrecomputedGraph`; its features may require a gradient.
        n_eig: how many, k.
        seed: for the start of the iteration; the answer depends on it only through rounding.

    Returns:
        ``U (n, k)`` with orthonormal columns, each signed so that its largest entry is positive, and the `Spectrum`.

    Raises:
        ValueError: more eigenvectors than points.
        ArithmeticError: a gradient is asked for and the gap below the k-th eigenvalue is closed; or the iteration stalls.
    """
    if not 1 <= n_eig <= graph.n:
        raise ValueError(
            f"n_eig: expected between 1 and the {graph.n} points, received {n_eig}. A graph of n points has n eigenvectors: "
            "ask for fewer, or give more points."
        )
    with torch.no_grad():
        U, spectrum = _solve(graph, n_eig, seed)
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


# ---------------------------------------------------------------------------------------------------------------- forward


def _solve(graph, k: int, seed: int) -> tuple[Tensor, Spectrum]:
    root = graph.degree.rsqrt()[:, None]
    if graph.n <= max(DENSE_UP_TO, 4 * (k + SPARE)):
        S = (root * graph.matmul(torch.eye(graph.n, dtype=root.dtype, device=root.device)) * root.T).double()
        eigval, eigvec = torch.linalg.eigh((S + S.T) / 2)
        eigval, eigvec = eigval.flip(0).to(root.dtype), eigvec.flip(1).to(root.dtype)
        residual = torch.finfo(root.dtype).eps
    else:
        eigvec, eigval, residual = _block_krylov(lambda v: root * graph.matmul(root * v), 1 / root, k, seed)
    stop = min(k + SPARE, eigvec.shape[1])
    following = float(eigval[k]) if graph.n > k else float("-inf")
    return _fix_sign(eigvec[:, :k]), Spectrum(eigval[:k], following, residual, eigvec[:, k:stop], eigval[k:stop])


def _fix_sign(U: Tensor) -> Tensor:
    """Makes each column's largest-magnitude entry positive. (The sum of a balanced column is zero: its sign is noise.)"""
    peak = U.gather(0, U.abs().argmax(0, keepdim=True))
    return U * torch.where(peak < 0, -1.0, 1.0).to(U.dtype)


def _block_krylov(product, known: Tensor, k: int, seed: int, max_products: int = 2000) -> tuple[Tensor, Tensor, float]:
    """Leading eigenpairs of a symmetric operator by thick-restarted block Krylov (Wu and Simon 2000, in residual form).

    The basis grows by the residuals of the unconverged leading pairs, so a restart costs no product and loses nothing that
    matters. One more pair than asked must converge, since the gap below k is part of the answer.

    Args:
        product: ``(n, m) -> (n, m)``.
        known: one vector ``(n, 1)`` known to be an eigenvector, the start of the basis.
        k: pairs wanted.

    Returns:
        vectors ``(n, k + SPARE)``, values, and the largest residual of the first k.
    """
    n, keep = len(known), k + SPARE
    noise = torch.randn(n, keep - 1, generator=torch.Generator().manual_seed(seed), dtype=known.dtype)
    basis = _orthonormal(torch.cat([known, noise.to(known.device)], 1))
    image = product(basis)
    tolerance, best, stalled = SOLVE_TOLERANCE[known.dtype], float("inf"), 0
    for _ in range(max_products):
        theta, turn = torch.linalg.eigh(_symmetric(basis.T @ image).double())
        theta, turn = theta.flip(0).to(known.dtype), turn.flip(1).to(known.dtype)
        if basis.shape[1] > 7 * keep:  # thick restart: twice the block is kept, which preserves the speed of a long basis
            basis, image = _reorthonormalized(basis @ turn[:, : 2 * keep], image @ turn[:, : 2 * keep])
            theta, turn = theta[: 2 * keep], torch.eye(2 * keep, dtype=known.dtype, device=known.device)
        vectors = basis @ turn[:, :keep]
        residual = image @ turn[:, :keep] - vectors * theta[:keep]
        size = residual.norm(dim=0)
        worst = float(size[: k + 1].max())
        # In float32 the residual stops at rounding, a little above or below the tolerance: going on would only shuffle noise.
        best, stalled = (worst, 0) if worst < 0.7 * best else (best, stalled + 1)
        if worst <= tolerance or (stalled >= 12 and worst <= 100 * tolerance):
            return vectors, theta[:keep], float(size[:k].max())
        fresh = _orthonormal(residual[:, size > tolerance / 10], basis)
        basis, image = torch.cat([basis, fresh], 1), torch.cat([image, product(fresh)], 1)
    raise ArithmeticError(
        f"eigenvectors: the residual is {worst:.1e} after {max_products} products, wanted {tolerance:.1e}. Likely cause: eigenvalues "
        f"{theta[k - 1]:.6g} and {theta[k]:.6g} nearly equal at k={k}. Try another k, a wider sigma, or float64."
    )


def _reorthonormalized(basis: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Takes the rounding out of a basis that has been turned, and its image along; otherwise it grows from restart to restart."""
    basis, triangle = torch.linalg.qr(basis)
    return basis, torch.linalg.solve_triangular(triangle, image, upper=True, left=False)


def _symmetric(H: Tensor) -> Tensor:
    return (H + H.T) / 2


def _orthonormal(block: Tensor, against: Tensor | None = None) -> Tensor:
    """Orthonormal columns spanning the block, orthogonal to ``against``; twice, since once leaves rounding of the removed part."""
    for _ in range(2):
        if against is not None:
            block = block - against @ (against.T @ block)
        block = torch.linalg.qr(block / block.norm(dim=0))[0]
    return block


# --------------------------------------------------------------------------------------------------------------- backward


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


def eigenvector_factors(graph, U: Tensor, spectrum: Spectrum, pulls: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """For each of several losses, the factors of ``dl/dW = (left right^T + right left^T) / 2`` from its ``g = dl/dU (n, k)``.

    ``dl/dS = (B U^T + U B^T) / 2`` with ``B = V + U C``: ``V`` solves ``(lam_j - S) v_j = (1 - U U^T) g_j`` outside the block,
    ``C_ij = (m_ij - m_ji) / (2 (lam_j - lam_i))`` with ``m = U^T g`` is the turning inside it. Degrees follow ``W``, so the
    normalisation adds ``r 1^T`` with ``r_i = -(B * S U + U * S B)_i / (2 d_i)``. All losses share one solve.

    Raises:
        ArithmeticError: a loss depends on which vectors stand for a repeated eigenvalue; or the solve stalls.
    """
    root, k = graph.degree.rsqrt()[:, None], U.shape[1]

    def product(v):
        return root * graph.matmul(root * v)

    inside = [U.T @ g for g in pulls]  # (k, k) each
    V = _solve_outside(product, U, spectrum, torch.cat(pulls, 1))
    turned = [U @ _turning(m, spectrum, float(g.norm())) for g, m in zip(pulls, inside, strict=True)]
    B = V + torch.cat(turned, 1)  # (n, losses * k)
    factors = []
    for b, s_b in zip(B.split(k, 1), product(B).split(k, 1), strict=True):
        r = -(b * U * spectrum.eigval + U * s_b).sum(1, keepdim=True) / (2 * graph.degree[:, None])
        factors.append((torch.cat([root * b, r], 1), torch.cat([root * U, torch.ones_like(r)], 1)))
    return factors


def _turning(inside: Tensor, spectrum: Spectrum, scale: float) -> Tensor:
    """The block's own part ``C (k, k)``. It vanishes for a loss that ignores rotations, whatever the eigenvalues."""
    twist = inside - inside.T
    # An invariant loss leaves rounding here; divided by the gap of a repeated eigenvalue it would swamp the gradient.
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


def _solve_outside(product, U: Tensor, spectrum: Spectrum, rhs: Tensor, max_products: int = 5000) -> Tensor:
    """Solves ``(lam_j - S) v_j = (1 - U U^T) rhs_j`` on the complement of ``U`` for all columns at once, by conjugate gradients.

    Column ``j`` of the ``(n, losses * k)`` right-hand sides belongs to eigenvalue ``j mod k``. The spare eigenpairs precondition it: along them the solution is known, and what is left is as easy as the gap below *them*.
    """
    lam, spare = spectrum.eigval.repeat(rhs.shape[1] // U.shape[1]), spectrum.spare
    gain = 1 / (lam - spectrum.spare_eigval[:, None]).clamp_min(spectrum.rounding) - 1  # (e, k)

    def outside(v):
        return v - U @ (U.T @ v)

    def precondition(v):
        return outside(v + spare @ (gain * (spare.T @ v)))

    residual, v = outside(rhs), torch.zeros_like(rhs)
    whole = residual.norm(dim=0)
    # A column that lies within the block leaves rounding, not a system to solve.
    whole = torch.where(whole > 100 * torch.finfo(rhs.dtype).eps * rhs.norm(dim=0), whole, 0)
    residual = residual * (whole > 0)
    z = precondition(residual)
    p, rz = z, (residual * z).sum(0)
    best, stalled = float("inf"), 0
    for _ in range(max_products):
        worst = float(torch.where(whole > 0, residual.norm(dim=0) / whole, 0).max())
        best, stalled = (worst, 0) if worst < 0.9 * best else (best, stalled + 1)
        if worst <= IMPLICIT_TOLERANCE[U.dtype] or (stalled >= 50 and best <= 1e-3):
            return v
        q = outside(lam * p - product(p))
        pq = (p * q).sum(0)
        step = torch.where(pq > 0, rz / pq, 0)  # zero once a column has converged to nothing
        v, residual = v + step * p, residual - step * q
        z = precondition(residual)
        rz, before = (residual * z).sum(0), rz
        p = z + torch.where(before > 0, rz / before, 0) * p
    raise ArithmeticError(
        f"gradient: the implicit solve stands at a relative residual of {worst:.1e} after {max_products} products. The eigengap at "
        f"k={U.shape[1]} is {spectrum.eigengap:.1e}: try another k, a wider sigma, or float64."
    )


# -------------------------------------------------------------------------------------------------------------- interface


class Ncut:
    """Normalized Cut embedding of feature rows.

    Up to ``max_exact`` points every point is in the graph. Beyond it the graph is built on ``n_landmarks`` points spread over
    the data and the others are interpolated (`ctrace.nystrom`); ``n_exact`` says how many points the solve was exact for.

    Args:
        n_eig: eigenvectors to keep, k.
        sigma: bandwidth: ``None`` (the affinity's own default: ``"local"`` scales for rbf, which show an open eigengap on
            features of photographs, 0.5 for cosine), a number, a rule's name, or one scale per point; see `ctrace.affinity.bandwidth`.
        affinity: ``"rbf"``, ``"cosine"`` or a differentiable symmetric function.
        track_grad, exact_gradient: either one keeps the autograd graph, with the exact gradient; both off detaches the result.
        device: where to compute; the features' own device when ``None``. Results return to the features' device.
        max_exact: points up to which the graph is exact.
        n_landmarks: points of the graph beyond that.
        n_neighbors: landmarks that a new point is interpolated from.
        memory_limit: bytes that the ``(n, n)`` weights may take; beyond it they are computed again for each product.
        seed: for everything random. The same seed gives the same answer.

    Attributes:
        eigval: eigenvalues ``(k,)``, descending. eigengap: ``lam_k - lam_(k+1)``. n_exact: points in the graph.
        bandwidth: the bandwidth the last fit used. A rule is applied anew at each fit; a number is kept.

    >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    >>> ncut = Ncut(n_eig=2, sigma=1.0)
    >>> ncut.fit_transform(x).shape
    torch.Size([4, 2])
    >>> ncut.eigval
    tensor([1.0000, 1.0000])
    """

    def __init__(
        self, n_eig: int = 10, sigma=None, affinity="rbf", track_grad: bool = False, exact_gradient: bool = False, device=None, *,
        max_exact: int = 20_000, n_landmarks: int = 4096, n_neighbors: int = 16, memory_limit: int = 2**30, seed: int = 0,
    ):  # fmt: skip
        if not isinstance(n_eig, int) or n_eig < 1:
            raise ValueError(f"n_eig: expected a whole number of at least 1, received {n_eig!r}.")
        self.n_eig, self.sigma, self.affinity = n_eig, sigma, affinity
        self.track_grad = track_grad or exact_gradient
        self.device = _check_device(device)
        self.max_exact, self.n_landmarks, self.n_neighbors = max_exact, n_landmarks, n_neighbors
        self.memory_limit, self.seed = memory_limit, seed
        self.graph = self.spectrum = None

    def fit(self, X: Tensor) -> "Ncut":
        """Solves for the eigenvectors of ``X (n, c)``. Raises what `ctrace.affinity.Graph` and `ncut_eigenvectors` raise."""
        self._fit(X)
        return self

    def fit_transform(self, X: Tensor) -> Tensor:
        """Eigenvectors at the rows of ``X``: ``(n, k)``, with autograd history if it is tracked."""
        U, x, landmarks = self._fit(X)
        if landmarks is not None:
            U = propagate(U, x[landmarks], x, self.n_neighbors, pinned=landmarks)
        return (U if self.track_grad else U.detach()).to(X.device)

    def transform(self, X: Tensor) -> Tensor:
        """Eigenvectors interpolated at new rows ``(m, k)``; at a fitted row, the fitted vector.

        The fitted rows count as constants here: with tracking on, a gradient reaches ``X`` only.
        """
        if self.graph is None:
            raise ValueError("transform: this Ncut has not been fitted. Call fit(X) or fit_transform(X) first.")
        x = check_features(X, rows_at_least=1).to(self.graph.x.device)
        if x.shape[1] != self.graph.x.shape[1]:
            raise ValueError(f"transform: expected {self.graph.x.shape[1]} channels, as fitted, received {x.shape[1]}.")
        with torch.set_grad_enabled(self.track_grad and torch.is_grad_enabled()):
            return propagate(self._eigvec, self.graph.x.detach(), x, self.n_neighbors).to(X.device)

    def _fit(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x = check_features(X).to(self.device or X.device)
        x = x if self.track_grad else x.detach()
        landmarks = None
        if len(x) > self.max_exact:
            landmarks = farthest_points(x.detach(), self.n_landmarks, self.seed)
        points = x if landmarks is None else x[landmarks]
        self.graph = Graph(points, self.sigma, self.affinity, self.memory_limit, self.seed)
        U, self.spectrum = ncut_eigenvectors(self.graph, self.n_eig, self.seed)
        self._eigvec = U.detach()
        return U, x, landmarks

    def _after_fit(self, name: str):
        if self.spectrum is None:
            raise ValueError(f"{name}: this Ncut has not been fitted. Call fit(X) or fit_transform(X) first.")
        return self.spectrum

    @property
    def eigval(self) -> Tensor:
        return self._after_fit("eigval").eigval

    @property
    def eigengap(self) -> float:
        return self._after_fit("eigengap").eigengap

    @property
    def n_exact(self) -> int:
        self._after_fit("n_exact")
        return self.graph.n

    @property
    def bandwidth(self) -> Tensor | None:
        self._after_fit("bandwidth")
        return self.graph.sigma


def _check_device(device) -> torch.device | None:
    if device is None:
        return None
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device='cuda': this torch sees no CUDA device. Leave device out to compute where the features are, or install a CUDA "
            "build of torch and check torch.cuda.is_available()."
        )
    return device
