"""Does a model lose its answer when the pixels a map calls important are hidden, and keep it when
the others are?
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctrace.check import check_ready, prepare_images

__all__ = ["MaskingCurve", "box_mask", "mass_inside", "masking_curve", "rank_pixels"]

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, eq=False)
class MaskingCurve:
    """What masking did, for every image and share of hidden pixels ``(b, r)``.

    Attributes:
        ratios: shares of hidden pixels.
        drop: probability of the class before, minus after.
        log_odds: logarithm of after over before.
        correct: whether the class still has the largest probability.
    """

    ratios: tuple[float, ...]
    drop: Tensor
    log_odds: Tensor
    correct: Tensor

    @property
    def aopc(self) -> Tensor:
        """Mean drop over the ratios ``(b,)``: the area over the perturbation curve (Samek et al.
        2017).
        """
        return self.drop.mean(1)

    @property
    def accuracy(self) -> Tensor:
        """Share of images still recognised, by ratio ``(r,)``."""
        return self.correct.double().mean(0)


@torch.no_grad()
def masking_curve(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target,
    order: str = "morf",
    ratios=RATIOS,
    fill=0.0,
    seed: int = 0,
) -> MaskingCurve:
    """Hide a growing share of pixels, the most relevant first (``"morf"``) or the least
    (``"lerf"``).

    A good map has large drops under morf and small ones under lerf. Equal values are ordered at
    random, not by their place: a map that is zero nearly everywhere would otherwise be masked from
    the top left.

    Args:
        model: a classifier in eval mode.
        images: ``(b, 3, height, width)``, prepared as for training.
        maps: relevance ``(b, height, width)``.
        target: one class, or one per image ``(b,)``.
        fill: what hidden pixels become: a number (0 is the mean colour after the usual
            normalisation) or images to show instead.
        seed: of the order of equal values.

    Raises:
        ValueError: shapes that do not match, maps that are not finite, an unknown order, a share
            outside [0, 1].
    """
    check_ready(model)
    images = prepare_images(model, images)
    _check_maps(maps, (len(images), *images.shape[2:]))
    if order not in ("morf", "lerf") or not all(0 <= ratio <= 1 for ratio in ratios):
        raise ValueError(
            f"expected order 'morf' or 'lerf' and ratios in [0, 1]; received {order!r} and {tuple(ratios)}."
        )
    target = torch.as_tensor(target, device=images.device)
    if target.is_floating_point() or target.shape not in ((), (len(images),)):
        raise ValueError(
            f"target: expected a class or one for each of {len(images)} images, got {target.dtype} {tuple(target.shape)}."
        )
    target, fill = target.expand(len(images)), torch.as_tensor(fill).to(images).expand_as(images)
    rank = rank_pixels(maps.to(images.device), order == "morf", seed)  # (b, height, width)
    whole, columns = _log_probability(model, images, target)[0], []
    for ratio in ratios:
        hidden = rank < round(ratio * rank[0].numel())
        columns.append(_log_probability(model, torch.where(hidden[:, None], fill, images), target))
    after, correct = (torch.stack(column, 1) for column in zip(*columns))  # (b, r)
    return MaskingCurve(
        tuple(ratios), whole.exp()[:, None] - after.exp(), after - whole[:, None], correct
    )


def mass_inside(maps: Tensor, mask: Tensor, per_area: bool = False) -> Tensor:
    """Share of a map's absolute mass that lies inside a mask ``(b,)``; of positive evidence alone:
    pass ``maps.clamp_min(0)``.

    Args:
        maps: ``(b, height, width)``.
        mask: ``(b, height, width)``, boolean or weights in [0, 1].
        per_area: divide by the mask's share of the image, so that a uniform map has 1.

    Raises:
        ValueError: shapes that do not match, a map without mass, a mask that covers nothing (per
            area: or everything).

    >>> mass_inside(torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]), box_mask((0, 0, 1, 1), 2, 2)[None])
    tensor([0.7500], dtype=torch.float64)
    """
    _check_maps(maps, mask.shape)
    maps, mask = maps.detach().double().abs().flatten(1), mask.double().to(maps.device).flatten(1)
    if bool((mask < 0).any()) or bool((mask > 1).any()):
        raise ValueError(
            f"mask: expected weights in [0, 1], received {mask.min():.4g} to {mask.max():.4g}."
        )
    area, mass = mask.mean(1), maps.sum(1)
    for i in range(len(maps)):
        if mass[i] == 0:
            raise ValueError(
                f"map {i} has no mass, so no share of it is anywhere. Count such images, and pass the others."
            )
        if area[i] == 0 or (per_area and area[i] == 1):
            raise ValueError(
                f"mask {i} covers {'nothing' if area[i] == 0 else 'the whole image'}, so it can tell no map from another."
            )
    share = (maps * mask).sum(1) / mass
    return share / area if per_area else share


def box_mask(box, height: int, width: int) -> Tensor:
    """Boolean ``(height, width)``, true in a box ``(left, top, right, bottom)`` in pixels, right
    and bottom excluded.

    Raises:
        ValueError: a box that is empty or leaves the image.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            f"box: expected 0 <= left < right <= {width} and 0 <= top < bottom <= {height}, received {tuple(box)}."
        )
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def rank_pixels(maps: Tensor, descending: bool, seed: int) -> Tensor:
    """Place of each pixel in its image's order, ``(b, height, width)``; equal values in random
    order, the same in every image.
    """
    flat = maps.flatten(1)
    shuffled = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)).to(
        maps.device
    )
    order = shuffled[flat[:, shuffled].argsort(dim=1, descending=descending, stable=True)]
    return order.argsort(1).view_as(maps)


def _log_probability(model: nn.Module, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the class, and whether it is the largest, ``(b,)`` each."""
    logits = model(images).float()
    return logits.log_softmax(1).gather(1, target[:, None])[:, 0], logits.argmax(1) == target


def _check_maps(maps: Tensor, shape) -> None:
    if maps.shape != torch.Size(shape) or maps.ndim != 3:
        raise ValueError(
            f"maps: expected (b, height, width) equal to {tuple(shape)}, received {tuple(maps.shape)}. Sum the colour channels of an "
            "input attribution first: attribution.abs().mean(1)."
        )
    if not bool(torch.isfinite(maps).all()):
        raise ValueError("maps: NaN or infinity has no rank.")
