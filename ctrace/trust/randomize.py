"""Does a map depend on the model? Give the model random weights, from the head down, and see
whether the map changes.

The test of Adebayo et al. (2018, section 3.1). A method whose map survives the loss of all that the
model has learned shows the image.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from tqdm import tqdm

from ctrace.stats import spearman

__all__ = ["Cascade", "cascade", "randomize", "stages"]


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
        ssim: structural similarity of the maps as they are drawn: divided by the 99th percentile of
            their magnitude.
        failed: one of the two maps is constant. Its likeness is then 0, and it is counted here.
    """

    methods: tuple[str, ...]
    stages: tuple[str, ...]
    spearman: np.ndarray
    spearman_abs: np.ndarray
    ssim: np.ndarray
    failed: np.ndarray


def stages(model: nn.Module) -> list[str]:
    """Dotted names of the pieces that lose their weights one after the other, from the head down to
    the input.

    Children in the order of their registration, backwards; a chain of blocks of one kind is taken
    apart, and so is a wrapper around a single module. Parameters of the model's own, such as
    position embeddings, belong to the last stage.

    >>> stages(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)))
    ['3', '0']
    """
    names = [
        name for name, child in model.named_children() if any(True for _ in child.parameters())
    ]
    if not names:
        raise ValueError(
            "the model has no module with parameters, so there is nothing to randomise."
        )
    found = []
    for name in reversed(names):
        child = model.get_submodule(name)
        kinds = {type(block) for block in child.children()}
        chain = (
            isinstance(child, (nn.Sequential, nn.ModuleList)) and len(child) > 1 and len(kinds) == 1
        )
        alone = len(names) == 1 and any(True for _ in child.children())
        found += [f"{name}.{inner}" for inner in stages(child)] if chain or alone else [name]
    return found


def randomize(model: nn.Module, depth: int, seed: int = 0) -> nn.Module:
    """A copy of the model whose first ``depth`` stages, counted from the head, have fresh random
    weights.

    The model itself is not touched, so there is nothing to restore. A smaller depth's weights are
    those of a larger one, layer by layer. Each module draws its weights by its own
    `reset_parameters`; parameters without one become noise of their own mean and standard
    deviation.

    Raises:
        ValueError: a depth that the model does not have.
    """
    order = stages(model)
    if not 0 <= depth <= len(order):
        raise ValueError(
            f"depth: expected 0 to {len(order)} ({', '.join(order)}), received {depth}."
        )
    copied, done = copy.deepcopy(model), set()
    devices = {p.device for p in copied.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        pieces = [copied.get_submodule(name) for name in order[:depth]] + [copied] * (
            depth == len(order)
        )
        for module in (module for piece in pieces for module in piece.modules()):
            if module not in done:
                _reset(module)
            done.add(module)
    return copied


def cascade(
    model: nn.Module,
    methods: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]],
    images: Tensor,
    targets,
    depths: Sequence[int] | None = None,
    seed: int = 0,
    progress: bool = False,
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
        progress: show a bar over models.

    Raises:
        ValueError: a method that returns another shape or NaN.
    """
    order = stages(model)
    depths = tuple(range(1, len(order) + 1)) if depths is None else tuple(depths)
    targets = torch.as_tensor(targets).expand(len(images))
    before = {
        name: _maps(name, method(model, images, targets), images)
        for name, method in methods.items()
    }
    shape = (len(methods), len(depths), len(images))
    found = {key: np.empty(shape) for key in ("spearman", "spearman_abs", "ssim")} | {
        "failed": np.empty(shape, bool)
    }
    for j, depth in enumerate(
        tqdm(depths, desc="randomisation", unit="model", disable=not progress)
    ):
        random = randomize(model, depth, seed)
        for i, (name, method) in enumerate(methods.items()):
            for key, value in _alike(
                before[name], _maps(name, method(random, images, targets), images)
            ).items():
                found[key][i, j] = value
    return Cascade(
        tuple(methods), tuple(order[depth - 1] if depth else "none" for depth in depths), **found
    )


def _alike(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """Three likenesses of two stacks of maps ``(b, height, width)``, and where they do not exist."""
    flat = [m.reshape(len(m), -1) for m in (a, b)]
    failed = np.logical_or(*((m.max(1) == m.min(1)) for m in flat))
    likeness = {
        "spearman": spearman(*flat),
        "spearman_abs": spearman(*map(np.abs, flat)),
        "ssim": _ssim(a, b),
    }
    return {
        key: np.where(failed | np.isnan(value), 0.0, value) for key, value in likeness.items()
    } | {"failed": failed}


def _ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array(
        [structural_similarity(_drawn(x), _drawn(y), data_range=2.0) for x, y in zip(a, b)]
    )


def _drawn(values: np.ndarray) -> np.ndarray:
    """In [-1, 1], zero at zero: outliers are cut, because a division by one of them would make all
    maps alike.
    """
    scale = np.quantile(np.abs(values), 0.99) or np.abs(values).max() or 1.0
    return np.clip(values / scale, -1, 1)


def _maps(name: str, maps, images: Tensor) -> np.ndarray:
    maps = torch.as_tensor(maps).detach().double().cpu().numpy()
    if maps.shape != (len(images), *images.shape[2:]) or not np.isfinite(maps).all():
        raise ValueError(
            f"{name}: expected finite maps {(len(images), *images.shape[2:])}, received {maps.shape}. Sum over colours first."
        )
    return maps


def _reset(module: nn.Module) -> None:
    if hasattr(module, "reset_parameters"):
        return module.reset_parameters()
    for parameter in module.parameters(recurse=False):
        spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
        parameter.normal_(float(parameter.mean()), spread)
