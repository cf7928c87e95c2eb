# %% [markdown]
# # Channel tracing
#
# **Which channels hold a segment together? A gradient names them, and the names can be checked: by moving each channel and cutting again.**

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
# - **trace** the segments of photographs back to channels, named ones and learned ones,
# - **settle** the sign of the ranking, with finite differences for every channel,
# - **test** the ranking, by removing the channels it names, and by asking them what they are.
#
# You need [Normalized cuts](01_normalized_cuts.ipynb) for the words *segment* and *eigengap*; [Tracing, in short](../book/trace.md) works the gradient out on three points. The last cell prints how long this page took to run.

# %% tags=["hide-input"]
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
from ctrace.stats import bootstrap, spearman
from ctrace.viz import touch
from ctrace.viz.gallery import Gallery, show_figure
from ctrace.viz.paint import laid_over, segment_borders
from ctrace.world.models import chosen_model
from einops import rearrange, reduce
from matplotlib.collections import LineCollection
from skimage.data import lfw_subset
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

# %% tags=["hide-input"]
started = time.time()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
print(f"torch {torch.__version__} on {device}; filter bank, SqueezeNet, a transformer")

# %% [markdown]
# ## The idea
#
# A photograph is cut into six segments, from the colour, texture, contrast and position of its cells: a filter bank, whose 19 *channels* have names. One segment lies on an orange suit. **Which channels hold it together?**

# %%
photo = load_photo("astronaut")
features = filter_bank(photo, grid=48).to(device)
trace = trace_channels(features, n_segments=6)
print(f"{len(trace.segments)} points, {len(features.names)} channels", end=", ")
print(f"eigengap {trace.spectrum.eigengap:.4f}")


# %% tags=["hide-input"]
def segment_at(trace, features, y, x, image=0):
    """The segment under a point, given in fractions of height and width."""
    h, w = features.grid_hw
    segments = rearrange(trace.segments, "(b h w) -> b h w", h=h, w=w)
    return int(segments[image, int(y * h), int(x * w)])


def trace_figure(photo, features, trace, segment, top=5):
    """Image, segment, and up to five channels that support it, best first."""
    mask = rearrange(trace.mask(segment), "(h w) -> h w", h=features.grid_hw[0])
    panels = [photo, viz.Panel(viz.spotlight(photo, mask), outline=mask)]
    titles = ["image", f"segment, {mask.float().mean():.0%} of it"]
    for number, name, value in trace.table(segment, "support", top):
        values = features.zscores()[0, :, :, number]
        panels.append(viz.Panel(values=values, outline=mask))
        number = "" if name == f"ch {number}" else f"ch {number}, "
        titles.append(f"{textwrap.fill(name, 24)}\n{number}attribution {value:.1e}")
    return viz.show_grid(panels, titles, unit="standard deviations")


suit = segment_at(trace, features, 0.75, 0.15)
show_figure(
    trace_figure(photo, features, trace, suit),
    name="suit",
    alt="An astronaut; the segment of her orange suit, which takes in red stripes of "
    "a flag; maps of the channels that support it, a* and b* first.",
    caption="The segment under the suit, and what holds it together. Each map is one "
    "channel in standard deviations, the segment outlined. Red stripes of the "
    "flag belong to it as well.",
)

# %%
for number, name, value in trace.table(suit, "support", 3) + trace.table(
    suit, "inhibit", 2
):
    print(f"ch {number:2d}  {name:24s} {value:+.1e}")
assert segment_at(trace, features, 0.34, 0.11) == suit  # a red stripe of the flag
colours, others = {"a* green-red", "b* blue-yellow"}, trace.attributions[suit].abs()
assert {name for _, name, _ in trace.table(suit, "support", 2)} == colours
assert others.sort(descending=True).values[1] > 4 * others.sort().values[-3]

# %% [markdown]
# Red *and* yellow, each with more than four times the weight of any other channel. The red stripes of the flag are in it too: a segment is a set
# of points that are alike; the name of an object in this book's captions is ours.
#
# These numbers are slopes. A segment $j$ has a strength $s_j$, the share of its weight in the graph that stays inside. Raise a channel a little at its points $A_j$, and see how the strength moves:
#
# $$
# \begin{aligned}
# a_{jc} &= \frac{1}{|A_j|}\sum_{i \in A_j} \frac{\partial s_j}{\partial x_{ic}}, \\
# a_{jc} &> 0:\ \text{more of } c \text{ inside makes } j \text{ stronger.}
# \end{aligned}
# $$
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

# %% tags=["hide-input"]
show_figure(
    viz.show_scatter(
        {f"segment {j}": points[small.mask(j)].T for j in (0, 1)},
        "first channel",
        "second channel",
    ),
    name="twelve-points",
    alt="Six points around 0 and six around 2 of the first channel, in two colours; "
    "both groups lie between -0.5 and 0.6 of the second.",
    caption="The twelve points. Only the first channel tells the segments apart.",
)

# %% [markdown]
# The right-hand segment is strong when its first channel is *high*, the left-hand one when it is *low*; the noise hardly matters to either. The same in five steps, for the right-hand segment:

# %%
x = points.clone().requires_grad_()
solver = Ncut(n_eig=2, sigma=1.0, track_grad=True)
Z = kway_ncut(solver.fit_transform(x))  # 1. cut: scores (n, k)
segments = Z.argmax(1)
right = int(segments[-1])
strength = segment_strength(Z, segments, solver.graph)[right]  # 2. score its strength
(gradient,) = torch.autograd.grad(strength, x)  # 3. differentiate
attribution = gradient[segments == right].mean(0)  # 4. average over the segment
print(attribution, attribution.argsort(descending=True).tolist())  # 5. rank

# %%
assert torch.allclose(attribution, small.attributions[right], atol=1e-12)
assert attribution[0] > 0 > small.attributions[1 - right, 0]
assert attribution[0].abs() > 20 * attribution[1].abs()

# %% [markdown]
# What does the number say? Raise the first channel by .01 at all six points, cut again, and compare.

# %%
step = torch.zeros_like(points)
step[segments == right, 0] = 0.01
again = Ncut(n_eig=2, sigma=1.0)
Z = kway_ncut(again.fit_transform(points + step))
stronger = segment_strength(Z, Z.argmax(1), again.graph)[right] - strength.detach()
expected = 0.01 * 6 * attribution[0]
print(f"step x points x attribution {expected:.5f}, measured {stronger:.5f}")
assert torch.equal(Z.argmax(1), segments) and abs(stronger / expected - 1) < 0.05

# %% [markdown]
# ## Which strength?
#
# Three are on offer.
#
# - `association`, the default: the share of the segment's weight that stays inside it, with soft membership ({eq}`assoc`).
# - `cut`: minus the normalized cut of the segment as drawn. The border is held fixed; no eigenvector is differentiated.
# - `score`, from the tutorial on channel tracing that this book began with ([its calls](../book/originals.md)): the mean of $|Z_{ij}|$ over the segment.
#
# The associations can be checked: they sum to the eigenvalues.

