"""What every figure is drawn with: the style, the colours, and arrays out of whatever comes in."""

import io
from pathlib import Path

import numpy as np
from matplotlib import rc_context, rc_params_from_file
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

WIDTH = 8.2
"""Inches of a full-width figure: 900 pixels at 110 dots per inch."""

SEGMENT_COLOURS = (
    "#0072B2 #E69F00 #009E73 #CC79A7 #F0E442 #882255 "
    "#56B4E9 #D55E00 #999933 #44AA99 #AA4499 #332288"
).split()
"""Okabe and Ito's, then Tol's: told apart with any colour vision. Segment 12 starts again."""

POSITIVE, NEGATIVE, INK, QUIET = "#B2182B", "#2166AC", "#22262B", "#8A9099"
LINE_STYLES = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"), ((0, (5, 1, 1, 1, 1, 1)), "v"))
_STYLE_FILE = Path(__file__).parents[1] / "data/figures/book.mplstyle"
_STYLE = rc_params_from_file(_STYLE_FILE, use_default_template=False)


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


def segment_colour(index: int) -> tuple[float, float, float]:
    """RGB of segment `index`, the same in every figure."""
    return to_rgb(SEGMENT_COLOURS[index % len(SEGMENT_COLOURS)])


def line_look(index: int) -> dict:
    """Colour, dash and marker of line `index`. The yellow of the segments is too pale for lines."""
    dash, marker = LINE_STYLES[index % len(LINE_STYLES)]
    colour = segment_colour(index if index < 4 else index + 1)
    return {"color": colour, "linestyle": dash, "marker": marker}
