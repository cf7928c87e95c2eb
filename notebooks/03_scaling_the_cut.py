# %% [markdown]
# # Scaling the cut
#
# **An exact cut of every point needs time but hardly any memory. A cut of a few of the points is quick, and names other channels when they are too few.**

# %% [markdown] tags=["remove-cell"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ctrace-book/ctrace/blob/main/notebooks/03_scaling_the_cut.ipynb)

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
# - **cut** a graph whose weights are never all in memory;
# - **see** what changes when only some points are cut: the segments, and the channels behind them;
# - **measure** what a cut costs, and choose between exact and landmarks for your own data.
#
# You should have read [Normalized cuts](01_normalized_cuts.ipynb); the gradient of [the last chapter](02_gradient_of_a_cut.ipynb) is used, not explained. The last cell prints how
# long the notebook took.

# %% tags=["hide-input"]
import csv
import textwrap
import time
from importlib.resources import files

import torch
import torch.nn.functional as F
from ctrace import (
    Graph,
    Ncut,
    filter_bank,
    kway_ncut,
    load_photo,
    ncut_eigenvectors,
    rbf_affinity,
    trace_channels,
    viz,
)
from ctrace.cut.nystrom import farthest_points, propagate
from ctrace.viz.gallery import Gallery, show_figure
from einops import rearrange, reduce
from scipy.optimize import linear_sum_assignment

# %% tags=["hide-input"]
started = time.perf_counter()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
print(f"torch {torch.__version__.split('+')[0]} on {device}")
table = files("ctrace") / "data/benchmarks/cut.csv"  # measured by benchmarks/cut.py
machine, *lines = table.read_text().splitlines()
measured = list(csv.DictReader(lines))

# %% [markdown]
# ## Fewer points, other channels
#
# A photograph is cut exactly into ten segments, and again through *landmarks*: some of its points are cut, and every other point copies from those next to it. **How many have to be cut before
# the segments are right, and the ranking of the channels behind one of them?**

# %% tags=["hide-input"]
kept = [row for row in measured if row["task"] == "landmarks"]
kept = [row for row in kept if row["shape"] == "photograph"]
marks, cells = [int(row["contender"].split()[0]) for row in kept], int(kept[0]["n"])
agreement = {
    "segments (adjusted Rand index)": [float(row["ari"]) for row in kept],
    "ranking of the channels (Spearman)": [float(row["ranking"]) for row in kept],
}
figure = viz.show_curves(
    marks,
    agreement,
    f"landmarks, of {cells:,} points",
    "agreement with the exact cut",
    logx=True,
)
figure.axes[0].set_xticks(marks, [f"{mark:,}" for mark in marks])
figure.axes[0].set_xticks([], minor=True)
show_figure(
    figure,
    name="landmarks-and-ranking",
    alt="Two curves against the number of landmarks. The segments agree with the exact "
    "ones at about two thirds from the smallest number on and better from two thousand "
    "on; the ranking is near zero up to a thousand and near one from two thousand on.",
    caption="Agreement with the exact cut, 1 if the same: of the segments, and of the "
    "order of the channels.",
)

# %%
similar, ranked = (dict(zip(marks, values)) for values in agreement.values())
assert ranked[4000] > ranked[2000] > 0.9 > 0.5 > max(ranked[500], ranked[1000])
assert min(similar.values()) > 0.5 and similar[4000] > 0.9

# %% [markdown]
# Up to a thousand landmarks the segments agree in part, and the order of the channels has almost nothing to do with the exact one; at two thousand and more it is nearly the exact one. So on
# this photograph the limit lies between the two. To ask for channels, then, cut all points if that can be afforded. Can it?

# %% [markdown]
# ## The idea
#
# The weights of a graph over `n` points fill an `n x n` table: in float32 6 GiB at 40,000 points, 37 GiB at 100,000, and 3.6 TiB at a million.
# But nothing in a cut reads the table. The eigenvectors come from an iteration that only asks for products,
#
# $$
# (W v)_i = \sum_j w(x_i, x_j)\, v_j ,
# $$
#
# and so does the gradient. Make a few rows of `W`, use them, throw them away. How much is held at once?

