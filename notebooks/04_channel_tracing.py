# %% [markdown]
# # Channel tracing
#
# **A segment can name the channels that hold it together, and the names can be checked: by moving each channel and cutting again.**

# %% [markdown] tags=["remove-cell"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ctrace-book/ctrace/blob/main/notebooks/04_channel_tracing.ipynb)

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
# - **trace** the segments of photographs back to named channels,
# - **settle** the sign of the ranking, with finite differences for every channel,
# - **test** the ranking, by removing the channels it names.
#
# You need [Normalized cuts](01_normalized_cuts.ipynb) for the words *segment* and *eigengap*. [The gradient of a cut](02_gradient_of_a_cut.ipynb)
# explains what is differentiated here. The last cell prints how long this page took to run.

# %%
import textwrap
import time

import ctrace
import torch
import torch.nn.functional as F
from ctrace import (
    Ncut,
    filter_bank,
    kway_ncut,
    load_model,
    load_photo,
    trace_channels,
    viz,
)
from ctrace.aviary import SPECIES, Aviary, render
from ctrace.cut.tracing import ablate, best_overlap, segment_strength
from ctrace.stats import spearman
from ctrace.viz.gallery import Gallery, show_figure
from ctrace.world.models import chosen_model
from einops import rearrange, reduce
from torchvision.transforms.functional import to_pil_image

started = time.time()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
print(
    f"torch {torch.__version__} on {device}; features: named filter bank, and a small bundled transformer"
)

# %% [markdown]
# ## The idea
#
# Cut an image into segments and each segment is a claim: these points belong together. A *channel*, one column of the features, can
# support that claim, oppose it, or have nothing to say. Raise the channel a little inside the segment and watch its strength:
#
# $$
# a_{jc} = \frac{1}{|A_j|}\sum_{i \in A_j} \frac{\partial s_j}{\partial x_{ic}},
# \qquad a_{jc} > 0:\ \text{more of channel } c \text{ inside makes segment } j \text{ stronger.}
# $$
#
# Here is one answer, before any detail. The features are a filter bank, so the channels have names.

# %%
photo = load_photo("astronaut")
features = filter_bank(photo, grid=48).to(device)
trace = trace_channels(features, n_segments=6)
print(
    f"{len(trace.segments)} points, {len(features.names)} channels, eigengap {trace.spectrum.eigengap:.4f}"
)


# %% tags=["hide-input"]
def segment_at(trace, features, y, x):
    """The segment under a point, given in fractions of height and width."""
    h, w = features.grid_hw
    segments = rearrange(trace.segments, "(h w) -> h w", h=h)
    return int(segments[int(y * h), int(x * w)])


def trace_figure(photo, features, trace, segment, top=5):
    """Photograph, segment, and the channels that support it most, best first."""
    mask = rearrange(trace.mask(segment), "(h w) -> h w", h=features.grid_hw[0])
    panels = [photo, viz.Panel(viz.spotlight(photo, mask), outline=mask)]
    titles = ["photograph", f"segment, {mask.float().mean():.0%} of it"]
    for number, name, value in trace.table(segment, "support", top):
        values = features.zscores()[0, :, :, number]
        panels.append(viz.Panel(values=values, outline=mask))
        titles.append(
            f"{textwrap.fill(name, 24)}\nch {number}, attribution {value:.1e}"
        )
    return viz.show_grid(panels, titles, unit="standard deviations")


suit = segment_at(trace, features, 0.75, 0.15)
show_figure(
    trace_figure(photo, features, trace, suit),
    name="suit",
    alt="An astronaut; the segment of her orange suit; the maps of the five channels that support it, b* and a* first.",
    caption="The suit, and what holds it together. Each map is one channel in standard deviations, the segment outlined.",
)

# %%
for number, name, value in trace.table(suit, "support", 3) + trace.table(
    suit, "inhibit", 2
):
    print(f"ch {number:2d}  {name:24s} {value:+.1e}")
assert {name for _, name, _ in trace.table(suit, "support", 2)} == {
    "a* green-red",
    "b* blue-yellow",
}

