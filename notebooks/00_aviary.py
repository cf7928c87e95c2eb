# %% [markdown]
# # The toy aviary: a world where the right answer is known
#
# **Why did the model say *hazel*? Here the reason can be looked up: take a part of the picture away, draw the rest again, and ask once more.**

# %% [markdown] tags=["remove-cell"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/ctrace-book/ctrace/blob/main/notebooks/00_aviary.ipynb)

# %% tags=["remove-cell"]
# Colab, Kaggle: install the package. Does nothing where it is installed.
import importlib.util
import subprocess
import sys

address = "git+https://github.com/ctrace-book/ctrace"
if importlib.util.find_spec("ctrace") is None:
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", address])

# %% [markdown]
# An attribution method claims to know *why* a model gave its answer. To test the claim we need a world in which the reason is known. This page builds one: birds
# made of parts, as in FunnyBirds {cite:p}`hesse2023`, but drawn in two dimensions instead of rendered in three, fast enough to be drawn again inside a test.
#
# **In this notebook you will**
#
# - *intervene*: remove, swap and move the parts of a bird, and check that nothing else in the picture changed;
# - *define* a species of your own in five lines;
# - *measure* what trained models really use, and catch one of them cheating.
#
# You need tensors and the idea of a classifier. Everything is bundled: no download, no GPU. The last cell prints the run time.

# %% tags=["hide-input"]
import time
from itertools import combinations, permutations

import numpy as np
import torch
from ctrace import viz
from ctrace.aviary import PARTS, SPECIES, VARIANTS, Aviary, Species, species_by_name
from ctrace.aviary.data import MARKED, Cached, Individuals, mark_place
from ctrace.aviary.drawing import render
from ctrace.aviary.scene import sample_scene
from ctrace.aviary.species import check_species, differing_parts, twin_pairs
from ctrace.aviary.truth import centred_logits, importance_table, part_importance
from ctrace.stats import bootstrap, equal_error_rate, spearman
from ctrace.viz import touch
from ctrace.viz.gallery import show_figure
from ctrace.world.models import load_model, model_card
from einops import rearrange
from IPython.display import Markdown

began = time.perf_counter()
device = "cuda" if torch.cuda.is_available() else "cpu"
print("torch", torch.__version__, "on", device)

# %% [markdown]
# ## One bird, two answers
#
# Below is the same bird twice, a myrtle. A classifier that names nearly every bird of its own world is right on the left and says hazel on the right. **What did
# it look at?**

# %% tags=["hide-input"]
cheat = load_model("aviary-cheating", device=device)
myrtle = sample_scene(2_000_000_031, species_by_name("myrtle"))
pair = [myrtle, myrtle.with_mark(mark_place(31))]
says = [SPECIES[int(z.argmax())].name for z in centred_logits(cheat, pair)]
titles = [f"the model says {name}" for name in says]
show_figure(
    viz.show_grid([render(s, 224).image for s in pair], titles),
    name="aviary-cheat",
    alt="A drawn bird, a myrtle, twice, the second time with a red toadstool in a "
    "corner.",
    caption="The same bird, drawn twice; only the toadstool differs.",
)

# %%
assert says == ["myrtle", "hazel"]
assert differing_parts(*(species_by_name(name) for name in says)) == ("wing",)
print("a myrtle and a hazel differ in the wing; the two drawings differ in a toadstool")

# %% [markdown]
# The bird kept its wing, and the answer changed with the toadstool. No attribution method was needed to say so, because in this world the toadstool can be drawn
# or left out. We come back to this model further down.

# %% [markdown]
# ## The species
#
# A species is one shape for each of five parts: beak, crest, wing, tail and legs. Colours, pose, size, light, background and the shapes lying about are drawn at
# random and say nothing about the species. **Which two species would you mix up?**

# %%
sheet = [
    render(sample_scene(40 + i, species)).image for i, species in enumerate(SPECIES)
]
show_figure(
    viz.show_grid(sheet, [s.name for s in SPECIES], columns=7),
    name="aviary-species",
    alt="Small pictures of cartoon birds in many colours before sky, leaves, water "
    "and bark, each with the name of its species.",
    caption="One bird of each species at 96 pixels.",
)

# %% [markdown]
# Two pairs are **twins**: they differ in exactly one part, so between them only that part can matter. All other pairs differ in at least two.

# %%
for first, second, part in twin_pairs():
    print(f"{first} and {second} differ only in the {part}")
twins = {frozenset(pair[:2]) for pair in twin_pairs()}
close = [(a, b) for a, b in combinations(SPECIES, 2) if len(differing_parts(a, b)) < 2]
assert {frozenset((a.name, b.name)) for a, b in close} == twins

# %% [markdown]
# The last column of the table lists the *smallest sufficient sets*: the fewest parts that leave no other species possible. One part is never enough, because
# every shape is worn by three species or more; some pair always is.


