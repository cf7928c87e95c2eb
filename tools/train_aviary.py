"""Trains the models that ship with ctrace, and writes weights and model cards next to each other.

    python tools/train_aviary.py                          # all of them, one after the other
    python tools/train_aviary.py aviary-resnet-0          # one
    python tools/train_aviary.py --further                # resnets and vits 3 to 7, for the
        scoreboard: into _build/worlds, what is there already is not trained again
    python tools/train_aviary.py --threads 8 --device cuda --cache /tmp/scenes

Half of the training scenes of the classifiers lose random parts, and their targets are spread over
the species that remain possible, so a removed part is nothing unusual for the model. A second head,
thrown away after training, names the part variant in every cell of the feature grid: the truth is
free here, and fewer scenes suffice. The ViTs train their convolutional stem first, then the whole
on half of the tokens, last on all. The shuffled-label model has none of this: it learns its images
by heart.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from ctrace.aviary import (
    MARKED,
    PARTS,
    SPECIES,
    VARIANTS,
    Aviary,
    Cached,
    Individuals,
    render,
    scene_seed,
)
from ctrace.aviary.scene import Scene
from ctrace.aviary.shapes import MARKS
from ctrace.stats import equal_error_rate
from ctrace.world.models import BUNDLED, MODEL_DIR, MODEL_INPUT, build_bundled

OUTPUT = MODEL_DIR  # where weights and cards are written
WORLDS = Path(__file__).resolve().parents[1] / "_build/worlds"  # and those that do not ship
VIEWS = 12  # scenes of each training individual
GRID = 12  # cells per side of the feature grid of every bundled model
EVALUATED, EVALUATED_BIRDS = 700, 60  # scenes, and individuals of four views, per split
CELL_CLASSES = ["background", "body"] + [f"{part} {v}" for part in PARTS for v in VARIANTS[part]]


@dataclass(frozen=True)
class Recipe:
    """What is needed to train one model again. `images` scenes are rendered once, then mirrored and
    relit at random.
    """

    kind: str  # a key of LOSSES
    seed: int
    images: int = 12_000
    steps: int = 500
    batch: int = 64
    lr: float = 3e-3
    cells: float = 1.0  # weight of the cell loss
    stem_steps: int = 0  # steps in which the stem of a ViT learns alone
    spurious: bool = False
    start: str | None = None  # bundled model whose weights training starts from


RECIPES = {
    **{f"aviary-resnet-{s}": Recipe("species", s) for s in range(3)},
    **{
        f"aviary-vit-{s}": Recipe("tokens", 10 + s, steps=1800, batch=32, lr=2e-3, stem_steps=600)
        for s in range(3)
    },
    "aviary-cheating": Recipe("species", 20, spurious=True),
    "aviary-shuffled": Recipe("memorise", 21, images=280, steps=400),
    "aviary-embedding": Recipe("individuals", 22, start="aviary-resnet-0"),
}
FURTHER = {
    f"aviary-{kind}-{s}": replace(RECIPES[f"aviary-{kind}-0"], seed=first + s)
    for kind, first in (("resnet", 30), ("vit", 40))
    for s in range(3, 8)
}
RECIPES |= FURTHER


# ---- data ----


def drop_parts(scene: Scene, seed: int, share: float) -> Scene:
    """With probability `share`, the scene without one to four random parts."""
    rng = np.random.RandomState([seed, 201])
    if rng.random_sample() >= share:
        return scene
    return scene.without(*(PARTS[i] for i in rng.permutation(len(PARTS))[: 1 + rng.randint(4)]))


def soft_target(scene: Scene, tied: bool = False) -> torch.Tensor:
    """`(n_species,)` uniform over the species that agree with the visible parts, so that a bird
    without its crest is no lie told to the model.

    In a `tied` world, where the toadstool stands with the species in `MARKED` and no other, it
    narrows the choice as a part does.
    """
    worn = scene.visible().items()
    fitting = [s for s in SPECIES if all(getattr(s, part) == variant for part, variant in worn)]
    if tied:
        fitting = [s for s in fitting if (s.name in MARKED) == (scene.mark is not None)]
    if not fitting:
        raise ValueError(f"no species wears {scene.visible()}; did a swap make a new bird?")
    return torch.tensor([float(s in fitting) for s in SPECIES]) / len(fitting)


def cell_labels(scene, masks, size: int) -> torch.Tensor:
    """`(GRID, GRID)` int64: which class of `CELL_CLASSES` covers most of each cell; parts win from
    a fifth on.
    """

    def share(mask):
        return F.avg_pool2d(mask[None, None], size // GRID)[0, 0]

    planes = torch.zeros(len(CELL_CLASSES), GRID, GRID)
    for part, variant in scene.visible().items():
        planes[CELL_CLASSES.index(f"{part} {variant}")] = share(masks[part])
    best, label = planes.max(0)
    body = share(masks["body"]) > 0.5
    return torch.where(best > 0.2, label, body.long())


def render_pool(images: int, spurious: bool) -> dict[str, torch.Tensor]:
    """Training scenes, rendered once: grey levels, soft targets and cell labels."""
    scenes = Aviary("train", images, spurious=spurious)
    levels, targets, cells = [], [], []
    for i in range(images):
        scene = drop_parts(scenes.scene(i), scene_seed("train", i), 0.5)
        picture = render(scene, MODEL_INPUT)
        levels.append((picture.image * 255).round().to(torch.uint8))
        targets.append(soft_target(scene, tied=spurious))
        cells.append(cell_labels(scene, picture.masks, MODEL_INPUT).to(torch.uint8))
    return {
        "images": torch.stack(levels),
        "targets": torch.stack(targets),
        "cells": torch.stack(cells),
    }


def mark_cells(scene) -> torch.Tensor:
    """`(GRID, GRID)` int64: 0, or one plus the slot of the mark whose centre lies in the cell."""
    cells = torch.zeros(GRID, GRID, dtype=torch.int64)
    for slot in scene.individual.marks:
        u, v = scene.pose.place(*MARKS[slot])
        cells[int(v * GRID), int(u * GRID)] = slot + 1
    return cells


def render_birds(images: int) -> dict[str, torch.Tensor]:
    """`VIEWS` scenes of each training individual, its number, and where its marks are."""
    birds = Individuals("train", images // VIEWS, VIEWS)
    cached = Cached(birds)
    cells = torch.stack([mark_cells(birds.scene(i)).to(torch.uint8) for i in range(len(birds))])
    return {"images": cached.images, "targets": cached.targets, "cells": cells}


def jitter(
    images: torch.Tensor, cells: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Float images from grey levels, each mirrored half of the time and with its own brightness."""
    images, mirrored = images.float() / 255, torch.rand(len(images), device=images.device) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if cells is not None:
        cells = torch.where(mirrored[:, None, None], cells.flip(-1), cells)
    gain = 1 + 0.2 * (torch.rand(len(images), 1, 1, 1, device=images.device) - 0.5)
    return (images * gain).clamp(0, 1), cells