# %% [markdown]
# The suit is one segment because it is red *and* yellow: it is held together by being orange. Nobody told the cut about orange.
#
# ## By hand
#
# Twelve points, two channels, two segments. The first channel separates them, the second is noise.

# %%
left = torch.tensor(
    [[0.0, 0.3], [0.2, -0.4], [-0.2, 0.1], [0.1, 0.5], [-0.1, -0.2], [0.0, -0.5]]
)
points = torch.cat([left, left.flip(0) + torch.tensor([2.0, 0.1])]).double()
small = trace_channels(points, n_segments=2, sigma=1.0, names=("first", "second"))
print(small.segments.tolist())
print(small.attributions)

# %% [markdown]
# The right-hand segment is strong when its first channel is *high*, the left-hand one when it is *low*. Same channel, opposite signs; and the noise
# channel hardly matters to either. Now the five steps in the open, for the right-hand segment: cut, score, differentiate, average, rank.

# %%
x = points.clone().requires_grad_()
solver = Ncut(n_eig=2, sigma=1.0, track_grad=True)
Z = kway_ncut(solver.fit_transform(x))  # 1. cut: scores (n, k)
segments = Z.argmax(1)
right = int(segments[-1])
strength = segment_strength(Z, segments, solver.graph)[
    right
]  # 2. a number that says how strong the segment is
(gradient,) = torch.autograd.grad(strength, x)  # 3. differentiate
attribution = gradient[segments == right].mean(0)  # 4. average over the segment
print(attribution, attribution.argsort(descending=True).tolist())  # 5. rank

# %%
assert torch.allclose(attribution, small.attributions[right], atol=1e-12)
assert attribution[0] > 0 > small.attributions[1 - right, 0]
assert attribution[0].abs() > 20 * attribution[1].abs()

# %% [markdown]
# `trace_channels` is these five lines. For many segments it shares the work: one linear solve for all of them, and one pass over the graph.
#
# ## Which strength?
#
# Three objectives are on offer, and they do not weigh the same thing.
#
# - `score`, as published: the mean of $|Z_{ij}|$ over the segment. The columns of $Z$ have length 1 whatever the features do, so a segment of
#   given size has little room to move.
# - `association`: the share of the segment's weight that stays inside it, with soft membership. The default.
# - `cut`: minus the normalized cut of the segment as drawn. The border is held fixed; no eigenvector is differentiated.
#
# The associations have a property that makes them easy to trust: they sum to the eigenvalues.

# %%
x = features.features.double()
traces = {
    name: trace_channels(x, 6, objective=name)
    for name in ("association", "cut", "score")
}
total = traces["association"].scores.sum()
print(
    f"sum of associations {total:.12f}, sum of eigenvalues {traces['association'].spectrum.eigval.sum():.12f}"
)
assert abs(total - traces["association"].spectrum.eigval.sum()) < 1e-10

# %%
size = torch.bincount(traces["score"].segments)
for name, t in traces.items():
    print(f"{name:12s}", "  ".join(f"{v:+.3f}" for v in t.scores.tolist()))
print("1/sqrt(size)", "  ".join(f"{v:+.3f}" for v in size.rsqrt().tolist()))
pinned = traces["score"].scores * size.sqrt()
assert (0.85 < pinned).all() and (pinned < 1.0).all()

# %% [markdown]
# The published score is $1/\sqrt{\text{size}}$ to within 15%, in every segment. It knows how *large* a segment is, and little about how strong:
# no segment, however clear-cut, can do better. The associations are at home near 1 whatever the size. Do the three agree on the order all the same?

# %%
for name in ("cut", "score"):
    rho = spearman(
        traces["association"].attributions.cpu(), traces[name].attributions.cpu()
    )  # one per segment
    print(f"association against {name:5s}:", "  ".join(f"{r:+.2f}" for r in rho))
    assert rho.mean() > 0.3

