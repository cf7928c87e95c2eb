# %% [markdown]
# # Grad-CAM for embeddings
#
# **What made the network say that two pictures show the same bird? A map can answer that. It has to change with the picture that the bird is compared with, and where the question has no answer it has to stay empty.**

# %% [markdown] tags=["remove-cell"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ctrace-book/ctrace/blob/main/notebooks/06_gradcam_embeddings.ipynb)

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
# - **verify** who is who, with a threshold chosen on birds that are not the test birds,
# - **explain** pairs: both pictures, against an impostor, with another reference, and two photographs of one thing,
# - **refuse** the questions whose gradient is zero, before somebody rescales it into a picture.
#
# You need [Grad-CAM](05_gradcam.ipynb) for the map itself. The last cell prints how long this page took to run.

# %% tags=["hide-input"]
import time

import numpy as np
import timm
import torch
import torch.nn.functional as F
from ctrace import viz
from ctrace.aviary import PARTS, SPECIES, Individuals, render
from ctrace.look.gradcam import GradCAM
from ctrace.look.hooks import capture
from ctrace.stats import bootstrap, equal_error_rate
from ctrace.trust.hide import filled
from ctrace.viz.gallery import Gallery, show_figure
from ctrace.world.features import conv_features
from ctrace.world.models import load_model
from ctrace.world.photos import load_photo, photo_names
from einops import rearrange, reduce
from skimage.data import lbp_frontal_face_cascade_filename, lfw_subset
from skimage.feature import Cascade
from sklearn.metrics import roc_auc_score
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

started = time.time()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = load_model("aviary-embedding", device=device)
print(f"torch {torch.__version__} on {device}")

# %% [markdown]
# ## The idea
#
# A network that recognises individuals has no classes. It turns a picture $x$ into an embedding $g(x)$, and takes two pictures for the same individual if their embeddings point in nearly the same direction.
# Here are three birds of one species, four views each. A bird keeps its marks, the dark spots on its body, and the proportions of head and body; colours, pose and place change.


# %%
def views(split, birds, species=None, count=4):
    """Renderings of `count` views of each bird, a list of length birds * count."""
    data = Individuals(split, birds, count, species=species)
    return [render(data.scene(i)) for i in range(len(data))]


def embed(pictures):
    x = model.info.preprocess(torch.stack([p.image for p in pictures]).to(device))
    with torch.no_grad():
        return model(x).cpu()


# %%
same_species = views("test", 30, SPECIES[0])
show_figure(
    viz.show_grid(
        [p.image for p in same_species[:12]],
        [f"bird {i // 4}" for i in range(12)],
        columns=6,
    ),
    name="embedding-birds",
    alt="Twelve small pictures: three birds of one species, four views of each in "
    "other colours before other backgrounds.",
    caption="Three birds of one species, four views of each. Colour says nothing; the "
    "spots and the proportions do.",
)

# %% [markdown]
# So the score is the cosine between $g$ and a reference $r$, the embedding of another picture. Its gradient is what $g$ lacks of the direction of $r$: the unit vector of $r$ without its part along $g$, divided by the length of $g$.
#
# $$
# s = \cos(g, r) = \frac{g^\top r}{\lVert g\rVert\,\lVert r\rVert},
# \qquad
# \frac{\partial s}{\partial g} = \frac{1}{\lVert g\rVert}\Big(\frac{r}{\lVert r\rVert} - s\,\frac{g}{\lVert g\rVert}\Big) .
# $$ (cosine-slope)
#
# From there on everything is as before: the gradient goes back to a layer, and its mean over places weighs the channels.
#
# ## By hand
#
# Embeddings of two numbers: $g = (3, 4)$ and $r = (1, 0)$. The length of $g$ is 5 and the score $s = 3/5$. The part of $r$ along $g$ is $0.6\,(0.6, 0.8) = (0.36, 0.48)$; without it $(0.64, -0.48)$ is left of $r$, and a fifth of that is the gradient, $(0.128, -0.096)$.
# In which direction does it point, seen from $g$?

# %%
g, r = (
    torch.tensor([3.0, 4], dtype=torch.double, requires_grad=True),
    torch.tensor([1.0, 0], dtype=torch.double),
)
score = g @ r / (g.norm() * r.norm())
by_hand = ((r / r.norm() - score * g / g.norm()) / g.norm()).detach()
(slope,) = torch.autograd.grad(score, g)
print(
    f"score {score.item():.2f}, slope {by_hand.tolist()}, along g: "
    f"{float(by_hand @ g.detach()):.0e}"
)

# %%
assert (
    torch.allclose(slope, by_hand, atol=1e-15)
    and abs(float(by_hand @ g.detach())) < 1e-12
)

# %% [markdown]
# Across $g$, since $3 \cdot 0.128 = 4 \cdot 0.096$: making an embedding longer makes it no more similar. And where $r$ points in the direction of $g$ the bracket is zero, so there is nothing to find.

# %%
self_slope = ((g / g.norm() - 1.0 * g / g.norm()) / g.norm()).detach()
print("slope of a pair of equal embeddings:", self_slope.tolist())
assert not self_slope.any()

# %% [markdown]
# Now a whole map, written out in double precision, for the first two views of the first bird; then the same from `ctrace`.

# %%
LAYER = "layer3"
net64 = load_model("aviary-embedding", device=device).double()
x64 = model.info.preprocess(torch.stack([p.image for p in same_species[:2]]))
x64 = x64.double().to(device)
reference = net64(x64[1:]).detach()

# %%
with capture(net64, LAYER) as seen:
    g = net64(x64[:1])
    cosine = F.cosine_similarity(g, reference)
    slope = reference / reference.norm() - cosine * g / g.norm()
    seen.backward(g, (slope / g.norm()).detach())
alpha = seen[LAYER].gradient.mean((2, 3))  # (1, c)
literal = torch.einsum("bc,bchw->bhw", alpha, seen[LAYER].activation)

