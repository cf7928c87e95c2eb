"""Curves, intervals, histograms and scatter plots: one panel, or several side by side."""

from collections.abc import Mapping, Sequence

import numpy as np

from ctrace.viz.canvas import WIDTH, Picture, as_array, new_picture, style
from ctrace.viz.paint import QUIET, line_look


def _panels(panels: Mapping, height: float, xlabel: str, sharey: bool = False):
    """A picture and its axes, one for each title, narrower for one panel than for several."""
    figure = new_picture(6.4 if len(panels) == 1 else WIDTH, height)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=sharey)[0]
    for ax, title in zip(axes, panels):
        ax.set(title=title, xlabel=xlabel)
        ax.grid()
    return figure, axes


def _legend(figure, axes, above: bool = False) -> None:
    """One legend above for panels with the same groups, else one in each; none for a lone group."""
    handles = [ax.get_legend_handles_labels() for ax in axes]
    above = above or len(axes) > 1 and all(labels == handles[0][1] for _, labels in handles)
    if above and len(handles[0][1]) > 1:
        figure.legend(*handles[0], loc="outside upper center", ncols=min(4, len(handles[0][1])))
    for ax, (_, labels) in zip(axes, handles):
        if len(labels) > 1 and not above:
            ax.legend(loc="best")


def _nested(panels: Mapping) -> Mapping:
    """Panels by title, also when one panel came without a title."""
    return panels if isinstance(next(iter(panels.values())), Mapping) else {"": panels}


@style()
def show_curves(
    x,
    panels: Mapping,
    xlabel: str,
    ylabel: str | Sequence[str],
    bands: Mapping | None = None,
    logx: bool = False,
    logy: bool = False,
) -> Picture:
    """Curves over a common axis, told apart by colour, dash and marker.

    Args:
        x: ``(m,)``.
        panels: name of each curve -> ``(m,)``, NaN interrupts it; for panels side by side, title ->
            such a mapping.
        xlabel, ylabel: with units. One `ylabel` for all panels means one axis for all.
        bands: nested like `panels`, for some or all curves ``(low, high)``, each ``(m,)``.
        logx, logy: logarithmic axes.
    """
    panels, bands = _nested(panels), _nested(bands) if bands else {}
    x, shared = as_array(x, 1, "x"), isinstance(ylabel, str)
    figure, axes = _panels(panels, 3.3, xlabel, shared)
    for ax, (title, curves) in zip(axes, panels.items()):
        for i, (name, y) in enumerate(curves.items()):
            look = line_look(i) | ({"marker": ""} if len(x) > 20 else {})
            ax.plot(x, as_array(y, 1, name), label=name, **look)
            if name in bands.get(title, {}):
                low, high = map(as_array, bands[title][name])
                ax.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
        ax.set(xscale="log" if logx else "linear", yscale="log" if logy else "linear")
    for ax, label in zip(axes, [ylabel] if shared else ylabel):
        ax.set_ylabel(label)
    _legend(figure, axes)
    return figure


@style()
def show_intervals(
    panels: Mapping[str, Mapping],
    groups: Sequence[str],
    xlabel: str,
    reference: float | None = 0.0,
    quiet: Sequence[str] = (),
) -> Picture:
    """Estimates with their intervals, a line for each name, the first on top.

    Args:
        panels: title -> name of each line -> ``(groups, 3)`` of estimate, low and high, or
            ``(groups, 1)`` without intervals. NaN leaves a group out.
        groups: one per row of these, told apart by colour and marker.
        xlabel: with units.
        reference: where a dashed line stands.
        quiet: names of the lines that are shaded: the controls.
    """
    names = [list(rows) for rows in panels.values()]
    height = (0.13 + 0.08 * len(groups)) * max(map(len, names)) + 1.0
    figure, axes = _panels(panels, height, xlabel, all(n == names[0] for n in names))
    for ax, rows in zip(axes, panels.values()):
        if reference is not None:
            ax.axvline(reference, color=QUIET, linewidth=1, linestyle="--")
        for y, name in enumerate(rows):
            if name in quiet:
                ax.axhspan(y - 0.5, y + 0.5, color="#F1F2F4", linewidth=0)
        found = np.stack([as_array(row, 2, name) for name, row in rows.items()], 1).astype(float)
        for g, (group, triples) in enumerate(zip(groups, found, strict=True)):
            middle, low, high = triples[:, [0, 0, 0] if triples.shape[1] == 1 else [0, 1, 2]].T
            y = np.arange(len(rows)) + (g - (len(groups) - 1) / 2) * 0.7 / len(groups)
            look = line_look(g) | {"linestyle": "", "elinewidth": 1.2}
            ax.errorbar(middle, y, xerr=[middle - low, high - middle], label=group, **look)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_yticks(range(len(rows)), list(rows))
        ax.grid(visible=False, axis="y")
    _legend(figure, axes, above=True)
    return figure


@style()
def show_hist(panels: Mapping, xlabel: str) -> Picture:
    """Distributions of groups, each as shares of its own total, with its mean as a line.

    Args:
        panels: name of each group -> its values ``(n,)``; for panels side by side, title -> such a
            mapping.
        xlabel: with units.
    """
    panels = _nested(panels)
    figure, axes = _panels(panels, 2.6, xlabel)
    for ax, groups in zip(axes, panels.values()):
        groups = {name: as_array(v, 1, name) for name, v in groups.items()}
        edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), 20)
        for i, (name, v) in enumerate(groups.items()):
            look, share = line_look(i), np.full(len(v), 1 / len(v))
            ax.hist(v, edges, weights=share, color=look["color"], alpha=0.5, label=name)
            ax.axvline(v.mean(), color=look["color"], linestyle=look["linestyle"])
        ax.grid(visible=False)
    axes[0].set_ylabel("share")
    _legend(figure, axes)
    return figure


@style()
def show_scatter(panels: Mapping, xlabel: str, ylabel: str, identity: bool = False) -> Picture:
    """Two measurements of the same things against each other.

    Args:
        panels: name of each group -> ``(x, y)``, each ``(n,)``; for panels side by side, title ->
            such a mapping.
        xlabel, ylabel: with units.
        identity: draw y = x, both axes to the same scale.
    """
    panels = _nested(panels)
    figure, axes = _panels(panels, 3.6, xlabel)
    for ax, groups in zip(axes, panels.values()):
        if identity:
            ax.axline((0, 0), slope=1, color=QUIET, linewidth=1, linestyle="--", zorder=1)
            ax.set_aspect("equal", adjustable="datalim")
        for i, (name, (x, y)) in enumerate(groups.items()):
            look = line_look(i) | {"linestyle": "", "alpha": 0.75}
            ax.plot(as_array(x), as_array(y), label=name, **look)
    axes[0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure
