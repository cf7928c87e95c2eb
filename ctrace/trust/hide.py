"""What a model answers while pixels are hidden along the order of a map: masking curves, deletion
and insertion, and what a hidden pixel shows instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from einops import reduce
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from ctrace.check import (
    at_least_float32,
    check_classes,
    check_maps,
    check_number,
    check_ready,
    one_of,
    prepare_images,
)

AT_ONCE = 64  # images per forward pass; more are slower on a CPU
FILLS = ("zero", "mean", "blur", "noise")
ORDERS = {"morf": True, "lerf": False}  # most or least relevant first: whether values descend


# --- what a hidden pixel shows


def filled(images: Tensor, fill: str | Tensor = "blur", seed: int = 0) -> Tensor:
    """What the images ``(b, c, height, width)`` show where they are hidden, everywhere at once; the
    same shape.

    Args:
        images: prepared as for training, so that 0 is the mean colour of the training set.
        fill: ``"zero"``, ``"mean"`` (each image's own colour), ``"blur"`` (Gaussian, a twelfth of
            the longer side), ``"noise"`` (the image's own mean and standard deviation, the same
            noise on every image), or images to show instead.
        seed: of the noise.

    Raises:
        ValueError: an unknown name, or images that do not fit.

    >>> filled(torch.arange(4.0).view(1, 1, 2, 2), "mean").flatten()
    tensor([1.5000, 1.5000, 1.5000, 1.5000])
    """
    if isinstance(fill, Tensor):
        if not all(f in (1, n) for f, n in zip(fill.shape[::-1], images.shape[::-1])):
            shapes = f"{tuple(images.shape)}, received {tuple(fill.shape)}"
            raise ValueError(f"fill: expected images that fit {shapes}. Prepare them alike.")
        return fill.to(images).expand_as(images)
    one_of("fill", fill, FILLS)
    mean = reduce(images, "b c h w -> b c 1 1", "mean")
    if fill == "blur":
        return blurred(images)
    if fill == "noise":
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(images.shape[1:], generator=generator).to(images)
        return mean + images.std((2, 3), keepdim=True) * noise
    return torch.zeros_like(images) if fill == "zero" else mean.expand_as(images)


def blurred(images: Tensor) -> Tensor:
    """Gaussian blur by a twelfth of the longer side of images or maps ``(..., height, width)``."""
    longest, shortest = max(images.shape[-2:]), min(images.shape[-2:])
    reach = min(round(longest / 6), shortest - 1)  # the border is mirrored and needs these pixels
    return gaussian_blur(images, 2 * reach + 1, longest / 12)


def rank_pixels(maps: Tensor, descending: bool, seed: int) -> Tensor:
    """Place of each pixel in its image's order, ``(b, height, width)``; equal values in random
    order, the same in every image.
    """
    flat = maps.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(flat.shape[1], generator=generator).to(maps.device)
    order = shuffled[flat[:, shuffled].argsort(dim=1, descending=descending, stable=True)]
    return order.argsort(1).view_as(maps)


# --- masking curves, deletion, insertion


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """The answer for every image and share of changed pixels.

    Attributes:
        shares: of the pixels that were changed.
        log_p: logarithm of the probability of the class ``(b, r)``.
        whole: the same before anything was changed ``(b,)``.
        correct: whether the class had the largest probability ``(b, r)``.
        fill: what hidden pixels showed.
    """

    shares: tuple[float, ...]
    log_p: Tensor
    whole: Tensor
    correct: Tensor
    fill: str

    @property
    def values(self) -> Tensor:
        """Probability of the class ``(b, r)``."""
        return self.log_p.exp()

    @property
    def drop(self) -> Tensor:
        """Probability of the class before, minus after ``(b, r)``."""
        return self.whole.exp()[:, None] - self.values

    @property
    def log_odds(self) -> Tensor:
        """Logarithm of the probability after over before ``(b, r)``."""
        return self.log_p - self.whole[:, None]

    @property
    def aopc(self) -> Tensor:
        """Mean drop over the shares ``(b,)``: the area over the perturbation curve (Samek et al.
        2017).
        """
        return self.drop.mean(1)

    @property
    def auc(self) -> Tensor:
        """Area under each image's curve ``(b,)``, trapezoid rule: small is good for deletion, large
        for insertion.
        """
        return torch.trapezoid(self.values, torch.tensor(self.shares).to(self.values), dim=1)

    @property
    def accuracy(self) -> Tensor:
        """Share of images still recognised, by share of changed pixels ``(r,)``."""
        return self.correct.double().mean(0)


def masking_curve(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target,
    order: str = "morf",
    ratios: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    fill: float | str | Tensor = 0.0,
    seed: int = 0,
    progress: bool = False,
) -> Curve:
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
        ratios: shares of hidden pixels.
        fill: what hidden pixels become: a number (0 is the mean colour after the usual
            normalisation), or see `filled`.
        seed: of the order of equal values, and of noise.
        progress: show a bar over batches of images.

    Raises:
        ValueError: shapes that do not match, maps that are not finite, an unknown order, a share
            outside [0, 1], a model in training mode.
    """
    images = prepare_images(model, images)
    named = isinstance(fill, str)
    end = filled(images, fill if named else torch.as_tensor(fill), seed)

    def change(rows, hidden):
        return torch.where(hidden[:, None], end[rows], images[rows])

    name = fill if named else "images"
    return answer_curve(model, images, maps, target, order, ratios, change, name, seed, progress)