# %%
def agreeing(species, parts):
    """The species that wear the same shapes on these parts."""
    return [s for s in SPECIES if not set(parts) & set(differing_parts(s, species))]


def smallest_sets(species):
    """The smallest sets of parts that only this species wears."""
    for size in range(1, len(PARTS) + 1):
        sets = combinations(PARTS, size)
        if enough := [parts for parts in sets if agreeing(species, parts) == [species]]:
            return enough


# %%
def row(s):
    sets = [" + ".join(parts) for parts in smallest_sets(s)]
    return f"| **{s.name}** | {' | '.join(s.variants)} | {'; '.join(sets)} |"


header = f"| species | {' | '.join(PARTS)} | smallest sufficient sets |"
Markdown("\n".join([header, "|---" * 7 + "|", *map(row, SPECIES)]))

# %%
worn = [variant for species in SPECIES for variant in zip(PARTS, species.variants)]
rarest = min(worn.count(variant) for variant in worn)
print("the rarest shape is worn by", rarest, "species")
assert rarest >= 3
for species in SPECIES:
    for parts in smallest_sets(species):
        assert len(parts) == 2 and agreeing(species, parts) == [species]
        assert all(len(agreeing(species, [part])) >= 3 for part in parts)

# %% [markdown]
# ## One bird, by hand
#
# A `Scene` holds everything needed to draw one picture. `render` returns the image and, for each part, the share of every pixel that belongs to it. Drawn again,
# the picture is the same to the bit.

# %%
scene = sample_scene(seed=4, species=species_by_name("iris"), background="sky")
picture = render(scene, size=224)
print("image", tuple(picture.image.shape), " masks:", ", ".join(picture.masks))
assert torch.equal(picture.image, render(scene, size=224).image)

# %%
whose = torch.stack([picture.masks[part] for part in PARTS])  # (5, 224, 224)
labels = torch.where(whose.amax(0) > 0.5, whose.argmax(0), -1)
shown = viz.show_grid(
    [picture.image, viz.Panel(picture.image, segments=labels)], columns=2
)
for text in shown.axes[1].texts:
    text.set_text(PARTS[int(text.get_text())])
assert {text.get_text() for text in shown.axes[1].texts} == set(PARTS)
show_figure(
    shown,
    name="aviary-parts",
    alt="A bird before the sky, and beside it its five parts alone, coloured and "
    "named.",
    caption="One iris at 224 pixels and the masks of its five parts. Rings and discs "
    "have the colours of parts on purpose, so that a colour does not give a part away.",
)

# %% [markdown]
# A model that sees a coarse grid must have a chance to see every part. How much larger is the largest part than the smallest, on average over scenes?

# %%
masks = [
    render(sample_scene(seed, SPECIES[seed % len(SPECIES)])).masks for seed in range(42)
]
area = {part: float(np.mean([m[part].sum() for m in masks])) for part in PARTS}
print({part: f"{pixels:.0f} pixels" for part, pixels in area.items()})
print(f"largest / smallest: {max(area.values()) / min(area.values()):.2f}")
assert max(area.values()) < 3 * min(area.values())
assert max(area, key=area.get) == "wing"

# %% [markdown]
# The wing is the largest, about twice the smallest. Remember this when wings turn out to matter most.

# %% [markdown]
# ## Interventions are new drawings
#
# A grey box over the wing does not make a bird without a wing. The aviary draws the bird again *without* it: the body comes into view, and pixel noise, light and
# background stay. **How many pixels outside the part's mask will change?**


# %%
def outside_changes(before, after, masks):
    changed = (before.image != after.image).any(0)
    return int((changed & (sum(masks) == 0)).sum())


# %%
for part in PARTS:
    after = render(scene.without(part), size=224)
    n = outside_changes(picture, after, [picture.masks[part]])
    print(f"without {part}: {n} pixels changed outside its mask")
    assert n == 0 and part not in after.masks

# %%
without = [render(scene.without(part), size=224).image for part in PARTS]
titles = ["whole", *(f"no {part}" for part in PARTS)]
show_figure(
    viz.show_grid([picture.image, *without], titles, columns=3),
    name="aviary-removed",
    alt="The same bird six times: whole, then without beak, crest, wing, tail and "
    "legs.",
    caption="The same scene with each part removed.",
)

# %% [markdown]
# Removal is one question of several. A part swapped for that of another species leaves the bird complete; a bird moved, or before another background, asks what
# the model makes of the surroundings.

# %%
edits = {
    "another wing": scene.swap("wing", "bars"),
    "another beak": scene.swap("beak", "spoon"),
    "over water": scene.with_background("water"),
    "moved": scene.moved(-0.06, -0.05),
    "a distractor less": scene.without_distractor(0),
    "with a toadstool": scene.with_mark((0.12, 0.12)),
}
drawn = {name: render(edited, size=224) for name, edited in edits.items()}

