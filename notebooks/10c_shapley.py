# %% [markdown]
# # Shapley values, SHAP and LIME
#
# **What a region adds to an answer depends on which others are there. The Shapley value averages over all of these; SHAP and LIME estimate from samples, and all three depend on what an absent region shows.**

# %% [markdown] tags=["remove-cell"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ctrace-book/ctrace/blob/main/notebooks/10c_shapley.ipynb)

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
# - **share** out an answer among three parts by hand, and among the parts of a bird exactly,
# - **estimate** the shares of superpixels from samples, and see how many samples that takes,
# - **compare** SHAP with LIME, with other fills and with three definitions of truth.
#
# You need the birds of [the aviary](00_aviary.ipynb), where Shapley values of parts come first. The last cell prints how long this page took to run.

# %% tags=["hide-input"]
import time
from itertools import permutations
from textwrap import fill as wrapped

import numpy as np
import torch
from ctrace import viz
from ctrace.aviary import PARTS, Aviary, importance_table, render
from ctrace.aviary.truth import centred_logits
from ctrace.look.saliency import integrated_gradients
from ctrace.stats import exact_shapley, spearman
from ctrace.trust.hide import FILLS, filled
from ctrace.trust.shapley import kernel_shap, lime, sample_coalitions, shap, superpixels
from ctrace.viz.gallery import show_figure
from ctrace.world.models import load_model
from torch.fx.experimental.optimization import fuse

# %%
started = time.time()
device = "cuda" if torch.cuda.is_available() else "cpu"
model = load_model("aviary-resnet-0", device=device)
model = model.to(memory_format=torch.channels_last)  # the same numbers, faster on a CPU
print(f"torch {torch.__version__} on {device}")

# %% tags=["hide-input"]
# each batch norm folded into its convolution: the same answers, sooner
quick = fuse(model).to(memory_format=torch.channels_last)
BIRDS, ONE = 8, 2
data = Aviary("test", BIRDS)
scenes = [data.scene(i) for i in range(BIRDS)]
drawn = [render(scene) for scene in scenes]
images = model.info.preprocess(torch.stack([d.image for d in drawn]).to(device))
classes = torch.arange(BIRDS)
x, target = images[ONE], ONE  # one bird, and its species
with torch.no_grad():
    assert torch.allclose(quick(images), model(images), atol=1e-4)

# %% [markdown]
# ## How much does the crest add?
#
# One bird, with and without its crest. Above, all other parts are there; below, none of them. Is the crest worth the same?

# %%
WHO = 4
bare = [part for part in PARTS if part != "crest"]
pairs = {
    "all parts": scenes[WHO],
    "no crest": scenes[WHO].without("crest"),
    "the crest alone": scenes[WHO].without(*bare),
    "no part": scenes[WHO].without(*PARTS),
}
z = centred_logits(model, list(pairs.values()))[:, WHO].tolist()
print(f"beside all others the crest adds {z[0] - z[1]:.2f}, alone {z[2] - z[3]:.2f}")
assert z[2] - z[3] > 4 * (z[0] - z[1]) > 0

# %% tags=["hide-input"]
show_figure(
    viz.show_grid(
        [render(scene).image for scene in pairs.values()],
        [f"{name}: {value:+.2f}" for name, value in zip(pairs, z)],
        columns=2,
    ),
    name="trust-crest",
    alt="One bird four times: whole, without its crest, with nothing but its crest, "
    "and without all five parts, each with the logit of its species.",
    caption="Four drawings of one bird, and the logit of its species, minus the mean "
    "over species. What the crest adds depends on what else is there.",
)

# %% [markdown]
# Alone the crest adds more than four times what it adds beside the other parts. Where one part can stand in for another it is worse: taking either away changes nothing, and taking both away changes all.
#
# ## By hand
#
# Three parts. A wing or a crest is enough for 6 logits, and both together bring no more; legs add 1 to whatever is there. What is each worth? *Removal* asks for what is lost when it goes last: 0, 0 and 1. Lloyd Shapley's answer {cite:p}`shapley1953`:
# let the parts appear one after the other, in all orders, and average what each adds when its turn comes. With $v(S)$ the answer to the parts in $S$, and $r$ parts,
#
# $$
# \begin{aligned}
# \varphi_i &= \sum_{S \not\ni i} c_S \big(v(S \cup i) - v(S)\big) , \\
# c_S &= \frac{|S|!\,(r - 1 - |S|)!}{r!} .
# \end{aligned}
# $$ (trust-shapley)
#
# Predict the three values before you run it.


