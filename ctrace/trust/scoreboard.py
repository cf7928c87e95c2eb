"""The scores of one method on held-out birds, column by column, and the stored scores of all
methods with what may be said of them.

A score belongs to one bird and one trained model, and is kept. Means and intervals draw birds *and*
models again, differences are taken bird by bird: two methods differ when the interval of their
difference excludes zero.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ctrace.aviary import KINDS, PARTS, Aviary, importance_table, render
from ctrace.stats import Interval, bootstrap
from ctrace.trust import localize
from ctrace.trust.falsify import falsify
from ctrace.trust.hide import deletion, insertion
from ctrace.trust.localize import Scores

FOLDER = Path(__file__).parents[1] / "data" / "scoreboard"
STEPS = 10  # of the deletion and insertion curves

# columns in which less is better; `kept` is likeness to the map of a model that was made random
FALLING = ("deletion", "falsified", "kept at half", "kept at all", "cost")


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

    def first(self, n: int) -> "Birds":
        """The first n birds."""
        rows = {f.name: getattr(self, f.name)[:n] for f in fields(self) if f.name != "truth"}
        return Birds(**rows, truth={kind: table[:n] for kind, table in self.truth.items()})


def held_out(model: nn.Module, n: int = 300) -> Birds:
    """The first ``n`` birds of the test split, with the parts' importance to this model measured by
    rendering them anew.
    """
    data = Aviary("test", n)
    scenes, targets = [data.scene(i) for i in range(n)], [data.label(i) for i in range(n)]
    drawn = [render(scene) for scene in scenes]
    return Birds(
        images=model.info.preprocess(torch.stack([d.image for d in drawn])),
        targets=torch.tensor(targets),
        parts=torch.stack([torch.stack([d.masks[part] for part in PARTS]) for d in drawn]),
        bird=torch.stack([d.bird for d in drawn]),
        truth={kind: importance_table(model, scenes, targets, kind) for kind in KINDS},
    )


def control_maps(birds: Birds) -> dict[str, Tensor]:
    """Maps that ignore the model, and two made from the truth about it ``(n, height, width)``."""
    known = (birds.parts, birds.truth["removal"])
    truth, lie = localize.planted_truth(*known), localize.planted_lie(*known)
    blind = localize.controls(birds.images, birds.parts)
    return {"planted truth": truth, "planted lie": lie} | blind


def map_scores(
    model: nn.Module, birds: Birds, maps: Tensor, curves: int = 48, tested: int = 24
) -> dict[str, Scores]:
    """Every column that needs nothing but maps ``(n, height, width)`` of one method.

    Args:
        curves, tested: how many of the birds get deletion and insertion curves, and the
            falsification test.
    """
    on_part = birds.parts.sum(1).clamp(max=1)
    scored = {
        "pointing": localize.pointing_game(maps, on_part),
        "mass inside": localize.positive_mass_inside(maps, on_part),
    }
    for kind, table in birds.truth.items():
        name = f"parts: {'Shapley' if kind == 'shapley' else kind}"
        scored[name] = localize.part_correlation(maps, birds.parts, table)
    if curves:
        few = birds.first(curves)
        asked = (model, few.images, maps[:curves], few.targets, "blur", STEPS)
        for name, curve in (("deletion", deletion), ("insertion", insertion)):
            auc = curve(*asked).auc.double()
            scored[name] = Scores(auc, torch.zeros_like(auc, dtype=torch.bool))
    if tested:
        few = birds.first(tested)
        found = falsify(maps[:tested], few.images, model, few.targets, inside=few.bird)
        verdicts = np.array([result.verdict for result in found])
        unclear = torch.from_numpy(verdicts == "inconclusive")
        for name in ("survived", "falsified"):
            scored[name] = Scores(torch.from_numpy(verdicts == name).double(), unclear)
    return scored


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
            pair = f"{first} and {second} were scored on different models in {column!r}"
            hint = "Compare each with the controls on its own models."
            raise ValueError(f"{pair}: no difference bird by bird exists. {hint}")
        n = min(a.shape[1], b.shape[1])
        return bootstrap(a[:, :n] - b[:, :n], axes=2)

    def verdict(self, row: str, column: str, controls: Sequence[str]) -> int:
        """1 where a row is really better than the best of the controls, -1 where it is really
        worse, 0 where it cannot be told.

        "Really": the interval of the difference, bird by bird, excludes 0.
        """
        difference = self.difference(row, self.ranking(column, controls)[0], column)
        return _sign(column) * ((difference.low > 0) - (difference.high < 0))

    def ranking(self, column: str, rows: Sequence[str] | None = None) -> list[str]:
        """Rows from the best to the worst mean."""
        rows = [r for r in rows or self.rows if (r, column) in self.values]
        return sorted(rows, key=lambda row: -_sign(column) * self.values[row, column].mean())


def read_scoreboard(folder: Path = FOLDER) -> Scoreboard:
    """The stored scores of the scoreboard page."""
    with open(folder / "scores.csv", newline="") as file:
        lines = list(csv.DictReader(line for line in file if not line.startswith("# ")))
    keys = [(line["row"], line["column"]) for line in lines]
    with np.load(folder / "birds.npz") as stored:
        values = {key: stored[f"arr_{i}"] for i, key in enumerate(keys)}
    failures = {key: int(line["failures"]) for key, line in zip(keys, lines)}
    models = {key: tuple(line["models"].split("; ")) for key, line in zip(keys, lines)}
    return Scoreboard(values, failures, models)


def _sign(column: str) -> int:
    """1 where more is better, -1 where less is."""
    return -1 if column in FALLING else 1