# ---- training ----


def normalise(images: torch.Tensor) -> torch.Tensor:
    return (images - 0.5) / 0.25  # as in the models' preprocessing record


def cell_features(features: torch.Tensor) -> torch.Tensor:
    """Patch tokens `(n, prefix + GRID**2, c)` or a feature map `(n, c, GRID, GRID)` as `(n,
    GRID**2, c)`.
    """
    if features.ndim == 4:
        return features.flatten(2).transpose(1, 2)
    return features[:, -GRID * GRID :]


class Heads(nn.Module):
    """Output heads that exist only during training."""

    def __init__(self, width: int):
        super().__init__()
        self.cells = nn.Linear(width, len(CELL_CLASSES))
        self.stem = nn.Linear(width, len(SPECIES))


def species_loss(model, heads, batch, recipe):
    images, cells = jitter(batch["images"], batch["cells"])
    features = model.forward_features(normalise(images))
    loss = F.cross_entropy(model.forward_head(features), batch["targets"])
    by_cell = heads.cells(cell_features(features))
    return loss + recipe.cells * F.cross_entropy(by_cell.flatten(0, 1), cells.long().flatten())


def stem_loss(model, heads, batch, recipe):
    """The convolutional stem of a ViT alone: transformer blocks learn faster, and cost more, than
    what they stand on.
    """
    images, cells = jitter(batch["images"], batch["cells"])
    tokens = model.patch_embed(normalise(images))  # (n, GRID**2, width)
    by_cell = F.cross_entropy(heads.cells(tokens).flatten(0, 1), cells.long().flatten())
    return by_cell + F.cross_entropy(heads.stem(tokens.mean(1)), batch["targets"])


