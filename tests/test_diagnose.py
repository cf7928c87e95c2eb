import pytest
import torch

from ctrace import Graph, diagnose


def blobs(k, spread):
    torch.manual_seed(0)
    return torch.cat([torch.randn(150, 5) + spread * torch.randn(5) for _ in range(k)])


@pytest.mark.parametrize("k", [2, 3, 4, 6])
def test_as_many_segments_as_blobs_are_suggested(k):
    report = diagnose(Graph(blobs(k, 4), 2.5))
    assert (report.suggested_k, report.components) == (k, 1)
    assert "ready to be cut" in str(report)


def test_components_are_counted_and_named():
    report = diagnose(Graph(blobs(3, 100), 1.5))
    assert report.components == 3 and report.suggested_k == 3
    assert "falls into 3 pieces" in str(report)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma, lonely, pieces", [(1e-3, 300, 300), (0.1, 296, 297)])
def test_a_bandwidth_far_too_small_is_named_and_every_lonely_point_counted(
    dtype, sigma, lonely, pieces
):
    report = diagnose(Graph(blobs(2, 3).to(dtype), sigma))
    assert report.components == pieces and report.suggested_k is None
    assert f"{lonely} of 300 points stand alone" in str(report)


def test_more_pieces_than_eigenvalues_are_a_lower_bound_and_said_to_be_one():
    report = diagnose(Graph(blobs(6, 100), 1.5), n_eig=3)
    assert "at least 4 connected components" in str(report)


def test_outliers_are_counted():
    x = torch.cat([blobs(2, 4), torch.full((1, 5), 60.0)])
    assert "1 points have almost no weight" in str(diagnose(Graph(x, 2.0)))


def test_no_open_gap_is_said():
    torch.manual_seed(0)
    assert "no open eigengap" in str(diagnose(torch.randn(600, 100)))


def test_features_are_taken_as_their_default_graph():
    x = blobs(3, 4)
    assert str(diagnose(x)) == str(diagnose(Graph(x)))


def test_two_points_are_refused():
    with pytest.raises(ValueError, match="points: expected a whole number at least 3"):
        diagnose(torch.eye(2))
