# %% [markdown]
# # Grad-CAM
#
# **Where in the photograph is the evidence for the answer? A map of red and blue shows it, or seems to. How often it is right can be measured: on photographs set side by side, and on birds whose parts are known.**

# %% [markdown] tags=["remove-cell"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ctrace-book/ctrace/blob/main/notebooks/05_gradcam.ipynb)

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
# - **build** Grad-CAM from one convolution and ten numbers, and find the same numbers, and the same defect, in a network that knows a thousand things,
# - **measure** how often the maps point at the right photograph, and at the part of a bird that decided,
# - **catch** six silent failures, each beside the right map of the same photograph ({numref}`fig-gradcam-six-lies`).
#
# You need tensors, gradients, and [the toy aviary](00_aviary.ipynb), whose birds these are. The last cell prints how long this page took to run.

# %% tags=["hide-input"]
import textwrap
import time

import ctrace
import numpy as np
import timm
import torch
from ctrace import viz
from ctrace.aviary import PARTS, SPECIES, Aviary, render, sample_scene, scene_seed
from ctrace.aviary.species import species_by_name, twin_pairs
from ctrace.check import fingerprint
from ctrace.look.gradcam import WEIGHTS, GradCAM
from ctrace.look.hooks import capture
from ctrace.stats import mean_intervals
from ctrace.trust.localize import controls, pointing_game, positive_mass_inside
from ctrace.viz.gallery import Gallery, show_figure
from ctrace.world.models import chosen_model, load_model
from einops import rearrange
from torch import nn

started = time.time()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
resnet = load_model("aviary-resnet-0", device=device)
vit = load_model("aviary-vit-0", device=device)
squeezenet = load_model("squeezenet", device=device)
squeezenet.requires_grad_(False)  # its gradients end at the layer that is asked
print(f"torch {torch.__version__} on {device}")

# %% [markdown]
# ## The idea
#
# A network says *Egyptian cat*. Stop it half-way, at a layer whose channels $A_c$ are still maps with places $i$. How much would the score $s$ rise if a channel were raised a little at every
# place? That, per place, is the channel's weight $\alpha_c$, and the map is the weighted sum of the channels {cite:p}`selvaraju2017`:
#
# $$
# \alpha_c = \frac{1}{hw}\sum_{i} \frac{\partial s}{\partial A_{ci}},
# \qquad \text{cam}_i = \sum_c \alpha_c A_{ci} .
# $$ (gradcam)
#
# What is usually shown is $\max(\text{cam}, 0)$ divided by its maximum. That throws away the sign and the scale; here both are kept until the drawing.
#
# The network is SqueezeNet {cite:p}`iandola2016` with its published ImageNet weights and their thousand classes. The photograph is squeezed to 227 x 227, and the map stretched back over it.
# `features.12`, called *fire9*, is the last layer before the classifier.

# %%
FIRE5, FIRE8, FIRE9 = "features.7", "features.10", "features.12"


def pixels(name):
    """A photograph in [0, 1], (3, height, width)."""
    photo = np.array(ctrace.load_photo(name))
    return rearrange(torch.from_numpy(photo), "h w c -> c h w") / 255


def explain(model, images, target, layer=None, method="gradcam"):
    with GradCAM(model, layer, method=method) as cam:
        return cam.explain(model.info.preprocess(images), target=target)


photos = {name: pixels(name) for name in ctrace.photo_names()}
k = squeezenet.info.index("Egyptian cat")
cat = explain(squeezenet, photos["chelsea"], k, FIRE9)
print(cat.target, cat.target_layer, tuple(cat.raw.shape), f"logit {cat.score[0]:.1f}")


# %% tags=["hide-input"]
def over(photo, raw):
    """A signed map over its photograph, in shares of its largest magnitude."""
    raw = raw[None, None].cpu()
    heat = nn.functional.interpolate(raw, photo.shape[1:], mode="bilinear")[0, 0]
    return viz.Panel(photo, heat / heat.abs().max().clamp_min(1e-30))


show_figure(
    viz.show_grid(
        [photos["chelsea"], cat.raw[0] / cat.raw.abs().max()]
        + [over(photos["chelsea"], cat.raw[0])],
        ["photograph", "signed map, 13 x 13", "laid over"],
        columns=3,
        unit="share of the largest",
    ),
    name="gradcam-idea",
    alt="A cat, a grid of red and blue cells, and the same colours laid over the cat.",
    caption="A photograph, the signed Grad-CAM map of *Egyptian cat* at fire9, and "
    "the map laid over it. Red is positive, blue negative; what blue means is "
    "tested below.",
)

# %% [markdown]
# ## By hand
#
# One image of 4 x 5 numbers, one convolution with two filters, a ReLU, a mean over places, and a head that weighs the first channel 2 and the second -3.
# The first filter responds to a left edge, the second to a lower edge. Before you run it: where will the map be positive, where negative?

# %%
tiny = torch.zeros(1, 1, 4, 5, dtype=torch.double)
tiny[0, 0, 0:3, 2:4] = 1
conv, head = nn.Conv2d(1, 2, 2, bias=False), nn.Linear(2, 1, bias=False)
conv.weight.data = torch.tensor([[[[-1.0, 1], [-1, 1]]], [[[1.0, 1], [-1, -1]]]])
head.weight.data = torch.tensor([[2.0, -3]])

# %%
net = nn.Sequential(
    conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head
).double()
print(tiny[0, 0])

# %%
A = conv(tiny)[0].detach()  # (2, 3, 4)
print(A)

# %% [markdown]
# The score is $s = \sum_c w_c \operatorname{mean}_i \max(A_{ci}, 0)$. Its slope at a place is $w_c/12$ where the ReLU is open and 0 where it is shut, so
# $\alpha_c$ is $w_c / 12$ times the share of open places. No backward pass is needed.

# %%
w = head.weight[0].detach()
open_share = (A > 0).double().mean((1, 2))
alpha = w / 12 * open_share
by_hand = alpha[0] * A[0] + alpha[1] * A[1]
print(
    "open places:",
    (A > 0).sum((1, 2)).tolist(),
    " weights x 144:",
    (144 * alpha).round().int().tolist(),
)
print((144 * by_hand).round().int())

# %% [markdown]
# The map is positive along the left edge, and negative in the last row, where the second channel fires, which the head dislikes. Above that row it is -12 at the right edge,
# where the first channel is -2 and the second 0. Now the same from `ctrace`.

# %%
small = GradCAM(net).explain(tiny, target=0)
print("largest difference:", float((small.raw[0] - by_hand).abs().max()))
assert (small.raw[0] - by_hand).abs().max() < 1e-12 and (
    small.weights[0] - alpha
).abs().max() < 1e-12
assert small.target_layer == "0" and abs(small.score.item() - net(tiny).item()) < 1e-12

# %% [markdown]
# Does the right edge lower the score, as its blue says? Double both of its -2, then halve them, and look at the score.

# %%
for factor in (1, 2, 0.5):
    moved = A.clone()
    moved[0, :2, 3] *= factor
    score = float((w * moved.relu().mean((1, 2))).sum())
    print(f"first channel at the right edge x {factor}: score {score:.6f}")
    assert abs(score - small.score.item()) < 1e-12

# %% [markdown]
# It does not move. Those places lie under a shut ReLU, so their slope is exactly zero; Grad-CAM gave them the mean slope of their channel, which comes from other places. **This is its central
# defect**: a weight belongs to a whole channel, so a place where the channel is switched off is coloured all the same. HiResCAM {cite:p}`draelos2020` multiplies slope and activation *at
# the same place*, and only then sums over channels. By hand that is $w_c A_{ci}/12$ where the ReLU is open, and 0 where it is shut:

# %%
open_only = (w[:, None, None] / 12 * A.relu()).sum(0)
fine = GradCAM(net, method="hirescam").explain(tiny, target=0)
print((12 * open_only).round().int(), "sum:", float(open_only.sum()))
assert (fine.raw[0] - open_only).abs().max() < 1e-12
assert abs(open_only.sum() - small.score[0]) < 1e-12 and not open_only[:2, 3].any()

# %% [markdown]
# The right edge is blank now. Because everything behind the ReLU is linear, the cells sum to the score.
#
# ## Photographs
#
# What does the network say about the photographs of this book? Of the motorcycle's two views one is enough.

# %%
names = [name for name in photos if name != "motorcycle_right"]
inputs = torch.cat([squeezenet.info.preprocess(photos[n]) for n in names]).to(device)
chances = squeezenet(inputs).softmax(1).cpu()
words = [label.split(",")[0] for label in squeezenet.info.classes]
for name, row in zip(names, chances):
    top = row.topk(3)
    said = [f"{words[i]} {p:.0%}" for p, i in zip(*top)]
    print(f"{name:11s}", ", ".join(said))

# %% [markdown]
# Five answers are good or near, five are not firm, and the dahlia is called a brain coral with confidence.
# We keep the six photographs whose first answer has at least half of the probability, right or wrong: a map explains what the network *says*.

# %%
sure = [name for name, row in zip(names, chances) if row.max() >= 0.5]
answer = {n: int(row.argmax()) for n, row in zip(names, chances)}
print({name: words[answer[name]] for name in sure})
assert sure == ["chelsea", "china", "coffee", "flower", "hopper", "motorcycle"]
assert words[answer["flower"]] == "brain coral"

