# %% [markdown]
# # ParchGrad: partition the channels, then attribute
#
# **A gradient reaches the pixels through all channels at once. What if it may pass only through those that fire for the class? It moves onto the object of that class, in drawings and in photographs. It does not become a better account of all
# parts, and through the channels of another class about half of the same map lies on another object.**

# %% [markdown] tags=["remove-cell"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ctrace-book/ctrace/blob/main/notebooks/07_parchgrad.ipynb)

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
# - **choose** the channels of a class by a statistical test, and see what they respond to,
# - **edit** the gradient on its way back, and say what each switch of the method does,
# - **measure** on held-out birds and photographs what the edit gains over the plain gradient and over a random partition, and what it loses.
#
# You need the hooks of [Grad-CAM](05_gradcam.ipynb) and the birds of [the aviary](00_aviary.ipynb). The last cell prints how long this page took to run.

# %% tags=["hide-input"]
import csv
import io
import json
import textwrap
import time
import warnings
from importlib.resources import files
from itertools import permutations

import numpy as np
import torch
from ctrace import viz
from ctrace.aviary import PARTS, SPECIES, Aviary, Cached, render
from ctrace.look import saliency
from ctrace.look.activations import channel_means
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.hooks import capture
from ctrace.look.parchgrad import ParchGrad
from ctrace.look.partition import default_convs, reweigh
from ctrace.stats import mean_intervals, spearman
from ctrace.trust.hide import masking_curve
from ctrace.trust.localize import mass_inside
from ctrace.viz.gallery import Gallery, show_figure
from ctrace.world.models import load_model
from ctrace.world.photos import as_pixels, load_photo, photo_names
from einops import einsum, rearrange
from PIL import Image
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader

# %%
started = time.time()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
CL = torch.channels_last  # the same numbers, faster on a CPU
model = load_model("aviary-resnet-0", device=device).to(memory_format=CL)
print(f"torch {torch.__version__} on {device}")

# %% [markdown]
# ## The idea
#
# Two photographs side by side, a cat and a cup of coffee, before SqueezeNet {cite:p}`iandola2016`, which knows a thousand classes. Ask for *Egyptian cat*, then for *espresso*. A good map stays in the half of
# the picture that holds the answer.

# %% tags=["hide-input"]
network = load_model("squeezenet", device=device).to(memory_format=CL)
tables = files("ctrace") / "data/statistics"
about = json.loads((tables / "squeezenet.json").read_text())
of_groups = ChannelStatistics.load(tables / "squeezenet.safetensors", device=device)
through = ParchGrad(network, of_groups)
SIDE = 192


def load_pixels(name):
    """A photograph, cropped to a square (3, side, side)."""
    return as_pixels(load_photo(name, (SIDE, SIDE)))[0]


def beside(left, right):
    """A montage (3, side, 2 side)."""
    return torch.cat([left, right], -1)


# %% tags=["hide-input"]
def prepared(pictures):
    """Pictures of any size as the network wants them (n, 3, height, width)."""
    size = tuple(pictures[0].shape[1:])
    x = network.info.preprocess(torch.stack(pictures).to(device), size)
    return x.contiguous(memory_format=CL)


def unsigned(slope):
    """Mean magnitude over the colours (b, height, width)."""
    return slope.detach().cpu().abs().mean(1)


def in_half(maps, left):
    """Share of the mass of montages' maps in the left or right half (b,)."""
    half = torch.zeros_like(maps)
    half[..., slice(0, SIDE) if left else slice(SIDE, None)] = 1
    return mass_inside(maps, half)


# %%
cat_and_coffee = beside(load_pixels("chelsea"), load_pixels("coffee"))
CAT, ESPRESSO = map(network.info.index, ("Egyptian cat", "espresso"))
groups, opening = list(about["counts"]), {}
for name, target, group in (("cat", CAT, "cats"), ("espresso", ESPRESSO, "food")):
    x, how = prepared([cat_and_coffee]), {"classes": groups.index(group)}
    slope = saliency.gradient(network, x, target)
    opening[name, "plain"] = unsigned(slope)
    slope = through.attribute("grad", x, target, quantile=0.1, **how)
    opening[name, "partition"] = unsigned(slope)
stays = {key: float(in_half(m, key[0] == "cat")) for key, m in opening.items()}


# %% tags=["hide-input"]
def coarse(m, cell=4):
    """Mean over blocks of pixels, in units of a uniform map (height, width)."""
    m = (m / m.mean())[None, None]
    return nn.functional.interpolate(
        nn.functional.avg_pool2d(m, cell), scale_factor=cell
    )[0, 0]


def in_few_colours(figure):
    """A figure as a picture of 256 colours, half the size."""
    picture = Image.open(io.BytesIO(figure._repr_png_())).convert("RGB")
    return picture.quantize(palette=picture.reduce(2).quantize(256), dither=3)


# %% tags=["hide-input"]
WORDS = {"plain": "plain gradient", "partition": "through the partition"}
panels = [viz.Panel(cat_and_coffee, coarse(m[0])) for m in opening.values()]
heads = [
    f"{name}, {WORDS[way]}:\n{share:.0%} in its half"
    for (name, way), share in stays.items()
]
show_figure(
    in_few_colours(
        viz.show_grid(
            panels, heads, 2, scale="unsigned", limit=6, unit="times a uniform map"
        )
    ),
    name="parchgrad-cat-and-coffee",
    alt="A cat beside a cup of coffee, four times. The plain gradients spread over "
    "both. Through the partition the map of the cat lies on the cat's face alone; "
    "that of the espresso has thick spots in the cup and on the saucer, and some on "
    "the cat.",
    caption="One picture, two questions, two maps each. Magnitude of the gradient, "
    "averaged over blocks of four pixels.",
)
assert all(stays[n, "partition"] > stays[n, "plain"] for n in ("cat", "espresso"))
assert stays["cat", "partition"] > 0.99

# %% [markdown]
# Network and picture are the same. On the right, the gradient passed through one channel in ten of some layers, chosen on other photographs because they fire more for cats, or for food, than for everything else. Is that map now *true*?
# Nobody can look it up in a photograph, so we begin with drawn birds. Here is the slope of a logit at every pixel of one; the outlined parts make it a hazel.

# %%
names = [s.name for s in SPECIES]
HAZEL, MYRTLE = names.index("hazel"), names.index("myrtle")
test = Aviary("test", 14 * 8)
scenes = [test.scene(i) for i in range(len(test))]
pictures, labels = [render(s) for s in scenes], torch.arange(len(test)) % 14
images = model.info.preprocess(torch.stack([p.image for p in pictures]).to(device))
images = images.contiguous(memory_format=CL)


# %%
def parts_of(picture):
    """All five parts as one mask (height, width)."""
    return sum(picture.masks[part] for part in PARTS).clamp(0, 1)


hazels = [i for i in range(len(test)) if labels[i] == HAZEL]
bird, picture = hazels[2], pictures[hazels[2]]
assert int(model(images[bird : bird + 1]).argmax()) == HAZEL
plain = unsigned(saliency.gradient(model, images[bird], HAZEL))


# %%
def show_mass(picture, maps, titles, columns=4):
    """The picture, and each map over it, divided by its mean, the parts outlined."""
    parts = parts_of(picture)
    over = [viz.Panel(picture.image, m / m.mean(), outline=parts) for m in maps]
    alone = [picture.image] * (len(titles) - len(maps))
    return viz.show_grid(
        alone + over,
        titles,
        columns,
        scale="unsigned",
        limit=10,
        unit="times a uniform map",
    )


show_figure(
    show_mass(picture, plain, ["a hazel", "plain gradient"]),
    name="parchgrad-plain",
    alt="A drawn bird, and its gradient as red speckle over most of the picture, "
    "densest on the bird.",
    caption="The magnitude of the gradient, divided by its mean. Outlined: beak, "
    "crest, wing, tail and legs.",
)

# %% [markdown]
# Speckle: the slope came back through every channel of every layer. ParchGrad {cite:p}`park2023` splits the channels of a convolution into those to keep, $H$, and the rest, $L$. On the way back it stops the gradient of the rest and
# enlarges that of the kept ones, so that the sum over channels keeps its variance. With a finite weight $\gamma$ in place of the stop, the gradient $g$ at the output of that convolution becomes
#
# $$
# g_c \leftarrow \beta\,\hat\gamma\, g_c \ \ (c \in H), \qquad g_c \leftarrow \beta\, g_c \ \ (c \in L),
# $$ (parchgrad)
#
# $$
# \hat\gamma = \gamma\sqrt{N/M}, \qquad \beta = \sqrt{\frac{M + N}{M \hat\gamma^2 + N}} ,
# $$
#
# where $M$ and $N$ are the variances over the places of $\sum_{c\in H} g_c$ and of $\sum_{c \in L} g_c$. With $\gamma = \infty$, as on this page, the factor of the kept ones is $\sqrt{(M+N)/M}$. Then the gradient travels on, to the next chosen
# convolution and to the pixels. Which channels are kept, and what does the factor do?
#
# ## By hand
#
# A channel is kept if it fires more for the class than for all other classes. Firing is one number per picture: the mean over places of the convolution's output after a ReLU. Suppose a channel gave the numbers below. Is the class
# ahead by more than chance? Welch's test {cite:p}`welch1947` divides the difference of the means by its standard error, without assuming equal variances.