# %%
x = features.features.double()
traces = {
    name: trace_channels(x, 6, objective=name)
    for name in ("association", "cut", "score")
}
total = traces["association"].scores.sum()
eigenvalues = traces["association"].spectrum.eigval.sum()
print(f"sum of associations {total:.12f}, sum of eigenvalues {eigenvalues:.12f}")
assert abs(total - eigenvalues) < 1e-10

# %%
size = torch.bincount(traces["score"].segments)
for name, t in traces.items():
    print(f"{name:12s}", "  ".join(f"{v:+.3f}" for v in t.scores.tolist()))
print("1/sqrt(size)", "  ".join(f"{v:+.3f}" for v in size.rsqrt().tolist()))
pinned = traces["score"].scores * size.sqrt()
assert (0.85 < pinned).all() and (pinned < 1.0).all()
near = traces["association"].scores
assert 0.96 < near.min() < near.max() < 1

# %% [markdown]
# The tutorial's score is $1/\sqrt{\text{size}}$ to within 15%, in every segment. The columns of $Z$ have length 1 whatever the features do, so no segment, however clear-cut, can exceed it: it says mostly how *large* a segment is.
# The associations lie between .96 and 1, in small segments and large ones. Do the three agree on the order of the channels all the same?

# %%
for name in ("cut", "score"):
    rho = spearman(
        traces["association"].attributions.cpu(), traces[name].attributions.cpu()
    )  # one per segment
    print(f"association against {name:5s}:", "  ".join(f"{r:+.2f}" for r in rho))
    assert rho.max() > 0.9 and rho.mean() > 0.3 and 0.4 < rho.min() < 0.7

# %% [markdown]
# In some segments they nearly agree; in one the rank correlation falls to about .6 or .5. So a ranking needs the name of its objective.
#
# ## The sign
#
# The tutorial differentiates the *negated* score and then sorts in descending order. Which channels come first: those the segment has, or those it lacks? For every channel and every
# segment, raise the channel inside by a small step, solve again from the beginning, bandwidths included, and look at the strength.

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
    caption="Every channel of every segment: the attribution predicts the measured "
    "effect, sign included.",
)
literal = -traced.attributions  # what the tutorial sorts
assert spearman(traced.attributions.cpu(), measured.cpu()).min() > 0.999
assert spearman(literal.cpu(), measured.cpu()).max() < -0.999

# %% [markdown]
# All lie on the line: the attribution has the sign of the effect. (Each point's bandwidth, the distance to one of its neighbours, moves too and belongs to the gradient: held fixed, even a few signs come out wrong.)
# The literal order of the tutorial is upside down, with rank correlation -1: it begins with the channels that weaken the segment when they are raised. Here each ranking is asked for by name, and the literal order stays available.

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
    alt="Bars of the suit's attributions: a* and b* far above the rest; contrast and "
    "position slightly negative.",
    caption="The suit's ranking with its sign. Red supports: more of it inside makes "
    "the segment stronger. Blue inhibits.",
)

# %% [markdown]
# *Support* and *inhibit* are directions along a channel, and which end counts as high is a convention: $a^*$ is high for red and low for green. Turn the channels around, and what supported inhibits; the first exercise shows it.
# To ask which channels matter, in either direction, rank by `"abs"`.

# %% [markdown]
# ## Ask for yourself
#
# {numref}`fig-channel-explorer` answers the same questions for three cuts: a photograph and two views of a motorcycle, with named channels, and two portraits with channels of SqueezeNet {cite:p}`iandola2016`, a network introduced below. It runs
# in a browser, also in Jupyter and Colab; elsewhere there is a still picture. Every setting is cut anew by code that repeats this page's steps, and below the figure stands how its first cuts compare with those of `ctrace`.
#
# To fit into the page, the features are rounded to 16 bits, those of the network to 8. Does the rounding change an answer?

# %%
view = load_photo("astronaut")
views = [load_photo(n, (352, 240)) for n in ("motorcycle", "motorcycle_right")]
faces = [load_photo(n, (288, 352)) for n in ("astronaut", "hopper")]
squeeze = load_model("squeezenet", device=device)
learned = ctrace.conv_features(faces, squeeze, "features.10")
learned = touch.pooled(learned, names=[f"channel {c}" for c in range(512)])
exact = [filter_bank(view, grid=32), filter_bank(views, grid=28), learned]
small_numbers = [touch.rounded(bank, bits) for bank, bits in zip(exact, (16, 16, 8))]
for bank, near, n in zip(exact, small_numbers, (6, 6, 8)):
    a, b = (trace_channels(g.features.cpu().double(), n) for g in (bank, near))
    moved = int((a.segments != b.segments).sum())
    first = (a.ranking()[:, 0] == b.ranking()[:, 0]).all()
    rho = spearman(a.attributions, b.attributions).min()
    print(f"{moved} of {len(a.segments)} cells in another segment; ", end="")
    print(
        f"first channels {'equal' if first else 'differ'}, rank correlation {rho:.4f}"
    )
    assert first and rho > 0.99 and moved < 0.02 * len(a.segments)

# %% tags=["hide-input"]
bank = small_numbers[0]
families = {
    "colour": bank.names[:3],
    "texture": bank.names[3:15],
    "contrast": bank.names[15:17],
    "position": bank.names[17:],
}
examples = [
    touch.explorer_example(
        "Astronaut, named channels", [view], bank, 6, (0.75, 0.15), families
    ),
    touch.explorer_example(
        "Motorcycle, named channels", views, small_numbers[1], 6, (0.5, 0.42), families
    ),
    touch.explorer_example(
        "Portraits, trained network", faces, small_numbers[2], 8, (0.25, 0.42), bits=8
    ),
]


# %% tags=["hide-input"]
def first_view(photo, bank, n, point):
    """The photograph with one segment, all its channels, the map of the first."""
    result = trace_channels(bank, n)
    j = segment_at(result, bank, *point)
    mask = rearrange(result.mask(j), "(h w) -> h w", h=bank.grid_hw[0])
    order, value = result.ranking("support", j), result.attributions[j]
    values = bank.zscores()[0, :, :, order[0]]
    with viz.style():
        figure = viz.new_picture(viz.WIDTH, 3.6)
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 0.8, 1))
        image = laid_over(viz.as_rgb(photo), viz.enlarged(values, photo) / 3)
        for ax, shown in ((left, viz.spotlight(photo, mask)), (right, image)):
            ax.imshow(shown, extent=(0, mask.shape[1], mask.shape[0], 0))
            for colour, line in (("white", 2.6), (viz.INK, 1.3)):
                borders = segment_borders(mask.numpy())
                ax.add_collection(
                    LineCollection(borders, colors=colour, linewidths=line)
                )
            ax.set_axis_off()
        colours = [viz.POSITIVE if value[c] > 0 else viz.NEGATIVE for c in order]
        middle.barh(range(len(order)), value[order], color=colours)
        middle.set_yticks(range(len(order)), [bank.names[c] for c in order], fontsize=7)
        middle.invert_yaxis()
        middle.axvline(0, color=viz.QUIET, linewidth=0.8)
        middle.set(xlabel="attribution")
        left.set_title(f"segment {j + 1} of {n}")
        right.set_title(f"its first channel: {bank.names[order[0]]}")
    return figure


