"""Stored scores of all methods, with what may be said of them, and a place beside them for a method
of yours.

A score belongs to one bird and one trained model, and is kept. Birds *and* models are taken as
drawn from many (`ctrace.stats.crossed_interval`), differences are taken bird by bird: two methods
differ really when the interval of their difference excludes zero.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ctrace.stats import Interval, crossed_interval
from ctrace.trust.columns import (
    CONTROLS,
    CURVES,
    RANDOMISED,
    TESTED,
    Birds,
    Method,
    control_maps,
    dependence_scores,
    held_out,
    map_scores,
    mark_scores,
)
from ctrace.trust.localize import Scores

FOLDER = Path(__file__).parents[1] / "data" / "scoreboard"

# columns in which less is better; `kept` is likeness to the map of a model that was made random
FALLING = ("deletion", "falsified", "kept at half", "kept at all", "cost")


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
        """Mean and 95% interval, for other birds and other models."""
        return crossed_interval(self.values[row, column])

    def shared(self, column: str, rows: Iterable[str]) -> list[np.ndarray]:
        """The scores of several rows on the models and birds that all of them have.

        Raises:
            ValueError: rows without a model in common.
        """
        rows = list(rows)
        first, *others = (self.models[row, column] for row in rows)
        common = [name for name in first if all(name in names for names in others)]
        if not common:
            pair = f"{' and '.join(rows)} were scored on different models in {column!r}"
            hint = "Compare each with the controls on its own models."
            raise ValueError(f"{pair}: no difference bird by bird exists. {hint}")
        n = min(self.values[row, column].shape[1] for row in rows)
        places = [[self.models[row, column].index(name) for name in common] for row in rows]
        return [self.values[row, column][at, :n] for row, at in zip(rows, places)]

    def difference(self, first: str, second: str, column: str, level: float = 0.95) -> Interval:
        """First row minus second, bird by bird on the same models; real when the interval excludes
        0.

        Raises:
            ValueError: rows without a model in common.
        """
        a, b = self.shared(column, (first, second))
        return crossed_interval(a.astype(float) - b, level)

    def better(self, first: str, second: str, column: str, level: float = 0.95) -> int:
        """1 where the first row is really better than the second, -1 where it is really worse, 0
        where it cannot be told.
        """
        difference = self.difference(first, second, column, level)
        return _sign(column) * ((difference.low > 0) - (difference.high < 0))

    def verdict(self, row: str, column: str, controls: Sequence[str] = CONTROLS) -> int:
        """1 where a row is really better than each of the controls, -1 where it is really worse
        than the best of them, 0 where it cannot be told.

        Where nothing differs, each of the two answers comes up in at most one case of twenty: to be
        better a row has to win every comparison, and the interval that can make it worse is the
        wider the more controls there are.
        """
        controls = self.ranking(column, [c for c in controls if c != row])
        if not controls:
            return 0
        if all(self.better(row, control, column) == 1 for control in controls):
            return 1
        return min(0, self.better(row, controls[0], column, 1 - 0.05 / len(controls)))

    def ranking(self, column: str, rows: Sequence[str] | None = None) -> list[str]:
        """Rows from the best to the worst mean, on the models that all of them have (on its own
        models each, where there are none).
        """
        rows = [r for r in (self.rows if rows is None else rows) if (r, column) in self.values]
        try:
            values = self.shared(column, rows) if rows else []
        except ValueError:
            values = [self.values[row, column] for row in rows]
        means = {row: -_sign(column) * v.mean() for row, v in zip(rows, values)}
        return sorted(rows, key=means.get)

    def of(self, model: str, birds: int) -> "Scoreboard":
        """The rows that were scored on one model: that model alone, and its first birds."""
        mine = {key: names.index(model) for key, names in self.models.items() if model in names}
        values = {key: self.values[key][i : i + 1, :birds] for key, i in mine.items()}
        failures = {key: self.failures[key] for key in mine}
        return Scoreboard(values, failures, dict.fromkeys(mine, (model,)))


def score(
    method: Method,
    model: nn.Module,
    name: str = "yours",
    birds: int | Birds = 60,
    cheating: nn.Module | None = None,
    stored: Scoreboard | None = None,
) -> Scoreboard:
    """A method through the columns that cost little, beside the stored rows on the same birds:
    about a minute for a gradient.

    Every interval is about other birds and this one model. What a method does on average over
    networks needs several: see ``python -m benchmarks.scoreboard``.

    Args:
        method: from a model, images and classes to maps ``(b, height, width)``.
        model: an aviary classifier; the board's own rows stand beside yours where it is one of the
            board's, found by its truth and not by its name, else the controls alone.
        name: of your row.
        birds: how many, or what `held_out` made of them for this model.
        cheating: the model that goes by the mark, ``load_model("aviary-cheating")``, for the column
            *mark*.
        stored: the board; by default the one of the page.

    Raises:
        ValueError: a name that is taken; what the columns say of maps they cannot score.
    """
    stored = read_scoreboard() if stored is None else stored
    if name in stored.rows:
        raise ValueError(f"name: the board has a row {name!r} already. Choose another.")
    few = birds if isinstance(birds, Birds) else held_out(model, birds)
    n, label = len(few.images), model.info.name
    maps = torch.cat(
        [method(model, *some) for some in zip(few.images.split(32), few.targets.split(32))]
    )
    mine = map_scores(model, few, maps.detach().cpu(), min(n, CURVES // 4), min(n, TESTED // 4))
    mine |= dependence_scores(model, method, few, min(n, RANDOMISED))
    mine |= mark_scores(method, cheating, model) if cheating is not None else {}
    drawn, found = control_maps(few), stored.of(label, n)
    if not _same_truth(found, map_scores(model, few, drawn["planted truth"], 0, 0)):
        found = Scoreboard({}, {}, {})
    rows = {name: mine}
    if not found.values:
        rows |= {c: map_scores(model, few, drawn[c], CURVES // 4, TESTED // 4) for c in CONTROLS}
    for row, scored in rows.items():
        for column, scores in scored.items():
            found.values[row, column] = scores.values.numpy()[None].astype(np.float32)
            found.failures[row, column] = int(scores.failed.sum())
            found.models[row, column] = (label,)
    return found


def _same_truth(stored: Scoreboard, scored: dict[str, Scores]) -> bool:
    """Whether stored scores are about the network at hand: its truth has the scores that are stored
    for the truth.
    """
    gaps = [
        np.abs(stored.values["planted truth", c][0] - s.values.numpy()).max()
        for c, s in scored.items()
        if c.startswith("parts") and ("planted truth", c) in stored.values
    ]
    return bool(gaps) and max(gaps) <= 1e-3


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
