"""Spectra, graphs and matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from .canvas import (
    INK,
    NEGATIVE,
    POSITIVE,
    QUIET,
    SEGMENT_COLOURS,
    SIGNED_MAP,
    UNSIGNED_MAP,
    WIDTH,
    Picture,
    as_array,
    colour_bar,
    new_picture,
    number_text,
    per_item,
    segment_colour,
    strip_axes,
    styled,
)


@styled
def show_spectrum(eigenvalues, k: int | None = None) -> Picture:
    """Eigenvalues and the gaps between neighbours; the gap below number `k` is marked.

    Args:
        eigenvalues: ``(m,)``, descending.
        k: segments; the default marks the widest gap after the first.
    """
    lam = as_array(eigenvalues, 1, "eigenvalues").astype(float)
    gaps, index = lam[:-1] - lam[1:], np.arange(1, len(lam) + 1)
    k = int(gaps[1:].argmax()) + 2 if k is None else k
    if not 1 <= k < len(lam):
        raise ValueError(
            f"expected 1 <= k < {len(lam)}, the number of eigenvalues, received k = {k}. "
            "A gap needs one eigenvalue more than there are segments."
        )
    figure = new_picture(WIDTH, 2.5)
    left, right = figure.subplots(1, 2)
    left.axhspan(lam[k], lam[k - 1], color=SEGMENT_COLOURS[1], alpha=0.25, linewidth=0)
    left.plot(index, lam, "-", color="#C9CED4", linewidth=1)
    left.scatter(index, lam, c=[NEGATIVE if i <= k else QUIET for i in index], s=22, zorder=3)
    left.set(
        xlabel="number of the eigenvalue", ylabel="eigenvalue", title=f"the first {k} are kept"
    )
    right.bar(
        index[:-1],
        gaps,
        color=[SEGMENT_COLOURS[1] if i == k else "#C9CED4" for i in index[:-1]],
        width=0.7,
    )
    right.set(
        xlabel="segments k",
        ylabel="gap below eigenvalue k",
        title=f"gap at k = {k}: {gaps[k - 1]:.4f}",
    )
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(axis="y")
    return figure


@styled
def show_graph(
    W, positions, labels: Sequence[str] | None = None, cut=None, title: str | None = None
) -> Picture:
    """A small weighted graph as a drawing and as a matrix.

    Args:
        W: symmetric weights ``(n, n)``; drawn as width and number, the diagonal left out.
        positions: ``(n, 2)``, x rightwards and y upwards.
        labels: names of the nodes; the default counts from 0.
        cut: side of each node ``(n,)``, integers; edges between different sides are dashed.
        title: above the drawing.
    """
    W, xy = as_array(W, 2, "W").astype(float), as_array(positions, 2, "positions").astype(float)
    n = len(W)
    if W.shape != (n, n) or xy.shape != (n, 2):
        raise ValueError(
            f"expected W (n, n) and positions (n, 2), received {W.shape} and {xy.shape}."
        )
    labels = per_item(labels, n, "labels") or [str(i) for i in range(n)]
    sides = np.zeros(n, int) if cut is None else as_array(cut, 1, "cut").astype(int)
    figure = new_picture(WIDTH, 3.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _edges(left, W, xy, sides)
    left.scatter(
        *xy.T,
        s=420,
        c=[segment_colour(s) for s in sides],
        edgecolors="white",
        linewidths=1.5,
        zorder=3,
    )
    for point, label in zip(xy, labels):
        left.text(
            *point,
            label,
            ha="center",
            va="center",
            weight="bold",
            color="white",
            zorder=4,
            path_effects=[withStroke(linewidth=1.6, foreground=INK)],
        )
    left.margins(0.14)
    left.set_aspect("equal")
    strip_axes(left, title)
    _heat(right, W, "weight", labels, labels, annotate=n <= 10, signed=False)
    return figure


def _edges(ax, W: np.ndarray, xy: np.ndarray, sides: np.ndarray) -> None:
    for i, j in zip(*np.nonzero(np.triu(W, 1))):
        crosses, share = sides[i] != sides[j], abs(W[i, j]) / np.abs(np.triu(W, 1)).max()
        ax.plot(
            *xy[[i, j]].T,
            color=POSITIVE if crosses else QUIET,
            linestyle=(0, (3, 2)) if crosses else "-",
            linewidth=0.6 + 5 * share,
            solid_capstyle="round",
            zorder=1,
        )
        ax.text(
            *xy[[i, j]].mean(0),
            f"{W[i, j]:.2g}",
            fontsize=7.5,
            ha="center",
            va="center",
            zorder=2,
            bbox={
                "boxstyle": "round,pad=0.15",
                "facecolor": "white",
                "edgecolor": "none",
                "alpha": 0.9,
            },
        )


@styled
def show_matrix(
    matrix,
    label: str = "",
    xlabel: str = "",
    ylabel: str = "",
    title: str | None = None,
    xnames: Sequence[str] | None = None,
    ynames: Sequence[str] | None = None,
    annotate: bool | None = None,
    signed: bool | None = None,
) -> Picture:
    """A heat map with a colour bar.

    Args:
        matrix: ``(rows, columns)``; NaN is blank.
        label: unit, on the colour bar.
        xlabel, ylabel, title: what columns, rows and the whole stand for.
        xnames, ynames: one name per column, per row.
        annotate: write the numbers; the default does for at most 12 x 12.
        signed: symmetric diverging scale; the default does when a value is negative.
    """
    matrix = as_array(matrix, 2, "matrix").astype(float)
    rows, columns = matrix.shape
    height = min(max(2.2, 0.36 * rows + 0.9), 5.5)
    figure = new_picture(min(WIDTH, max(3.4, (height - 0.7) * columns / rows + 1.6)), height)
    ax = figure.subplots()
    annotate = max(rows, columns) <= 12 if annotate is None else annotate
    signed = bool(np.nanmin(matrix) < 0) if signed is None else signed
    _heat(ax, matrix, label, xnames, ynames, annotate, signed)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title or "")
    return figure


def _heat(ax, matrix: np.ndarray, label: str, xnames, ynames, annotate: bool, signed: bool) -> None:
    high = float(np.nanmax(np.abs(matrix))) or 1.0
    low = -high if signed else min(0.0, float(np.nanmin(matrix)))
    drawn = ax.imshow(
        matrix,
        cmap=SIGNED_MAP if signed else UNSIGNED_MAP,
        vmin=low,
        vmax=high,
        interpolation="nearest",
    )
    for axis, names, n in (
        (ax.xaxis, xnames, matrix.shape[1]),
        (ax.yaxis, ynames, matrix.shape[0]),
    ):
        names = per_item(names, n, "names")
        if names is None:
            axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        else:
            axis.set_ticks(range(n), names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for (i, j), value in np.ndenumerate(matrix) if annotate else ():
        colour = "white" if abs(value) > 0.6 * high else QUIET if value == 0 else INK
        ax.text(
            j,
            i,
            number_text(value, ".2g") if np.isfinite(value) else "",
            ha="center",
            va="center",
            fontsize=7.5,
            color=colour,
        )
    colour_bar(ax.figure, drawn, [ax], label)
