"""Layers by name, by module and by role; and a fingerprint that misses nothing."""

import pytest
import timm
import torch
from torch import nn

from ctrace.check import fingerprint
from ctrace.look.gradcam import live_layer
from ctrace.look.hooks import capture, find_layers
from tests.reference_gradcam import Residual, make_vit


def test_layers_are_found_by_name_by_module_and_as_the_last_conv():
    model = Residual()
    assert find_layers(model, "norm") == {"norm": model.norm}
    assert find_layers(model, model.relu) == {"relu": model.relu}
    assert find_layers(model, "last conv") == {"conv": model.conv}
    assert list(find_layers(model, [model.relu, "stem", model])) == ["relu", "stem", ""]


def test_layers_of_one_kind_are_found_all_or_some():
    model = Residual()
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert list(find_layers(model, kind=nn.Conv2d)) == convs
    assert list(find_layers(model, [model.conv, "stem"], nn.Conv2d)) == ["conv", "stem"]


def test_the_last_conv_is_not_a_shortcut():
    resnet = timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)
    assert [name for name, module in resnet.named_modules() if isinstance(module, nn.Conv2d)][
        -1
    ] == "layer4.0.downsample.0"
    assert list(find_layers(resnet, "last conv")) == ["layer4.0.conv2"]


@pytest.mark.parametrize(
    "layer, words",
    [
        ("cnov", "Nearest names: conv"),
        (nn.ReLU(), "part of this model, received ReLU"),
        ([], "received none"),
    ],
)
def test_a_wrong_layer_is_said(layer, words):
    with pytest.raises(ValueError, match=words), capture(Residual(), layer):
        pass


def test_a_model_without_convolution_or_without_modules_is_said():
    with pytest.raises(ValueError, match="no Conv2d.*ONNX"):
        find_layers(nn.Linear(2, 2), "last conv")
    with pytest.raises(ValueError, match="expected a torch.nn.Module, received function"):
        find_layers(lambda x: x, "last conv")


def test_only_a_transformer_has_a_live_layer_of_its_own():
    assert live_layer(make_vit()) == "blocks.2.norm1"
    assert live_layer(timm.create_model("resnet10t")) is None


CHANGES = {
    "hook": lambda m: m.conv.register_forward_hook(print),
    "tensor hook": lambda m: m.conv.weight.register_hook(print),
    "training": lambda m: m.norm.train(),
    "requires_grad": lambda m: m.stem.bias.requires_grad_(False),
    "grad": lambda m: setattr(m.head.weight, "grad", torch.ones(5, 4)),
    "inplace": lambda m: setattr(m.relu, "inplace", False),
    "buffer": lambda m: m.norm.running_mean.data.add_(1),
    "parameter": lambda m: m.head.weight.data.mul_(2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_sees(change):
    model = Residual()
    before = fingerprint(model)
    assert fingerprint(model) == before
    CHANGES[change](model)
    assert fingerprint(model) != before