# %% [markdown]
# They agree in the main and differ in the detail, segment by segment. A ranking is an answer to a question, so say which one you asked.
#
# ## The sign
#
# Here the field has a trap. The recipe in circulation differentiates the *negated* score and then sorts in descending order.
# Which channels come first: those the segment has, or those it lacks? We need not argue. For every channel and every
# segment, raise the channel inside the segment by a small step, solve again from the beginning, bandwidths included, and look at the strength.

# %%
tiny = filter_bank(photo, grid=16)
x16, k = tiny.features.double(), 4
traced = trace_channels(x16, k)


def strengths(points):
    """Strength of every segment, everything solved anew."""
    solver = Ncut(k)
    Z = kway_ncut(solver.fit_transform(points))
    return segment_strength(Z, Z.argmax(1), solver.graph)


# %%
def slope(j, c, step=1e-4):
    """Measured effect on segment j of raising channel c inside it."""
    bump = torch.zeros_like(x16)
    bump[traced.mask(j), c] = step
    return float(strengths(x16 + bump)[j] - strengths(x16 - bump)[j]) / (2 * step)


measured = torch.tensor([[slope(j, c) for c in range(x16.shape[1])] for j in range(k)])
size = torch.bincount(traced.segments)[:, None]
predicted = traced.attributions.float() * size
held = trace_channels(x16, k, bandwidth_grad=False).attributions.float() * size
error, missed = (
    float((measured - p).abs().max() / measured.abs().max()) for p in (predicted, held)
)
turned = int((held.sign() != measured.sign()).sum())
print(f"{measured.numel()} slopes, largest error {error:.1e} of the largest slope")
print(f"bandwidths held fixed: {missed:.2f}, and {turned} signs wrong")
assert error < 1e-5 and missed > 0.05 and turned > 0

# %%
show_figure(
    viz.show_scatter(
        {f"segment {j}": (predicted[j], measured[j]) for j in range(k)},
        "attribution x size of the segment",
        "measured slope of the strength",
        identity=True,
    ),
    name="slopes",
    alt="76 channel effects, predicted against measured; all on the diagonal.",
    caption="Every channel of every segment: the attribution predicts the measured effect, sign included.",
)
literal = -traced.attributions  # what the published recipe sorts
assert spearman(traced.attributions.cpu(), measured.cpu()).min() > 0.999
assert spearman(literal.cpu(), measured.cpu()).max() < -0.999

# %% [markdown]
# All of them lie on the line, so the attribution has the sign of the effect: rank correlation +1. (Each point's bandwidth is the distance to one of its neighbours. That moves too,
# and belongs to the gradient: held fixed, even a few signs come out wrong.) The literal recipe has -1: exactly upside
# down. Its first channels are the ones whose *absence* holds the segment together. That can be worth knowing, but it needs its right
# name. Here a ranking is asked for by name, and the literal order stays available for comparison.

# %%
for kind, order in (
    ("support", "effect"),
    ("inhibit", "effect"),
    ("support", "literal"),
):
    best = trace.ranking(kind, suit, order)[:3].tolist()
    print(f"{kind:8s} {order:8s}", [features.names[c] for c in best])
assert torch.equal(
    trace.ranking("support", suit, "literal"), trace.ranking("inhibit", suit)
)

# %%
order = trace.attributions[suit].argsort(descending=True)
positive = int((trace.attributions[suit] > 0).sum())
ends = [*order[: min(6, positive)], *order[max(positive, len(order) - 6) :]]
with viz.style():
    figure = viz.new_picture(6, 3)
    ax = figure.subplots()
    for row, c in enumerate(ends):
        value = float(trace.attributions[suit, c])
        ax.barh(row, value, color=viz.POSITIVE if value > 0 else viz.NEGATIVE)
    ax.set_yticks(range(len(ends)), [features.names[c] for c in ends])
    ax.invert_yaxis()
    ax.set(xlabel="attribution")
    ax.axvline(0, color=viz.QUIET, linewidth=0.8)
