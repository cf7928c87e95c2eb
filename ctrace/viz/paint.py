"""The colours of the book, and photographs, maps and segments mixed into one image."""

import base64
import io

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from PIL import Image
from scipy.ndimage import distance_transform_edt

from ctrace.viz.canvas import as_array, as_rgb

SEGMENT_COLOURS = (
    "#0072B2 #E69F00 #009E73 #CC79A7 #F0E442 #882255 "
    "#56B4E9 #D55E00 #999933 #44AA99 #AA4499 #332288"
).split()
"""Okabe and Ito's, then Tol's: told apart with any colour vision. Segment 12 starts again."""

POSITIVE, NEGATIVE, INK, QUIET = "#B2182B", "#2166AC", "#22262B", "#8A9099"
LINE_STYLES = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"), ((0, (5, 1, 1, 1, 1, 1)), "v"))
UNSIGNED_MAP = LinearSegmentedColormap.from_list("unsigned red", ["#F2F3F4", POSITIVE])
LUMINANCE = (0.299, 0.587, 0.114)


def segment_colour(index: int) -> tuple[float, float, float]:
    """RGB of segment `index`, the same in every figure."""
    return to_rgb(SEGMENT_COLOURS[index % len(SEGMENT_COLOURS)])


def line_look(index: int) -> dict:
    """Colour, dash and marker of line `index`. The yellow of the segments is too pale for lines."""
    dash, marker = LINE_STYLES[index % len(LINE_STYLES)]
    colour = segment_colour(index if index < 4 else index + 1)
    return {"color": colour, "linestyle": dash, "marker": marker}


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


def laid_over(image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """A pale grey image under a map in [-1, 1], opaque in proportion to its magnitude; NaN has no
    colour, ``(height, width, 3)``.
    """
    grey = 0.35 + 0.6 * (image @ LUMINANCE)[..., None]
    share = np.clip(np.nan_to_num(share), -1, 1)[..., None]
    colour = np.where(share > 0, to_rgb(POSITIVE), to_rgb(NEGATIVE))
    return grey + 0.9 * np.abs(share) * (colour - grey)


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


def widest_places(segments: np.ndarray) -> dict[int, tuple[float, float]]:
    """Where each segment is widest: segment -> middle of the cell ``(x, y)``."""
    places = {}
    for index in np.unique(segments[segments >= 0]):
        depth = distance_transform_edt(np.pad(segments == index, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        places[index] = x + 0.5, y + 0.5
    return places


def jpeg_address(image, side: float | None = None, quality: int = 85) -> str:
    """A photograph as the address of itself (a data URI), its longer side at most so many pixels.

    Args:
        image: anything that `as_rgb` takes, in [0, 1].
        side: as it is, when left out.
        quality: of the JPEG.
    """
    levels = (255 * as_rgb(image)).round().astype(np.uint8)
    picture, buffer = Image.fromarray(levels), io.BytesIO()
    picture.thumbnail((side, side) if side else picture.size)
    picture.save(buffer, format="JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
