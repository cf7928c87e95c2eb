"""Is the map where the truth is? Scores per image; a map that cannot be scored is counted, and
given the score of chance.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ctrace.stats import spearman
from ctrace.trust.masking_curves import mass_inside as share_inside

__all__ = ["Scores", "mass_inside", "part_correlation", "pointing_game"]


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


def pointing_game(maps: Tensor, masks: Tensor, tolerance: int = 0) -> Scores:
    """Does the largest value lie in the mask? 1 or 0; where several are largest, the share of them
    that do (Zhang et al. 2018).

    A constant map has all its pixels largest, so its score is the area of the mask: what a random
    finger would hit.

    Args:
        maps: ``(b, height, width)``.
        masks: ``(b, height, width)``, boolean or weights, of which those over one half count.
        tolerance: pixels by which the mask is widened on all sides.

    >>> pointing_game(torch.tensor([[[0.0, 3.0], [1.0, 0.0]]]), torch.tensor([[[0, 1], [0, 0]]])).values
    tensor([1.], dtype=torch.float64)
    """
    maps, masks = _checked(maps, masks)
    masks = (masks > 0.5).double()
    if tolerance:
        masks = F.max_pool2d(masks[:, None], 2 * tolerance + 1, 1, tolerance)[:, 0]
    largest = (maps == maps.amax((1, 2), keepdim=True)).double()
    hits = (largest * masks).sum((1, 2)) / largest.sum((1, 2))
    return Scores(hits, maps.amax((1, 2)) == maps.amin((1, 2)))


def mass_inside(maps: Tensor, masks: Tensor) -> Scores:
    """Share of a map's positive values that lies in the mask. A map with none scores the area of
    the mask, as a constant one does.

    Args:
        maps: ``(b, height, width)``.
        masks: ``(b, height, width)``, boolean or weights in [0, 1].
    """
    maps, masks = _checked(maps, masks)
    positive = maps.clamp_min(0)
    failed = positive.amax((1, 2)) == 0
    positive[failed] = 1.0
    return Scores(share_inside(positive, masks), failed | (maps.amax((1, 2)) == maps.amin((1, 2))))


def part_correlation(maps: Tensor, masks: Tensor, importance) -> Scores:
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
    masks = torch.as_tensor(masks)
    maps, _ = _checked(maps, masks[:, 0] if masks.ndim == 4 else masks)
    truth = np.asarray(importance, float)
    if masks.ndim != 4 or truth.shape != tuple(masks.shape[:2]) or truth.shape[1] < 3:
        raise ValueError(
            f"expected masks (b, p, height, width) and importance (b, p) with at least 3 parts, received {tuple(masks.shape)}, {truth.shape}."
        )
    sums = torch.einsum("bhw,bphw->bp", maps, masks.to(maps)).cpu().numpy()
    values = spearman(sums, truth)
    values[(maps.amax((1, 2)) == maps.amin((1, 2))).cpu().numpy()] = np.nan
    failed = np.isnan(values)
    return Scores(torch.from_numpy(np.where(failed, 0.0, values)), torch.from_numpy(failed))


def _checked(maps, masks) -> tuple[Tensor, Tensor]:
    maps = torch.as_tensor(maps).detach().double().clone()
    masks = torch.as_tensor(masks).detach().double().to(maps.device)
    if maps.ndim != 3 or maps.shape != masks.shape:
        raise ValueError(
            f"expected maps and masks of one shape (b, height, width), received {tuple(maps.shape)} and {tuple(masks.shape)}."
        )
    if not bool(torch.isfinite(maps).all()):
        raise ValueError(
            "maps: NaN or infinity. A map that could not be made is scored as a constant one, and counted: pass zeros."
        )
    return maps, masks
