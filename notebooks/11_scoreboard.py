# %% [markdown]
# # The scoreboard: every method, the same birds
#
# **Every method of this book was asked about the same held-out birds and the same trained networks, beside controls that know nothing. This page says which of their differences are real: large enough to be expected again on other networks and other birds.**

# %% [markdown] tags=["remove-cell"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ctrace-book/ctrace/blob/main/notebooks/11_scoreboard.ipynb)

# %% tags=["remove-cell"]
# Colab, Kaggle: install the package. Does nothing where it is installed.
import importlib.util
import subprocess
import sys

address = "git+https://github.com/ctrace-book/ctrace"
if importlib.util.find_spec("ctrace") is None:
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", address])

# %% [markdown]
# **In this notebook you will**
#
# - *read* one matrix of all methods, in which a colour is a statement about a difference;
# - *decide* which method to trust for which question, and how far;
# - *place* a method of your own on the board, and see a lie found out.
#
# You need the [chapter on falsification](10_falsification.ipynb), where the tests are taken apart one by one. About a minute on two CPU cores.

# %%
from itertools import combinations
from textwrap import fill

import numpy as np
import torch
from ctrace import viz
from ctrace.stats import bootstrap, crossed_interval, spearman
from ctrace.trust.columns import CONTROLS, control_maps, held_out, map_scores
from ctrace.trust.methods import cnn_methods
from ctrace.trust.scoreboard import FALLING, FOLDER, Scoreboard, read_scoreboard, score
from ctrace.viz.gallery import show_figure
from ctrace.viz.matrix import Cell, Column, show_matrix
from ctrace.viz.paint import laid_over
from ctrace.world.models import load_model
from ctrace.world.photos import load_photo
from IPython.display import Markdown

# %%
board = read_scoreboard()
device = "cuda" if torch.cuda.is_available() else "cpu"
model = load_model("aviary-resnet-0", device=device)
lines = (FOLDER / "scores.csv").read_text().splitlines()
print(*[line for line in lines if line.startswith("#")], sep="\n")
print(f"recomputed on: {device}")

# %% [markdown]
# ## What was measured
#
# A score belongs to one bird and one network, and every single one is stored. The columns, and how many networks and birds stand behind each:

# %%
COLUMNS = {
    "parts: removal": Column("removal", "order of the parts: each taken away"),
    "parts: swap": Column("swap", "order of the parts: each exchanged"),
    "parts: Shapley": Column("Shapley", "order of the parts: all combinations"),
    "pointing": Column("pointing", "largest value lies on a part"),
    "mass inside": Column("mass inside", "share of positive mass on the parts"),
    "deletion": Column("deletion", "area under the curve while hiding", True),
    "insertion": Column("insertion", "area under the curve while showing"),
    "survived": Column("survived", "share that passes the falsification test"),
    "kept at half": Column("kept, half", "likeness after half of the weights", True),
    "kept at all": Column("kept, none", "likeness after all weights", True),
    "mark": Column("mark", "mass on a cheat's mark, minus an honest one's"),
    "cost": Column("cost", "in forward passes", True),
}
assert all(column.falling == (key in FALLING) for key, column in COLUMNS.items())


# %%
def sizes(column, rows):
    """How many networks and birds stand behind a column, over its rows."""
    found = {board.values[r, column].shape for r in rows if (r, column) in board.values}
    return " or ".join(f"{m} networks x {b}" for m, b in sorted(found, reverse=True))


mapped = [r for r, c in board.values if c == "pointing"]
on_resnets = [r for r in mapped if "resnet" in board.models[r, "pointing"][0]]
KNOWN = ("planted truth", "planted lie")
METHODS = [row for row in on_resnets if row not in (*CONTROLS, *KNOWN)]
JUDGED = list(COLUMNS)[:8]  # the columns in which controls have a score
for key, column in COLUMNS.items():
    good = "low is good" if column.falling else "high is good"
    print(f"{column.name:12s}{column.meaning}; {good}; {sizes(key, on_resnets)}")

# %% [markdown]
# The truth about a part is the network's own reaction when the renderer takes it away, exchanges it, or takes it away beside every set of other missing parts (Shapley). The row *planted truth* is a perfect map of removal; under swap and Shapley it shows how far
# the three agree. The falsification test hides 5% of the picture by blur; a map survives if at most four of 99 moved copies do as much, *and* at most four of 99 other regions inside the bird. A failed map stays in, with the score of chance.
#
# Five controls ignore the network: noise (*random*), blurred noise (*smooth random*), an edge filter (*edges*), a blob in the middle (*centre*), and *area*, which is told where the parts are and not which of
# them matter.
#
# ## The matrix
#
# A colour says that a row is *really* better or worse than the controls: so clearly that the same is to be expected on other networks and other birds. The two sections after the matrix say what that takes, and test it.
# Press the name of a column to sort by it, a family to see it alone, and point at a number for its interval.

# %% tags=["hide-input"]
SUFFIX = " (CARROT's model)"
FAMILIES = {
    "Gradients": [
        "|gradient|",
        "input x gradient",
        "SmoothGrad",
        "integrated gradients",
        "guided backpropagation",
    ],
    "Class activation": [row for row in METHODS if "CAM" in row],
    "ParchGrad": [row for row in METHODS if row.startswith("ParchGrad")],
    "Regions": ["SHAP, superpixels", "channel tracing, segment"],
    "Controls": list(CONTROLS),
    "Known by construction": list(KNOWN),
    "CARROT": [row for row in board.rows if row.startswith("CARROT ")],
    "Controls on CARROT's networks": [
        row + SUFFIX for row in CONTROLS if row + SUFFIX in board.rows
    ],
    "Known on CARROT's networks": [row + SUFFIX for row in KNOWN],
}
FAMILIES = {
    family: board.ranking("parts: removal", rows) for family, rows in FAMILIES.items()
}
EVERY = [row for rows in FAMILIES.values() for row in rows]
assert sorted(EVERY) == sorted(mapped) and set(METHODS) <= set(EVERY)


# %% tags=["hide-input"]
SAID = {
    "best": "really better than every control",
    "better": "really better than every control but area, "
    "which is told where the parts are",
    "worse": "really worse than the best control",
    "": "cannot be told from the controls",
}


def tint(row, column, board):
    """What a row may claim in a column against the controls on its own networks."""
    on = SUFFIX if "CARROT" in row else ""
    blind = [c + on for c in CONTROLS if (c + on, column) in board.values]
    if not blind or row in blind:
        return None
    if (verdict := board.verdict(row, column, blind)) == 1:
        return "best"
    some = [c for c in blind if not c.startswith("area")]
    return (
        "better" if board.verdict(row, column, some) == 1 else "worse" * (verdict < 0)
    )


# %% tags=["hide-input"]
def cell(row, column, board=board):
    found, shape = board.interval(row, column), board.values[row, column].shape
    kind = tint(row, column, board)
    if column == "mark":  # a map that ignores the network scores exactly 0 there
        kind = "best" if found.low > 0 else "worse" if found.high < 0 else ""
    notes = [SAID[kind]] if kind is not None else []
    notes.append(f"{shape[0]} network{'s' * (shape[0] > 1)}, {shape[1]} birds")
    return Cell(found.value, found.low, found.high, kind or "", "; ".join(notes))


def cells(rows, board=board):
    return {
        (r, c): cell(r, c, board)
        for r in rows
        for c in COLUMNS
        if (r, c) in board.values
    }


# %% tags=["hide-input"]
stored = np.load(FOLDER / "maps.npz")
SMALL = {
    name: stored[f"arr_{i}"] / 127
    for i, name in enumerate((FOLDER / "maps.txt").read_text().splitlines())
}
first_bird = held_out(model, 1)
grounds = {
    "bird": (first_bird.images[0] * 0.25 + 0.5).clamp(0, 1).numpy().transpose(1, 2, 0),
    "photo": np.asarray(load_photo("chelsea", (96, 96))) / 255,
}
pictures = {
    head: {
        row: laid_over(ground, SMALL[f"{head}: {row}"])
        for row in EVERY
        if f"{head}: {row}" in SMALL
    }
    for head, ground in grounds.items()
}

# %% tags=["hide-input"]
networks = sorted({len(board.models[r, "parts: swap"]) for r in METHODS})
LEGEND = (
    f"Means over held-out birds and {' or '.join(map(str, networks))} residual "
    "networks (CARROT: "
    f"{len(board.models['CARROT region split', 'pointing'])} transformers with a "
    "ridge head). "
    "▲, dark blue: really better than every control. △, pale blue: than every control "
    "but "
    "area, which is told where the parts are. ▼, orange: really worse than the best "
    "control. "
    "No mark: cannot be told, or no control has a score. Arrows in the heads: which "
    "way is good. "
    "Small maps: red for, blue against, on the first held-out bird and, by SqueezeNet "
    "asked for "
    "Egyptian cat, on a photograph."
)
found = cells(EVERY)
show_matrix(FAMILIES, COLUMNS, found, LEGEND, pictures)

# %% [markdown]
# ## When is a difference real?
#
# Take *SmoothGrad against the plain gradient* under swap, and look at each network alone.

# %%
pair, column = ("SmoothGrad", "|gradient|"), "parts: swap"
for name in board.models[pair[0], column]:
    print(f"{name}: {board.of(name, 300).difference(*pair, column)}")
print("all networks:", board.difference(*pair, column))

# %%
first, second = (board.values[row, column].astype(float) for row in pair)
d = first - second  # (networks, birds)
alone = [crossed_interval(one[None]) for one in d]
together = crossed_interval(d)
assert any(i.low > 0 for i in alone) and any(i.high < 0 for i in alone)
assert together.low < 0 < together.high

# %% [markdown]
# With this many birds each answer looks certain, and the answers contradict each other: the interval of one network is about other birds and this network. A statement about *methods* has to hold for networks that nobody has
# trained yet, so networks are a sample too. A difference $d_{ij}$ of two methods on network $i$ and bird $j$ is
#
# $$ d_{ij} = \mu + a_i + b_j + e_{ij} $$
#
# with an effect of the network, one of the bird, and a rest; each network meets each bird, the two are *crossed*. The error of the mean has a part from the networks, which only more networks make smaller, and a part from the birds. By hand, for the pair above:

# %%
m, b = d.shape
of_network = d.mean(1).var(ddof=1) / m  # holds the rest as well
rest = d - d.mean(1, keepdims=True) - d.mean(0) + d.mean()
of_bird = d.mean(0).var(ddof=1) / b - (rest**2).sum() / ((m - 1) * (b - 1)) / d.size
print(f"variance of the mean: {of_network:.6f} from {m} networks, {of_bird:.6f} birds")
assert of_network > 5 * of_bird

# %% [markdown]
# The estimate of the first part has $m - 1$ degrees of freedom, and Student's $t$ says how many standard errors to each side that lets the mean stray: the fewer networks, the more, as the last line below shows. The interval
# weights the quantiles by the two parts {cite:p}`cochran1950`. `crossed_interval` does this:

# %%
from scipy.stats import t as student

