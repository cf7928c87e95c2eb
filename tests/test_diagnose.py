import networkx
import pytest
import torch

from ctrace import Graph, PrecomputedGraph, bandwidth, diagnose, filter_bank, load_photo
from ctrace.cut.diagnose import _disturbed


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


@pytest.mark.parametrize(
    "channels, sigma", [(2, "local"), (5, "local"), (20, "local"), (2, 1.0), (2, 5.0), (5, 5.0)]
)
def test_two_blobs_eighty_apart_are_two_pieces_and_two_are_suggested(channels, sigma):
    torch.manual_seed(0)
    x = torch.randn(300, channels)
    x[150:, 0] += 80
    report = diagnose(Graph(x, sigma))
    assert (report.components, report.suggested_k) == (2, 2)


def test_an_outlier_is_a_piece_but_does_not_decide_the_number_of_segments():
    x = torch.cat([blobs(3, 4), torch.full((1, 5), 90.0)])
    report = diagnose(Graph(x, 2.5))
    assert (report.components, report.suggested_k) == (2, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory_limit", [2**30, 0])
@pytest.mark.parametrize("sigma", [1e-3, 0.1, 0.2, 0.3, 0.6])
def test_pieces_are_counted_exactly_at_every_bandwidth(dtype, memory_limit, sigma, monkeypatch):
    monkeypatch.setattr("ctrace.cut.affinity.TILE_BYTES", 2**15)  # several tiles
    torch.manual_seed(0)
    graph = Graph(torch.randn(300, 3).to(dtype), sigma, memory_limit=memory_limit)
    W = Graph(graph.x.double(), sigma).weights()
    joined = W / (W.sum(1)[:, None] * W.sum(1)).sqrt() > 1e-6
    pieces = networkx.number_connected_components(networkx.from_numpy_array(joined.numpy()))
    report = diagnose(graph)
    assert report.components == pieces
    assert (report.suggested_k is None) == (pieces > 12 or "alone" in str(report))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma, lonely", [(1e-3, 300), (0.1, 296)])
def test_a_bandwidth_far_too_small_is_named_and_every_lonely_point_counted(dtype, sigma, lonely):
    report = diagnose(Graph(blobs(2, 3).to(dtype), sigma))
    assert report.suggested_k is None and "ready" not in str(report)
    assert f"{lonely} of 300 points stand alone" in str(report)


def test_more_pieces_than_eigenvalues_are_counted_and_no_number_is_suggested():
    report = diagnose(Graph(blobs(6, 100), 1.5), n_eig=3)
    assert report.components == 6 and report.suggested_k is None
    assert "6 pieces: a cut into 3 or fewer is undefined" in str(report)


@pytest.mark.parametrize("name", ["coffee", "rocket"])
def test_a_span_that_noise_takes_away_is_measured_and_the_graph_not_called_ready(name):
    x = filter_bank(load_photo(name), grid=40).features
    local, one = diagnose(x), diagnose(Graph(x, 0.5))
    assert local.stability[5] < 0.5 < 0.99 < one.stability[5]
    assert "lost under noise" in str(local) and "ready" not in str(local)
    assert "ready to be cut into" in str(one)


def test_among_spans_that_stay_the_widest_gap_is_suggested():
    report = diagnose(Graph(blobs(3, 4), 2.5))
    stays = report.stability >= 0.9
    stays[0] = False
    assert report.gaps[report.suggested_k - 1] == report.gaps[stays].max()


def test_stability_is_the_cosine_of_the_largest_angle_between_the_two_spans():
    graph = Graph(blobs(3, 2).double(), 2.5)
    report = diagnose(graph, n_eig=4)
    for k in range(1, 5):
        P, Q = (
            projector(g.weights(), k) for g in (graph, _disturbed(graph, noise=1.0, seed=0))
        )  # the norm of the difference is the sine
        cosine = (1 - torch.linalg.matrix_norm(P - Q, 2).clamp_max(1).square()).sqrt()
        assert abs(report.stability[k - 1] - cosine) < 1e-6


def projector(W, k):
    root = W.sum(1).rsqrt()
    U = torch.linalg.eigh(root[:, None] * W * root)[1][:, -k:]
    return U @ U.T


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_noise_moves_two_points_by_its_multiple_of_the_distance_to_near_neighbours(noise):
    x = blobs(2, 3).double()
    moved = _disturbed(Graph(x), noise, seed=0).x - x
    near = torch.cdist(x, x).kthvalue(8).values.median()
    assert abs(torch.pdist(moved).square().mean().sqrt() / (noise * near) - 1) < 0.1


def test_the_rule_of_the_bandwidth_is_applied_again_to_the_moved_points():
    graph = Graph(blobs(2, 3), "median")
    moved = _disturbed(graph, 1.0, seed=0)
    assert moved.sigma == bandwidth(moved.x, "median") != graph.sigma


def test_given_weights_are_disturbed_themselves():
    graph = PrecomputedGraph(Graph(blobs(2, 2), 2.5).weights())
    assert "ready to be cut into 2" in str(diagnose(graph))
    torch.manual_seed(0)
    W = torch.rand(40, 40)
    assert "lost under noise" in str(diagnose(PrecomputedGraph(W + W.T)))


def test_where_noise_has_no_unit_stability_is_said_to_be_unknown():
    copies = torch.eye(3).repeat_interleave(20, 0)
    report = diagnose(Graph(copies, 1.0))
    assert len(report.stability) == 0 and "stability was not measured" in str(report)
    assert report.suggested_k == 3 and "ready" not in str(report)


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


def test_noise_must_be_positive():
    with pytest.raises(ValueError, match="noise: expected a finite number above 0"):
        diagnose(blobs(2, 3), noise=0)
