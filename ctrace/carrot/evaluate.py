"""Does an attribution to training images say what happens without them? Measured by fitting again.

Every function returns one number per test image, never a mean alone: `ctrace.stats.bootstrap` of
these, or of the difference of two lists of these on the same images, is the interval.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrace.carrot.head import RidgeHead
from ctrace.stats import spearman


def training_scores(
    head: RidgeHead, G: Tensor, y: Tensor, g: Tensor, target: Tensor, seed: int = 0
) -> dict[str, Tensor]:
    """What each training image is said to add to the target logit of each test image, ``(m, n)`` by
    method.

    Leave-one-out with its sign turned (what the presence of an image adds), both exact
    decompositions, neighbourhood (the cosine, negative for images of other classes), and chance.
    """
    alike = cosine_to_training(G, g)  # (m, n)
    generator = torch.Generator().manual_seed(seed)
    return {
        "leave-one-out": -head.leave_one_out(g, target),
        "weight view": head.training_contributions(g, "weight", target),
        "dual view": head.training_contributions(g, "dual", target),
        "neighbours": torch.where(y[None] == target[:, None], alike, -alike),
        "random": torch.randn(alike.shape, generator=generator, dtype=torch.double),
    }


def cosine_to_training(G: Tensor, g: Tensor) -> Tensor:
    """Cosines ``(m, n)`` of ``g (m, c)`` with the training embeddings ``G (n, c)``, about their
    mean.
    """
    mean = G.double().mean(0)
    return F.normalize(g.double() - mean, dim=1) @ F.normalize(G.double() - mean, dim=1).T


def linear_datamodeling_scores(
    scores: dict[str, Tensor],
    head: RidgeHead,
    G: Tensor,
    y: Tensor,
    g: Tensor,
    target: Tensor,
    removed: float,
    subsets: int = 100,
    seed: int = 0,
) -> dict[str, Tensor]:
    """How well sums of scores foretell logits of heads fitted again on subsets (Park et al. 2023):
    ``(m,)`` rank correlations by method, 0 where a sum never changes.

    Every subset is a real fit at the same penalty. For each test image: Spearman's correlation,
    over subsets, of the sum of the scores of the images kept with the logit that came out.

    Args:
        scores: ``(m, n)`` by method, as from `training_scores`.
        head: fitted on all of ``G (n, c)`` and ``y (n,)``.
        g: test embeddings ``(m, c)``.
        target: class explained of each ``(m,)``.
        removed: share of the training images that is left out of a subset.
        subsets: number of fits.

    Raises:
        ValueError: a share that takes no image, or all.
    """
    n, gone, generator = len(G), round(removed * len(G)), torch.Generator().manual_seed(seed)
    if not 0 < gone < n:
        raise ValueError(
            f"removed: expected a share that takes 1 to {n - 1} of the {n} images, not {removed}."
        )
    kept = torch.stack([torch.randperm(n, generator=generator)[gone:] for _ in range(subsets)])
    truth = torch.empty(len(g), subsets, dtype=torch.double)
    for s, rows in enumerate(kept):
        again = RidgeHead(head.penalty, "none", head.intercept)
        logits = again.fit(G[rows], y[rows], head.bias.numel()).predict(g)
        truth[:, s] = logits.gather(1, target[:, None])[:, 0]
    inside = torch.zeros(subsets, n, dtype=torch.double).scatter(1, kept, 1)  # (s, n)
    return {
        name: torch.from_numpy(spearman(score.double() @ inside.T, truth, constant=0))
        for name, score in scores.items()
    }
