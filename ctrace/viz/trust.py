"""Verdicts on maps: a region against its copies, rates with intervals, maps that outlive their
model, and averages that mislead.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from .cams import _laid_over as laid_over
from .canvas import (
    INK,
    LINE_STYLES,
    NEGATIVE,
    POSITIVE,
    QUIET,
    SIGNED_MAP,
    WIDTH,
    Picture,
    as_array,
    as_rgb,
    colour_bar,
    draw_outline,
    draw_photo,
    grid_axes,
    new_picture,
    segment_colour,
    strip_axes,
    styled,
)


@styled
def show_null(panels: Mapping[str, Sequence], xlabel: str) -> Picture:
    """What the copies of a region did, as a histogram, and where the top and the bottom of the map
    lie among them.

    Args:
        panels: title -> ``(null, d_high, d_low)``, all in the same unit.
        xlabel: with units.
    """
    figure = new_picture(WIDTH, 2.3)
    for ax, (title, (null, high, low)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items()
    ):
        null = as_array(null, 1, "null").astype(float)
        ax.hist(null, 24, color="#C9CED5", label=f"{len(null)} moved copies")
        for value, colour, name, dash in (
            (high, POSITIVE, "top of the map", "-"),
            (low, NEGATIVE, "bottom", "--"),
        ):
            ax.axvline(value, color=colour, linestyle=dash, linewidth=2, label=name)
        ax.set(title=title, xlabel=xlabel)
    figure.axes[0].set_ylabel("copies")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


@styled
def show_rates(
    rates: Mapping[str, Mapping[str, tuple]],
    xlabel: str,
    level: float | None = None,
    tinted: Sequence[str] = (),
) -> Picture:
    """Rates with their intervals, a line per method and a mark per test.

    Args:
        rates: name of the test -> name of the method -> ``(rate, low, high)``; a method may be
            missing from a test.
        xlabel: what is counted.
        level: where chance would be.
        tinted: methods whose line is shaded: the controls.
    """
    lines = list(dict.fromkeys(name for test in rates.values() for name in test))
    figure = new_picture(WIDTH * 0.82, 0.225 * len(lines) + 0.9)
    ax = figure.subplots()
    for row, name in enumerate(lines):
        if name in tinted:
            ax.axhspan(row - 0.5, row + 0.5, color="#F1F2F4", linewidth=0)
    if level is not None:
        ax.axvline(level, color=QUIET, linestyle=":", label=f"chance: {level:.0%}")
    for i, (test, found) in enumerate(rates.items()):
        at = np.array([lines.index(name) for name in found]) + (i - (len(rates) - 1) / 2) * 0.3
        middle, low, high = np.array(list(found.values()), float).T
        ax.errorbar(
            middle,
            at,
            xerr=[middle - low, high - middle],
            fmt=LINE_STYLES[i][1],
            color=segment_colour(i),
            label=test,
            elinewidth=1,
        )
    ax.set(
        xlabel=xlabel, xlim=(-0.02, 1.02), yticks=range(len(lines)), ylim=(len(lines) - 0.5, -0.5)
    )
    ax.set_yticklabels(lines)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper right", ncols=len(rates) + 1)
    return figure


@styled
def show_method_maps(image, maps: Mapping[str, object], mask=None, columns: int = 5) -> Picture:
    """Maps of several methods laid over one image. Their units differ, so each is divided by the
    99th percentile of its own magnitude.

    Args:
        image: ``(height, width, 3)`` or ``(3, height, width)``.
        maps: method -> signed map ``(height, width)``.
        mask: whose border is drawn.
        columns: panels in a row.
    """
    image = as_rgb(image)
    figure, axes = grid_axes(
        len(maps), image.shape[0] / image.shape[1], columns, tallest=2.2, extra=0.8
    )
    for ax, (name, values) in zip(axes, maps.items()):
        values = as_array(values, 2, name).astype(float)
        draw_photo(
            ax, laid_over(image, own_scale(values), 1.0), image.shape[:2], textwrap.fill(name, 18)
        )
        if not values.any():
            ax.text(
                image.shape[1] / 2,
                image.shape[0] / 2,
                "no evidence",
                ha="center",
                va="center",
                color=QUIET,
                style="italic",
            )
        if mask is not None:
            draw_outline(ax, as_array(mask, 2, "mask").astype(float) > 0.5, 0.6)
    colour_bar(
        figure,
        ScalarMappable(Normalize(-1, 1), SIGNED_MAP),
        list(axes),
        "share of the map's own 99th percentile",
    )
    return figure


@styled
def show_fading(rows: Mapping[str, Sequence], titles: Sequence[str]) -> Picture:
    """Each method's map of one image while the model loses its weights, from left to right; each
    map on its own scale.

    Args:
        rows: method -> maps ``(height, width)``, one per title.
        titles: one per column.
    """
    side = (WIDTH - 1.2) / len(titles)
    figure = new_picture(WIDTH, len(rows) * (side + 0.05) + 0.25)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for i, (name, maps) in enumerate(rows.items()):
        for j, values in enumerate(maps):
            values = as_array(values, 2, name).astype(float)
            axes[i, j].imshow(
                own_scale(values), cmap=SIGNED_MAP, vmin=-1, vmax=1, interpolation="nearest"
            )
            strip_axes(axes[i, j], titles[j] if i == 0 else None)
        axes[i, 0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)
    return figure


def own_scale(values: np.ndarray) -> np.ndarray:
    """A map in [-1, 1], zero at zero; the outermost hundredth is cut."""
    scale = np.quantile(np.abs(values), 0.99) or np.abs(values).max() or 1.0
    return np.clip(values / scale, -1, 1)


@styled
def show_cascade(
    stages: Sequence[str],
    panels: Mapping[str, Mapping[str, Sequence]],
    names: Sequence[str] | None = None,
) -> Picture:
    """Likeness of maps to the trained model's, while it loses its weights from the head down.

    Args:
        stages: what has been lost last, one per point.
        panels: kind of likeness -> method -> ``(images, stages)``; the line is the mean, the band
            its standard error twice.
        names: methods in the order of the legend; all by default.
    """
    figure = new_picture(WIDTH, 3.3)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    at = np.arange(len(stages) + 1)
    for ax, (title, methods) in zip(axes, panels.items()):
        ax.axhline(0, color=INK, linewidth=0.7)
        for i, name in enumerate(names or methods):
            values = as_array(methods[name], 2, name).astype(float)
            mean, error = (
                np.concatenate([[start], v])
                for start, v in ((1, values.mean(0)), (0, 2 * values.std(0) / len(values) ** 0.5))
            )
            dash, marker = LINE_STYLES[i % len(LINE_STYLES)]
            ax.plot(at, mean, linestyle=dash, marker=marker, color=_line_colour(i), label=name)
            ax.fill_between(
                at, mean - error, mean + error, color=_line_colour(i), alpha=0.13, linewidth=0
            )
        ax.set(title=title, xlabel="random down to", xticks=at)
        ax.set_xticklabels(["nothing", *stages], rotation=55, ha="right", rotation_mode="anchor")
        ax.grid(axis="y")
    axes[0].set_ylabel("likeness to the trained model's map")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=min(4, len(names or methods)),
    )
    return figure


@styled
def show_masking(
    shares: Sequence[float], panels: Mapping[str, Mapping[str, Sequence]], ylabel: str
) -> Picture:
    """Curves while pixels are hidden or shown, the same maps in each panel.

    Args:
        shares: of the pixels ``(r,)``.
        panels: title -> map -> ``(r,)``.
        ylabel: with units.
    """
    figure = new_picture(WIDTH, 3.1)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, curves) in zip(axes, panels.items()):
        for i, (name, values) in enumerate(curves.items()):
            ax.plot(
                shares,
                as_array(values, 1, name),
                linestyle=LINE_STYLES[i % len(LINE_STYLES)][0],
                color=_line_colour(i),
                label=name,
            )
        ax.set(title=title, xlabel="share of the pixels", ylim=(-0.02, 1.02))
        ax.grid()
    axes[0].set_ylabel(ylabel)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=len(next(iter(panels.values()))),
    )
    return figure


def _line_colour(index: int):
    """Segment colours without the yellow, which is too pale for a line."""
    return segment_colour(index if index < 4 else index + 1)


@styled
def show_strata(
    x, y, borders: Sequence[float], xlabel: str, ylabel: str, titles: Sequence[str]
) -> Picture:
    """The means of a few strata, which always look like a law, beside all the pairs they were made
    of.

    Args:
        x, y: ``(n,)``, one point per pair; y is 0 or 1.
        borders: inner borders of the strata.
        xlabel, ylabel: with units.
        titles: of the two panels.
    """
    x, y = as_array(x, 1, "x").astype(float), as_array(y, 1, "y").astype(float)
    stratum = np.digitize(x, borders)
    kinds = np.unique(stratum)
    figure = new_picture(WIDTH * 0.86, 2.8)
    left, right = figure.subplots(1, 2, sharey=True)
    left.plot(
        [x[stratum == k].mean() for k in kinds],
        [y[stratum == k].mean() for k in kinds],
        marker="o",
        color=segment_colour(0),
    )
    spread = y + np.random.default_rng(0).uniform(-0.04, 0.04, len(y))
    right.scatter(x, spread, s=16, color=segment_colour(1), alpha=0.7, linewidths=0)
    for ax, title in zip((left, right), titles):
        for border in borders:
            ax.axvline(border, color=QUIET, linewidth=0.7, linestyle=":")
        ax.set(
            title=title, xlabel=xlabel, xlim=(x.min() - 0.02, x.max() + 0.02), ylim=(-0.08, 1.08)
        )
        ax.grid(axis="y")
    left.set_ylabel(ylabel)
    return figure