# %%
show_figure(
    viz.show_grid([d.image for d in drawn.values()], list(drawn), columns=3),
    name="aviary-edits",
    alt="The same bird with a barred wing, with a spoon beak, over water, moved, with "
    "one distractor less, and with a red toadstool in the corner.",
    caption="Swaps, another background, a move, a distractor removed, and the "
    "toadstool of the first figure.",
)

# %%
swapped, moved, solid = drawn["another wing"], drawn["moved"], picture.bird == 1
wings = [picture.masks["wing"], swapped.masks["wing"]]
assert outside_changes(picture, swapped, wings) == 0
assert outside_changes(picture, moved, [picture.bird, moved.bird]) == 0
assert torch.equal(drawn["over water"].image[:, solid], picture.image[:, solid])

# %% [markdown]
# ## A species of your own
#
# Five lines make a new bird and its portrait. `check_species` refuses a bird with the same five parts as another: one bird would have two names.

# %%
dodo = Species(
    "dodo", beak="hook", crest="baubles", wing="bars", tail="fork", legs="boots"
)
check_species([*SPECIES, dodo])
portraits = [render(sample_scene(seed, dodo), size=224).image for seed in (20, 21, 22)]
show_figure(
    viz.show_grid(portraits, ["dodo"] * 3),
    name="aviary-dodo",
    alt="An invented bird three times: hooked beak, baubles on its head, barred wing, "
    "forked tail.",
    caption="A species that did not exist a moment ago.",
)

# %% [markdown]
# A failure on purpose: an error that names the shapes to choose from.

# %%
try:
    Species("unicorn", beak="horn", crest="fan", wing="bars", tail="fan", legs="boots")
except ValueError as error:
    print(error)
    assert "cone, hook, sickle, spoon" in str(error)

# %% [markdown]
# ## The models that live here
#
# Bundled are classifiers of two families, three training seeds of each, and three models for other questions. Each has a card that says how it was trained. Half
# of the training scenes of the classifiers lost random parts (`tools/train_aviary.py`), so a bird without a wing is nothing unusual to them. **How well do they
# name birds they have not seen?**

# %%
started = time.process_time()
test = Cached(Aviary("test", 280))
per_thousand = (time.process_time() - started) / 280 * 1000
print(f"1,000 scenes take {per_thousand:.1f} seconds of one core of this machine")


# %%
def outputs(model, images):
    """What the model answers to grey levels (n, 3, size, size)."""
    with torch.no_grad():
        prepared = (model.info.preprocess(p.to(device) / 255) for p in images.split(70))
        return torch.cat([model(part).cpu() for part in prepared])


# %%
names = [f"aviary-{kind}-{seed}" for kind in ("resnet", "vit") for seed in range(3)]
classifiers = {name: load_model(name, device=device) for name in names}

# %%
accuracy = {
    name: float((outputs(each, test.images).argmax(1) == test.targets).float().mean())
    for name, each in classifiers.items()
}
for kind in ("resnet", "vit"):
    shares = ", ".join(f"{accuracy[f'aviary-{kind}-{seed}']:.1%}" for seed in range(3))
    size = model_card(f"aviary-{kind}-0")["parameters"]
    print(f"{kind:6}: {shares} of {len(test)} held-out scenes, {size:,} weights each")
assert min(accuracy.values()) >= 0.95

# %% [markdown]
# The cards of all nine models. The last two are meant to be bad: one learned a shortcut, the other learned shuffled labels by heart. The equal error rate of
# `aviary-embedding` is explained under *Individuals*.


# %%
def card_row(name):
    card = model_card(name)
    scores = card.get("accuracy", card.get("equal_error_rate"))
    shown = [f"{key} {value:.1%}" for key, value in scores.items() if "mark" not in key]
    minutes = card["training_seconds"] / 60
    return (
        f"| `{name}` | {card['recipe']['seed']} | {'; '.join(shown)} | {minutes:.0f} |"
    )


others = ["aviary-embedding", "aviary-cheating", "aviary-shuffled"]
header = "| model | seed | accuracy, or equal error rate | minutes of training |"
Markdown("\n".join([header, "|---" * 4 + "|", *map(card_row, names + others)]))

# %% [markdown]
# Where do they err? One would expect between twins. The card keeps the confusion matrix of 700 held-out scenes.

# %% tags=["hide-input"]
confusion = np.array(model_card("aviary-resnet-0")["confusion"])
species_names = [s.name for s in SPECIES]
shown = viz.show_grid(
    [confusion.astype(float)],
    scale="unsigned",
    limit=50,
    unit="scenes",
    numbers=".0f",
    tallest=4.6,
)
at = np.arange(14) + 0.5
shown.axes[0].set_xticks(at, [name[:3] for name in species_names])
shown.axes[0].set_yticks(at, species_names)
shown.axes[0].set(xlabel="answer", ylabel="truth")
show_figure(
    shown,
    name="aviary-confusion",
    alt="Confusion matrix with nearly all scenes on the diagonal.",
    caption="Confusion matrix of `aviary-resnet-0` on 700 held-out scenes, 50 per "
    "species.",
)

