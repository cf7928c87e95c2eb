# %% [markdown]
# # Falsification
#
# **A map that looks right can be wrong. A test is worth something if it can say so: regions of equal area, copies moved elsewhere, maps known to be false, and every image counted.**

# %% [markdown] tags=["remove-cell"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ctrace-book/ctrace/blob/main/notebooks/10_falsification.ipynb)

# %% tags=["remove-cell"]
# Colab, Kaggle: install the package. Does nothing where it is installed.
import importlib.util
import subprocess
import sys

address = "git+https://github.com/ctrace-book/ctrace"
if importlib.util.find_spec("ctrace") is None:
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", address])

# %% [markdown]
# In this notebook you will
#
# - **falsify** maps: one by hand, every method of the book, and a network on photographs,
# - **catch** what fools such tests: areas, outlines, grey dots, averages of averages,
# - **read** how sure an answer is: controls, intervals, comparisons in pairs.
#
# You need the maps of [Grad-CAM](05_gradcam.ipynb) and the birds of [the aviary](00_aviary.ipynb). The last cell prints how long this page took to run.

# %%
import copy
import time
import warnings
from textwrap import fill as wrapped

import numpy as np
import timm
import torch
import torch.nn.functional as F
from ctrace import load_photo, viz
from ctrace.aviary import PARTS, Aviary, Individuals, importance_table, render
from ctrace.carrot.pipeline import Carrot
from ctrace.look.gradcam import GradCAM
from ctrace.look.saliency import integrated_gradients as integrated
from ctrace.stats import Interval, bootstrap, spearman
from ctrace.trust import localize
from ctrace.trust.falsify import angle_between, falsify, shift_places
from ctrace.trust.hide import FILLS, deletion, filled, insertion, masking_curve, road
from ctrace.trust.methods import CarrotClassifier, cnn_methods, token_methods
from ctrace.trust.randomize import cascade, own_scale, randomize, stages
from ctrace.trust.shapley import lime, shap, superpixels
from ctrace.viz.gallery import show_figure
from ctrace.world.models import load_model
from ctrace.world.tokens import TimmViTPatchBackbone
from scipy.stats import binomtest
from torch.fx.experimental.optimization import fuse
from torchvision.transforms.functional import gaussian_blur, pil_to_tensor

# %%
started = time.time()
device = "cuda" if torch.cuda.is_available() else "cpu"
model = load_model("aviary-resnet-0", device=device)
model = model.to(memory_format=torch.channels_last)  # the same numbers, faster on a CPU
print(f"torch {torch.__version__} on {device}")

# %% [markdown]
# ## It looks right
#
# Eight birds that the model has never seen, and the true parts of each.

# %%
BIRDS = 8
data = Aviary("test", BIRDS)
scenes = [data.scene(i) for i in range(BIRDS)]
drawn = [render(scene) for scene in scenes]
images = model.info.preprocess(torch.stack([d.image for d in drawn]).to(device))
classes = torch.arange(BIRDS)
parts = torch.stack(
    [torch.stack([d.masks[part] for part in PARTS]) for d in drawn]
)  # (b, p, height, width)
birds = torch.stack([d.bird for d in drawn])

# %%
# each batch norm folded into its convolution: the same answers, sooner
quick = fuse(model).to(memory_format=torch.channels_last)
with torch.no_grad():
    assert torch.allclose(quick(images), model(images), atol=1e-4)

# %%
study = Aviary("train", 280)
pictures, labels = zip(*(study[i] for i in range(280)))
train = (
    model.info.preprocess(torch.stack(pictures).to(device)),
    torch.tensor(labels).to(device),
)

# %%
methods = {
    name: method
    for name, method in cnn_methods(train).items()
    if "instance" not in name
}
maps = {
    name: method(model, images, classes.to(device)).cpu()
    for name, method in methods.items()
}
print(f"{len(maps)} methods:", "; ".join(maps))

# %% [markdown]
# Here are three maps of one bird, slightly blurred. Two come from the model, one has never seen it. Which?

# %%
blind = localize.controls(images.cpu(), parts)
wrong = gaussian_blur(blind["edges"], 9, 2.0) * blind["centre"]
ONE = 2
three = {"A": maps["SmoothGrad"][ONE], "B": wrong[ONE], "C": maps["|gradient|"][ONE]}


# %% tags=["hide-input"]
def over(photo, maps, outline=None, columns=5):
    """Maps of one photo, each in units of its own 99th percentile: their units differ."""
    return viz.show_grid(
        [viz.Panel(photo, own_scale(m.numpy()), None, outline) for m in maps.values()],
        [wrapped(name, 18) for name in maps],
        columns,
        limit=1,
        unit="share of the map's own 99th percentile",
    )


soft = {
    name: gaussian_blur(m[None], 9, 2.0)[0] if name != "B" else m
    for name, m in three.items()
}
show_figure(
    over(drawn[ONE].image, soft, birds[ONE], columns=3),
    name="trust-three-maps",
    alt="Three heat maps over one bird, called A, B and C. All three are reddest on the bird, above all on its wing.",
    caption="Three maps of one bird. One of them has never seen the model.",
)

# %% [markdown]
# It is B: the edges of the picture, blurred, and faded towards the border because birds stand in the middle. It is the same for every model, every class and every set of weights. Looking is not a test.
#
# ## The idea
#
# If a map is right, then hiding its top must move the model's answer further than hiding something else. *Something else* has to be fair: as large, and of the same shape. So the very region is moved around the
# picture. With $d$ the drop of the logit (minus the mean over classes) and $K$ copies at other places,
#
# $$
# p = \frac{1 + \#\{j : d_j \ge d_\text{top}\}}{K + 1} .
# $$ (falsification-p)
#
# A region placed at random has $p \le 0.05$ in about one case of twenty, whatever its values look like. *About*: places very near its own are not asked. And *placed at random*: edges, or a blob in the middle, know
# nothing of the model and are not placed at random, so they may pass far more often. A map *survives* if $p \le 0.05$ and the top moves the answer further than an equally large bottom does. If not,
# it is *falsified*. If the map is constant, or no region moves the answer, the test is *inconclusive*; such images stay in the count.

# %%
scores, x = maps["integrated gradients"][ONE], images[ONE : ONE + 1].cpu()
net = copy.deepcopy(model).cpu()  # one bird, by hand
k = round(0.05 * scores.numel())
order = scores.flatten().argsort(descending=True)

