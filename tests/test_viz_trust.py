"""Figures of verdicts: they draw what they are given, refuse what they cannot, and change no
setting.
"""

import matplotlib
import numpy as np
import pytest

from ctrace import viz
from ctrace.viz.trust import own_scale

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def settings_stay():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def test_the_null_shows_every_copy_and_both_regions():
    figure = viz.show_null(
        {"a": (RNG.normal(size=99), 3.0, -1.0), "b": (RNG.normal(size=99), 0.0, 0.1)}, "drop"
    )
    assert [sum(bar.get_height() for bar in ax.patches) for ax in figure.axes] == [99, 99]
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == [3.0, -1.0]


def test_rates_are_at_their_values_with_their_intervals_and_a_method_may_miss_a_test():
    figure = viz.show_rates(
        {"one": {"x": (0.5, 0.2, 0.8), "y": (0.1, 0.0, 0.3)}, "two": {"y": (0.9, 0.7, 1.0)}},
        "share",
        0.05,
        tinted=["y"],
    )
    [ax] = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["x", "y"]
    assert sorted(float(x) for container in ax.containers for x in container[0].get_xdata()) == [
        0.1,
        0.5,
        0.9,
    ]
    ends = np.concatenate(
        [segment[:, 0] for container in ax.containers for segment in container[2][0].get_segments()]
    )
    assert np.allclose(sorted(ends), [0, 0.2, 0.3, 0.7, 0.8, 1.0])


def test_maps_are_scaled_by_themselves_with_zero_at_zero_and_a_zero_map_says_so():
    values = RNG.normal(size=(20, 20))
    values[0, 0] = 1e6
    assert np.allclose(own_scale(values), own_scale(1000 * values)) and own_scale(values).max() == 1
    assert np.abs(own_scale(values)[1:]).mean() > 0.1  # one outlier does not blank the rest
    assert not own_scale(np.zeros((3, 3))).any() and np.array_equal(
        np.sign(own_scale(values)), np.sign(values)
    )
    figure = viz.show_method_maps(
        np.ones((20, 20, 3)), {"a": values, "nothing": np.zeros((20, 20))}, values > 0
    )
    assert [t.get_text() for t in figure.axes[1].texts] == ["no evidence"]


def test_fading_has_a_row_per_method_and_a_column_per_model():
    figure = viz.show_fading(
        {"one": RNG.normal(size=(3, 8, 8)), "two": RNG.normal(size=(3, 8, 8))}, ["x", "y", "z"]
    )
    assert [ax.get_title() for ax in figure.axes] == ["x", "y", "z", "", "", ""] and len(
        figure.axes[4].images
    ) == 1


def test_a_cascade_starts_at_one_and_shows_the_mean_over_images():
    values = RNG.uniform(size=(5, 2))
    figure = viz.show_cascade(["fc", "conv"], {"kind": {"method": values}})
    line = next(line for line in figure.axes[0].lines if line.get_label() == "method")
    assert np.allclose(line.get_ydata(), [1, *values.mean(0)])


def test_masking_curves_keep_their_values():
    figure = viz.show_masking(
        (0, 0.5, 1),
        {"deletion": {"a": [1, 0.5, 0]}, "insertion": {"a": [0, 0.2, 1]}},
        "probability",
    )
    assert [list(ax.lines[0].get_ydata()) for ax in figure.axes] == [[1, 0.5, 0], [0, 0.2, 1]]


def test_strata_show_their_means_beside_all_pairs():
    x, y = np.arange(12.0), np.tile([0.0, 1.0], 6)
    figure = viz.show_strata(x, y, [4, 8], "x", "y", ["means", "pairs"])
    means = figure.axes[0].lines[0]
    assert np.allclose(means.get_xdata(), [1.5, 5.5, 9.5]) and np.allclose(means.get_ydata(), 0.5)
    assert len(figure.axes[1].collections[0].get_offsets()) == 12