# %%
inside, outside = np.array([0.9, 1.3, 1.1]), np.array([0.2, 1.0, 0.4, 0.6, 0.3])
error = inside.var(ddof=1) / len(inside) + outside.var(ddof=1) / len(outside)
t = (inside.mean() - outside.mean()) / error**0.5
theirs = stats.ttest_ind(inside, outside, equal_var=False, alternative="greater")
print(
    f"t = {t:.3f}; scipy says {theirs.statistic:.3f}, p = {theirs.pvalue:.4f} at "
    f"{theirs.df:.1f} degrees of freedom"
)
assert abs(t - theirs.statistic) < 1e-12

# %% [markdown]
# Now the gradient: two channels on a map of $2 \times 2$ places, of which we keep the first. Work out $M$, $N$ and the factor before you run the cell.

# %%
g = torch.tensor(
    [[[[1.0, -1], [1, -1]], [[3, 3], [-3, -3]]]], dtype=torch.double
)  # (1, 2, 2, 2)
M, N = g[0, 0].var(), g[0, 1].var()
by_hand = torch.stack([g[0, 0] * ((M + N) / M).sqrt(), torch.zeros(2, 2)])[None]
edited = reweigh(g, torch.tensor([[True, False]]))
print(
    f"M = {M:.3f}, N = {N:.3f}, factor {((M + N) / M).sqrt():.3f}; variance of the sum "
    f"{g.sum(1).var():.3f} before, {edited.sum(1).var():.3f} after"
)

# %%
assert torch.allclose(edited, by_hand, atol=1e-15) and torch.allclose(
    edited.sum(1).var(), g.sum(1).var()
)

# %% [markdown]
# The other channel is gone, and the variance of the sum is what it was.
#
# ## What the statistics of a channel look like
#
# The statistics come from *training* birds, 20 of each species, never from the pictures to be explained. One pass over any number of pictures keeps the mean and the variance of every channel for every class.

# %%
train = Cached(Aviary("train", 14 * 20))


def collect(model, dataset=train, **settings):
    """Statistics of a model over a labelled data set, without the bar."""
    loader = DataLoader(dataset, 56)
    return ChannelStatistics.collect(
        model,
        ((model.info.preprocess(x.to(device)), y) for x, y in loader),
        progress=False,
        **settings,
    )


statistics = collect(model)
print(
    f"{len(statistics.layers)} convolutions, {sum(statistics.layers.values())} "
    f"channels, {len(train)} pictures"
)
assert statistics.count.tolist() == [20] * 14

# %% [markdown]
# Every channel of every layer is tested against every class at once. For one class and one layer we ask scipy too:

# %%
LAYER = "layer4.0.conv1"
with torch.no_grad(), channel_means(model, LAYER) as run:
    fired = torch.cat(
        [run(model.info.preprocess(x.to(device)))[1] for x, _ in DataLoader(train, 56)]
    ).cpu()  # (n, c)
is_hazel = train.targets == HAZEL

# %%
p = statistics.welch_pvalues(LAYER)[LAYER][:, HAZEL].cpu()  # (c,)
theirs = stats.ttest_ind(
    fired[is_hazel].double(),
    fired[~is_hazel].double(),
    equal_var=False,
    alternative="greater",
).pvalue
print(
    f"largest difference from scipy over {len(p)} channels: "
    f"{np.nanmax(np.abs(p.numpy() - theirs)):.0e}"
)
assert np.nanmax(np.abs(p.numpy() - theirs)) < 1e-6

# %% tags=["hide-input"]
chosen_three = [
    int(p.argmin()),
    int((p - 0.05).abs().argmin()),
    int((p - 0.5).abs().argmin()),
]
show_figure(
    viz.show_hist(
        {
            f"channel {c}, p = {p[c]:.1g}": {
                "hazel": fired[is_hazel, c],
                "all others": fired[~is_hazel, c],
            }
            for c in chosen_three
        },
        "mean activation",
    ),
    name="parchgrad-statistics",
    alt="Histograms of three channels for hazels and for all others: clearly apart, "
    "slightly apart, and on top of each other.",
    caption="Three channels of one layer, on training birds. The lines are the means. "
    "Left, the smallest p-value of the layer; right, one whose means coincide.",
)

# %% [markdown]
# ## What the kept channels respond to
#
# Keep the tenth of the channels with the smallest p-values, draw the hazels again without a part, and see by how much a channel's activation falls. Guess first which part will show up most: the hazel's twin, the myrtle, differs from it
# by the wing alone.

# %%
parch = ParchGrad(model, statistics)
kept = parch.kept_for([HAZEL, MYRTLE], quantile=0.1)
hazel_channels = kept[LAYER][0].nonzero()[:, 0].tolist()
print(f"edited layers: {', '.join(parch.layers)}")
print(
    f"{LAYER} keeps {len(hazel_channels)} of {statistics.layers[LAYER]} for the hazel: "
    f"{hazel_channels}"
)


# %%
def fires(scenes_):
    """Mean activation of the layer's channels (n, c)."""
    with torch.no_grad(), channel_means(model, LAYER) as run:
        return run(
            model.info.preprocess(
                torch.stack([render(s).image for s in scenes_]).to(device)
            )
        )[1].cpu()


own_scenes = [Aviary("test", 14 * 12).scene(i) for i in range(HAZEL, 14 * 12, 14)]
whole = fires(own_scenes)
loss = torch.stack(
    [
        1 - fires([s.without(part) for s in own_scenes]).mean(0) / whole.mean(0)
        for part in PARTS
    ],
    1,
)  # (c, parts)

# %%
ahead = (
    loss.topk(2, dim=1).values.diff(dim=1)[:, 0].abs()
)  # (c,) loss with one part, minus that with the next
clearest = sorted(hazel_channels, key=lambda c: -float(ahead[c]))[:4]
for c in clearest:
    part = PARTS[int(loss[c].argmax())]
    print(
        f"channel {c}: "
        f"{', '.join(f'{name} {float(v):+.0%}' for name, v in zip(PARTS, loss[c]))}, "
        f"so most by the {part}"
    )

# %%
top = clearest[0]
means = statistics.of_layer(LAYER).mean[:, top].cpu()
spotted = [s.name for s in SPECIES if s.wing == SPECIES[HAZEL].wing]
print(
    f"channel {top} fires most for "
    f"{', '.join(names[i] for i in means.argsort(descending=True)[:3])}"
)
print(f"spotted wings: {', '.join(spotted)}; the myrtle's: {SPECIES[MYRTLE].wing}")

# %%
assert PARTS[int(loss[top].argmax())] == "wing" and loss[top].max() > 0.8
assert {names[i] for i in means.argsort(descending=True)[:3]} == set(spotted)
assert (
    kept[LAYER][0, top] and not kept[LAYER][1, top]
)  # the twin, without spots, does not keep it

# %% [markdown]
# The first channel loses most of its activation with the wing, fires most for the three species with spotted wings, and is not kept for the myrtle, whose wing has an eye. The others are less pure. For each of the four, here are the six
# test birds that excite it most, in colour where it fires. Do they wear what the hazel wears? Is it the bird that is in colour?

# %% tags=["hide-input"]
with capture(model, LAYER) as seen:
    model(images)
maps = seen[LAYER].activation.detach().relu().cpu()  # (n, c, 12, 12)
panels, titles = [], []
for c in clearest:
    first = maps[:, c].mean((1, 2)).argsort(descending=True)[:6].tolist()
    strongest = maps[first, c].max()
    titles += [names[labels[i]] for i in first]
    for i in first:
        image = viz.as_rgb(pictures[i].image)
        pale = 0.75 + 0.25 * image.mean(-1, keepdims=True)
        fires = viz.enlarged((1.5 * maps[i, c] / strongest).clamp_max(1), image)
        panels.append(pale + fires[..., None] * (image - pale))
rows = [f"channel {c}" for c in clearest]
show_figure(
    viz.show_grid(panels, titles, columns=6, rows=rows),
    name="parchgrad-channels",
    alt="Four rows of six birds each. The pictures are pale except where the channel "
    "of the row fires: on the bird, and for the larger part beside it.",
    caption="Four of the channels kept for the hazel, each with the six test birds "
    "that excite it most, in colour where it fires.",
)

