"""The published default layers, for timm and torchvision models, and the refusals."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from ctrace.look.hooks import find_layers
from ctrace.look.partition import default_convs
from ctrace.world.models import build_bundled

PARTS_OF_FIRE = ("squeeze", "expand1x1", "expand3x3")


def skeleton(make, name):
    """The architecture without memory for its weights."""
    with torch.device("meta"):
        return make(name)


@pytest.mark.parametrize("make", [timm.create_model, torchvision.models.get_model])
def test_resnet18_defaults_are_the_convolutions_of_the_last_two_stages(make):
    names = default_convs(skeleton(make, "resnet18"))
    assert names == [
        f"layer{stage}.{block}.conv{i}" for stage in (3, 4) for block in (0, 1) for i in (1, 2)
    ]


@pytest.mark.parametrize("make", [timm.create_model, torchvision.models.get_model])
def test_resnet50_defaults_have_three_convolutions_a_block(make):
    names = default_convs(skeleton(make, "resnet50"))
    assert len(names) == 3 * (6 + 3) and names[-1] == "layer4.2.conv3"


@pytest.mark.parametrize("make", [timm.create_model, torchvision.models.get_model])
def test_vgg16_bn_defaults_are_the_six_convolutions_of_the_upper_half(make):
    assert default_convs(skeleton(make, "vgg16_bn")) == [
        f"features.{i}" for i in (24, 27, 30, 34, 37, 40)
    ]


def test_efficientnet_b0_defaults_are_two_depthwise_convolutions_and_the_head():
    model = skeleton(timm.create_model, "efficientnet_b0")
    assert default_convs(model) == ["blocks.5.0.conv_dw", "blocks.6.0.conv_dw", "conv_head"]
    theirs = skeleton(torchvision.models.get_model, "efficientnet_b0")
    assert default_convs(theirs) == [
        "features.6.0.block.1.0",
        "features.7.0.block.1.0",
        "features.8.0",
    ]
    shapes = lambda m: [tuple(m.get_submodule(name).weight.shape) for name in default_convs(m)]
    assert shapes(model) == shapes(theirs) == [(672, 1, 5, 5), (1152, 1, 3, 3), (1280, 320, 1, 1)]


def test_the_bundled_resnet_has_the_residual_defaults():
    assert default_convs(build_bundled("aviary-resnet-0")) == [
        f"layer{stage}.0.conv{i}" for stage in (3, 4) for i in (1, 2)
    ]


def test_squeezenet_is_served_by_the_rule_of_vgg():
    fires = [f"features.{i}.{part}" for i in (7, 8, 9, 10, 12) for part in PARTS_OF_FIRE]
    assert default_convs(build_bundled("squeezenet")) == fires


def test_layer_ratio_takes_the_last_share_of_any_model_and_at_least_one():
    net = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(100)])
    assert default_convs(net, 0.29) == [str(i) for i in range(71, 100)]
    assert default_convs(net, 0.001) == ["99"] and len(default_convs(net, 1.0)) == 100


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda net: default_convs(nn.Linear(2, 2)), "Linear.* has no Conv2d"),
        (lambda net: default_convs(net), "no default layers are known for Sequential"),
        (
            lambda net: default_convs(net, 0.0),
            "layer_ratio: expected a finite number above 0 and at most 1, received 0",
        ),
        (lambda net: default_convs(net, 1.5), "at most 1, received 1.5"),
        (lambda net: find_layers(net, ["1"], nn.Conv2d), "expected a Conv2d .* received 1"),
        (
            lambda net: find_layers(net, nn.Conv2d(1, 1, 1), nn.Conv2d),
            "expected a Conv2d .* received Conv2d",
        ),
        (lambda net: find_layers(net, [], nn.Conv2d), "received none"),
    ],
)
def test_a_wrong_choice_is_said(call, words):
    with pytest.raises(ValueError, match=words):
        call(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))