# %% tags=["hide-input"]
touch.show_touchable(
    first_view(view, bank, 6, (0.75, 0.15)),
    kind="explorer",
    payload={"examples": examples},
    label="Channel explorer: choose a segment, then a channel",
    name="channel-explorer",
    alt="An astronaut with the segment of her orange suit outlined; bars of its 19 "
    "channels, a* and b* far ahead; the map of a* over the photograph, red on the "
    "suit.",
    caption="The channel explorer. A segment, all its channels with their sign, and "
    "what one of them looks like.",
)

# %% [markdown]
# The first channels stay, and less than 2% of the cells change their segment. Three things to try. **Flatten** $a^*$ in the suit, then $b^*$ as well: how much of the segment is left? Then start again and flatten the two channels at the other end of the list. **Nudge** $a^*$ up and down: the line is what the attribution
# predicts, the dots are new cuts. **Switch the sign** to the published one, and look where the channels went. The first of these, with `ctrace`:

# %%
before = trace_channels(bank, 6)
j = segment_at(before, bank, 0.75, 0.15)
order, left = before.ranking("support", j).tolist(), []
for lost in (order[:1], order[:2], order[-2:]):
    after = trace_channels(ablate(bank.features, lost), 6)
    left.append(best_overlap(before.mask(j), after.segments))
    names = " and ".join(bank.names[c] for c in lost)
    print(f"without {names}: {left[-1]:.0%} of the segment is left")
assert left[1] < left[0] < 0.9 and left[0] < left[2]

# %% [markdown]
# The first channel alone costs more than the last two together, and both colours cost most.
#
# ## Named channels in six photographs
#
# All are cut alike: grids of 32 cells, six segments, default bandwidth. Three are shown, each with the segment under a point that we chose.

# %%
photographs = ("flower", "motorcycle", "coffee", "china", "hopper", "astronaut")
six = {name: filter_bank(load_photo(name), grid=32).to(device) for name in photographs}
named = {
    moving: [trace_channels(bank, 6, bandwidth_grad=moving) for bank in six.values()]
    for moving in (True, False)
}

# %% tags=["hide-input"]
tabs = Gallery("traced-segments")
places = {"flower": (0.5, 0.5), "motorcycle": (0.5, 0.42), "coffee": (0.55, 0.25)}
for (name, point), result in zip(places.items(), named[True]):
    bank, j = six[name], segment_at(result, six[name], *point)
    first, against = result.table(j, "support"), result.table(j, "inhibit", 1)[0][1]
    where = f"at {point[0]:.0%} of the height and {point[1]:.0%} of the width"
    tabs.add(
        name.capitalize(),
        trace_figure(load_photo(name), bank, result, j),
        alt=f"{name}: one segment, and maps of the {len(first)} channels that support "
        f"it most, first {first[0][1]}.",
        caption=f"{name}, the segment {where}. Supported by {first[0][1]}, then "
        f"{first[1][1]}; inhibited most by {against}.",
    )
tabs.show()

# %% [markdown]
# **In how many segments of all six photographs is the first supporting channel higher inside than outside?** And the first of the literal order? We ask with the whole gradient, and with the bandwidths held fixed.


# %%
def higher_inside(moving, order):
    """In how many segments the first channel is higher inside than outside."""
    count = 0
    for bank, result in zip(six.values(), named[moving]):
        for j in range(6):
            best = int(result.ranking("support", j, order)[0])
            inside, mask = bank.features[:, best], result.mask(j)
            count += bool(inside[mask].mean() > inside[~mask].mean())
    return count


higher = {(m, o): higher_inside(m, o) for m in named for o in ("effect", "literal")}
for (moving, order), count in higher.items():
    print(f"bandwidths {'moving' if moving else 'fixed ':6s} {order:8s} {count} of 36")
firsts = [r.table(j, "support", 1)[0][1] for r in named[True] for j in range(6)]
coloured = sum(name in colours for name in firsts)
print(f"the first channel is a* or b* in {coloured} of 36, with the bandwidths moving")
assert coloured < 18
assert higher[False, "effect"] > 0.85 * 36 and higher[True, "effect"] > 0.7 * 36
assert max(higher[True, "literal"], higher[False, "literal"]) < 0.2 * 36

# %% [markdown]
# In most, and with the literal sign in few. (All three tabs begin with $a^*$ and $b^*$ because of our points: of all segments not even half have one of the two first.) The exceptions need not be errors of the gradient, which finite differences confirmed on a smaller graph.
# A mean inside against a mean outside is another question than what raising a channel would do, and on [three points](../book/trace.md) the two answers have opposite signs.

# %% [markdown]
# ## Gallery: the channels of a trained network
#
# The channels of a trained network have no names, only numbers. SqueezeNet {cite:p}`iandola2016` learned to tell a thousand kinds of things apart in photographs; its weights, pruned and
# quantised by {cite:t}`han2016`, come with the package. Its layers fire8 and fire9 have 512 channels each, with a cell for every 8 and 16 pixels. Two photographs are cut jointly, without any label, and *face* is not among the
# thousand classes. **Will the two faces be one segment?**

# %%
net = load_model("squeezenet", device=device)
FIRE8, FIRE9 = "features.10", "features.12"
words = [name.split(",")[0] for name in net.info.classes]
assert "face" not in words


def cut_jointly(names, size, k, layer):
    """Photographs of one size, a layer's cells, and the trace of their joint cut."""
    photos = [load_photo(name, size) for name in names]
    grid = ctrace.conv_features(photos, net, layer)
    return names, photos, grid, trace_channels(grid, k)


portraits = cut_jointly(("astronaut", "hopper"), (296, 352), 8, FIRE8)

# %% [markdown]
# To check it, the faces are marked by hand, as boxes that the cut never sees. Which share of each segment lies in the boxes, and which share of each box does it cover?

# %%
# Left, top, right, bottom in fractions of the photograph: hairline to chin, ear to ear,
# read off the two photographs by eye.
FACES = ((0.31, 0.12, 0.54, 0.38), (0.29, 0.20, 0.72, 0.68))


def in_boxes(segments, grid):
    """Share of each segment that lies in the boxes, and share of each box it covers."""
    h, w = grid.grid_hw
    y, x = (torch.arange(h) + 0.5)[:, None] / h, (torch.arange(w) + 0.5) / w
    boxes = torch.stack(
        [(x0 < x) & (x < x1) & (y0 < y) & (y < y1) for x0, y0, x1, y1 in FACES]
    )
    member = F.one_hot(rearrange(segments.cpu(), "(b h w) -> b h w", h=h, w=w)).bool()
    both = reduce(member & boxes[..., None], "b h w k -> b k", "sum")
    cover = both / reduce(boxes, "b h w -> b 1", "sum")
    return both.sum(0) / reduce(member, "b h w k -> k", "sum"), cover


# %%
share, cover = in_boxes(portraits[3].segments, portraits[2])
face = int(share.argmax())
print("share of each segment in the boxes:", [f"{v:.2f}" for v in share.tolist()])
print(f"segment {face} covers {cover[0, face]:.2f} and {cover[1, face]:.2f} of them")
assert share[face] > 0.85 and cover[:, face].min() > 0.5
assert share.sort().values[-2] < 0.2

