"""Deletion, insertion, ROAD: equal to loops and to a direct solve; right maps above wrong ones."""

import numpy as np
import pytest
import torch
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve
from torch import nn

from ctrace.trust.hide import deletion, filled, impute, insertion, road


@pytest.fixture
def model():
    """Class 0 is the brightness of the left half, class 1 that of the right."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2, bias=False)).double().eval()
    left = torch.zeros(3, 8, 8, dtype=torch.float64)
    left[:, :, :4] = 1 / 16
    net[1].weight.data = torch.stack([left.flatten(), left.flip(2).flatten()])
    return net


def images(b=3):
    return (
        torch.rand(b, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        + 0.5
    )


def left_map(b=3):
    maps = torch.rand(b, 8, 8, generator=torch.Generator().manual_seed(1))
    maps[:, :, :4] += 1
    return maps


@pytest.mark.parametrize("curve, start_is_image", [(deletion, True), (insertion, False)])
def test_curves_equal_a_loop_over_pixels(model, curve, start_is_image):
    x, maps, classes = images(), left_map(), [0, 1, 0]
    got = curve(model, x, maps, classes, fill="mean", steps=4)
    start, end = (x, filled(x, "mean")) if start_is_image else (filled(x, "mean"), x)
    for i, k in enumerate(classes):
        order = maps[i].flatten().argsort(descending=True)
        for j, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
            mixed = start[i].flatten(1).clone()
            mixed[:, order[: round(64 * share)]] = end[i].flatten(1)[:, order[: round(64 * share)]]
            assert abs(got.values[i, j] - model(mixed.view(1, 3, 8, 8)).softmax(1)[0, k]) < 1e-6
    assert got.shares == (0, 0.25, 0.5, 0.75, 1) and got.fill == "mean"
    assert np.allclose(got.auc, np.trapezoid(got.values.numpy(), got.shares, axis=1))


def test_a_right_map_beats_its_inverse_in_all_three(model):
    x, right, wrong = images(), left_map(), -left_map()
    assert (
        deletion(model, x, right, 0, fill="zero").auc
        < deletion(model, x, wrong, 0, fill="zero").auc - 0.1
    ).all()
    assert (
        insertion(model, x, right, 0, fill="zero").auc
        > insertion(model, x, wrong, 0, fill="zero").auc + 0.1
    ).all()
    checks = (
        torch.arange(8)[:, None] + torch.arange(8)
    ) % 2 * 2.0 - 1  # a pattern that no neighbour tells
    model[1].weight.data = torch.zeros(2, 192).double()
    model[1].weight.data[0] = (checks * (torch.arange(8) < 4)).expand(3, 8, 8).flatten() / 48
    score, inverse = (road(model, 4 + 2 * checks + x, m, 0) for m in (right, wrong))
    assert (score > 0.05).all() and torch.allclose(score, -inverse, atol=1e-4)


def test_a_constant_map_has_the_road_score_of_a_random_one_and_removes_what_is_asked_for(model):
    x = images(40)
    constant = road(model, x, torch.zeros(40, 8, 8), 0)
    assert abs(float(constant.mean())) < 0.01
    sparse = torch.zeros(1, 8, 8)
    sparse[0, 0, 0] = 1  # a threshold at its median would remove all 64 pixels
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    road(model, x[:1], sparse, 0, shares=(0.1, 0.5), noise=0)
    removed = [int((shown != x[:1]).any(1).sum()) for shown in seen]
    assert removed == [0, 6, 32] * 2  # what nothing was removed from is asked once in each order


def test_imputed_pixels_equal_the_direct_solve_of_the_published_system():
    x = images(2)[:, :, :7]  # 7 x 8: a grid that is not square
    hidden = torch.rand(2, 7, 8, generator=torch.Generator().manual_seed(2)) < 0.7
    hidden[1, :, :5] = True  # and a large hole
    got = impute(x, hidden)
    steps = {
        (dy, dx): (1 / 6 if 0 in (dy, dx) else 1 / 12)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if (dy, dx) != (0, 0)
    }
    for i in range(2):
        A, right = lil_matrix((56, 56)), np.zeros((56, 3))
        for y in range(7):
            for z in range(8):
                A[8 * y + z, 8 * y + z] = 1
                if not hidden[i, y, z]:
                    right[8 * y + z] = x[i, :, y, z]
                    continue
                around = {
                    (y + dy, z + dx): w
                    for (dy, dx), w in steps.items()
                    if 0 <= y + dy < 7 and 0 <= z + dx < 8
                }
                for (yy, zz), w in around.items():
                    A[8 * y + z, 8 * yy + zz] -= w / sum(around.values())
        want = spsolve(A.tocsc(), right).T.reshape(3, 7, 8)
        assert np.abs(got[i].numpy() - want).max() < 1e-9
    assert torch.equal(got[~hidden[:, None].expand_as(got)], x[~hidden[:, None].expand_as(x)])


def test_an_image_of_which_nothing_or_all_but_one_pixel_is_hidden_is_imputed():
    x, nothing = images(1), torch.zeros(1, 8, 8, dtype=torch.bool)
    assert torch.equal(impute(x, nothing), x)
    one = nothing.clone()
    one[0, 3, 4] = True
    assert torch.allclose(impute(x, ~one), x[:, :, 3:4, 4:5].expand_as(x), atol=1e-12)
    line = torch.arange(5.0).view(1, 1, 1, 5)
    assert torch.allclose(impute(line, torch.tensor([[[0, 1, 1, 1, 0]]]) > 0), line)


def test_imputing_keeps_a_constant_image_and_a_straight_ramp():
    hidden = torch.zeros(1, 9, 9, dtype=torch.bool)
    hidden[0, 2:7, 2:7] = True
    ramp = torch.arange(9.0, dtype=torch.float64).expand(1, 1, 9, 9)
    assert torch.allclose(
        impute(torch.ones(1, 1, 9, 9).double(), hidden), torch.ones(1, 1, 9, 9).double(), atol=1e-12
    )
    assert torch.allclose(impute(ramp, hidden), ramp, atol=1e-12)


def test_batches_equal_single_images(model):
    x, maps = images(), left_map()
    for f in (deletion, insertion):
        assert torch.allclose(
            f(model, x, maps, [0, 1, 0], fill="noise").values[1:2],
            f(model, x[1:2], maps[1:2], 1, fill="noise").values,
        )
    assert torch.allclose(
        road(model, x, maps, 0)[1:2], road(model, x[1:2], maps[1:2], 0), atol=1e-5
    )


def test_bad_input_is_refused_in_words(model):
    for call, words in (
        (lambda: deletion(model, images(), left_map(2), 0), "maps"),
        (lambda: deletion(model, images(), left_map(), 0, steps=0), "steps"),
        (lambda: insertion(model, images(), left_map(), [0, 1]), "class"),
        (lambda: road(model, images(), left_map(), 0, shares=(0.5, 1.0)), "nothing to impute"),
        (lambda: road(model, images(), left_map(), -1), "classes run from 0"),
        (lambda: impute(images(1), torch.ones(1, 8, 8, dtype=torch.bool)), "hidden completely"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_a_model_in_training_mode_is_refused_and_its_statistics_stay_as_they_were():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 2)).double().train()
    before = net[0].running_mean.clone()
    for test in (road, deletion, insertion):
        with pytest.raises(ValueError, match="training mode"):
            test(net, images(), left_map(), 0)
    assert torch.equal(net[0].running_mean, before)