# %%
worn, on_bird = {}, {}
for c in clearest:
    part = PARTS[int(loss[c].argmax())]
    first = maps[:, c].mean((1, 2)).argsort(descending=True)[:6].tolist()
    worn[c] = [getattr(SPECIES[labels[i]], part) for i in first]
    sizes = nn.functional.interpolate(maps[first, c, None], (96, 96))[:, 0]
    birds = torch.stack([pictures[i].bird.clamp(0, 1) for i in first])
    on_bird[c] = float(mass_inside(sizes, birds).mean())
    print(f"channel {c}: {part}s {', '.join(worn[c])}; {on_bird[c]:.0%} on the bird")
area = float(torch.stack([p.bird.clamp(0, 1) for p in pictures]).mean())
print(f"the hazel has a {SPECIES[HAZEL].beak} beak; a bird covers {area:.0%}")

# %%
BEAKED = 68
assert BEAKED in clearest and PARTS[int(loss[BEAKED].argmax())] == "beak"
assert SPECIES[HAZEL].beak not in worn[BEAKED]
assert max(on_bird.values()) < 0.5

# %% [markdown]
# No, to both. Channel 68 falls by three quarters when hazels lose their hooked beaks; yet not one of its six birds has a hooked beak. What a channel *loses* with a part of one species is what it needs there, not what it detects. And most
# of each channel's activation lies beside the bird: these maps have 12 x 12 cells, and each cell sees its surroundings.

# %% [markdown]
# ## Edit the gradient
#
# Inside the context `parch.partition`, every backward pass through the model is edited, and so is any attribution made from gradients. Two checks first: keeping all channels must give the plain gradient bit by bit, and a batch must equal
# its pictures one by one.

# %%
some, their = images[hazels[:3]], labels[hazels[:3]]
with parch.partition("cls", quantile=0.1) as seen:
    edited = saliency.gradient(model, some, their)
print(
    {
        layer: f"{int(rows.sum(1)[0])} of {rows.shape[1]} kept"
        for layer, rows in seen.kept.items()
    }
)

# %%
assert torch.equal(
    parch.attribute("grad", some, their, quantile=1.0),
    saliency.gradient(model, some, their),
)
alone = parch.attribute("grad", some[1:2], HAZEL, quantile=0.1)
assert torch.allclose(edited[1:2], alone, atol=1e-4 * float(alone.abs().max()))

# %% [markdown]
# How many channels to keep? {cite:t}`park2023` choose one in ten. From all of them to one in twenty:

# %%
SHARES = (1.0, 0.5, 0.3, 0.1, 0.08, 0.05)
sweep = {
    q: unsigned(parch.attribute("grad", images[bird], HAZEL, quantile=q))[0]
    for q in SHARES
}
where = {
    "the five parts": parts_of(picture),
    "the whole bird": picture.bird.clamp(0, 1),
}
share = {
    what: {q: float(mass_inside(m[None], mask[None])) for q, m in sweep.items()}
    for what, mask in where.items()
}
for what, of in share.items():
    print(f"share of the mass on {what}:", {q: f"{v:.2f}" for q, v in of.items()})

# %% tags=["hide-input"]
show_figure(
    show_mass(
        picture, list(sweep.values()), [f"keeping {q:g}" for q in SHARES], columns=3
    ),
    name="parchgrad-strip",
    alt="Six maps of one bird, side by side. As fewer channels are kept, the map fades "
    "on beak, crest and tail and thickens on wing and body.",
    caption="The map of one hazel as fewer channels are kept, on one scale.",
)

# %%
five_parts, bird_ = share["the five parts"], share["the whole bird"]
assert five_parts[0.3] > five_parts[1.0] and five_parts[0.05] < five_parts[1.0]
assert all(bird_[q] > bird_[1.0] for q in SHARES[2:]) and bird_[0.5] < bird_[1.0]
assert max(five_parts, key=five_parts.get) == max(bird_, key=bird_.get) == 0.3
assert bird_[0.05] - bird_[1.0] > 0.5 * (bird_[0.3] - bird_[1.0])

# %% [markdown]
# Fewer is not better. The share of the five parts is highest when three channels in ten are kept, and with one in twenty it lies *below* that of the plain gradient; the whole bird, body included, keeps more than half of
# its gain. From all channels to one in ten, beak, crest and tail fade; wing and body fill up:

# %%
by_part = {
    part: [
        float(mass_inside(sweep[q][None], picture.masks[part][None]))
        for q in (1.0, 0.1)
    ]
    for part in (*PARTS, "body")
}
for part, (before, after) in by_part.items():
    print(f"{part:6s}{before:.3f} -> {after:.3f}")
assert {part for part, (before, after) in by_part.items() if after < before} == {
    "beak",
    "crest",
    "tail",
}
assert {part for part, (before, after) in by_part.items() if after > before + 0.02} == {
    "wing",
    "body",
}

# %% [markdown]
# One picture proves little; many come [below](parchgrad-numbers).
#
# ## Of the class, or of the picture
#
# The class partition is the same for every picture of a class. The *instance* partition needs no label: which channels fire more on *this* picture than they usually do? How alike are the two?

# %%
with parch.partition("ins", quantile=0.1) as seen:
    saliency.gradient(model, images, labels)
instance, classes = (
    seen.kept[LAYER].cpu(),
    parch.kept_for(labels, quantile=0.1)[LAYER].cpu(),
)  # (n, c) each


def overlap(a, b):
    """Share of the channels of a that b has too (n,)."""
    return (a & b).sum(1) / a.sum(1)


# %%
agree, chance = (
    overlap(instance, classes),
    len(hazel_channels) / statistics.layers[LAYER],
)
same, other = (
    overlap(instance, instance.roll(14, 0)),
    overlap(instance, instance.roll(1, 0)),
)
print(
    f"instance and class partition share {agree.mean():.0%} of their channels, by "
    f"chance {chance:.0%}"
)
print(
    f"two pictures of one species share {same.mean():.0%} of their instance channels, "
    f"of two species {other.mean():.0%}"
)

# %%
assert (
    agree.mean() > 3 * chance
    and agree.mean() < 0.8
    and same.mean() > other.mean() + 0.1
)

# %% [markdown]
# Less than half, five times what chance would give. And pictures of one species share more of their instance channels than pictures of two: without a label, the instance partition also finds something of the class.
#
# ## What conserving the variance does
#
# The factor keeps the variance of the sum exactly only where the two parts do not covary. How far off is it at a real layer? `exact_variance` scales by the variance that is really left.

# %%
with capture(model, LAYER) as seen:
    seen.backward(model(images)[torch.arange(len(labels)), labels].sum())
g = seen[LAYER].gradient  # (n, c, 12, 12)
keep = parch.kept_for(labels, quantile=0.1)[LAYER]

# %%
variance = lambda g: g.sum(1).flatten(1).var(1)
drift = {
    name: variance(reweigh(g, keep, **how)) / variance(g)
    for name, how in {
        "none": {"variance_conservation": False},
        "published": {},
        "exact": {"exact_variance": True},
    }.items()
}
for name, r in drift.items():
    print(
        f"{name:9s} {r.median():.2f} of the variance before ({r.min():.2f} to "
        f"{r.max():.2f})"
    )

# %%
assert (drift["exact"] - 1).abs().max() < 1e-4 and (
    drift["published"] - 1
).abs().median() > 0.02

# %% [markdown]
# And the map? The factor is one number per picture and layer. In a *purely sequential* network all gradient passes through that layer, so it multiplies the whole map, and no measure that ignores the scale of a map can tell. With shortcuts,
# a part of the gradient goes around the layer. Predict the ratio of the maps with and without the factor, for a chain of convolutions and for our network.

# %%
chain = (
    nn.Sequential(
        nn.Conv2d(3, 12, 5, 2),
        nn.SiLU(),
        nn.Conv2d(12, 16, 5, 2),
        nn.SiLU(),
        nn.Conv2d(16, 16, 3),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(256, 14),
    )
    .double()
    .eval()
)
few = model.info.preprocess(torch.stack([train[i][0] for i in range(84)])).double()
of_chain = ChannelStatistics.collect(chain, [(few, train.targets[:84])], progress=False)
chained = ParchGrad(chain, of_chain, layer_ratio=1.0)


# %%
def ratios(parch, x, y):
    """Map with conservation over map without, at each pixel of a map (n, values)."""
    with_, without = (
        parch.attribute("grad", x, y, quantile=0.1, variance_conservation=on).flatten(1)
        for on in (True, False)
    )
    used = without.abs() > 1e-3 * without.abs().amax(1, keepdim=True)
    return [(a[u] / b[u]).cpu() for a, b, u in zip(with_, without, used)]


# %%
in_chain, in_resnet = (
    ratios(chained, few[:6], train.targets[:6]),
    ratios(parch, images[:6], labels[:6]),
)
for name, each in (("chain", in_chain), ("residual", in_resnet)):
    print(
        f"{name:8s} ratio at the pixels of a picture:",
        ", ".join(
            f"{float(r.quantile(0.05)):.3g} to {float(r.quantile(0.95)):.3g}"
            for r in each[:3]
        ),
    )

