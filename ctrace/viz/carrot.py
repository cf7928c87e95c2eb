"""The graph over the regions of an image: its ties, its tokens, and what diffusion does to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.patches import FancyArrowPatch, Rectangle

from .canvas import (
    INK,
    SIGNED_MAP,
    UNSIGNED_MAP,
    WIDTH,
    Picture,
    as_array,
    as_rgb,
    colour_bar,
    draw_photo,
    grid_axes,
    new_picture,
    per_item,
    strip_axes,
    styled,
)

NET = "#E69F00"  # edges: seen on grey photographs, and no colour of a signed map


def token_colours(tokens, *others) -> list[np.ndarray]:
    """Tokens as colours: the three leading principal components of ``tokens (n, c)`` as red, green
    and blue, ``(n, 3)`` in [0, 1].

    The others, ``(n, c)`` too, are drawn with the same directions and scales: where they have moved
    towards each other, colours fade towards a common grey. Colours mean nothing but likeness.
    """
    tokens, *others = (as_array(x, 2, "tokens").astype(float) for x in (tokens, *others))
    mean = tokens.mean(0)
    directions = np.linalg.svd(tokens - mean, full_matrices=False)[2][:3].T  # (c, 3)
    directions = directions * np.where(
        directions.sum(0) < 0, -1, 1
    )  # a sign of its own, so that pictures repeat
    reach = np.quantile(np.abs((tokens - mean) @ directions), 0.98, axis=0)
    return [np.clip(0.5 + 0.5 * ((x - mean) @ directions) / reach, 0, 1) for x in (tokens, *others)]


@styled
def show_region_graph(
    image, positions, weights, values, label: str, title: str | None = None, ties: int = 4
) -> Picture:
    """The image, and its graph drawn on it: each region's strongest ties as a net, and one coloured
    dot per region.

    Args:
        image: ``(height, width, 3)`` or ``(3, height, width)``.
        positions: centres ``(m, 2)`` in [-1, 1], x then y.
        weights: ``(m, m)``; the heavier a tie, the thicker.
        values: ``(m,)``, the colours of the dots, on a scale symmetric about zero.
        label: what the colours mean.
        title: above the image.
        ties: drawn per region; a tie that both ends count among theirs is drawn once.
    """
    image, value = as_rgb(image), as_array(values, 1, "values").astype(float)
    hw, scale = image.shape[:2], Normalize(-np.abs(value).max() or -1.0, np.abs(value).max() or 1.0)
    figure, axes = grid_axes(2, hw[0] / hw[1], 2, tallest=3.7, extra=0.9)
    draw_photo(axes[0], image, hw, title)
    draw_photo(axes[1], _faded(image), hw, f"the {ties} strongest ties of each region")
    xy = (as_array(positions, 2, "positions") + 1) / 2 * (hw[1], hw[0])
    _net(axes[1], xy, as_array(weights, 2, "weights"), ties)
    axes[1].scatter(
        *xy.T, c=value, s=30, cmap=SIGNED_MAP, norm=scale, edgecolors=INK, linewidths=0.5, zorder=3
    )
    axes[1].set(xlim=(0, hw[1]), ylim=(hw[0], 0))
    colour_bar(figure, ScalarMappable(scale, SIGNED_MAP), list(axes), label)
    return figure


def _faded(image: np.ndarray, strength: float = 0.55) -> np.ndarray:
    return 1 - strength * (1 - image)


def _net(ax, xy: np.ndarray, W: np.ndarray, ties: int) -> None:
    off = W * (1 - np.eye(len(W)))
    strongest = np.argsort(-off, axis=1, kind="stable")[:, :ties]  # (m, ties)
    pairs = np.unique(
        np.sort(np.stack([np.arange(len(W)).repeat(ties), strongest.ravel()], 1), axis=1), axis=0
    )
    i, j = pairs[off[tuple(pairs.T)] > 0].T
    if not len(i):
        return
    share = off[i, j] / off.max()
    ax.add_collection(
        LineCollection(
            np.stack([xy[i], xy[j]], 1),
            colors=NET,
            linewidths=0.2 + 2.2 * share,
            alpha=0.08 + 0.9 * share,
            capstyle="round",
            zorder=2,
        )
    )


@styled
def show_ties(
    images: Sequence,
    rows: Sequence,
    picks: Sequence[int],
    titles: Sequence[str] | None = None,
    columns: int = 4,
) -> Picture:
    """What one region is tied to: the image is lit where its weights are large and dark where they
    are small.

    Args:
        images: one per panel; repeat an image to compare regions of it.
        rows: per panel the weights of the region to all others on the grid ``(h, w)``, scaled to
            the largest other weight.
        picks: per panel the number of the region in its grid, framed.
        titles: one per panel.
        columns: panels in a row.
    """
    images, rows = (
        [as_rgb(i) for i in images],
        [as_array(r, 2, "each row").astype(float) for r in rows],
    )
    titles = per_item(titles, len(images), "titles") or [None] * len(images)
    figure, axes = grid_axes(
        len(images), images[0].shape[0] / images[0].shape[1], columns, tallest=2.4
    )
    for ax, image, row, pick, title in zip(axes, images, rows, picks, titles):
        h, w = row.shape
        others = np.delete(row.ravel(), pick)
        light = np.clip(row / (others.max() or 1.0), 0, 1)
        y, x = (np.arange(side) * cells // side for side, cells in zip(image.shape, (h, w)))
        draw_photo(ax, image * (0.25 + 0.75 * light[y][:, x][..., None]), (h, w), title)
        ax.add_patch(Rectangle((pick % w, pick // w), 1, 1, fill=False, edgecolor=NET, linewidth=2))
    return figure


@styled
def show_washout(rows: Sequence[tuple]) -> Picture:
    """How tokens come out of diffusion on several graphs: per row the weights, the tokens before,
    after, and a note.

    Args:
        rows: tuples ``(title, W (m, m), before (h, w, 3), after (h, w, 3), note)``; the last is
            text.
    """
    side = 1.55
    figure = new_picture(WIDTH, (side + 0.12) * len(rows) + 0.3)
    axes = figure.subplots(len(rows), 4, squeeze=False, width_ratios=(1, 1, 1, 1.7))
    for line, (title, W, before, after, note) in zip(axes, rows):
        drawn = line[0].imshow(
            as_array(W, 2, "W"), cmap=UNSIGNED_MAP, vmin=0, vmax=1, interpolation="nearest"
        )
        for ax, picture in zip(line[1:3], (before, after)):
            ax.imshow(as_array(picture), interpolation="nearest")
        for ax in line[:3]:
            strip_axes(ax)
            ax.spines[:].set(visible=True, color="#D5D9DE")
        line[3].set_axis_off()
        line[3].text(0, 0.92, title, weight="bold", va="top", transform=line[3].transAxes)
        line[3].text(0, 0.74, note, va="top", linespacing=1.45, transform=line[3].transAxes)
    for ax, title in zip(axes[0], ("weights W", "tokens H", "diffused tokens H'")):
        ax.set_title(title)
    colour_bar(figure, drawn, list(axes[:, 0]), "weight", location="left")
    return figure


@styled
def show_flow(image, tokens, positions, W, diffused, g, ties: int = 4) -> Picture:
    """The way of one image through the graph: image, tokens, net, diffused tokens, embedding, with
    an arrow for each step.

    Args:
        image: ``(height, width, 3)`` or ``(3, height, width)``.
        tokens, diffused: colours ``(h, w, 3)``, see `token_colours`.
        positions: ``(m, 2)`` in [-1, 1].
        W: weights ``(m, m)``.
        g: embedding ``(p,)``, drawn as bars.
        ties: drawn per region.
    """
    image, g = as_rgb(image), as_array(g, 1, "g").astype(float)
    figure = new_picture(WIDTH, 2.15, layout=None)
    side, gap, top = 0.157, 0.053, 0.84
    tall = side * WIDTH / 2.15
    axes = [figure.add_axes((i * (side + gap), top - tall, side, tall)) for i in range(5)]
    hw = image.shape[:2]
    titles = ("image", "tokens $H$", "graph $W$, $L$", "$H' = e^{-tL}H$", "embedding $g$")
    for ax, picture, title in zip(axes, (image, tokens, _faded(image, 0.45), diffused), titles):
        ax.imshow(as_array(picture), extent=(0, hw[1], hw[0], 0), interpolation="nearest")
        strip_axes(ax, title)
    _net(axes[2], (as_array(positions, 2) + 1) / 2 * (hw[1], hw[0]), as_array(W, 2, "W"), ties)
    axes[4].barh(np.arange(len(g)), g, height=1.0, color=INK)
    axes[4].set(ylim=(len(g) - 0.5, -0.5))
    strip_axes(axes[4], titles[4])
    for i, step in enumerate(("backbone", "place,\nfeatures", "diffusion", "readout")):
        start, end = i * (side + gap) + side + 0.006, (i + 1) * (side + gap) - 0.006
        figure.add_artist(
            FancyArrowPatch(
                (start, top - tall / 2),
                (end, top - tall / 2),
                arrowstyle="-|>",
                mutation_scale=9,
                color=INK,
            )
        )
        figure.text((start + end) / 2, top - tall - 0.03, step, ha="center", va="top", fontsize=8)
    return figure
