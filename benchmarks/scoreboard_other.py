"""The rows of the scoreboard that are not maps: channels, and training images. Called by
scoreboard.py; two minutes on one core.
"""

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.planted import GROUPS, channel_groups, paint, planted_images, planted_network
from benchmarks.worlds import load_world, worlds
from ctrace.aviary import PARTS, Aviary, render, sample_scene
from ctrace.carrot.head import linear_datamodeling_scores, training_scores
from ctrace.carrot.pipeline import Carrot
from ctrace.cut.tracing import ablate, best_overlap, trace_channels
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.gradcam import GradCAM
from ctrace.look.hooks import capture
from ctrace.look.partition import ClassTest, InstanceTest
from ctrace.stats import spearman
from ctrace.trust.scoreboard import Scoreboard
from ctrace.world.tokens import TimmViTPatchBackbone

LAYER, CONV = (
    "layer3",
    "layer3.0.conv2",
)  # a block's output, and the convolution that writes its channels
SHARE = 0.1  # of the channels that are taken away


def aviary_images(model, split, n):
    data = Aviary(split, n)
    images, labels = zip(*(data[i] for i in range(n)))
    return model.info.preprocess(torch.stack(images)), torch.tensor(labels)


# ---- channels ----


def captured(model, images, layer):
    with capture(model, layer) as seen:
        model(images)
    return seen[layer].activation  # (b, c, h, w)


def centre_trace(features):
    """The channels of the segment at the centre of one image's features ``(c, h, w)``: the trace
    and the segment's number.
    """
    h, w = features.shape[1:]
    trace = trace_channels(features.flatten(1).T.double(), 3)
    return trace, int(trace.segments.view(h, w)[h // 2, w // 2])


def channel_rankings(model, images, targets, statistics, acts):
    """Channel numbers from the one that matters most, ``(n, c)`` by method."""
    generator, c = torch.Generator().manual_seed(0), acts.shape[1]
    return {
        "channels: Grad-CAM weights": GradCAM(model, LAYER)
        .explain(images, target=targets)
        .ranking("support"),
        "channels: ParchGrad class test": ClassTest(statistics, CONV, "cpu")(targets)[1],
        "channels: ParchGrad instance test": InstanceTest(statistics, CONV, "cpu")(
            captured(model, images, CONV)
        )[1],
        "channels: channel tracing": torch.stack(
            [trace.ranking("support", j) for trace, j in map(centre_trace, acts)]
        ),
        "channels: mean activation": acts.mean((2, 3)).argsort(1, descending=True),
        "channels: random": torch.stack([torch.randperm(c, generator=generator) for _ in images]),
    }


def channel_scores(name, n=300, segments=60):
    """What taking away a tenth of the channels does to the class and to the bird's segment, by row
    and column.
    """
    model = load_world(name)
    train, labels = aviary_images(model, "train", 560)
    images, targets = aviary_images(model, "test", n)
    statistics = ChannelStatistics.collect(
        model, zip(train.split(64), labels.split(64)), progress=False
    )
    acts = captured(model, images, LAYER)
    usual = captured(model, train, LAYER).mean((0, 2, 3))  # (c,)
    rest, count, scored = (
        torch.nn.Sequential(model.layer4, model.global_pool, model.fc),
        round(SHARE * acts.shape[1]),
        {},
    )
    with torch.no_grad():
        whole = target_logit(rest(acts), targets)
    for row, order in channel_rankings(model, images, targets, statistics, acts).items():
        gone = torch.zeros(acts.shape[:2], dtype=torch.bool).scatter(1, order[:, :count], True)
        with torch.no_grad():
            without = rest(torch.where(gone[:, :, None, None], usual[:, None, None], acts))
        scored[row, "logit ablation"] = (whole - target_logit(without, targets)).numpy()
        scored[row, "segment ablation"] = np.array(
            [segment_loss(acts[i], order[i, :count]) for i in range(segments)]
        )
    return scored


def target_logit(z, targets):
    return (z - z.mean(1, keepdim=True)).gather(1, targets[:, None])[:, 0]


def segment_loss(features, channels):
    """How much of the segment at the centre is lost when some channels no longer tell places apart:
    1 minus its best overlap.
    """
    trace, j = centre_trace(features)
    x = ablate(features.flatten(1).T.double(), channels)
    return 1 - best_overlap(trace.mask(j), trace_channels(x, 3).segments)


def planted_recovery(copies=4, birds=20):
    """Share of the planted channels among the first ``copies``, for every bird and part ``(1, birds
    * p)``, by row.
    """
    net, groups, found = planted_network(copies), channel_groups(copies), {}
    scenes = [sample_scene(i).swap("legs", "webbed") for i in range(birds)]
    lone = [s.without(*(q for q in PARTS if q != part)) for s in scenes for part in PARTS]
    labels = torch.arange(len(PARTS)).repeat(birds)
    statistics = ChannelStatistics.collect(net, [(planted_images(lone), labels)], progress=False)
    order = ClassTest(statistics, "conv", "cpu")(labels)[1]
    found["channels: ParchGrad class test"] = hits(order, labels, groups, copies)
    order = torch.cat(
        [
            GradCAM(net, "relu").explain(planted_images(scenes), target=k).ranking("support")
            for k in range(len(PARTS))
        ]
    )
    found["channels: Grad-CAM weights"] = hits(
        order, torch.arange(len(PARTS)).repeat_interleave(birds), groups, copies
    )
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(len(groups), generator=generator) for _ in labels])
    found["channels: random"] = hits(order, labels, groups, copies)
    found["channels: channel tracing"] = np.concatenate(
        [traced_recovery(net, scene, groups, copies) for scene in scenes]
    )
    return {(row, "planted channels"): values[None] for row, values in found.items()}


