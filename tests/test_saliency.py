"""Input attributions: against captum, against calculus, and batch equal to one by one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ctrace.check import fingerprint
from ctrace.look import saliency
from ctrace.look.hooks import edit_gradient
from tests.reference_gradcam import Embedder, Residual

METHODS = {
    "gradient": saliency.gradient,
    "input_x_gradient": saliency.input_x_gradient,
    "smoothgrad": saliency.smoothgrad,
    "integrated_gradients": saliency.integrated_gradients,
}


def batch(b=3, dtype=torch.float32):
    return torch.randn(b, 3, 8, 9, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.fixture
def captum():
    return pytest.importorskip("captum.attr")


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.Conv2d(6, 6, 3), nn.GELU()]
    smooth = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5))
    smooth[
        1
    ].bias.data.normal_()  # without biases integrated gradients from zero are input x gradient
    smooth[1].running_mean.normal_()
    return smooth.eval()


def test_gradient_equals_captum_saliency(model, captum):
    theirs = captum.Saliency(model).attribute(batch().requires_grad_(), target=[1, 4, 0], abs=False)
    assert torch.equal(saliency.gradient(model, batch(), [1, 4, 0]), theirs)


def test_input_x_gradient_equals_captum(model, captum):
    theirs = (
        captum.InputXGradient(model).attribute(batch().requires_grad_(), target=[1, 4, 0]).detach()
    )
    assert torch.equal(saliency.input_x_gradient(model, batch(), [1, 4, 0]), theirs)


def test_smoothgrad_equals_captum_with_the_same_noise(model, captum):
    image = batch(1)
    spread = 0.15 * float(image.max() - image.min())
    torch.manual_seed(7)
    tunnel = captum.NoiseTunnel(captum.Saliency(model))
    theirs = tunnel.attribute(
        image, nt_type="smoothgrad", nt_samples=25, stdevs=spread, target=2, abs=False
    )
    torch.testing.assert_close(
        saliency.smoothgrad(model, image, 2, seed=7),
        theirs,
        rtol=0,
        atol=1e-6 * theirs.abs().max().item(),
    )


def test_smoothgrad_without_noise_is_the_gradient_and_with_it_is_not(model):
    plain = saliency.gradient(model, batch(), 2)
    torch.testing.assert_close(
        saliency.smoothgrad(model, batch(), 2, noise=0.0), plain, rtol=1e-4, atol=1e-8
    )
    assert not torch.allclose(saliency.smoothgrad(model, batch(), 2), plain, rtol=1e-2)


def test_smoothgrad_is_seeded_and_leaves_the_global_random_state_alone(model):
    state = torch.get_rng_state()
    first = saliency.smoothgrad(model, batch(), 2, seed=1)
    assert torch.equal(first, saliency.smoothgrad(model, batch(), 2, seed=1))
    assert not torch.equal(first, saliency.smoothgrad(model, batch(), 2, seed=2))
    assert torch.equal(state, torch.get_rng_state())


def test_integrated_gradients_equal_captum_and_are_complete(model, captum):
    model, image = model.double(), batch(2, torch.float64)
    start = torch.full_like(image, 0.3)
    ours = saliency.integrated_gradients(model, image, [1, 4], steps=64, baseline=0.3)
    n = 65  # captum's trapezoid has n points with weights that sum to (n - 1) / n
    theirs = (
        captum.IntegratedGradients(model).attribute(
            image, start, target=[1, 4], method="riemann_trapezoid", n_steps=n
        )
        * n
        / (n - 1)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * theirs.abs().max().item())
    change = (model(image) - model(start)).gather(1, torch.tensor([[1], [4]]))[:, 0]
    torch.testing.assert_close(ours.sum((1, 2, 3)), change, rtol=2e-3, atol=0)
    gauss = captum.IntegratedGradients(model).attribute(image, start, target=[1, 4], n_steps=64)
    torch.testing.assert_close(ours, gauss, rtol=0, atol=2e-3 * gauss.abs().max().item())


def test_completeness_missed_by_too_few_steps_is_said(model):
    steep = nn.Sequential(model, nn.Linear(5, 1), nn.Tanh())
    steep[1].weight.data.mul_(30)
    with pytest.warns(UserWarning, match="Raise steps until they agree"):
        saliency.integrated_gradients(steep, batch(1) * 3, 0, steps=1)


def test_a_linear_model_is_explained_by_its_weights_exactly():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False)).double()
    image = torch.rand(2, 3, 2, 2, dtype=torch.float64)
    weight = net[1].weight[1].view(3, 2, 2).detach()
    for method in (saliency.gradient, saliency.smoothgrad):
        torch.testing.assert_close(method(net, image, 1), weight.expand(2, -1, -1, -1))
    for method in (saliency.input_x_gradient, saliency.integrated_gradients):
        torch.testing.assert_close(method(net, image, 1), image * weight)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_one_by_one_for_classes_and_embeddings(method, model):
    attribute, image = METHODS[method], batch(3, torch.float64)
    references = torch.randn(3, 5, generator=torch.Generator().manual_seed(5))
    one_each = dict(target_embedding=references)
    for questions in (
        dict(target=[1, 4, 0]),
        dict(target="predicted"),
        one_each,
        dict(one_each, baseline_embedding=references[0].neg()),
    ):
        together = attribute(model.double(), image, **questions)
        assert together.shape == image.shape and together.flatten(1).any(1).all()
        for i in range(3):
            own = {
                k: v[i] if isinstance(v, (list, torch.Tensor)) and len(v) == 3 else v
                for k, v in questions.items()
            }
            alone = attribute(model, image[i], **own)[0]
            torch.testing.assert_close(
                together[i], alone, rtol=0, atol=1e-6 * alone.abs().max().item()
            )


@pytest.mark.parametrize("method", METHODS)
def test_model_and_image_are_left_as_found(method):
    model, image = Residual().requires_grad_(False), batch()
    before, pixels = fingerprint(model), image.clone()
    METHODS[method](model, image, 2)
    assert (
        fingerprint(model) == before
        and torch.equal(image, pixels)
        and not image.requires_grad
        and image.grad is None
    )


def test_an_edited_gradient_is_followed(model):
    with edit_gradient(model, "0", lambda gradient, activation, name: 2 * gradient):
        edited = saliency.gradient(model, batch(), 1)
        smoothed = saliency.smoothgrad(model, batch(), 1)
    torch.testing.assert_close(edited, 2 * saliency.gradient(model, batch(), 1))
    torch.testing.assert_close(smoothed, 2 * saliency.smoothgrad(model, batch(), 1))


@pytest.mark.parametrize("method", METHODS)
def test_a_saturated_target_is_refused_in_words(method):
    embedder = Embedder(True)
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="image 1: saturated_target.*normalises"):
        METHODS[method](embedder, image, "norm")
    with pytest.raises(ValueError, match="image 0: saturated_target.*same embedding"):
        METHODS[method](embedder, image, target_embedding=embedder(image).detach())


def test_a_gradient_of_exactly_zero_is_said():
    shut = nn.Sequential(nn.Flatten(), nn.Linear(216, 4), nn.ReLU(), nn.Linear(4, 2))
    shut[1].bias.data.fill_(-100)
    with pytest.warns(UserWarning, match="image 0: the gradient is exactly zero"):
        saliency.gradient(shut, batch(1), 0)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: saliency.gradient(m, batch(), [1]), "one class for each of the 3 images"),
        (
            lambda m: saliency.smoothgrad(m, batch(), 1, samples=0),
            "samples: expected a whole number at least 1",
        ),
        (
            lambda m: saliency.integrated_gradients(m, batch(), 1, steps=0),
            "steps: expected a whole number at least 1",
        ),
        (
            lambda m: saliency.integrated_gradients(m, batch(), 1, baseline=torch.zeros(3, 2, 2)),
            "expected a finite number or image",
        ),
        (lambda m: saliency.gradient(m.train(), batch(), 1), "BatchNorm2d '1' is in training mode"),
    ],
)
def test_a_wrong_call_is_said(model, call, words):
    with pytest.raises(ValueError, match=words):
        call(model)


def test_no_grad_gets_a_plain_message(model):
    with torch.no_grad(), pytest.raises(RuntimeError, match="gradients are off"):
        saliency.gradient(model, batch(), 1)


def test_half_precision_agrees_with_double(model):
    exact = saliency.integrated_gradients(model.double(), batch(), 1)
    for dtype, bar in ((torch.float16, 0.999), (torch.bfloat16, 0.99)):
        half = saliency.integrated_gradients(model.to(dtype), batch(), 1).double()
        assert (F.cosine_similarity(half.flatten(1), exact.flatten(1)) > bar).all()
