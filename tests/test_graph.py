import pytest
import torch
from reference import central_difference, relative_error

from ctrace.cut.affinity import bandwidth, rbf_affinity
from ctrace.cut.graph import Graph, PrecomputedGraph

DOUBLE = torch.float64


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(30, 5, dtype=DOUBLE) * 2 + 7


@pytest.mark.parametrize(
    "affinity, sigma",
    [("rbf", "local"), ("rbf", 2.0), ("cosine", 0.5), (lambda a, b: (a @ b.T).sigmoid(), None)],
)
def test_matrix_free_graph_equals_the_stored_one(x, affinity, sigma, monkeypatch):
    monkeypatch.setattr(
        "ctrace.cut.affinity.TILE_BYTES", 7 * 30 * 8
    )  # seven rows a tile: the last tile is short
    stored, free = Graph(x, sigma, affinity), Graph(x, sigma, affinity, memory_limit=0)
    v = torch.randn(30, 4, dtype=DOUBLE)
    assert stored.stored and not free.stored
    assert torch.allclose(stored.matmul(v), free.matmul(v), rtol=1e-12)
    assert torch.allclose(stored.matmul(v), stored.weights() @ v, rtol=1e-12)
    assert torch.allclose(free.degree, stored.weights().sum(1), rtol=1e-12)


@pytest.mark.parametrize(
    "affinity, sigma", [("rbf", "local"), ("cosine", 0.5), (lambda a, b: (a @ b.T).sigmoid(), None)]
)
def test_product_passes_gradcheck(x, affinity, sigma):
    sigma = bandwidth(x, sigma) if sigma == "local" else sigma
    v = torch.randn(12, 2, dtype=DOUBLE, requires_grad=True)
    points = x[:12].clone().requires_grad_()
    scale = sigma[:12] if isinstance(sigma, torch.Tensor) else sigma
    assert torch.autograd.gradcheck(lambda x, v: Graph(x, scale, affinity) @ v, (points, v))


@pytest.mark.parametrize("memory_limit", [0, 2**30])
@pytest.mark.parametrize("mass", [None, torch.arange(1.0, 31.0, dtype=DOUBLE)])
def test_the_gradient_over_half_of_the_tiles_is_that_over_all(x, memory_limit, mass, monkeypatch):
    monkeypatch.setattr("ctrace.cut.affinity.TILE_BYTES", 7 * 30 * 8)  # the last tile is short
    x.requires_grad_()
    graph = Graph(x, "local", memory_limit=memory_limit, mass=mass, bandwidth_grad=False)
    left, right = torch.randn(2, 30, 4, dtype=DOUBLE)
    whole = graph.vjp(left, right)
    exact = torch.autograd.grad((graph.weights() * (left @ right.T)).sum(), x)[0]
    assert torch.allclose(whole, graph.vjp(left, right, torch.arange(30)), rtol=1e-12, atol=1e-12)
    assert torch.allclose(whole, exact, rtol=1e-10, atol=1e-12)


def test_rbf_gradient_sums_to_zero_in_every_channel(x):
    x.requires_grad_()
    (Graph(x) @ torch.randn(30, 3, dtype=DOUBLE)).square().sum().backward()
    assert x.grad.abs().max() > 1e-3
    assert x.grad.sum(0).abs().max() < 1e-12


def test_precomputed_weights_have_the_derivative_of_a_symmetric_matrix(x):
    W = (0.1 + rbf_affinity(x, sigma=2.0)).requires_grad_()
    v = torch.randn(30, 2, dtype=DOUBLE)

    def f(W):
        return (PrecomputedGraph(W) @ v).pow(3).sum()

    f(W).backward()
    direction = torch.rand(30, 30, dtype=DOUBLE)
    direction = direction + direction.T
    assert (
        relative_error(
            float((W.grad * direction).sum()), central_difference(f, W.detach(), direction)
        )
        < 1e-7
    )


def test_far_away_float32_features_keep_their_digits():
    torch.manual_seed(0)
    x = torch.randn(40, 3, dtype=DOUBLE) + torch.tensor([300.0, -200.0, 100.0]) * torch.arange(40)[
        :, None
    ].remainder(2)
    exact = Graph(x, 1.0).degree
    assert ((Graph(x.float(), 1.0).degree.double() - exact) / exact).abs().max() < 1e-5


