"""Input attributions over their pictures, what channels see, and differences with their intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from PIL import Image

from .canvas import (
    INK,
    POSITIVE,
    WIDTH,
    Picture,
    as_array,
    as_rgb,
    colour_bar,
    draw_photo,
    grid_axes,
    new_picture,
    per_item,
    segment_borders,
    styled,
)

UNSIGNED_RED = LinearSegmentedColormap.from_list("unsigned red", ["#F2F3F4", POSITIVE])


@styled
def show_mass(
    images: Sequence,
    maps: Sequence,
    titles: Sequence[str] | None = None,
    masks: Sequence | None = None,
    columns: int = 4,
    limit: float = 10.0,
    unit: str = "times a uniform map",
) -> Picture:
    """Unsigned maps laid over their images, each divided by its mean, so that all panels and all
    figures share one scale.

    Args:
        images: one per map; repeat an image to compare maps of it.
        maps: not negative, ``(height, width)``; None shows the picture alone.
        titles: one per map.
        masks: per map, a mask ``(height, width)`` whose border is drawn.
        columns: panels in a row.
        limit: where the colour is full.
        unit: label of the colour bar.
    """
    images, maps = [as_rgb(i) for i in images], [None if m is None else _share(m) for m in maps]
    titles, masks = (
        per_item(titles, len(images), "titles") or [None] * len(images),
        per_item(masks, len(images), "masks"),
    )
    figure, axes = grid_axes(
        len(images), images[0].shape[0] / images[0].shape[1], columns, tallest=2.2, extra=0.9
    )
    for i, (ax, image, values) in enumerate(zip(axes, images, maps)):
        draw_photo(
            ax,
            image if values is None else _reddened(image, values / limit),
            image.shape[:2],
            titles[i],
        )
        if masks and values is not None:
            borders = segment_borders(as_array(masks[i], 2, "each mask").astype(float) > 0.5)
            ax.add_collection(LineCollection(borders, colors=INK, linewidths=0.5, capstyle="round"))
    colour_bar(figure, ScalarMappable(Normalize(0, limit), UNSIGNED_RED), list(axes), unit)
    return figure


def _share(values) -> np.ndarray:
    """A map divided by its mean."""
    values = as_array(values, 2, "each map").astype(float)
    if (values < 0).any() or not values.any():
        raise ValueError(
            "expected maps that are not negative and not zero everywhere. Of a signed map, draw values.abs()."
        )
    return values / values.mean()


def _reddened(image: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """A pale grey image, the redder the larger the strength (in [0, 1]), ``(height, width, 3)``."""
    if strength.shape != image.shape[:2]:
        raise ValueError(
            f"expected a map of the image's size {image.shape[:2]}, received {strength.shape}."
        )
    grey = 0.68 + 0.3 * (image @ (0.299, 0.587, 0.114))[..., None]
    return grey + 0.95 * np.minimum(strength, 1)[..., None] * (np.array(to_rgb(POSITIVE)) - grey)


@styled
def show_channels(rows: Sequence[tuple[str, Sequence, Sequence]], columns: int = 6) -> Picture:
    """What channels respond to: in each row the pictures that excite one channel most, in colour
    where it fires.

    Args:
        rows: per channel a name, pictures, and its activation at each ``(h, w)``; coloured in
            proportion to the row's largest value.
        columns: pictures in a row.
    """
    side = (WIDTH - 0.1) / columns
    figure = new_picture(WIDTH, len(rows) * (side + 0.22))
    for strip, (name, pictures, maps) in zip(
        figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows
    ):
        strip.suptitle(name, x=0.01, ha="left", fontsize=9)
        maps = [as_array(m, 2, "each activation").astype(float).clip(0) for m in maps]
        largest = max(m.max() for m in maps) or 1.0
        for ax, picture, values in zip(
            strip.subplots(1, columns, squeeze=False)[0], pictures, maps
        ):
            picture = as_rgb(picture)
            enlarged = np.kron(
                values / largest, np.ones([a // b for a, b in zip(picture.shape, values.shape)])
            )
            draw_photo(ax, _tinted(picture, enlarged), picture.shape[:2])
    return figure


def _tinted(image: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """The picture in its colours where the channel fires, nearly white elsewhere, ``(height, width,
    3)``.
    """
    pale = 0.75 + 0.25 * image.mean(-1, keepdims=True)
    return pale + np.minimum(1.5 * strength, 1)[..., None] * (image - pale)


def sweep_gif(
    image, sweep: Mapping[float, object], mask=None, seconds: float = 1.2, limit: float = 10.0
) -> bytes:
    """The bytes of an endless GIF, one frame for each share of kept channels: picture, the map at
    that share, and the first and last map.

    Args:
        image: ``(height, width, 3)`` or ``(3, height, width)``.
        sweep: share -> unsigned map ``(height, width)``, in the order of the frames; the first
            should be 1, the plain gradient.
        mask: ``(height, width)``, whose border is drawn on every map.
        seconds: per frame.
        limit: as in `show_mass`.
    """
    shares, maps, frames = list(sweep), list(sweep.values()), []
    for share, values in sweep.items():
        panels = [None, values, maps[0], maps[-1]]
        titles = [
            "picture",
            f"keeping {share:g}",
            f"original: {shares[0]:g}",
            f"final: {shares[-1]:g}",
        ]
        figure = show_mass(
            [image] * 4, panels, titles, None if mask is None else [mask] * 4, limit=limit
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        frames.append(Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE))
    animation = io.BytesIO()
    frames[0].save(
        animation,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 * seconds),
        loop=0,
    )
    return animation.getvalue()