show_figure(
    figure,
    name="suit-ranking",
    alt="Bars of the suit's attributions: a* and b* far above the rest; contrast and position slightly negative.",
    caption="The suit's ranking with its sign. Red supports: more of it inside makes the segment stronger. Blue inhibits.",
)

# %% [markdown]
# ## Gallery
#
# Six photographs, one segment each. All are cut the same way: a 48-cell grid, six segments, default bandwidth. The names under the maps are computed,
# not chosen. The captions too.

# %%
examples = [
    ("astronaut", (0.75, 0.15), "the suit"),
    ("flower", (0.5, 0.5), "the heart of the flower"),
    ("hopper", (0.5, 0.5), "the face"),
    ("motorcycle", (0.5, 0.42), "the red paint"),
    ("coffee", (0.55, 0.25), "the saucer"),
    ("china", (0.45, 0.4), "the pagoda"),
]
tabs = Gallery("traced-segments")
for number, (name, point, what) in enumerate(examples, 1):
    image = load_photo(name)
    bank = filter_bank(image, grid=48).to(device)
    result = trace_channels(bank, n_segments=6)
    j = segment_at(result, bank, *point)
    first = [n for _, n, _ in result.table(j, "support", 2)]
    against = result.table(j, "inhibit", 1)[0][1]
    tabs.add(
        f"Example {number}",
        trace_figure(image, bank, result, j),
        alt=f"{name}: segment under {what}, and maps of its five strongest supporting channels, first {first[0]}.",
        caption=f"{name}, the segment at {what}. Supported by {first[0]}, then {first[1]}; inhibited most by {against}.",
    )
tabs.show()

# %% [markdown]
# In how many of them is the first supporting channel higher inside the segment than outside? If the sign were the wrong way round, in none. We ask twice: as
# above, and with the bandwidths held fixed.

# %%
higher, total = {True: 0, False: 0}, 6 * len(examples)
for name, _, _ in examples:
    bank = filter_bank(load_photo(name), grid=32).to(device)
    for moving in higher:
        result = trace_channels(bank, n_segments=6, bandwidth_grad=moving)
        for j in range(6):
            best, mask = int(result.ranking("support", j)[0]), result.mask(j)
            inside, outside = bank.features[mask, best], bank.features[~mask, best]
            higher[moving] += bool(inside.mean() > outside.mean())
print(
    f"first supporting channel is higher inside for {higher[True]} of {total} segments"
)
print(f"with the bandwidths held fixed, for {higher[False]}")
assert higher[False] > 0.85 * total and higher[True] > 0.7 * total

# %% [markdown]
# In most, either way; a little less often for the whole gradient, in which a channel also acts through the bandwidths and need not be one that the
# segment has more of.

# %% [markdown]
# ## Does the ranking matter? Ablation
#
# A ranking that names the right channels should hurt when they are taken away. *Take away* means here: set the channel to its mean, so that it
# tells no two points apart. Then cut again, and see how much of each segment is left (intersection over union with the best match).


# %%
def survival(bank, result, kind, m, generator):
    """Overlap left of each segment after removing m channels."""
    left = []
    for j in range(len(result.scores)):
        order = result.ranking("abs", j)
        order = {
            "top": order,
            "bottom": order.flip(0),
            "random": torch.randperm(len(order), generator=generator),
        }[kind]
        segments = kway_ncut(
            Ncut(5).fit_transform(ablate(bank.features, order[:m]))
        ).argmax(1)
        left.append(best_overlap(result.mask(j), segments))
    return left


# %%
removed, kinds = (1, 2, 4), ("top", "random", "bottom")
generator = torch.Generator().manual_seed(0)
three = ("astronaut", "coffee", "rocket")
banks = [filter_bank(load_photo(name), grid=28).to(device) for name in three]
results = [trace_channels(bank, 5) for bank in banks]
overlap = torch.tensor(
    [
        [
            [survival(b, r, kind, m, generator) for b, r in zip(banks, results)]
            for m in removed
        ]
        for kind in kinds
    ]
)
mean = reduce(overlap, "kinds removed banks segments -> kinds removed", "mean")
print(f"{'removed':8s}", *(f"{m:6d}" for m in removed))
for kind, row in zip(kinds, mean.tolist()):
    print(f"{kind:8s}", *(f"{v:6.2f}" for v in row))

