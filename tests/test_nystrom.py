import pytest
import torch

from ctrace.nystrom import farthest_points, propagate

DOUBLE = torch.float64


@pytest.fixture
def points():
    torch.manual_seed(0)
    return torch.randn(200, 3, dtype=DOUBLE), torch.randn(40, 3, dtype=DOUBLE)


def test_a_constant_field_comes_back_constant(points):
    x, landmarks = points
    assert torch.allclose(propagate(torch.ones(40, 2, dtype=DOUBLE), landmarks, x), torch.ones(200, 2, dtype=DOUBLE), atol=1e-14)


def test_a_landmark_row_takes_its_own_value(points):
    x, landmarks = points
    values = torch.randn(40, 2, dtype=DOUBLE)
    assert torch.equal(propagate(values, landmarks, torch.cat([x, landmarks]))[200:], values)


def test_copies_of_a_landmark_share_their_mean(points):
    _, landmarks = points
    landmarks = torch.cat([landmarks[:1].expand(20, -1), landmarks[1:]])
    values = torch.arange(59, dtype=DOUBLE)[:, None]
    assert torch.allclose(propagate(values, landmarks, landmarks[:1], n_neighbors=20), values[:20].mean())


def test_gradcheck_passes_in_values_landmarks_and_rows(points):
    x, landmarks = (p[:8].clone().requires_grad_() for p in points)
    values = torch.randn(8, 2, dtype=DOUBLE, requires_grad=True)

    def f(values, landmarks, x):
        with torch.no_grad():
            scale = (x[:, None] - landmarks).square().sum(2).amax(1, keepdim=True) / 4
        weights = torch.softmax(-(x[:, None] - landmarks).square().sum(2) / (2 * scale), 1)
        return weights @ values

    got = torch.autograd.grad(propagate(values, landmarks, x, 8).pow(2).sum(), (values, landmarks, x))
    want = torch.autograd.grad(f(values, landmarks, x).pow(2).sum(), (values, landmarks, x))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, want, strict=True))


def test_chunks_do_not_change_the_result(points, monkeypatch):
    x, landmarks = points
    values = torch.randn(40, 2, dtype=DOUBLE)
    whole = propagate(values, landmarks, x)
    monkeypatch.setattr("ctrace.nystrom.CHUNK_BYTES", 8 * 40 * 17)
    assert torch.allclose(propagate(values, landmarks, x), whole, atol=1e-14)


def test_farthest_points_are_distinct_spread_and_seeded(points):
    x, _ = points
    picked = farthest_points(x, 30, seed=1)
    assert len(set(picked.tolist())) == 30
    assert torch.equal(picked, farthest_points(x, 30, seed=1))
    nearest = torch.cdist(x, x[picked]).amin(1).max()  # how far the worst row is from a landmark
    assert nearest < torch.cdist(x, x[torch.randperm(200)[:30]]).amin(1).max()


@pytest.mark.parametrize("m", [0, 201])
def test_impossible_numbers_of_landmarks_are_refused(points, m):
    with pytest.raises(ValueError, match="between 1 and the 200 rows"):
        farthest_points(points[0], m)
