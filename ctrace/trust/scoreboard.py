"""The scores of one method on held-out birds, column by column, and the stored scores of all
methods with what may be said of them.

A score belongs to one bird and one trained model, and is kept. Means and intervals draw birds *and*
models again, differences are taken bird by bird: two methods differ when the interval of their
difference excludes zero.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ctrace.aviary import KINDS, MARKED, PARTS, SPECIES, Aviary, importance_table, render
from ctrace.stats import Interval, bootstrap
from ctrace.trust.controls import controls, planted_lie, planted_truth
from ctrace.trust.falsify import falsify
from ctrace.trust.localize import mass_inside, part_correlation, pointing_game
from ctrace.trust.perturb import deletion, insertion
from ctrace.trust.randomize import cascade, stages
from ctrace.trust.suite import Maps

__all__ = [
    "COLUMNS",
    "Birds",
    "Scoreboard",
    "Scored",
    "control_maps",
    "dependence_scores",
    "held_out",
    "map_scores",
    "mark_scores",
    "marked_birds",
    "read_scoreboard",
]

FOLDER = Path(__file__).parents[1] / "data" / "scoreboard"
BIRDS, CURVES, TESTED, RANDOMISED, MARKED_BIRDS = (
    300,
    48,
    24,
    24,
    60,
)  # images of the cheap columns and of the dear ones
STEPS = 10  # of the deletion and insertion curves
Scored = dict[str, tuple[np.ndarray, np.ndarray]]  # by column, values and failures of each bird

# What a column says, and whether more of it is better (None: neither).
COLUMNS = {
    "parts: removal": ("rank correlation with what removing each part does", True),
    "parts: swap": ("rank correlation with what swapping each part does", True),
    "parts: Shapley": ("rank correlation with each part's Shapley value", True),
    "pointing": ("share of maps whose largest value lies on a part", True),
    "mass inside": ("share of the positive mass that lies on the parts", True),
    "deletion": ("area under the deletion curve, blur fill", False),
    "insertion": ("area under the insertion curve, blur fill", True),
    "survived": ("share of maps that survive the falsification test", True),
    "falsified": ("share of maps that it falsifies", False),
    "kept at half": ("likeness to the map of a model whose later half is random", None),
    "kept at all": ("likeness to the map of a model whose weights are all random", None),
    "mark": ("share of the mass on the cheating model's mark, minus that of honest models", True),
    "cost": ("forward passes of the bare model", False),
}


@dataclass(frozen=True, slots=True, eq=False)
class Birds:
    """Held-out birds and the truth about one model.

    Attributes:
        images: prepared ``(n, 3, height, width)``.
        targets: their species ``(n,)``.
        parts: visible share of each part in each pixel ``(n, p, height, width)``.
        bird: of the whole bird ``(n, height, width)``.
        truth: by kind, importance of each part to the model ``(n, p)``.
    """

    images: Tensor
    targets: Tensor
    parts: Tensor
    bird: Tensor
    truth: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.images)

    def first(self, n: int) -> "Birds":
        """The first n birds."""
        truth = {kind: table[:n] for kind, table in self.truth.items()}
        return Birds(self.images[:n], self.targets[:n], self.parts[:n], self.bird[:n], truth)


def held_out(model: nn.Module, n: int = BIRDS, kinds: Sequence[str] = KINDS) -> Birds:
    """The first ``n`` birds of the test split, with the parts' importance to this model measured by
    rendering them anew.
    """
    data = Aviary("test", n)
    scenes, targets = [data.scene(i) for i in range(n)], [data.label(i) for i in range(n)]
    drawn = [render(scene) for scene in scenes]
    return Birds(
        images=model.info.preprocess(torch.stack([picture.image for picture in drawn])),
        targets=torch.tensor(targets),
        parts=torch.stack(
            [torch.stack([picture.masks[part] for part in PARTS]) for picture in drawn]
        ),
        bird=torch.stack([picture.bird for picture in drawn]),
        truth={kind: importance_table(model, scenes, targets, kind) for kind in kinds},
    )


def control_maps(birds: Birds) -> dict[str, Tensor]:
    """Maps that ignore the model, and two made from the truth about it ``(n, height, width)``."""
    known = birds.truth["removal"]
    made = {
        "planted truth": planted_truth(birds.parts, known),
        "planted lie": planted_lie(birds.parts, known),
    }
    return made | controls(birds.images, birds.parts)


def map_scores(
    model: nn.Module, birds: Birds, maps: Tensor, curves: int = CURVES, tested: int = TESTED
) -> Scored:
    """Every column that needs nothing but maps ``(n, height, width)`` of one method.

    Args:
        curves, tested: how many of the birds get deletion and insertion curves, and the
            falsification test.
    """
    maps, on_part = maps.double(), birds.parts.sum(1).clamp(max=1)
    scored = {
        "pointing": _of(pointing_game(maps, on_part)),
        "mass inside": _of(mass_inside(maps, on_part)),
    }
    for kind, table in birds.truth.items():
        scored[f"parts: {'Shapley' if kind == 'shapley' else kind}"] = _of(
            part_correlation(maps, birds.parts, table)
        )
    few = birds.first(curves)
    for name, curve in (("deletion", deletion), ("insertion", insertion)):
        if curves:
            scored[name] = _sound(
                curve(model, few.images, maps[:curves], few.targets, "blur", STEPS).auc
            )
    if tested:
        few = birds.first(tested)
        verdicts = [
            r.verdict
            for r in falsify(
                maps[:tested], few.images, model, few.targets, fill="blur", inside=few.bird
            )
        ]
        unclear = np.array([v == "inconclusive" for v in verdicts])
        scored |= {
            name: (np.array([float(v == name) for v in verdicts]), unclear)
            for name in ("survived", "falsified")
        }
    return scored


def dependence_scores(model: nn.Module, method: Maps, birds: Birds, n: int = RANDOMISED) -> Scored:
    """Likeness (Spearman, signed) of the maps to those of the same model with random weights: in
    its later half, and throughout.
    """
    depths, few = (len(stages(model)) // 2, len(stages(model))), birds.first(n)
    found = cascade(model, {"method": method}, few.images, few.targets, depths)
    return {
        name: (found.spearman[0, j], found.failed[0, j])
        for j, name in enumerate(("kept at half", "kept at all"))
    }


def marked_birds(model: nn.Module, n: int = MARKED_BIRDS) -> tuple[Tensor, Tensor, Tensor]:
    """Birds beside the mark that the cheating model learned to go by: images, species and the
    mark's mask.
    """
    marked, data = (
        [i for i, s in enumerate(SPECIES) if s.name in MARKED],
        Aviary("test", 30 * n, spurious="tied"),
    )
    indices = [i for i in range(len(data)) if data.label(i) in marked][:n]
    drawn = [render(data.scene(i)) for i in indices]
    images = model.info.preprocess(torch.stack([picture.image for picture in drawn]))
    return (
        images,
        torch.tensor([data.label(i) for i in indices]),
        torch.stack([picture.masks["mark"] for picture in drawn]),
    )


def mark_scores(
    method: Maps, cheating: nn.Module, honest: nn.Module, n: int = MARKED_BIRDS
) -> Scored:
    """How much more of its mass a method puts on the mark for the model that cheats than for one
    that does not.
    """
    images, targets, mark = marked_birds(cheating, n)
    shares = [mass_inside(method(model, images, targets), mark) for model in (cheating, honest)]
    return {
        "mark": (
            (shares[0].values - shares[1].values).numpy(),
            (shares[0].failed | shares[1].failed).numpy(),
        )
    }


def _of(scores) -> tuple[np.ndarray, np.ndarray]:
    return scores.values.cpu().numpy(), scores.failed.cpu().numpy()


def _sound(values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return values.double().cpu().numpy(), np.zeros(len(values), bool)


# ----------------------------------------------------------------------------------------------------------
# stored scores


@dataclass(frozen=True, eq=False)
class Scoreboard:
    """Scores of every row, bird by bird.

    Attributes:
        values: by row and column, ``(models, birds)``.
        failures: by row and column, how many of these are failures that got the score of chance.
        models: by row and column, the names of the models.
    """

    values: dict[tuple[str, str], np.ndarray]
    failures: dict[tuple[str, str], int]
    models: dict[tuple[str, str], tuple[str, ...]]

    @property
    def rows(self) -> list[str]:
        """Methods, in the order in which they were scored."""
        return list(dict.fromkeys(row for row, _ in self.values))

    @property
    def columns(self) -> list[str]:
        """Questions, in the same way."""
        return list(dict.fromkeys(column for _, column in self.values))

    def interval(self, row: str, column: str) -> Interval:
        """Mean and 95% interval, birds and models drawn again."""
        return bootstrap(self.values[row, column], axes=2)

    def difference(self, first: str, second: str, column: str) -> Interval:
        """First row minus second, bird by bird on the same models; real when the interval excludes
        0.

        Raises:
            ValueError: rows that were not scored on the same birds and models.
        """
        a, b = self.values[first, column], self.values[second, column]
        if self.models[first, column] != self.models[second, column]:
            raise ValueError(
                f"{first} and {second} were scored on different models in {column!r}: no difference bird by bird exists."
            )
        n = min(a.shape[1], b.shape[1])
        return bootstrap(a[:, :n] - b[:, :n], axes=2)

    def verdict(self, row: str, column: str, controls: Sequence[str]) -> int:
        """1 where a row is really better than the best of the controls, -1 where it is really
        worse, 0 where it cannot be told.

        "Really": the interval of the difference, bird by bird, excludes 0.
        """
        best = self.ranking(column, controls)[0]
        difference = self.difference(row, best, column)
        better = 1 if COLUMNS.get(column, ("", True))[1] else -1
        return better * ((difference.low > 0) - (difference.high < 0))

    def ranking(self, column: str, rows: Sequence[str] | None = None) -> list[str]:
        """Rows from the best to the worst mean."""
        better = COLUMNS[column][1] if column in COLUMNS else True
        rows = [r for r in (self.rows if rows is None else rows) if (r, column) in self.values]
        return sorted(rows, key=lambda row: self.values[row, column].mean() * (-1 if better else 1))

    def save(self, folder: Path | None = None, **versions: str) -> None:
        """``scores.csv``, one line per cell with its interval, and ``birds.npz``, every single
        score.
        """
        folder = folder or FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            "\t".join([*key, str(self.failures[key]), *self.models[key]]): value
            for key, value in self.values.items()
        }
        np.savez_compressed(folder / "birds.npz", **arrays)
        with open(folder / "scores.csv", "w", newline="") as file:
            file.write("".join(f"# {name}: {text}\n" for name, text in versions.items()))
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["row", "column", "value", "low", "high", "n", "failures", "models"])
            for (row, column), values in self.values.items():
                interval = self.interval(row, column)
                numbers = [f"{v:.4f}" for v in (interval.value, interval.low, interval.high)]
                table.writerow(
                    [
                        row,
                        column,
                        *numbers,
                        values.size,
                        self.failures[row, column],
                        " ".join(self.models[row, column]),
                    ]
                )


@cache
def read_scoreboard(folder: Path | None = None) -> Scoreboard:
    """The stored scores of the scoreboard page."""
    values, failures, models = {}, {}, {}
    with np.load((folder or FOLDER) / "birds.npz") as stored:
        for name in stored.files:
            row, column, failed, *names = name.split("\t")
            values[row, column], failures[row, column] = stored[name], int(failed)
            models[row, column] = tuple(names)
    return Scoreboard(values, failures, models)
