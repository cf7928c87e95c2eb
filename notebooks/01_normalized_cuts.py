# %% [markdown]
# # Normalized cuts
#
# **A few eigenvectors of one matrix hold the segments of a photograph, and their eigenvalues bound how good a cut can be. They do not say whether the same
# segments would be found again; that has to be tried.**

# %% [markdown] tags=["remove-cell"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ctrace-book/ctrace/blob/main/notebooks/01_normalized_cuts.ipynb)

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
# - **build** a graph of six nodes, cut it in every possible way, and see one eigenvector find the best;
# - **cut** real photographs into segments, with three lines of `ctrace`;
# - **judge** a graph before you trust its segments: bandwidth, eigengap, the doctor.
#
# You should know what an eigenvector is and how to index a tensor. The letters are those of [the notation](../book/notation.md). Eigenvectors are counted from 1,
# segments from 0, as in the code. The last cell prints the run time.

# %% tags=["hide-input"]
import itertools
import math
import textwrap
import time
import warnings

import ctrace
import numpy as np
import torch
from ctrace import (
    Graph,
    Ncut,
    PrecomputedGraph,
    bandwidth,
    diagnose,
    filter_bank,
    kway_ncut,
    load_photo,
    ncut_eigenvectors,
    viz,
)
from ctrace.viz import touch
from ctrace.viz.gallery import Gallery, show_figure
from ctrace.viz.paint import coloured_segments
from einops import rearrange
from scipy.optimize import linear_sum_assignment
from skimage.color import label2rgb
from torch.nn.functional import one_hot, scaled_dot_product_attention

# %% tags=["hide-input"]
started = time.perf_counter()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
version = torch.__version__.split("+")[0]
print(f"torch {version} on {device}; no model, features from a filter bank")

# %% [markdown]
# ## The idea
#
# Nobody has told the computer what a suit is. Below, one eigenvector of a matrix gives every point of a photograph a number, and its sign separates the suit from
# the rest. **Which matrix knows where the suit ends?**


# %% tags=["hide-input"]
def show_cut(image, segments, U, lam, first=2, last=6, columns=4):
    """Photograph, segments, their mean colours, eigenvectors number first to last."""
    h, w = segments.shape
    numbers = range(first, last + 1)
    labels = viz.enlarged(segments, image)
    panels = [
        image,
        viz.Panel(image, segments=segments),
        label2rgb(labels, viz.as_rgb(image), kind="avg", bg_label=-1),
        *(rearrange(U[:, j - 1], "(h w) -> h w", h=h, w=w) for j in numbers),
    ]
    titles = [
        "photograph",
        f"{len(segments.unique())} segments",
        "mean colour of each",
        *(rf"eigenvector {j}, $\lambda$ = {lam[j - 1]:.3f}" for j in numbers),
    ]
    return viz.show_grid(panels, titles, columns, unit="entry of the eigenvector")


# %% tags=["hide-input"]
astronaut = load_photo("astronaut")
bank = filter_bank(astronaut, grid=60).to(device)  # 60 x 60 points, 19 channels
solver = Ncut(n_eig=11)
U = solver.fit_transform(bank.features)  # (n, 11)
halves = kway_ncut(U, n_clusters=2).argmax(1)
halves = rearrange(halves, "(h w) -> h w", h=bank.grid_hw[0])
show_figure(
    show_cut(astronaut, halves, U, solver.eigval, last=2),
    name="cut-idea",
    alt="An astronaut in an orange suit; her suit as segment 1, everything else as "
    "segment 0; an eigenvector that is negative on the suit.",
    caption="One eigenvector, right, is below zero on the suit and above zero "
    "elsewhere. It is enough for a cut into two segments.",
)

# %% [markdown]
# Are the points of that segment really the orange ones? In the colour space L\*a\*b\*, orange is large a\* and large b\*.

# %%
inside = rearrange(halves == 1, "h w -> (h w)")
# L*, a*, b*, standardised: (n, 3)
lab = rearrange(bank.zscores()[0], "h w c -> (h w) c")[:, :3]
print("mean L*, a*, b* inside the segment ", [f"{v:+.2f}" for v in lab[inside].mean(0)])
print(
    "mean L*, a*, b* outside the segment", [f"{v:+.2f}" for v in lab[~inside].mean(0)]
)
assert (lab[inside].mean(0) - lab[~inside].mean(0))[1:].min() > 1.5
assert ((U[:, 1] < 0) == inside).float().mean() > 0.95

# %% [markdown]
# They are: inside, a\* and b\* lie more than one and a half standard deviations above the rest. The matrix joins every two points by a weight that says how alike
# their features $x_i$ are,
#
# $$
# \begin{aligned}
# W_{ij} &= \exp\!\left(-\frac{\lVert x_i - x_j\rVert^2}{2\sigma^2}\right), \\
# d_i &= \textstyle\sum_j W_{ij} .
# \end{aligned}
# $$ (affinity)
#
# The weight is 1 between a point and its twin and falls towards 0 as the two grow apart; how fast it falls is the bandwidth $\sigma$. (Unless told otherwise
# `ctrace` gives each point a bandwidth of its own, its *local scale*; a later section compares the two.) To segment the picture is to cut the graph where the
# weights are small. The cheapest cut may only chip off one odd point, so {cite:t}`shi2000` divide its cost by what each side owns:
#
# $$
# \begin{aligned}
# \operatorname{Ncut}(A, \bar A) &= \frac{\operatorname{cut}(A, \bar A)}{\operatorname{vol}(A)} \\
# &+ \frac{\operatorname{cut}(A, \bar A)}{\operatorname{vol}(\bar A)},
# \end{aligned}
# $$ (ncut)
#
# where the cut is the weight that is severed and the volume of a side is the sum of its degrees $d_i$. Cutting one point out of a group is now expensive, since
# most of its volume is severed; a point far from all others still costs next to nothing. There are too many cuts to try them all, but one eigenvector comes close
# to the best.
#
# ## By hand, on six nodes
#
# Six nodes, eight edges. Every node is perfectly like itself, so the diagonal of $W$ is 1. **Where would you cut?**

# %%
edges = {
    "ab": 0.9,
    "ac": 0.8,
    "bc": 0.7,
    "cd": 0.4,
    "bd": 0.2,
    "de": 0.9,
    "df": 0.25,
    "ef": 0.25,
}
W = torch.eye(6, dtype=torch.float64)
for (first, second), weight in edges.items():
    i, j = "abcdef".index(first), "abcdef".index(second)
    W[i, j] = W[j, i] = weight

# %% tags=["hide-input"]
places = np.array(
    [(-1.5, 0.6), (-0.75, -0.55), (-0.3, 0.65), (0.75, 0.1), (1.45, -0.6), (1.75, 0.65)]
)


def draw_graph(sides=None, title=""):
    """The six nodes, in one colour or those of two sides; severed edges dashed."""
    with viz.style():
        figure = viz.new_picture(5.2, 2.8)
        ax = figure.subplots()
        for i, j in W.triu(1).nonzero().tolist():
            severed = sides is not None and sides[i] != sides[j]
            look = {"color": viz.POSITIVE if severed else viz.QUIET, "zorder": 1}
            width = 0.6 + 2.5 * float(W[i, j] / W.max())
            dash = "--" if severed else "-"
            ax.plot(*places[[i, j]].T, linewidth=width, linestyle=dash, **look)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            middle, centred = places[[i, j]].mean(0), {"ha": "center", "va": "center"}
            ax.text(*middle, f"{W[i, j]:g}", bbox=box, **centred)
        for i, name in enumerate("abcdef"):
            colour = viz.QUIET if sides is None else viz.segment_colour(int(sides[i]))
            ax.scatter(*places[i], s=420, color=colour, zorder=2)
            ax.text(*places[i], name, color="white", weight="bold", **centred)
        ax.margins(0.1)
        ax.set_axis_off()
        ax.set_title(title)
    return figure


# %% tags=["hide-input"]
show_figure(
    draw_graph(),
    name="six-nodes",
    alt="Six nodes a to f and eight edges with their weights: a triangle a b c, a "
    "triangle d e f with two light edges, and two edges between them.",
    caption="The graph, with its weights.",
)

