"""ParchGrad on an ImageNet model, measured on a folder of photographs that stay where they are.

    python -m benchmarks.parchgrad_photos FOLDER
    python -m benchmarks.parchgrad_photos FOLDER --out check --most 2  # a check, some minutes

A photograph's class is the number that its file name starts with, as in 281_tabby.jpg. Classes are
too many for a test each, so they are tested in groups. Writes, into ctrace/data/statistics,

    squeezenet.safetensors  moments of every channel in every group, over all photographs
    squeezenet.json         the groups, and what the numbers come from
    squeezenet.csv          of held-out photographs, a row each: what partitions gain and lose

Held out: the photographs of each group are dealt into two halves, and a photograph is explained
with statistics of the half it is not in. It stands in a montage beside one of another group, and
the score is the share of the map in its own half; and it is hidden by its map, alone. Ways: the
plain gradient, through the partition of its group, of the neighbour's group ("other"), of the
instance, and a random one of the same size.
"""

import argparse
import csv
import json
from pathlib import Path

import torch

from ctrace.look import saliency
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.parchgrad import ParchGrad
from ctrace.trust.hide import masking_curve
from ctrace.world.models import load_model
from ctrace.world.photos import as_pixels

DATA = Path(__file__).parents[1] / "ctrace/data/statistics"
NUMBERS = {
    "dogs": "151-268",
    "birds": "7-24 80-100 127-146",
    "cats": "281-293",
    "vehicles": """407 408 428 436 444 466 468 511 547 555 561 565 569 573 575 586 595 603 609 612
        627 654 656 661 665 670 671 675 690 705 717 734 751 757 779 803 817 820 829 847 864 866 867
        870 874 880""",
    "clothes": """399 400 411 433 439 443 445 451 452 457 459 465 474 501 502 514 515 529 552 568
        578 601 608 610 614 615 617 630 638 639 652 655 658 667 689 697 715 735 770 774 775 793 796
        806 808 824 834 841 842 869 887 903 906""",
    "food": "923-969",
    "buildings": """410 415 425 437 442 448 449 454 467 483 497 498 500 509 538 580 582 624 660 663
        668 672 682 698 706 727 743 762 788 821 832 839 853 858 860 865 873 884 888 900 915""",
}
QUANTILE = 0.1  # the published share
MOST = 16  # photographs explained of each group: the large groups do not speak alone
RATIOS = (0.1, 0.3, 0.5)


def numbers(text: str) -> list[int]:
    """Class numbers written as ranges, both ends included."""
    found = []
    for word in text.split():
        first, _, last = word.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


GROUPS = {name: numbers(text) for name, text in NUMBERS.items()}
GROUP_OF = torch.full((1000,), len(GROUPS))  # the last group: everything else
for i, members in enumerate(GROUPS.values()):
    GROUP_OF[members] = i


def collect(model, x, group) -> ChannelStatistics:
    """Statistics of prepared photographs ``(n, 3, height, width)`` and their groups ``(n,)``."""
    batches = zip(x.split(25), group.split(25))
    return ChannelStatistics.collect(model, batches, num_classes=len(GROUPS) + 1, progress=False)


def dealt(group) -> torch.Tensor:
    """Half 0 or 1 ``(n,)``, alternately within each group."""
    half = torch.zeros_like(group)
    for name in range(len(GROUPS) + 1):
        half[(group == name).nonzero()[1::2, 0]] = 1
    return half


def maps_of(model, parch, x, target, group, other=None) -> dict[str, torch.Tensor]:
    """Slopes ``(1, 3, height, width)`` by way."""
    ways = {"class": {"classes": group}, "random": {"classes": group, "shuffle": 0}}
    ways |= {"instance": {"method": "ins"}} | (
        {} if other is None else {"other": {"classes": other}}
    )
    edited = {
        way: parch.attribute("grad", x, target, quantile=QUANTILE, **how)
        for way, how in ways.items()
    }
    return {"plain": saliency.gradient(model, x, target)} | edited


