"""Capture and edit: the right numbers, the right refusals, and a model left as it was found."""

import gc
import resource

import pytest
import torch
from torch import nn

from ctrace.check import fingerprint
from ctrace.look.hooks import capture, edit_gradient
from tests.reference_gradcam import Residual


@pytest.fixture
def image():
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def by_hand(model, image):
    """Activation and gradient at ``norm``, from a copy of the forward pass without any hook."""
    skip = model.stem(image)
    acts = model.norm(model.conv(skip)).detach().requires_grad_()
    score = model.head((acts + skip.detach()).relu().mean((2, 3)))[:, 1].sum()
    return acts.detach(), torch.autograd.grad(score, acts)[0]


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_captured_values_equal_the_network_cut_by_hand(image, inplace, frozen):
    model = Residual(inplace).requires_grad_(not frozen)
    with capture(model, "norm") as seen:
        seen.backward(model(image)[:, 1].sum())
    acts, grad = by_hand(model, image)
    assert torch.equal(seen["norm"].activation, acts)
    torch.testing.assert_close(seen["norm"].gradient, grad, rtol=0, atol=1e-8)
    assert acts.min() < 0, "the in-place ReLU behind must have something to overwrite"


def test_ordinary_backward_fills_the_gradient_too(image):
    model = Residual()
    with capture(model, ["norm", model.stem]) as seen:
        model(image)[:, 1].sum().backward()
    assert torch.equal(seen["norm"].gradient, by_hand(model, image)[1])
    assert seen["stem"].gradient.abs().sum() > 0


def test_backward_of_capture_gives_no_parameter_a_grad(image):
    model = Residual()
    with capture(model, "stem") as seen:
        seen.backward(model(image).sum())
    assert all(p.grad is None for p in model.parameters())


def test_a_score_that_does_not_depend_on_the_layer_has_gradient_exactly_zero(image):
    model = Residual()
    with capture(model, "conv") as seen:
        model(image)
        seen.backward(model.stem.weight.sum())
    assert not seen["conv"].gradient.any()


def test_a_model_that_runs_its_backbone_under_no_grad_is_explained_behind_it(image):
    class Backbone(Residual):
        def forward(self, x):
            with torch.no_grad():
                skip = self.stem(x)
            return self.head(self.relu(self.norm(self.conv(skip))).mean((2, 3)))

    model = Backbone()
    with capture(model, "stem") as seen:
        seen.backward(model(image).sum())
    assert seen["stem"].gradient.any()


def test_each_call_of_the_model_starts_afresh(image):
    model = Residual()
    with capture(model, "norm") as seen:
        first = model(image)
        model(image * 2)
        first.sum().backward()  # late: belongs to an activation that is gone
        with pytest.raises(RuntimeError, match="no gradient has come back"):
            assert seen["norm"].gradient
    assert seen["norm"].calls == 1


def run_capture(model, image):
    with capture(model, ["stem", "conv"]) as seen:
        seen.backward(model(image).sum())


def run_edit(model, image):
    with edit_gradient(model, "conv", lambda gradient, activation, name: gradient * 2):
        model(image.clone().requires_grad_()).sum()


@pytest.mark.parametrize("run", [run_capture, run_edit])
def test_the_model_is_left_exactly_as_found(image, run):
    model = Residual()
    model.conv.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = fingerprint(model)
    run(model, image)
    assert fingerprint(model) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, IndexError])
@pytest.mark.parametrize("where", ["forward", "body"])
def test_the_model_is_left_exactly_as_found_after_an_exception_and_nothing_is_swallowed(
    image, error, where
):
    model = Residual()

    def fail(*_):
        raise error("stop")

    if where == "forward":
        model.relu.register_forward_hook(fail)
    before = fingerprint(model)
    for context in (capture(model, "conv"), edit_gradient(model, "conv", lambda g, a, n: g)):
        with pytest.raises(error, match="stop"), context:
            model(image)
            fail()
    assert fingerprint(model) == before


def test_the_hooks_of_others_stay_and_fire(image):
    model, calls = Residual(), []
    model.conv.register_forward_hook(lambda *_: calls.append("forward"))
    model.conv.register_full_backward_hook(lambda *_: calls.append("backward"))
    with capture(model, "norm") as seen:
        model(image).sum().backward()
    model(image)
    assert calls == ["forward", "backward", "forward"] and seen["norm"].gradient.any()


def test_a_hook_leaves_nothing_on_the_callers_own_image(image):
    model = nn.Sequential(nn.Identity(), Residual())
    image.requires_grad_()
    with capture(model, "0") as seen:
        model(image).sum().backward()
    assert not image._backward_hooks and torch.equal(seen["0"].gradient, image.grad)