# %% [markdown]
# From the weights come the degrees `d`, and from both the normalised affinity `S`: every weight divided by the square roots of the degrees of its two nodes.

# %%
d = W.sum(1)  # (n,)
S = W / (d[:, None] * d).sqrt()  # (n, n), the same as D^-1/2 W D^-1/2
print("degrees", d.tolist())
assert torch.equal(S, S.T)

# %% [markdown]
# **How many ways are there to cut six nodes in two?** Node `a` is on one side; each of the other five may join it or not; all five joining is no cut. That leaves
# $2^5 - 1$, and we try them all.

# %%
codes = torch.arange(1, 32)  # which of b..f leave a's side
X = ((codes[:, None] >> torch.arange(5)) & 1).double()  # (31, 5)
X = torch.cat([torch.zeros(31, 1).double(), X], 1)  # (31, n)
cut = ((X @ W) * (1 - X)).sum(1)  # (31,)
volume = X @ d  # (31,)
ncut = cut / volume + cut / (d.sum() - volume)  # (31,)
assert len(X) == len(X.unique(dim=0)) == 31

# %% tags=["hide-input"]
best, cheapest = int(ncut.argmin()), int(cut.argmin())
others = [i for i in range(31) if i not in (best, cheapest)]
kinds = {
    "29 other cuts": others,
    "severs least: f alone": [cheapest],
    "least Ncut: abc | def": [best],
}
points = {kind: (cut[rows], ncut[rows]) for kind, rows in kinds.items()}
figure = viz.show_scatter(points, "weight severed, cut(A, B)", "Ncut(A, B)")
show_figure(
    figure,
    name="all-cuts",
    alt="31 cuts as points, weight severed against Ncut. The cut that severs least is "
    "not the lowest; abc against def is.",
    caption="All 31 ways to cut the graph. The cut that severs the least weight, "
    "square, takes `f` alone. The best Ncut, "
    "triangle, severs a little more and is far lower.",
)

# %% [markdown]
# What exactly does each criterion choose?

# %%
for name, winner in (("least cut ", cheapest), ("least Ncut", best)):
    side = "".join("abcdef"[i] for i in X[winner].nonzero().flatten())
    severed = f"severs {cut[winner]:.2f}, Ncut {ncut[winner]:.4f}"
    print(f"{name}: {side:>3} | the rest, {severed}")
assert X[cheapest].tolist() == [0, 0, 0, 0, 0, 1]
assert X[best].tolist() == [0, 0, 0, 1, 1, 1]
assert ncut[cheapest] > 2 * ncut[best]

# %% [markdown]
# The plain cut chips off `f`. The normalized cut separates the two groups, at less than half the Ncut. For the 3,600 points of the photograph there would be
# $2^{3599} - 1$ cuts to try. **What do the eigenvectors of `S` know about the best one?**

# %%
lam, vectors = torch.linalg.eigh(S)
lam, vectors = lam.flip(0), vectors.flip(1)  # descending: (n,), (n, n)
print("eigenvalues       ", [f"{v:.3f}" for v in lam])
print("first eigenvector ", [f"{v:+.3f}" for v in vectors[:, 0] * vectors[0, 0].sign()])
print("second eigenvector", [f"{v:+.3f}" for v in vectors[:, 1] * vectors[0, 1].sign()])

# %% [markdown]
# The first has one sign throughout and the eigenvalue 1; it is $\sqrt{d}$ scaled to length 1, as in every connected graph, and says nothing about cuts. The second
# is positive on `a`, `b`, `c` and negative on `d`, `e`, `f`. Its sign is the best of the 31 cuts.

# %%
assert abs(lam[0] - 1) < 1e-12
assert torch.allclose(vectors[:, 0].abs(), (d / d.sum()).sqrt(), atol=1e-12)
by_sign = (vectors[:, 1].sign() != vectors[0, 1].sign()).double()  # (n,), 0 on a's side
assert torch.equal(by_sign, X[best])

# %% tags=["hide-input"]
inside_volume = d[by_sign == 0].sum(), d[by_sign == 1].sum()
parts = " + ".join(f"{cut[best]:.1f} / {volume:.1f}" for volume in inside_volume)
show_figure(
    draw_graph(by_sign, f"Ncut = {parts} = {ncut[best]:.3f}"),
    name="six-nodes-cut",
    alt="The six nodes in two colours, a b c and d e f, with the two edges between "
    "them dashed, and the Ncut worked out above.",
    caption="The sign of the second eigenvector, as colour. The two dashed edges are "
    "severed; over them, the weight severed by the volume of each side.",
)

# %% [markdown]
# The eigenvalue gives a bound before any cut is made. No cut into two has a smaller Ncut than $1 - \lambda_2$, since the eigenvector solves the same problem
# without the demand that every node takes a side.

# %%
print(f"1 - lam_2 = {1 - lam[1]:.4f}  <=  best Ncut = {ncut[best]:.4f}")
assert 1 - lam[1] <= ncut.min()

# %% [markdown]
# ### The random walk
#
# Divide each row of `W` by its degree and it holds probabilities: where a walker goes next {cite:p}`meila2001`. **How often does a walker, in the long run,
# step out of the side it is on?** For each side that is the cut over its volume, and Ncut is the sum of the two.

# %%
walk = W / d[:, None]  # (n, n), rows sum to 1
out = 1 - X[best]
escape = [float((d * side) @ walk @ (1 - side) / (d @ side)) for side in (X[best], out)]
leaves = f"leaves def: {escape[0]:.4f}, leaves abc: {escape[1]:.4f}"
print(f"{leaves}, together {sum(escape):.4f}")
assert abs(sum(escape) - ncut[best]) < 1e-12

# %% [markdown]
# So a good segment is one that a walker seldom leaves.
#
# ## The same from `ctrace`
#
# A `Graph` is made from features, a `PrecomputedGraph` from weights. Both go into `ncut_eigenvectors`. Signs are arbitrary, so ours are aligned before the
# comparison.

# %%
graph = PrecomputedGraph(W)
U_six, spectrum = ncut_eigenvectors(graph, n_eig=2)  # (n, 2)
aligned = vectors[:, :2] * (vectors[:, :2] * U_six).sum(0).sign()
print(f"largest difference {float((U_six - aligned).abs().max()):.1e}")
print(f"eigengap at 2: {spectrum.eigengap:.3f}")
assert torch.allclose(U_six, aligned, atol=1e-12, rtol=0)
assert torch.allclose(spectrum.eigval, lam[:2], atol=1e-12, rtol=0)

# %% [markdown]
# ## More than two segments: turn the eigenvectors
#
# A sign gives two segments. For $k$ segments, {cite:t}`yu2003` take $k$ eigenvectors, scale every row to length 1, and look for the rotation $R$ that brings the
# rows closest to the axes: they alternate between assigning each row to its largest entry and turning $R$ towards that assignment, until nothing moves. Then the largest entry
# of a row of $Z = UR$ names its segment. ({cite:t}`ng2002` run k-means on the rows instead; {cite:t}`vonluxburg2007` compares.) With $k = 2$ the rows are points on a circle.
# **What will the rotation do to them?**

# %%
Z, R = kway_ncut(U_six, return_rotation=True)  # scores (n, 2), rotation (2, 2)
segments = Z.argmax(1)
Y = ctrace.cut.kway.row_normalize(U_six)
with viz.style():
    figure = viz.new_picture(7, 3.5)
    axes = figure.subplots(1, 2)
    turn = np.linspace(0, 2 * np.pi, 200)
    for ax, rows, title in zip(axes, (Y, Y @ R), ("rows of $Y$", "rows of $Y R$")):
        ax.plot(np.cos(turn), np.sin(turn), color=viz.QUIET, linewidth=0.7)
        ax.axhline(0, color=viz.QUIET, linewidth=0.7)
        ax.axvline(0, color=viz.QUIET, linewidth=0.7)
        for name, row, segment in zip("abcdef", rows, segments):
            ax.plot(*row, "o", color=viz.segment_colour(int(segment)), zorder=3)
            ax.text(*(1.15 * row), name, weight="bold", ha="center", va="center")
        ax.set(title=title, xlabel="first column", ylabel="second column")
        ax.set_aspect("equal")
        ax.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
