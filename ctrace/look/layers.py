"""Finding a layer, and telling whether a model is still as it was found."""

import difflib
import zlib

from torch import Tensor, nn, uint8

__all__ = ["default_layer", "find_layer", "fingerprint", "live_layer"]


def find_layer(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    """The dotted name and the module of a layer given by name, by module, or as ``"last conv"``.

    The last convolution is the last `Conv2d` in order of definition, the shortcuts of residual
    blocks left out: they are defined last in their block, and carry what the block did not change.

    Raises:
        ValueError: no such layer; the message lists the nearest names.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model: expected a torch.nn.Module, received {type(model).__name__}. Gradients need PyTorch modules: an ONNX session "
            "or a numpy function cannot be differentiated; load the same weights into their PyTorch architecture."
        )
    modules = dict(model.named_modules())
    if layer == "last conv":
        return _last_conv(modules)
    if isinstance(layer, nn.Module):
        names = [name for name, module in modules.items() if module is layer]
        if not names:
            raise ValueError(
                f"layer: this {type(layer).__name__} is not part of the model. Was it taken from a copy of it?"
            )
        return names[0], layer
    if layer not in modules:
        near = difflib.get_close_matches(str(layer), modules, n=5, cutoff=0.3) or list(modules)[-5:]
        raise ValueError(
            f"layer: the model has no {layer!r}. Nearest names: {', '.join(near)}. All of them: model.named_modules()."
        )
    return layer, modules[layer]


SHORTCUTS = {"downsample", "shortcut", "skip"}  # what timm, torchvision and common code call them


def _last_conv(modules: dict[str, nn.Module]) -> tuple[str, nn.Module]:
    convs = [(name, module) for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    if not convs:
        raise ValueError(
            "layer: the model has no Conv2d. Name a layer whose output is (b, c, h, w) or (b, n, c). If it wraps an ONNX session or "
            "numpy code, there is nothing to differentiate: load the same weights into their PyTorch architecture."
        )
    main = [(name, module) for name, module in convs if not SHORTCUTS & set(name.split("."))]
    return (main or convs)[-1]


def default_layer(model: nn.Module) -> str:
    """``"last conv"``, or for a timm transformer the first norm of its last block: the last place
    where patches still matter.
    """
    return live_layer(model) or "last conv"


def live_layer(model: nn.Module) -> str | None:
    """The deepest layer of a timm transformer whose patch tokens reach the score under any pooling;
    ``None`` for other models.

    The output of the last block is read by the pooling alone. When that takes the class token, the
    gradient of every patch token there is exactly zero; before its attention, they all still count.
    """
    blocks = getattr(model, "blocks", None)
    if (
        not hasattr(model, "num_prefix_tokens")
        or not isinstance(blocks, nn.Sequential | nn.ModuleList)
        or len(blocks) < 2
    ):
        return None
    last = len(blocks) - 1
    return (
        f"blocks.{last}.norm1"
        if isinstance(getattr(blocks[last], "norm1", None), nn.Module)
        else f"blocks.{last - 1}"
    )


def fingerprint(model: nn.Module) -> dict[str, tuple]:
    """Everything about a model that a method could leave changed: compare one from before with one
    from after.

    Per module: training flag, in-place flag and all hooks. Per parameter and buffer:
    ``requires_grad``, hooks on the tensor, a checksum of the values and of ``.grad``.

    >>> import torch
    >>> net = nn.Linear(2, 2)
    >>> before = fingerprint(net)
    >>> net(torch.ones(1, 2)).sum().backward()
    >>> [name for name, facts in fingerprint(net).items() if facts != before[name]]
    ['weight', 'bias']
    """
    facts = {f"module {name}": _module_facts(module) for name, module in model.named_modules()}
    tensors = list(model.named_parameters()) + list(model.named_buffers())
    return facts | {name: _tensor_facts(tensor) for name, tensor in tensors}


def _module_facts(module: nn.Module) -> tuple:
    hooks = {
        key: tuple(value.items())
        for key, value in vars(module).items()
        if key.endswith("hooks") and value
    }
    return module.training, getattr(module, "inplace", None), hooks


def _tensor_facts(tensor: Tensor) -> tuple:
    hooks = tuple((tensor._backward_hooks or {}).items())
    return (
        tensor.requires_grad,
        hooks,
        _checksum(tensor),
        None if tensor.grad is None else _checksum(tensor.grad),
    )


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(uint8).numpy())