# %% [markdown]
# ### The siblings
#
# Four rules turn one gradient into a map. LayerCAM {cite:p}`jiang2021` goes place by place like HiResCAM, but takes positive slopes only; Grad-CAM++
# {cite:p}`chattopadhay2018` averages positive slopes with weights of its own. Each is a few lines in `ctrace.look.gradcam`. `capture` keeps what a layer puts out and the gradient that comes back
# to it, so one backward pass serves all rules and layers. Shown are fire9, and fire8 before it, with more than four times as many places. Which of the five maps would you believe?


# %%
def all_rules(images, targets, layers=(FIRE5, FIRE8, FIRE9)):
    """(layer, rule) -> signed maps (b, h, w), and votes that a logit averages."""
    images, rows = images.to(device), torch.arange(len(images))
    with capture(squeezenet, [*layers, "classifier.1"]) as seen:
        seen.backward(squeezenet(images)[rows, targets].sum())
    votes = seen["classifier.1"].activation[rows, targets].relu()
    return {
        (layer, rule): (weigh(got.activation, got.gradient) * got.activation).sum(1)
        for layer, got in ((layer, seen[layer]) for layer in layers)
        for rule, weigh in WEIGHTS.items()
    }, votes


of_cat, votes = all_rules(squeezenet.info.preprocess(photos["chelsea"]), [k])
assert torch.allclose(of_cat[FIRE9, "gradcam"], cat.raw, atol=1e-4 * cat.raw.max())
assert of_cat[FIRE8, "gradcam"].numel() > 4 * cat.raw.numel()
assert torch.allclose(votes.mean((1, 2)), cat.score)

# %% tags=["hide-input"]
asked = {
    "Grad-CAM, fire9": (FIRE9, "gradcam"),
    "HiResCAM, fire9": (FIRE9, "hirescam"),
    "Grad-CAM, fire8": (FIRE8, "gradcam"),
    "LayerCAM, fire8": (FIRE8, "layercam"),
    "HiResCAM, fire8": (FIRE8, "hirescam"),
}
tabs = Gallery("gradcam-photographs")
for name in ("chelsea", "coffee", "motorcycle", "hopper", "flower"):
    photo, target = photos[name], answer[name]
    title = f"{words[target]}, {chances[names.index(name), target]:.0%}"
    maps, _ = all_rules(squeezenet.info.preprocess(photo), [target])
    maps = [maps[how][0] for how in asked.values()]
    tabs.add(
        name,
        viz.show_grid(
            [photo, *(over(photo, raw) for raw in maps)],
            [title, *asked],
            columns=3,
            unit="share of the largest",
        ),
        alt=f"{name} and five signed maps laid over it, for {words[target]}.",
        caption=f"What the network calls *{words[target]}*, by three rules at two "
        "layers. Each map divided by its own largest magnitude, because "
        "their units differ.",
    )
tabs.show()

# %%
siblings = {method: of_cat[FIRE8, method] for method in WEIGHTS}
reds = {method: raw.relu().cpu().ravel() for method, raw in siblings.items()}
print("at fire8: share of blue, and correlation of the red with that of HiResCAM")
for method, raw in siblings.items():
    blue = float(raw.clamp_max(0).abs().sum() / raw.abs().sum())
    alike = np.corrcoef(reds[method], reds["hirescam"])[0, 1]
    print(f"{method:10s} {blue:.2f}  {alike:.2f}")
    assert alike < 0.5 or method in ("layercam", "hirescam") and alike > 0.7
assert float(siblings["layercam"].min()) >= 0 > float(siblings["hirescam"].min())
assert float(siblings["gradcam++"].min()) >= 0

# %% [markdown]
# At fire8 the rules disagree: the red of LayerCAM is much like that of HiResCAM, and Grad-CAM's is not. Which is right is counted below, on pictures with a known truth.
# Behind a ReLU no activation is negative, so LayerCAM and Grad-CAM++, which keep positive slopes only, have no blue.
#
# ### What blue is made of
#
# Behind fire9 come a 1 x 1 convolution, a ReLU and a mean over places: the example by hand with more channels, so the test is the same. Double **everything** the network saw in the blue cells, in every channel,
# and read the logit again. Then do the same with the red cells.

# %%
print("                 blue  shut   logit  blue doubled  red doubled")
in_blue = in_both = 0
for name in sure:
    maps = [
        explain(squeezenet, photos[name], answer[name], FIRE9, method)
        for method in ("gradcam", "hirescam")
    ]
    acts, raw, shut = maps[0].activations, maps[0].raw[0], maps[1].raw[0] == 0
    logits = [
        float(squeezenet.classifier(acts * (1 + where)).flatten()[answer[name]])
        for where in (torch.zeros_like(shut), (raw < 0) & shut, raw > 0)
    ]
    in_blue, in_both = in_blue + (raw < 0).sum(), in_both + ((raw < 0) & shut).sum()
    print(
        f"{words[answer[name]]:15s} {(raw < 0).sum():4d}  {shut.sum():4d}   "
        + "         ".join(f"{logit:5.2f}" for logit in logits)
    )
    assert abs(logits[1] - logits[0]) < 1e-5 * logits[0] < logits[2] - logits[0]
print(f"{in_both} of {in_blue} blue cells lie under a shut ReLU")
assert in_both == in_blue

# %% [markdown]
# Every blue cell lies under a shut ReLU, and doubling what is there leaves the logit where it was; doubling the red cells nearly doubles it. So at this layer blue does not mean *lowers the score*; it means *says nothing*,
# and HiResCAM leaves it blank. Of the red both rules say the same, up to a factor:

# %%
same = [
    of_cat[FIRE9, method].relu().cpu().ravel() for method in ("gradcam", "hirescam")
]
agree = np.corrcoef(*same)[0, 1]
print(f"correlation of the positive parts at fire9: {agree:.6f}")
assert agree > 0.999

# %% [markdown]
# ### Networks that have never seen a cat
#
# Grad-CAM explains whatever a network says: also one with random weights, or one that has seen nothing but drawn birds. Both give the cat a class:

# %%
stranger = load_model("squeezenet", weights="random", device=device)
strange = {
    "random weights": explain(stranger, photos["chelsea"], "predicted", FIRE9),
    "drawn birds only": explain(resnet, photos["chelsea"], "predicted", "layer3"),
}
likely = (
    resnet(resnet.info.preprocess(photos["chelsea"]).to(device)).softmax(1).detach()
)
bird = SPECIES[int(likely.argmax())].name
print(f"the cat is a {bird}, says the bird network, with {likely.max():.0%}")
assert stranger.info.weights.startswith("random")

# %% tags=["hide-input"]
panels = [over(photos["chelsea"], r.raw[0]) for r in strange.values()]
show_figure(
    viz.show_grid(
        [over(photos["chelsea"], cat.raw[0]), *panels],
        ["ImageNet: Egyptian cat", "random weights", f"drawn birds: {bird}"],
        columns=3,
        unit="share of the largest",
    ),
    name="gradcam-strangers",
    alt="Three signed maps over one cat: of the trained network, of one with random "
    "weights, of one trained on drawn birds.",
    caption="One of these networks has seen cats. The other two maps mean nothing "
    "about cats, and are drawn with the same colours.",
)

# %% [markdown]
# ## Change the question
#
# The picture with which Grad-CAM became known shows a dog and a cat, and the map goes to the one that is asked for {cite:p}`selvaraju2017`. First one photograph with two things
# in it, by HiResCAM at fire9: moped or disk brake, bow tie or suit? The last column asks for the *margin*, the one logit minus the other: what speaks for the first answer
# rather than the second?

# %%
questions = {"motorcycle": ("moped", "disk brake"), "hopper": ("bow tie", "suit")}
moved = {}
for name, pair in questions.items():
    one, two = (squeezenet.info.index(word) for word in pair)
    asks = (one, two, lambda logits, one=one, two=two: logits[:, one] - logits[:, two])
    moved[name] = [
        explain(squeezenet, photos[name], ask, FIRE9, "hirescam").raw[0] for ask in asks
    ]
    assert torch.allclose(moved[name][0] - moved[name][1], moved[name][2], atol=1e-4)

# %% tags=["hide-input"]
panels, titles = [], []
for name, pair in questions.items():
    panels += [photos[name], *(over(photos[name], raw) for raw in moved[name])]
    row = chances[names.index(name)]
    titles += [name, *(f"{w}, {row[squeezenet.info.index(w)]:.1%}" for w in pair)]
    titles += [f"{pair[0]} \N{MINUS SIGN} {pair[1]}"]
show_figure(
    viz.show_grid(panels, titles, columns=4, unit="share of the largest"),
    name="gradcam-two-questions",
    alt="A motorcycle with maps for moped, disk brake and their margin, and a "
    "portrait with maps for bow tie, suit and their margin.",
    caption="One photograph, two questions, with the probabilities of the two "
    "answers, and the margin between them: red speaks for the first, blue for "
    "the second.",
)

# %%
for name, maps in moved.items():
    r = np.corrcoef(*(raw.cpu().ravel() for raw in maps[:2]))[0, 1]
    tops = [divmod(int(raw.argmax()), raw.shape[1]) for raw in maps[:2]]
    print(f"{name:10s} correlation {r:+.2f}, largest cell (row, column) {tops}")
    assert tops[0] != tops[1] and 0.5 < r < 0.9


