"""Photographs, segments and maps in a grid of panels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ctrace.check import one_of
from ctrace.viz import paint
from ctrace.viz.canvas import WIDTH, Picture, as_array, as_rgb, new_picture, style


class Panel(NamedTuple):
    """One panel of `show_grid`: every part is optional, and one at least is there.

    Attributes:
        photo: image ``(height, width, 3)`` or ``(3, height, width)`` in [0, 1], or a PIL image.
        values: map ``(h, w)``, cell by cell. Over a photo it has the photo's size and is laid over
            it, the stronger the larger the value. NaN is blank: no evidence.
        segments: integers ``(h, w)``, numbered and coloured, over the photo in grey. -1 is blank.
        outline: mask or segments ``(h, w)`` whose borders are drawn.
    """

    photo: Any = None
    values: Any = None
    segments: Any = None
    outline: Any = None


@style()
def show_grid(
    panels: Sequence,
    titles: Sequence[str] | None = None,
    columns: int = 4,
    rows: Sequence[str] | None = None,
    scale: str = "signed",
    limit: float | None = None,
    unit: str = "",
    numbers: str = "",
    tallest: float = 2.4,
) -> Picture:
    """Photographs, segments and maps, alone or over each other, in rows of panels.

    All maps share one scale and one colour bar: red above zero, blue below, white at zero. A map
    that is zero or NaN everywhere says "no evidence".

    Args:
        panels: `Panel`s. A bare array with three axes is a photograph; ``(h, w)`` of integers or
            booleans are segments, of floats a map.
        titles: one per panel, or one per column over the first row.
        columns: panels in a row.
        rows: a name for each row, at its left.
        scale: "signed", symmetric about zero, or "unsigned", from zero.
        limit: end of the scale; the default leaves the outermost 0.5% of all cells beyond it. Pass
            the same for figures that are to be compared.
        unit: of the maps, on the colour bar.
        numbers: format, like ".2f", of the numbers written into the cells of maps.
        tallest: inches that no panel exceeds in height.

    Raises:
        ValueError: parts that do not fit each other, an image outside [0, 1], negative values on an
            unsigned scale.
    """
    panels = [_read(panel) for panel in panels]
    columns = min(columns, len(panels))
    starts = range(0, len(panels), columns)
    rows, titles = list(rows or [""] * len(starts)), list(titles or [""] * len(panels))
    if len(titles) not in (len(panels), columns) or len(rows) != len(starts):
        raise ValueError(
            f"expected {len(panels)} titles, or {columns}, one per column, and {len(starts)} rows; "
            f"received {len(titles)} titles and {len(rows)} rows."
        )
    titles += [""] * (len(panels) - len(titles))
    maps = [panel.values for panel in panels if panel.values is not None]
    colours, clipped = _scale(maps, one_of("scale", scale, ("signed", "unsigned")), limit)

    left = 0.07 * max(len(line) for name in rows for line in name.split("\n"))
    right = 0.9 * bool(maps)
    shapes = [next(part for part in panel if part is not None).shape for panel in panels]
    tall = [max(shape[0] / shape[1] for shape in shapes[i : i + columns]) for i in starts]
    head = [0.25 + 0.15 * max(t.count("\n") for t in titles[i : i + columns]) for i in starts]
    side = min((WIDTH - left - right) / columns, tallest / max(tall))
    figure = new_picture(side * columns + left + right, side * sum(tall) + sum(head))
    axes = figure.subplots(len(starts), columns, squeeze=False, height_ratios=tall).ravel()
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax, panel, title in zip(axes, panels, titles):
        _draw(ax, panel, colours, numbers)
        ax.set_title(title)
    for ax, name in zip(axes[::columns], rows):
        if name:  # a page may write a label of its own where there is none
            ax.set_ylabel(name, rotation=0, ha="right", va="center")
    if maps:
        look = {"extend": clipped, "aspect": 25, "fraction": 0.05, "pad": 0.02}
        bar = figure.colorbar(colours, ax=list(axes), label=unit, **look)
        bar.outline.set_visible(False)
        bar.locator = MaxNLocator(5)
    return figure


def _read(panel) -> Panel:
    """The panel with arrays as parts, whose shapes fit each other."""
    if not isinstance(panel, Panel):
        array = as_array(panel)
        kind = "photo" if array.ndim != 2 else "values" if array.dtype.kind == "f" else "segments"
        panel = Panel(**{kind: array})
    photo = None if panel.photo is None else as_rgb(panel.photo)
    cells = [None if part is None else as_array(part, 2, "cells") for part in panel[1:]]
    shapes = {part.shape for part in cells if part is not None}
    if photo is not None and panel.values is not None:
        shapes.add(photo.shape[:2])
    if len(shapes) > 1:
        raise ValueError(
            "expected a map of the image's size, and outlines of the map's size, received "
            f"{sorted(shapes)}. Explanation.heatmap enlarges a map, viz.enlarged its cells."
        )
    return Panel(photo, *cells)


def _scale(maps: list, scale: str, limit: float | None) -> tuple[ScalarMappable, str]:
    """The colours of all maps, and which ends of their scale are exceeded."""
    values = np.concatenate([[0.0], *(m[np.isfinite(m)] for m in maps)])
    if scale == "unsigned" and values.min() < 0:
        raise ValueError(
            f"expected maps without negative values, received {values.min():.3g}. "
            "Of a signed map, draw values.abs(), or take the signed scale."
        )
    most = float(np.abs(values).max())
    limit = limit or float(np.quantile(np.abs(values), 0.995)) or most or 1.0
    if scale == "unsigned":
        colours, ends = ScalarMappable(Normalize(0, limit), paint.UNSIGNED_MAP), "max"
    else:
        colours, ends = ScalarMappable(Normalize(-limit, limit), "RdBu_r"), "both"
    return colours, ends if most > 1.001 * limit else "neither"


def _draw(ax, panel: Panel, colours: ScalarMappable, numbers: str) -> None:
    photo, values, segments, outline = panel
    h, w = next(part for part in panel[1:] + panel[:1] if part is not None).shape[:2]
    place = {"extent": (0, w, h, 0), "interpolation": "nearest"}
    middle = {"ha": "center", "va": "center"}
    rim = [withStroke(linewidth=2.4, foreground="white")]  # letters over a photograph
    empty = values is not None and not np.nan_to_num(values).any()
    if segments is not None:
        segments = segments.astype(int)
        ax.imshow(paint.coloured_segments(segments, photo), **place)
        _draw_borders(ax, segments, "white", 0.9)
        for index, (x, y) in paint.widest_places(segments).items():
            ax.text(x, y, str(index), weight="bold", path_effects=rim, **middle)
    elif photo is None:
        shown = np.full((h, w), np.nan) if empty else values
        ax.imshow(shown, cmap=colours.cmap, norm=colours.norm, **place)
        ax.spines[:].set(visible=True, color="#D5D9DE")
    else:
        shown = photo if values is None else paint.laid_over(photo, values / colours.norm.vmax)
        ax.imshow(shown, **place | {"interpolation": "antialiased"})
    if outline is not None:  # a white rim keeps a dark line visible on dark ground
        mask = np.rint(outline.astype(float))  # soft masks count from one half
        _draw_borders(ax, mask, "white", 1.6)
        _draw_borders(ax, mask, paint.INK, 0.7)
    if empty:
        ax.text(w / 2, h / 2, "no evidence", style="italic", path_effects=rim, **middle)
    for (i, j), value in np.ndenumerate(values) if numbers and not empty else ():
        text = format(value, numbers).replace("-", "\N{MINUS SIGN}") if np.isfinite(value) else ""
        colour = "white" if abs(value) > 0.6 * colours.norm.vmax else paint.INK
        ax.text(j + 0.5, i + 0.5, text, fontsize=7.5, color=colour, **middle)


def _draw_borders(ax, segments: np.ndarray, colour: str, width: float) -> None:
    lines = paint.segment_borders(segments)
    ax.add_collection(LineCollection(lines, colors=colour, linewidths=width, capstyle="round"))