# %%
top, bottom = (
    torch.zeros(scores.numel(), dtype=torch.bool)
    .index_fill(0, chosen, True)
    .view(96, 96)
    for chosen in (order[:k], order[-k:])
)
print(
    f"{k} of {scores.numel()} pixels: {int(top.sum())} at the top, {int(bottom.sum())} at the bottom"
)

# %% tags=["hide-input"]
blurred = filled(drawn[ONE].image[None], "blur")[0]
regions = {
    "top hidden": top,
    "bottom hidden": bottom,
    "a copy hidden": top.roll((30, -25), (0, 1)),
    "another copy": top.roll((-20, 31), (0, 1)),
}
show_figure(
    viz.show_grid(
        [
            drawn[ONE].image,
            *(
                torch.where(mask, blurred, drawn[ONE].image)
                for mask in regions.values()
            ),
        ],
        ["the picture", *regions],
        columns=5,
    ),
    name="trust-regions",
    alt="A bird, and the same bird with four regions of equal area blurred away.",
    caption="What the model is shown. All four regions have the same area; the last two have the shape of the first.",
)

# %% [markdown]
# ## By hand
#
# Blur is the fill, 99 copies the null. The top of this map lies on wing, crest and tail. Before you run it: how many of the 99 copies will do as much?

# %%
places = shift_places(
    (96, 96), copies=99, min_shift=8, seed=0
)  # around the edges, and at least 8 pixels away
masks = torch.stack(
    [top, bottom]
    + [top.roll(tuple(int(step) for step in place), (0, 1)) for place in places]
)
with torch.no_grad():
    whole, z = net(x), net(torch.where(masks[:, None], filled(x, "blur"), x))

# %%
target = int(classes[ONE])
drop = (whole[:, target] - whole.mean(1)) - (z[:, target] - z.mean(1))
d_high, d_low, null = drop[0], drop[1], drop[2:]
p = (1 + int((null >= d_high).sum())) / 100
print(
    f"top {d_high:.2f}, bottom {d_low:+.2f}, copies {null.min():+.2f} to {null.max():+.2f}; p = {p}"
)

# %% [markdown]
# And the same from `ctrace`:

# %%
result = falsify(scores, x, net, target)
print(result.verdict, "-", result.reason)
assert (
    abs(result.d_high - float(d_high)) < 1e-3
    and abs(result.d_low - float(d_low)) < 1e-3
    and result.p == p
)
assert np.allclose(result.null, null, atol=1e-3) and result.verdict == "survived"

# %%
tested = {
    "integrated gradients": result,
    "A, SmoothGrad": falsify(three["A"], x, net, target),
    "B, edges": falsify(three["B"], x, net, target),
}