# %% [markdown]
# The map moves, but not far: the two maps of a photograph correlate, their largest cells are neighbours, and it takes the margin to separate them. And where the evidence for *suit* really is, nobody knows.
#
# ### Two photographs side by side
#
# So make a picture whose truth is known: put two photographs beside each other, and ask for each answer in turn. The evidence for *Egyptian cat* has to be in its own half, the one with the cat.
# (Behind fire9 a logit is a mean over places, so the share that comes from its own half can be computed.)

# %% tags=["hide-input"]
half = {n: squeezenet.info.preprocess(photos[n]).to(device) for n in sure}  # 227 x 227
both = torch.cat([half["chelsea"], half["coffee"]], 3)
cam = GradCAM(squeezenet, FIRE9, method="hirescam")
pair = [cam.explain(both, target=answer[n]) for n in ("chelsea", "coffee")]
height = photos["chelsea"].shape[1]  # one row less than the coffee has
wide = torch.cat([photos["chelsea"], photos["coffee"][:, :height]], 2)
show_figure(
    viz.show_grid(
        [wide, *(over(wide, r.raw[0]) for r in pair)],
        ["one picture", "Egyptian cat?", "espresso?"],
        columns=1,
        unit="share of the largest",
        tallest=1.5,
    ),
    name="gradcam-montage",
    alt="A cat and a cup side by side; the map for Egyptian cat is red on the cat, "
    "the map for espresso is red on the cup.",
    caption="The same network, picture, rule and layer (HiResCAM, fire9). Only the "
    "question changes.",
)

# %% [markdown]
# One example proves little. Six photographs make 30 ordered pairs, with two questions each. The pointing game {cite:p}`zhang2018` asks whether the largest value is in the own half, the *mass* which share of the positive values is.
#
# The opponents are the edges of the picture and a Gaussian in its middle. They cannot know the question: in each picture they are right for the one exactly as far as they are wrong for the other, so they get **one half**, by construction.

# %%
n = len(sure)
points, mass, own_share = {}, {}, []


def note(key, maps, on_left, at):
    """Adds scores (b, h, w) to matrices: asked about a row, beside a column."""
    inside = torch.zeros_like(maps)
    own = (
        slice(None, maps.shape[2] // 2) if on_left else slice(maps.shape[2] // 2, None)
    )
    inside[:, :, own] = 1
    for table, score in ((points, pointing_game), (mass, positive_mass_inside)):
        scores = score(maps, inside).values.cpu().numpy()
        table.setdefault(key, np.zeros((n, n)))[at] += scores / 2
    return (maps * inside).sum((1, 2)) / maps.sum((1, 2))


# %%
for a in range(n):
    others = [b for b in range(n) if b != a]
    images = torch.cat([torch.cat([half[sure[a]], half[sure[b]]], 3) for b in others])
    small = nn.functional.interpolate(images.cpu(), size=(54, 108), mode="area")
    blind = controls(small, torch.ones_like(small[:, 0]))
    for on_left in (True, False):
        targets = [answer[sure[a if on_left else b]] for b in others]
        maps, votes = all_rules(images, targets)
        at = ([a] * (n - 1), others) if on_left else (others, [a] * (n - 1))
        own_share += note("votes", votes, on_left, at).tolist()
        for key, raw in (maps | blind).items():
            note(key, raw, on_left, at)

# %%
print(f"share of a logit from its own half: mean {np.mean(own_share):.2f}", end=", ")
print(f"smallest {np.min(own_share):.2f}, over {len(own_share)} questions")
assert min(own_share) > 0.5 and round(np.mean(own_share), 2) == 0.87

# %% [markdown]
# The larger part of every logit comes from its own half, on average 87%, so the halves can serve as the truth. How sure can one be with six photographs? The 30 pairs share them, so the intervals
# draw photographs again, not pairs.


# %%
def by_photograph(scores, draws=4000):
    """Mean over pairs of different photographs; 95%, photographs drawn again."""
    different = ~np.eye(n, dtype=bool)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), draws)
    weight = counts[:, :, None] * counts[:, None] * different  # (draws, n, n)
    weight = weight[weight.any((1, 2))]  # n times the same photograph: no pair
    means = (weight * scores).sum((1, 2)) / weight.sum((1, 2))
    return np.array([scores[different].mean(), *np.quantile(means, [0.025, 0.975])])


for control in ("edges", "centre"):
    for table in (points, mass):
        assert abs(by_photograph(table[control])[0] - 0.5) < 1e-6

# %% tags=["hide-input"]
layers = {"fire5": FIRE5, "fire8": FIRE8, "fire9": FIRE9}
titles = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "layercam": "LayerCAM"}
titles["hirescam"] = "HiResCAM"
panels = {
    what: {
        label: np.stack(
            [by_photograph(table[layer, rule]) for layer in layers.values()]
        )
        for rule, label in titles.items()
    }
    | {
        c: by_photograph(table[c]) * [[np.nan], [1], [np.nan]]
        for c in ("edges", "centre")
    }
    for what, table in (("pointing game", points), ("positive mass inside", mass))
}
show_figure(
    viz.show_intervals(
        panels, list(layers), "share", reference=0.5, quiet=("edges", "centre")
    ),
    name="gradcam-montage-pointing",
    alt="Intervals of pointing game and mass for four rules at three layers. HiResCAM "
    "and LayerCAM stand far to the right of one half at every layer, Grad-CAM at "
    "fire8 and fire9, Grad-CAM++ at fire9 only; edges and centre are at one half.",
    caption="30 pictures of two photographs, two questions each. Points are means, "
    "lines 95% intervals when the six photographs are drawn again; dashed, "
    "one half: a map that ignores the question.",
)

# %%
for short, layer in layers.items():
    ahead = by_photograph(points[layer, "hirescam"] - points[layer, "gradcam"])
    print(
        f"pointing, HiResCAM minus Grad-CAM, {short}: "
        "{:+.2f} [{:+.2f}, {:+.2f}]".format(*ahead)
    )
    assert (ahead[1] > 0.2) if short == "fire5" else (ahead[0] >= 0 >= ahead[1] - 0.05)

# %% [markdown]
# HiResCAM and LayerCAM point at the own half nearly always, at all three layers. Grad-CAM does so at fire9, where its red is that of HiResCAM, and in about four questions of five at fire8. At fire5 its interval
# holds one half: it cannot be told from a map that ignores the question, and its mass is little above one half. Grad-CAM++ points at the own half at fire9 only. HiResCAM's lead over Grad-CAM is clear at fire5, and begins at zero at fire8.

# %%
pointed = {key: by_photograph(score) for key, score in points.items()}
for layer in layers.values():
    assert min(pointed[layer, rule][0] for rule in ("hirescam", "layercam")) > 0.9
    assert min(pointed[layer, rule][1] for rule in ("hirescam", "layercam")) > 0.7
assert pointed[FIRE9, "gradcam"][1] > 0.7 and 0.7 < pointed[FIRE8, "gradcam"][0] < 0.9
for key in ((FIRE5, "gradcam"), (FIRE5, "gradcam++"), (FIRE8, "gradcam++")):
    assert pointed[key][1] <= 0.5 < pointed[key][0] < 0.6
assert 0.5 < by_photograph(mass[FIRE5, "gradcam"])[1] < 0.6
assert pointed[FIRE9, "gradcam++"][1] > 0.7

# %% [markdown]
# **What six photographs allow.** Intervals from six things are rather too short than too long. A count is plainer: for how many of the six is the score above one half? Six of six happen by chance in one case of 64.

# %%
for short, layer in reversed(layers.items()):
    each = points[layer, "gradcam"].sum(1) / (n - 1)  # over its five pictures
    print(f"{short} above one half: {(each > 0.5).sum()} of {n}", end="; ")
    print({name: round(float(value), 2) for name, value in zip(sure, each)})
    assert (each > 0.5).all() or short == "fire5"
print(f"six of six by chance: {0.5**n:.3f}")
assert (points[FIRE9, "gradcam"].sum(1) / (n - 1) > 0.5).all()

# %% [markdown]
# That is enough to say that Grad-CAM depends on the question at fire9 and fire8, and too little to rank LayerCAM against HiResCAM.


# %% [markdown]
# ## Six silent failures
#
# Five of these run without an error. The sixth raises one, and what it leaves behind is silent. Each shows the plain code, then `ctrace`, on the photograph of the cat; {numref}`fig-gradcam-six-lies` has the six wrong maps beside the right ones.

# %%
batch = ("coffee", "chelsea", "hopper", "motorcycle")
four = torch.cat([half[name] for name in batch])
x, right, wrong = four[1:2], {}, {}
right["fire9"] = GradCAM(squeezenet, FIRE9).explain(x, target=k).raw[0]


def plain(activation, gradient):
    """Grad-CAM in one line (h, w), without a question asked."""
    return (gradient.mean((2, 3), keepdim=True) * activation).sum(1)[0]


def likeness(a, b):
    return np.corrcoef(a.cpu().ravel(), b.cpu().ravel())[0, 1]


