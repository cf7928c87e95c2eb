# %% [markdown]
# # Grad-CAM
#
# **A network can say which places and which channels raised its answer. The picture looks convincing whether or not it is true, so here it is measured against birds whose parts are known.**

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
# - **build** Grad-CAM from one convolution and ten numbers, and find the same numbers in `ctrace`,
# - **measure** how often the maps of two trained networks point at the part that decided,
# - **catch** six failures that raise no error and still draw a picture.
#
# You need tensors, gradients, and [the toy aviary](00_aviary.ipynb), whose birds these are. The last cell prints how long this page took to run.

# %%
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
from ctrace.look.gradcam import GradCAM
from ctrace.look.hooks import capture
from ctrace.stats import mean_intervals
from ctrace.viz.gallery import Gallery, show_figure
from ctrace.world.models import chosen_model, load_model
from einops import rearrange
from torch import nn

started = time.time()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
resnet = load_model("aviary-resnet-0", device=device)
vit = load_model("aviary-vit-0", device=device)
print(f"torch {torch.__version__} on {device}")

# %% [markdown]
# ## The idea
#
# Stop a network half-way, at a layer whose activations $A_{c}$ still have places. Ask how the score $s$ would move if channel $c$ were raised everywhere:
# that is its weight. The map is the weighted sum of the channels {cite:p}`selvaraju2017`:
#
# $$
# \alpha_c = \frac{1}{hw}\sum_{i} \frac{\partial s}{\partial A_{ci}},
# \qquad \text{cam}_i = \sum_c \alpha_c A_{ci} .
# $$ (gradcam)
#
# What is usually shown is $\max(\text{cam}, 0)$ divided by its maximum. That throws away the sign and the scale, so we keep both until the last moment.

# %%
data = Aviary("test", 210)
pictures = [render(data.scene(i)) for i in range(14)]
images = torch.stack(
    [p.image for p in pictures]
)  # (14, 3, 96, 96), one bird of each species
labels = torch.arange(14)


def explain(model, images, target, layer=None, method="gradcam"):
    with GradCAM(model, layer, method=method) as cam:
        return cam.explain(model.info.preprocess(images), target=target)


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


first = explain(resnet, images, labels, "layer1")
show_figure(
    picture_of(first, images, 8, f"{SPECIES[8].name}"),
    name="gradcam-idea",
    alt="A bird, a grid of red and blue cells, and the same colours laid over the bird.",
    caption="A bird, the signed map of one layer for its species, and the map laid over it. Red raises the logit, blue lowers it, blank does neither.",
)

# %% [markdown]
# ## By hand
#
# One image of 4 x 5 numbers, one convolution with two filters, ReLU, mean over places, and a head that wants the first channel and dislikes the second.
# The first filter answers to a left edge, the second to a lower edge. Before you run it: where will the map be positive, where negative?

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
# $\alpha_c = w_c / 12$ times the share of open places. No backward pass is needed.

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
# Positive along the left edge, negative where a lower edge raises a channel the head dislikes, and positive again where that channel is itself
# negative. Now the same from `ctrace`.

# %%
small = GradCAM(net).explain(tiny, target=0)
print("largest difference:", float((small.raw[0] - by_hand).abs().max()))
assert (small.raw[0] - by_hand).abs().max() < 1e-12 and (
    small.weights[0] - alpha
).abs().max() < 1e-12
assert small.target_layer == "0" and abs(small.score.item() - net(tiny).item()) < 1e-12

# %% [markdown]
# ## Five checks before any picture
#
# Here is what a first implementation should be asked. Shapes; a range of exactly [0, 1]; twice the same; different for different images; and no number that
# was typed in instead of computed.

# %%
with capture(resnet, "layer1") as seen:
    seen.backward(resnet(resnet.info.preprocess(images[:1]).to(device))[0, 0])