# %%
small = GradCAM(net64, LAYER).explain(x64[:1], target_embedding=reference[0])
difference = float((small.raw - literal).abs().max())
print(
    f"{small.target[0]}: {small.score.item():.3f}; largest difference {difference:.0e}"
)
assert (small.raw - literal).abs().max() < 1e-12 * max(1, float(literal.abs().max()))

# %% [markdown]
# ## Who is this?
#
# A *genuine* pair shows one bird twice, an *impostor* pair two birds. A threshold on the cosine accepts a pair or turns it away. It is chosen on validation birds, where the share of genuine pairs
# turned away equals the share of impostors let in, the *equal error rate*. Two tests: birds of all species, and birds of one species only. **Which will be harder?** Within a species nothing but the individual tells two birds apart.


# %%
def pairs(pictures):
    """Cosine of all pairs, and whether a pair is genuine."""
    unit = F.normalize(embed(pictures), dim=1)
    bird = torch.arange(len(unit)) // 4
    upper = torch.triu(torch.ones(len(unit), len(unit), dtype=torch.bool), 1)
    return (unit @ unit.T)[upper], (bird[:, None] == bird)[upper]


def rates(cosine, genuine, threshold):
    """Share of genuine pairs turned away, share of impostors let in."""
    return float((cosine[genuine] < threshold).float().mean()), float(
        (cosine[~genuine] >= threshold).float().mean()
    )


# %%
groups = {"all species": None, "one species": SPECIES[0]}
threshold = {}
val_views = {group: views("val", 30, species) for group, species in groups.items()}
for group, pictures in val_views.items():
    cosine, genuine = pairs(pictures)
    steps = cosine.quantile(torch.linspace(0, 1, 400))
    gap = torch.tensor([abs(np.subtract(*rates(cosine, genuine, t))) for t in steps])
    threshold[group] = float(steps[gap.argmin()])
print({group: f"{t:.3f}" for group, t in threshold.items()})

# %%
test_views = {"all species": views("test", 30), "one species": same_species}
tested, error = {group: pairs(pictures) for group, pictures in test_views.items()}, {}
for group, (cosine, genuine) in tested.items():
    error[group] = equal_error_rate(cosine[genuine], cosine[~genuine])
    away, let_in = rates(cosine, genuine, threshold[group])
    print(f"{group}: {int(genuine.sum())} genuine pairs", end=", ")
    print(f"{int((~genuine).sum())} of impostors, equal error rate {error[group]:.1%};")
    print(
        f"    at the validation threshold {away:.1%} turned away, {let_in:.1%} let in"
    )

# %% tags=["hide-input"]
false = torch.logspace(-3, 0, 40)


def accepted(cosine, genuine):
    """Share of genuine pairs accepted where a share `false` of the impostors is."""
    limits = cosine[~genuine].quantile(1 - false)
    return (cosine[genuine][:, None] >= limits).float().mean(0)


show_figure(
    viz.show_curves(
        false,
        {name: accepted(*t) for name, t in tested.items()} | {"coin": false},
        "impostors accepted",
        "genuine pairs accepted",
        logx=True,
    ),
    name="embedding-roc",
    alt="Two curves of genuine against impostor acceptance on a logarithmic axis, and "
    "the curve of a coin.",
    caption="Receiver operating characteristic on 30 held-out birds per group, four "
    "views each. The coin accepts both kinds equally often.",
)

# %%
gain = accepted(*tested["one species"]) - accepted(*tested["all species"])
apart = error["one species"] - error["all species"]
above = float((gain > 0).float().mean())
print(
    f"error rates {apart:+.1%} apart; the curve of one species is the higher one",
    end="",
)
print(f" at {above:.0%} of the rates")
assert abs(error["one species"] - error["all species"]) < 0.02
assert gain.max() > -gain.min()  # the prediction "one species is harder" fails
assert error["all species"] < 0.15
assert all(float(c[g].mean()) > float(c[~g].mean()) for c, g in tested.values())

