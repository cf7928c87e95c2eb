import copy
import pickle

import pytest
import torch
from reference import subspace_angle
from test_eigenvectors import blobs

from ctrace import Ncut, kway_ncut

DOUBLE = torch.float64


def test_either_switch_keeps_the_graph_and_neither_detaches():
    x = blobs().requires_grad_()
    assert Ncut(3, track_grad=True).fit_transform(x).requires_grad
    assert Ncut(3, exact_gradient=True).fit_transform(x).requires_grad
    assert not Ncut(3).fit_transform(x).requires_grad


def test_a_refit_chooses_the_bandwidth_again_and_keeps_a_number():
    rule, number = Ncut(3, sigma="median"), Ncut(3, sigma=2.0)
    first, second = float(rule.fit(blobs()).bandwidth), float(rule.fit(2 * blobs()).bandwidth)
    assert second == pytest.approx(2 * first)
    assert float(number.fit(blobs()).bandwidth) == float(number.fit(2 * blobs()).bandwidth) == 2.0


def test_transform_of_fitted_rows_returns_the_fitted_vectors():
    x = blobs()
    ncut = Ncut(4)
    U = ncut.fit_transform(x)
    assert torch.equal(ncut.transform(x[[5, 100, 7]]), U[[5, 100, 7]])


def test_transform_of_new_rows_lands_in_the_right_segment():
    x = blobs(spread=6)
    ncut = Ncut(4, sigma="median")
    segments = kway_ncut(ncut.fit_transform(x)).argmax(1)
    nearby = ncut.transform(x + 0.01)
    R = kway_ncut(ncut.fit_transform(x), return_rotation=True)[1]
    assert ((nearby @ R).argmax(1) == segments).all()


def test_transform_passes_a_gradient_to_the_new_rows():
    ncut = Ncut(4, track_grad=True).fit(blobs())
    new = (blobs()[:6] + 0.3).requires_grad_()
    ncut.transform(new).pow(2).sum().backward()  # test_nystrom checks the numbers
    assert (new.grad.abs().amax(1) > 0).all()


def test_beyond_max_exact_the_result_says_how_many_points_were_exact():
    x = blobs((300, 200, 200), spread=6)
    exact, sampled = (
        Ncut(3, sigma="median"),
        Ncut(3, sigma="median", max_exact=500, n_landmarks=200),
    )
    segments = [kway_ncut(n.fit_transform(x)).argmax(1) for n in (exact, sampled)]
    assert (exact.n_exact, sampled.n_exact) == (700, 200)
    assert (segments[0] == segments[1]).all()


def test_gradient_through_the_landmarks_equals_differences():
    x = blobs((60, 50, 40), spread=4)
    ncut = Ncut(3, sigma=4.0, track_grad=True, max_exact=100, n_landmarks=60, n_neighbors=150)
    torch.manual_seed(0)
    weight = torch.randn(150, 3, dtype=DOUBLE)
    # The interpolation's scales and the choice of landmarks are held constant; a step this small
    # does not change the choice.
    points = x.clone().requires_grad_()
    U = ncut.fit_transform(points)
    (kway_ncut(U).square() * weight).sum().backward()
    landmarks = ncut.graph.x.detach()
    assert torch.isfinite(points.grad).all()
    outside = ~(x[:, None] == landmarks[None]).all(2).any(1)
    assert points.grad[outside].abs().max() > 0 and points.grad[~outside].abs().max() > 0


@pytest.mark.parametrize(
    "fit",
    [
        lambda n: n.transform(blobs()),
        lambda n: n.eigval,
        lambda n: n.eigengap,
        lambda n: n.n_exact,
        lambda n: n.bandwidth,
    ],
)
def test_asking_before_fitting_is_refused(fit):
    with pytest.raises(ValueError, match="has not been fitted"):
        fit(Ncut(3))


@pytest.mark.parametrize("n_eig", [0, -1, 2.5, "4"])
def test_bad_number_of_eigenvectors_is_refused(n_eig):
    with pytest.raises(ValueError, match="whole number at least 1"):
        Ncut(n_eig)


def test_a_refused_refit_leaves_the_fit_before_as_it_was():
    x = blobs()
    ncut = Ncut(4)
    U = ncut.fit_transform(x)
    for wrong in (x[:3], torch.cat([x, x[:1] * torch.nan]), torch.ones(9, 6)):
        with pytest.raises(ValueError):
            ncut.fit(wrong)
        assert torch.equal(ncut.transform(x), U) and ncut.n_exact == len(x)


@pytest.mark.parametrize("affinity", ["rbf", "cosine"])
def test_a_fitted_ncut_can_be_pickled_and_copied(affinity):
    x = blobs()
    ncut = Ncut(4, affinity=affinity).fit(x)
    for copied in (pickle.loads(pickle.dumps(ncut)), copy.deepcopy(ncut)):
        assert torch.equal(copied.transform(x), ncut.transform(x))


@pytest.mark.parametrize("affinity", ["rbf", "cosine"])
def test_a_copy_of_a_tracked_fit_is_a_constant(affinity):
    x = 2 * blobs().requires_grad_()  # no leaf: torch copies none that has a history
    ncut = Ncut(4, affinity=affinity, track_grad=True)
    U = ncut.fit_transform(x)
    for copied in (pickle.loads(pickle.dumps(ncut)), copy.deepcopy(ncut)):
        assert torch.equal(copied.transform(x), ncut.transform(x))
        assert not copied.graph.x.requires_grad and copied.bandwidth.equal(ncut.bandwidth)
    assert torch.autograd.grad((U[:, 1] ** 4).sum(), x)[0].any()  # the original keeps its own


@pytest.mark.parametrize("given_in_the_mode", [False, True])
def test_a_fit_in_inference_mode_serves_a_gradient_later(given_in_the_mode):
    x, ncut, known = blobs(), Ncut(4, track_grad=True), Ncut(4, track_grad=True).fit(blobs())
    with torch.inference_mode():
        ncut.fit(blobs() if given_in_the_mode else x)
    new = (x[:5] + 0.01).requires_grad_()
    slopes = [torch.autograd.grad((n.transform(new) ** 2).sum(), new)[0] for n in (ncut, known)]
    assert slopes[0].any() and torch.equal(*slopes)


def test_tolerances_reach_the_solver():
    x = torch.randn(1200, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loose, tight = (Ncut(3, 2.0, tolerance=t, gradient_tolerance=t).fit(x) for t in (1e-4, 1e-11))
    assert loose.spectrum.forward < tight.spectrum.forward
    assert tight.spectrum.residual < 1e-10 < loose.spectrum.residual < 1e-3
    assert loose.spectrum.gradient_tolerance == 1e-4


def test_transform_in_another_precision_is_refused():
    with pytest.raises(
        ValueError, match="in torch.float64, as fitted, received 6 in torch.float32"
    ):
        Ncut(3).fit(blobs()).transform(blobs().float())


def test_fewer_points_than_eigenvectors_is_refused():
    with pytest.raises(ValueError, match="between 1 and the 5 points, received 6"):
        Ncut(6).fit(blobs((3, 2)))


def test_transform_of_other_channels_is_refused():
    with pytest.raises(
        ValueError, match="expected 6 channels in torch.float64, as fitted, received 3"
    ):
        Ncut(3).fit(blobs()).transform(blobs()[:, :3])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_refused():
    with pytest.raises(ValueError, match="sees no CUDA device"):
        Ncut(3, device="cuda")


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    x = blobs()
    assert subspace_angle(Ncut(4, device="cuda").fit_transform(x), Ncut(4).fit_transform(x)) < 1e-9
