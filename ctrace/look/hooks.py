"""Watching and editing a network from outside, and leaving it exactly as it was found.

`capture` keeps activations and their gradients, `edit_gradient` changes a gradient on its way back;
both, and the channel means of `ctrace.look.channel_statistics`, go through `watch`.

A gradient is met by a tensor hook on the output *inside* a forward hook: module backward hooks wrap
the output in a view, which in-place ReLU and ``x += skip`` cannot follow
(https://github.com/pytorch/pytorch/issues/61519). Activations are cloned when they are seen,
because the next in-place operation would overwrite them. A graph built inside the context keeps its
hooks until it is freed; the model keeps none.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from ctrace.check import check_gradients_on

SHORTCUTS = {"downsample", "shortcut", "skip"}  # what timm, torchvision and common code call them
_EDITED: ContextVar[tuple[nn.Module, ...]] = ContextVar("edited models", default=())


def find_layers(model: nn.Module, layers=None, kind: type = nn.Module) -> dict[str, nn.Module]:
    """Modules by dotted name, in the order they are asked for.

    Args:
        layers: a dotted name, a module, ``"last conv"``, a list of these, or all of the kind when
            None. ``"last conv"`` is the last `Conv2d` to be defined, without the shortcuts of
            residual blocks: they are defined last, and carry what the block did not change.
        kind: only modules of this type are found.

    Raises:
        ValueError: no such layer; the message lists the nearest names.

    >>> list(find_layers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "last conv"))
    ['0']
    """
    if not isinstance(model, nn.Module):
        got = f"{type(model).__name__}. From ONNX or numpy, load the weights into PyTorch modules"
        raise ValueError(f"model: expected a torch.nn.Module, received {got}.")
    known = {name: module for name, module in model.named_modules() if isinstance(module, kind)}
    names = {id(module): name for name, module in known.items()}
    if layers is None:
        layers = list(known) or ["last conv"]
    alone = isinstance(layers, (str, nn.Module))
    asked = [layers] if alone else list(layers) if isinstance(layers, Iterable) else []
    if not asked:
        raise ValueError(f"layers: expected at least one layer, received {layers or 'none'}.")
    found = [_last_conv(model) if x == "last conv" else names.get(id(x), x) for x in asked]
    for name in found:
        if name not in known:
            wanted = name if isinstance(name, str) else type(name).__name__
            near = get_close_matches(wanted, known, n=5, cutoff=0.3) or list(known)[-5:]
            part = f"a {kind.__name__} that is part of this model"
            nearest = f"Nearest names: {', '.join(near)}"
            raise ValueError(f"layers: expected {part}, received {wanted}. {nearest}.")
    return {name: known[name] for name in found}


def _last_conv(model: nn.Module) -> str:
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if not convs:
        name = f"{type(model).__name__} has no Conv2d (an ONNX session? Load its weights in torch)"
        raise ValueError(f"{name}. Name a layer whose output is (b, c, h, w) or (b, n, c).")
    return ([name for name in convs if not SHORTCUTS & set(name.split("."))] or convs)[-1]


@contextmanager
def watch(
    model: nn.Module, modules: dict[str, nn.Module], see: Callable, start: Callable = lambda: None
) -> Iterator[set[str]]:
    """Calls ``start()`` before each pass through the model and ``see(name, output)`` at each of the
    modules, in the thread that opened the context and in no other; what ``see`` returns replaces
    the output. Yields the names that have been reached.

    Raises:
        ValueError: a module that puts out no single tensor.
    """
    here, reached, handles = threading.get_ident(), set(), []

    def before(module, inputs):
        if threading.get_ident() == here:
            start()

    def after(name, module, inputs, output):
        if threading.get_ident() != here:
            return None
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise ValueError(f"layer {name!r} puts out a {kind}, not a tensor. Name one inside it.")
        reached.add(name)
        return see(name, output)

    try:
        handles.append(model.register_forward_pre_hook(before))
        for name, module in modules.items():
            handles.append(module.register_forward_hook(partial(after, name)))
        yield reached
    finally:
        for handle in handles:
            handle.remove()


def check_reached(names, reached) -> None:
    """Raises ValueError when a forward pass has left out one of the named layers."""
    missed = [repr(name) for name in names if name not in reached]
    if missed:
        why = "Not called in the context and its thread, or not used (an auxiliary head)?"
        raise ValueError(f"{', '.join(missed)}: never reached by a forward pass. {why}")


def _differentiable(output: Tensor) -> Tensor:
    """``output`` itself, or an equal tensor that is part of a graph: a hook on a leaf would stay on
    the caller's own tensor.
    """
    if output.requires_grad and not output.is_leaf:
        return output
    with torch.enable_grad():  # a model may run its frozen part under no_grad itself
        return (output if output.requires_grad else output.detach().requires_grad_()).clone()


@contextmanager
def capture(model: nn.Module, layers) -> Iterator["Capture"]:
    """Keep what the named layers put out, and the gradient that comes back to it.

    Works with frozen models too: a captured output that needs no gradient is replaced by an equal
    one that does, and no parameter is touched. Every call of ``model`` starts afresh, so memory
    does not grow with the number of calls.

    Args:
        model: in any mode; nothing of it is changed.
        layers: as in `find_layers`.

    Yields:
        `Capture`, a dictionary from dotted name to `Captured`; valid after the context has closed.

    Raises:
        ValueError: a layer that does not exist, puts out no single tensor, is called twice in one
            pass, or is never reached.
        RuntimeError: gradients are switched off.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    >>> with capture(net, "0") as seen:
    ...     _ = seen.backward(net(torch.ones(1, 3, 8, 8)).sum())
    >>> seen["0"].gradient.shape
    torch.Size([1, 4, 6, 6])
    """
    check_gradients_on()
    modules = find_layers(model, layers)
    seen = Capture({name: Captured(name) for name in modules})
    try:
        with watch(model, modules, seen._see, seen._restart) as reached:
            yield seen
            check_reached(modules, reached)
    finally:
        for record in seen.values():
            record._edge = None  # graph, hook and record would hold each other


class Captured:
    """One layer's output and its gradient, both detached copies with the output's own shape."""

    def __init__(self, name: str):
        self.name, self.passes = name, 0
        self._restart()

    @property
    def activation(self) -> Tensor:
        """What the layer gave out in the last forward pass. Raises when no pass has reached it."""
        check_reached([self.name], [self.name] if self.calls else [])
        return self._activation

    @property
    def gradient(self) -> Tensor:
        """The gradient of the score at the layer, shaped like `activation`. Raises when no backward
        pass has reached it.
        """
        if self._gradient is None:
            why = "Backward has not run, or the score is free of it: seen.backward has zeros there"
            raise RuntimeError(f"layer {self.name!r}: no gradient has come back. {why}.")
        return self._gradient

    def _restart(self):
        self.calls, self._activation, self._gradient, self._edge = 0, None, None, None
        self.passes += 1

    def _see(self, output: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            where = f"layer {self.name!r} is called a second time in one pass"
            raise ValueError(f"{where}: two activations. Capture a neighbour that is called once.")
        live = _differentiable(output)
        self._activation = output.detach().clone()
        # stays with the values as they are now, whatever is done in place later
        self._edge = get_gradient_edge(live)
        live.register_hook(partial(self._keep, self.passes))
        return live

    def _keep(self, of_pass: int, gradient: Tensor):
        # a late backward through an earlier pass belongs to another activation
        if of_pass == self.passes:
            self._gradient = gradient.detach().clone()


class Capture(dict):
    """From the layer's dotted name to `Captured`; ``[layer] = seen.values()`` unpacks one."""

    def backward(self, score: Tensor, grad_outputs=None, retain_graph=False) -> list[Tensor]:
        """Send gradients from ``score`` to the captured layers and no further: no parameter gets a
        ``.grad``.

        Args:
            score: a scalar, or any tensor together with ``grad_outputs`` of its shape.

        Returns:
            One gradient per layer; exactly zero where the score does not depend on the layer.
        """
        check_reached(self, [name for name, record in self.items() if record.calls])
        edges = [record._edge for record in self.values()]
        if None in edges:
            raise RuntimeError("backward: the context is closed. Call it in `with capture(...)`.")
        if not score.requires_grad:
            why = "the model detaches, runs under no_grad, or passes through numpy (ONNX)"
            raise RuntimeError(f"the score does not depend on {', '.join(self)}: {why}.")
        found = torch.autograd.grad(
            score, edges, grad_outputs, retain_graph=retain_graph, allow_unused=True
        )
        for record, gradient in zip(self.values(), found):
            if gradient is None:
                record._gradient = torch.zeros_like(record.activation)
        return [record.gradient for record in self.values()]

    def _see(self, name: str, output: Tensor) -> Tensor:
        return self[name]._see(output)

    def _restart(self):
        for record in self.values():
            record._restart()