# %%
assert all(
    float(r.std() / r.mean()) < 1e-6 and float(r.mean()) > 1.05 for r in in_chain
)
assert all(float(r.std() / r.mean().abs()) > 0.05 for r in in_resnet)

# %% [markdown]
# One constant in the chain, at every pixel. A VGG is such a chain too, so there no score that ignores the scale of a map can say anything about this switch.

# %% [markdown]
# (parchgrad-numbers)=
# ## The numbers, against controls
#
# Does it work? Three networks that differ in their random seed alone, 112 birds that neither they nor their statistics have seen, one channel in ten, nothing tuned. Two bases: the magnitude of the gradient, and the
# positive part of signed input times gradient {cite:p}`shrikumar2017`. Two opponents: the same map without a partition, and through a *random* partition of the same size, averaged over two draws. Four questions:
#
# - *five parts*: how much of the mass lies on beak, crest, wing, tail and legs, which define the species?
# - *needed part*: how much lies on the one part whose removal, drawn again, costs this network's logit most?
# - *body*: how much lies on the body, which says nothing about the species?
# - *order*: does the mass rank the five parts as their removal does? Rank correlation, picture by picture.

# %%
removed = torch.stack(
    [torch.stack([render(s.without(part)).image for part in PARTS]) for s in scenes]
)  # (n, 5, 3, height, width)
part_masks = torch.stack(
    [torch.stack([p.masks[part] for part in PARTS]) for p in pictures]
)  # (n, 5, height, width)
all_parts = part_masks.sum(1).clamp(0, 1)
bodies = torch.stack([p.masks["body"] for p in pictures])


def needs(model):
    """What each part, taken away, costs the centred logit of the species (n, 5)."""
    with torch.no_grad():
        both = [torch.stack([p.image for p in pictures])[:, None], removed]
        x = rearrange(torch.cat(both, 1), "n part c y x -> (n part) c y x")
        z = torch.cat(
            [
                model(model.info.preprocess(part.to(device))).cpu()
                for part in x.split(105)
            ]
        )
    centred = rearrange(z - z.mean(1, keepdim=True), "(n part) k -> n part k", part=6)
    own = centred[torch.arange(len(scenes)), :, labels]  # (n, 6)
    return own[:, :1] - own[:, 1:]


# %%
def answers(signed, need, sign):
    """Four numbers a bird (4, n), from a map (n, h, w), signed or a magnitude."""
    mass = signed.clamp_min(0) if sign else signed
    share = lambda mask: mass_inside(mass, mask)
    needed = part_masks[torch.arange(len(scenes)), need.argmax(1)]
    on_parts = einsum(signed, part_masks, "n y x, n part y x -> n part")
    order = torch.from_numpy(spearman(on_parts, need))  # of the parts
    return torch.stack([share(all_parts), share(needed), share(bodies), order])


# %%
def study(name):
    """Answers for one network: base -> plain, partition, random -> (4, n)."""
    model = load_model(name, device=device).to(memory_format=CL)
    own = statistics if name == networks[0] else collect(model)
    parch, need = ParchGrad(model, own), needs(model)
    slopes = {
        "plain": saliency.gradient(model, images, labels),
        "partition": parch.attribute("grad", images, labels, quantile=0.1),
    }
    slopes |= {
        f"random {i}": parch.attribute("grad", images, labels, quantile=0.1, shuffle=i)
        for i in range(2)
    }
    result = {}
    for base, sign, make in (
        ("gradient", False, unsigned),
        ("input x gradient", True, lambda s: (images * s).detach().cpu().sum(1)),
    ):
        each = {key: answers(make(s), need, sign) for key, s in slopes.items()}
        drawn = torch.stack([each.pop(f"random {i}") for i in range(2)])
        result[base] = each | {"random": drawn.mean(0)}
    return result


networks = [f"aviary-resnet-{seed}" for seed in range(3)]  # the first is the one above
results = [study(name) for name in networks]

# %%
QUESTIONS = ("five parts", "needed part", "body", "order")
print(f"{'mean of three networks':28s}" + "".join(f"{q:>13s}" for q in QUESTIONS))
for base, rows in results[0].items():
    for key in rows:
        row = torch.stack([result[base][key].mean(1) for result in results]).mean(0)
        print(f"{base:18s}{key:10s}" + "".join(f"{v:13.3f}" for v in row))

# %% [markdown]
# Now the differences, bird by bird, with 95% intervals from a bootstrap over birds. The last line asks whether the partition makes up for the step from a gradient to input times gradient. Of sixty such intervals about three
# miss the truth by chance, so one that barely excludes zero says little.

# %%
LINES = {
    "gradient, vs plain": ("gradient", "gradient", "plain"),
    "gradient, vs random": ("gradient", "gradient", "random"),
    "input x gradient, vs plain": ("input x gradient", "input x gradient", "plain"),
    "input x gradient, vs random": ("input x gradient", "input x gradient", "random"),
    "gradient, vs plain input x gradient": ("gradient", "input x gradient", "plain"),
}
gain = {
    line: torch.tensor(
        np.stack(
            [mean_intervals(r[base]["partition"] - r[other][key]) for r in results]
        )
    )
    for line, (base, other, key) in LINES.items()
}  # (3, 4, 3) each

# %% tags=["hide-input"]
panels = {
    q: {line: values[:, j] for line, values in gain.items()}
    for j, q in enumerate(QUESTIONS)
}
show_figure(
    viz.show_intervals(panels, ["seed 0", "seed 1", "seed 2"], "difference"),
    name="parchgrad-gain",
    alt="Differences with intervals for three networks. On the parts the partition is "
    "ahead of the plain map and of a random partition; in the order of the parts it "
    "is not ahead of the plain map.",
    caption="Attribution through the partition, minus each opponent, mean over 112 "
    "held-out birds with 95% bootstrap intervals. Right of zero: the partition has "
    "more.",
)

# %%
low, middle, high = (
    torch.stack([values[..., k] for values in gain.values()]) for k in (1, 0, 2)
)  # (lines, networks, questions) each
five, needed, body, order = range(4)
to_plain, to_random, to_input = [0, 2], [1, 3], 4
assert (low[:4, :, [five, needed, body]] > 0).all()
assert all(
    rows["plain"][five].mean() > rows["random"][five].mean()
    for result in results
    for rows in result.values()
)
assert (middle[to_plain][..., needed] > middle[to_plain][..., five]).all()

# %% [markdown]
# **More mass on the true parts than the plain map, and than a random partition: yes**, for both bases and all three networks, with every interval above zero. A random partition is worse than none, so it is the choice of channels that
# helps and not their number. But the *needed* part gains more than the five together, so the other four lose; and the body, which says nothing about the species, gains too.
#
# **More than input times gradient: no.** The gradient through the partition has less of its mass on the five parts than the *plain* input times gradient has, on every network, and more on the body.

# %%
assert (high[to_input, :, five] < 0).all() and (middle[to_input, :, body] > 0).all()

# %% [markdown]
# **A better account of what the network needs: no.** For the gradient, the order of the parts moves either way: up in one network, down in another. For signed input times gradient it falls in two networks of three. Only against a
# random partition is it better every time.

# %%
assert (low[to_random][..., order] > 0).all()
assert middle[0, :, order].max() > 0.02 and middle[0, :, order].min() < -0.02
assert (high[2, :, order] < 0).sum() == 2 and not (low[2, :, order] > 0).any()
print(
    "order, vs plain:",
    [[f"{v:+.2f}" for v in row] for row in middle[to_plain][..., order].tolist()],
)

# %% [markdown]
# The paper's own measure needs no parts. Hide the pixels a map calls most important (*morf*) and see how fast the answer goes; hide the least important (*lerf*) and see how long it stays. This says less than drawing the bird again: the
# network was not trained on patchworks of hidden pixels.

# %%
every = slice(0, 70)
ways = {
    "plain": {},
    "partition": {"quantile": 0.1},
    "random": {"quantile": 0.1, "shuffle": 0},
}
masked = {}
for way, how in ways.items():
    slope = (
        parch.attribute("grad", images[every], labels[every], **how)
        if how
        else saliency.gradient(model, images[every], labels[every])
    )
    for rule in ("morf", "lerf"):
        masked[way, rule] = masking_curve(
            model,
            images[every],
            unsigned(slope),
            labels[every],
            rule,
            (0, 0.05, 0.1, 0.2, 0.4),
        )

# %% tags=["hide-input"]
show_figure(
    viz.show_curves(
        torch.tensor([0, 0.05, 0.1, 0.2, 0.4]),
        {
            f"{which} important hidden first": {
                way: masked[way, rule].accuracy for way in ways
            }
            for rule, which in (("morf", "most"), ("lerf", "least"))
        },
        "share of pixels hidden",
        "still recognised",
    ),
    name="parchgrad-masking",
    alt="Two panels of three curves: share of birds still recognised as pixels are "
    "hidden, most and least important first.",
    caption="Hiding pixels in the order of three maps, 70 held-out birds. Left lower "
    "is better, right higher is better.",
)

