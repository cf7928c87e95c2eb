"""Scores of every method of the book on the classifiers of the aviary, over held-out birds; read by
the scoreboard page.

    python -m benchmarks.scoreboard                          # everything that is not there yet,
        then the table: what `make scores` does
    python -m benchmarks.scoreboard --model aviary-resnet-0  # one model's share: several such calls
        may run side by side
    python -m benchmarks.scoreboard --rows edges Grad-CAM    # some rows only
    python -m benchmarks.scoreboard --write                  # the table only, from what is there

Each row of each model is kept under _build/scoreboard as soon as it is scored, and is not scored
again. Models are those that ship, and those of ``tools/train_aviary.py --further``. What the
shipped table has stays in it until it is scored anew, so a run that is stopped leaves a table that
is whole, each cell with as many models as were scored. About eight minutes of one core a model. Use
one thread per process; where page faults are dear (containers), MALLOC_MMAP_THRESHOLD_=4294967296
and MALLOC_TRIM_THRESHOLD_=17179869184 halve the time.
"""

import argparse
import csv
import datetime
import json
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import scoreboard_other
from benchmarks.scoreboard_other import aviary_images
from benchmarks.worlds import load_world, worlds
from ctrace.aviary import PARTS, Aviary
from ctrace.carrot.pipeline import Carrot
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.parchgrad import ParchGrad
from ctrace.trust import columns
from ctrace.trust import scoreboard as board
from ctrace.trust.columns import control_maps, dependence_scores, mark_scores
from ctrace.trust.localize import Scores, controls
from ctrace.trust.methods import CarrotClassifier, cnn_methods, enlarge, token_methods
from ctrace.world.models import load_model
from ctrace.world.photos import as_pixels, load_photo
from ctrace.world.tokens import TimmViTPatchBackbone

KEPT = Path("_build/scoreboard")
CHEATING = "aviary-cheating"
STATISTICS, HEAD = 560, 1400  # training images of ParchGrad's statistics and of CARROT's head
CARROT_BIRDS, CARROT_SIZES = (
    100,
    {"curves": 24, "tested": 12},
)  # a pass through its graph costs four of a ResNet
PHOTO = "chelsea", "Egyptian cat"  # and what the network of photographs is asked about
SIDE = 96  # pixels of a thumbnail
STATISTICS_FILE = board.FOLDER.parent / "statistics" / "squeezenet.safetensors"


def cnn(name):
    """Channels last: the same numbers up to rounding, in two thirds of the time on a CPU."""
    return load_world(name).to(memory_format=torch.channels_last)


def carrot(name):
    data = Aviary("train", HEAD)
    batches = torch.utils.data.DataLoader(data, batch_size=100)
    backbone = TimmViTPatchBackbone(load_world(name))
    return CarrotClassifier(Carrot(backbone).fit(batches, num_classes=14, progress=False))


def birds_of(model, folder, n):
    """The held-out birds and the truth about this model, which takes a minute to measure."""
    path = folder / "birds.npz"
    if not path.exists():
        birds = columns.held_out(model, n)
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
    return columns.Birds(**tensors, truth=truth)


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


def methods_of(name):
    """The model, its methods, and whether it is asked through a graph over tokens."""
    if name in worlds("vit"):
        return carrot(name), token_methods(), True
    model = cnn(name)
    return model, cnn_methods(aviary_images(model, "train", STATISTICS)), False


def score_rows(name, wanted=()):
    """All rows of one model that are not there yet, or those wanted of them."""
    folder = KEPT / name
    folder.mkdir(parents=True, exist_ok=True)
    model, methods, on_carrot = methods_of(name)
    birds = birds_of(model, folder, CARROT_BIRDS if on_carrot else 300)
    cheating = None if on_carrot else cnn(CHEATING)
    blind = control_maps(birds)
    rows = {row: None for row in blind} | methods
    for row in tqdm([r for r in rows if not wanted or r in wanted], desc=name, unit="row"):
        path, method = folder / f"{row}.npz", rows[row]
        if path.exists():
            continue
        maps = blind[row] if method is None else in_batches(method, model, birds)
        scored = columns.map_scores(model, birds, maps, **CARROT_SIZES if on_carrot else {})
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
    """Everything that was kept, as one `Scoreboard`: each row on the models it was scored on."""
    values, failures, models = {}, {}, {}
    for kind, suffix in (("resnet", ""), ("vit", " (CARROT's model)")):
        found = {}
        for name in worlds(kind):
            for path in sorted((KEPT / name).glob("*.npz")):
                if path.stem not in ("birds", "other rows") and ".part" not in path.name:
                    found.setdefault(path.stem, {})[name] = dict(np.load(path))
        for row, stored in found.items():
            shown = row if row.startswith("CARROT") else row + suffix
            for key in next(iter(stored.values())):
                kept, _, column = key.partition(" ")
                if kept == "score":
                    scores = np.stack([s[key] for s in stored.values()])
                    failed = sum(s[f"failed {column}"].sum() for s in stored.values())
                    values[shown, column] = scores.round(4).astype(np.float32)
                    failures[shown, column] = int(failed)
                    models[shown, column] = tuple(stored)
    return board.Scoreboard(values, failures, models)