# %% tags=["hide-input"]
@viz.style()
def among_copies(tested):
    """What hiding the copies does, and the top and the bottom of each map among them."""
    figure = viz.new_picture(viz.WIDTH, 2.6)
    axes = figure.subplots(1, len(tested))
    blue, orange, green = (viz.segment_colour(i) for i in range(3))
    for ax, (name, r) in zip(axes, tested.items()):
        bars = {"weights": np.full(len(r.null), 1 / len(r.null)), "alpha": 0.5}
        ax.hist(r.null, 20, color=blue, label="99 moved copies", **bars)
        ax.axvline(r.d_high, color=orange, linestyle="--", label="top of the map")
        ax.axvline(r.d_low, color=green, linestyle="-.", label="bottom")
        ax.set(title=name, xlabel="drop of the logit")
    axes[0].set_ylabel("share of the copies")
    shown = axes[0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside upper center", ncols=3)
    return figure


show_figure(
    among_copies(tested),
    name="trust-null",
    alt="Three histograms of the drops caused by moved copies; in each the top of the map lies far to the right.",
    caption="One bird, three maps: what the copies do, and where the top and the bottom of each map lie among them.",
)

# %%
print({name: (r.verdict, r.p) for name, r in tested.items()})
assert tested["B, edges"].verdict == "survived"

# %% [markdown]
# The edges survive! They are on the bird, and most copies are not. The test did its work: the *place* matters. But it asked an easy question.
#
# ## The outline is not enough
#
# A second null asks a harder one. Copies of the map are moved *inside the bird*, and only its pixels are compared, always as many. A map that finds the bird, and no more, has no advantage over its own copies.


# %%
def survivors(results):
    """How many of all images survived; whatever did not is still counted in `rate`."""
    return sum(result.verdict == "survived" for result in results)


def rate(results):
    """Their share of **all** images, with its 95% Wilson interval over images."""
    n = len(results)
    low, high = binomtest(survivors(results), n).proportion_ci(method="wilson")
    return Interval(survivors(results) / n, low, high)


# %%
names = {"edges": wrong, "integrated gradients": maps["integrated gradients"]}
verdicts = {}
for name, m in names.items():
    verdicts[name] = falsify(m, images, quick, classes, inside=birds, copies=39)
    anywhere = sum(r.p <= 0.05 and r.margin > 0 for r in verdicts[name])
    print(
        f"{name}: {anywhere} of {BIRDS} survive against copies anywhere, {survivors(verdicts[name])} against copies inside the bird too"
    )

# %%
stopped = [r for r in verdicts["edges"] if r.p <= 0.05 and r.p_inside > 0.05]
print(f"edges, stopped inside {len(stopped)} birds; the first: {stopped[0].reason}")
assert survivors(verdicts["integrated gradients"]) > survivors(verdicts["edges"]) + 3
assert all(r.verdict == "falsified" for r in stopped) and len(stopped) > BIRDS / 2

# %% [markdown]
# Most of the edges' survivals are gone: other regions of the bird do as much.

# %% [markdown]
# ## Area alone can decide
#
# A published rule scales a map to [0, 1], hides everything above 0.7, then everything below 0.3, and calls the map false if the second moves the embedding as far as the first. Here is one map with exponents: the map itself,
# its square, its square root. All of them order the pixels alike. Predict what happens to the two regions as the exponent grows, and to the verdict.


# %%
def by_threshold(scores, x, model, high=0.7, low=0.3, copies=25, noise=0.02):
    """The published rule: no null, and copies that differ by a little noise alone."""
    scaled = (scores - scores.min()) / (scores.max() - scores.min())
    regions = torch.stack([scaled > high, scaled < low])
    speckle = torch.randn(
        copies, *x.shape[1:], generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        whole = model(x).double()
        d_high, d_low = (
            angle_between(
                whole, model(torch.where(region, 0, x) + noise * speckle).double()
            )
            for region in regions
        )
    area_high, area_low = regions.double().mean((1, 2)).tolist()
    found = {"d_high": float(d_high.mean()), "d_low": float(d_low.mean())}
    verdict = "survived" if found["d_high"] > found["d_low"] else "falsified"
    if 0 in (area_high, area_low):
        verdict = "inconclusive"
    return found | {"verdict": verdict, "area_high": area_high, "area_low": area_low}


# %%
cam = GradCAM(net, "layer3").explain(x, target=target).heatmap(relu=False)[0]
cam = torch.from_numpy((cam - cam.min()) / (cam.max() - cam.min()))
exponents = np.geomspace(0.1, 8, 9)
ruled = [by_threshold(cam**e, x, net) for e in exponents]
fair = [falsify(cam**e, x, net, target) for e in exponents[::4]]

# %% tags=["hide-input"]
areas = {
    "above 0.7": np.array([r["area_high"] for r in ruled]),
    "below 0.3": np.array([r["area_low"] for r in ruled]),
}
moved = {
    "above 0.7": np.array([r["d_high"] for r in ruled]),
    "below 0.3": np.array([r["d_low"] for r in ruled]),
}
show_figure(
    viz.show_curves(
        exponents,
        {"area of the region": areas, "what hiding it does": moved},
        "exponent of the map",
        ["share of the picture", "angle, radians"],
        logx=True,
    ),
    name="trust-area",
    alt="Left: the upper region shrinks and the lower one grows with the exponent. Right: the angles follow, and cross.",
    caption="One ordering of the pixels, nine exponents. Where the curves on the right cross, the published verdict turns around.",
)

# %%
print("published rule:", {f"{e:.2g}": r["verdict"] for e, r in zip(exponents, ruled)})
print("equal areas:   ", {f"{e:.2g}": r.verdict for e, r in zip(exponents[::4], fair)})
assert {r["verdict"] for r in ruled} == {"survived", "falsified"} and len(
    set(fair)
) == 1

# %% [markdown]
# The published verdict depends on how the map is scaled, hence on nothing that the map says. With equal areas only the order counts, and all exponents get the same record, digit for digit.
#
# Five maps of known quality make it plain. *Right* is where this model looks: its parts, weighed by what their removal does to the logit, which the aviary tells us.

# %%
importance = importance_table(
    model, scenes, classes.tolist()
)  # by removal, in logits (b, p)
truth, lie = (
    localize.planted_truth(parts, importance),
    localize.planted_lie(parts, importance),
)
u, u2, u3 = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(4)).double()
right = truth[ONE] / truth[ONE].max()

# %%
five = {
    "right": (right + 0.01 * u, "survived"),
    "right, heavy-tailed": (right.clamp_min(0) * (1 + u) ** 20 + 0.01 * u2, "survived"),
    "random, heavy-tailed": (u2**20, "falsified"),
    "random, left-skewed": (1 - u3**20, "falsified"),
    "right, upside down": (-right + 0.01 * u, "falsified"),
}

# %%
mistakes = []
for name, (m, should) in five.items():
    published, equal = by_threshold(m, x, net), falsify(m, x, net, target)
    print(
        f"{name:20s} equal areas: {equal.verdict:9s} published: {published['verdict']:9s} (areas {published['area_high']:.3f} and {published['area_low']:.3f})"
    )
    assert equal.verdict == should
    mistakes += [name] * (published["verdict"] != should)

# %%
print("published rule wrong on:", mistakes)
assert mistakes == ["right, heavy-tailed", "random, left-skewed"]

# %% [markdown]
# Both mistakes go with the areas: a right map with a few very large values is called false, because nearly the whole picture lies below 0.3; a random map with most values near its maximum survives.

# %% [markdown]
# ## Calibration
#
# A test that fails everything would have been right on three of the five maps above. So count: how often does a region placed at random survive? About one time in twenty is the promise. Eighty birds, one random blob each, 19 copies.

# %%
many = Aviary("test", 80)
others, species = zip(*(many[i] for i in range(len(many))))
others = model.info.preprocess(torch.stack(others).to(device))
blobs = localize.controls(others.cpu(), others[:, 0].cpu(), seed=1)["smooth random"]
blind_results = falsify(blobs, others, quick, torch.tensor(species), copies=19)
by_luck = rate(blind_results)
print(
    f"random blobs: {survivors(blind_results)} of {len(blobs)} survive, {by_luck.value:.1%} of birds, interval {by_luck.low:.1%} to {by_luck.high:.1%}"
)
assert by_luck.low <= 0.05 and by_luck.value <= 0.12

# %% [markdown]
# ## Every method of the book on one page
#
# All methods, both nulls, and the controls: maps that must fail, and the two whose quality is known. With 19 copies $p = 0.05$ if no copy does as much, and no map survives otherwise: few copies leave the level as it is and cost some power. CARROT explains a model of its own, a linear head on a graph of ViT tokens, and is tested on that one.

# %%
loader = [
    (study_images, study_labels)
    for study_images, study_labels in zip(
        torch.stack(pictures).split(70), torch.tensor(labels).split(70)
    )
]
carrot = CarrotClassifier(
    Carrot(TimmViTPatchBackbone(load_model("aviary-vit-0", device=device))).fit(
        loader, num_classes=14, progress=False
    )
)
carrot_maps = {
    "CARROT region removal": token_methods()["CARROT region removal"](
        carrot, images.cpu(), classes
    )
}

# %%
checked = {"planted truth": truth, "planted lie": lie, **blind}
few = {"copies": 19, "inside": birds}
page = {
    name: falsify(m, images, quick, classes, **few)
    for name, m in {**maps, **checked}.items()
}
page |= {
    name: falsify(m, images.cpu(), carrot, classes, **few)
    for name, m in carrot_maps.items()
}

# %% tags=["hide-input"]
show_figure(
    over(
        drawn[ONE].image, {name: m[ONE] for name, m in {**maps, **carrot_maps}.items()}
    ),
    name="trust-all-maps",
    alt="One bird under the maps of all methods of the book, in a grid.",
    caption="All methods, one bird, asked about its species. Each map on its own scale.",
)


# %% tags=["hide-input"]
def both_rates(results):
    """Survival against copies anywhere, and against copies inside the bird as well."""
    anywhere = sum(r.p <= 0.05 and r.margin > 0 for r in results)
    low, high = binomtest(anywhere, len(results)).proportion_ci(method="wilson")
    strict = rate(results)
    return [
        [anywhere / len(results), low, high],
        [strict.value, strict.low, strict.high],
    ]


show_figure(
    viz.show_intervals(
        {"": {n: both_rates(page[n]) for n in [*checked, *maps, *carrot_maps]}},
        ["anywhere", "anywhere and inside"],
        f"share of {BIRDS} birds on which the map survives; dashed: chance, 5%",
        reference=0.05,
        quiet=list(checked),
    ),
    name="trust-page",
    alt="Survival rates with intervals of all controls and methods. The planted truth is at or near one, the planted lie and the random map at zero.",
    caption="Every method against copies anywhere, and inside the bird as well. Shaded: controls. Points are rates, lines their 95% Wilson intervals over birds.",
)

# %%
survive = {name: survivors(results) for name, results in page.items()}
inconclusive = {
    name: sum(result.verdict == "inconclusive" for result in results)
    for name, results in page.items()
}
print("survive:", survive)
print("inconclusive:", {name: n for name, n in inconclusive.items() if n})

# %%
assert survive["planted truth"] >= BIRDS - 1 and all(
    r.p <= 0.05 for r in page["planted truth"]
)
assert (
    survive["planted lie"] == 0
    and survive["random"] <= 1
    and survive["edges"] <= 2
    and survive["guided backpropagation"] >= BIRDS / 2
)
assert survive["area"] > BIRDS / 2  # it knows the parts, and nothing of the model

# %% [markdown]
# Read the page from its shaded rows. What edges and a blob in the middle reach against copies anywhere, no method has earned. *Area* marks all true parts alike and asks no model, and it survives inside more than half of the birds as well: even the second null is beaten by a map that knows where parts are and not which of them count. Guided backpropagation does well here; keep it in mind. And read the intervals: with so few birds most of them overlap. Two methods on the *same* birds can be compared more
# sharply than two intervals: only birds on which they differ say anything.

# %%
pair = page["integrated gradients"], page["Grad-CAM"]
won = np.array([[r.verdict == "survived" for r in results] for results in pair])
only = (won[0] & ~won[1]).sum(), (won[1] & ~won[0]).sum()
p = binomtest(int(only[0]), int(sum(only))).pvalue  # exact, two-sided (McNemar)
h = np.subtract(*2 * np.arcsin(np.sqrt(won.mean(1))))  # Cohen's effect size
print(
    f"survives with integrated gradients only: {only[0]}, with Grad-CAM at the last layer only: {only[1]}, of {BIRDS}"
)
print(
    f"difference {np.subtract(*won.mean(1)):+.2f}, exact p = {p:.3f}, effect size h = {h:+.2f}"
)

# %% [markdown]
# That is why the [scoreboard](11_scoreboard.ipynb) uses hundreds of birds and three trained models.
#
# ## Does the map need the model?
#
# Replace the model's weights by random ones, from the head down, and draw every map again {cite:p}`adebayo2018`. A model that has lost its head knows no species; a map that stays as it was does not speak of what it
# knew. Predict which of the five lines stays up.

# %%
asked = (
    "guided backpropagation",
    "|gradient|",
    "integrated gradients",
    "Grad-CAM, layer3",
)
chosen = {name: methods[name] for name in asked} | {
    "edges": lambda model, x, y: localize.controls(x, x[:, 0])["edges"],
    "integrated gradients": lambda *given: integrated(*given, steps=16).sum(1),
}
with warnings.catch_warnings():
    warnings.filterwarnings(
        "ignore", "image .*integrated gradients"
    )  # a random model bends more than 16 steps can follow
    fading = cascade(
        model, chosen, images[:5], classes[:5].to(device), depths=(1, 2, 3, 5, 7)
    )

# %% tags=["hide-input"]
lines = {
    "signed maps, rank correlation": fading.spearman,
    "magnitudes, rank correlation": fading.spearman_abs,
    "as drawn, SSIM": fading.ssim,
}
panels, bands = {}, {}
for title, table in lines.items():
    table = np.pad(
        table, ((0, 0), (1, 0), (0, 0)), constant_values=1
    )  # the trained model
    mean, error = table.mean(2), 2 * table.std(2) / table.shape[2] ** 0.5
    panels[title] = dict(zip(fading.methods, mean))
    bands[title] = dict(zip(fading.methods, zip(mean - error, mean + error)))
names = ["nothing", *fading.stages]
figure = viz.show_curves(
    np.arange(len(names)),
    panels,
    "random down to",
    "likeness to the trained map",
    bands,
)
for ax in figure.axes:
    ax.set_xticks(range(len(names)), names, rotation=55, ha="right")
show_figure(
    figure,
    name="trust-cascade",
    alt="Likeness of five kinds of maps to those of the trained model, falling with the depth of randomisation for all but edges and guided backpropagation.",
    caption="The model loses its weights from left to right. Edges never change; guided backpropagation hardly does until the first layers go.",
)

# %% tags=["hide-input"]
depths = (0, 1, 2, 3, 5, 7)
nets = [randomize(model, depth) for depth in depths]
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "image .*integrated gradients")
    one = images[ONE : ONE + 1], classes[ONE : ONE + 1].to(device)
    rows = {
        name: [chosen[name](m, *one)[0] for m in nets]
        for name in ("guided backpropagation", "integrated gradients")
    }