# %%
drop = {
    (rule, other): mean_intervals(
        masked["partition", rule].aopc - masked[other, rule].aopc
    )
    for rule in ("morf", "lerf")
    for other in ("plain", "random")
}
odds = {
    (rule, other): float(
        (masked["partition", rule].log_odds - masked[other, rule].log_odds).mean()
    )
    for rule, other in drop
}
for (rule, other), (m, lo, hi) in drop.items():
    print(
        f"{rule}, partition minus {other}: mean drop of the probability {m:+.3f} "
        f"[{lo:+.3f}, {hi:+.3f}], log-odds {odds[rule, other]:+.2f}"
    )

# %%
at_40 = {key: float(curve.accuracy[-1]) for key, curve in masked.items()}
at_end = {way: f"{at_40[way, 'lerf']:.2f}" for way in ways}
print("still recognised with the least important 40% hidden:", at_end)

# %%
assert drop["morf", "random"][1] > 0
assert drop["lerf", "random"][1] < 0 < drop["lerf", "random"][2]
assert at_40["partition", "lerf"] < at_40["plain", "lerf"] - 0.04
assert at_40["partition", "lerf"] < at_40["random", "lerf"] + 0.03
assert odds["morf", "plain"] > 0.1
assert all(
    lo < 0 < hi and abs(m) < 0.03
    for (rule, other), (m, lo, hi) in drop.items()
    if other == "plain"
)

# %% [markdown]
# Against the plain gradient the mean drops cannot be told apart, in either order. Against a random partition the difference is clear for the most important pixels only. And the end of the curves speaks against the
# partition: with the least important 40% hidden, fewer birds are recognised than in the order of the plain map, and no more than in that of a random partition. With the most important hidden, the log-odds fall *less* than under the plain map.

# %% [markdown]
# (parchgrad-photographs)=
# ## On photographs, where nobody knows
#
# Nobody can draw a photographed cat again without its ears. Three things can still be asked. Does the map keep to the half of a montage that holds the answer? Does the answer go when the pixels of the map are hidden? And do a *random*
# partition and the partition of *another* class do as well?
#
# The statistics are those of 500 photographs, one of every second class of ImageNet, computed by `benchmarks/parchgrad_photos.py`; the photographs themselves are not part of this book. One photograph of a class is no sample, so classes are
# tested in groups. Which group will have the smaller p-values, 59 photographs of dogs or 6 of cats?

# %%
LATE = through.layers[-1]
p = of_groups.welch_pvalues(LATE, range(7))[LATE].cpu()  # (c, groups)
tenths = through.kept_for(range(7), quantile=0.1)[LATE].cpu()  # (groups, c)
with_cats = overlap(tenths, tenths[groups.index("cats")])
print(f"{'group':10s}photographs  p < 1e-4, of {len(p)} channels  of its tenth, cats'")
for g, group in enumerate(groups[:7]):
    below = (p[:, g] < 1e-4).float().mean()
    print(f"{group:10s}{about['counts'][group]:11d}{below:27.0%}{with_cats[g]:22.0%}")

# %%
passing_ = (p < 1e-4).float().mean(0)
assert passing_[groups.index("dogs")] == passing_.max()
assert passing_[groups.index("cats")] == passing_.min()
assert with_cats[groups.index("dogs")] == with_cats.sort().values[-2]
assert 0.28 < with_cats[groups.index("dogs")] < 0.38

# %% [markdown]
# The dogs, the largest group; the cats, the smallest, have the fewest. With fewer pictures fewer channels pass a level, whatever the network does (see the [appendix](parchgrad-appendix)), so here we keep a share. A third of the channels
# kept for dogs are kept for cats too, more than of any other group's.
#
# ### The picture of two things
#
# The photographs of this book that SqueezeNet places, with at least .4, in a class of one of the groups:

# %%
shown = {}
for name in photo_names():
    with torch.no_grad():
        chance, best = network(prepared([load_pixels(name)])).softmax(1)[0].max(0)
    inside = [g for g in groups[:-1] if int(best) in about["classes"][g]]
    if chance >= 0.4 and inside and name != "motorcycle_right":  # the same scene
        shown[name] = int(best), groups.index(inside[0])
        word = network.info.classes[int(best)].split(",")[0]
        print(f"{name}: {word} {chance:.2f}, one of the {inside[0]}")
assert set(shown) == {"chelsea", "coffee", "motorcycle", "hopper"}

# %% [markdown]
# Each stands beside each of the others, in half of the montages on the left, and the network is asked for its class. The share of the map in its half is .5 for a map that knows nothing. As a control, the same score is also sent through
# the partition of the *neighbour's* group. Where will that map lie?


# %%
def montage(name, other, left):
    """Two photographs, the first on the left or on the right (3, side, 2 side)."""
    return beside(*((square[name], square[other])[:: 1 if left else -1]))


def five_ways(name, other, left):
    """Maps of a montage, for the class of the first photograph: way -> (1, h, w)."""
    x, (target, group) = prepared([montage(name, other, left)]), shown[name]
    ways = {
        "class": {"classes": group},
        "instance": {"method": "ins"},
        "random": {"classes": group, "shuffle": 0},
        "neighbour's": {"classes": shown[other][1]},
    }
    maps = {"plain": unsigned(saliency.gradient(network, x, target))}
    return maps | {
        way: unsigned(through.attribute("grad", x, target, quantile=0.1, **how))
        for way, how in ways.items()
    }


# %%
square = {name: load_pixels(name) for name in shown}
on_left = {pair: i % 2 == 0 for i, pair in enumerate(permutations(shown, 2))}
ways_of = {pair: five_ways(*pair, left) for pair, left in on_left.items()}
WAYS = ("plain", "class", "instance", "random", "neighbour's")
own_half = {
    pair: {way: float(in_half(m, on_left[pair])) for way, m in maps_.items()}
    for pair, maps_ in ways_of.items()
}

# %% tags=["hide-input"]
TABS = {"chelsea": "Cat", "coffee": "Coffee", "motorcycle": "Motorcycle"}
TABS["hopper"] = "Portrait"
tabs = Gallery("parchgrad-montages")
for name, (target, group) in shown.items():
    pair = next(pair for pair in on_left if pair[0] == name)
    image = montage(*pair, on_left[pair])
    word = network.info.classes[target].split(",")[0]
    panels = [image] + [viz.Panel(image, coarse(m[0])) for m in ways_of[pair].values()]
    heads = [f"asked: {word}"]
    heads += [
        f"{way}: {share:.0%} in its half" for way, share in own_half[pair].items()
    ]
    figure = viz.show_grid(
        panels, heads, 2, scale="unsigned", limit=6, unit="times a uniform map"
    )
    tabs.add(
        TABS[name],
        in_few_colours(figure),
        alt=f"The photographs {name} and {pair[1]} side by side, and five maps of the "
        f"score of {word} over them: plain, through the partition of its group, of "
        "the instance, at random, and of the neighbour's group.",
        caption=f"Asked for {word}. Through the partition of the neighbour's group "
        f"{1 - own_half[pair][WAYS[-1]]:.0%} of the map of the same score lies on the "
        "neighbour.",
    )
tabs.show()

# %%
print(f"{'':12s}" + "".join(f"{way:>13s}" for way in WAYS))
mean_of = {
    name: [
        np.mean([row[way] for pair, row in own_half.items() if pair[0] == name])
        for way in WAYS
    ]
    for name in shown
}
for name, row in mean_of.items():
    print(f"{name:12s}" + "".join(f"{v:13.2f}" for v in row))

# %%
assert own_half["motorcycle", "chelsea"]["neighbour's"] < 0.2
assert own_half["chelsea", "coffee"]["neighbour's"] > 0.5
table_ = np.array(list(mean_of.values()))  # (photographs, ways)
assert (table_[:, 1] > table_[:, 0]).all() and (table_[:, 4] == table_.min(1)).all()
assert table_.mean(0).argmax() == 1
assert table_[:, 4].mean() < 0.45

# %% [markdown]
# For each of the four photographs the partition of the class has a larger share in the right half than the plain gradient, and that of the neighbour has the smallest of all, on average less than half. Asked for *moped*, through the channels of
# cats, more than four fifths of the map lie on the cat; asked for the cat, through those of food, most of it stays on the cat. The score was the same all the time: **the class of the partition is an input to the map.** Choose it by
# the score that is asked, and look at the plain gradient beside it.
#
# And the sweep, for the cat beside the coffee:

# %%
x, cats = prepared([cat_and_coffee]), {"classes": groups.index("cats")}
photo_sweep = {1.0: opening["cat", "plain"], 0.1: opening["cat", "partition"]}
for q in set(SHARES) - set(photo_sweep):
    slope = through.attribute("grad", x, CAT, quantile=q, **cats)
    photo_sweep[q] = unsigned(slope)