# %% tags=["hide-input"]
free = [row for row in measured if row["task"] == "free"]  # exact, never holding W
took = {int(row["n"]): float(row["peak_mb"]) / 2**10 for row in free}
n = sorted({1_000, 100_000, 300_000, 1_000_000, *took})
n = torch.tensor(n, dtype=torch.float64)
c, columns, tile = 384, 130, 2**23
held = 4 * n**2 / 2**30  # GiB
counted = (4 * n * 2 * (c + columns) + 6 * tile) / 2**30
peak = torch.tensor([took.get(int(each), torch.nan) for each in n])

# %% tags=["hide-input"]
figure = viz.show_curves(
    n,
    {
        "all weights held": held,
        "a tile of rows at a time, counted": counted,
        "the same, measured": peak,
    },
    "points",
    "memory (GiB)",
    logx=True,
    logy=True,
)
show_figure(
    figure,
    name="memory-of-a-cut",
    alt="Memory against points, both axes logarithmic. Holding all weights grows with "
    "slope two, tiles with slope one; five measurements lie on or somewhat above the "
    "counted line.",
    caption="Memory of a cut in float32 with 384 channels and 10 eigenvectors. "
    "Counted: "
    "all weights; or a copy of the features and its gradient, two bases of 130 columns "
    "and six tiles of 8 MiB. "
    "Measured: the peak of cut and gradient.",
)

# %%
for each in (100_000, 1_000_000):
    at = n.tolist().index(each)
    print(f"{each:9,d} points: {held[at]:5.0f} GiB against {counted[at]:.1f} GiB")
    assert held[at] > 80 * counted[at]
print(f"   40,000 points: {4 * 40_000**2 / 2**30:5.1f} GiB for the table")
assert held[-1] > 3500 and counted[-1] < 5
ratio = (peak / counted)[~peak.isnan()]
print(f"measured over counted: {ratio.min():.1f} to {ratio.max():.1f}")
assert 1 < ratio.min() and ratio.max() < 2.5

# %% [markdown]
# The price is time: rows that were thrown away are made again for the next product. How many products a cut takes is counted below.
#
# ## By hand
#
# Three points on a line at 0, 1 and 3, bandwidth 1, and {math}`v = (1, 2, 4)`. The first row of `W` is {math}`1,\ e^{-1/2} = 0.607,\ e^{-9/2} = 0.011`, so
#
# $$
# (Wv)_1 = 1 \cdot 1 + 0.607 \cdot 2 + 0.011 \cdot 4 = 2.26 .
# $$
#
# The row is not needed any more. With {math}`e^{-2} = 0.135` the second gives {math}`0.607 + 2 + 0.541 = 3.15` and the third {math}`0.011 + 0.271 + 4 = 4.28`. Never were more than three of the nine weights held.

# %%
line = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
v = torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.float64)
rows = [float(rbf_affinity(line[i : i + 1], line, 1.0) @ v) for i in range(3)]
print("row by row:", [round(u, 2) for u in rows])
assert [round(u, 2) for u in rows] == [2.26, 3.15, 4.28]

# %% [markdown]
# Now twelve points in two groups, two columns, and three rows of `W` at a time, against the whole table.

# %%
x = torch.randn(12, 3, dtype=torch.float64) + 2.0 * (torch.arange(12) % 2)[:, None]
v, sigma = torch.randn(12, 2, dtype=torch.float64), 1.5
W = rbf_affinity(x, sigma=sigma)  # (n, n)
by_tiles = torch.cat(
    [rbf_affinity(x[i : i + 3], x, sigma) @ v for i in range(0, 12, 3)]
)  # (n, 2)
print(f"largest difference: {float((by_tiles - W @ v).abs().max()):.1e}")
assert torch.allclose(by_tiles, W @ v, atol=1e-12)

# %% [markdown]
# Divided by the degree of its row, this product is a layer of attention ({eq}`attention`), and kernels for attention avoid the $n \times n$ table in the same way.
# One of them can make our product, with one more column in queries and keys for the term $-\lVert x_j\rVert^2 / 2\sigma^2$.

