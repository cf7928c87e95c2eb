"""Shapley values of regions of an image: what each adds to a logit, averaged over all orders in
which the regions could appear.

With few regions all coalitions are asked, and the values are exact. With many, Kernel SHAP asks a
sample of them (Lundberg and Lee 2017). Either way the values sum to f(all) - f(none), the logit of
the image minus that of the baseline, up to rounding. LIME asks the same game and fits a line near
the whole image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from skimage.segmentation import slic
from torch import Tensor, nn

from ctrace.arguments import Count, Positive, Seed, checked, real, within
from ctrace.check import check_classes, check_number, check_ready, prepare_images, rows_of
from ctrace.stats import exact_shapley
from ctrace.trust.hide import AT_ONCE, filled

NO_NUMBERS = (torch.bool, torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
EXACT_UP_TO = 10  # regions; 1,024 coalitions


@dataclass(frozen=True, slots=True, eq=False)
class Shapley:
    """What each region of one image adds to the centred logit of a class.

    Attributes:
        values: ``(r,)`` float64; they sum to ``all - none``.
        regions: number of the region of each pixel ``(height, width)``.
        all, none: the logit of the image, and of the baseline.
    """

    values: Tensor
    regions: Tensor
    all: float
    none: float

    @property
    def map(self) -> Tensor:
        """Each region's value spread evenly over its pixels ``(height, width)``: sums to ``all -
        none``.
        """
        size = torch.bincount(self.regions.flatten(), minlength=len(self.values))
        return (self.values / size)[self.regions]


@checked
@torch.no_grad()
def shap(
    model: nn.Module,
    image: Tensor,
    target,
    regions: Tensor,
    baseline: str | Tensor = "blur",
    samples: Count = 512,
    seed: Seed = 0,
) -> Shapley:
    """Shapley values of the regions of one image, for the centred logit of a class.

    Args:
        model: a classifier in eval mode.
        image: ``(3, height, width)``, prepared as for training.
        target: class.
        regions: a number from 0 for each pixel ``(height, width)``, such as `superpixels`.
        baseline: what an absent region shows, see `ctrace.trust.hide.filled`; for the parts of a
            bird, the bird drawn without them.
        samples: coalitions that Kernel SHAP asks, beyond `EXACT_UP_TO` regions.
        seed: of these, and of noise.

    Raises:
        ValueError: shapes or numbers that do not fit, fewer samples than the regression has
            unknowns.
    """
    r, value = _game(model, image, target, regions, baseline, seed)
    if r <= EXACT_UP_TO:
        asked = value(torch.arange(2**r)[:, None] >> torch.arange(r) & 1 == 1)  # (2^r,)
        none, whole = asked[[0, -1]].tolist()
        values = torch.from_numpy(exact_shapley(asked))
    else:
        check_number(f"samples (to tell {r} regions apart)", samples, at_least=2 * r)
        none, whole = value(torch.tensor([[False], [True]]).expand(2, r)).tolist()
        present = sample_coalitions(r, samples, seed)
        values = kernel_shap(present, value(present) - none, whole - none)
    return Shapley(values, regions.cpu(), whole, none)


@checked
@torch.no_grad()
def lime(
    model: nn.Module,
    image: Tensor,
    target,
    regions: Tensor,
    baseline: str | Tensor = "blur",
    samples: Count = 512,
    seed: Seed = 0,
    width: Positive = 0.25,
    ridge: within(at_least=0) = 1.0,
) -> Shapley:
    """The surrogate of LIME (Ribeiro, Singh and Guestrin 2016) on the coalitions of `shap`: what
    each region adds to the centred logit in a linear model fitted near the whole image.

    Near is ``exp(-d^2 / width^2)``, rooted, of the cosine distance d between a coalition and all,
    as in the authors' code for images, whose width and ridge these are. The values have no reason
    to sum to ``all - none``.

    Args:
        model, image, target, regions, baseline: as in `shap`.
        samples: coalitions, each region in or out by a coin, the first with all.
        seed: of these, and of noise.
        width: of the kernel.
        ridge: penalty on the squared values, not on the intercept.

    Raises:
        ValueError: as `shap`.
        ArithmeticError: a kernel so narrow that fewer coalitions count than there are regions.
    """
    r, value = _game(model, image, target, regions, baseline, seed)
    check_number(f"samples (to tell {r} regions apart)", samples, at_least=2 * r)
    present = torch.from_numpy(np.random.default_rng(seed).integers(0, 2, (samples, r)) == 1)
    present[0] = True
    none, whole = value(torch.tensor([[False], [True]]).expand(2, r)).tolist()
    values = linear_surrogate(present, value(present), width, ridge)
    return Shapley(values, regions.cpu(), whole, none)


def linear_surrogate(present: Tensor, value: Tensor, width: float, ridge: float) -> Tensor:
    """Coefficients ``(r,)`` of a weighted ridge regression with an intercept.

    Args:
        present: coalitions ``(m, r)``, boolean; nobody is at distance 1 from all.
        value: theirs ``(m,)``.
        width, ridge: see `lime`.

    Raises:
        ArithmeticError: the kernel is so narrow that it leaves fewer coalitions than unknowns.
    """
    x, y = present.double(), value.double()
    distance = 1 - x.mean(1).sqrt()  # the cosine of x with a row of ones is |x| / sqrt(|x| r)
    weight = (-(distance**2) / width**2).exp().sqrt()
    if weight.sum() ** 2 <= len(present[0]) * (weight**2).sum():
        why = "puts nearly all weight on fewer coalitions than there are regions"
        raise ArithmeticError(f"width: {width} {why}. Widen the kernel, or merge regions.")
    x, y = (v - (weight @ v) / weight.sum() for v in (x, y))  # the intercept, solved for
    weighted = x.T * weight
    return torch.linalg.solve(weighted @ x + ridge * torch.eye(x.shape[1]).double(), weighted @ y)


def _game(
    model: nn.Module, image: Tensor, target: int, regions: Tensor, baseline: str | Tensor, seed: int
) -> tuple[int, Callable[[Tensor], Tensor]]:
    """The number of regions r, and the centred logit ``(m,)`` of coalitions of them ``(m, r)``."""
    check_ready(model)
    x = prepare_images(model, image)
    start, regions, found = filled(x, baseline, seed), regions.to(x.device), regions.unique()
    if len(x) != 1 or regions.shape != x.shape[2:] or regions.dtype in NO_NUMBERS:
        got = f"{tuple(x.shape)} and {regions.dtype} {tuple(regions.shape)}"
        raise ValueError(
            f"regions: expected a whole number for each pixel of one image, got {got}."
        )
    r = len(found)
    if found.tolist() != list(range(r)):
        raise ValueError("regions: must be numbered from 0 without gaps. Use torch.unique.")

    def value(present: Tensor) -> Tensor:
        chunks = present.to(x.device).split(AT_ONCE)
        shown = (torch.where(chunk[:, regions][:, None], x, start) for chunk in chunks)
        z = torch.cat([rows_of(model(images), len(images)).double() for images in shown]).cpu()
        return z[:, int(check_classes(target, 1, z.shape[1]))] - z.mean(1)

    return r, value


def sample_coalitions(r: int, samples: int, seed: int) -> Tensor:
    """Coalitions ``(samples, r)``, boolean, drawn as often as the Shapley kernel weighs them, each
    followed by its complement; never all and never nobody.
    """
    rng = np.random.default_rng(seed)
    sizes = np.arange(1, r)
    weight = 1 / (sizes * (r - sizes))  # of all coalitions of a size together
    drawn = rng.choice(sizes, (samples + 1) // 2, p=weight / weight.sum())
    first = rng.permuted(np.arange(r) < drawn[:, None], axis=1)
    pairs = rearrange([first, ~first], "two m r -> (m two) r")
    return torch.from_numpy(pairs[:samples])


def kernel_shap(present: Tensor, value: Tensor, total: float) -> Tensor:
    """Least squares of coalition values on who is present, under the constraint that the
    coefficients ``(r,)`` sum to ``total`` (Lundberg and Lee 2017, theorem 2).

    The constraint is built in: the last player's coefficient is what the others leave.

    Args:
        present: coalitions drawn by the Shapley kernel ``(m, r)``, boolean.
        value: theirs ``(m,)``, minus that of nobody.
    """
    present, value = present.double(), value.double()
    last = present[:, -1:]
    fit = torch.linalg.lstsq(present[:, :-1] - last, value[:, None] - total * last)
    first = fit.solution[:, 0]
    return torch.cat([first, total - first.sum(0, keepdim=True)])


@checked
def superpixels(image: real("c h w"), n: Count = 36) -> Tensor:
    """About ``n`` connected regions of similar colour ``(height, width)``, numbered from 0 (SLIC,
    Achanta et al. 2012).

    >>> image = torch.zeros(3, 32, 32)
    >>> image[0, :, 16:] = image[1, 16:] = 1
    >>> superpixels(image, 4)[[0, 0, -1, -1], [0, -1, 0, -1]]
    tensor([0, 1, 2, 3])
    """
    image = image.detach()
    scaled = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)
    pixels = rearrange(scaled, "c h w -> h w c").double().cpu().numpy()
    labels = slic(pixels, n_segments=n, compactness=10, sigma=1, start_label=0)
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1].reshape(labels.shape))
