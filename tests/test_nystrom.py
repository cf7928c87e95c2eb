import pytest
import torch
from reference import central_difference, relative_error, subspace_angle

from ctrace import Graph, Ncut, kway_ncut, ncut_eigenvectors
from ctrace.cut.nystrom import farthest_points, masses, propagate

DOUBLE = torch.float64


@pytest.fixture
def points():
    torch.manual_seed(0)
    return torch.randn(200, 3, dtype=DOUBLE), torch.randn(40, 3, dtype=DOUBLE)


def test_a_constant_field_comes_back_constant(points):
    x, landmarks = points
    assert torch.allclose(
        propagate(torch.ones(40, 2, dtype=DOUBLE), landmarks, x),
        torch.ones(200, 2, dtype=DOUBLE),
        atol=1e-14,
    )


def test_a_landmark_row_takes_its_own_value(points):
    x, landmarks = points
    values = torch.randn(40, 2, dtype=DOUBLE)
    assert torch.equal(propagate(values, landmarks, torch.cat([x, landmarks]))[200:], values)


def test_copies_of_a_landmark_share_their_mean(points):
    _, landmarks = points
    landmarks = torch.cat([landmarks[:1].expand(20, -1), landmarks[1:]])
    values = torch.arange(59, dtype=DOUBLE)[:, None]
    assert torch.allclose(
        propagate(values, landmarks, landmarks[:1], n_neighbors=20), values[:20].mean()
    )


def test_interpolation_passes_gradcheck_in_values_landmarks_and_rows(points):
    x, landmarks = (p[:8].clone().requires_grad_() for p in points)
    values = torch.randn(8, 2, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *given: propagate(*given, n_neighbors=5), (values, landmarks, x)
    )


def test_the_gradient_through_landmarks_is_that_of_the_whole_pipeline_run_again():
    torch.manual_seed(0)
    x = torch.randn(120, 4, dtype=DOUBLE) + 4 * torch.eye(4, dtype=DOUBLE)[torch.arange(120) % 3]

    def score(x):
        Z = kway_ncut(
            Ncut(3, sigma=1.5, track_grad=True, max_exact=50, n_landmarks=40).fit_transform(x)
        )
        return Z[Z.detach().argmax(1) == 0, 0].abs().mean()

    points = x.clone().requires_grad_()
    score(points).backward()
    for _ in range(4):
        direction = torch.randn_like(x)
        # A step so small that no point changes its landmarks: which they are is a choice, and a
        # choice has no slope.
        assert (
            relative_error(
                float((points.grad * direction).sum()),
                central_difference(score, x, direction, 1e-6),
            )
            < 1e-5
        )


def test_chunks_do_not_change_the_result(points, monkeypatch):
    x, landmarks = points
    values = torch.randn(40, 2, dtype=DOUBLE)
    whole = propagate(values, landmarks, x)
    monkeypatch.setattr("ctrace.cut.nystrom.CHUNK_BYTES", 8 * 40 * 17)
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


def test_every_row_counts_for_its_nearest_landmark(points):
    x, landmarks = points
    count = masses(landmarks, x)
    assert count.sum() >= 200 and count.min() >= 1
    assert torch.equal(
        masses(landmarks, torch.cat([landmarks, landmarks[:1], landmarks[:1]])),
        1 + 2 * (torch.arange(40) == 0).double(),
    )


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_a_landmark_that_stands_for_copies_gives_the_cut_of_all_copies(points, memory_limit):
    _, x = points
    count = torch.arange(40) % 4 + 1
    U, spectrum = ncut_eigenvectors(Graph(x, 1.0, mass=count, memory_limit=memory_limit), 3)
    whole, known = ncut_eigenvectors(Graph(x.repeat_interleave(count, 0), 1.0), 3)
    assert torch.allclose(spectrum.eigval, known.eigval, atol=1e-10)
    assert subspace_angle((U / count.sqrt()[:, None]).repeat_interleave(count, 0), whole) < 1e-8


def test_landmarks_come_closer_to_the_exact_subspace_when_they_stand_for_their_neighbours():
    torch.manual_seed(0)
    x = torch.cat(
        [
            torch.randn(600, 2, dtype=DOUBLE) * 0.3,
            torch.randn(300, 2, dtype=DOUBLE) + 2,
            torch.randn(100, 2, dtype=DOUBLE) * 2 - 3,
        ]
    )
    exact, angles = Ncut(4, sigma=0.7).fit_transform(x), []
    for m in (100, 300, 900):
        U = Ncut(4, sigma=0.7, max_exact=m, n_landmarks=m).fit_transform(x)
        angles.append(subspace_angle(torch.linalg.qr(U)[0], exact))
    rows = farthest_points(x, 300)
    plain = propagate(ncut_eigenvectors(Graph(x[rows], 0.7), 4)[0], x[rows], x)
    assert angles[0] > angles[1] > angles[2] and angles[1] < 0.5 * subspace_angle(
        torch.linalg.qr(plain)[0], exact
    )


@pytest.mark.parametrize("mass", [torch.ones(3), -torch.ones(40), torch.full((40,), torch.nan)])
def test_impossible_masses_are_refused(points, mass):
    with pytest.raises(ValueError, match="mass: expected (40 positive|finite) numbers"):
        Graph(points[1], 1.0, mass=mass)


@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_far_from_the_origin_every_row_keeps_its_nearest_landmark(offset):
    torch.manual_seed(0)
    x = torch.randn(2000, 3) + offset
    landmarks = x[farthest_points(x, 200)]
    nearest = (x[:, None] - landmarks[None]).norm(dim=2).argmin(1)
    assert torch.equal(masses(landmarks, x), torch.bincount(nearest, minlength=200).float())
    values = torch.randn(200, 2)
    assert torch.equal(propagate(values, landmarks, landmarks), values)
