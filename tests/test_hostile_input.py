"""The promise of CONTRIBUTING: whatever comes in, what goes out is the right answer or an error of
ours that names the argument, and only success changes a state.

`CALLS` holds every public function with arguments that it accepts. One of them at a time is
replaced by something hostile, which hypothesis draws from the kind of the argument.
"""

import copy
import io
import linecache
import os
import re
import traceback
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import ctrace
from ctrace import aviary, carrot, stats
from ctrace.carrot import attribution, pipeline
from ctrace.cut import affinity, eigenvectors, kway, nystrom, tracing
from ctrace.look import saliency
from ctrace.trust import falsify, hide, localize, randomize, shapley
from ctrace.world import photos, tokens, weights

OURS = (ValueError, TypeError, ArithmeticError, FileNotFoundError)
PACKAGE = str(Path(ctrace.__file__).parent)

# --- what is hostile, by the kind of the argument

JUNK = {
    "None": None,
    "text": "text",
    "a number": 3,
    "True": True,
    "NaN": float("nan"),
    "an object": object(),
    "an empty list": [],
    "a dictionary": {"a": 1},
    "a function": abs,
    "ragged lists": [[1.0], [1.0, 2.0]],
    "a complex number": 1 + 2j,
}
TWISTS = {  # of a tensor that is accepted
    "no rows": lambda x: x[:0],
    "one row": lambda x: x[:1],
    "an axis less": lambda x: x[0],
    "an axis more": lambda x: x[None],
    "a column less": lambda x: x[..., :-1],
    "no columns": lambda x: x[..., :0],
    "a NaN": lambda x: _with(x, torch.nan),
    "an infinity": lambda x: _with(x, torch.inf),
    "all NaN": lambda x: x * torch.nan,
    "bool": lambda x: x > 0,
    "int": lambda x: x.int(),
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "complex": lambda x: x + 1j,
    "uint8": lambda x: x.clamp(0, 255).to(torch.uint8),
    "float64": lambda x: x.double(),
    "huge": lambda x: x * 1e19,
    "larger": lambda x: x * 1e30,
    "tiny": lambda x: x * 1e-30,
    "offset": lambda x: x + 1e4,
    "copies": lambda x: x[:1].expand_as(x),
    "zeros": torch.zeros_like,
    "negative": lambda x: -x - 1,
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "a leaf that wants a gradient": lambda x: x.detach().clone().requires_grad_(),
    "part of a graph": lambda x: x.detach().clone().requires_grad_() * 1,
    "an array": lambda x: x.detach().numpy(),
    "a list": lambda x: x.detach().tolist(),
    "turned": lambda x: x.mT if x.ndim > 1 else x.flip(0),
}
# forms of the same numbers: refused, or answered alike
SAME = "strided", "a leaf that wants a gradient", "part of a graph", "float64", "an array", "a list"
NUMBERS = {
    **{repr(v): v for v in (True, 0, -1, 0.5, 2.5, 1e30, 1e-320, -0.0)},
    **{repr(v): v for v in (float("nan"), float("inf"), "3", "nan", None, [1], (), {}, 1j, b"1")},
    "np.int64": np.int64(2),
    "np.float32": np.float32(0.5),
    "np.array": np.array([1, 2]),
    "tensor": torch.tensor(2),
    "float tensor": torch.tensor(0.5),
    "NaN tensor": torch.tensor(torch.nan),
}
CLASSES = NUMBERS | {
    "99": 99,
    "beyond int64": 10**30,
    "[99]": [99],
    "[0, -1]": [0, -1],
    "[0, 1]": [0, 1],
    "[True, False]": [True, False],
    "[0.5, 1.5]": [0.5, 1.5],
    "[None]": [None],
    "['a', 'b']": ["a", "b"],
    "no class": torch.zeros(0, dtype=torch.long),
    "soft": torch.rand(2, 5),
    "uint8 array": np.array([0, 1], np.uint8),
    "-99": -99,
    "a name": "aster",
}
NAMES = {repr(v): v for v in ("", "rbff", None, 3, True, 0.5, [], ["a"], {}, b"rbf", ("a", "b"))}
CHOICES = {repr(v): v for v in ("yes", 2, None, [], 0.5)}


class Untidy(nn.Module):
    """Puts out something that is no row of numbers."""

    def __init__(self, output):
        super().__init__()
        self.conv, self.output = nn.Conv2d(3, 4, 3, padding=1), output

    def forward(self, x):
        return self.output(self.conv(x).relu())


MODELS = {
    "None": None,
    "a name": "resnet",
    "a number": 3,
    "a function": torch.sum,
    "a class": nn.Module,
    "no layers": nn.Identity().eval(),
    "training": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train(),
    "a pair": lambda: Untidy(lambda x: (x, x)).eval(),
    "a map": lambda: Untidy(lambda x: x).eval(),
    "nothing": lambda: Untidy(lambda x: None).eval(),
    "NaN": lambda: Untidy(lambda x: x.mean((2, 3)) * torch.nan).eval(),
    "one row": lambda: Untidy(lambda x: x.mean((0, 2, 3))[None]).eval(),
    "a sequence": [nn.Identity()],
}


