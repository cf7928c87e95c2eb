"""What every chapter does with its numbers: rank correlations, intervals, exact Shapley values, the
equal error rate.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
import torch
from scipy.special import stdtrit
from scipy.stats import rankdata

from ctrace.arguments import Count, Numbers, Seed, checked, numbers, within
from ctrace.check import as_tensor


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and where it may lie."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@checked
def spearman(a: numbers("b n"), b: numbers("b n"), constant=np.nan) -> np.ndarray:
    """Rank correlation row by row ``(b,)`` of two arrays ``(b, n)``; ties share their mean rank.

    A constant row has no order. It gets NaN for the caller to count, or ``constant`` where a study
    says what such a row is worth (0: it agrees with nothing).

    >>> spearman([[1, 2, 3], [5, 5, 5]], [[10, 30, 20], [1, 2, 3]])
    array([0.5, nan])
    """
    x, y = (rankdata(np.asarray(v, float), axis=1) for v in (a, b))
    x, y = (v - v.mean(1, keepdims=True) for v in (x, y))
    size = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return np.divide((x * y).sum(1), size, out=np.full(len(x), float(constant)), where=size > 0)


@checked
def bootstrap(
    *columns, statistic=None, axes: Count = 1, draws: Count = 2000, seed: Seed = 0
) -> Interval:
    """A statistic and its 95% percentile interval when images are drawn again.

    Args:
        *columns: arrays with the same first ``axes`` axes, resampled together: a pair stays a pair.
        statistic: from the resampled columns to one number; by default the mean of the one column,
            for which all draws are one product.
        axes: 1 draws the rows again, 2 both rows and columns, for example models and images. With
            fewer than twenty rows such an interval is far too narrow: see `crossed_interval`.

    Raises:
        ValueError: NaN (count such images and score them first), or columns of different lengths.

    >>> bootstrap(np.ones(10))
    Interval(value=1.0, low=1.0, high=1.0)
    """
    columns = [
        as_tensor("bootstrap", column, dtype=torch.float64).detach().cpu().numpy()
        for column in columns
    ]
    size = columns[0].shape[:axes]
    if any(c.shape[:axes] != size for c in columns) or 0 in size or len(size) < axes:
        shapes = [c.shape for c in columns]
        raise ValueError(f"bootstrap: columns need the same first {axes} axes, received {shapes}.")
    if any(not np.isfinite(c).all() for c in columns):
        raise ValueError("bootstrap: NaN. A failed image scores chance and is never dropped.")
    if statistic is None:
        [values] = columns
        values = values.reshape(*size, -1).mean(-1)
        rows, *others = _counts(size, draws, seed)
        drawn = rows @ values if axes == 1 else ((rows @ values) * others[0]).sum(1)
        value, drawn = values.mean(), drawn / values.size
    else:
        places = (np.ix_(*picks) for picks in zip(*_picks(size, draws, seed)))
        value, drawn = statistic(*columns), [statistic(*(c[at] for c in columns)) for at in places]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


@checked
def mean_intervals(values: Numbers, draws: Count = 2000, seed: Seed = 0) -> np.ndarray:
    """`bootstrap` of the mean over the last axis, for many rows on the same images at once:
    ``(..., n)`` -> mean, low, high ``(..., 3)``.

    Raises:
        ValueError: NaN or infinity, no image.

    >>> mean_intervals(np.ones((2, 10)))
    array([[1., 1., 1.],
           [1., 1., 1.]])
    """
    values = np.atleast_1d(np.asarray(values, float))
    n = values.shape[-1]
    means = values @ _counts((n,), draws, seed)[0].T / n  # (..., draws)
    return np.stack([values.mean(-1), *np.quantile(means, [0.025, 0.975], axis=-1)], -1)


@checked
def crossed_interval(values: numbers("m b"), level: within(above=0, below=1) = 0.95) -> Interval:
    """The mean of scores ``(m, b)``, one per model and bird, and where it lies for other models and
    other birds: both are taken as drawn from many.

    A score is a mean, an effect of its model, one of its bird, and a rest. The variance of the
    grand mean has a part from the models, whose mean square has m - 1 degrees of freedom and holds
    the rest, and one from the birds. Each part brings the quantile of Student's t for its own
    degrees of freedom, and the two quantiles are weighted by the parts (Cochran and Cox 1950). With
    normal effects, three models or more and no difference, 0 lies outside in at most 5% of the
    cases, whatever the models' share (two models: 6%); up to 4.3 standard errors to each side make
    it wide for three models.

    With one model the interval is about other birds and that model; with one bird, about other
    models. Scores that are all equal have an interval without width, which says nothing of scores
    unseen.

    Args:
        values: for the difference of two methods, their scores subtracted bird by bird.
        level: share of intervals that should hold the true mean.

    Raises:
        ValueError: a single score.

    >>> print(crossed_interval([[0.1, 0.3, 0.2, 0.4], [0.2, 0.2, 0.3, 0.5], [0.4, 0.5, 0.4, 0.6]]))
    0.342 [0.005, 0.678]
    """
    values = np.asarray(values, float)
    sizes = np.array(values.shape)
    if values.size < 2:
        raise ValueError("values: one score has no spread. Pass several birds or several models.")
    mean = values.mean()
    by_model, by_bird = values.mean(1) - mean, values.mean(0) - mean
    rest = values - mean - by_model[:, None] - by_bird
    # mean squares over the number of scores: what each of them adds to the variance of the mean
    free = np.maximum(sizes - 1, 1)
    of_model, of_bird = (by_model**2).sum() / sizes[0], (by_bird**2).sum() / sizes[1]
    of_rest = (rest**2).mean() / free.prod() if min(sizes) > 1 else 0.0
    parts = np.array([of_model / free[0], max(of_bird / free[1] - of_rest, 0.0)])
    half = parts @ stdtrit(free, (1 + level) / 2) / max(parts.sum() ** 0.5, 1e-300)
    # where models agree by chance: never narrower than the rest alone would be
    half = max(half, of_rest**0.5 * stdtrit(free.prod(), (1 + level) / 2))
    return Interval(float(mean), float(mean - half), float(mean + half))


def _picks(size: tuple[int, ...], draws: int, seed: int) -> list[np.ndarray]:
    """Which rows of each axis every draw takes ``(draws, m)``."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, m, (draws, m)) for m in size]


