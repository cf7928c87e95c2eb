"""Grad-CAM and its siblings, for classifiers and for embedding models: which place, and which
channel, raised this score.

Every method here is one rule that turns the gradient at a layer into weights; the map is the
weighted sum of the layer's channels. The map is kept signed and unscaled; ReLU, enlarging and
scaling are drawing, and come last.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ctrace.arguments import checked, warn
from ctrace.check import (
    at_least_float32,
    check_device,
    check_ready,
    one_of,
    one_output,
    prepare_images,
)
from ctrace.look.explanation import Explanation
from ctrace.look.hooks import capture, find_layers
from ctrace.look.targets import SIMILARITIES, Target, make_target, saturation
from ctrace.world.tokens import covered_size, layer_to_map


def _gradcam(acts: Tensor, grads: Tensor) -> Tensor:
    """``alpha_c``, the spatial mean of the gradient (Selvaraju et al. 2017, eq. 1)."""
    return grads.mean((2, 3), keepdim=True)


def _gradcam_plus_plus(acts: Tensor, grads: Tensor) -> Tensor:
    """Positive gradients, weighted by ``g^2 / (2 g^2 + sum(A) g^3)`` (Chattopadhay et al. 2018,
    eqs. 7 and 19).

    ``g^2`` is cancelled here, so that no constant is needed against division by zero: with one,
    small gradients count as none.
    """
    denominator = 2 + acts.sum((2, 3), keepdim=True) * grads  # (b, c, h, w)
    if bool(((denominator <= 0) & (grads > 0)).any()):
        why = "a denominator 2 + sum(A) g is not positive, excluded by assuming activations >= 0"
        raise ArithmeticError(f"gradcam++: {why}. Name a layer behind a ReLU, or use 'hirescam'.")
    return (grads.relu() / denominator).sum((2, 3), keepdim=True)


def _layercam(acts: Tensor, grads: Tensor) -> Tensor:
    """Positive gradients place by place (Jiang et al. 2021, eq. 5)."""
    return grads.relu()


def _hirescam(acts: Tensor, grads: Tensor) -> Tensor:
    """The gradient place by place (Draelos and Carin 2020, eq. 4): the map sums to the score where
    the rest is linear.
    """
    return grads


WEIGHTS = {
    "gradcam": _gradcam,
    "gradcam++": _gradcam_plus_plus,
    "layercam": _layercam,
    "hirescam": _hirescam,
}


class GradCAM:
    """Explains a model's score by one of its layers.

    Hooks exist only while an image is being explained, so there is nothing to clean up; the
    ``with`` form and `remove_hooks` are for those who expect them. The model is never moved,
    switched or given gradients.

    Args:
        model: in eval mode; may be frozen.
        target_layer: dotted name, module, or ``None``: the last `Conv2d` outside a shortcut, or for
            a timm transformer the first norm of its last block.
        device: ``None``, or the device the model is on.
        method: a key of `WEIGHTS`.
        to_map: for layers whose output is neither ``(b, c, h, w)`` nor the tokens of a timm model:
            a function to ``(b, c, h, w)``.

    Attributes:
        target_layer_name: dotted name of the layer.
        activations, gradients: of the layer in the last call, ``(b, c, h, w)``; None before it.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    >>> with GradCAM(net) as cam:
    ...     maps = cam.compute_attribution(torch.rand(3, 3, 8, 8), target=[0, 1, 0], relu=False)
    >>> maps.shape
    (3, 8, 8)
    """

    def __init__(
        self, model: nn.Module, target_layer=None, device=None, method="gradcam", to_map=None
    ):
        layer = (live_layer(model) or "last conv") if target_layer is None else target_layer
        [(self.target_layer_name, self._module)] = find_layers(model, layer).items()
        at = next((p.device for p in model.parameters()), torch.device("cpu"))
        check_device(device, at)
        self.model, self.method, self._to_map = model, one_of("method", method, WEIGHTS), to_map
        self.activations = self.gradients = None

    def __enter__(self) -> "GradCAM":
        return self

    def __exit__(self, *exception) -> None:
        return None

    def remove_hooks(self) -> None:
        """Does nothing: no hook outlives the call that needed it."""

    @checked
    def compute_attribution(
        self, image: Tensor, *, relu: bool = True, normalize: bool = True, **question
    ) -> np.ndarray:
        """The map to draw: ``(height, width)`` for an image, ``(b, height, width)`` for a batch (of
        one, too), equal to one by one.

        Args:
            image: ``(3, height, width)`` or ``(b, 3, height, width)``.
            relu, normalize: see `Explanation.heatmap`.
            **question: ``target``, ``target_embedding`` and ``baseline_embedding``, as in
                `ctrace.look.targets.make_target`. With none of them, the norm of the output.

        Raises:
            ValueError: a saturated target or a dead layer; `explain` returns instead of raising.

        Warns:
            UserWarning: a map without evidence, which stays zero.
        """
        result = self.explain(image, **question)
        _speak(result, relu)
        maps = result.heatmap(relu, normalize)
        return maps[0] if image.ndim == 3 else maps

    def explain(self, image: Tensor, **question) -> Explanation:
        """All behind `compute_attribution`, with a status per image instead of an exception."""
        return self._explain(prepare_images(self.model, image), partial(make_target, **question))

    @checked
    def explain_pair(self, first: Tensor, second: Tensor, similarity="cosine") -> Explanation:
        """Two images, each explained by its similarity to the other, in one pass: row 0 is the
        first, row 1 the second.
        """
        one_of("similarity", similarity, SIMILARITIES)
        first, second = prepare_images(self.model, first), prepare_images(self.model, second)
        if len(first) != 1 or first.shape != second.shape:
            shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
            raise ValueError(f"first, second: two single images of one size, not {shapes}.")
        pair = torch.cat([first, second])
        return self._explain(pair, lambda output: make_target(output, similarity, output.flip(0)))

    def _explain(self, images: Tensor, ask: Callable[[Tensor], Target]) -> Explanation:
        check_ready(self.model)
        with capture(self.model, self._module) as seen:
            output = one_output(self.model(images), len(images))
            target = ask(output.detach())
            score = target(output)
            pull = partial(seen.backward, output, retain_graph=True)
            stuck = saturation(output, score, target, lambda v: pull(v)[0])
            seen.backward(score.sum())
        [layer] = seen.values()
        size = tuple(images.shape[2:])
        acts, grads = (self._as_map(x, size) for x in (layer.activation, layer.gradient))
        self.activations, self.gradients = acts, grads  # (b, c, h, w)
        if not bool(torch.isfinite(grads).all() & torch.isfinite(acts).all()):
            where = f"activations or gradients at {layer.name}"
            raise ArithmeticError(f"{where}: NaN or infinity. In float16, try bfloat16 or float32.")
        weights = WEIGHTS[self.method](acts, grads)
        raw = (weights * acts).sum(1)  # (b, h, w)
        eps = torch.finfo(layer.activation.dtype).eps
        noise = raw.abs().amax((1, 2)) <= _rounding_level(acts, grads, weights, eps)
        dead = (grads == 0).flatten(1).all(1)
        highest = raw.amax((1, 2)).tolist()
        verdicts = list(map(self._verdict, stuck, dead.tolist(), noise.tolist(), highest))
        keep = ~(noise | dead | torch.tensor([bool(reason) for reason in stuck], device=raw.device))
        status, explanation = map(list, zip(*verdicts))
        return Explanation(
            raw=torch.where(keep[:, None, None], raw, 0),
            weights=torch.where(keep[:, None], weights.mean((2, 3)), 0),
            activations=acts,
            score=score.detach(),
            target=target.words,
            target_layer=layer.name,
            status=status,
            explanation=explanation,
            image_size=size,
            covered_size=covered_size(self.model, layer.activation, raw.shape[1:], size),
        )

    def _as_map(self, output: Tensor, image_size: tuple[int, int]) -> Tensor:
        if self._to_map is None:
            return at_least_float32(layer_to_map(output, self.model, self._module, image_size))
        maps = self._to_map(output)
        if maps.ndim != 4 or len(maps) != len(output):
            shapes = f"from {tuple(output.shape)}, received {tuple(maps.shape)}"
            raise ValueError(f"to_map: expected (b, c, h, w) {shapes}.")
        return at_least_float32(maps)

    def _verdict(self, stuck: str, dead: bool, noise: bool, highest: float) -> tuple[str, str]:
        layer = self.target_layer_name
        if stuck:
            return "saturated_target", stuck
        if dead:
            return "dead_layer", _why_dead(self.model, layer)
        if noise:
            why = "activations are zero, or sums cancel, as in front of a normalisation"
            return "no_evidence", f"{layer} gives only rounding: {why}. Name a layer behind it."
        if highest <= 0:
            why = "relu=False shows what lowers the score; another target or method may support it"
            return "no_evidence", f"the map at {layer} is negative everywhere: {why}."
        return "ok", ""


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
    return f"blocks.{last}.norm1" if hasattr(blocks[last], "norm1") else f"blocks.{last - 1}"


def _rounding_level(acts: Tensor, grads: Tensor, weights: Tensor, eps: float) -> Tensor:
    """Magnitude ``(b,)`` that a map can reach by rounding alone, the larger of two.

    Each gradient is off by a few ``eps`` of its channel's size. And the c products of a place are
    summed: at worst the sum is off by c eps of what they add up to without their signs (Higham
    2002, *Accuracy and Stability of Numerical Algorithms*, eq. 3.5). There ``eps`` is single
    precision's in any precision: behind a LayerNorm double precision would draw what its own
    epsilon leaves of the cancellation, 1e-8 of the products. Products of random
    signs leave 1 / sqrt(c) of them.
    """
    size = (grads.square().mean((2, 3), keepdim=True) * acts.square()).sum(1)  # (b, h, w)
    products = (weights * acts).abs().sum(1)
    single = acts.shape[1] * torch.finfo(torch.float32).eps
    return torch.maximum(4 * eps * size.sqrt().amax((1, 2)), single * products.amax((1, 2)))


def _why_dead(model: nn.Module, layer: str) -> str:
    live, names = live_layer(model), [name for name, _ in model.named_modules()]
    if live and (live.startswith(f"{layer}.") or names.index(layer) > names.index(live)):
        why = "behind the last attention the pooling reads the class token only"
        return f"the gradient is zero at every patch of {layer}: {why}. Use target_layer={live!r}."
    why = (
        "the score does not depend on it (detached?), or every path to it is shut (ReLUs, float16)"
    )
    return f"the score's gradient is exactly zero everywhere at {layer}: {why}."


def _speak(result: Explanation, relu: bool) -> None:
    """Say what an array cannot: refuse what has no answer, warn about what has an empty one."""
    verdicts = enumerate(zip(result.status, result.explanation))
    said = [f"image {i}: {status}: {why}" for i, (status, why) in verdicts]
    no_answer = ("saturated_target", "dead_layer")
    refused = [words for words, status in zip(said, result.status) if status in no_answer]
    if refused:
        raise ValueError("\n".join([*refused, "GradCAM.explain returns the maps of the others."]))
    shown = result.raw.relu() if relu else result.raw
    for i, empty in enumerate((shown == 0).flatten(1).all(1).tolist()):
        if empty:
            warn(f"{said[i]} Its map is zero.")
