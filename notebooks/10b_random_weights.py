# %% [markdown]
# # Random weights, hidden pixels
#
# **Two tests that need no known truth: does a map change when the model loses its weights, and does the answer change when the map's top is hidden? On birds, whose truth is known, we see what the tests are worth; on photographs they are all we have.**

# %% [markdown] tags=["remove-cell"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ctrace-book/ctrace/blob/main/notebooks/10b_random_weights.ipynb)

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
# - **take** the weights from a model, and see which maps notice,
# - **hide** pixels along a map: by hand, with three scores, under four fills,
# - **judge** six methods on photographs, where nobody knows the truth, and say what five photographs cannot show.
#
# You need [Falsification](10_falsification.ipynb), the page before. The last cell prints how long this page took to run.

# %% tags=["hide-input"]
import time
import warnings
from textwrap import fill as wrapped

import numpy as np
import torch
import torch.nn.functional as F
from ctrace import load_photo, viz
from ctrace.aviary import PARTS, Aviary, importance_table, render
from ctrace.look.saliency import integrated_gradients as integrated
from ctrace.trust import localize
from ctrace.trust.falsify import falsify
from ctrace.trust.hide import FILLS, deletion, insertion, masking_curve, road
from ctrace.trust.methods import cnn_methods, guided_backpropagation
from ctrace.trust.randomize import cascade, own_scale, randomize, stages
from ctrace.viz.gallery import show_figure
from ctrace.world.models import load_model
from scipy.stats import binomtest
from torch import nn
from torch.fx.experimental.optimization import fuse
from torchvision.transforms.functional import pil_to_tensor

# %%
started = time.time()
device = "cuda" if torch.cuda.is_available() else "cpu"
model = load_model("aviary-resnet-0", device=device)
model = model.to(memory_format=torch.channels_last)  # the same numbers, faster on a CPU
print(f"torch {torch.__version__} on {device}")

# %% [markdown]
# ## Which of two maps notices?
#
# Give a trained model random weights, first in its head, then in layer after layer down to the input {cite:p}`adebayo2018`. Without its head it knows no species, so a map of its reasons has to become another map. Here are two methods and one bird that the
# model has never seen. Which of the two notices?

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

# %% tags=["hide-input"]
# each batch norm folded into its convolution: the same answers, sooner
quick = fuse(model).to(memory_format=torch.channels_last)
with torch.no_grad():
    assert torch.allclose(quick(images), model(images), atol=1e-4)

# %%
methods, ONE = cnn_methods(), 2
chosen = {
    "guided backpropagation": methods["guided backpropagation"],
    "|gradient|": methods["|gradient|"],
    "integrated gradients": lambda *given: integrated(*given, steps=16).sum(1),
    "Grad-CAM, layer3": methods["Grad-CAM, layer3"],
    "edges": lambda model, x, y: localize.controls(x, x[:, 0])["edges"],
}

# %% tags=["hide-input"]
depths = (0, 1, 2, 3, 5, 7)
nets = [randomize(model, depth) for depth in depths]
with warnings.catch_warnings():
    # a random model bends more than 16 steps can follow
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
    alt="Two rows of maps of one bird. The upper row keeps its drawing of the bird "
    "although the model loses its weights, the lower one turns into scattered "
    "dots.",
    caption="One bird, the model losing its weights from left to right. Above, the "
    "drawing of a bird stays until the first layers go. Below, signs change first, "
    "and places later.",
)

# %% [markdown]
# The upper row goes on drawing a bird for a model that cannot tell one species from another. How like is a map to that of the trained model? By the rank correlation over all pixels, the same of the magnitudes, and the structural similarity (SSIM) of
# the maps as drawn. Four methods and a filter that asks no model, on five birds: which line stays up?

# %%
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "image .*integrated gradients")
    few = images[:5], classes[:5].to(device)
    fading = cascade(model, chosen, *few, depths=(1, 2, 3, 5, 7))

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

