"""Networks with hand-set weights: what is relevant is known, so every method must find it to the
last digit.
"""

import pytest
import torch

from benchmarks.planted import GROUPS, channel_groups, paint, planted_images, planted_network
from ctrace.aviary import PARTS, importance_table, render, sample_scene
from ctrace.carrot.attribution import centrality, region_contributions
from ctrace.carrot.diffusion import DiffusionOperator
from ctrace.carrot.graph import RegionGraphBuilder, RegionSet
from ctrace.cut.affinity import bandwidth
from ctrace.cut.tracing import trace_channels
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.gradcam import GradCAM
from ctrace.look.parchgrad import ParchGrad
from ctrace.world.tokens import PatchOutput, patch_centers

SCENES = [sample_scene(i) for i in range(12)]


@pytest.fixture(scope="module")
def net():
    return planted_network(copies=4)


def masks(scene):
    """Pixels that show anything of a part ``(p, height, width)``, boolean."""
    return torch.stack([render(paint(scene)).masks[part] > 0 for part in PARTS])


def removal_drops(net, target):
    """What the logit loses when the renderer takes each part away ``(n, p)``."""
    with torch.no_grad():
        whole = net(planted_images(SCENES))[:, target]
        less = [net(planted_images([s.without(part) for s in SCENES]))[:, target] for part in PARTS]
    return whole[:, None] - torch.stack(less, 1)


def test_a_detector_sees_its_own_part_and_nothing_else():
    single = planted_network()
    with torch.no_grad():
        acts = single[:2](planted_images(SCENES))[:, : len(PARTS)]  # (n, p, height, width)
        for j, part in enumerate(PARTS):
            without = single[:2](planted_images([s.without(part) for s in SCENES]))[:, : len(PARTS)]
            others = [k for k in range(len(PARTS)) if k != j]
            assert float(without[:, j].max()) == 0
            assert torch.equal(without[:, others], acts[:, others])
    for i, scene in enumerate(SCENES):
        assert float(acts[i][~masks(scene)].max()) == 0
    assert bool((acts.amax((2, 3)) > 0).all())  # no detector is asleep


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
@pytest.mark.parametrize("target", [0, 3])
def test_part_mass_of_the_map_equals_the_true_removal_drop(net, method, target):
    explained = GradCAM(net, "relu", method=method).explain(planted_images(SCENES), target=target)
    mass = torch.stack(
        [(explained.raw[i] * masks(scene)).sum((1, 2)) for i, scene in enumerate(SCENES)]
    )  # (n, p)
    drops = removal_drops(net, target)
    assert float((mass - drops).abs().max()) <= 1e-13 * float(drops.abs().max())
    assert float((explained.raw.sum((1, 2)) - explained.score).abs().max()) <= 1e-13
    assert bool((drops[:, target] > 0).all()) and bool(
        (drops[:, [k for k in range(5) if k != target]] < 0).all()
    )


def test_removal_and_shapley_importance_are_the_planted_drops(net):
    single, painted = planted_network().float(), [paint(s) for s in SCENES[:4]]
    for kind in ("removal", "shapley"):
        table = importance_table(single, painted, [1] * len(painted), kind, size=96)
        assert float((torch.from_numpy(table) - removal_drops(net, 1)[:4]).abs().max()) <= 1e-5


@pytest.mark.parametrize("objective", ["association", "cut", "score"])
def test_channel_segments_are_the_parts_and_their_channels_the_planted_ones(net, objective):
    score = pytest.importorskip("sklearn.metrics").adjusted_rand_score
    for scene in SCENES[:2]:
        pure = torch.stack(
            [render(paint(scene)).masks[g] > 0.999 for g in GROUPS]
        )  # (g, height, width)
        with torch.no_grad():
            acts = net[:2](planted_images([scene]))[0]  # (c, height, width)
        group, row, column = (pure & (acts[::4] > 0)).nonzero(as_tuple=True)
        features = torch.nn.functional.normalize(acts[:, row, column].T)  # (n, c)
        noise = torch.randn(
            features.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double
        )
        x = features + 0.05 * noise
        sigma = float(bandwidth(x, "median"))  # a number: the median's own slope is one pair's
        trace = trace_channels(x, len(GROUPS), objective=objective, sigma=sigma)
        assert score(group.numpy(), trace.segments.numpy()) == 1
        for j in range(len(GROUPS)):
            [owner] = group[trace.mask(j)].unique().tolist()
            assert channel_groups(4)[trace.ranking("support", j)[:4]].tolist() == [owner] * 4


