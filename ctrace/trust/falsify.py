"""Can a map be wrong? Hide what it calls important, and compare with hiding as much elsewhere.

The region is the top of the map; its opponents are the bottom of the map and many copies of the top
region, moved to other places. All have the same area, and the copies the same shape, so that
nothing but the *place* can decide. A map survives if its place matters more than nearly all others;
a region placed at random survives about as often as the significance level says.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ctrace.arguments import Count, Seed, Whole, checked
from ctrace.check import (
    as_tensor,
    check_classes,
    check_maps,
    check_number,
    check_ready,
    prepare_images,
    rows_of,
)
from ctrace.trust.hide import AT_ONCE, filled, rank_pixels

# radians, or shares of the spread of the logits: less may be rounding in float32
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
        null: what hiding the copies did.
        area: share of the image that was hidden.
        fill, distance: what hidden pixels showed, and how the movement was measured.
    """

    verdict: str
    reason: str
    d_high: float
    d_low: float
    p: float
    p_inside: float | None
    null: tuple[float, ...] = field(repr=False)
    area: float
    fill: str
    distance: str

    @property
    def margin(self) -> float:
        """How much more the top moved the answer than the bottom."""
        return self.d_high - self.d_low


@checked
@torch.no_grad()
def falsify(
    attribution,
    images: Tensor,
    model: nn.Module,
    target=None,
    distance: Callable | None = None,
    fill: str | Tensor = "blur",
    area: float = 0.05,
    copies: Count = 99,
    min_shift: Whole | None = None,
    inside: Tensor | None = None,
    alpha: float = 0.05,
    seed: Seed = 0,
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
        distance: another one, a function of outputs ``(1, d)`` and ``(n, d)`` to ``(n,)``, for
            example the loss of likeness to a reference embedding.
        fill: see `ctrace.trust.hide.filled`.
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
    images, single = prepare_images(model, images), as_tensor("attribution", attribution).ndim == 2
    maps = _checked(attribution, images, "attribution")
    inside = None if inside is None else _checked(inside, images, "inside") > 0.5
    check_number("area (above one half, top and bottom overlap)", area, above=0, at_most=0.5)
    check_number("alpha", alpha, at_least=1e-6, below=1)
    enough = f"copies (p is at least 1 / (copies + 1): for p <= {alpha} take more copies)"
    check_number(enough, copies, whole=True, at_least=ceil(round(1 / alpha, 9)) - 1)
    name = "angle" if target is None else "logit"
    if distance is not None:
        name, target = getattr(distance, "__name__", "function"), None
    classes = [None] * len(images) if target is None else check_classes(target, len(images))
    size, pixels = images.shape[2:], max(1, round(area * maps[0].numel()))
    shifts = shift_places(size, copies, max(size) // 12 if min_shift is None else min_shift, seed)
    fills, results = filled(images, fill, seed), []
    shown = fill if isinstance(fill, str) else "images"
    record = {"area": pixels / maps[0].numel(), "fill": shown, "distance": name}
    for i in tqdm(range(len(images)), desc="falsification", unit="image", disable=not progress):
        masks = [extremes(maps[i], pixels, seed)]  # (2, height, width)
        masks.append(shifted(masks[0][0], shifts))
        if inside is not None:
            masks.append(inside_regions(maps[i], inside[i], pixels, copies, seed))
        drawn = images[i], fills[i], torch.cat(masks)
        moved, noise = _movements(model, *drawn, distance or angle_between, classes[i])
        constant = bool(maps[i].amax() == maps[i].amin())
        results.append(Falsification(*_judge(moved, noise, alpha, copies, constant), **record))
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
        found = f"{height} x {width} pixels have {len(places)} places at least {min_shift} away"
        raise ValueError(f"{found}, not {copies}. Use a smaller min_shift or fewer copies.")
    return places[np.random.default_rng(seed).permutation(len(places))[:copies]]


def shifted(scores: Tensor, shifts: np.ndarray) -> Tensor:
    """The map moved to each of the places, around the edges ``(copies, height, width)``."""
    return torch.stack([scores.roll((int(y), int(x)), (0, 1)) for y, x in shifts])


def inside_regions(scores: Tensor, mask: Tensor, pixels: int, copies: int, seed: int) -> Tensor:
    """The map's top inside an object, and the tops of copies of the map moved within the object's
    box ``(copies + 1, height, width)``.

    All have the same number of pixels, at most half of the object, and lie inside it: a map that
    knows the outline and no more has no advantage over its own copies.

    Raises:
        ValueError: an object too small to move anything in.
    """
    if not mask.any():
        raise ValueError("inside: the mask of the object is empty.")
    box = tuple(slice(int(at.min()), int(at.max()) + 1) for at in mask.nonzero(as_tuple=True))
    crop = scores[box].double()
    places = shift_places(crop.shape, copies, max(crop.shape) // 12, seed)
    moved = torch.where(mask[box], torch.cat([crop[None], shifted(crop, places)]), -torch.inf)
    regions = torch.zeros(len(moved), *mask.shape, dtype=torch.bool, device=mask.device)
    regions[:, *box] = rank_pixels(moved, True, seed) < min(pixels, int(mask.sum()) // 2)
    return regions


def _checked(maps, images: Tensor, what: str) -> Tensor:
    maps = as_tensor(what, maps)
    return check_maps(maps if maps.ndim == 3 else maps[None], images, what)


def _movements(model, image: Tensor, fill: Tensor, masks: Tensor, distance, target):
    """How far each hidden region moves the answer ``(n,)``, and what rounding alone could do."""
    hidden = (torch.where(mask[:, None], fill, image) for mask in masks.split(AT_ONCE))
    # channels last: twice as fast on a CPU
    outputs = [
        rows_of(model(x.contiguous(memory_format=torch.channels_last)), len(x)) for x in hidden
    ]
    whole, outputs = rows_of(model(image[None]), 1).double(), torch.cat(outputs).double()
    if target is None:
        moved, unit = distance(whole, outputs), 1.0
    else:  # by how much the logit of a class, minus the mean over classes, has fallen
        alone = "classes (a single output minus its own mean is always 0)"
        check_number(alone, whole.shape[1], at_least=2)
        k = int(check_classes(target, 1, whole.shape[1]))
        before, after = (z[:, k] - z.mean(1) for z in (whole, outputs))
        moved, unit = before - after, float(whole.std())
    if not isinstance(moved, Tensor) or moved.shape != (len(outputs),):
        raise ValueError(f"distance: expected one number for each of {len(outputs)} outputs.")
    return moved.cpu(), ROUNDING * unit


def _judge(moved: Tensor, noise: float, alpha: float, copies: int, constant: bool) -> tuple:
    """The record's fields up to `null`, in their order."""
    (d_high, d_low), null, rest = moved[:2].tolist(), moved[2 : 2 + copies], moved[2 + copies :]
    p, as_good = _rank(d_high - noise, null)
    p_inside, as_good_inside = _rank(rest[0] - noise, rest[1:]) if len(rest) else (None, 0)
    verdict = "falsified"
    reason = f"{as_good} of {copies} copies of the region, moved elsewhere, do as much."
    if constant:
        verdict, reason = "inconclusive", "the map is constant: it names no region."
    elif float(moved.abs().max()) <= noise:
        verdict = "inconclusive"
        reason = "hiding regions of this size with this fill does not move the answer anywhere."
    elif d_high <= d_low + noise:
        reason = "hiding the top of the map moves the answer no more than hiding its bottom."
    elif p <= alpha and p_inside is not None and p_inside > alpha:
        reason = f"inside the object {as_good_inside} of {copies} other regions do as much."
    elif p <= alpha:
        verdict = "survived"
    return verdict, reason, d_high, d_low, p, p_inside, tuple(null.tolist())


def _rank(least, null: Tensor) -> tuple[float, int]:
    """The share of places that do at least as much, the map's own counted, and how many others."""
    as_good = int((null >= least).sum())
    return (1 + as_good) / (len(null) + 1), as_good
