"""The truth about a model, measured on the model: what its own output does when a true part is
taken away.

Three answers to "how important is this part?", which agree only in part and are therefore always
named:

- removal: centred logit of the whole bird minus that of the bird without the part,
- swap: the same, averaged over the other variants of the part (every image is an ordinary bird),
- shapley: the average over all subsets of the other parts of what the part adds; they sum to
  f(all) - f(none).

Centred means minus the mean over classes: a softmax does not change when a constant is added to all
logits, so neither may an importance.
"""

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange

from ctrace.arguments import checked
from ctrace.aviary.drawing import render_levels
from ctrace.aviary.scene import Scene
from ctrace.aviary.species import PARTS, VARIANTS
from ctrace.check import check_classes, check_ready, one_of, rows_of
from ctrace.stats import exact_shapley

KINDS = ("removal", "swap", "shapley")
BATCH = 64  # images in a call of the model


@checked
@torch.no_grad()
def centred_logits(model: Callable, scenes: list[Scene], size: int | None = None) -> torch.Tensor:
    """Logits minus their mean over classes, `(n_scenes, n_classes)` float32 on the CPU.

    Args:
        model: a model from `ctrace.load_model` (its `info` preprocesses and sets the size), or any
            callable from images `(n, 3, size, size)` in [0, 1] to logits, with `size` given.
        scenes: rendered here.
        size: pixels; None takes the model's input size.

    Raises:
        ValueError: a model whose answer depends on the other images or on chance, or no size.
    """
    info, is_module = getattr(model, "info", None), isinstance(model, torch.nn.Module)
    if not scenes:
        raise ValueError("scenes: expected at least one, received none.")
    if size is None and info is None:
        raise ValueError("the model has no info with an input size; pass size= or use load_model")
    if is_module:
        check_ready(model)
    size = info.input_size[1] if size is None else size
    device = next((p.device for p in model.parameters()), "cpu") if is_module else "cpu"
    logits = []
    for start in range(0, len(scenes), BATCH):
        levels = np.stack([render_levels(scene, size) for scene in scenes[start : start + BATCH]])
        images = torch.from_numpy(levels).to(device=device, dtype=torch.float32) / 255
        answers = model(info.preprocess(images) if info else images)
        logits.append(rows_of(answers, len(images)).float().cpu())
    z = torch.cat(logits)
    return z - z.mean(1, keepdim=True)


def _changed_scenes(scene: Scene, kind: str) -> list[Scene]:
    """The scenes that a kind of importance compares with the whole bird."""
    if kind == "removal":
        return [scene.without(part) for part in PARTS]
    if kind == "swap":
        worn = zip(PARTS, scene.parts)
        return [scene.swap(part, v) for part, own in worn for v in VARIANTS[part] if v != own]
    # Coalition s keeps part i where bit i of s is set, as `exact_shapley` counts them.
    coalitions = range(2 ** len(PARTS))
    gone = [[part for i, part in enumerate(PARTS) if not s >> i & 1] for s in coalitions]
    return [scene.without(*parts) for parts in gone]


def _importance(whole: float, changed: np.ndarray, kind: str) -> np.ndarray:
    """One number per part from the target's logit on the whole bird and on the changed ones."""
    if kind == "removal":
        return whole - changed
    if kind == "swap":
        ends = np.cumsum([len(VARIANTS[part]) - 1 for part in PARTS])[:-1]
        return np.array([np.mean(whole - values) for values in np.split(changed, ends)])
    return exact_shapley(changed)


@checked
def importance_table(
    model: Callable, scenes: list[Scene], targets, kind: str = "removal", size: int | None = None
) -> np.ndarray:
    """`part_importance` of many birds in large batches: `(n_scenes, n_parts)`, columns in the order
    of `PARTS`.

    Args:
        model: see `centred_logits`.
        scenes: whole birds; only their parts, never their surroundings, are changed.
        targets: one class index per scene, whole numbers.
        kind: "removal" (6 renderings a scene), "swap" (14) or "shapley" (33), see the head of this
            module.
        size: pixels; None takes the model's input size.

    Raises:
        ValueError: an unknown kind, a scene with hidden parts, or a target the model does not have.
    """
    one_of("kind", kind, KINDS)
    check_classes(targets, len(scenes), what="targets")
    lacking = [part for part in PARTS if any(part in scene.hidden for scene in scenes)]
    if lacking:
        raise ValueError(f"importance needs whole birds; this one lacks {', '.join(lacking)}.")
    changed = [_changed_scenes(scene, kind) for scene in scenes]
    drawn = [s for scene, others in zip(scenes, changed) for s in (scene, *others)]
    z = centred_logits(model, drawn, size)
    targets = check_classes(targets, len(scenes), z.shape[1], "targets")
    by_scene = rearrange(z.double().numpy(), "(scene drawn) k -> scene drawn k", scene=len(scenes))
    logits = [rows[:, target] for rows, target in zip(by_scene, targets)]
    return np.array([_importance(row[0], row[1:], kind) for row in logits])


@checked
def part_importance(
    model: Callable, scene: Scene, target, kind: str = "removal", size: int | None = None
) -> dict[str, float]:
    """How much each of the five parts of this bird raises the model's centred logit of `target`.

    Arguments and errors as in `importance_table`, for one scene.

    Returns:
        Part -> importance in logits; positive means the part speaks for the target.
    """
    return dict(zip(PARTS, importance_table(model, [scene], [target], kind, size)[0].tolist()))
