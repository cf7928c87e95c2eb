"""The scores of one method on held-out birds, column by column.

A column asks one question of a map: does it agree with what the model does when a part is taken
away, does it lie on the bird, does hiding what it names hurt, does it change when the model does.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from ctrace.aviary import KINDS, MARKED, PARTS, SPECIES, Aviary, importance_table, render
from ctrace.trust import localize
from ctrace.trust.falsify import falsify
from ctrace.trust.hide import deletion, insertion
from ctrace.trust.localize import Scores, positive_mass_inside
from ctrace.trust.randomize import cascade, stages

# maps that ignore the model; the last is told where the parts are
CONTROLS = ("random", "smooth random", "edges", "centre", "area")
CURVES, TESTED, RANDOMISED, MARKED_BIRDS = 48, 24, 24, 60  # birds of the dear columns
STEPS = 10  # of the deletion and insertion curves

Method = Callable[[nn.Module, Tensor, Tensor], Tensor]


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
    model: nn.Module, birds: Birds, maps: Tensor, curves: int = CURVES, tested: int = TESTED
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


def dependence_scores(
    model: nn.Module, method: Method, birds: Birds, n: int = RANDOMISED
) -> dict[str, Scores]:
    """Likeness (Spearman, signed) of the maps to those of the same model with random weights: in
    its later half, and throughout.
    """
    depths, few = (len(stages(model)) // 2, len(stages(model))), birds.first(n)
    found = cascade(model, {"method": method}, few.images, few.targets, depths)
    likeness, failed = (torch.from_numpy(table[0]) for table in (found.spearman, found.failed))
    names = ("kept at half", "kept at all")
    return {name: Scores(likeness[j], failed[j]) for j, name in enumerate(names)}


def marked_birds(model: nn.Module, n: int = MARKED_BIRDS) -> tuple[Tensor, Tensor, Tensor]:
    """Birds beside the mark that the cheating model learned to go by: images, species and the
    mark's mask.
    """
    data = Aviary("test", 30 * n, spurious="tied")
    indices = [i for i in range(len(data)) if SPECIES[data.label(i)].name in MARKED][:n]
    drawn = [render(data.scene(i)) for i in indices]
    images = model.info.preprocess(torch.stack([picture.image for picture in drawn]))
    mark = torch.stack([picture.masks["mark"] for picture in drawn])
    return images, torch.tensor([data.label(i) for i in indices]), mark


def mark_scores(
    method: Method, cheating: nn.Module, honest: nn.Module, n: int = MARKED_BIRDS
) -> dict[str, Scores]:
    """How much more of its mass a method puts on the mark for the model that cheats than for one
    that does not.
    """
    images, targets, mark = marked_birds(cheating, n)
    cheats, is_honest = (
        positive_mass_inside(method(model, images, targets), mark) for model in (cheating, honest)
    )
    failed = cheats.failed | is_honest.failed
    return {"mark": Scores(cheats.values - is_honest.values, failed)}
