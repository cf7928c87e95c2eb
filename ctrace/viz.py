"""Every figure of the book, in one style.

Each function takes arrays, tensors or PIL images and returns a `Picture`, a matplotlib figure that a notebook displays
by itself. No function opens a window, touches pyplot or leaves a setting changed. Conventions:

- Photographs and maps are drawn on the feature grid: one unit is one cell, row 0 on top.
- Signed maps share one symmetric scale, blue below zero, red above, white at zero. NaN is blank: no evidence.
- Segments keep their colour and their number in every panel. Segment -1 is blank.
"""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

WIDTH = 8.2
"""Inches of a full-width figure: 900 pixels at 110 dots per inch."""

SEGMENT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#882255",
                   "#56B4E9", "#D55E00", "#999933", "#44AA99", "#AA4499", "#332288")
"""Okabe and Ito's colours, then Tol's: told apart with any kind of colour vision. Segment 12 starts again."""

POSITIVE, NEGATIVE, INK, QUIET = "#B2182B", "#2166AC", "#22262B", "#8A9099"
_SIGNED, _UNSIGNED = "RdBu_r", "Blues"
_STYLES = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"), ((0, (5, 1, 1, 1, 1, 1)), "v"))

# Families and colours are read when an artist is made, so the context can end with the function.
_STYLE = {
    "font.family": ["DejaVu Sans"], "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8.5, "legend.frameon": False,
    "figure.facecolor": "white", "axes.facecolor": "white", "text.color": INK, "axes.labelcolor": INK,
    "axes.titlecolor": INK, "axes.edgecolor": QUIET, "axes.linewidth": 0.7, "xtick.color": INK, "ytick.color": INK,
    "xtick.major.width": 0.7, "ytick.major.width": 0.7, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlepad": 5, "lines.linewidth": 1.6, "lines.markersize": 4, "axes.grid": False,
    "grid.color": "#E3E6EA", "grid.linewidth": 0.7, "axes.axisbelow": True, "figure.constrained_layout.h_pad": 0.05,
    "figure.constrained_layout.w_pad": 0.05,
}


