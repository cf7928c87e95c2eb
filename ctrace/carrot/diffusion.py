"""Heat on a graph, ``exp(-t L) H``, and the readout of what has diffused: no learned parameter in
either.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import einsum, reduce
from scipy.special import ive
from torch import Tensor

from ctrace.arguments import Count, check_fields, checked, floating
from ctrace.carrot.graph import RegionGraph
from ctrace.check import check_number, one_of
from ctrace.cut.graph import Graph

METHODS = ("matrix_exp", "eigh", "action")
LINEAR = ("mean", "sum", "degree")
WIDE = ("mean_max", "mean_var", "residual", "residual_abs")  # two vectors side by side
READOUTS = ("mean", "sum", "max", *WIDE, "topk", "degree")
TOLERANCE = 1e-12


@dataclass
class DiffusionOperator:
    """``H' = exp(-t L) H``: at t = 0 the tokens themselves, for growing t each region's
    neighbourhood, at the end one pattern.

    Invariants: linear in ``H``; symmetric; ``exp(-aL) exp(-bL) = exp(-(a + b)L)``; ``sqrt(d)``
    stays as it is.

    Args:
        t: time, a number >= 0.
        method: ``"action"`` (Chebyshev polynomials: products with L only, no ``(m, m)``
            exponential), ``"matrix_exp"`` or ``"eigh"``.

    Raises:
        ValueError: a negative or infinite t, an unknown method, tokens that do not fit the graph.
    """

    t: float
    method: str = "action"

    def __post_init__(self):
        self.t = check_number("t", self.t, at_least=0, at_most=1e8)  # heat does not flow backwards
        check_fields(self)
        one_of("method", self.method, METHODS)

    @checked
    def forward(self, H: Tensor, graph: RegionGraph | Tensor | Graph) -> Tensor:
        """Diffused tokens, in the precision of the graph.

        Args:
            H: ``(b, m, c)``, or ``(m, c)`` on a single Laplacian or graph over points.
            graph: a `RegionGraph`, a Laplacian ``L`` ``(b, m, m)`` or ``(m, m)``, or a
                `ctrace.cut.graph.Graph`, which has products only and needs ``"action"``.
        """
        on_points = isinstance(graph, Graph)
        L = graph.L if isinstance(graph, RegionGraph) else graph
        expected = (graph.n,) if on_points else tuple(L.shape[:-1])
        if H.shape[:-1] != expected:
            raise ValueError(
                f"H: expected a token for each node of the graph {expected}, got {(*H.shape,)}."
            )
        if on_points:
            if self.method != "action":
                raise ValueError(
                    f"method: a graph over points needs 'action', not {self.method!r}."
                )
            s = graph.degree.rsqrt()[:, None]  # (n, 1)
            return exp_action(lambda v: s * graph.matmul(s * v), H.to(graph.x), self.t)
        H = H.to(L)
        if self.method == "matrix_exp":
            return torch.linalg.matrix_exp(-self.t * L) @ H
        if self.method == "eigh":
            lam, U = torch.linalg.eigh(L)  # (b, m), (b, m, m)
            return U @ ((-self.t * lam).exp()[..., None] * (U.mT @ H))
        return exp_action(lambda v: v - L @ v, H, self.t)

    __call__ = forward


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


@dataclass
class GraphReadout:
    """One embedding ``g (b, p)`` per image, from diffused tokens ``H'`` and original tokens ``H``.

    - ``mean``, ``sum``, ``max`` of ``H'``
    - ``degree``: mean of ``H'`` weighted by degree
    - ``mean_max``, ``mean_var``: the mean of ``H'`` beside its maximum or its (biased) variance
    - ``residual``, ``residual_abs``: mean of ``H`` beside the mean of ``H' - H`` or ``|H' - H|``
    - ``topk``: mean of the ``k`` longest rows of ``H'``

    Args:
        kind: one of `READOUTS`.
        k: for ``topk``; all regions where there are fewer.

    Raises:
        ValueError: an unknown kind, a ``k`` below 1, or tokens or graph missing that the kind
            needs.
    """

    kind: str = "mean"
    k: Count = 8

    def __post_init__(self):
        check_fields(self)
        one_of("readout", self.kind, READOUTS)

    @checked
    def forward(
        self,
        diffused: floating("b m c"),
        H: floating("b m c") | None = None,
        graph: RegionGraph | None = None,
    ) -> Tensor:
        """``g (b, p)`` in the precision of ``diffused``, with p = c or 2c.

        Args:
            diffused: ``H'`` ``(b, m, c)``.
            H: original tokens, which the residual readouts need.
            graph: its degrees, which ``degree`` needs.
        """
        if self.kind == "degree" and graph is None:
            raise ValueError("readout 'degree' needs the graph too: readout(H_, H, graph).")
        if self.is_linear:
            d = torch.ones_like(diffused[..., 0]) if graph is None else graph.d.to(diffused)
            return einsum(self.weights(d), diffused, "b m, b m c -> b c")
        if self.kind == "max":
            return reduce(diffused, "b m c -> b c", "max")
        if self.kind == "topk":
            longest = diffused.norm(dim=2).topk(min(self.k, diffused.shape[1]), dim=1).indices
            return diffused.take_along_dim(longest[..., None], 1).mean(1)
        if self.kind in ("mean_max", "mean_var"):
            spread = diffused.amax(1) if self.kind == "mean_max" else diffused.var(1, correction=0)
            return torch.cat([diffused.mean(1), spread], 1)
        if H is None:
            raise ValueError(f"readout {self.kind!r} needs the original tokens: readout(H_, H).")
        moved = diffused - H.to(diffused)
        moved = moved.abs() if self.kind == "residual_abs" else moved
        return torch.cat([H.to(diffused).mean(1), moved.mean(1)], 1)

    __call__ = forward

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