# %%
def worth(present):
    """The answer to a set of the three parts."""
    return 6 * bool({"wing", "crest"} & present) + ("legs" in present)


three = ("wing", "crest", "legs")
added = {part: [] for part in three}
for order in permutations(three):
    for i, part in enumerate(order):
        added[part].append(worth(set(order[: i + 1])) - worth(set(order[:i])))
by_hand = {part: np.mean(values) for part, values in added.items()}
for part, values in added.items():
    print(f"{part}: adds {values} in the six orders, mean {by_hand[part]:g}")

# %% [markdown]
# Wing and crest share the 6 logits, and the three values sum to 7, the answer to all minus that to none. By removal both would be worthless. The same from `ctrace`, which takes the values of all coalitions, counted in binary:

# %%
coalitions = [{p for i, p in enumerate(three) if s >> i & 1} for s in range(8)]
found = exact_shapley([worth(present) for present in coalitions])
assert np.allclose(found, list(by_hand.values())) and found.sum() == 7
removal = [worth(set(three)) - worth(set(three) - {part}) for part in three]
assert removal == [0, 0, 1]

# %% [markdown]
# ## The parts of a bird, exactly
#
# Five parts make 32 drawings of a bird, and all of them can be asked. Each part can join 16 coalitions of the others. How far do its 16 contributions differ?

# %%
gone = [[p for i, p in enumerate(PARTS) if not s >> i & 1] for s in range(32)]
asked = [scene.without(*parts) for scene in scenes for parts in gone]
z = centred_logits(model, asked).double().numpy().reshape(BIRDS, 32, -1)
values = z[np.arange(BIRDS), :, classes]  # (b, coalitions)
numbers = np.arange(32)
joins = np.stack(
    [
        values[:, numbers[numbers >> i & 1 == 1]]
        - values[:, numbers[numbers >> i & 1 == 0]]
        for i in range(5)
    ],
    1,
)  # (b, p, 16): what part p adds to each coalition without it
exact = np.stack([exact_shapley(row) for row in values])  # (b, p)

# %%
spread = np.ptp(joins, axis=2)  # (b, p)
bird, part = np.unravel_index(spread.argmax(), spread.shape)
print(f"bird {ONE}: a part's contributions differ by {spread[ONE].max():.2f} at most")
low, high = joins[bird, part].min(), joins[bird, part].max()
print(f"bird {bird}, {PARTS[part]}: {low:+.2f} to {high:+.2f},", end=" ")
print(f"mean {exact[bird, part]:+.2f}")
assert np.allclose(exact.sum(1), values[:, -1] - values[:, 0], atol=1e-6)
assert np.allclose(
    exact, importance_table(model, scenes, classes, "shapley"), atol=1e-3
)
assert spread.max() > 3 * spread[ONE].max()

# %% tags=["hide-input"]
show_figure(
    viz.show_intervals(
        {
            f"bird {i}": {
                name: [[exact[i, p], joins[i, p].min(), joins[i, p].max()]]
                for p, name in enumerate(PARTS)
            }
            for i in (ONE, int(bird))
        },
        ["Shapley value, and the range over 16 coalitions"],
        "logits",
    ),
    name="trust-coalitions",
    alt="Two panels with five parts each. On the left the ranges are short, on the "
    "right at least one of them is long.",
    caption="What a part adds: the mean over coalitions that is the Shapley value, and"
    " the least and the most. Left a bird whose parts nearly add up, right the"
    " bird of the eight with the longest range.",
)

# %% [markdown]
# Where the ranges are short, removal, Shapley and any other average must nearly agree. Where they are long, the answer depends on which coalitions are asked.
#
# ## Superpixels, and samples
#
# A photograph has no parts to draw away. SHAP {cite:p}`lundberg2017` plays the same game with superpixels {cite:p}`achanta2012`; absent ones show blur here. It asks a sample of the coalitions, above all nearly empty and nearly full ones, and fits a line to the
# answers by least squares, whose coefficients sum to $f(\text{all}) - f(\text{none})$ and tend to the Shapley values. How many coalitions does it take? With eleven superpixels all 2,048 can be asked, so the error can be seen.

# %%
coarse = superpixels(x, 18)
r, blur = int(coarse.max()) + 1, filled(x[None], "blur")
present = torch.arange(2**r)[:, None] >> torch.arange(r) & 1 == 1  # (2^r, r)
shown = present.to(device)[:, coarse.to(device)]  # (2^r, height, width)
with torch.no_grad():
    z = torch.cat([quick(torch.where(m[:, None], x, blur)) for m in shown.split(64)])