def deletion(
    model: nn.Module, images: Tensor, maps: Tensor, target, fill="blur", steps: int = 20, **settings
) -> Curve:
    """Hide the image from the map's top to its bottom in equal steps (Petsiuk et al. 2018);
    arguments as in `masking_curve`. A right map makes the probability fall soon.

    The fill decides how far a right map is from a random one: scattered grey dots break an image
    wherever they are, scattered blur does not.
    """
    return masking_curve(model, images, maps, target, "morf", _shares(steps), fill, **settings)


def insertion(
    model: nn.Module, images: Tensor, maps: Tensor, target, fill="blur", steps: int = 20, **settings
) -> Curve:
    """Show the image on a filled one, from the map's top to its bottom; arguments as in `deletion`.
    A right map makes it rise soon.
    """
    images = prepare_images(model, images)
    start = filled(images, fill, settings.get("seed", 0))
    shown = masking_curve(model, start, maps, target, "morf", _shares(steps), images, **settings)
    return replace(shown, fill=fill if isinstance(fill, str) else "images")


def _shares(steps: int) -> list[float]:
    check_number("steps", steps, whole=True, at_least=1)
    return [i / steps for i in range(steps + 1)]


@torch.no_grad()
def answer_curve(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target,
    order: str,
    shares: Sequence[float],
    change: Callable[[Tensor, Tensor], Tensor],
    fill: str,
    seed: int,
    progress: bool,
) -> Curve:
    """The answers while pixels are changed in the order of the maps, each share asked once;
    ``change`` goes from rows of the batch and masks ``(b, height, width)`` to what the model sees.
    """
    check_ready(model)
    one_of("order", order, ORDERS)
    for share in shares:
        check_number("ratios", share, at_least=0, at_most=1)
    maps, classes = check_maps(maps, images), check_classes(target, len(images)).to(images.device)
    counts, found = [round(share * maps[0].numel()) for share in shares], []
    batches = torch.arange(len(images)).split(AT_ONCE)
    for rows in tqdm(batches, desc=order, unit="batch", disable=not progress):
        rank = rank_pixels(maps[rows], ORDERS[order], seed)  # (b, height, width)
        answers = {
            count: _answer(model, change(rows, rank < count), classes[rows])
            for count in sorted({0, *counts})
        }
        log_p, correct = (torch.stack(v, 1) for v in zip(*(answers[count] for count in counts)))
        found.append((log_p, answers[0][0], correct))
    return Curve(tuple(shares), *(torch.cat(v).cpu() for v in zip(*found)), fill)


def _answer(model: nn.Module, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the class, and whether it is the largest, ``(b,)`` each."""
    logits = at_least_float32(model(images))
    classes = check_classes(classes, *logits.shape)
    return logits.log_softmax(1).gather(1, classes[:, None])[:, 0], logits.argmax(1) == classes
