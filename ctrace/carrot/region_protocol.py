"""Does an attribution to regions say what happens without them? Removal in order, agreement between
images, and the true parts.

As in `ctrace.carrot.protocol` every function returns one number per image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ctrace.aviary import PARTS, Scene, importance_table, render
from ctrace.carrot.attribution import centrality, region_contributions, remove_nodes, subset_logits
from ctrace.carrot.pipeline import Carrot
from ctrace.stats import spearman

__all__ = [
    "deletion_insertion",
    "evidence_consistency",
    "part_cells",
    "part_removal",
    "region_scores",
    "true_part_agreement",
    "true_part_change",
]


@torch.no_grad()
def region_scores(carrot: Carrot, images: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What each region is said to add to the centred target logit ``(b, m)`` by method: removal,
    and the additive split where there is one.

    Args:
        carrot: a fitted pipeline.
        images: ``(b, 3, height, width)`` in [0, 1].
        target: class explained in each ``(b,)``.
    """
    regions, graph, W = _state(carrot, images)
    target = target.to(W.device)
    pick = target[:, None, None].expand(-1, regions.m, 1)  # (b, m, 1)
    whole = (carrot.read(regions, graph) @ W).gather(1, target[:, None])  # (b, 1)
    without = remove_nodes(regions.H, graph, carrot.operator, carrot.readout, W)  # (b, m, k)
    scores = {"removal": whole - without.gather(2, pick)[..., 0]}
    if carrot.readout.is_linear:
        omega = centrality(graph, carrot.operator, carrot.readout)
        scores["split"] = region_contributions(omega, regions.H, W).gather(2, pick)[..., 0]
    return {name: score.cpu() for name, score in scores.items()}


@torch.no_grad()
def deletion_insertion(
    carrot: Carrot, images: Tensor, target: Tensor, orders: dict[str, Tensor], steps: int = 12
) -> dict[str, tuple[Tensor, Tensor]]:
    """Centred target logit while regions are taken out of the graph, or put in, in order: ``(b,
    steps)`` each, by order.

    Step j of `deletion` has lost the first ``j / steps`` of the regions; step j of `insertion` has
    only the first ``(j + 1) / steps``. A good order ends deletion early and fills insertion early.

    Args:
        orders: scores ``(b, m)`` by name; regions go by descending score.
    """
    regions, graph, W = _state(carrot, images)
    pick, m, curves = target.to(W.device)[:, None, None].expand(-1, steps, 1), regions.m, {}
    gone = torch.arange(steps, device=W.device) * m // steps  # (steps,)
    for name, score in orders.items():
        rank = score.to(W.device).argsort(1, descending=True).argsort(1)[..., None]  # (b, m, 1)
        pair = [
            subset_logits(regions.H, graph, carrot.operator, carrot.readout, W, keep.double())
            .gather(2, pick)[..., 0]
            .cpu()
            for keep in (
                rank >= gone,
                rank < torch.arange(1, steps + 1, device=W.device) * m // steps,
            )
        ]
        curves[name] = tuple(pair)
    return curves