game = (z[:, target] - z.mean(1)).double().cpu()  # (2^r,)
right = torch.from_numpy(exact_shapley(game))
total = float(game[-1] - game[0])

# %%
counts, errors, sums = (2 * r, 32, 64, 128, 256, 512), [], []
for m in counts:
    tries = []
    for seed in range(20):
        drawn_now = sample_coalitions(r, m, seed)
        number = (drawn_now * 2 ** torch.arange(r)).sum(1)
        tries.append(kernel_shap(drawn_now, game[number] - game[0], total))
    tries = torch.stack(tries)
    errors.append((tries - right).abs().amax(1).mean().item())
    sums.append((tries.sum(1) - total).abs().max().item())
print(f"{r} superpixels, the largest value {right.max():.2f}")
for m, error in zip(counts, errors):
    print(f"{m:4d} coalitions: largest error of a value {error:.3f}")
print(f"sums off by {max(sums):.0e} at most")
assert max(sums) < 1e-9 and errors[0] > 0.3 and errors[-1] < errors[2] / 2

# %% tags=["hide-input"]
figure = viz.show_curves(
    np.array(counts),
    {"largest error of a value": np.array(errors)},
    "coalitions asked",
    "largest error of a value, logits",
    logx=True,
    logy=True,
)
[ax] = figure.axes
ax.set_xticks(counts, counts)
ax.set_xticks([], minor=True)
ax.set_yticks([0.01, 0.03, 0.1, 0.3, 1], [0.01, 0.03, 0.1, 0.3, 1])
ax.set_yticks([], minor=True)
show_figure(
    figure,
    name="trust-samples",
    alt="The error falls from almost one logit at 22 coalitions to about a hundredth "
    "at 512, on logarithmic axes.",
    caption="Eleven superpixels of one bird: the largest error of a Kernel SHAP value,"
    " mean over 20 samples of coalitions.",
)

# %% [markdown]
# The sum is right to the last digits at any number of coalitions, because it is built in, and says nothing about the values: with 22 coalitions the worst of them is off by most of a logit, on average. Where nobody can
# afford all coalitions, two samples tell how far apart they lie.

# %%
explained = shap(quick, x, target, superpixels(x), samples=256)
again = shap(quick, x, target, superpixels(x), samples=256, seed=1)
added = explained.all - explained.none
print(f"{len(explained.values)} superpixels, sum {explained.values.sum():.4f}")
print(f"f(all) - f(none) {added:.4f}")
apart = float((explained.values - again.values).abs().max())
print(f"another sample: values differ by {apart:.2f} at most")
assert abs(float(explained.values.sum()) - added) < 1e-10
assert 0.02 < apart < 0.5

# %% [markdown]
# ## What an absent region shows
#
# Something has to stand where a region is absent, and $f(\text{none})$ is the answer to a picture made of it. Six superpixels, exactly, under four fills: does the largest value stay where it is, and as large as it is?

# %%
six = superpixels(x, 9)
by_fill = {fill: shap(quick, x, target, six, baseline=fill) for fill in FILLS}
for fill, one in by_fill.items():
    print(f"{fill:6s}", " ".join(f"{v:+.2f}" for v in one.values))
first = [int(one.values.argmax()) for one in by_fill.values()]
most = [float(one.values.max()) for one in by_fill.values()]
assert len(six.unique()) == 6 and len(set(first)) == 1
assert most[FILLS.index("blur")] > 1.5 * most[FILLS.index("noise")]

# %% [markdown]
# The same region comes first under all four, and is worth more than half as much again under blur as under noise. A Shapley value of pixels has to name its fill and its regions.
#
# ## LIME
#
# LIME {cite:p}`ribeiro2016` asks the same game and fits another line to it. Each region is in or out by a coin, a coalition counts the more the nearer it is to the whole picture, and a ridge penalty holds the coefficients
# down. Nothing obliges them to sum to $f(\text{all}) - f(\text{none})$. How far do they miss it, and do the two methods order the regions alike?

# %%
line = lime(quick, x, target, superpixels(x), samples=256)
both = torch.stack([explained.values, line.values])
rho, first = float(spearman(both[:1], both[1:])[0]), both.argmax(1).tolist()
print(f"LIME: sum {line.values.sum():.2f}, f(all) - f(none) {line.all - line.none:.2f}")
print(f"rank correlation with SHAP {rho:+.2f}; largest region {first}")
assert abs(float(line.values.sum()) - (line.all - line.none)) > 0.5
assert first[0] == first[1] and 0.5 < rho < 0.95