class Picture(Figure):
    """A figure that a notebook can display although pyplot never heard of it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def _styled(function):
    @functools.wraps(function)
    def draw(*args, **kwargs):
        with rc_context(_STYLE):
            return function(*args, **kwargs)
    return draw


def _picture(width: float, height: float, layout: str | None = "constrained") -> Picture:
    figure = Picture(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _array(values, ndim: int | None = None, name: str = "values") -> np.ndarray:
    """Array of a tensor (on any device, with or without gradient), a PIL image or a nested list."""
    array = np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"expected {name} with {ndim} dimensions, received shape {array.shape}. "
                         "Rows (h * w,) become a map with reshape(h, w).")
    return array


def _rgb(image) -> np.ndarray:
    """Image as floats ``(height, width, 3)`` in [0, 1]."""
    image = _array(image)
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[-1] != 3:
        image = image.transpose(1, 2, 0)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, -1)
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"expected an RGB image (height, width, 3) or (3, height, width), received {image.shape}. "
                         "A batch is drawn one image at a time.")
    return image / 255 if image.dtype == np.uint8 else np.clip(image, 0, 1)


def _bare(ax, title: str | None = None) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title)


def _photo(ax, image: np.ndarray, hw: tuple[int, int], title: str | None = None) -> None:
    ax.imshow(image, extent=(0, hw[1], hw[0], 0), interpolation="antialiased")
    _bare(ax, title)


def _map(ax, values: np.ndarray, limit: float, title: str | None = None):
    h, w = values.shape
    drawn = ax.imshow(values, cmap=_SIGNED, vmin=-limit, vmax=limit, extent=(0, w, h, 0), interpolation="nearest")
    _bare(ax, title)
    ax.spines[:].set(visible=True, color="#D5D9DE")
    if not np.isfinite(values).any():
        ax.text(w / 2, h / 2, "no evidence", ha="center", va="center", color=QUIET, style="italic")
    return drawn


def _limit(maps) -> float:
    """Half-width of a symmetric scale: the largest magnitude but for the outermost 0.5% of the cells."""
    magnitude = np.abs(np.concatenate([np.ravel(m) for m in maps]))
    magnitude = magnitude[np.isfinite(magnitude)]
    return float(np.quantile(magnitude, 0.995)) or float(magnitude.max()) or 1.0 if magnitude.size else 1.0


def _borders(segments: np.ndarray) -> list:
    """Line pieces between cells of different segments, in cells, without the frame of the image."""
    y, x = np.nonzero(segments[:, 1:] != segments[:, :-1])
    upright = [((j + 1, i), (j + 1, i + 1)) for i, j in zip(y, x)]
    y, x = np.nonzero(segments[1:] != segments[:-1])
    return upright + [((j, i + 1), (j + 1, i + 1)) for i, j in zip(y, x)]


def _outline(ax, segments: np.ndarray, width: float = 0.8) -> None:
    # A white rim keeps a dark line visible on dark ground.
    for colour, thick in (("white", width + 1.2), (INK, width)):
        ax.add_collection(LineCollection(_borders(segments), colors=colour, linewidths=thick, capstyle="round"))


def segment_colour(index: int) -> tuple[float, float, float]:
    """RGB of segment `index`, the same in every figure."""
    return to_rgb(SEGMENT_COLOURS[index % len(SEGMENT_COLOURS)])


def _coloured(segments: np.ndarray, image: np.ndarray | None, strength: float = 0.62) -> np.ndarray:
    """Segment colours over the grey photograph, ``(height, width, 3)``; segment -1 is blank."""
    palette = np.array([segment_colour(i) for i in range(max(segments.max() + 1, 1))] + [(1.0, 1.0, 1.0)])
    colours = palette[segments]  # (h, w, 3); -1 picks the white at the end
    if image is None:
        return colours
    y, x = (np.arange(side) * cells // side for side, cells in zip(image.shape, segments.shape))
    grey = (image @ (0.299, 0.587, 0.114))[..., None]
    blank = (segments < 0)[y][:, x][..., None]
    return np.where(blank, 1.0, strength * colours[y][:, x] + (1 - strength) * grey)


def _number(ax, segments: np.ndarray, names: Sequence[str]) -> None:
    """Writes each segment's name where the segment is widest."""
    from scipy.ndimage import distance_transform_edt

    for index in np.unique(segments[segments >= 0]):
        depth = distance_transform_edt(np.pad(segments == index, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        ax.text(x + 0.5, y + 0.5, names[index], ha="center", va="center", fontsize=8.5, weight="bold", color=INK,
                path_effects=[withStroke(linewidth=2.4, foreground="white")])


@_styled
def show_photos(images: Sequence, titles: Sequence[str] | None = None, row_height: float = 1.75) -> Picture:
    """Photographs in rows of equal height, each with its title below.

    Args:
        images: PIL images or arrays ``(height, width, 3)``, of any aspect.
        titles: one per image.
        row_height: inches the rows aim at.
    """
    images = [_rgb(image) for image in images]
    titles = _per_item(titles, len(images), "titles") or [""] * len(images)
    rows, gap, caption = _rows([im.shape[1] / im.shape[0] for im in images], row_height), 0.08, 0.26
    total = sum(height + caption for height, _ in rows)
    figure, top = _picture(WIDTH, total, layout=None), total
    for height, row in rows:
        left = 0.0
        for i, width in row:
            box = (left / WIDTH, (top - height) / total, width / WIDTH, height / total)
            _bare(ax := figure.add_axes(box))
            ax.imshow(images[i], aspect="auto", interpolation="antialiased")
            ax.text(0, -0.05 / height, titles[i], transform=ax.transAxes, va="top", fontsize=8.5)
            left += width + gap
        top -= height + caption
    return figure


def _rows(aspects: Sequence[float], height: float, gap: float = 0.08) -> list:
    """Justified rows ``(height, [(index, width), ...])`` that fill `WIDTH`, except the last, which may stay short."""
    rows, row = [], []
    for index, aspect in enumerate(aspects):
        row.append((index, aspect))
        fitted = (WIDTH - gap * (len(row) - 1)) / sum(a for _, a in row)
        last = index == len(aspects) - 1
        if fitted <= 1.1 * height or last:
            tall = min(fitted, 1.1 * height) if last else fitted
            rows.append((tall, [(i, a * tall) for i, a in row]))
            row = []
    return rows


def _per_item(values, n: int, name: str) -> list | None:
    if values is None:
        return None
    values = [values] if isinstance(values, str) else list(values)
    if len(values) != n:
        raise ValueError(f"expected {n} {name}, one per panel, received {len(values)}.")
    return values


def _grid_axes(n: int, aspect: float, columns: int, header: float = 0.26, tallest: float = 3.0, extra: float = 0.0):
    """A figure with `n` image panels of the given aspect (height / width), at most `columns` in a row."""
    columns = min(n, columns)
    lines = -(-n // columns)
    panel = min((WIDTH - extra) / columns, tallest / aspect)
    figure = _picture(panel * columns + extra, lines * (panel * aspect + header))
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax in axes[n:]:
        ax.set_axis_off()
    return figure, axes[:n]


@_styled
def show_segments(image, segments, titles: Sequence[str] | None = None, names: Sequence[str] | None = None,
                  columns: int = 4) -> Picture:
    """The photograph, then one or several segmentations of it, numbered and outlined.

    Args:
        image: PIL image or array ``(height, width, 3)``.
        segments: integers ``(h, w)``, or a list of such maps (for several k, for instance). -1 is left blank.
        titles: one per segmentation.
        names: what to write into segment 0, 1, ...; the default is the number.
        columns: panels in a row.
    """
    image = _rgb(image)
    several = segments if isinstance(segments, (list, tuple)) else [segments]
    several = [_array(s, 2, "segments").astype(int) for s in several]
    titles = _per_item(titles, len(several), "titles") or [f"{len(np.unique(s[s >= 0]))} segments" for s in several]
    figure, axes = _grid_axes(len(several) + 1, image.shape[0] / image.shape[1], columns)
    _photo(axes[0], image, several[0].shape, "photograph")
    for ax, seg, title in zip(axes[1:], several, titles):
        _photo(ax, _coloured(seg, image), seg.shape, title)
        ax.add_collection(LineCollection(_borders(seg), colors="white", linewidths=0.9, capstyle="round"))
        _number(ax, seg, names or [str(i) for i in range(seg.max() + 1)])
    return figure


@_styled
def show_maps(maps: Sequence, titles: Sequence[str] | None = None, unit: str = "", outline=None, columns: int = 4,
              limit: float | None = None) -> Picture:
    """Signed maps ``(h, w)`` under one symmetric scale.

    Args:
        maps: list of ``(h, w)`` or tensor ``(count, h, w)``; NaN is blank.
        titles: one per map.
        unit: label of the colour bar.
        outline: optional ``(h, w)`` mask or segments whose border is drawn on each map.
        columns: panels in a row.
        limit: end of the scale; the default leaves the outermost 0.5% of all cells beyond it.
    """
    maps = [_array(m, 2, "each map").astype(float) for m in maps]
    titles = _per_item(titles, len(maps), "titles") or [None] * len(maps)
    limit = limit or _limit(maps)
    figure, axes = _grid_axes(len(maps), maps[0].shape[0] / maps[0].shape[1], columns, tallest=2.4, extra=0.9)
    for ax, values, title in zip(axes, maps, titles):
        drawn = _map(ax, values, limit, title)
        if outline is not None:
            _outline(ax, _array(outline, 2, "outline"))
    _bar(figure, drawn, list(axes), unit, max(np.nanmax(np.abs(m), initial=0) for m in maps) > limit)
    return figure


def _bar(figure, drawn, axes, label: str, clipped: bool = False, **kwargs) -> None:
    options = {"aspect": 25, "fraction": 0.05, "pad": 0.02, "extendfrac": 0.03, **kwargs}
    bar = figure.colorbar(drawn, ax=axes, extend="both" if clipped else "neither", **options)
    bar.set_label(label)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()


def show_eigenvectors(U, grid_hw: tuple[int, int], eigenvalues=None, image: int = 0, columns: int = 4) -> Picture:
    """Columns of ``U (n, k)`` as maps of one image, titled with their eigenvalues.

    Args:
        U: eigenvectors ``(n, k)``, rows ordered image, y, x.
        grid_hw: cells ``(h, w)`` of one image.
        eigenvalues: ``(k,)``, descending.
        image: which image of a joint segmentation.
        columns: panels in a row.
    """
    U, cells = _array(U, 2, "U"), grid_hw[0] * grid_hw[1]
    if len(U) % cells or not 0 <= image < len(U) // cells:
        raise ValueError(f"expected n = images * {grid_hw[0]} * {grid_hw[1]} rows and image < images, received "
                         f"{len(U)} rows and image = {image}. Is (h, w) swapped, or a prefix token left in?")
    maps = U[image * cells:(image + 1) * cells].T.reshape(-1, *grid_hw)
    lam = [""] * len(maps) if eigenvalues is None else [rf"   $\lambda$ = {v:.4f}" for v in _array(eigenvalues, 1)]
    return show_maps(maps, [f"eigenvector {j + 1}{value}" for j, value in enumerate(lam)], "entry", columns=columns)


@_styled
def show_spectrum(eigenvalues, k: int | None = None) -> Picture:
    """Eigenvalues and the gaps between neighbours; the gap below number `k` is marked.

    Args:
        eigenvalues: ``(m,)``, descending.
        k: segments; the default marks the widest gap after the first.
    """
    lam = _array(eigenvalues, 1, "eigenvalues").astype(float)
    gaps, index = lam[:-1] - lam[1:], np.arange(1, len(lam) + 1)
    k = int(gaps[1:].argmax()) + 2 if k is None else k
    if not 1 <= k < len(lam):
        raise ValueError(f"expected 1 <= k < {len(lam)}, the number of eigenvalues, received k = {k}. "
                         "A gap needs one eigenvalue more than there are segments.")
    figure = _picture(WIDTH, 2.5)
    left, right = figure.subplots(1, 2)
    left.axhspan(lam[k], lam[k - 1], color=SEGMENT_COLOURS[1], alpha=0.25, linewidth=0)
    left.plot(index, lam, "-", color="#C9CED4", linewidth=1)
    left.scatter(index, lam, c=[NEGATIVE if i <= k else QUIET for i in index], s=22, zorder=3)
    left.set(xlabel="number of the eigenvalue", ylabel="eigenvalue", title=f"the first {k} are kept")
    right.bar(index[:-1], gaps, color=[SEGMENT_COLOURS[1] if i == k else "#C9CED4" for i in index[:-1]], width=0.7)
    right.set(xlabel="segments k", ylabel="gap below eigenvalue k", title=f"gap at k = {k}: {gaps[k - 1]:.4f}")
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(axis="y")
    return figure


@_styled
def show_graph(W, positions, labels: Sequence[str] | None = None, cut=None, title: str | None = None) -> Picture:
    """A small weighted graph as a drawing and as a matrix.

    Args:
        W: symmetric weights ``(n, n)``; drawn as width and number, the diagonal left out.
        positions: ``(n, 2)``, x rightwards and y upwards.
        labels: names of the nodes; the default counts from 0.
        cut: side of each node ``(n,)``, integers; edges between different sides are dashed.
        title: above the drawing.
    """
    W, xy = _array(W, 2, "W").astype(float), _array(positions, 2, "positions").astype(float)
    n = len(W)
    if W.shape != (n, n) or xy.shape != (n, 2):
        raise ValueError(f"expected W (n, n) and positions (n, 2), received {W.shape} and {xy.shape}.")
    labels = _per_item(labels, n, "labels") or [str(i) for i in range(n)]
    sides = np.zeros(n, int) if cut is None else _array(cut, 1, "cut").astype(int)
    figure = _picture(WIDTH, 3.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _edges(left, W, xy, sides)
    left.scatter(*xy.T, s=420, c=[segment_colour(s) for s in sides], edgecolors="white", linewidths=1.5, zorder=3)
    for point, label in zip(xy, labels):
        left.text(*point, label, ha="center", va="center", weight="bold", color="white", zorder=4,
                  path_effects=[withStroke(linewidth=1.6, foreground=INK)])
    left.margins(0.14)
    left.set_aspect("equal")
    _bare(left, title)
    _heat(right, W, "weight", labels, labels, annotate=n <= 10, signed=False)
    return figure


def _edges(ax, W: np.ndarray, xy: np.ndarray, sides: np.ndarray) -> None:
    for i, j in zip(*np.nonzero(np.triu(W, 1))):
        crosses, share = sides[i] != sides[j], abs(W[i, j]) / np.abs(np.triu(W, 1)).max()
        ax.plot(*xy[[i, j]].T, color=POSITIVE if crosses else QUIET, linestyle=(0, (3, 2)) if crosses else "-",
                linewidth=0.6 + 5 * share, solid_capstyle="round", zorder=1)
        ax.text(*xy[[i, j]].mean(0), f"{W[i, j]:.2g}", fontsize=7.5, ha="center", va="center", zorder=2,
                bbox=dict(boxstyle="round,pad=0.15", facecolor="white", edgecolor="none", alpha=0.9))


@_styled
def show_matrix(matrix, label: str = "", xlabel: str = "", ylabel: str = "", title: str | None = None,
                xnames: Sequence[str] | None = None, ynames: Sequence[str] | None = None, annotate: bool | None = None,
                signed: bool | None = None) -> Picture:
    """A heat map with a colour bar.

    Args:
        matrix: ``(rows, columns)``; NaN is blank.
        label: unit, on the colour bar.
        xlabel, ylabel, title: what columns, rows and the whole stand for.
        xnames, ynames: one name per column, per row.
        annotate: write the numbers; the default does for at most 12 x 12.
        signed: symmetric diverging scale; the default does when a value is negative.
    """
    matrix = _array(matrix, 2, "matrix").astype(float)
    rows, columns = matrix.shape
    height = min(max(2.2, 0.36 * rows + 0.9), 5.5)
    figure = _picture(min(WIDTH, max(3.4, (height - 0.7) * columns / rows + 1.6)), height)
    ax = figure.subplots()
    annotate = max(rows, columns) <= 12 if annotate is None else annotate
    signed = bool(np.nanmin(matrix) < 0) if signed is None else signed
    _heat(ax, matrix, label, xnames, ynames, annotate, signed)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title or "")
    return figure


def _heat(ax, matrix: np.ndarray, label: str, xnames, ynames, annotate: bool, signed: bool) -> None:
    high = float(np.nanmax(np.abs(matrix))) or 1.0
    low = -high if signed else min(0.0, float(np.nanmin(matrix)))
    drawn = ax.imshow(matrix, cmap=_SIGNED if signed else _UNSIGNED, vmin=low, vmax=high, interpolation="nearest")
    for axis, names, n in ((ax.xaxis, xnames, matrix.shape[1]), (ax.yaxis, ynames, matrix.shape[0])):
        names = _per_item(names, n, "names")
        if names is None:
            axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        else:
            axis.set_ticks(range(n), names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for (i, j), value in np.ndenumerate(matrix) if annotate else ():
        colour = "white" if abs(value) > 0.6 * high else QUIET if value == 0 else INK
        ax.text(j, i, _text(value, ".2g") if np.isfinite(value) else "", ha="center", va="center", fontsize=7.5,
                color=colour)
    _bar(ax.figure, drawn, [ax], label)


@_styled
def show_trace(image, mask, maps: Sequence, names: Sequence[str], channels: Sequence[int] | None = None,
               values: Sequence[float] | None = None, unit: str = "standard deviations",
               value_label: str = "attribution", title: str | None = None) -> Picture:
    """What holds one segment together: the photograph, the segment, its top channels as maps.

    Above: the photograph, the segment in it, the attribution of each channel as a bar. Below: the channel maps in order
    of rank, titled with rank, channel number and name, the segment outlined on each.

    Args:
        image: PIL image or array ``(height, width, 3)``.
        mask: booleans ``(h, w)``, true inside the segment.
        maps: signed channel maps ``(h, w)``, best first, five or so; standardise them (`GridFeatures.zscores`).
        names: names of these channels.
        channels: their numbers.
        values: their attributions; without them no bars are drawn.
        unit: of the maps, on the colour bar.
        value_label: what the bars show.
        title: over the segment panel.
    """
    image, mask = _rgb(image), _array(mask, 2, "mask").astype(bool)
    maps = [_array(m, 2, "each map").astype(float) for m in maps]
    titles, aspect = _ranked(names, channels, len(maps)), image.shape[0] / image.shape[1]
    tall = (min(2.55 * aspect, 3.0) + 0.36, 1.5 * aspect + 0.75 + 0.16 * max(t.count("\n") for t in titles))
    figure = _picture(WIDTH, sum(tall))
    above, below = figure.subfigures(2, 1, height_ratios=tall)
    panels = above.subplots(1, 2 if values is None else 3, width_ratios=(2, 2, 1)[:2 if values is None else 3])
    _photo(panels[0], image, mask.shape, "photograph")
    _photo(panels[1], _faded(image, mask), mask.shape, title or f"segment, {mask.mean():.0%} of the photograph")
    _outline(panels[1], mask)
    if values is not None:
        _signed_bars(panels[2], _array(values, 1, "values"), _short(names, channels), value_label, 0.6)
    _trace_maps(below, maps, titles, mask, unit)
    return figure


def _trace_maps(figure, maps: list[np.ndarray], titles: list[str], mask: np.ndarray, unit: str) -> None:
    axes, limit = figure.subplots(1, len(maps), squeeze=False)[0], _limit(maps)
    for ax, values, heading in zip(axes, maps, titles):
        drawn = _map(ax, values, limit, heading)
        _outline(ax, mask)
    _bar(figure, drawn, list(axes), f"channel value ({unit})", True, location="bottom", shrink=0.4, aspect=40)


def _ranked(names: Sequence[str], channels: Sequence[int] | None, n: int, width: int = 19) -> list[str]:
    """Panel titles: rank, channel number, and the name when it says more than the number."""
    names, channels = _per_item(names, n, "names"), _per_item(channels, n, "channels")
    titles = []
    for rank in range(n):
        number = f"ch {int(channels[rank])}" if channels else ""
        name = "" if names[rank] == number else textwrap.fill(names[rank], width)
        titles.append(" · ".join(filter(None, [f"top {rank + 1}", number])) + (f"\n{name}" if name else ""))
    return titles


def _short(names: Sequence[str], channels) -> list[str]:
    numbered = channels is not None and not names[0].startswith("ch ")
    return [f"{name}  ({int(c)})" for name, c in zip(names, channels)] if numbered else list(names)


def _faded(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The photograph inside the mask, and a pale grey ghost of it outside."""
    y, x = (np.arange(side) * cells // side for side, cells in zip(image.shape, mask.shape))
    ghost = 0.84 + 0.14 * (image @ (0.299, 0.587, 0.114))
    return np.where(mask[y][:, x][..., None], image, ghost[..., None])


def _signed_bars(ax, values: np.ndarray, names: Sequence[str], label: str, room: float = 0.16) -> None:
    """Horizontal bars in the given order, top down, each with its number at the tip.

    `room` is the share of the span of the values that is kept free at each end for the number.
    """
    values, label, spec = _scaled(values, label)
    ax.barh(range(len(values)), values, color=[POSITIVE if v > 0 else NEGATIVE for v in values], height=0.62)
    ax.axvline(0, color=QUIET, linewidth=0.8)
    low, high = min(values.min(), 0), max(values.max(), 0)
    span = high - low or 1.0
    for i, value in enumerate(values):
        place = {"x": value - 0.02 * span, "ha": "right"} if value < 0 else {"x": value + 0.02 * span, "ha": "left"}
        ax.text(y=i, s=_text(value, spec), va="center", fontsize=8, **place)
    ax.set(title=label, ylim=(len(values) - 0.4, -0.6), xticks=[],
           xlim=(low - room * span * (low < 0), high + room * span * (high > 0)))
    ax.set_yticks(range(len(values)), names)
    ax.tick_params(axis="y", length=0)
    ax.spines[["left", "bottom"]].set_visible(False)


def _scaled(values: np.ndarray, label: str) -> tuple[np.ndarray, str, str]:
    """Values and label with a common power of ten taken out when the numbers would be long, and their format."""
    largest = np.abs(values).max()
    exponent = int(np.floor(np.log10(largest))) if largest > 0 else 0
    if -2 <= exponent <= 3:
        return values, label, "+.3g"
    return values / 10.0**exponent, rf"{label}  ($\times 10^{{{exponent}}}$)", "+.2f"


def _text(value: float, spec: str) -> str:
    return format(value, spec).replace("-", "\N{MINUS SIGN}")


@_styled
def show_joint_trace(images: Sequence, masks, maps, names: Sequence[str], channels: Sequence[int] | None = None,
                     unit: str = "standard deviations") -> Picture:
    """One segment that spans several images: a row per image, with photograph, segment and top channels.

    Args:
        images: ``b`` photographs.
        masks: booleans ``(b, h, w)``.
        maps: signed channel maps ``(b, h, w, top)``, best first; the scale is shared by all.
        names: names of the ``top`` channels.
        channels: their numbers.
        unit: of the maps, on the colour bar.
    """
    images, masks, maps = [_rgb(im) for im in images], _array(masks, 3, "masks").astype(bool), _array(maps, 4, "maps")
    if not len(images) == len(masks) == len(maps) or masks.shape != maps.shape[:3]:
        raise ValueError(f"expected masks (b, h, w) and maps (b, h, w, top) of {len(images)} images, received "
                         f"{masks.shape} and {maps.shape}.")
    titles, limit = _ranked(names, channels, maps.shape[-1], 15), _limit([maps])
    columns = 2 + len(titles)
    panel = (WIDTH - 0.7) / columns
    figure = _picture(WIDTH, 0.55 + sum(panel * im.shape[0] / im.shape[1] + 0.08 for im in images))
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, image, mask, stack in zip(axes, images, masks, maps):
        _photo(row[0], image, mask.shape)
        _photo(row[1], _faded(image, mask), mask.shape)
        for ax, values in zip(row[2:], np.moveaxis(stack, -1, 0)):
            drawn = _map(ax, values, limit)
        for ax in row[1:]:
            _outline(ax, mask)
    for ax, heading in zip(axes[0], ["photograph", "segment", *titles]):
        ax.set_title(heading, fontsize=8)
    _bar(figure, drawn, list(axes.ravel()), unit, True)
    return figure


@_styled
def show_ranking(scores, names: Sequence[str], top: int = 8, label: str = "attribution",
                 title: str | None = None) -> Picture:
    """The strongest channels on both sides, as bars: red supports, blue inhibits.

    Args:
        scores: signed ``(c,)``.
        names: ``c`` names.
        top: at most this many channels of each sign.
        label: what the bars show.
        title: above the bars.
    """
    scores = _array(scores, 1, "scores").astype(float)
    names, order = _per_item(names, len(scores), "names"), np.argsort(-scores, kind="stable")
    support = [i for i in order if scores[i] > 0][:top]
    inhibit = [i for i in order if scores[i] < 0][-top:]
    shown = support + inhibit
    if not shown:
        raise ValueError(f"all {len(scores)} scores are zero: there is nothing to rank. Did the gradient reach them?")
    figure = _picture(6.0, 0.23 * len(shown) + 0.75)
    ax = figure.subplots()
    _signed_bars(ax, scores[shown], [names[i] for i in shown], f"{title}: {label}" if title else label)
    if support and inhibit:
        ax.axhline(len(support) - 0.5, color="#D5D9DE", linewidth=0.8, linestyle=(0, (2, 2)))
    return figure


@_styled
def show_curves(x, ys, labels: Sequence[str], xlabel: str, ylabel: str, logx: bool = False, logy: bool = False,
                bands: Sequence | None = None, title: str | None = None) -> Picture:
    """Curves over a common axis, told apart by colour, dash and marker.

    Args:
        x: ``(m,)``.
        ys: list of ``(m,)`` or array ``(curves, m)``; NaN interrupts a curve.
        labels: one per curve.
        xlabel, ylabel: with units.
        logx, logy: logarithmic axes.
        bands: per curve None or ``(low, high)``, each ``(m,)``.
        title: above the axes.
    """
    x, ys = _array(x, 1, "x"), [_array(y, 1, "each curve") for y in ys]
    labels, bands = _per_item(labels, len(ys), "labels"), _per_item(bands, len(ys), "bands") or [None] * len(ys)
    figure = _picture(6.4, 3.3)
    ax = figure.subplots()
    for i, (y, label, band) in enumerate(zip(ys, labels, bands)):
        dash, marker = _STYLES[i % len(_STYLES)]
        ax.plot(x, y, linestyle=dash, marker=marker if len(x) <= 40 else None, color=segment_colour(i), label=label)
        if band is not None:
            ax.fill_between(x, *(_array(edge, 1) for edge in band), color=segment_colour(i), alpha=0.16, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title or "", xscale="log" if logx else "linear",
           yscale="log" if logy else "linear")
    ax.grid()
    if len(ys) > 1 or labels[0]:
        ax.legend(loc="best")
    return figure


@_styled
def show_scatter(x, y, xlabel: str, ylabel: str, groups=None, group_names: Sequence[str] | None = None,
                 identity: bool = True, title: str | None = None) -> Picture:
    """Two measurements of the same things against each other, with the line where they agree.

    Args:
        x, y: ``(m,)``.
        xlabel, ylabel: with units.
        groups: integers ``(m,)`` for colour and marker.
        group_names: one per group.
        identity: draw y = x and give both axes the same range.
        title: above the axes.
    """
    x, y = _array(x, 1, "x").astype(float), _array(y, 1, "y").astype(float)
    if x.shape != y.shape:
        raise ValueError(f"expected x and y of the same length, received {len(x)} and {len(y)}.")
    groups = np.zeros(len(x), int) if groups is None else _array(groups, 1, "groups").astype(int)
    figure = _picture(4.3, 3.9)
    ax = figure.subplots()
    if identity:
        low, high = min(np.nanmin(x), np.nanmin(y)), max(np.nanmax(x), np.nanmax(y))
        edge = 0.05 * (high - low) or 1.0
        ax.plot([low - edge, high + edge], [low - edge, high + edge], color=QUIET, linewidth=1, dashes=(4, 3), zorder=1)
        ax.set(xlim=(low - edge, high + edge), ylim=(low - edge, high + edge), aspect="equal")
    for order, group in enumerate(np.unique(groups)):
        inside = groups == group
        ax.scatter(x[inside], y[inside], s=20, color=segment_colour(order), alpha=0.8, linewidths=0, zorder=2,
                   marker=_STYLES[order % len(_STYLES)][1], label=group_names[order] if group_names else None)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title or "")
    ax.grid()
    if group_names:
        ax.legend(loc="best")
    return figure


@_styled
def show_named_parts(image, masks: Mapping, title: str | None = None) -> Picture:
    """The picture, and beside it the same picture with every mask in its own colour and its name at the end of a line.

    Args:
        image: PIL image or array ``(height, width, 3)`` or ``(3, height, width)``.
        masks: name -> ``(height, width)`` in [0, 1].
        title: above the picture.
    """
    image = _rgb(image)
    height, width = image.shape[:2]
    figure = _picture(WIDTH * 0.8, WIDTH * 0.8 * 0.5 * height / width + 0.25)
    left, right = figure.subplots(1, 2)
    _photo(left, image, (height, width), title)
    shown = 0.45 * image + 0.55 * image.mean(-1, keepdims=True) ** 0.5
    for i, mask in enumerate(masks.values()):
        alpha = 0.85 * _array(mask, 2, "each mask").astype(float)[..., None]
        shown = shown + alpha * (np.asarray(segment_colour(i)) - shown)
    _photo(right, shown, (height, width))
    for name, mask in masks.items():
        _name_part(right, name, _array(mask).astype(float))
    return figure


def _name_part(ax, name: str, mask: np.ndarray) -> None:
    """Writes `name` away from the middle of the picture, tied to the middle of the mask."""
    height, width = mask.shape
    y, x = (np.arange(n) + 0.5 for n in mask.shape)
    at = np.array([(mask * x).sum(), (mask * y[:, None]).sum()]) / mask.sum()
    away = at - np.array([width, height]) / 2
    text = at + away / max(np.hypot(*away), 1e-6) * 0.13 * width + np.array([0, 0.02 * height])
    text = np.clip(text, (0.1 * width, 0.05 * height), (0.9 * width, 0.95 * height))
    ax.annotate(name, at, text, ha="center", va="center", fontsize=8.5, arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8},
                bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85})


@_styled
def show_grouped_bars(values, names: Sequence[str], groups: Sequence[str], ylabel: str, spread=None, title: str | None = None) -> Picture:
    """Bars side by side: for each name, one bar per group.

    Args:
        values: ``(groups, names)``; NaN draws no bar.
        names: one per column, below the axis.
        groups: one per row, in the legend.
        ylabel: with units.
        spread: half length of the error bars, ``(groups, names)``.
        title: above the axes.
    """
    values = _array(values, 2, "values").astype(float)
    names, groups = _per_item(names, values.shape[1], "names"), _per_item(groups, values.shape[0], "groups")
    spread = None if spread is None else _array(spread, 2, "spread").astype(float)
    figure = _picture(min(WIDTH, 0.28 * values.size + 2.4), 3.0)
    ax, width = figure.subplots(), 0.8 / len(groups)
    for i, group in enumerate(groups):
        at = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * width
        ax.bar(at, values[i], 0.92 * width, color=segment_colour(i), label=group, yerr=None if spread is None else spread[i],
               error_kw={"elinewidth": 0.9, "ecolor": INK})
    ax.axhline(0, color=INK, linewidth=0.7)
    ax.set(ylabel=ylabel, title=title or "", xticks=range(len(names)))
    ax.set_xticklabels(names)
    ax.legend(loc="best")
    return figure


@_styled
def show_curve_panels(x, panels: Sequence[tuple[str, str, Mapping]], xlabel: str, logx: bool = False) -> Picture:
    """Several groups of curves side by side over one common axis.

    Args:
        x: ``(m,)``.
        panels: per panel a title, a label with units for its vertical axis, and its curves ``{label: (m,)}``; NaN interrupts.
        xlabel: with units.
        logx: logarithmic horizontal axes.
    """
    x = _array(x, 1, "x")
    figure = _picture(WIDTH, 3.0)
    for ax, (title, ylabel, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for i, (label, y) in enumerate(curves.items()):
            dash, marker = _STYLES[i % len(_STYLES)]
            ax.plot(x, _array(y, 1, label), linestyle=dash, marker=marker if len(x) <= 20 else None, color=segment_colour(i), label=label)
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title, xscale="log" if logx else "linear")
        ax.grid()
        if len(curves) > 1:
            ax.legend(loc="best")
    return figure


@_styled
def show_cut(image, segments, U, eigenvalues, maps: int = 5, first: int = 2, columns: int = 4) -> Picture:
    """A photograph, its segments, the photograph repainted in their mean colours, and the eigenvectors behind them.

    Args:
        image: PIL image or array ``(height, width, 3)``.
        segments: integers ``(h, w)``.
        U: eigenvectors ``(h * w, m)``.
        eigenvalues: ``(m,)``, descending.
        maps: eigenvectors drawn, under one symmetric scale.
        first: number of the first one drawn. Number 1 is the square root of the degree, whatever the picture.
        columns: panels in a row.
    """
    image, segments = _rgb(image), _array(segments, 2, "segments").astype(int)
    U, lam = _array(U, 2, "U").astype(float), _array(eigenvalues, 1, "eigenvalues")
    drawn_maps = [u.reshape(segments.shape) for u in U.T[first - 1:first - 1 + maps]]
    figure, axes = _grid_axes(3 + len(drawn_maps), image.shape[0] / image.shape[1], columns, extra=0.75)
    _photo(axes[0], image, segments.shape, "photograph")
    _photo(axes[1], _coloured(segments, image), segments.shape, f"{len(np.unique(segments))} segments")
    axes[1].add_collection(LineCollection(_borders(segments), colors="white", linewidths=0.9, capstyle="round"))
    _number(axes[1], segments, [str(i) for i in range(segments.max() + 1)])
    _photo(axes[2], _repainted(segments, image), segments.shape, "mean colour of each")
    for j, (ax, values) in enumerate(zip(axes[3:], drawn_maps), first):
        drawn = _map(ax, values, _limit(drawn_maps), rf"eigenvector {j}, $\lambda$ = {lam[j - 1]:.3f}")
    _bar(figure, drawn, list(axes), "entry of the eigenvector", True)
    return figure


def _repainted(segments: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Every segment in its mean colour, ``(height, width, 3)``."""
    y, x = (np.arange(side) * cells // side for side, cells in zip(image.shape, segments.shape))
    label = segments[y][:, x]
    return sum((label == j)[..., None] * image[label == j].mean(0) for j in np.unique(label))


@_styled
def show_rotation(Y, R, groups, names: Sequence[str] | None = None) -> Picture:
    """Rows of two eigenvectors on the unit circle, before and after the rotation that brings them to the axes.

    Args:
        Y: rows of length 1, ``(n, 2)``.
        R: rotation ``(2, 2)``.
        groups: segment of each row ``(n,)``.
        names: what to write beside each row.
    """
    Y, R, groups = _array(Y, 2, "Y").astype(float), _array(R, 2, "R").astype(float), _array(groups, 1, "groups")
    names = _per_item(names, len(Y), "names") or [""] * len(Y)
    figure, turn = _picture(WIDTH * 0.86, 3.5), np.linspace(0, 2 * np.pi, 200)
    for ax, rows, title in zip(figure.subplots(1, 2), (Y, Y @ R), (r"rows of $Y$", r"rows of $Y R$")):
        ax.plot(np.cos(turn), np.sin(turn), color="#C9CED4", linewidth=0.9, zorder=1)
        ax.axhline(0, color=QUIET, linewidth=0.8, zorder=1)
        ax.axvline(0, color=QUIET, linewidth=0.8, zorder=1)
        ax.scatter(*rows.T, s=46, c=[segment_colour(int(g)) for g in groups], edgecolors="white", linewidths=0.8, zorder=3)
        for at, name in zip(rows, names):
            ax.text(*(1.14 * at), name, ha="center", va="center", weight="bold", color=INK)
        ax.set(title=title, xlabel="column 0", ylabel="column 1", aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3),
               xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    return figure


@_styled
def show_cams(images: Sequence, cams: Sequence, heats: Sequence, titles: Sequence[str] | None = None, unit: str = "weight x activation",
              limit: float | None = None) -> Picture:
    """A row per image: the image, the signed map of a layer cell by cell, and the map laid over the image.

    All maps of the figure share one symmetric scale. Over the image, a place is coloured the more the larger its value; no evidence, no colour.

    Args:
        images: PIL images or arrays ``(height, width, 3)`` or ``(3, height, width)``.
        cams: per image, the raw map ``(h, w)``.
        heats: per image, the same map in image size ``(height, width)``, unscaled (`Explanation.heatmap(False, False)`).
        titles: one per image.
        unit: label of the colour bar.
        limit: end of the scale; pass the same for figures that are to be compared.
    """
    images, cams, heats = [_rgb(i) for i in images], [_array(c, 2, "each cam") for c in cams], [_array(m, 2, "each heat") for m in heats]
    if not len(images) == len(cams) == len(heats):
        raise ValueError(f"expected one cam and one heat per image, received {len(images)}, {len(cams)} and {len(heats)}.")
    titles, limit = _per_item(titles, len(images), "titles") or ["image"] * len(images), limit or _limit(cams)
    side = min((WIDTH - 0.9) / 3, 2.15)
    figure = _picture(3 * side + 0.9, sum(side * im.shape[0] / im.shape[1] + 0.3 for im in images))
    axes = figure.subplots(len(images), 3, squeeze=False)
    for row, image, cam, heat, title in zip(axes, images, cams, heats, titles):
        _photo(row[0], image, cam.shape, title)
        drawn = _map(row[1], cam if cam.any() else np.full(cam.shape, np.nan), limit, f"signed map, {cam.shape[0]} x {cam.shape[1]}")
        _photo(row[2], _laid_over(image, heat, limit), cam.shape, "laid over")
    _bar(figure, drawn, list(axes.ravel()), unit, max(np.abs(c).max() for c in cams) > limit * 1.001)
    return figure


@_styled
def show_overlays(images: Sequence, heats: Sequence, titles: Sequence[str] | None = None, masks: Sequence | None = None, columns: int = 4,
                  unit: str = "weight x activation", limit: float | None = None) -> Picture:
    """Signed maps laid over their images, under one symmetric scale.

    Args:
        images: one per map; repeat an image to compare maps of it.
        heats: maps in image size ``(height, width)``.
        titles: one per map.
        masks: per map, a mask ``(height, width)`` whose border is drawn; None for none.
        columns: panels in a row.
        unit, limit: as in `show_cams`.
    """
    images, heats = [_rgb(i) for i in images], [_array(m, 2, "each heat") for m in heats]
    titles, masks = _per_item(titles, len(images), "titles") or [None] * len(images), _per_item(masks, len(images), "masks")
    limit = limit or _limit(heats)
    figure, axes = _grid_axes(len(images), images[0].shape[0] / images[0].shape[1], columns, tallest=2.4, extra=0.9)
    for i, (ax, image, heat) in enumerate(zip(axes, images, heats)):
        _photo(ax, _laid_over(image, heat, limit), heat.shape, titles[i])
        if not heat.any():
            ax.text(heat.shape[1] / 2, heat.shape[0] / 2, "no evidence", ha="center", va="center", color=QUIET, style="italic")
        if masks:
            _outline(ax, _array(masks[i], 2, "each mask").astype(float) > 0.5, 0.7)
    scale = ScalarMappable(Normalize(-limit, limit), _SIGNED)
    _bar(figure, scale, list(axes), unit, max(np.abs(m).max() for m in heats) > limit * 1.001)
    return figure


def _laid_over(image: np.ndarray, heat: np.ndarray, limit: float) -> np.ndarray:
    """A pale grey image with the map's colours on top, opaque in proportion to magnitude, ``(height, width, 3)``."""
    if heat.shape != image.shape[:2]:
        raise ValueError(f"expected a map of the image's size {image.shape[:2]}, received {heat.shape}. Explanation.heatmap enlarges it.")
    grey = 0.35 + 0.6 * (image @ (0.299, 0.587, 0.114))[..., None]
    share = np.clip(np.nan_to_num(heat) / limit, -1, 1)[..., None]  # NaN is no evidence: no colour
    colour = np.where(share > 0, to_rgb(POSITIVE), to_rgb(NEGATIVE))
    return grey + 0.9 * np.abs(share) * (colour - grey)
