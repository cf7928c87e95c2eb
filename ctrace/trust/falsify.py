"""Can a map be wrong? Hide what it calls important, and compare with hiding as much elsewhere.

The region is the top of the map; its opponents are the bottom of the map and many copies of the top
region, moved to other places. All have the same area, and the copies the same shape, so that
nothing but the *place* can decide. A map survives if its place matters more than nearly all others;
a map that knows nothing survives no more often than the significance level says.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ctrace.check import check_ready, prepare_images
from ctrace.trust.fills import filled, hide
from ctrace.trust.masking_curves import rank_pixels

__all__ = ["Falsification", "angle_between", "falsify", "logit_drop"]

AT_ONCE = 64  # images per forward pass; more are slower on a CPU
# radians, or shares of the spread of the logits: below, float32 cannot tell a reaction from
# rounding
ROUNDING = 1e-4


@dataclass(frozen=True, slots=True)
class Falsification:
    """The verdict on one map of one image. Every field is always set, and a misspelt one is an
    error.

    Attributes:
        verdict: ``"survived"``, ``"falsified"`` or ``"inconclusive"``.
        reason: in words, what decided.
        d_high, d_low: how far the answer moved when the top and the bottom region were hidden.
        p: share of places at which a region of this shape moves the answer at least as much, the
            map's own counted as one of them.
        p_inside: the same among regions inside the object; ``None`` when no object was given.
        null, null_inside: what hiding the copies did.
        area: share of the image that was hidden.
        fill, distance: what hidden pixels showed, and how the movement was measured.
    """

    verdict: str
    reason: str
    d_high: float
    d_low: float
    p: float
    p_inside: float | None
    area: float
    fill: str
    distance: str
    null: tuple[float, ...] = field(repr=False)
    null_inside: tuple[float, ...] = field(repr=False)

    @property
    def margin(self) -> float:
        """How much more the top moved the answer than the bottom."""
        return self.d_high - self.d_low


@torch.no_grad()
def falsify(
    attribution,
    images: Tensor,
    model: nn.Module,
    target=None,
    distance: str | Callable | None = None,
    fill: str | Tensor = "blur",
    area: float = 0.05,
    copies: int = 99,
    min_shift: int | None = None,
    inside: Tensor | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    progress: bool = False,
) -> Falsification | list[Falsification]:
    """Test maps against regions of equal area; one record for one map, a list for a batch, equal to
    one by one.

    Survived: the top moves the answer more than the bottom does, and ``p <= alpha``. Falsified: it
    does not. Inconclusive: the map is constant, or the model reacts to no region. An increasing
    function of a map's values changes nothing: only their order counts.

    Args:
        attribution: ``(height, width)`` or ``(b, height, width)``, large where the map says it
            matters; tensor or array.
        images: ``(3, height, width)`` or ``(b, 3, height, width)``, prepared as for training.
        model: in eval mode.
        target: a class, or one per image ``(b,)``. Then the distance is the drop of its centred
            logit, else the angle between outputs.
        distance: ``"angle"``, ``"logit"``, or a function of outputs ``(1, d)`` and ``(n, d)`` to
            ``(n,)``, for example the loss of likeness to a reference embedding.
        fill: see `filled`.
        area: share of the image in each region.
        copies: how many moved copies; the smallest p is ``1 / (copies + 1)``.
        min_shift: pixels that a copy moves at least, around the edges; by default a twelfth of the
            longer side.
        inside: masks of the object ``(b, height, width)``. Then the map must beat regions inside
            the object too; a map that only finds the object beats the others and not these.
        alpha: the largest p that survives.
        seed: of shifts, noise and the order of equal values; the same for every image.
        progress: show a bar over images.

    Raises:
        ValueError: shapes that do not match, NaN, or settings under which no map could survive.
    """
    check_ready(model)
    images = prepare_images(model, images)
    maps = torch.as_tensor(attribution, device=images.device).detach()
    single, maps = maps.ndim == 2, maps if maps.ndim == 3 else maps[None]
    inside = inside if inside is None or inside.ndim == 3 else inside[None]
    _check(maps, images, inside, area, copies, alpha)
    name, measures = _measures(distance, target, len(images))
    fills, pixels = filled(images, fill, seed), max(1, round(area * maps[0].numel()))
    shifts = shift_places(
        images.shape[2:],
        copies,
        max(images.shape[2:]) // 12 if min_shift is None else min_shift,
        seed,
    )
    results = []
    for i in tqdm(range(len(images)), desc="falsification", unit="image", disable=not progress):
        masks = [extremes(maps[i], pixels, seed)]  # (2, height, width)
        masks.append(shifted(masks[0][0], shifts))
        if inside is not None:
            masks.append(
                inside_regions(maps[i], inside[i].to(maps.device) > 0.5, pixels, copies, seed)
            )
        moved, noise = _movements(model, images[i], fills[i], torch.cat(masks), measures[i])
        words = {
            "area": pixels / maps[i].numel(),
            "fill": fill if isinstance(fill, str) else "images",
            "distance": name,
        }
        results.append(
            _judge(moved, noise, bool(maps[i].amax() == maps[i].amin()), copies, alpha, words)
        )
    return results[0] if single else results


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """Radians between rows ``(n,)``; exact for small angles, where the arc cosine loses half of its
    digits (Kahan 2006).

    >>> a = torch.tensor([[1.0, 0.0]])
    >>> float(angle_between(a, a)), float(angle_between(a, -a))
    (0.0, 3.14159...)
    """
    a, b = (v / v.norm(dim=-1, keepdim=True) for v in (a, b))
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def logit_drop(whole: Tensor, hidden: Tensor, target: int) -> Tensor:
    """By how much the logit of a class, minus the mean over classes, has fallen ``(n,)``."""
    if whole.shape[1] < 2:
        raise ValueError(
            "logit_drop: a single output minus its own mean is always 0. Use a function of the output as the distance."
        )
    before, after = (z[:, target] - z.mean(1) for z in (whole, hidden))
    return before - after


def extremes(scores: Tensor, pixels: int, seed: int) -> Tensor:
    """Masks of the largest and the smallest values ``(2, height, width)``; equal values are taken
    in random order.
    """
    rank = rank_pixels(scores[None], True, seed)[0]
    return torch.stack([rank < pixels, rank >= rank.numel() - pixels])


def shift_places(size, copies: int, min_shift: int, seed: int) -> np.ndarray:
    """Different shifts ``(copies, 2)`` of at least ``min_shift`` pixels, on an image whose opposite
    edges touch.

    Raises:
        ValueError: the image is too small for so many.
    """
    height, width = size
    y, x = (a.ravel() for a in np.mgrid[:height, :width])
    far = np.hypot(np.minimum(y, height - y), np.minimum(x, width - x)) >= max(min_shift, 1)
    places = np.stack([y, x], 1)[far]
    if len(places) < copies:
        raise ValueError(
            f"{height} x {width} pixels have {len(places)} places at least {min_shift} pixels away; {copies} were asked for. "
            "Use larger images, a smaller min_shift, or fewer copies."
        )
    return places[np.random.default_rng(seed).permutation(len(places))[:copies]]


def shifted(scores: Tensor, shifts: np.ndarray) -> Tensor:
    """The map ``(height, width)`` moved to each of the places, around the edges ``(copies, height,
    width)``.
    """
    return torch.stack([scores.roll((int(y), int(x)), (0, 1)) for y, x in shifts])


def inside_regions(scores: Tensor, mask: Tensor, pixels: int, copies: int, seed: int) -> Tensor:
    """The map's top inside an object, and the tops of copies of the map moved within the object's
    box ``(copies + 1, height, width)``.

    All have the same number of pixels, at most half of the object, and lie inside it: a map that
    knows the outline and no more has no advantage over its own copies.

    Raises:
        ValueError: an object too small to move anything in.
    """
    rows, columns = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
    if len(rows) == 0:
        raise ValueError("inside: the mask of the object is empty.")
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    crop = scores[box].double()
    moved = torch.cat(
        [crop[None], shifted(crop, shift_places(crop.shape, copies, max(crop.shape) // 12, seed))]
    )
    moved = torch.where(mask[box], moved, -torch.inf)
    regions = torch.zeros(len(moved), *mask.shape, dtype=torch.bool, device=mask.device)
    regions[:, box[0], box[1]] = rank_pixels(moved, True, seed) < min(pixels, int(mask.sum()) // 2)
    return regions


def _movements(
    model: nn.Module, image: Tensor, fill: Tensor, masks: Tensor, measure: Callable
) -> tuple[Tensor, float]:
    """How far each hidden region moves the answer ``(n,)``, and what rounding alone could do."""
    whole = model(image[None]).double()
    hidden = (hide(image, chunk, fill) for chunk in masks.split(AT_ONCE))
    outputs = torch.cat(
        [model(x.contiguous(memory_format=torch.channels_last)) for x in hidden]
    ).double()  # twice as fast on a CPU
    if outputs.ndim != 2 or not bool(torch.isfinite(outputs).all()):
        raise ValueError(
            f"the model returned {tuple(outputs.shape)}; expected finite rows of logits or embeddings (n, d)."
        )
    moved, unit = measure(whole, outputs)
    return moved.cpu(), ROUNDING * unit


def _measures(distance, target, b: int) -> tuple[str, list[Callable]]:
    """The distance's name, and per image a function to movements ``(n,)`` and their natural unit."""
    name = ("angle" if target is None else "logit") if distance is None else distance
    if callable(name):
        return getattr(name, "__name__", "function"), [lambda a, z: (_row(name(a, z), z), 1.0)] * b
    if name == "angle":
        return name, [lambda a, z: (angle_between(a, z), 1.0)] * b
    if name != "logit" or target is None:
        raise ValueError(
            f"distance: expected 'angle', 'logit' (with a target) or a function, received {distance!r}, target {target!r}."
        )
    classes = torch.as_tensor(target)
    if classes.is_floating_point() or classes.shape not in ((), (b,)):
        raise ValueError(
            f"target: expected a class or one for each of {b} images, received {classes.dtype} {tuple(classes.shape)}."
        )
    return name, [
        lambda a, z, k=k: (logit_drop(a, z, k), float(a.std())) for k in classes.expand(b).tolist()
    ]


