"""Photographs, segments, maps on the feature grid, and cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.collections import LineCollection

from .canvas import (
    INK,
    QUIET,
    WIDTH,
    Picture,
    as_array,
    as_rgb,
    colour_bar,
    coloured_segments,
    draw_outline,
    draw_photo,
    grid_axes,
    new_picture,
    number_segments,
    per_item,
    segment_borders,
    segment_colour,
    signed_map,
    strip_axes,
    styled,
    symmetric_limit,
)


@styled
def show_photos(
    images: Sequence, titles: Sequence[str] | None = None, row_height: float = 1.75
) -> Picture:
    """Photographs in rows of equal height, each with its title below.

    Args:
        images: PIL images or arrays ``(height, width, 3)``, of any aspect.
        titles: one per image.
        row_height: inches the rows aim at.
    """
    images = [as_rgb(image) for image in images]
    titles = per_item(titles, len(images), "titles") or [""] * len(images)
    rows, gap, caption = _rows([im.shape[1] / im.shape[0] for im in images], row_height), 0.08, 0.26
    total = sum(height + caption for height, _ in rows)
    figure, top = new_picture(WIDTH, total, layout=None), total
    for height, row in rows:
        left = 0.0
        for i, width in row:
            box = (left / WIDTH, (top - height) / total, width / WIDTH, height / total)
            strip_axes(ax := figure.add_axes(box))
            ax.imshow(images[i], aspect="auto", interpolation="antialiased")
            ax.text(0, -0.05 / height, titles[i], transform=ax.transAxes, va="top", fontsize=8.5)
            left += width + gap
        top -= height + caption
    return figure


def _rows(aspects: Sequence[float], height: float, gap: float = 0.08) -> list:
    """Justified rows ``(height, [(index, width), ...])`` that fill `WIDTH`, except the last, which
    may stay short.
    """
    rows, row = [], []
    for index, aspect in enumerate(aspects):
        row.append((index, aspect))
        fitted = (WIDTH - gap * (len(row) - 1)) / sum(a for _, a in row)
        last = index == len(aspects) - 1
        if fitted <= 1.1 * height or last:
            tall = min(fitted, 1.1 * height) if last else fitted
            rows.append((tall, [(i, a * tall) for i, a in row]))
            row = []
    return rows


@styled
def show_segments(
    image,
    segments,
    titles: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    columns: int = 4,
) -> Picture:
    """The photograph, then one or several segmentations of it, numbered and outlined.

    Args:
        image: PIL image or array ``(height, width, 3)``.
        segments: integers ``(h, w)``, or a list of such maps (for several k, for instance). -1 is
            left blank.
        titles: one per segmentation.
        names: what to write into segment 0, 1, ...; the default is the number.
        columns: panels in a row.
    """
    image = as_rgb(image)
    several = segments if isinstance(segments, (list, tuple)) else [segments]
    several = [as_array(s, 2, "segments").astype(int) for s in several]
    titles = per_item(titles, len(several), "titles") or [
        f"{len(np.unique(s[s >= 0]))} segments" for s in several
    ]
    figure, axes = grid_axes(len(several) + 1, image.shape[0] / image.shape[1], columns)
    draw_photo(axes[0], image, several[0].shape, "photograph")
    for ax, seg, title in zip(axes[1:], several, titles):
        draw_photo(ax, coloured_segments(seg, image), seg.shape, title)
        ax.add_collection(
            LineCollection(segment_borders(seg), colors="white", linewidths=0.9, capstyle="round")
        )
        number_segments(ax, seg, names or [str(i) for i in range(seg.max() + 1)])
    return figure


@styled
def show_maps(
    maps: Sequence,
    titles: Sequence[str] | None = None,
    unit: str = "",
    outline=None,
    columns: int = 4,
    limit: float | None = None,
) -> Picture:
    """Signed maps ``(h, w)`` under one symmetric scale.

    Args:
        maps: list of ``(h, w)`` or tensor ``(count, h, w)``; NaN is blank.
        titles: one per map.
        unit: label of the colour bar.
        outline: optional ``(h, w)`` mask or segments whose border is drawn on each map.
        columns: panels in a row.
        limit: end of the scale; the default leaves the outermost 0.5% of all cells beyond it.
    """
    maps = [as_array(m, 2, "each map").astype(float) for m in maps]
    titles = per_item(titles, len(maps), "titles") or [None] * len(maps)
    limit = limit or symmetric_limit(maps)
    figure, axes = grid_axes(
        len(maps), maps[0].shape[0] / maps[0].shape[1], columns, tallest=2.4, extra=0.9
    )
    for ax, values, title in zip(axes, maps, titles):
        drawn = signed_map(ax, values, limit, title)
        if outline is not None:
            draw_outline(ax, as_array(outline, 2, "outline"))
    colour_bar(
        figure, drawn, list(axes), unit, max(np.nanmax(np.abs(m), initial=0) for m in maps) > limit
    )
    return figure


def show_eigenvectors(
    U, grid_hw: tuple[int, int], eigenvalues=None, image: int = 0, columns: int = 4
) -> Picture:
    """Columns of ``U (n, k)`` as maps of one image, titled with their eigenvalues.

    Args:
        U: eigenvectors ``(n, k)``, rows ordered image, y, x.
        grid_hw: cells ``(h, w)`` of one image.
        eigenvalues: ``(k,)``, descending.
        image: which image of a joint segmentation.
        columns: panels in a row.
    """
    U, cells = as_array(U, 2, "U"), grid_hw[0] * grid_hw[1]
    if len(U) % cells or not 0 <= image < len(U) // cells:
        raise ValueError(
            f"expected n = images * {grid_hw[0]} * {grid_hw[1]} rows and image < images, received "
            f"{len(U)} rows and image = {image}. Is (h, w) swapped, or a prefix token left in?"
        )
    maps = U[image * cells : (image + 1) * cells].T.reshape(-1, *grid_hw)
    lam = (
        [""] * len(maps)
        if eigenvalues is None
        else [rf"   $\lambda$ = {v:.4f}" for v in as_array(eigenvalues, 1)]
    )
    if len(lam) != len(maps):
        raise ValueError(
            f"expected one eigenvalue per column of U, received {len(lam)} for {len(maps)} columns. Cut both at the same k."
        )
    return show_maps(
        maps,
        [f"eigenvector {j + 1}{value}" for j, value in enumerate(lam)],
        "entry",
        columns=columns,
    )


@styled
def show_named_parts(image, masks: Mapping, title: str | None = None) -> Picture:
    """The picture, and beside it the same picture with every mask in its own colour and its name at
    the end of a line.

    Args:
        image: PIL image or array ``(height, width, 3)`` or ``(3, height, width)``.
        masks: name -> ``(height, width)`` in [0, 1].
        title: above the picture.
    """
    image = as_rgb(image)
    height, width = image.shape[:2]
    figure = new_picture(WIDTH * 0.8, WIDTH * 0.8 * 0.5 * height / width + 0.25)
    left, right = figure.subplots(1, 2)
    draw_photo(left, image, (height, width), title)
    shown = 0.45 * image + 0.55 * image.mean(-1, keepdims=True) ** 0.5
    for i, mask in enumerate(masks.values()):
        alpha = 0.85 * as_array(mask, 2, "each mask").astype(float)[..., None]
        shown = shown + alpha * (np.asarray(segment_colour(i)) - shown)
    draw_photo(right, shown, (height, width))
    for name, mask in masks.items():
        _name_part(right, name, as_array(mask).astype(float))
    return figure


def _name_part(ax, name: str, mask: np.ndarray) -> None:
    """Writes `name` away from the middle of the picture, tied to the middle of the mask."""
    height, width = mask.shape
    y, x = (np.arange(n) + 0.5 for n in mask.shape)
    at = np.array([(mask * x).sum(), (mask * y[:, None]).sum()]) / mask.sum()
    away = at - np.array([width, height]) / 2
    text = at + away / max(np.hypot(*away), 1e-6) * 0.13 * width + np.array([0, 0.02 * height])
    text = np.clip(text, (0.1 * width, 0.05 * height), (0.9 * width, 0.95 * height))
    ax.annotate(
        name,
        at,
        text,
        ha="center",
        va="center",
        fontsize=8.5,
        arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8},
        bbox={
            "boxstyle": "round,pad=0.2",
            "facecolor": "white",
            "edgecolor": "none",
            "alpha": 0.85,
        },
    )


@styled
def show_cut(
    image, segments, U, eigenvalues, maps: int = 5, first: int = 2, columns: int = 4
) -> Picture:
    """A photograph, its segments, the photograph repainted in their mean colours, and the
    eigenvectors behind them.

    Args:
        image: PIL image or array ``(height, width, 3)``.
        segments: integers ``(h, w)``.
        U: eigenvectors ``(h * w, m)``.
        eigenvalues: ``(m,)``, descending.
        maps: eigenvectors drawn, under one symmetric scale.
        first: number of the first one drawn. Number 1 is the square root of the degree, whatever
            the picture.
        columns: panels in a row.
    """
    image, segments = as_rgb(image), as_array(segments, 2, "segments").astype(int)
    U, lam = as_array(U, 2, "U").astype(float), as_array(eigenvalues, 1, "eigenvalues")
    drawn_maps = [u.reshape(segments.shape) for u in U.T[first - 1 : first - 1 + maps]]
    figure, axes = grid_axes(
        3 + len(drawn_maps), image.shape[0] / image.shape[1], columns, extra=0.75
    )
    draw_photo(axes[0], image, segments.shape, "photograph")
    draw_photo(
        axes[1],
        coloured_segments(segments, image),
        segments.shape,
        f"{len(np.unique(segments))} segments",
    )
    axes[1].add_collection(
        LineCollection(segment_borders(segments), colors="white", linewidths=0.9, capstyle="round")
    )
    number_segments(axes[1], segments, [str(i) for i in range(segments.max() + 1)])
    draw_photo(axes[2], _repainted(segments, image), segments.shape, "mean colour of each")
    for j, (ax, values) in enumerate(zip(axes[3:], drawn_maps), first):
        drawn = signed_map(
            ax,
            values,
            symmetric_limit(drawn_maps),
            rf"eigenvector {j}, $\lambda$ = {lam[j - 1]:.3f}",
        )
    colour_bar(figure, drawn, list(axes), "entry of the eigenvector", True)
    return figure


def _repainted(segments: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Every segment in its mean colour, ``(height, width, 3)``."""
    y, x = (np.arange(side) * cells // side for side, cells in zip(image.shape, segments.shape))
    label = segments[y][:, x]
    return sum((label == j)[..., None] * image[label == j].mean(0) for j in np.unique(label))


@styled
def show_rotation(Y, R, groups, names: Sequence[str] | None = None) -> Picture:
    """Rows of two eigenvectors on the unit circle, before and after the rotation that brings them
    to the axes.

    Args:
        Y: rows of length 1, ``(n, 2)``.
        R: rotation ``(2, 2)``.
        groups: segment of each row ``(n,)``.
        names: what to write beside each row.
    """
    Y, R, groups = (
        as_array(Y, 2, "Y").astype(float),
        as_array(R, 2, "R").astype(float),
        as_array(groups, 1, "groups"),
    )
    names = per_item(names, len(Y), "names") or [""] * len(Y)
    figure, turn = new_picture(WIDTH * 0.86, 3.5), np.linspace(0, 2 * np.pi, 200)
    for ax, rows, title in zip(
        figure.subplots(1, 2), (Y, Y @ R), (r"rows of $Y$", r"rows of $Y R$")
    ):
        ax.plot(np.cos(turn), np.sin(turn), color="#C9CED4", linewidth=0.9, zorder=1)
        ax.axhline(0, color=QUIET, linewidth=0.8, zorder=1)
        ax.axvline(0, color=QUIET, linewidth=0.8, zorder=1)
        ax.scatter(
            *rows.T,
            s=46,
            c=[segment_colour(int(g)) for g in groups],
            edgecolors="white",
            linewidths=0.8,
            zorder=3,
        )
        for at, name in zip(rows, names):
            ax.text(*(1.14 * at), name, ha="center", va="center", weight="bold", color=INK)
        ax.set(
            title=title,
            xlabel="column 0",
            ylabel="column 1",
            aspect="equal",
            xlim=(-1.3, 1.3),
            ylim=(-1.3, 1.3),
            xticks=(-1, 0, 1),
            yticks=(-1, 0, 1),
        )
    return figure
