"""Rank correlation, intervals, Shapley values and the equal error rate: equal to scipy, to closed
forms and to their definitions, and honest about what they cover.
"""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats

from ctrace.stats import (
    accuracy_by_fold,
    bootstrap,
    crossed_interval,
    equal_error_rate,
    exact_shapley,
    mean_intervals,
    spearman,
)


def test_the_bootstrap_of_a_mean_has_the_known_width_and_covers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    interval = bootstrap(x)
    assert (
        math.isclose(interval.value, x.mean())
        and abs((interval.high - interval.low) / (2 * 1.96 * x.std() / 20) - 1) < 0.08
    )
    intervals = [bootstrap(rng.normal(size=40), draws=200, seed=s) for s in range(200)]
    assert 0.88 < np.mean([i.low <= 0 <= i.high for i in intervals]) < 0.98


def test_pairs_stay_pairs_and_models_are_drawn_again_too():
    x = np.arange(30.0)
    correlation = lambda a, b: spearman(a[None], b[None])[0]
    assert bootstrap(x, 2 * x, statistic=correlation).low == pytest.approx(1)
    scores = np.array([0.0, 1.0, 2.0])[:, None] + np.zeros(
        50
    )  # three models that differ, images that do not
    both, images_only = bootstrap(scores, axes=2), bootstrap(scores.T)
    assert both.high - both.low > 1 and images_only.high - images_only.low == 0
    assert str(bootstrap(np.ones(3))) == "1.000 [1.000, 1.000]"


def mean_squares(d):
    """Textbook sums of squares of a two-way layout ``(m, b)``, written out."""
    m, b = d.shape
    grand = d.sum() / (m * b)
    models = sum(b * (d[i].mean() - grand) ** 2 for i in range(m)) / (m - 1)
    birds = sum(m * (d[:, j].mean() - grand) ** 2 for j in range(b)) / (b - 1)
    rest = sum(
        (d[i, j] - d[i].mean() - d[:, j].mean() + grand) ** 2 for i in range(m) for j in range(b)
    ) / ((m - 1) * (b - 1))
    return models, birds, rest


def test_the_crossed_interval_is_the_rule_of_cochran_and_cox_on_textbook_mean_squares():
    d = np.random.default_rng(0).normal(size=(4, 30))
    d += np.array([0, 0.5, 1, 3])[:, None] + np.linspace(0, 2, 30)
    models, birds, rest = (square / d.size for square in mean_squares(d))
    parts = models, birds - rest
    weighted = parts[0] * stats.t.ppf(0.95, 3) + parts[1] * stats.t.ppf(0.95, 29)
    found = crossed_interval(d, level=0.9)
    assert found.value == pytest.approx(d.mean())
    assert found.high - found.value == pytest.approx(weighted / sum(parts) ** 0.5)
    assert found.value - found.low == pytest.approx(found.high - found.value)


def test_one_model_or_one_bird_leaves_students_interval():
    d = np.random.default_rng(1).normal(size=25)
    low, high = stats.t.interval(0.95, 24, d.mean(), stats.sem(d))
    for values in (d[None], d[:, None]):
        assert np.allclose(
            [crossed_interval(values).low, crossed_interval(values).high], [low, high]
        )
    with pytest.raises(ValueError, match="one score has no spread"):
        crossed_interval([[1.0]])


def test_models_that_agree_by_chance_do_not_make_a_difference_certain():
    d = np.array([[1.0, 0, 0, 1], [0, 1, 1, 0]])  # equal means of models, equal means of birds
    found = crossed_interval(d)
    assert found.low < 0 < found.value < found.high


@pytest.mark.parametrize("models", [2, 3, 8])
@pytest.mark.parametrize("spread", [0.0, 0.03, 0.3])
def test_at_most_one_difference_in_twenty_is_called_real_where_there_is_none(models, spread):
    """The percentile bootstrap, on the same numbers, calls far more real."""
    rng, birds, turns = np.random.default_rng(models), 40, 1500
    wrong = {"crossed": 0, "bootstrap": 0}
    for turn in range(turns):
        d = rng.normal(size=(models, birds)) * 0.1 + rng.normal(size=birds) * 0.05
        d += spread * rng.normal(size=(models, 1))
        found = {"crossed": crossed_interval(d)}
        if turn < 200:
            found["bootstrap"] = bootstrap(d, axes=2, draws=300)
        for name, interval in found.items():
            wrong[name] += not interval.low <= 0 <= interval.high
    share, error = wrong["crossed"] / turns, (0.05 * 0.95 / turns) ** 0.5
    assert share <= 0.05 + 3 * error
    assert spread < 0.3 or share > 0.05 - 3 * error
    assert spread < 0.3 or models > 3 or wrong["bootstrap"] / 200 > 0.1