@pytest.mark.parametrize(
    "bad, says",
    [
        (lambda x: x[None], "two axes"),
        (lambda x: x.long(), "float32 or float64"),
        (lambda x: x.numpy(), "torch tensor"),
        (lambda x: x[:1], "at least 2 rows"),
        (lambda x: x[:, :0], "1 channel"),
        (lambda x: x[:0], "at least 2 rows"),
        (lambda x: x.index_fill(0, torch.tensor(3), float("nan")), "1 of 30 rows hold NaN"),
        (lambda x: x.index_fill(0, torch.tensor([3, 4]), float("inf")), "2 of 30 rows hold NaN"),
        (lambda x: torch.ones_like(x), "all 30 rows are the same"),
    ],
)
def test_bad_features_are_named(x, bad, says):
    with pytest.raises(ValueError, match=says):
        Graph(bad(x))


@pytest.mark.parametrize(
    "arguments, says",
    [
        (dict(sigma=0.0), "positive"),
        (dict(sigma=-1.0), "positive"),
        (dict(sigma=float("nan")), "positive"),
        (dict(sigma="wide"), "one of"),
        (dict(sigma=torch.ones(7)), "each of the 30 points"),
        (dict(affinity="linear"), "one of rbf, cosine, received 'linear'"),
        (dict(affinity="cosine", sigma="local"), "finite number above 0"),
        (dict(affinity=lambda a, b: a @ b.T - 1000), "negative"),
        (
            dict(
                affinity=lambda a, b: (
                    (a @ torch.triu(torch.ones(5, 5, dtype=DOUBLE)) @ b.T).sigmoid()
                    + a[:, :1].abs()
                )
            ),
            "symmetric",
        ),
        (dict(affinity=lambda a, b: (a @ b.T).sigmoid() * 0), "no weight to any node"),
        (dict(affinity=lambda a, b: a @ b.T, sigma=1.0), "its own bandwidth"),
    ],
)
def test_bad_graphs_are_named(x, arguments, says):
    with pytest.raises(ValueError, match=says):
        Graph(x, **arguments)


def test_a_function_that_is_negative_for_a_few_pairs_or_asymmetric_in_small_weights_is_refused():
    x = torch.cat([torch.zeros(200, 1), torch.ones(1, 1)]).double()
    with pytest.raises(ValueError, match="negative, NaN or infinite"):
        Graph(x, affinity=lambda a, b: 1 - 2 * (a - b.T).square())
    with pytest.raises(ValueError, match="symmetric"):
        Graph(x + torch.arange(201)[:, None], affinity=lambda a, b: 1e-9 * (1 + a + 0 * b.T))


def test_features_changed_in_place_are_noticed_by_the_backward_pass(x):
    x.requires_grad_()
    product = Graph(x) @ torch.randn(30, 3, dtype=DOUBLE)
    with torch.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        product.sum().backward()


def test_only_copies_have_no_local_scale():
    x = torch.eye(3).repeat_interleave(9, 0)
    with pytest.raises(ValueError, match="exact copies"):
        Graph(x)
    assert Graph(x, "median").sigma > 0


@pytest.mark.parametrize(
    "W, says",
    [
        (-torch.ones(3, 3), "non-negative"),
        (torch.rand(3, 4), "symmetric"),
        (torch.diag(torch.tensor([1.0, 0])), "no weight"),
    ],
)
def test_bad_weights_are_named(W, says):
    with pytest.raises(ValueError, match=says):
        PrecomputedGraph(W)


@pytest.mark.parametrize("memory_limit", [0, 2**30])
@pytest.mark.parametrize("sigma", ["local", 2.0])
def test_the_closed_form_gradient_of_rbf_is_that_of_its_weights(x, sigma, memory_limit):
    graph, points = Graph(x, sigma, memory_limit=memory_limit), x.clone().requires_grad_()
    left, right = torch.randn(2, 30, 3, dtype=DOUBLE)
    (rbf_affinity(points, sigma=graph.sigma) * (left @ right.T)).sum().backward()
    rows = torch.tensor([4, 0, 17])
    assert torch.allclose(graph.vjp(left, right), points.grad, rtol=1e-10, atol=1e-12)
    assert torch.allclose(graph.vjp(left, right, rows), points.grad[rows], rtol=1e-10, atol=1e-12)


def test_the_gradient_of_far_away_float32_features_keeps_its_digits():
    torch.manual_seed(0)
    x = torch.randn(40, 3, dtype=DOUBLE) + torch.tensor([300.0, -200.0, 100.0]) * torch.arange(40)[
        :, None
    ].remainder(2)
    x, (left, right) = (
        x.float().double(),
        torch.randn(2, 40, 3, dtype=DOUBLE),
    )  # rounded once, so that only our own rounding counts
    exact = Graph(x, 1.0).vjp(left, right)
    assert (
        Graph(x.float(), 1.0).vjp(left.float(), right.float()) - exact
    ).norm() / exact.norm() < 1e-5