# %% [markdown]
# One segment lies almost wholly in the boxes and covers more than half of each; no other has a fifth of its cells there. Is that luck with the number of segments or with the bandwidth? The same cells, cut anew:

# %%
for n, sigma in ((6, "local"), (8, "median"), (6, "median")):
    again = kway_ncut(Ncut(n, sigma=sigma).fit_transform(portraits[2].features))
    found, covered = in_boxes(again.argmax(1), portraits[2])
    best = int(found.argmax())
    print(
        f"k = {n}, {sigma:6s}: {found[best]:.2f} of one segment in the boxes, "
        f"{covered[0, best]:.2f} and {covered[1, best]:.2f} of them covered"
    )
    assert found[best] > 0.7 and covered[:, best].min() > 0.5

# %% [markdown]
# In all four cuts the faces share a segment. With six segments a quarter of its cells lies outside the boxes.
#
# Which channels hold it together, and what are they? Ask a channel without a name for evidence: **where in *other* photographs, which had no part in the cut, does it fire most?** Here are all
# photographs at hand, in both layers.

# %%
twin = "motorcycle_right"  # the same garage once more is no evidence
shelf = {n: load_photo(n, 352) for n in ctrace.photo_names() if n != twin}


def fires(images, layer=FIRE8):
    """How strongly each channel fires, cell by cell: (b, h, w, c)."""
    raw = {"unit": False, "centre": False}
    return ctrace.conv_features(images, net, layer, pad=16, **raw).maps().cpu()


fired = {
    layer: {name: fires(image, layer)[0] for name, image in shelf.items()}
    for layer in (FIRE8, FIRE9)
}
SIDE = {FIRE8: 72, FIRE9: 112}  # pixels of a patch


def elsewhere(c, layer, names):
    """Strength, photograph and cell: where channel c fires most outside `names`."""
    own = max(float(fired[layer][n][..., c].max()) for n in names if n in shelf)
    rows = []
    for name in shelf.keys() - set(names):
        maps = fired[layer][name][..., c]
        y, x = divmod(int(maps.argmax()), maps.shape[1])
        at = ((y + 0.5) / maps.shape[0], (x + 0.5) / maps.shape[1])
        rows.append((float(maps.max()) / own, name, at))
    return sorted(rows, reverse=True)


# %% [markdown]
# In fire9 there is more evidence. Behind it come one weight for each channel and class, a cut at zero, and a mean over all positions: a channel votes for the classes of its largest weights.

# %%
votes = net.classifier[1].weight.detach()[:, :, 0, 0].cpu()  # (1000, 512)


def voted(c, top=3):
    """The classes to which a channel of fire9 gives most."""
    return [words[i] for i in votes[:, c].topk(top).indices]


# %% tags=["hide-input"]
WIDE, GAP = 6.3, 0.06  # inches


def panel(figure, x, y, w, h, image, mask=None, bold=1.0):
    """An image at a place, in inches from the upper left, with a segment outlined."""
    width, height = figure.get_size_inches()
    ax = figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))
    ax.set_axis_off()
    cells = image if mask is None else mask
    ax.imshow(image, extent=(0, cells.shape[1], cells.shape[0], 0), aspect="auto")
    borders = [] if mask is None else segment_borders(mask.cpu().numpy())
    for colour, line in (("white", 1.8 * bold), (viz.INK, 0.8 * bold)):
        ax.add_collection(LineCollection(borders, colors=colour, linewidths=line))
    return ax


def over(photo, values):
    """A channel over a grey photograph: red above its mean, full at 3 deviations."""
    image = viz.as_rgb(photo)
    values = values[None, None].float().cpu()
    smooth = F.interpolate(values, image.shape[:2], mode="bilinear")[0, 0]
    return laid_over(image, smooth.numpy() / 3)


def patch(name, at, side):
    """A square around a place of a photograph, moved inwards at its border."""
    sides = zip(at, viz.as_rgb(shelf[name]).shape)
    y, x = (int(min(max(f * n - side / 2, 0), n - side)) for f, n in sides)
    return viz.as_rgb(shelf[name])[y : y + side, x : x + side]


# %% tags=["hide-input"]
def draw_row(figure, y, s, cut, masks, c, value):
    """One channel: its map over both photographs, and where else it fires most."""
    names, photos, grid, _ = cut
    layer, w = grid.names[0].split("/")[0], s * grid.grid_hw[1] / grid.grid_hw[0]
    maps = grid.zscores()[..., c]
    for i, (photo, mask, values) in enumerate(zip(photos, masks, maps)):
        panel(figure, i * (w + GAP), y, w, s, over(photo, values), mask, 0.55)
    for i, (ratio, name, at) in enumerate(elsewhere(c, layer, names)[:3]):
        place = (2 * w + i * s + (i + 2) * GAP, y, s, s)
        ax = panel(figure, *place, patch(name, at, SIDE[layer]))
        box = {"facecolor": viz.INK, "alpha": 0.75, "linewidth": 0, "pad": 1.5}
        write = {"color": "white", "fontsize": 9, "transform": ax.transAxes}
        ax.text(0.04, 0.05, f"{ratio:.2f}", bbox=box, **write)
    says = f"votes for {', '.join(voted(c))}" if layer == FIRE9 else ""
    high = 1 - (y - 0.07) / figure.get_size_inches()[1]
    look = {"fontsize": 10.5, "va": "bottom"}
    figure.text(0, high, f"channel {c}", weight="bold", **look)
    figure.text(0.18, high, says or f"attribution {value:.1e}", **look)


# %% tags=["hide-input"]
def learned_figure(cut, j, top=5):
    """Two photographs, one segment in both, and the channels that support it."""
    _, photos, grid, trace = cut
    h, w = grid.grid_hw
    masks = rearrange(trace.mask(j), "(b h w) -> b h w", h=h, w=w)
    rows, s = trace.table(j, "support", top), (WIDE - 4 * GAP) / (2 * w / h + 3)
    tall = min((WIDE - GAP) / 2 * h / w, 2.3)
    first, wide = tall + 0.55, tall * w / h
    with viz.style():
        height = first + len(rows) * (s + 0.32)
        figure = viz.new_picture(WIDE, height, layout=None)
        for i, (photo, mask) in enumerate(zip(photos, masks)):
            image = 0.25 * viz.as_rgb(photo) + 0.75 * viz.spotlight(photo, mask)
            x = (WIDE - GAP) / 2 - wide + i * (wide + GAP)
            panel(figure, x, 0, wide, tall, image, mask)
        for r, (c, _, value) in enumerate(rows):
            draw_row(figure, first + r * (s + 0.32), s, cut, masks, c, value)
        where = ((2 * s * w / h + 2 * GAP) / WIDE, 1 - (tall + 0.12) / height)
        figure.text(
            *where, "where else it fires most:", color=viz.QUIET, va="top", size=9.5
        )
    return figure


