"""Does an attribution to training images say what happens without them? Measured by fitting again,
with intervals over test images.

Every function returns one number per test image, never a mean alone: `ctrace.stats.bootstrap` of
these, or of the difference of two lists of these on the same images, is the interval.
"""

import torch
from torch import Tensor

from ctrace.carrot.head import RidgeHead
from ctrace.stats import spearman

__all__ = ["drop_most_helpful", "knn_logits", "linear_datamodeling_scores", "training_scores"]


def knn_logits(G: Tensor, y: Tensor, g: Tensor, k: int, num_classes: int) -> Tensor:
    """Votes ``(m, num_classes)`` of the ``k`` training images with the largest cosine, each
    counting its cosine, about the training mean.
    """
    if not 1 <= k <= len(G):
        raise ValueError(f"k: expected 1 to {len(G)} neighbours, received {k}.")
    value, who = _cosine(G, g).topk(k, dim=1)  # (m, k)
    return torch.zeros(len(g), num_classes, dtype=torch.double).scatter_add(1, y[who], 1 + value)


def training_scores(
    head: RidgeHead, G: Tensor, y: Tensor, g: Tensor, target: Tensor, seed: int = 0
) -> dict[str, Tensor]:
    """What each training image is said to add to the target logit of each test image, ``(m, n)`` by
    method.

    Leave-one-out with its sign turned (what the presence of an image adds), both exact
    decompositions, neighbourhood (the cosine, negative for images of other classes), and chance.
    """
    alike = _cosine(G, g)  # (m, n)
    return {
        "leave-one-out": -head.leave_one_out(g, target),
        "weight view": head.training_contributions(g, "weight", target),
        "dual view": head.training_contributions(g, "dual", target),
        "neighbours": torch.where(y[None] == target[:, None], alike, -alike),
        "random": torch.randn(
            alike.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double
        ),
    }


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
    ``(m,)`` rank correlations by method.

    Every subset is a real fit at the same penalty. For each test image: Spearman's correlation,
    over subsets, of the sum of the scores of the images kept with the logit that came out.

    Args:
        scores: ``(m, n)`` by method, as from `training_scores`.
        head: fitted on all of ``G (n, c)`` and ``y (n,)``.
        g: test embeddings ``(m, c)``.
        target: class explained of each ``(m,)``.
        removed: share of the training images that is left out of a subset.
        subsets: number of fits.
    """
    n, generator = len(G), torch.Generator().manual_seed(seed)
    if not 0 < round(removed * n) < n:
        raise ValueError(
            f"removed: expected a share that takes 1 to {n - 1} of the {n} images, received {removed}."
        )
    kept = torch.stack(
        [torch.randperm(n, generator=generator)[round(removed * n) :] for _ in range(subsets)]
    )  # (s, kept)
    again = [
        RidgeHead(head.penalty, "none", head.intercept)
        .fit(G[rows], y[rows], head.bias.numel())
        .predict(g)
        for rows in kept
    ]
    truth = torch.stack([logits.gather(1, target[:, None])[:, 0] for logits in again], 1)  # (m, s)
    inside = torch.zeros(subsets, n, dtype=torch.double).scatter(1, kept, 1)  # (s, n)
    return {
        name: torch.from_numpy(spearman(score.double() @ inside.T, truth, constant=0.0))
        for name, score in scores.items()
    }


def drop_most_helpful(
    scores: dict[str, Tensor], head: RidgeHead, g: Tensor, target: Tensor, size: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What happens to each test image without the ``size`` training images that a method calls most
    helpful to it.

    The effect is exact for the group (`RidgeHead.leave_out`), whatever the method.

    Returns:
        By method: drop of the target logit ``(m,)``, and whether the target lost its lead over the
            other classes ``(m,)``.
    """
    drops, flips = {}, {}
    before = head.predict(g)
    for name, score in scores.items():
        groups = score.topk(size, dim=1).indices  # (m, size)
        after = before + torch.stack([head.leave_out(one, group) for one, group in zip(g, groups)])
        drops[name] = (before - after).gather(1, target[:, None])[:, 0]
        flips[name] = (_margin(before, target) > 0) & (_margin(after, target) <= 0)
    return drops, flips


def _cosine(G: Tensor, g: Tensor) -> Tensor:
    """Cosines about the training mean ``(m, n)``."""
    mean = G.double().mean(0)
    return (
        torch.nn.functional.normalize(g.double() - mean, dim=1)
        @ torch.nn.functional.normalize(G.double() - mean, dim=1).T
    )


def _margin(logits: Tensor, target: Tensor) -> Tensor:
    own = logits.gather(1, target[:, None])  # (m, 1)
    return (own - logits.scatter(1, target[:, None], -torch.inf).amax(1, keepdim=True))[:, 0]