# %%
acts, grads = seen["layer1"].activation, seen["layer1"].gradient
print("1. activations", tuple(acts.shape), "gradients", tuple(grads.shape))
assert acts.shape == grads.shape and acts.shape[0] == 1 and max(acts.shape[2:]) < 96

# %%
with GradCAM(resnet, "layer1") as cam:
    x = resnet.info.preprocess(images)
    maps, again = (
        cam.compute_attribution(x, target=labels),
        cam.compute_attribution(x, target=labels),
    )

# %%
print("2. range", float(maps.min()), "to", float(maps.max()))
print("3. identical:", np.array_equal(maps, again))
assert (
    maps.shape == (14, 96, 96)
    and maps.min() == 0
    and np.allclose(maps.max((1, 2)), 1)
    and np.array_equal(maps, again)
)

# %%
alike = np.corrcoef(maps.reshape(14, -1))[np.triu_indices(14, 1)]
print(
    f"4. correlation between maps of different birds: from {alike.min():.2f} to {alike.max():.2f}, mean {alike.mean():.2f}"
)
assert alike.max() < 0.95

# %% [markdown]
# A typed-in number survives a change of weights. So the fifth check changes them: the same network with random weights must give another map and another score. (Where
# the random network finds no evidence at all, there is no map to compare.)

# %%
blank = load_model("aviary-resnet-0", weights="random", device=device)
other = explain(blank, images, labels, "layer1")
change = [
    np.corrcoef(a.ravel(), b.ravel())[0, 1]
    for a, b in zip(maps, other.heatmap())
    if b.any()
]
print(
    f"5. correlation with the maps of random weights: mean {np.mean(change):.2f} over {len(change)} birds"
)
assert not torch.allclose(first.score, other.score) and max(change) < 0.95

# %% [markdown]
# ## Birds and layers
#
# A scale that is shared over the tabs lets you compare strengths: a pale map is a weak one, not a failed one.

# %% tags=["hide-input"]
shown = [0, 3, 8, 12]
limit = float(first.raw[shown].abs().quantile(0.998))
tabs = Gallery("gradcam-birds")
for number, i in enumerate(shown, 1):
    tabs.add(
        f"Example {number}",
        picture_of(first, images, i, SPECIES[i].name, limit),
        alt=f"A bird of species {SPECIES[i].name}, its signed map and overlay.",
        caption=f"{SPECIES[i].name}, logit {first.score[i]:.1f}, layer 1 of the ResNet. Largest cell {first.raw[i].max():.2f}, smallest {first.raw[i].min():.2f}.",
    )
tabs.show()

# %% [markdown]
# Which layer? The usual advice is the last convolution. Go through the tabs: where would you say the map stops showing a bird?

# %% tags=["hide-input"]
tabs = Gallery("gradcam-layers")
layers = ("layer1", "layer2", "layer3", "layer4", "last conv")
for name in layers:
    result = explain(resnet, images, labels, name)
    tabs.add(
        name,
        picture_of(result, images, 8, SPECIES[8].name),
        alt=f"Signed map and overlay of the same bird at {result.target_layer}.",
        caption=f"The same bird and question at `{result.target_layer}`, its own scale: from {result.raw[8].min():.2g} to {result.raw[8].max():.2g}.",
    )
tabs.show()

# %% [markdown]
# And the vision transformer, at the layers that its blocks read. Tokens are laid on their grid, the prefix token dropped.

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
# You have just chosen a layer by how its picture looks. That is how the mistake is made. Further down the choice is made by a measurement, on birds that are not the test birds.
#
# ## Which channels?
#
# The weights $\alpha_c$ rank channels, in the words of [channel tracing](04_channel_tracing.ipynb): a channel that *supports* raises the score when it is raised. That sentence
# can be tested without a gradient: raise each channel everywhere by a small step, and look at the logit.

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
    f"{len(slopes)} channels, {places} places; largest error {error:.1e} of the largest slope"
)
assert error < 1e-5

# %% [markdown]
# A weight is a slope. The channels have numbers only; what each one looks at can be asked of the truth: with which part does its activation go together, over 42 validation birds?