show_figure(
    figure,
    name="rotation",
    alt="Six points on a circle, two groups at an angle; after the rotation each lies "
    "at an axis.",
    caption="Rows of two eigenvectors on the unit circle. Left, as they come. Right, "
    "turned: each "
    "group lies along its own axis, and the larger entry names the segment.",
)
assert torch.equal(segments.double(), X[best])
assert torch.allclose(R.T @ R, torch.eye(2).double(), atol=1e-12)

# %% [markdown]
# It turns them as a rigid whole, and the larger entry repeats our best cut.
#
# How good can $k$ segments be? Call the weight that stays inside a segment, over the segment's volume, its **association**. Ncut is $k$ minus the sum of
# the associations. Write the assignment as a one-hot matrix $X$, $(n, k)$, and scale its columns, $U = D^{1/2} X (X^\top D X)^{-1/2}$: they are orthonormal, and
#
# $$
# \begin{aligned}
# \operatorname{Ncut}_k &= k - \operatorname{tr}\!\left(U^\top S\, U\right) \\
# &\ge k - (\lambda_1 + \dots + \lambda_k) .
# \end{aligned}
# $$ (trace)
#
# The best $X$ takes a search over all assignments. The best $U$, with orthonormal columns and nothing else asked of it, is an eigenvalue problem, and its value
# is the bound. **How close does the rotation come to the best of all partitions?** With six nodes we can try them all again.


# %%
def associations(membership):
    """Association of each column of ``(..., n, k)``."""
    stays = (membership * (W @ membership)).sum(-2)
    return stays / (membership * (d[:, None] * membership)).sum(-2)


sides = one_hot(X[best].long(), 2).double()  # (n, 2)
U_hard = d.sqrt()[:, None] * sides / (d @ sides).sqrt()
print(f"tr(U' S U) = {torch.trace(U_hard.T @ S @ U_hard):.4f} for abc | def")
assert abs(2 - torch.trace(U_hard.T @ S @ U_hard) - ncut[best]) < 1e-12
assert abs(associations(sides).sum() - torch.trace(U_hard.T @ S @ U_hard)) < 1e-12

# %%
for k in (2, 3, 4, 5):
    labels = torch.cartesian_prod(*[torch.arange(k)] * 6)  # (k^6, n)
    onehot = one_hot(labels, k).double()
    sums = associations(onehot[(onehot.sum(1) > 0).all(1)]).sum(1)
    rotated = one_hot(kway_ncut(vectors[:, :k]).argmax(1), k).double()  # (n, k)
    mine, partitions = associations(rotated).sum(), len(sums) // math.factorial(k)
    found = f"rotation {mine:.4f}, best of {partitions} partitions {sums.max():.4f}"
    print(f"k = {k}: {found}, bound {lam[:k].sum():.4f}")
    assert sums.max() <= lam[:k].sum() and mine <= sums.max() + 1e-12
    assert (mine > sums.max() - 1e-12) == (k < 5)

# %% [markdown]
# The bound holds. For $k$ = 2, 3 and 4 the rotation finds the best segments of all; at $k = 5$ it falls a little short: it has no guarantee.
#
# The *soft* segments $D^{-1/2} z_j$, not yet rounded to labels, should reach the bound. **Do their associations add up to the eigenvalues?**

# %%
for k in (2, 3, 4, 5):
    soft = associations(kway_ncut(vectors[:, :k]) / d.sqrt()[:, None])  # (k,)
    each = ", ".join(f"{a:.3f}" for a in soft)
    print(f"k = {k}: soft associations {each} add up to {soft.sum():.4f}")
    assert abs(soft.sum() - lam[:k].sum()) < 1e-12

# %% [markdown]
# They do, to the twelfth digit: a rotation leaves the trace of {eq}`trace` as it is. What is lost is lost by rounding to labels.
#
# ## Real photographs
#
# In a photograph a point is a cell of a grid, and its features come from a filter bank. Every channel has a name that a reader understands, which will matter
# when we ask later *why* a segment holds together.

# %%
print(f"{bank.features.shape[0]} points, {bank.features.shape[1]} channels")
print(textwrap.fill(", ".join(bank.names), 94))
assert len(bank.names) == bank.features.shape[1] and bank.features.shape[0] == 60 * 60

# %% tags=["hide-input"]
shown = [
    "L* lightness",
    "a* green-red",
    "b* blue-yellow",
    "vertical texture 8 px",
    "horizontal texture 4 px",
    "contrast 24 px",
    "position x",
    "position y",
]
maps = [bank.zscores()[0, :, :, bank.index(name)] for name in shown]
show_figure(
    viz.show_grid(maps, shown, unit="standard deviations"),
    name="named-channels",
    alt="Eight channels of the astronaut photograph as maps: lightness, two colours, "
    "two textures, contrast and two positions.",
    caption="Eight of the channels, each in its own standard deviations. Red is above "
    "the mean, blue below.",
)

# %% [markdown]
# Three lines lead from a photograph to its segments:

# %%
features = filter_bank(astronaut, grid=60).to(device).features  # (n, c)
three = Ncut(n_eig=11).fit_transform(features)  # (n, k)
segments = kway_ncut(three, n_clusters=6).argmax(1)  # (n,)

# %%
print(f"points in each segment: {segments.bincount().tolist()}")
assert torch.allclose(three, U, atol=1e-4) and len(segments.unique()) == 6

# %% [markdown]
# Here are the eigenvectors of the second line. **Which of them would you cut along?**

# %% tags=["hide-input"]
h, w = bank.grid_hw
titles = [
    rf"eigenvector {j + 1}   $\lambda$ = {solver.eigval[j]:.4f}" for j in range(8)
]
show_figure(
    viz.show_grid(
        rearrange(U[:, :8], "(h w) k -> k h w", h=h, w=w), titles, unit="entry"
    ),
    name="photo-eigenvectors",
    alt="Eight eigenvectors as maps. The first is nearly flat; the others light up "
    "the suit, the backdrop, the black helmet and parts of them.",
    caption="The first eight eigenvectors of the astronaut.",
)

# %%
first = U[:, 0] / solver.graph.degree.sqrt()
print(f"first eigenvector over sqrt(degree): {first.min():.6f} to {first.max():.6f}")
assert (first.max() - first.min()) / first.mean() < 1e-3
assert torch.allclose(U.T @ U, torch.eye(11, device=device), atol=1e-4)
assert (solver.eigval.diff() <= 0).all()

# %% [markdown]
# The first is flat once the square root of the degree is taken out, as it was on six nodes. Each of the others shows several things at once, and no single one is
# *the* helmet. That is why we turn them before we cut.
#
# Now the same three lines for eight photographs, with the same settings for all; only the number of segments was chosen by eye, which is judged further down.

# %%
wanted = {
    "astronaut": 6,
    "chelsea": 10,
    "coffee": 8,
    "hopper": 6,
    "motorcycle": 6,
    "rocket": 6,
    "china": 8,
    "flower": 6,
}  # the last two come with scikit-learn
wanted = {name: k for name, k in wanted.items() if name in ctrace.photo_names()}
banks = {name: filter_bank(load_photo(name), grid=60).to(device) for name in wanted}
solvers = {name: Ncut(n_eig=11) for name in wanted}
eigvecs = {
    name: solvers[name].fit_transform(bank.features) for name, bank in banks.items()
}
cuts = {
    name: rearrange(
        kway_ncut(eigvecs[name], k).argmax(1), "(h w) -> h w", h=banks[name].grid_hw[0]
    )
    for name, k in wanted.items()
}

# %% [markdown]
# **Do the segments follow what is in the picture?** We compare them with themselves turned by 180 degrees: the same shapes and sizes, in the wrong places. How
# much of the colour differences does each explain?