# %%
y, ones = x / sigma, torch.ones(12, 1, dtype=torch.float64)
query = torch.cat([y, ones], 1)  # (n, c + 1)
key = torch.cat([y, -y.square().sum(1, keepdim=True) / 2], 1)  # (n, c + 1)
attended = F.scaled_dot_product_attention(query[None], key[None], v[None], scale=1.0)[0]
averaged = (W @ v) / W.sum(1, keepdim=True)  # D^-1 W v
print(f"largest difference: {float((attended - averaged).abs().max()):.1e}")
assert torch.allclose(attended, averaged, atol=1e-12)

# %% [markdown]
# In `ctrace`, the graph holds `W` as long as that takes less than `memory_limit` bytes; with a limit of zero it never does. The answer must not depend on it.

# %%
stored, tiled = Graph(x, sigma), Graph(x, sigma, memory_limit=0)
print(f"W is held: {stored.stored}, with a limit of zero: {tiled.stored}")
assert stored.stored and not tiled.stored
assert torch.allclose(tiled.matmul(v), by_tiles, atol=1e-12)

# %% [markdown]
# ## A photograph, with and without the table
#
# The same on 60 x 90 cells of a photograph: eigenvectors, segments and the gradient of a segment's strength, with the products counted.

# %%
photo = load_photo("coffee")
bank = filter_bank(photo, grid=(60, 90)).to(device)
width = 1.0  # one bandwidth for all points: features of the bank have unit scale


# %%
def cut(limit):
    """Segments and the gradient of the first one's strength, and what they took."""
    x = bank.features.clone().requires_grad_()
    start = time.perf_counter()
    U, spectrum = ncut_eigenvectors(Graph(x, width, memory_limit=limit), 6)
    Z = kway_ncut(U)
    Z[Z.argmax(1) == 0, 0].abs().mean().backward()
    return Z.argmax(1), x.grad, time.perf_counter() - start, spectrum


# %%
segments, gradient, seconds, spectrum = cut(2**30)
forward, backward = spectrum.forward, spectrum.backward  # columns that met W
same_segments, same_gradient, longer, *_ = cut(0)
change = float((gradient - same_gradient).norm() / gradient.norm())
print(
    f"{len(segments)} points, eigengap {spectrum.eigengap:.3f}; "
    f"{forward} columns forward, {backward} backward"
)
print(f"W held: {seconds:.1f} s, never held: {longer:.1f} s")
print(f"relative difference of the gradients: {change:.1e}")
assert (segments == same_segments).float().mean() > 0.999 and change < 1e-3

# %% [markdown]
# The two agree but for rounding, with products of far fewer columns than there are points. A full
# eigendecomposition by the symmetric QR algorithm takes about $9 n^3$ operations ({cite:t}`golub2013`, section 8.3), as many as products with $4.5\,n$ columns at $2 n^2$ each.

# %%
print(
    f"columns used: {forward + backward}, "
    f"a full eigendecomposition: as much as {4.5 * len(segments):,.0f}"
)
assert forward + backward < len(segments) / 5

# %% [markdown]
# ## Cutting some of the points
#
# The usual way to large `n` is in the spirit of {cite:t}`fowlkes2004`: choose landmarks, spread evenly over the features, cut those, and let every other
# point copy from the landmarks next to it. In `ctrace` that is what happens above `max_exact` points, and `n_exact` says so.
#
# The photograph has thousands of almost equal cells of table top, and evenly spread landmarks do not show how many. So each landmark stands for the points nearest to it: one
# that stands for `m` points has the weights of `m` copies, {math}`m_i\, w_{ij}\, m_j`. **Which share of the points will end up in the same segment as before?** We cut with and without these masses.


# %%
def matched(labels, to):
    """The same segments under the numbers of `to` that they overlap most."""
    overlap = F.one_hot(labels, 6).T.float() @ F.one_hot(to, 6).float()  # (k, k)
    mine, theirs = linear_sum_assignment(overlap.cpu(), maximize=True)
    return torch.as_tensor(theirs, device=labels.device)[labels]