# %%
kinds = (torch.arange(120) // 4) % len(SPECIES)
other_bird = (torch.arange(120) // 4)[:, None] != torch.arange(120) // 4
alike = float((kinds[:, None] == kinds)[other_bird].float().mean())
print(f"all species: {alike:.0%} of the impostor pairs share their species")
assert alike < 0.1

# %% [markdown]
# One species is hardly harder: its error rate is 0.6 points higher, the curves cross, and where they part most its own is on top. That had to be measured: over all species most impostors are of another species, and a network that knows
# species and no individuals could turn those away.
#
# ## What the similarity rests on
#
# Before any map, the truth: a bird can be drawn again without its marks, or without its beak. How much of its similarity to another view is lost? Predict where
# most: birds of one species all have the same beak, crest, wing, tail and legs.


# %%
def next_view(embeddings, step=1):
    """For every picture the embedding of another view of its bird."""
    by_bird = rearrange(embeddings, "(bird view) d -> bird view d", view=4)
    return rearrange(by_bird.roll(-step, 1), "bird view d -> (bird view) d")


# %%
data = Individuals("test", 30, 4, species=SPECIES[0])
probe = list(range(0, 120, 4))  # the first view of each bird

# %%
references = next_view(embed(same_species))[probe]
before = F.cosine_similarity(embed([same_species[i] for i in probe]), references)
lost = {}
for part in ("marks", *PARTS):
    bare = embed([render(data.scene(i).without(part)) for i in probe])
    lost[part] = float((before - F.cosine_similarity(bare, references)).mean())
    print(f"{part:6s} similarity lost {lost[part]:+.3f}")

# %%
assert error["one species"] < 0.25
assert max(lost, key=lost.get) == "marks" and lost["marks"] > 3 * max(
    v for part, v in lost.items() if part != "marks"
)

# %% [markdown]
# The marks, by far. So a map of the similarity should point at the marks: spots of a few pixels, less than a hundredth of the picture. Layer and method are chosen on validation pairs, by the share of
# positive evidence inside the marks.


# %%
def batch_of(pictures):
    return model.info.preprocess(torch.stack([p.image for p in pictures]))


def inside(heat, masks):
    """Share of the positive evidence inside each mask (b,)."""
    heat = torch.as_tensor(heat).clamp_min(0)
    return (heat * masks).sum((1, 2)) / heat.sum((1, 2)).clamp_min(1e-12)


# %%
tune = val_views["one species"][:80]

# %%
marks = torch.stack([p.masks["marks"] for p in tune])
share = {}
for layer in ("layer1", "layer2", "layer3", "layer4"):
    for method in ("gradcam", "hirescam"):
        heat = (
            GradCAM(model, layer, method=method)
            .explain(batch_of(tune), target_embedding=next_view(embed(tune)))
            .heatmap()
        )
        share[layer, method] = float(inside(heat, marks).mean())

# %%
LAYER, METHOD = max(share, key=share.get)
for (layer, method), value in share.items():
    print(
        f"{layer} {method:8s} {value:.3f}",
        "  chosen" if (layer, method) == (LAYER, METHOD) else "",
    )
print(f"chance          {float(marks.mean()):.3f}")

# %% [markdown]
# Now all 120 pictures of the test birds, against chance (the area) and a centred Gaussian as wide as the validation birds. Intervals are over the 30 birds: four views of one bird are not four birds.

# %%
centre = (torch.arange(96) + 0.5) / 96 - 0.5
radius2 = (centre[:, None] ** 2 + centre**2) / 2
birds = torch.stack([p.bird for p in tune])
gaussian = torch.exp(-radius2 / ((birds * radius2).sum() / birds.sum()))

# %%
cam = GradCAM(model, LAYER, method=METHOD)
heat = torch.from_numpy(
    cam.explain(
        batch_of(same_species), target_embedding=next_view(embed(same_species))
    ).heatmap()
)


def pointing(heat, masks):
    """Share of the largest values that lie inside the mask (b,)."""
    top = (heat == heat.amax((1, 2), keepdim=True)) & (
        heat.amax((1, 2), keepdim=True) > 0
    )
    return (top & (masks > 0.5)).sum((1, 2)) / top.sum((1, 2)).clamp_min(1)


# %%
for what, masks in (
    ("marks", [p.masks["marks"] for p in same_species]),
    ("bird", [p.bird for p in same_species]),
):
    masks = torch.stack(masks)
    blob, area = gaussian.expand(120, -1, -1), masks.mean((1, 2))
    for name, measure in (("pointing", pointing), ("mass", inside)):
        of_map, of_blob = (float(measure(m, masks).mean()) for m in (heat, blob))
        print(
            f"{what:5s} {name:8s}: map {of_map:.3f}, Gaussian {of_blob:.3f}", end=", "
        )
        print(f"chance {area.mean():.3f}")
    if what == "marks":
        assert area.mean() < 0.01 and pointing(heat, masks).mean() < 0.6
        ahead = {
            "pointing": pointing(heat, masks) - pointing(blob, masks),
            "mass": inside(heat, masks) - inside(blob, masks),
            "mass over chance": inside(heat, masks) - area,
        }

# %%
assert (
    pointing(blob, masks).mean() >= pointing(heat, masks).mean()
)  # on the whole bird, the last masks of the loop
for name, values in ahead.items():
    per_bird = reduce(values, "(bird view) -> bird", "mean", view=4)
    half = 1.96 * float(per_bird.std()) / 30**0.5
    print(
        f"marks, {name} minus the Gaussian's"
        if "chance" not in name
        else f"marks, {name}",
        f"{per_bird.mean():+.3f} ± {half:.3f}",
    )
    assert float(per_bird.mean()) > half

# %% [markdown]
# The maps point at the marks more often than chance and than a blob, but only in about one picture of four. On the *whole bird* the blob wins the pointing game: every bird has a part of itself in the middle, and
# a map can be right about the bird and say nothing about who it is.
#
# ## Both pictures of a pair
#
# Each picture is explained by its similarity to the other, in one pass. Red is where more of what is there would raise the similarity, blue where it would lower it.


# %% tags=["hide-input"]
def pair_figure(a, b):
    """Each picture, its signed map, and both; the score; the map's largest cell."""
    result = cam.explain_pair(batch_of([a]), batch_of([b]))
    panels = []
    for p, raw, heat in zip((a, b), result.raw, result.heatmap(False, False)):
        panels += [p.image, raw, viz.Panel(p.image, heat)]
    figure = viz.show_grid(
        panels,
        ["picture", "signed map", "laid over"],
        columns=3,
        rows=["first", "second"],
        unit="weight x activation",
    )
    return figure, float(result.score[0]), float(result.raw.abs().max())


# %% tags=["hide-input"]
mixed = test_views["all species"]
examples = [
    (same_species, 0, 1, "the same bird"),
    (same_species, 20, 22, "the same bird"),
    (mixed, 8, 9, "the same bird"),
    (same_species, 0, 4, "two birds of one species"),
    (mixed, 8, 20, "two birds of two species"),
]
tabs, largest = Gallery("embedding-pairs"), []
for number, (pictures, i, j, what) in enumerate(examples, 1):
    figure, score, most = pair_figure(pictures[i], pictures[j])
    largest.append(most)
    tabs.add(
        f"Example {number}",
        figure,
        alt=f"Two pictures ({what}), with the signed map of each for its similarity to "
        "the other.",
        caption=f"{what.capitalize()}, cosine {score:.2f}. Each row is explained by "
        f"the other; one scale for both rows, largest cell {most:.2f}.",
    )
tabs.show()

# %%
print("largest cell, one bird:", [f"{v:.3f}" for v in largest[:3]], end=", ")
print("two birds:", [f"{v:.3f}" for v in largest[3:]])
assert max(largest[:3]) < min(largest[3:])

# %% [markdown]
# In these examples the pairs of two birds have the larger cells: near its top a cosine is nearly flat, and its map small. The score is one number for both pictures, but each has its own map. The maps of a pair must be those of two single questions:

# %%
a, b = same_species[0], same_species[1]

# %%
both = cam.explain_pair(batch_of([a]), batch_of([b]))
single = cam.explain(batch_of([a, b]), target_embedding=embed([b, a]))
print("scores", [f"{v:.4f}" for v in both.score.tolist()])
assert torch.allclose(both.score[0], both.score[1], atol=1e-6)
assert torch.allclose(both.raw, single.raw, atol=1e-5 * float(both.raw.abs().max()))

# %% [markdown]
# ## Against an impostor
#
# *What makes it this bird rather than that one?* Subtract the similarity to an impostor. The map is linear in the score, so the map of this *contrast* must be the difference of the two.

# %%
impostor = same_species[4]
x, (ra, rb) = batch_of([a]), embed([b, impostor])

# %%
to_bird, to_impostor = (cam.explain(x, target_embedding=r) for r in (ra, rb))

# %%
contrast = cam.explain(x, target_embedding=ra, baseline_embedding=rb)
error_ = float(
    (contrast.raw - (to_bird.raw - to_impostor.raw)).abs().max()
    / contrast.raw.abs().max()
)
print(
    f"{contrast.target[0]}: {contrast.score.item():+.3f}; difference {error_:.0e} of "
    "the largest cell"
)
assert error_ < 1e-4 and METHOD == "hirescam"

# %%
three = (to_bird, to_impostor, contrast)
show_figure(
    viz.show_grid(
        [viz.Panel(a.image, r.heatmap(False, False)[0], outline=a.bird) for r in three],
        ["like the same bird", "like the impostor", "rather than the impostor"],
        unit="weight x activation",
    ),
    name="embedding-contrast",
    alt="Three overlays of one picture: similarity to the same bird, to an impostor, "
    "and the difference of the two.",
    caption="One picture, three questions, one scale. The contrast is the first map "
    "minus the second.",
)

# %% [markdown]
# The first panel is pale, as the pair is nearly as similar as it can be. Against an impostor there is more to say. Blue does not contradict a score above zero:
# the colours say where more of a channel would raise or lower the score, and a cosine is not the sum of its map. How far apart are the two?

# %%
size = [float(r.raw.abs().max()) for r in three]
print("largest cells:", [f"{v:.1e}" for v in size])
assert size[0] < size[2]
blue = float(contrast.raw.clamp_max(0).sum() / contrast.raw.abs().sum())
print(
    f"contrast: score {contrast.score.item():+.2f}, sum of its map "
    f"{float(contrast.raw.sum()):+.2f}, share of blue {-blue:.0%}"
)
assert contrast.score.item() > 0.5 and -blue > 0.4

# %% [markdown]
# ## Another reference, another map
#
# A map can ignore the reference, and show where a bird is whoever it is compared with. So keep each of the 120 pictures and change the reference: the
# second view of the bird, its third view, a view of another bird of its species. Which maps should be alike, for the cosine and for the dot product?


# %%
x, g = batch_of(same_species), F.normalize(embed(same_species), dim=1)
asked = {
    "second view": next_view(g),
    "third view": next_view(g, 2),
    "another bird": g.roll(28, 0),
}
maps = {
    (kind, who): cam.explain(x, target=kind, target_embedding=r).raw.flatten(1).cpu()
    for kind in ("cosine", "dot")
    for who, r in asked.items()
}


def correlation(one, two):
    """Row by row."""
    one, two = (m - m.mean(1, keepdim=True) for m in (one, two))
    return (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1)).clamp_min(1e-12)


# %%
alike = {
    (kind, who): correlation(maps[kind, "second view"], maps[kind, who])
    for kind in ("cosine", "dot")
    for who in ("third view", "another bird")
}
for (kind, who), values in alike.items():
    print(
        f"{kind:6s} second view, {who:12s}: median correlation {values.median():+.2f}, "
        f"largest {values.max():.3f}, above .9 for {int((values > 0.9).sum())} of 120"
    )

# %%
change = (maps["cosine", "second view"] - maps["cosine", "another bird"]).norm(
    dim=1
) / maps["cosine", "another bird"].norm(dim=1)
print(f"cosine, another bird: smallest change of a map {change.min():.2f} of its size")

# %%
# every picture: another reference, another map
assert change.min() > 0.25 and alike["cosine", "another bird"].max() < 0.999
assert 0 < int((alike["cosine", "another bird"] > 0.9).sum()) < 12  # a few: one place
for kind in ("cosine", "dot"):
    assert (
        alike[kind, "third view"].median() > alike[kind, "another bird"].median() + 0.2
    )
assert alike["dot", "third view"].median() > alike["cosine", "third view"].median()

# %% [markdown]
# Every map changes by more than a quarter of its size when the reference is another bird; in the median its pattern changes less between two views of one bird. But for a few of the 120 pictures only the strength
# changes, and the pattern stays, with a correlation of up to .99: such a picture shows the same place whoever it is compared with. The dot product is steadier than the cosine. The gradient of a cosine
# is what the embedding still *lacks* {eq}`cosine-slope`: for a close pair, whatever this one view happens to leave. For close pairs ask the dot product, or a contrast.

# %% [markdown]
# ## Questions without an answer
#
# Three questions have a gradient that is zero by calculus; what arithmetic leaves is rounding, and dividing it by its maximum makes a picture of it. Here a picture is compared with itself: what is the largest value of the
# rescaled map?


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


# %%
x, self_embedding = batch_of([a]).to(device), embed([a])
map_of = {
    "gradcam": lambda r: r.gradient.mean((2, 3), keepdim=True) * r.activation,
    "hirescam": lambda r: r.gradient * r.activation,
}[METHOD]
with capture(model, LAYER) as seen:
    seen.backward(F.cosine_similarity(model(x), self_embedding.to(device)).sum())

# %%
plain = map_of(seen[LAYER]).sum(1)
rescaled = (plain - plain.min()) / (plain.max() - plain.min())
print(
    f"largest value {plain.abs().max():.0e}, after rescaling {rescaled.max():.1f};",
    end="",
)
print(f" the pair above reaches {both.raw.abs().max():.0e}")
assert plain.abs().max() < 1e-3 * both.raw.abs().max() and rescaled.max() == 1

# %%
said(
    lambda: cam.compute_attribution(x, target_embedding=self_embedding[0]),
    "saturated_target",
    "Compare two different images",
)

# %% [markdown]
# The second question is the norm, taken as the score where there is no reference. Many networks end in a normalisation, and then it is 1 whatever they see. The third is a contrast whose two sides are the same.


# %%
class Normalised(nn.Module):
    """Any network, with embeddings of length 1."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return F.normalize(self.model(x), dim=1)


unit_model = Normalised(model).eval()
on_unit = GradCAM(unit_model, f"model.{LAYER}", method=METHOD)
said(
    lambda: on_unit.compute_attribution(x, target="norm"),
    "no gradient",
    "Ask for a similarity",
)
said(
    lambda: on_unit.compute_attribution(x, target_embedding=ra, baseline_embedding=ra),
    "two sides cancel",
)

# %% [markdown]
# Without the normalisation the norm is an ordinary score with an ordinary map. And where one question of a batch has no answer, `explain` gives the others theirs:

# %%
mixed_batch = cam.explain(
    batch_of([a, b]), target_embedding=embed([a, a])
)  # the first is compared with itself
print(mixed_batch.status, "| norm:", cam.explain(x, target="norm").status)
assert (
    mixed_batch.status == ["saturated_target", "ok"]
    and not mixed_batch.raw[0].any()
    and mixed_batch.raw[1].any()
)
assert cam.explain(x, target="norm").status == ["ok"]

# %% [markdown]
# ## A pair of real photographs
#
# SqueezeNet learned a thousand classes and was never asked to verify anything. Its maps at `fire9`, before the classifier, make an embedding all the same: their mean over all
# places, minus the mean of that over the twelve photographs of this book. Two of these are views of one motorcycle. **Which photograph is most similar to the left view, and which comes second?**

# %%
SHAPE = (240, 320)
names = photo_names()
photos = {name: load_photo(name, SHAPE[::-1]) for name in names}
network = load_model("squeezenet", device=device)
pixels = torch.stack([pil_to_tensor(photo) / 255 for photo in photos.values()])
seen_by = network.info.preprocess(pixels, SHAPE).to(device)


class PhotoEmbedding(nn.Module):
    """Mean over places of the last maps of a network, minus a centre."""

    def __init__(self, features, centre):
        super().__init__()
        self.features, self.centre = features, centre

    def forward(self, x):
        return reduce(self.features(x), "b c h w -> b c", "mean") - self.centre


# %%
with torch.no_grad():
    bare = PhotoEmbedding(network.features, 0.0)(seen_by)
centre = bare.mean(0)
of_photo = PhotoEmbedding(network.features, centre).eval()
stereo = [names.index("motorcycle"), names.index("motorcycle_right")]
left = names.index("motorcycle")
likeness = F.cosine_similarity(bare - centre, (bare - centre)[left], dim=1)
without_centre = F.cosine_similarity(bare, bare[left], dim=1)
order = likeness.argsort(descending=True).tolist()

# %% tags=["hide-input"]
show_figure(
    viz.show_grid(
        [photos[names[k]] for k in order],
        ["left view"] + [f"{likeness[k]:+.2f}" for k in order[1:]],
        columns=6,
    ),
    name="photo-likeness",
    alt="Twelve photographs: the left view of a red motorcycle, then the other eleven "
    "in order of their similarity to it.",
    caption="Cosine to the left view of the motorcycle. The right view comes first, "
    "an astronaut before a flag and a shuttle second.",
)
second = order[2]
print(
    f"right view {likeness[order[1]]:.2f}, {names[second]} {likeness[second]:.2f}; "
    f"without the centre {without_centre[order[1]]:.2f} and "
    f"{without_centre[second]:.2f}"
)

# %%
assert names[order[1]] == "motorcycle_right" and likeness[order[1]] > 0.9
assert likeness[second] < 0.4 and without_centre[second] > 0.6
assert without_centre.min() > 0.2 > 0 > likeness.min()

# %% [markdown]
# The right view, far before anything else. The centre does part of that: without it the second reaches .74 instead of .28, and no cosine is negative.
#
# What does the similarity rest on? For close pairs this page advised the dot product. The embedding is a mean over places, so the dot product with a fixed reference *is* a sum
# over places, and its map must add up to the score once each place has paid its part of the centre:

# %%
two, other = seen_by[stereo], (bare - centre)[stereo[::-1]]
on_photo, asked_as = GradCAM(of_photo, "features.12"), ("dot", "cosine")
pair = {k: on_photo.explain(two, target=k, target_embedding=other) for k in asked_as}
h, w = pair["dot"].raw.shape[1:]
share_of = {
    "dot": pair["dot"].raw - ((other @ centre) / (h * w))[:, None, None],
    "cosine": pair["cosine"].raw,
}

# %%
total = reduce(share_of["dot"], "b h w -> b", "sum")
print("dot product", pair["dot"].score.tolist(), "sum of its map", total.tolist())
assert torch.allclose(total, pair["dot"].score.to(total), rtol=1e-4)

# %% [markdown]
# Which map says what the similarity rests on? Blur a fifth of the cells of one view and compare it with the other, untouched view. **Predict three numbers: the cosine without the top cells
# of each map, and without as many random cells.** Scattered cells hurt in another way than a block does, so the top cells of the dot product are also moved to other places, as one piece.


# %%
def top_cells(values, count):
    """Mask (h, w) of the largest values."""
    return (values >= values.flatten().topk(count).values[-1]).cpu()


@torch.no_grad()
def blurred(view, masks):
    """Cosine to the other view when cells of masks (n, h, w) are blurred: (n,)."""
    hidden = F.interpolate(masks[:, None].float(), SHAPE, mode="nearest") > 0
    shown = blur[view].where(hidden.to(device), two[view])
    return F.cosine_similarity(of_photo(shown), other[view, None]).cpu()


# %%
blur = filled(two, "blur")
count, draw = round(0.2 * h * w), torch.Generator().manual_seed(0)
tops = {k: [top_cells(v, count) for v in signed] for k, signed in share_of.items()}
moves = torch.stack([torch.randint(2, n - 1, (20,), generator=draw) for n in (h, w)], 1)
left_over = {}
for view, side in enumerate(("left", "right")):
    scattered = torch.rand(20, h * w, generator=draw).argsort(1) < count
    masks = {
        "top of the dot product": tops["dot"][view][None],
        "top of the cosine": tops["cosine"][view][None],
        "random cells": rearrange(scattered, "n (h w) -> n h w", h=h),
        "top of the dot product, moved": torch.stack(
            [tops["dot"][view].roll(m, (0, 1)) for m in moves.tolist()]
        ),
    }
    left_over[side] = {what: blurred(view, mask) for what, mask in masks.items()}

# %% tags=["hide-input"]
lines = {
    side: {
        what: [[float(v.mean()), float(v.min()), float(v.max())]]
        for what, v in found.items()
    }
    for side, found in left_over.items()
}
for side, found in lines.items():
    for what, [(mean, low, high)] in found.items():
        print(f"{side:5s} {what:30s} {mean:.2f}   {low:.2f} to {high:.2f}")

# %% tags=["hide-input"]
tabs, panels = Gallery("photo-pair"), []
for view, name in enumerate(("motorcycle", "motorcycle_right")):
    for kind in asked_as:
        limit = share_of[kind].abs().max()
        heat = F.interpolate(
            (share_of[kind][[view]] / limit)[None], SHAPE, mode="bilinear"
        )[0, 0]
        panels.append(viz.Panel(photos[name], heat.cpu()))
    panels.append(viz.Panel(viz.spotlight(photos[name], ~tops["dot"][view])))
tabs.add(
    "Maps",
    viz.show_grid(
        panels,
        ["dot product", "cosine", "without its top fifth"],
        columns=3,
        rows=["left", "right"],
        unit="share of the largest cell",
    ),
    alt="Two views of a motorcycle, each with the map of a dot product and of a "
    "cosine over it, and with the fifth of the cells that the test hides.",
    caption="What makes each view like the other. Dot product: shares that add up to "
    "it. Cosine: slopes. Right: the pale cells are blurred in the test.",
)

# %% tags=["hide-input"]
tabs.add(
    "Removed",
    viz.show_intervals(
        lines,
        ["mean and range of all draws"],
        "cosine to the other view",
        reference=float(likeness[order[1]]),
    ),
    alt="Cosine left when a fifth of the cells is blurred: least for the top of the "
    "dot product, more for random and moved cells.",
    caption="Cosine left when a fifth of the cells of one view is blurred: 20 draws "
    "of random cells, 20 places for the moved ones. Dashed: nothing blurred.",
)
tabs.show()

# %%
for found in left_over.values():
    dot, cosine, random, moved = found.values()
    assert dot < random.min() and dot < moved.min()  # rank 1 of 21, twice
    assert dot < cosine - 0.1 and cosine < random.mean()

# %% [markdown]
# The similarity rests where the dot product says: without its top cells less is left than after any of the 20 random draws and at any of the 20 other places, in both views.
# The cosine's top cells cost more than the mean random draw, and far less than those of the dot product: its map says what would make the two *more* similar, which is another question.
#
# ### Faces, as far as real ones can be had
#
# This book carries no face model and no identities: the hundred faces that scikit-image ships, 25 by 25 grey pixels of *Labeled Faces in the Wild*, have no names. So this is
# detection, not verification. Half of the faces and half of a hundred other patches train a linear read-out on SqueezeNet's maps, at `fire5` and at `fire7`. **Both are tested on the other half,
# and then on photographs. Will the first test say which is better?**

# %%
SIDE, SCALES = (
    56,
    (70, 100, 140),
)  # of a patch, enlarged; of a photograph, in its pixels
is_face = torch.arange(200) < 100
shuffle = torch.Generator().manual_seed(0)
halves = [100 * kind + torch.randperm(100, generator=shuffle) for kind in (0, 1)]
train, test = (
    torch.cat([half[s] for half in halves]) for s in (slice(50), slice(50, 100))
)
patches = torch.from_numpy(lfw_subset()).float()[:, None].expand(-1, 3, -1, -1)
watched = ("hopper", "astronaut", "chelsea", "coffee", "motorcycle_right")


def resized(x, size):
    return F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)


# %%
def cells(images, layer):
    """Maps (b, c, h, w) of a layer, each cell of length 1, in double precision."""
    grid = conv_features(list(images), network, layer, 16, unit=False, centre=False)
    maps = rearrange(grid.maps(), "b h w c -> b c h w").cpu()
    return F.normalize(maps.double(), dim=1)  # a cell without evidence stays zero


def pyramid(name, layer):
    """A grey photograph at three scales, as coarse as a patch, as maps of a layer."""
    grey = pil_to_tensor(load_photo(name, 480)).float().mean(0) / 255
    for scale in SCALES:
        size = [round(side * scale / 480) for side in grey.shape]
        coarse = resized(grey.expand(1, 3, -1, -1), size)
        yield cells(resized(coarse, [round(n * SIDE / 25) for n in size]), layer)


# %%
def read_out(layer):
    """A ridge on the training patches, as a filter and an offset; test scores."""
    found = cells(resized(patches, (SIDE, SIDE)), layer)
    rows = rearrange(found, "b c h w -> b (c h w)")
    middle = rows[train].mean(0)
    x, y = rows[train] - middle, is_face[train].double() * 2 - 1
    ridge = 1e-3 * x.square().sum() * torch.eye(len(x), dtype=torch.double)
    weight = x.T @ torch.linalg.solve(x @ x.T + ridge, y)
    return weight.view_as(found[:1]), middle @ weight, (rows[test] - middle) @ weight


def slide(name, layer, kernel, offset):
    """The read-out at every place of a photograph, one map for each scale."""
    return [F.conv2d(m, kernel)[0, 0] - offset for m in pyramid(name, layer)]


LAYERS = {"fire5": "features.7", "fire7": "features.9"}
heights, answers, auc = {}, {}, {}
for fire, layer in LAYERS.items():
    kernel, offset, scores = read_out(layer)
    judged = is_face[test].numpy(), scores.numpy()
    auc[fire] = bootstrap(*judged, statistic=roc_auc_score, draws=500)
    answers[fire] = {n: slide(n, layer, kernel, offset) for n in watched}
    heights[fire] = {
        n: max(float(m.max()) for m in a) for n, a in answers[fire].items()
    }
    at = auc[fire]
    print(f"{fire} AUC {at.value:.3f} ({at.low:.3f} to {at.high:.3f})")
    print("     ", {n: f"{v:.2f}" for n, v in heights[fire].items()})

# %% [markdown]
# It will not: both read-outs separate the held-out patches without one error, and an interval drawn from a sample without errors has no width.
# So choose by how far Hopper's portrait stands above the three photographs without a human face. The astronaut is left for the test.

# %%
missed = 1 - 0.05 ** (1 / 50)  # with this share missed, 50 of 50 happen 1 time in 20
print(f"no miss among 50 faces: up to {missed:.1%} of all could be missed, at 95%")
clear = {
    fire: v["hopper"] - max(v[n] for n in ("chelsea", "coffee", "motorcycle_right"))
    for fire, v in heights.items()
}
chosen = max(clear, key=clear.get)
print({fire: f"{margin:+.2f}" for fire, margin in clear.items()}, "chosen:", chosen)


def highest(name, fire):
    """Centre of the highest window, in pixels of the photograph: row, column, scale."""
    best = max(range(len(SCALES)), key=lambda k: float(answers[fire][name][k].max()))
    found, size = answers[fire][name][best], load_photo(name, 480).size[::-1]
    at = np.unravel_index(int(found.argmax()), found.shape)
    across = [n + SIDE // 8 - 1 for n in found.shape]  # a window is SIDE / 8 cells wide
    place = [(a + SIDE / 16) / n * s for a, n, s in zip(at, across, size)]
    return *place, 25 * 480 / SCALES[best]


# %% [markdown]
# Where is her face? scikit-image ships a detector of another kind, a cascade of local binary patterns. The middle of the read-out's highest window must lie inside its box.

# %%
detector = Cascade(lbp_frontal_face_cascade_filename())


def face_box(name):
    """Row, column, height, width of the one face the cascade finds."""
    image = np.array(load_photo(name, 480))
    [box] = detector.detect_multi_scale(image, 1.2, 1, (60, 60), (240, 240))
    return box["r"], box["c"], box["height"], box["width"]


def in_box(place, box):
    return all(b <= p <= b + n for p, b, n in zip(place, box[:2], box[2:]))


box = face_box("astronaut")
for fire in LAYERS:
    row, column, _ = highest("astronaut", fire)
    where = "inside" if in_box((row, column), box) else "outside"
    print(f"{fire}: highest at row {row:.0f}, column {column:.0f}, {where} {box}")
assert in_box(highest("astronaut", chosen), box)


# %% tags=["hide-input"]
def face_panel(name, fire):
    """The best scale of a read-out over the photograph, with its highest window."""
    row, column, side = highest(name, fire)
    photo = np.array(load_photo(name, 480))
    found = max(answers[fire][name], key=lambda m: float(m.max()))
    rim = SIDE // 16
    framed = F.pad(found, (rim,) * 4, value=float("nan"))
    heat = F.interpolate(framed[None, None], photo.shape[:2], mode="nearest")[0, 0]
    window = np.zeros(photo.shape[:2], bool)
    r, c = int(max(0, row - side / 2)), int(max(0, column - side / 2))
    window[r : int(row + side / 2), c : int(column + side / 2)] = True
    return viz.Panel(photo, np.nan_to_num(heat.numpy()), outline=window)


show_figure(
    viz.show_grid(
        [face_panel(n, fire) for fire in LAYERS for n in watched],
        ["Hopper", "astronaut", "cat", "coffee", "motorcycle"],
        columns=5,
        rows=list(LAYERS),
        unit="read-out, 1 is face",
    ),
    name="photo-faces",
    alt="Five photographs under two read-outs. With fire7 the highest window lies on "
    "the faces of Hopper and of the astronaut.",
    caption="A linear read-out trained on 50 faces and 50 other patches, over "
    "photographs. Framed: the highest window of all places and scales.",
)

# %%
assert all(interval.value > 0.95 for interval in auc.values())
assert chosen == "fire7" and not in_box(highest("astronaut", "fire5"), box)
assert heights["fire7"]["astronaut"] == max(heights["fire7"].values())

# %% [markdown]
# With `fire7` the highest window of all five photographs is on the astronaut's face. With `fire5`, and the same perfect score on patches, her highest is on her suit, at a badge, and the cat's is at an eye. A test set can be too easy to tell a detector of faces
# from a detector of something that its other patches lack. And a detector is no verifier: whose face it is, nothing here can say.

# %% [markdown]
# ## Plug in a face model
#
# Any `nn.Module` that returns one embedding per picture will do, for one any architecture of timm with `num_classes=0` and, where there is a network connection, `pretrained=True`.
# Here the weights are random: the map shows that the path works, and no more.

# %%
backbone = timm.create_model("resnet18", num_classes=0, pretrained=False).eval()
face_model = Normalised(backbone).eval()
two_faces = torch.rand(2, 3, 112, 112)

# %%
result = GradCAM(face_model, "model.layer4").explain_pair(*two_faces)
print(
    f"resnet18, random weights: embedding of {face_model(two_faces).shape[1]}", end=", "
)
print(f"layer {result.target_layer}, map {tuple(result.raw.shape)}, {result.status}")
assert result.raw.shape == (2, 4, 4) and result.status == ["ok", "ok"]

# %% [markdown]
# A vision transformer inside a wrapper does not say how its tokens lie. `to_map` does:

# %%
vit = timm.models.VisionTransformer(
    img_size=112, patch_size=16, embed_dim=48, depth=3, num_heads=2, num_classes=0
).eval()


def to_map(tokens):
    """Tokens (b, 1 + 49, c) as a map (b, c, 7, 7), without the class token."""
    return rearrange(tokens[:, 1:], "b (h w) c -> b c h w", h=7)


# %%
wrapped = GradCAM(Normalised(vit).eval(), "model.blocks.2.norm1", to_map=to_map)
result = wrapped.explain_pair(*two_faces)
print(
    f"a small ViT, random weights: map {tuple(result.raw.shape)}, {set(result.status)}"
)
assert result.raw.shape == (2, 7, 7) and set(result.status) <= {"ok", "no_evidence"}

# %% [markdown]
# A face model may come as an ONNX file. Its session returns numbers, and no gradient can come back through it, wrapped in a module or not:


# %%
class WrappedSession(nn.Module):
    """Looks like a module, computes in numpy, as a wrapper of an ONNX session does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        features = self.conv(x).detach().numpy()
        return torch.from_numpy(features.mean((2, 3)))


with torch.no_grad():
    assert WrappedSession()(two_faces).shape == (2, 8)  # as a function it works
said(
    lambda: GradCAM(WrappedSession().eval()).explain_pair(*two_faces), "ONNX", "PyTorch"
)
said(lambda: GradCAM(lambda x: x), "torch.nn.Module", "ONNX")

# %% [markdown]
# The way out is in the message: load the same weights into their PyTorch architecture.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-embedding-similarities
#
# **Predict.** On embeddings of length 1, ask for `cosine`, `dot` and `euclidean` similarity (minus the squared distance) with the same reference. How many times as large as the cosine map are the other two?
# ```


# %%
def check_similarities(dot, euclidean):
    """Compares two predicted factors with what happens."""
    if None in (dot, euclidean):
        return print("no answer yet")
    r = F.normalize(ra, dim=0)
    raw = {
        kind: on_unit.explain(x, target=kind, target_embedding=r).raw
        for kind in ("cosine", "dot", "euclidean")
    }
    size = float((raw["cosine"] ** 2).sum())
    truth = {
        kind: float((raw[kind] * raw["cosine"]).sum()) / size
        for kind in ("dot", "euclidean")
    }
    right = True
    for kind, guess in (("dot", dot), ("euclidean", euclidean)):
        close = abs(guess - truth[kind]) < 0.01
        print(
            f"{kind}: {'yes' if close else 'no'}, {truth[kind]:.3f}",
            "" if close else "- expand the square for |g| = |r| = 1",
        )
        right = right and close
    return right


# Your factors: of the dot product's map, of the map of the squared distance.
my_factors = (None, None)
answered = check_similarities(*my_factors)


# %% [markdown]
# ```{solution-start} ex-embedding-similarities
# :class: dropdown
# ```
#
# With both lengths 1, the dot product *is* the cosine, and $-\lVert g - r\rVert^2 = 2\cos(g, r) - 2$. The maps are the same up to a factor of 1 and 2.

# %%
assert check_similarities(1, 2)

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise}
# :label: ex-embedding-gallery
#
# **Implement.** A bird is known by three views. Write `gallery_map(image, references)` for `references (3, d)`: the mean of the three signed maps, without a loop over references.
# ```