# %%
def explained(values, segments):
    """Share of the variance of ``values (n, c)`` that lies between segments."""
    onehot = rearrange(one_hot(segments), "h w k -> (h w) k").to(values)
    size = onehot.sum(0).clamp_min(1)
    between = onehot.T @ values / size[:, None] - values.mean(0)  # (k, c)
    return float(
        (size[:, None] * between**2).sum() / ((values - values.mean(0)) ** 2).sum()
    )


shares = {}
for name, segments in cuts.items():
    lab = rearrange(banks[name].zscores()[0], "h w c -> (h w) c")[:, :3]
    shares[name] = explained(lab, segments), explained(lab, segments.flip(0, 1))
    print(
        f"{name:10s} in place {shares[name][0]:.2f}   turned round "
        f"{shares[name][1]:.2f}"
    )
    assert shares[name][0] > shares[name][1] + 0.1

# %% tags=["hide-input"]
sights = {
    "astronaut": "Suit; helmet, table; three pieces of backdrop; the rest with face.",
    "chelsea": "Eyes with stripes of the brow; nose and cheeks; patches behind.",
    "coffee": "White rim, dark cup, red saucer; the coffee with wood of its colour.",
    "hopper": "The face; uniform and backdrop, each halved; the rest with the flag.",
    "motorcycle": "Red tank and box; white board; floor; engine with the garage.",
    "rocket": "Rocket and lit ground; a sky without edges, in several pieces.",
    "china": "The tower; trees on both sides; a sky without edges, in several pieces.",
    "flower": "The dahlia; blurred leaves in five patches.",
}

# %% tags=["hide-input"]
gallery = Gallery("cut-photographs")
for name, segments in cuts.items():
    figure = show_cut(load_photo(name), segments, eigvecs[name], solvers[name].eigval)
    caption = (
        f"**{name}**, $k$ = {wanted[name]}. {sights[name]} The segments explain "
        f"{shares[name][0]:.0%} of the colour differences."
    )
    gallery.add(
        name,
        figure,
        f"The photograph {name}, its {wanted[name]} segments, their mean colours, "
        f"five eigenvectors. {sights[name]}",
        caption,
    )
gallery.show()

# %% [markdown]
# Every segmentation explains at least 10 percentage points more of the colour than itself turned round. Look at the failures too: the even skies of the rocket
# and of the pagoda are cut although no edge is there.
#
# ## Would the same segments be found again?
#
# A cut always returns segments. If they belong to the picture, they should survive a small disturbance. We add normal noise to every feature, so strong that it
# moves two points apart by as much as a point is from its seventh neighbour (the median over points), and cut again with the same $k$. How far does the span of
# the $k$ eigenvectors turn? **Cosine 1 means that it stayed, 0 that a direction was lost.** And how many points keep their segment? All cuts so far used local
# scales; beside them we try one bandwidth for the whole picture, the median distance between points. **Which of the eight will hold?**


# %%
def disturbed(features):
    """Noise that moves two points apart by the median distance to a 7th neighbour."""
    near = 2**0.5 * bandwidth(features, "local").median()
    normal = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    return features + near / (2 * features.shape[1]) ** 0.5 * normal.to(features)


def matched(labels, to, k):
    """The same segments under the numbers of `to` that they overlap most."""
    overlap = one_hot(labels, k).T.float() @ one_hot(to, k).float()
    mine, theirs = linear_sum_assignment(overlap.cpu(), maximize=True)
    return torch.as_tensor(theirs, device=labels.device)[labels]


# %%
rules = {"local scales": "local", "median distance": "median"}
once, twice, kept_span, kept_points = {}, {}, {}, {}
for (name, k), (says, rule) in itertools.product(wanted.items(), rules.items()):
    x, key = banks[name].features, (name, says)
    solve = Ncut(k, sigma=rule).fit_transform
    known = eigvecs[name][:, :k] if rule == "local" else solve(x)
    spans = known, solve(disturbed(x))
    once[key], again = (kway_ncut(span).argmax(1) for span in spans)
    twice[key] = matched(again, once[key], k)
    kept_span[key] = float(torch.linalg.svdvals(spans[0].T @ spans[1]).min())
    kept_points[key] = float((once[key] == twice[key]).float().mean())

# %% tags=["hide-input"]
panels = {
    title: {name: [[values[name, says]] for says in rules] for name in wanted}
    for title, values in (
        ("cosine of the span", kept_span),
        ("points that keep their segment", kept_points),
    )
}
show_figure(
    viz.show_intervals(panels, list(rules), "1: nothing changed", reference=1.0),
    name="found-again",
    alt="Two panels with a row for each of eight photographs. With the median distance "
    "all points lie near 1; with local scales the cosines are scattered below 0.7 and "
    "between 60 and 85 percent of the points keep their segment.",
    caption="What is left of eight segmentations when the features are disturbed. "
    "Left, "
    "the cosine of the span of the $k$ eigenvectors; right, the share of points that "
    "keep their segment.",
)
for says in rules:
    low, high = (
        [pick(values[name, says] for name in wanted) for pick in (min, max)]
        for values in (kept_span, kept_points)
    )
    print(f"{says:15} cosine {low[0]:.2f} to {low[1]:.2f}", end=", ")
    print(f"points {high[0]:.0%} to {high[1]:.0%}")

# %%
for name in wanted:
    assert (
        kept_span[name, "local scales"]
        < 0.8
        < 0.95
        < kept_span[name, "median distance"]
    )
    assert kept_points[name, "local scales"] < kept_points[name, "median distance"]
print(
    f"astronaut, 6 segments, local scales: {kept_span['astronaut', 'local scales']:.2f}"
)
assert kept_span["astronaut", "local scales"] < 0.1

# %% [markdown]
# Under this draw of noise none of the eight spans stays with local scales, and of the astronaut's six directions one is lost altogether. With one bandwidth all
# eight stay. **Is the whole segmentation lost, or parts of it?** For each segment we take the points in it both times, over those in it either time.


# %%
def overlaps(key):
    """For each segment, points in it both times over points in it either time."""
    before, after = (one_hot(which[key]).bool() for which in (once, twice))
    k = min(before.shape[1], after.shape[1])
    before, after = before[:, :k], after[:, :k]
    return (before & after).sum(0) / (before | after).sum(0)


for name in wanted:
    share = overlaps((name, "local scales"))
    print(f"{name:10} lowest {share.min():.2f}, highest {share.max():.2f}")
    assert share.min() < 0.1 and share.max() > 0.7

# %% tags=["hide-input"]
gallery = Gallery("cut-again")
for name, k in wanted.items():
    photo, h = load_photo(name), banks[name].grid_hw[0]
    keys = [(name, says) for says in rules]
    panels = [
        viz.Panel(photo, segments=rearrange(which[key], "(h w) -> h w", h=h))
        for key in keys
        for which in (once, twice)
    ]
    titles = [f"{says}{what}" for says in rules for what in ("", ", disturbed")]
    numbers = "; ".join(
        f"{says}: cosine {kept_span[name, says]:.2f}, {kept_points[name, says]:.0%} of "
        f"the points stay"
        for says in rules
    )
    gallery.add(
        name,
        viz.show_grid(panels, titles, columns=2),
        alt=f"The photograph {name} in {k} segments, four times: with local scales and "
        f"with the median distance, each before and after noise.",
        caption=f"**{name}**, $k$ = {k}, before (left) and after noise (right). "
        f"{numbers}.",
    )
gallery.show()

# %% [markdown]
# In every photograph one segment disappears while another keeps most of its points. On the astronaut, which are they?

# %%
suit, helmet, *_, left, corner = overlaps(("astronaut", "local scales"))[1:]
print(f"suit (1) {suit:.2f}, helmet and table (2) {helmet:.2f}", end="; ")
print(f"backdrop at the top left (4) {left:.2f} and right (5) {corner:.2f}")
assert min(suit, helmet) > 0.6 and max(left, corner) < 0.1

# %% [markdown]
# Suit and helmet keep most of their points; two pieces of the backdrop vanish.
#
# Is the median distance then the better rule? Open the flower and the pagoda: what was one segment is now rings, or bands. **Into how many parts does it cut the
# dahlia?**