# %%
show_figure(
    viz.show_curves(
        removed,
        dict(zip(kinds, mean)),
        "channels removed",
        "overlap left of the segment",
    ),
    name="ablation",
    alt="Overlap left against channels removed: top channels fall steeply, random ones less, bottom ones hardly.",
    caption="Removing the channels at the top of a segment's ranking breaks it; removing those at the bottom does not.",
)
assert (mean[0] < mean[1]).all() and (mean[1] < mean[2]).all()

# %% [markdown]
# Top before random before bottom, at every number of channels. The ranking knows what the cut depends on.
#
# ## Several images, one cut
#
# Stack the rows of two photographs and they are cut jointly: a segment may span both. The two views of a stereo pair should agree.

# %%
pair = [load_photo("motorcycle"), load_photo("motorcycle_right")]
both = filter_bank(pair, grid=36).to(device)
joint = trace_channels(both, n_segments=6)
h, w = both.grid_hw
views = rearrange(joint.segments, "(b h w) -> b h w", h=h, w=w)
paint = int(views[0, int(0.5 * h), int(0.42 * w)])
masks = views == paint
print("cells in each view:", reduce(masks.int(), "b h w -> b", "sum").tolist())

# %%
numbers, names, _ = zip(*joint.table(paint, "support", 3))
titles = ["photograph", "segment", *(textwrap.fill(name, 18) for name in names)]
panels = []
for view, mask, values in zip(pair, masks, both.zscores()):
    panels += [view, viz.Panel(viz.spotlight(view, mask), outline=mask)]
    panels += [viz.Panel(values=values[:, :, c], outline=mask) for c in numbers]
show_figure(
    viz.show_grid(panels, titles, columns=5, unit="standard deviations"),
    name="stereo",
    alt="Two views of a red motorcycle; the same segment, its red paint, in both, with the three channels that support it.",
    caption="One segment in two photographs, and the channels that hold it together in both.",
)
share = reduce(masks.float(), "b h w -> b", "mean")
assert share.min() > 0.5 * share.max()
assert "a* green-red" in names[:2]

# %% [markdown]
# ## Tokens of a transformer
#
# Nothing above depends on the filter bank. `timm_features` gives the tokens of any timm vision transformer, its prefix tokens dropped and its grid kept: pass a name with `pretrained=True` where there is a network, or a
# model that you have. Here it is the small transformer of [the toy aviary](00_aviary.ipynb), trained to name the species of drawn birds. Nobody told it where a bird ends.
# **Cut its tokens in two: where will the cut be?**

# %%
vit, birds = load_model("aviary-vit-0", device=device), Aviary("test", 24)
pictures = [birds.scene(i) for i in range(24)]
photos = [to_pil_image(render(scene).image) for scene in pictures]
tokens = [ctrace.timm_features(image, vit) for image in photos]
halves = [trace_channels(grid, n_segments=2) for grid in tokens]
print(
    f"grid {tokens[0].grid_hw}, {len(tokens[0].names)} channels, eigengaps {min(h.spectrum.eigengap for h in halves):.2f} and up"
)

# %% tags=["hide-input"]
tabs = Gallery("traced-tokens")
for number, i in enumerate((10, 17, 5), 1):
    tabs.add(
        f"Bird {number}",
        trace_figure(photos[i], tokens[i], halves[i], 1),
        alt="A drawn bird, the smaller of two segments of its tokens, and the five channels that support that segment.",
        caption=f"A {SPECIES[birds.label(i)].name}: the smaller segment of a transformer's tokens, and the channels that hold it together.",
    )
tabs.show()

# %% [markdown]
# The smaller segment is the bird, with its surroundings cut away. The outline is coarse, 12 x 12 patches, so ask for numbers: how much do the segment and the true bird overlap?

