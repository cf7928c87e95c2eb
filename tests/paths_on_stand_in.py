"""Every public path once on the CPU and once on the stand-in device; prints one line for each.

    python tests/paths_on_stand_in.py           "ok NAME", or "failed NAME: why"
    python tests/paths_on_stand_in.py --cuda    the same on a GPU

`test_other_device.py` runs this in a process of its own and reads the lines.
"""

import sys
import traceback
import warnings

import torch
from stand_in import DEVICE, Watch
from torch.utils._pytree import tree_leaves

from ctrace import (
    ChannelStatistics,
    GradCAM,
    Graph,
    Ncut,
    ParchGrad,
    PrecomputedGraph,
    conv_features,
    diagnose,
    differentiable_kway_ncut,
    filter_bank,
    kway_ncut,
    load_model,
    masking_curve,
    mass_inside,
    rbf_affinity,
    trace_channels,
)
from ctrace.carrot import Carrot, RidgeHead
from ctrace.look import saliency
from ctrace.trust.falsify import falsify
from ctrace.trust.hide import deletion, insertion, road
from ctrace.trust.localize import controls, pointing_game
from ctrace.trust.methods import guided_backpropagation
from ctrace.trust.randomize import cascade
from ctrace.trust.shapley import lime, shap, superpixels
from ctrace.world.tokens import TimmViTPatchBackbone

RANDOM = torch.Generator().manual_seed(0)
POINTS = torch.randn(60, 5, generator=RANDOM) + 4 * torch.arange(3).repeat(20)[:, None]
MANY = torch.randn(600, 5, generator=RANDOM) + 4 * torch.arange(3).repeat(200)[:, None]
IMAGES = torch.rand(2, 3, 96, 96, generator=RANDOM)
TRAIN = torch.rand(12, 3, 96, 96, generator=RANDOM)
LABELS = torch.arange(12) % 3
MAPS = torch.rand(2, 96, 96, generator=RANDOM)
PATHS = {}


def path(function):
    """Registers a function from a device to tensors."""
    PATHS[function.__name__] = function
    return function


def cut(x, device, **settings):
    """Scores and the gradient of a loss of them."""
    x = x.to(device).requires_grad_()
    scores = kway_ncut(Ncut(3, track_grad=True, **settings).fit_transform(x))
    (gradient,) = torch.autograd.grad(scores.abs().max(1).values.mean(), x)
    return scores, gradient


for what, x, settings in (
    ("dense", POINTS, {}),
    ("iterated", MANY, {}),
    ("matrix_free", MANY, {"memory_limit": 0}),
    ("landmarks", MANY, {"max_exact": 500, "n_landmarks": 200}),
    ("median", POINTS, {"sigma": "median"}),
    ("cosine", POINTS, {"affinity": "cosine"}),
    ("callable", POINTS, {"affinity": lambda a, b: rbf_affinity(a, b, sigma=2.0)}),
):
    PATHS[f"cut_{what}"] = lambda device, x=x, settings=settings: cut(x, device, **settings)


@path
def transform(device):
    return Ncut(3).fit(POINTS.to(device)).transform(POINTS.to(device) + 0.01)


@path
def doctor(device):
    return len(str(diagnose(Graph(POINTS.to(device)))))


@path
def precomputed_graph(device):
    return PrecomputedGraph(rbf_affinity(POINTS.to(device), sigma=2.0)).degree


@path
def tracing(device):
    traced = [trace_channels(POINTS.to(device), 3, objective=o) for o in ("association", "cut")]
    return [t.attributions for t in traced]


@path
def published_helpers(device):
    return differentiable_kway_ncut(POINTS.to(device).requires_grad_(), 3)[1]


@path
def named_channels(device):
    return filter_bank(IMAGES[0].to(device), grid=12).features


@path
def convolution_maps(device):
    image = torch.rand(3, 96, 80, generator=torch.Generator().manual_seed(0))
    model = load_model("squeezenet", device=device)
    return conv_features(image.to(device), model, "features.10").features


def network(device, name="aviary-resnet-0"):
    return load_model(name, device=device)


for method in ("gradcam", "gradcam++", "layercam", "hirescam"):
    PATHS[f"{method}_conv"] = lambda device, method=method: GradCAM(
        network(device), method=method
    ).compute_attribution(IMAGES.to(device), target=3)
