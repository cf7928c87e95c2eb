"""Shapley values: axioms, exact where all coalitions are asked, equal to captum and to the model's
own part importance.
"""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import pairwise_distances
from torch import nn

from ctrace.aviary import PARTS, Aviary, part_importance, render
from ctrace.trust.hide import filled
from ctrace.trust.shapley import (
    kernel_shap,
    lime,
    linear_surrogate,
    sample_coalitions,
    shap,
    superpixels,
)
from ctrace.world.models import load_model


@pytest.fixture(scope="module")
def model():
    return load_model("aviary-resnet-0", device="cpu")


def bird(model, index):
    """Image, image without parts, part masks, scene and class of a held-out bird."""
    data = Aviary("test", 300)
    scene = data.scene(index)
    whole, bare = render(scene), render(scene.without(*PARTS))
    x, start = (model.info.preprocess(r.image)[0] for r in (whole, bare))
    return x, start, torch.stack([whole.masks[p] for p in PARTS]), scene, data.label(index)


def part_regions(masks):
    """Region 0 shows no part, region j the j-th mask, whichever covers most of a pixel."""
    return torch.where(masks.amax(0) > 0, masks.argmax(0) + 1, 0)


def additive(r, seed=0):
    """A network whose logit is a sum over pixels, so that a region's Shapley value is its own share
    of it.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 2)).double().eval()
    regions = (torch.arange(144) * r // 144).view(12, 12)
    return (
        net,
        torch.randn(3, 12, 12, dtype=torch.double),
        torch.randn(3, 12, 12, dtype=torch.double),
        regions,
    )


@pytest.mark.parametrize("r", [6, 24])
def test_an_additive_model_gives_each_region_its_own_share(r):
    net, x, start, regions = additive(r)
    got = shap(net, x, 1, regions, start[None])
    weight = (net[1].weight[1] - net[1].weight.mean(0)).view(3, 12, 12)
    share = (weight * (x - start)).sum(0).flatten().detach()
    own = torch.zeros(r, dtype=torch.double).index_add_(0, regions.flatten(), share)
    assert torch.allclose(got.values, own, atol=1e-9)


@pytest.mark.parametrize("index", range(3))
def test_values_sum_to_the_logit_of_all_minus_that_of_none(model, index):
    x, start, masks, _, target = bird(model, index)
    for result in (
        shap(model, x, target, part_regions(masks), start[None]),
        shap(model, x, target, superpixels(x), samples=128),
    ):
        assert abs(float(result.values.sum()) - (result.all - result.none)) <= 1e-10
        assert abs(float(result.map.sum()) - (result.all - result.none)) <= 1e-10
        assert abs(result.all - result.none) > 1


@pytest.mark.parametrize("index", range(5))
def test_values_of_the_true_parts_are_the_part_importance_of_the_model(model, index):
    x, start, masks, scene, target = bird(model, index)
    values = shap(model, x, target, part_regions(masks), start[None]).values
    truth = torch.tensor(list(part_importance(model, scene, target, "shapley").values()))
    assert float((values[1:] - truth).abs().max()) <= 1e-4
    assert float(values[0].abs()) <= 1e-5  # what surrounds the parts is the same in both pictures


def test_values_of_the_true_parts_equal_captum(model):
    attr = pytest.importorskip("captum.attr")
    x, start, masks, _, target = bird(model, 1)
    regions = part_regions(masks)

    def asked(images):
        z = model(images)
        return z[:, target] - z.mean(1)

    ids = (regions - 1).clamp_min(
        0
    )  # the surroundings are the same in both pictures and may go with any part
    with torch.no_grad():
        theirs = attr.ShapleyValues(asked).attribute(
            x[None], start[None], feature_mask=ids[None, None], perturbations_per_eval=60
        )[0, 0]
    ours = shap(model, x, target, ids, start[None]).values[ids]
    assert float((theirs - ours).abs().max()) <= 1e-5


def test_kernel_shap_is_the_least_squares_solution_under_its_constraint():
    present, r, total = sample_coalitions(12, 60, 0), 12, 1.7
    value = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    A = present.double()
    ones = torch.ones(r, 1, dtype=torch.double)
    left = torch.cat([torch.cat([A.T @ A, ones], 1), torch.cat([ones.T, torch.zeros(1, 1)], 1)])
    right = torch.cat([A.T @ value, torch.tensor([total])])
    lagrange = torch.linalg.solve(left, right)[:r]
    assert torch.allclose(kernel_shap(present, value, total), lagrange, atol=1e-10)


def test_coalitions_come_in_pairs_as_often_as_the_kernel_weighs_their_size():
    present = sample_coalitions(7, 20_000, 0)
    assert torch.equal(present[::2], ~present[1::2])
    size = torch.bincount(present.sum(1), minlength=8) / len(present)
    kernel = torch.tensor([0.0, *(1 / (s * (7 - s)) for s in range(1, 7)), 0.0])
    assert torch.allclose(size, kernel / kernel.sum(), atol=0.01)
    assert torch.allclose(present.double().mean(0), torch.full((7,), 0.5).double(), atol=0.01)


def test_more_samples_of_kernel_shap_come_closer_to_the_exact_values(model, monkeypatch):
    x, start, masks, _, target = bird(model, 1)
    regions = part_regions(masks)
    exact = shap(model, x, target, regions, start[None])
    monkeypatch.setattr("ctrace.trust.shapley.EXACT_UP_TO", 2)
    error = []
    for samples in (64, 1024):
        found = shap(model, x, target, regions, start[None], samples=samples)
        error.append(float((found.values - exact.values).abs().max() / exact.values.abs().max()))
    assert error[1] <= 0.012 < error[0] <= 0.05


def test_repeats_with_its_seed_and_leaves_the_global_generators_alone(model):
    x, _, _, _, target = bird(model, 0)
    torch.manual_seed(3), np.random.seed(3)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(3), np.random.seed(3)
    first = shap(model, x, target, superpixels(x), samples=64, seed=5).values
    assert torch.equal(torch.rand(2), expected[0]) and np.array_equal(
        np.random.rand(2), expected[1]
    )
    again = shap(model, x, target, superpixels(x), samples=64, seed=5).values
    assert torch.equal(first, again)
    assert not torch.equal(first, shap(model, x, target, superpixels(x), samples=64, seed=6).values)


def literal_surrogate(present, value, width, ridge):
    """The weights and the regression of the authors' package for images, line by line."""
    data = present.numpy().astype(float)
    distances = pairwise_distances(data, np.ones((1, data.shape[1])), metric="cosine").ravel()
    kernel = np.sqrt(np.exp(-(distances**2) / width**2))
    fit = Ridge(alpha=ridge, fit_intercept=True, solver="cholesky")
    return fit.fit(data, value.numpy(), sample_weight=kernel).coef_


