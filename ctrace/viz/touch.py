"""Figures that can be touched: a static figure, and beside it the numbers from which a script of
the book draws a live one in its place.

The numbers are JSON in the output of the cell, computed by that cell: arrays as integers with a
scale, photographs as JPEG. In the book the script is loaded once for all pages; the output that
Jupyter and Colab show brings it along. Without a script, and on paper, the static figure stays.
"""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import reduce
from PIL import Image

from ctrace.check import check_number, one_of
from ctrace.cut.kway import kway_ncut
from ctrace.cut.ncut import Ncut
from ctrace.cut.tracing import segment_strength, trace_channels
from ctrace.viz import gallery
from ctrace.viz.canvas import as_rgb
from ctrace.world.features import GridFeatures

FOLDER = Path(__file__).parents[1] / "data/touch"
KINDS = ("explorer",)
PHOTO_PX = 400  # longer side of a photograph in a page, where it is the only one
BITS = {8: np.int8, 16: "<i2"}


def show_touchable(
    figure: Any, alt: str, caption: str, name: str, kind: str, payload: Mapping, label: str
) -> None:
    """Display a captioned figure that a script replaces by a live one.

    Args:
        figure, alt, caption, name: of the static figure, as in `gallery.show_figure`.
        kind: which live figure, one of `KINDS`.
        payload: what it is drawn from; anything that JSON can hold.
        label: what the live figure is, for readers who cannot see it.

    Raises:
        ValueError: an unknown kind, a payload that JSON cannot hold (NaN), or what `show_figure`
            refuses.
    """
    one_of("kind", kind, KINDS)
    name = gallery._checked_slug(name, "Figure name")
    item = gallery._checked_item("", figure, alt, caption, f"Figure '{name}'")
    text = json.dumps(payload, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    data = f'<script type="application/json">{text}</script>'
    words = f'data-kind="{kind}" data-label="{html.escape(label)}"'
    book = f'<div class="ctrace-touch" {words} data-figure="fig-{name}">{data}</div>'
    script, style = ((FOLDER / f"ctrace-figures.{end}").read_text("utf-8") for end in ("js", "css"))
    picture = gallery._figure_html(item, ' class="ctrace-figure"')
    alone = f'<div class="ctrace-touch" {words}>{picture}{data}</div>'
    gallery._glue(name, item)
    static = gallery._figure_markdown(name, item)
    gallery._display(
        {
            "text/markdown": f"{static}\n\n```{{raw}} html\n{book}\n```",
            "text/html": f"{gallery._STYLE}<style>{style}</style>{alone}<script>{script}</script>",
            "text/plain": f"Figure '{name}': {item.alt}",
        }
    )


def rounded(features: GridFeatures, bits: int = 16) -> GridFeatures:
    """Features that a page can carry: each channel is whole numbers of `bits` bits times a scale.

    What is computed of them here is computed of the same numbers in the page. They are float64 on
    the CPU, off by at most half a scale: the largest magnitude of the channel over 65,534 with 16
    bits, over 254 with 8.

    Raises:
        ValueError: other bits than 8 or 16.
    """
    scale = _scale(features, bits)
    x = features.features.detach().cpu().double()
    return replace(features, features=(x / scale).round() * scale)


def _scale(features: GridFeatures, bits: int) -> torch.Tensor:
    if bits not in BITS:
        raise ValueError(f"bits: expected 8 or 16, received {bits!r}.")
    most = features.features.detach().cpu().double().abs().amax(0)
    scale = torch.where(most > 0, most, 1) / (2 ** (bits - 1) - 1)
    return torch.tensor([float(f"{value:.6e}") for value in scale.tolist()]).double()


def explorer_example(
    label: str,
    photos: Sequence,
    features: GridFeatures,
    k: int,
    at: tuple[float, float],
    families: Mapping[str, Sequence[str]] | None = None,
    bits: int = 16,
    most: int = 8,
) -> dict:
    """One choice of the channel explorer: photographs, their features, and how `ctrace` cuts them.

    The page cuts by itself; the cuts given here are what it is compared with.

    Args:
        label: what the choice is called.
        photos: the photographs, in the order of the features.
        features: `rounded` features of the photographs.
        k: segments at the beginning.
        at: height and width, in fractions of the first photograph, of a point in the segment that
            is chosen at the beginning.
        families: names of channels that can be weighted together.
        bits: those of `rounded`.
        most: the largest k.

    Raises:
        ValueError: features that are not rounded, another number of photographs, a point outside.
    """
    h, w = features.grid_hw
    if len(photos) != features.n_images:
        counts = f"{features.n_images} images in the features, {len(photos)} photographs"
        raise ValueError(f"photos: expected one for each image, received {counts}.")
    y, x = (check_number("at", part, at_least=0, below=1) for part in at)
    whole = features.features / (scale := _scale(features, bits))
    if not torch.allclose(whole, whole.round(), atol=1e-6, rtol=0):
        raise ValueError(f"features: expected rounded(features, {bits}); these are no integers.")
    solver = Ncut(most + 1)
    eigvec = solver.fit_transform(features.features)
    cuts = {}
    for n in range(2, most + 1):
        soft = kway_ncut(eigvec, n)
        segments = soft.argmax(1)
        strengths = segment_strength(soft, segments, solver.graph).nan_to_num(0)
        cuts[n] = {"segments": _text(segments.numpy().astype(np.uint8))}
        cuts[n]["strengths"] = strengths.tolist()
    cell = int(y * h) * w + int(x * w)
    trace = trace_channels(features, k)
    numbers = {name: number for number, name in enumerate(features.names)}
    return {
        "label": label,
        "photos": [_jpeg(photo, PHOTO_PX / len(photos) ** 0.5) for photo in photos],
        "grid": [h, w],
        "names": features.names,
        "families": [[f, [numbers[c] for c in own]] for f, own in (families or {}).items()],
        "features": {
            "bits": bits,
            "scale": scale.tolist(),
            "data": _text(whole.round().numpy().astype(BITS[bits])),
        },
        "k": k,
        "anchor": cell,
        "eigval": solver.eigval.tolist(),
        "cuts": cuts,
        "attributions": [float(f"{a:.8e}") for a in trace.attributions[trace.segments[cell]]],
    }


def _text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _jpeg(photo, side: float) -> str:
    """A photograph, its longer side no more than so many pixels, as the address of itself."""
    image = Image.fromarray((255 * as_rgb(photo)).round().astype(np.uint8))
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def pooled(features: GridFeatures, side: int = 2) -> GridFeatures:
    """Means over squares of `side` cells: a coarser grid, for a page."""
    maps = features.maps()
    h, w = (n // side for n in maps.shape[1:3])
    pattern = "b (h y) (w x) c -> (b h w) c"
    rows = reduce(maps[:, : h * side, : w * side], pattern, "mean", y=side, x=side)
    return replace(features, features=rows, grid_hw=(h, w))