@pytest.fixture(scope="module")
def parch(net):
    """With statistics of birds that have lost all parts but one, which is their class. (Stilts are
    too thin for their detector.)
    """
    birds = [s.swap("legs", "webbed") for s in SCENES]
    lone = [s.without(*(q for q in PARTS if q != part)) for s in birds for part in PARTS]
    labels = torch.arange(len(PARTS)).repeat(len(birds))
    return ParchGrad(
        net,
        ChannelStatistics.collect(net, [(planted_images(lone), labels)], progress=False),
        layers="conv",
    )


@pytest.mark.parametrize("strictness", [{"alpha": 1e-4}, {"quantile": 1 / len(GROUPS)}])
def test_parchgrad_keeps_the_planted_channels_and_no_others(parch, strictness):
    truth = channel_groups(4)[None] == torch.arange(len(PARTS))[:, None]  # (k, c)
    assert torch.equal(parch.kept_for(range(len(PARTS)), **strictness)["conv"], truth)


def test_parchgrad_leaves_the_gradient_of_the_planted_part_and_no_other(parch):
    images, target = planted_images(SCENES[:2]), 2
    through = parch.attribute(
        "grad", images, target, quantile=1 / len(GROUPS), variance_conservation=False
    )
    plain = parch.attribute("grad", images, target, quantile=1.0)
    for i, scene in enumerate(SCENES[:2]):
        own, rest = (
            masks(scene)[target],
            masks(scene)[[k for k in range(len(PARTS)) if k != target]].any(0),
        )
        assert torch.equal(through[i][:, own], plain[i][:, own]) and bool(plain[i][:, rest].any())
        assert not bool(through[i][:, ~own].any())


def carrot_split(net, scenes, target, t=0.0):
    """The logit split over 12 x 12 cells of 8 x 8 pixels ``(n, cell)``: pooled activations as
    tokens, the planted head as the head.
    """
    with torch.no_grad():
        tokens = (
            torch.nn.functional.avg_pool2d(net[:2](planted_images(scenes)), 8)
            .flatten(2)
            .transpose(1, 2)
        )  # (n, cell, c)
    regions = RegionSet.from_patches(PatchOutput(tokens, patch_centers((12, 12)), (12, 12), (8, 8)))
    graph = RegionGraphBuilder(sigma_f=1.0).build(regions)
    omega = centrality(graph, DiffusionOperator(t), "mean")
    return region_contributions(omega, tokens, net.head.weight.detach().T)[..., target]


@pytest.mark.parametrize("target", [0, 3])
def test_carrot_splits_the_logit_over_regions_as_planted(net, target):
    shares = carrot_split(net, SCENES, target)
    maps = GradCAM(net, "relu").explain(planted_images(SCENES), target=target).raw
    cells = torch.nn.functional.avg_pool2d(maps[:, None], 8).flatten(1) * 64  # (n, cell)
    assert float((shares - cells).abs().max()) <= 1e-14
    drops, alone = removal_drops(net, target), 0
    for i, scene in enumerate(SCENES):
        touched = (
            torch.nn.functional.max_pool2d(masks(scene).double(), 8).flatten(1) > 0
        )  # (p, cell)
        for j in range(len(PARTS)):
            if not bool(
                (touched[j] & (touched.sum(0) > 1)).any()
            ):  # no other part reaches into its cells
                alone += 1
                assert abs(float(shares[i, touched[j]].sum() - drops[i, j])) <= 1e-13
    assert alone >= 12


def test_carrot_counts_the_removal_of_a_part_in_the_cells_it_touches(net):
    for j, part in enumerate(PARTS):
        change = carrot_split(net, SCENES, 2) - carrot_split(
            net, [s.without(part) for s in SCENES], 2
        )  # (n, cell)
        assert float((change.sum(1) - removal_drops(net, 2)[:, j]).abs().max()) <= 1e-13
        for i, scene in enumerate(SCENES):
            touched = (
                torch.nn.functional.max_pool2d(masks(scene)[j][None].double(), 8).flatten() > 0
            )
            assert not bool(change[i][~touched].any())