# %%
def check_gallery(own):
    """Compares with the mean of three single maps."""
    x, references = batch_of([same_species[0]]), embed(same_species[1:4])
    got = own(x, references)
    want = torch.stack(
        [cam.explain(x, target_embedding=r).raw[0] for r in references]
    ).mean(0)
    if tuple(got.shape) != tuple(want.shape):
        print(f"expected one map {tuple(want.shape)}, received {tuple(got.shape)}")
        return False
    worst = float((got - want).abs().max() / want.abs().max())
    print(
        f"largest difference {worst:.0e}"
        + (
            ""
            if worst < 1e-4
            else ": is it the mean embedding? Its direction is another question."
        )
    )
    return worst < 1e-4


def my_gallery_map(image, references):
    return cam.explain(image, target_embedding=references.mean(0)).raw[0]  # change it


answered = check_gallery(my_gallery_map)


# %% [markdown]
# ```{solution-start} ex-embedding-gallery
# :class: dropdown
# ```


# %%
def gallery_map(image, references):
    return cam.explain(image, target_embedding=references[None]).raw[0]


assert check_gallery(gallery_map)

# %% [markdown]
# Several references for one picture are `(1, r, d)`; the score is the mean of the similarities, and the map is linear in the score.
#
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise}
# :label: ex-embedding-blind
#
# **Break it.** Find a score of an embedding that looks sensible, differs from picture to picture, and yet has a gradient of zero. Hand over a function from embeddings `(b, d)` to scores `(b,)`.
# ```