photo_sweep = {q: photo_sweep[q] for q in SHARES}
in_cat = {q: float(in_half(m, True)) for q, m in photo_sweep.items()}
print({q: f"{share:.2f}" for q, share in in_cat.items()})
assert in_cat[0.5] > 0.95 > 0.85 > in_cat[1.0] and min(in_cat.values()) == in_cat[1.0]

# %% tags=["hide-input"]
frames = []
for q, m in photo_sweep.items():
    frame = viz.show_grid(
        [viz.Panel(cat_and_coffee, coarse(m[0]))],
        [f"keeping {q:g} of the channels: {in_cat[q]:.0%} in the cat's half"],
        scale="unsigned",
        limit=6,
        unit="times a uniform map",
        tallest=2.6,
    )
    frames.append(in_few_colours(frame))
animation = io.BytesIO()
frames[0].save(
    animation, "GIF", save_all=True, append_images=frames[1:], duration=1200, loop=0
)
assert Image.open(animation).n_frames == len(SHARES)

# %% tags=["hide-input"]
show_figure(
    animation.getvalue(),
    name="parchgrad-sweep",
    alt="An animation of six frames, a cat beside a cup of coffee. As fewer channels "
    "are kept the map leaves the cup and thickens on the face of the cat.",
    caption="The sweep, one frame for each share of kept channels, asked for the "
    "Egyptian cat.",
)

# %% [markdown]
# Half of the channels are enough to leave the cup nearly empty.
#
# ### With intervals
#
# Four photographs are a demonstration. The table that comes with the package holds at most 16 held-out photographs of each group, of those that the network places in it. Each was explained with the statistics of the half of the photographs that it is *not* in, for the class the
# network gives it: in one montage beside a photograph of another group, and alone, where the most or the least important .1, .3 and .5 of its pixels were replaced by blur.

# %%
lines = list(csv.DictReader((tables / "squeezenet.csv").read_text().splitlines()))
column = {k: np.array([float(line[k]) for line in lines]) for k in lines[0]}
RIGHT_HALF = {"gradient": "gradient", "input": "input x gradient"}
HIDDEN = {"morf": "most important hidden", "lerf": "least important hidden"}
OTHERS = {w: f"minus {w}" for w in ("plain", "random", "instance")}
OTHERS["other"] = "minus neighbour's"
for key, title in {**RIGHT_HALF, **HIDDEN}.items():
    means_ = {w: column.get(f"{key} {w}") for w in ("class", *OTHERS)}
    means_ = {w: f"{v.mean():.3f}" for w, v in means_.items() if v is not None}
    print(f"{title:23s}", means_)


# %%
def minus(key, way, other):
    """Mean difference of two ways, with its interval over photographs (3,)."""
    return mean_intervals(column[f"{key} {way}"] - column[f"{key} {other}"])


difference = {
    (key, other): minus(key, "class", other)
    for key in (*RIGHT_HALF, *HIDDEN)
    for other in OTHERS
    if f"{key} {other}" in column
}
said_of = {}  # the figure in words, for those who cannot see it
for (key, other), (m, lo, hi) in difference.items():
    said_of.setdefault(key, {**RIGHT_HALF, **HIDDEN}[key] + ":")
    said_of[key] += f" {OTHERS[other]} {m:+.3f} [{lo:+.3f}, {hi:+.3f}]"

# %% tags=["hide-input"]
held_out = Gallery("parchgrad-held-out")
for label, titles, unit, how in (
    (
        "Montages",
        RIGHT_HALF,
        "difference of the share in the right half",
        "Right of zero: the partition of the class has more.",
    ),
    (
        "Deletion",
        HIDDEN,
        "difference of the mean drop of the probability",
        "A good map is right of zero on the left, and left of zero on the right.",
    ),
):
    panels = {
        title: {OTHERS[o]: v[None] for (k, o), v in difference.items() if k == key}
        for key, title in titles.items()
    }
    held_out.add(
        label,
        viz.show_intervals(panels, [f"{len(lines)} photographs"], unit),
        alt="Two panels of intervals, the partition of the class minus each opponent. "
        + ". ".join(said_of[key] for key in titles),
        caption=f"Partition of the class minus each opponent, mean over {len(lines)} "
        f"held-out photographs with 95% bootstrap intervals over photographs. {how}",
    )
held_out.show()

# %% [markdown]
# **In the right half: yes.** The partition of the class has more of its map in the right half than the plain gradient, a random partition or that of the instance, for both bases, with every interval above zero; and more than the plain
# gradient in the mean of each of the seven groups. A random partition has a little less than the plain gradient, and that of the instance cannot be told from it.

# %%
by_group = {}
for g, group in enumerate(groups[:7]):
    of = column["group"] == g
    by_group[group] = [
        (column[f"{key} class"] - column[f"{key} plain"])[of].mean()
        for key in ("gradient", *HIDDEN)
    ]
print("class minus plain: right half, most hidden, least hidden")
for group, row in by_group.items():
    print(f"{group:10s}" + "".join(f"{v:+9.3f}" for v in row))
unchosen = {w: minus("gradient", w, "plain") for w in ("random", "instance", "other")}
for w, (m, lo, hi) in unchosen.items():
    print(f"{w:9s} minus plain {m:+.3f} [{lo:+.3f}, {hi:+.3f}]")

# %%
assert min(half for half, most, least in by_group.values()) > 0
assert all(difference[key, other][1] > 0 for key in RIGHT_HALF for other in OTHERS)
assert (
    unchosen["random"][2] < 0 and unchosen["instance"][1] < 0 < unchosen["instance"][2]
)

# %% [markdown]
# **Which pixels the answer depends on: no.** Hide the pixels the map calls most important, and the probability falls *less* than in the order of the plain gradient. Hide the least important, and no difference can be told from zero; nor can
# the difference from a random partition, in either order. As with the drawn birds: more mass on the right thing, no better account of its parts.
#
# More than half of this loss comes from one group, the photographed birds. Without them the loss is smaller, and with the least important pixels hidden the partition is ahead. That split was made after looking: a hint, and no result.
#
# **The place follows the partition.** Through the neighbour's partition, about half of the map of the same score lies on the neighbour.

# %%
loss = column["morf class"] - column["morf plain"]
kept_back = column["lerf class"] - column["lerf plain"]
a_bird = column["group"] == groups.index("birds")
without_birds = mean_intervals(np.stack([loss, kept_back])[:, ~a_bird])
for name, (m, lo, hi) in zip(HIDDEN.values(), without_birds):
    print(f"without birds, {name}: class minus plain {m:+.3f} [{lo:+.3f}, {hi:+.3f}]")

# %%
assert difference["morf", "plain"][2] < 0 and loss[a_bird].sum() < loss.sum() / 2
assert without_birds[0, 2] < 0 and without_birds[1, 2] < 0
same_ = [difference[key] for key in difference if key[0] in HIDDEN]
assert all(lo < 0 < hi for m, lo, hi in same_[1:]) and len(same_) == 6
assert unchosen["other"][2] < 0 and 0.4 < column["gradient other"].mean() < 0.6

# %% [markdown]
# What limits this: the intervals take the neighbours as given; one collection gave both halves; the network was trained on neither montages nor blurred pixels; and the groups are coarse.

# %% [markdown]
# ## A failure on purpose
#
# Three mistakes that are refused: the statistics of another network of the same architecture, a class with a single picture, a level `alpha` above 1.


# %%
def said(call, *words):
    """Prints the error of a call that must fail with these words."""
    try:
        call()
    except ValueError as error:
        print(textwrap.fill(f"ValueError: {error}", 95), "\n")
        assert all(word in str(error) for word in words)
    else:
        raise AssertionError("this should have been refused")


# %%
other_network = load_model("aviary-resnet-1", device=device)
said(
    lambda: ParchGrad(other_network, statistics), "another model", "Collect them again"
)
ten = collect(
    model, torch.utils.data.Subset(train, range(15)), layers=parch.layers
)  # the first species twice, the others once
said(
    lambda: ParchGrad(model, ten).attribute(
        "grad", images[bird], HAZEL, quantile=0.1, classes=HAZEL
    ),
    "1 of 15",
    "two images",
)
said(lambda: parch.attribute("grad", images[bird], HAZEL, alpha=5), "at most 1")

# %% [markdown]
# ## Exercises
#
# ```{exercise}
# :label: ex-parchgrad-chain
#
# **Predict.** In the chain of convolutions from above, `variance_conservation` is switched off. Which of these change: `"mass"`, the share of the map in the upper half of the picture; `"order"`, the rank correlation with the
# plain gradient; `"largest"`, the largest value? Hand over a set of names.
# ```


