"""ROAD: pixels are removed by replacing them with what their surroundings say (Rong et al.
2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from ctrace.check import check_number, prepare_images
from ctrace.cut.krylov import conjugate_gradients
from ctrace.trust.hide import ORDERS, Curve, answer_curve


@dataclass(frozen=True, slots=True, eq=False)
class Road:
    """Curves while a share of the pixels is imputed from the others: the most relevant first, and
    the least relevant first.
    """

    morf: Curve
    lerf: Curve

    @property
    def score(self) -> Tensor:
        """Half the mean of lerf minus morf ``(b,)``, in [-0.5, 0.5]: 0 for a map that knows
        nothing.
        """
        return (self.lerf.values - self.morf.values).mean(1) / 2


def road(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target,
    shares: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    noise: float = 0.01,
    seed: int = 0,
    progress: bool = False,
) -> Road:
    """Remove pixels by replacing them with what their surroundings say, so that no shape of a mask
    is left to see (Rong et al. 2022).

    Args:
        model, images, maps, target, seed, progress: as in `masking_curve`.
        shares: of removed pixels, each in (0, 1): with none left there is nothing to impute from.
        noise: standard deviation added to imputed pixels, in units of each image's own.

    Raises:
        ValueError: bad input, a share outside (0, 1), a model in training mode.
    """
    images = prepare_images(model, images)
    for share in shares:
        check_number("shares (all removed leaves nothing to impute from)", share, above=0, below=1)
    generator = torch.Generator().manual_seed(seed)
    speckle = torch.randn(images.shape[1:], generator=generator).to(images)
    speckle = noise * images.std((1, 2, 3), keepdim=True) * speckle

    def change(rows, hidden):
        return impute(images[rows], hidden) + speckle[rows] * hidden[:, None]

    return Road(
        *(
            answer_curve(
                model, images, maps, target, order, shares, change, "imputed", seed, progress
            )
            for order in ORDERS
        )
    )


# direct neighbours count twice the diagonal ones
NEAR = torch.tensor([[1, 2, 1], [2, 0, 2], [1, 2, 1]])[None, None] / 12


def impute(
    images: Tensor, hidden: Tensor, tolerance: float = 1e-5, max_steps: int = 2000
) -> Tensor:
    """Every hidden pixel becomes the weighted mean of its eight neighbours, hidden ones included
    (Rong et al. 2022, section 4).

    The mean over those neighbours that exist, times their total weight, is a symmetric positive
    definite system, solved for all images and colours at once.

    Args:
        images: ``(b, c, height, width)``.
        hidden: ``(b, height, width)`` boolean; at least one pixel of each image is not.
        tolerance, max_steps: see `ctrace.cut.krylov.conjugate_gradients`.

    Raises:
        ValueError: an image without a known pixel.
        ArithmeticError: no convergence within ``max_steps``.
    """
    if bool(hidden.flatten(1).all(1).any()):
        raise ValueError("impute: an image is hidden completely; nothing is left to impute from.")
    b, c, h, _ = images.shape
    mask = repeat(hidden, "b h w -> (b c) 1 h w", c=c)
    known = torch.where(mask, 0, rearrange(images, "b c h w -> (b c) 1 h w"))
    spread = partial(F.conv2d, weight=NEAR.to(images), padding=1)
    degree = spread(torch.ones_like(known[:1]))

    def column(x):
        return rearrange(torch.where(mask, x, 0), "n 1 h w -> (h w) n")

    def product(v):
        x = rearrange(v, "(h w) n -> n 1 h w", h=h)
        return column(degree * x - spread(x))

    found = conjugate_gradients(product, column(spread(known)), tolerance, max_steps=max_steps)
    found = rearrange(found, "(h w) (b c) -> b c h w", h=h, b=b)
    return torch.where(hidden[:, None], found, images)
