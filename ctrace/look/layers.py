"""Finding a layer, and telling whether a model is still as it was found."""

import zlib
from difflib import get_close_matches

import torch
from torch import Tensor, nn

__all__ = ["find_layers", "fingerprint", "live_layer"]

SHORTCUTS = {"downsample", "shortcut", "skip"}  # what timm, torchvision and common code call them


def find_layers(model: nn.Module, layers=None, kind: type = nn.Module) -> dict[str, nn.Module]:
    """Modules by dotted name, in the order they are asked for.

    Args:
        layers: a dotted name, a module, ``"last conv"``, a list of these, or all of the kind when
            None. The last convolution is the last `Conv2d` in order of definition, the shortcuts of
            residual blocks left out: they are defined last in their block, and carry what the block
            did not change.
        kind: only modules of this type are found.

    Raises:
        ValueError: no such layer; the message lists the nearest names.

    >>> list(find_layers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "last conv"))
    ['0']
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model: expected a torch.nn.Module, received {type(model).__name__}. An ONNX session "
            "or numpy code has no gradient: load the same weights into their PyTorch architecture."
        )
    known = {name: module for name, module in model.named_modules() if isinstance(module, kind)}
    names = {id(module): name for name, module in known.items()}
    if layers is None:
        layers = list(known) or ["last conv"]
    asked = [layers] if isinstance(layers, (str, nn.Module)) else list(layers)
    if not asked:
        raise ValueError("layers: expected at least one layer, received none.")
    found = [_last_conv(model) if x == "last conv" else names.get(id(x), x) for x in asked]
    for name in found:
        if name not in known:
            wanted = name if isinstance(name, str) else type(name).__name__
            near = get_close_matches(wanted, known, n=5, cutoff=0.3) or list(known)[-5:]
            raise ValueError(
                f"layers: expected a {kind.__name__} that is part of this model, received "
                f"{wanted}. Nearest names: {', '.join(near)}. All of them: model.named_modules()."
            )
    return {name: known[name] for name in found}


def _last_conv(model: nn.Module) -> str:
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if not convs:
        raise ValueError(
            f"{type(model).__name__} has no Conv2d. Name a layer whose output is (b, c, h, w) or "
            "(b, n, c). Does it wrap an ONNX session? Load the weights into PyTorch modules."
        )
    return ([name for name in convs if not SHORTCUTS & set(name.split("."))] or convs)[-1]


def live_layer(model: nn.Module) -> str | None:
    """The deepest layer of a timm transformer whose patch tokens reach the score under any pooling;
    ``None`` for other models.

    The output of the last block is read by the pooling alone. When that takes the class token, the
    gradient of every patch token there is exactly zero; before its attention, they all still count.
    """
    blocks = getattr(model, "blocks", None)
    listed = isinstance(blocks, nn.Sequential | nn.ModuleList)
    if not hasattr(model, "num_prefix_tokens") or not listed or len(blocks) < 2:
        return None
    last = len(blocks) - 1
    normed = isinstance(getattr(blocks[last], "norm1", None), nn.Module)
    return f"blocks.{last}.norm1" if normed else f"blocks.{last - 1}"


def fingerprint(model: nn.Module) -> dict[str, tuple]:
    """Everything about a model that a method could leave changed: compare one from before with one
    from after.

    Per module: training flag, in-place flag and all hooks. Per parameter and buffer:
    ``requires_grad``, hooks on the tensor, a checksum of the values and of ``.grad``.

    >>> net = nn.Linear(2, 2)
    >>> before = fingerprint(net)
    >>> net(torch.ones(1, 2)).sum().backward()
    >>> [name for name, facts in fingerprint(net).items() if facts != before[name]]
    ['weight', 'bias']
    """
    facts = {}
    for name, module in model.named_modules():
        hooks = {k: tuple(v.items()) for k, v in vars(module).items() if k.endswith("hooks") and v}
        facts[f"module {name}"] = module.training, getattr(module, "inplace", None), hooks
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        hooks = tuple((tensor._backward_hooks or {}).items())
        facts[name] = tensor.requires_grad, hooks, _checksum(tensor), _checksum(tensor.grad)
    return facts


def _checksum(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return zlib.crc32(values.numpy())