parts, free = np.array([of_network, max(of_bird, 0)]), np.array([m - 1, b - 1])
quantiles = student.ppf(0.975, free)
half = parts @ quantiles / parts.sum() ** 0.5
print(
    f"by hand {d.mean():.3f} [{d.mean() - half:.3f}, {d.mean() + half:.3f}], {together}"
)
for size, what in ((3, "networks"), (8, "networks"), (300, "birds")):
    print(f"{size} {what}: {student.ppf(0.975, size - 1):.2f} standard errors")
assert np.allclose([d.mean() - half, d.mean() + half], [together.low, together.high])

# %% [markdown]
# From here on **real** means: this 95% interval of the difference, taken bird by bird, excludes zero.
#
# ## Does it keep its promise?
#
# Where two methods do not differ, one difference in twenty should come out "real". Simulate it: for each pair of methods and each column keep the spreads that were *measured*, between networks, between birds, and the rest, and set the mean to zero.
# Beside our interval stands a common choice, the bootstrap that draws networks and birds again and takes percentiles.


# %%
def spreads(d):
    """Standard deviations of networks, birds and rest; the birds and rests too."""
    m, b = d.shape
    rest = d - d.mean(1, keepdims=True) - d.mean(0) + d.mean()
    noise = (rest**2).sum() / ((m - 1) * (b - 1))
    network = max(d.mean(1).var(ddof=1) - noise / b, 0) ** 0.5
    bird = max(d.mean(0).var(ddof=1) - noise / m, 0) ** 0.5
    return network, bird, noise**0.5, d.mean(0) - d.mean(), rest.ravel()


def without_difference(measured, networks, rng):
    """New scores ``(networks, birds)`` of these spreads, mean 0; birds' effects and
    the rests are drawn from the measured ones, so that they keep their shape.
    """
    network, bird, noise, birds, rests = measured
    b = len(birds)
    d = rng.normal(size=(networks, 1)) * network
    d = d + rng.choice(birds, b) * bird / max(birds.std(), 1e-9)
    return d + rng.choice(rests, (networks, b)) * noise / max(rests.std(), 1e-9)


# %%
measured = [
    spreads(a.astype(float) - b)
    for column in JUDGED
    for pair in combinations(METHODS, 2)
    for a, b in [board.shared(column, pair)]
]
print(
    f"{len(measured)} settings: {len(METHODS)} methods in pairs, {len(JUDGED)} columns"
)


# %%
def real(interval):
    return not interval.low <= 0 <= interval.high


def share_real(rule, networks, settings):
    """How many of these settings without a difference a rule calls real."""
    rng = np.random.default_rng(networks)
    drawn = (without_difference(one, networks, rng) for one in settings)
    return np.mean([real(rule(d)) for d in drawn])


def percentile(d):
    return bootstrap(d, axes=2, draws=300)


own = max(len(board.models[row, "parts: swap"]) for row in METHODS)
ask = sorted({3, 5, 8, own})
crossed = {n: share_real(crossed_interval, n, measured) for n in ask}
resampled = {n: share_real(percentile, n, measured[::3]) for n in ask}
error = {k: (0.05 * 0.95 / n) ** 0.5 for k, n in ((1, len(measured)), (3, 320))}
for n in ask:
    print(
        f"{n} networks: crossed {crossed[n]:.1%} (error {error[1]:.1%}), "
        f"percentiles {resampled[n]:.1%} (error {error[3]:.1%})"
    )

# %% [markdown]
# Once more with normal effects and few networks, which hold from none to all of the variance of the mean:

# %%
FEW, SHARES, BIRDS = 3, np.linspace(0, 1, 9), 60


def with_share(share, networks, turns, rule, seed=0):
    """Share called real where there is nothing, and ``share`` is what networks hold."""
    rng, wrong = np.random.default_rng(seed), 0
    for _ in range(turns):
        network = rng.normal(size=(networks, 1)) * (share * networks) ** 0.5
        bird = rng.normal(size=BIRDS) * ((1 - share) * BIRDS) ** 0.5
        wrong += real(rule(network + bird))
    return wrong / turns


by_share = {
    "crossed": [with_share(s, FEW, 800, crossed_interval) for s in SHARES],
    "percentiles": [with_share(s, FEW, 150, percentile) for s in SHARES],
}
of_mean = [  # parts of the variance of the mean of FEW networks: theirs, birds, rest
    (n**2 / FEW, w**2 / len(b), e**2 / FEW / len(b)) for n, w, e, b, _ in measured
]
at_measured = np.median([part[0] / max(sum(part), 1e-12) for part in of_mean])
unspread = np.mean([part[0] == 0 for part in of_mean])
print(f"networks' share in the median of the measured settings: {at_measured:.2f}")
print(f"settings in which networks show no spread of their own: {unspread:.0%}")
print({rule: f"at most {max(found):.1%}" for rule, found in by_share.items()})


# %% tags=["hide-input"]
@viz.style()
def calibration():
    figure = viz.new_picture(0.95 * viz.WIDTH, 3.0)
    left, right = figure.subplots(1, 2, sharey=True)
    for i, (name, found, k) in enumerate(
        (("crossed, t quantiles", crossed, 1), ("bootstrap percentiles", resampled, 3))
    ):
        y = [100 * found[n] for n in ask]
        look = {"color": viz.segment_colour(i), "marker": "os"[i], "label": name}
        left.errorbar(ask, y, yerr=196 * error[k], linestyle="-", **look)
        right.plot(SHARES, [100 * s for s in list(by_share.values())[i]], **look)
    left.set(xlabel="networks", title="spreads as measured", xticks=ask)
    left.set_ylabel("called real where nothing is, %")
    right.set(xlabel="networks' share of the variance", title=f"{FEW} networks")
    for ax in (left, right):
        ax.axhline(5, color=viz.QUIET, linestyle="--", linewidth=1)
        ax.set_ylim(0)
        ax.grid()
    left.legend(loc="upper right")
    return figure