# %%
overlaps = []
for scene, half in zip(pictures, halves):
    bird = (
        F.adaptive_avg_pool2d(render(scene).bird[None].float(), (12, 12))[0].flatten()
        > 0.3
    )  # patches that are a third bird or more
    overlaps.append(float((half.mask(1) & bird).sum() / (half.mask(1) | bird).sum()))
overlaps = torch.tensor(overlaps)
print(
    f"intersection over union: median {overlaps.median():.2f}, worst {overlaps.min():.2f}"
)
assert overlaps.median() > 0.6 and (overlaps > 0.4).float().mean() > 0.85

# %% [markdown]
# Mostly more than six tenths, and one miss. The channels have numbers only. What they mean can still be asked: does the same channel support the bird in every picture?

# %%
first = torch.stack([h.ranking("support", 1)[:5] for h in halves])  # (24, 5)
often = torch.bincount(first.flatten(), minlength=64)
print(
    f"channel {int(often.argmax())} is among the first five for {int(often.max())} of 24 birds; by chance it would be {24 * 5 / 64:.1f}"
)
assert often.max() >= 15

# %% [markdown]
# It does, for most of them: the transformer keeps a channel for *bird*, and the cut has found it without a label.
#
# ## The published quick starts
#
# Two versions of the tutorial this method comes from are in circulation. They differ in the name of a switch, and in nothing that comes of it. They run with the import changed: 10,000 points
# with 300 random channels, exact, no subsampling. (Where there is no GPU the device has to say so.)


# %%
def quick_start(switch, side):
    noise = torch.randn(
        side, side, 300, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    ncut = Ncut(n_eig=20, device=device, **{switch: True})
    eigvecs = ncut.fit_transform(rearrange(noise, "h w c -> (h w) c"))
    eigvecs.sum().backward()
    return noise.grad, ncut.n_exact, ncut.eigengap


one, other = (quick_start(s, side=40)[0] for s in ("track_grad", "exact_gradient"))
assert torch.equal(one, other)
grad, n_exact, eigengap = quick_start("track_grad", side=100)
importance = grad.abs().mean(dim=(0, 1))
print(f"exact for {n_exact} points, eigengap {eigengap:.1e}")
print("top-10 channels:", importance.topk(10).indices.tolist())

# %%
print(
    f"importance: mean {importance.mean():.1e}, largest {importance.max() / importance.mean():.2f} times the mean"
)
assert n_exact == 10_000 and eigengap < 1e-4
assert importance.max() < 3 * importance.mean()

# %% [markdown]
# It runs, and in how much memory? The 10,000 x 10,000 weights alone take 0.4 GB.

# %%
if sys.platform == "linux" and device == "cpu":
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"largest memory of this page so far: {peak:.2f} GiB")
    assert peak < 2

# %% [markdown]
# So it runs, and it should not be read: random features have almost no eigengap, so the subspace is barely defined, and no channel stands out. A ranking always
# exists. Look at the gap before you believe it.
#
# The published helper functions are here under their names, with one change: `channel_gradient_from_cluster` has the sign of the effect.

# %%
rows = features.features.clone().requires_grad_(True)
eigvec, kway_eigvec = ctrace.differentiable_kway_ncut(rows, n_segment=6)
cluster_assign = kway_eigvec.argmax(1)
grad = ctrace.channel_gradient_from_cluster(
    rows, cluster_assign == suit, kway_eigvec, suit
)
view = ctrace.reshape_for_view(rows, 1, *features.grid_hw)
channels, maps = ctrace.extract_topk_maps(view, ctrace.rank_channels(grad), topk=3)
print([features.names[c] for c in channels])

# %%
by_score = trace_channels(features, 6, objective="score")
assert torch.allclose(
    grad, by_score.attributions[suit], rtol=1e-2, atol=1e-2 * float(grad.abs().max())
)

# %% [markdown]
# ## When it cannot work
#
# Three pieces that do not touch, and a request for two segments: which two pieces belong together is not in the data, and neither is a gradient.

