"""The leading eigenvectors of a graph, with a gradient that stays finite where eigenvalues repeat.

``U (n, k)`` holds the k largest eigenvectors of ``S = D^-1/2 W D^-1/2`` (Shi and Malik 2000): unit
columns, eigenvalues descending, the first one 1. Forward is one eigendecomposition, or a block
Krylov iteration, backward one conjugate-gradient solve with all right-hand sides. Neither of the
iterations (`ctrace.cut.krylov`) needs the other n - k eigenvectors, nor ``S`` itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ctrace.arguments import Positive, Seed, checked, warn
from ctrace.cut.affinity import in_plain_mode
from ctrace.cut.graph import Graph
from ctrace.cut.krylov import conjugate_gradients, ways_to_eigenpairs

__all__ = ["ncut_eigenvectors", "Spectrum", "solve", "eigenvector_factors"]

# a smaller gap between eigenvalues cannot be told from none
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-13}
# what a loss that ignores rotations leaves of its twist, relative
INVARIANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
CREDIBLE = {torch.float32: 1e-5, torch.float64: 1e-10}  # |S u - lam u| and |U^T U - 1|, at most
# of the gradient's linear system, relative
IMPLICIT_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
ATTAINABLE = 8  # times rounding times |v|: what the residual of that system can fall to


@dataclass
class Spectrum:
    """What the solver knows beside the eigenvectors.

    Attributes:
        eigval: the k largest eigenvalues of ``S``, descending ``(k,)``.
        next_eigval: the (k+1)-th, ``-inf`` when there are only k points.
        residual: largest ``|S u - lam u|`` over the k pairs.
        spare, spare_eigval: some approximate eigenpairs below the k-th, ``(n, e)`` and ``(e,)``.
        forward: columns that ``W`` was multiplied with to find and to check all this.
        backward: the same for the gradients taken since.
        gradient_tolerance: of the linear system behind a gradient, ``|A v - b| / |b|``.
    """

    eigval: Tensor
    next_eigval: float
    residual: float
    spare: Tensor
    spare_eigval: Tensor
    forward: int = 0
    backward: int = 0
    gradient_tolerance: float | None = None

    @property
    def eigengap(self) -> float:
        """``lam_k - lam_(k+1)``: how well the k-dimensional subspace is defined."""
        return float(self.eigval[-1]) - self.next_eigval

    @property
    def rounding(self) -> float:
        """The size of a gap that this precision cannot tell from zero."""
        return ROUNDING[self.eigval.dtype]


@checked
def ncut_eigenvectors(
    graph: Graph,
    n_eig: int,
    seed: Seed = 0,
    tolerance: Positive | None = None,
    gradient_tolerance: Positive | None = None,
) -> tuple[Tensor, Spectrum]:
    """The ``n_eig`` leading eigenvectors of a graph, differentiable in the graph's features and
    bandwidth.

    The gradient is that of Magnus (1985) restricted to the block. A loss that does not change when
    ``U`` is rotated within the block (k-way scores, projectors) has a finite gradient at any
    repeated eigenvalue inside it.

    Args:
        graph: a `Graph` or `PrecomputedGraph`; its features may require a gradient.
        n_eig: how many, k.
        seed: for the start of the iteration; the answer depends on it only through rounding.
        tolerance: ``|S u - lam u|`` at which the iteration ends: 1e-7 in float32, 1e-12 in float64
            when ``None``. Angles of the subspace are off by this over the eigengap.
        gradient_tolerance: relative residual of the gradient's linear system: 1e-5 and 1e-12.

    Returns:
        ``U (n, k)`` with orthonormal columns, each signed so that its largest entry is positive,
        and the `Spectrum`.

    Raises:
        ValueError: more eigenvectors than points.
        ArithmeticError: a gradient is asked for and the gap below the k-th eigenvalue is closed; or
            no answer passes the check of `solve`.
    """
    with torch.no_grad():
        U, spectrum = solve(graph, n_eig, seed, tolerance)
    spectrum.gradient_tolerance = gradient_tolerance or IMPLICIT_TOLERANCE[U.dtype]
    closed = spectrum.eigengap <= spectrum.rounding
    asked = graph.x.requires_grad or graph.differentiates_sigma
    if asked and torch.is_grad_enabled():
        if closed:
            raise ArithmeticError(_gap_closed(spectrum) + " Its gradient does not exist.")
        return _Eigenvectors.apply(graph.x, graph.sigma, graph, U, spectrum), spectrum
    if closed:
        warn(_gap_closed(spectrum), RuntimeWarning)
    return U, spectrum


def _gap_closed(spectrum: Spectrum) -> str:
    tail = ", ".join(f"{v:.6g}" for v in spectrum.eigval[-3:].tolist())
    return (
        f"The cut at k={len(spectrum.eigval)} falls inside a group of equal eigenvalues: the last "
        f"kept are {tail}, the next is {spectrum.next_eigval:.6g} (gap {spectrum.eigengap:.1e}). "
        "Which k-dimensional subspace is meant is undefined. Likely causes: more connected "
        "components than k, a symmetric scene, or a bandwidth so small that points stand alone. "
        "Try k+1 or k-1, a wider sigma, or look at diagnose(...)."
    )


# --- forward


@in_plain_mode
@checked
def solve(
    graph: Graph, k: int, seed: Seed = 0, tolerance: Positive | None = None
) -> tuple[Tensor, Spectrum]:
    """Eigenvectors and `Spectrum`, without gradient and whatever the gap: `ncut_eigenvectors` is
    the careful way in.

    The cheapest way that promises an answer is tried first. Every answer is checked before it is
    returned; one that fails gives way to the next way.
    """
    if not 1 <= k <= graph.n:
        raise ValueError(
            f"n_eig: expected between 1 and the {graph.n} points, received {k}. A graph of n points"
            " has n eigenvectors: ask for fewer, or give more points."
        )
    product = _Product(graph)
    for vectors, values in ways_to_eigenpairs(product, k, seed, tolerance):
        answer, flaw = _checked(product, k, vectors, values, tolerance)
        if answer is not None:
            answer[1].forward = product.columns
            return answer
    raise ArithmeticError(
        f"eigenvectors: {flaw}. Likely cause: eigenvalues nearly equal around k={k}. "
        "Try another k, a wider sigma, or float64."
    )


class _Product:
    """The product with ``S``; counts the columns."""

    def __init__(self, graph):
        self.graph, self.root = graph, graph.degree.rsqrt()[:, None]  # D^-1/2
        self.columns = 0

    def __call__(self, v: Tensor) -> Tensor:
        self.columns += v.shape[1]
        return self.root * self.graph.matmul(self.root * v)


def _checked(product, k: int, eigvec: Tensor, eigval: Tensor, tolerance: float | None):
    """``(U, Spectrum)`` and nothing to say; or None, and what is wrong with the eigenpairs."""
    U, lam = eigvec[:, :k], eigval[: k + 1]
    credible = max(CREDIBLE[eigval.dtype], tolerance or 0)
    size = (product(eigvec[:, : k + 1]) - eigvec[:, : k + 1] * lam).norm(dim=0)
    following = float(lam[k]) if len(lam) > k else float("-inf")
    spectrum = Spectrum(lam[:k], following, float(size[:k].max()), eigvec[:, k:], eigval[k:])
    rough = 0.1 * spectrum.eigengap if len(lam) > k else 0  # of the value after the last wanted
    twist = float((U.T @ U - torch.eye(k).to(U)).abs().max())
    outside = float(lam.abs().max()) - 1
    if not spectrum.residual <= credible or not bool((size[k:] <= credible + rough).all()):
        return None, f"the residual is {float(size.max()):.1e}, expected {credible:.0e}"
    if not twist <= credible:
        return None, f"the vectors are orthonormal to {twist:.1e}, expected {credible:.0e}"
    if not outside <= credible:
        return None, f"the values leave [-1, 1] by {outside:.1e}, expected {credible:.0e}"
    return (_fix_sign(U), spectrum), ""


def _fix_sign(U: Tensor) -> Tensor:
    """Makes each column's largest-magnitude entry positive. (The sum of a balanced column is zero:
    its sign is noise.)
    """
    peak = U.gather(0, U.abs().argmax(0, keepdim=True))
    return U * torch.where(peak < 0, -1.0, 1.0).to(U.dtype)


# --- backward


class _Eigenvectors(torch.autograd.Function):
    """``U(x, sigma)`` for a solved graph; backward in `eigenvector_factors`."""

    @staticmethod
    def forward(ctx, x, sigma, graph, U, spectrum):
        ctx.graph, ctx.spectrum = graph, spectrum
        ctx.save_for_backward(x, U)  # x only so that a change in place is noticed
        return U.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        _, U = ctx.saved_tensors
        ((left, right),) = eigenvector_factors(ctx.graph, U, ctx.spectrum, [g])
        return *ctx.graph.send(left, right), None, None, None


@in_plain_mode
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
    product, k = _Product(graph), U.shape[1]
    root = product.root
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
    spectrum.backward += product.columns
    return factors


def _turning(inside: Tensor, spectrum: Spectrum, scale: float) -> Tensor:
    """The block's own part ``C (k, k)``. It vanishes for a loss that ignores rotations, whatever
    the eigenvalues.
    """
    twist = inside - inside.T
    # An invariant loss leaves rounding here; divided by the gap of a repeated eigenvalue it would
    # swamp the gradient.
    gap = spectrum.eigval[None, :] - spectrum.eigval[:, None]  # lam_j - lam_i
    # Where the gap is open, little of a twist may be the gradient: only its own rounding goes.
    open_gap = 4 * torch.finfo(inside.dtype).eps
    least = torch.where(gap.abs() <= spectrum.rounding, INVARIANCE[inside.dtype], open_gap)
    twist = torch.where(twist.abs() <= least * scale, 0, twist)
    broken = (twist != 0) & (gap.abs() <= spectrum.rounding)
    if bool(broken.any()):
        i, j = broken.nonzero()[0].tolist()
        raise ArithmeticError(
            f"gradient: eigenvalues {i} and {j} are equal ({float(spectrum.eigval[i]):.6g}), and "
            "the loss depends on which vectors stand for them, a choice the data do not make. "
            "Use a loss that ignores rotations: kway_ncut, the projector U U^T, or an association."
        )
    return torch.where(twist == 0, 0, twist / (2 * gap))


def _solve_outside(product, U: Tensor, spectrum: Spectrum, rhs: Tensor) -> Tensor:
    """Solves ``(lam_j - S) v_j = (1 - U U^T) rhs_j`` on the complement of ``U`` for all columns at
    once, by conjugate gradients.

    Column ``j`` of the ``(n, losses * k)`` right-hand sides belongs to eigenvalue ``j mod k``. The
    spare eigenpairs precondition it: along them the solution is known, and what is left is as easy
    as the gap below *them*.
    """
    lam, spare = spectrum.eigval.repeat(rhs.shape[1] // U.shape[1]), spectrum.spare
    gain = 1 / (lam - spectrum.spare_eigval[:, None]).clamp_min(spectrum.rounding) - 1  # (e, k)
    rounding = torch.finfo(rhs.dtype).eps

    def outside(v):
        return v - U @ (U.T @ v)

    # Twice: most of rhs may lie in the block, and what rounding leaves of that, no step could
    # remove. A column that lies within the block leaves rounding, not a system to solve.
    right = outside(outside(rhs))
    right = torch.where(right.norm(dim=0) > 100 * rounding * rhs.norm(dim=0), right, 0)
    try:
        # A product rounds in proportion to |v|, which a small gap makes large: beyond that, steps
        # would only add noise.
        return conjugate_gradients(
            lambda v: outside(lam * v - product(v)),
            right,
            spectrum.gradient_tolerance or IMPLICIT_TOLERANCE[U.dtype],
            precondition=lambda v: outside(v + spare @ (gain * (spare.T @ v))),
            attainable=ATTAINABLE * rounding,
        )
    except ArithmeticError as error:
        raise ArithmeticError(
            f"gradient: the eigengap at k={U.shape[1]} is {spectrum.eigengap:.1e}, too small for "
            f"the implicit solve. Try another k, a wider sigma, or float64. ({error})"
        ) from error