# %% [markdown]
# **1. Overwritten.** A hook keeps the output of a convolution; the next layer is an in-place ReLU. What is the smallest value that was kept?

# %%
fire, name = squeezenet.features[12], f"{FIRE9}.expand3x3"
kept = []
handle = fire.expand3x3.register_forward_hook(
    lambda module, inputs, output: kept.append(output.detach())
)
squeezenet(x)
handle.remove()

# %%
with capture(squeezenet, name) as seen:
    seen.backward(squeezenet(x)[0, k])
record = seen[name]
print(f"kept by the hook: minimum {kept[0].min():.3f}", end="; ")
print(f"by ctrace: {record.activation.min():.3f}")

# %%
squeezed = fire.squeeze_activation(fire.squeeze(squeezenet.features[:12](x)))
truth = fire.expand3x3(squeezed)
assert kept[0].min() == 0 and truth.min() < 0
assert torch.equal(record.activation, truth)
right[1] = GradCAM(squeezenet, name).explain(x, target=k).raw[0]
wrong[1] = plain(kept[0], record.gradient)
print(f"correlation of the two maps {likeness(right[1], wrong[1]):+.2f}")
assert likeness(right[1], wrong[1]) < 0.9

# %% [markdown]
# `detach` does not copy: hook and network share their memory, and the ReLU wrote into it. `capture` keeps a copy.
#
# **2. One target for four images.** `zip` stops at the shorter list. The cat is the second of the four.

# %%
with capture(squeezenet, FIRE9) as seen:
    output = squeezenet(four)
    total = sum(row[target] for row, target in zip(output, [answer["coffee"]]))
    seen.backward(total)
record = seen[FIRE9]
sizes = record.gradient.abs().amax((1, 2, 3)).tolist()
print("largest gradient per image:", [f"{g:.4f}" for g in sizes])
assert (record.gradient[1:] == 0).all() and record.gradient[0].any()
wrong[2] = plain(record.activation[1:2], record.gradient[1:2])


# %%
def said(call, *words):
    """Prints the error of a call that must fail with these words."""
    try:
        call()
    except (ValueError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}")
        assert all(word in str(error) for word in words)
    else:
        raise AssertionError("this should have been refused")


said(
    lambda: GradCAM(squeezenet, FIRE9).explain(four, target=[answer["coffee"]]),
    "one class for each of the 4 images",
)

# %%
targets = [answer[name] for name in batch]
right[2] = GradCAM(squeezenet, FIRE9).explain(four, target=targets).raw[1]
assert not wrong[2].any() and likeness(right[2], right["fire9"]) > 0.999

# %% [markdown]
# **3. A dead end.** This network ends in a ReLU. A class that no place of the photograph speaks for has a logit of exactly 0, and a gradient of 0 everywhere. Is there one?

# %%
with capture(squeezenet, FIRE9) as seen:
    logits = squeezenet(x)
    absent = int((logits[0] == 0).nonzero()[0])
    seen.backward(logits[0, absent])
record = seen[FIRE9]
wrong[3] = plain(record.activation, record.gradient)
dead = GradCAM(squeezenet, FIRE9).explain(x, target=absent)
print(f"{words[absent]}: {dead.status[0]} - {dead.explanation[0]}")
assert dead.status == ["dead_layer"] and not record.gradient.any()

# %% [markdown]
# In front of that ReLU the question has an answer: the votes of all places, and all are against it.

# %%
right[3] = squeezenet.classifier[1](record.activation)[0, absent, 1:-1, 1:-1]
print(f"votes for {words[absent]}: from {right[3].min():.1f} to {right[3].max():.1f}")
assert right[3].max() < 0 and not wrong[3].any()

# %% [markdown]
# The same happens by construction in vision transformers that classify by their class token. What gradient reaches the patches of the last block?

# %%
by_token = timm.models.VisionTransformer(
    img_size=96,
    patch_size=16,
    embed_dim=48,
    depth=3,
    num_heads=2,
    num_classes=5,
    global_pool="token",
).eval()
patches = vit.info.preprocess(photos["chelsea"])  # 96 x 96
with capture(by_token, "blocks.2") as seen:
    seen.backward(by_token(patches)[0, 0])
slope = seen["blocks.2"].gradient  # (1, 1 + 36, 48)
print(f"class token {slope[0, 0].abs().max():.3f}", end=", ")
print(f"largest of {slope.shape[1] - 1} patches {slope[0, 1:].abs().max():.3f}")

# %%
dead = GradCAM(by_token, "blocks.2").explain(patches, target=0)
print(dead.status[0], "-", dead.explanation[0])
assert (
    (slope[0, 1:] == 0).all()
    and dead.status == ["dead_layer"]
    and "blocks.2.norm1" in dead.explanation[0]
)
alive = GradCAM(by_token, "blocks.2.norm1").explain(patches, target=0)
assert alive.status == ["ok"]

# %% [markdown]
# **4. The wrong axis.** Tokens are rows, channels are columns. A `reshape` to (channels, h, w) has the right shape and mixes the two up: here with the photograph's features as rows, and with the bird transformer's tokens.


# %%
def mixed_up(tokens, h, w):
    """Right would be rearrange(tokens, "b (h w) c -> b c h w", h=h)."""
    return tokens.reshape(len(tokens), -1, h, w)


with capture(squeezenet, FIRE9) as seen:
    seen.backward(squeezenet(x)[0, k])
record = seen[FIRE9]
rows = [
    rearrange(t, "b c h w -> b (h w) c") for t in (record.activation, record.gradient)
]
wrong[4] = plain(*(mixed_up(t, *record.activation.shape[2:]) for t in rows))

# %%
bird8 = render(Aviary("test", 14).scene(8)).image[None]
with capture(vit, "blocks.1") as seen:
    seen.backward(vit(vit.info.preprocess(bird8).to(device))[0, 8])
tokens = (seen["blocks.1"].activation[:, 1:], seen["blocks.1"].gradient[:, 1:])
scrambled = plain(*(mixed_up(t, 12, 12) for t in tokens))
straight = explain(vit, bird8, 8, "blocks.1").raw[0]
for a, b in ((wrong[4], right["fire9"]), (scrambled, straight)):
    print(
        "shapes", tuple(a.shape), tuple(b.shape), f"correlation {likeness(a, b):+.2f}"
    )
    assert a.shape == b.shape and abs(likeness(a, b)) < 0.5

# %%
transposed = torch.zeros(1, 64, 145)
said(
    lambda: ctrace.world.tokens.tokens_to_map(transposed, vit, (96, 96)),
    "axis 2",
    "transpose(1, 2)",
)

# %% [markdown]
# **5. Nothing, rescaled.** The norm of a normalised output is 1 for every image, and its gradient is rounding. Subtract the minimum, divide by the maximum:


# %%
class Normalised(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return nn.functional.normalize(self.model(x), dim=1)


unit = Normalised(squeezenet).eval()
with capture(unit, f"model.{FIRE9}") as seen:
    seen.backward(unit(x).norm())

# %%
record = seen[f"model.{FIRE9}"]
raw = plain(record.activation, record.gradient)
wrong[5] = (raw - raw.min()) / (raw.max() - raw.min())
print(f"largest gradient {record.gradient.abs().max():.1e}", end=", ")
print(f"of the map {raw.abs().max():.1e}, after rescaling {wrong[5].max():.1f}")

# %%
nothing = GradCAM(unit, f"model.{FIRE9}").explain(x, target="norm")
right[5] = nothing.raw[0]
print(nothing.status[0], "-", nothing.explanation[0])
assert raw.abs().max() < 1e-5 and wrong[5].max() == 1
assert (
    nothing.status == ["saturated_target"]
    and not nothing.raw.any()
    and not nothing.heatmap().any()
)

# %% [markdown]
# **6. Leaked hooks.** This class registers its hook when it is made, and removes it when it has explained. An error in between, here the question for class 1000 of 1000, leaves the hook
# in the model. How many are there after three attempts?


# %%
class Leaky:
    def __init__(self, model, layer):
        self.model, self.acts, self.grads = model, [], []
        self.handle = model.get_submodule(layer).register_forward_hook(self.keep)

    def keep(self, module, inputs, output):
        self.acts.append(output.detach())
        output.register_hook(self.grads.append)

    def explain(self, image, target):
        self.model(image.clone().requires_grad_())[0, target].backward()
        self.handle.remove()
        return plain(self.acts[0], self.grads[0])


# %%
for _ in range(3):
    leaky = Leaky(squeezenet, FIRE9)
    try:
        leaky.explain(half["coffee"], 1000)
    except IndexError as error:
        print(f"IndexError: {error}")
hooks = squeezenet.features[12]._forward_hooks
print("hooks left behind:", len(hooks))
assert len(hooks) == 3

# %% [markdown]
# Use the object again, as a notebook cell does that is run twice, now for the cat and with a class that exists. The first activations it kept are the coffee's:

# %%
wrong[6] = leaky.explain(x, k)
hooks.clear()
print(f"correlation with the right map {likeness(wrong[6], right['fire9']):+.2f}")
with capture(squeezenet, FIRE9) as seen:
    squeezenet(half["coffee"])
assert torch.equal(leaky.acts[0], seen[FIRE9].activation)
assert likeness(wrong[6], right["fire9"]) < 0.5

# %%
before = fingerprint(squeezenet)
for _ in range(3):
    try:
        GradCAM(squeezenet, FIRE9).explain(x, target=1000)
    except ValueError:
        pass
assert fingerprint(squeezenet) == before
print("the same model, hook for hook and bit for bit")

# %% tags=["hide-input"]
for number in (4, 6):
    right[number] = right["fire9"]
shown_right = ["signs kept", "a target for each", "all votes against"]
shown_right += ["channels are channels", "no answer", "its own activations"]
shown_wrong = ["overwritten by the ReLU", "one target for four", "a dead end"]
shown_wrong += ["the wrong axis", "nothing, rescaled", "those of the coffee"]
panels, titles = [], []
for number in range(1, 7):
    panels += [over(photos["chelsea"], m[number]) for m in (right, wrong)]
    titles += [f"right: {shown_right[number - 1]}"]
    titles += [f"{number}: {shown_wrong[number - 1]}"]
figure = viz.show_grid(
    panels, titles, columns=2, unit="share of the largest", tallest=1.45
)
figure.suptitle("Six ways your Grad-CAM lies", weight="bold")
show_figure(
    figure,
    name="gradcam-six-lies",
    alt="Six pairs of maps over one cat. Left the right ones. Right, where one line "
    "was wrong: red spread over the face, two empty maps, blue everywhere, red "
    "everywhere, and a map with the activations of a cup of coffee.",
    caption="One photograph, one network; left what Grad-CAM says, right what it says "
    "after one wrong line. None of the wrong maps raised an error when it was "
    "made. In the third pair the question is a class that is not there, in "
    "the fifth it has no answer; in the others it is *Egyptian cat*.",
)


# %% [markdown]
# ## Birds whose parts are known
#
# On photographs the truth ends at the halves of a montage. [The aviary](00_aviary.ipynb) draws birds part by part, and its bundled networks were trained on them.

# %%
data = Aviary("test", 210)
pictures = [render(data.scene(i)) for i in range(14)]
images = torch.stack(
    [p.image for p in pictures]
)  # (14, 3, 96, 96), one of each species
labels = torch.arange(14)
first = explain(resnet, images, labels, "layer1")


# %% tags=["hide-input"]
def picture_of(result, images, i, title, limit=None):
    """Image, signed map and overlay of one row of a result."""
    heat = result.heatmap(relu=False, normalize=False)[i]
    h, w = result.raw[i].shape
    return viz.show_grid(
        [images[i], result.raw[i], viz.Panel(images[i], heat)],
        [title, f"signed map, {h} x {w}", "laid over"],
        limit=limit,
        unit="weight x activation",
    )


# %% [markdown]
# First, five things that any implementation must pass: shapes; a range of exactly [0, 1]; the same map twice; different maps for different images; and a map that depends on the weights.

# %%
with capture(resnet, "layer1") as seen:
    seen.backward(resnet(resnet.info.preprocess(images[:1]).to(device))[0, 0])
acts, grads = seen["layer1"].activation, seen["layer1"].gradient
print("1. activations", tuple(acts.shape), "gradients", tuple(grads.shape))
assert acts.shape == grads.shape and acts.shape[0] == 1 and max(acts.shape[2:]) < 96

# %%
with GradCAM(resnet, "layer1") as cam:
    x = resnet.info.preprocess(images)
    maps, again = (cam.compute_attribution(x, target=labels) for _ in range(2))
print("2. range", float(maps.min()), "to", float(maps.max()))
print("3. identical:", np.array_equal(maps, again))
assert maps.shape == (14, 96, 96) and maps.min() == 0
assert np.allclose(maps.max((1, 2)), 1) and np.array_equal(maps, again)

# %%
alike = np.corrcoef(maps.reshape(14, -1))[np.triu_indices(14, 1)]
spread = f"from {alike.min():.2f} to {alike.max():.2f}, mean {alike.mean():.2f}"
print(f"4. correlation between maps of different birds: {spread}")
assert alike.max() < 0.95

# %% [markdown]
# For the fifth, the same network with random weights must give another map and another score. (Where it finds no evidence at all, there is no map to compare.)

# %%
blank = load_model("aviary-resnet-0", weights="random", device=device)
other = explain(blank, images, labels, "layer1")
change = [
    np.corrcoef(a.ravel(), b.ravel())[0, 1]
    for a, b in zip(maps, other.heatmap())
    if b.any()
]
print("5. correlation with the maps of random weights:", end=" ")
print(f"mean {np.mean(change):.2f} over {len(change)} birds")
assert not torch.allclose(first.score, other.score) and max(change) < 0.95

# %% [markdown]
# ### Which layer?
#
# The usual choice is the last convolution, as {cite:t}`selvaraju2017` advise. Go through the tabs: where does the map stop showing a bird?

# %% tags=["hide-input"]
tabs = Gallery("gradcam-layers")
layers = ("layer1", "layer2", "layer3", "layer4", "last conv")
for name in layers:
    result = explain(resnet, images, labels, name)
    tabs.add(
        name,
        picture_of(result, images, 8, SPECIES[8].name),
        alt=f"Signed map and overlay of the same bird at {result.target_layer}.",
        caption=f"The same bird and question at `{result.target_layer}`, its own "
        f"scale: from {result.raw[8].min():.2g} to {result.raw[8].max():.2g}.",
    )
tabs.show()

# %% [markdown]
# And the vision transformer, its tokens laid on their grid without the prefix token. The last tab is the layer that `ctrace` takes when none is named: the deepest one whose patches reach the score however the network pools its tokens.

# %% tags=["hide-input"]
tabs = Gallery("gradcam-vit")
for name in ("blocks.0", "blocks.1", "blocks.2.norm1", None):
    result = explain(vit, images, labels, name)
    tabs.add(
        result.target_layer,
        picture_of(result, images, 8, SPECIES[8].name),
        alt=f"Signed map and overlay at {result.target_layer}.",
        caption=f"The same bird, seen by the transformer at `{result.target_layer}`"
        + (", the default." if name is None else "."),
    )
    assert result.raw.shape == (14, *vit.info.grid)
tabs.show()

# %% [markdown]
# At the ViT's default layer the wing of this bird is blue and the background red. How common is this failure? Count the birds on which the map is higher than beside them,
# and the share of the positive map that lies on the bird. A map that knows nothing gets the bird's share of the picture.

# %%
birds = torch.stack([p.bird for p in pictures]) > 0.5
raw = explain(vit, images, labels).raw.cpu()  # the default layer
cells = nn.functional.adaptive_avg_pool2d(birds.float(), raw.shape[1:]) > 0.5
on, off = (torch.where(c, raw, torch.nan).nanmean((1, 2)) for c in (cells, ~cells))
print(f"the bird shown: mean on it {on[8]:.1e}, beside it {off[8]:.1e}")
print(f"higher on the bird than beside it: {(on > off).sum()} of 14")
assert on[8] < 0 < off[8] and (on > off).sum() < 7

# %%
area, on_bird = float(birds.float().mean()), {}
print(f"the birds' share of the picture: {area:.2f}     Grad-CAM  HiResCAM")
for model, layer in [(resnet, name) for name in layers[:4]] + [
    (vit, name) for name in ("blocks.0", "blocks.1", "blocks.2.norm1", None)
]:
    for method in ("gradcam", "hirescam"):
        result = explain(model, images, labels, layer, method)
        share = positive_mass_inside(torch.from_numpy(result.heatmap()), birds).mean
        on_bird[model.info.name, result.target_layer, method] = share
    name, shares = result.target_layer, list(on_bird.values())[-2:]
    print(f"{model.info.name:16s} {name:20s} {shares[0]:10.2f} {shares[1]:9.2f}")

# %%
coarse, fine = (
    on_bird["aviary-vit-0", "blocks.3.norm1", m] for m in ("gradcam", "hirescam")
)
assert coarse < 0.3 and fine > 0.65 and area > 0.15
assert on_bird["aviary-resnet-0", "layer4", "hirescam"] < 0.25

# %% [markdown]
# **At the default layer of this ViT three quarters of Grad-CAM's red lie beside the bird**; from the same gradient HiResCAM has seven tenths of its red on it. At the last layer of the ResNet neither rule does much better than a map that knows
# nothing. The default promises that there is a map under any pooling, and no more; further down the layer is chosen by a measurement.

# %% [markdown]
# ### Which channels?
#
# The weights $\alpha_c$ rank channels, in the words of [channel tracing](04_channel_tracing.ipynb): a channel *supports* a score that rises when the channel is raised. Test that
# without a gradient: raise each channel everywhere by a small step, and look at the logit.

# %%
net64, x64 = (
    load_model("aviary-resnet-0", device=device).double(),
    resnet.info.preprocess(images[8:9]).double().to(device),
)

# %%
result = GradCAM(net64, "layer1").explain(x64, target=8)


def raised(c, step):
    """The logit when channel c of layer1 is raised everywhere by step."""
    bump = torch.zeros(1, result.weights.shape[1], 1, 1).to(x64)
    bump[0, c] = step
    handle = net64.layer1.register_forward_hook(
        lambda module, inputs, output: output + bump
    )
    with torch.no_grad():
        score = float(net64(x64)[0, 8])
    handle.remove()
    return score


# %%
slopes = torch.tensor(
    [
        (raised(c, 1e-5) - raised(c, -1e-5)) / 2e-5
        for c in range(result.weights.shape[1])
    ]
)
places, weights = result.raw[0].numel(), result.weights[0].cpu()
error = float((slopes - places * weights).abs().max() / slopes.abs().max())
print(
    f"{len(slopes)} channels, {places} places; largest error {error:.1e} of the "
    "largest slope"
)
assert error < 1e-5

# %% [markdown]
# A weight is a slope. What does each channel respond to? Ask the truth: with which part does its activation correlate, over 42 validation birds?


# %%
def drawn(scenes):
    """Images, a mask per part (b, parts, height, width), and the bird's mask."""
    pictures = [render(scene) for scene in scenes]
    masks = torch.stack(
        [torch.stack([p.masks[part] for part in PARTS]) for p in pictures]
    )
    return (
        torch.stack([p.image for p in pictures]),
        masks > 0.5,
        torch.stack([p.bird for p in pictures]) > 0.5,
    )


val = Aviary("val", 42)
val_images, val_masks, val_birds = drawn([val.scene(i) for i in range(42)])
acts = explain(
    resnet, val_images, torch.arange(42) % 14, "layer1"
).activations.cpu()  # (b, c, h, w)

# %%
grid = nn.functional.adaptive_avg_pool2d(
    val_masks.float(), acts.shape[2:]
)  # (b, parts, h, w)
rows = torch.cat([rearrange(x, "b c h w -> c (b h w)") for x in (acts, grid)])
match = torch.corrcoef(rows)[
    : acts.shape[1], acts.shape[1] :
].nan_to_num()  # (c, parts); a channel that never fires matches nothing
best, which = match.max(1)
part_names = [
    f"{PARTS[p]} ({r:+.2f})" if r > 0.2 else f"no part ({r:+.2f})"
    for r, p in zip(best.tolist(), which.tolist())
]
print(
    f"{sum(best > 0.2)} of {len(part_names)} channels go with a part (correlation "
    "above 0.2)"
)

# %%
for kind in ("support", "inhibit"):
    for c, name, value in first.table(8, kind, top=4, names=part_names):
        print(f"{kind:8s} ch {c:2d}  {name:16s} {value:+.4f}")
assert torch.equal(
    first.ranking("inhibit", 8),
    (-first.weights[8]).argsort(descending=True, stable=True),
)

# %%
assert (
    first.weights[8, first.ranking("support", 8)[0]]
    > 0
    > first.weights[8, first.ranking("inhibit", 8)[0]]
)

# %% tags=["hide-input"]
bird = (
    nn.functional.adaptive_avg_pool2d(pictures[8].bird[None, None], acts.shape[2:])[
        0, 0
    ]
    > 0.5
)
panels = [images[8], viz.Panel(viz.spotlight(images[8], bird), outline=bird)]
titles = ["picture", "the true bird"]
for channel, label, weight in first.table(8, "support", 5, part_names):
    panels.append(viz.Panel(values=first.activations[8, channel], outline=bird))
    titles.append(f"{textwrap.fill(label, 24)}\nch {channel}, weight {weight:.2g}")
show_figure(
    viz.show_grid(panels, titles, unit="activation"),
    name="gradcam-channels",
    alt="The bird, its true outline, and the maps of the five channels that support it "
    "most, with their weights. The two named after the wing are largest at the wing.",
    caption="The five channels that support the species most. Named is the part that "
    "each goes with over 42 other birds, and how closely. The outline is the true "
    "bird, not a segment the network made.",
)

# %%
cells = nn.functional.adaptive_avg_pool2d(
    torch.stack([pictures[8].masks[part] for part in PARTS]), acts.shape[2:]
)  # (parts, h, w): the share of each cell that a part covers
peaks = {}
for channel, label, _ in first.table(8, "support", 5, part_names):
    at = int(first.activations[8, channel].argmax())
    cover, part = cells.flatten(1)[:, at].max(0)
    peaks[label] = PARTS[part] if cover > 0.5 else "no part"
    print(f"ch {channel:2d}, named {label:15s} is largest here at: {peaks[label]}")
assert all(at == "wing" for label, at in peaks.items() if label.startswith("wing"))
assert [at for label, at in peaks.items() if label[:4] in ("beak", "legs")] == [
    "wing",
    "no part",
]

# %% [markdown]
# The names come from other birds, by correlations between .25 and .54: on this bird the channel named *beak* is largest at the wing, and the one named *legs* at no part.
#
# ### A batch
#
# Fourteen birds, fourteen classes, one backward pass: it must give what they give one by one. In double precision, where rounding cannot hide a difference:

# %%
together = explain(net64, images, labels, "layer1")
alone = [explain(net64, images[i], int(labels[i]), "layer1").raw for i in range(14)]
error = float((torch.cat(alone) - together.raw).abs().max() / together.raw.abs().max())
print(f"largest difference, relative to the largest cell: {error:.1e}")
assert error < 1e-10 and len(set(first.target)) == 14

# %%
last = [
    explain(resnet, images[8:9], 8, "layer4", method).raw
    for method in ("gradcam", "hirescam")
]
assert torch.allclose(*last, atol=1e-5 * float(last[0].abs().max()))

# %% [markdown]
# At the last layer of this ResNet, with no ReLU before the mean over places, the gradient is the same everywhere, and Grad-CAM and HiResCAM agree to rounding, blue included.
#
# ## Does it point at the right place?
#
# The aviary has two pairs of *twins*, species that differ in exactly one part. Ask for the margin, the logit of the true twin minus that of the other: only that part can tell them apart, so the truth is known by construction.

# %%
species = [s.name for s in SPECIES]
twins = [(a, b, part) for a, b, part in twin_pairs()] + [
    (b, a, part) for a, b, part in twin_pairs()
]
print([f"{a} not {b}: {part}" for a, b, part in twins])


def twin_birds(split, count, offset=5000):
    """Images, mask of the deciding part, true class, class of the twin."""
    rows = [twins[i % 4] for i in range(count)]
    images, masks, _ = drawn(
        [
            sample_scene(scene_seed(split, offset + i), species_by_name(a))
            for i, (a, _, _) in enumerate(rows)
        ]
    )
    part = torch.tensor([PARTS.index(p) for _, _, p in rows])
    own, other = (torch.tensor([species.index(row[k]) for row in rows]) for k in (0, 1))
    return images, masks[torch.arange(count), part], own, other


# %% [markdown]
# The two scores again, now for the deciding part. The **pointing game**: is the largest value of the map inside the part? The **mass**: which share of the positive evidence is?
# And two opponents. **Chance** is the area of the part. The **centred Gaussian** knows where these pictures have their birds and nothing else; its width is fitted to the validation birds.


# %%
def hits_and_mass(maps, mask):
    """Per image (2, b): share of the maxima and of the positive values inside the mask.

    No evidence counts as a miss.
    """
    maps, mask = torch.as_tensor(maps).clamp_min(0).flatten(1), mask.flatten(1)
    top = (maps == maps.amax(1, keepdim=True)) & (maps > 0)
    hit = (top & mask).sum(1) / top.sum(1).clamp_min(1)
    return torch.stack([hit, (maps * mask).sum(1) / maps.sum(1).clamp_min(1e-12)])


centre = (torch.arange(96) + 0.5) / 96 - 0.5
radius2 = (centre[:, None] ** 2 + centre**2) / 2
sigma = (
    float((val_birds * radius2).sum() / val_birds.sum()) ** 0.5
)  # the likeliest for the pixels of these birds

# %%
gaussian = torch.exp(-radius2 / sigma**2)[None]
print(f"centred Gaussian: sigma {sigma:.3f} image widths")

# %% [markdown]
# Layer and method are chosen on 48 validation twins, by the sum of the two scores. Predict: will the last layer win?


# %%
def margin_between(own, other):
    return lambda logits: (
        logits[torch.arange(len(own)), own] - logits[torch.arange(len(own)), other]
    )


# %%
tune_images, tune_mask, own, other = twin_birds("val", 48)
candidates = {
    "ResNet": (resnet, ("layer1", "layer2", "layer3", "layer4")),
    "ViT": (
        vit,
        ("blocks.1.norm1", "blocks.1", "blocks.2.norm1", "blocks.2", "blocks.3.norm1"),
    ),
}
tune_margin = margin_between(own.to(device), other.to(device))
validation = {}
for family, (model, names_) in candidates.items():
    for layer in names_:
        for method in ("gradcam", "layercam", "hirescam"):
            heat = explain(model, tune_images, tune_margin, layer, method).heatmap()
            validation[family, layer, method] = hits_and_mass(heat, tune_mask).mean(1)

# %%
print(f"{'pointing / mass':23s}{'Grad-CAM':>13s}{'LayerCAM':>13s}{'HiResCAM':>13s}")
for row in dict.fromkeys(key[:2] for key in validation):
    three = (validation[*row, m] for m in ("gradcam", "layercam", "hirescam"))
    print("{:6s} {:16s}".format(*row), end="")
    print("".join(f"  {hit:.2f} / {mass:.2f}" for hit, mass in three))


# %% [markdown]
# ### .90 and .01 from one gradient
#
# Two numbers stand out. At `blocks.2` of the ViT Grad-CAM points at the deciding part in nine birds of ten, HiResCAM in hardly any, from the same gradient. On SqueezeNet it was the other way round.
#
# Behind the last block of this transformer every path leads through a LayerNorm, which forgets how long a token is. There a longer token changes nothing, so the slope is at right angles to it, and slope times activation is zero
# **whatever the token says**. Test it: double all patch tokens, behind the last block and behind the one before.


# %%
def lengthened(layer, factor):
    """The margins (b,) when all patch tokens behind a block are made longer."""
    scale = torch.ones(1, 145, 1, device=device)
    scale[:, 1:] = factor
    handle = vit.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: output * scale
    )
    with torch.no_grad():
        margins = tune_margin(vit(vit.info.preprocess(tune_images).to(device)))
    handle.remove()
    return margins