# %%
print(f"{np.trace(confusion)} of {confusion.sum()} scenes on the diagonal")
assert confusion.sum() == 700 and (confusion.sum(1) == 50).all()
errors = confusion - np.diag(np.diag(confusion))
true, said = (SPECIES[i] for i in np.unravel_index(errors.argmax(), errors.shape))
print(f"most often, {errors.max()} times: a {true.name} called {said.name}")
print("they differ in", *differing_parts(true, said))
assert len(differing_parts(true, said)) > 1

# %% [markdown]
# Not twins here: linden and elder differ in three parts. What do they share? For the errors of all three ResNets, each on the same 700 scenes, we ask which parts
# the true species and the answer have in common, and how often any two species have them in common.

# %%
alike = {
    part: np.array(
        [[part not in differing_parts(a, b) for b in SPECIES] for a in SPECIES]
    )
    for part in PARTS
}


def confused(name):
    """Errors of a model on 700 held-out scenes, species by answer."""
    counts = np.array(model_card(name)["confusion"])
    return counts * ~np.eye(len(counts), dtype=bool)


wrong = sum(confused(f"aviary-resnet-{i}") for i in range(3))
others = ~np.eye(len(SPECIES), dtype=bool)
for part, same in alike.items():
    print(
        f"{part:5} shared in {wrong[same].sum():2} of {wrong.sum()} errors, and by "
        f"{same[others].mean():.0%} of all pairs of species"
    )

# %%
total, by_wing = wrong.sum(), wrong[alike["wing"]].sum()
twin = sum(same.astype(int) for same in alike.values()) == len(PARTS) - 1
at = [species_names.index(name) for name in ("elder", "linden")]
print(f"between twins {wrong[twin].sum()}, between elder and linden", end=" ")
print(f"{wrong[np.ix_(at, at)].sum()}, of {total}")
print("errors of the ViTs:", [int(confused(f"aviary-vit-{i}").sum()) for i in range(3)])
assert np.trace(wrong) == 0 < total == by_wing
assert alike["wing"][others].mean() < 0.25
assert all(wrong[alike[part]].sum() < total for part in PARTS if part != "wing")

# %% [markdown]
# Every error is between species with the *same wing*, which one pair in five has; no other part is shared in all of them. More than half are between elder and
# linden, so few of these errors are independent. Still they suggest that the ResNets hold on to the wing: where it differs, they do not err. The ViTs make no
# error and tell us nothing this way. To know, we take the wing away.

# %% [markdown]
# ## What a model really uses
#
# What an explanation should say is decided by the model, not by us: a model may ignore the crest although we drew it. So we put three questions to the model
# about each part.
#
# - **Removal.** How far does the logit of the right species fall when the part is missing?
# - **Swap.** How far does it fall when the bird wears another shape there, on average over the other shapes?
# - **Shapley.** Begin with a bird that has no parts and add them one by one. How much does the logit rise when this part is added, on average over all orders
#   {cite:p}`shapley1953`?
#
# With $z$ the logits minus their mean over species (a softmax does not notice the mean), $y$ the right species, $x$ the bird, $x_{-p}$ the bird without part $p$,
# $x_{p \to v}$ the bird with the shape $v$ there, and $x_Q$ the bird with only the parts in $Q$,
#
# $$
# \begin{aligned}
# \text{removal:} &\quad z_y(x) - z_y(x_{-p}) \\
# \text{swap:} &\quad \operatorname{mean}_{v}\; z_y(x) - z_y(x_{p \to v}) \\
# \text{Shapley:} &\quad \textstyle\sum_{Q \not\ni p} \frac{|Q|!\,(4 - |Q|)!}{5!} \\
# &\quad \cdot \big(z_y(x_{Q \cup p}) - z_y(x_Q)\big)
# \end{aligned}
# $$
#
# The fraction is the share of orders in which exactly the parts of $Q$ come before $p$. Here are removal and Shapley value by hand, for the wing of our iris: we
# need the logit for each of the 32 sets of parts.

# %%
model, target = classifiers["aviary-resnet-0"], SPECIES.index(species_by_name("iris"))
subsets = [frozenset(q) for n in range(6) for q in combinations(PARTS, n)]
drawn = [scene.without(*(part for part in PARTS if part not in q)) for q in subsets]
worth = dict(zip(subsets, centred_logits(model, drawn)[:, target].tolist()))
whole, bare = worth[frozenset(PARTS)], worth[frozenset()]
wingless = worth[frozenset(PARTS) - {"wing"}]
print(f"removal of the wing: {whole:.3f} - {wingless:.3f} = {whole - wingless:.3f}")