# %% [markdown]
# Four cuts and six of their segments. The titles of the tabs are what we see; segments, channels, patches and votes are computed. **Read a tab from the top**: the segment in both photographs; each channel that supports
# it, red where it fires; then the places in other photographs where it fires most, with its strength there as a share of the strongest in the two that were cut.

# %%
cat = cut_jointly(("chelsea", "coffee"), (352, 240), 8, FIRE8)
cup = cut_jointly(("chelsea", "coffee"), (352, 240), 6, FIRE9)
wheels = cut_jointly(("motorcycle", "motorcycle_right"), (352, 240), 6, FIRE9)
subjects = {  # tab: the cut, and the segment at y, x of the photograph 0 or 1
    "Two faces": (portraits, face),
    "Wheels": (wheels, segment_at(wheels[3], wheels[2], 0.75, 0.88)),
    "Crema and cup": (cup, segment_at(cup[3], cup[2], 0.26, 0.48, 1)),
    "Eyes of a cat": (cat, segment_at(cat[3], cat[2], 0.38, 0.38)),
    "Outlines": (portraits, segment_at(portraits[3], portraits[2], 0.17, 0.745, 1)),
    "A strip of wall": (
        portraits,
        segment_at(portraits[3], portraits[2], 0.34, 0.94, 1),
    ),
}

# %% tags=["hide-input"]
tabs = Gallery("traced-learned")
for label, (cut, j) in subjects.items():
    names, _, grid, found = cut
    rows = found.table(j, "support", 5)
    layer = {FIRE8: "fire8", FIRE9: "fire9"}[grid.names[0].split("/")[0]]
    numbers = ", ".join(str(c) for c, _, _ in rows)
    tabs.add(
        label,
        learned_figure(cut, j),
        alt=f"{names[0]} and {names[1]} with one segment outlined in both. A row for "
        f"each of the channels {numbers} of {layer}: its map over both "
        "photographs, and patches of three others in which it fires most.",
        caption=f"{label}: {names[0]} and {names[1]}, cut jointly into "
        f"{len(found.scores)} segments of their cells in {layer}. Segment "
        f"{j}, and the {len(rows)} channels that support it most.",
    )
tabs.show()

# %% [markdown]
# *Two faces*: no patch from outside reaches more than about half, and the first three channels find theirs on a cat. *Wheels*: the first channel, 270, votes for a horse cart, a tricycle and a jinrikisha.
# Yet 493 fires nearly as strongly at a spoon. *Crema and cup*: every channel fires around the cat's eye as well, which is not in the segment. *Eyes of a cat*: the
# segment takes in the inside of the cup and much of its saucer, and its first channel fires more strongly at the red paint of the motorcycle.
#
# *A strip of wall* is a failure. The blue wall behind Grace Hopper has no parts, the cut makes strips of it all the same, and each strip gets its channels. The first one here fires more strongly at a dahlia and at galaxies.
# How strongly do the five of each tab fire in their best place elsewhere, on average?

# %%
strongest = {}
for label, (cut, j) in subjects.items():
    layer = cut[2].names[0].split("/")[0]
    best = [elsewhere(c, layer, cut[0])[0] for c, *_ in cut[3].table(j, "support", 5)]
    strongest[label] = torch.tensor([ratio for ratio, *_ in best]).mean()
    print(f"{label:16s} {strongest[label]:.2f}  ", *(name for _, name, _ in best))
assert min(strongest, key=strongest.get) == "Two faces" and strongest["Two faces"] < 0.5
assert strongest["A strip of wall"] > 2 * strongest["Two faces"]

# %%
first = portraits[3].ranking("support", face)[:5].tolist()
assert first[:3] == [271, 326, 365]  # the picture that opens the book names them
nearest = [elsewhere(c, FIRE8, portraits[0])[0][1] for c in first[:3]]
assert set(nearest) == {"chelsea"}
assert max(elsewhere(c, FIRE8, portraits[0])[0][0] for c in first) <= 0.51
assert wheels[3].table(subjects["Wheels"][1])[0][0] == 270
assert voted(270) == ["horse cart", "tricycle", "jinrikisha"]
spoon = elsewhere(493, FIRE9, wheels[0])[0]
assert spoon[0] > 0.8 and spoon[1] == "coffee"
around = cup[2].zscores()[0, 3:8, 6:12]  # cells around the cat's left eye
cells = rearrange(cup[3].segments, "(b h w) -> b h w", b=2, w=cup[2].grid_hw[1])
assert not (cells[0, 3:8, 6:12] == subjects["Crema and cup"][1]).any()
rows = cup[3].table(subjects["Crema and cup"][1])
assert all(float(around[..., c].max()) > 1.5 for c, *_ in rows)
paint = elsewhere(cat[3].table(subjects["Eyes of a cat"][1])[0][0], FIRE8, cat[0])[0]
assert paint[0] > 1 and paint[1] == "motorcycle"
wall = portraits[3].table(subjects["A strip of wall"][1])[0][0]
wall = {name: ratio for ratio, name, _ in elsewhere(wall, FIRE8, portraits[0])}
assert min(wall["flower"], wall["hubble"]) > 1

# %% [markdown]
# ## Ask the channels what they are
#
# Are the first channels of the faces face channels? Two photographs cannot say. scikit-image comes with 200 small grey patches from Labeled Faces in the Wild {cite:p}`huang2007`, 100 faces and 100 others. Does the
# channel fire more strongly on the faces? The area under the curve is the chance that it does, for one face and one other patch drawn at random.

# %%
patches = torch.from_numpy(lfw_subset()).float()  # (200, 25, 25): 100 faces, 100 not


def enlarge(images, side):
    """Grey images (n, h, w) as colour images (n, 3, side, side)."""
    larger = F.interpolate(images[:, None], (side, side), mode="bicubic").clamp(0, 1)
    return larger.expand(-1, 3, -1, -1).to(device)


def area_under(values):
    """For each column, how often a face has more than another patch."""
    a, b = values[:100, None], values[None, 100:]
    wins = (a > b).float() + 0.5 * (a == b).float()
    return reduce(wins, "faces others c -> c", "mean")


# %%
maps = torch.cat([fires(list(part)) for part in enlarge(patches, 64).split(50)])
area = area_under(reduce(maps, "b h w c -> b c", "max"))
contrast_alone = float(area_under(patches.flatten(1).std(1, keepdim=True)))
print("first five:", {c: round(float(area[c]), 3) for c in first})
print(
    f"all 512: median {area.median():.3f}, {(area > 0.95).float().mean():.0%} above .95"
)
print(f"the plain standard deviation of a patch: {contrast_alone:.3f}")
assert area[first].min() > 0.95 and area.median() > 0.8 and contrast_alone > 0.6

# %% [markdown]
# Nearly perfect, and worth less than it looks: the *median* channel of the layer is right four times in five, and one in six exceeds .95. Even the contrast of a patch does better than chance, so a face is not the only
# difference between the two halves.
#
# A fairer test asks **where** a channel fires. One face is put among fifteen other patches, at a random place, and the channel gets a point when its strongest cell of the whole mosaic lies in the face. Chance is one in
# sixteen. Five draws of places and companions, twelve faces each.