# %% tags=["hide-input"]
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
    alt="Likeness of five kinds of maps to those of the trained model, by how far "
    "down it is random. Edges stay at one, guided backpropagation stays near one "
    "until layer3, the others fall with the head.",
    caption="The model loses its weights from left to right. Edges never change; "
    "guided backpropagation hardly does until the first layers go. Means over "
    "five birds, bands of two standard errors.",
)

# %%
two = fading.stages.index("layer4")  # the head and the last block are random
after = dict(zip(fading.methods, fading.spearman[:, two].mean(1)))
sizes = dict(zip(fading.methods, fading.spearman_abs[:, two].mean(1)))
print(f"{'random head and last block':28s}signed  magnitudes")
for name, value in after.items():
    print(f"{name:28s}{value:+6.2f} {sizes[name]:+8.2f}")
assert (
    after["guided backpropagation"] > 0.5
    and after["edges"] > 0.99
    and abs(after["integrated gradients"]) < 0.2
)
assert 0.3 < sizes["integrated gradients"] < 0.7

# %% [markdown]
# Guided backpropagation {cite:p}`springenberg2015`, which survived on most birds of the page before, fails: its drawing needs hardly anything that the model has learned. Integrated gradients pass with their signs and hardly without them, since about half of
# the likeness of their magnitudes is left. Say which of the two you report.
#
# ## Hiding more and more, by hand
#
# *Deletion* hides the picture from the top of the map to its bottom, and the probability of the class should fall soon; *insertion* shows it in that order, and it should rise soon {cite:p}`petsiuk2018`. A picture has four pixels, all 1; a model
# adds them up with the weights 3, 2, 1 and 0 and puts the sum $s$ through $1/(1 + e^{-s})$. A right map orders the pixels by their weights, so that deletion leaves $s = 6, 3, 1, 0$ and $0$; a wrong map the other way round. Which areas have the two curves?

# %%
weights = np.array([3.0, 2.0, 1.0, 0.0])


def by_hand(order):
    """Probability with none, one, ... all four pixels hidden, in this order."""
    hidden = [weights[order[:k]].sum() for k in range(5)]
    return 1 / (1 + np.exp(-(weights.sum() - np.array(hidden))))


orders = {"right map": [0, 1, 2, 3], "wrong map": [3, 2, 1, 0]}
curves = {name: by_hand(order) for name, order in orders.items()}
for name, p in curves.items():
    area = ((p[1:] + p[:-1]) / 2).mean()
    print(f"{name}: {np.round(p, 2)}, area {area:.3f}")

# %% [markdown]
# And the same from `ctrace`, as a model and two maps of $2 \times 2$ pixels:


# %%
class Four(nn.Module):
    """Logits of two classes, s and 0, from a picture of four pixels."""

    def forward(self, x):
        s = x.mean(1).flatten(1) @ torch.tensor(weights).to(x)
        return torch.stack([s, torch.zeros_like(s)], 1)


for name, order in orders.items():
    scores = torch.zeros(4)
    scores[order] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    asked = Four().eval(), torch.ones(1, 3, 2, 2), scores.view(1, 2, 2), 0
    found = deletion(*asked, fill="zero", steps=4)
    area = ((curves[name][1:] + curves[name][:-1]) / 2).mean()
    assert np.allclose(found.values[0], curves[name], atol=1e-6)
    assert abs(float(found.auc[0]) - area) < 1e-6

# %% tags=["hide-input"]
figure = viz.show_curves(
    np.arange(5), curves, "hidden pixels", "probability of the class"
)
figure.axes[0].set_xticks(range(5))
show_figure(
    figure,
    name="trust-four-pixels",
    alt="Two falling curves. The right map's falls from the first pixel on, the wrong "
    "map's stays near one until the third.",
    caption="Four pixels, hidden in two orders. The right map has the smaller area.",
)

# %% [markdown]
# ## The same on birds
#
# Eight birds, on which the truth is known: parts weighed by what removing them does to this model, and, as a lie, the same with the sign turned round. A third score, ROAD {cite:p}`rong2022`, fills hidden pixels from their
# neighbours and takes half the difference between hiding the least and the most relevant first; it is 0 for a map that knows nothing.