show_figure(
    viz.show_grid(
        [own_scale(m.cpu().numpy()) for row in rows.values() for m in row],
        ["trained", *(f"random to\n{stages(model)[d - 1]}" for d in depths[1:])],
        len(nets),
        [name.replace(" ", "\n") for name in rows],
        limit=1,
        unit="own 99th percentile",
    ),
    name="trust-fading",
    alt="Two rows of maps of one bird. The upper row keeps its drawing of the bird although the model loses its weights, the lower one turns into scattered dots.",
    caption="One bird, the model losing its weights from left to right. Above, the drawing of a bird stays. Below, signs change at once, and places follow.",
)

# %%
two = fading.stages.index("layer4")  # the head and the last block are random
after = dict(zip(fading.methods, fading.spearman[:, two].mean(1)))
print(
    "likeness with a random head and last block:",
    {name: f"{v:+.2f}" for name, v in after.items()},
)
assert (
    after["guided backpropagation"] > 0.5
    and after["edges"] > 0.99
    and abs(after["integrated gradients"]) < 0.2
)

# %% [markdown]
# Guided backpropagation, which did well above, fails: its drawing of the bird needs hardly anything that the model has learned. Integrated gradients pass. Look at the middle panel too: magnitudes keep a residue, because bright places give large values whatever the weights are. Say which of the two you report.
#
# ## Hiding more and more
#
# *Deletion* hides the picture from the top of the map to its bottom; the probability of the class should fall soon. *Insertion* shows it in that order; it should rise soon {cite:p}`petsiuk2018`. ROAD replaces
# hidden pixels by what their neighbours say, and compares both orders {cite:p}`rong2022`.