# %%
for name, what in {"flower": "dahlia", "china": "pagoda"}.items():
    own = once[name, "local scales"] == 0
    for says, which in (("median distance", once), ("local scales", twice)):
        parts = one_hot(which[name, says][own]).float().mean(0)
        parts = [float(part) for part in parts.sort(descending=True).values]
        after = ", disturbed" if which is twice else ""
        shares_of = ", ".join(f"{part:.0%}" for part in parts if part > 0.01)
        print(f"{what}, {says}{after}: {shares_of}")
        assert parts[1] > 0.2 and (which is twice or parts[2] > 0.2)

# %% [markdown]
# Into three large ones, and the pagoda likewise. With local scales, too, both fall apart under noise. A span that stays is needed before segments can be called a
# property of the picture, and it does not make them the things we have names for.
#
# ## How many segments?
#
# The same eigenvectors serve every $k$; only the rotation is new. Here is the coffee cup with local scales. **How many segments would you ask for?**

# %% tags=["hide-input"]
gallery, lab = (
    Gallery("cut-k"),
    rearrange(banks["coffee"].zscores()[0], "h w c -> (h w) c")[:, :3],
)
by_k, lam_coffee = {}, solvers["coffee"].eigval
for k in (2, 3, 4, 5, 6, 8, 10):
    labels = kway_ncut(eigvecs["coffee"], k).argmax(1)
    by_k[k] = rearrange(labels, "(h w) -> h w", h=banks["coffee"].grid_hw[0])
    coffee = load_photo("coffee"), by_k[k], eigvecs["coffee"], lam_coffee
    figure = show_cut(*coffee, first=k, last=k, columns=2)
    gap = float(lam_coffee[k - 1] - lam_coffee[k])
    caption = (
        f"$k$ = {k}, and the eigenvector that came last: eigengap {gap:.4f}, and "
        f"{explained(lab, by_k[k]):.0%} of the colour differences explained."
    )
    gallery.add(
        f"k = {k}",
        figure,
        f"A cup of coffee cut into {k} segments, the segments in their mean colours, "
        f"and eigenvector {k}.",
        caption,
    )
gallery.show()

# %% [markdown]
# First the dark corner of the table comes off. At $k = 4$ the saucer stands free with the dark side of the cup, at $k = 6$ the white rim does, and at $k = 8$ the coffee leaves the
# saucer, though only to join the wood of its own colour. Four cells of the grid are enough to check that.

# %%
for k, expected in {2: "corner", 4: "saucer", 6: "rim", 8: "coffee"}.items():
    spots = {"corner": (1, 2), "saucer": (25, 12), "rim": (14, 20), "coffee": (11, 27)}
    at = {spot: int(by_k[k][cell]) for spot, cell in spots.items()}
    print(f"k = {k}:", ", ".join(f"{spot} {j}" for spot, j in at.items()))
    assert list(at.values()).count(at[expected]) == 1
assert by_k[8][11, 27] == by_k[8][10, 3]  # the wood to the left of the cup

# %% [markdown]
# More segments explain more colour, so colour cannot choose $k$. The eigengap can help. Only the *span* of $k$ eigenvectors is determined, and only if
# $\lambda_k > \lambda_{k+1}$; the gap between the two bounds how far a given change of the matrix can turn the span {cite:p}`davis1970`.

# %% tags=["hide-input"]
gaps = lam_coffee[:-1] - lam_coffee[1:]
widest = int(gaps[1:].argmax()) + 2
number = np.arange(1, len(lam_coffee) + 1)
with viz.style():
    figure = viz.new_picture(viz.WIDTH, 2.5)
    left, right = figure.subplots(1, 2)
    left.axhspan(
        *lam_coffee[widest - 1 : widest + 1].tolist(), color="#E69F00", alpha=0.25
    )
    left.plot(number, lam_coffee.cpu(), "o-", color=viz.NEGATIVE, linewidth=1)
    left.set(xlabel="number of the eigenvalue", ylabel="eigenvalue")
    right.bar(number[:-1], gaps.cpu(), color=viz.QUIET)
    right.bar(widest, gaps[widest - 1].item(), color="#E69F00")
    right.set(xlabel="segments k", ylabel="gap below eigenvalue k")
    right.set_title(f"gap at k = {widest}: {gaps[widest - 1]:.4f}")
show_figure(
    figure,
    name="coffee-spectrum",
    alt="Eleven eigenvalues falling slowly from 1, and bars of the gaps between "
    "neighbours.",
    caption="Eigenvalues of the coffee cup and the gaps between them. None is wide; "
    "the widest after the first is marked.",
)
print(
    f"widest gap {gaps[widest - 1]:.4f} after k = {widest}; colour explained "
    f"{explained(lab, by_k[2]):.2f} at k = 2, {explained(lab, by_k[10]):.2f} at k = 10"
)
assert explained(lab, by_k[10]) > explained(lab, by_k[6]) > explained(lab, by_k[2])

# %% [markdown]
# None of the gaps is wide, so the spectrum of this graph does not recommend a $k$. **Is any other photograph clearer, with local scales?**

# %%
widest_gaps = {
    name: float((-each.eigval.diff())[1:].max()) for name, each in solvers.items()
}
clearest = max(widest_gaps, key=widest_gaps.get)
print(f"the widest gap of all is that of {clearest}: {widest_gaps[clearest]:.3f}")
assert max(widest_gaps.values()) < 0.02

# %% [markdown]
# ## What the bandwidth does
#
# All of this rests on one choice, how far apart two points may be and still count as alike. **What happens to the eigenvalues when $\sigma$ goes to zero, and
# when it grows without end?** A coarser grid of the coffee cup lets us compute them all.

# %%
coarse = filter_bank(load_photo("coffee"), grid=30).features.double()  # (600, c)
sigmas = torch.logspace(-1.7, 1, 28)
spectra = []
for sigma in sigmas.tolist():
    weights = ctrace.rbf_affinity(coarse, sigma=sigma)
    root = weights.sum(1).rsqrt()
    spectra.append(torch.linalg.eigvalsh(root[:, None] * weights * root).flip(0)[:9])
spectra = torch.stack(spectra)  # (28, 9)
gap_at_6 = spectra[:, 5] - spectra[:, 6]

# %% tags=["hide-input"]
panels = {
    "eigenvalues": {rf"$\lambda_{{{j}}}$": spectra[:, j - 1] for j in (2, 4, 6, 8)},
    "eigengap at 6": {"gap": gap_at_6},
}
show_figure(
    viz.show_curves(
        sigmas,
        panels,
        r"bandwidth $\sigma$, in units of the features",
        ["eigenvalue", r"$\lambda_6 - \lambda_7$"],
        logx=True,
    ),
    name="bandwidth-spectrum",
    alt="Four eigenvalues against the bandwidth: all 1 on the left, all near 0 on the "
    "right. The eigengap at 6 rises between and is zero at both ends.",
    caption="Left end: every point alone, all eigenvalues 1. Right end: all points "
    "alike, all but the first eigenvalue near 0. The gap opens in between.",
)

# %%
widest_at = float(sigmas[gap_at_6.argmax()])
for i in (0, int(gap_at_6.argmax()), -1):
    print(
        f"sigma = {sigmas[i]:5.2f}   lam_2 {spectra[i, 1]:.4f}   gap at 6 "
        f"{gap_at_6[i]:.5f}"
    )
assert spectra[0].min() > 0.999 and spectra[-1, 1:].max() < 0.02
assert round(widest_at, 2) == 0.50 and round(float(gap_at_6.max()), 2) == 0.11
assert gap_at_6[0] < 1e-3 and gap_at_6[-1] < 1e-3

# %% [markdown]
# The gap closes at both ends and is widest, 0.11, near $\sigma = 0.50$.
#
# One number for the whole picture is a compromise between its flat parts and its busy ones. {cite:t}`zelnik2004` give every point a scale of its own, the
# distance to a near neighbour; these are the local scales of `ctrace`. Here are both ways, on two photographs in coarser grids, with normal noise of 0.05 on
# every feature.