def evidence_consistency(H: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Whether images of one class rest on like regions: the chance ``(n,)`` that an image's
    evidence is nearer to another image of its class than to one of another class.

    The evidence of an image is the mean of its tokens weighted by positive scores, compared by
    cosine about the mean over images. A score chosen *for* a class pulls its tokens towards that
    class whatever the picture: compare with labels dealt at random.

    Args:
        H: tokens ``(n, m, c)``.
        scores: of each region for the image's label ``(n, m)``.
        labels: ``(n,)``; images alone in their class have nothing to agree with and must be left
            out before.
    """
    weight = scores.clamp_min(0).to(H)
    if not bool((weight.sum(1) > 0).all()):
        raise ValueError(
            f"scores: {int((weight.sum(1) <= 0).sum())} images have no region that speaks for their label, so no evidence to compare."
        )
    evidence = torch.einsum("nm,nmc->nc", weight / weight.sum(1, keepdim=True), H)  # (n, c)
    unit = torch.nn.functional.normalize(evidence - evidence.mean(0), dim=1)
    alike, same = unit @ unit.T, labels[:, None] == labels
    same.fill_diagonal_(False)
    other = labels[:, None] != labels
    if not bool(same.any(1).all()) or not bool(other.any(1).all()):
        raise ValueError(
            "labels: every image needs another one of its class, and one of another class."
        )
    return torch.stack(
        [(row[s][:, None] > row[o]).double().mean() for row, s, o in zip(alike, same, other)]
    )


def part_cells(scene: Scene, grid_hw: tuple[int, int], size: int, least: float = 0.15) -> Tensor:
    """Which patches show each of the five parts: ``(n, 5)``, 1 where at least ``least`` of the
    patch is the part, and at its fullest patch.
    """
    masks = render(scene, size).masks
    cover = torch.stack(
        [masks.get(part, torch.zeros(size, size)) for part in PARTS]
    )  # (5, size, size)
    cover = torch.nn.functional.adaptive_avg_pool2d(cover, grid_hw).flatten(1).T  # (n, 5)
    return ((cover >= least) | (cover == cover.amax(0))).double()


@torch.no_grad()
def part_removal(
    carrot: Carrot, scenes: Sequence[Scene], target: Tensor, cells: Tensor, size: int
) -> Tensor:
    """Drop of the centred target logit when all patches of a part are taken out of the graph
    together ``(b, parts)``.

    Args:
        carrot: a fitted pipeline whose regions are its patches.
        cells: patches of each part ``(b, n, parts)``, as from `part_cells`.
    """
    images = torch.stack([render(scene, size).image for scene in scenes])
    regions, graph, W = _state(carrot, images)
    target = target.to(W.device)
    pick = target[:, None, None].expand(-1, cells.shape[2], 1)
    without = subset_logits(
        regions.H, graph, carrot.operator, carrot.readout, W, 1 - cells.to(W.device)
    )  # (b, parts, k)
    whole = (carrot.read(regions, graph) @ W).gather(1, target[:, None])
    return (whole - without.gather(2, pick)[..., 0]).cpu()


@torch.no_grad()
def true_part_change(carrot: Carrot, scenes: Sequence[Scene], target: Tensor, size: int) -> Tensor:
    """Where in the picture a true part does its work: the fall of each patch's share of the centred
    target logit when the renderer draws the bird without the part, ``(b, parts, n)``.

    Summed over patches it is the true drop of the part, exactly. A part whose own patches hold
    little of it has been read by others: its neighbours in the convolutions, or any patch by
    attention; no removal of its own patches can find that.

    Raises:
        ValueError: a readout that is no weighted sum of regions.
    """
    whole = _shares(carrot, scenes, target, size)
    return torch.stack(
        [
            whole - _shares(carrot, [scene.without(part) for scene in scenes], target, size)
            for part in PARTS
        ],
        1,
    )


def true_part_agreement(
    carrot: Carrot, scenes: Sequence[Scene], target: Tensor, size: int, seed: int = 0
) -> dict[str, Tensor]:
    """Rank correlation over the five parts, image by image ``(b,)``, of several scores with the
    truth: the same pipeline's centred logit drop when the renderer draws the bird without the part.

    Beside the removal of a part's patches from the graph: the additive split summed over them,
    their number, as many patches elsewhere, and the truth of the same scenes under new pixel noise,
    which no score can be asked to exceed.
    """
    images = torch.stack([render(scene, size).image for scene in scenes])
    grid_hw = carrot.regions_of(images[:1]).grid_hw
    cells = torch.stack([part_cells(scene, grid_hw, size) for scene in scenes])  # (b, n, 5)
    truth, again = (
        torch.from_numpy(importance_table(carrot.predict, kind_of, target.tolist(), size=size))
        for kind_of in (list(scenes), _renoised(scenes))
    )
    moved = cells[:, torch.randperm(cells.shape[1], generator=torch.Generator().manual_seed(seed))]
    scores = {
        "regions removed": part_removal(carrot, scenes, target, cells, size),
        "other places removed": part_removal(carrot, scenes, target, moved, size),
    }
    by_region = region_scores(carrot, images, target)
    if "split" in by_region:
        scores["split summed"] = (by_region["split"][:, None] @ cells)[:, 0]
    scores |= {"number of patches": cells.sum(1), "truth again": again}
    return {
        name: torch.from_numpy(spearman(score.cpu(), truth.cpu(), constant=0.0))
        for name, score in scores.items()
    }


def _shares(carrot: Carrot, scenes: Sequence[Scene], target: Tensor, size: int) -> Tensor:
    """The additive split of the centred target logit ``(b, m)``."""
    regions, graph, W = _state(carrot, torch.stack([render(scene, size).image for scene in scenes]))
    omega = centrality(graph, carrot.operator, carrot.readout)
    return (
        region_contributions(omega, regions.H, W)
        .gather(2, target.to(W.device)[:, None, None].expand(-1, regions.m, 1))[..., 0]
        .cpu()
    )


def _renoised(scenes: Sequence[Scene]) -> list[Scene]:
    return [scene.with_noise(scene.noise_seed ^ 1) for scene in scenes]


def _state(carrot: Carrot, images: Tensor):
    """Regions, graph and the weights of centred logits ``(c, k)``: minus their mean over classes,
    which no decision depends on.
    """
    regions = carrot.regions_of(images)
    graph = carrot.graph_of(regions)
    weights = carrot.head.weights.to(graph.W)
    return regions, graph, weights - weights.mean(1, keepdim=True)
