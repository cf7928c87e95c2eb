"""Moments: equal to numpy's on all values at once however they are streamed, and Welch's test equal
to scipy's.
"""

import numpy as np
import pytest
import torch
from scipy import stats

from ctrace.look.activations import Moments, welch_greater

K, C = 7, 6


@pytest.fixture
def data():
    """Channel 4 is constant, channel 5 is constant inside and outside class 3; class 0 has two
    values and class 6 most.
    """
    rng = np.random.default_rng(0)
    group = np.concatenate([[0, 0], np.repeat([1, 2, 3, 4, 5], 9), np.repeat(6, 60)])
    values = rng.normal(size=(len(group), C)) * (1 + group[:, None]) + 0.3 * (group == 2)[:, None]
    values[:, 4], values[:, 5] = 0.1, np.where(group == 3, 0.7, 0.1)
    order = rng.permutation(len(group))
    return torch.from_numpy(values[order]), torch.from_numpy(group[order])


def streamed(values, group, sizes):
    """In pieces of the given sizes, every piece holding only some of the groups."""
    total = Moments.zeros(K, C)
    for x, g in zip(values.split(sizes), group.split(sizes)):
        present, inverse = g.unique(return_inverse=True)
        piece = Moments.zeros(K, C)
        part = Moments.of_groups(x, inverse, len(present))
        for name in ("count", "mean", "m2"):
            getattr(piece, name)[present] = getattr(part, name)
        total = total.merge(piece)
    return total


@pytest.mark.parametrize("sizes", [107, 1, 10])
def test_streamed_moments_equal_those_of_all_values_at_once(data, sizes):
    values, group = data
    moments = streamed(values, group, sizes)
    for k in range(K):
        inside = values[group == k].numpy()
        assert moments.count[k] == len(inside)
        np.testing.assert_allclose(moments.mean[k], inside.mean(0), rtol=0, atol=1e-14)
        np.testing.assert_allclose(
            moments.variance()[k], inside.var(0, ddof=1), rtol=1e-12, atol=1e-14
        )
    total = moments.total()
    np.testing.assert_allclose(total.mean[0], values.mean(0), atol=1e-14)
    np.testing.assert_allclose(total.variance()[0], values.var(0), rtol=1e-12, atol=1e-14)


def test_a_large_mean_costs_no_digits_of_the_variance(data):
    values, group = data
    far = streamed(values + 1e6, group, 10).variance()
    np.testing.assert_allclose(far[:, :4], streamed(values, group, 10).variance()[:, :4], rtol=1e-8)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7])
def test_all_but_one_holds_the_values_of_all_other_groups(data, k):
    values, group = data[0], data[1] % k
    rest = Moments.of_groups(values, group, k).all_but_one()
    for i in range(k):
        outside = values[group != i].numpy()
        assert rest.count[i] == len(outside)
        if len(outside):
            np.testing.assert_allclose(rest.mean[i], outside.mean(0), atol=1e-14)
            np.testing.assert_allclose(
                rest.variance()[i], outside.var(0, ddof=1), rtol=1e-12, atol=1e-14
            )


def test_a_constant_channel_has_variance_exactly_zero_on_every_way(data):
    moments = streamed(*data, 10)
    for way in (moments, moments.total(), moments.all_but_one(), moments.merge(moments)):
        assert (way.m2[:, 4] == 0).all() and (way.mean[:, 4] == 0.1).all()
    assert moments.all_but_one().m2[3, 5] == 0, (
        "outside class 3 this channel is constant: a difference of totals would leave a rest"
    )


def test_welch_equals_scipy_to_1e_9_for_tiny_and_large_classes(data):
    values, group = data
    moments = streamed(values, group, 10)
    t, p = welch_greater(moments, moments.all_but_one())
    for k in range(K):
        inside, outside = values[group == k, :4].numpy(), values[group != k, :4].numpy()
        theirs = stats.ttest_ind(inside, outside, equal_var=False, alternative="greater")
        np.testing.assert_allclose(p[k, :4], theirs.pvalue, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(t[k, :4], theirs.statistic, rtol=1e-9)
        pooled = stats.ttest_ind(inside, outside, alternative="greater").pvalue
        assert k != 6 or np.abs(p[k, :4].numpy() - pooled).max() > 1e-3, (
            "the pooled test must be another one, or this compares nothing"
        )


def test_welch_equals_scipy_far_out_in_the_tail():
    rng = np.random.default_rng(1)
    values = torch.from_numpy(
        np.concatenate([rng.normal(size=(40, 1)) + 8, rng.normal(size=(400, 1))])
    )
    group = torch.tensor([0] * 40 + [1] * 400)
    moments = Moments.of_groups(values, group, 2)
    _, p = welch_greater(moments, moments.all_but_one())
    theirs = stats.ttest_ind(
        values[:40, 0].numpy(), values[40:, 0].numpy(), equal_var=False, alternative="greater"
    ).pvalue
    assert theirs < 1e-30 and abs(p[0, 0].item() / theirs - 1) < 1e-6


def test_a_constant_channel_is_never_significant_and_two_different_constants_are(data):
    moments = streamed(*data, 10)
    t, p = welch_greater(moments, moments.all_but_one())
    assert (p[:, 4] == 1).all() and (t[:, 4] == 0).all()
    assert p[3, 5] == 0 and t[3, 5] == torch.inf


def test_fewer_than_two_values_have_no_test():
    moments = Moments.of_groups(torch.randn(5, 3), torch.tensor([0, 1, 1, 1, 1]), 2)
    t, p = welch_greater(moments, moments.all_but_one())
    assert p.isnan().all() and t.isnan().all()
