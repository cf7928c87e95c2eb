"""Nine readouts: their formulas, what they can and cannot see of the graph, and their weights."""

import pytest
import torch

from ctrace.carrot.diffusion import READOUTS, DiffusionOperator, GraphReadout
from ctrace.carrot.graph import RegionGraph, RegionGraphBuilder
from tests import reference_carrot as reference
from tests.test_carrot_graph import regions

LINEAR = ["mean", "sum", "degree"]


@pytest.fixture(scope="module")
def built():
    r = regions(grid=(4, 5))
    return RegionGraphBuilder().build(r), r


@pytest.mark.parametrize("kind", READOUTS)
def test_every_readout_equals_its_literal_formula(kind, built):
    graph, r = built
    g = GraphReadout(kind, k=3)(DiffusionOperator(1.5)(r.H, graph), r.H, graph)
    for i in range(2):
        torch.testing.assert_close(
            g[i], reference.embedding(kind, r.H[i], graph.W[i], 1.5, k=3), rtol=0, atol=1e-11
        )


@pytest.mark.parametrize("kind", READOUTS)
def test_the_order_of_the_regions_does_not_matter(kind, built):
    graph, r = built
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    shuffled, operator = (
        RegionGraph.from_weights(graph.W[:, order][:, :, order]),
        DiffusionOperator(1.5),
    )
    a = GraphReadout(kind)(operator(r.H, graph), r.H, graph)
    b = GraphReadout(kind)(operator(r.H[:, order], shuffled), r.H[:, order], shuffled)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", LINEAR)
def test_a_linear_readout_is_its_weights_times_the_tokens(kind, built):
    graph, r = built
    readout = GraphReadout(kind)
    torch.testing.assert_close(
        torch.einsum("bm,bmc->bc", readout.weights(graph.d), r.H), readout(r.H, r.H, graph)
    )


@pytest.mark.parametrize("kind", [kind for kind in READOUTS if kind not in LINEAR])
def test_the_others_have_no_weights_and_say_so(kind, built):
    assert not GraphReadout(kind).is_linear
    with pytest.raises(ValueError, match="no weighted sum"):
        GraphReadout(kind).weights(built[0].d)


@pytest.mark.parametrize("kind", LINEAR)
def test_removed_regions_have_no_weight(kind, built):
    keep = torch.ones_like(built[0].d)
    keep[:, 4:] = 0
    weights = GraphReadout(kind).weights(built[0].d, keep)
    assert not weights[:, 4:].any() and (
        kind == "sum" or torch.allclose(weights.sum(1), torch.ones(2, dtype=torch.double))
    )


def test_with_equal_degrees_the_mean_cannot_see_diffusion():
    ring = torch.eye(8) + torch.eye(8).roll(1, 0) + torch.eye(8).roll(-1, 0)
    graph, H = (
        RegionGraph.from_weights(ring),
        torch.randn(1, 8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double),
    )
    diffused = DiffusionOperator(3.0)(H, graph)
    assert (diffused - H).norm() > 0.5 * H.norm()
    for kind in LINEAR:
        torch.testing.assert_close(
            GraphReadout(kind)(diffused, H, graph),
            GraphReadout(kind)(H, H, graph),
            rtol=0,
            atol=1e-11,
        )


@pytest.mark.parametrize("kind", ["max", "mean_max", "mean_var", "residual_abs", "topk"])
def test_t_changes_what_is_read_by_at_least_one_percent(kind, built):
    graph, r = built
    g = [GraphReadout(kind)(DiffusionOperator(t)(r.H, graph), r.H, graph) for t in (0.0, 1.0)]
    assert ((g[1] - g[0]).norm(dim=1) >= 0.01 * g[0].norm(dim=1)).all()


def test_topk_takes_all_where_there_are_fewer(built):
    graph, r = built
    torch.testing.assert_close(GraphReadout("topk", k=99)(r.H, r.H, graph), r.H.mean(1))


def test_unknown_names_and_numbers_are_refused():
    with pytest.raises(ValueError, match="mean, sum, max, mean_max"):
        GraphReadout("median")
    with pytest.raises(ValueError, match="at least 1"):
        GraphReadout("topk", k=0)