# %% [markdown]
# The same region comes first, the order of the others is alike and not the same, and the sum is off by more than half a logit. LIME has two numbers besides, the width of its kernel and its penalty. The authors' code for images
# takes 0.25 and 1 (repository *marcotcr/lime*, `lime/lime_image.py` and `lime/lime_base.py`). With others:

# %%
sums = {}
for width, ridge in ((0.25, 1.0), (0.1, 1.0), (1.0, 1.0), (0.25, 0.0), (0.25, 10.0)):
    how = {"samples": 256, "width": width, "ridge": ridge}
    sums[width, ridge] = float(
        lime(quick, x, target, superpixels(x), **how).values.sum()
    )
for (width, ridge), total_given in sums.items():
    print(f"width {width:4.2f}, penalty {ridge:4.1f}: sum {total_given:.2f}")
assert max(sums.values()) - min(sums.values()) > 1

# %% [markdown]
# The sum moves by more than a logit between settings that all look sensible. A Shapley value depends on neither number; like LIME, it depends on the fill and the regions.
#
# ## Truth is a choice
#
# Back to the parts, and three definitions of the truth about them: removal, *swap* (the part exchanged for another of its kind) and Shapley. Which of them do maps come near? Maps are summed over the pixels of each part.

# %%
parts = torch.stack([drawn[ONE].masks[part] for part in PARTS]).double()  # (p, h, w)
kinds = {
    kind: importance_table(model, scenes, classes.tolist(), kind)
    for kind in ("removal", "swap", "shapley")
}  # (b, p) each
asked = model, images[ONE : ONE + 1], classes[ONE : ONE + 1].to(device)
scores = integrated_gradients(*asked).sum(1)[0].double().cpu()
on_parts, ig_parts = (
    torch.einsum("hw,phw->p", m, parts).numpy()
    for m in (explained.map.double(), scores)
)

# %% tags=["hide-input"]
found = np.stack([*(table[ONE] for table in kinds.values()), on_parts, ig_parts], 1)
show_figure(
    viz.show_intervals(
        {"": {part: row[:, None] for part, row in zip(PARTS, found)}},
        [
            "truth: removal",
            "truth: swap",
            "truth: Shapley",
            "SHAP on superpixels",
            "integrated gradients",
        ],
        "logits",
    ),
    name="trust-shap",
    alt="Points for five parts: their importance by removal, swap and Shapley, and the"
    " sums of two maps over them. The wing is far ahead by all five.",
    caption="One bird: how much its parts matter to this model, by three definitions, "
    "and what two maps put on them.",
)

# %%
crest = PARTS.index("crest")
print(f"crest: removal {kinds['removal'][ONE, crest]:+.2f}")
print(
    f"crest: SHAP {on_parts[crest]:+.2f}, integrated gradients {ig_parts[crest]:+.2f}"
)
assert ig_parts[crest] < 0 < on_parts[crest] < kinds["removal"][ONE, crest] / 2
assert all(column.argmax() == PARTS.index("wing") for column in found.T)
for one, other in (("removal", "swap"), ("removal", "shapley"), ("swap", "shapley")):
    like = spearman(kinds[one], kinds[other])
    print(f"{one} and {other}: rank correlation {like.mean():+.2f}, mean of 8 birds")
assert 0.5 < spearman(kinds["removal"], kinds["swap"]).mean() < 0.98

# %% [markdown]
# All five agree on the wing. On the crest they do not: without it the model loses more than two logits, SHAP puts less than half of that on it, and integrated gradients put less than nothing there. The three truths
# order the parts much alike, and not always alike, so a score has to name the one it uses.
#
# ## When it refuses
#
# A regression with fewer answers than unknowns, and a kernel so narrow that hardly any coalition counts:


# %%
def said(error, call, *words):
    """Prints the error of a call that must fail with these words."""
    try:
        call()
    except error as problem:
        print(wrapped(f"{error.__name__}: {problem}", 88))
        assert all(word in str(problem) for word in words)
    else:
        raise AssertionError("this should have been refused")


fine = quick, x, target, superpixels(x)
said(ValueError, lambda: shap(*fine, samples=20), "samples", "at least 58")
said(ArithmeticError, lambda: lime(*fine, samples=256, width=0.01), "Widen the kernel")

# %% [markdown]
# ## Exercises
#
# ```{exercise}
# :label: ex-shapley-twins
#
# **Predict.** To the three parts by hand comes a tail that can stand in for wing and crest as well: any one of the three is enough for the 6 logits. Shapley values of wing, crest, tail and legs? And what does removal say of each?
# ```