# %% tags=["hide-input"]
show_figure(
    calibration(),
    alt="Left: share of differences called real although there is none, by number of "
    "networks. The crossed interval stays near or below five percent; the "
    f"bootstrap is clearly above it for {FEW} networks. Right: for {FEW} networks "
    "the bootstrap climbs steeply as networks hold more of the variance, the "
    "crossed interval does not.",
    caption="Differences called real where there are none. Dashed: the promised 5%. "
    "Left: with the spreads measured on this board, lines are 95% intervals "
    f"of the simulation. Right: {FEW} networks, by how much of the variance "
    "they hold.",
    name="board-calibration",
)

# %%
assert all(share < 0.05 + 3 * error[1] for share in crossed.values())
assert crossed[8] > 0.05 - 3 * error[1]
assert max(by_share["crossed"]) < 0.05 + 3 * (0.05 * 0.95 / 800) ** 0.5
assert max(by_share["percentiles"]) > 0.2 and resampled[3] > 0.06 > crossed[3]

# %% [markdown]
# With the fewest networks the crossed interval errs on the careful side, and the bootstrap calls too many differences real: too many already with the spreads of this board, where in some settings the networks show no spread of their own, and
# more than four times as many as promised where they hold most of the variance. A few values drawn again are never further apart than they were. The price of an honest interval is its width: with few networks a difference has to be large, or much the same on
# all of them, before this page calls it real.
#
# ## Who beats the controls?
#
# First the rows that must come out right. The planted truth, made from removal, has to win the three columns about parts, and everywhere to beat all controls that do not know where the parts are; the planted lie has to lose.

# %%
for column in JUDGED:
    assert tint("planted truth", column, board) in ("best", "better"), column
    assert (tint("planted truth", column, board) == "best") == column.startswith(
        "parts"
    )
for column in [*JUDGED[:3], "mass inside", "deletion", "insertion"]:
    assert tint("planted lie", column, board) == "worse", column
for column in ("survived", "pointing"):
    assert not board.values["planted lie", column].any()

# %% [markdown]
# The second assert is the first lesson: *only the three columns about parts tell the truth from* area. Pointing, mass inside, deletion, insertion and the falsification test ask whether a map lies in the right place, and a map that is told the
# place gets what the truth gets. They can find a map wrong, and not right about *which* part matters.

# %%
for column in JUDGED:
    print(
        f"{column:15s} truth - area: "
        f"{board.difference('planted truth', 'area', column)}"
    )

# %% [markdown]
# So which methods really beat every control, and where?

# %%
WINS = {
    c: [r for r in board.ranking(c, METHODS) if tint(r, c, board) == "best"]
    for c in JUDGED
}
for column, rows in WINS.items():
    print(f"{column:15s} {'; '.join(rows) or 'none'}")


# %%
def leaders(column, rows):
    """The best row, and those whose difference from it is not real."""
    best, *others = board.ranking(column, rows)
    return best, [r for r in others if not board.better(best, r, column)]


lead = {c: leaders(c, METHODS) for c in [*JUDGED, "mark"]}
for column, (best, level) in lead.items():
    print(f"{column:15s} {best}" + ", alone" * (not level))
    if level:
        equals = f"not told apart from it: {'; '.join(level)}"
        print(fill(equals, 88, initial_indent=" " * 16, subsequent_indent=" " * 18))

# %% [markdown]
# ## Columns that disagree
#
# If all columns measured one quality, they would put the methods in one order. Rank correlation between columns, over the methods:

# %%
MEANS = {
    c: np.array(
        [board.values[r, c].mean() * (-1 if c in FALLING else 1) for r in METHODS]
    )
    for c in JUDGED
}
agreement = np.array(
    [[spearman(MEANS[a][None], MEANS[b][None])[0] for b in JUDGED] for a in JUDGED]
)


# %% tags=["hide-input"]
@viz.style()
def agreements():
    """Columns against columns, blue where they contradict each other."""
    figure = viz.new_picture(0.62 * viz.WIDTH, 4.4)
    ax = figure.subplots()
    ax.imshow(agreement, vmin=-1, vmax=1, cmap="RdBu_r")
    names = [COLUMNS[c].name for c in JUDGED]
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right")
    ax.set_yticks(range(len(names)), names)
    for (i, j), value in np.ndenumerate(agreement):
        colour = "white" if abs(value) > 0.75 else viz.INK
        ax.text(j, i, f"{value + 0.0:.1f}", ha="center", va="center", color=colour)
    ax.tick_params(length=0)
    return figure


show_figure(
    agreements(),
    alt="Matrix of rank correlations between eight columns of the board. The three "
    "columns about parts agree closely with each other; so do, less closely, "
    "pointing, mass inside, deletion and survived; insertion stands against "
    "deletion and survived.",
    caption=f"Do the columns order the {len(METHODS)} methods alike? Rank correlation "
    "between columns, oriented so that good is good in both.",
    name="board-agreement",
)


# %%
def agree(a, b):
    return agreement[JUDGED.index(a), JUDGED.index(b)]


for a, b in combinations(JUDGED[:3], 2):
    print(f"{a} and {b}: {agree(a, b):.2f}")
