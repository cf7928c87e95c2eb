"""Is the map where the truth is? Scores per image, and the controls they are read beside: maps that
know nothing of the model, one right by construction and one wrong.

A map that cannot be scored is counted, and given the score of chance. What a control reaches, a
method has not earned.
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum, rearrange, reduce
from scipy.ndimage import distance_transform_edt, sobel
from torch import Tensor

from ctrace.arguments import Seed, checked, numbers, real
from ctrace.check import check_maps
from ctrace.stats import spearman
from ctrace.trust.hide import filled


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One score per image.

    Attributes:
        values: ``(b,)`` float64, never NaN.
        failed: ``(b,)`` boolean: the map said nothing that could be scored, and ``values`` holds
            what chance would get.
    """

    values: Tensor
    failed: Tensor

    @property
    def mean(self) -> float:
        """Over all images, the failed ones included."""
        return float(self.values.mean())


@checked
def pointing_game(maps: numbers("b h w"), masks: numbers("b h w")) -> Scores:
    """Does the largest value lie in the mask? 1 or 0; where several are largest, the share of them
    that do (Zhang et al. 2018).

    A constant map has all its pixels largest, so its score is the area of the mask: what a random
    finger would hit.

    Args:
        maps: ``(b, height, width)``.
        masks: ``(b, height, width)``, boolean or weights, of which those over one half count.

    >>> mask = torch.tensor([[[0, 1], [0, 0]]])
    >>> pointing_game(torch.tensor([[[0.0, 3.0], [1.0, 0.0]]]), mask).values
    tensor([1.], dtype=torch.float64)
    """
    maps, masks = _matched(maps, masks)
    largest = (maps == maps.amax((1, 2), keepdim=True)).double()
    hits = (largest * (masks > 0.5)).sum((1, 2)) / largest.sum((1, 2))
    return Scores(hits, _constant(maps))


@checked
def mass_inside(maps: numbers("b h w"), mask: numbers("b h w")) -> Tensor:
    """Share of a map's absolute mass that lies inside a mask ``(b,)``; of positive evidence alone:
    pass ``maps.clamp_min(0)``, or see `positive_mass_inside`.

    Args:
        maps: ``(b, height, width)``.
        mask: ``(b, height, width)``, boolean or weights in [0, 1].

    Raises:
        ValueError: shapes that do not match, a map without mass, a mask that covers nothing.

    >>> mask = torch.tensor([[[True, False], [False, False]]])
    >>> mass_inside(torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]), mask)
    tensor([0.7500], dtype=torch.float64)
    """
    maps, mask = _matched(maps, mask)
    if bool(((mask < 0) | (mask > 1)).any()):
        raise ValueError(f"mask: expected weights in [0, 1], got {mask.min()} to {mask.max()}.")
    mass, area = maps.abs().sum((1, 2)), mask.mean((1, 2))
    if bool((mass == 0).any()):
        raise ValueError(f"map {int(mass.argmin())} has no mass. Count it, pass the others.")
    if bool((area == 0).any()):
        raise ValueError(f"mask {int(area.argmin())} covers nothing: it can tell no map apart.")
    return (maps.abs() * mask).sum((1, 2)) / mass


@checked
def positive_mass_inside(maps: numbers("b h w"), masks: numbers("b h w")) -> Scores:
    """`mass_inside` of the positive values. A map with none scores the area of the mask, as a
    constant one does.
    """
    maps, masks = _matched(maps, masks)
    positive = maps.clamp_min(0)
    nothing = positive.amax((1, 2)) == 0
    positive = torch.where(nothing[:, None, None], 1.0, positive)
    return Scores(mass_inside(positive, masks), nothing | _constant(maps))


@checked
def part_correlation(
    maps: numbers("b h w"), masks: numbers("b p h w"), importance: numbers("b p")
) -> Scores:
    """Rank correlation, over the parts of one image, between the map summed over a part and the
    part's importance to the model.

    1 if the map orders the parts as the model does. Sums favour large parts, so compare with a map
    that knows nothing but the parts' area. Where one of the two orders does not exist (a constant
    map, sums or importances all equal) the score is 0, the mean over random orders.

    Args:
        maps: ``(b, height, width)``.
        masks: ``(b, p, height, width)``, weights in [0, 1].
        importance: ``(b, p)``, see `ctrace.aviary.importance_table`; the kind of truth is the
            caller's to name.

    Raises:
        ValueError: shapes that do not match, or fewer than three parts, which have hardly an order.
    """
    if importance.shape[1] < 3:
        raise ValueError(f"importance: expected (b, p) with p > 2, got {(*importance.shape,)}.")
    sums = einsum(maps.to(masks.device).double(), masks.double(), "b h w, b p h w -> b p")
    values = torch.from_numpy(spearman(sums.cpu(), importance.cpu()))
    failed = values.isnan() | _constant(maps).cpu()
    return Scores(torch.where(failed, 0.0, values), failed)