# %%
islands = torch.cat([torch.randn(40, 3) + 50 * shift for shift in range(3)])
try:
    trace_channels(islands, n_segments=2, sigma=1.0)
except ArithmeticError as error:
    print(error)
else:
    raise AssertionError("a closed gap must be refused")

# %% [markdown]
# ## A network of your own
#
# Every network that timm knows can stand here. `make book MODEL=vit_small_patch14_dinov2.lvd142m`, or `make book MODEL=resnet50`, fetches its published weights once and renders this section with it; where this notebook runs alone, the
# environment variable `CTRACE_MODEL` does the same. Without a network connection `CTRACE_WEIGHTS_DIR` names a folder that holds the weights as `resnet50.safetensors` or `resnet50.pth`. Where no network is named, one line below
# says so, and nothing else happens.
#
# A transformer gives its tokens, a convolutional network the maps of its second but last stage. Four photographs are cut into six segments each, and the one in the middle of the photograph is traced.

# %%
network = chosen_model()


def own_features(network, photo):
    """Tokens of a transformer, maps of a convolutional network."""
    if hasattr(network, "num_prefix_tokens"):
        return ctrace.timm_features(photo, network)
    return ctrace.conv_features(photo, network, network.feature_info[-2]["module"])


# %%
def own_segment(grid):
    """Six segments, the number of the one in the middle, and the trace."""
    width = float(ctrace.bandwidth(grid.features, "median"))
    trace = trace_channels(grid, n_segments=6, sigma=width)
    cells = rearrange(trace.segments, "(h w) -> h w", h=grid.grid_hw[0])
    eigval = trace.spectrum.eigval.sum()
    assert abs(float(trace.scores.sum() - eigval)) < 1e-4 * float(eigval)
    return cells, int(cells[grid.grid_hw[0] // 2, grid.grid_hw[1] // 2]), trace


# %% tags=["hide-input"]
def own_figure(photo, grid, cells, segment, trace):
    """Photograph, segments, and the maps of the first six channels of one."""
    panels = [photo, viz.Panel(photo, segments=cells)]
    titles = ["photograph", "six segments"]
    for c, name, value in trace.table(segment, "support", 6):
        values = grid.zscores()[0, :, :, c]
        panels.append(viz.Panel(values=values, outline=cells == segment))
        titles.append(f"{name}\nattribution {value:.1e}")
    return viz.show_grid(panels, titles, unit="standard deviations")


def own_tabs(network, names=("astronaut", "chelsea", "coffee", "motorcycle")):
    """A tab for each photograph."""
    tabs = Gallery("traced-own-network")
    for name in names:
        photo = load_photo(name, size=(384, 384))
        grid = own_features(network, photo)
        found = own_segment(grid)
        tabs.add(
            name,
            own_figure(photo, grid, *found),
            alt=f"{name}, six segments of it, and maps of the six channels that support segment {found[1]}.",
            caption=f"{network.info.name} ({network.info.weights}), grid {grid.grid_hw[0]} x {grid.grid_hw[1]}: segment {found[1]} and the channels that support it. Eigengap {found[2].spectrum.eigengap:.4f}.",
        )
    tabs.show()


# %%
if network is not None:
    own_tabs(network)

# %% [markdown]
# ## Exercises
#
# ```{exercise}
# :label: ex-negate-channels
#
# **Predict.** Replace the features $x$ by $-x$. What happens to the graph, to the segments, to the attributions, and to the two rankings?
# Write your answer as three words, each `"same"` or `"reversed"`: segments, `support` ranking of $-x$ compared with `inhibit` of $x$, attributions.
# ```


# %%
def check_negation(segments, rankings, attributions):
    """Compares a prediction with what happens."""
    before, after = (trace_channels(x16, 4), trace_channels(-x16, 4))
    truth = (
        "same" if torch.equal(before.segments, after.segments) else "reversed",
        "same"
        if torch.equal(after.ranking("support"), before.ranking("inhibit"))
        else "reversed",
        "reversed"
        if torch.allclose(after.attributions, -before.attributions, atol=1e-9)
        else "same",
    )
    for what, said, is_so in zip(
        ("segments", "support of -x against inhibit of x", "attributions"),
        (segments, rankings, attributions),
        truth,
    ):
        print(f"{what}: {'yes' if said == is_so else 'no'}, they are {is_so}")
    return (segments, rankings, attributions) == truth


# %% [markdown]
# ```{solution-start} ex-negate-channels
# :class: dropdown
# ```
#
# The graph sees differences only, $|x_i - x_j|$, so it does not change, nor do the segments. To raise $-x_c$ is to lower $x_c$: every
# attribution changes its sign, and what supported now inhibits.

# %%
assert check_negation("same", "same", "reversed")

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise}
# :label: ex-own-attribution
#
# **Implement.** A colleague proposes a shortcut without any gradient: rank channels by their mean inside the segment minus their mean outside. Write
# `contrast(x, mask)` returning `(c,)`, and find out how often its first channel is the one that the gradient puts first.
# ```


# %%
def check_contrast(contrast):
    """Runs a proposal on every segment of the small photograph."""
    mask = traced.mask(0)
    want = x16[mask].mean(0) - x16[~mask].mean(0)
    got = contrast(x16, mask)
    if got.shape != want.shape or not torch.allclose(got, want):
        print(
            f"expected the difference of two means with shape {tuple(want.shape)}; is the outside `~mask`?"
        )
        return False
    same = sum(
        int(contrast(x16, traced.mask(j)).argmax() == traced.ranking("support", j)[0])
        for j in range(k)
    )
    print(
        f"same first channel in {same} of {k} segments; rank correlations",
        spearman(
            torch.stack([contrast(x16, traced.mask(j)) for j in range(k)]).cpu(),
            traced.attributions.cpu(),
        )
        .round(2)
        .tolist(),
    )
    return True


# %% [markdown]
# ```{solution-start} ex-own-attribution
# :class: dropdown
# ```


# %%
def contrast(x, mask):
    return x[mask].mean(0) - x[~mask].mean(0)


assert check_contrast(contrast)

# %% [markdown]
# The shortcut agrees in part. It knows what a segment looks like, but not whether the neighbours it has to be told apart from look different.
#
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise}
# :label: ex-average-everywhere
#
# **Break it.** Average the signed gradient over *all* points instead of over the segment. What is left of the ranking, and why?
# ```