# %%
counts, found, share = (100, 300, 1000, 3000), {}, {}
for m in counts:
    solver = Ncut(6, width, max_exact=m, n_landmarks=m)
    found[m] = matched(
        kway_ncut(solver.fit_transform(bank.features)).argmax(1), segments
    )
    share[m] = float((found[m] == segments).float().mean())
    print(
        f"{m:5d} landmarks (exact for {solver.n_exact}): "
        f"{share[m]:.0%} of the points as in the exact cut"
    )
assert min(share[1000], share[3000]) > 0.95 > max(share[100], share[300])

# %%
rows = farthest_points(bank.features, 1000)
alone, _ = ncut_eigenvectors(Graph(bank.features[rows], width), 6)  # no masses
U = propagate(alone, bank.features[rows], bank.features)
unweighted = matched(kway_ncut(U).argmax(1), segments)
forgetful = float((unweighted == segments).float().mean())
print(f" 1000 landmarks without masses: {forgetful:.0%}")
assert forgetful < share[1000] - 0.05 and forgetful < share[100]

# %% tags=["hide-input"]
tabs = Gallery("landmarks")
for m in counts:
    both = rearrange([segments, found[m]], "which (h w) -> which h w", h=60)
    both = [viz.Panel(photo, segments=cells) for cells in both]
    titles = ["photograph", "exact, all 5,400 points", f"{m} landmarks"]
    tabs.add(
        f"{m} landmarks",
        viz.show_grid([photo, *both], titles, columns=3),
        alt=f"A cup of coffee, its exact segments, and those from {m} landmarks, "
        f"which agree on {share[m]:.0%} of the points.",
        caption=f"Six segments of 5,400 points, exact and from {m} landmarks: "
        f"{share[m]:.0%} of the points agree.",
    )
tabs.show()

# %% [markdown]
# A thousand landmarks with masses come close to the exact cut here, and a few hundred do not; without masses a thousand do worse than a hundred with. ({numref}`fig-landmarks-and-ranking` asks more of the same photograph: ten segments of 8,100 cells, with another bandwidth.)
#
# And the channels? `trace_channels` knows no masses. Keep only some points, drawn at random or the landmarks, as one does when the gradient would not fit in memory, trace
# them, and compare the ranking of the largest segment with the exact one.

# %%
exact = trace_channels(bank, 6, sigma=width)
own = exact.mask(0)
first_five = set(exact.ranking("support", 0)[:5].tolist())
print("exact:", ", ".join(name for _, name, _ in exact.table(0, top=4)))


def traced_on(rows):
    """Three first channels of the segment with most of the exact one's points."""
    thin = trace_channels(bank.features[rows], 6, sigma=width, names=bank.names)
    j = int(F.one_hot(thin.segments[own[rows]], 6).sum(0).argmax())
    shared = first_five & set(thin.ranking("support", j)[:5].tolist())
    return [name for _, name, _ in thin.table(j, top=3)], len(shared)


# %%
agreed = {}
for m in (100, 300, 1000):
    drawn = torch.randperm(len(own), generator=torch.Generator().manual_seed(m))[:m]
    for how, rows in {
        "random": drawn.to(device),
        "landmarks": farthest_points(bank.features, m),
    }.items():
        names, agreed[how, m] = traced_on(rows)
        print(f"{m:5d} {how:9} {agreed[how, m]} of 5: {', '.join(names)}")
assert all(count < 5 for count in agreed.values())
assert agreed["random", 1000] > agreed["random", 100]

# %% [markdown]
# Even a thousand points, however chosen, miss some of the first five. Nothing in such a result says so, unless it
# says for how many points it was exact: `trace_channels` refuses to fall back to landmarks in silence.

# %%
try:
    trace_channels(bank, 6, max_exact=4000)
except ValueError as error:
    print(textwrap.fill(str(error), 84))
else:
    raise AssertionError("more points than max_exact were traced")

# %% [markdown]
# ## What it costs
#
# First on this machine, now. A product takes time in proportion to {math}`n^2`: where products are what costs, four times the points take sixteen times as long. **Is that so here?**


