"""Figures that can be touched: a static figure, and beside it the numbers from which a script of
the book draws a live one in its place.

The numbers are JSON in the output of the cell, computed by that cell: arrays as integers with a
scale, photographs as JPEG. In the book the script is loaded once for all pages; the output that
Jupyter and Colab show brings it along. Without a script, and on paper, the static figure stays.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce

from ctrace.aviary.drawing import render
from ctrace.aviary.scene import Scene
from ctrace.aviary.species import PARTS, VARIANTS
from ctrace.aviary.truth import centred_logits
from ctrace.check import check_number, one_of
from ctrace.cut.kway import kway_ncut
from ctrace.cut.ncut import Ncut
from ctrace.cut.tracing import segment_strength, trace_channels
from ctrace.stats import exact_shapley
from ctrace.viz import gallery
from ctrace.viz.canvas import as_array, as_rgb
from ctrace.viz.paint import enlarged, jpeg_address, laid_over
from ctrace.world.features import GridFeatures

FOLDER = Path(__file__).parents[1] / "data/touch"
KINDS = ("explorer", "bird", "bandwidth", "guess")
PHOTO_PX = 400  # longer side of a photograph in a page, where it is the only one
BIRD_PX, BIRDS_ACROSS = 96, 8
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
    picture = gallery._figure_html(item, "ctrace-figure")
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
    x = features.features.detach().cpu().double()
    scale = _scale(x, bits)
    return replace(features, features=(x / scale).round() * scale)


def _scale(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The scale of each column, of seven digits so that it is the same in the page."""
    if bits not in BITS:
        raise ValueError(f"bits: expected 8 or 16, received {bits!r}.")
    most = x.abs().amax(0)
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
    whole = features.features / _scale(features.features, bits)
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
        "photos": [jpeg_address(photo, PHOTO_PX / len(photos) ** 0.5) for photo in photos],
        "grid": [h, w],
        "names": features.names,
        "families": [[f, [numbers[c] for c in own]] for f, own in (families or {}).items()],
        "features": _integers(features.features, bits),
        "k": k,
        "anchor": cell,
        "eigval": solver.eigval.tolist(),
        "cuts": cuts,
        "attributions": [float(f"{a:.8e}") for a in trace.attributions[trace.segments[cell]]],
    }