for method in ("gradcam", "layercam", "hirescam"):  # ++ is not defined for signed activations
    PATHS[f"{method}_tokens"] = lambda device, method=method: (
        GradCAM(network(device, "aviary-vit-0"), method=method)
        .explain(IMAGES.to(device), target=torch.tensor([1, 2], device=device))
        .heatmap(relu=False, normalize=False)
    )
for name, settings in (
    ("gradient", {}),
    ("input_x_gradient", {}),
    ("smoothgrad", {"samples": 2}),
    ("integrated_gradients", {"steps": 8}),
):
    PATHS[name] = lambda device, name=name, settings=settings: getattr(saliency, name)(
        network(device), IMAGES.to(device), 3, **settings
    )


@path
def embedding_pair(device):
    cam, images = GradCAM(network(device, "aviary-embedding")), IMAGES.to(device)
    return cam.explain_pair(images[:1], images[1:]).heatmap()


@path
def parchgrad(device):
    model, batches = network(device), [(TRAIN.to(device), LABELS.to(device))]
    statistics = ChannelStatistics.collect(model, batches, progress=False)
    return ParchGrad(model, statistics).attribute("grad", IMAGES.to(device), 1, quantile=0.2)


@path
def ridge_head(device):
    head = RidgeHead().fit(POINTS.to(device), (torch.arange(60) % 3).to(device))
    return head.predict(POINTS.to(device)), head.leave_one_out(POINTS.to(device)[:2], 0)


@path
def carrot(device):
    pipeline = Carrot(TimmViTPatchBackbone(network(device, "aviary-vit-0")))
    pipeline.fit(torch.utils.data.TensorDataset(TRAIN, LABELS), num_classes=3, progress=False)
    explained = pipeline.explain(IMAGES[0].to(device))
    return pipeline.predict(IMAGES.to(device)), explained.region_removal


TRUST = {
    "falsify": lambda model, x, maps: [r.p for r in falsify(maps, x, model, 3)],
    "deletion": lambda model, x, maps: deletion(model, x, maps, 3).auc,
    "insertion": lambda model, x, maps: insertion(model, x, maps, 3).auc,
    "masking_curve": lambda model, x, maps: masking_curve(model, x, maps, 3).log_odds,
    "road": lambda model, x, maps: road(model, x, maps, 3),
    "pointing_game": lambda model, x, maps: pointing_game(maps, maps > 0.5).mean,
    "mass_inside": lambda model, x, maps: mass_inside(maps, maps > 0.5),
    "controls": lambda model, x, maps: list(controls(x, maps > 0.5).values()),
    "guided_backpropagation": lambda model, x, maps: guided_backpropagation(model, x, 3),
    "shap": lambda model, x, maps: shap(model, x[0], 3, superpixels(x[0]), samples=80).values,
    "lime": lambda model, x, maps: lime(model, x[0], 3, superpixels(x[0]), samples=80).values,
    "cascade": lambda model, x, maps: (
        cascade(
            model, {"g": lambda m, x, t: saliency.gradient(m, x, t).abs().sum(1)}, x, 3, depths=[1]
        ).spearman
    ),
}
for name, function in TRUST.items():
    PATHS[name] = lambda device, function=function: function(
        network(device), IMAGES.to(device), MAPS.to(device)
    )


def alike(here, there) -> bool:
    """The same numbers, whatever the device they are on."""
    pairs = zip(tree_leaves(here), tree_leaves(there), strict=True)
    values = [[torch.as_tensor(v).detach().cpu().double() for v in pair] for pair in pairs]
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True) for a, b in values)


def main(names, device=DEVICE):
    with Watch() as watch:
        try:
            torch.ones(3, device=device) + torch.ones(3)
        except RuntimeError:
            print("ok refuses_to_mix")
        for name in names or PATHS:
            before = watch.operations
            try:
                same = alike(PATHS[name]("cpu"), PATHS[name](device))
                why = "" if same else "other numbers than on the CPU"
                idle = device == DEVICE and watch.operations == before
                why = "nothing ran on the device" if idle else why
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                why = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            print(f"failed {name}: {' '.join(why.split())}" if why else f"ok {name}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if "--cuda" in sys.argv:
        torch.backends.cudnn.allow_tf32 = False  # ten bits would not be the same numbers
        main([], torch.device("cuda", 0))
    else:
        main(sys.argv[1:])