# %%
importance = importance_table(model, scenes, classes.tolist())  # by removal (b, p)
truth = localize.planted_truth(parts, importance)
lie = localize.planted_lie(parts, importance)
blind = localize.controls(images.cpu(), parts)
asked = model, images, classes.to(device)
maps = {name: methods[name](*asked).cpu() for name in ("|gradient|", "Grad-CAM")}
maps["integrated gradients"] = integrated(*asked, steps=32).sum(1).cpu()

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
        (road, {"shares": (0.1, 0.5)}),
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
    alt="Deletion and insertion curves of five maps. Integrated gradients fall first "
    "and the planted truth next; the planted lie is last in both.",
    caption=f"Mean over {BIRDS} birds. Random lies between the planted truth and the "
    "planted lie; integrated gradients fall even before the truth.",
)

# %%
found = localize.pointing_game, localize.positive_mass_inside
print(f"{'':22s}deletion insertion   ROAD  pointing  mass  parts")
for name, m in shown.items():
    where = [f(m, parts.sum(1).clamp(max=1)).mean for f in found] + [
        localize.part_correlation(m, parts, importance).mean
    ]
    print(
        f"{name:22s}{gone[name].auc.mean():8.2f}{come[name].auc.mean():10.2f}",
        f"{roads[name].mean():+6.2f}" + "".join(f"{v:9.2f}" for v in where),
    )

# %% [markdown]
# The last three columns need the true parts: does the largest value lie on one, how much of the mass does, and does the map order the parts as the model does. Bird by bird, the truth has to beat chance, and chance the lie.

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
# Yet the truth does not win deletion: with the first tenth hidden, integrated gradients leave less of the answer. A likely reason is that the truth spreads the worth of a part evenly over it, while deletion rewards the few pixels that break the answer. In
# insertion the same map is no better than noise.

# %%
tenth = gone["random"].shares.index(0.1)
soonest = {name: float(curve.values.mean(0)[tenth]) for name, curve in gone.items()}
print("left with a tenth hidden:")
for name, share in soonest.items():
    print(f"    {name}: {share:.2f}")
assert soonest["integrated gradients"] < soonest["planted truth"]
noise_gets, fine_gets = (
    float(come[n].auc.mean()) for n in ("random", "integrated gradients")
)
print(f"insertion: random {noise_gets:.2f}, integrated gradients {fine_gets:.2f}")
assert abs(noise_gets - fine_gets) < 0.1

# %% [markdown]
# How far is chance from the truth? That depends on the fill:

# %%
given = quick, images
auc = {
    fill: [
        float(deletion(*given, shown[name], classes, fill=fill, steps=10).auc.mean())
        for name in ("planted truth", "random")
    ]
    for fill in FILLS
    if fill != "blur"
}
auc["blur"] = [float(gone[name].auc.mean()) for name in ("planted truth", "random")]
for fill, (t, r) in auc.items():
    print(f"deletion into {fill}: truth {t:.2f}, random {r:.2f}")
assert max(r for _, r in auc.values()) - min(r for _, r in auc.values()) > 0.05
assert max(auc, key=lambda fill: auc[fill][1]) == "blur"

# %% [markdown]
# Scattered dots of zero, of the mean colour or of noise break a picture sooner than scattered blur, wherever they lie. So name the fill beside a score, and give the score of the random map.
#
# ## Where nobody knows the truth
#
# A photograph has no planted truth, and three tests are left: random weights, moved regions, deletion. SqueezeNet {cite:p}`iandola2016` with its thousand classes, five photographs on which it is right, squeezed to 144 x 144 pixels, and six methods that cost
# little. Predict which of the six passes all three.

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
# Integrated gradients take 8 steps. Grad-CAM is drawn at the last block, HiResCAM and the segment one block earlier, where the grid is twice as fine.

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


def asked_once(name):
    """The method, with the maps that it has drawn for the trained network kept."""
    ask = on_photos[name]
    return lambda net, x, y: drawn_by[name] if net is chain else ask(net, x, y)


