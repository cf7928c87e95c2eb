"""Weight randomisation: the cascade touches what it says and nothing else; guided backpropagation
fails it, integrated gradients do not.
"""

import numpy as np
import pytest
import torch
from torch import nn

from ctrace.aviary import Aviary
from ctrace.check import fingerprint
from ctrace.look.saliency import gradient, integrated_gradients
from ctrace.stats import spearman
from ctrace.trust.localize import controls
from ctrace.trust.methods import guided_backpropagation
from ctrace.trust.randomize import cascade, own_scale, randomize, stages
from ctrace.world.models import load_model


@pytest.fixture(scope="module")
def resnet():
    return load_model("aviary-resnet-0", device="cpu")


@pytest.fixture(scope="module")
def birds(resnet):
    data = Aviary("test", 6)
    return resnet.info.preprocess(torch.stack([data[i][0] for i in range(6)])), torch.arange(6)


def test_stages_run_from_the_head_to_the_input(resnet):
    assert stages(resnet) == ["fc", "layer4", "layer3", "layer2", "layer1", "bn1", "conv1"]
    assert stages(load_model("aviary-vit-0", device="cpu")) == [
        "head",
        "norm",
        *(f"blocks.{i}" for i in (3, 2, 1, 0)),
        "patch_embed",
    ]
    assert stages(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 2)))) == [
        "0.2",
        "0.0",
    ]
    with pytest.raises(ValueError, match="nothing to randomise"):
        stages(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("name", ["aviary-resnet-0", "aviary-vit-0"])
def test_the_cascade_changes_the_stages_it_names_and_no_other(name):
    model = load_model(name, device="cpu")
    order, before = stages(model), {k: v.clone() for k, v in model.state_dict().items()}
    for depth in (0, 1, 3, len(order)):
        weights = randomize(model, depth, seed=4).state_dict()
        changed = {
            k for k in weights if not torch.equal(weights[k], before[k]) and "num_batches" not in k
        }
        named = {k for k in before if k.startswith(tuple(f"{stage}." for stage in order[:depth]))}
        assert changed <= (named if depth < len(order) else set(before))
        assert {k for k in named if before[k].ndim > 1} <= changed
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert {
        k for k in before if before[k].ndim > 1
    } <= changed  # at full depth nothing learned is left, position embeddings included


def test_depths_share_their_random_weights_and_seeds_do_not(resnet):
    one, three, other = randomize(resnet, 1), randomize(resnet, 3), randomize(resnet, 1, seed=1)
    assert torch.equal(one.fc.weight, three.fc.weight) and not torch.equal(
        one.fc.weight, other.fc.weight
    )
    with pytest.raises(ValueError, match="depth"):
        randomize(resnet, 8)


def test_the_model_and_the_random_state_are_left_as_found_also_after_a_failure(resnet, birds):
    before, state = fingerprint(resnet), torch.random.get_rng_state()
    with pytest.raises(ValueError, match="over its colours"):
        cascade(resnet, {"raw": gradient}, *birds)
    randomize(resnet, 7)
    assert fingerprint(resnet) == before and torch.equal(state, torch.random.get_rng_state())


def test_guided_backpropagation_is_the_gradient_with_negatives_cut_at_every_relu():
    torch.manual_seed(0)
    net = (
        nn.Sequential(
            nn.Conv2d(3, 5, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(5 * 36, 20),
            nn.ReLU(),
            nn.Linear(20, 2),
        )
        .double()
        .eval()
    )
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, h = net[:2](x), net[:5](x)
    g = net[5].weight[1].clamp_min(0) * (h > 0)
    g = (g @ net[3].weight).view_as(a).clamp_min(0) * (a > 0)
    want = nn.functional.conv_transpose2d(g, net[0].weight)
    assert torch.allclose(guided_backpropagation(net, x, 1), want, atol=1e-12)
    with pytest.raises(ValueError, match="no nn.ReLU"):
        guided_backpropagation(
            nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.GELU()).eval(),
            torch.rand(1, 3, 2, 2),
            0,
        )


def test_maps_are_scaled_by_themselves_with_zero_at_zero():
    values = np.random.default_rng(0).normal(size=(20, 20))
    values[0, 0] = 1e6
    assert np.allclose(own_scale(values), own_scale(1000 * values)) and own_scale(values).max() == 1
    assert np.abs(own_scale(values)[1:]).mean() > 0.1  # one outlier does not blank the rest
    assert not own_scale(np.zeros((3, 3))).any()
    assert np.array_equal(np.sign(own_scale(values)), np.sign(values))


def test_likenesses_equal_direct_calls_and_a_constant_map_is_counted(resnet, birds):
    x, y = birds
    absolute = lambda model, images, targets: gradient(model, images, targets).sum(1)
    blank = lambda model, images, targets: torch.zeros(len(images), 96, 96)
    gives_up = lambda model, images, targets: (absolute if model is resnet else blank)(
        model, images, targets
    )
    result = cascade(
        resnet, {"gradient": absolute, "blank": blank, "gives up": gives_up}, x, y, depths=(1, 7)
    )
    a, b = (absolute(m, x, y).flatten(1).numpy() for m in (resnet, randomize(resnet, 7)))
    assert np.allclose(result.spearman[0, 1], spearman(a, b)) and np.allclose(
        result.spearman_abs[0, 1], spearman(abs(a), abs(b))
    )
    assert result.stages == ("fc", "conv1") and result.ssim.shape == (3, 2, 6)
    assert result.failed[1:].all() and not result.failed[0].any()
    assert not any(
        likeness[1:].any() for likeness in (result.spearman, result.spearman_abs, result.ssim)
    )


@pytest.mark.filterwarnings(
    "ignore:image .*integrated gradients"
)  # a random net bends more than 16 steps can follow
def test_guided_backpropagation_fails_the_cascade_and_integrated_gradients_pass_it(resnet, birds):
    x, y = birds
    methods = {
        "guided": lambda model, images, targets: guided_backpropagation(model, images, targets).sum(
            1
        ),
        "ig": lambda model, images, targets: integrated_gradients(
            model, images, targets, steps=16
        ).sum(1),
        "edges": lambda model, images, targets: controls(images, torch.zeros(len(images), 96, 96))[
            "edges"
        ],
    }
    result = cascade(resnet, methods, x, y, depths=(1, 2, 5, 7))
    guided, ig, edges = result.spearman.mean(2)
    print(
        result.spearman.mean(2).round(2),
        result.spearman_abs.mean(2).round(2),
        result.ssim.mean(2).round(2),
    )
    assert (edges == 1).all() or np.allclose(edges, 1)
    assert guided[1] > 0.5 and (np.abs(ig[1:]) < 0.2).all()
