# %% [markdown]
# # Grad-CAM for embeddings
#
# **A network that answers "the same bird" can be asked what made the two pictures alike. The answer depends on both pictures, and some questions have none; a map must show the first and refuse the second.**

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
# - **explain** pairs: both pictures, against an impostor, and with another reference,
# - **refuse** the questions whose gradient is zero, before somebody rescales it into a picture.
#
# You need [Grad-CAM](05_gradcam.ipynb) for the map itself. The last cell prints how long this page took to run.

# %%
import time

import numpy as np
import timm
import torch
import torch.nn.functional as F
from ctrace import viz
from ctrace.aviary import PARTS, SPECIES, Individuals, render
from ctrace.look.gradcam import GradCAM
from ctrace.look.hooks import capture
from ctrace.stats import equal_error_rate
from ctrace.viz.gallery import Gallery, show_figure
from ctrace.world.models import load_model
from einops import rearrange, reduce
from torch import nn

started = time.time()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = load_model("aviary-embedding", device=device)
print(f"torch {torch.__version__} on {device}")

# %% [markdown]
# ## The idea
#
# There is no class. There is an embedding $g(x)$, a reference $r$, and a score that compares them:
#
# $$
# s = \cos(g, r) = \frac{g^\top r}{\lVert g\rVert\,\lVert r\rVert},
# \qquad
# \frac{\partial s}{\partial g} = \frac{1}{\lVert g\rVert}\Big(\frac{r}{\lVert r\rVert} - s\,\frac{g}{\lVert g\rVert}\Big) .
# $$ (cosine-slope)
#
# From there on everything is as before: the slope goes back to a layer, its mean over places weighs the channels. Here are three birds of one species, four views each.
# Each keeps its marks, the dark spots on its body, and the proportions of head and body. Colours, pose and place change.


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
    alt="Twelve small pictures: three birds of one species, four views of each in other colours before other backgrounds.",
    caption="Three birds of one species, four views of each. Colour says nothing; the spots and the proportions do.",
)

# %% [markdown]
# ## By hand
#
# Embeddings of two numbers: $g = (3, 4)$ and $r = (1, 0)$. Work out the slope before you run it. In which direction must it point, seen from $g$?

# %%
g, r = (
    torch.tensor([3.0, 4], dtype=torch.double, requires_grad=True),
    torch.tensor([1.0, 0], dtype=torch.double),
)
score = g @ r / (g.norm() * r.norm())
by_hand = ((r / r.norm() - score * g / g.norm()) / g.norm()).detach()
(slope,) = torch.autograd.grad(score, g)
print(
    f"score {score.item():.2f}, slope {by_hand.tolist()}, along g: {float(by_hand @ g.detach()):.0e}"
)

# %%
assert (
    torch.allclose(slope, by_hand, atol=1e-15)
    and abs(float(by_hand @ g.detach())) < 1e-12
)

# %% [markdown]
# Across $g$, never along it: a longer embedding is not a more similar one. Which also says when there is nothing to find. If $r$ points where $g$ points, the bracket is zero.

# %%
self_slope = ((g / g.norm() - 1.0 * g / g.norm()) / g.norm()).detach()
print("slope of a pair of equal embeddings:", self_slope.tolist())
assert not self_slope.any()

# %% [markdown]
# Now the whole map, in the open and in double precision, for the first two views of the first bird; and then from `ctrace`.

# %%
LAYER = "layer3"
net64 = load_model("aviary-embedding", device=device).double()
x64 = model.info.preprocess(torch.stack([p.image for p in same_species[:2]]))
x64 = x64.double().to(device)
reference = net64(x64[1:]).detach()

# %%
with capture(net64, LAYER) as seen:
    g = net64(x64[:1])
    seen.backward(
        g,
        (
            reference / reference.norm()
            - F.cosine_similarity(g, reference) * g / g.norm()
        ).detach()
        / g.norm(),
    )
alpha = seen[LAYER].gradient.mean((2, 3))  # (1, c)
literal = torch.einsum("bc,bchw->bhw", alpha, seen[LAYER].activation)

# %%
small = GradCAM(net64, LAYER).explain(x64[:1], target_embedding=reference[0])
print(
    f"{small.target[0]}: {small.score.item():.3f}; largest difference {float((small.raw - literal).abs().max()):.0e}"
)
assert (small.raw - literal).abs().max() < 1e-12 * max(1, float(literal.abs().max()))

