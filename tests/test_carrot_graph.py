"""Weights, bandwidths and Laplacian of the region graph, and what it says about graphs that are
none.
"""

import warnings

import pytest
import torch

from ctrace.carrot.graph import RegionGraph, RegionGraphBuilder, RegionSet
from ctrace.world.tokens import patch_centers
from tests import reference_carrot as reference


def regions(b=2, grid=(3, 4), c=5, scale=1.0, seed=0, dtype=torch.double):
    n = grid[0] * grid[1]
    H = scale * torch.randn(b, n, c, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return RegionSet(
        H, patch_centers(grid).to(dtype).expand(b, -1, -1), torch.arange(n).expand(b, n), grid
    )


def test_weights_and_laplacian_equal_the_literal_formula():
    r = regions()
    graph = RegionGraphBuilder(sigma_s=0.8, sigma_f=1.3).build(r)
    for i in range(2):
        W = reference.weights(r.H[i], r.P[i], 0.8, 1.3)
        torch.testing.assert_close(graph.W[i], W, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(graph.L[i], reference.laplacian(W), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(graph.d[i], W.sum(1))


def test_bandwidths_are_the_quantile_of_each_images_distances():
    r = regions()
    r = RegionSet(r.H * torch.tensor([1.0, 10.0])[:, None, None], r.P, r.members, r.grid_hw)
    graph = RegionGraphBuilder(quantile=0.5).build(r)
    for i in range(2):
        torch.testing.assert_close(graph.sigma_f[i], torch.pdist(r.H[i]).median())
        torch.testing.assert_close(graph.sigma_s[i], torch.pdist(r.P[i]).median())
    narrow = RegionGraphBuilder(quantile=0.1).build(r)
    assert (narrow.sigma_f < graph.sigma_f).all() and (
        narrow.W.sum((1, 2)) < graph.W.sum((1, 2))
    ).all()


def test_adapted_graphs_do_not_depend_on_the_scale_of_the_tokens():
    a, b = (RegionGraphBuilder().build(regions(scale=s)).W for s in (1.0, 1e3))
    torch.testing.assert_close(a, b)


def test_self_distances_are_exactly_zero_even_for_long_float32_tokens():
    """A narrow bandwidth leaves exactly the diagonal: every node keeps itself, and none fades away
    under diffusion.
    """
    r = regions(c=768, scale=20.0, dtype=torch.float32)
    with pytest.warns(UserWarning, match="W is the identity"):
        graph = RegionGraphBuilder(sigma_f=1e-6).build(r)
    assert (
        torch.equal(graph.W, torch.eye(12, dtype=torch.double).expand(2, -1, -1))
        and not graph.L.any()
    )


def test_weights_are_symmetric_between_zero_and_one_and_the_laplacian_has_its_spectrum():
    graph = RegionGraphBuilder().build(regions())
    assert (
        torch.equal(graph.W, graph.W.transpose(1, 2)) and graph.W.min() > 0 and graph.W.max() == 1
    )
    lam, root = torch.linalg.eigvalsh(graph.L), graph.d.sqrt()[..., None]
    assert (
        lam.min() > -1e-12 and lam.max() < 1 + 1e-12
    )  # a Gaussian W is positive semi-definite, so L ends at 1
    assert (graph.L @ root).abs().max() < 1e-12


def test_permuting_the_regions_permutes_the_graph():
    r, order = regions(), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    shuffled = RegionGraphBuilder().build(
        RegionSet(r.H[:, order], r.P[:, order], r.members, r.grid_hw)
    )
    torch.testing.assert_close(shuffled.W, RegionGraphBuilder().build(r).W[:, order][:, :, order])


def test_a_batch_equals_its_images_one_by_one():
    r = regions(b=3)
    whole = RegionGraphBuilder().build(r)
    for i in range(3):
        one = RegionGraphBuilder().build(
            RegionSet(r.H[i : i + 1], r.P[i : i + 1], r.members[i : i + 1], r.grid_hw)
        )
        torch.testing.assert_close(whole.W[i], one.W[0], rtol=1e-12, atol=1e-14)


def test_a_graph_without_ties_is_reported_and_one_with_ties_is_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RegionGraphBuilder().build(regions(c=768, scale=20))
    with pytest.warns(UserWarning, match="in 2 of 2 images .* diffusion does nothing"):
        RegionGraphBuilder(sigma_f=1.0).build(regions(c=768, scale=20))


def test_points_have_the_same_products_and_degrees_without_the_matrix():
    r = regions()
    graph = RegionGraphBuilder().build(r)
    for i, points in enumerate(RegionGraphBuilder().points(r)):
        torch.testing.assert_close(points.weights(), graph.W[i], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(points.degree, graph.d[i], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"quantile": 0}, "quantile"),
        ({"sigma_f": -1.0}, "positive"),
        ({"sigma_s": float("nan")}, "sigma_s: expected a finite number"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        RegionGraphBuilder(**settings).build(regions())


def test_a_blank_image_is_refused_and_not_divided_by_zero():
    r = regions()
    blank = RegionSet(torch.stack([r.H[0], torch.ones_like(r.H[1])]), r.P, r.members, r.grid_hw)
    with pytest.raises(
        ArithmeticError, match="sigma_f: the 0.5 quantile of the distances is 0 in image 1"
    ):
        RegionGraphBuilder().build(blank)
    assert RegionGraphBuilder(sigma_f=1.0).build(blank).W[1].min() > 0


@pytest.mark.parametrize(
    "W, words",
    [
        ([[1.0, 2], [3, 1]], "symmetric"),
        ([[1.0, -1], [-1, 1]], ">= 0"),
        ([[1.0, 0], [0, 0]], "1 nodes have no weight"),
        ([[1.0, float("nan")], [float("nan"), 1]], "finite"),
        ([[1.0, 2]], "expected"),
    ],
)
def test_weights_that_are_no_graph_are_refused(W, words):
    with pytest.raises(ValueError, match=words):
        RegionGraph.from_weights(torch.tensor(W))