def traced_recovery(net, scene, groups, copies):
    pure = torch.stack(
        [render(paint(scene)).masks[g] > 0.999 for g in GROUPS]
    )  # (g, height, width)
    with torch.no_grad():
        acts = net[:2](planted_images([scene]))[0]
    group, row, column = (pure & (acts[::copies] > 0)).nonzero(as_tuple=True)
    features = torch.nn.functional.normalize(acts[:, row, column].T)  # (n, c)
    features = features + 0.05 * torch.randn(
        features.shape, generator=torch.Generator().manual_seed(0), dtype=features.dtype
    )
    trace = trace_channels(features, len(GROUPS), sigma="median", bandwidth_grad=False)
    owner = torch.stack([group[trace.mask(j)].mode().values for j in range(len(GROUPS))])
    return hits(trace.ranking("support"), owner, groups, copies)


def hits(order, labels, groups, copies):
    return (groups[order[:, :copies]] == labels[:, None]).double().mean(1).numpy()


# ---- training images ----


def data_scores(name, train=1400, test=300, refits=60):
    """Attributions to training images against fits without them, by row and column ``(test,)``."""
    carrot, loader = (Carrot(TimmViTPatchBackbone(load_world(name))), torch.utils.data.DataLoader)
    carrot.fit(loader(Aviary("train", train), batch_size=100), num_classes=14, progress=False)
    held = carrot.embeddings(loader(Aviary("test", test), batch_size=100), progress=False)
    head, y, g, target = carrot.head, carrot.train.labels, held.G, held.labels
    scores = training_scores(head, g, target)
    columns = {"leave-one-out": against_refits(scores, head, g, target, refits)}
    for removed in (0.5, 0.1):
        columns[f"LDS, {removed:.0%} removed"] = linear_datamodeling_scores(
            scores, head, g, target, removed, subsets=60
        )
    alike = {
        row: (y[s.topk(5).indices] == target[:, None]).double().mean(1) for row, s in scores.items()
    }
    columns["own class among the top 5"] = alike
    return {
        (f"training images: {row}", column): np.asarray(v)
        for column, found in columns.items()
        for row, v in found.items()
    }


def against_refits(scores, head, g, target, refits):
    """Rank correlation with what fitting again without each of some training images really does
    ``(m,)`` by method.
    """
    some = torch.randperm(len(head.G), generator=torch.Generator().manual_seed(0))[:refits]
    before, rows = head.predict(g), torch.arange(len(head.G))
    again = [head.refit(rows != i).predict(g) for i in some]
    effect = torch.stack(
        [(before - z).gather(1, target[:, None])[:, 0] for z in again], 1
    )  # (m, refits)
    return {row: spearman(score[:, some], effect, constant=0.0) for row, score in scores.items()}


def scores(kept, asked):
    """All of these rows as a `Scoreboard`; each model's share is kept in a file, and is measured
    for the models that are asked for.
    """
    values, models = {}, {}
    for kind, function in (("resnet", channel_scores), ("vit", data_scores)):
        stored = {}
        for name in tqdm(worlds(kind), desc=function.__name__, unit="model"):
            path = kept / name / "other rows.npz"
            if not path.exists() and name in asked:
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez_compressed(
                    path, **{"\t".join(key): value for key, value in function(name).items()}
                )
            if path.exists():
                with np.load(path) as file:
                    stored[name] = {tuple(key.split("\t")): file[key] for key in file.files}
        for key in next(iter(stored.values()), {}):
            values[key], models[key] = np.stack([s[key] for s in stored.values()]), tuple(stored)
    if asked:
        for key, value in planted_recovery().items():
            values[key], models[key] = value, ("planted network",)
    values = {key: value.round(4).astype(np.float32) for key, value in values.items()}
    return Scoreboard(values, dict.fromkeys(values, 0), models)