# %%
shown = {
    "planted truth": truth,
    "integrated gradients": maps["integrated gradients"],
    "Grad-CAM": maps["Grad-CAM"],
    "random": blind["random"],
    "planted lie": lie,
}
gone, come, roads = (
    {name: test(quick, images, m, classes, **how) for name, m in shown.items()}
    for test, how in (
        (deletion, {"steps": 10}),
        (insertion, {"steps": 10}),
        (road, {"shares": (0.1, 0.5, 0.9)}),
    )
)

# %% tags=["hide-input"]
panels = {
    title: {name: c.values.mean(0) for name, c in curves.items()}
    for title, curves in (("deletion, into blur", gone), ("insertion, onto blur", come))
}
show_figure(
    viz.show_curves(
        gone["random"].shares, panels, "share of the pixels", "probability of the class"
    ),
    name="trust-curves",
    alt="Deletion and insertion curves of five maps. Integrated gradients fall first and the planted truth next; the planted lie is last in both.",
    caption=f"Mean over {BIRDS} birds. Random lies between the planted truth and the planted lie; integrated gradients fall even before the truth.",
)

# %%
found = localize.pointing_game, localize.positive_mass_inside
print(f"{'':22s}deletion insertion   ROAD  pointing  mass  parts")
for name, m in shown.items():
    where = [f(m, parts.sum(1).clamp(max=1)).mean for f in found] + [
        localize.part_correlation(m, parts, importance).mean
    ]
    print(
        f"{name:22s}{gone[name].auc.mean():8.2f}{come[name].auc.mean():10.2f}{roads[name].mean():+7.2f}"
        + "".join(f"{v:9.2f}" for v in where)
    )

# %% [markdown]
# The last three columns need the true parts: does the largest value lie on one, how much of the mass does, and does the map order the parts as the model does. Now the promise of the controls, bird by bird:

# %%
for better, worse in (("planted truth", "random"), ("random", "planted lie")):
    assert (
        (gone[better].auc < gone[worse].auc).all()
        and (come[better].auc > come[worse].auc).all()
        and (roads[better] > roads[worse]).all()
    )
assert (
    localize.part_correlation(truth, parts, importance).mean > 0.999
    and localize.part_correlation(lie, parts, importance).mean < -0.999
)
assert (
    localize.pointing_game(truth, parts.sum(1)).mean == 1
    and localize.pointing_game(lie, parts.sum(1)).mean == 0
)

# %% [markdown]
# The truth beats chance, and chance the lie, in every test and on every bird. It is not the winner of deletion: with the first tenth hidden, integrated gradients leave less of the answer. The truth spreads what a part is worth evenly over it, deletion asks for
# the few pixels that break the answer, and those are two questions.

# %%
tenth = gone["random"].shares.index(0.1)
soonest = {name: float(curve.values.mean(0)[tenth]) for name, curve in gone.items()}
print("left with a tenth hidden:", {name: f"{v:.2f}" for name, v in soonest.items()})
assert soonest["integrated gradients"] < soonest["planted truth"]

# %% [markdown]
# And how far is chance from the truth? That depends on the fill:

# %%
given = quick, images
auc = {
    fill: [
        float(deletion(*given, shown[name], classes, fill=fill, steps=10).auc.mean())
        for name in ("planted truth", "random")
    ]
    for fill in FILLS
}
print(
    "deletion, truth and random:",
    {fill: f"{t:.2f} and {r:.2f}" for fill, (t, r) in auc.items()},
)
assert max(r for _, r in auc.values()) - min(r for _, r in auc.values()) > 0.05

# %% [markdown]
# The same random map, the same birds: scattered dots of some fills break a picture wherever they are, and flatter every map that scatters. A deletion score without the name of its fill is not a measurement.
#
# ## Where nobody knows the truth
#
# A photograph has no planted truth. Three tests are left that need none: random weights, moved regions, deletion. SqueezeNet {cite:p}`iandola2016`, a thousand classes, five photographs on which it is right, squeezed to 144 x 144 pixels.
# Six methods that cost little, integrated gradients with 8 steps; ParchGrad, SHAP and CARROT have their own pages. Predict which of the six passes all three.

# %%
seen = {
    "chelsea": "Egyptian cat",
    "coffee": "espresso",
    "motorcycle": "moped",
    "hopper": "bow tie",
    "china": "bell cote",
}
whole_photos = [pil_to_tensor(load_photo(name))[None] / 255 for name in seen]
squares = torch.cat(
    [
        F.interpolate(p, (144, 144), mode="bilinear", antialias=True)
        for p in whole_photos
    ]
).clamp(0, 1)

# %%
squeezenet = load_model("squeezenet", device=device)
layers = [*squeezenet.features, *squeezenet.classifier, torch.nn.Flatten()]
# one chain, so that its layers lose their weights one by one
chain = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last).eval()
inputs = squeezenet.info.preprocess(squares.to(device), (144, 144))
things = torch.tensor([squeezenet.info.index(name) for name in seen.values()]).to(
    device
)

# %%
with torch.no_grad():
    sure = chain(inputs).softmax(1).cpu()
    assert torch.equal(chain(inputs), squeezenet(inputs))
for name, p, k in zip(seen.values(), sure, things.tolist()):
    print(f"{name}: {p[k]:.2f}")
    assert p.argmax() == k

# %% [markdown]
# Grad-CAM is drawn at the last block, HiResCAM and the segment one block earlier, where the grid is twice as fine.

# %%
every = cnn_methods(deep="12", middle="10")
on_photos = {
    "|gradient|": every["|gradient|"],
    "integrated gradients": lambda *given: integrated(*given, steps=8).sum(1),
    "guided backpropagation": every["guided backpropagation"],
    "Grad-CAM": every["Grad-CAM"],
    "HiResCAM, finer": every["HiResCAM, 10"],
    "segment": every["channel tracing, segment"],
}
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "image .*integrated gradients")  # 8 steps are few
    drawn_by = {n: f(chain, inputs, things).cpu() for n, f in on_photos.items()}
    unlearned = cascade(chain, on_photos, inputs, things, depths=(1, 3))
know_nothing = localize.controls(inputs.cpu(), inputs[:, 0].cpu())
know_nothing = {n: know_nothing[n] for n in ("edges", "centre", "random")}