def _row(moved: Tensor, outputs: Tensor) -> Tensor:
    if not isinstance(moved, Tensor) or moved.shape != (len(outputs),):
        raise ValueError(
            f"distance: the function must return one number for each of {len(outputs)} outputs."
        )
    return moved


def _judge(
    moved: Tensor, noise: float, constant: bool, copies: int, alpha: float, words: dict
) -> Falsification:
    d_high, d_low = moved[:2].tolist()
    null, rest = moved[2 : 2 + copies], moved[2 + copies :]
    p, p_inside = (
        _p(d_high - noise, null),
        _p(float(rest[0]) - noise, rest[1:]) if len(rest) else None,
    )
    if constant:
        verdict, reason = "inconclusive", "the map is constant: it names no region."
    elif float(moved.abs().max()) <= noise:
        verdict, reason = (
            "inconclusive",
            "hiding regions of this size with this fill does not move the model's answer anywhere.",
        )
    elif d_high <= d_low + noise:
        verdict, reason = (
            "falsified",
            "hiding the top of the map moves the answer no more than hiding its bottom.",
        )
    elif p > alpha:
        verdict, reason = (
            "falsified",
            f"{round(p * (copies + 1)) - 1} of {copies} copies of the region, moved elsewhere, do as much.",
        )
    elif p_inside is not None and p_inside > alpha:
        verdict, reason = (
            "falsified",
            f"inside the object {round(p_inside * (copies + 1)) - 1} of {copies} other regions do as much.",
        )
    else:
        verdict, reason = (
            "survived",
            f"{round(p * (copies + 1)) - 1} of {copies} copies of the region, moved elsewhere, do as much.",
        )
    return Falsification(
        verdict,
        reason,
        d_high,
        d_low,
        p,
        p_inside,
        null=tuple(null.tolist()),
        null_inside=tuple(rest[1:].tolist()),
        **words,
    )


def _p(least: float, null: Tensor) -> float:
    return (1 + int((null >= least).sum())) / (len(null) + 1)


def _check(
    maps: Tensor, images: Tensor, inside: Tensor | None, area: float, copies: int, alpha: float
) -> None:
    shape = (len(images), *images.shape[2:])
    for name, given in (("attribution", maps), ("inside", inside)):
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(
                f"{name}: expected (b, height, width) equal to {shape}, received {tuple(given.shape)}. Enlarge a grid to the image first; "
                "sum an input attribution over its colours."
            )
    if not bool(torch.isfinite(maps).all()):
        raise ValueError(
            "attribution: NaN or infinity has no rank. Count the failure: a constant map is judged inconclusive."
        )
    if not 0 < area <= 0.5:
        raise ValueError(
            f"area: expected a share in (0, 0.5], so that top and bottom do not overlap; received {area}."
        )
    if not 0 < alpha < 1 or copies + 1 < round(1 / alpha, 9):
        raise ValueError(
            f"with {copies} copies p is at least 1/{copies + 1}, and no map could have p <= {alpha}. Take more copies."
        )