# %%
def chain_measures(conserve):
    """Mass in the upper half, rank correlation with the plain map, largest value."""
    x, y, upper = few[:6], train.targets[:6], torch.zeros(6, 96, 96)
    upper[:, :48] = 1
    how = {"quantile": 0.1, "variance_conservation": conserve}
    m = chained.attribute("grad", x, y, **how).abs().mean(1)
    base = saliency.gradient(chain, x, y).abs().mean(1)
    order = [
        stats.spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(m, base)
    ]
    return {
        "mass": mass_inside(m, upper),
        "order": torch.tensor(order),
        "largest": m.amax((1, 2)),
    }


def check_chain(changes):
    """Measures all three with and without conservation."""
    with_, without = chain_measures(True), chain_measures(False)
    truth = set()
    for name, a in with_.items():
        b = without[name]
        if not torch.allclose(a.double(), b.double(), rtol=1e-6):
            truth.add(name)
        verdict = "changes" if name in truth else "stays"
        print(f"{name}: {verdict}, {float(a[0]):.4g} and {float(b[0]):.4g}")
    return set(changes) == truth


# %%
my_changes = set()  # your names here
solved = check_chain(my_changes)

# %% [markdown]
# ```{solution-start} ex-parchgrad-chain
# :class: dropdown
# ```
#
# Only the largest value. At each layer a picture's gradient is multiplied by one number, and in a chain nothing goes around the layer: the product of these numbers multiplies the whole map. Shares and ranks do not see it.

# %%
assert check_chain({"largest"})

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise}
# :label: ex-parchgrad-others
#
# **Implement.** The test compares a class with *all other pictures*, but only moments by class are kept. Write `others(count, mean, m2, k)` for `count (classes, 1)`, `mean` and `m2 (classes, c)`, the sum of squared
# distances from the mean of the class: mean and unbiased variance over all classes but `k`, `(c,)` each.
# ```


# %%
def check_others(own):
    """Compares with the pictures themselves, for one class."""
    m = statistics.of_layer(LAYER)
    mean, variance_ = own(m.count.cpu(), m.mean.cpu(), m.m2.cpu(), HAZEL)
    rest = fired[~is_hazel].double()
    off = float((mean - rest.mean(0)).abs().max())
    ratio = float((variance_ / rest.var(0)).median())
    print(
        f"mean off by {off:.0e}, variance {ratio:.4f} of the true one"
        + ("" if off < 1e-5 else "; weigh each class by its pictures")
        + ("" if ratio > 0.999 else "; classes also differ in their means")
    )
    return off < 1e-5 and abs(ratio - 1) < 1e-4


# %%
def my_others(count, mean, m2, k):
    """Your mean and variance here, (c,) each."""
    return mean.mean(0), m2.sum(0) / count.sum()


solved = check_others(my_others)

# %% [markdown]
# ```{solution-start} ex-parchgrad-others
# :class: dropdown
# ```


# %%
def others(count, mean, m2, k):
    rest = torch.arange(len(count)) != k
    count, mean, m2 = count[rest], mean[rest], m2[rest]
    centre = (count * mean).sum(0) / count.sum()
    return centre, (m2.sum(0) + (count * (mean - centre) ** 2).sum(0)) / (
        count.sum() - 1
    )


assert check_others(others)

# %% [markdown]
# The variance within the classes and that between their means. Leave out the second and the variance comes out too small.
#
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise}
# :label: ex-parchgrad-labels
#
# **Break it.** A share of the channels is always kept, whether or not there is anything to find. Hand over labels for the 280 training birds, 20 of each class, with which the method runs without a word and yet no channel of
# the layer has a p-value below $10^{-4}$ for class 7.
# ```


# %%
def check_labels(targets):
    """Collects with other labels and looks at what is kept."""
    if targets.bincount(minlength=14).tolist() != [20] * 14:
        print("20 pictures of each class, please")
        return False
    batches = zip(train.images.float().div(255).split(56), targets.split(56))
    wrong = ChannelStatistics.collect(
        model,
        ((model.info.preprocess(x.to(device)), y) for x, y in batches),
        layers=LAYER,
        progress=False,
    )
    smallest = float(wrong.welch_pvalues(LAYER)[LAYER][:, HAZEL].min())
    still = int(
        ParchGrad(model, wrong, layers=LAYER).kept_for(HAZEL, quantile=0.1)[LAYER].sum()
    )
    print(f"{still} channels kept, the smallest p-value is {smallest:.1g}")
    return smallest > 1e-4


# %%
my_labels = train.targets  # your labels here (280,)
solved = check_labels(my_labels)

# %% [markdown]
# ```{solution-start} ex-parchgrad-labels
# :class: dropdown
# ```
#
# Shuffle them. Nine channels are kept although all of them are due to chance: the smallest of 96 p-values is small by itself. Look at the p-values before you look at the map.

# %%
assert check_labels(
    train.targets[torch.randperm(280, generator=torch.Generator().manual_seed(1))]
)

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# (parchgrad-appendix)=
# ## Appendix: levels, the published code, other models
#
# ### A level in place of a share
#
# Instead of a share one can set a level `alpha` for the p-value. Then every layer keeps as many channels as pass. Some class may keep none; there all are kept, and a warning says so. How many pass when `alpha` falls from one half to $10^{-20}$?

# %%
ALPHAS = (0.5, 1e-2, 1e-4, 1e-7, 1e-10, 1e-20)
passing = {
    a: {
        layer: rows.float().mean(1)
        for layer, rows in parch.kept_for(range(14), alpha=a).items()
    }
    for a in ALPHAS
}
show_figure(
    viz.show_curves(
        torch.tensor(ALPHAS),
        {
            layer: [float(passing[a][layer].mean()) for a in ALPHAS]
            for layer in parch.layers
        },
        "alpha",
        "share of channels kept",
        logx=True,
    ),
    name="parchgrad-alpha",
    alt="Four falling curves: the share of channels kept at each layer as alpha falls.",
    caption="Share of channels that pass, mean over the 14 species, for each edited "
    "layer.",
)

# %%
with_none = {
    a: int((torch.stack(list(passing[a].values())) == 0).any(0).sum()) for a in ALPHAS
}
print("species with an empty layer:", with_none)
assert with_none[0.5] == 0 and with_none[1e-20] > 7

# %%
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    nothing_kept = parch.attribute("grad", images[bird], HAZEL, alpha=1e-40)
print(textwrap.fill(str(heard[-1].message), 95))
assert torch.equal(unsigned(nothing_kept), plain)

# %% [markdown]
# At $10^{-10}$ one layer keeps more than twice as much as another, and with half of the training pictures fewer channels pass, although nothing about the network has changed:

# %%
half = collect(model, torch.utils.data.Subset(train, range(140)), layers=parch.layers)
from_half = ParchGrad(model, half).kept_for(range(14), alpha=1e-10)
strict = {
    layer: (float(v.mean()), float(from_half[layer].float().mean()))
    for layer, v in passing[1e-10].items()
}
for layer, (from_all, less) in strict.items():
    print(
        f"{layer} keeps {from_all:.3f} of its channels, with half of the pictures "
        f"{less:.3f}"
    )

# %%
shares = [from_all for from_all, _ in strict.values()]
assert max(shares) > 2 * min(shares) and all(
    less < from_all for from_all, less in strict.values()
)

# %% [markdown]
# ### The published code, step by step
#
# The authors' code works on a wrapper. `ctrace.published` has the same calls; each does what the comment says.

# %%
import tempfile

from ctrace.published import STATISTICS_FILE, get_hook_wrapper, get_input_attrib

folder = tempfile.mkdtemp()
statistics.save(f"{folder}/{STATISTICS_FILE}")  # one file in place of four pickles

# %%
# which kind of masks; here any model will do, whatever the name says
wrapper = get_hook_wrapper("resnet18", model, "cls")
# ChannelStatistics.load
wrapper.prepare_parchgrad(base_directory=folder, device=device)
# default_convs(model, layer_ratio)
convolutions = wrapper.get_default_hook_convolutions(layer_ratio=None)
# ParchGrad(model, statistics, convolutions)
wrapper.set_hook_modules(convolutions)
# saliency.gradient
input_attrib = get_input_attrib("grad")
# parch.attribute("grad", x, y, quantile=0.1), its magnitude averaged over the colours
x, y = images[hazels[:3]], labels[hazels[:3]]
attr = input_attrib(
    wrapper,
    x,
    y,
    cls=y,
    modify_gradient=True,
    quantile=0.1,
    variance_conservation=True,
    exact_variance=False,
    gamma_infinity=True,
)

# %%
assert attr.shape == (3, 96, 96) and torch.allclose(attr.cpu(), unsigned(edited))

