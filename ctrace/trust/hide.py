"""What a model answers while pixels are hidden along the order of a map: masking curves, deletion,
insertion and ROAD, and what a hidden pixel shows instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange, reduce
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from ctrace.arguments import Seed, checked, floating, real, truth
from ctrace.check import (
    at_least_float32,
    check_classes,
    check_maps,
    check_number,
    check_ready,
    one_of,
    prepare_images,
    rows_of,
)

AT_ONCE = 64  # images per forward pass; more are slower on a CPU
FILLS = ("zero", "mean", "blur", "noise")
ORDERS = {"morf": True, "lerf": False}  # most or least relevant first: whether values descend


@checked
def filled(images: floating("b c h w"), fill: str | Tensor = "blur", seed: Seed = 0) -> Tensor:
    """What images ``(b, c, height, width)`` show where they are hidden, everywhere at once.

    Args:
        images: prepared as for training, so that 0 is the mean colour of the training set.
        fill: ``"zero"``, ``"mean"`` (each image's own colour), ``"blur"`` (Gaussian, a twelfth of
            the longer side), ``"noise"`` (the image's own mean and standard deviation, the same
            noise on every image), or images to show instead.
        seed: of the noise.

    Raises:
        ValueError: an unknown name.

    >>> filled(torch.arange(4.0).view(1, 1, 2, 2), "mean").flatten()
    tensor([1.5000, 1.5000, 1.5000, 1.5000])
    """
    if isinstance(fill, Tensor):
        try:
            return fill.to(images).expand_as(images)
        except RuntimeError as error:
            raise ValueError(f"fill: expected images of the same shape. ({error})") from error
    one_of("fill", fill, FILLS)
    mean = reduce(images, "b c h w -> b c 1 1", "mean")
    if fill == "blur":
        longest, shortest = max(images.shape[-2:]), min(images.shape[-2:])
        reach = min(round(longest / 6), shortest - 1)  # the border is mirrored and needs them
        return gaussian_blur(images, 2 * reach + 1, longest / 12)
    if fill == "noise":
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(images.shape[1:], generator=generator, dtype=torch.float32).to(images)
        return mean + images.std((2, 3), keepdim=True) * noise
    return torch.zeros_like(images) if fill == "zero" else mean.expand_as(images)


def rank_pixels(maps: Tensor, descending: bool, seed: int) -> Tensor:
    """Place of each pixel in its image's order, ``(b, height, width)``; equal values in random
    order, the same in every image.
    """
    flat = maps.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(flat.shape[1], generator=generator).to(maps.device)
    order = shuffled[flat[:, shuffled].argsort(dim=1, descending=descending, stable=True)]
    places = torch.arange(flat.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(maps)


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
        """Mean drop ``(b,)``: the area over the perturbation curve (Samek et al. 2017)."""
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


@checked
@torch.no_grad()
def masking_curve(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target,
    order: str = "morf",
    ratios: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    fill: float | str | Tensor | Callable = 0.0,
    seed: Seed = 0,
) -> Curve:
    """Hide a growing share of pixels, the most (``"morf"``) or least relevant first (``"lerf"``).

    A good map has large drops under morf and small ones under lerf. Equal values are ordered at
    random, not by their place: a map that is zero nearly everywhere would otherwise be masked from
    the top left.

    Args:
        model: a classifier in eval mode.
        images: ``(b, 3, height, width)``, prepared as for training.
        maps: relevance ``(b, height, width)``.
        target: one class, or one per image ``(b,)``.
        ratios: shares of hidden pixels; each is asked once.
        fill: what hidden pixels become: a number (0 is the mean colour after the usual
            normalisation); see `filled`; or a function of images and masks ``(b, height, width)``
            of what is hidden, to what the model sees.
        seed: of the order of equal values, and of noise.

    Raises:
        ValueError: shapes that do not match, NaN, a share outside [0, 1], a model in training mode.
    """
    check_ready(model)
    one_of("order", order, ORDERS)
    if not len(ratios):
        raise ValueError("ratios: expected at least one share of the pixels, received none.")
    for share in ratios:
        check_number("ratios", share, at_least=0, at_most=1)
    images = prepare_images(model, images)
    maps, classes = check_maps(maps, images), check_classes(target, len(images)).to(images.device)
    counts, found = [round(share * maps[0].numel()) for share in ratios], []
    if not callable(fill):
        end = filled(images, fill if isinstance(fill, str) else torch.as_tensor(fill), seed)
    for rows in torch.arange(len(images)).split(AT_ONCE):
        x, rank, answers = images[rows], rank_pixels(maps[rows], ORDERS[order], seed), {}
        for count in sorted({0, *counts}):
            hidden = rank < count
            shown = fill(x, hidden) if callable(fill) else end[rows].where(hidden[:, None], x)
            answers[count] = _answer(model, shown, classes[rows])
        log_p, correct = (torch.stack(v, 1) for v in zip(*(answers[count] for count in counts)))
        found.append((log_p, answers[0][0], correct))
    name = fill if isinstance(fill, str) else getattr(fill, "__name__", "images")
    return Curve(tuple(ratios), *(torch.cat(v).cpu() for v in zip(*found)), name)


@checked
def deletion(
    model: nn.Module, images: Tensor, maps: Tensor, target, fill="blur", steps: int = 20, **settings
) -> Curve:
    """Hide the image from the map's top to its bottom in equal steps (Petsiuk et al. 2018);
    arguments as in `masking_curve`. A right map makes the probability fall soon.

    The fill decides how far a right map is from a random one: scattered grey dots break an image
    wherever they are, scattered blur does not.
    """
    return masking_curve(model, images, maps, target, "morf", _shares(steps), fill, **settings)


@checked
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


def _answer(model: nn.Module, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the class, and whether it is the largest, ``(b,)`` each."""
    logits = at_least_float32(rows_of(model(images), len(images)))
    classes = check_classes(classes, *logits.shape)
    return logits.log_softmax(1).gather(1, classes[:, None])[:, 0], logits.argmax(1) == classes