assert min(agree(*pair) for pair in combinations(JUDGED[:3], 2)) > 0.9
print(f"deletion and survived: {agree('deletion', 'survived'):.2f}")
print(f"removal and survived: {agree('parts: removal', 'survived'):.2f}")
place = ("pointing", "mass inside", "deletion", "survived")
assert min(agree(*pair) for pair in combinations(place, 2)) > 0.4
assert max(agree(c, "survived") for c in JUDGED[:3]) < 0
print(f"deletion and insertion: {agree('deletion', 'insertion'):.2f}")
print(f"insertion and survived: {agree('insertion', 'survived'):.2f}")
assert agree("deletion", "insertion") < 0 and agree("insertion", "survived") < 0.3

# %% [markdown]
# Two camps. Methods that follow one truth about the parts follow the others too. Pointing, mass inside, deletion and the falsification test agree with each other, and order the methods in another way: to name a small right place is not to weigh the parts rightly.
# Nor are the three truths one. How well does a *perfect* map of removal do under the two other questions, and where does the best method stand?

# %%
for kind in JUDGED[:3]:
    best = board.ranking(kind, METHODS)[0]
    print(
        f"{kind:15s} planted truth {board.interval('planted truth', kind)}, "
        f"best method {best} {board.interval(best, kind)}"
    )
perfect = {c: board.interval("planted truth", c) for c in JUDGED[:3]}
assert perfect["parts: removal"].value == 1 and perfect["parts: swap"].high < 1
gap = board.difference("planted truth", "integrated gradients", "parts: swap")
print("under swap, truth minus integrated gradients:", gap)

# %%
FINE, SMOOTH = "integrated gradients", "Grad-CAM++, layer3"
for row in (FINE, SMOOTH):
    order = {
        c: board.ranking(c, METHODS).index(row) + 1 for c in ("deletion", "insertion")
    }
    print(f"{row}: place {order} of {len(METHODS)}")
grain = board.difference(FINE, "random", "insertion")
blobs = board.difference("smooth random", "random", "insertion")
print(f"insertion: {FINE} minus random {grain}; smooth random minus random {blobs}")
assert board.ranking("deletion", METHODS).index(FINE) < 3
assert board.ranking("insertion", METHODS).index(FINE) > 11
assert not real(grain) and real(blobs)

# %% [markdown]
# Deletion and insertion, often quoted side by side, contradict each other here. Insertion pays for smoothness: two kinds of noise know equally little, and the smooth kind is really ahead, probably because its blobs let whole patches of a picture appear.
# Integrated gradients cannot be told from noise there.
#
# ## Deletion prefers integrated gradients to the truth
#
# Here is a stronger reason not to rank methods by deletion. The planted truth is right about the parts by construction. Compare it, bird by bird, with the maps that deletion likes best:

# %%
beaten = {}
for row in board.ranking("deletion", METHODS)[:4]:
    beaten[row] = board.difference(row, "planted truth", "deletion")
    print(f"deletion: {row} minus planted truth {beaten[row]}")
under_removal = board.difference(FINE, "planted truth", "parts: removal")
print(f"removal: {FINE} minus planted truth {under_removal}")
assert beaten[FINE].high < 0 and under_removal.high < 0

# %% [markdown]
# Low is good in deletion, so integrated gradients are *really better than the truth* there, while under removal they are really worse. A likely reason, not tested here: the pixels whose blurring hurts the network most lower the curve faster than whole parts.
# Where a network is fragile against blur is a fair question, and not the question which part matters.
#
# ## Channels, and training images
#
# Two kinds of answer are not maps. A ranking of **channels** is tested by taking the first tenth of them away: how much does the class lose, and how much of the segment in the middle of the picture? Where the weights were planted by hand, the right channels are known.

# %%
ROW = {
    kind: [r for r in board.rows if r.startswith(kind)]
    for kind in ("channels", "training")
}


def others(kind, columns, chance):
    """Rows without their prefix, and their cells against one control."""
    rows, shown = board.ranking(list(columns)[0], ROW[kind]), {}
    for r, c in ((r, c) for r in rows for c in columns if (r, c) in board.values):
        i, m = board.interval(r, c), board.values[r, c].shape[0]
        verdict = board.verdict(r, c, [chance]) if r != chance else 0
        note = f"{m} network{'s' * (m > 1)}, {board.values[r, c].shape[1]} birds"
        kind_of = {1: "best", -1: "worse", 0: ""}[verdict]
        shown[r.split(": ")[1], c] = Cell(i.value, i.low, i.high, kind_of, note)
    return [r.split(": ")[1] for r in rows], shown


# %%
CHANNEL = {
    "logit ablation": Column("class", "drop of the logit"),
    "segment ablation": Column("segment", "share of it that is lost"),
    "planted channels": Column("planted", "share of planted channels found"),
}
rows, shown = others("channels", CHANNEL, "channels: random")
show_matrix(
    {"Channel rankings": rows},
    CHANNEL,
    shown,
    "A tenth of the channels of layer3 taken away. ▲: really better than random "
    "channels.",
)

# %%
weights, loud, traced = (
    f"channels: {name}"
    for name in ("Grad-CAM weights", "mean activation", "channel tracing")
)
for a, b, column in (
    (weights, loud, "logit ablation"),
    (weights, traced, "logit ablation"),
    (traced, loud, "segment ablation"),
):
    print(f"{column}: {a} minus {b}: {board.difference(a, b, column)}")
planted = [
    board.values[r, c]
    for r, c in board.values
    if c == "planted channels" and "random" not in r
]
assert all(found.min() == 1 for found in planted)