# %%
def drawn(scenes):
    """Images, and per part a mask (b, parts, height, width), and the mask of the bird."""
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
names = [
    f"{PARTS[p]} ({r:+.2f})" if r > 0.2 else f"no part ({r:+.2f})"
    for r, p in zip(best.tolist(), which.tolist())
]
print(
    f"{sum(best > 0.2)} of {len(names)} channels go with a part (correlation above 0.2)"
)

# %%
for kind in ("support", "inhibit"):
    for c, name, value in first.table(8, kind, top=4, names=names):
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
titles = ["photograph", "the true bird"]
for channel, words, weight in first.table(8, "support", 5, names):
    panels.append(viz.Panel(values=first.activations[8, channel], outline=bird))
    titles.append(f"{textwrap.fill(words, 24)}\nch {channel}, weight {weight:.2g}")
show_figure(
    viz.show_grid(panels, titles, unit="activation"),
    name="gradcam-channels",
    alt="The bird, its true outline, and the maps of five channels with their weights.",
    caption="The five channels that support the species most, with the part each goes with and how closely. The outline is the true bird, not a segment the network made.",
)

# %% [markdown]
# One weight for a whole channel: a channel that fires at the wing and in the sky counts in both. Remember that for the numbers below.
#
# ## A batch
#
# Fourteen birds, fourteen classes, one backward pass. It must be the same as one by one, or a batch would explain each bird by its neighbours. In double precision, where rounding has nothing to say:

# %%
together = explain(net64, images, labels, "layer1")
alone = [explain(net64, images[i], int(labels[i]), "layer1").raw for i in range(14)]
error = float((torch.cat(alone) - together.raw).abs().max() / together.raw.abs().max())
print(f"largest difference, relative to the largest cell: {error:.1e}")
assert error < 1e-10 and len(set(first.target)) == 14

# %% [markdown]
# ## Siblings
#
# Four rules turn the same gradient into a map. HiResCAM {cite:p}`draelos2020` multiplies gradient and activation place by place, LayerCAM {cite:p}`jiang2021` does
# so with positive gradients only, Grad-CAM++ {cite:p}`chattopadhay2018` averages positive gradients with weights of their own. Each is one line in `ctrace.look.gradcam`.

# %%
methods = ("gradcam", "gradcam++", "layercam", "hirescam")
siblings = [explain(resnet, images[8:9], 8, "layer1", method) for method in methods]
heats = [r.heatmap(relu=False)[0] for r in siblings]
show_figure(
    viz.show_grid(
        [viz.Panel(images[8], heat, outline=pictures[8].bird) for heat in heats],
        methods,
        unit="share of each map's largest",
    ),
    name="gradcam-siblings",
    alt="Four overlays of one bird, one per method, with the outline of the true bird.",
    caption="Four methods, one gradient. Each map divided by its own largest magnitude, because their units differ. The line is the true outline.",
)

# %%
for name, r in zip(methods, siblings):
    print(
        f"{name:10s} share of negative evidence {float(r.raw.clamp_max(0).abs().sum() / r.raw.abs().sum()):.2f}"
    )
assert float(siblings[2].raw.min()) >= 0 and float(siblings[3].raw.min()) < 0

# %%
last = [
    explain(resnet, images[8:9], 8, "layer4", method).raw
    for method in ("gradcam", "hirescam")
]
assert torch.allclose(*last, atol=1e-5 * float(last[0].abs().max()))

# %% [markdown]
# Behind ReLUs the activations are positive, so LayerCAM has no blue at all. In the last layer, in front of the mean over places, the gradient is the same
# everywhere, and Grad-CAM and HiResCAM agree exactly. Before it they do not.
#
# ## Does it point at the right place?
#
# The aviary has two pairs of *twins*, species that differ in exactly one part. Ask for the margin, the logit of the true twin minus that of the other, and only that part
# can be the reason: the truth is known by construction.

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
# Two measures. The **pointing game** {cite:p}`zhang2018`: is the largest value of the map inside the part? The **mass**: which share of the positive evidence is inside?
# And two opponents. **Chance** is the area of the part. The **centred Gaussian** knows where photographers put birds and nothing else; its width is fitted to the validation birds.