# %%
def check_everywhere(average):
    """`average` takes the gradient (n, c) and returns what it makes of it, (c,)."""
    solver = Ncut(k, track_grad=True)
    x = x16.clone().requires_grad_()
    Z = kway_ncut(solver.fit_transform(x))
    (gradient,) = torch.autograd.grad(
        segment_strength(Z, Z.argmax(1), solver.graph)[0], x
    )
    left = float(average(gradient).abs().max() / gradient.abs().max())
    print(
        f"largest average / largest entry: {left:.1e}",
        "(rounding)"
        if left < 1e-12
        else "(something is left: are all points in it, with their sign?)",
    )
    return left < 1e-12


# %% [markdown]
# ```{solution-start} ex-average-everywhere
# :class: dropdown
# ```
#
# Nothing is left. Raising a channel at every point moves no two points apart, so the graph, and with it every strength, stays as it is: the gradient sums
# to zero in each channel. What would be sorted is rounding.

# %%
assert check_everywhere(lambda gradient: gradient.mean(0))

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# In this notebook we have
#
# - **traced** the segments of photographs back to named channels,
# - **settled** the sign of the ranking, with finite differences for every channel,
# - **tested** the ranking, by removing the channels it names.
#
# What this does not show: that a channel *means* something outside its segment, or that a model would use it. For a model's own decision
# one has to ask the model. Why a gradient of eigenvectors can be trusted at all is the subject of [The gradient of a cut](02_gradient_of_a_cut.ipynb).

# %%
print(
    f"this page ran in {time.time() - started:.0f} s on {device}, {torch.get_num_threads()} threads"
)