def extended(old, new):
    """What is new, and behind it what the old table says of models that were not scored anew.

    A cell of which only the number of failures is old keeps that number whole.
    """
    fields = {name: dict(getattr(old, name)) for name in ("values", "failures", "models")}
    for key, names in new.models.items():
        values, failures = new.values[key], new.failures[key]
        rest = [i for i, name in enumerate(old.models.get(key, ())) if name not in names]
        if rest and old.values[key].shape[1] == values.shape[1]:
            values = np.concatenate([old.values[key][rest], values])
            names = (*(old.models[key][i] for i in rest), *names)
            failures += old.failures[key]
        fields["values"][key], fields["failures"][key] = values, failures
        fields["models"][key] = names
    return board.Scoreboard(**fields)


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


def photo_parchgrad(network):
    """ParchGrad of the network of photographs, with the statistics that ship, asked about the group
    of the photograph's class.
    """
    about = json.loads((STATISTICS_FILE.with_suffix(".json")).read_text())
    target = network.info.index(PHOTO[1])
    [group] = [i for i, g in enumerate(about["classes"].values()) if target in g]
    parch = ParchGrad(network, ChannelStatistics.load(STATISTICS_FILE))

    def asked(base, kind, model, images, targets):
        how = {"method": "ins"} if kind == "instance" else {"classes": group}
        found = parch.attribute(base, images, targets, quantile=0.1, **how)
        return found.abs().mean(1) if base == "grad" else found.sum(1)

    return {
        f"ParchGrad {kind}, {name}": partial(asked, base, kind)
        for kind in ("class", "instance")
        for base, name in (("grad", "|gradient|"), ("inputgrad", "input x gradient"))
    }


def thumbnails():
    """The signed map of every row on one bird, and of every row that can on one photograph, ``(96,
    96)`` with its largest magnitude at 127, by "bird: row" and "photo: row".
    """
    found, suffix = {}, " (CARROT's model)"
    for name in (worlds("resnet")[0], worlds("vit")[0]):
        model, methods, on_carrot = methods_of(name)
        bird = columns.held_out(model, 1)
        maps = {row: method(model, bird.images, bird.targets) for row, method in methods.items()}
        blind = {row + suffix * on_carrot: m for row, m in control_maps(bird).items()}
        found |= {f"bird: {row}": m for row, m in (maps | blind).items()}
    network = load_model("squeezenet", device="cpu").requires_grad_(False)
    image = network.info.preprocess(as_pixels(load_photo(PHOTO[0], (227, 227)))[0])
    target = torch.tensor([network.info.index(PHOTO[1])])
    methods = cnn_methods(None, "features.12", "features.10") | photo_parchgrad(network)
    maps = {  # the layer before the last one with a grid stands where layer3 does in the aviary's
        row.replace("features.10", "layer3"): method(network, image, target)
        for row, method in methods.items()
    }
    blind = controls(image, torch.ones_like(image[:, 0]))
    maps |= {row: blind[row] for row in board.CONTROLS if row != "area"}
    return found | {f"photo: {row}": m for row, m in maps.items()}


def save_thumbnails(folder=board.FOLDER):
    """``maps.npz``: `thumbnails` in whole numbers, array i belongs to line i of ``maps.txt``."""
    found = thumbnails()
    small = [enlarge(m.detach().float().cpu(), (SIDE, SIDE))[0] for m in found.values()]
    levels = [(127 * m / m.abs().max().clamp_min(1e-30)).round().numpy() for m in small]
    np.savez_compressed(folder / "maps.npz", *(one.astype(np.int8) for one in levels))
    (folder / "maps.txt").write_text("".join(f"{name}\n" for name in found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = [*worlds("resnet"), *worlds("vit")]
    parser.add_argument("--model", nargs="*", default=every, choices=every)
    parser.add_argument("--rows", nargs="*", default=(), help="only these rows")
    parser.add_argument("--write", action="store_true", help="only write the table")
    args = parser.parse_args()
    warnings.filterwarnings(
        "ignore", "image .*integrated gradients sum to"
    )  # a random model's score hardly changes
    asked = [] if args.write else args.model
    for name in asked:
        score_rows(name, args.rows)
    scores = extended(board.read_scoreboard(), collect())
    scores = extended(scores, scoreboard_other.scores(KEPT, [] if args.rows else asked))
    save(
        scores,
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
        numpy=np.__version__,
        parts=" ".join(PARTS),
    )
    save_thumbnails()


if __name__ == "__main__":
    main()
