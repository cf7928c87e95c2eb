"""Rank correlation, the one measure of agreement that every chapter uses."""

import numpy as np
from scipy.stats import rankdata

__all__ = ["spearman"]


def spearman(a, b) -> np.ndarray:
    """Rank correlation row by row ``(b,)`` of two arrays ``(b, n)``; NaN where a row is constant,
    for the caller to count.

    >>> spearman([[1, 2, 3], [5, 5, 5]], [[10, 30, 20], [1, 2, 3]])
    array([0.5, nan])
    """
    x, y = (rankdata(np.asarray(v, float), axis=1) for v in (a, b))
    x, y = (v - v.mean(1, keepdims=True) for v in (x, y))
    size = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return np.divide((x * y).sum(1), size, out=np.full(len(x), np.nan), where=size > 0)
