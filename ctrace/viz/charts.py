"""Curves, scatter plots and grouped bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .canvas import (
    INK,
    LINE_STYLES,
    QUIET,
    WIDTH,
    Picture,
    as_array,
    new_picture,
    per_item,
    segment_colour,
    styled,
)


@styled
def show_curves(
    x,
    ys,
    labels: Sequence[str],
    xlabel: str,
    ylabel: str,
    logx: bool = False,
    logy: bool = False,
    bands: Sequence | None = None,
    title: str | None = None,
) -> Picture:
    """Curves over a common axis, told apart by colour, dash and marker.

    Args:
        x: ``(m,)``.
        ys: list of ``(m,)`` or array ``(curves, m)``; NaN interrupts a curve.
        labels: one per curve.
        xlabel, ylabel: with units.
        logx, logy: logarithmic axes.
        bands: per curve None or ``(low, high)``, each ``(m,)``.
        title: above the axes.
    """
    x, ys = as_array(x, 1, "x"), [as_array(y, 1, "each curve") for y in ys]
    labels, bands = (
        per_item(labels, len(ys), "labels"),
        per_item(bands, len(ys), "bands") or [None] * len(ys),
    )
    figure = new_picture(6.4, 3.3)
    ax = figure.subplots()
    for i, (y, label, band) in enumerate(zip(ys, labels, bands)):
        dash, marker = LINE_STYLES[i % len(LINE_STYLES)]
        ax.plot(
            x,
            y,
            linestyle=dash,
            marker=marker if len(x) <= 40 else None,
            color=segment_colour(i),
            label=label,
        )
        if band is not None:
            ax.fill_between(
                x,
                *(as_array(edge, 1) for edge in band),
                color=segment_colour(i),
                alpha=0.16,
                linewidth=0,
            )
    ax.set(
        xlabel=xlabel,
        ylabel=ylabel,
        title=title or "",
        xscale="log" if logx else "linear",
        yscale="log" if logy else "linear",
    )
    ax.grid()
    if len(ys) > 1 or labels[0]:
        ax.legend(loc="best")
    return figure


@styled
def show_scatter(
    x,
    y,
    xlabel: str,
    ylabel: str,
    groups=None,
    group_names: Sequence[str] | None = None,
    identity: bool = True,
    title: str | None = None,
) -> Picture:
    """Two measurements of the same things against each other, with the line where they agree.

    Args:
        x, y: ``(m,)``.
        xlabel, ylabel: with units.
        groups: integers ``(m,)`` for colour and marker.
        group_names: one per group.
        identity: draw y = x and give both axes the same range.
        title: above the axes.
    """
    x, y = as_array(x, 1, "x").astype(float), as_array(y, 1, "y").astype(float)
    if x.shape != y.shape:
        raise ValueError(f"expected x and y of the same length, received {len(x)} and {len(y)}.")
    groups = np.zeros(len(x), int) if groups is None else as_array(groups, 1, "groups").astype(int)
    figure = new_picture(4.3, 3.9)
    ax = figure.subplots()
    if identity:
        low, high = min(np.nanmin(x), np.nanmin(y)), max(np.nanmax(x), np.nanmax(y))
        edge = 0.05 * (high - low) or 1.0
        ax.plot(
            [low - edge, high + edge],
            [low - edge, high + edge],
            color=QUIET,
            linewidth=1,
            dashes=(4, 3),
            zorder=1,
        )
        ax.set(xlim=(low - edge, high + edge), ylim=(low - edge, high + edge), aspect="equal")
    for order, group in enumerate(np.unique(groups)):
        inside = groups == group
        ax.scatter(
            x[inside],
            y[inside],
            s=20,
            color=segment_colour(order),
            alpha=0.8,
            linewidths=0,
            zorder=2,
            marker=LINE_STYLES[order % len(LINE_STYLES)][1],
            label=group_names[order] if group_names else None,
        )
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title or "")
    ax.grid()
    if group_names:
        ax.legend(loc="best")
    return figure


@styled
def show_grouped_bars(
    values,
    names: Sequence[str],
    groups: Sequence[str],
    ylabel: str,
    spread=None,
    title: str | None = None,
) -> Picture:
    """Bars side by side: for each name, one bar per group.

    Args:
        values: ``(groups, names)``; NaN draws no bar.
        names: one per column, below the axis.
        groups: one per row, in the legend.
        ylabel: with units.
        spread: half length of the error bars, ``(groups, names)``.
        title: above the axes.
    """
    values = as_array(values, 2, "values").astype(float)
    names, groups = (
        per_item(names, values.shape[1], "names"),
        per_item(groups, values.shape[0], "groups"),
    )
    spread = None if spread is None else as_array(spread, 2, "spread").astype(float)
    figure = new_picture(min(WIDTH, 0.28 * values.size + 2.4), 3.0)
    ax, width = figure.subplots(), 0.8 / len(groups)
    for i, group in enumerate(groups):
        at = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * width
        ax.bar(
            at,
            values[i],
            0.92 * width,
            color=segment_colour(i),
            label=group,
            yerr=None if spread is None else spread[i],
            error_kw={"elinewidth": 0.9, "ecolor": INK},
        )
    ax.axhline(0, color=INK, linewidth=0.7)
    ax.set(ylabel=ylabel, title=title or "", xticks=range(len(names)))
    ax.set_xticklabels(names)
    ax.legend(loc="best")
    return figure


@styled
def show_curve_panels(
    x, panels: Sequence[tuple[str, str, Mapping]], xlabel: str, logx: bool = False
) -> Picture:
    """Several groups of curves side by side over one common axis.

    Args:
        x: ``(m,)``.
        panels: per panel a title, a label with units for its vertical axis, and its curves
            ``{label: (m,)}``; NaN interrupts.
        xlabel: with units.
        logx: logarithmic horizontal axes.
    """
    x = as_array(x, 1, "x")
    figure = new_picture(WIDTH, 3.0)
    for ax, (title, ylabel, curves) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels
    ):
        for i, (label, y) in enumerate(curves.items()):
            dash, marker = LINE_STYLES[i % len(LINE_STYLES)]
            ax.plot(
                x,
                as_array(y, 1, label),
                linestyle=dash,
                marker=marker if len(x) <= 20 else None,
                color=segment_colour(i),
                label=label,
            )
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title, xscale="log" if logx else "linear")
        ax.grid()
        if len(curves) > 1:
            ax.legend(loc="best")
    return figure