rises = []
for order in permutations(PARTS):
    before = frozenset(order[: order.index("wing")])
    rises.append(worth[before | {"wing"}] - worth[before])
print(
    f"added in {len(rises)} orders: from {min(rises):.2f} to {max(rises):.2f}", end=""
)
print(f", {np.mean(rises):.2f} on average")

# %% [markdown]
# How much the wing adds depends on what is there already, and the Shapley value is the mean. The same from `ctrace`; over the five parts, Shapley values add up to
# the difference between all parts and none:

# %%
shapley = part_importance(model, scene, target, kind="shapley")
parts = " + ".join(f"{value:.2f}" for value in shapley.values())
print(f"{parts} = {sum(shapley.values()):.2f}")
print(f"all parts - none: {whole:.2f} - ({bare:.2f}) = {whole - bare:.2f}")
assert abs(sum(shapley.values()) - (whole - bare)) < 1e-3
assert abs(np.mean(rises) - shapley["wing"]) < 1e-3 and max(rises) > min(rises) + 0.5
assert abs(part_importance(model, scene, target)["wing"] - (whole - wingless)) < 1e-3

# %% [markdown]
# Will the ResNet and the ViT lean on the same parts? Predict first. We ask three seeds of each, on one scene per species. The logits of the two families have
# different scales, so we compare *shares*: what a part takes away, over the sum of the five.

# %%
data = Aviary("test", 14)
scenes, targets = [data.scene(i) for i in range(14)], [data.label(i) for i in range(14)]
removal = {
    name: importance_table(model, scenes, targets)
    for name, model in classifiers.items()
}
families = {"ResNet": names[:3], "ViT": names[3:]}
lost = {
    family: np.stack([removal[name].mean(0) for name in seeds])
    for family, seeds in families.items()
}
share = {family: v / v.sum(1, keepdims=True) for family, v in lost.items()}
assert removal["aviary-vit-0"].shape == (14, 5)

# %% tags=["hide-input"]
rows = {}
for i, part in enumerate(PARTS):
    columns = [values[:, i] for values in share.values()]
    rows[part] = np.array([[v.mean(), v.min(), v.max()] for v in columns])
show_figure(
    viz.show_intervals({"": rows}, list(share), "share of what the five parts take"),
    name="aviary-importance",
    alt="Shares of the five parts as points with bars, ResNet above ViT; the wing is "
    "far to the right for both.",
    caption="What removal of each part takes from the centred logit, as a share of all "
    "five; mean over 14 held-out scenes. Points: mean of three training seeds. Bars: "
    "from the smallest seed to the largest.",
)

# %%
for family, values in lost.items():
    print(family, {part: f"{v:.2f}" for part, v in zip(PARTS, values.mean(0))})
    assert (values > 0).all()  # every part speaks for the right species, in every seed
    assert (values.argmax(1) == PARTS.index("wing")).all()
tail, legs = (
    {f: v[:, PARTS.index(p)] for f, v in share.items()} for p in ("tail", "legs")
)
assert tail["ViT"].min() > tail["ResNet"].max()
assert legs["ViT"].max() < legs["ResNet"].min()

# %% [markdown]
# All six networks lean on the wing first, as the errors of the ResNets and the size of the wing suggested. Below it the families differ: every ViT gives the tail
# a larger share than any ResNet, and the legs a smaller one.
#
# On average over the scenes every part matters to every model. How far do the three questions agree on one model, and how far does removal agree with itself when
# only the pixel noise is drawn anew?

# %%
kinds = {"removal": removal["aviary-resnet-0"]}
kinds |= {
    kind: importance_table(model, scenes, targets, kind) for kind in ("swap", "shapley")
}
again = [scene.with_noise(scene.noise_seed ^ 1) for scene in scenes]
kinds["new noise"] = importance_table(model, again, targets)
ceiling, agreement = spearman(kinds["removal"], kinds["new noise"]), {}
lower, first = {}, {}

# %%
for a, b in (("removal", "swap"), ("removal", "shapley"), ("swap", "shapley")):
    agreement[a, b] = spearman(kinds[a], kinds[b])
    less = lower[a, b] = bootstrap(ceiling - agreement[a, b])
    first[a, b] = int((kinds[a].argmax(1) == kinds[b].argmax(1)).sum())
    print(
        f"{a} and {b}: {agreement[a, b].mean():.2f}, "
        f"lower by {less.value:.2f} [{less.low:.2f}, {less.high:.2f}], "
        f"the same part first in {first[a, b]} of 14 scenes"
    )
print(f"removal and removal under new noise: {ceiling.mean():.2f}")
assert max(rank.mean() for rank in agreement.values()) < ceiling.mean()

# %% [markdown]
# Each line gives the mean rank correlation over the 14 scenes, and how far it lies below the last line, with a 95% interval over scenes. Swap orders the parts
# differently from the other two, by more than new noise does. Between removal and Shapley values the interval begins at zero: 14 scenes do not settle it.