# %% [markdown]
# ## Who is this?
#
# A *genuine* pair shows one bird twice, an *impostor* pair two birds. Where should the threshold lie? It is chosen on validation birds, as the place where as many genuine pairs
# are turned away as impostors let in. Two tests: birds of all species, and the hard one, birds of one species only.


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
    print(
        f"{group}: {int(genuine.sum())} genuine and {int((~genuine).sum())} impostor pairs, equal error rate {error[group]:.1%}"
    )
    print(
        f"             at the validation threshold {away:.1%} turned away, {let_in:.1%} let in"
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
    alt="Two curves of genuine against impostor acceptance on a logarithmic axis, and the curve of a coin.",
    caption="Receiver operating characteristic on 30 held-out birds per group, four views each. The coin accepts both kinds equally often.",
)

# %%
assert error["all species"] < 0.15
assert all(float(c[g].mean()) > float(c[~g].mean()) for c, g in tested.values())

# %%
kinds = (torch.arange(120) // 4) % len(SPECIES)
other_bird = (torch.arange(120) // 4)[:, None] != torch.arange(120) // 4
alike = float((kinds[:, None] == kinds)[other_bird].float().mean())
print(
    f"in the group of all species, {alike:.0%} of the impostor pairs share their species"
)

# %% [markdown]
# Read both numbers. Over all species most impostors are of another species, and a network that had never heard of individuals would turn them away. Only the second
# number, birds of one species, says how well *individuals* are told apart.
#
# ## What the likeness rests on
#
# Before any map, the truth: in this world a picture can be drawn again without the marks, or without the beak. How much likeness to another view of the same bird is lost? Predict which
# line stands out: birds of one species all have the same beak, crest, wing, tail and legs.


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
    print(f"{part:6s} likeness lost {lost[part]:+.3f}")

# %%
assert error["one species"] < 0.25
assert max(lost, key=lost.get) == "marks" and lost["marks"] > 3 * max(
    v for part, v in lost.items() if part != "marks"
)

# %% [markdown]
# The marks, by far. So a map of likeness should point at the marks: spots of a few pixels, less than a hundredth of the picture. Layer and method are chosen on validation pairs, by the share of
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
# Now the test birds, all 120 pictures, against chance (the area) and a centred Gaussian as wide as the validation birds. Intervals are over the 30 birds, not over pictures: four views of one bird are not four birds.

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
    print(
        f"{what:5s} pointing: map {pointing(heat, masks).mean():.2f}, Gaussian {pointing(blob, masks).mean():.2f}, chance {area.mean():.3f}; "
        f"mass: map {inside(heat, masks).mean():.3f}, Gaussian {inside(blob, masks).mean():.3f}"
    )
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
# The maps point at the marks more often than chance and than a blob, and far from always. On the *whole bird* the blob wins the pointing game, because every bird stands in the middle: look at the second line
# of the table. A map can be right about the bird and say nothing about who it is.
#
# ## Both pictures of a pair
#
# Each picture is explained by its likeness to the other, in one pass. Red places raise the likeness, blue ones lower it.


# %% tags=["hide-input"]
def pair_figure(a, b):
    """Two rows: each picture, its signed map, and the map laid over it."""
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
    return figure, float(result.score[0])


# %% tags=["hide-input"]
mixed = test_views["all species"]
examples = [
    (same_species, 0, 1, "the same bird"),
    (same_species, 20, 22, "the same bird"),
    (mixed, 8, 9, "the same bird"),
    (same_species, 0, 4, "two birds of one species"),
    (mixed, 8, 20, "two birds of two species"),
]
tabs = Gallery("embedding-pairs")
for number, (pictures, i, j, what) in enumerate(examples, 1):
    figure, score = pair_figure(pictures[i], pictures[j])
    tabs.add(
        f"Example {number}",
        figure,
        alt=f"Two pictures ({what}), with the signed map of each for its likeness to the other.",
        caption=f"{what.capitalize()}, cosine {score:.2f}. Each row is explained by the other; one scale for both rows.",
    )
tabs.show()

# %% [markdown]
# The score is one number for both, but each picture has its own places. The maps of a pair must be those of two single questions:

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
# *What makes it this bird rather than that one?* Subtract the likeness to an impostor. The map is linear in the score, so the map of the contrast must be the difference
# of the two maps.

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
    f"{contrast.target[0]}: {contrast.score.item():+.3f}; difference {error_:.0e} of the largest cell"
)
assert error_ < 1e-4

# %%
three = (to_bird, to_impostor, contrast)
show_figure(
    viz.show_grid(
        [viz.Panel(a.image, r.heatmap(False, False)[0], outline=a.bird) for r in three],
        ["like the same bird", "like the impostor", "rather than the impostor"],
        unit="weight x activation",
    ),
    name="embedding-contrast",
    alt="Three overlays of one picture: likeness to the same bird, to an impostor, and the difference of the two.",
    caption="One picture, three questions, one scale. The contrast is the first map minus the second.",
)

# %% [markdown]
# The first panel is pale: the pair is nearly as alike as it can be, and near the top a cosine is nearly flat. Against an impostor there is something to say.

# %%
size = [float(r.raw.abs().max()) for r in three]
print("largest cells:", [f"{v:.1e}" for v in size])
assert size[0] < size[2]

# %% [markdown]
# ## Another reference, another map
#
# The most common fault of such maps is that they ignore the reference: they show where a bird is, whoever it is compared with. So keep each of the 120 pictures and change the reference: the
# second view of the bird, its third view, and a view of another bird of its species. Do it for the cosine and for the dot product. Which pair of maps should be alike?

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
        f"{kind:6s} map for the second view against map for {who:12s}: median correlation {values.median():+.2f}, largest {values.max():.3f}"
    )

