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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from ctrace.check import check_gradients_on
from ctrace.look.layers import find_layers

__all__ = ["Capture", "Captured", "capture", "check_reached", "edit_gradient", "is_edited", "watch"]

_EDITED: ContextVar[tuple[nn.Module, ...]] = ContextVar("edited models", default=())


@contextmanager
def watch(
    model: nn.Module,
    modules: dict[str, nn.Module],
    see: Callable[[str, Tensor], Tensor | None],
    start: Callable[[], None] = lambda: None,
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
            raise ValueError(
                f"layer {name!r} puts out a {type(output).__name__}, not a tensor. Name a module "
                "inside or behind it that puts out one tensor."
            )
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
        raise ValueError(
            f"{', '.join(missed)}: never reached by a forward pass. Was the model called inside "
            "the context and in its thread? Does it use this layer (an auxiliary head)?"
        )


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
        with watch(
            model, modules, lambda name, output: seen[name]._see(output), seen._restart
        ) as reached:
            yield seen
            check_reached(modules, reached)
    finally:
        for record in seen.values():
            # the graph holds the hook, the hook the record: without this the three would hold each
            # other
            record._edge = None


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
            raise RuntimeError(
                f"layer {self.name!r}: no gradient has come back. Backward has not run yet, or the "
                "score does not depend on it: `seen.backward(score)` inside the context has zeros."
            )
        return self._gradient

    def _restart(self):
        self.calls, self._activation, self._gradient, self._edge = 0, None, None, None
        self.passes += 1

    def _see(self, output: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise ValueError(
                f"layer {self.name!r} is called a second time in one pass: used in two places, it "
                "has two activations. Give each place its own module, or capture a neighbour."
            )
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
        check_reached(self, [name for name, record in self.items() if record.calls])
        edges = [record._edge for record in self.values()]
        if None in edges:
            raise RuntimeError(
                "backward: the context is closed. Call it inside `with capture(...)`."
            )
        if not score.requires_grad:
            raise RuntimeError(
                f"the score does not depend on {', '.join(self)} through any gradient: the model "
                "detaches, runs under no_grad, or passes through numpy (an ONNX session)."
            )
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


# --- editing


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
        layers: as in `find_layers`.
        rule: ``rule(gradient, activation, name)`` returns a new tensor of the gradient's shape.

    Raises:
        ValueError: as in `capture`, or a rule that returns another shape.
        RuntimeError: gradients are off, or none will pass the layer because neither parameters nor
            input require one.
    """

    def see(name: str, output: Tensor) -> Tensor:
        if not output.requires_grad:
            raise RuntimeError(
                f"edit_gradient: no gradient will pass layer {name!r}: neither its parameters nor "
                "its input require one. Call `image.requires_grad_()` first, or name a later layer."
            )
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
