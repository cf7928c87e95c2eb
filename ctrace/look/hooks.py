"""Watching and editing a network from outside, and leaving it exactly as it was found.

`capture` keeps activations and their gradients, `edit_gradient` changes a gradient on its way back.
Both put a tensor hook on the output *inside* a forward hook: module backward hooks wrap the output
in a view, which in-place ReLU and ``x += skip`` cannot follow
(https://github.com/pytorch/pytorch/issues/61519). Activations are cloned when they are seen,
because the next in-place operation would overwrite them. A graph built inside the context keeps its
hooks until it is freed; the model keeps none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from ctrace.check import check_gradients_on
from ctrace.look.layers import find_layer

__all__ = ["Capture", "Captured", "capture", "edit_gradient"]


@contextmanager
def capture(model: nn.Module, layers) -> Iterator["Capture"]:
    """Keep what the named layers put out, and the gradient that comes back to it.

    Works with frozen models too: a captured output that needs no gradient is replaced by an equal
    one that does, and no parameter is touched. Every call of ``model`` starts afresh, so memory
    does not grow with the number of calls.

    Args:
        model: in any mode; nothing of it is changed.
        layers: a dotted name, a module, ``"last conv"``, or a list of these.

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
    found = _find_all(model, layers)
    seen = Capture({name: Captured(name) for name in found})
    handles = []
    try:
        handles.append(model.register_forward_pre_hook(lambda *_: seen._restart()))
        for name, module in found.items():
            handles.append(module.register_forward_hook(seen[name]._see))
        yield seen
        _check_reached([name for name, record in seen.items() if not record.calls])
    finally:
        for handle in handles:
            handle.remove()
        seen._release()


class Captured:
    """One layer's output and its gradient, both detached copies with the output's own shape."""

    def __init__(self, name: str):
        self.name = name
        self.passes = 0
        self._restart()

    @property
    def activation(self) -> Tensor:
        """What the layer gave out in the last forward pass. Raises when no pass has reached it."""
        if self._activation is None:
            _check_reached([self.name])
        return self._activation

    @property
    def gradient(self) -> Tensor:
        """The gradient of the score at the layer, shaped like `activation`. Raises when no backward
        pass has reached it.
        """
        if self._gradient is None:
            raise RuntimeError(
                f"layer {self.name!r}: no gradient has come back. Likely cause: (a) backward has not run yet, (b) the score does "
                "not depend on this layer. Call `seen.backward(score)` inside the context: it fills zeros where nothing depends."
            )
        return self._gradient

    def _restart(self):
        self.calls, self._activation, self._gradient, self._edge = 0, None, None, None
        self.passes += 1

    def _see(self, module: nn.Module, inputs, output):
        output = _one_tensor(output, self.name)
        self.calls += 1
        if self.calls > 1:
            raise ValueError(
                f"layer {self.name!r} is called a second time before the model itself is called again: one module used in two places "
                "has two activations, and a sum of them would explain neither. Give each place its own module (for example its own "
                "nn.ReLU), capture a neighbour that is used once, or, for two passes through a part of the model, open two contexts."
            )
        live = _differentiable(output)
        self._activation = output.detach().clone()
        self._edge = get_gradient_edge(
            live
        )  # stays with the values as they are now, whatever is done in place later
        live.register_hook(partial(self._keep, self.passes))
        return live

    def _keep(self, of_pass: int, gradient: Tensor):
        if (
            of_pass == self.passes
        ):  # a late backward through an earlier pass belongs to another activation
            self._gradient = gradient.detach().clone()


