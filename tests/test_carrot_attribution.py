"""Exactness: splits that sum to the logit, removals that equal rebuilding, energies that sum to the
energy.
"""

import itertools

import pytest
import torch

from ctrace.carrot.attribution import (
    centrality,
    edge_energy,
    node_energy,
    region_contributions,
    remove_edges,
    remove_nodes,
    remove_subgraph,
    subset_logits,
)
from ctrace.carrot.diffusion import READOUTS, DiffusionOperator, GraphReadout
from ctrace.carrot.graph import RegionGraph, RegionGraphBuilder, RegionSet
from tests import reference_carrot as reference
from tests.test_carrot_graph import regions

LINEAR = ["mean", "sum", "degree"]
WIDE = ["mean_max", "mean_var", "residual", "residual_abs"]
OPERATOR = DiffusionOperator(1.5)


@pytest.fixture(scope="module")
def built():
    r = regions(grid=(3, 4))
    return RegionGraphBuilder().build(r), r


def head(kind, c=5, k=3):
    return torch.randn(
        2 * c if kind in WIDE else c,
        k,
        generator=torch.Generator().manual_seed(9),
        dtype=torch.double,
    )


def literal(graph, r, i, nodes, kind):
    s = (float(graph.sigma_s[i]), float(graph.sigma_f[i]))
    return reference.removed(nodes, r.H[i], r.P[i], *s, OPERATOR.t, kind, head(kind))


@pytest.mark.parametrize("kind", LINEAR)
def test_contributions_of_regions_sum_to_the_logits(kind, built):
    graph, r = built
    omega = centrality(graph, OPERATOR, kind)
    logits = GraphReadout(kind)(OPERATOR(r.H, graph), r.H, graph) @ head(kind)
    torch.testing.assert_close(
        region_contributions(omega, r.H, head(kind)).sum(1), logits, rtol=0, atol=1e-10
    )


def test_omega_is_uniform_on_a_regular_graph_and_leans_to_the_hub_of_a_star():
    ring = torch.eye(6) + torch.eye(6).roll(1, 0) + torch.eye(6).roll(-1, 0)
    omega = centrality(RegionGraph.from_weights(ring), OPERATOR)
    torch.testing.assert_close(
        omega, torch.full((1, 6), 1 / 6, dtype=torch.double), rtol=0, atol=1e-11
    )
    star = torch.eye(6)
    star[0] = star[:, 0] = 1
    omega = centrality(RegionGraph.from_weights(star), OPERATOR)[0]
    assert omega[0] > 1.5 * omega[1] and torch.allclose(omega[1:], omega[1])


def test_omega_needs_a_weighted_sum(built):
    with pytest.raises(ValueError, match="no weighted sum"):
        centrality(built[0], OPERATOR, "max")


@pytest.mark.parametrize("kind", READOUTS)
def test_removing_each_region_equals_rebuilding_without_it(kind, built):
    graph, r = built
    logits = remove_nodes(r.H, graph, OPERATOR, GraphReadout(kind), head(kind))
    assert logits.shape == (2, 12, 3)
    for i, node in itertools.product(range(2), range(12)):
        torch.testing.assert_close(
            logits[i, node], literal(graph, r, i, {node}, kind), rtol=0, atol=1e-8
        )


