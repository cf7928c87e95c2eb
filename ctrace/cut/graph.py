"""Affinity graphs, and products with ``W`` that never need ``W``.

A graph is used in two ways only: multiplied by a few columns (``graph.matmul``), and asked how a
loss changes with the features when the loss's derivative with respect to ``W`` has low rank
(``graph.vjp``). Both work on tiles of rows, so a graph too large for memory costs time instead: its
tiles are computed again for each product.
"""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor

from ctrace.check import check_features, check_number, one_of
from ctrace.cut.affinity import (
    bandwidth,
    check_symmetric,
    cosine_affinity,
    precise_keys,
    rbf_affinity,
    rbf_weights,
    row_tiles,
)

__all__ = ["Graph", "PrecomputedGraph"]

PROBED = 256  # rows at which a callable affinity is checked for symmetry


class Graph:
    """The affinity graph over the rows of ``x``: weights ``W (n, n)``, degrees ``d = W 1``.

    Attributes:
        x: features ``(n, c)``, as given (with their autograd history).
        sigma: the bandwidth in use, with its autograd history; ``None`` for a callable affinity.
        degree: ``d (n,)``, detached.
        stored: whether ``W`` is held; if not, its tiles are computed again for each product.
        recipe: the arguments after ``x``, as given.

    Args:
        x: features ``(n, c)``, float32 or float64.
        sigma: bandwidth or rule, see `bandwidth`; for ``"cosine"`` a number (0.5 when ``None``);
            ``None`` is ``"local"`` for rbf.
        affinity: ``"rbf"``, ``"cosine"``, or a differentiable symmetric function ``(r, c), (n, c)
            -> (r, n)``.
        memory_limit: bytes that ``W`` may take; beyond it the graph is matrix-free.
        seed: for the rows that a bandwidth rule looks at.
        mass: how many points each row stands for ``(n,)``; weights become ``m_i w_ij m_j``. One
            each when ``None``.
        bandwidth_grad: whether a bandwidth that follows from the features, or asks for a gradient
            itself, is differentiated; ``False`` holds it fixed.

    Raises:
        ValueError: bad features (`check_features`), bandwidth or affinity; an affinity that is
            negative, asymmetric or not finite; a node without any weight.
    """

    _collected = None  # factors of dl/dW while `deferred`
    _mass = None

    def __init__(
        self,
        x: Tensor,
        sigma=None,
        affinity: str | Callable = "rbf",
        memory_limit: int = 2**30,
        seed: int = 0,
        mass: Tensor | None = None,
        bandwidth_grad: bool = True,
    ):
        self.x, self.affinity = check_features(x), affinity
        self.recipe = sigma, affinity, memory_limit, seed, mass, bandwidth_grad
        self.sigma, self._keys = None, None
        if callable(affinity):
            if sigma is not None:
                raise ValueError("sigma: a callable affinity has its own bandwidth; leave it out.")
        elif one_of("affinity", affinity, ("rbf", "cosine")) == "cosine":
            number = check_number("sigma", 0.5 if sigma is None else sigma, above=0)
            self.sigma = x.new_tensor(number)
        else:
            with torch.enable_grad():  # kept for those who differentiate later
                sigma = bandwidth(x, "local" if sigma is None else sigma, seed)
            self.sigma = sigma if bandwidth_grad else sigma.detach()
            self._keys = precise_keys(x.detach(), sigma.detach())
        self._mass = None if mass is None else _check_mass(mass, x)
        with torch.no_grad():
            if callable(affinity):
                order = torch.randperm(self.n, generator=torch.Generator().manual_seed(seed))
                rows = self.x[order[:PROBED].to(x.device)]
                check_symmetric("affinity", self._pair(rows, rows))
            self.stored = self.n**2 * x.element_size() <= memory_limit
            self._weights = self._fill(x.new_empty(self.n, self.n)) if self.stored else None
            self.degree = _check_degree(self.matmul(torch.ones_like(x[:, :1]))[:, 0])

    @property
    def n(self) -> int:
        """Number of points."""
        return len(self.x)

    @property
    def differentiates_sigma(self) -> bool:
        """Whether the bandwidth has a gradient to receive."""
        return self.sigma is not None and self.sigma.requires_grad

    def weights(self) -> Tensor:
        """``W (n, n)`` in full, differentiable: for small graphs, pictures and tests."""
        if self._keys is None:
            return self._weigh(self._pair(self.x, self.x), slice(None))
        wide = self.x.to(self._keys.dtype)
        return self._weigh(rbf_affinity(wide, sigma=self.sigma).to(self.x), slice(None))

    def matmul(self, v: Tensor) -> Tensor:
        """``W v`` for ``v (n, m)``, without gradient."""
        with torch.no_grad():
            if self.stored:
                return self._weights @ v
            out = torch.zeros_like(v)
            for rows in row_tiles(self.n, self.x):
                # (r, n - start): the earlier columns were rows before
                tile = self._tile(rows, slice(rows.start, None))
                out[rows].addmm_(tile, v[rows.start :])
                out[rows.stop :].addmm_(tile[:, len(tile) :].T, v[rows])
            return out

    def __matmul__(self, v: Tensor) -> Tensor:
        """``W v``, differentiable in features, bandwidth and ``v``, tile by tile."""
        return _GraphProduct.apply(self.x, self.sigma, v, self)

    def vjp(self, left: Tensor, right: Tensor, rows: Tensor | None = None) -> Tensor:
        """Gradient of a loss with ``dl/dW = (left right^T + right left^T) / 2``, both ``(n, m)``.

        ``W`` and ``dl/dW`` are symmetric, so the derivative through the columns equals the one
        through the rows: ``dl/dx_i = 2 sum_j (dl/dW)_ij dw(x_i, x_j)/dx_i``.

        Args:
            left, right: the factors.
            rows: points whose gradient is wanted ``(r,)``, the fewer the faster; or all.

        Returns:
            ``(n, c)``, or ``(r, c)``, with the bandwidth held fixed.
        """
        rows = torch.arange(self.n, device=self.x.device) if rows is None else rows
        grad = self.x.new_empty(len(rows), self.x.shape[1])
        mine, theirs = torch.cat([left, right], 1), torch.cat([right, left], 1)
        for part in row_tiles(len(rows), self.x, self.n):
            grad[part] = self._pull(rows[part], mine[rows[part]] @ theirs.T)
        return grad

    def sigma_vjp(self, factors: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """``dl/dsigma``, shaped like ``sigma``, for each of several losses given by their factors
        (see `vjp`), in one pass: ``dw_ij/dsigma_i = -w_ij log(w_ij) / sigma_i`` (rbf only).
        """
        left, right = (torch.cat(side, 1) for side in zip(*factors, strict=True))
        slopes = torch.empty_like(left)  # what each pair of columns adds
        with torch.no_grad():
            for rows in row_tiles(self.n, self.x):
                tile = self._rows(rows)
                bare = tile if self._mass is None else tile / self._weigh(1, rows)
                steep = torch.xlogy(tile, bare)
                slopes[rows] = left[rows] * (steep @ right) + right[rows] * (steep @ left)
            slopes /= -self.sigma.reshape(-1, 1)
            losses = slopes.split([len(left.T) for left, _ in factors], 1)
            return [loss.sum(1) if self.sigma.ndim else loss.sum() for loss in losses]

    def _pull(self, rows: Tensor, cotangent: Tensor) -> Tensor:
        """``sum_j g_ij dw(x_i, x_j)/dx_i`` for a tile of rows ``i``: in closed form for rbf, by
        autograd for any other affinity.
        """
        x = self.x.detach()
        if self._keys is None:
            with torch.enable_grad():
                x_rows = x[rows].requires_grad_()
                tile = self._weigh(self._pair(x_rows, x), rows)
            return torch.autograd.grad(tile, x_rows, cotangent)[0]
        with torch.no_grad():
            # sum_j g_ij w_ij (x_j - x_i) / (s_i s_j), where keys hold x_j / s_j and 1 / s_j
            pulled = (cotangent * self._rows(rows)).to(self._keys)  # (r, n)
            sums, own = pulled @ self._keys[:, :-1], self._keys[rows]  # (r, c + 1), (r, c + 2)
            return (sums[:, :-1] * own[:, -2:-1] - own[:, :-2] * sums[:, -1:]).to(x)

    @contextmanager
    def deferred(self):
        """Within this context a backward pass puts its ``(left, right)`` into the list it yields
        and sends nothing to ``x``, so that several can share one pass.
        """
        self._collected = []
        try:
            yield self._collected
        finally:
            self._collected = None

    def send(self, left: Tensor, right: Tensor) -> tuple:
        """Gradients for ``x`` and ``sigma``, or ``None`` while deferred."""
        if self._collected is not None:
            self._collected.append((left, right))
            return None, None
        slopes = self.sigma_vjp([(left, right)])[0] if self.differentiates_sigma else None
        return self.vjp(left, right), slopes

    def _pair(self, a: Tensor, b: Tensor) -> Tensor:
        """Weights between rows under an affinity other than rbf, differentiable."""
        if self.affinity == "cosine":
            return cosine_affinity(a, b, self.sigma)
        return self.affinity(a, b)

    def _rows(self, rows) -> Tensor:
        return self._weights[rows] if self.stored else self._tile(rows)

    def _tile(self, rows, columns=slice(None)) -> Tensor:
        """``W[rows, columns]``, without gradient."""
        if self._keys is None:
            tile = self._pair(self.x[rows], self.x[columns])
            low, high = tile.aminmax()
            if not bool((low >= 0) & (high < torch.inf)):
                raise ValueError(
                    "affinity: the function returned a negative, NaN or infinite weight. Weights "
                    "must be finite and >= 0."
                )
        else:
            tile = rbf_weights(self._keys[rows], self._keys[columns]).to(self.x)
        return self._weigh(tile, rows, columns)

    def _weigh(self, tile: Tensor, rows, columns=slice(None)) -> Tensor:
        """Weights between rows that stand for several points each."""
        return tile if self._mass is None else self._mass[rows, None] * tile * self._mass[columns]

    def _fill(self, weights: Tensor) -> Tensor:
        for rows in row_tiles(self.n, self.x):
            weights[rows, rows.start :] = tile = self._tile(rows, slice(rows.start, None))
            weights[rows.stop :, rows] = tile[:, len(tile) :].T
        return weights


class PrecomputedGraph(Graph):
    """A graph given by its weights ``W (n, n)``; the derivative is taken with respect to ``W``
    itself.

    Raises:
        ValueError: weights that are not square, symmetric, finite and non-negative, or a node
            without any weight.
    """

    sigma = None
    stored = True

    def __init__(self, weights: Tensor):
        self.x = check_features(weights)
        self._weights = weights.detach()
        check_symmetric("weights", self._weights)
        if bool((self._weights < 0).any()):
            raise ValueError(
                "weights: expected non-negative entries. A normalized cut has no meaning for "
                "negative weights."
            )
        self.degree = _check_degree(self._weights.sum(1))

    def weights(self) -> Tensor:
        """``W (n, n)``, differentiable."""
        return self.x

    def vjp(self, left: Tensor, right: Tensor, rows: Tensor | None = None) -> Tensor:
        """``dl/dW (n, n)``, symmetric; some of its rows."""
        half = left @ right.T / 2
        return half + half.T if rows is None else (half + half.T)[rows]


def _check_mass(mass: Tensor, x: Tensor) -> Tensor:
    if mass.shape != (len(x),) or not bool((mass > 0).all() and torch.isfinite(mass).all()):
        raise ValueError(f"mass: expected {len(x)} positive numbers, received {mass}.")
    return mass.detach().to(x)


def _check_degree(degree: Tensor) -> Tensor:
    if not bool((degree > 0).all()):
        lonely = int((degree <= 0).sum())
        raise ValueError(
            f"graph: {lonely} of {len(degree)} nodes have no weight to any node, themselves "
            "included, so they belong to no segment. Remove them, or use a wider bandwidth."
        )
    return degree


class _GraphProduct(torch.autograd.Function):
    """``W v`` with ``dl/dW = (g v^T + v g^T) / 2`` and ``dl/dv = W g`` (``W`` is symmetric)."""

    @staticmethod
    def forward(ctx, x, sigma, v, graph):
        ctx.graph = graph
        ctx.save_for_backward(x, v)  # x only so that a change in place is noticed
        return graph.matmul(v)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        _, v = ctx.saved_tensors
        wanted = any(ctx.needs_input_grad[:2])
        dx, dsigma = ctx.graph.send(g, v) if wanted else (None, None)
        dv = ctx.graph.matmul(g) if ctx.needs_input_grad[2] else None
        return dx, dsigma, dv, None