# %%
change = (maps["cosine", "second view"] - maps["cosine", "another bird"]).norm(
    dim=1
) / maps["cosine", "another bird"].norm(dim=1)
print(
    f"smallest change of a map when the reference becomes another bird: {change.min():.2f} of its size"
)

# %%
assert (
    change.min() > 0.05 and alike["cosine", "another bird"].max() < 0.999
)  # every picture: another reference, another map
for kind in ("cosine", "dot"):
    assert (
        alike[kind, "third view"].median() > alike[kind, "another bird"].median() + 0.2
    )
assert alike["dot", "third view"].median() > alike["cosine", "third view"].median()

# %% [markdown]
# Every map changes when the reference does, and it changes less between two views of one bird than between two birds. The dot product is steadier than the cosine. The slope of a cosine
# {eq}`cosine-slope` is what the embedding still *lacks*: for a close pair, the remainder that this one view happens to leave. For close pairs ask the dot product, or a contrast.

# %% [markdown]
# ## Questions without an answer
#
# Three questions have a gradient of zero by calculus. The plain recipe turns the rounding that remains into a picture. Here is a picture compared with itself: what is the largest value of the
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
    f"largest value {plain.abs().max():.0e}, and after rescaling {rescaled.max():.1f}; an honest pair reaches {both.raw.abs().max():.0e}"
)
assert plain.abs().max() < 1e-3 * both.raw.abs().max() and rescaled.max() == 1

# %%
said(
    lambda: cam.compute_attribution(x, target_embedding=self_embedding[0]),
    "saturated_target",
    "Compare two different images",
)

# %% [markdown]
# The norm, which some code takes as the score when there is no reference. Many networks end in a normalisation, and then the norm is 1 whatever they see.


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
# Without the normalisation the norm is an ordinary score, and gets an ordinary map. And where one question of a batch has no answer, `explain` gives the others theirs:

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
# ## Plug in a face model
#
# Any `nn.Module` that returns one embedding per picture will do. From timm: any architecture by name, with `num_classes=0` so that it ends in its features. With a network at hand, say `pretrained=True`.
# Here its weights are random, so the map shows the path and no more.

# %%
backbone = timm.create_model("resnet18", num_classes=0, pretrained=False).eval()
face_model = Normalised(backbone).eval()
two_faces = torch.rand(2, 3, 112, 112)

# %%
result = GradCAM(face_model, "model.layer4").explain_pair(*two_faces)
print(
    f"resnet18, random weights: embedding of {face_model(two_faces).shape[1]}, layer {result.target_layer}, map {tuple(result.raw.shape)}, {result.status}"
)
assert result.raw.shape == (2, 4, 4) and result.status == ["ok", "ok"]

# %% [markdown]
# A vision transformer inside a wrapper does not say how its tokens lie. `to_map` says it:

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
# Face models are often shipped as ONNX files. A session returns numbers, not a graph: no gradient can come back through it. Wrapping it in a module does not help, and the error says why.


# %%
class WrappedSession(nn.Module):
    """Looks like a module, computes in numpy, as a wrapper around an ONNX session does."""

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
        f"scores of 8 pictures: {sorted(round(v, 2) for v in values.tolist())}; status {result.status[0]}"
    )
    if len(set(values.tolist())) == 1:
        print("the same for all pictures: a constant is no question")
    return len(set(values.tolist())) > 1 and result.status[0] == "saturated_target"


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
# - **explained** pairs: both pictures, against an impostor, and with another reference,
# - **refused** the questions whose gradient is zero, before somebody rescaled it into a picture.
#
# What this does not show: that a face model looks at faces the way this one looks at birds, or that a map of likeness is a reason anyone should accept. Whether a map can be
# *false*, and how one would know, is the subject of the part on trust. Next: back to classes, and down to the pixels; [ParchGrad](07_parchgrad.ipynb)
# lets only some channels speak.

# %%
print(
    f"this page ran in {time.time() - started:.0f} s on {device}, {torch.get_num_threads()} threads"
)