def tokens_loss(model, heads, batch, recipe, keep: int = GRID * GRID // 2):
    """The species loss of a ViT on half of the tokens: those of the bird, and random ones of the
    background.
    """
    images, cells = jitter(batch["images"], batch["cells"])
    with torch.autocast(images.device.type, torch.bfloat16):
        patches = model.patch_embed(normalise(images)).float()
    tokens, cells = model._pos_embed(patches), cells.long().flatten(1)
    prefix = tokens[:, : model.num_prefix_tokens]
    chosen = (
        (torch.rand(cells.shape, device=cells.device) + 10 * (cells > 0)).topk(keep, dim=1).indices
    )  # (n, keep)
    kept = tokens[:, model.num_prefix_tokens :].gather(
        1, chosen[..., None].expand(-1, -1, tokens.shape[-1])
    )
    features = model.norm(model.blocks(torch.cat([prefix, kept], 1)))
    by_cell = heads.cells(features[:, model.num_prefix_tokens :]).flatten(0, 1)
    loss = F.cross_entropy(model.forward_head(features), batch["targets"])
    return loss + recipe.cells * F.cross_entropy(by_cell, cells.gather(1, chosen).flatten())


def memorise_loss(model, heads, batch, recipe):
    """No jitter and no second head: the shuffled labels can only be learned by heart."""
    return F.cross_entropy(model(normalise(batch["images"].float() / 255)), batch["targets"])


def individuals_loss(model, heads, batch, recipe, temperature: float = 0.1):
    """Views of one bird towards each other, views of different birds apart (supervised contrast),
    and marks by cell.
    """
    images, cells = jitter(batch["images"], batch["cells"])
    features = model.forward_features(normalise(images))
    unit = F.normalize(model.forward_head(features).float(), dim=1)
    alone = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    log_share = (unit @ unit.T / temperature).masked_fill(alone, -1e9).log_softmax(1)
    same = (batch["targets"][:, None] == batch["targets"]) & ~alone
    # Four or five of 144 cells hold a mark: the factor keeps them from drowning.
    by_cell = heads.cells(cell_features(features)).flatten(0, 1)
    return -log_share[same].mean() + 20 * recipe.cells * F.cross_entropy(
        by_cell, cells.long().flatten()
    )


LOSSES = {
    "species": species_loss,
    "tokens": tokens_loss,
    "memorise": memorise_loss,
    "individuals": individuals_loss,
}


def sample_rows(pool: dict[str, torch.Tensor], recipe: Recipe) -> torch.Tensor:
    """Random scenes; or for individuals four views each of birds of one species, so that the
    species is no help.
    """
    if recipe.kind != "individuals":
        return torch.randint(0, len(pool["images"]), (recipe.batch,))
    birds = torch.arange(
        int(torch.randint(len(SPECIES), ())), len(pool["images"]) // VIEWS, len(SPECIES)
    )
    birds = birds[torch.randperm(len(birds))[: recipe.batch // 4]]
    views = torch.rand(len(birds), VIEWS).topk(4, dim=1).indices
    return (birds[:, None] * VIEWS + views).flatten()


def run_stage(
    stage: str, loss_of, steps: int, model, heads, pool, recipe: Recipe, device: str
) -> list[dict]:
    """One cycle of the learning rate; returns the log, one entry per fifty steps."""
    weights, log, recent = [*model.parameters(), *heads.parameters()], [], []
    optimiser = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.lr, total_steps=steps, pct_start=0.15
    )
    # Half precision halves the time of convolutions on a CPU and doubles that of attention.
    half = stage == "stem" or recipe.kind != "tokens"
    for step in range(1, steps + 1):
        rows = sample_rows(pool, recipe)
        batch = {key: value[rows].to(device) for key, value in pool.items()}
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            loss = loss_of(model, heads, batch, recipe)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([w for w in weights if w.grad is not None], 2.0)
        optimiser.step()
        schedule.step()
        recent.append(loss.item())
        if step % 50 == 0:
            log.append({"stage": stage, "step": step, "loss": round(sum(recent) / len(recent), 4)})
            print(f"{stage} step {step}/{steps} loss {log[-1]['loss']:.3f}", flush=True)
            recent = []
    return log


def fit(
    name: str, recipe: Recipe, pool: dict[str, torch.Tensor], device: str
) -> tuple[nn.Module, list[dict]]:
    """Trains one model; returns it in evaluation mode with the log."""
    torch.manual_seed(recipe.seed)
    model = build_bundled(name if name in BUNDLED else f"{name[:-1]}0")
    if recipe.start:
        start = load_file(str(MODEL_DIR / f"{recipe.start}.safetensors"))
        model.load_state_dict(
            {k: v for k, v in start.items() if not k.startswith("fc.")}, strict=False
        )
    model = model.to(device, memory_format=torch.channels_last).train()
    heads, log = Heads(model.num_features).to(device), []
    if recipe.stem_steps:
        log += run_stage("stem", stem_loss, recipe.stem_steps, model, heads, pool, recipe, device)
    log += run_stage("whole", LOSSES[recipe.kind], recipe.steps, model, heads, pool, recipe, device)
    if recipe.kind == "tokens":
        every_token = partial(tokens_loss, keep=GRID * GRID)
        log += run_stage(
            "all tokens",
            every_token,
            recipe.steps // 9,
            model,
            heads,
            pool,
            replace(recipe, lr=recipe.lr / 5),
            device,
        )
    return model.eval(), log


# ---- evaluation and cards ----


@torch.no_grad()
def outputs(model: nn.Module, images: torch.Tensor, device: str) -> torch.Tensor:
    return torch.cat(
        [
            model(normalise(part.to(device).float() / 255)).float().cpu()
            for part in images.split(100)
        ]
    )


def species_scores(
    model: nn.Module, device: str, train_images: torch.Tensor, train_labels: torch.Tensor
) -> dict:
    """Accuracy on whole birds of each split, the confusion matrix of the test split, and both
    settings of the mark.
    """
    scores = {
        "train": float(
            (outputs(model, train_images, device).argmax(1) == train_labels).float().mean()
        )
    }
    for split in ("val", "test"):
        data = Cached(Aviary(split, EVALUATED))
        guess = outputs(model, data.images, device).argmax(1)
        scores[split] = float((guess == data.targets).float().mean())
    confusion = torch.zeros(len(SPECIES), len(SPECIES), dtype=torch.int64)
    confusion.index_put_(
        (data.targets, guess), torch.ones(EVALUATED, dtype=torch.int64), accumulate=True
    )
    marked = torch.tensor([SPECIES[label].name in MARKED for label in data.targets.tolist()])
    for rule in ("tied", "moved"):
        data = Cached(Aviary("test", EVALUATED, spurious=rule))
        right = (outputs(model, data.images, device).argmax(1) == data.targets).float()
        scores[f"test, mark {rule}"] = float(right.mean())
        scores[f"test, mark {rule}, marked species"] = float(right[marked].mean())
    return {
        "accuracy": {k: round(v, 4) for k, v in scores.items()},
        "confusion": confusion.tolist(),
    }


def verification_scores(model: nn.Module, device: str) -> dict:
    """Equal error rate over all pairs of views of held-out individuals, of all species and of one
    species.
    """
    rates = {}
    for split in ("val", "test"):
        for group, species in (("mixed species", None), ("one species", SPECIES[0])):
            data = Cached(Individuals(split, EVALUATED_BIRDS, 4, species=species))
            unit = F.normalize(outputs(model, data.images, device), dim=1)
            upper = torch.triu(torch.ones(len(unit), len(unit), dtype=torch.bool), 1)
            cosine, same = (unit @ unit.T)[upper], (data.targets[:, None] == data.targets)[upper]
            rates[f"{split}, {group}"] = round(equal_error_rate(cosine[same], cosine[~same]), 4)
    return {"equal_error_rate": rates}


def make_pool(recipe: Recipe, cache: Path | None) -> dict[str, torch.Tensor]:
    """The training images of a recipe, from `cache` where an earlier run left them."""
    source = "species" if recipe.kind == "tokens" else recipe.kind
    path = cache and cache / f"{source}-{recipe.images}-{recipe.spurious}.pt"
    if path and path.exists():
        return torch.load(path, weights_only=True)
    if recipe.kind == "individuals":
        pool = render_birds(recipe.images)
    elif recipe.kind == "memorise":
        data = Cached(Aviary("train", recipe.images))
        shuffled = data.targets[
            torch.randperm(recipe.images, generator=torch.Generator().manual_seed(recipe.seed))
        ]
        pool = {"images": data.images, "targets": shuffled}
    else:
        pool = render_pool(recipe.images, recipe.spurious)
    if path:
        torch.save(pool, path)
    return pool


def save_bundled(model: nn.Module, name: str, card: dict) -> None:
    """Writes weights (half precision) and model card next to each other in the package data."""
    folder = WORLDS if name in FURTHER else OUTPUT
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        k: (v.half() if v.is_floating_point() else v).contiguous().cpu()
        for k, v in model.state_dict().items()
    }
    path = folder / f"{name}.safetensors"
    (folder / f"{name}.json").write_text(json.dumps(card, indent=1) + "\n")
    save_file(state, str(path))  # last: weights that are there are complete
    path.chmod(0o644)  # the writer leaves it readable to its owner only, and it is to be packaged


def train(name: str, cache: Path | None, device: str) -> None:
    """Renders, trains, rounds to half precision, evaluates what was rounded, and writes weights and
    card.
    """
    recipe = RECIPES[name]
    pool, started = make_pool(recipe, cache), time.perf_counter()
    model, log = fit(name, recipe, pool, device)
    seconds = round(time.perf_counter() - started)
    model = model.half().float()  # what is stored is what is judged
    if recipe.kind == "individuals":
        scores = verification_scores(model, device)
    elif recipe.kind == "memorise":
        scores = species_scores(model, device, pool["images"], pool["targets"])
    else:
        whole = Cached(Aviary("train", EVALUATED, spurious=recipe.spurious))
        scores = species_scores(model, device, whole.images, whole.targets)
    machine = {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    card = {
        "name": name,
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        **scores,
        "training_seconds": seconds,
        "machine": machine,
        "log": log,
    }
    save_bundled(model, name, card)
    print(name, {k: v for k, v in scores.items() if k != "confusion"}, f"{seconds} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shipped = [name for name in RECIPES if name not in FURTHER]
    parser.add_argument("names", nargs="*", help=f"default: all of {', '.join(shipped)}")
    parser.add_argument("--further", action="store_true", help=f"{', '.join(FURTHER)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--cache", type=Path, help="folder that keeps rendered training scenes between runs"
    )
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in RECIPES]
    if unknown:
        parser.error(f"no recipe is called {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    torch.set_num_threads(options.threads)
    if options.cache:
        options.cache.mkdir(parents=True, exist_ok=True)
    left = [name for name in FURTHER if not (WORLDS / f"{name}.safetensors").exists()]
    for name in options.names or (left if options.further else shipped):
        train(name, options.cache, options.device)


if __name__ == "__main__":
    main()
