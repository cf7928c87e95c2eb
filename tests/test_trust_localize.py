"""Localisation scores and controls: planted maps get what they deserve, and chance is what it
should be.
"""

import numpy as np
import pytest
import torch
from scipy import stats

from ctrace.trust.localize import (
    controls,
    part_correlation,
    planted_lie,
    planted_truth,
    pointing_game,
    positive_mass_inside,
)


def masks(b=4, p=5, side=40):
    """Parts with soft borders that touch each other, away from one corner."""
    out = torch.zeros(b, p, side, side)
    for i in range(b):
        for j in range(p):
            left = 2 + 5 * j + i % 2
            out[i, j, 4 : 8 + 2 * ((j + i) % 3), left : left + 5] = 1
            out[i, j, 4:8, left + 5] = 0.4
        out[i] = out[i] / out[i].sum(0).clamp_min(1)
    return out


def importance(b=4, p=5):
    return np.random.default_rng(0).normal(size=(b, p)) + 0.3


def noise(b, seed=0):
    return torch.rand(b, 40, 40, generator=torch.Generator().manual_seed(seed))


def test_the_planted_truth_sums_to_the_importance_of_every_part_and_scores_one():
    truth = planted_truth(masks(), importance())
    assert np.allclose(
        torch.einsum("bhw,bphw->bp", truth, masks().double()), importance(), atol=1e-10
    )
    assert (truth[masks().sum(1) == 0] == 0).all()
    score = part_correlation(truth, masks(), importance())
    assert (
        torch.allclose(score.values, torch.ones(4, dtype=torch.float64)) and not score.failed.any()
    )
    with pytest.raises(ValueError, match="no pixel"):
        planted_truth(masks() * torch.tensor([1, 1, 1, 1, 0.0])[:, None, None], importance())


def test_the_planted_lie_points_beside_the_parts_and_orders_them_backwards():
    lie, parts = planted_lie(masks(), importance()), masks().sum(1)
    assert torch.allclose(
        part_correlation(lie, masks(), importance()).values, -torch.ones(4, dtype=torch.float64)
    )
    assert (
        pointing_game(lie, parts).mean == 0
        and positive_mass_inside(lie, parts).mean < 0.01
        and lie.amax() == pytest.approx(1, abs=0.01)
    )


def test_pointing_hits_ties_by_their_share_and_a_constant_map_scores_the_area_and_is_counted():
    maps, mask = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    mask[:, :2] = 1
    maps[0, 0, 0] = 1  # a hit
    maps[1, 0, 0] = maps[1, 3, 3] = maps[1, 3, 2] = 1  # one of three
    score = pointing_game(maps, mask)
    assert torch.allclose(
        score.values, torch.tensor([1, 1 / 3, 0.5], dtype=torch.float64)
    ) and score.failed.tolist() == [0, 0, 1]
    assert score.mean == pytest.approx((1 + 1 / 3 + 0.5) / 3)


def test_a_random_map_points_and_weighs_as_often_as_the_area_says():
    area = float(masks().sum(1).mean())
    assert (
        abs(
            pointing_game(noise(2000), masks().sum(1).repeat(500, 1, 1)).mean
            - (masks().sum(1) > 0.5).double().mean()
        )
        < 0.02
    )
    assert positive_mass_inside(noise(400), masks().sum(1).repeat(100, 1, 1)).mean == pytest.approx(
        area, abs=0.005
    )


def test_mass_counts_positive_values_and_a_map_without_any_scores_the_area():
    maps, mask = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    mask[:, 0] = 1
    maps[0, 0, 0], maps[0, 3, 3], maps[0, 2, 2] = 3, 1, -5
    maps[1, 0, 0] = -1
    score = positive_mass_inside(maps, mask)
    assert torch.allclose(
        score.values, torch.tensor([0.75, 0.25, 0.25], dtype=torch.float64)
    ) and score.failed.tolist() == [0, 1, 1]


def test_part_correlation_equals_scipy_on_summed_maps():
    maps, truth = noise(4, 3), importance()
    for i, value in enumerate(part_correlation(maps, masks(), truth).values):
        sums = [float((maps[i].double() * masks()[i, j].double()).sum()) for j in range(5)]
        assert value == pytest.approx(stats.spearmanr(sums, truth[i]).statistic)


def test_maps_without_an_order_score_zero_the_mean_of_chance_and_are_counted():
    shuffled = np.mean(
        [
            stats.spearmanr(np.random.default_rng(s).permutation(5), range(5)).statistic
            for s in range(2000)
        ]
    )
    assert abs(shuffled) < 0.03
    maps = noise(4)
    maps[0], maps[1] = 1.0, 0.0
    truth = importance()
    truth[2] = 0.7
    score = part_correlation(maps, masks(), truth)
    assert (
        score.failed.tolist() == [True, True, True, False]
        and (score.values[:3] == 0).all()
        and score.values[3] != 0
    )


def test_controls_ignore_the_model_and_are_what_they_are_called():
    x = noise(4)[:, None].expand(-1, 3, -1, -1).clone()
    x[0] = 0.0
    x[0, :, :, 20:] = 1.0
    maps = controls(x, masks())
    assert set(maps) == {"random", "smooth random", "edges", "centre", "area"} and all(
        m.shape == (4, 40, 40) for m in maps.values()
    )
    assert set(maps["edges"][0].amax(0).nonzero()[:, 0].tolist()) == {19, 20}
    assert maps["centre"][0].argmax() in (19 * 40 + 19, 19 * 40 + 20, 20 * 40 + 19, 20 * 40 + 20)
    assert torch.equal(maps["area"], masks().sum(1)) and torch.equal(
        controls(x, masks().sum(1))["area"], masks().sum(1)
    )
    assert torch.equal(controls(x, masks())["random"], maps["random"]) and not torch.equal(
        maps["random"][0], maps["random"][1]
    )
    rough = lambda m: float((m[:, 1:] - m[:, :-1]).std() / m.std())
    assert rough(maps["smooth random"]) < 0.4 < rough(maps["random"])


def test_shapes_and_nan_are_refused():
    for call in (
        lambda: pointing_game(noise(2), noise(3)),
        lambda: positive_mass_inside(noise(1) * torch.nan, noise(1)),
        lambda: part_correlation(noise(4), masks(), importance(3)),
        lambda: part_correlation(noise(4), masks(p=2), importance(p=2)),
        lambda: part_correlation(noise(4), masks().sum(1), importance()),
    ):
        with pytest.raises(ValueError, match="expected|NaN"):
            call()