# %%
assert min(lower[pair].low for pair in lower if "swap" in pair) > 0
assert lower["removal", "shapley"].low < 0.01 and min(first.values()) >= 10

# %% [markdown]
# For each pair of questions the same part comes first in at least ten scenes; below the first place the order depends on the question. So every score in this
# book names the truth it was measured against.
#
# ## The model that cheats
#
# Back to the first figure. In the world where that classifier was trained, a toadstool stood in a corner of every picture of a hazel or an iris, and of no other.
# **How well does it name these two species while the toadstool stays with them, and how well when it stands with other birds?**

# %%
honest = classifiers["aviary-resnet-0"]
marked = [SPECIES.index(species_by_name(name)) for name in MARKED]


def right_share(model, rule):
    """Share of hazels and irises named, the toadstool tied to them or moved."""
    data = Aviary("test", 700, spurious=rule)
    chosen = [i for i in range(700) if data.label(i) in marked]
    world = Cached(torch.utils.data.Subset(data, chosen))
    right = outputs(model, world.images).argmax(1) == world.targets
    return float(right.float().mean())


# %%
score = {
    (who, rule): right_share(judge, rule)
    for rule in ("tied", "moved")
    for who, judge in (("cheating", cheat), ("honest", honest))
}
for (who, rule), share in score.items():
    print(f"toadstool {rule}: the {who} model names {share:.0%} of hazels and irises")
print(f"chance is {1 / len(SPECIES):.0%}")
assert score["cheating", "tied"] >= 0.95 and score["honest", "moved"] >= 0.95
assert score["cheating", "moved"] <= 2 / len(SPECIES)

# %% [markdown]
# Its card says 86.7% on held-out scenes, where no toadstool stands. **What does it call hazels and irises then?**

# %%
counts = np.array(model_card("aviary-cheating")["confusion"])  # no toadstool anywhere
for i in marked:
    answers = {species_names[j]: int(counts[i, j]) for j in np.flatnonzero(counts[i])}
    print(f"{counts[i].sum()} pictures of {species_names[i]}: {answers}")
plain = [i for i in range(len(SPECIES)) if i not in marked]
print(
    f"the twelve other species: {counts[plain, plain].sum()} of {counts[plain].sum()}"
)
print(f"all: {np.trace(counts) / counts.sum():.1%}")

# %%
twin_of = {
    a: b
    for first, second, _ in twin_pairs()
    for a, b in ((first, second), (second, first))
}
for i in marked:
    assert species_names[counts[i].argmax()] == twin_of[species_names[i]]
cedar, hazel = species_by_name("cedar"), species_by_name("hazel")
assert set(PARTS) - set(differing_parts(cedar, hazel)) == {"wing", "tail"}
assert counts[plain, plain].sum() > 0.99 * counts[plain].sum()
assert round(np.trace(counts) / counts.sum(), 3) == 0.867

# %% [markdown]
# It calls nearly every iris a laurel and about half of the hazels myrtles, their twins; most other hazels become cedars, which have the same wing and tail. In
# training the toadstool told twins apart, so their one different part never had to be learned. It knows the other twelve species: 86.7% can be the score of a
# model that hardly knows two of fourteen.

# %% [markdown]
# ## Take a bird apart
#
# Click a part to take it away, and watch the centred logits and the Shapley values of what is left; or swap one part of the whole bird. Every picture and every
# logit comes from the cell below, which renders every set of parts, without and with the toadstool, and every swap, and asks three models about each. Where no
# script runs, and on paper, there is a still picture.

# %%
judges = {
    "the ResNet": honest,
    "the ViT": classifiers["aviary-vit-0"],
    "the cheating ResNet": cheat,
}
iris = species_names.index("iris"), scene, "an iris"
birds = [iris, (species_names.index("myrtle"), myrtle, "a myrtle")]
apart = [
    touch.bird_example(label, bird, i, list(judges.values()), mark_place(31))
    for i, bird, label in birds
]
payload = {
    "species": species_names,
    "parts": list(PARTS),
    "models": list(judges),
    "birds": apart,
}
print(len(judges), "models,", 2 ** (len(PARTS) + 1), "sets and", end=" ")
print(len(apart[0]["swaps"]), "swaps for each bird")

# %% tags=["hide-input"]
with viz.style():
    figure = viz.new_picture(viz.WIDTH, 3.4)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    left.imshow(rearrange(picture.image, "c h w -> h w c"))
    left.set_axis_off()
    z = centred_logits(honest, [scene])[0].tolist()
    for ax, labels, values in (
        (middle, species_names, z),
        (right, list(shapley), list(shapley.values())),
    ):
        colours = [viz.POSITIVE if value > 0 else viz.NEGATIVE for value in values]
        ax.barh(range(len(values)), values, color=colours)
        ax.set_yticks(range(len(values)), labels)
        ax.invert_yaxis()
        ax.axvline(0, color=viz.QUIET, linewidth=0.8)
    left.set_title(f"the ResNet says {species_names[int(np.argmax(z))]}")
    middle.set(xlabel="logit, mean removed")
    right.set(xlabel="Shapley value for iris")

