"""What every figure is drawn on: the style, an empty picture, arrays out of whatever comes in."""

import io
from pathlib import Path

import numpy as np
from matplotlib import rc_context, rc_params_from_file
from matplotlib.figure import Figure

WIDTH = 8.2
"""Inches of a full-width figure: 900 pixels at 110 dots per inch."""

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