def _text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def pooled(
    features: GridFeatures, side: int = 2, names: Sequence[str] | None = None
) -> GridFeatures:
    """Means over squares of `side` cells: a coarser grid, for a page; other `names` if given."""
    maps = features.maps()
    h, w = (n // side for n in maps.shape[1:3])
    pattern = "b (h y) (w x) c -> (b h w) c"
    rows = reduce(maps[:, : h * side, : w * side], pattern, "mean", y=side, x=side)
    names = features.names if names is None else tuple(names)
    return replace(features, features=rows, names=names, grid_hw=(h, w))


def bird_example(label: str, scene: Scene, target: int, models: Sequence, mark: tuple) -> dict:
    """One bird to take apart: a picture and the logits of every model for each subset of its parts,
    without and with the toadstool, and for each swap of one part.

    Picture number `s` keeps part i where bit i of `s` is set; the bit after the parts is the
    toadstool. The swaps follow. Logits are rounded to 16 bits. The Shapley values of the whole
    bird's parts are there to compare with: the page computes its own.

    Args:
        label: what the choice is called.
        scene: a whole bird without a toadstool.
        target: its species, a number.
        models: bundled models.
        mark: where the toadstool stands, in image widths.
    """
    subsets = range(2 ** len(PARTS))
    gone = [[part for i, part in enumerate(PARTS) if not s >> i & 1] for s in subsets]
    plain = [scene.without(*parts) for parts in gone]
    worn = zip(PARTS, scene.parts)
    swaps = [(part, v) for part, own in worn for v in VARIANTS[part] if v != own]
    drawn = [*plain, *(each.with_mark(mark) for each in plain)]
    drawn += [scene.swap(part, variant) for part, variant in swaps]
    owner = [*PARTS, "mark"]
    masks = render(scene.with_mark(mark), BIRD_PX).masks
    whose = torch.stack([masks[name] for name in owner])
    where = torch.where(whose.amax(0) > 0.5, whose.argmax(0), 255)
    logits = [centred_logits(model, drawn).double() for model in models]
    return {
        "label": label,
        "target": target,
        "side": BIRD_PX,
        "across": BIRDS_ACROSS,
        "grid": list(where.shape),
        "where": _text(where.numpy().astype(np.uint8)),
        "sheet": _sheet([render(each, BIRD_PX).image for each in drawn]),
        "swaps": swaps,
        "logits": [_integers(table) for table in logits],
        "shapley": [exact_shapley(table[: len(plain), target]).tolist() for table in logits],
    }


def _integers(table: torch.Tensor, bits: int = 16) -> dict:
    """Columns as integers with a scale."""
    scale = _scale(table, bits)
    data = _text((table / scale).round().numpy().astype(BITS[bits]))
    return {"bits": bits, "scale": scale.tolist(), "data": data}


def _sheet(images: Sequence[torch.Tensor]) -> str:
    """Pictures of one size, `BIRDS_ACROSS` in a row, in one JPEG."""
    blank = [torch.ones_like(images[0])] * (-len(images) % BIRDS_ACROSS)
    tiles = torch.stack([*images, *blank])
    sheet = rearrange(tiles, "(y x) c h w -> (y h) (x w) c", x=BIRDS_ACROSS)
    return jpeg_address(sheet)


def bandwidth_example(
    label: str, photo, features: GridFeatures, k: int, sigmas: Sequence[float], most: int = 8
) -> dict:
    """One photograph whose bandwidth and k can be moved, and how `ctrace` cuts it into k segments
    with local scales and with each bandwidth of `sigmas`: what the page is compared with.

    Args:
        label: what the choice is called.
        photo: the photograph.
        features: its `rounded` features, of 16 bits.
        k: segments at the beginning.
        sigmas: powers of 2 to the quarters from -2 to 2, where the slider stops.
        most: the largest k.
    """
    eigval, cuts = {}, {}
    for rule in ("local", *sigmas):
        solver = Ncut(most + 1, sigma=rule)
        segments = kway_ncut(solver.fit_transform(features.features), k).argmax(1)
        key = rule if isinstance(rule, str) else f"{rule:g}"
        eigval[key], cuts[key] = solver.eigval.tolist(), _text(segments.numpy().astype(np.uint8))
    return {
        "label": label,
        "photo": jpeg_address(photo, PHOTO_PX),
        "grid": list(features.grid_hw),
        "features": _integers(features.features),
        "eigval": eigval,
        "cuts": cuts,
    }


def guess_example(
    label: str, photo, maps: Mapping, asked: str, verdicts: Mapping, seed: int = 0
) -> dict:
    """One round of guessing which map asked the trained model: the maps in an order drawn at
    random, and what is said of each after the guess.

    Args:
        label: what the round is called.
        photo: the picture that the maps are of.
        maps: name -> map in [-1, 1], ``(height, width)``.
        asked: name of the map that is the answer.
        verdicts: name of a map -> test -> its verdict, in words.
        seed: of the order.

    Raises:
        ValueError: an answer that is none of the maps, or verdicts of other maps.
    """
    one_of("asked", asked, tuple(maps))
    if set(verdicts) != set(maps):
        raise ValueError(f"verdicts: expected those of {list(maps)}, received {list(verdicts)}.")
    image = as_rgb(photo)
    order = [list(maps)[i] for i in np.random.default_rng(seed).permutation(len(maps))]
    laid = [laid_over(image, enlarged(as_array(maps[name], 2), image)) for name in order]
    return {
        "label": label,
        "photo": jpeg_address(image),
        "asked": order.index(asked),
        "maps": [
            {"name": name, "picture": jpeg_address(map_), "verdicts": list(verdicts[name].items())}
            for name, map_ in zip(order, laid)
        ],
    }
