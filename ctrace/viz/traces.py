"""Channel traces: a segment, the maps of its channels, and how strongly each holds it together."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from .canvas import (
    NEGATIVE,
    POSITIVE,
    QUIET,
    WIDTH,
    Picture,
    as_array,
    as_rgb,
    colour_bar,
    draw_outline,
    draw_photo,
    new_picture,
    number_text,
    per_item,
    signed_map,
    styled,
    symmetric_limit,
)


@styled
def show_trace(
    image,
    mask,
    maps: Sequence,
    names: Sequence[str],
    channels: Sequence[int] | None = None,
    values: Sequence[float] | None = None,
    unit: str = "standard deviations",
    value_label: str = "attribution",
    title: str | None = None,
) -> Picture:
    """What holds one segment together: the photograph, the segment, its top channels as maps.

    Above: the photograph, the segment in it, the attribution of each channel as a bar. Below: the
    channel maps in order of rank, titled with rank, channel number and name, the segment outlined
    on each.

    Args:
        image: PIL image or array ``(height, width, 3)``.
        mask: booleans ``(h, w)``, true inside the segment.
        maps: signed channel maps ``(h, w)``, best first, five or so; standardise them
            (`GridFeatures.zscores`).
        names: names of these channels.
        channels: their numbers.
        values: their attributions; without them no bars are drawn.
        unit: of the maps, on the colour bar.
        value_label: what the bars show.
        title: over the segment panel.
    """
    image, mask = as_rgb(image), as_array(mask, 2, "mask").astype(bool)
    maps = [as_array(m, 2, "each map").astype(float) for m in maps]
    titles, aspect = _ranked(names, channels, len(maps)), image.shape[0] / image.shape[1]
    tall = (
        min(2.55 * aspect, 3.0) + 0.36,
        1.5 * aspect + 0.75 + 0.16 * max(t.count("\n") for t in titles),
    )
    figure = new_picture(WIDTH, sum(tall))
    above, below = figure.subfigures(2, 1, height_ratios=tall)
    panels = above.subplots(
        1, 2 if values is None else 3, width_ratios=(2, 2, 1)[: 2 if values is None else 3]
    )
    draw_photo(panels[0], image, mask.shape, "photograph")
    draw_photo(
        panels[1],
        _faded(image, mask),
        mask.shape,
        title or f"segment, {mask.mean():.0%} of the photograph",
    )
    draw_outline(panels[1], mask)
    if values is not None:
        _signed_bars(
            panels[2], as_array(values, 1, "values"), _short(names, channels), value_label, 0.6
        )
    _trace_maps(below, maps, titles, mask, unit)
    return figure


def _trace_maps(
    figure, maps: list[np.ndarray], titles: list[str], mask: np.ndarray, unit: str
) -> None:
    axes, limit = figure.subplots(1, len(maps), squeeze=False)[0], symmetric_limit(maps)
    for ax, values, heading in zip(axes, maps, titles):
        drawn = signed_map(ax, values, limit, heading)
        draw_outline(ax, mask)
    colour_bar(
        figure,
        drawn,
        list(axes),
        f"channel value ({unit})",
        True,
        location="bottom",
        shrink=0.4,
        aspect=40,
    )


def _ranked(
    names: Sequence[str], channels: Sequence[int] | None, n: int, width: int = 19
) -> list[str]:
    """Panel titles: rank, channel number, and the name when it says more than the number."""
    names, channels = per_item(names, n, "names"), per_item(channels, n, "channels")
    titles = []
    for rank in range(n):
        number = f"ch {int(channels[rank])}" if channels else ""
        name = "" if names[rank] == number else textwrap.fill(names[rank], width)
        titles.append(
            " · ".join(filter(None, [f"top {rank + 1}", number])) + (f"\n{name}" if name else "")
        )
    return titles


def _short(names: Sequence[str], channels) -> list[str]:
    numbered = channels is not None and not names[0].startswith("ch ")
    return [f"{name}  ({int(c)})" for name, c in zip(names, channels)] if numbered else list(names)


def _faded(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The photograph inside the mask, and a pale grey ghost of it outside."""
    y, x = (np.arange(side) * cells // side for side, cells in zip(image.shape, mask.shape))
    ghost = 0.84 + 0.14 * (image @ (0.299, 0.587, 0.114))
    return np.where(mask[y][:, x][..., None], image, ghost[..., None])


def _signed_bars(
    ax, values: np.ndarray, names: Sequence[str], label: str, room: float = 0.16
) -> None:
    """Horizontal bars in the given order, top down, each with its number at the tip.

    `room` is the share of the span of the values that is kept free at each end for the number.
    """
    values, label, spec = _scaled(values, label)
    ax.barh(
        range(len(values)),
        values,
        color=[POSITIVE if v > 0 else NEGATIVE for v in values],
        height=0.62,
    )
    ax.axvline(0, color=QUIET, linewidth=0.8)
    low, high = min(values.min(), 0), max(values.max(), 0)
    span = high - low or 1.0
    for i, value in enumerate(values):
        place = (
            {"x": value - 0.02 * span, "ha": "right"}
            if value < 0
            else {"x": value + 0.02 * span, "ha": "left"}
        )
        ax.text(y=i, s=number_text(value, spec), va="center", fontsize=8, **place)
    ax.set(
        title=label,
        ylim=(len(values) - 0.4, -0.6),
        xticks=[],
        xlim=(low - room * span * (low < 0), high + room * span * (high > 0)),
    )
    ax.set_yticks(range(len(values)), names)
    ax.tick_params(axis="y", length=0)
    ax.spines[["left", "bottom"]].set_visible(False)


def _scaled(values: np.ndarray, label: str) -> tuple[np.ndarray, str, str]:
    """Values and label with a common power of ten taken out when the numbers would be long, and
    their format.
    """
    largest = np.abs(values).max()
    exponent = int(np.floor(np.log10(largest))) if largest > 0 else 0
    if -2 <= exponent <= 3:
        return values, label, "+.3g"
    return values / 10.0**exponent, rf"{label}  ($\times 10^{{{exponent}}}$)", "+.2f"


@styled
def show_joint_trace(
    images: Sequence,
    masks,
    maps,
    names: Sequence[str],
    channels: Sequence[int] | None = None,
    unit: str = "standard deviations",
) -> Picture:
    """One segment that spans several images: a row per image, with photograph, segment and top
    channels.

    Args:
        images: ``b`` photographs.
        masks: booleans ``(b, h, w)``.
        maps: signed channel maps ``(b, h, w, top)``, best first; the scale is shared by all.
        names: names of the ``top`` channels.
        channels: their numbers.
        unit: of the maps, on the colour bar.
    """
    images, masks, maps = (
        [as_rgb(im) for im in images],
        as_array(masks, 3, "masks").astype(bool),
        as_array(maps, 4, "maps"),
    )
    if not len(images) == len(masks) == len(maps) or masks.shape != maps.shape[:3]:
        raise ValueError(
            f"expected masks (b, h, w) and maps (b, h, w, top) of {len(images)} images, received "
            f"{masks.shape} and {maps.shape}."
        )
    titles, limit = _ranked(names, channels, maps.shape[-1], 15), symmetric_limit([maps])
    columns = 2 + len(titles)
    panel = (WIDTH - 0.7) / columns
    figure = new_picture(
        WIDTH, 0.55 + sum(panel * im.shape[0] / im.shape[1] + 0.08 for im in images)
    )
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, image, mask, stack in zip(axes, images, masks, maps):
        draw_photo(row[0], image, mask.shape)
        draw_photo(row[1], _faded(image, mask), mask.shape)
        for ax, values in zip(row[2:], np.moveaxis(stack, -1, 0)):
            drawn = signed_map(ax, values, limit)
        for ax in row[1:]:
            draw_outline(ax, mask)
    for ax, heading in zip(axes[0], ["photograph", "segment", *titles]):
        ax.set_title(heading, fontsize=8)
    colour_bar(figure, drawn, list(axes.ravel()), unit, True)
    return figure


@styled
def show_ranking(
    scores, names: Sequence[str], top: int = 8, label: str = "attribution", title: str | None = None
) -> Picture:
    """The strongest channels on both sides, as bars: red supports, blue inhibits.

    Args:
        scores: signed ``(c,)``.
        names: ``c`` names.
        top: at most this many channels of each sign.
        label: what the bars show.
        title: above the bars.
    """
    scores = as_array(scores, 1, "scores").astype(float)
    names, order = per_item(names, len(scores), "names"), np.argsort(-scores, kind="stable")
    support = [i for i in order if scores[i] > 0][:top]
    inhibit = [i for i in order if scores[i] < 0][-top:]
    shown = support + inhibit
    if not shown:
        raise ValueError(
            f"all {len(scores)} scores are zero: there is nothing to rank. Did the gradient reach them?"
        )
    figure = new_picture(6.0, 0.23 * len(shown) + 0.75)
    ax = figure.subplots()
    _signed_bars(
        ax, scores[shown], [names[i] for i in shown], f"{title}: {label}" if title else label
    )
    if support and inhibit:
        ax.axhline(len(support) - 0.5, color="#D5D9DE", linewidth=0.8, linestyle=(0, (2, 2)))
    return figure
