"""The protocol: each score equal to the slow way of finding it, and able to tell a right
attribution from a wrong one.
"""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.neighbors import KNeighborsClassifier
from timm.models.vision_transformer import VisionTransformer

from ctrace.aviary import PARTS, Aviary, importance_table, render
from ctrace.carrot.data import aviary_splits
from ctrace.carrot.graph import RegionGraph
from ctrace.carrot.head import RidgeHead
from ctrace.carrot.pipeline import Carrot
from ctrace.carrot.protocol import (
    drop_most_helpful,
    knn_logits,
    linear_datamodeling_scores,
    training_scores,
)
from ctrace.carrot.region_protocol import (
    deletion_insertion,
    evidence_consistency,
    part_cells,
    part_removal,
    region_scores,
    true_part_agreement,
    true_part_change,
)
from ctrace.world.tokens import TimmViTPatchBackbone

SIZE = 32


@pytest.fixture(scope="module")
def fitted():
    generator = torch.Generator().manual_seed(0)
    G, y = torch.randn(60, 8, generator=generator), torch.arange(60) % 4
    g, target = torch.randn(7, 8, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    return RidgeHead(2.0, intercept=True).fit(G, y), G, y, g, target


@pytest.fixture(scope="module", params=[True, False], ids=["intercept", "no intercept"])
def carrot(request):
    torch.manual_seed(0)
    backbone = TimmViTPatchBackbone(
        VisionTransformer(
            img_size=SIZE, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=0
        ).eval()
    )
    splits = aviary_splits(train=42, test=1, size=SIZE)
    return Carrot(
        backbone, lam=1e-4, intercept=request.param, preprocess=lambda images: 4 * images - 2
    ).fit(splits["train"], progress=False)


@pytest.fixture(scope="module")
def birds():
    data = Aviary("test", 6, SIZE)
    return (
        [data.scene(i) for i in range(6)],
        torch.stack([data[i][0] for i in range(6)]),
        torch.arange(6),
    )


def centred(carrot, regions, graph):
    logits = carrot.head.predict(carrot.read(regions, graph))
    return logits - carrot.head.bias - (logits - carrot.head.bias).mean(1, keepdim=True)


def literal_without(carrot, images, gone):
    """Centred logits of one image whose graph lacks some nodes."""
    regions = carrot.regions_of(images)
    keep = [i for i in range(regions.m) if i not in gone]
    graph = RegionGraph.from_weights(carrot.graph_of(regions).W[0][keep][:, keep])
    H = regions.H[:, keep].double()
    logits = carrot.readout(carrot.operator(graph, H), H, graph) @ carrot.head.weights
    return (logits - logits.mean(1, keepdim=True))[0]


def test_neighbours_vote_as_in_sklearn(fitted):
    _, G, y, g, _ = fitted
    unit = lambda x: torch.nn.functional.normalize(x.double() - G.double().mean(0), dim=1).numpy()
    peer = KNeighborsClassifier(1).fit(unit(G), y.numpy()).predict(unit(g))
    assert knn_logits(G, y, g, 1, 4).argmax(1).tolist() == peer.tolist()
    with pytest.raises(ValueError, match="expected 1 to 60 neighbours"):
        knn_logits(G, y, g, 61, 4)


def test_the_datamodel_score_is_the_correlation_with_fits_one_by_one(fitted):
    head, G, y, g, target = fitted
    scores = training_scores(head, G, y, g, target)
    got = linear_datamodeling_scores(scores, head, G, y, g, target, removed=0.5, subsets=12, seed=3)
    generator = torch.Generator().manual_seed(3)
    sums, truth = [], []
    for _ in range(12):
        kept = torch.randperm(60, generator=generator)[30:]
        again = RidgeHead(2.0, intercept=True).fit(G[kept], y[kept]).predict(g)
        truth.append([float(again[j, target[j]]) for j in range(7)])
        sums.append([float(scores["dual view"][j, kept].sum()) for j in range(7)])
    expected = [spearmanr(np.array(sums)[:, j], np.array(truth)[:, j]).statistic for j in range(7)]
    np.testing.assert_allclose(got["dual view"], expected, atol=1e-12)


def test_leave_one_out_foretells_refits_and_the_decompositions_and_chance_do_not(fitted):
    head, G, y, g, target = fitted
    scores = training_scores(head, G, y, g, target)
    means = {
        name: float(v.mean())
        for name, v in linear_datamodeling_scores(scores, head, G, y, g, target, 0.1, 60).items()
    }
    assert (
        means["leave-one-out"]
        > 0.9
        > max(means["weight view"], means["dual view"], means["neighbours"])
        and abs(means["random"]) < 0.3
    )


def test_every_score_means_what_presence_adds(fitted):
    head, G, y, g, target = fitted
    scores = training_scores(head, G, y, g, target)
    rest = torch.arange(60) != 5
    without = RidgeHead(2.0, intercept=True).fit(G[rest], y[rest]).predict(g)
    torch.testing.assert_close(
        scores["leave-one-out"][:, 5], (head.predict(g) - without).gather(1, target[:, None])[:, 0]
    )
    for view in ("weight view", "dual view"):
        torch.testing.assert_close(
            scores[view].sum(1), head.predict(g).gather(1, target[:, None])[:, 0]
        )
    assert bool(
        (
            scores["neighbours"][:, y == 0][target == 0]
            * scores["neighbours"][:, y == 0][target == 0].sign()
            >= 0
        ).all()
    )


def test_dropping_the_most_helpful_images_hurts_as_a_fit_without_them_does(fitted):
    head, G, y, g, target = fitted
    scores = training_scores(head, G, y, g, target)
    drops, flips = drop_most_helpful(scores, head, g, target, size=6)
    before = head.predict(g)
    margin = lambda z, c: z[c] - max(z[other] for other in range(4) if other != c)
    for j, c in enumerate(target.tolist()):
        rest = torch.ones(60, dtype=torch.bool)
        rest[scores["leave-one-out"][j].topk(6).indices] = False
        after = RidgeHead(2.0, intercept=True).fit(G[rest], y[rest]).predict(g)[j]
        torch.testing.assert_close(drops["leave-one-out"][j], before[j, c] - after[c])
        assert bool(flips["leave-one-out"][j]) == bool(margin(before[j], c) > 0 >= margin(after, c))
    assert flips["leave-one-out"].any() and not flips["leave-one-out"].all()
    assert (
        drops["leave-one-out"].mean() > drops["dual view"].mean()
        and drops["leave-one-out"].mean() > 3 * drops["random"].mean().abs()
    )


def test_a_share_that_removes_nothing_is_refused(fitted):
    head, G, y, g, target = fitted
    with pytest.raises(ValueError, match="takes 1 to 59 of the 60 images, received 0.001"):
        linear_datamodeling_scores({}, head, G, y, g, target, 0.001)


def test_region_scores_are_the_drop_without_a_region_and_a_split_of_the_logit(carrot, birds):
    _, images, target = birds
    scores = region_scores(carrot, images, target)
    regions = carrot.regions_of(images)
    whole = centred(carrot, regions, carrot.graph_of(regions)).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(scores["split"].sum(1), whole, rtol=0, atol=1e-9)
    for i in (0, 9):
        expected = whole[3] - literal_without(carrot, images[3:4], {i})[3]
        torch.testing.assert_close(scores["removal"][3, i], expected, rtol=0, atol=1e-8)


def test_deletion_and_insertion_follow_the_order_and_start_and_end_whole(carrot, birds):
    _, images, target = birds
    order = torch.randn(6, 16, generator=torch.Generator().manual_seed(2))
    deletion, insertion = deletion_insertion(carrot, images, target, {"some": order}, steps=4)[
        "some"
    ]
    regions = carrot.regions_of(images)
    whole = centred(carrot, regions, carrot.graph_of(regions)).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(deletion[:, 0], whole)
    torch.testing.assert_close(insertion[:, -1], whole)
    ranked = order[1].argsort(descending=True).tolist()
    assert (
        abs(float(deletion[1, 2] - literal_without(carrot, images[1:2], set(ranked[:8]))[1])) < 1e-8
    )
    assert (
        abs(float(insertion[1, 1] - literal_without(carrot, images[1:2], set(ranked[8:]))[1]))
        < 1e-8
    )


def test_removing_what_speaks_for_the_class_first_beats_chance(carrot, birds):
    _, images, target = birds
    scores = region_scores(carrot, images, target)
    orders = {
        "removal": scores["removal"],
        "random": torch.rand(6, 16, generator=torch.Generator().manual_seed(0)),
    }
    curves = deletion_insertion(carrot, images, target, orders, steps=8)
    assert (
        curves["removal"][0].mean() < curves["random"][0].mean()
        and curves["removal"][1].mean() > curves["random"][1].mean()
    )


def test_consistency_is_one_where_classes_rest_on_like_regions_and_a_half_by_chance():
    generator = torch.Generator().manual_seed(0)
    labels, H = torch.arange(24) % 3, torch.randn(24, 10, 6, generator=generator)
    scores = torch.rand(24, 10, generator=generator)
    by_chance = evidence_consistency(H, scores, labels).mean()
    H[:, 0] = 9 * torch.eye(3, 6)[labels]
    scores[:, 0] += 3
    assert evidence_consistency(H, scores, labels).mean() == 1 and abs(float(by_chance) - 0.5) < 0.1
    with pytest.raises(ValueError, match="24 images have no region that speaks"):
        evidence_consistency(H, -scores, labels)
    with pytest.raises(ValueError, match="another one of its class"):
        evidence_consistency(H[:4], scores[:4], labels[:4])


def test_part_cells_hold_the_part_and_every_part_has_one(birds):
    scenes, _, _ = birds
    for scene in scenes:
        cells = part_cells(scene, (4, 4), SIZE)
        assert cells.shape == (16, 5) and bool((cells.sum(0) >= 1).all())
        for j, part in enumerate(PARTS):
            cover = (
                render(scene, SIZE)
                .masks[part]
                .unflatten(0, (4, 8))
                .unflatten(2, (4, 8))
                .mean((1, 3))
                .flatten()
            )
            assert bool((cover[cells[:, j] == 1] >= min(0.15, float(cover.max()))).all()) and bool(
                (cover[cells[:, j] == 0] < 0.15).all()
            )


def test_part_removal_takes_all_patches_of_a_part_at_once(carrot, birds):
    scenes, images, target = birds
    cells = torch.stack([part_cells(scene, (4, 4), SIZE) for scene in scenes])
    drop = part_removal(carrot, scenes, target, cells, SIZE)
    regions = carrot.regions_of(images[2:3])
    whole = centred(carrot, regions, carrot.graph_of(regions))[0, 2]
    gone = set(cells[2, :, 1].nonzero()[:, 0].tolist())
    assert abs(float(drop[2, 1] - (whole - literal_without(carrot, images[2:3], gone)[2]))) < 1e-8


def test_the_true_change_of_all_patches_is_the_true_drop_of_the_part(carrot, birds):
    scenes, _, target = birds
    change = true_part_change(carrot, scenes, target, SIZE)
    truth = importance_table(carrot.predict, scenes, target.tolist(), size=SIZE)
    assert change.shape == (6, 5, 16)
    np.testing.assert_allclose(change.sum(2), truth, atol=1e-5)  # the truth is read in float32


def test_agreement_with_the_true_parts_is_one_for_the_truth_and_names_its_controls(carrot, birds):
    scenes, _, target = birds
    agreement = true_part_agreement(carrot, scenes, target, SIZE)
    assert set(agreement) == {
        "regions removed",
        "other places removed",
        "split summed",
        "number of patches",
        "truth again",
    }
    assert all(
        values.shape == (6,) and bool((values.abs() <= 1 + 1e-12).all())
        for values in agreement.values()
    )
    assert agreement["truth again"].mean() > 0.8
