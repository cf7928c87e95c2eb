"""The truth about a model, measured on the model: what its own output does when a true part is
taken away.

Three answers to "how important is this part?", which agree only in part and are therefore always
named:

- removal: centred logit of the whole bird minus that of the bird without the part,
- swap: the same, averaged over the other variants of the part (every image is an ordinary bird),
- shapley: the average over all subsets of the other parts of what the part adds; they sum to f(all) - f(none).

Centred means minus the mean over classes: a softmax does not change when a constant is added to all
logits, so neither may an importance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ctrace.stats import exact_shapley, spearman

from .drawing import render_levels
from .scene import Scene
from .species import PARTS, VARIANTS

KINDS = ("removal", "swap", "shapley")


@torch.no_grad()
def centred_logits(
    model: Callable, scenes: list[Scene], size: int | None = None, batch: int = 64
) -> torch.Tensor:
    """Logits minus their mean over classes, `(n_scenes, n_classes)` float32 on the CPU.

    Args:
        model: a model from `ctrace.load_model` (its `info` preprocesses and sets the size), or any
            callable from images `(n, 3, size, size)` in [0, 1] to logits, with `size` given.
        scenes: rendered here.
        size: pixels; None takes the model's input size.
        batch: images per call.

    Raises:
        ValueError: a model in training mode (its answer would depend on the other images), or no
            size.
    """
    info = getattr(model, "info", None)
    if size is None:
        if info is None:
            raise ValueError(
                "the model carries no info with an input size; pass size=, or get it from load_model"
            )
        size = info.input_size[1]
    if getattr(model, "training", False):
        raise ValueError(
            "the model is in training mode, where batch statistics and dropout change its answer; call model.eval()"
        )
    device = (
        next((p.device for p in model.parameters()), "cpu")
        if isinstance(model, torch.nn.Module)
        else "cpu"
    )
    logits = []
    for start in range(0, len(scenes), batch):
        levels = np.stack([render_levels(scene, size) for scene in scenes[start : start + batch]])
        images = torch.from_numpy(levels).to(device=device, dtype=torch.float32) / 255
        logits.append(model(info.preprocess(images) if info else images).float().cpu())
    z = torch.cat(logits)
    return z - z.mean(1, keepdim=True)


def _changes(scene: Scene, kind: str) -> dict[object, Scene]:
    """The scenes that a kind of importance compares with the whole bird, by what was done to them."""
    if kind == "removal":
        return {part: scene.without(part) for part in PARTS}
    if kind == "swap":
        return {
            (p, v): scene.swap(p, v)
            for p, own in zip(PARTS, scene.parts)
            for v in VARIANTS[p]
            if v != own
        }
    coalitions = (  # bit i of the number: part i is there
        tuple(p for i, p in enumerate(PARTS) if n >> i & 1) for n in range(2 ** len(PARTS))
    )
    return {kept: scene.without(*(p for p in PARTS if p not in kept)) for kept in coalitions}


def _importance(whole: float, changed: dict[object, float], kind: str) -> list[float]:
    """One number per part from the target's logit on the whole bird and on the changed ones."""
    if kind == "removal":
        return [whole - changed[part] for part in PARTS]
    if kind == "swap":
        return [
            float(np.mean([whole - value for (p, _), value in changed.items() if p == part]))
            for part in PARTS
        ]
    return exact_shapley(list(changed.values())).tolist()


def importance_table(
    model: Callable,
    scenes: list[Scene],
    targets: list[int],
    kind: str = "removal",
    size: int | None = None,
) -> np.ndarray:
    """`part_importance` of many birds in large batches: `(n_scenes, n_parts)`, columns in the order
    of `PARTS`.

    Args:
        model: see `centred_logits`.
        scenes: whole birds; only their parts, never their surroundings, are changed.
        targets: one class index per scene.
        kind: "removal" (6 renderings a scene), "swap" (14) or "shapley" (33), see the head of this
            module.
        size: pixels; None takes the model's input size.

    Raises:
        ValueError: an unknown kind, a scene with hidden parts, or a target the model does not have.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; received {kind!r}")
    if len(scenes) != len(targets):
        raise ValueError(
            f"one target per scene is needed; received {len(scenes)} scenes and {len(targets)} targets"
        )
    for scene in scenes:
        if hidden := [p for p in PARTS if p in scene.hidden]:
            raise ValueError(
                f"the importance of parts is defined on a whole bird; this one lacks {', '.join(hidden)}"
            )
    changes = [_changes(scene, kind) for scene in scenes]
    z = centred_logits(
        model,
        [s for scene, changed in zip(scenes, changes) for s in (scene, *changed.values())],
        size,
    )
    rows = z.split([1 + len(changed) for changed in changes])
    for target in targets:
        if not 0 <= target < z.shape[1]:
            raise ValueError(
                f"target must be a class index in [0, {z.shape[1]}); received {target}"
            )
    logits = [row[:, target].tolist() for row, target in zip(rows, targets)]
    return np.array(
        [
            _importance(whole, dict(zip(changed, rest)), kind)
            for (whole, *rest), changed in zip(logits, changes)
        ]
    )


def part_importance(
    model: Callable, scene: Scene, target: int, kind: str = "removal", size: int | None = None
) -> dict[str, float]:
    """How much each of the five parts of this bird raises the model's centred logit of `target`.

    Arguments and errors as in `importance_table`, for one scene.

    Returns:
        Part -> importance in logits; positive means the part speaks for the target.
    """
    return dict(zip(PARTS, importance_table(model, [scene], [target], kind, size)[0].tolist()))


def noise_ceiling(
    model: Callable,
    scenes: list[Scene],
    targets: list[int],
    kind: str = "removal",
    size: int | None = None,
) -> float:
    """Mean rank correlation of the importances with those of the same scenes under new pixel noise.

    No explanation can be asked to agree with the truth better than the truth agrees with itself.
    """
    again = [scene.with_noise(scene.noise_seed ^ 1) for scene in scenes]
    first, second = (
        importance_table(model, taken, targets, kind, size) for taken in (scenes, again)
    )
    alike = spearman(first, second)
    if np.isnan(alike).any():
        raise ValueError(
            "a constant list has no ranks to correlate; this case must be counted, not dropped"
        )
    return float(alike.mean())
