"""Claims about the figures of the graph part: what is drawn where, and that likeness of tokens is
likeness of colours.
"""

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection

from ctrace import viz
from ctrace.carrot import patch_centers

GRID, N = (3, 4), 12
IMAGE = torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(0))
P = patch_centers(GRID)
W = torch.exp(-(torch.cdist(P, P) ** 2))
TOKENS = torch.randn(N, 6, generator=torch.Generator().manual_seed(1))
COLOURS = viz.token_colours(TOKENS)[0].reshape(*GRID, 3)


def drawn(ax, kind):
    return [artist for artist in ax.collections if isinstance(artist, kind)]


@pytest.mark.parametrize(
    "figure",
    [
        viz.show_region_graph(IMAGE, P, W, TOKENS[:, 0], "degree"),
        viz.show_ties([IMAGE], [W[5].reshape(GRID)], [5], ["one"]),
        viz.show_washout([("row", W, COLOURS, COLOURS, "note")]),
        viz.show_flow(IMAGE, COLOURS, P, W, COLOURS, TOKENS[0]),
    ],
)
def test_every_figure_is_a_png_no_wider_than_the_column(figure):
    assert figure._repr_png_().startswith(b"\x89PNG") and figure.get_figwidth() <= viz.WIDTH + 1e-9


def test_equal_tokens_have_equal_colours_and_diffused_ones_fade_to_grey():
    tokens = TOKENS.clone()
    tokens[1] = tokens[0]
    first, mean = viz.token_colours(tokens, tokens.mean(0).expand(N, -1))
    assert np.array_equal(first[0], first[1]) and not np.allclose(first[0], first[2])
    np.testing.assert_allclose(mean, 0.5, atol=1e-6)
    assert first.min() >= 0 and first.max() <= 1


def test_colours_do_not_depend_on_the_sign_that_the_decomposition_happens_to_return(monkeypatch):
    before, svd = viz.token_colours(TOKENS)[0], np.linalg.svd
    monkeypatch.setattr(
        np.linalg, "svd", lambda *args, **kwargs: tuple(-part for part in svd(*args, **kwargs))
    )
    np.testing.assert_allclose(viz.token_colours(TOKENS)[0], before, atol=1e-12)


def test_dots_sit_on_patch_centres_and_the_net_joins_the_strongest_ties():
    figure = viz.show_region_graph(IMAGE, P, W, TOKENS[:, 0], "value", ties=1)
    ax = figure.axes[1]
    dots = drawn(ax, PathCollection)[0].get_offsets()
    np.testing.assert_allclose(dots, (P.numpy() + 1) / 2 * (40, 30))
    lengths = [
        np.linalg.norm(segment[1] - segment[0])
        for segment in drawn(ax, LineCollection)[0].get_segments()
    ]
    assert 0 < len(lengths) <= N and max(lengths) <= 10 + 1e-6, (
        "the nearest patches are 10 pixels away, and each has one tie"
    )


def test_a_graph_without_ties_draws_no_net():
    figure = viz.show_region_graph(IMAGE, P, torch.eye(N), TOKENS[:, 0], "value")
    assert not drawn(figure.axes[1], LineCollection)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_values_of_the_dots_share_a_scale_symmetric_about_zero(sign):
    values = sign * torch.linspace(-1, 3, N)
    norm = drawn(viz.show_region_graph(IMAGE, P, W, values, "value").axes[1], PathCollection)[
        0
    ].norm
    assert (norm.vmin, norm.vmax) == (pytest.approx(-3), pytest.approx(3))


def test_only_what_a_region_is_tied_to_is_lit():
    row = torch.zeros(GRID)
    row[0, 1], row[2, 3] = 1.0, 0.5
    (ax,) = viz.show_ties([torch.ones(3, 30, 40)], [row], [0]).axes
    light = np.asarray(ax.images[0].get_array())
    assert (
        light[5, 15, 0] == pytest.approx(1)
        and light[25, 35, 0] == pytest.approx(0.625)
        and light[25, 5, 0] == pytest.approx(0.25)
    )
    assert ax.patches[0].get_xy() == (0, 0)