# %%
def check_blind(score):
    """Asks for a score that varies and cannot be explained."""
    g = embed(same_species[:8])
    values = score(g)
    result = cam.explain(batch_of([a]), target=score)
    print(
        f"scores of 8 pictures: {sorted(round(v, 2) for v in values.tolist())}; "
        f"status {result.status[0]}"
    )
    if len(set(values.tolist())) == 1:
        print("the same for all pictures: a constant is no question")
    return len(set(values.tolist())) > 1 and result.status[0] == "saturated_target"


def my_score(embeddings):
    return embeddings[:, 0]  # yours here


answered = check_blind(my_score)


# %% [markdown]
# ```{solution-start} ex-embedding-blind
# :class: dropdown
# ```
#
# Rounding. A decision, accepted or not, is a step: flat wherever it is not a jump. Explain the similarity in front of the decision.

# %%
assert check_blind(lambda g: (g[:, :4].sum(1) * 10).round())

# %% [markdown]
# ```{solution-end}
# ```

# %% [markdown]
# In this notebook we have
#
# - **verified** who is who, with a threshold chosen on birds that are not the test birds,
# - **explained** pairs: both pictures, against an impostor, with another reference, and two photographs of one thing,
# - **refused** the questions whose gradient is zero, before somebody rescaled it into a picture.
#
# What this does not show: that a face model looks at faces the way this one looks at birds, or that a map of similarity is a reason anyone should accept. Whether a map can be
# *false*, and how one would know, is the subject of the part on trust. Next: back to classes, and down to the pixels; [ParchGrad](07_parchgrad.ipynb)
# lets only some channels speak.

# %%
print(
    f"this page ran in {time.time() - started:.0f} s on {device}, "
    f"{torch.get_num_threads()} threads"
)