# %%
def turned(features, sigma, noise, k=6):
    """Cosine of the largest angle between the spans without and with noise."""
    seeded = torch.Generator().manual_seed(0)
    moved = features + noise * torch.randn(features.shape, generator=seeded).to(
        features
    )
    before, after = (
        Ncut(k, sigma=sigma).fit_transform(rows) for rows in (features, moved)
    )
    return float(torch.linalg.svdvals(before.T @ after).min())


# %%
middle = {
    name: filter_bank(load_photo(name), grid=40).to(device)
    for name in ("coffee", "rocket")
}
four = (0.15, 0.5, 4.0, "local")
cells, smallest, cosine = {}, {}, {}
print("photo   sigma   eigengap at 6   smallest segment   cosine")
for name, sigma in itertools.product(middle, four):
    solver_6, key = Ncut(6, sigma=sigma), (name, sigma)
    cells[key] = kway_ncut(solver_6.fit_transform(middle[name].features)).argmax(1)
    smallest[key] = int(cells[key].bincount(minlength=6).min())
    cosine[key] = turned(middle[name].features, sigma, noise=0.05)
    print(
        f"{name:7} {sigma!s:7} {solver_6.eigengap:13.4f} {smallest[key]:18}"
        f" {cosine[key]:8.3f}"
    )

# %% tags=["hide-input"]
gallery = Gallery("bandwidth")
for name, grid in middle.items():
    photo, h = load_photo(name), grid.grid_hw[0]
    panels = [
        viz.Panel(photo, segments=rearrange(cells[name, sigma], "(h w) -> h w", h=h))
        for sigma in four
    ]
    titles = ["σ = 0.15", "σ = 0.5", "σ = 4", "local scales"]
    figure = viz.show_grid([photo, *panels], ["photograph", *titles], columns=3)
    points = ", ".join(f"{smallest[name, sigma]}" for sigma in four)
    gallery.add(
        name,
        figure,
        alt=f"The photograph {name} in six segments, with three bandwidths and with "
        "local scales.",
        caption=f"**{name}**, six segments each. Points in the smallest segment, in "
        f"the order of the panels: {points}.",
    )
gallery.show()

# %%
for name in middle:
    assert cosine[name, 0.15] < 0.5 and cosine[name, "local"] < 0.5  # lost
    assert cosine[name, 0.5] > 0.98 and cosine[name, 4.0] > 0.9  # stays
assert smallest["rocket", 0.5] <= 10 < 50 <= smallest["rocket", "local"]

# %% [markdown]
# The eigengap alone does not predict which span stays: at $\sigma = 4$ the gap is below a thousandth and the span stays; with local scales the gap is many times
# as wide and the span is lost.
#
# **How much noise is 0.05?** On 19 channels it moves two points apart by $0.05 \sqrt{2 \cdot 19}$. Compare that with the distance from a point to its seventh
# neighbour, from which the local scales are made.

# %%
for name, grid in middle.items():
    near = 2**0.5 * float(bandwidth(grid.features, "local").median())
    print(
        f"{name}: noise moves a pair by {0.05 * 38**0.5:.2f}, "
        f"the 7th neighbour is {near:.2f} away"
    )
    assert near < 0.05 * 38**0.5 < 2 * near
    assert cosine[name, "local"] < 0.5 and turned(grid.features, "local", 0.01) > 0.95

# %% tags=["hide-input"]
noises = torch.tensor([0.005, 0.01, 0.02, 0.03, 0.05])
rules = {"σ = 0.5": 0.5, "local scales": "local"}
panels = {
    name: {
        label: torch.tensor(
            [turned(grid.features, rule, noise) for noise in noises.tolist()]
        )
        for label, rule in rules.items()
    }
    for name, grid in middle.items()
}
show_figure(
    viz.show_curves(noises, panels, "noise on every feature", ["cosine", "cosine"]),
    name="noise-turns-spans",
    alt="Cosine against noise for coffee and rocket. With sigma 0.5 it stays at 1; "
    "with local scales it is near 1 at noise 0.01 and falls below one half at "
    "0.05.",
    caption="What noise leaves of the span of six eigenvectors. With one bandwidth it "
    "stays; with local scales it is lost as the noise comes near the distances "
    "between neighbours.",
)

# %% [markdown]
# Neither way wins. With $\sigma = 0.5$ noise hardly turns the span, but the rocket's smallest segment has ten points or fewer. With local scales it has fifty or
# more, but noise as large as the distances between neighbours takes the span away; a fifth of that noise does not. Before you build on a segment, disturb the
# input and look again.

# %% [markdown]
# ## Move the bandwidth, and k
#
# The next figure cuts two photographs anew, in your browser, at each move of a slider: every $\sigma$ from 0.25 to 4 or local scales, every $k$ from 2 to 8, more
# noise or less. Below the sliders stands how its cuts compare with those of `ctrace`. Where no script runs, and on paper, there is a still picture of how it
# begins. **Does a wide gap predict that the span stays?** First one bandwidth, fourteen spans.

# %%
small = {
    name: touch.rounded(filter_bank(load_photo(name), grid=32))
    for name in ("coffee", "rocket")
}
gaps, stays = {}, {}
for name, grid in small.items():
    values = Ncut(9, sigma=0.5).fit(grid.features).eigval
    for k in range(2, 9):
        gaps[name, k] = float(values[k - 1] - values[k])
        stays[name, k] = turned(grid.features, 0.5, noise=0.02, k=k)
most_turned, narrowest = min(stays, key=stays.get), min(gaps, key=gaps.get)
for what, key in {"turned most": most_turned, "narrowest gap": narrowest}.items():
    print(f"{what}: {key[0]}, k = {key[1]}", end=", ")
    print(f"eigengap {gaps[key]:.3f}, cosine {stays[key]:.3f}")
assert most_turned == ("rocket", 4) and narrowest == ("rocket", 7)

# %% [markdown]
# Not by itself: the span that noise turns most is not the one with the narrowest gap.

# %% tags=["hide-input"]
grid, values = small["coffee"], Ncut(9, sigma=0.5).fit(small["coffee"].features).eigval
labels = kway_ncut(Ncut(6, sigma=0.5).fit_transform(grid.features)).argmax(1)
labels = rearrange(labels, "(h w) -> h w", h=grid.grid_hw[0])
with viz.style():
    figure = viz.new_picture(viz.WIDTH, 3)
    left, right = figure.subplots(1, 2)
    mixed = coloured_segments(labels.numpy(), viz.as_rgb(load_photo("coffee")))
    left.imshow(mixed)
    left.set_axis_off()
    left.set_title("six segments, σ = 0.5")
    right.axhspan(float(values[6]), float(values[5]), color=viz.POSITIVE, alpha=0.3)
    right.plot(range(1, 7), values[:6], "o", color=viz.INK)
    right.plot(range(7, 10), values[6:], "o", color=viz.INK, markerfacecolor="none")
    right.set(xlabel="number", ylabel="eigenvalue")
    right.set_title(f"gap after the sixth: {float(values[5] - values[6]):.3f}")

# %% tags=["hide-input"]
touch.show_touchable(
    figure,
    kind="bandwidth",
    payload={
        "k": 6,
        "examples": [
            touch.bandwidth_example(
                name.capitalize(), load_photo(name), grid, 6, (0.25, 0.5, 4.0)
            )
            for name, grid in small.items()
        ],
    },
    label="Sliders for bandwidth, k and noise over a photograph",
    name="bandwidth-sliders",
    alt="The coffee cup in six coloured segments, and nine eigenvalues as dots with "
    "the gap after the sixth shaded.",
    caption="Segments, eigenvalues and the gap after the k-th.",
)