# %%
def hits_and_mass(maps, mask):
    """Per image: share of the maxima inside the mask, share of the positive values inside; no evidence counts as a miss. (2, b)"""
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
# Layer and method are chosen on 48 validation twins, by the sum of the two measures. Predict: will the last layer win?


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
validation = {}
for family, (model, names_) in candidates.items():
    for layer in names_:
        for method in ("gradcam", "layercam", "hirescam"):
            heat = explain(
                model,
                tune_images,
                margin_between(own.to(device), other.to(device)),
                layer,
                method,
            ).heatmap()
            validation[family, layer, method] = hits_and_mass(heat, tune_mask).mean(1)

# %%
for (family, layer, method), (hit, mass) in validation.items():
    print(f"{family:6s} {layer:14s} {method:8s} pointing {hit:.2f}  mass {mass:.2f}")


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
# For the ResNet, not the last layer: there every cell has seen most of the picture, and nothing obliges the evidence to stay where it came from.

# %%
assert all(layer != "layer4" for family, layer, _ in chosen.values())
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

# %%
print(f"{'':24s} pointing game        mass inside the part")
for row, values in scored.items():
    (hit, hit_low, hit_high), (mass, mass_low, mass_high) = mean_intervals(
        values
    )  # over birds, by bootstrap
    print(
        f"{row:24s} {hit:.2f} [{hit_low:.2f}, {hit_high:.2f}]   {mass:.3f} [{mass_low:.3f}, {mass_high:.3f}]"
    )

# %% tags=["hide-input"]
panels = {
    name: {row: mean_intervals(values)[i : i + 1] for row, values in scored.items()}
    for i, name in enumerate(("pointing game", "mass inside the part"))
}
show_figure(
    viz.show_intervals(panels, ["mean over birds"], "share"),
    name="gradcam-pointing",
    alt="Intervals of pointing game and mass for chance, Gaussian, Grad-CAM and best sibling of both networks.",
    caption="208 held-out twins, the part that decides. Points are means over birds, lines their 95% bootstrap intervals.",
)

# %% [markdown]
# The comparison is paired: bird by bird, how much better than the opponent?

# %%
ahead = {}
for row in chosen:
    for opponent in ("chance", "Gaussian"):
        mean, low, high = mean_intervals(scored[row] - scored[opponent]).T
        ahead[row, opponent] = low
        print(
            f"{row:24s} minus {opponent:8s}: pointing {mean[0]:+.2f} [{low[0]:+.2f}, {high[0]:+.2f}], mass {mean[1]:+.3f} [{low[1]:+.3f}, {high[1]:+.3f}]"
        )

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
# The best sibling beats chance and the Gaussian, in both networks and by both measures, and none of these intervals reaches zero. Plain Grad-CAM beats chance by both and
# the Gaussian by mass. In the pointing game it beats the Gaussian on the ViT only: on the ResNet it points no better than a blob in the middle of the picture.
#
# Why is the blob so good? The wing sits in the middle of every bird, and the bird in the middle of every picture. Ask the easier question: the species' own
# logit, all five parts counted as true, on 210 ordinary birds. Then move each bird by up to an eighth of the picture, and ask again.

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
for what, (_, masks, whole) in sets.items():
    print(
        f"{what:14s} chance     five parts {float(masks.any(1).float().mean()):.2f}               whole bird {float(whole.float().mean()):.2f}"
    )
for what, row, hit, mass, bird_hit, bird_mass in outlook:
    print(
        f"{what:14s} {row:9s}  five parts: pointing {hit:.2f}, mass {mass:.2f}   whole bird: pointing {bird_hit:.2f}, mass {bird_mass:.2f}"
    )

