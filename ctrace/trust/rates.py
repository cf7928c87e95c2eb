"""From verdicts on images to what may be said of a method: rates, intervals, and paired tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import asin, sqrt

from scipy.stats import binomtest

__all__ = ["PairedTest", "Rate", "cohens_h", "falsification_rate", "paired_test", "wilson"]

VERDICTS = ("survived", "falsified", "inconclusive")


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a verdict fell, out of **all** images, with a Wilson interval.

    Attributes:
        verdict: which.
        count, n: images with that verdict, and all of them, whatever their verdict.
        rate, low, high: their ratio and its interval.
        survived, falsified, inconclusive: the three counts, which sum to ``n``.
    """

    verdict: str
    count: int
    n: int
    rate: float
    low: float
    high: float
    survived: int
    falsified: int
    inconclusive: int


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two methods on the same images.

    Attributes:
        only_first, only_second: images where one has the verdict and the other has not. The others
            say nothing about a difference.
        n: all images.
        p: exact, two-sided (McNemar).
        difference: first rate minus second.
        h: Cohen's effect size of that difference.
    """

    only_first: int
    only_second: int
    n: int
    p: float
    difference: float
    h: float


def falsification_rate(
    results: Sequence, verdict: str = "falsified", confidence: float = 0.95
) -> Rate:
    """The share of images on which a map was falsified, or got another verdict; inconclusive ones
    stay in the denominator.

    Args:
        results: `Falsification` records, one per image.
        verdict: ``"survived"``, ``"falsified"`` or ``"inconclusive"``.

    Raises:
        ValueError: no results, or a verdict that does not exist.
    """
    got = _verdicts(results)
    _check_verdict(verdict)
    counts = {name: got.count(name) for name in VERDICTS}
    low, high = wilson(counts[verdict], len(got), confidence)
    return Rate(verdict, counts[verdict], len(got), counts[verdict] / len(got), low, high, **counts)


def wilson(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for a share of independent images (Wilson 1927); never empty, never outside [0, 1].

    The unit is the image. Masked copies of one image are not independent and may not be counted
    here.

    >>> low, high = wilson(0, 20)
    >>> low, round(high, 3)
    (0.0, 0.161)
    """
    if not (0 <= count <= n and n > 0 and count == int(count) and n == int(n)):
        raise ValueError(
            f"wilson: expected whole numbers 0 <= count <= n with n > 0, received {count} of {n}."
        )
    interval = binomtest(int(count), int(n)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def cohens_h(first: float, second: float) -> float:
    """``2 asin(sqrt(first)) - 2 asin(sqrt(second))``: 0.2 is called small, 0.5 medium, 0.8 large
    (Cohen 1988).
    """
    return 2 * asin(sqrt(first)) - 2 * asin(sqrt(second))


def paired_test(first: Sequence, second: Sequence, verdict: str = "survived") -> PairedTest:
    """Do two methods differ in how often they get a verdict, on the same images in the same order?

    Raises:
        ValueError: different numbers of images.
    """
    _check_verdict(verdict)
    a, b = ([v == verdict for v in _verdicts(results)] for results in (first, second))
    if len(a) != len(b):
        raise ValueError(
            f"paired_test: expected the same images for both, received {len(a)} and {len(b)} results."
        )
    only_first, only_second = (sum(x and not y for x, y in zip(*pair)) for pair in ((a, b), (b, a)))
    differ = only_first + only_second
    p = float(binomtest(only_first, differ).pvalue) if differ else 1.0
    rates = sum(a) / len(a), sum(b) / len(b)
    return PairedTest(only_first, only_second, len(a), p, rates[0] - rates[1], cohens_h(*rates))


def _verdicts(results: Sequence) -> list[str]:
    got = [result.verdict for result in results]
    if not got:
        raise ValueError("no results: a rate over no images is not 0, it does not exist.")
    return got


def _check_verdict(verdict: str) -> None:
    if verdict not in VERDICTS:
        raise ValueError(f"verdict: expected one of {', '.join(VERDICTS)}, received {verdict!r}.")
