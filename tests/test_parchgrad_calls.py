"""The published sequence of calls runs from end to end and says what `ParchGrad` says."""

import math

import pytest
import torch

from ctrace.look import saliency
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.parchgrad import ParchGrad
from ctrace.published import STATISTICS_FILE, get_hook_wrapper, get_input_attrib
from tests.reference_parchgrad import labelled_images, make_net


@pytest.fixture
def net():
    return make_net()


@pytest.fixture
def folder(net, tmp_path):
    ChannelStatistics.collect(net, [labelled_images(30)], progress=False).save(
        tmp_path / STATISTICS_FILE
    )
    return tmp_path


@pytest.fixture
def images():
    return labelled_images(3, seed=9)


def prepared(net, folder, method="cls"):
    wrapper = get_hook_wrapper("resnet18", net, method)
    wrapper.prepare_parchgrad(base_directory=folder, device="cpu")
    wrapper.set_hook_modules(wrapper.get_default_hook_convolutions(layer_ratio=0.5))
    return wrapper


@pytest.mark.parametrize("method", ["cls", "ins"])
def test_the_published_sequence_gives_the_maps_of_parchgrad(net, folder, images, method):
    x, y = images
    attr = get_input_attrib("grad")(
        prepared(net, folder, method),
        x,
        y,
        cls=y,
        modify_gradient=True,
        quantile=0.3,
        alpha=0.1,
        p_value_threshold=None,
        variance_conservation=True,
        exact_variance=False,
        gamma_infinity=True,
        enable_forward_hook=method == "ins",
    )
    parch = ParchGrad(net, ChannelStatistics.load(folder / STATISTICS_FILE), layers="3")
    same = parch.attribute("grad", x, y, method=method, quantile=0.3)
    assert attr.shape == (3, 10, 10) and torch.equal(attr, same.abs().mean(1))


def test_one_class_for_all_a_finite_gamma_and_the_plain_gradient_are_passed_on(net, folder, images):
    x, y = images
    wrapper, grad = prepared(net, folder), get_input_attrib("grad")
    parch = wrapper.parchgrad
    ours = grad(wrapper, x, y, cls=torch.tensor([2]), gamma_infinity=False, gamma=2.0, quantile=0.3)
    assert torch.equal(
        ours, parch.attribute("grad", x, y, quantile=0.3, classes=2, gamma=2.0).abs().mean(1)
    )
    assert not torch.equal(ours, grad(wrapper, x, y, gamma=math.inf, quantile=0.3))
    assert torch.equal(
        grad(wrapper, x, y, modify_gradient=False), saliency.gradient(net, x, y).abs().mean(1)
    )


def test_the_gate_of_the_published_code_is_warned_of(net, folder, images):
    ask, wrapper = get_input_attrib("grad"), prepared(net, folder)
    with pytest.warns(UserWarning, match="p_value_threshold is left out"):
        gated = ask(wrapper, *images, quantile=0.3, p_value_threshold=0.05)
    assert torch.equal(gated, ask(wrapper, *images, quantile=0.3))


def test_a_step_left_out_is_said(net, tmp_path, images):
    wrapper = get_hook_wrapper("any", net, "cls")
    cases = [
        (lambda: get_hook_wrapper("resnet18", net, "both"), "expected one of cls, ins"),
        (lambda: get_input_attrib("lime"), "expected one of grad, inputgrad, smoothgrad, ig"),
        (lambda: wrapper.prepare_parchgrad(tmp_path / "none"), "no statistics at"),
        (lambda: wrapper.set_hook_modules([net[0]]), "call prepare_parchgrad"),
        (lambda: get_input_attrib("grad")(wrapper, *images, quantile=0.1), "call set_hook_modules"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()
    ChannelStatistics.collect(net, [labelled_images(30)], progress=False).save(
        tmp_path / STATISTICS_FILE
    )
    with pytest.raises(ValueError, match="expected y itself or a single class"):
        get_input_attrib("grad")(prepared(net, tmp_path), *images, cls=[1, 1, 1], quantile=0.3)