def _with(x: Tensor, value: float) -> Tensor:
    x = x.detach().clone()
    if x.numel() and x.is_floating_point():
        x.view(-1)[x.numel() // 2] = value
    return x


ROWS = "features|rows|nodes|points|graph|sigma"


# --- what is public, with arguments that it accepts


@dataclass(frozen=True)
class Arg:
    """An accepted value, its kind, and what an error may call it beside its own name."""

    value: object
    kind: str
    words: str = ""


def T(value, words=""):
    return Arg(value, "tensor", words)


def N(value, words=""):
    return Arg(value, "number", words)


def C(value, words=""):
    return Arg(value, "class", words)


def S(value, words=""):
    return Arg(value, "name", words)


def B(value, words=""):
    return Arg(value, "choice", words)


def M(value, words=""):
    return Arg(value, "model", words)


def J(value, words=""):
    return Arg(value, "junk", words)


def F(value, words=""):
    return Arg(value, "function", words)


def P(value, words=""):
    return Arg(value, "path", words)


@dataclass(frozen=True)
class Call:
    """A public function, what it accepts, and whose state it may change."""

    function: object
    arguments: dict[str, Arg]
    state: object = None
    allowed: tuple[str, ...] = ()  # what its documentation announces: "NaN", "draws"


CALLS: dict[str, Call] = {}


def call(name, function, /, *, state=None, allowed=(), **arguments):
    CALLS[name] = Call(function, arguments, state, allowed)


RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(24, 3, generator=RANDOM) + 4 * torch.arange(3).repeat(8)[:, None]
GRAPH = ctrace.Graph(X)
U = ctrace.Ncut(3).fit_transform(X)
NET = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
with torch.random.fork_rng():
    torch.manual_seed(0)
    NET = nn.Sequential(*copy.deepcopy(NET), nn.Linear(64, 5)).eval()
IMAGES = torch.rand(2, 3, 8, 8, generator=RANDOM)
MAPS = torch.rand(2, 8, 8, generator=RANDOM)
PARTS = torch.rand(2, 4, 8, 8, generator=RANDOM)
SPOTS = MAPS > 0.5
LABELS = torch.arange(24) % 3
BATCHES = [(torch.rand(6, 3, 8, 8, generator=RANDOM), torch.arange(6) % 3)]
with warnings.catch_warnings():
    STATISTICS = ctrace.ChannelStatistics.collect(NET, BATCHES, num_classes=5, progress=False)
REGIONS = carrot.RegionSet(
    torch.randn(2, 6, 4, generator=RANDOM), torch.rand(6, 2, generator=RANDOM)
)
REGION_GRAPH = carrot.RegionGraphBuilder().build(REGIONS)
OPERATOR, READOUT = carrot.DiffusionOperator(1.0), carrot.GraphReadout("mean")
SCENE = aviary.sample_scene(3)
with redirect_stdout(io.StringIO()):
    VIT = ctrace.load_model("aviary-vit-0", device="cpu")
BACKBONE = tokens.TimmViTPatchBackbone(VIT)
PHOTO = Image.fromarray((IMAGES[0] * 255).byte().permute(1, 2, 0).numpy())


def call_cut():
    x, seed = T(X, ROWS), N(0)
    call("rbf_affinity", affinity.rbf_affinity, x=x, y=T(X[:5], ROWS), sigma=N(1.0))
    call("cosine_affinity", affinity.cosine_affinity, x=x, y=T(X[:5], ROWS), sigma=N(0.5))
    call("bandwidth", affinity.bandwidth, x=x, rule=S("local", "sigma"), seed=seed)
    call("bandwidth given", affinity.bandwidth, x=x, rule=N(1.0, "sigma"))
    call("bandwidth median", lambda x: affinity.bandwidth(x, "median"), x=x)
    call("bandwidth degree", lambda x: affinity.bandwidth(x, "degree"), x=x)
    shared = dict(memory_limit=N(2**20), seed=seed, bandwidth_grad=B(True))
    call("Graph", ctrace.Graph, x=x, affinity=S("rbf"), **shared)
    call("Graph scales", ctrace.Graph, x=x, sigma=T(torch.rand(24) + 1), mass=T(torch.ones(24)))
    call("Graph cosine", lambda **a: ctrace.Graph(affinity="cosine", **a), x=x, sigma=N(0.5))
    call("Graph function", lambda **a: ctrace.Graph(X, **a), affinity=F(affinity.rbf_affinity))
    call("Graph @", lambda v: GRAPH @ v, v=T(torch.rand(24, 2)))
    weights = T(GRAPH.weights().detach(), ROWS)
    call("PrecomputedGraph", ctrace.PrecomputedGraph, weights=weights)
    call("ncut_eigenvectors", ctrace.ncut_eigenvectors, graph=J(GRAPH), n_eig=N(3), seed=seed)
    call("solve", eigenvectors.solve, graph=J(GRAPH), k=N(3, "n_eig"), seed=seed)
    call("kway_ncut", ctrace.kway_ncut, eigvec=T(U), n_clusters=N(3), return_rotation=B(False))
    call("row_normalize", kway.row_normalize, U=T(U, "eigvec"))
    solver = dict(n_eig=N(3), sigma=N(2.0), affinity=S("rbf"), device=S(None), **shared)
    solver |= dict(track_grad=B(False), exact_gradient=B(False), max_exact=N(50, "landmarks"))
    many = dict(n_landmarks=N(12, "landmarks|n_eig"), n_neighbors=N(4))
    call("Ncut", lambda **a: ctrace.Ncut(**a).fit_transform(X), **solver)
    call("Ncut many", lambda **a: ctrace.Ncut(3, max_exact=20, **a).fit_transform(X), **many)
    fitted = ctrace.Ncut(3).fit(X)
    call("Ncut.fit_transform", fitted.fit_transform, state=fitted, X=x)
    call("Ncut.fit", lambda X: fitted.fit(X).eigval, state=fitted, X=x)
    mapped = ctrace.Ncut(3).fit(X)
    call("Ncut.transform", mapped.transform, state=mapped, X=T(X[:4] + 0.01, "transform|features"))
    call("diagnose", ctrace.diagnose, graph=T(X, ROWS), n_eig=N(5), seed=seed)
    call("farthest_points", nystrom.farthest_points, x=x, m=N(4, "landmarks"), seed=seed)
    landmarks = T(X[:6], ROWS)
    call("masses", nystrom.masses, landmarks=landmarks, x=x)
    call(
        "propagate",
        nystrom.propagate,
        values=T(U[:6]),
        landmarks=landmarks,
        x=x,
        n_neighbors=N(4),
        pinned=T(torch.arange(6)),
    )
    call(
        "trace_channels",
        ctrace.trace_channels,
        features=x,
        n_segments=N(3, "n_eig"),
        objective=S("association"),
        names=J(("a", "b", "c")),
    )
    trace = ctrace.trace_channels(X, 3)
    call("ranking", trace.ranking, kind=S("support"), segment=N(0), order=S("effect"))
    call("table", trace.table, segment=N(0), kind=S("support"), top=N(2))
    call("mask", trace.mask, segment=N(0))
    call(
        "segment_strength",
        tracing.segment_strength,
        Z=T(trace.soft, "v"),
        segments=T(trace.segments),
        graph=J(GRAPH),
        objective=S("cut"),
        allowed=("NaN",),  # an empty segment
    )
    call("ablate", tracing.ablate, features=x, channels=C([0, 1]))
    call("best_overlap", tracing.best_overlap, mask=T(trace.mask(0)), segments=T(trace.segments))


def call_published():
    leaf = X.clone().requires_grad_()
    scores = ctrace.differentiable_kway_ncut(leaf, 3)[1]
    segment = scores.argmax(1) == 0
    call(
        "differentiable_kway_ncut",
        ctrace.differentiable_kway_ncut,
        features=T(leaf, ROWS),
        n_segment=N(3, "n_eig"),
    )
    call(
        "channel_gradient_from_cluster",
        ctrace.channel_gradient_from_cluster,
        features=J(leaf),
        cluster_mask=T(segment),
        kway_eigvec=J(scores, ROWS),
        cluster_idx=N(0),
        order=S("effect"),
    )
    call("rank_channels", ctrace.rank_channels, grad=T(X[0]), descending=B(True))
    sizes = dict(b=N(2), h=N(3), w=N(4))
    call("reshape_for_view", ctrace.reshape_for_view, features=T(X), **sizes)
    call(
        "extract_topk_maps",
        ctrace.extract_topk_maps,
        feature_grid=T(X.view(2, 3, 4, 3).numpy()),
        channel_indices=T(torch.tensor([2, 0])),
        image_index=N(1),
        topk=N(2),
        allowed=("NaN",),
    )


def call_world():
    grid = dict(names=J(("a", "b", "c")), grid_hw=J((3, 4)), n_images=N(2))
    call("GridFeatures", ctrace.GridFeatures, features=T(X), **grid)
    call(
        "GridFeatures.index",
        ctrace.GridFeatures(X, ("a", "b", "c"), (3, 4), 2).index,
        name=S("a", "channel"),
    )
    photo = T(IMAGES[0], "image")
    call("filter_bank", ctrace.filter_bank, images=photo, grid=N(4), weights=J({"texture": 1.0}))
    call(
        "filter_bank path",
        lambda images: ctrace.filter_bank(images, grid=4),
        images=P(PHOTO, "image"),
    )
    call("load_images_helper", ctrace.load_images_helper, pil_images_or_paths=P(PHOTO, "image"))
    call("load_photo", ctrace.load_photo, name=S("coffee", "photograph"), size=N(20))
    call("photo_names", ctrace.photo_names)
    call(
        "prepare_grid_features",
        ctrace.prepare_grid_features,
        images=P([PHOTO], "image"),
        transform=F(lambda image: IMAGES[0]),
        extract=F(lambda batch: batch.flatten(2).mT),
        num_prefix_tokens=N(0),
        grid_hw=J((8, 8)),
    )
    call("timm_features", ctrace.timm_features, images=P(PHOTO, "image"), model=M(VIT, "name"))
    call(
        "load_model",
        ctrace.load_model,
        name=S("aviary-resnet-0", "model"),
        weights=P("auto"),
        allowed=("draws",),
        device=S("cpu"),
    )
    call(
        "read_checkpoint",
        weights.read_checkpoint,
        path=P(f"{PACKAGE}/data/models/aviary-resnet-0.safetensors", "weights"),
    )
    call("preprocess", VIT.info.preprocess, images=T(IMAGES, "image"))
    call("rgb_image", photos.rgb_image, entry=P(PHOTO, "image"))
    grid = dict(num_prefix_tokens=N(1), grid=J((2, 3)))
    call("tokens_to_map", tokens.tokens_to_map, tokens=T(torch.rand(2, 7, 3)), **grid)
    call("backbone", lambda images: BACKBONE(images).H, images=T(torch.rand(1, 3, 96, 96)))
    call(
        "TimmViTPatchBackbone", lambda model: BACKBONE.__class__(model) and 0, model=M(VIT, "name")
    )

    convolved = dict(images=P(PHOTO, "image"), model=M(NET, "name"), layer=S("0"), pad=N(1))
    call("conv_features", ctrace.conv_features, **convolved, unit=B(True), centre=B(True))


def call_look():
    image, target = T(IMAGES), C([0, 1])
    cam = ctrace.GradCAM(NET)
    making = dict(target_layer=S("0", "layer|layers"), method=S("gradcam"), device=S(None))
    call(
        "GradCAM",
        lambda **a: ctrace.GradCAM(**a).compute_attribution(IMAGES, target=1),
        model=M(NET),
        **making,
    )
    drawing = dict(relu=B(True), normalize=B(True))
    call(
        "compute_attribution",
        cam.compute_attribution,
        state=cam,
        image=image,
        target=target,
        **drawing,
    )
    call("explain", lambda **a: cam.explain(**a).raw, state=cam, image=image, target=C(1))
    e = torch.rand(5)
    pair = dict(target=S("dot"), target_embedding=T(e), baseline_embedding=T(-e + 0.1))
    call("explain similarity", lambda **a: cam.explain(**a).raw, state=cam, image=image, **pair)
    two = dict(first=T(IMAGES[0], "image"), second=T(IMAGES[1], "image"), similarity=S("dot"))
    call("explain_pair", lambda **a: cam.explain_pair(**a).raw, state=cam, **two)
    told = cam.explain(IMAGES, target=1)
    call("Explanation.ranking", told.ranking, kind=S("support", "ranking"), image=N(0))
    call("Explanation.table", told.table, image=N(0), kind=S("support", "ranking"), top=N(2))
    asked = dict(model=M(NET), image=image, target=target)
    call("gradient", saliency.gradient, **asked)
    call("input_x_gradient", saliency.input_x_gradient, **asked)
    noisy = dict(samples=N(2), noise=N(0.1), seed=N(0))
    call("smoothgrad", saliency.smoothgrad, **asked, **noisy)
    path = dict(steps=N(4), baseline=N(0.0))
    call("integrated_gradients", saliency.integrated_gradients, **asked, **path)
    call(
        "baseline",
        lambda baseline: saliency.integrated_gradients(NET, IMAGES, 1, 4, baseline),
        baseline=T(IMAGES[0]),
    )
    call(
        "ChannelStatistics.collect",
        lambda **a: ctrace.ChannelStatistics.collect(progress=False, **a).moments.mean,
        model=M(NET),
        loader=J(BATCHES),
        layers=S("0"),
        num_classes=N(5),
        device=S(None),
    )
    batches = dict(images=T(BATCHES[0][0], "image"), labels=C(BATCHES[0][1]))
    call(
        "collect batch",
        lambda images, labels: (
            ctrace.ChannelStatistics.collect(
                NET, [(images, labels)], num_classes=5, progress=False
            ).moments.mean
        ),
        **batches,
    )
    call("ChannelStatistics.load", ctrace.ChannelStatistics.load, path=P(None, "statistics"))
    call("ChannelStatistics.save", STATISTICS.save, path=P(None))
    call("ChannelStatistics.merge", STATISTICS.merge, other=J(STATISTICS))
    call(
        "welch_pvalues",
        STATISTICS.welch_pvalues,
        layers=S("0", "layer"),
        classes=C([0, 1], "class"),
    )
    parch = ctrace.ParchGrad(NET, STATISTICS, layers="0")
    making = dict(model=M(NET), statistics=J(STATISTICS), layers=S("0"))
    call("ParchGrad", lambda **a: ctrace.ParchGrad(**a) and 0, **making)
    call(
        "ParchGrad share",
        lambda layer_ratio: ctrace.ParchGrad(NET, STATISTICS, None, layer_ratio) and 0,
        layer_ratio=N(0.5),
    )
    call(
        "ParchGrad.attribute",
        parch.attribute,
        attribution=S("grad"),
        images=T(IMAGES, "image"),
        target=target,
        settings=J({}),
        method=S("cls"),
        quantile=N(0.5),
        alpha=N(0.5),
        gamma=N(2.0),
        classes=C(1),
        shuffle=N(0),
    )
    call("kept_for", parch.kept_for, classes=C([0, 1]), quantile=N(0.5), alpha=N(0.5))
    call("default_convs", ctrace.default_convs, model=M(NET, "Conv2d"), layer_ratio=N(0.5))


def call_trust():
    images, maps, target = T(IMAGES, "image"), T(MAPS), C([0, 1])
    asked = dict(model=M(NET), images=images, maps=maps, target=target)
    shares, fill = T([0.0, 0.5]), S("blur")
    call(
        "masking_curve",
        ctrace.masking_curve,
        **asked,
        order=S("morf"),
        ratios=shares,
        fill=fill,
        seed=N(0),
    )
    call("deletion", hide.deletion, **asked, fill=fill, steps=N(3))
    call("insertion", hide.insertion, **asked, fill=fill, steps=N(3))
    call("insertion fill", lambda fill: hide.insertion(NET, IMAGES, MAPS, 1, fill), fill=T(IMAGES))
    call("road", hide.road, **asked, shares=T([0.5], "ratios"), noise=N(0.1), seed=N(0))
    call("filled", hide.filled, images=images, fill=fill, seed=N(0))
    call("impute", hide.impute, images=images, hidden=T(SPOTS))
    call(
        "falsify",
        falsify.falsify,
        attribution=T(MAPS),
        images=images,
        model=M(NET),
        target=target,
        distance=F(None),
        fill=fill,
        area=N(0.1),
        copies=N(19),
        min_shift=N(2),
        inside=T(torch.ones(2, 8, 8)),
        alpha=N(0.05),
        seed=N(0),
    )
    call("mass_inside", ctrace.mass_inside, maps=T(MAPS, "map"), mask=T(SPOTS))
    for score in (localize.pointing_game, localize.positive_mass_inside):
        call(score.__name__, score, maps=T(MAPS, "map"), masks=T(SPOTS, "mask"))
    importance = T(torch.rand(2, 4))
    call(
        "part_correlation",
        localize.part_correlation,
        maps=maps,
        masks=T(PARTS),
        importance=importance,
    )
    call("controls", localize.controls, images=images, masks=T(SPOTS), seed=N(0))
    call("planted_truth", localize.planted_truth, masks=T(PARTS), importance=importance)
    call("planted_lie", localize.planted_lie, masks=T(PARTS), importance=importance)
    many = torch.arange(64).view(8, 8) // 8
    call(
        "shap",
        shapley.shap,
        model=M(NET),
        image=T(IMAGES[:1]),
        target=C(1),
        regions=T(many // 2),
        baseline=S("blur", "fill"),
        samples=N(64),
        seed=N(0),
    )
    call(
        "shap many",
        lambda **a: shapley.shap(NET, IMAGES[0], 1, torch.arange(64).view(8, 8) // 4, **a),
        samples=N(64),
        seed=N(0),
    )
    call("superpixels", shapley.superpixels, image=T(IMAGES[0]), n=N(4))
    draw = {"g": lambda m, x, t: saliency.gradient(m, x, t).abs().sum(1)}
    call(
        "cascade",
        randomize.cascade,
        model=M(NET),
        methods=J(draw),
        images=images,
        targets=C([0, 1]),
        depths=J([1]),
        seed=N(0),
    )
    call("randomize", randomize.randomize, model=M(NET), depth=N(1), seed=N(0))
    call("stages", randomize.stages, model=M(NET))


def call_carrot():
    H = T(REGIONS.H)
    call(
        "DiffusionOperator",
        lambda **a: carrot.DiffusionOperator(**a)(REGIONS.H, REGION_GRAPH),
        t=N(1.0),
        method=S("action"),
    )
    call("diffuse", OPERATOR, H=H, graph=J(REGION_GRAPH))
    call(
        "GraphReadout",
        lambda **a: carrot.GraphReadout(**a)(REGIONS.H),
        kind=S("mean", "readout"),
        k=N(2),
    )
    residual = carrot.GraphReadout("residual")
    call("read", residual, diffused=H, H=H, graph=J(REGION_GRAPH))
    call(
        "RegionSet",
        carrot.RegionSet,
        features=H,
        positions=T(REGIONS.P),
        members=T(REGIONS.members),
        grid_hw=J((2, 3)),
    )
    call("on_grid", REGIONS.on_grid, values=T(torch.rand(2, 6)))
    widths = dict(sigma_s=N(1.0), sigma_f=N(1.0), quantile=N(0.5))
    call(
        "RegionGraphBuilder", lambda **a: carrot.RegionGraphBuilder(**a).build(REGIONS).W, **widths
    )
    call("build", carrot.RegionGraphBuilder().build, regions=J(REGIONS))
    call("from_weights", carrot.RegionGraph.from_weights, W=T(REGION_GRAPH.W, "weights|graph"))
    head = carrot.RidgeHead().fit(X, LABELS)
    making = dict(lam=N(1.0), scale=S("none"), intercept=B(True))
    call("RidgeHead", lambda **a: carrot.RidgeHead(**a).fit(X, LABELS).theta, **making)
    refit = carrot.RidgeHead().fit(X, LABELS)
    call("fit", refit.fit, state=refit, G=T(X, ROWS), y=C(LABELS, "labels"), num_classes=N(3))
    g, target = T(X[:2]), C([0, 1])
    call("predict", head.predict, g=g)
    call("smoother", head.smoother, g=g)
    call(
        "training_contributions", head.training_contributions, g=g, view=S("weight"), target=target
    )
    call("leave_one_out", head.leave_one_out, g=g, target=target)
    call("leave_out", head.leave_out, g=g, group=C([0, 1]))
    call("refit", lambda kept: head.refit(kept).theta, kept=C([0, 1, 2, 3], "group"))
    call(
        "training_contribution",
        carrot.training_contribution,
        g_test=g,
        G_train=T(X),
        alpha=T(torch.rand(24, 3)),
    )
    pipe = carrot.Carrot(BACKBONE, lam=1.0)
    pipe.fit(pipeline.Embeddings(torch.rand(6, 64), torch.arange(6) % 3))
    making = dict(backbone=M(BACKBONE), t=N(1.0), readout=S("mean"), lam=N(1.0))
    fit = pipeline.Embeddings(torch.rand(6, 64), torch.arange(6) % 3)
    call("Carrot", lambda **a: carrot.Carrot(**a).fit(fit) and 0, **making)
    birds = torch.rand(1, 3, 96, 96)
    call("Carrot.predict", pipe.predict, state=pipe, images=T(birds, "image"))
    call(
        "Carrot.fit",
        lambda data: pipe.fit(data, progress=False).train.G,
        state=pipe,
        data=J(fit, "loader"),
    )
    call(
        "Carrot.explain",
        lambda **a: pipe.explain(**a).leave_one_out,
        state=pipe,
        image=T(birds[0]),
        target=C(1),
        versus=C(2, "target|classes"),
    )
    asked = dict(
        H=REGIONS.H, graph=REGION_GRAPH, operator=OPERATOR, readout=READOUT, theta=torch.rand(4, 3)
    )
    call(
        "remove_nodes",
        attribution.remove_nodes,
        **{k: (T if k in ("H", "theta") else J)(v, "keep") for k, v in asked.items()},
    )
    call(
        "remove_subgraph",
        lambda nodes: attribution.remove_subgraph(**asked, nodes=nodes),
        nodes=C([0, 1]),
    )
    call(
        "remove_edges",
        lambda edges: attribution.remove_edges(**asked, edges=edges),
        edges=C([[0, 1]]),
    )
    call(
        "subset_logits",
        lambda keep: attribution.subset_logits(**asked, keep=keep),
        keep=T(torch.eye(6)),
    )
    call(
        "centrality",
        attribution.centrality,
        graph=J(REGION_GRAPH),
        operator=J(OPERATOR),
        readout=S("mean"),
    )


def call_aviary():
    call(
        "sample_scene",
        aviary.sample_scene,
        seed=N(3),
        species=J(aviary.SPECIES[0]),
        background=S("sky"),
    )
    call("sample_individual", aviary.sample_individual, seed=N(3))
    call("mark_place", aviary.mark_place, seed=N(3))
    call("render", lambda **a: aviary.render(**a).image, scene=J(SCENE), size=N(32))
    call("render_levels", aviary.render_levels, scene=J(SCENE), size=N(32))
    call("scene_seed", aviary.scene_seed, split=S("val"), index=N(3))
    call("species_by_name", aviary.species_by_name, name=S("iris", "species"))
    parts = dict(beak=S("hook"), crest=S("fan"), wing=S("bars"), tail=S("fan"), legs=S("boots"))
    call("Species", lambda **a: aviary.Species("dodo", **a).variants, **parts)
    call("without", lambda part: SCENE.without(part), part=S("tail"))
    call("swap", SCENE.swap, part=S("tail"), variant=S("fan", "tail"))
    birds = dict(split=S("test"), length=N(3), size=N(32), spurious=B(False))
    call("Aviary", lambda **a: aviary.Aviary(**a)[0][0], **birds)
    seen = dict(split=S("test"), birds=N(3), views=N(2), size=N(32))
    call("Individuals", lambda **a: aviary.Individuals(**a)[0][0], **seen)
    call(
        "Cached",
        lambda dataset: aviary.Cached(dataset).images,
        dataset=J(aviary.Aviary("test", 2, 32)),
    )
    asked = dict(model=F(NET), scenes=J([SCENE]), size=N(32))
    call("centred_logits", aviary.centred_logits, **asked)
    call("importance_table", aviary.importance_table, **asked, targets=C([1]), kind=S("removal"))
    call(
        "part_importance",
        aviary.part_importance,
        model=F(NET),
        scene=J(SCENE, "scenes"),
        target=C(1, "targets"),
        kind=S("removal"),
        size=N(32),
    )


def call_stats():
    rows = T(X.numpy())
    call("spearman", stats.spearman, allowed=("NaN",), a=rows, b=T(X.flip(1).numpy()))
    call(
        "bootstrap",
        lambda values, **a: stats.bootstrap(values, **a),
        values=T(X[:, 0].numpy(), "bootstrap"),
        draws=N(20),
        seed=N(0),
        axes=N(1),
    )
    call("mean_intervals", stats.mean_intervals, values=rows, draws=N(20), seed=N(0))
    call("crossed_interval", stats.crossed_interval, values=rows, level=N(0.95))
    call("exact_shapley", stats.exact_shapley, values=T(np.arange(8.0)))
    call("equal_error_rate", stats.equal_error_rate, same=T([0.9, 0.8]), different=T([0.1, 0.2]))


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for make in (
        call_cut,
        call_published,
        call_world,
        call_look,
        call_trust,
        call_carrot,
        call_aviary,
        call_stats,
    ):
        make()
ASKED = [(name, argument) for name, made in CALLS.items() for argument in made.arguments]


# --- the judge


def hostile(kind: str, value, folder: Path) -> dict:
    """Hostile values of a kind by name; what is callable without an argument makes one."""
    if kind == "tensor":
        x = torch.as_tensor(value)
        return {name: (lambda twist=twist: twist(x)) for name, twist in TWISTS.items()} | JUNK
    if kind == "path":
        return (
            JUNK
            | {"nowhere": folder / "no.png", "a folder": folder, "empty": folder / "empty.png"}
            | {
                "cut off": folder / "cut.png",
                "no image": folder / "text.png",
                "bytes": b"a.png",
                "an array": np.zeros((8, 8, 3), np.uint8),
                "in no folder": folder / "a" / "b",
            }
        )
    if kind == "function":  # what a function of the caller raises is the caller's
        return {name: junk for name, junk in JUNK.items() if not callable(junk)}
    return {
        "number": NUMBERS,
        "class": CLASSES,
        "name": NAMES,
        "choice": CHOICES,
        "model": MODELS,
    }.get(kind, JUNK)


def judged(name: str, argument: str, value) -> str:
    """What is wrong with the answer to one hostile argument, or ``""``."""
    made = CALLS[name]
    arguments = {key: arg.value for key, arg in made.arguments.items()}
    drawn = torch.get_rng_state()
    before = {} if made.state is None else dict(vars(made.state))
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            result = made.function(**arguments | {argument: value})
        except Exception as error:
            changed = [k for k, v in before.items() if vars(made.state).get(k) is not v]
            if changed:
                return f"a refused call changed {changed}"
            return blamed(error, made.arguments)
    if "draws" not in made.allowed and not torch.equal(drawn, torch.get_rng_state()):
        return "the global generator was drawn from"
    for leaf in tree_leaves(result):
        leaf = torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf
        if "NaN" in made.allowed:
            continue
        if isinstance(leaf, Tensor) and not bool(torch.isfinite(leaf).all()):
            return "returned NaN or infinity"
    return ""


def blamed(error: Exception, arguments: dict[str, Arg]) -> str:
    """What is wrong with an error, or ``""``: ours is raised by a line of the package, of a type
    that is documented, and names an argument of the call (where two contradict each other, either).
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    said = f"{type(error).__name__}: {str(error)[:120]!r} at {place}"
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        return ""  # Python's own, and it names the argument
    line = linecache.getline(last.filename, last.lineno).strip()
    if not (last.filename.startswith(PACKAGE) and line.startswith("raise")):
        return f"not ours: {said}"
    if not isinstance(error, OURS):
        return f"of another type: {said}"
    names = "|".join([*arguments, *(arg.words for arg in arguments.values() if arg.words)])
    if not re.search(rf"\b({names})\b", str(error)):
        return f"names no argument: {said}"
    return ""


# --- the promise

# Of some forty values for each argument; HOSTILE=100 asks all of them, in minutes.
EXAMPLES = int(os.environ.get("HOSTILE", 8))
FEW = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=list(HealthCheck),
)
# Records that functions return, and operators that take what these have checked.
INNER = {"Spectrum", "Diagnosis", "ChannelTrace", "SPARE", "LONGEST", "row_tiles"}
INNER |= {"leading_eigenpairs", "ways_to_eigenpairs", "conjugate_gradients", "eigenvector_factors"}
# Called in `CALLS` through a method or under the name of what it makes.
THROUGH = {"ChannelStatistics": "ChannelStatistics.collect", "RegionGraph": "from_weights"}
THROUGH |= {"RidgeHead": "RidgeHead", "importance_table": "importance_table"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files that are no images."""
    place = tmp_path_factory.mktemp("hostile")
    PHOTO.save(place / "whole.png")
    (place / "cut.png").write_bytes((place / "whole.png").read_bytes()[:60])
    (place / "empty.png").write_bytes(b"")
    (place / "text.png").write_text("no image")
    return place


def public_names() -> set[str]:
    """What `ctrace` exports, what every module lists, and what the doors of rooms offer."""
    names = set(ctrace.__all__)
    for module in walk_packages(ctrace.__path__, "ctrace."):
        if not module.name.endswith("__main__"):
            names |= set(getattr(import_module(module.name), "__all__", ()))
    for door in (aviary, carrot):
        for name, value in vars(door).items():
            if callable(value) and getattr(value, "__module__", "").startswith("ctrace"):
                names.add(name)
    return names


def test_every_public_function_is_attacked():
    records = {"Rendering", "Scene", "RegionGraph"}  # made by functions, of what they have checked
    missing = public_names() - INNER - records - set(CALLS) - set(THROUGH)
    assert not missing and set(THROUGH.values()) <= set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_what_the_table_calls_accepted_is_accepted(name):
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        arguments = {key: arg.value for key, arg in CALLS[name].arguments.items()}
        if arguments.get("path", True) is not None:  # a file that the test of hostile paths makes
            CALLS[name].function(**arguments)


@pytest.mark.parametrize("name, argument", ASKED)
def test_a_hostile_argument_gets_an_answer_or_an_error_that_names_it(
    name, argument, folder, monkeypatch
):
    monkeypatch.chdir(folder)  # a text is a path too
    arg = CALLS[name].arguments[argument]
    values = hostile(arg.kind, arg.value, folder)

    @FEW
    @given(st.sampled_from(sorted(values)))
    def holds(what):
        value = values[what]
        if arg.kind in ("tensor", "model") and getattr(value, "__name__", "") == "<lambda>":
            try:
                value = value()
            except (RuntimeError, IndexError, ValueError, TypeError):
                return  # this tensor cannot be twisted so
        assert (said := judged(name, argument, value)) == "", f"{what}: {said}"

    holds()


def numbers(result) -> list[Tensor]:
    """What an answer consists of: tensors, arrays and numbers, also within records of ours."""
    found = []
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor | np.ndarray | np.generic | int | float):
            found.append(torch.as_tensor(leaf).detach().double())
        elif type(leaf).__module__.startswith("ctrace") and hasattr(leaf, "__dict__"):
            fields = {k: v for k, v in vars(leaf).items() if k not in BY_PRODUCTS and k[0] != "_"}
            found += numbers([fields[k] for k in sorted(fields)])
    return found


# of the solver: pairs below the wanted ones, and what it took
BY_PRODUCTS = {"spare", "spare_eigval", "residual", "forward", "backward", "gradient_tolerance"}
ALIKE = [(name, key) for name, key in ASKED if CALLS[name].arguments[key].kind == "tensor"]


@pytest.mark.parametrize("name, argument", ALIKE)
def test_the_same_numbers_in_another_form_are_refused_or_answered_alike(name, argument):
    arguments = {key: arg.value for key, arg in CALLS[name].arguments.items()}

    def answer(value):
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return numbers(CALLS[name].function(**arguments | {argument: value}))

    plain = torch.as_tensor(arguments[argument])
    try:
        known = answer(plain)
    except OURS:  # a function for arrays
        known = answer(arguments[argument])
    # the doctor draws its noise in the precision of the features
    for what in set(SAME) - ({"float64"} if name == "diagnose" else set()):
        try:
            found = answer(TWISTS[what](plain))
        except (*OURS, RuntimeError):  # integers want no gradient; the test above reads the words
            continue
        assert len(found) == len(known), what
        for ours, theirs in zip(found, known):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=f"{what} differs")


@pytest.mark.parametrize(
    "asked, said",
    [
        (lambda: ctrace.Ncut(2, sigma=0.05).fit(torch.eye(6)), "falls inside a group"),
        (lambda: saliency.gradient(NET, IMAGES), "no target"),
        (lambda: ctrace.GradCAM(NET).compute_attribution(IMAGES), "no target"),
    ],
)
def test_a_warning_points_at_the_line_of_the_caller(asked, said):
    with pytest.warns(Warning, match=said) as seen:
        asked()
    assert {warning.filename for warning in seen if said in str(warning.message)} == {__file__}


def test_seeded_noise_does_not_follow_the_default_precision():
    def drawn():
        maps = saliency.smoothgrad(NET, IMAGES, 1, samples=2)
        return maps, hide.filled(IMAGES, "noise"), localize.controls(IMAGES, SPOTS)["random"]

    usual = drawn()
    torch.set_default_dtype(torch.float64)
    try:
        other = drawn()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(usual, other))