# %%
for what in sets:
    for family in candidates:
        mean, low, high = mean_intervals(
            parts_ahead[what, family] - parts_ahead[what, "Gaussian"]
        ).T
        print(
            f"{what:14s} {family:6s} minus Gaussian: pointing {mean[0]:+.2f} [{low[0]:+.2f}, {high[0]:+.2f}], mass {mean[1]:+.2f} [{low[1]:+.2f}, {high[1]:+.2f}]"
        )
        assert low[1] > 0  # more mass in the true parts, always
        assert (low[0] > 0) == (
            what == "moved"
        )  # better pointing only where the bird is not always in the middle

# %% [markdown]
# As the birds come, pointing at the middle hits *some* part nearly always, and neither network does better: the intervals of the first two lines reach zero.
# A pointing game on centred pictures says little about a map. When the birds are moved, the Gaussian stays where it was, and both networks leave it behind.
#
# ## Photographs
#
# The aviary networks have never seen a photograph. Grad-CAM will explain whatever they say about one, and so it will for a network with random weights. Two maps of a cat:

# %%
photo = ctrace.load_photo("chelsea", size=(288, 288))
cat = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 255
stranger = load_model("resnet18", weights="random", device=device)
tabs = Gallery("gradcam-photographs")
for label, model in (("aviary ResNet", resnet), ("random resnet18", stranger)):
    x = model.info.preprocess(cat)
    result = GradCAM(model, "layer3").explain(x, target="predicted")
    back = (
        x[0].cpu() * torch.tensor(model.info.std).view(3, 1, 1)
        + torch.tensor(model.info.mean).view(3, 1, 1)
    ).clamp(0, 1)
    tabs.add(
        label,
        picture_of(result, back[None], 0, result.target[0]),
        alt=f"A cat, and the map of {label} for what it predicts.",
        caption=f"{label}: {model.info.weights}. Explained: {result.target[0]}, which is not in the picture.",
    )
tabs.show()

# %%
probability = float(
    resnet(resnet.info.preprocess(cat).to(device)).softmax(1).max().detach()
)
print(
    f"the cat is a {SPECIES[int(resnet(resnet.info.preprocess(cat).to(device)).argmax())].name}, says the aviary ResNet, with {probability:.0%}"
)
assert stranger.info.weights.startswith("random")

# %% [markdown]
# Neither map means anything about cats. With a network, or a weight file at hand, `load_model("resnet50", weights="pretrained")` is the same line with a model that has seen some.
#
# ## Six silent failures
#
# Each of these runs without an error and draws a picture. First the plain code, then what `ctrace` says in the same place.
#
# **1. Overwritten.** A hook keeps the output of a convolution. The next layer is an in-place ReLU. What is the smallest value that was kept?

# %%
block = nn.Sequential(
    nn.Conv2d(3, 8, 3),
    nn.ReLU(inplace=True),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(8, 5),
).eval()
noise = torch.rand(4, 3, 12, 12)
kept = []
handle = block[0].register_forward_hook(
    lambda module, inputs, output: kept.append(output.detach())
)
block(noise)
handle.remove()

# %%
with capture(block, "0") as seen:
    seen.backward(block(noise)[:, 0].sum())
print(
    f"kept by the hook: minimum {kept[0].min():.3f}; by ctrace: {seen['0'].activation.min():.3f}"
)

# %%
truth = block[0](noise).detach()
assert kept[0].min() == 0 and truth.min() < 0
assert torch.equal(seen["0"].activation, truth)

# %% [markdown]
# `detach` does not copy: hook and network shared their memory, and the ReLU wrote into it. `capture` clones when it sees.
#
# **2. One target for four images.** `zip` stops at the shorter list.

# %%
with capture(block, "0") as seen:
    output = block(noise)
    total = sum(row[target] for row, target in zip(output, [3]))
    seen.backward(total)