# %%
def blobs(n):
    """Ten groups in 64 channels."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 64, generator=generator)
    return (torch.randn(n, 64, generator=generator) + centres[torch.arange(n) % 10]).to(
        device
    )


# %%
sizes, live = (1000, 2000, 4000), []
for n in sizes:
    x = blobs(n).requires_grad_()
    start = time.perf_counter()
    U, _ = ncut_eigenvectors(Graph(x, 10.0, memory_limit=0), 10)
    Z = kway_ncut(U)
    Z[Z.argmax(1) == 0, 0].abs().mean().backward()
    live.append(time.perf_counter() - start)
    print(f"{n:6d} points: {live[-1]:6.2f} s, matrix-free, with gradient")
    assert torch.isfinite(x.grad).all()
print(f"four times the points: {live[-1] / live[0]:.1f} times as long")

# %% [markdown]
# If the factor is below sixteen, time does not yet grow like $n^2$ at these sizes. The committed measurements of `benchmarks/cut.py` go further. Their last column is
# the factor over the line before; where time grows like $n^2$ it is 4.

# %%
print(machine.lstrip("# ").replace("; Python", "\nPython"))
before = None
for row in free:
    took = float(row["seconds"])
    spread = f"({float(row['low']):.1f} to {float(row['high']):.1f})"
    factor = f"x {took / before:.1f}" if before else ""
    size = f"{int(row['n']):7,d} points: {took:7.1f} s {spread}"
    print(f"{size}, {float(row['peak_mb']):5.0f} MB  {factor}".rstrip())
    before = took

# %%
far = [[float(row[what]) for what in ("n", "seconds", "peak_mb")] for row in free]
points, seconds, memory = torch.tensor(far, dtype=torch.float64).log().T


def points_of(row):
    return int(row["n"])


def slope(values):
    """Of a straight line through the logarithms."""
    across = points - points.mean()
    return float((across * (values - values.mean())).sum() / across.square().sum())


print(f"time grows like n to the {slope(seconds):.2f}", end=", ")
print(f"memory like n to the {slope(memory):.2f}")
hours = far[-1][1] * (1e6 / far[-1][0]) ** 2 / 3600
print(f"a million points at that rate, on that machine: {hours:.0f} hours")
million = max((row for row in measured if row["task"] == "landmarks"), key=points_of)
print(f"through {million['contender']}: {float(million['seconds']):.0f} seconds")
assert 1.5 < slope(seconds) < 2.5 and slope(memory) < 1.2
assert million["shape"] == "clustered" and float(million["ari"]) > 0.99

# %% [markdown]
# Time grows about like {math}`n^2`, memory like {math}`n` or less. So the exact cut is a matter of waiting, and landmarks are for when that takes too long. The million points of the last line lie in ten groups, and the cut finds these; {numref}`fig-landmarks-and-ranking` shows what becomes of a photograph.
# The full comparison, with other packages, stands in [Benchmarks](../book/benchmarks.md).
#
# ## Many photographs at once
#
# Eight photographs of 48 x 48 cells are 18,432 points, cut jointly so that a segment can span several of them. The question is now which pictures share a segment, not which
# channel holds it together. **Will each photograph keep its segments for itself?**

# %%
names = [
    "astronaut",
    "coffee",
    "chelsea",
    "rocket",
    "hopper",
    "china",
    "flower",
    "motorcycle",
]
album = [load_photo(name, size=(384, 384)) for name in names]
many = filter_bank(album, grid=(48, 48)).to(device)
start = time.perf_counter()
solver = Ncut(8, max_exact=2500, n_landmarks=2500)
U_joint = solver.fit_transform(many.features)  # (n, 8)
joint = kway_ncut(U_joint).argmax(1)
joint = rearrange(joint, "(b h w) -> b h w", h=48, w=48)
print(
    f"{len(many.features):,} points through {solver.n_exact:,} landmarks: "
    f"{time.perf_counter() - start:.1f} s"
)

# %% tags=["hide-input"]
tabs = Gallery("joint-album")
for name, image, labels in zip(names, album, joint.cpu()):
    panels = [image, viz.Panel(image, segments=labels)]
    tabs.add(
        name,
        viz.show_grid(panels, ["photograph", "cut jointly with seven others"]),
        alt=f"{name}, and its part of the joint segments.",
        caption=f"{name}: {len(labels.unique())} of the 8 joint segments occur in it. "
        "A number means the same segment in every tab.",
    )
tabs.show()

# %%
spread = [int(reduce(joint == j, "b h w -> b", "any").sum()) for j in range(8)]
print("photographs in which each segment occurs:", spread)
assert max(spread) >= 6 and min(spread) <= 2

# %% [markdown]
# Some segments spread over most of the photographs, others lie in one or two. How close this comes to an exact cut of all eight is not measured here. A photograph that comes later, or lies on another machine, is placed among them by `transform`, from the landmarks alone.

# %%
new = filter_bank(load_photo("retina", size=(384, 384)), grid=(48, 48)).to(device)
elsewhere = solver.transform(new.features)  # (n, k)
again = solver.transform(many.features[:100])
print(
    f"{len(elsewhere):,} new points, from {solver.n_exact:,} landmarks "
    f"of {many.features.shape[1]} channels"
)
assert elsewhere.shape == (48 * 48, 8) and torch.isfinite(elsewhere).all()
assert torch.allclose(again, U_joint[:100], atol=1e-4)

# %% [markdown]
# ## Exercises
#
# ```{exercise}
# :label: ex-memory-needed
#
# **Predict.** You want the exact cut of 200,000 points with 384 channels in float32. How many GiB would the table of weights take, and how many do the features themselves take? Put both into `guess`.
# ```


# %% tags=["hide-input"]
def check_memory(guess):
    """Compares both numbers within 10% and says what was forgotten."""
    if guess is None:
        return "No guess yet: two numbers, in GiB."
    right = (4 * 200_000**2 / 2**30, 4 * 200_000 * 384 / 2**30)
    for said, true, what in zip(guess, right, ("the weights", "the features")):
        if abs(said / true - 1) > 0.1:
            near = abs(said / true - 2) < 0.2
            return f"Not yet: {what} take {true:.2f} GiB, not {said}. " + (
                "Float32 has 4 bytes, not 8."
                if near
                else "Entries times 4 bytes, over 2^30."
            )
    return f"Right: {right[0]:.0f} GiB of weights for {right[1]:.1f} GiB of features."


# %%
guess = None  # for example (10, 1)
print(check_memory(guess))

# %% [markdown]
# ```{solution-start} ex-memory-needed
# :class: dropdown
# ```

# %%
print(check_memory((149, 0.29)))
assert check_memory((149, 0.29)).startswith("Right")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-degrees-by-attention
#
# **Implement.** Attention gives {math}`D^{-1} W v`, but the cut also needs the degrees. Write `degrees(x, sigma)` with one call of `scaled_dot_product_attention` or `logsumexp`, without ever taking the exponential of a weight's row yourself.
# Mind the term that the softmax cancelled.
# ```


# %% tags=["hide-input"]
def check_degrees(function):
    """Compares with the row sums and recognises the term that is easily forgotten."""
    got, right = function(x12, 1.5), rbf_affinity(x12, sigma=1.5).sum(1)
    if got is None:
        return "Nothing returned yet."
    if torch.allclose(got, right, atol=1e-9):
        return "Right: the degrees, from logits alone."
    missing = (x12.square().sum(1) / (2 * 1.5**2)).exp()
    if torch.allclose(got, right * missing, rtol=1e-6):
        return (
            "Close: each row is too large by exp(|x_i|^2 / 2 sigma^2), "
            "the term that cancels in the softmax."
        )
    one = f"the first degree is {float(right[0]):.4f}"
    return f"Not yet: {one}, received {float(got[0]):.4f}."


x12 = torch.randn(12, 3, dtype=torch.float64)


# %%
def degrees(x, sigma):
    return None  # your turn


print(check_degrees(degrees))

# %% [markdown]
# ```{solution-start} ex-degrees-by-attention
# :class: dropdown
# ```


# %%
def degrees(x, sigma):
    y = x / sigma
    half = y.square().sum(1) / 2
    return (torch.logsumexp(y @ y.T - half, 1) - half).exp()


print(check_degrees(degrees))
assert check_degrees(degrees).startswith("Right")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-lost-by-landmarks
#
# **Break it.** Landmarks spread over the data as it lies in feature space. Build a data set with three groups in which 12 *random* rows miss the smallest group, but 12 landmarks chosen by farthest-point sampling find it. Put it into `data` as `(features, group)`.
# ```


# %% tags=["hide-input"]
def check_lost(data):
    """Samples both ways, ten times each."""
    if data is None:
        return "No data yet."
    x, group = data
    smallest = int(torch.bincount(group).argmin())
    hit = lambda rows: bool((group[rows] == smallest).any())
    random = sum(
        hit(torch.randperm(len(x), generator=torch.Generator().manual_seed(s))[:12])
        for s in range(10)
    )
    spread = sum(hit(farthest_points(x, 12, seed=s)) for s in range(10))
    if random > 3:
        return f"Random rows found it {random} times of 10: make that group smaller."
    return (
        f"Right: random rows found it {random} times of 10, landmarks {spread}."
        if spread == 10
        else (
            f"Landmarks missed it {10 - spread} times of 10: at most 96 rows are "
            "candidates here. Use fewer rows in all, or more in that group."
        )
    )


# %%
data = None
print(check_lost(data))

# %% [markdown]
# ```{solution-start} ex-lost-by-landmarks
# :class: dropdown
# ```

# %%
group = torch.cat([torch.zeros(60), torch.ones(32), torch.full((1,), 2.0)]).long()
data = (torch.randn(93, 2) + 20.0 * group[:, None], group)
print(check_lost(data))
assert check_lost(data).startswith("Right")

# %% [markdown]
# Farthest points go where no landmark is yet, so a small far group is found first. Outliers attract them too.
#
# ```{solution-end}
# ```
#
# ## In this notebook we have
#
# - **cut** a graph whose weights were never all in memory;
# - **seen** what changes when only some points are cut: the segments, and the channels behind them;
# - **measured** what a cut costs, and chosen between exact and landmarks.

# %% [markdown]
# Next: [Channel tracing](04_channel_tracing.ipynb), where the gradient of the cut becomes an answer: which channels hold this segment together?

# %% [markdown]
# ## Appendix: more than one machine
#
# For those who come back from later chapters. Channel statistics ([ParchGrad](07_parchgrad.ipynb)) and the sums of the ridge head ([CARROT](09_carrot_head.ipynb)) are sums over images: each process takes its share of the
# images, and one `all_reduce` at the end gives every process the numbers of a single machine. Besides opening and closing the group of processes, one line of the script below knows about it: the one that takes the share.

# %% tags=["hide-input"]
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import timm
from ctrace.carrot.pipeline import Carrot
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.world.datasets import aviary_splits
from ctrace.world.models import load_model
from ctrace.world.tokens import TimmViTPatchBackbone

# %%
code = """
import sys
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Subset
from ctrace.world.tokens import TimmViTPatchBackbone
from ctrace.world.datasets import aviary_splits
from ctrace.carrot.pipeline import Carrot
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.world.models import load_model