def explain(model, parch, photos, left: bool, target: int, groups) -> dict[str, float]:
    """One row: shares of the montage's map in the half of the first of two photographs, and mean
    drops when it is hidden by its map.
    """
    (alone, beside), (group, _), row = photos, groups, {}
    width = alone.shape[-1]
    pair = torch.cat([alone, beside] if left else [beside, alone], -1)
    own = slice(0, width) if left else slice(width, None)
    for way, slope in maps_of(model, parch, pair, target, *groups).items():
        for base, mass in (
            ("gradient", slope.abs().mean(1)),
            ("input", (slope * pair).sum(1).clamp_min(0)),
        ):
            row[f"{base} {way}"] = float(mass[..., own].sum() / mass.sum())
    for way, slope in maps_of(model, parch, alone, target, group).items():
        for rule in ("morf", "lerf"):
            mass = slope.abs().mean(1)
            curve = masking_curve(model, alone, mass, target, rule, RATIOS, "blur")
            row[f"{rule} {way}"] = float(curve.aopc)
    return row


def rows(model, x, group, labels, most: int = MOST):
    """Explains the photographs whose class the model places in their group, half by half, the first
    ``most`` of each group.
    """
    with torch.no_grad():
        target = torch.cat([model(batch) for batch in x.split(25)]).argmax(1)
    half, placed = dealt(group), (GROUP_OF[target] == group) & (group < len(GROUPS))
    chance = torch.Generator().manual_seed(0)
    of_half = [collect(model, x[half == k], group[half == k]) for k in (0, 1)]
    parches = [ParchGrad(model, statistics) for statistics in of_half]
    for name in range(len(GROUPS)):
        for number, a in enumerate((placed & (group == name)).nonzero()[:most, 0].tolist()):
            others = (placed & (half == half[a]) & (group != name)).nonzero()[:, 0]
            b = int(others[torch.randint(len(others), (), generator=chance)])
            asked = {"photo": int(labels[a]), "beside": int(labels[b]), "group": name}
            parch, left = parches[1 - int(half[a])], number % 2 == 0
            pair, both = (x[a : a + 1], x[b : b + 1]), (name, int(group[b]))
            found = explain(model, parch, pair, left, int(target[a]), both)
            yield asked | {key: round(value, 4) for key, value in found.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--out", type=Path, default=DATA)
    options.add_argument("--most", type=int, default=MOST, help="photographs explained of a group")
    asked = options.parse_args()
    files = sorted(f for f in asked.folder.iterdir() if f.name.partition("_")[0].isdigit())
    if not files:
        raise SystemExit(f"{asked.folder} holds no file like 281_tabby.jpg.")
    model = load_model("squeezenet", device="cpu")
    labels = torch.tensor([int(f.name.partition("_")[0]) for f in files])
    x = torch.cat([model.info.preprocess(as_pixels(f)[0]) for f in files])
    group = GROUP_OF[labels]
    asked.out.mkdir(parents=True, exist_ok=True)
    collect(model, x, group).save(asked.out / "squeezenet.safetensors", torch.float32)
    counts = group.bincount(minlength=len(GROUPS) + 1).tolist()
    about = {
        "what": "mean and spread of every channel of squeezenet, by group of ImageNet classes",
        "photographs": f"{len(files)}, one of a class, from EliSchwartz/imagenet-sample-images; "
        "used for these numbers only, not part of this package",
        "written by": "python -m benchmarks.parchgrad_photos",
        "counts": dict(zip([*GROUPS, "everything else"], counts)),
        "classes": GROUPS,
    }
    text = json.dumps(about, indent=1).replace("[\n   ", "[").replace(",\n   ", ", ")
    (asked.out / "squeezenet.json").write_text(text.replace("\n  ]", "]") + "\n")
    with open(asked.out / "squeezenet.csv", "w", newline="") as file:
        for i, row in enumerate(rows(model, x, group, labels, asked.most)):
            table = csv.DictWriter(file, row, lineterminator="\n")
            if i == 0:
                table.writeheader()
            table.writerow(row)
            file.flush()  # it takes minutes, and can be watched


if __name__ == "__main__":
    main()
