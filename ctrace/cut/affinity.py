"""Affinities of feature rows, and the bandwidth at which they are measured."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps

import torch
from torch import Tensor

from ctrace.arguments import Bandwidth, Features, Seed, checked
from ctrace.check import SIXTEEN_BITS, as_tensor, one_of

__all__ = ["rbf_affinity", "cosine_affinity", "bandwidth", "row_tiles"]

LOCAL_NEIGHBOR = 7  # Zelnik-Manor and Perona (2004), section 3
SAMPLE = 1000  # rows that the rules for one number look at
QUANTILE = 0.25  # of the mean weights, which the degree rule aims at
EXPONENT_DIGITS = 1e-4  # rounding allowed in an exponent: far from all others, a row costs digits
TILE_BYTES = 2**23  # one (rows, n) tile on a CPU, of its cache's size; a handful are alive at once
GPU_TILES = 256  # on a GPU a tile is this part of its memory: small ones would leave it idle
# In a graph no weight is smaller than rounding to this power, 4e-18 in float32: beside a point's
# weight of 1 to itself that is nothing, and a denormal number makes products 20 times slower.
FAINTEST = 2.5


def in_plain_mode(function: Callable) -> Callable:
    """The function as it computes outside of the modes that its caller may be in.

    Not under `torch.autocast`, and tensors of sixteen bits in float32: else weights would be off by
    tens of percent, and eigenvectors no eigenvectors. Not in `torch.inference_mode`: what is made
    there serves no gradient later, neither through a fitted object nor anew.
    """

    @wraps(function)
    def plain(*args, **kwargs):
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
            for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
                stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()})

    return plain


def _plain(value):
    if not isinstance(value, Tensor):
        return value
    value = value.clone() if value.is_inference() else value
    return value.float() if value.dtype in SIXTEEN_BITS else value


@in_plain_mode
@checked
def rbf_affinity(x: Features, y: Features | None = None, sigma: Bandwidth = 1.0) -> Tensor:
    """Gaussian weights ``exp(-|x_i - y_j|^2 / (2 sigma_i sigma_j))``, ``(n, m)``.

    With one number for ``sigma`` this is the ordinary rbf kernel; with one value per row it is the
    locally scaled kernel of Zelnik-Manor and Perona (2004, eq. 4) for scales ``sigma_i = d_i /
    sqrt(2)``.

    Args:
        x: features ``(n, c)``.
        y: features ``(m, c)``; ``x`` itself when left out.
        sigma: bandwidth in the units of the features, a number, or without ``y`` one per row.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> rbf_affinity(x, sigma=1.0)[0]
    tensor([1.0000, 0.6065])
    """
    y = _matching(x, x if y is None else y)
    sigma = _given_bandwidth(sigma, x, shared=y is not x)
    mean = y.detach().mean(0)
    keys = rbf_keys(y, sigma, mean)
    return rbf_weights(rbf_keys(x, sigma, mean), keys, cancels(keys))


def rbf_keys(x: Tensor, sigma: float | Tensor, mean: Tensor) -> Tensor:
    """``[x - mean, 1, -|x - mean|^2 / 2] / sigma``, ``(n, c + 2)``: what `rbf_weights` needs of a
    row, made once for all tiles.

    Only differences matter, so a mean is taken off: without it the squares would cancel and float32
    lose the digits that separate neighbours. It must be the same for both sides.
    """
    x = x - mean
    keys = torch.cat([x, torch.ones_like(x[:, :1]), x.square().sum(1, keepdim=True) / -2], 1)
    return keys / torch.as_tensor(sigma).to(x).reshape(-1, 1)


def precise_keys(x: Tensor, sigma: Tensor) -> tuple[Tensor, bool]:
    """`rbf_keys` about the mean of the rows, in float64 where float32 would lose the digits of an
    exponent; and whether their products lose them nevertheless (`cancels`).
    """
    mean = x.mean(0)
    spread = ((x - mean).square().sum(1) / sigma.square()).max()
    # written so that a spread that overflows, or scales that underflow, are widened too
    wide = x if spread * torch.finfo(x.dtype).eps <= EXPONENT_DIGITS else x.double()
    keys = rbf_keys(wide, sigma, mean.to(wide))
    return keys, cancels(keys)


def cancels(keys: Tensor) -> bool:
    """Whether scales are so small beside the spread that products of `rbf_keys` lose the digits."""
    steepest = (keys[:, -1] * keys[:, -2]).detach().abs().max()
    return not steepest * torch.finfo(keys.dtype).eps <= EXPONENT_DIGITS


def rbf_weights(rows: Tensor, keys: Tensor, differences: bool, least: float = -math.inf) -> Tensor:
    """``exp(-|x_i - y_j|^2 / (2 sigma_i sigma_j))`` ``(r, m)`` from `rbf_keys` of both sides: one
    product gives the whole exponent, no smaller than ``least``, or the ``differences`` of the rows
    where it `cancels`.
    """
    if differences:
        points = [side[:, :-2] / side[:, -2:-1] for side in (rows, keys)]
        distances = torch.cdist(*points, compute_mode="donot_use_mm_for_euclid_dist")
        narrow = rows[:, -2:-1].sqrt() * keys[:, -2].sqrt()  # 1 / sqrt(s_i s_j)
        return ((distances * narrow).square() / -2).clamp_min(least).exp()
    # The square meets the other side's 1, and the 1 its square.
    queries = torch.cat([rows[:, :-2], rows[:, -1:], rows[:, -2:-1]], 1)
    # Above, the clamp removes rounding only: a squared distance is never negative.
    return (queries @ keys.T).clamp(least, 0).exp()


@in_plain_mode
@checked
def cosine_affinity(x: Features, y: Features | None = None, sigma: Bandwidth = 0.5) -> Tensor:
    """Weights ``exp(-(cos(x_i, y_j) - 1)^2 / (2 sigma^2))``, ``(n, m)``: one for parallel rows,
    whatever their length.

    Raises:
        ValueError: a row of zeros, which has no direction.
    """
    _matching(x, x if y is None else y)
    lengths = [rows.norm(dim=1, keepdim=True) for rows in ((x,) if y is None else (x, y))]
    if any(bool((length == 0).any()) for length in lengths):
        raise ValueError(
            "features: a row of zeros has no direction (cosine affinity). Drop it, or use 'rbf'."
        )
    sigma = _given_bandwidth(sigma, x, shared=True)
    cos = (x / lengths[0]) @ ((x if y is None else y) / lengths[-1]).T
    return torch.exp(-((cos - 1) ** 2) / (2 * sigma**2))


def _matching(x: Tensor, y: Tensor) -> Tensor:
    """``y``, if its rows can be compared with those of ``x``."""
    if x.shape[1:] != y.shape[1:] or x.dtype != y.dtype:
        got = f"{tuple(y.shape)} in {y.dtype}"
        raise ValueError(f"y: expected the channels of x {tuple(x.shape)} in {x.dtype}, not {got}.")
    return y


def check_symmetric(what: str, w: Tensor) -> None:
    """Raises ValueError unless the weights ``(n, n)`` are symmetric to rounding."""
    rounding = 1e-6 * float(w.abs().max())
    if len(w) != len(w.T) or not torch.allclose(w, w.T, rtol=1e-4, atol=rounding):
        raise ValueError(
            f"{what}: expected symmetric weights, w(x, y) = w(y, x), received shape "
            f"{tuple(w.shape)} and other values. A cut needs an undirected graph: (W + W.T) / 2."
        )


def check_mass(mass: Tensor, x: Tensor) -> Tensor:
    """One positive number for each row of ``x``, detached."""
    if mass.shape != (len(x),) or not bool((mass > 0).all()):
        raise ValueError(f"mass: expected {len(x)} positive numbers, received {mass}.")
    return mass.detach().to(x)


def check_degree(degree: Tensor) -> Tensor:
    """Degrees, all positive and finite."""
    if not bool(torch.isfinite(degree).all()):
        raise ValueError(
            "graph: weights are NaN or infinite, because squares of the features or of the "
            "bandwidth overflow or vanish. Scale the features: x / x.abs().max()."
        )
    if not bool((degree > 0).all()):
        lonely = int((degree <= 0).sum())
        raise ValueError(
            f"graph: {lonely} of {len(degree)} nodes have no weight to any node, themselves "
            "included, so they belong to no segment. Remove them, or use a wider bandwidth."
        )
    return degree


@in_plain_mode
@checked
def bandwidth(x: Features, rule: Bandwidth = "local", seed: Seed = 0) -> Tensor:
    """Chooses the rbf bandwidth from the data, differentiable in ``x``.

    Rules: ``"local"`` gives each point its own scale, the distance to its 7th neighbour over
    ``sqrt(2)`` (Zelnik-Manor and Perona 2004); a point with seven exact copies of itself has no
    such distance and takes the median scale of the others. ``"median"`` is the median pairwise
    distance of up to 1,000 rows. ``"degree"``, on as many, makes the mean weight equal to the
    0.25-quantile of the rows' mean weights at ``sigma_0``, the sum of the channels' standard
    deviations.

    Args:
        x: features ``(n, c)``.
        rule: a rule's name, a positive number, or one positive scale per point ``(n,)``; the last
            two are kept as given.
        seed: for the rows looked at.

    Returns:
        A tensor with no axes, or ``(n,)`` scales, in the units of the features.

    Raises:
        ValueError: an unknown rule, a bandwidth that is not positive, or features that do not
            differ enough.
    """
    if not isinstance(rule, str):
        return _given_bandwidth(rule, x)
    one_of("sigma", rule, ("local", "median", "degree"))
    if rule != "local" and len(x) > SAMPLE:
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:SAMPLE]
        x = x[rows.to(x.device)]
    if bool((x == x[0]).all()):
        raise ValueError(
            f"sigma={rule!r}: all {len(x)} rows are the same, so there is nothing to cut. Likely "
            "causes: a constant image, a dead layer, or a batch axis passed as points."
        )
    if rule == "local":
        return _local_scales(x)
    if rule == "degree":
        return _degree_scale(x.double()).to(x)
    distances = torch.pdist(x.double()).to(x)  # squares of float32 end at 1e-38 and 1e38
    # Copies at distance zero say nothing about the scale at which the rest differ.
    return distances[distances > 0].median()


def _given_bandwidth(sigma: float | Tensor, x: Tensor, shared: bool = False) -> Tensor:
    """A bandwidth in the form of the features; ``shared`` by all rows where there are others."""
    sigma, n = as_tensor("sigma", sigma, dtype=x.dtype, device=x.device), len(x)
    shapes = [()] if shared else [(), (n,)]
    if sigma.shape not in shapes or not bool((sigma > 0).all() & sigma.isfinite().all()):
        got = f"{tuple(sigma.shape)}, smallest value {min(sigma.flatten().tolist() or [0]):g}"
        raise ValueError(
            f"sigma: expected a positive, finite number, or one for each of the {n} points; "
            f"received {got}."
        )
    return sigma


def _local_scales(x: Tensor) -> Tensor:
    neighbor = min(LOCAL_NEIGHBOR, len(x) - 1)
    # The products behind `cdist` cancel: only centred and in float64 they tell near neighbours
    # apart. The distance itself is taken from the difference: between copies it is exactly zero.
    wide = (x.double() - x.double().mean(0)).detach()
    near = torch.empty(len(x), dtype=torch.long, device=x.device)
    for rows in row_tiles(len(x), wide):
        near[rows] = torch.cdist(wide[rows], wide).kthvalue(neighbor + 1, dim=1).indices
    # Each point is its own nearest neighbour. index_select: the gradient of x[near] would add up in
    # the order in which threads finish, and differ from run to run.
    # In float64, since squares of float32 end at 1e-38 and 1e38.
    scales = ((x - x.index_select(0, near)).double().norm(dim=1) / 2**0.5).to(x)
    if not bool((scales > 0).any()):
        raise ValueError(
            f"sigma='local': every row has {neighbor} exact copies, so no point has a scale. "
            "Pass a number, or sigma='median'."
        )
    return torch.where(scales > 0, scales, scales[scales > 0].median())


def _degree_scale(x: Tensor) -> Tensor:
    exact = "donot_use_mm_for_euclid_dist"  # copies are at distance zero
    squared = torch.cdist(x, x, compute_mode=exact).square()
    high = x.detach().std(0).sum()
    target = torch.quantile(torch.exp(squared / (-2 * x.std(0).sum() ** 2)).mean(1), QUANTILE)

    def excess(sigma):
        return torch.exp(squared / (-2 * sigma**2)).mean() - target

    with torch.no_grad():
        if not (squared == 0).double().mean() < target:
            raise ValueError(
                "sigma='degree': the rows hold so many copies that no bandwidth brings the mean "
                f"weight down to {float(target):.3g}. Pass a number, or sigma='local'."
            )
        low = torch.zeros_like(high)
        while excess(high) < 0:
            low, high = high, 2 * high
        while low < (middle := (low + high) / 2) < high:
            low, high = (middle, high) if excess(middle) < 0 else (low, middle)
        slope = (torch.exp(squared / (-2 * high**2)) * squared).mean() / high**3
    # A Newton step of no length: the solution stays, and moves with x as the implicit function
    # theorem says.
    left = excess(high)
    return high - (left - left.detach()) / slope


def row_tiles(rows: int, like: Tensor, n: int | None = None) -> list[slice]:
    """Slices of ``rows`` rows of a matrix with ``n`` columns (``rows`` when left out), each within
    the bytes of a tile on the device of ``like``.
    """
    tile = TILE_BYTES
    if like.is_cuda:  # all of its memory, not what is free: the same tiles in every run
        tile = max(tile, torch.cuda.get_device_properties(like.device).total_memory // GPU_TILES)
    step = max(1, tile // ((n or rows) * like.element_size()))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
