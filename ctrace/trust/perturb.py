"""The model's answer while pixels are hidden or shown along a map's order: deletion, insertion and
ROAD.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ctrace.check import prepare_images
from ctrace.trust.fills import filled
from ctrace.trust.masking_curves import masking_curve, rank_pixels

__all__ = ["Curve", "Road", "deletion", "impute", "insertion", "road"]

AT_ONCE = 64  # images per pass


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Probability of the class for every image and share of changed pixels.

    Attributes:
        shares: of the pixels that are hidden (deletion) or shown (insertion), from 0 to 1.
        values: ``(b, r)``.
        fill: what hidden pixels showed.
    """

    shares: tuple[float, ...]
    values: Tensor
    fill: str

    @property
    def auc(self) -> Tensor:
        """Area under each image's curve ``(b,)``, trapezoid rule: small is good for deletion, large
        for insertion.
        """
        return torch.trapezoid(
            self.values, torch.tensor(self.shares, dtype=self.values.dtype), dim=1
        )


@dataclass(frozen=True, slots=True, eq=False)
class Road:
    """Probability of the class when a share of the pixels is imputed from the others ``(b, r)``.

    Attributes:
        shares: of imputed pixels.
        morf, lerf: the most relevant first, the least relevant first.
    """

    shares: tuple[float, ...]
    morf: Tensor
    lerf: Tensor

    @property
    def score(self) -> Tensor:
        """Half the mean of lerf minus morf ``(b,)``: 0 for a map that knows nothing, in [-0.5,
        0.5].
        """
        return (self.lerf - self.morf).mean(1) / 2


def deletion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target,
    fill="blur",
    steps: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> Curve:
    """Hide the image from the map's top to its bottom (Petsiuk et al. 2018). A right map makes the
    probability fall soon.

    Args:
        model: a classifier in eval mode.
        images: ``(b, 3, height, width)``, prepared as for training.
        maps: ``(b, height, width)``.
        target: a class, or one per image ``(b,)``.
        fill: see `ctrace.trust.filled`. It decides how far a right map is from a random one:
            scattered grey dots break an image wherever they are, scattered blur does not.
        steps: of equal size, from nothing to everything.
        seed: of noise and of the order of equal values.
        progress: show a bar over images.
    """
    images = prepare_images(model, images)
    return _curve(
        model, images, filled(images, fill, seed), maps, target, fill, steps, seed, progress
    )


def insertion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target,
    fill="blur",
    steps: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> Curve:
    """Show the image on a filled one, from the map's top to its bottom; arguments as in `deletion`.
    A right map makes it rise soon.
    """
    images = prepare_images(model, images)
    return _curve(
        model, filled(images, fill, seed), images, maps, target, fill, steps, seed, progress
    )


@torch.no_grad()
def _curve(
    model,
    start: Tensor,
    end: Tensor,
    maps: Tensor,
    target,
    fill,
    steps: int,
    seed: int,
    progress: bool,
) -> Curve:
    """From one set of images to the other, pixel by pixel in the order of the maps."""
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, received {steps}.")
    shares = tuple(i / steps for i in range(steps + 1))
    classes, maps, values = _classes(target, len(start)), _checked(maps, start), []
    for rows in tqdm(
        torch.arange(len(start)).split(AT_ONCE), desc="masking", unit="batch", disable=not progress
    ):
        curve = masking_curve(
            model, start[rows], maps[rows], classes[rows], "morf", shares, end[rows], seed
        )
        first = _probability(model, start[rows], classes[rows])
        values.append((first - curve.drop).cpu())
    return Curve(shares, torch.cat(values), fill if isinstance(fill, str) else "images")


