"""Affinity graphs: bandwidths, weights, and products with ``W`` that never need ``W``.

A graph is used in two ways only: multiplied by a few columns (``graph.matmul``), and asked how a loss changes with the
features when the loss's derivative with respect to ``W`` has low rank (``graph.vjp``). Both work on tiles of rows, so a graph
too large for memory costs time instead: its tiles are computed again for each product.
"""

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

__all__ = ["rbf_affinity", "cosine_affinity", "bandwidth", "Graph", "PrecomputedGraph", "check_features"]

LOCAL_NEIGHBOR = 7  # Zelnik-Manor and Perona (2004), section 3
SAMPLE = 1000  # rows that the global bandwidth rules look at
TILE_BYTES = 2**25  # one (rows, n) tile; a handful of them are alive at once
EXPONENT_DIGITS = 1e-4  # rounding allowed in an exponent; features far from each other on the scale of sigma cost more digits


def check_features(x: Tensor, rows_at_least: int = 2) -> Tensor:
    """Returns ``x`` if it is a finite floating ``(n, c)`` tensor, else says what is wrong with it.

    Raises:
        ValueError: wrong type, rank, precision, size, or an entry that is NaN or infinite.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"features: expected a torch tensor (n, c), received {type(x).__name__}. Wrap it in torch.as_tensor(...).")
    if x.ndim != 2:
        raise ValueError(
            f"features: expected two axes (n, c), received shape {tuple(x.shape)}. A grid (h, w, c) is flattened by "
            "x.reshape(-1, x.shape[-1])."
        )
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"features: expected float32 or float64, received {x.dtype}. Eigenvectors need the digits: pass x.float() or x.double()."
        )
    if x.shape[0] < rows_at_least or x.shape[1] < 1:
        raise ValueError(
            f"features: expected at least {rows_at_least} rows and 1 channel, received {x.shape[0]} rows and {x.shape[1]} channels. "
            "Each row is a point of the graph; ask for fewer eigenvectors or give more points."
        )
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).any(1).sum())
        raise ValueError(f"features: {bad} of {x.shape[0]} rows hold NaN or infinity. Look upstream: a division by zero, or half precision.")
    return x


def rbf_affinity(x: Tensor, y: Tensor | None = None, sigma: float | Tensor = 1.0, sigma_y: float | Tensor | None = None) -> Tensor:
    """Gaussian weights ``exp(-|x_i - y_j|^2 / (2 sigma_i sigma_j))``, ``(n, m)``.

    With one number for ``sigma`` this is the ordinary rbf kernel; with one value per row it is the locally scaled kernel of
    Zelnik-Manor and Perona (2004, eq. 4) for scales ``sigma_i = d_i / sqrt(2)``.

    Args:
        x: features ``(n, c)``.
        y: features ``(m, c)``; ``x`` itself when left out.
        sigma: bandwidth in the units of the features, a number or ``(n,)``.
        sigma_y: bandwidth of the rows of ``y``, a number or ``(m,)``; ``sigma`` when left out.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> rbf_affinity(x, sigma=1.0)[0]
    tensor([1.0000, 0.6065])
    """
    y = x if y is None else y
    sx = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1)
    sy = sx if sigma_y is None else torch.as_tensor(sigma_y, dtype=x.dtype, device=x.device).reshape(-1, 1)
    # One product gives the whole exponent: [x, -|x|^2/2, 1] . [y, 1, -|y|^2/2] = -|x - y|^2 / 2. Only differences matter, so
    # the mean is taken off first: without it the two squares cancel and float32 loses the digits that separate neighbours.
    mean = y.detach().mean(0)
    x, y = x - mean, y - mean
    qx = torch.cat([x, x.square().sum(1, keepdim=True) / -2, torch.ones_like(x[:, :1])], 1) / sx  # (n, c + 2)
    ky = torch.cat([y, torch.ones_like(y[:, :1]), y.square().sum(1, keepdim=True) / -2], 1) / sy  # (m, c + 2)
    return (qx @ ky.T).clamp_max(0).exp()  # the clamp removes rounding only: a squared distance is never negative


def cosine_affinity(x: Tensor, y: Tensor | None = None, sigma: float = 0.5) -> Tensor:
    """Weights ``exp(-(cos(x_i, y_j) - 1)^2 / (2 sigma^2))``, ``(n, m)``: one for parallel rows, whatever their length.

    Raises:
        ValueError: a row of zeros, which has no direction.
    """
    y = x if y is None else y
    for rows in (x, y):
        if bool((rows.detach().square().sum(1) == 0).any()):
            raise ValueError("cosine affinity: a row of zeros has no direction. Drop that row, or use affinity='rbf'.")
    cos = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T
    return torch.exp(-((cos - 1) ** 2) / (2 * sigma**2))


def bandwidth(x: Tensor, rule: str | float | Tensor = "local", seed: int = 0) -> Tensor:
    """Chooses the rbf bandwidth from the data, without gradient.

    Rules: ``"local"`` gives each point its own scale, the distance to its 7th neighbour over ``sqrt(2)`` (Zelnik-Manor and
    Perona 2004); a point with seven exact copies of itself has no such distance and takes the median scale of the others.
    ``"median"`` is the median pairwise distance, ``"degree"`` bisects until the mean weight is within 1% of the 0.25-quantile
    of the mean weights at ``sigma_0 = sum of the channels' standard deviations``. The last two look at up to 1,000 rows.

    Args:
        x: features ``(n, c)``.
        rule: a rule's name, a positive number, or one positive scale per point ``(n,)``; the last two are kept as given.
        seed: for the rows looked at.

    Returns:
        A tensor with no axes, or ``(n,)`` scales, in the units of the features.

    Raises:
        ValueError: an unknown rule, a bandwidth that is not positive, or features that do not differ.
    """
    x = x.detach()
    if not isinstance(rule, str):
        return _given_bandwidth(torch.as_tensor(rule, dtype=x.dtype, device=x.device).detach(), len(x))
    rules = {"local": _local_scales, "median": _median_distance, "degree": _quantile_degree}
    if rule not in rules:
        raise ValueError(f"sigma: expected a positive number, one scale per point, or one of {sorted(rules)}; received {rule!r}.")
    if bool((x == x[0]).all()):
        raise ValueError(
            f"sigma={rule!r}: all {len(x)} rows are the same, so there is nothing to cut. Likely causes: a constant image, a dead "
            "layer, or a batch axis passed as points."
        )
    return rules[rule](x if rule == "local" else _sample_rows(x, seed))


def _given_bandwidth(sigma: Tensor, n: int) -> Tensor:
    if sigma.ndim > 1 or (sigma.ndim == 1 and len(sigma) != n):
        raise ValueError(f"sigma: expected a number or one scale for each of the {n} points, received shape {tuple(sigma.shape)}.")
    if not bool((sigma > 0).all() and torch.isfinite(sigma).all()):
        raise ValueError(f"sigma: expected a positive, finite bandwidth, received a smallest value of {float(sigma.min()):g}.")
    return sigma


def _sample_rows(x: Tensor, seed: int) -> Tensor:
    if len(x) <= SAMPLE:
        return x
    pick = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:SAMPLE]
    return x[pick.to(x.device)]


def _local_scales(x: Tensor) -> Tensor:
    neighbor = min(LOCAL_NEIGHBOR, len(x) - 1)
    scales = x.new_empty(len(x))
    for rows in _tiles(len(x), x):
        scales[rows] = torch.cdist(x[rows], x).kthvalue(neighbor + 1, dim=1).values / 2**0.5  # the nearest is the point itself
    if not bool((scales > 0).any()):
        raise ValueError(
            f"sigma='local': every row has {neighbor} exact copies, so no point has a scale. Pass a number, or sigma='median'."
        )
    return torch.where(scales > 0, scales, scales[scales > 0].median())


def _median_distance(x: Tensor) -> Tensor:
    distances = torch.pdist(x)
    # Copies at distance zero say nothing about the scale at which the rest differ.
    return distances[distances > 0].median()


def _quantile_degree(x: Tensor, quantile: float = 0.25) -> Tensor:
    sigma = x.std(0).sum()
    target = torch.quantile(rbf_affinity(x, sigma=sigma).mean(1), quantile)
    low, high = torch.zeros_like(sigma), torch.full_like(sigma, float("inf"))
    for _ in range(100):
        mean = rbf_affinity(x, sigma=sigma).mean()
        if abs(mean - target) <= 0.01 * target:
            break
        low, high = (sigma, high) if mean < target else (low, sigma)
        sigma = 2 * sigma if torch.isinf(high) else (low + high) / 2
    return sigma


def _tiles(rows: int, like: Tensor, n: int | None = None) -> list[slice]:
    """Slices of ``rows`` rows of a matrix with ``n`` columns (``rows`` when left out), each within the tile's bytes."""
    step = max(1, TILE_BYTES // ((n or rows) * like.element_size()))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


class _Deferring:
    """Lets backward passes hand over the factors of ``dl/dW`` instead of a gradient, so that several can share one pass."""

    _collected = None

    @contextmanager
    def deferred(self):
        """Within this context a backward pass puts its ``(left, right)`` into the list it yields and sends nothing to ``x``."""
        self._collected = []
        try:
            yield self._collected
        finally:
            self._collected = None

    def send(self, left: Tensor, right: Tensor) -> Tensor | None:
        """Gradient for ``x``, or ``None`` while deferred."""
        if self._collected is None:
            return self.vjp(left, right)
        self._collected.append((left, right))
        return None


class Graph(_Deferring):
    """The affinity graph over the rows of ``x``: weights ``W (n, n)``, degrees ``d = W 1``.

    Attributes:
        x: features ``(n, c)``, as given (with their autograd history).
        sigma: the bandwidth in use (a tensor; ``None`` for a callable affinity).
        degree: ``d (n,)``, detached.
        stored: whether ``W`` is held; if not, its tiles are computed again for each product.

    Args:
        x: features ``(n, c)``, float32 or float64.
        sigma: bandwidth or rule, see `bandwidth`; for ``"cosine"`` a number (0.5 when ``None``); ``None`` is ``"local"`` for rbf.
        affinity: ``"rbf"``, ``"cosine"``, or a differentiable symmetric function ``(r, c), (n, c) -> (r, n)``.
        memory_limit: bytes that ``W`` may take; beyond it the graph is matrix-free.
        seed: for the rows that a bandwidth rule looks at.

    Raises:
        ValueError: bad features (`check_features`), bandwidth or affinity; an affinity that is negative, asymmetric or not
            finite; a node without any weight.

    Float32 features that spread over hundreds of bandwidths get their distances in float64, one tile at a time.
    """

    def __init__(self, x: Tensor, sigma=None, affinity: str | Callable = "rbf", memory_limit: int = 2**30, seed: int = 0):
        self.x = check_features(x)
        self.sigma, self._pair = _make_pair(x, sigma, affinity, seed)
        with torch.no_grad():
            self.stored = self.n**2 * x.element_size() <= memory_limit
            self._weights = self._fill(x.new_empty(self.n, self.n)) if self.stored else None
            if callable(affinity):
                self._check_callable()
            self.degree = self.matmul(torch.ones_like(x[:, :1]))[:, 0]
        _check_degree(self.degree)

    @property
    def n(self) -> int:
        """Number of points."""
        return len(self.x)

    def weights(self) -> Tensor:
        """``W (n, n)`` in full, differentiable: for small graphs, pictures and tests."""
        return self._pair(self.x, self.x, slice(None))

    def matmul(self, v: Tensor) -> Tensor:
        """``W v`` for ``v (n, m)``, without gradient."""
        with torch.no_grad():
            if self.stored:
                return self._weights @ v
            return torch.cat([self._pair(self.x[rows], self.x, rows) @ v for rows in _tiles(self.n, self.x)])

    def __matmul__(self, v: Tensor) -> Tensor:
        """``W v``, differentiable in the features and in ``v``; the gradient is computed tile by tile."""
        return _GraphProduct.apply(self.x, v, self)

    def vjp(self, left: Tensor, right: Tensor, rows: Tensor | None = None) -> Tensor:
        """Gradient of a loss with ``dl/dW = (left right^T + right left^T) / 2``, both ``(n, m)``.

        ``W`` and ``dl/dW`` are symmetric, so the derivative through the columns equals the one through the rows:
        ``dl/dx_i = 2 sum_j (dl/dW)_ij dw(x_i, x_j)/dx_i``, and one tile of rows is enough at a time.

        Args:
            left, right: the factors.
            rows: points whose gradient is wanted ``(r,)``; the cost is proportional to their number. All when ``None``.

        Returns:
            ``(n, c)``, or ``(r, c)``.
        """
        rows = torch.arange(self.n, device=self.x.device) if rows is None else rows
        grad = self.x.new_empty(len(rows), self.x.shape[1])
        mine, theirs = torch.cat([left, right], 1), torch.cat([right, left], 1)
        for part in _tiles(len(rows), self.x, self.n):
            with torch.enable_grad():
                x_rows = self.x[rows[part]].detach().requires_grad_()
                tile = self._pair(x_rows, self.x.detach(), rows[part])
            (grad[part],) = torch.autograd.grad(tile, x_rows, mine[rows[part]] @ theirs.T)
        return grad

    def _fill(self, weights: Tensor) -> Tensor:
        for rows in _tiles(self.n, self.x):
            weights[rows] = self._pair(self.x[rows], self.x, rows)
        return weights

    def _check_callable(self) -> None:
        few = self._pair(self.x[:64], self.x[:64], slice(0, 64))
        if not bool(torch.isfinite(few).all()) or bool((few < 0).any()):
            raise ValueError("affinity: the function returned a negative, NaN or infinite weight. Weights must be finite and >= 0.")
        if not torch.allclose(few, few.T, rtol=1e-4, atol=1e-6):
            raise ValueError("affinity: the function is not symmetric, w(x, y) != w(y, x). A cut needs an undirected graph.")


class PrecomputedGraph(_Deferring):
    """A graph given by its weights ``W (n, n)``; the derivative is taken with respect to ``W`` itself.

    Raises:
        ValueError: weights that are not square, symmetric, finite and non-negative, or a node without any weight.
    """

    sigma = None
    stored = True

    def __init__(self, weights: Tensor):
        self.x = check_features(weights)
        w = weights.detach()
        if w.shape[0] != w.shape[1] or not torch.allclose(w, w.T, rtol=1e-4, atol=1e-7):
            raise ValueError(f"weights: expected a symmetric (n, n) matrix, received shape {tuple(w.shape)}. Use (W + W.T) / 2.")
        if bool((w < 0).any()):
            raise ValueError("weights: expected non-negative entries. A normalized cut has no meaning for negative weights.")
        self.degree = w.sum(1)
        _check_degree(self.degree)

    @property
    def n(self) -> int:
        """Number of points."""
        return len(self.x)

    def weights(self) -> Tensor:
        """``W (n, n)``, differentiable."""
        return self.x

    def matmul(self, v: Tensor) -> Tensor:
        """``W v`` for ``v (n, m)``, without gradient."""
        return self.x.detach() @ v

    def __matmul__(self, v: Tensor) -> Tensor:
        """``W v``, differentiable in the weights and in ``v``."""
        return _GraphProduct.apply(self.x, v, self)

    def vjp(self, left: Tensor, right: Tensor) -> Tensor:
        """``dl/dW (n, n)``, symmetric."""
        half = left @ right.T / 2
        return half + half.T


def _make_pair(x: Tensor, sigma, affinity, seed):
    """The bandwidth in use, and the function ``(x_rows, x, rows) -> W[rows]``."""
    if callable(affinity):
        if sigma is not None:
            raise ValueError("sigma: a callable affinity carries its own bandwidth; leave sigma out, or use affinity='rbf'.")
        return None, lambda a, b, rows: affinity(a, b)
    if affinity == "cosine":
        value = 0.5 if sigma is None else sigma
        if isinstance(value, (str, Tensor)):
            raise ValueError(f"sigma: affinity='cosine' takes a number (default 0.5), received {value!r}.")
        return _given_bandwidth(x.new_tensor(value), len(x)), lambda a, b, rows: cosine_affinity(a, b, value)
    if affinity != "rbf":
        raise ValueError(f"affinity: expected 'rbf', 'cosine' or a function, received {affinity!r}.")
    scale = bandwidth(x, "local" if sigma is None else sigma, seed)
    spread = ((x.detach() - x.detach().mean(0)).square().sum(1) / scale.square()).max()
    precision = torch.float64 if spread * torch.finfo(x.dtype).eps > EXPONENT_DIGITS else x.dtype
    return scale, partial(_rbf_tile, scale.to(precision), precision)


def _rbf_tile(scale: Tensor, precision: torch.dtype, x_rows: Tensor, x: Tensor, rows: slice) -> Tensor:
    tile = rbf_affinity(x_rows.to(precision), x.to(precision), scale if scale.ndim == 0 else scale[rows], scale)
    return tile.to(x.dtype)


def _check_degree(degree: Tensor) -> None:
    if not bool((degree > 0).all()):
        lonely = int((degree <= 0).sum())
        raise ValueError(
            f"graph: {lonely} of {len(degree)} nodes have no weight to any node, themselves included, so they belong to no segment. "
            "Remove them, or use a wider bandwidth."
        )


class _GraphProduct(torch.autograd.Function):
    """``W v`` with ``dl/dW = (g v^T + v g^T) / 2`` and ``dl/dv = W g`` (``W`` is symmetric)."""

    @staticmethod
    def forward(ctx, x, v, graph):
        ctx.graph = graph
        ctx.save_for_backward(v)
        return graph.matmul(v)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (v,) = ctx.saved_tensors
        dx = ctx.graph.send(g, v) if ctx.needs_input_grad[0] else None
        dv = ctx.graph.matmul(g) if ctx.needs_input_grad[1] else None
        return dx, dv, None
