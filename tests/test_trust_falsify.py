"""Falsification: equal to a literal loop, right on maps whose quality is known, calibrated on maps
that know nothing.
"""

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from ctrace.check import fingerprint
from ctrace.trust.falsify import (
    Falsification,
    angle_between,
    extremes,
    falsify,
    inside_regions,
    shift_places,
    shifted,
)
from ctrace.trust.hide import filled

SIZE, PATCH = 24, (slice(6, 13), slice(9, 16))  # 49 of 576 pixels


def rate(results, verdict="survived"):
    """Share of all results that have a verdict."""
    return sum(result.verdict == verdict for result in results) / len(results)


class Patch(nn.Module):
    """Four logits that depend on the pixels of one patch and on nothing else."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 49, 4, dtype=torch.float64)
        self.head.weight.data = (
            torch.randn(
                4, 147, generator=torch.Generator().manual_seed(0), dtype=torch.float64
            ).abs()
            / 12
        )
        self.head.weight.data[1:] *= 0.2

    def forward(self, x):
        return self.head(x[(..., *PATCH)].flatten(1))


@pytest.fixture
def model():
    return Patch().eval()


def images(b=1, seed=0):
    """Noise, and where the model looks a bright spot."""
    x = (
        torch.rand(
            b, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        / 4
    )
    x[(..., *PATCH)] += 1
    return x


def noise(b=1, seed=1):
    return torch.rand(
        b, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def toys():
    """Five maps: where the model looks or not, times how the values are spread."""
    seen = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    seen[PATCH] = 1
    u = noise(seed=5)[0]
    return {
        "perfect": (seen + 0.01 * u, "survived"),
        "true, heavy-tailed": (seen * (1 + u) ** 20 + 1e-3 * u, "survived"),
        "random, heavy-tailed": (noise(seed=6)[0] ** 20, "falsified"),
        "random, left-skewed": (1 - noise(seed=7)[0] ** 20, "falsified"),
        "inverted": (-seen + 0.01 * u, "falsified"),
    }


def test_the_verdict_equals_a_literal_loop(model):
    x, scores, pixels = images(), noise()[0], round(0.05 * SIZE**2)
    got = falsify(scores, x, model, target=1, fill="zero", seed=3)
    order = sorted(
        ((scores[y, z].item(), y, z) for y in range(SIZE) for z in range(SIZE)), reverse=True
    )

    def centred(image):
        z = model(image)[0].detach()
        return float(z[1] - z.mean())

    def drop(places):
        hidden = x.clone()
        for y, z in places:
            hidden[0, :, y % SIZE, z % SIZE] = 0
        return centred(x) - centred(hidden)

    top, bottom = (
        [(y, z) for _, y, z in order[part]] for part in (slice(pixels), slice(-pixels, None))
    )
    null = [
        drop([(y + dy, z + dx) for y, z in top]) for dy, dx in shift_places((SIZE, SIZE), 99, 2, 3)
    ]
    assert abs(got.d_high - drop(top)) < 1e-12 and abs(got.d_low - drop(bottom)) < 1e-12
    assert max(abs(a - b) for a, b in zip(got.null, null)) < 1e-12 and len(got.null) == 99
    rounding = 1e-4 * float(model(x)[0].detach().std())
    assert got.p == (1 + sum(value >= drop(top) - rounding for value in null)) / 100
    assert (
        got.margin == got.d_high - got.d_low
        and got.area == pixels / SIZE**2
        and got.p_inside is None
    )


def test_a_copy_that_moves_the_answer_as_much_counts_against_the_map(model):
    corner = torch.zeros(SIZE, SIZE)
    corner[:5, :5] = 1 + torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    result = falsify(corner, images(), model, target=0, fill="mean", area=25 / 576)
    assert abs(result.d_high) < 1e-12 and result.p == 1 and result.verdict == "falsified"


def test_a_top_that_beats_its_copies_is_still_falsified_when_the_bottom_does_more(model):
    scores = 0.1 * noise(seed=9)[0]
    scores[6:9, 9:14] += 1
    scores[9:13, 9:16] -= 1  # the larger part of what the model sees
    result = falsify(scores, images(), model, target=0, fill="zero", min_shift=6)
    assert (
        result.p <= 0.05
        and result.margin < 0
        and result.verdict == "falsified"
        and "bottom" in result.reason
    )


@pytest.mark.parametrize("fill", ["zero", "mean", "blur", "noise"])
@pytest.mark.parametrize("name", toys())
def test_five_maps_of_known_quality_get_the_right_verdict_with_every_fill(model, name, fill):
    scores, right = toys()[name]
    assert falsify(scores, images(), model, target=0, fill=fill).verdict == right


def test_no_increasing_function_of_the_map_changes_a_verdict(model):
    scores = noise(seed=8)[0] + toys()["perfect"][0]
    squashed, stretched = 1 - (1 - scores / 3) ** 9, scores**9
    assert (
        falsify(scores, images(), model, 0)
        == falsify(squashed, images(), model, 0)
        == falsify(stretched, images(), model, 0)
    )


@pytest.mark.parametrize("smooth", [0, 2])
def test_random_maps_survive_no_more_often_than_the_level_says(model, smooth):
    maps = torch.from_numpy(
        gaussian_filter(noise(500, seed=11).numpy(), (0, smooth, smooth), mode="wrap")
    )
    results = falsify(maps, images(500, seed=2), model, target=0, fill="mean")
    assert 0 <= rate(results) <= 0.08 and rate(results, "inconclusive") == 0


def test_the_true_place_always_survives_also_against_its_object(model):
    scores = toys()["perfect"][0].expand(50, -1, -1)
    object_ = torch.zeros(50, SIZE, SIZE)
    object_[:, 3:20, 3:21] = 1
    results = falsify(scores, images(50, seed=3), model, target=0, fill="mean", inside=object_)
    assert rate(results) == 1 and all(r.p_inside <= 0.05 for r in results)


def test_a_map_of_the_object_beats_the_background_and_not_the_object(model):
    object_ = torch.zeros(60, SIZE, SIZE, dtype=torch.float64)
    object_[:, 4:16, 7:19] = 1
    scores = object_ + 0.5 * noise(60, seed=4)  # knows the outline, and nothing inside
    outside, both = (
        falsify(scores, images(60), model, 0, fill="mean", min_shift=6, inside=mask)
        for mask in (None, object_)
    )
    assert rate(outside) > 0.7
    assert rate(both) < 0.15 and "inside the object" in both[0].reason


def test_inside_regions_have_one_size_and_stay_in_the_object():
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[4:18, 4:17] = True
    mask[4:8, 4:8] = False
    for pixels, expected in ((20, 20), (5000, int(mask.sum()) // 2)):
        regions = inside_regions(noise()[0], mask, pixels, 30, 0)
        assert (
            regions.shape == (31, SIZE, SIZE)
            and (regions.sum((1, 2)) == expected).all()
            and not (regions & ~mask).any()
        )
    assert torch.equal(
        regions[0], (torch.where(mask, noise()[0], -1) >= noise()[0][mask].sort().values[-expected])
    )


def test_regions_have_equal_area_and_equal_values_are_taken_at_random():
    constant = torch.zeros(SIZE, SIZE)
    high, low = extremes(constant, 40, 0)
    assert high.sum() == low.sum() == 40 and not (high & low).any() and high.any(1).sum() > 10
    assert torch.equal(extremes(constant, 40, 0), extremes(constant, 40, 0)) and not torch.equal(
        high, extremes(constant, 40, 1)[0]
    )


def test_shifts_differ_and_move_far_enough_around_the_edges():
    places = shift_places((10, 12), 40, 3, 0)
    assert len({tuple(p) for p in places.tolist()}) == 40
    assert all(math.hypot(min(y, 10 - y), min(x, 12 - x)) >= 3 for y, x in places)
    one = torch.zeros(10, 12)
    one[9, 11] = 1
    assert torch.equal(shifted(one, [(2, 3)])[0].nonzero(), torch.tensor([[1, 2]]))


def test_a_batch_equals_one_by_one_in_every_field(model):
    x, maps, inside = images(3), noise(3), torch.zeros(3, SIZE, SIZE)
    inside[:, 2:20, 3:20] = 1
    together = falsify(maps, x, model, [0, 1, 2], fill="noise", inside=inside)
    alone = [falsify(maps[i], x[i], model, i, fill="noise", inside=inside[i]) for i in range(3)]
    assert together == alone and isinstance(alone[0], Falsification)


def test_a_misspelt_field_is_an_error_and_a_record_cannot_be_changed(model):
    result = falsify(noise()[0], images(), model)
    with pytest.raises(AttributeError):
        _ = result.falsified
    with pytest.raises(AttributeError):
        result.verdict = "survived"


def test_constant_maps_and_models_that_do_not_react_are_inconclusive_and_counted(model):
    deaf_model = nn.Sequential(nn.AvgPool2d(SIZE), nn.Flatten(), nn.Linear(3, 3).double()).eval()
    deaf_model[2].weight.data.zero_()
    flat = falsify(torch.ones(SIZE, SIZE), images(), model)
    deaf = falsify(noise()[0], images(), deaf_model, 0)
    assert (
        flat.verdict == deaf.verdict == "inconclusive"
        and "constant" in flat.reason
        and "not move" in deaf.reason
    )


def test_a_distance_can_be_an_angle_a_logit_or_a_function(model):
    scores, reference = toys()["perfect"][0], torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)

    def likeness_lost(whole, hidden):
        return torch.cosine_similarity(whole, reference) - torch.cosine_similarity(
            hidden, reference
        )

    names = [
        falsify(scores, images(), model, **kind).distance
        for kind in ({}, {"target": 2}, {"distance": likeness_lost})
    ]
    assert names == ["angle", "logit", "likeness_lost"]


def test_small_angles_are_exact_where_the_arc_cosine_is_not():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1e-5]])
    assert (
        abs(float(angle_between(a, b)) - 1e-5) < 1e-11
        and float(torch.acos((a * b).sum() / b.norm())) < 1e-8
    )
    assert float(angle_between(a, a)) == 0


def test_every_fill_is_what_its_name_says():
    x = noise(6).unflatten(0, (2, 3))
    assert not filled(x, "zero").any() and torch.allclose(filled(x, "mean")[1, 2], x[1, 2].mean())
    assert filled(x, "blur").std() < 0.5 * x.std() and torch.allclose(
        filled(x, "blur").mean(), x.mean(), atol=0.02
    )
    assert abs(filled(x, "noise").std() / x.std() - 1) < 0.1 and torch.equal(
        filled(x, "noise")[1:], filled(x[1:], "noise")
    )
    assert torch.equal(filled(x, x.flip(0)), x.flip(0))


def test_the_model_and_the_random_state_are_left_as_found(model):
    before, state = fingerprint(model), torch.random.get_rng_state()
    falsify(noise()[0], images(), model, fill="noise")
    assert fingerprint(model) == before and torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"attribution": torch.zeros(3, SIZE, SIZE)}, "attribution"),
        ({"attribution": torch.full((SIZE, SIZE), torch.nan)}, "NaN"),
        ({"area": 0.6}, "overlap"),
        ({"copies": 10}, "more copies"),
        ({"min_shift": 17}, "fewer copies"),
        ({"fill": "black"}, "zero, mean, blur, noise"),
        ({"target": -1}, "classes run from 0"),
        ({"target": 4}, "classes run from 0 to 3"),
        ({"target": True}, "torch.bool"),
        ({"target": 0.5}, "class"),
        ({"distance": lambda a, z: z}, "one number"),
        ({"inside": torch.zeros(SIZE, SIZE)}, "empty"),
    ],
)
def test_what_cannot_be_tested_is_refused_in_words(model, change, words):
    with pytest.raises(ValueError, match=words):
        falsify(**{"attribution": noise()[0], "images": images(), "model": model} | change)