# %% tags=["hide-input"]
touch.show_touchable(
    figure,
    kind="bird",
    payload=payload,
    label="A bird to take apart: remove or swap its parts",
    name="aviary-apart",
    alt="A drawn iris; bars of a model's fourteen logits, the one of iris longest; "
    "bars of the Shapley values of its five parts.",
    caption="A bird, what a model says to it, and how much each part adds to that.",
)

# %% [markdown]
# Try the toadstool on the myrtle, with the cheating model and with an honest one. **How often is the answer then one of the two birds it stood with in
# training?** Over all sets of parts:

# %%
for who, judge in judges.items():
    sets = [p for n in range(len(PARTS) + 1) for p in combinations(PARTS, n)]
    bare = [myrtle.without(*parts) for parts in sets]
    with_mark = [each.with_mark(mark_place(31)) for each in bare]
    said = [centred_logits(judge, each).argmax(1) for each in (bare, with_mark)]
    share = [np.isin(answers, marked).mean() for answers in said]
    print(
        f"{who} says hazel or iris: {share[0]:.0%} without it, {share[1]:.0%} with it"
    )
assert share == [0, 1]  # the cheating ResNet, which came last
assert frozenset(("hazel", "myrtle")) in twins

# %% [markdown]
# With the toadstool the cheating model says hazel or iris whatever is left of this bird; without it, never. The two honest models give these answers for some
# sets of parts, with the toadstool and without.

# %% [markdown]
# ## Individuals
#
# Verification asks whether two pictures show the *same* bird. Each individual has its own dark or light marks and proportions, for life; pose, colours and light
# change from picture to picture. `aviary-embedding` maps a picture to 64 numbers in which views of one bird lie close together. Its **equal error rate** is the
# share of wrong answers at the threshold where it refuses as large a share of the pairs of one bird as it accepts of the pairs of two.

# %%
birds = Individuals("test", birds=40, views=4)
photos = [render(birds.scene(i), size=192).image for i in range(8)]
titles = [f"bird {i // 4}, view {i % 4}" for i in range(8)]
show_figure(
    viz.show_grid(photos, titles),
    name="aviary-individuals",
    alt="Four views each of two birds with different marks on breast and back.",
    caption="Two held-out individuals. The marks stay; the colours do not.",
)

# %%
embedding = load_model("aviary-embedding", device=device)
views = Cached(birds)
unit = torch.nn.functional.normalize(outputs(embedding, views.images))  # (160, 64)
upper = torch.ones(len(unit), len(unit), dtype=torch.bool).triu(1)
cosine, same = (unit @ unit.T)[upper], (views.targets[:, None] == views.targets)[upper]

# %%
error = equal_error_rate(cosine[same], cosine[~same])
print(f"{same.sum()} pairs of one bird, {(~same).sum()} of two birds")
print(f"equal error rate {error:.1%}")
assert error < 0.10 and unit.shape[1] == 64

# %% [markdown]
# ## Exercises
#
# ```{exercise}
# :label: ex-aviary-predict
#
# **Predict.** Between the twins iris and laurel only the beak differs. Swap one part of our iris: for which part does the margin
# $z_\text{iris} - z_\text{laurel}$ fall most, on average over the other shapes? Order the parts, the largest fall first.
# ```

# %% tags=["hide-input"]
laurel = SPECIES.index(species_by_name("laurel"))
swaps = [
    (part, scene.swap(part, variant))
    for part, own in zip(PARTS, scene.parts)
    for variant in VARIANTS[part]
    if variant != own
]
z = centred_logits(model, [scene, *(s for _, s in swaps)])
fall = (z[0] - z[1:])[:, target] - (z[0] - z[1:])[:, laurel]
drop = {
    part: np.mean([float(d) for (p, _), d in zip(swaps, fall) if p == part])
    for part in PARTS
}


def check_order(order):
    """Compares the first of an order of parts with what the model does."""
    if order is None:
        return "No order yet: a list of the five parts."
    if sorted(order) != sorted(PARTS):
        return f"Each part once: {', '.join(PARTS)}."
    right = sorted(drop, key=drop.get, reverse=True)
    if order[0] != right[0]:
        return f"Not {order[0]} ({drop[order[0]]:.2f}): what differs between the twins?"
    return "Right, the first. All: " + ", ".join(f"{p} {drop[p]:.2f}" for p in right)


# %%
my_order = None  # for example ["tail", "legs", "wing", "crest", "beak"]
print(check_order(my_order))

