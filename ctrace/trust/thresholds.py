"""The published rule, kept for comparison: regions by thresholds on the values, noisy copies, no
null.

The two regions may differ in area by any factor, and the area is a property of how the map is
scaled: the square of a map orders all pixels as the map does, and can turn the verdict around. The
copies differ by their noise alone, so that their number is no sample size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctrace.check import check_ready, prepare_images
from ctrace.trust.falsify import angle_between
from ctrace.trust.fills import filled, hide

__all__ = ["ThresholdVerdict", "falsify_by_threshold"]


@dataclass(frozen=True, slots=True)
class ThresholdVerdict:
    """What the published rule says of one map of one image.

    Attributes:
        verdict: ``"falsified"`` when hiding the low region moves the embedding at least as far on
            average, else ``"survived"``; ``"inconclusive"`` when one of the regions is empty.
        d_high, d_low: mean angle over the copies; NaN where inconclusive.
        area_high, area_low: shares of the image. Where they differ, they can decide alone.
        pair_rate: share of all pairs of copies in which the low region moved it at least as far.
    """

    verdict: str
    d_high: float
    d_low: float
    area_high: float
    area_low: float
    pair_rate: float

    @property
    def margin(self) -> float:
        """How much further the top regions move the representation than the bottom ones."""
        return self.d_high - self.d_low


@torch.no_grad()
def falsify_by_threshold(
    attribution,
    images: Tensor,
    model: nn.Module,
    high: float = 0.7,
    low: float = 0.3,
    copies: int = 100,
    noise: float = 0.02,
    fill="zero",
    seed: int = 0,
) -> ThresholdVerdict | list[ThresholdVerdict]:
    """The verdict from the pixels above ``high`` and below ``low`` of the map, scaled to [0, 1] by
    its minimum and maximum.

    Args:
        attribution, images, model, fill: as in `falsify`.
        high, low: thresholds.
        copies: of each region, which differ by ``noise`` (standard deviation, in the units of the
            prepared image) on all pixels.

    Raises:
        ValueError: thresholds out of order, shapes that do not match.
    """
    check_ready(model)
    images = prepare_images(model, images)
    maps = torch.as_tensor(attribution, device=images.device)
    single, maps = maps.ndim == 2, maps if maps.ndim == 3 else maps[None]
    if not 0 <= low < high <= 1 or maps.shape != (len(images), *images.shape[2:]):
        raise ValueError(
            f"expected 0 <= low < high <= 1 and one map per image, received {low}, {high}, {tuple(maps.shape)}."
        )
    speckle = noise * torch.randn(
        copies, *images.shape[1:], generator=torch.Generator().manual_seed(seed)
    ).to(images)
    verdicts = [
        _one(*row, model, high, low, speckle)
        for row in zip(maps, images, filled(images, fill, seed))
    ]
    return verdicts[0] if single else verdicts


def _one(
    scores: Tensor,
    image: Tensor,
    fill: Tensor,
    model: nn.Module,
    high: float,
    low: float,
    speckle: Tensor,
) -> ThresholdVerdict:
    span = scores.max() - scores.min()
    scaled = (scores - scores.min()) / span if span > 0 else torch.full_like(scores, 0.5)
    regions = torch.stack([scaled > high, scaled < low])
    areas = regions.double().mean((1, 2)).tolist()
    if 0 in areas:
        return ThresholdVerdict("inconclusive", torch.nan, torch.nan, *areas, torch.nan)
    whole = model(image[None]).double()
    d_high, d_low = (
        angle_between(whole, model(hide(image, region[None], fill) + speckle).double())
        for region in regions
    )
    verdict = "falsified" if d_high.mean() <= d_low.mean() else "survived"
    pairs = (d_high[:, None] <= d_low).double().mean()
    return ThresholdVerdict(
        verdict, float(d_high.mean()), float(d_low.mean()), *areas, float(pairs)
    )