# %%
def mosaics(seed, faces):
    """A face among fifteen others for each of `faces`: images, and its place."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.randint(16, (len(faces),), generator=generator)
    rows = [100 + torch.randperm(100, generator=generator)[:16] for _ in faces]
    for row, place, i in zip(rows, at, faces):
        row[place] = i
    chosen = patches[torch.stack(rows)]  # (n, 16, 25, 25)
    tiled = rearrange(chosen, "n (y x) h w -> n (y h) (x w)", y=4)
    return enlarge(tiled, 256), at


def points(seed):
    """Whether each channel fires most in the face: (n, c)."""
    images, at = mosaics(seed, range(12 * seed, 12 * seed + 12))
    maps = fires(list(images))
    h, w = maps.shape[1:3]
    top = rearrange(maps, "n h w c -> n (h w) c").max(1)
    place = top.indices // w * 4 // h * 4 + top.indices % w * 4 // w
    return torch.where(top.values > 0, (place == at[:, None]).float(), 1 / 16)


score = torch.cat([points(seed) for seed in range(5)])  # (60, 512)

# %%
rate, others = score.mean(0), [c for c in range(512) if c not in first]
beaten = [f"{(rate[others] < rate[c]).float().mean():.0%}" for c in first]
print("first five:", {c: round(float(rate[c]), 2) for c in first})
print("others that do worse:", *beaten)
five, rest = (bootstrap(score[:, c].mean(1)) for c in (first, others))
print(f"mean of the five {five}, of the others {rest}")
print(f"median of all {rate.median():.2f}; chance {1 / 16:.2f}")
drawn = torch.Generator().manual_seed(0)
sets = [torch.randperm(512, generator=drawn)[:5] for _ in range(2000)]
lucky = torch.tensor([float(rate[s].mean()) for s in sets])
print(f"five drawn at random reach {lucky.mean():.2f}, at most {lucky.max():.2f}")
assert five.low > 2 * rest.high and rate[first].mean() > lucky.max()

# %% tags=["hide-input"]
images, _ = mosaics(0, range(3))
response = fires(list(images))[..., first[0]]
panels = [
    viz.Panel(over(image.cpu(), 3 * values / response.max()))
    for image, values in zip(images, response)
]
show_figure(
    viz.show_grid(panels, columns=3),
    name="mosaics",
    alt="Three mosaics of sixteen grey patches, one of them a face; channel "
    f"{first[0]} is red on the face.",
    caption=f"Channel {first[0]} in three mosaics: red where it fires.",
)

# %% [markdown]
# Found on two photographs, the five do far better than the others on faces that had no part in the cut, and better than any of two thousand random fives. What about the ranking as a whole?

# %%
effect = portraits[3].attributions[face].cpu()
inside = portraits[3].mask(face)
cells = portraits[2].features
apart = (cells[inside].mean(0) - cells[~inside].mean(0)).cpu()  # the shortcut
ranks = {
    "attribution, area": spearman(effect[None], area[None]),
    "attribution, mosaic": spearman(effect[None], rate[None]),
    "inside minus outside, mosaic": spearman(apart[None], rate[None]),
}
for name, rho in ranks.items():
    print(f"{name:30s} {rho[0]:+.2f}")
same = set(apart.argsort(descending=True)[:5].tolist()) & set(first)
print(f"the shortcut names {len(same)} of the same five")
assert 0.2 < ranks["attribution, mosaic"][0] < 0.6 and len(same) >= 4
assert ranks["inside minus outside, mosaic"] > ranks["attribution, mosaic"]

# %% tags=["hide-input"]
show_figure(
    viz.show_scatter(
        {
            "other channels": (1e3 * effect[others], rate[others]),
            "first five": (1e3 * effect[first], rate[first]),
        },
        "attribution (thousandths)",
        "share of mosaics: strongest in the face",
    ),
    name="face-channels",
    alt="512 channels, attribution against score in the mosaics. The first five lie "
    "far to the right and high; most others lie near zero attribution at any "
    "score.",
    caption="The first five supporting channels of the face segment, and the other "
    "507. Many channels that find faces have no part in the segment.",
)

# %% [markdown]
# Two limits. Over all 512 channels attribution and score agree weakly: it is the top of the ranking that is about faces. And no gradient is needed to find them: the difference of two means
# (an exercise below) names the same channels, and agrees with the mosaics a little better. What the gradient adds is a statement about the *segment*, which can be tested too.
#
# ## Take the channels away
#
# From the cells that are cut, and from the network, for the wheels. First the cells: flatten the first supporting channels (set them to their mean) and cut again. As many random channels are the comparison, in twenty draws. **Will the segment fall apart?**


# %%
def left_of(cut, j, channels):
    """What is left of a segment when channels are flat: overlap with the best match."""
    _, _, grid, trace = cut
    again = kway_ncut(
        Ncut(len(trace.scores)).fit_transform(ablate(grid.features, channels))
    )
    return best_overlap(trace.mask(j), again.argmax(1))


j = subjects["Wheels"][1]
order, drawn = wheels[3].ranking("support", j), torch.Generator().manual_seed(0)
kept, chance = {}, {}
for m in (5, 80):
    kept[m] = left_of(wheels, j, order[:m])
    draws = [torch.randperm(512, generator=drawn)[:m] for _ in range(20)]
    chance[m] = torch.tensor([left_of(wheels, j, d) for d in draws])
    print(
        f"first {m:2d}: {kept[m]:.2f} left; random {m:2d}: {chance[m].mean():.2f}, "
        f"from {chance[m].min():.2f} to {chance[m].max():.2f}"
    )
assert kept[5] < chance[5].min() and chance[80].min() < kept[80] < chance[80].mean()
assert min(kept.values()) > 0.5

# %% [markdown]
# The first five cost the segment more than any of the twenty random fives. Of eighty that is no longer so: a random draw among the twenty costs more. And in each case more than half of the segment is left.
#
# Now the network. **When the first five wheel channels are silent, which of the thousand classes lose most?** The classifier takes a mean over positions, so it matters how they are taken away:
# flattened to their mean they no longer say *where*, set to zero they say nothing.

# %%
picture = pil_to_tensor(load_photo("motorcycle", (352, 240)))[None] / 255
with torch.no_grad():
    acts = net.features(net.info.preprocess(picture.to(device), (240, 352)))
    logits = net(net.info.preprocess(picture.to(device), (240, 352)))[0].cpu()


@torch.no_grad()
def change(channels, how):
    """Change of the 1000 logits when channels of fire9 are taken away."""
    changed = acts.clone()
    mean = changed[:, channels].mean((2, 3), keepdim=True)
    changed[:, channels] = mean.expand_as(changed[:, channels]) if how == "flat" else 0
    return net.classifier(changed).flatten().cpu() - logits


assert change([], "zero").abs().max() < 1e-4
draws = [torch.randperm(512, generator=drawn)[:5] for _ in range(200)]
lost = {how: change(order[:5], how) for how in ("flat", "zero")}
chance = {how: torch.stack([change(d, how) for d in draws]) for how in lost}
most = [words[i] for i in lost["zero"].argsort()[:5]]
print("set to zero, these five of the 1000 classes lose most:", ", ".join(most))

# %%
# Which classes go on wheels is said here by hand, by name, for the check alone.
WHEELED = """
ambulance;beach wagon;bicycle-built-for-two;cab;convertible;forklift;freight car
fire engine;garbage truck;go-kart;golfcart;half track;horse cart;jeep;jinrikisha
limousine;minibus;minivan;Model T;moped;motor scooter;mountain bike;moving van
oxcart;pickup;police van;racer;recreational vehicle;school bus;shopping cart
sports car;streetcar;tow truck;tractor;trailer truck;tricycle;trolleybus
unicycle;barrow;car wheel;disk brake;passenger car"""
WHEELED = set(WHEELED.strip().replace("\n", ";").split(";"))
assert WHEELED <= set(words) and set(most) <= WHEELED
hits = [len({words[i] for i in d.argsort()[:5]} & WHEELED) for d in chance["zero"]]
print(f"of five drawn at random on average {sum(hits) / len(hits):.1f} go on wheels")
print(f"all five do in {sum(h == 5 for h in hits)} of {len(hits)} draws")
now, then = (
    v.softmax(0)[words.index("moped")] for v in (logits, logits + lost["zero"])
)
says = words[int((logits + lost["zero"]).argmax())]
print(f"moped: {now:.2f} before, {then:.2f} after; the network now says {says}")
assert sum(h == 5 for h in hits) < 0.05 * len(hits)
assert says == "moped" and then < 0.2 * now

# %% tags=["hide-input"]
top = logits.topk(6).indices
triples = {
    how: {
        words[i]: [
            [float(lost[how][i])] * 3,
            [float(chance[how][:, i].mean())]
            + chance[how][:, i].quantile(torch.tensor([0.025, 0.975])).tolist(),
        ]
        for i in top
    }
    for how in lost
}
show_figure(
    viz.show_intervals(
        {"set to their mean": triples["flat"], "set to zero": triples["zero"]},
        ["first five wheel channels", "five random channels"],
        "change of the logit",
    ),
    name="wheel-ablation",
    alt="Changes of six logits when five channels are taken away. Those of the wheel "
    "channels lie below all intervals of random ones, far below when set to zero.",
    caption="The six classes the network finds most likely in the motorcycle, without "
    "five channels of fire9. Bars: where 95% of 200 random draws lie.",
)
assert (lost["zero"][top] < chance["zero"][:, top].quantile(0.025, 0)).all()
assert (lost["flat"][top] < chance["flat"][:, top].quantile(0.025, 0)).all()
assert (lost["flat"][top].abs() < 0.5 * lost["zero"][top].abs()).all()

# %% [markdown]
# Set to zero, five channels that were found by cutting two photographs, without any label, take most from classes that go on wheels. The answer is still moped, with less than a fifth of the probability it had. Flattened, they cost less than half of that for each of the six classes, and still more than
# random ones: the mean over positions, close to what the classifier reads, stays. So an ablation has to say what it takes away: the differences between cells, on which a segment rests, or the amount, on which a class does.

# %% [markdown]
# ## Does the ranking matter? Ablation of named channels
#
# Now in every segment of three photographs with named channels: flatten those at the top of its ranking, or at the bottom, or random ones, cut again, and see how much of the segment is left (intersection over union with the best match).


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
banks = [filter_bank(load_photo(name), grid=20).to(device) for name in three]
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
figure = viz.show_curves(
    removed, dict(zip(kinds, mean)), "channels removed", "overlap left of the segment"
)
figure.axes[0].set_xticks(removed)
show_figure(
    figure,
    name="ablation",
    alt="Overlap left against channels removed: top channels fall steeply, random "
    "ones less, bottom ones hardly.",
    caption="Overlap left when channels at the top of a segment's ranking are "
    "removed, or at the bottom, or random ones. Means of 15 segments of three "
    "photographs, one random draw for each.",
)
assert (mean[0] < mean[1]).all() and (mean[1] < mean[2]).all()
ahead = [bootstrap(gap) for gap in (overlap[1] - overlap[0]).flatten(1)]  # 15 segments
for m, gap in zip(removed, ahead):
    print(f"{m} removed: random minus top {gap}")
    assert gap.low > 0

# %% [markdown]
# Top before random before bottom, at every number of channels. The ranking here is by magnitude, because either end of a channel can hold a segment together; so this tests which channels matter, and not their sign.
#
# ## Several images, one cut
#
# Stack the rows of two photographs and they are cut jointly. **Will the two views of a stereo pair agree?**

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
    alt="Two views of a red motorcycle; the same segment, its red paint, in both, "
    "with the three channels that support it.",
    caption="One segment in two photographs, and the channels that hold it together "
    "in both.",
)
share = reduce(masks.float(), "b h w -> b", "mean")
assert share.min() > 0.5 * share.max()
assert "a* green-red" in names[:2]

# %% [markdown]
# They do: the red paint is one segment, of similar size in both views, and $a^*$ is among its first two channels.
#
# ## Tokens of a transformer
#
# `timm_features` gives the tokens of any timm vision transformer, without its prefix tokens: pass a name with `pretrained=True`, or a
# model that you have. Here it is the small transformer of [the toy aviary](00_aviary.ipynb), trained to name the species of drawn birds and never told where a bird ends.
# **Cut its tokens in two: where will the cut be?**

# %%
vit, birds = load_model("aviary-vit-0", device=device), Aviary("test", 24)
pictures = [birds.scene(i) for i in range(24)]
photos = [to_pil_image(render(scene).image) for scene in pictures]
tokens = [ctrace.timm_features(image, vit) for image in photos]
halves = [trace_channels(grid, n_segments=2) for grid in tokens]
gap = min(h.spectrum.eigengap for h in halves)
channels = len(tokens[0].names)
print(f"grid {tokens[0].grid_hw}, {channels} channels, eigengaps from {gap:.2f}")

# %% tags=["hide-input"]
tabs = Gallery("traced-tokens")
for number, i in enumerate((10, 17, 5), 1):
    tabs.add(
        f"Bird {number}",
        trace_figure(photos[i], tokens[i], halves[i], 1),
        alt="A drawn bird, the smaller of two segments of its tokens, and the "
        "channels that support that segment.",
        caption=f"A {SPECIES[birds.label(i)].name}: the smaller segment of a "
        "transformer's tokens, and the channels that hold it together.",
    )
tabs.show()

# %% [markdown]
# The smaller segment is the bird. The outline is coarse, 12 x 12 patches; how much do the segment and the true bird overlap?

# %%
overlaps = []
for scene, half in zip(pictures, halves):
    bird = (
        F.adaptive_avg_pool2d(render(scene).bird[None].float(), (12, 12))[0].flatten()
        > 0.3
    )  # patches that are a third bird or more
    found = half.mask(1).cpu()
    overlaps.append(float((found & bird).sum() / (found | bird).sum()))
overlaps = torch.tensor(overlaps)
median, worst = overlaps.median(), overlaps.min()
print(f"intersection over union: median {median:.2f}, worst {worst:.2f}")
assert overlaps.median() > 0.6 and (overlaps > 0.4).float().mean() > 0.85
assert worst < 0.2

# %% [markdown]
# By more than six tenths in half of the birds, and by about one tenth in the worst. Does the same channel support the bird in every picture?

# %%
first = torch.stack([h.ranking("support", 1)[:5] for h in halves])  # (24, 5)
often = torch.bincount(first.flatten(), minlength=64)
drawn = torch.Generator().manual_seed(0)
lucky = [
    torch.bincount(torch.rand(24, 64, generator=drawn).topk(5).indices.flatten()).max()
    for _ in range(1000)
]
print(
    f"channel {int(often.argmax())}: among the first five for {int(often.max())} birds"
)
print(f"most frequent of 64 when five are drawn for each bird: up to {max(lucky)}")
assert often.max() >= 15 and often.max() > max(lucky)

# %% [markdown]
# One does in most of them, more often than the most frequent of 64 channels in a thousand draws by chance. Whether it stands for *bird*, or for *not background*, this does not tell.

# %% [markdown]
# ## When it cannot work
#
# Three pieces that do not touch, and a request for two segments: which two pieces belong together is not in the data, and neither is a gradient.

# %%
islands = torch.cat([torch.randn(40, 3) + 50 * shift for shift in range(3)])
try:
    trace_channels(islands, n_segments=2, sigma=1.0)
except ArithmeticError as error:
    print(textwrap.fill(str(error), 84))
else:
    raise AssertionError("a closed gap must be refused")

# %% [markdown]
# ## The quick starts of the tutorial
#
# The [tutorial](../book/originals.md) exists in two versions, which differ in the name of a switch. Both run with the import changed: 10,000 points with 300 random channels, exact, no subsampling. **What will a ranking of random channels say?**


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
ratio = importance.max() / importance.mean()
print(f"importance: mean {importance.mean():.1e}, largest {ratio:.2f} times the mean")
assert n_exact == 10_000 and eigengap < 1e-4
assert ratio < 3

# %% [markdown]
# It names ten channels like any other ranking, and none stands out. In how much memory? The 10,000 x 10,000 weights alone take 0.4 GB.

# %%
if sys.platform == "linux" and device == "cpu":
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"largest memory of this page so far: {peak:.2f} GiB")
    assert peak < 2

# %% [markdown]
# The ranking means nothing: random features have almost no eigengap, so the subspace is barely defined. A ranking always exists; look at the gap before you believe it.
#
# The helper functions of the tutorial are here under their names, with one change: `channel_gradient_from_cluster` has the sign of the effect.

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
# ## A network of your own
#
# Every network that timm knows can stand here. `make book MODEL=vit_small_patch14_dinov2.lvd142m`, or `make book MODEL=resnet50`, fetches its published weights once and renders this section with it; where this notebook runs alone, the
# environment variable `CTRACE_MODEL` does the same. Without a network connection `CTRACE_WEIGHTS_DIR` names a folder that holds the weights as `resnet50.safetensors` or `resnet50.pth`.
#
# A transformer gives its tokens, a convolutional network the maps of its last stage but one. Four photographs are cut into six segments each, and the one in the middle is traced. A network that keeps no grid of
# places gives no features to cut, and one sentence with the reason.

# %%
network = chosen_model()


# %% tags=["hide-input"]
def last_but_one(network):
    """The last stage but one by timm's list, or the last layer finer than the last."""
    stages = getattr(network, "feature_info", None)
    if stages:
        return stages[-2]["module"]
    cells, hooks = {}, []  # of every layer that puts out a grid, in their order

    def note(name, output):
        if getattr(output, "ndim", 0) == 4 and output[0, 0].numel() > 1:
            cells[name] = output[0, 0].numel()

    for name, module in network.named_modules():
        hook = lambda module, args, output, name=name: note(name, output)
        hooks.append(module.register_forward_hook(hook))
    with torch.no_grad():
        network(torch.zeros(1, *network.info.input_size, device=device))
    for hook in hooks:
        hook.remove()
    finer = [name for name, n in cells.items() if n > [*cells.values()][-1]]
    if not finer:
        raise ValueError("None of its layers has a finer grid than its last.")
    return finer[-1]