@torch.no_grad()
def road(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target,
    shares=(0.1, 0.3, 0.5, 0.7, 0.9),
    noise=0.01,
    seed: int = 0,
    progress=False,
) -> Road:
    """Remove pixels by replacing them with what their surroundings say, so that no shape of a mask
    is left to see (Rong et al. 2022).

    Pixels are ranked and equal ones ordered at random; a threshold on the values would remove every
    pixel of a map that is mostly zero.

    Args:
        model, images, maps, target, seed, progress: as in `deletion`.
        shares: of removed pixels, each in (0, 1).
        noise: standard deviation added to imputed pixels, in units of each image's own.

    Raises:
        ValueError: a share outside (0, 1).
    """
    if not shares or not all(0 < share < 1 for share in shares):
        raise ValueError(
            f"shares: expected shares in (0, 1), received {tuple(shares)}: with no pixel left there is nothing to impute from."
        )
    images = prepare_images(model, images)
    classes, maps, curves = _classes(target, len(images)), _checked(maps, images), {}
    speckle = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(
        images
    )
    for order in ("morf", "lerf"):
        values = []
        for rows in tqdm(
            torch.arange(len(images)).split(AT_ONCE),
            desc=f"ROAD {order}",
            unit="batch",
            disable=not progress,
        ):
            x = images[rows]
            rank = rank_pixels(maps[rows], order == "morf", seed)  # (b, height, width)
            hidden = [rank < round(share * rank[0].numel()) for share in shares]
            shown = [
                impute(x, mask) + noise * x.std((1, 2, 3), keepdim=True) * speckle * mask[:, None]
                for mask in hidden
            ]
            values.append(
                torch.cat([_probability(model, z, classes[rows]) for z in shown], 1).cpu()
            )
        curves[order] = torch.cat(values)
    return Road(tuple(shares), **curves)


_WEIGHTS = (
    torch.tensor([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
)  # direct neighbours count twice the diagonal ones


def impute(images: Tensor, hidden: Tensor, tolerance: float = 1e-5, max_iter: int = 2000) -> Tensor:
    """Every hidden pixel becomes the weighted mean of its eight neighbours, hidden ones included
    (Rong et al. 2022, section 4).

    The mean over those neighbours that exist, times their total weight, is a symmetric positive
    definite system, which conjugate gradients solve for all images at once.

    Args:
        images: ``(b, c, height, width)``.
        hidden: ``(b, height, width)`` boolean; at least one pixel of each image is not.

    Raises:
        ValueError: an image without a known pixel.
        ArithmeticError: no convergence within ``max_iter`` steps.
    """
    if bool(hidden.flatten(1).all(1).any()):
        raise ValueError(
            "impute: an image is hidden completely, and nothing is left to impute from."
        )
    mask = hidden[:, None]
    weights = _WEIGHTS.to(images).expand(images.shape[1], 1, 3, 3)
    spread = lambda x: F.conv2d(x, weights, padding=1, groups=x.shape[1])
    degree = spread(torch.ones_like(images[:1]))
    apply = lambda x: torch.where(mask, degree * x - spread(x), 0)  # x is zero outside the mask
    known = torch.where(mask, 0, images)
    right = torch.where(mask, spread(known), 0)
    dot = lambda a, b: (a * b).sum((2, 3), keepdim=True)
    x, r = torch.zeros_like(images), right
    d, size = r, dot(r, r)
    goal = tolerance**2 * size
    for _ in range(max_iter):
        if bool((size <= goal).all()):
            return known + x
        Ad = apply(d)
        step = torch.where(size > goal, size / dot(d, Ad), 0)  # a channel that has converged rests
        x, r = x + step * d, r - step * Ad
        size, before = dot(r, r), size
        d = r + torch.where(before > 0, size / before, 0) * d
    raise ArithmeticError(
        f"impute: no convergence in {max_iter} steps; raise tolerance (now {tolerance}) or max_iter."
    )


def _probability(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    return model(images).float().softmax(1).gather(1, classes[:, None].to(images.device))  # (b, 1)


def _classes(target, b: int) -> Tensor:
    classes = torch.as_tensor(target).cpu()
    if classes.is_floating_point() or classes.shape not in ((), (b,)):
        raise ValueError(
            f"target: expected a class or one for each of {b} images, received {classes.dtype} {tuple(classes.shape)}."
        )
    return classes.expand(b)


def _checked(maps, images: Tensor) -> Tensor:
    maps = torch.as_tensor(maps).detach().to(images.device)
    if maps.shape != (len(images), *images.shape[2:]) or not bool(torch.isfinite(maps).all()):
        raise ValueError(
            f"maps: expected finite (b, height, width) equal to {(len(images), *images.shape[2:])}, received {tuple(maps.shape)}."
        )
    return maps