# %% tags=["hide-input"]
show_figure(
    viz.show_grid(
        [
            panel
            for i, square in enumerate(squares)
            for panel in [
                square,
                *(
                    viz.Panel(square, own_scale(m[i].numpy()))
                    for m in drawn_by.values()
                ),
            ]
        ],
        ["photograph", *(name.replace(" ", "\n") for name in drawn_by)],
        1 + len(drawn_by),
        [name.replace(" ", "\n") for name in seen.values()],
        limit=1,
        unit="share of the map's own 99th percentile",
    ),
    name="trust-photographs",
    alt="Five photographs under the maps of six methods: a cat, a cup of coffee, a motorcycle, a portrait and a pagoda.",
    caption="Five photographs, six methods, each asked about the class at the left. None can be called right by looking.",
)

# %% [markdown]
# Now the tests. The moved regions: 5% of the picture, 19 copies, blur. Deletion: the first 2, 5, 10 and 20% into blur; the area under the curve is given as a share of what it would be if nothing were lost.

# %%
tested, left = {}, {}
for name, m in {**know_nothing, **drawn_by}.items():
    tested[name] = falsify(m, inputs, chain, things, copies=19)
    curve = masking_curve(
        chain, inputs, m, things, ratios=(0, 0.02, 0.05, 0.1, 0.2), fill="blur"
    )
    left[name] = (curve.auc / (0.2 * curve.whole.exp())).numpy()
stays = dict(zip(unlearned.methods, unlearned.spearman))  # (depths, photographs)

# %% tags=["hide-input"]
missing = np.full((len(seen), 1), np.nan)
show_figure(
    viz.show_intervals(
        {
            "likeness, random last layer": {
                n: stays[n][0][:, None] if n in stays else missing for n in tested
            },
            "p among moved regions": {
                n: np.array([[r.p] for r in results]) for n, results in tested.items()
            },
            "left after deletion": {n: v[:, None] for n, v in left.items()},
        },
        list(seen.values()),
        "the smaller, the better",
        reference=None,
        quiet=list(know_nothing),
    ),
    name="trust-photograph-verdicts",
    alt="Three panels with a point for each photograph and map. Guided backpropagation lies far left in the middle and right panels and far right in the first; no method reaches the left of the middle panel with all five photographs.",
    caption="One point per photograph. Left: rank correlation with the map of a network whose last layer is random; controls ask no network and are left out. Middle: 0.05, as far left as 19 copies allow, is where a map survives. Right: the class's probability while the first fifth is hidden. Shaded: controls.",
)

# %%
print(f"{'likeness, random:':22s}{'last':>9s}{'last 3':>8s}{'survive':>9s}{'left':>7s}")
best_control = np.min([left[n] for n in know_nothing], 0)
verdict_of = {}
for n, results in tested.items():
    like = [f"{v:+.2f}" for v in stays[n].mean(1)] if n in stays else ["", ""]
    verdict_of[n] = survivors(results), int((left[n] < best_control).sum())
    print(
        f"{n:22s}{like[0]:>9s}{like[1]:>8s}{verdict_of[n][0]:4d} of 5{left[n].mean():7.2f}",
        f"  below all controls on {verdict_of[n][1]} of 5" * (n in stays),
    )

# %%
forgets = ("integrated gradients", "Grad-CAM", "HiResCAM, finer")
assert all(abs(stays[n][0].mean()) < 0.3 for n in forgets)
assert (stays["guided backpropagation"].mean(1) > 0.7).all()
assert (stays["segment"][0] > 0.999).all() and stays["segment"][1].mean() < 0.8
assert max(on for on, _ in verdict_of.values()) < 5
assert verdict_of["|gradient|"][0] == 0 < verdict_of["random"][0]
assert min(left, key=lambda n: left[n].mean()) == "guided backpropagation"
assert all(left[n].mean() < min(left[c].mean() for c in know_nothing) for n in forgets)

# %% [markdown]
# No method passes all three on all five. Guided backpropagation is the best of them under deletion, and its maps stay where they were when the network has lost its vote and its last two blocks: without random weights it would have come first. The segment
# is asked about no class, so the last layer cannot change it. Integrated gradients, Grad-CAM and HiResCAM lose their maps with the last layer, as they should, and under deletion they are better than every control on average. But each of them is falsified on some
# photographs, and plain noise survives on one. The magnitude of the gradient survives nowhere.
#
# What can five photographs not show?

# %%
best = max(on_photos, key=lambda n: verdict_of[n][0])
sure_of = rate(tested[best])
print(
    f"{best}: {verdict_of[best][0]} of 5, interval {sure_of.low:.2f} to {sure_of.high:.2f}"
)
print(f"smallest p for two methods on five photographs: {binomtest(5, 5).pvalue}")
assert sure_of.high - sure_of.low > 0.5 and binomtest(5, 5).pvalue > 0.05

# %% [markdown]
# They cannot tell two methods apart: even if one survived on all five and the other on none, the exact test would say $p = 0.0625$. They cannot give a rate. And a survivor is not right: without a truth nobody knows whether the map names
# *all* that counts, or orders it well; there is one network, one fill, one draw of random weights. The tests can only throw maps out. For the rest a picture is needed whose truth is known, which is why this book draws birds.

# %% [markdown]
# ## Beside SHAP
#
# Shapley values {cite:p}`lundberg2017` average over all sets of regions that could be there. Two sets of regions: superpixels, for which the absent ones show blur, and the true parts, which the aviary can draw away. Either way the
# values must sum to the logit of the picture minus that of the empty one.

# %%
explained = shap(net, x[0], target, superpixels(x[0]), samples=256)
print(
    f"{len(explained.values)} superpixels, sum {explained.values.sum():.4f}, f(all) - f(none) {explained.all - explained.none:.4f}"
)
assert abs(float(explained.values.sum()) - (explained.all - explained.none)) < 1e-10

# %%
kinds = {
    kind: importance_table(model, scenes[ONE : ONE + 1], [target], kind)[0]
    for kind in ("removal", "swap", "shapley")
}
on_parts = torch.einsum(
    "hw,phw->p", explained.map.double(), parts[ONE].double()
).numpy()
ig_parts = torch.einsum("hw,phw->p", scores.double(), parts[ONE].double()).numpy()

# %% tags=["hide-input"]
found = np.stack([*kinds.values(), on_parts, ig_parts], 1)  # (parts, 5)
show_figure(
    viz.show_intervals(
        {"": {part: row[:, None] for part, row in zip(PARTS, found)}},
        [
            *(f"truth: {kind}" for kind in kinds),
            "SHAP on superpixels",
            "integrated gradients",
        ],
        "logits",
    ),
    name="trust-shap",
    alt="Points for five parts: their importance by removal, swap and Shapley, and the sums of two maps over them.",
    caption="One bird: how much its parts matter to this model, by three definitions, and what two maps put on them.",
)