plainly = lengthened("blocks.3", 1)
with capture(vit, ["blocks.2", "blocks.3"]) as seen:
    logits = vit(vit.info.preprocess(tune_images).to(device))
    seen.backward(tune_margin(logits).sum())

# %%
fallen, below_zero = {}, {}
on_part = nn.functional.adaptive_avg_pool2d(tune_mask.float(), 12)  # (48, 12, 12)
print(f"{'':10s}|cosine| of a token and    all tokens doubled: margin  HiResCAM on")
print(f"{'':10s}its slope   mean slope            moves   falls in  the part < 0")
for layer, got in seen.items():
    a, g = got.activation[:, 1:], got.gradient[:, 1:]
    cosine = nn.functional.cosine_similarity(a, g, dim=2, eps=1e-12)
    pooled = nn.functional.cosine_similarity(a, g.mean(1, keepdim=True), dim=2)
    fallen[layer] = plainly - lengthened(layer, 2)
    inside = rearrange((a * g).sum(2), "b (h w) -> b h w", h=12).cpu() * on_part
    below_zero[layer] = below = (inside.sum((1, 2)) < 0).sum()
    print(f"{layer:10s}{cosine.abs().mean():9.1e}{pooled.abs().mean():13.1e}", end="")
    print(f"    up to {fallen[layer].abs().max():.1e}", end="")
    print(f"{(fallen[layer] > 0.01).sum():5d} of 48 {below:6d} of 48")
    if layer == "blocks.3":
        assert cosine.abs().max() < 1e-4 and fallen[layer].abs().max() < 1e-3
        assert pooled.abs().mean() > 0.01

