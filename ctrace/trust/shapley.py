"""Shapley values of regions of an image: what each adds to a logit, averaged over all orders in
which the regions could appear.

With few regions all coalitions are asked, and the values are exact. With many, Kernel SHAP
(Lundberg and Lee 2017) asks a sample of them; captum does this. Either way the values sum to f(all)
- f(none), the logit of the image minus that of the baseline.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from skimage.segmentation import slic
from torch import Tensor, nn

from ctrace.check import check_ready, prepare_images
from ctrace.stats import exact_shapley
from ctrace.trust.fills import filled

__all__ = ["EXACT_UP_TO", "Shapley", "part_regions", "shap", "superpixels"]

EXACT_UP_TO = 10  # regions; 1,024 coalitions
AT_ONCE = 128  # images per forward pass


@dataclass(frozen=True, slots=True, eq=False)
class Shapley:
    """What each region of one image adds to the centred logit of a class.

    Attributes:
        values: ``(r,)`` float64; they sum to ``all - none``.
        regions: number of the region of each pixel ``(height, width)``.
        all, none: the logit of the image, and of the baseline.
        passes: forward passes this took.
    """

    values: Tensor
    regions: Tensor
    all: float
    none: float
    passes: int

    @property
    def map(self) -> Tensor:
        """Each region's value spread evenly over its pixels ``(height, width)``: sums to ``all -
        none``.
        """
        size = torch.bincount(self.regions.flatten(), minlength=len(self.values))
        return (self.values / size)[self.regions]


@torch.no_grad()
def shap(
    model: nn.Module,
    image: Tensor,
    target: int,
    regions: Tensor,
    baseline: str | Tensor = "blur",
    samples: int = 512,
    seed: int = 0,
) -> Shapley:
    """Shapley values of the regions of one image, for the centred logit of a class.

    Args:
        model: a classifier in eval mode.
        image: ``(3, height, width)``, prepared as for training.
        target: class.
        regions: a number from 0 for each pixel ``(height, width)``, see `superpixels` and
            `part_regions`.
        baseline: what an absent region shows, see `ctrace.trust.filled`; for the parts of a bird,
            the bird drawn without them.
        samples: coalitions that Kernel SHAP asks, beyond `EXACT_UP_TO` regions.
        seed: of these; the global random state is left as it was.

    Raises:
        ValueError: shapes or numbers that do not fit, fewer samples than the regression has
            unknowns.
    """
    check_ready(model)
    x = prepare_images(model, image)
    start = filled(x, baseline, seed)
    _check(x, regions, samples)
    regions, r = regions.to(x.device), int(regions.max()) + 1

    def value(present: Tensor) -> Tensor:
        """Centred logit of each coalition ``(m,)``, from which regions it has ``(m, r)``."""
        shown = (
            torch.where(chunk[:, regions][:, None], x, start)
            for chunk in present.to(x.device).split(AT_ONCE)
        )
        z = torch.cat([model(images).double() for images in shown])
        return z[:, target] - z.mean(1)

    none, whole = value(torch.tensor([[False], [True]]).expand(2, r)).tolist()
    if r <= EXACT_UP_TO:
        number = torch.arange(2**r)
        asked = value((number[:, None] >> torch.arange(r)) % 2 == 1)  # (2^r,)
        values = torch.from_numpy(exact_shapley(asked.cpu()))
        return Shapley(values, regions.cpu(), whole, none, 2**r)
    return Shapley(_kernel_shap(value, r, samples, seed), regions.cpu(), whole, none, samples)


def _kernel_shap(value: Callable[[Tensor], Tensor], r: int, samples: int, seed: int) -> Tensor:
    from captum.attr import KernelShap  # the import takes seconds

    # captum draws from the global generators of torch and numpy
    state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            explained = KernelShap(lambda present: value(present > 0.5))
            found = explained.attribute(
                torch.ones(1, r, dtype=torch.float64),
                n_samples=samples,
                perturbations_per_eval=AT_ONCE,
            )
    finally:
        np.random.set_state(state)
    return found[0].double()


def superpixels(image: Tensor, n: int = 36) -> Tensor:
    """About ``n`` connected regions of similar colour ``(height, width)``, numbered from 0 (SLIC,
    Achanta et al. 2012).

    >>> image = torch.zeros(3, 32, 32)
    >>> image[0, :, 16:] = image[1, 16:] = 1
    >>> superpixels(image, 4)[[0, 0, -1, -1], [0, -1, 0, -1]]
    tensor([0, 1, 2, 3])
    """
    if image.ndim != 3 or not bool(torch.isfinite(image).all()):
        raise ValueError(
            f"superpixels: expected one finite image (3, height, width), received {tuple(image.shape)}."
        )
    scaled = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)
    labels = slic(
        scaled.double().permute(1, 2, 0).cpu().numpy(),
        n_segments=n,
        compactness=10,
        sigma=1,
        start_label=0,
    )
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1].reshape(labels.shape))


def part_regions(masks: Tensor) -> Tensor:
    """Region 0 shows no part, region j the j-th mask, whichever part covers most of a pixel
    ``(height, width)``.

    Args:
        masks: ``(p, height, width)``, the share of each pixel that shows the part.
    """
    return torch.cat(
        [torch.where(masks.amax(0, keepdim=True) > 0, -1.0, 1.0).to(masks), masks]
    ).argmax(0)


def _check(x: Tensor, regions: Tensor, samples: int) -> None:
    if len(x) != 1 or regions.shape != x.shape[2:] or regions.is_floating_point():
        raise ValueError(
            f"shap: expected one image and a whole number for each of its pixels, received {tuple(x.shape)} and {regions.dtype} {tuple(regions.shape)}."
        )
    count = torch.bincount(regions.flatten().cpu()) if int(regions.min()) >= 0 else torch.zeros(1)
    if bool((count == 0).any()):
        raise ValueError(
            "shap: regions must be numbered from 0 without gaps; a region without pixels has no value."
        )
    if len(count) > EXACT_UP_TO and samples < 2 * len(count):
        raise ValueError(
            f"samples: {samples} coalitions cannot tell {len(count)} regions apart. Take at least {2 * len(count)}."
        )
