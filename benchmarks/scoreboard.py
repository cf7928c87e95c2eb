"""Scores of every method of the book on the bundled models, over held-out birds; read by the
scoreboard page.

    python -m benchmarks.scoreboard                          # everything that is not there yet,
        then the table
    python -m benchmarks.scoreboard --model aviary-resnet-0  # one model's share: several such calls
        may run side by side
    python -m benchmarks.scoreboard --write                  # the table only, from what is there

Each row of each model is kept under _build/scoreboard as soon as it is scored, and is not scored
again. About forty minutes of one core. Use one thread per process; where page faults are dear
(containers), MALLOC_MMAP_THRESHOLD_=4294967296 and MALLOC_TRIM_THRESHOLD_=17179869184 halve the
time.
"""

import argparse
import csv
import datetime
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import scoreboard_other
from benchmarks.scoreboard_other import CNNS, VITS, aviary_images
from ctrace.aviary import MARKED, PARTS, SPECIES, Aviary, render
from ctrace.carrot.pipeline import Carrot
from ctrace.trust import scoreboard as board
from ctrace.trust.localize import Scores, positive_mass_inside
from ctrace.trust.methods import CarrotClassifier, cnn_methods, token_methods
from ctrace.trust.randomize import cascade, stages
from ctrace.world.models import load_model
from ctrace.world.tokens import TimmViTPatchBackbone

KEPT = Path("_build/scoreboard")
CHEATING = "aviary-cheating"
RANDOMISED, MARKED_BIRDS = 24, 60  # birds of the two columns that ask a method again
STATISTICS, HEAD = 560, 1400  # training images of ParchGrad's statistics and of CARROT's head
CARROT_BIRDS, CARROT_SIZES = (
    100,
    {"curves": 24, "tested": 12},
)  # a pass through its graph costs four of a ResNet
CARROT_CONTROLS = ("planted truth", "planted lie", "random", "edges", "area")


def cnn(name):
    """Channels last: the same numbers up to rounding, in two thirds of the time on a CPU."""
    return load_model(name, device="cpu").to(memory_format=torch.channels_last)


def carrot(name):
    data = Aviary("train", HEAD)
    batches = torch.utils.data.DataLoader(data, batch_size=100)
    backbone = TimmViTPatchBackbone(load_model(name, device="cpu"))
    return CarrotClassifier(Carrot(backbone).fit(batches, num_classes=14, progress=False))


def birds_of(model, folder, n):
    """The held-out birds and the truth about this model, which takes a minute to measure."""
    path = folder / "birds.npz"
    if not path.exists():
        birds = board.held_out(model, n)
        fields = {
            name: getattr(birds, name).numpy() for name in ("images", "targets", "parts", "bird")
        }
        keep(path, **fields, **{f"truth {kind}": table for kind, table in birds.truth.items()})
    with np.load(path) as stored:
        tensors = {
            name: torch.from_numpy(stored[name]) for name in ("images", "targets", "parts", "bird")
        }
        truth = {
            name.removeprefix("truth "): stored[name]
            for name in stored.files
            if name.startswith("truth")
        }
    return board.Birds(**tensors, truth=truth)


def in_batches(method, model, birds, size=32):
    return torch.cat(
        [method(model, x, y) for x, y in zip(birds.images.split(size), birds.targets.split(size))]
    )


def cost(method, model, birds, turns=5, n=8):
    """Processor time of a method over that of one bare forward pass, in turns."""
    images, targets, ratios = birds.images[:n], birds.targets[:n], []

    def seconds(step):
        start = time.process_time()
        step()
        return time.process_time() - start

    with torch.no_grad():
        model(images)
    for _ in range(turns):
        with torch.no_grad():
            bare = seconds(lambda: [model(images) for _ in range(4)]) / 4
        ratios.append(seconds(lambda: method(model, images, targets)) / bare)
    return {"cost": Scores(torch.tensor(ratios), torch.zeros(turns, dtype=torch.bool))}