# %%
got = seen["blocks.3"]
products = (got.activation * got.gradient)[:, 1:]  # (48, 144, 64)
left, added = products.sum(2).abs().max(), products.abs().sum(2).max()
print(
    f"64 products of slope and activation at a place: {added:.1e} without signs", end=""
)
print(f", {left:.1e} with them")
found = [
    explain(vit, tune_images, tune_margin, "blocks.3", method)
    for method in ("gradcam", "hirescam")
]
sizes = [float(r.raw.abs().max()) for r in found]
print(f"largest cell at blocks.3: Grad-CAM {sizes[0]:.1e}, HiResCAM {sizes[1]:.1e}")
print(f"HiResCAM: {set(found[1].status)} - {found[1].explanation[0]}")
assert 0 < left < 1e-5 * added and sizes[1] < 1e-5 * sizes[0]
assert set(found[1].status) == {"no_evidence"} and found[0].raw.any((1, 2)).all()
assert (fallen["blocks.2"] > 0.01).sum() > 40 and below_zero["blocks.2"] > 30
assert validation["ViT", "blocks.2", "gradcam"][0] > 0.8
assert validation["ViT", "blocks.2", "hirescam"][0] < 0.1

# %% [markdown]
# At `blocks.3`, behind the last block, HiResCAM is rounding: the products at a place cancel to less than a hundred thousandth of what they add up to without their signs. Divided by its own maximum such a map would look like any other,
# and the gradient gives no warning: it is not zero, only at right angles to the token. So `ctrace` compares the sum of the products with their sizes, says `no_evidence`, and returns zeros. Grad-CAM has a map there,
# because the mean slope of all places is not at right angles to the single tokens.
#
# At `blocks.2` nothing cancels, and no status helps: longer tokens *lower* the margin in most birds, and in most HiResCAM is negative on the very part that decides.
# Why they lower it is not tested here. No rule is right at every layer; what stands behind it decides. A ReLU spoils the one, a LayerNorm the other.


# %%
def choose(family, methods):
    return max(
        (k for k in validation if k[0] == family and k[2] in methods),
        key=lambda k: float(validation[k].sum()),
    )


# %%
chosen = {
    f"{family}, {word}": choose(family, methods)
    for family in candidates
    for word, methods in (
        ("Grad-CAM", ("gradcam",)),
        ("best sibling", ("layercam", "hirescam")),
    )
}
for row, (_, layer, method) in chosen.items():
    print(f"{row:22s} {method} at {layer}")

# %% [markdown]
# In neither network does the last layer win. At the ResNet's last layer Grad-CAM points at the part less than half as often as the best sibling does at its own.

# %%
assert all(layer not in ("layer4", "blocks.3.norm1") for _, layer, _ in chosen.values())
assert (
    validation["ResNet", "layer4", "gradcam"][0]
    < 0.5 * validation[chosen["ResNet, best sibling"]][0]
)

# %% [markdown]
# Now the test: 208 other birds, half of them with the wing as the only reason, half with the beak.

# %%
test_images, test_mask, own, other = twin_birds("test", 208)
margin = margin_between(own.to(device), other.to(device))
scored = {
    "chance": test_mask.flatten(1).float().mean(1).expand(2, -1),
    "Gaussian": hits_and_mass(gaussian.expand(208, -1, -1), test_mask),
}
for row, (family, layer, method) in chosen.items():
    scored[row] = hits_and_mass(
        explain(candidates[family][0], test_images, margin, layer, method).heatmap(),
        test_mask,
    )

# %% tags=["hide-input"]
panels = {
    name: {row: mean_intervals(values)[i : i + 1] for row, values in scored.items()}
    for i, name in enumerate(("pointing game", "mass inside the part"))
}
show_figure(
    viz.show_intervals(panels, ["mean over birds"], "share"),
    name="gradcam-pointing",
    alt="Intervals of pointing game and mass. Chance is near zero. In the pointing "
    "game Grad-CAM on the ResNet is level with the Gaussian; both best siblings and "
    "Grad-CAM on the ViT are far above it.",
    caption="208 held-out twins, the part that decides. Points are means over birds, "
    "lines their 95% bootstrap intervals.",
)

# %% [markdown]
# Bird by bird, how much better than the opponent?

# %%
ahead = {}
for row in chosen:
    for opponent in ("chance", "Gaussian"):
        mean, low, high = mean_intervals(scored[row] - scored[opponent]).T
        ahead[row, opponent] = low
        print(f"{row:24s} minus {opponent:8s}:", end=" ")
        print(f"pointing {mean[0]:+.2f} [{low[0]:+.2f}, {high[0]:+.2f}]", end=", ")
        print(f"mass {mean[1]:+.3f} [{low[1]:+.3f}, {high[1]:+.3f}]")

for (row, opponent), low in ahead.items():
    if "best sibling" in row:
        assert (low > 0).all()  # both measures, both networks, both opponents
    elif opponent == "chance":
        assert (low > 0).all()
    else:
        assert low[1] > 0 and (low[0] > 0) == (
            row == "ViT, Grad-CAM"
        )  # mass: both networks; pointing: the ViT only

# %% [markdown]
# The best sibling beats chance and the Gaussian, in both networks and by both scores. Plain Grad-CAM beats chance by both and the Gaussian by mass; in the pointing game it beats the Gaussian on the ViT only.
# On the ResNet it points no better than a blob in the middle of the picture.
#
# Why is the blob so good? The birds may simply stand in the middle. Ask for the bird's own species, with all five parts counted as true, on 210 ordinary birds. Then move each bird by up to an eighth of the picture, and ask again.

# %%
scenes = [data.scene(i) for i in range(210)]
shift = np.random.RandomState(0).uniform(-0.125, 0.125, (210, 2))
sets = {
    "as they come": drawn(scenes),
    "moved": drawn([s.moved(*d) for s, d in zip(scenes, shift)]),
}

# %%
own_class = torch.arange(210) % 14

# %%
parts_ahead, outlook = {}, []
for what, (birds, masks, whole) in sets.items():
    maps = {"Gaussian": gaussian.expand(210, -1, -1)}
    for family, (model, _) in candidates.items():
        layer, method = chosen[f"{family}, best sibling"][1:]
        maps[family] = explain(model, birds, own_class, layer, method).heatmap()
    for row, heat in maps.items():
        five, bird = (hits_and_mass(heat, mask) for mask in (masks.any(1), whole))
        parts_ahead[what, row] = five
        outlook.append((what, row, *five.mean(1).tolist(), *bird.mean(1).tolist()))

# %%
print(f"{'':26s}   five parts        whole bird")
for what, (_, masks, whole) in sets.items():
    shares = (float(m.float().mean()) for m in (masks.any(1), whole))
    print(f"{what:14s} {'area':11s} ", "".join(f"{share:18.2f}" for share in shares))
print(f"{'':26s}   pointing   mass   pointing   mass")
for what, row, *numbers in outlook:
    print(f"{what:14s} {row:11s} ", "".join(f"{value:9.2f}" for value in numbers))