# %%
tables = {
    kind: importance_table(model, scenes, classes.tolist(), kind) for kind in kinds
}
for one, other in (("removal", "swap"), ("removal", "shapley"), ("swap", "shapley")):
    print(
        f"{one} and {other}: mean rank correlation over {BIRDS} birds {spearman(tables[one], tables[other]).mean():+.2f}"
    )
assert 0.5 < spearman(tables["removal"], tables["swap"]).mean() < 0.98

# %% [markdown]
# Truth is a choice: three sensible definitions of what a part is worth order the parts alike on most birds of this model, and not on all. Where parts can replace each other they part ways, so a score names the one it uses.
#
# LIME {cite:p}`ribeiro2016` asks the same game on the same superpixels and fits another line to it. Each region is in or out by a coin, a coalition counts the more the nearer it is to the whole picture, and a ridge penalty
# holds the coefficients down. Nothing obliges them to sum to $f(\text{all}) - f(\text{none})$. How far do they miss it, and do the two methods order the regions alike?

# %%
line = lime(net, x[0], target, superpixels(x[0]), samples=256)
both = torch.stack([explained.values, line.values])
rho, first = float(spearman(both[:1], both[1:])[0]), both.argmax(1).tolist()
print(f"LIME: sum {line.values.sum():.2f}, f(all) - f(none) {line.all - line.none:.2f}")
print(f"rank correlation with SHAP {rho:+.2f}; largest region {first}")
assert abs(float(line.values.sum()) - (line.all - line.none)) > 0.5
assert first[0] == first[1] and 0.5 < rho < 0.95

# %% [markdown]
# The same region comes first, the order of the others is alike and not the same, and the sum is off by more than half a logit. The answer of LIME depends on the width of its kernel and on its penalty, which somebody
# chose; a Shapley value has neither.
#
# ## An average of averages
#
# Is a map of likeness more often false when the two pictures are hardly alike? Sixty pairs of pictures, a map for each, a verdict for each. A published study sorted its pairs into four strata by their margin and
# correlated the four means with the four rates: exactly 1.0.

# %%
face = load_model("aviary-embedding", device=device)
album = Individuals("test", 15, 4)
views = torch.stack([album[i][0] for i in range(60)]).to(device)
views = face.info.preprocess(views)
with torch.no_grad():
    other = (
        face(views).unflatten(0, (-1, 4)).roll(-1, 1).flatten(0, 1)
    )  # another view of the same bird
    likeness = F.cosine_similarity(face(views), other).cpu().numpy()

# %%
heat = torch.from_numpy(
    GradCAM(face, "layer3", method="hirescam")
    .explain(views, target_embedding=other)
    .heatmap()
)


def likeness_lost(reference):
    """A distance for `falsify`: by how much the cosine to this reference falls."""
    return lambda whole, hidden: (
        F.cosine_similarity(whole, reference) - F.cosine_similarity(hidden, reference)
    )


paired = []
for i in range(60):
    lost = likeness_lost(other[i : i + 1].double())
    paired.append(falsify(heat[i], views[i], face, distance=lost, copies=19))
false = np.array([r.verdict == "falsified" for r in paired], float)
print(f"{int(false.sum())} of 60 falsified")

# %% [markdown]
# Where to put the three borders between four strata? Try all that leave at least six pairs in each, and look at the correlation of the four means.


# %%
def of_four(borders):
    """Rank correlation of stratum means with stratum rates."""
    stratum = np.digitize(likeness, borders)
    means = [[v[stratum == j].mean() for j in range(4)] for v in (likeness, false)]
    return float(np.nan_to_num(spearman(*(np.array([m]) for m in means))[0]))


ranked = np.sort(likeness)
cuts = [
    (a, b, c)
    for a in range(6, 60, 3)
    for b in range(a + 6, 60, 3)
    for c in range(b + 6, 55, 3)
]
rho = np.array([of_four(ranked[list(cut)]) for cut in cuts])
print(
    f"{len(cuts)} choices: correlation exactly 1.0 in {np.isclose(rho, 1).mean():.0%}, -0.8 or less in {(rho <= -0.79).mean():.0%}"
)

# %%
best = ranked[list(cuts[int(np.isclose(rho, 1).argmax())])]


def one_by_one(a, b):
    """Rank correlation of all pairs of the birds ``(birds, views)``."""
    return float(np.nan_to_num(spearman(a.reshape(1, -1), b.reshape(1, -1))[0]))


birdwise = likeness.reshape(15, 4), false.reshape(15, 4)  # a bird keeps its four views
each = bootstrap(*birdwise, statistic=one_by_one)
print(f"four means: {of_four(best):.1f}; the same sixty pairs, one by one: {each}")
assert np.isclose(rho, 1).any() and each.low < 0 < each.high


# %% tags=["hide-input"]
@viz.style()
def strata():
    """Four means, which always look like a law, beside all the pairs they were made of."""
    figure = viz.new_picture(0.86 * viz.WIDTH, 2.8)
    left, right = figure.subplots(1, 2, sharey=True)
    middle = [[v[stratum == j].mean() for j in range(4)] for v in (likeness, false)]
    left.plot(*middle, marker="o", color=viz.segment_colour(0))
    jitter = np.random.default_rng(0).uniform(-0.04, 0.04, len(false))
    right.scatter(likeness, false + jitter, s=16, color=viz.segment_colour(1), lw=0)
    left.set(title=f"four means: rank correlation {of_four(best):.1f}")
    left.set_ylabel("share falsified")
    right.set(title=f"sixty pairs: {each}")
    for ax in (left, right):
        for border in best:
            ax.axvline(border, color=viz.QUIET, linewidth=0.7, linestyle=":")
        ax.set(xlabel="cosine of the pair", ylim=(-0.08, 1.08))
        ax.set_xlim(likeness.min() - 0.02, likeness.max() + 0.02)
        ax.grid(axis="y")
    return figure


stratum = np.digitize(likeness, best)
show_figure(
    strata(),
    name="trust-strata",
    alt="Left: four points that rise steadily. Right: sixty points in two rows without any visible relation.",
    caption="The same data twice. Four means that rise make a correlation of exactly 1.0; the pairs say that the sign is not known.",
)