# %%
my_shapley, my_removal = None, None  # four numbers each


# %%
def check_twins(shapley, removal):
    """Asks all sixteen coalitions."""
    if None in (shapley, removal):
        return print("no answer yet")
    held = [[s >> i & 1 for i in range(4)] for s in range(16)]
    v = np.array([6 * any(row[:3]) + row[3] for row in held])
    truth = exact_shapley(v), [v[15] - v[15 - 2**i] for i in range(4)]
    right = np.allclose(shapley, truth[0]) and np.allclose(removal, truth[1])
    hint = "no: what does each add when it comes first, and when it does not?"
    print("yes" if right else hint)
    return right


check_twins(my_shapley, my_removal)

# %% [markdown]
# ```{solution-start} ex-shapley-twins
# :class: dropdown
# ```
#
# Whichever of the three comes first brings the 6, and each is first of the three equally often: 2 each, and 1 for the legs. Removal finds nothing but the legs.

# %%
assert check_twins([2, 2, 2, 1], [0, 0, 0, 1])

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise}
# :label: ex-shapley-orders
#
# **Implement.** `by_orders(v)`: Shapley values from the values of all coalitions $(2^r,)$, as the mean over all orders. Coalition $s$ holds player $i$ where bit $i$ of $s$ is set.
# ```


# %%
def my_orders(v):
    return None  # yours: (r,)


# %%
def check_orders(own):
    """Compares with `exact_shapley` on a random game of four."""
    if own(np.zeros(16)) is None:
        return print("no answer yet")
    v = np.random.default_rng(0).normal(size=16)
    off = np.abs(own(v) - exact_shapley(v)).max()
    print("yes" if off < 1e-9 else f"no: off by {off:.2f}")
    return off < 1e-9


check_orders(my_orders)

# %% [markdown]
# ```{solution-start} ex-shapley-orders
# :class: dropdown
# ```


# %%
def by_orders(v):
    r = len(v).bit_length() - 1
    found, orders = np.zeros(r), list(permutations(range(r)))
    for order in orders:
        s = 0
        for i in order:
            found[i] += v[s | 1 << i] - v[s]
            s |= 1 << i
    return found / len(orders)


assert check_orders(by_orders)

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise}
# :label: ex-shapley-split
#
# **Break it.** Of the six superpixels the one with the wing has the largest value. Cut superpixels into pieces (at most ten regions in all) so that the largest value lies elsewhere, with the same model, picture and fill.
# ```


# %%
def my_regions(six):
    return None  # yours: (height, width), numbered from 0


# %%
def check_split(own):
    """Only cuts are allowed: no new region may reach into two old ones."""
    if own(six.clone()) is None:
        return print("no answer yet")
    new, wing = own(six.clone()), int(by_fill["blur"].values.argmax())
    if any(len(six[new == piece].unique()) != 1 for piece in new.unique()):
        return print("no: a new region reaches into two old ones")
    one = shap(quick, x, target, new)
    home = int(six[new == int(one.values.argmax())][0])
    print(
        f"{len(one.values)} regions, the largest value {one.values.max():.2f}:", end=" "
    )
    print("still on the wing" if home == wing else "elsewhere")
    return home != wing


check_split(my_regions)

# %% [markdown]
# ```{solution-start} ex-shapley-split
# :class: dropdown
# ```
#
# Five sets of stripes share what the wing's superpixel was worth:


# %%
def in_stripes(six):
    rows, columns = torch.where(six == int(by_fill["blur"].values.argmax()))
    for stripe in range(1, 5):
        mine = columns % 5 == stripe
        six[rows[mine], columns[mine]] = 5 + stripe
    return six


assert check_split(in_stripes)

# %% [markdown]
# The question "which region counts most?" is about the cutting as well. Divide by the area, or compare the same regions.
#
# ```{solution-end}
# ```

# %% [markdown]
# In this notebook we have
#
# - **shared** out an answer among three parts by hand, and among the parts of a bird exactly,
# - **estimated** the shares of superpixels from samples, and seen how many samples that takes,
# - **compared** SHAP with LIME, with other fills and with three definitions of truth.
#
# What this does not show: which definition you should want. All methods, three truths and several trained models at once: [the scoreboard](11_scoreboard.ipynb).

# %%
took, threads = time.time() - started, torch.get_num_threads()
print(f"this page ran in {took:.0f} s on {device}, {threads} threads")
