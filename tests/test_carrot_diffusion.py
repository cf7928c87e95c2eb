"""The heat operator: three ways that agree, its algebra, and its limits."""

import math

import pytest
import torch
from scipy.sparse.linalg import expm_multiply

from ctrace.carrot.diffusion import DiffusionOperator, chebyshev_weights, exp_action
from ctrace.carrot.graph import RegionGraph, RegionGraphBuilder, RegionSet
from tests import reference_carrot as reference
from tests.test_carrot_graph import regions

WAYS = ["matrix_exp", "eigh", "action"]


@pytest.fixture(scope="module")
def built():
    r = regions(grid=(5, 6))
    return RegionGraphBuilder().build(r), r


@pytest.mark.parametrize("method", WAYS)
@pytest.mark.parametrize("t", [0.0, 0.3, 2.0, 40.0])
def test_every_way_equals_the_power_series(method, t, built):
    graph, r = built
    diffused = DiffusionOperator(t, method)(r.H, graph)
    for i in range(2):
        torch.testing.assert_close(
            diffused[i], reference.heat(graph.L[i], t) @ r.H[i], rtol=0, atol=1e-11
        )


def test_the_action_equals_scipy(built):
    graph, r = built
    expected = torch.from_numpy(expm_multiply((-3.0 * graph.L[0]).numpy(), r.H[0].numpy()))
    torch.testing.assert_close(
        DiffusionOperator(3.0, "action")(r.H, graph)[0], expected, rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("t", [0.5, 5.0, 500.0])
def test_the_action_serves_spectra_down_to_minus_one(t):
    """A path without self-ties is bipartite: the normalised weights have the eigenvalue -1, where
    Chebyshev is at its limit.
    """
    W = torch.diag(torch.ones(19), 1) + torch.diag(torch.ones(19), -1)
    graph, H = (
        RegionGraph.from_weights(W),
        torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double),
    )
    assert torch.linalg.eigvalsh(graph.L).max() > 2 - 1e-9
    a, b = (DiffusionOperator(t, method)(H, graph) for method in ("action", "eigh"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", WAYS)
def test_times_add_up(method, built):
    graph, r = built
    step = lambda t, H: DiffusionOperator(t, method)(H, graph)
    torch.testing.assert_close(step(0.7, step(1.6, r.H)), step(2.3, r.H), rtol=0, atol=1e-11)


def test_time_zero_changes_nothing_at_all(built):
    graph, r = built
    assert torch.equal(DiffusionOperator(0, "action")(r.H, graph), r.H)
    torch.testing.assert_close(DiffusionOperator(0)(r.H, graph), r.H, rtol=0, atol=1e-14)


def test_in_the_end_every_region_shows_the_same_pattern(built):
    graph, r = built
    root = graph.d.sqrt() / graph.d.sum(1, keepdim=True).sqrt()  # (b, m)
    rest = root[..., None] * (root[..., None] * r.H).sum(1, keepdim=True)
    torch.testing.assert_close(DiffusionOperator(300.0)(r.H, graph), rest, rtol=0, atol=1e-10)


def test_energy_only_falls(built):
    graph, r = built
    energy = [
        float(torch.einsum("bmc,bmn,bnc->", H, graph.L, H))
        for H in (DiffusionOperator(t)(r.H, graph) for t in (0, 0.1, 1, 10))
    ]
    assert energy == sorted(energy, reverse=True) and energy[-1] < 0.1 * energy[0]


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_points_diffuse_as_their_matrix_does(memory_limit, built):
    graph, r = built
    for i, points in enumerate(RegionGraphBuilder().points(r)):
        points = type(points)(points.x, sigma=points.sigma, memory_limit=memory_limit)
        assert points.stored == bool(memory_limit)
        torch.testing.assert_close(
            DiffusionOperator(2.0)(r.H[i], points),
            DiffusionOperator(2.0)(r.H, graph)[i],
            rtol=0,
            atol=1e-9,
        )


def test_the_action_asks_for_products_only_and_for_few():
    calls = []
    S = torch.eye(3, dtype=torch.double) / 2

    def product(v):
        calls.append(v.shape)
        return S @ v

    out = exp_action(product, torch.ones(3, 2, dtype=torch.double), 2.0)
    torch.testing.assert_close(
        out, torch.full((3, 2), math.exp(-1), dtype=torch.double), rtol=1e-12, atol=0
    )
    assert set(calls) == {(3, 2)} and len(calls) == len(chebyshev_weights(2.0)) - 1 < 20


@pytest.mark.parametrize("t", [0.0, 0.01, 1.0, 30.0, 3000.0])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-12])
def test_the_dropped_coefficients_bound_the_error(t, tolerance):
    x = torch.linspace(-1, 1, 201, dtype=torch.double)
    error = (
        (exp_action(lambda v: x * v, torch.ones_like(x), t, tolerance) - torch.exp(-t * (1 - x)))
        .abs()
        .max()
    )
    assert error <= tolerance + 1e-12


def test_float32_tokens_are_diffused_in_float64(built):
    graph, r = built
    assert DiffusionOperator(1.0)(r.H.float(), graph).dtype == torch.float64


def test_one_image_has_one_graph():
    """Tokens ``(n, c)`` without a batch are a batch of one."""
    H, P = torch.randn(9, 4), torch.rand(9, 2)
    W, L = RegionGraphBuilder().build(RegionSet(H, P))
    assert W.shape == (1, 9, 9) and DiffusionOperator(t=1.0)(H, L[0]).shape == (9, 4)


@pytest.mark.parametrize("t", [-1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(t):
    with pytest.raises(ValueError, match="finite number at least 0"):
        DiffusionOperator(t)


def test_what_does_not_fit_is_refused(built):
    graph, r = built
    with pytest.raises(ValueError, match="matrix_exp, eigh, action"):
        DiffusionOperator(1.0, "euler")
    with pytest.raises(ValueError, match=r"each node of the graph \(2, 30\)"):
        DiffusionOperator(1.0)(r.H[:, :5], graph)
    points = RegionGraphBuilder().points(r)[0]
    with pytest.raises(ValueError, match="'action'"):
        DiffusionOperator(1.0, "eigh")(r.H[0], points)
    with pytest.raises(ValueError, match=r"each node of the graph \(30,\)"):
        DiffusionOperator(1.0)(r.H, points)