@pytest.mark.parametrize("width, ridge", [(0.25, 1.0), (0.1, 0.01), (1.0, 30.0)])
def test_lime_is_the_authors_weighted_ridge_regression(width, ridge):
    generator = torch.Generator().manual_seed(2)
    present = torch.randint(0, 2, (90, 12), generator=generator) == 1
    value = torch.randn(90, generator=generator, dtype=torch.double) + present[:, 3]
    present[:2] = torch.tensor([[True], [False]])
    want = literal_surrogate(present, value, width, ridge)
    np.testing.assert_allclose(linear_surrogate(present, value, width, ridge), want, atol=1e-10)


def test_lime_without_a_penalty_gives_each_region_of_an_additive_model_its_own_share():
    net, x, start, regions = additive(24)
    exact = shap(net, x, 1, regions, start[None])
    found = lime(net, x, 1, regions, start[None], ridge=0)
    assert torch.allclose(found.values, exact.values, atol=1e-9)
    assert (found.all, found.none) == (exact.all, exact.none)


def test_lime_asks_the_game_of_shap_near_the_whole_image(model):
    """Its values are the regression on exactly the images in which absent regions are blurred."""
    x, _, _, _, target = bird(model, 2)
    regions = superpixels(x)
    r = int(regions.max()) + 1
    found = lime(model, x, target, regions, samples=100, seed=4)
    present = torch.from_numpy(np.random.default_rng(4).integers(0, 2, (100, r)) == 1)
    present[0] = True
    blurred = filled(x[None], "blur")[0]
    shown = torch.stack([torch.where(row[regions], x, blurred) for row in present])
    with torch.no_grad():
        z = model(shown).double()
    value = z[:, target] - z.mean(1)
    want = literal_surrogate(present, value, 0.25, 1.0)
    np.testing.assert_allclose(found.values, want, atol=1e-6)
    assert abs(found.all - float(value[0])) < 1e-6
    assert abs(float(found.values.sum()) - (found.all - found.none)) > 0.1


def test_lime_refuses_what_has_no_answer():
    net, x, start, regions = additive(24)
    for settings, words in (
        ({"samples": 40}, "to tell 24 regions apart.*at least 48"),
        ({"width": 0}, "width: expected a finite number above 0"),
        ({"ridge": -1}, "ridge: expected a finite number at least 0"),
    ):
        with pytest.raises(ValueError, match=words):
            lime(net, x, 1, regions, start[None], **settings)
    with pytest.raises(ArithmeticError, match="width: 0.02 puts nearly all weight on fewer"):
        lime(net, x, 1, regions, start[None], width=0.02)


def test_refuses_what_has_no_answer(model):
    net, x, start, regions = additive(24)
    with pytest.raises(ValueError, match="each pixel of one image"):
        shap(net, x, 1, regions[:6], start[None])
    with pytest.raises(ValueError, match="without gaps"):
        shap(net, x, 1, regions * 2, start[None])
    with pytest.raises(ValueError, match="to tell 24 regions apart.*at least 48"):
        shap(net, x, 1, regions, start[None], samples=24)
    for target, words in ((-1, "classes run from 0 to 1"), (True, "bool"), (2, "from 0 to 1")):
        with pytest.raises(ValueError, match=words):
            shap(net, x, target, regions % 3, start[None])
    with pytest.raises(ValueError, match="image: expected finite"):
        superpixels(x * torch.nan)