# %%
for what in sets:
    for family in candidates:
        mean, low, high = mean_intervals(
            parts_ahead[what, family] - parts_ahead[what, "Gaussian"]
        ).T
        print(f"{what:14s} {family:6s} minus Gaussian:", end=" ")
        print(f"pointing {mean[0]:+.2f} [{low[0]:+.2f}, {high[0]:+.2f}]", end=", ")
        print(f"mass {mean[1]:+.2f} [{low[1]:+.2f}, {high[1]:+.2f}]")
        assert low[1] > 0  # more mass in the true parts, always
        assert (low[0] > 0) == (
            what == "moved"
        )  # better pointing only where the bird is not always in the middle

# %% [markdown]
# As the birds come, pointing at the middle hits *some* part in nearly nine of ten, and neither network does better: neither interval lies above zero.
# A pointing game on centred pictures says little about a map. When the birds are moved, the Gaussian stays where it was, and both networks point better than it by far.


# %% [markdown]
# ## A network of your own
#
# Every network that timm knows can stand here: `make book MODEL=resnet50` fetches its published weights once and renders this section with it; where this notebook runs alone, the environment variable
# `CTRACE_MODEL` does the same. Without a connection `CTRACE_WEIGHTS_DIR` names a folder that holds the weights as `resnet50.safetensors` or `resnet50.pth`.
#
# A classifier is asked about its two most likely classes; a network without classes, `vit_small_patch14_dinov2.lvd142m` for one, about what makes a photograph resemble the left view of the motorcycle.
# A layer that keeps no grid of places gets no map, and one sentence with the reason.

# %%
network = chosen_model()


def own_input(network, name):
    """A photograph cropped to the shape of the input, and the input."""
    photo = ctrace.load_photo(name, network.info.input_size[:0:-1])
    pixels = rearrange(torch.from_numpy(np.array(photo)), "h w c -> c h w")
    return photo, network.info.preprocess(pixels).to(device)


def own_questions(network, x):
    """What to ask about one image: words -> arguments of `GradCAM.explain`."""
    if network.info.classes:
        top = network(x).detach().softmax(1)[0].topk(2)
        names = [network.info.classes[k].split(",")[0] for k in top.indices]
        words = [f"{name}, {p:.0%}" for name, p in zip(names, top.values)]
        return {w: {"target": int(k)} for w, k in zip(words, top.indices)}
    left = network(own_input(network, "motorcycle")[1]).detach()
    return {"like the left view": {"target": "cosine", "target_embedding": left}}


# %% tags=["hide-input"]
def own_tabs(network, names=("chelsea", "coffee", "motorcycle_right", "hopper")):
    """A tab for each photograph."""
    tabs, cam = Gallery("gradcam-own-network"), GradCAM(network)
    for name in names:
        photo, x = own_input(network, name)
        asked = own_questions(network, x)
        found = [cam.explain(x, **ask) for ask in asked.values()]
        heats = [f.heatmap(relu=False, normalize=False)[0] for f in found]
        panels = [photo, *(viz.Panel(photo, heat) for heat in heats)]
        states = ", ".join(f.status[0] for f in found)
        tabs.add(
            name,
            viz.show_grid(panels, [name, *asked], unit="weight x activation"),
            alt=f"{name}, and signed maps laid over it for: {'; '.join(asked)}.",
            caption=f"{network.info.name} ({network.info.weights}) at "
            f"`{found[0].target_layer}`: {'; '.join(asked)}. Status: {states}.",
        )
    tabs.show()


# %%
if network is not None:
    try:
        own_tabs(network)
    except ValueError as error:
        print(f"{network.info.name} gives no grid of places to map. {error}")

# %% [markdown]
# ## Exercises
#
# ```{exercise}
# :label: ex-gradcam-twice
#
# **Predict.** Multiply the weights and the bias of the head by 2. What happens to the signed map, to the map in [0, 1], and to the support ranking of the channels?
# Answer with three words out of `"same"`, `"doubled"`, `"halved"`, `"other"`.
# ```


# %%
def check_twice(raw, shown, ranking):
    """Compares a prediction with what happens."""
    if None in (raw, shown, ranking):
        return print("no answer yet")
    loud = load_model("aviary-resnet-0", device=device)
    with torch.no_grad():
        loud.fc.weight.mul_(2), loud.fc.bias.mul_(2)
    after = explain(loud, images, labels, "layer1")
    ratio = float((after.raw * first.raw).sum() / (first.raw * first.raw).sum())
    truth = (
        {2: "doubled", 1: "same"}.get(round(ratio, 2), "other"),
        "same" if np.allclose(after.heatmap(), first.heatmap(), atol=1e-4) else "other",
        "same"
        if torch.equal(after.ranking()[:, :3], first.ranking()[:, :3])
        else "other",
    )
    for what, guess, is_so in zip(
        ("signed map", "map in [0, 1]", "ranking"), (raw, shown, ranking), truth
    ):
        print(f"{what}: {'yes' if guess == is_so else 'no'}, {is_so}")
    return (raw, shown, ranking) == truth


# Your words: signed map, map in [0, 1], ranking.
my_words = (None, None, None)
answered = check_twice(*my_words)


# %% [markdown]
# ```{solution-start} ex-gradcam-twice
# :class: dropdown
# ```
#
# The logit doubles, so every slope does, and with it the signed map. Dividing by the maximum hides that: two networks of which one has logits twice as large look the same. The order of
# the channels does not change.

# %%
assert check_twice("doubled", "same", "same")

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise}
# :label: ex-gradcam-own
#
# **Implement.** Write `my_hirescam(model, layer, image, target)` with `capture`: gradient times activation, summed over channels, `(h, w)`.
# ```


# %%
def check_hirescam(own):
    """Compares with GradCAM(method="hirescam") on a layer where the rules differ."""
    x = resnet.info.preprocess(images[3:4]).to(device)
    got, want = (
        own(resnet, "layer2", x, 3),
        GradCAM(resnet, "layer2", method="hirescam").explain(x, target=3).raw[0],
    )
    if tuple(got.shape) != tuple(want.shape):
        print(
            f"expected the layer's grid {tuple(want.shape)}, received "
            f"{tuple(got.shape)}. Sum over channels, take the first image."
        )
        return False
    if torch.allclose(got, explain(resnet, images[3:4], 3, "layer2").raw[0], atol=1e-4):
        print(
            "this is Grad-CAM: the gradient was averaged over places before it was "
            "multiplied."
        )
        return False
    print("largest difference", float((got - want).abs().max()))
    return torch.allclose(got, want, atol=1e-5 * float(want.abs().max()))


def my_first_hirescam(model, layer, image, target):
    return image[0, 0]  # yours here


answered = check_hirescam(my_first_hirescam)


# %% [markdown]
# ```{solution-start} ex-gradcam-own
# :class: dropdown
# ```


# %%
def my_hirescam(model, layer, image, target):
    with capture(model, layer) as seen:
        seen.backward(model(image)[0, target])
    return (seen[layer].gradient * seen[layer].activation).sum(1)[0]


assert check_hirescam(my_hirescam)

# %% [markdown]
# The gradient goes back inside the context; afterwards both tensors are copies of your own.
#
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise}
# :label: ex-gradcam-silence
#
# **Break it.** Build a small network with a convolution at which Grad-CAM finds *no evidence* for any image and class, although HiResCAM does.
# The weights $\alpha_c$ are means of gradients. Which layer makes these means zero?
# ```


# %%
def check_silence(model):
    """Asks both rules about the last convolution of a network for 12 x 12 images."""
    noise = torch.rand(4, 3, 12, 12)
    plain, fine = (
        GradCAM(model, method=method).explain(noise, target=0)
        for method in ("gradcam", "hirescam")
    )
    print(
        "Grad-CAM:",
        plain.status[0],
        "-",
        plain.explanation[0]
        or "it finds something, so the gradients of a channel do not sum to zero",
    )
    print("HiResCAM:", fine.status[0], "-", fine.explanation[0] or "it finds something")
    return set(plain.status) == {"no_evidence"} and set(fine.status) == {"ok"}


my_network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten())  # change it
answered = check_silence(my_network.append(nn.Linear(800, 5)).eval())


# %% [markdown]
# ```{solution-start} ex-gradcam-silence
# :class: dropdown
# ```
#
# A normalisation over the places of each channel subtracts their mean: raising the channel everywhere changes nothing behind it, so its mean slope is zero. The status says so and names the cure.

# %%
silent = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(800, 5)
).eval()
assert check_silence(silent)

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# In this notebook we have
#
# - **built** Grad-CAM from one convolution and ten numbers, and found the same numbers, and the same defect, in a network that knows a thousand things,
# - **measured** how often the maps point at the right photograph, and at the part of a bird that decided,
# - **caught** six silent failures, each beside the right map of the same photograph.
#
# What this does not show: that the network would change its mind if the red place were different. A map inside the true part can still miss what inside it counts.
# Next: when there is no class to explain but a similarity, [Grad-CAM for embeddings](06_gradcam_embeddings.ipynb).

# %%
print(
    f"this page ran in {time.time() - started:.0f} s on {device}, "
    f"{torch.get_num_threads()} threads"
)