# %% [markdown]
# At [commit 739358c](https://github.com/fxnnxc/parchgrad/tree/739358c6e2747b854e69a0f9dd725f9b88667547) of February 2024, the last one, the code departs from what it says in these places:
#
# | the published code | file: lines | here |
# |---|---|---|
# | tests every layer with the activations of the *last* one, `h`, left over from a loop above | `labs/compute_stats/run.py`: 42, 71-72 | each layer with its own |
# | calls the test Welch's; without `equal_var=False` scipy pools the variances | `parchgrad/utils.py`: 18 | does not pool |
# | partitions a whole batch for the class of its first picture | `parchgrad/cls.py`: 30 | each picture for its own |
# | reads $\gamma$ from a name that is not defined, so that a finite one raises an error | `parchgrad/hooks.py`: 46 | any positive number |
# | with `exact_variance` scales by the ratio of the variances | `parchgrad/hooks.py`: 47-51 | by its square root, also for infinite $\gamma$ |
# | weighs each gradient by the probability of the class | `parchgrad/attribution_methods/gradient.py`: 11-14, `integratedgrad.py`: 24-27 | the gradient of the logit |
# | with an `alpha` but no `quantile`, instance masks raise an error | `parchgrad/ins.py`: 38-42 | both work |
# | takes the statistics from the validation pictures it then scores | `labs/gather_forward/run.py`: 36, `labs/evaluate_attribution/run.py`: 73 | from training pictures |
#
# What do three of these cost? The first: how many of the channels a layer should keep are among those it would keep by the last layer's p-values?

# %%
last = statistics.welch_pvalues(parch.layers[-1])[parch.layers[-1]]  # (c, classes)
for layer in parch.layers[:-1]:
    own = parch.kept_for(range(14), quantile=0.1)[layer]  # (classes, c)
    first = last[: own.shape[1]].argsort(0)[: int(own.sum(1)[0])].T
    borrowed = torch.zeros_like(own, dtype=torch.bool).scatter(
        1, first.to(own.device), True
    )
    print(
        f"{layer}: {overlap(own, borrowed).mean():.0%} in common, by chance "
        f"{float(own.float().mean()):.0%}"
    )
    assert overlap(own, borrowed).mean() < float(own.float().mean()) + 0.12
    assert overlap(own, borrowed).mean() < 0.2

# %% [markdown]
# At most one in five; in one layer fewer than by chance. The second: ten pictures of a class with three times the spread of the 490 others, and *no* difference of the means. How often is $p \le 0.05$?

# %%
rng = np.random.default_rng(0)
narrow, wide = rng.normal(size=(490, 4000)), 3 * rng.normal(size=(10, 4000))
false = {
    name: float(
        (
            stats.ttest_ind(
                wide, narrow, equal_var=pooled, alternative="greater"
            ).pvalue
            <= 0.05
        ).mean()
    )
    for name, pooled in (("pooled", True), ("Welch", False))
}
print(false)
assert abs(false["Welch"] - 0.05) < 0.015 and false["pooled"] > 0.2

# %% [markdown]
# The third: integrated gradients owe their meaning to completeness {cite:p}`sundararajan2017`: they sum to the change of the score. Weighed by the probability of each step, to what do they sum?


# %%
def summed(weigh, steps=64):
    """Sum of integrated gradients from the mean image, steps weighed or not."""
    points = (
        torch.linspace(0, 1, steps + 1, device=device)[:, None, None, None]
        * images[bird]
    ).requires_grad_()
    logits = model(points)
    weight = logits.softmax(1)[:, HAZEL].detach() if weigh else 1.0
    (slope,) = torch.autograd.grad((weight * logits[:, HAZEL]).sum(), points)
    return float((torch.trapezoid(slope, dim=0) / steps * images[bird]).sum())


# %%
with torch.no_grad():
    logits = model(torch.stack([images[bird], torch.zeros_like(images[bird])]))
by_logit, by_probability = (
    float(v[0, HAZEL] - v[1, HAZEL]) for v in (logits, logits.softmax(1))
)
by_step, weighed = summed(False), summed(True)
print(
    f"sum {by_step:.3f}, change of the logit {by_logit:.3f}; weighed {weighed:.3f}, "
    f"change of the probability {by_probability:.3f}"
)

# %%
assert abs(by_step / by_logit - 1) < 0.02
assert min(abs(weighed / v - 1) for v in (by_logit, by_probability)) > 0.05

# %% [markdown]
# Neither to the change of the logit nor to that of the probability.
#
# ### Your own model
#
# *Which layers?* For the families of the paper there are published defaults. For any other network name the convolutions, or pass `layer_ratio`, the last share of them. In early layers fewer channels differ between the classes:

# %%
import timm

with torch.device("meta"):  # the architecture without its weights
    families = {
        name: timm.create_model(name)
        for name in ("resnet18", "vgg16_bn", "efficientnet_b0")
    }
for name, net in families.items():
    print(textwrap.fill(f"{name}: {', '.join(default_convs(net))}", 86))
last_tenth = default_convs(families["efficientnet_b0"], layer_ratio=0.1)
print(textwrap.fill(f"efficientnet_b0, the last tenth: {', '.join(last_tenth)}", 86))

# %%
early = {
    layer: float((statistics.welch_pvalues(layer)[layer] < 1e-6).float().mean())
    for layer in statistics.layers
}
print("share of channels and species with p < 1e-6:")
for layer in (
    "conv1.0",
    "layer1.0.conv1",
    "layer2.0.conv1",
    "layer3.0.conv1",
    "layer4.0.conv1",
):
    print(f"   {layer:15s}{early[layer]:.2f}")
assert early["layer4.0.conv1"] > 3 * early["conv1.0"]

# %% [markdown]
# *How are the p-values computed?* By `ChannelStatistics.collect(model, loader)`, where the loader yields pictures, prepared as the network wants them, and class numbers. Save them; a file of statistics holds no code. Memory does not
# grow with the data, and statistics of two halves of a data set merge into those of the whole.

# %%
other_half = collect(
    model, torch.utils.data.Subset(train, range(140, 280)), layers=parch.layers
)
merged = half.merge(other_half)
worst = max(
    float((merged.of_layer(layer).mean - statistics.of_layer(layer).mean).abs().max())
    for layer in parch.layers
)
each = (
    statistics.moments.mean.nbytes + statistics.moments.m2.nbytes
) / statistics.moments.mean.numel()
print(
    f"{each:.0f} bytes per class and channel: {each * 1000 * 10_000 / 1e6:.0f} MB for "
    "1,000 classes and 10,000 channels"
)
print(
    f"{merged.count.sum()} pictures, largest difference of a mean from one pass: "
    f"{worst:.0e}"
)
assert worst < 1e-5 and torch.equal(merged.count, statistics.count)

# %% [markdown]
# On several processes the merging happens by itself; all end with the statistics of the whole. This is `collect.py`, to be started with `torchrun --nproc-per-node 4 collect.py`:
#
# ```python
# import torch.distributed as dist
# from torch.utils.data import DataLoader, DistributedSampler
# from ctrace.look.channel_statistics import ChannelStatistics
#
# dist.init_process_group()
# model, dataset = ...  # yours, in eval mode; pictures prepared as for training
# sampler = DistributedSampler(
#     dataset, shuffle=False, drop_last=True  # else some pictures count twice
# )
# loader = DataLoader(dataset, 64, sampler=sampler)
# statistics = ChannelStatistics.collect(model, loader)
# if dist.get_rank() == 0:
#     statistics.save("statistics.safetensors")
# ```
#
# The published method also keeps no channel whose activations pass as normal (Shapiro and Wilk's test; `parchgrad/cls.py`: 38). `ctrace` has no such gate. Which share of a layer's channels has $p < 0.05$, with 20 pictures and with 280?


# %%
def normality(values):
    """p-value of Shapiro and Wilk's test; 1 for a channel that never changes."""
    return stats.shapiro(values).pvalue if values.max() > values.min() else 1.0


# %%
open_ = {}
some_pictures = torch.randperm(280, generator=torch.Generator().manual_seed(0))
for n in (20, 280):
    p_normal = [normality(values) for values in fired[some_pictures[:n]].T.numpy()]
    open_[n] = float((np.array(p_normal) < 0.05).mean())
print(
    f"share of the channels of {LAYER} that pass:",
    {n: f"{v:.0%}" for n, v in open_.items()},
)
assert open_[280] > 0.9 and open_[280] > open_[20] + 0.1

# %% [markdown]
# With many pictures nearly every channel passes the gate, so it selects little.
#
# In this notebook we have
#
# - **chosen** the channels of a class by a statistical test, and seen what they respond to,
# - **edited** the gradient on its way back, and said what each switch of the method does,
# - **measured** on held-out birds and photographs what the edit gains over the plain gradient and over a random partition, and what it loses.
#
# What this does not show: how the numbers come out with statistics of single classes, for which 500 photographs are too few, and on networks larger than SqueezeNet. The formulas of the chapters of this part on one page:
# [Looking, in short](../book/look.md).

# %%
print(
    f"this page ran in {time.time() - started:.0f} s on {device}, "
    f"{torch.get_num_threads()} threads"
)
