"""Affinity graphs, and products with ``W`` that never need ``W``.

A graph is multiplied by a few columns (``graph.matmul``), and asked how a loss changes with the
features when ``dl/dW`` has low rank (``graph.vjp``). Both work on tiles: those of a graph too large
for memory are computed again for each product.
"""

import math
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ctrace.arguments import Bandwidth, Points, Seed, Whole, checked, real
from ctrace.check import check_number, one_of, seen
from ctrace.cut.affinity import (
    FAINTEST,
    bandwidth,
    check_degree,
    check_mass,
    check_symmetric,
    cosine_affinity,
    in_plain_mode,
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
        x: features ``(n, c)``; sixteen bits are computed in float32.
        sigma: bandwidth or rule, see `bandwidth`; for ``"cosine"`` a number (0.5 when ``None``);
            ``None`` is ``"local"`` for rbf.
        affinity: ``"rbf"``, ``"cosine"`` or a smooth, symmetric ``(r, c), (n, c) -> (r, n)``.
        memory_limit: bytes that ``W`` may take; beyond it the graph is matrix-free.
        seed: for the rows that a bandwidth rule looks at.
        mass: points that each row stands for ``(n,)``, or 1; weights become ``m_i w_ij m_j``.
        bandwidth_grad: differentiate a bandwidth that follows from the features or asks for it.

    Raises:
        ValueError: bad features, bandwidth or affinity; a node without any weight.
    """

    _collected = None  # factors of dl/dW while `deferred`

    @in_plain_mode
    @checked
    def __init__(
        self,
        x: Points,
        sigma: Bandwidth = None,
        affinity: str | Callable = "rbf",
        memory_limit: Whole = 2**30,
        seed: Seed = 0,
        mass: Tensor | None = None,
        bandwidth_grad: bool = True,
    ):
        self.x, self.affinity, self.sigma, self._keys = x, affinity, None, None
        self.recipe = sigma, affinity, memory_limit, seed, mass, bandwidth_grad
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
            self._keys, self._cancels = precise_keys(x.detach(), sigma.detach())
        self._mass = None if mass is None else check_mass(mass, x)
        with torch.no_grad():
            if callable(affinity):
                order = torch.randperm(self.n, generator=torch.Generator().manual_seed(seed))
                rows = self.x[order[:PROBED].to(x.device)]
                check_symmetric("affinity", self._pair(rows, rows))
            self.stored = self.n**2 * x.element_size() <= memory_limit
            self._weights = self._fill(x.new_empty(self.n, self.n)) if self.stored else None
            self.degree = check_degree(self.matmul(torch.ones_like(x[:, :1]))[:, 0])

    def __getstate__(self) -> dict:
        """For copies and files: the same numbers, without their autograd history."""
        return tree_map_only(Tensor, Tensor.detach, vars(self))

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

    @in_plain_mode
    def matmul(self, v: Tensor) -> Tensor:
        """``W v`` for ``v (n, m)``, without gradient."""
        with torch.no_grad():
            return self._weights @ v if self.stored else self._by_halves(self._tile, v)

    @checked
    def __matmul__(self, v: real("n m")) -> Tensor:
        """``W v``, differentiable in features, bandwidth and ``v``, tile by tile."""
        if len(v) != self.n or v.dtype != self.x.dtype:
            wanted = f"({self.n}, m) in {self.x.dtype}"
            raise ValueError(f"v: expected {wanted}, received {seen(v)} in {v.dtype}.")
        return _GraphProduct.apply(self.x, self.sigma, v, self)

    @in_plain_mode
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
        mine, theirs = torch.cat([left, right], 1), torch.cat([right, left], 1)
        if self._keys is None:
            return self._vjp_by_autograd(mine, theirs, rows)
        columns, own = self._keys[:, :-1], self._keys if rows is None else self._keys[rows]

        def pulled(r, c=slice(None)):  # 2 (dl/dW)_ij w_ij
            return (self.rows(r, c) * (mine[r] @ theirs[c].T)).to(own)

        # dl/dx_i = sum_j pulled_ij (x_j - x_i) / (s_i s_j), where keys hold x_j / s_j and 1 / s_j
        with torch.no_grad():
            if rows is None:
                sums = self._by_halves(pulled, columns)
            else:
                parts = (rows[part] for part in row_tiles(len(rows), self.x, self.n))
                sums = torch.cat([pulled(part) @ columns for part in parts])
            return (sums[:, :-1] * own[:, -2:-1] - own[:, :-2] * sums[:, -1:]).to(self.x)

    def _vjp_by_autograd(self, mine: Tensor, theirs: Tensor, rows: Tensor | None) -> Tensor:
        """`vjp` for an affinity other than rbf."""
        x = self.x.detach()
        rows = torch.arange(self.n, device=x.device) if rows is None else rows
        grad = x.new_empty(len(rows), x.shape[1])
        for part in row_tiles(len(rows), x, self.n):
            with torch.enable_grad():
                x_rows = x[rows[part]].requires_grad_()
                tile = self._weigh(self._pair(x_rows, x), rows[part])
            grad[part] = torch.autograd.grad(tile, x_rows, mine[rows[part]] @ theirs.T)[0]
        return grad

    @in_plain_mode
    def sigma_vjp(self, factors: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """``dl/dsigma``, shaped like ``sigma``, for each of several losses given by their factors
        (see `vjp`), in one pass: ``dw_ij/dsigma_i = -w_ij log(w_ij) / sigma_i`` (rbf only).
        """
        left, right = (torch.cat(side, 1) for side in zip(*factors, strict=True))

        def steep(rows, columns):
            tile = self.rows(rows, columns)
            bare = tile if self._mass is None else tile / self._weigh(1, rows, columns)
            return torch.xlogy(tile, bare)

        with torch.no_grad():
            theirs = self._by_halves(steep, torch.cat([right, left], 1))
            pairs = torch.cat([left, right], 1) * theirs / -self.sigma.reshape(-1, 1)
            slopes = pairs[:, : left.shape[1]] + pairs[:, left.shape[1] :]
            losses = slopes.split([len(left.T) for left, _ in factors], 1)
            return [loss.sum(1) if self.sigma.ndim else loss.sum() for loss in losses]

    def _by_halves(self, block: Callable, v: Tensor) -> Tensor:
        """``M v`` for symmetric ``block(rows, columns)``: a tile serves both sides."""
        out = torch.zeros_like(v)
        for rows in row_tiles(self.n, self.x):
            tile = block(rows, slice(rows.start, None))
            out[rows].addmm_(tile, v[rows.start :])
            out[rows.stop :].addmm_(tile[:, len(tile) :].T, v[rows])
        return out

    @contextmanager
    def deferred(self):
        """Inside, backward passes put their ``(left, right)`` into the list, nothing into ``x``."""
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

    def rows(self, rows=slice(None), columns=slice(None)) -> Tensor:
        """``W[rows, columns]``, all of it when left out, without gradient."""
        return self._weights[rows, columns] if self.stored else self._tile(rows, columns)

    def _tile(self, rows, columns=slice(None)) -> Tensor:
        """``W[rows, columns]``, without gradient."""
        if self._keys is None:
            tile = self._pair(self.x[rows], self.x[columns])
            low, high = tile.aminmax()
            if not bool((low >= 0) & (high < torch.inf)):
                raise ValueError("affinity: returned a negative, NaN or infinite weight.")
        else:
            least = FAINTEST * math.log(torch.finfo(self.x.dtype).eps)
            keys = self._keys[rows], self._keys[columns]
            tile = rbf_weights(*keys, self._cancels, least).to(self.x)
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

    sigma, stored = None, True

    @checked
    def __init__(self, weights: Points):
        self.x, self._weights = weights, weights.detach()
        check_symmetric("weights", self._weights)
        if bool((self._weights < 0).any()):
            raise ValueError("weights: expected non-negative entries, which a cut needs.")
        self.degree = check_degree(self._weights.sum(1))

    def weights(self) -> Tensor:
        """``W (n, n)``, differentiable."""
        return self.x

    def vjp(self, left: Tensor, right: Tensor, rows: Tensor | None = None) -> Tensor:
        """``dl/dW (n, n)``, symmetric; some of its rows."""
        half = left @ right.T / 2
        return half + half.T if rows is None else (half + half.T)[rows]


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