# %% [markdown]
# A list of **training images** (from the [closed-form head](09_carrot_head.ipynb)) is tested by fitting the head again without some of them: without one, without a tenth, without half (linear datamodeling score, LDS).

# %%
DATA = {
    "leave-one-out": Column("one out", "order of the effects of single images"),
    "LDS, 10% removed": Column("LDS 10%", "order of fits without a tenth"),
    "LDS, 50% removed": Column("LDS 50%", "order of fits without half"),
    "own class among the top 5": Column("own class", "share of it in the first five"),
}
rows, shown = others("training", DATA, "training images: random")
show_matrix(
    {"Training images": rows},
    DATA,
    shown,
    "Rank correlation with what fitting again does; the last column asks something "
    "else. ▲: really better than random scores.",
)

# %%
best, dual, weight = (
    f"training images: {name}" for name in ("leave-one-out", "dual view", "weight view")
)
for column in list(DATA)[:3]:
    print(
        f"{column}: leave-one-out minus weight view "
        f"{board.difference(best, weight, column)}"
    )
same = "own class among the top 5"
print(
    f"own class: weight view minus leave-one-out {board.difference(weight, best, same)}"
)
assert all(
    board.better(best, r, c) == 1 for r in (dual, weight) for c in list(DATA)[:3]
)
assert board.interval(weight, same).value > board.interval(best, same).value

# %% [markdown]
# Leave-one-out is the effect of an image itself, so it has to win the first three columns, and does. By the last column the weight view would come first: images of the own class look convincing and are not the ones that matter.


# %% [markdown]
# ## Which method for which question
#
# Each line is computed from the scores, and the assert under the table holds it.


# %%
def answer(column, rows, chance=None):
    """Best row, its score, rows not told apart, and whether it beats the controls."""
    best, level = leaders(column, rows)
    if column == "mark":
        beats = board.interval(best, column).low > 0
    else:
        beats = board.verdict(best, column, [chance] if chance else CONTROLS) == 1
    return best, board.interval(best, column), level, beats


QUESTIONS = {
    "Which parts did the network use? (removal)": answer("parts: removal", METHODS),
    "Which parts, if they were exchanged? (swap)": answer("parts: swap", METHODS),
    "Which parts, in all combinations? (Shapley)": answer("parts: Shapley", METHODS),
    "Is the place right? (survived)": answer("survived", METHODS),
    "Is the network cheating? (mark)": answer("mark", METHODS),
    "Which channels make a class? (class)": answer(
        "logit ablation", ROW["channels"][:-1], "channels: random"
    ),
    "Which channels hold a segment? (segment)": answer(
        "segment ablation", ROW["channels"][:-1], "channels: random"
    ),
    "Which training images? (LDS 50%)": answer(
        "LDS, 50% removed", ROW["training"][:-1], "training images: random"
    ),
}
assert ROW["channels"][-1].endswith("random") and ROW["training"][-1].endswith("random")


# %% tags=["hide-input"]
def told(row):
    return row.split(": ")[-1].replace("|", "\\|")


table = ["| question | best mean | not told apart from it | beats every control |"]
table.append("|---|---|---|---|")
for question, (best, mean, level, beats) in QUESTIONS.items():
    some = ", ".join(map(told, level[:2])) + f" and {len(level) - 2} more" * (
        len(level) > 2
    )
    mean = f"{told(best)}, {mean}"
    table.append(
        f"| {question} | {mean} | {some or 'none'} | {'yes' if beats else 'no'} |"
    )
Markdown("\n".join(table))

# %%
claims = {
    question.split(" (")[1][:-1]: (told(best), len(level), bool(beats))
    for question, (best, mean, level, beats) in QUESTIONS.items()
}
assert claims == {
    "removal": ("integrated gradients", 1, True),
    "swap": ("integrated gradients", 7, False),
    "Shapley": ("integrated gradients", 1, True),
    "survived": ("input x gradient", 4, False),
    "mark": ("integrated gradients", 0, True),
    "class": ("Grad-CAM weights", 3, True),
    "segment": ("channel tracing", 0, True),
    "LDS 50%": ("leave-one-out", 0, True),
}, claims

# %% [markdown]
# **Parts.** Integrated gradients come first under all three truths, and beat every control under removal and Shapley. With these networks two more things cannot be said: that they are ahead of *every* other method,
# because LayerCAM is near them on some networks and far behind on others; and that they beat the controls under swap, where a blob in the centre is too good an opponent. A rank correlation means little
# without *area* and *centre* beside it, which get about 0.65 under removal.

# %%
for control in ("area", "centre"):
    print(f"{control}: {board.interval(control, 'parts: removal')}")
    assert 0.6 < board.interval(control, "parts: removal").value < 0.7
behind = board.difference(FINE, "LayerCAM, layer3", "parts: removal")
swap = board.difference(FINE, "centre", "parts: swap")
print(f"removal, {FINE} minus LayerCAM: {behind}\nswap, {FINE} minus centre: {swap}")
each = [
    d.mean()
    for d in np.subtract(*board.shared("parts: removal", (FINE, "LayerCAM, layer3")))
]
print("removal, the same on each network:", np.round(each, 3))
assert not real(behind) and not real(swap) and max(each) > 1.5 * min(each)

# %% [markdown]
# **Place.** Input x gradient comes first in the falsification test, and four others cannot be told from it. None of them passes really more often than *area*; the birds are few here, and the intervals, which do not know that a share ends at 1, are wide. Grad-CAM is really behind *area*.

# %%
for row in ("input x gradient", FINE, "guided backpropagation", "Grad-CAM", "area"):
    print(f"{row:24s} survived {board.interval(row, 'survived')}")