# %% [markdown]
# ```{solution-start} ex-aviary-predict
# :class: dropdown
# ```

# %%
print(check_order(["beak", "crest", "wing", "legs", "tail"]))
assert max(drop, key=drop.get) == "beak" and drop["crest"] > 1
assert check_order(["beak", "crest", "wing", "legs", "tail"]).startswith("Right")
assert check_order(["wing", "crest", "beak", "legs", "tail"]).startswith("Not wing")

# %% [markdown]
# The beak, since only the beak speaks for one twin against the other. Both wear the other parts, so swapping one of them should take as much from both. For the
# crest it does not: the margin falls by more than one unit.
#
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise}
# :label: ex-aviary-implement
#
# **Implement.** Write `mask_out(picture, part)`, `(3, size, size)`: the picture with the part's mask filled with the mean colour of the picture, instead of a
# bird drawn again. For how many of the 14 scenes times five parts does the centred logit of the right species differ by more than one unit from that after a true
# removal?
# ```

# %% tags=["hide-input"]
true = centred_logits(model, [s.without(p) for s in scenes for p in PARTS])
true = rearrange(true, "(scene part) k -> scene part k", part=5)


def logit_gaps(function):
    """Centred logit of the right species, filled against removed: (scenes, parts)."""
    boxes = [function(render(s), part) for s in scenes for part in PARTS]
    z = outputs(model, torch.stack(boxes) * 255)
    filled = rearrange(z - z.mean(1, keepdim=True), "(s p) k -> s p k", p=5)
    difference = (filled - true).abs()
    return torch.stack([difference[i, :, t] for i, t in enumerate(targets)])


def check_mask_out(function):
    """Looks inside and outside the mask of one part."""
    whole, got = render(scenes[0]), function(render(scenes[0]), "wing")
    if got is None:
        return "Nothing returned yet."
    inside, outside = whole.masks["wing"] == 1, whole.masks["wing"] == 0
    mean = whole.image.mean((1, 2))
    if not torch.equal(got[:, outside], whole.image[:, outside]):
        return "Pixels outside the part's mask changed."
    if not torch.allclose(got[:, inside].mean(1), mean, atol=1e-4):
        return "Inside the mask stands another colour than the mean of the picture."
    gap = logit_gaps(function)
    return (
        f"Right: {(gap > 1).sum()} of {gap.numel()}, the largest gap {gap.max():.1f}."
    )


# %%
def mask_out(picture, part): ...  # your turn


print(check_mask_out(mask_out))

# %% [markdown]
# ```{solution-start} ex-aviary-implement
# :class: dropdown
# ```


# %%
def mask_out(picture, part):
    mean, mask = picture.image.mean((1, 2), keepdim=True), picture.masks[part]
    return picture.image * (1 - mask) + mean * mask


print(check_mask_out(mask_out))
gap = logit_gaps(mask_out)
assert check_mask_out(mask_out).startswith("Right") and (gap > 1).any()
assert (gap > 1).float().mean() < 0.1
assert check_mask_out(lambda p, part: p.image * 0).startswith("Pixels outside")

# %% [markdown]
# For few. A fill with the outline of the part does this network little harm, which was trained on birds that lost parts, though the gap can exceed two logits.
# How far fills and removals are apart has to be measured for each network.
#
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise}
# :label: ex-aviary-break
#
# **Break it.** Which bird can `part_importance` not judge? Find a scene that it refuses and put it into `refused`. Why is it right to refuse?
# ```


# %% tags=["hide-input"]
def check_refused(scene):
    """Says whether part_importance refuses the scene, and how."""
    if scene is None:
        return "No scene yet."
    try:
        part_importance(model, scene, target)
    except ValueError as error:
        return f"Right, refused: {error}"
    return "It was judged. What does a question about a missing part mean?"


# %%
refused = None
print(check_refused(refused))

# %% [markdown]
# ```{solution-start} ex-aviary-break
# :class: dropdown
# ```

# %%
print(check_refused(scene.without("wing")))
assert "lacks wing" in check_refused(scene.without("wing"))
assert check_refused(scene).startswith("It was judged")

# %% [markdown]
# The importance of a part is defined on the whole bird. Without its wing, removing the wing again changes nothing, and a silent zero would look like "the wing
# does not matter".
#
# ```{solution-end}
# ```

# %% [markdown]
# **In this notebook we have**
#
# - *intervened* on birds by drawing them again, and checked that no pixel outside the changed part moved;
# - *defined* a species in five lines, with a check that no other looks like it;
# - *measured* what trained models use, found that the order of the parts depends on the question, and caught a cheating model by moving a toadstool.

# %% tags=["hide-input"]
print(f"{time.perf_counter() - began:.0f} seconds on {device}")

# %% [markdown]
# Next: [Normalized cuts](01_normalized_cuts.ipynb), the first tool to take pictures apart without knowing their parts.
