"""Does the map depend on the model? Give the model random weights, from the head down, and see
whether the map changes.

The test of Adebayo et al. (2018, section 3.1). A method whose map survives the loss of all that the
model has learned shows the image.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from ctrace.arguments import Seed, Whole, checked
from ctrace.check import check_classes, check_maps, check_number
from ctrace.stats import spearman


@dataclass(frozen=True, slots=True, eq=False)
class Cascade:
    """Likeness of each map to the one of the trained model, by method, depth and image ``(m, d,
    b)``.

    Attributes:
        methods, stages: names of the axes; stage j says that it and all stages before it have lost
            their weights.
        spearman: rank correlation of the signed maps.
        spearman_abs: of their magnitudes, which keep a residue where bright places give large
            values whatever the weights are.
        ssim: structural similarity of the maps on their `own_scale`.
        failed: one of the two maps is constant. Its likeness is then 0, and it is counted here.
    """

    methods: tuple[str, ...]
    stages: tuple[str, ...]
    spearman: np.ndarray
    spearman_abs: np.ndarray
    ssim: np.ndarray
    failed: np.ndarray


@checked
def stages(model: nn.Module) -> list[str]:
    """Dotted names of the pieces that lose their weights one after the other, from the head down to
    the input.

    Children in the order of their registration, backwards; a chain of blocks of one kind is taken
    apart, and so is a wrapper around a single module. Parameters of the model's own, such as
    position embeddings, belong to the last stage.

    >>> stages(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)))
    ['3', '0']
    """
    names = [name for name, child in model.named_children() if list(child.parameters())]
    if not names:
        raise ValueError("the model has no module with parameters: there is nothing to randomise.")
    found = []
    for name in reversed(names):
        child = model.get_submodule(name)
        inner = list(child.children())
        one_kind = len(inner) > 1 and len(set(map(type, inner))) == 1
        chain = one_kind and isinstance(child, nn.Sequential | nn.ModuleList)
        apart = chain or (len(names) == 1 and inner)
        found += [f"{name}.{piece}" for piece in stages(child)] if apart else [name]
    return found


@checked
def randomize(model: nn.Module, depth: Whole, seed: Seed = 0) -> nn.Module:
    """A copy of the model whose first ``depth`` stages, counted from the head, have fresh random
    weights.

    The model itself is not touched, so there is nothing to restore. A smaller depth's weights are
    those of a larger one, layer by layer. Each module draws its weights by its own
    `reset_parameters`; parameters without one become noise of their own mean and standard
    deviation.

    Raises:
        ValueError: a depth that the model does not have.
    """
    order, copied = stages(model), copy.deepcopy(model)
    check_number("depth", depth, whole=True, at_least=0, at_most=len(order))
    pieces = [copied.get_submodule(name) for name in order[:depth]]
    pieces += [copied] * (depth == len(order))
    devices = {p.device for p in copied.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        for module in dict.fromkeys(module for piece in pieces for module in piece.modules()):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
                continue
            for p in module.parameters(recurse=False):
                p.normal_(float(p.mean()), float(p.std()) if p.numel() > 1 else 0.0)
    return copied


@checked
def cascade(
    model: nn.Module,
    methods: Mapping,
    images: Tensor,
    targets,
    depths: Iterable | None = None,
    seed: Seed = 0,
) -> Cascade:
    """The maps of several methods while the model loses its weights, compared with those of the
    trained model.

    Args:
        model: in eval mode; left as it is.
        methods: by name, a function of a model, images ``(b, 3, height, width)`` and classes
            ``(b,)`` to maps ``(b, height, width)``.
        images, targets: what the methods are called with.
        depths: how many stages are random; by default every number from 1 to all of them.
        seed: of the random weights.

    Raises:
        ValueError: a method that returns another shape or NaN.
    """
    order, targets = stages(model), check_classes(targets, len(images), what="targets")
    if not methods or not all(map(callable, methods.values())):
        raise ValueError(f"methods: expected functions by name, received {dict(methods)}.")
    depths = tuple(range(1, len(order) + 1)) if depths is None else tuple(depths)
    for depth in depths or [None]:
        check_number("depths", depth, whole=True, at_least=0, at_most=len(order))

    def maps_of(net):
        drawn = ((name, method(net, images, targets)) for name, method in methods.items())
        return [check_maps(maps, images, name).double().cpu().numpy() for name, maps in drawn]

    before, found = maps_of(model), []
    for depth in depths:
        after = maps_of(randomize(model, depth, seed))
        found.append([_alike(*pair) for pair in zip(before, after)])
    likeness = rearrange(np.array(found), "d m kind b -> kind m d b")
    names = tuple(order[depth - 1] if depth else "none" for depth in depths)
    return Cascade(tuple(methods), names, *likeness[:3], likeness[3] > 0)


def own_scale(values: np.ndarray) -> np.ndarray:
    """A map in [-1, 1], zero at zero, in units of the 99th percentile of its magnitude: a division
    by an outlier would make all maps alike.
    """
    scale = np.quantile(np.abs(values), 0.99) or np.abs(values).max() or 1.0
    return np.clip(values / scale, -1, 1)


def _alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Three likenesses of two stacks of maps ``(b, height, width)``, and where they do not exist
    ``(4, b)``.
    """
    flat = [rearrange(m, "b h w -> b (h w)") for m in (a, b)]
    failed = np.logical_or(*(m.max(1) == m.min(1) for m in flat))
    alike = [structural_similarity(*map(own_scale, pair), data_range=2.0) for pair in zip(a, b)]
    likeness = np.stack([spearman(*flat, constant=0), spearman(*np.abs(flat), constant=0), alike])
    return np.vstack([np.where(failed, 0.0, likeness), failed])