assert board.better(FINE, "Grad-CAM", "survived") == 1 and not WINS["survived"]
assert board.better("Grad-CAM", "area", "survived") == -1

# %% [markdown]
# **Does the map show the network at all?** Guided backpropagation is among the first three in half of the columns and more. But when the later half of the network gets random weights (*kept, half*), so that it recognises nothing, its map stays nearly as it was:
# it finds the parts of the picture and not the reasons of the network.

# %%
GUIDED = "guided backpropagation"
for row in (GUIDED, FINE):
    print(f"{row}: {board.interval(row, 'kept at half')} kept")
top = [c for c in JUDGED if GUIDED in board.ranking(c, METHODS)[:3]]
print(f"{GUIDED} among the first three: {'; '.join(top)}")
assert len(top) >= len(JUDGED) / 2
assert board.interval(GUIDED, "kept at half").low > 0.8
assert board.interval(FINE, "kept at half").high < 0.1
kept = [r for r in METHODS if board.interval(r, "kept at half").low > 0.3]
print("lower bound of the likeness above 0.3:", "; ".join(kept))
assert not [r for r in kept if "input x" in r or r in (FINE, "Grad-CAM")]

# %% [markdown]
# **Cheating.** One network learned to look at a toadstool. A map notices when it puts more of its mass on the toadstool for that network than for honest ones; a map that ignores the network has exactly zero here. Integrated gradients are
# really ahead of every other method.

# %%
unseen = [r for r in METHODS if board.interval(r, "mark").low <= 0]
print(f"{FINE}: {board.interval(FINE, 'mark')}")
print(f"really above zero: {len(METHODS) - len(unseen)} of {len(METHODS)} methods")
assert all(board.better(FINE, r, "mark") == 1 for r in METHODS if r != FINE)

# %% [markdown]
# **Channels.** For a class, no ranking is really better than taking the channels that are loudest on this image. For a segment, channel tracing is really ahead of all others. **Training images.** Leave-one-out, by the table above.

# %%
for rival in ROW["channels"]:
    if rival != traced:
        assert board.better(traced, rival, "segment ablation") == 1, rival
assert not board.better(weights, loud, "logit ablation")

# %% [markdown]
# What so few networks cannot decide is not decided by more birds. All networks of one kind here have one architecture and one training set, and all pictures are drawn birds: the intervals speak of other networks *like these*.
#
# ## CARROT, on its own networks
#
# Region attribution by a graph over tokens needs a transformer, so it has other networks, and truth and controls measured on those.

# %%
split, removal = "CARROT region split", "CARROT region removal"
for column in ("parts: removal", "pointing", "mass inside"):
    for row in (split, removal):
        print(
            f"{column}: {row} minus edges "
            f"{board.difference(row, 'edges' + SUFFIX, column)}"
        )
        assert tint(row, column, board) not in ("best", "better")
        assert board.better(row, "edges" + SUFFIX, column) == -1
    assert not board.values[split, "survived"].any()

# %% [markdown]
# Both region maps are exact about the graph, and both are really worse than an edge filter at finding the bird and its parts. They are exact about *tokens*; [the chapter on the head](09_carrot_head.ipynb) draws where the evidence of a token lies in the picture.
#
# ## A slice, live
#
# The numbers above are read from a file. Here are 24 birds (fewer for the expensive columns), four methods and a control, computed now by the code you have, and compared with the file, as are the small maps of the matrix.

# %%
LIVE = ["|gradient|", "input x gradient", "Grad-CAM", "LayerCAM, layer3"]
birds = held_out(model, 24)
methods = cnn_methods()
maps = {name: methods[name](model, birds.images, birds.targets).cpu() for name in LIVE}
maps["edges"] = control_maps(birds)["edges"]
live = {
    name: map_scores(model, birds, m, curves=6, tested=2) for name, m in maps.items()
}

# %%
gaps = []
for name, scored in live.items():
    for column, scores in scored.items():
        known = board.of("aviary-resnet-0", len(scores.values)).values[name, column][0]
        gaps += list(np.abs(scores.values.numpy() - known))
gaps = np.array(gaps)
apart = (gaps > 1e-3).sum()
print(
    f"{len(gaps)} scores, {apart} off by more than 0.001 (largest gap {gaps.max():.1e})"
)
# another processor rounds differently, and a rank or a largest pixel may change hands
assert apart <= 0.01 * len(gaps)
for name in LIVE:
    ours = maps[name][0] / maps[name][0].abs().max()
    assert np.abs(ours.numpy() - SMALL[f"bird: {name}"]).mean() < 0.01, name

# %% [markdown]
# ## A failure on purpose
#
# CARROT's maps look far worse than those of Grad-CAM. By how much?

# %%
try:
    board.difference(split, "Grad-CAM", "parts: removal")
except ValueError as error:
    print(error)
    assert "different models" in str(error)

# %% [markdown]
# Part of any difference would be that of the networks, and no number of birds tells which part.
#
# ## Bring your own
#
# A method is a function from a network, images and classes to maps. `score` runs it through the columns that cost little and puts it beside the stored rows for the same network and birds. Two candidates. The first blurs gradient times input in three degrees and
# adds the results. The second is a lie: it colours whatever differs from the mean colour of the picture, and never calls the network.


