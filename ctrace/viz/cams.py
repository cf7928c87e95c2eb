"""Class activation maps over their pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb

from .canvas import (
    NEGATIVE,
    POSITIVE,
    QUIET,
    SIGNED_MAP,
    WIDTH,
    Picture,
    as_array,
    as_rgb,
    colour_bar,
    draw_outline,
    draw_photo,
    grid_axes,
    new_picture,
    per_item,
    signed_map,
    styled,
    symmetric_limit,
)


@styled
def show_cams(
    images: Sequence,
    cams: Sequence,
    heats: Sequence,
    titles: Sequence[str] | None = None,
    unit: str = "weight x activation",
    limit: float | None = None,
) -> Picture:
    """A row per image: the image, the signed map of a layer cell by cell, and the map laid over the
    image.

    All maps of the figure share one symmetric scale. Over the image, a place is coloured the more
    the larger its value; no evidence, no colour.

    Args:
        images: PIL images or arrays ``(height, width, 3)`` or ``(3, height, width)``.
        cams: per image, the raw map ``(h, w)``.
        heats: per image, the same map in image size ``(height, width)``, unscaled
            (`Explanation.heatmap(False, False)`).
        titles: one per image.
        unit: label of the colour bar.
        limit: end of the scale; pass the same for figures that are to be compared.
    """
    images, cams, heats = (
        [as_rgb(i) for i in images],
        [as_array(c, 2, "each cam") for c in cams],
        [as_array(m, 2, "each heat") for m in heats],
    )
    if not len(images) == len(cams) == len(heats):
        raise ValueError(
            f"expected one cam and one heat per image, received {len(images)}, {len(cams)} and {len(heats)}."
        )
    titles, limit = (
        per_item(titles, len(images), "titles") or ["image"] * len(images),
        limit or symmetric_limit(cams),
    )
    side = min((WIDTH - 0.9) / 3, 2.15)
    figure = new_picture(
        3 * side + 0.9, sum(side * im.shape[0] / im.shape[1] + 0.3 for im in images)
    )
    axes = figure.subplots(len(images), 3, squeeze=False)
    for row, image, cam, heat, title in zip(axes, images, cams, heats, titles):
        draw_photo(row[0], image, cam.shape, title)
        drawn = signed_map(
            row[1],
            cam if cam.any() else np.full(cam.shape, np.nan),
            limit,
            f"signed map, {cam.shape[0]} x {cam.shape[1]}",
        )
        draw_photo(row[2], _laid_over(image, heat, limit), cam.shape, "laid over")
    colour_bar(
        figure, drawn, list(axes.ravel()), unit, max(np.abs(c).max() for c in cams) > limit * 1.001
    )
    return figure


@styled
def show_overlays(
    images: Sequence,
    heats: Sequence,
    titles: Sequence[str] | None = None,
    masks: Sequence | None = None,
    columns: int = 4,
    unit: str = "weight x activation",
    limit: float | None = None,
) -> Picture:
    """Signed maps laid over their images, under one symmetric scale.

    Args:
        images: one per map; repeat an image to compare maps of it.
        heats: maps in image size ``(height, width)``.
        titles: one per map.
        masks: per map, a mask ``(height, width)`` whose border is drawn; None for none.
        columns: panels in a row.
        unit, limit: as in `show_cams`.
    """
    images, heats = [as_rgb(i) for i in images], [as_array(m, 2, "each heat") for m in heats]
    titles, masks = (
        per_item(titles, len(images), "titles") or [None] * len(images),
        per_item(masks, len(images), "masks"),
    )
    limit = limit or symmetric_limit(heats)
    figure, axes = grid_axes(
        len(images), images[0].shape[0] / images[0].shape[1], columns, tallest=2.4, extra=0.9
    )
    for i, (ax, image, heat) in enumerate(zip(axes, images, heats)):
        draw_photo(ax, _laid_over(image, heat, limit), heat.shape, titles[i])
        if not heat.any():
            ax.text(
                heat.shape[1] / 2,
                heat.shape[0] / 2,
                "no evidence",
                ha="center",
                va="center",
                color=QUIET,
                style="italic",
            )
        if masks:
            draw_outline(ax, as_array(masks[i], 2, "each mask").astype(float) > 0.5, 0.7)
    scale = ScalarMappable(Normalize(-limit, limit), SIGNED_MAP)
    colour_bar(figure, scale, list(axes), unit, max(np.abs(m).max() for m in heats) > limit * 1.001)
    return figure


def _laid_over(image: np.ndarray, heat: np.ndarray, limit: float) -> np.ndarray:
    """A pale grey image with the map's colours on top, opaque in proportion to magnitude,
    ``(height, width, 3)``.
    """
    if heat.shape != image.shape[:2]:
        raise ValueError(
            f"expected a map of the image's size {image.shape[:2]}, received {heat.shape}. Explanation.heatmap enlarges it."
        )
    grey = 0.35 + 0.6 * (image @ (0.299, 0.587, 0.114))[..., None]
    share = np.clip(np.nan_to_num(heat) / limit, -1, 1)[..., None]  # NaN is no evidence: no colour
    colour = np.where(share > 0, to_rgb(POSITIVE), to_rgb(NEGATIVE))
    return grey + 0.9 * np.abs(share) * (colour - grey)