# %% [markdown]
# ## The same product is attention
#
# Look once more at the walk $D^{-1} W V$: a weighted mean of the rows of $V$, with weights $\exp(-\lVert x_i - x_j\rVert^2 / 2\sigma^2)$ that are normalised over
# $j$. That is a softmax. Of the three terms of the square, $\lVert x_i\rVert^2$ is the same for all $j$ and cancels, and what is left,
#
# $$
# \begin{aligned}
# \left(D^{-1} W V\right)_i &= \textstyle\sum_j a_{ij} V_j , \\
# a_{ij} &= \operatorname*{softmax}_j\, e_{ij} , \\
# e_{ij} &= \frac{x_i^\top x_j}{\sigma^2} - \frac{\lVert x_j\rVert^2}{2\sigma^2} ,
# \end{aligned}
# $$ (attention)
#
# is a layer of attention {cite:p}`vaswani2017`. **Queries and keys are both the features; which one carries the extra term?**

# %%
x, sigma = filter_bank(load_photo("coffee"), grid=24).features.double(), 0.5
queries = torch.cat([x / sigma, torch.ones_like(x[:, :1])], 1)  # (n, c + 1)
keys = torch.cat(
    [x / sigma, -x.square().sum(1, keepdim=True) / (2 * sigma**2)], 1
)  # (n, c + 1)
graph, V = Graph(x, sigma=sigma), torch.randn(len(x), 5, dtype=x.dtype)
attended = scaled_dot_product_attention(queries, keys, V, scale=1.0)  # (n, 5)
difference = (graph.matmul(V) / graph.degree[:, None] - attended).abs().max()
print(f"largest difference between D^-1 W V and attention: {difference:.1e}")
assert difference < 1e-10

# %% [markdown]
# The keys do, and all entries agree to ten digits. For features of equal length the extra term is the same for all keys and cancels too: then the walk is plain attention at
# temperature $\sigma^2$.

# %%
even = torch.nn.functional.normalize(x, dim=1)
walk = Graph(even, sigma=sigma)
plain = scaled_dot_product_attention(even, even, V, scale=sigma**-2)
apart = (walk.matmul(V) / walk.degree[:, None] - plain).abs().max()
print(f"rows of length 1, plain attention: largest difference {apart:.1e}")
assert apart < 1e-10

# %% [markdown]
# Now apply the layer again and again to five columns, with the same queries and keys throughout, and keep the columns independent by a QR decomposition. **Where
# does their span go?** Attention has the eigenvectors of $S$, divided by $\sqrt d$, so the distance to the span of the first five should shrink by
# $\lambda_6 / \lambda_5$ a layer.

# %%
U5, spectrum = ncut_eigenvectors(graph, 5)
target = torch.linalg.qr(U5 / graph.degree.sqrt()[:, None]).Q  # (n, 5)
distances = []
for layer in range(120):
    V = torch.linalg.qr(scaled_dot_product_attention(queries, keys, V, scale=1.0)).Q
    distances.append(float(torch.linalg.matrix_norm(target - V @ (V.T @ target), 2)))
rate = spectrum.next_eigval / float(spectrum.eigval[-1])
measured = (distances[-1] / distances[59]) ** (1 / 60)
print(f"distance {distances[0]:.2f} after one layer, {distances[-1]:.1e} after 120")
print(f"it shrinks by {measured:.4f} a layer; lam_6 / lam_5 = {rate:.4f}")
assert distances[-1] < 1e-4 and abs(measured - rate) < 1e-3

# %% tags=["hide-input"]
layers = torch.arange(1, 121)
predicted = distances[59] * rate ** (layers - 60)
show_figure(
    viz.show_curves(
        layers,
        {"measured": distances, r"slope $\lambda_6 / \lambda_5$": predicted},
        "layers of attention",
        "distance to the Ncut embedding",
        logy=True,
    ),
    name="attention-converges",
    alt="On a logarithmic axis the distance stays near 1 for the first layers, then "
    "falls along a straight line to below one in ten thousand.",
    caption="Distance between the span of five columns under repeated attention and "
    "the Normalized Cut embedding.",
)

# %% [markdown]
# **A Normalized Cut is what attention with tied, unchanging queries and keys converges to** when its columns are kept independent, and the ratio
# $\lambda_6 / \lambda_5$ is its speed.
#
# ## The doctor
#
# `diagnose` counts the pieces of a graph, cuts it, cuts it again under the noise of {numref}`fig-found-again`, and says in words whether the graph is fit to be
# cut. First a healthy one, the coffee cup at $\sigma = 0.5$.


# %%
def ask(graph, **settings):
    """Prints what the doctor says, lines folded to the column."""
    found = diagnose(graph, **settings)
    for line in str(found).splitlines():
        print(textwrap.fill(line, 78, subsequent_indent="  "))
    return found


healthy = ask(Graph(middle["coffee"].features, 0.5), n_eig=8)
assert healthy.components == 1 and "ready to be cut" in healthy.notes[0]
assert healthy.stability[healthy.suggested_k - 1] > 0.99

# %% [markdown]
# The same cup with local scales. **Will it notice what the section on the bandwidth found?**

# %%
fragile = ask(middle["coffee"].features, n_eig=8)
assert "lost under noise" in str(fragile) and "ready" not in str(fragile)
assert fragile.stability[5] < 0.5 < 0.99 < healthy.stability[5]

# %% [markdown]
# It does. The row `stability` holds the cosine for each $k$. The widest gap lies where the span does not survive, so the doctor suggests the widest among those
# that do. **And the astronaut of the first figure, at $k = 2$ and at $k = 6$?**

# %%
astronaut_found = ask(bank.features, n_eig=8)
two, six = (float(astronaut_found.stability[k - 1]) for k in (2, 6))
assert two > 0.9 and six < 0.1 and "lost under noise" in str(astronaut_found)
assert int(astronaut_found.gaps[1:].argmax()) + 2 == 6  # the widest from k = 2 on

# %% [markdown]
# The cut into suit and rest stays. Six segments are not to be trusted with local scales, although the widest gap lies there.
#
# Next, two heaps of points, 80 apart. **How many eigenvalues are 1, and which $k$ will it suggest?**

# %%
heaps = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
heaps[150:, 0] += 80
apart = ask(heaps, n_eig=6)
assert apart.components == 2 == apart.suggested_k
assert (apart.eigval[:2] > 1 - 1e-6).all() and apart.eigval[2] < 0.99

# %% [markdown]
# As many as there are pieces, and it suggests as many: a cut between the pieces severs nothing. Now the same heaps with a bandwidth that is far too small. Nearly
# every point then has an eigenvalue near 1, so the pieces are counted by following the weights from point to point.

# %%
tiny = Graph(heaps, sigma=0.01)
lonely = ask(tiny, n_eig=6)
alone = int((tiny.degree < 1.001).sum())
print(f"{alone} points have a degree below 1.001; {lonely.components} pieces")
assert lonely.components > 200 and lonely.suggested_k is None
assert f"{alone} of 300 points stand alone" in str(lonely)

# %% [markdown]
# Last, random numbers in 40 channels. There is nothing to find in them, and a cut returns segments all the same. **Will the doctor warn?**

# %%
random = torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
noise = ask(random, n_eig=6)
assert "no open eigengap" in str(noise) and "lost under noise" in str(noise)
assert float(noise.gaps[1:].max()) < float(healthy.gaps[1:].max())

# %% [markdown]
# Twice. Gaps and spans count from $k = 2$ on, since the first gap is open for any connected graph.
#
# ## When it fails
#
# Three mistakes. First: features that hold a NaN, here in a single row.

# %%
try:
    broken = middle["coffee"].features.clone()
    broken[7, 0] = float("nan")
    Ncut(n_eig=6).fit(broken)
except ValueError as error:
    print(textwrap.fill(str(error), 94))
    assert "1 of 1080 rows" in str(error)

# %% [markdown]
# Second: a device that is not there.

# %%
if torch.cuda.is_available():
    print("This machine has a CUDA device, so nothing fails here.")
else:
    try:
        Ncut(n_eig=6, device="cuda")
    except ValueError as error:
        print(textwrap.fill(str(error), 94))

# %% [markdown]
# Third, and less obvious: four equal heaps, and we ask for two segments *with a gradient*. Which two heaps belong together? Four eigenvalues are equal, the data
# do not say, and an undefined choice has no derivative.