print(
    "largest gradient per image:",
    [f"{g:.4f}" for g in seen["0"].gradient.abs().amax((1, 2, 3)).tolist()],
)
assert (seen["0"].gradient[1:] == 0).all() and seen["0"].gradient[0].any()


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
    lambda: GradCAM(block, "0").explain(noise, target=[3]),
    "one class for each of the 4 images",
)

# %% [markdown]
# **3. A dead layer.** Many vision transformers classify by their class token. What gradient reaches the patches of their last block?

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
outputs = []
handle = by_token.blocks[-1].register_forward_hook(
    lambda module, inputs, output: outputs.append(output)
)

# %%
score = by_token(images[:1])[0, 0]
handle.remove()
(slope,) = torch.autograd.grad(score, outputs[0])  # (1, 1 + 36, 48)
print(
    f"class token {slope[0, 0].abs().max():.3f}, largest of {slope.shape[1] - 1} patches {slope[0, 1:].abs().max():.3f}"
)

# %%
dead = GradCAM(by_token, "blocks.2").explain(images[:1], target=0)
print(dead.status[0], "-", dead.explanation[0])
assert (
    (slope[0, 1:] == 0).all()
    and dead.status == ["dead_layer"]
    and "blocks.2.norm1" in dead.explanation[0]
)
assert GradCAM(by_token, "blocks.2.norm1").explain(images[:1], target=0).status == [
    "ok"
]

# %% [markdown]
# **4. The wrong axis.** Tokens are rows, channels are columns. A `reshape` to (channels, h, w) has the right shape and mixes the two up.

# %%
with capture(vit, "blocks.1") as seen:
    seen.backward(vit(vit.info.preprocess(images[8:9]).to(device))[0, 8])
record = seen["blocks.1"]
acts, grads = (
    t[:, 1:].reshape(1, -1, 12, 12)  # right: "b (h w) c -> b c h w"
    for t in (record.activation, record.gradient)
)
scrambled = (grads.mean((2, 3), keepdim=True) * acts).sum(1)
right = explain(vit, images[8:9], 8, "blocks.1").raw
print(
    "shapes",
    tuple(scrambled.shape),
    tuple(right.shape),
    f"correlation {np.corrcoef(scrambled.cpu().ravel(), right.cpu().ravel())[0, 1]:+.2f}",
)
assert (
    scrambled.shape == right.shape
    and abs(np.corrcoef(scrambled.cpu().ravel(), right.cpu().ravel())[0, 1]) < 0.5
)

# %%
transposed = torch.zeros(1, 64, 145)
said(
    lambda: ctrace.world.tokens.tokens_to_map(transposed, vit, (96, 96)),
    "axis 2",
    "transpose(1, 2)",
)

# %% [markdown]
# **5. Nothing, rescaled.** The norm of a normalised output is 1 for every image. Its gradient is rounding. Subtract the minimum, divide by the maximum:


# %%
class Normalised(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return nn.functional.normalize(self.model(x), dim=1)


unit = Normalised(resnet).eval()
with capture(unit, "model.layer1") as seen:
    seen.backward(unit(resnet.info.preprocess(images[:1]).to(device)).norm())

# %%
record = seen["model.layer1"]
raw = (record.gradient.mean((2, 3), keepdim=True) * record.activation).sum(1)
rescaled = (raw - raw.min()) / (raw.max() - raw.min())
print(
    f"largest gradient {record.gradient.abs().max():.1e}, largest value of the map {raw.abs().max():.1e}, after rescaling {rescaled.max():.1f}"
)

# %%
nothing = GradCAM(unit, "model.layer1").explain(
    resnet.info.preprocess(images[:1]), target="norm"
)
print(nothing.status[0], "-", nothing.explanation[0])
assert raw.abs().max() < 1e-5 and rescaled.max() == 1
assert (
    nothing.status == ["saturated_target"]
    and not nothing.raw.any()
    and not nothing.heatmap().any()
)

# %% [markdown]
# **6. Leaked hooks.** A class that registers hooks when it is made, and an exception before they are removed. How many hooks does the model carry after three attempts?


# %%
class Leaky:
    def __init__(self, model):
        self.model, self.handle = model, model[0].register_forward_hook(lambda *_: None)

    def explain(self, image):
        self.model(image)
        self.handle.remove()


for _ in range(3):
    try:
        Leaky(block).explain(
            torch.rand(1, 4, 12, 12)
        )  # four channels: the convolution refuses
    except RuntimeError:
        pass
print("hooks left behind:", len(block[0]._forward_hooks))
assert len(block[0]._forward_hooks) == 3

# %%
block[0]._forward_hooks.clear()
before = fingerprint(block)
for _ in range(3):
    try:
        GradCAM(block, "0").explain(torch.rand(1, 4, 12, 12), target=0)
    except RuntimeError:
        pass
assert fingerprint(block) == before
print("the same model, hook for hook and bit for bit")

# %% [markdown]
# ## A network of your own
#
# Every network that timm knows can stand here. `make book MODEL=resnet50` fetches its published weights once and renders this section with it; where this notebook runs alone, the environment variable
# `CTRACE_MODEL` does the same. Without a network connection `CTRACE_WEIGHTS_DIR` names a folder that holds the weights as `resnet50.safetensors` or `resnet50.pth`. Where no network is named, one line below says so, and nothing else happens.
#
# A classifier is asked about the two classes it finds most likely, by name. A network without classes, `vit_small_patch14_dinov2.lvd142m` for one, is asked what makes a photograph resemble the left view of the motorcycle.

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
            caption=f"{network.info.name} ({network.info.weights}) at `{found[0].target_layer}`: {'; '.join(asked)}. Status: {states}.",
        )
    tabs.show()


# %%
if network is not None:
    own_tabs(network)

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


# %% [markdown]
# ```{solution-start} ex-gradcam-twice
# :class: dropdown
# ```
#
# The logit doubles, so every slope does, and with it the signed map. Dividing by the maximum hides that: two networks of which one is twice as sure look the same. The order of
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
    """Compares an implementation with GradCAM(method="hirescam") on a layer where the two rules differ."""
    x = resnet.info.preprocess(images[3:4]).to(device)
    got, want = (
        own(resnet, "layer2", x, 3),
        GradCAM(resnet, "layer2", method="hirescam").explain(x, target=3).raw[0],
    )
    if tuple(got.shape) != tuple(want.shape):
        print(
            f"expected the layer's grid {tuple(want.shape)}, received {tuple(got.shape)}. Sum over channels, take the first image."
        )
        return False
    if torch.allclose(got, explain(resnet, images[3:4], 3, "layer2").raw[0], atol=1e-4):
        print(
            "this is Grad-CAM: the gradient was averaged over places before it was multiplied."
        )
        return False
    print("largest difference", float((got - want).abs().max()))
    return torch.allclose(got, want, atol=1e-5 * float(want.abs().max()))


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
    """Asks Grad-CAM and HiResCAM about the last convolution of a network for 12 x 12 images."""
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


# %% [markdown]
# ```{solution-start} ex-gradcam-silence
# :class: dropdown
# ```
#
# A normalisation over the places of each channel subtracts their mean: raising the channel everywhere changes nothing behind it, so its slope is zero. The status says so and names the cure.

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
# - **built** Grad-CAM from one convolution and ten numbers, and found the same numbers in `ctrace`,
# - **measured** how often the maps of two trained networks point at the part that decided,
# - **caught** six failures that raise no error and still draw a picture.
#
# What this does not show: that the network would change its mind if the red place were different. A map inside the true part can still miss what inside it counts.
# Next: when there is no class to explain but a likeness, [Grad-CAM for embeddings](06_gradcam_embeddings.ipynb).

# %%
print(
    f"this page ran in {time.time() - started:.0f} s on {device}, {torch.get_num_threads()} threads"
)
