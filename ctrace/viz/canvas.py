"""What every figure is drawn with: the style, the colours, and arrays out of whatever comes in."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context, rc_params_from_file
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

WIDTH = 8.2
"""Inches of a full-width figure: 900 pixels at 110 dots per inch."""

SEGMENT_COLOURS = (
    "#0072B2 #E69F00 #009E73 #CC79A7 #F0E442 #882255 "
    "#56B4E9 #D55E00 #999933 #44AA99 #AA4499 #332288"
).split()
"""Okabe and Ito's, then Tol's: told apart with any colour vision. Segment 12 starts again."""

POSITIVE, NEGATIVE, INK, QUIET = "#B2182B", "#2166AC", "#22262B", "#8A9099"
LINE_STYLES = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"), ((0, (5, 1, 1, 1, 1, 1)), "v"))
_STYLE = rc_params_from_file(Path(__file__).with_name("book.mplstyle"), use_default_template=False)


def style():
    """The style of the book, for ``with viz.style():`` or as a decorator, ``@viz.style()``.

    Outside of it matplotlib's settings are what they were. Fonts and colours are read when an
    artist is made, so a figure keeps the style it was drawn in.
    """
    return rc_context(_STYLE)


class Picture(Figure):
    """A figure that a notebook can display although pyplot never heard of it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def new_picture(width: float, height: float, layout: str | None = "constrained") -> Picture:
    """An empty picture, in inches; `WIDTH` is the width of the column."""
    return Picture(figsize=(width, height), layout=layout)


def as_array(values, ndim: int | None = None, name: str = "values") -> np.ndarray:
    """Array of a tensor (on any device, with or without gradient), a PIL image or a nested list.

    Raises:
        ValueError: another number of dimensions than `ndim`.
    """
    array = np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(
            f"expected {name} with {ndim} dimensions, received shape {array.shape}. "
            "Rows (h * w,) become a map with reshape(h, w)."
        )
    return array


def as_rgb(image) -> np.ndarray:
    """Image as floats ``(height, width, 3)`` in [0, 1].

    Raises:
        ValueError: no RGB image, or values outside [0, 1]: an image prepared for a model.
    """
    image = as_array(image)
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[-1] != 3:
        image = image.transpose(1, 2, 0)
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            "expected an RGB image (height, width, 3) or (3, height, width), received "
            f"{image.shape}. A batch is drawn one image at a time."
        )
    image = image / 255 if image.dtype == np.uint8 else image.astype(float)
    if not (-1e-3 <= image.min() and image.max() <= 1 + 1e-3):  # resizing overshoots by a hair
        raise ValueError(
            f"expected an image in [0, 1], received {image.min():.3g} to {image.max():.3g}. "
            "It looks normalised for a model: draw image * std + mean (model.info has both), or "
            "the image before preprocess. Values up to 255: divide by 255."
        )
    return image.clip(0, 1)


def per_item(values, n: int, name: str) -> list | None:
    """A list of n, or None.

    Raises:
        ValueError: another number than n.
    """
    if values is not None and len(values) != n:
        raise ValueError(f"expected {n} {name}, one each, received {len(values)}.")
    return None if values is None else list(values)


def segment_colour(index: int) -> tuple[float, float, float]:
    """RGB of segment `index`, the same in every figure."""
    return to_rgb(SEGMENT_COLOURS[index % len(SEGMENT_COLOURS)])


def line_colour(index: int) -> tuple[float, float, float]:
    """RGB of line `index`: the colours of segments without the yellow, too pale for a line."""
    return segment_colour(index if index < 4 else index + 1)


# Until the figures of single pages have moved to their pages.
styled = style()
SIGNED_MAP, UNSIGNED_MAP = "RdBu_r", "Blues"


