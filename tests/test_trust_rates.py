"""Rates, intervals and paired tests: equal to closed forms and to scipy, and honest about what they
cover.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from ctrace.trust import cohens_h, falsification_rate, paired_test, wilson


@dataclass
class Verdict:
    verdict: str


def records(text):
    names = {"s": "survived", "f": "falsified", "i": "inconclusive"}
    return [Verdict(names[letter]) for letter in text]


def test_all_three_verdicts_stay_in_the_denominator():
    rate = falsification_rate(records("ssffffii"))
    assert (rate.count, rate.n, rate.rate, rate.survived, rate.falsified, rate.inconclusive) == (
        4,
        8,
        0.5,
        2,
        4,
        2,
    )
    assert falsification_rate(records("ssffffii"), "survived").rate == 0.25
    with pytest.raises(ValueError, match="no results"):
        falsification_rate([])
    with pytest.raises(ValueError, match="verdict"):
        falsification_rate(records("s"), "false")


def test_wilson_is_its_formula_and_never_empty():
    z, n = stats.norm.ppf(0.975), 30
    for k in (0, 7, 30):
        middle = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * math.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
        assert (
            np.allclose(wilson(k, n), (middle - half, middle + half), atol=1e-12)
            and wilson(k, n)[1] > wilson(k, n)[0]
        )
    for bad in ((0.5, 3), (4, 3), (0, 0)):
        with pytest.raises(ValueError, match="whole numbers"):
            wilson(*bad)


def test_wilson_covers_the_true_rate_as_often_as_it_says():
    draws = np.random.default_rng(0).binomial(40, 0.1, 2000)
    covered = np.mean([low <= 0.1 <= high for low, high in (wilson(int(k), 40) for k in draws)])
    assert 0.93 < covered < 0.99


def test_cohens_h_is_zero_for_equal_rates_and_pi_at_most():
    assert (
        cohens_h(0.3, 0.3) == 0 and math.isclose(cohens_h(1, 0), math.pi) and cohens_h(0.2, 0.5) < 0
    )
    assert math.isclose(cohens_h(0.5, 0.25), 2 * math.asin(math.sqrt(0.5)) - 2 * math.asin(0.5))


def test_the_paired_test_counts_only_images_where_the_methods_differ():
    test = paired_test(records("ssssssssff"), records("sffffffffs"))
    assert (test.only_first, test.only_second, test.n) == (7, 1, 10)
    assert math.isclose(test.p, 2 * stats.binom.cdf(1, 8, 0.5)) and math.isclose(
        test.difference, 0.6
    )
    assert (
        math.isclose(test.h, cohens_h(0.8, 0.2))
        and paired_test(records("si"), records("sf")).p == 1
    )
    with pytest.raises(ValueError, match="same images"):
        paired_test(records("s"), records("ss"))