dist.init_process_group("gloo")  # "nccl" on GPUs
rank, world = dist.get_rank(), dist.get_world_size()
birds = aviary_splits(train=56, test=14)["train"]
share = Subset(birds, range(rank, len(birds), world))
resnet = load_model("aviary-resnet-0", device="cpu")
batches = ((resnet.info.preprocess(x), y) for x, y in DataLoader(share, 28))
statistics = ChannelStatistics.collect(resnet, batches, num_classes=14, progress=False)

vit = TimmViTPatchBackbone(load_model("aviary-vit-0", device="cpu"))
head = Carrot(vit, lam=1e-3).fit(share, num_classes=14, progress=False).head

if rank == 0:
    statistics.save(sys.argv[1] + "/statistics.safetensors")
    saved = {"weights": head.theta, "processes": world, "images": len(share)}
    torch.save(saved, sys.argv[1] + "/head.pt")
dist.destroy_process_group()
"""

# %%
script = Path(tempfile.mkdtemp()) / "many.py"
script.write_text(code)
torchrun = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
]
done = subprocess.run(
    [*torchrun, str(script), str(script.parent)],
    capture_output=True,
    text=True,
    env=os.environ | {"OMP_NUM_THREADS": "1"},
)
assert done.returncode == 0, done.stderr[-2000:]
saved = torch.load(script.parent / "head.pt")
print(f"the first of {saved['processes']} processes saw {saved['images']} of 56 images")
assert saved["processes"] == 2 and saved["images"] == 28

# %% [markdown]
# On a command line that is `torchrun --nproc-per-node 2 many.py folder`. **By how much will the result differ from one process that sees all 56 images?**

# %%
birds = aviary_splits(train=56, test=14)["train"]
resnet = load_model("aviary-resnet-0", device="cpu")  # on the CPU, as the processes are
batches = (
    (resnet.info.preprocess(x), y) for x, y in torch.utils.data.DataLoader(birds, 28)
)
whole = ChannelStatistics.collect(resnet, batches, num_classes=14, progress=False)
vit = load_model("aviary-vit-0", device="cpu")  # on the CPU, as the processes are
head = Carrot(TimmViTPatchBackbone(vit), lam=1e-3)
head = head.fit(birds, num_classes=14, progress=False).head
by_two = ChannelStatistics.load(script.parent / "statistics.safetensors")
apart = {
    "means": (by_two.moments.mean - whole.moments.mean).abs().max()
    / whole.moments.mean.abs().max(),
    "weights": (saved["weights"] - head.theta).abs().max() / head.theta.abs().max(),
}
print({name: f"{float(value):.0e}" for name, value in apart.items()})
assert all(float(value) < 1e-6 for value in apart.values())

# %% [markdown]
# By rounding. What would ImageNet cost, 1,281,167 images of 224 pixels? We measure one batch of the usual networks and multiply; what travels at the end is counted.

# %%
images = torch.rand(8, 3, 224, 224, device=device)
resnet50 = timm.create_model("resnet50", num_classes=1000).eval().to(device)
vit_small = timm.create_model("vit_small_patch16_224").eval().to(device)
carrot = Carrot(TimmViTPatchBackbone(vit_small), preprocess=lambda x: 2 * x - 1)
work = {
    "ResNet-50, forward": lambda: resnet50(images),
    "  channel statistics": lambda: ChannelStatistics.collect(
        resnet50, [(images, torch.arange(8))], progress=False
    ),
    "ViT-S/16, forward": lambda: vit_small(images),
    "  CARROT embeddings": lambda: carrot.embed(images),
}

# %%
print(f"on this machine's {device}, hours divided by the number of such machines")
took = {}
for name, step in work.items():
    with torch.no_grad():
        step()  # a warm-up
        start = time.perf_counter()
        step()
        took[name] = each = (time.perf_counter() - start) / len(images)
    print(
        f"{name:22s} {1e3 * each:6.1f} ms per image, "
        f"ImageNet in {1_281_167 * each / 3600:5.1f} h"
    )
forward, collect, vit, embed = took.values()
print(f"statistics add {collect / forward - 1:.0%}, embeddings {embed / vit - 1:.0%}")
channels = sum(
    m.out_channels for m in resnet50.modules() if isinstance(m, torch.nn.Conv2d)
)
print(
    f"all-reduce, per process: statistics {16 * 1000 * channels / 2**20:.0f} MB, "
    f"ridge sums {8 * (384**2 + 384 * 1000) / 2**20:.1f} MB"
)

# %% [markdown]
# The last two lines say what statistics and embeddings add to a forward pass, and what travels between processes at the end; that is the same for
# any number of images. The cut itself is not split over machines: cut a joint graph of landmarks, as above, and let every machine place its own images with `transform`.

# %%
print(
    f"{time.perf_counter() - started:.0f} seconds on {device}, "
    f"{torch.get_num_threads()} threads"
)