# %%
corners = (
    torch.tensor([[0.0, 0], [0, 10], [10, 0], [10, 10]])
    .double()
    .repeat_interleave(5, 0)
)
message = ""
try:
    Ncut(n_eig=2, sigma=1.0, track_grad=True).fit_transform(corners.requires_grad_())
except ArithmeticError as error:
    message = str(error)
print(textwrap.fill(message, 94))
assert "gap" in message and "diagnose" in message

# %% [markdown]
# Without a gradient the same request is answered, with a warning. With four segments the gap is open and everything is defined.

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    Ncut(n_eig=2, sigma=1.0).fit(corners.detach())
assert caught and issubclass(caught[-1].category, RuntimeWarning)

# %%
four = Ncut(n_eig=4, sigma=1.0, track_grad=True)
scores = kway_ncut(four.fit_transform(corners))
print(f"eigengap at 4: {four.eigengap:.3f}; segments {scores.argmax(1).tolist()}")
assert (
    four.eigengap > 0.99
    and len(scores.argmax(1).unique()) == 4
    and scores.requires_grad
)

# %% [markdown]
# ## Exercises
#
# ```{exercise}
# :label: ex-scale-weights
#
# **Predict.** Multiply every weight of the six-node graph by 10. By which factor do the best cut, the best Ncut, and $\lambda_2$ change? Put
# your three factors into `prediction` before you compute anything.
# ```


# %% tags=["hide-input"]
def check_prediction(prediction):
    """Compares three factors with what happens, and says why."""
    if prediction is None:
        return "No prediction yet: three factors, for cut, Ncut and lam_2."
    W10 = 10 * W
    severed, degrees = X[best] @ W10 @ (1 - X[best]), W10.sum(1)
    ncut10 = severed / (degrees @ X[best]) + severed / (degrees @ out)
    lam10 = ncut_eigenvectors(PrecomputedGraph(W10), 2)[1].eigval
    truth = {
        "cut": (severed / cut[best], "a cut is a sum of weights"),
        "Ncut": (
            ncut10 / ncut[best],
            "cut and volume grow alike, and Ncut is their ratio",
        ),
        "lam_2": (
            lam10[1] / lam[1],
            "S divides each weight by degrees, which grew as much",
        ),
    }
    wrong = [
        f"{name}: you said {said:g}, it is {factor:g}, since {why}."
        for said, (name, (factor, why)) in zip(prediction, truth.items())
        if abs(said - factor) > 1e-6
    ]
    return (
        "\n".join(wrong)
        or "Right: the cut has units, Ncut and the eigenvalues have none."
    )


# %%
prediction = None  # for example (1, 1, 1)
print(check_prediction(prediction))

# %% [markdown]
# ```{solution-start} ex-scale-weights
# :class: dropdown
# ```

# %%
print(check_prediction((10, 10, 10)))
print(check_prediction((10, 1, 1)))
assert check_prediction((10, 1, 1)).startswith("Right")

# %% [markdown]
# Only the ratios between weights matter. A bandwidth is no such factor: it is in the exponent, so it changes the ratios, and with them the cut.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-ncut-value
#
# **Implement.** Write `ncut_value(W, labels)`: the Normalized Cut of a partition into any number of segments, the sum over segments of the weight that leaves it, over
# its volume.
# ```


# %% tags=["hide-input"]
def check_ncut_value(function):
    """Runs the function on the six-node graph and recognises the usual slips."""
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    onehot = torch.nn.functional.one_hot(labels).double()
    got, leaves = (
        float(function(W, labels)),
        (onehot * (W @ (1 - onehot))).sum(0),
    )  # (k,)
    slips = {
        "you divide by the number of nodes; a volume is a sum of degrees": leaves
        / onehot.sum(0),
        "your degrees leave out the diagonal, which counts too": leaves
        / ((d - 1) @ onehot),
        "you count each severed edge twice per segment": 2 * leaves / (d @ onehot),
        "you return the associations; Ncut is k minus their sum": 1
        - leaves / (d @ onehot),
    }
    for slip, value in slips.items():
        if abs(got - float(value.sum())) < 1e-9:
            return f"Not yet, {got:.4f}: {slip}."
    right = float((leaves / (d @ onehot)).sum())
    missed = f"Not yet: expected {right:.4f} for abc | de | f, received {got:.4f}."
    return f"Right: {got:.4f}." if abs(got - right) < 1e-9 else missed


# %%
def ncut_value(W, labels):
    return torch.tensor(0.0)  # your turn


print(check_ncut_value(ncut_value))

# %% [markdown]
# ```{solution-start} ex-ncut-value
# :class: dropdown
# ```


# %%
def ncut_value(W, labels):
    onehot = torch.nn.functional.one_hot(labels).to(W)  # (n, k)
    leaves = (onehot * (W @ (1 - onehot))).sum(0)  # (k,)
    return (leaves / (W.sum(1) @ onehot)).sum()


print(check_ncut_value(ncut_value))
assert check_ncut_value(ncut_value).startswith("Right")
assert abs(ncut_value(W, X[best].long()) - ncut[best]) < 1e-12

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-wrong-sign
#
# **Break it.** The second eigenvector found the best cut of our graph. Change the weight of one or two edges so that its sign does *not*. Afterwards, find another
# threshold than zero at which the same eigenvector does find it.
# ```


# %% tags=["hide-input"]
def check_broken(changes):
    """Cuts the changed graph by sign and compares with all 31 cuts."""
    changed = W.clone()
    for (first, second), weight in changes.items():
        i, j = "abcdef".index(first), "abcdef".index(second)
        changed[i, j] = changed[j, i] = weight
    values = torch.stack([ncut_value(changed, row.long()) for row in X])  # (31,)
    U, spectrum = ncut_eigenvectors(PrecomputedGraph(changed), 2)
    side = (U[:, 1] > 0).long()
    if spectrum.eigval[1] > 1 - 1e-9:
        return (
            "The graph fell apart, so any mix of the pieces is an eigenvector. "
            "Keep an edge."
        )
    by_sign, least = float(ncut_value(changed, side)), float(values.min())
    if by_sign < least + 1e-9:
        return (
            f"Still right: Ncut {by_sign:.4f}, the best of all. "
            "Make one node nearly, not quite, alone."
        )
    order = "".join("abcdef"[i] for i in U[:, 1].argsort())
    return (
        f"Broken: Ncut {by_sign:.4f}, the best cut has {least:.4f}. "
        f"Along the eigenvector: {order}."
    )


# %%
my_changes = {}  # for example {"cd": 0.9}
print(check_broken(my_changes))

# %% [markdown]
# ```{solution-start} ex-wrong-sign
# :class: dropdown
# ```

# %%
print(check_broken({"df": 0.05, "ef": 0.05}))
changed = W.clone()
changed[5, 3:5] = changed[3:5, 5] = 0.05
u = ncut_eigenvectors(PrecomputedGraph(changed), 2)[0][:, 1]
print([f"{value:+.2f}" for value in u])
assert (u > 0).tolist() == [False] * 3 + [True] * 3
assert ncut_value(changed, (u > 0.5).long()) < ncut_value(changed, (u > 0).long()) / 1.5

# %% [markdown]
# With `f` on edges of 0.05 the best cut takes `f` alone: even its small volume now pays for so light a cut. The eigenvector shows it, with `f` far from all
# others, but zero still lies between `c` and `d`. A threshold next to `f` finds the best cut. {cite:t}`shi2000` try several thresholds and keep the best; the
# rotation of {cite:t}`yu2003` avoids thresholds altogether.
#
# ```{solution-end}
# ```
#
# ## In this notebook we have
#
# - **built** a graph of six nodes, cut it in every possible way, and seen one eigenvector find the best;
# - **cut** real photographs into segments, with three lines of `ctrace`;
# - **judged** a graph before trusting its segments: bandwidth, eigengap, the doctor.

# %%
print(
    f"{time.perf_counter() - started:.0f} seconds on {device}, "
    f"{torch.get_num_threads()} threads"
)

# %% [markdown]
# Next: [The gradient of a cut](02_gradient_of_a_cut.ipynb), where we ask how a segment moves when a feature does, and find that the obvious way to differentiate it
# returns NaN.