def strip_axes(ax, title: str | None = None) -> None:
    """No ticks, no frame; a title if there is one."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title)


def draw_photo(ax, image: np.ndarray, hw: tuple[int, int], title: str | None = None) -> None:
    """A photograph, stretched over a grid of ``hw`` cells."""
    ax.imshow(image, extent=(0, hw[1], hw[0], 0), interpolation="antialiased")
    strip_axes(ax, title)


def signed_map(ax, values: np.ndarray, limit: float, title: str | None = None):
    """A map of signed values ``(h, w)`` in the diverging colours, white at zero."""
    h, w = values.shape
    drawn = ax.imshow(
        values,
        cmap=SIGNED_MAP,
        vmin=-limit,
        vmax=limit,
        extent=(0, w, h, 0),
        interpolation="nearest",
    )
    strip_axes(ax, title)
    ax.spines[:].set(visible=True, color="#D5D9DE")
    if not np.isfinite(values).any():
        ax.text(w / 2, h / 2, "no evidence", ha="center", va="center", color=QUIET, style="italic")
    return drawn


def symmetric_limit(maps) -> float:
    """Half-width of a symmetric scale: the largest magnitude but for the outermost 0.5% of the
    cells.
    """
    magnitude = np.abs(np.concatenate([np.ravel(m) for m in maps]))
    magnitude = magnitude[np.isfinite(magnitude)]
    return (
        float(np.quantile(magnitude, 0.995)) or float(magnitude.max()) or 1.0
        if magnitude.size
        else 1.0
    )


def segment_borders(segments: np.ndarray) -> list:
    """Line pieces between cells of different segments, in cells, without the frame of the image."""
    y, x = np.nonzero(segments[:, 1:] != segments[:, :-1])
    upright = [((j + 1, i), (j + 1, i + 1)) for i, j in zip(y, x)]
    y, x = np.nonzero(segments[1:] != segments[:-1])
    return upright + [((j, i + 1), (j + 1, i + 1)) for i, j in zip(y, x)]


def draw_outline(ax, segments: np.ndarray, width: float = 0.8) -> None:
    """Borders between segments as a dark line."""
    # A white rim keeps a dark line visible on dark ground.
    for colour, thick in (("white", width + 1.2), (INK, width)):
        ax.add_collection(
            LineCollection(
                segment_borders(segments), colors=colour, linewidths=thick, capstyle="round"
            )
        )


def coloured_segments(
    segments: np.ndarray, image: np.ndarray | None, strength: float = 0.62
) -> np.ndarray:
    """Segment colours over the grey photograph, ``(height, width, 3)``; segment -1 is blank."""
    palette = np.array(
        [segment_colour(i) for i in range(max(segments.max() + 1, 1))] + [(1.0, 1.0, 1.0)]
    )
    colours = palette[segments]  # (h, w, 3); -1 picks the white at the end
    if image is None:
        return colours
    y, x = (np.arange(side) * cells // side for side, cells in zip(image.shape, segments.shape))
    grey = (image @ (0.299, 0.587, 0.114))[..., None]
    blank = (segments < 0)[y][:, x][..., None]
    return np.where(blank, 1.0, strength * colours[y][:, x] + (1 - strength) * grey)


def number_segments(ax, segments: np.ndarray, names: Sequence[str]) -> None:
    """Writes each segment's name where the segment is widest."""
    from scipy.ndimage import distance_transform_edt

    for index in np.unique(segments[segments >= 0]):
        depth = distance_transform_edt(np.pad(segments == index, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        ax.text(
            x + 0.5,
            y + 0.5,
            names[index],
            ha="center",
            va="center",
            fontsize=8.5,
            weight="bold",
            color=INK,
            path_effects=[withStroke(linewidth=2.4, foreground="white")],
        )


def grid_axes(
    n: int,
    aspect: float,
    columns: int,
    header: float = 0.26,
    tallest: float = 3.0,
    extra: float = 0.0,
):
    """A figure with `n` image panels of the given aspect (height / width), at most `columns` in a
    row.
    """
    columns = min(n, columns)
    lines = -(-n // columns)
    panel = min((WIDTH - extra) / columns, tallest / aspect)
    figure = new_picture(panel * columns + extra, lines * (panel * aspect + header))
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax in axes[n:]:
        ax.set_axis_off()
    return figure, axes[:n]


def colour_bar(figure, drawn, axes, label: str, clipped: bool = False, **kwargs) -> None:
    """A thin colour bar beside the axes, with pointed ends where values are cut off."""
    options = {"aspect": 25, "fraction": 0.05, "pad": 0.02, "extendfrac": 0.03, **kwargs}
    bar = figure.colorbar(drawn, ax=axes, extend="both" if clipped else "neither", **options)
    bar.set_label(label)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()


def number_text(value: float, spec: str) -> str:
    """A number with a true minus sign."""
    return format(value, spec).replace("-", "\N{MINUS SIGN}")
