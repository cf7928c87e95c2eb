"""Photographs, segments and maps in a grid of panels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import distance_transform_edt

from ctrace.viz.canvas import (
    INK,
    NEGATIVE,
    POSITIVE,
    QUIET,
    WIDTH,
    Picture,
    as_array,
    as_rgb,
    new_picture,
    per_item,
    segment_colour,
    style,
)

UNSIGNED_MAP = LinearSegmentedColormap.from_list("unsigned red", ["#F2F3F4", POSITIVE])
LUMINANCE = (0.299, 0.587, 0.114)


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
    if titles is not None and len(titles) == columns:
        titles = [*titles, *[""] * (len(panels) - columns)]
    titles = per_item(titles, len(panels), "titles") or [""] * len(panels)
    rows = per_item(rows, len(starts), "names of rows") or [""] * len(starts)
    maps = [panel.values for panel in panels if panel.values is not None]
    colours, clipped = _scale(maps, scale, limit)

    left = 0.07 * max(len(line) for name in rows for line in f"{name}\n".split("\n"))
    right = 0.9 * bool(maps)
    shapes = [next(part for part in panel if part is not None).shape for panel in panels]
    aspects = [shape[0] / shape[1] for shape in shapes]
    tall = [max(aspects[i : i + columns]) for i in starts]
    head = [0.1 + 0.15 * max(t.count("\n") + 1 for t in titles[i : i + columns]) for i in starts]
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
        ax.set_ylabel(name, **({"rotation": 0, "ha": "right", "va": "center"} if name else {}))
    if maps:
        ends = ("max" if scale == "unsigned" else "both") if clipped else "neither"
        bar = figure.colorbar(
            colours, ax=list(axes), extend=ends, aspect=25, fraction=0.05, pad=0.02
        )
        bar.set_label(unit)
        bar.outline.set_visible(False)
        bar.locator = MaxNLocator(5)
    return figure


def _read(panel) -> Panel:
    """The panel with arrays as parts, whose shapes fit each other."""
    if not isinstance(panel, Panel):
        array = as_array(panel)
        kind = "photo" if array.ndim != 2 else "values" if array.dtype.kind == "f" else "segments"
        panel = Panel(**{kind: array})
    photo, *cells = panel
    photo = None if photo is None else as_rgb(photo)
    cells = [None if part is None else as_array(part, 2, "cells") for part in cells]
    values, segments, outline = cells
    shapes = {part.shape for part in cells if part is not None}
    if photo is not None and values is not None:
        shapes.add(photo.shape[:2])
    if len(shapes) > 1:
        raise ValueError(
            "expected a map of the image's size, and outlines of the map's size, received "
            f"{sorted(shapes)}. Explanation.heatmap enlarges a map to its image."
        )
    if outline is not None and outline.dtype.kind == "f":
        outline = outline > 0.5
    segments = None if segments is None else segments.astype(int)
    return Panel(photo, None if values is None else values.astype(float), segments, outline)


def _scale(maps: list[np.ndarray], scale: str, limit: float | None) -> tuple[ScalarMappable, bool]:
    """The colours of all maps, and whether values lie beyond their ends."""
    if scale not in ("signed", "unsigned"):
        raise ValueError(f"expected the scale signed or unsigned, received {scale!r}.")
    values = np.concatenate([[0.0], *(m[np.isfinite(m)] for m in maps)])
    if scale == "unsigned" and values.min() < 0:
        raise ValueError(
            f"expected maps without negative values, received {values.min():.3g}. "
            "Of a signed map, draw values.abs(), or take the signed scale."
        )
    most = np.abs(values).max()
    limit = limit or float(np.quantile(np.abs(values), 0.995)) or float(most) or 1.0
    low, colours = (0, UNSIGNED_MAP) if scale == "unsigned" else (-limit, "RdBu_r")
    return ScalarMappable(Normalize(low, limit), colours), most > 1.001 * limit


def _draw(ax, panel: Panel, colours: ScalarMappable, numbers: str) -> None:
    photo, values, segments, outline = panel
    h, w = next(part for part in (values, segments, outline, photo) if part is not None).shape[:2]
    place = {"extent": (0, w, h, 0), "interpolation": "nearest"}
    middle = {"ha": "center", "va": "center"}
    empty = values is not None and not np.nan_to_num(values).any()
    if segments is not None:
        ax.imshow(coloured_segments(segments, photo), **place)
        _draw_borders(ax, segments, "white", 0.9)
        rim = [withStroke(linewidth=2.4, foreground="white")]
        for index, (x, y) in _widest(segments).items():
            ax.text(x, y, str(index), weight="bold", path_effects=rim, **middle)
    elif photo is None:
        shown = np.full_like(values, np.nan) if empty else values
        ax.imshow(shown, cmap=colours.cmap, norm=colours.norm, **place)
        ax.spines[:].set(visible=True, color="#D5D9DE")
    else:
        shown = photo if values is None else laid_over(photo, values / colours.norm.vmax)
        ax.imshow(shown, **place | {"interpolation": "antialiased"})
    if outline is not None:  # a white rim keeps a dark line visible on dark ground
        _draw_borders(ax, outline, "white", 1.6)
        _draw_borders(ax, outline, INK, 0.7)
    if empty:
        ax.text(w / 2, h / 2, "no evidence", color=QUIET, style="italic", **middle)
    for (i, j), value in np.ndenumerate(values) if numbers and not empty else ():
        text = format(value, numbers).replace("-", "\N{MINUS SIGN}") if np.isfinite(value) else ""
        colour = "white" if abs(value) > 0.6 * colours.norm.vmax else INK
        ax.text(j + 0.5, i + 0.5, text, fontsize=7.5, color=colour, **middle)


def laid_over(image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """A pale grey image under a map in [-1, 1], opaque in proportion to its magnitude; NaN has no
    colour, ``(height, width, 3)``.
    """
    grey = 0.35 + 0.6 * (image @ LUMINANCE)[..., None]
    share = np.clip(np.nan_to_num(share), -1, 1)[..., None]
    colour = np.where(share > 0, to_rgb(POSITIVE), to_rgb(NEGATIVE))
    return grey + 0.9 * np.abs(share) * (colour - grey)


def enlarged(cells, image) -> np.ndarray:
    """Cells ``(h, w, ...)`` repeated to the size of the image, ``(height, width, ...)``."""
    cells, image = as_array(cells), as_rgb(image)
    y, x = (np.arange(side) * n // side for side, n in zip(image.shape[:2], cells.shape))
    return cells[y][:, x]


def spotlight(image, mask) -> np.ndarray:
    """The photograph inside the mask ``(h, w)``, a pale grey ghost of it outside."""
    image = as_rgb(image)
    inside = enlarged(as_array(mask, 2, "the mask").astype(bool), image)[..., None]
    return np.where(inside, image, 0.84 + 0.14 * (image @ LUMINANCE)[..., None])


def coloured_segments(segments: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    """Segment colours over the grey photograph, ``(height, width, 3)``; segment -1 is white."""
    known = [segment_colour(i) for i in range(max(segments.max() + 1, 1))]
    colours = np.array([*known, (1.0, 1.0, 1.0)])[segments]  # -1 picks the white at the end
    if image is None:
        return colours
    mixed = 0.62 * enlarged(colours, image) + 0.38 * (image @ LUMINANCE)[..., None]
    return np.where(enlarged(segments < 0, image)[..., None], 1.0, mixed)


def segment_borders(segments: np.ndarray) -> list:
    """Line pieces between cells of different segments, in cells, without the frame of the image."""
    y, x = np.nonzero(segments[:, 1:] != segments[:, :-1])
    upright = [((j + 1, i), (j + 1, i + 1)) for i, j in zip(y, x)]
    y, x = np.nonzero(segments[1:] != segments[:-1])
    return upright + [((j, i + 1), (j + 1, i + 1)) for i, j in zip(y, x)]


def _draw_borders(ax, segments: np.ndarray, colour: str, width: float) -> None:
    lines = segment_borders(segments)
    ax.add_collection(LineCollection(lines, colors=colour, linewidths=width, capstyle="round"))


def _widest(segments: np.ndarray) -> dict[int, tuple[float, float]]:
    """Where each segment is widest: segment -> middle of the cell ``(x, y)``."""
    places = {}
    for index in np.unique(segments[segments >= 0]):
        depth = distance_transform_edt(np.pad(segments == index, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        places[index] = x + 0.5, y + 0.5
    return places