class Capture(dict):
    """From the layer's dotted name to `Captured`; ``[layer] = seen.values()`` unpacks a single one."""

    def backward(
        self, score: Tensor, grad_outputs: Tensor | None = None, retain_graph: bool = False
    ) -> list[Tensor]:
        """Send gradients from ``score`` to the captured layers and no further: no parameter gets a
        ``.grad``.

        Args:
            score: a scalar, or any tensor together with ``grad_outputs`` of its shape.

        Returns:
            One gradient per layer; exactly zero where the score does not depend on the layer.
        """
        _check_reached([name for name, record in self.items() if not record.calls])
        if any(record._edge is None for record in self.values()):
            raise RuntimeError(
                "backward: the context is closed, and with it the way back. Call it inside `with capture(...)`."
            )
        if not score.requires_grad:
            raise RuntimeError(
                f"the score does not depend on {', '.join(self)} through any gradient. Likely cause: the model detaches on the way, "
                "runs in part under torch.no_grad(), or passes through numpy (an ONNX session). Choose a layer behind that place, "
                "or load the model as PyTorch modules."
            )
        edges = [record._edge for record in self.values()]
        found = torch.autograd.grad(
            score, edges, grad_outputs, retain_graph=retain_graph, allow_unused=True
        )
        for record, gradient in zip(self.values(), found):
            if gradient is None:
                record._gradient = torch.zeros_like(record.activation)
        return [record.gradient for record in self.values()]

    def _restart(self):
        for record in self.values():
            record._restart()

    def _release(self):
        for record in self.values():
            # the graph holds the hook, the hook the record: without this the three would hold each
            # other
            record._edge = None


@contextmanager
def edit_gradient(
    model: nn.Module, layers, rule: Callable[[Tensor, Tensor, str], Tensor]
) -> Iterator[None]:
    """Replace the gradient at the output of the named layers while it passes.

    The forward values do not change. A layer used in several places is edited in each of them, with
    the activation of that place. What counts is where the forward pass ran: a graph built inside
    keeps its edits, one built outside has none.

    Args:
        model: in any mode.
        layers: as in `capture`.
        rule: ``rule(gradient, activation, name)`` returns a new tensor of the gradient's shape.

    Raises:
        ValueError: as in `capture`, or a rule that returns another shape.
        RuntimeError: gradients are off, or none will pass the layer because neither parameters nor
            input require one.
    """
    check_gradients_on()
    found = _find_all(model, layers)
    reached, handles = set(), []
    try:
        for name, module in found.items():
            handles.append(module.register_forward_hook(_editor(name, rule, reached)))
        yield
        _check_reached([name for name in found if name not in reached])
    finally:
        for handle in handles:
            handle.remove()


def _editor(name: str, rule: Callable, reached: set) -> Callable:
    def see(module, inputs, output):
        output = _one_tensor(output, name)
        if not output.requires_grad:
            raise RuntimeError(
                f"edit_gradient: no gradient will pass layer {name!r}, as neither its parameters nor its input require one. "
                "Call `image.requires_grad_()` first, or name a later layer."
            )
        reached.add(name)
        live, activation = _differentiable(output), output.detach().clone()
        live.register_hook(
            lambda gradient: _same_shape(rule(gradient, activation, name), gradient, name)
        )
        return live

    return see


def _find_all(model: nn.Module, layers) -> dict[str, nn.Module]:
    layers = [layers] if isinstance(layers, (str, nn.Module)) else list(layers)
    if not layers:
        raise ValueError("layers: expected at least one layer, received none.")
    return dict(find_layer(model, layer) for layer in layers)


def _one_tensor(output, name: str) -> Tensor:
    if not isinstance(output, Tensor):
        raise ValueError(
            f"layer {name!r} puts out a {type(output).__name__}, not a tensor. Name a module inside or behind it that puts out one tensor."
        )
    return output


def _differentiable(output: Tensor) -> Tensor:
    """``output`` itself, or an equal tensor that is part of a graph: a hook on a leaf would stay on
    the caller's own tensor.
    """
    if output.requires_grad and not output.is_leaf:
        return output
    with torch.enable_grad():  # a model may run its frozen part under no_grad itself
        source = output if output.requires_grad else output.detach().requires_grad_()
        return source.clone()


def _same_shape(edited: Tensor, gradient: Tensor, name: str) -> Tensor:
    if not isinstance(edited, Tensor) or edited.shape != gradient.shape:
        got = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
        raise ValueError(
            f"edit_gradient: at {name!r} the rule must return the gradient's shape {tuple(gradient.shape)}; it returned {got}."
        )
    return edited


def _check_reached(names: list[str]) -> None:
    if names:
        raise ValueError(
            f"{', '.join(map(repr, names))}: never reached by a forward pass. Either the model was not called inside the context, or "
            "its forward does not use this layer (an auxiliary head, a compiled or scripted copy)."
        )