# %%
def own_features(network, name):
    """A photograph, and tokens of a transformer or maps of a convolutional network."""
    photo = load_photo(name, size=(384, 384))
    if hasattr(network, "num_prefix_tokens"):
        return photo, ctrace.timm_features(photo, network)
    layer = last_but_one(network)
    try:
        return photo, ctrace.conv_features(photo, network, layer)
    except (AssertionError, RuntimeError, ValueError):
        # It takes one size only, or pads in a way of its own: so its size, its padding.
        photo = load_photo(name, size=network.info.input_size[:0:-1])
        return photo, ctrace.conv_features(photo, network, layer, pad=0)


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
    """Photograph, segments, and the maps of up to six channels that support one."""
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
        photo, grid = own_features(network, name)
        found = own_segment(grid)
        tabs.add(
            name,
            own_figure(photo, grid, *found),
            alt=f"{name}, six segments of it, and maps of up to six channels "
            f"that support segment {found[1]}.",
            caption=f"{network.info.name} ({network.info.weights}), grid "
            f"{grid.grid_hw[0]} x {grid.grid_hw[1]}: segment {found[1]} and the "
            "channels "
            f"that support it. Eigengap {found[2].spectrum.eigengap:.4f}.",
        )
    tabs.show()


# %%
if network is not None:
    try:
        own_tabs(network)
    except ValueError as error:
        print(f"{network.info.name} gives no grid of places to cut. {error}")

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
    if None in (segments, rankings, attributions):
        return print("no answer yet")
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