# %% [markdown]
# Four numbers have only 24 orders. With borders left open some choice makes the order perfect, and it looks like a law. Use all sixty verdicts: one correlation, and one interval. Its unit is not the pair either. Four pairs
# are views of one bird, and each view is in two of them, so the fifteen birds are drawn again with all that is theirs; the interval includes zero. Giving every
# pair the rate of its stratum, as was tried next, does not help. It repeats the four numbers sixty times.

# %%
copied = np.array([false[stratum == j].mean() for j in range(4)])[stratum]
print(
    f"every pair with its stratum's rate: correlation {spearman(likeness[None], copied[None])[0]:.2f}; with its own verdict {each.value:.2f}"
)
assert spearman(likeness[None], copied[None])[0] > 0.85

# %% [markdown]
# ## Your own model and images
#
# Everything above takes prepared images, a model and maps. Here a photograph and a timm network; its weights are random, so the verdict says nothing about any network you know. With trained ones, change
# one argument.

# %%
yours = timm.create_model("resnet10t", pretrained=False, zero_init_last=False).eval()
photo = torch.from_numpy(np.array(load_photo("chelsea"))).permute(2, 0, 1)[None] / 255
photo = F.interpolate(photo, (112, 112), mode="bilinear", antialias=True)

# %%
with torch.no_grad():
    label = int(yours(photo).argmax())
own_map = integrated(yours, photo, label).sum(1)
[verdict] = falsify(own_map, photo, yours, label, fill="mean", area=0.1)
print(verdict)

# %% [markdown]
# It survived, on random weights: hiding its top moves this untrained network further than hiding the copies does. That is no proof that the map is right, and it says nothing of whether the network is sensible. For many images pass a batch and `progress=True`; for an embedding model leave the class out, and the distance is the angle between embeddings.
#
# ## When it refuses
#
# In the code of a published study four experiments read a result under a name that was never written, with zero as the default. All four reported a rate of 0.0. A record with fixed fields cannot do that:


# %%
def said(call, *words):
    """Prints the error of a call that must fail with these words."""
    try:
        call()
    except (ValueError, AttributeError) as error:
        print(f"{type(error).__name__}: {error}")
        assert all(word in str(error) for word in words)
    else:
        raise AssertionError("this should have been refused")


# %%
said(lambda: verdict.falsified, "falsified")
said(lambda: falsify(own_map * torch.nan, photo, yours, label), "NaN")
said(lambda: falsify(own_map, photo, yours, label, copies=9), "more copies")
nothing = falsify(torch.zeros(1, 112, 112), photo, yours, label)
print(nothing[0].verdict, "-", nothing[0].reason)
assert rate([verdict, *nothing]).value == 0.5  # one of two: nobody is left out

# %% [markdown]
# ## Exercises
#
# ```{exercise}
# :label: ex-trust-copies
#
# **Predict.** How many copies does the test need at least so that a map can survive at $p \le 0.01$? And with 19 copies, what is the smallest p?
# ```


# %%
def check_copies(needed, smallest):
    """Compares with the formula, and with what `falsify` accepts."""

    def accepted(copies):
        try:
            falsify(own_map, photo, yours, label, copies=copies, alpha=0.01, area=0.1)
        except ValueError:
            return False
        return True

    right = (
        accepted(needed) and not accepted(needed - 1) and abs(smallest - 1 / 20) < 1e-9
    )
    print(
        "yes"
        if right
        else "no: the map's own place counts as one, see the formula; p = (1 + 0) / (K + 1) at best"
    )
    return right


# %% [markdown]
# ```{solution-start} ex-trust-copies
# :class: dropdown
# ```
#
# At best no copy does as much, and $p = 1/(K + 1)$. So 99 copies for 0.01, and 1/20 with 19.

# %%
assert check_copies(99, 1 / 20)

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise}
# :label: ex-trust-pointing
#
# **Implement.** `pointing(maps, masks)`: per image, the share of a map's largest pixels that lie in the mask `(b, height, width)`. What does a constant map get?
# ```


# %%
def check_pointing(own):
    """Compares with ctrace, on real maps, on ties and on a constant map."""
    tied = maps["Grad-CAM"].clamp_max(float(maps["Grad-CAM"].quantile(0.99)))
    right = True
    for name, m in (
        ("maps", maps["|gradient|"]),
        ("ties", tied),
        ("constant", torch.ones(BIRDS, 96, 96)),
    ):
        got, want = own(m, birds > 0.5), localize.pointing_game(m, birds).values
        close = torch.allclose(torch.as_tensor(got).double(), want, atol=1e-6)
        print(
            f"{name}: {'yes' if close else f'no, {want[0]:.3f} for the first image: do several pixels share the largest value?'}"
        )
        right = right and close
    return right


# %% [markdown]
# ```{solution-start} ex-trust-pointing
# :class: dropdown
# ```


# %%
def pointing(maps, masks):
    largest = maps == maps.amax((1, 2), keepdim=True)
    return (largest & masks).sum((1, 2)) / largest.sum((1, 2))


assert check_pointing(pointing)

# %% [markdown]
# A constant map gets the area of the mask, which is what a random finger would hit.
#
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise}
# :label: ex-trust-fool
#
# **Break it.** Make a map for the eight birds from the masks of the birds alone, without the model, that survives against copies anywhere on at least six of them. Then see it tested inside the bird.
# ```


# %%
def check_fool(own):
    """Asks for a map that passes the first null and watches the second."""
    results = falsify(own(birds), images, quick, classes, inside=birds)
    anywhere = sum(r.p <= 0.05 and r.margin > 0 for r in results)
    print(f"anywhere {anywhere} of {BIRDS}, inside too {survivors(results)}")
    return anywhere >= 6


# %% [markdown]
# ```{solution-start} ex-trust-fool
# :class: dropdown
# ```
#
# The masks alone, with a little of the same noise on every bird so that there is an order: most copies hit the background.


# %%
def outline(masks):
    return masks + 0.1 * torch.rand(
        masks.shape[1:], generator=torch.Generator().manual_seed(0)
    )


assert check_fool(outline)

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# In this notebook we have
#
# - **falsified** maps: one by hand, every method of the book, and a network on photographs,
# - **caught** what fools such tests: areas, outlines, grey dots, averages of averages,
# - **read** how sure an answer is: controls, intervals, comparisons in pairs.
#
# What this does not show: that a map which survives is right. It has not been shown false, on these pictures, at this area, with this fill. All methods, all tests and three trained models at once:
# [the scoreboard](11_scoreboard.ipynb); the definitions on one page: [Trust, in short](../book/trust.md).

# %%
print(
    f"this page ran in {time.time() - started:.0f} s on {device}, {torch.get_num_threads()} threads"
)