def dependence_scores(model, method, birds, n=RANDOMISED):
    """Likeness (Spearman, signed) of the maps to those of the same model with random weights: in
    its later half, and throughout.
    """
    depths, few = (len(stages(model)) // 2, len(stages(model))), birds.first(n)
    found = cascade(model, {"method": method}, few.images, few.targets, depths)
    likeness, failed = (torch.from_numpy(table[0]) for table in (found.spearman, found.failed))
    names = ("kept at half", "kept at all")
    return {name: Scores(likeness[j], failed[j]) for j, name in enumerate(names)}


def marked_birds(model, n=MARKED_BIRDS):
    """Birds beside the mark that the cheating model learned to go by: images, species and the
    mark's mask.
    """
    data = Aviary("test", 30 * n, spurious="tied")
    indices = [i for i in range(len(data)) if SPECIES[data.label(i)].name in MARKED][:n]
    drawn = [render(data.scene(i)) for i in indices]
    images = model.info.preprocess(torch.stack([picture.image for picture in drawn]))
    mark = torch.stack([picture.masks["mark"] for picture in drawn])
    return images, torch.tensor([data.label(i) for i in indices]), mark


def mark_scores(method, cheating, honest, n=MARKED_BIRDS):
    """How much more of its mass a method puts on the mark for the model that cheats than for one
    that does not.
    """
    images, targets, mark = marked_birds(cheating, n)
    cheats, is_honest = (
        positive_mass_inside(method(model, images, targets), mark) for model in (cheating, honest)
    )
    failed = cheats.failed | is_honest.failed
    return {"mark": Scores(cheats.values - is_honest.values, failed)}


def score_rows(name):
    """All rows of one model that are not there yet."""
    folder, on_carrot = KEPT / name, name in VITS
    folder.mkdir(parents=True, exist_ok=True)
    model = carrot(name) if on_carrot else cnn(name)
    birds = birds_of(model, folder, CARROT_BIRDS if on_carrot else 300)
    methods = (
        token_methods() if on_carrot else cnn_methods(aviary_images(model, "train", STATISTICS))
    )
    cheating = None if on_carrot else cnn(CHEATING)
    controls = {
        row: maps
        for row, maps in board.control_maps(birds).items()
        if not on_carrot or row in CARROT_CONTROLS
    }
    rows = {row: None for row in controls} | methods
    for row, method in tqdm(rows.items(), desc=name, unit="row"):
        path = folder / f"{row}.npz"
        if path.exists():
            continue
        maps = controls[row] if method is None else in_batches(method, model, birds)
        scored = board.map_scores(model, birds, maps, **CARROT_SIZES if on_carrot else {})
        if method is not None:
            scored |= dependence_scores(model, method, birds) | cost(method, model, birds)
            scored |= mark_scores(method, cheating, model) if cheating else {}
        keep(
            path,
            **{f"score {column}": scores.values.numpy() for column, scores in scored.items()},
            **{f"failed {column}": scores.failed.numpy() for column, scores in scored.items()},
        )


def keep(path, **arrays):
    """Whole or not at all, so that a run that is stopped can go on."""
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)
    part.rename(path)


def collect():
    """Everything that was kept, as one `Scoreboard`."""
    values, failures, models = {}, {}, {}
    for names, suffix in ((CNNS, ""), (VITS, " (CARROT's model)")):
        for path in sorted((KEPT / names[0]).glob("*.npz")):
            row = path.stem
            if row == "birds" or not all((KEPT / name / path.name).exists() for name in names):
                continue
            stored = [dict(np.load(KEPT / name / path.name)) for name in names]
            for column in [
                key.removeprefix("score ") for key in stored[0] if key.startswith("score ")
            ]:
                shown = row if row.startswith("CARROT") else row + suffix
                values[shown, column] = (
                    np.stack([s[f"score {column}"] for s in stored]).round(4).astype(np.float32)
                )
                failures[shown, column] = int(sum(s[f"failed {column}"].sum() for s in stored))
                models[shown, column] = tuple(names)
    return board.Scoreboard(values, failures, models)


def save(scores, folder=board.FOLDER, **versions):
    """``scores.csv``, one line per cell with its interval, and ``birds.npz``, every single score:
    array i belongs to line i.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "birds.npz", *scores.values.values())
    with open(folder / "scores.csv", "w", newline="") as file:
        file.write("".join(f"# {name}: {text}\n" for name, text in versions.items()))
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["row", "column", "value", "low", "high", "n", "failures", "models"])
        for key, values in scores.values.items():
            mean = scores.interval(*key)
            numbers = [f"{v:.4f}" for v in (mean.value, mean.low, mean.high)]
            rest = [values.size, scores.failures[key], "; ".join(scores.models[key])]
            table.writerow([*key, *numbers, *rest])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="*", default=[*CNNS, *VITS])
    parser.add_argument("--write", action="store_true", help="only write the table")
    args = parser.parse_args()
    warnings.filterwarnings(
        "ignore", "image .*integrated gradients sum to"
    )  # a random model's score hardly changes
    if not args.write:
        for name in args.model:
            score_rows(name)
    scores = collect()
    other = scoreboard_other.scores(KEPT)
    for field in ("values", "failures", "models"):
        getattr(scores, field).update(getattr(other, field))
    save(
        scores,
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
        numpy=np.__version__,
        parts=" ".join(PARTS),
    )


if __name__ == "__main__":
    main()