@checked
def controls(
    images: real("b c h w"), masks: numbers("b p h w|b h w"), seed: Seed = 0
) -> dict[str, Tensor]:
    """Five maps ``(b, height, width)`` that look at the image or at nothing, never at the model.

    ``"random"``: independent noise. ``"smooth random"``: the same, blurred to blobs. ``"edges"``:
    Sobel magnitude of the brightness. ``"centre"``: a Gaussian in the middle, a quarter of the
    image wide. ``"area"``: 1 on the true parts and 0 elsewhere, so that its sum over a part is the
    part's area.

    Args:
        images: ``(b, c, height, width)``.
        masks: true parts ``(b, p, height, width)``, or the object ``(b, height, width)``.
        seed: of the noise, which differs from image to image.
    """
    grey = reduce(images.detach(), "b c h w -> b h w", "mean")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(grey.shape, generator=generator, dtype=torch.float32).to(images.device)
    edges = [np.hypot(*(sobel(one, axis, mode="nearest") for axis in (0, 1))) for one in grey.cpu()]
    masks = masks.to(images)
    return {
        "random": noise,
        "smooth random": filled(noise[:, None], "blur")[:, 0],
        "edges": torch.from_numpy(np.stack(edges)).to(images),
        "centre": _gaussian(grey.shape[1:], (0.5, 0.5), 0.25).to(images).repeat(len(grey), 1, 1),
        "area": masks.sum(1).clamp(max=1) if masks.ndim == 4 else masks,
    }


@checked
def planted_truth(masks: numbers("b p h w"), importance: numbers("b p")) -> Tensor:
    """What a perfect method would draw ``(b, height, width)``: each part's importance, spread
    evenly over the part and nothing elsewhere.

    Its sum over each part is exactly that part's importance, also where two parts share the pixels
    of a border.

    Args:
        masks: ``(b, p, height, width)``, weights in [0, 1].
        importance: ``(b, p)``.

    Raises:
        ValueError: a part without a pixel, whose importance no map could show.
    """
    if bool((masks.amax((2, 3)) == 0).any()):
        raise ValueError("masks: a part has no pixel. Leave such images out, count them.")
    parts = masks.double()
    importance = torch.as_tensor(np.asarray(importance), dtype=parts.dtype, device=masks.device)
    shared = einsum(parts, parts, "b p h w, b q h w -> b p q")
    weights, failed = torch.linalg.solve_ex(shared, importance)
    if bool(failed.any()):
        raise ArithmeticError("masks: parts on the same pixels cannot be told apart. Merge them.")
    return einsum(weights, parts, "b p, b p h w -> b h w")


@checked
def planted_lie(masks: numbers("b p h w"), importance: numbers("b p")) -> Tensor:
    """A convincing wrong map ``(b, height, width)``: a smooth blob as far from every part as the
    image allows, and the parts in reverse.

    It looks like any other heat map. No part of it is true.
    """
    wrong, bird, blobs = -planted_truth(masks, importance), masks.sum(1) > 0, []
    for empty in (~bird).cpu().numpy():
        # the image's edge counts as something to stay away from
        away = distance_transform_edt(np.pad(empty, 1))[1:-1, 1:-1]
        place = np.unravel_index(away.argmax(), away.shape)
        place = [(at + 0.5) / side for at, side in zip(place, away.shape)]
        blobs.append(_gaussian(away.shape, place, 0.08))
    largest = reduce(wrong.abs(), "b h w -> b 1 1", "max").clamp_min(1e-300)
    return torch.stack(blobs).to(wrong) * ~bird + 1e-3 * wrong / largest


def _gaussian(size, place, sigma: float) -> Tensor:
    """Peak 1 at ``place`` ``(y, x)``; place and width in shares of the sides."""
    y, x = (((torch.arange(n) + 0.5) / n - at) ** 2 for n, at in zip(size, place))
    return torch.exp(-(rearrange(y, "h -> h 1") + x) / (2 * sigma**2))


def _constant(maps: Tensor) -> Tensor:
    return maps.amax((1, 2)) == maps.amin((1, 2))


def _matched(maps, masks) -> tuple[Tensor, Tensor]:
    """Maps and masks of one shape ``(b, height, width)`` in float64."""
    masks = torch.as_tensor(masks).detach().double()
    return check_maps(maps, masks).double(), masks