def test_memory_is_flat_over_200_calls():
    model, batch = (
        Residual(),
        torch.randn(8, 3, 64, 64),
    )  # 2 MB of copies per call: a leak would show as 400 MB
    run_capture(model, batch)
    gc.collect()
    gc.disable()  # garbage collection must not be needed
    try:
        tensors, peak = count_tensors(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(200):
            run_capture(model, batch)
        assert count_tensors() == tensors
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # kB
    finally:
        gc.enable()


def count_tensors():
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_a_layer_called_twice_is_said(image):
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu)
    with pytest.raises(ValueError, match="'1' is called a second time"), capture(model, relu):
        model(image)


def test_a_layer_never_reached_is_said(image):
    model = Residual()
    with (
        pytest.raises(ValueError, match="'unused': never reached"),
        capture(model, ["conv", "unused"]),
    ):
        model(image)
    with (
        pytest.raises(ValueError, match="'unused': never reached"),
        edit_gradient(model, "unused", lambda g, a, n: g),
    ):
        model(image)


def test_a_layer_that_puts_out_a_tuple_is_said():
    model = nn.Sequential(nn.LSTM(3, 3))
    with pytest.raises(ValueError, match="'0' puts out a tuple"), capture(model, "0"):
        model(torch.ones(1, 2, 3))


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off_is_said(off, image):
    with (
        off(),
        pytest.raises(RuntimeError, match=f"gradients are off.*{off.__name__}"),
        capture(Residual(), "conv"),
    ):
        pass


def test_a_way_back_that_is_cut_is_said(image):
    class Numpy(Residual):
        def forward(self, x):
            return torch.from_numpy(super().forward(x).detach().numpy())

    model = Numpy()
    with (
        pytest.raises(RuntimeError, match="does not depend on conv.*numpy"),
        capture(model, "conv") as seen,
    ):
        seen.backward(model(image).sum())
    with capture(model, "conv") as seen:
        model(image)
    with pytest.raises(RuntimeError, match="context is closed"):
        seen.backward(torch.ones((), requires_grad=True))


def input_gradient(model, image):
    image = image.clone().requires_grad_()
    return torch.autograd.grad(model(image)[:, 0].sum(), image)[0]


def test_a_rule_that_changes_nothing_gives_the_plain_gradient(image):
    model = Residual()
    with edit_gradient(model, ["stem", "conv", "norm"], lambda g, a, n: g.clone()):
        edited = input_gradient(model, image)
    assert torch.equal(edited, input_gradient(model, image))


def test_a_rule_acts_where_it_is_put(image):
    model = Residual()
    with edit_gradient(model, "stem", lambda g, a, n: 3 * g):
        tripled = input_gradient(model, image)
    torch.testing.assert_close(tripled, 3 * input_gradient(model, image))
    with edit_gradient(model, "conv", lambda g, a, n: torch.zeros_like(g)):
        skip_only = input_gradient(model, image)
    x = image.clone().requires_grad_()
    skip = model.stem(x)
    score = model.head((model.norm(model.conv(skip.detach())) + skip).relu().mean((2, 3)))[
        :, 0
    ].sum()
    torch.testing.assert_close(skip_only, torch.autograd.grad(score, x)[0])


def test_a_rule_receives_the_activation_of_its_layer_before_in_place_changes(image):
    model, seen = Residual(), {}

    def rule(gradient, activation, name):
        seen[name] = activation
        return gradient

    with edit_gradient(model, "norm", rule):
        input_gradient(model, image)
    assert torch.equal(seen["norm"], by_hand(model, image)[0])


def test_a_module_used_twice_is_edited_in_both_places(image):
    relu = nn.Identity()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.Flatten())
    with edit_gradient(model, relu, lambda g, a, n: 2 * g):
        edited = input_gradient(model, image)
    torch.testing.assert_close(edited, 4 * input_gradient(model, image))


def test_a_graph_built_inside_keeps_its_edits_and_one_built_outside_has_none(image):
    model = Residual()
    plain = input_gradient(model, image)
    image = image.clone().requires_grad_()
    outside = model(image)[:, 0].sum()
    with edit_gradient(model, "stem", lambda g, a, n: 2 * g):
        inside = model(image)[:, 0].sum()
        assert torch.equal(torch.autograd.grad(outside, image)[0], plain)
    torch.testing.assert_close(torch.autograd.grad(inside, image)[0], 2 * plain)


def test_a_rule_that_returns_another_shape_and_a_layer_without_gradient_are_said(image):
    model = Residual()
    with (
        edit_gradient(model, "stem", lambda g, a, n: g.sum()),
        pytest.raises(ValueError, match="the gradient's shape.*; it returned"),
    ):
        input_gradient(model, image)
    model.requires_grad_(False)
    with (
        pytest.raises(RuntimeError, match="no gradient will pass layer 'stem'"),
        edit_gradient(model, "stem", lambda g, a, n: g),
    ):
        model(image)