def test_removing_a_region_equals_the_builder_run_on_the_others(built):
    graph, r = built
    logits, rest = (
        remove_nodes(r.H, graph, OPERATOR, GraphReadout("mean"), head("mean")),
        torch.arange(12) != 7,
    )
    others = RegionSet(r.H[:, rest], r.P[:, rest], r.members[:, :11], (1, 11))
    again = RegionGraphBuilder(sigma_s=graph.sigma_s, sigma_f=graph.sigma_f).build(others)
    expected = GraphReadout("mean")(OPERATOR(others.H, again), others.H, again) @ head("mean")
    torch.testing.assert_close(logits[:, 7], expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", READOUTS)
def test_removing_a_set_equals_rebuilding_without_it(kind, built):
    graph, r = built
    logits = remove_subgraph(r.H, graph, OPERATOR, GraphReadout(kind), head(kind), [0, 5, 11])
    for i in range(2):
        torch.testing.assert_close(
            logits[i], literal(graph, r, i, {0, 5, 11}, kind), rtol=0, atol=1e-8
        )


@pytest.mark.parametrize("kind", ["mean", "max", "residual"])
def test_sets_of_any_size_and_different_for_each_image_go_in_one_call(kind, built):
    graph, r = built
    keep = torch.rand(2, 12, 6, generator=torch.Generator().manual_seed(2)) < torch.linspace(
        0.3, 1, 6
    )
    keep[:, 0] = True
    logits = subset_logits(r.H, graph, OPERATOR, GraphReadout(kind), head(kind), keep)
    for i, j in itertools.product(range(2), range(6)):
        gone = set((~keep[i, :, j]).nonzero().flatten().tolist())
        torch.testing.assert_close(
            logits[i, j], literal(graph, r, i, gone, kind), rtol=0, atol=1e-8
        )


def test_keeping_everything_is_the_logit_itself_and_keeping_one_is_its_token(built):
    graph, r = built
    keep = torch.cat([torch.ones(12, 1), torch.eye(12)[:, 3:4]], 1)
    logits = subset_logits(r.H, graph, OPERATOR, GraphReadout("mean"), head("mean"), keep)
    whole = GraphReadout("mean")(OPERATOR(r.H, graph), r.H, graph) @ head("mean")
    torch.testing.assert_close(logits[:, 0], whole, rtol=0, atol=1e-11)
    torch.testing.assert_close(logits[:, 1], r.H[:, 3] @ head("mean"), rtol=0, atol=1e-11)


@pytest.mark.parametrize("least", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["mean", "degree", "mean_var"])
def test_cutting_each_edge_equals_the_graph_without_it(kind, least, built):
    """Also where many weights are 0 already."""
    W, r = built[0].W, built[1]
    graph = RegionGraph.from_weights(W * (W > least))
    edges = list(itertools.combinations(range(12), 2))[::7]
    logits = remove_edges(r.H, graph, OPERATOR, GraphReadout(kind), head(kind), edges)
    assert logits.shape == (2, len(edges), 3)
    for image, (e, (i, j)) in itertools.product(range(2), enumerate(edges)):
        W = graph.W[image].clone()
        W[i, j] = W[j, i] = 0
        torch.testing.assert_close(
            logits[image, e],
            reference.embedding(kind, r.H[image], W, 1.5) @ head(kind),
            rtol=0,
            atol=1e-9,
        )
    i, j = edges[1]
    torch.testing.assert_close(
        remove_edges(r.H, graph, OPERATOR, GraphReadout(kind), head(kind), [(j, i)])[:, 0],
        logits[:, 1],
    )


def test_removal_survives_a_region_whose_only_tie_is_removed():
    """Without self-ties a leaf loses its last weight; that is a graph with a node of degree zero,
    not a NaN in silence.
    """
    W = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])
    graph, H = RegionGraph.from_weights(W), torch.ones(1, 3, 2, dtype=torch.double)
    with pytest.raises(ValueError, match="left without any weight"):
        remove_nodes(H, graph, OPERATOR, GraphReadout("mean"), torch.eye(2))
    with pytest.raises(ValueError, match="nodes have no weight"):
        remove_edges(H, graph, OPERATOR, GraphReadout("mean"), torch.eye(2), [(0, 1)])


def test_energies_of_nodes_and_edges_sum_to_the_dirichlet_energy(built):
    graph, r = built
    diffused = OPERATOR(r.H, graph)
    for H in (r.H, diffused):
        for i in range(2):
            total = reference.dirichlet(H[i], graph.L[i])
            assert float(node_energy(graph, H)[i].sum()) == pytest.approx(total, rel=1e-10)
            assert float(edge_energy(graph, H)[i].sum()) == pytest.approx(total, rel=1e-10)


def test_the_energy_of_an_edge_by_hand():
    graph = RegionGraph.from_weights(torch.tensor([[1.0, 0.5], [0.5, 1]]))
    H = torch.tensor([[[3.0], [0.0]]])
    expected = 0.5 * (3 / 1.5**0.5) ** 2 / 2
    torch.testing.assert_close(
        edge_energy(graph, H), torch.tensor([[[0, expected], [expected, 0]]], dtype=torch.double)
    )


def test_nothing_keeps_a_gradient_or_changes_its_inputs(built):
    graph, r = built
    before, H = graph.W.clone(), r.H.clone()
    for kind in ("mean", "max"):
        assert not remove_nodes(r.H, graph, OPERATOR, GraphReadout(kind), head(kind)).requires_grad
    assert torch.equal(graph.W, before) and torch.equal(r.H, H)


@pytest.mark.parametrize(
    "keep, words",
    [
        (torch.ones(5, 2), "one column per choice"),
        (torch.full((12, 1), 0.5), "zeros and ones"),
        (torch.zeros(12, 1), "removes every region"),
    ],
)
def test_masks_that_do_not_fit_are_refused(keep, words, built):
    with pytest.raises(ValueError, match=words):
        subset_logits(built[1].H, built[0], OPERATOR, GraphReadout("mean"), head("mean"), keep)


@pytest.mark.parametrize(
    "edges, words",
    [
        ([(1, 1)], "no edge"),
        ([(0, 12)], "two different regions"),
        ([1, 2], "pairs"),
        ([(-1, 2)], "two"),
    ],
)
def test_edges_that_are_none_are_refused(edges, words, built):
    with pytest.raises(ValueError, match=words):
        remove_edges(built[1].H, built[0], OPERATOR, GraphReadout("mean"), head("mean"), edges)