def test_nan_is_refused_and_never_dropped():
    with pytest.raises(ValueError, match="never dropped"):
        bootstrap([1.0, np.nan])
    with pytest.raises(ValueError, match="same first"):
        bootstrap([1.0, 2.0], [1.0])


def test_rank_correlation_equals_scipy_with_ties_and_is_nan_for_a_constant_row():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (4, 20)), rng.normal(size=(4, 20))
    assert np.allclose(
        spearman(a, b), [stats.spearmanr(*row).statistic for row in zip(a, b)], atol=1e-12
    )
    assert np.isnan(spearman(np.ones((1, 5)), b[:1, :5])).all()
    assert spearman(np.ones((1, 5)), b[:1, :5], constant=0.0).tolist() == [0]


def test_rank_correlation_gives_ties_their_mean_rank():
    found = spearman([[1, 2, 2, 3], [1, 2, 3, 4]], [[1, 2, 2, 3], [4, 3, 2, 1]])
    assert found.tolist() == [1, -1]
    assert spearman([[1, 2, 2, 3]], [[1, 2, 3, 4]])[0] == pytest.approx(0.9486833)


def test_intervals_of_many_rows_are_those_of_each_row_alone():
    values = np.random.default_rng(3).normal(size=(2, 3, 40))
    found = mean_intervals(values)
    for i in np.ndindex(2, 3):
        alone = bootstrap(values[i])
        assert np.allclose(found[i], (alone.value, alone.low, alone.high), atol=1e-12)
    values[0, 1, 5] = np.nan
    for bad, wanted in ((values, "finite numbers"), (np.ones((2, 0)), "at least one real number")):
        with pytest.raises(ValueError, match=f"values: expected {wanted}"):
            mean_intervals(bad)


def test_a_mean_is_drawn_as_any_other_statistic_is():
    values = np.random.default_rng(4).normal(size=(3, 50))
    for axes in (1, 2):
        ours, literal = (
            bootstrap(values, statistic=s, axes=axes, draws=300) for s in (None, np.mean)
        )
        assert np.allclose(
            [ours.value, ours.low, ours.high], [literal.value, literal.low, literal.high]
        )


def test_shapley_values_are_the_average_over_all_orders_and_sum_to_the_whole():
    values, r = np.random.default_rng(5).normal(size=16), 4
    slow = np.zeros(r)
    for order in permutations(range(r)):
        present = 0
        for i in order:
            slow[i] += (values[present + 2**i] - values[present]) / math.factorial(r)
            present += 2**i
    assert np.allclose(exact_shapley(values), slow, atol=1e-14)
    assert math.isclose(slow.sum(), values[-1] - values[0])
    with pytest.raises(ValueError, match="expected 2\\^r values"):
        exact_shapley(values[:15])


def test_equal_error_rate_is_zero_for_separated_scores_and_half_for_equal_ones():
    scores = torch.linspace(0, 1, 101)
    assert equal_error_rate(scores + 2, scores) == 0
    assert equal_error_rate(scores, scores) == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match="expected at least one real number"):
        equal_error_rate(scores, scores[:0])


def test_accuracy_by_fold_is_the_best_threshold_of_the_other_folds_tried_one_by_one():
    rng = np.random.default_rng(0)
    for n, ties in ((60, 2), (60, 10), (12, 1)):
        scores, fold = rng.normal(size=n).round(ties), np.arange(n) % 3
        same = rng.random(n) < 1 / (1 + np.exp(-2 * scores))
        expected = []
        for k in range(3):
            value, one = scores[fold != k], same[fold != k]
            between = np.unique(value)
            tried = [-np.inf, *((between[1:] + between[:-1]) / 2), np.inf]
            right = [((value >= t) == one).mean() for t in tried]
            best = tried[int(np.argmax(right))]
            expected.append(((scores >= best) == same)[fold == k].mean())
        np.testing.assert_allclose(accuracy_by_fold(scores, same, fold), expected)
    with pytest.raises(ValueError, match="one fold leaves no other pairs"):
        accuracy_by_fold([0.1, 0.2], [True, False], [0, 0])