@contextmanager
def edit_gradient(model: nn.Module, layers, rule: Callable) -> Iterator[None]:
    """Replace the gradient at the output of the named layers while it passes.

    The forward values do not change. A layer used in several places is edited in each of them, with
    the activation of that place. What counts is where the forward pass ran: a graph built inside
    keeps its edits, one built outside has none.

    Args:
        model: in any mode.
        layers: as in `find_layers`.
        rule: ``rule(gradient, activation, name)`` returns a new tensor of the gradient's shape.

    Raises:
        ValueError: as in `capture`, or a rule that returns another shape.
        RuntimeError: gradients are off, or none will pass the layer.
    """

    def see(name: str, output: Tensor) -> Tensor:
        if not output.requires_grad:
            why = "neither its parameters nor its input require one: image.requires_grad_()"
            raise RuntimeError(f"edit_gradient: no gradient will pass layer {name!r}, {why}.")
        live, activation = _differentiable(output), output.detach().clone()

        def edit(gradient: Tensor) -> Tensor:
            edited = rule(gradient, activation, name)
            if edited.shape != gradient.shape:
                shapes = f"{tuple(gradient.shape)}; it returned {tuple(edited.shape)}"
                raise ValueError(f"rule at {name!r}: expected the gradient's shape {shapes}.")
            return edited

        live.register_hook(edit)
        return live

    check_gradients_on()
    token = _EDITED.set((*_EDITED.get(), model))
    try:
        modules = find_layers(model, layers)
        with watch(model, modules, see) as reached:
            yield
            check_reached(modules, reached)
    finally:
        _EDITED.reset(token)


def is_edited(model: nn.Module) -> bool:
    """Whether an `edit_gradient` of this model is open, so that its gradient is no derivative."""
    return any(model is edited for edited in _EDITED.get())
