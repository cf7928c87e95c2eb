"""Affinities of feature rows, and the bandwidth at which they are measured."""

import torch
from torch import Tensor

from ctrace.check import one_of

__all__ = ["rbf_affinity", "cosine_affinity", "bandwidth", "row_tiles"]

LOCAL_NEIGHBOR = 7  # Zelnik-Manor and Perona (2004), section 3
SAMPLE = 1000  # rows that the global bandwidth rules look at
TILE_BYTES = 2**23  # one (rows, n) tile; a handful of them are alive at once


def rbf_affinity(
    x: Tensor, y: Tensor | None = None, sigma: float | Tensor = 1.0, sigma_y=None
) -> Tensor:
    """Gaussian weights ``exp(-|x_i - y_j|^2 / (2 sigma_i sigma_j))``, ``(n, m)``.

    With one number for ``sigma`` this is the ordinary rbf kernel; with one value per row it is the
    locally scaled kernel of Zelnik-Manor and Perona (2004, eq. 4) for scales ``sigma_i = d_i /
    sqrt(2)``.

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
    mean = y.detach().mean(0)
    sigma_y = sigma if sigma_y is None else sigma_y
    return rbf_weights(rbf_keys(x, sigma, mean), rbf_keys(y, sigma_y, mean))


def rbf_keys(x: Tensor, sigma: float | Tensor, mean: Tensor) -> Tensor:
    """``[x - mean, 1, -|x - mean|^2 / 2] / sigma``, ``(n, c + 2)``: what `rbf_weights` needs of a
    row, made once for all tiles.

    Only differences matter, so a mean is taken off: without it the squares would cancel and float32
    lose the digits that separate neighbours. It must be the same for both sides.
    """
    x = x - mean
    keys = torch.cat([x, torch.ones_like(x[:, :1]), x.square().sum(1, keepdim=True) / -2], 1)
    return keys / torch.as_tensor(sigma).to(x).reshape(-1, 1)


def rbf_weights(rows: Tensor, keys: Tensor) -> Tensor:
    """``exp(-|x_i - y_j|^2 / (2 sigma_i sigma_j))`` ``(r, m)`` from `rbf_keys` of both sides: one
    product gives the whole exponent.
    """
    # The square meets the other side's 1, and the 1 its square.
    queries = torch.cat([rows[:, :-2], rows[:, -1:], rows[:, -2:-1]], 1)
    # The clamp removes rounding only: a squared distance is never negative.
    return (queries @ keys.T).clamp_max(0).exp()


def cosine_affinity(x: Tensor, y: Tensor | None = None, sigma: float = 0.5) -> Tensor:
    """Weights ``exp(-(cos(x_i, y_j) - 1)^2 / (2 sigma^2))``, ``(n, m)``: one for parallel rows,
    whatever their length.

    Raises:
        ValueError: a row of zeros, which has no direction.
    """
    lengths = [rows.norm(dim=1, keepdim=True) for rows in ((x,) if y is None else (x, y))]
    if any(bool((length == 0).any()) for length in lengths):
        raise ValueError(
            "cosine affinity: a row of zeros has no direction. Drop it, or use affinity='rbf'."
        )
    cos = (x / lengths[0]) @ ((x if y is None else y) / lengths[-1]).T
    return torch.exp(-((cos - 1) ** 2) / (2 * sigma**2))


def bandwidth(x: Tensor, rule: str | float | Tensor = "local", seed: int = 0) -> Tensor:
    """Chooses the rbf bandwidth from the data, without gradient.

    Rules: ``"local"`` gives each point its own scale, the distance to its 7th neighbour over
    ``sqrt(2)`` (Zelnik-Manor and Perona 2004); a point with seven exact copies of itself has no
    such distance and takes the median scale of the others. ``"median"`` is the median pairwise
    distance, ``"degree"`` bisects until the mean weight is within 1% of the 0.25-quantile of the
    mean weights at ``sigma_0 = sum of the channels' standard deviations``. The last two look at up
    to 1,000 rows.

    Args:
        x: features ``(n, c)``.
        rule: a rule's name, a positive number, or one positive scale per point ``(n,)``; the last
            two are kept as given.
        seed: for the rows looked at.

    Returns:
        A tensor with no axes, or ``(n,)`` scales, in the units of the features.

    Raises:
        ValueError: an unknown rule, a bandwidth that is not positive, or features that do not
            differ.
    """
    x = x.detach()
    if not isinstance(rule, str):
        return _given_bandwidth(torch.as_tensor(rule, dtype=x.dtype, device=x.device), len(x))
    rules = {"local": _local_scales, "median": _median_distance, "degree": _quantile_degree}
    one_of("sigma", rule, rules)
    if bool((x == x[0]).all()):
        raise ValueError(
            f"sigma={rule!r}: all {len(x)} rows are the same, so there is nothing to cut. Likely "
            "causes: a constant image, a dead layer, or a batch axis passed as points."
        )
    if rule != "local" and len(x) > SAMPLE:
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:SAMPLE]
        x = x[rows.to(x.device)]
    return rules[rule](x)


def _given_bandwidth(sigma: Tensor, n: int) -> Tensor:
    if sigma.shape not in ((), (n,)) or not bool((sigma > 0).all() & sigma.isfinite().all()):
        raise ValueError(
            f"sigma: expected a positive, finite number, or one for each of the {n} points; "
            f"received {tuple(sigma.shape)}, smallest value {float(sigma.min()):g}."
        )
    return sigma.detach()


def _local_scales(x: Tensor) -> Tensor:
    neighbor = min(LOCAL_NEIGHBOR, len(x) - 1)
    # The products behind `cdist` cancel: only centred and in float64 they tell near neighbours
    # apart. The distance itself is taken from the difference: between copies it is exactly zero.
    wide = x.double() - x.double().mean(0)
    scales = x.new_empty(len(x))
    for rows in row_tiles(len(x), wide):
        near = torch.cdist(wide[rows], wide).kthvalue(neighbor + 1, dim=1).indices  # itself first
        scales[rows] = (x[rows] - x[near]).norm(dim=1) / 2**0.5
    if not bool((scales > 0).any()):
        raise ValueError(
            f"sigma='local': every row has {neighbor} exact copies, so no point has a scale. "
            "Pass a number, or sigma='median'."
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


def row_tiles(rows: int, like: Tensor, n: int | None = None) -> list[slice]:
    """Slices of ``rows`` rows of a matrix with ``n`` columns (``rows`` when left out), each within
    the tile's bytes.
    """
    step = max(1, TILE_BYTES // ((n or rows) * like.element_size()))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