# %%
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "image .*integrated gradients")  # 8 steps are few
    drawn_by = {n: ask(chain, inputs, things).cpu() for n, ask in on_photos.items()}
    kept = {name: asked_once(name) for name in on_photos}
    unlearned = cascade(chain, kept, inputs, things, depths=(1, 3))
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
    alt="Five photographs under the maps of six methods: a cat, a cup of coffee, a "
    "motorcycle, a portrait and a pagoda.",
    caption="Five photographs, six methods, each asked about the class at the left. "
    "Nobody knows which of them are right.",
)

# %% [markdown]
# The moved regions: 5% of the picture, 19 copies, blur. Deletion: the first 2, 5, 10 and 20% into blur, and the area under the curve as a share of what it would be if nothing were lost.


# %%
def survivors(results):
    """How many of all images survived."""
    return sum(result.verdict == "survived" for result in results)


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
    alt="Three panels with a point for each photograph and map. Guided backpropagation"
    " lies far left in the middle and right panels and far right in the first; no "
    "method reaches the left of the middle panel with all five photographs.",
    caption="One point per photograph. Left: rank correlation with the map of a "
    "network whose last layer is random; controls ask no network and are left "
    "out. Middle: 0.05, as far left as 19 copies allow, is where a map "
    "survives. Right: the class's probability while the first fifth is hidden, as a "
    "share of the one before; above 1, hiding raised it. Shaded: controls.",
)

