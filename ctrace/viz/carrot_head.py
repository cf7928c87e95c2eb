"""Figures of the ridge head: training pictures with what they do to an answer, and effects beside
what was claimed of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ctrace.viz.canvas import (
    INK,
    LINE_STYLES,
    NEGATIVE,
    POSITIVE,
    QUIET,
    WIDTH,
    Picture,
    as_array,
    as_rgb,
    new_picture,
    segment_colour,
    strip_axes,
    styled,
)

__all__ = ["show_claims", "show_refits", "show_training_images"]


@styled
def show_training_images(
    image, title: str, rows: Sequence[tuple], unit: str, limit: float | None = None
) -> Picture:
    """One picture, and rows of training pictures with a signed bar under each.

    Args:
        image: the picture that is explained.
        title: below it.
        rows: ``(heading, images, names, values)`` each; as many images as fit, at most six.
        unit: of the values, under the bars.
        limit: full length of a bar; the largest magnitude by default.
    """
    values = np.concatenate([as_array(row[3]).astype(float) for row in rows])
    limit = limit or float(np.abs(values).max()) or 1.0
    cell, bar, head, gap, left = 0.96, 0.42, 0.27, 0.07, 1.72
    line = head + cell + bar
    height = max(len(rows) * line + 0.2, left + 0.45)
    figure = new_picture(WIDTH, height, layout=None)
    axes = lambda x, y, w, h: figure.add_axes(
        (x / WIDTH, 1 - (y + h) / height, w / WIDTH, h / height)
    )
    strip_axes(ax := axes(0, head, left, left))
    ax.imshow(as_rgb(image), interpolation="antialiased")
    ax.text(0, -0.04, title, transform=ax.transAxes, va="top", fontsize=9, linespacing=1.35)
    for r, (heading, images, names, numbers) in enumerate(rows):
        top = r * line
        for i, (picture, name, value) in enumerate(zip(images, names, as_array(numbers).tolist())):
            x = left + 0.32 + i * (cell + gap)
            strip_axes(ax := axes(x, top + head, cell, cell))
            ax.imshow(as_rgb(picture), interpolation="antialiased")
            if i == 0:
                ax.text(
                    0,
                    1.05,
                    heading,
                    transform=ax.transAxes,
                    va="bottom",
                    fontsize=9.5,
                    fontweight="bold",
                )
            _signed_bar(axes(x, top + head + cell + 0.02, cell, bar - 0.08), value, limit, name)
    figure.text((left + 0.32) / WIDTH, 0.02 / height, unit, fontsize=8, color=QUIET, va="bottom")
    return figure


def _signed_bar(ax, value: float, limit: float, name: str) -> None:
    """A bar from the middle, red to the right and blue to the left, over a name and the number."""
    strip_axes(ax)
    ax.set(xlim=(-1, 1), ylim=(0, 1))
    ax.barh(0.86, value / limit, height=0.2, color=POSITIVE if value > 0 else NEGATIVE)
    ax.plot([0, 0], [0.7, 1.02], color=INK, linewidth=0.8, clip_on=False)
    ax.text(-1, 0.6, name, va="top", fontsize=7.8)
    ax.text(
        1,
        0.6,
        f"{value:+.3f}" if limit < 100 else f"{value:+,.0f}",
        va="top",
        ha="right",
        fontsize=7.8,
    )


@styled
def show_claims(
    effect,
    claims: Mapping[str, object],
    same,
    xlabel: str,
    ylabel: str,
    names: Sequence[str] = ("its class", "other classes"),
) -> Picture:
    """What was claimed of each training image against what happens without it, one panel a claim;
    each claim has its own scale.

    Args:
        effect: measured ``(n,)``.
        claims: title -> ``(n,)``.
        same: mask ``(n,)``, images of the class explained.
        xlabel, ylabel: with units.
        names: of the two groups.
    """
    effect, same = as_array(effect, 1).astype(float), as_array(same, 1).astype(bool)
    figure = new_picture(WIDTH, 2.9)
    axes = figure.subplots(1, len(claims), squeeze=False)[0]
    for ax, (title, claim) in zip(axes, claims.items()):
        claim = as_array(claim, 1).astype(float)
        for where in (ax.axhline, ax.axvline):
            where(0, color=QUIET, linewidth=0.7)
        for group, colour, name in (
            (~same, segment_colour(0), names[1]),
            (same, segment_colour(1), names[0]),
        ):
            ax.plot(
                effect[group],
                claim[group],
                LINE_STYLES[int(group is same)][1],
                color=colour,
                markersize=3.6,
                alpha=0.75,
                linestyle="",
                label=name,
            )
        ax.set(title=f"{title}\ncorrelation {np.corrcoef(effect, claim)[0, 1]:+.2f}", xlabel=xlabel)
        ax.ticklabel_format(axis="y", scilimits=(-3, 4))
        ax.locator_params(nbins=4)
    axes[0].set_ylabel(ylabel)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def show_refits(G, y, lines: Mapping[str, tuple], names: Sequence[str], query=None) -> Picture:
    """Points of two classes in a plane, numbered, and the borders that heads draw between them.

    Args:
        G: ``(n, 2)``.
        y: class of each, 0 or 1.
        lines: name -> ``(w, b)`` with the border where ``w . g + b = 0``; the first is drawn thick,
            the others thin.
        names: of the two classes.
        query: a point ``(2,)`` that is asked about.
    """
    G, y = as_array(G, 2).astype(float), as_array(y, 1)
    figure = new_picture(0.66 * WIDTH, 3.6)
    ax = figure.subplots()
    low, high = G.min(0) - 0.7, G.max(0) + 0.7
    x = np.linspace(low[0], high[0], 2)
    for i, (name, (w, b)) in enumerate(lines.items()):
        w, b = as_array(w).astype(float), float(b)
        thin = {
            "color": segment_colour((1, 2, 3, 5, 6)[(i - 1) % 5]),
            "linewidth": 1.5,
            "linestyle": LINE_STYLES[i % 5][0],
        }
        style = thin if i else {"color": INK, "linewidth": 2.2}
        ax.plot(x, -(b + w[0] * x) / w[1], label=name, **style)
    for c in (0, 1):
        ax.plot(
            *G[y == c].T,
            LINE_STYLES[c][1],
            color=(NEGATIVE, POSITIVE)[c],
            markersize=9,
            linestyle="",
            label=names[c],
        )
    for i, (a, b) in enumerate(G):
        ax.annotate(str(i), (a, b), xytext=(8, 5), textcoords="offset points", fontsize=9)
    if query is not None:
        ax.plot(
            *as_array(query),
            "*",
            color="#E69F00",
            markeredgecolor=INK,
            markersize=15,
            linestyle="",
            label="the new one",
        )
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="channel 0", ylabel="channel 1")
    ax.set_aspect("equal", adjustable="box")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
    return figure