# --- ROAD: hidden pixels are imputed from what is left (Rong et al. 2022)

REPLACED = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of the pixels
SYMMETRIC = {"diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}


@checked
def road(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target,
    shares: Sequence[float] = REPLACED,
    noise: float = 0.01,
    seed: Seed = 0,
) -> Tensor:
    """Replace pixels by what their surroundings say, so that no shape of a mask is left to see.

    Half the mean drop of the probability when the most relevant are replaced, minus that of the
    least relevant, ``(b,)`` in [-0.5, 0.5]: 0 for a map that knows nothing.

    Args:
        model, images, maps, target, seed: as in `masking_curve`.
        shares: of replaced pixels, each in (0, 1): with none left there is nothing to impute from.
        noise: standard deviation added to imputed pixels, in units of each image's own.

    Raises:
        ValueError: as `masking_curve`, or a share outside (0, 1).
    """
    for share in shares:
        check_number("shares (all removed leaves nothing to impute from)", share, above=0, below=1)

    def imputed(images, hidden):
        generator = torch.Generator().manual_seed(seed)
        speckle = torch.randn(images.shape[1:], generator=generator, dtype=torch.float32).to(images)
        speckle = noise * images.std((1, 2, 3), keepdim=True) * speckle
        return impute(images, hidden) + speckle * hidden[:, None]

    asked = (model, images, maps, target)
    morf, lerf = (masking_curve(*asked, order, shares, imputed, seed).values for order in ORDERS)
    return (lerf - morf).mean(1) / 2


@checked
def impute(images: real("b c h w"), hidden: truth("b h w")) -> Tensor:
    """Every hidden pixel becomes the weighted mean of its neighbours, hidden ones too (section 4).

    The mean over those neighbours that exist, times their total weight, is a symmetric positive
    definite system. One factorisation in float64, on the CPU, serves all colours of an image.

    Args:
        images: ``(b, c, height, width)``.
        hidden: ``(b, height, width)`` boolean; at least one pixel of each image is not.

    Raises:
        ValueError: an image without a known pixel.
    """
    if bool(hidden.flatten(1).all(1).any()):
        raise ValueError("impute: an image is hidden completely; nothing is left to impute from.")
    height, width = images.shape[2:]
    spread = (sparse.kron(_near(height), _near(width)) - 4 * sparse.eye(height * width)).tocsr()
    laplacian = sparse.diags(spread.sum(1).A1) - spread
    values = rearrange(images.detach().cpu().double(), "b c h w -> b (h w) c").numpy().copy()
    for value, mask in zip(values, hidden.flatten(1).cpu().numpy()):
        if mask.any():
            value[mask] = 0
            system = laplacian[mask][:, mask].tocsc()
            value[mask] = splu(system, "MMD_AT_PLUS_A", **SYMMETRIC).solve(spread[mask] @ value)
    found = rearrange(torch.from_numpy(values), "b (h w) c -> b c h w", h=height)
    return torch.where(hidden[:, None], found.to(images), images)


def _near(pixels: int) -> sparse.spmatrix:
    """Weights along one axis: the product of two gives the diagonals half of the others' weight."""
    return sum(weight * sparse.eye(pixels, k=k) for k, weight in ((-1, 1), (0, 2), (1, 1)))