# %%
def coarse_to_fine(model, images, targets):
    """Gradient times input, summed over three degrees of blur of the product."""
    product, total = methods["input x gradient"](model, images, targets), 0
    for side in (1, 3, 9):
        blurred = torch.nn.functional.avg_pool2d(product[:, None], side, 1, side // 2)
        total = total + blurred[:, 0]
    return total


def colourful(model, images, targets):
    """How far each pixel is from the mean colour of its picture."""
    return (images - images.mean((2, 3), keepdim=True)).abs().sum(1)


OWN = {"coarse to fine": coarse_to_fine, "colourful": colourful}
placed = {name: score(one, model, name, birds) for name, one in OWN.items()}

# %% tags=["hide-input"]
beside = Scoreboard(
    *(
        {k: v for one in placed.values() for k, v in getattr(one, field).items()}
        for field in ("values", "failures", "models")
    )
)
RIVALS = [
    "input x gradient",
    "integrated gradients",
    "Grad-CAM",
    "guided backpropagation",
]
few = [*OWN, *RIVALS, *CONTROLS]
show_matrix(
    {"Yours": list(OWN), "From the board": RIVALS, "Controls": list(CONTROLS)},
    {c: COLUMNS[c] for c in JUDGED + ["kept at half", "kept at all"]},
    cells(few, beside),
    "One network (aviary-resnet-0), its first 24 birds: intervals are about other "
    "birds and this network alone.",
)

# %%
for name in OWN:
    order = beside.ranking("parts: removal", [*METHODS, name])
    print(
        f"{name}: place {order.index(name) + 1} of {len(order)} under removal, "
        f"kept at half {beside.interval(name, 'kept at half')}"
    )
lie = beside.interval("colourful", "kept at half")
assert lie.low > 0.999 and beside.interval("coarse to fine", "kept at half").high < 0.5
assert beside.better("colourful", "random", "mass inside") == 1
assert beside.ranking("parts: removal", [*METHODS, "colourful"])[-1] != "colourful"


# %% [markdown]
# Under removal the lie is ahead of some methods of the board, and it puts more mass on the parts than noise does. The column *kept, half* finds it out: a map that never asks the network stays the same when the network loses its weights.
# For your own network load it in place of `model`. If it is not one of the board's (its truth is compared, and not its name), the five controls alone stand beside your row. `make scores` scores everything anew.
#
# ## Exercises
#
# ```{exercise} Predict
# :label: ex-board-predict
# Before you look: which of the four controls that do not know the parts has the best insertion score, and which the worst? Put both into `guess`.
# ```

# %%
BLIND = [control for control in CONTROLS if control != "area"]
guess = None  # (best, worst), two of BLIND


def check_guess(guess):
    """Compares with the order of the board."""
    if guess is None:
        return f"no answer yet: choose two of {', '.join(BLIND)}"
    order = board.ranking("insertion", BLIND)
    if tuple(guess) == (order[0], order[-1]):
        return "right"
    return "no: what appears first when a blob, an outline or dust decides the order?"


print(check_guess(guess))

# %% [markdown]
# ````{solution} ex-board-predict
# :class: dropdown
# The blob in the centre shows the whole bird early. Independent noise shows dust everywhere and no shape until most of the picture is there.
# ````

# %%
assert check_guess(("centre", "random")) == "right"

# %% [markdown]
# ```{exercise} Implement
# :label: ex-board-implement
# Write `wins(column, rows)`: for how many pairs of methods is the difference real? Use it on `parts: removal`. How many of them would you expect to come out "real" if no method differed from any other?
# ```


# %%
def my_wins(column, rows):
    return None  # yours: a number of pairs


# %%
def check_wins(wins):
    """Compares with the verdicts of the board, pair by pair, in two columns."""
    pairs = list(combinations(METHODS, 2))
    for column in ("parts: removal", "deletion"):
        got = wins(column, METHODS)
        if got is None:
            return print("no answer yet")
        want = sum(board.better(a, b, column) != 0 for a, b in pairs)
        assert 0 < want < len(pairs)
        hint = "once for each pair whose interval lies on one side of zero"
        print(
            f"{column}: {got} of {len(pairs)},", "yes" if got == want else f"no: {hint}"
        )
        if got != want:
            return False
    print(f"by chance: up to {0.05 * len(pairs):.0f}")
    return True


check_wins(my_wins)


# %% [markdown]
# ```{solution-start} ex-board-implement
# :class: dropdown
# ```


# %%
def wins(column, rows):
    return sum(real(board.difference(a, b, column)) for a, b in combinations(rows, 2))


assert check_wins(wins)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Break it
# :label: ex-board-break
# Treat the birds of all networks as independent birds of one network: `crossed_interval(d.reshape(1, -1))`. How many more differences become "real", and what is wrong with them?
# ```

# %% [markdown]
# ```{solution-start} ex-board-break
# :class: dropdown
# ```


# %%
def pooled(column, rows):
    pairs = (board.shared(column, pair) for pair in combinations(rows, 2))
    return sum(
        real(crossed_interval((a.astype(float) - b).reshape(1, -1))) for a, b in pairs
    )


honest, fooled = wins("parts: swap", METHODS), pooled("parts: swap", METHODS)
print(f"{honest} real differences, {fooled} when networks are not counted as a sample")
assert fooled > 1.5 * honest

# %% [markdown]
# They hold for these networks and say nothing about another one: the spread between networks, which is larger than the spread between birds, was left out.
#
# ```{solution-end}
# ```
#
# **In this notebook we have**
#
# - *read* one matrix in which a colour is a difference that would be expected again on other networks, and seen columns contradict each other;
# - *decided* what to use: integrated gradients for parts and for cheating, channel tracing for the channels of a segment, leave-one-out for training images; and found a method that does well in most columns and does not show the network;
# - *placed* a method of our own, and caught a lie.
#
# Next: [what the words mean](../book/notation.md), or back to the [beginning](00_aviary.ipynb) with a network of your own.
