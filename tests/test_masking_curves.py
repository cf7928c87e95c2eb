"""Masking curves and mass inside a mask: equal to loops, and right on a model whose answer is
known.
"""

import math

import pytest
import torch
from torch import nn

from ctrace.check import fingerprint
from ctrace.trust.hide import masking_curve
from ctrace.trust.localize import mass_inside


@pytest.fixture
def model():
    """Class 0 is the mean of the left half, class 1 that of the right."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 2, bias=False)).double().eval()
    left = torch.zeros(3, 6, 6, dtype=torch.float64)
    left[:, :, :3] = 1 / 9
    net[1].weight.data = torch.stack([left.flatten(), left.flip(2).flatten()])
    return net


@pytest.fixture
def images():
    return (
        torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        + 0.5
    )


def left_map(b=3):
    maps = torch.rand(b, 6, 6, generator=torch.Generator().manual_seed(1))
    maps[:, :, :3] += 1
    return maps


@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_curves_equal_a_loop_over_pixels(model, images, order):
    maps, target, ratios = left_map(), [0, 1, 0], (0.0, 0.25, 0.5)
    curve = masking_curve(model, images, maps, target, order, ratios, fill=0.1)
    for i, k in enumerate(target):
        places = sorted(
            ((maps[i, y, x].item(), y, x) for y in range(6) for x in range(6)),
            reverse=order == "morf",
        )
        before = model(images[i : i + 1]).softmax(1)[0].detach()
        for j, ratio in enumerate(ratios):
            hidden = images[i].clone()
            for _, y, x in places[: round(ratio * 36)]:
                hidden[:, y, x] = 0.1
            after = model(hidden[None]).softmax(1)[0].detach()
            assert abs(curve.drop[i, j] - (before[k] - after[k])) < 1e-6
            assert abs(curve.log_odds[i, j] - math.log(after[k] / before[k])) < 1e-5
            assert curve.correct[i, j] == (after.argmax() == k)
    assert torch.allclose(curve.aopc, curve.drop.mean(1)) and curve.accuracy.shape == (3,)


def test_a_right_map_drops_under_morf_and_not_under_lerf_and_a_wrong_one_the_other_way(
    model, images
):
    right, wrong = left_map(), left_map().flip(2)
    morf, lerf = (masking_curve(model, images, right, 0, order).aopc for order in ("morf", "lerf"))
    assert (morf > 0.2).all() and (lerf < 0).all()
    assert (masking_curve(model, images, wrong, 0).aopc < 0).all()


def test_equal_values_are_masked_at_random_and_reproducibly(images):
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append((x[:, 0] == -9.0).clone())
            return x.mean((2, 3))

    masking_curve(Spy(), images, torch.zeros(3, 6, 6), 0, ratios=(0.5,), fill=-9.0)
    hidden = seen[-1]
    assert (hidden.sum((1, 2)) == 18).all() and hidden[0, :3].sum() not in (0, 18), (
        "not the upper half"
    )
    assert torch.equal(hidden[0], hidden[1])
    masking_curve(Spy(), images, torch.zeros(3, 6, 6), 0, ratios=(0.5,), fill=-9.0)
    assert torch.equal(seen[-1], hidden)
    masking_curve(Spy(), images, torch.zeros(3, 6, 6), 0, ratios=(0.5,), fill=-9.0, seed=1)
    assert not torch.equal(seen[-1], hidden)


def test_hidden_pixels_show_the_images_given_as_fill(model, images):
    same = masking_curve(model, images, left_map(), 0, fill=images)
    assert same.drop.abs().max() < 1e-6 and same.accuracy[0] == same.accuracy[-1]


def test_model_and_images_are_left_as_found(model, images):
    before, pixels = fingerprint(model), images.clone()
    masking_curve(model, images, left_map(), 0)
    assert fingerprint(model) == before and torch.equal(images, pixels)


def test_share_zero_is_asked_once_and_every_share_only_once(model, images):
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    curve = masking_curve(model, images, left_map(), 0, ratios=(0.0, 0.5, 0.0, 0.5))
    assert len(seen) == 2 and torch.equal(seen[0], images)
    assert torch.equal(curve.values[:, :2], curve.values[:, 2:])
    assert torch.equal(curve.values[:, 0], curve.whole.exp())


def test_mass_inside_counts_both_signs():
    mask = torch.zeros(2, 6, 6, dtype=torch.bool)
    mask[0, :, :3] = mask[1, 1:3, 2:5] = True
    maps = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    inside = [
        sum(abs(maps[i, y, x].item()) for y in range(6) for x in range(6) if mask[i, y, x])
        for i in range(2)
    ]
    expected = [inside[i] / maps[i].abs().sum().item() for i in range(2)]
    torch.testing.assert_close(
        mass_inside(maps, mask), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(mass_inside(-2 * maps, mask), mass_inside(maps, mask))
    torch.testing.assert_close(
        mass_inside(torch.ones(2, 6, 6), mask * 0.5),
        torch.tensor([0.25, 1 / 12], dtype=torch.float64),
    )


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda m, x: masking_curve(m, x, torch.zeros(3, 3, 6, 6), 0),
            "sum an input attribution over its colours",
        ),
        (
            lambda m, x: masking_curve(m, x, torch.zeros(2, 6, 6), 0),
            r"expected \(b, height, width\) equal to \(3, 6, 6\)",
        ),
        (
            lambda m, x: masking_curve(m, x, torch.full((3, 6, 6), math.nan), 0),
            "maps: expected finite",
        ),
        (
            lambda m, x: masking_curve(m, x, left_map(), 0, "best"),
            "order: expected one of morf, lerf",
        ),
        (lambda m, x: masking_curve(m, x, left_map(), 0, ratios=(0.5, 1.5)), "ratios: expected"),
        (
            lambda m, x: masking_curve(m, x, left_map(), [0, 1]),
            "one class for each of the 3 images",
        ),
        (lambda m, x: masking_curve(m, x, left_map(), 2), "classes run from 0 to 1"),
        (lambda m, x: masking_curve(m, x, left_map(), -1), "classes run from 0"),
        (lambda m, x: masking_curve(m, x, left_map(), True), "received torch.bool"),
        (lambda m, x: masking_curve(m, x, left_map(), 0.5), "received torch.float32"),
        (lambda m, x: mass_inside(torch.zeros(1, 6, 6), torch.ones(1, 6, 6)), "map 0 has no mass"),
        (
            lambda m, x: mass_inside(torch.ones(1, 6, 6), torch.zeros(1, 6, 6)),
            "mask 0 covers nothing",
        ),
        (
            lambda m, x: mass_inside(torch.ones(1, 6, 6), torch.full((1, 6, 6), 255.0)),
            r"weights in \[0, 1\]",
        ),
    ],
)
def test_a_wrong_call_is_said(model, images, call, words):
    with pytest.raises(ValueError, match=words):
        call(model, images)
