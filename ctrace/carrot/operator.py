"""Heat on a graph: ``exp(-t L) H``, with no learned parameter."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.special import ive
from torch import Tensor

from ctrace.carrot.graph import RegionGraph
from ctrace.cut.graph import Graph

__all__ = ["DiffusionOperator", "exp_action"]

METHODS = ("auto", "matrix_exp", "eigh", "action")
EXPONENTIAL_COST = 8  # products of (m, m) matrices that torch's matrix_exp amounts to
LARGE = 1024  # regions beyond which no (m, m) exponential is formed, whatever it would save
TOLERANCE = 1e-12


class DiffusionOperator:
    """``H' = exp(-t L) H``: at t = 0 the tokens themselves, for growing t each region's
    neighbourhood, at the end one pattern.

    Invariants: linear in ``H``; symmetric; ``exp(-aL) exp(-bL) = exp(-(a + b)L)``; ``sqrt(d)``
    stays as it is.

    Args:
        t: time, a number >= 0.
        method: ``"matrix_exp"``, ``"eigh"``, ``"action"`` (Chebyshev polynomials: products with L
            only, no ``(m, m)`` exponential), or ``"auto"``: the cheaper of matrix_exp and action,
            and always action beyond 1,024 regions.

    Raises:
        ValueError: a negative or infinite t, an unknown method, tokens that do not fit the graph.
    """

    def __init__(self, t: float, method: str = "auto"):
        if not math.isfinite(t) or t < 0:
            raise ValueError(
                f"t: expected a finite number >= 0, received {t!r}. Heat does not flow backwards."
            )
        if method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, received {method!r}.")
        self.t, self.method = float(t), method

    def __call__(self, graph: RegionGraph | Graph, H: Tensor) -> Tensor:
        """Diffused tokens, float64: ``(b, m, c)`` on a `RegionGraph`, ``(n, c)`` on a
        `ctrace.cut.graph.Graph`.
        """
        if isinstance(graph, Graph):
            return self._on_points(graph, H)
        if H.shape[:2] != graph.d.shape:
            raise ValueError(
                f"H: expected (b, m) = {tuple(graph.d.shape)} tokens, as in the graph, received {tuple(H.shape)}."
            )
        H = H.to(graph.L)
        method = self._cheaper(H) if self.method == "auto" else self.method
        if method == "matrix_exp":
            return torch.linalg.matrix_exp(-self.t * graph.L) @ H
        if method == "eigh":
            lam, U = torch.linalg.eigh(graph.L)  # (b, m), (b, m, m)
            return U @ ((-self.t * lam).exp()[..., None] * (U.transpose(1, 2) @ H))
        return exp_action(lambda v: v - graph.L @ v, H, self.t)

    def _cheaper(self, H: Tensor) -> str:
        m, c = H.shape[1:]
        return (
            "action"
            if m > LARGE or len(chebyshev_weights(self.t)) * c <= EXPONENTIAL_COST * m
            else "matrix_exp"
        )

    def _on_points(self, graph: Graph, H: Tensor) -> Tensor:
        if self.method not in ("auto", "action"):
            raise ValueError(
                f"method: a graph over points has products only, so 'action' (or 'auto') is needed, not {self.method!r}."
            )
        if len(H) != graph.n:
            raise ValueError(
                f"H: expected {graph.n} rows, one per point of the graph, received {tuple(H.shape)}."
            )
        s = graph.degree.rsqrt()[:, None]  # (n, 1)
        return exp_action(lambda v: s * graph.matmul(s * v), H.to(graph.x), self.t)


def exp_action(
    product: Callable[[Tensor], Tensor], v: Tensor, t: float, tolerance: float = TOLERANCE
) -> Tensor:
    """``exp(-t (I - S)) v`` for a symmetric ``S`` with eigenvalues in [-1, 1], known by its
    products ``S v`` only.

    ``exp(-t (1 - x)) = I_0 + 2 sum_k I_k T_k(x)`` with Chebyshev polynomials ``T_k`` and scaled
    Bessel functions ``I_k = exp(-t) I_k(t)``. The coefficients are positive and sum to 1, and
    ``|T_k| <= 1``, so what the dropped ones sum to bounds the error: ``tolerance`` times the length
    of ``v``.

    Args:
        product: ``v -> S v``, for one or many columns at once.
        v: what ``product`` takes.
        t: time.
        tolerance: bound on the relative error.
    """
    weights = chebyshev_weights(t, tolerance)
    before, now = v, product(v) if len(weights) > 1 else v
    total = weights[0] * v
    for k, weight in enumerate(weights[1:], 1):
        if k > 1:
            before, now = now, 2 * product(now) - before  # T_k = 2 x T_(k-1) - T_(k-2)
        total = total + weight * now
    return total


def chebyshev_weights(t: float, tolerance: float = TOLERANCE) -> list[float]:
    """Coefficients of ``exp(-t (1 - x))`` on [-1, 1], as many as the tolerance needs: about
    ``sqrt(2 t log(1 / tolerance))``.

    >>> [round(w, 4) for w in chebyshev_weights(0.5, 1e-3)]
    [0.645, 0.3128, 0.0387, 0.0032]
    """
    weights = [float(ive(0, t))]
    rest = 1 - weights[0]  # all coefficients together are 1
    while rest > tolerance:
        weights.append(2 * float(ive(len(weights), t)))
        rest -= weights[-1]
    return weights