@lru_cache(8)
def _counts(size: tuple[int, ...], draws: int, seed: int) -> list[np.ndarray]:
    """How often every draw takes each row ``(draws, m)``: a mean needs no more."""
    return [
        np.stack([np.bincount(pick, minlength=m) for pick in picks]).astype(float)
        for m, picks in zip(size, _picks(size, draws, seed))
    ]


@checked
def exact_shapley(values: numbers("coalitions")) -> np.ndarray:
    """Shapley values ``(r,)`` from the values of all coalitions ``(2^r,)`` (Shapley 1953).

    Coalition ``s`` holds player ``i`` where bit ``i`` of ``s`` is set. The values sum to that of
    the coalition of all minus that of nobody.

    Raises:
        ValueError: a number of values that is no power of two.

    >>> exact_shapley([0, 1, 0, 2])  # the second player is worth something only beside the first
    array([1.5, 0.5])
    """
    values = np.asarray(values, float)
    r, number = len(values).bit_length() - 1, np.arange(len(values))
    if r < 1 or len(values) != 2**r:
        raise ValueError(f"exact_shapley: expected 2^r values, one a coalition, got {len(values)}.")
    present = (number[:, None] >> np.arange(r)) & 1 == 1  # (2^r, r)
    orders = np.array([r * comb(r - 1, size) for size in present.sum(1)])
    found = np.empty(r)
    for i in range(r):
        without = number[~present[:, i]]
        found[i] = ((values[without + 2**i] - values[without]) / orders[without]).sum()
    return found


@checked
def equal_error_rate(same: numbers("n"), different: numbers("m")) -> float:
    """The error rate at the threshold where as many pairs of one bird are rejected as pairs of two
    are accepted.

    Args:
        same: similarities of pairs that show one.
        different: similarities of pairs that show two.

    Raises:
        ValueError: one of the two kinds is missing.

    >>> round(equal_error_rate([0.9, 0.8, 0.4], [0.1, 0.2, 0.6]), 3)
    0.333
    """
    same, different = (np.sort(np.asarray(pairs)) for pairs in (same, different))
    thresholds = np.sort(np.concatenate([same, different]))
    rejected = np.searchsorted(same, thresholds) / len(same)
    accepted = 1 - np.searchsorted(different, thresholds) / len(different)
    at = np.abs(rejected - accepted).argmin()
    return float((rejected[at] + accepted[at]) / 2)


def accuracy_by_fold(scores, same, fold) -> np.ndarray:
    """Share of pairs told right in each fold ``(k,)``, at the threshold that tells most pairs of
    all other folds right: the protocol of LFW (Huang et al. 2007).

    Args:
        scores: similarity of each pair ``(n,)``; a pair is accepted from the threshold on.
        same: whether it shows one ``(n,)``.
        fold: its fold, from 0 to k - 1.

    Raises:
        ValueError: a single fold, which leaves no pairs for a threshold.

    >>> accuracy_by_fold([0.9, 0.2, 0.8, 0.7], [True, False, True, False], [0, 0, 1, 1])
    array([1. , 0.5])
    """
    scores, same, fold = np.asarray(scores, float), np.asarray(same, bool), np.asarray(fold)
    if len(folds := np.unique(fold)) < 2:
        raise ValueError("accuracy_by_fold: one fold leaves no other pairs to set a threshold on.")
    found = []
    for k in folds:
        mine, ends = fold == k, [-np.inf, np.inf]
        values, place = np.unique(scores[~mine], return_inverse=True)
        # +1 for a pair of one, -1 for a pair of two, that a threshold below it accepts
        gain = np.bincount(place, np.where(same[~mine], 1, -1))
        accepted = np.append(gain[::-1].cumsum()[::-1], 0)  # by threshold, from below all on
        edges = np.concatenate([ends[:1], (values[1:] + values[:-1]) / 2, ends[1:]])
        found.append(((scores >= edges[accepted.argmax()]) == same)[mine].mean())
    return np.array(found)