# Your words: segments, `support` of -x against `inhibit` of x, attributions.
my_words = (None, None, None)
answered = check_negation(*my_words)


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
            f"expected the difference of two means with shape {tuple(want.shape)}; is "
            "the outside `~mask`?"
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


# %%
def my_contrast(x, mask):
    return torch.zeros(len(x))  # yours here


answered = check_contrast(my_contrast)

# %% [markdown]
# ```{solution-start} ex-own-attribution
# :class: dropdown
# ```


# %%
def contrast(x, mask):
    return x[mask].mean(0) - x[~mask].mean(0)


assert check_contrast(contrast)

# %% [markdown]
# The shortcut agrees in part. It weighs all points alike, and not by their ties across the border, as in the [example by hand](../book/trace.md).
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


def my_average(gradient):
    return gradient[:10].mean(0)  # yours here


answered = check_everywhere(my_average)


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
# - **traced** the segments of photographs back to channels, named ones and learned ones,
# - **settled** the sign of the ranking, with finite differences for every channel,
# - **tested** the ranking, by removing the channels it names, and by asking them what they are.
#
# What this does not show: that every channel of a segment means something. Some that support a segment fire as much at something else. Next: [Grad-CAM](05_gradcam.ipynb) asks the same of the score of a class.

# %%
print(
    f"this page ran in {time.time() - started:.0f} s on {device}, "
    f"{torch.get_num_threads()} threads"
)
