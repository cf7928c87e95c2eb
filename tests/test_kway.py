import pytest
import torch

from ctrace import Graph, bandwidth, filter_bank, kway_ncut, load_photo, ncut_eigenvectors
from ctrace.cut.kway import _Polar, row_normalize

DOUBLE = torch.float64


def noisy_indicator(sizes=(40, 30, 20), noise=0.1, seed=0):
    """Orthonormal columns whose rows point near k orthogonal directions, turned at random."""
    torch.manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    E = torch.nn.functional.one_hot(labels).to(DOUBLE)
    U = torch.linalg.qr(E + noise * torch.randn(len(labels), len(sizes), dtype=DOUBLE))[0]
    return U @ rotation(len(sizes)), labels


def rotation(k, seed=5):
    return torch.linalg.qr(
        torch.randn(k, k, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    )[0]


def test_segments_of_a_noisy_indicator_are_found_and_ordered_by_size():
    U, labels = noisy_indicator((20, 40, 30))
    assert torch.equal(kway_ncut(U).argmax(1), torch.tensor([2, 0, 1])[labels])


def test_scores_are_the_rotated_eigenvectors():
    U, _ = noisy_indicator()
    Z, R = kway_ncut(U, return_rotation=True)
    assert torch.allclose(Z, U @ R)
    assert torch.allclose(R.T @ R, torch.eye(3, dtype=DOUBLE), atol=1e-12)


def test_rotation_satisfies_the_fixed_point():
    U, _ = noisy_indicator(noise=0.3)
    Z, R = kway_ncut(U, return_rotation=True)
    Y, E = (
        row_normalize(U),
        torch.nn.functional.one_hot((row_normalize(U) @ R).argmax(1)).to(DOUBLE),
    )
    A, _, Bt = torch.linalg.svd(Y.T @ E)
    assert torch.allclose(R, A @ Bt, atol=1e-12)


@pytest.mark.parametrize("change", ["sign", "order", "rotation"])
def test_scores_and_their_gradient_ignore_the_basis(change):
    U, _ = noisy_indicator(noise=0.3)
    Q = {
        "sign": torch.diag(torch.tensor([1.0, -1, -1])),
        "order": torch.eye(3)[[2, 0, 1]],
        "rotation": rotation(3, 9),
    }[change].to(DOUBLE)
    scores, grads = [], []
    for V in (U, U @ Q):
        V = V.clone().requires_grad_()
        Z = kway_ncut(V)
        Z.pow(3).sum().backward()
        scores.append(Z.detach()), grads.append(V.grad)
    assert torch.allclose(scores[0], scores[1], atol=1e-12)
    assert torch.allclose(grads[0] @ Q, grads[1], atol=1e-12)


def test_row_permutation_permutes_the_scores():
    U, _ = noisy_indicator(noise=0.3)
    order = torch.randperm(len(U), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(kway_ncut(U)[order], kway_ncut(U[order]), atol=1e-12)


def test_gradcheck_passes_through_the_rotation():
    U, _ = noisy_indicator((5, 4, 3))
    assert torch.autograd.gradcheck(kway_ncut, (U.requires_grad_(),))


def test_gradcheck_passes_for_the_polar_factor_at_repeated_singular_values():
    M = (2 * rotation(4)).requires_grad_()  # every singular value is 2
    assert torch.autograd.gradcheck(_Polar.apply, (M,))


def test_a_frozen_rotation_gives_another_gradient():
    U, _ = noisy_indicator(noise=0.3)
    grads = []
    for frozen in (False, True):
        V = U.clone().requires_grad_()
        Z, R = kway_ncut(V, return_rotation=True)
        ((V @ R.detach()) if frozen else Z).pow(3).sum().backward()
        grads.append(V.grad)
    assert (grads[0] - grads[1]).norm() / grads[0].norm() > 0.05


def test_one_segment_works():
    U = torch.ones(7, 1, dtype=DOUBLE).requires_grad_()
    Z = kway_ncut(U)
    Z.sum().backward()
    assert torch.equal(Z, U) and torch.equal(U.grad, torch.ones(7, 1, dtype=DOUBLE))


def test_fewer_clusters_use_the_first_columns():
    U, _ = noisy_indicator()
    assert torch.equal(kway_ncut(U, 2), kway_ncut(U[:, :2]))


def test_an_empty_segment_keeps_its_column():
    U = torch.zeros(6, 3, dtype=DOUBLE)
    U[:4, 0], U[4:, 1] = 0.5, 0.7  # nobody points along the third axis
    Z = kway_ncut(U)
    assert Z.shape == (6, 3)
    assert torch.bincount(Z.argmax(1), minlength=3).tolist() == [4, 2, 0]


def test_two_empty_segments_have_no_gradient():
    U = torch.zeros(6, 4, dtype=DOUBLE)
    U[:4, 0], U[4:, 1] = 0.5, 0.7
    with pytest.raises(ArithmeticError, match="two of the 4 segments are empty"):
        kway_ncut(U.requires_grad_()).pow(3).sum().backward()


@pytest.mark.parametrize(
    "eigvec, k, says",
    [
        (torch.rand(5), None, "shape"),
        (torch.full((5, 2), float("nan")), None, "NaN"),
        (torch.rand(5, 3), 4, "from 1 to 3"),
        (torch.rand(5, 3), 0, "from 1 to 3"),
        (torch.rand(2, 3), 3, "from 1 to 2"),
        (torch.rand(5, 3), 2.0, "whole number"),
        (torch.eye(5, 3), None, "row of zeros"),
    ],
)
def test_bad_eigenvectors_are_named(eigvec, k, says):
    with pytest.raises(ValueError, match=says):
        kway_ncut(eigvec, k)


def test_float32_eigenvectors_give_the_segments_of_float64():
    x = filter_bank(load_photo("coffee"), grid=40).features
    U, _ = ncut_eigenvectors(Graph(x.double(), float(bandwidth(x, "median")) / 3), 8)
    assert torch.equal(kway_ncut(U.float()).argmax(1), kway_ncut(U).argmax(1))