# %%
print(f"{'likeness, random:':22s}{'last':>9s}{'last 3':>8s}{'survive':>9s}{'left':>7s}")
best_control = np.min([left[n] for n in know_nothing], 0)
verdict_of = {}
for n, results in tested.items():
    like = [f"{v:+.2f}" for v in stays[n].mean(1)] if n in stays else ["", ""]
    verdict_of[n] = survivors(results), int((left[n] < best_control).sum())
    print(
        f"{n:22s}{like[0]:>9s}{like[1]:>8s}{verdict_of[n][0]:4d} of 5",
        f"{left[n].mean():6.2f}",
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
assert verdict_of["guided backpropagation"][0] == max(
    on for on, _ in verdict_of.values()
)
assert all(left[n].mean() < min(left[c].mean() for c in know_nothing) for n in forgets)

# %% [markdown]
# No method passes all three tests on all five photographs. Guided backpropagation is best under deletion and shares the first place under moved regions; only random weights tell that its maps hardly need the last three stages of the network. The segment is asked
# about no class, so a random last layer cannot change it. Integrated gradients, Grad-CAM and HiResCAM lose their maps with the last layer and beat every control under deletion on average, but each is falsified on some photographs. Plain noise
# survives on one, the magnitude of the gradient on none.
#
# What can five photographs not show?

# %%
best = max(on_photos, key=lambda n: verdict_of[n][0])
sure_of = binomtest(verdict_of[best][0], 5).proportion_ci(method="wilson")
told = f"interval {sure_of.low:.2f} to {sure_of.high:.2f}"
print(f"{best}: {verdict_of[best][0]} of 5, {told}")
print(f"smallest p for two methods on five photographs: {binomtest(5, 5).pvalue}")
assert sure_of.high - sure_of.low > 0.5 and binomtest(5, 5).pvalue > 0.05

# %% [markdown]
# They cannot tell two methods apart: even if one survived on all five and the other on none, the exact test would say $p = 0.0625$. And a survivor may still be wrong: nobody knows whether its map names *all* that counts, or orders it
# well, for another fill or another draw of random weights.

# %% [markdown]
# ## When it refuses
#
# With every pixel replaced there is nothing left to impute from, and a model without ReLU, such as the four pixels, has nothing that guided backpropagation could cut:


# %%
def said(call, *words):
    """Prints the error of a call that must fail with these words."""
    try:
        call()
    except ValueError as error:
        print(wrapped(f"{type(error).__name__}: {error}", 88))
        assert all(word in str(error) for word in words)
    else:
        raise AssertionError("this should have been refused")


dots = blind["random"][:1]
said(lambda: road(quick, images[:1], dots, classes[:1], shares=(1.0,)), "impute")
said(
    lambda: guided_backpropagation(Four().eval(), images[:1, :, :2, :2], 0),
    "no nn.ReLU",
)

# %% [markdown]
# ## Exercises
#
# ```{exercise}
# :label: ex-trust-anew
#
# **Predict.** A method ignores the model and draws random numbers, new ones at every call. What is the likeness of its maps before and after the model lost its head, and does it pass the test of random weights?
# ```

# %%
my_likeness, my_passes = None, None  # a number, and True or False


# %%
def check_anew(likeness, passes):
    """Runs the test with such a method."""
    if None in (likeness, passes):
        return print("no answer yet")
    calls = iter(range(1000))

    def anew(model, x, y):
        dice = torch.Generator().manual_seed(next(calls))
        return torch.rand((len(x), *x.shape[2:]), generator=dice)

    found = float(cascade(model, {"anew": anew}, *few, depths=(1,)).spearman.mean())
    right = abs(likeness - found) < 0.1 and bool(passes) == (abs(found) < 0.2)
    print(f"likeness {found:+.2f}:", "yes" if right else "no: what links two draws?")
    return right


check_anew(my_likeness, my_passes)

# %% [markdown]
# ```{solution-start} ex-trust-anew
# :class: dropdown
# ```
#
# The two maps are independent, so the likeness is about 0, and the test is passed: it throws out maps that do not need the model, and not those that need nothing at all. Other tests do; ROAD gave noise about 0.

# %%
assert check_anew(0.0, True)

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
def my_pointing(maps, masks):
    return None  # yours: (b,)


# %%
def check_pointing(own):
    """Compares with ctrace, on real maps, on ties and on a constant map."""
    if own(maps["Grad-CAM"], birds > 0.5) is None:
        return print("no answer yet")
    tied = maps["Grad-CAM"].clamp_max(float(maps["Grad-CAM"].quantile(0.99)))
    right = True
    for name, m in (
        ("maps", maps["|gradient|"]),
        ("ties", tied),
        ("constant", torch.ones(BIRDS, 96, 96)),
    ):
        got, want = own(m, birds > 0.5), localize.pointing_game(m, birds).values
        close = torch.allclose(torch.as_tensor(got).double(), want, atol=1e-6)
        hint = f"no, {want[0]:.3f} for the first image: do several share the maximum?"
        print(f"{name}: {'yes' if close else hint}")
        right = right and close
    return right


check_pointing(my_pointing)

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
# :label: ex-trust-deletion
#
# **Break it.** Make maps of the eight birds from the masks of their parts alone, `(b, p, height, width)`, without the model, whose deletion score (into blur) is better than that of Grad-CAM.
# ```


# %%
def my_masks(parts):
    return None  # yours: (b, height, width)


# %%
def check_deletion(own):
    """Compares two mean areas under the curve: the smaller is the better."""
    if own(parts) is None:
        return print("no answer yet")
    area = float(deletion(quick, images, own(parts), classes, steps=10).auc.mean())
    peer = float(gone["Grad-CAM"].auc.mean())
    print(f"yours {area:.2f}, Grad-CAM {peer:.2f}")
    return area < peer


check_deletion(my_masks)

# %% [markdown]
# ```{solution-start} ex-trust-deletion
# :class: dropdown
# ```
#
# All parts alike, as the control *area* does it:

# %%
assert check_deletion(lambda parts: parts.sum(1))

# %% [markdown]
# This map knows the bird and nothing of the model. A method that scores no better has not shown that it knows more.
#
# ```{solution-end}
# ```

# %% [markdown]
# In this notebook we have
#
# - **taken** the weights from a model, and seen which maps notice,
# - **hidden** pixels along a map: by hand, with three scores, under four fills,
# - **judged** six methods on photographs, and said what five of them cannot show.
#
# What this does not show: anything for another network. Next: [Shapley values](10c_shapley.ipynb), where the question is not whether a map is right but which of several right answers it gives.

# %%
took, threads = time.time() - started, torch.get_num_threads()
print(f"this page ran in {took:.0f} s on {device}, {threads} threads")
