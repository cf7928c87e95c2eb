"""Grad-CAM and its siblings, for classifiers and for embedding models: which place, and which
channel, raised this score.

Every method here is one rule that turns the gradient at a layer into weights; the map is the
weighted sum of the layer's channels. The map is kept signed and unscaled; ReLU, enlarging and
scaling are drawing, and come last.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrace.check import at_least_float32, check_ready, one_output, prepare_images
from ctrace.look.hooks import Captured, capture
from ctrace.look.layers import default_layer, find_layer, live_layer
from ctrace.look.targets import SIMILARITIES, Target, make_target, saturation
from ctrace.world.tokens import covered_size, layer_to_map

__all__ = ["WEIGHTS", "Explanation", "GradCAM"]


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
        raise ArithmeticError(
            "gradcam++: a denominator 2 + sum(A) g is not positive, which its derivation excludes by assuming activations >= 0. "
            "Name a layer behind a ReLU, or use 'hirescam', which makes no such assumption."
        )
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


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a layer had to say about each of b images.

    Attributes:
        raw: signed maps ``(b, h, w)``, unscaled; exactly zero where ``status`` says that only
            rounding noise was there.
        weights: ``(b, c)``, positive where raising the channel everywhere raises the score (for
            methods that weight by place, the mean).
        activations: ``(b, c, h, w)``.
        score: ``(b,)``, what was explained, in numbers; ``target`` says it in words.
        status: per image ``"ok"``, ``"no_evidence"`` (nothing positive), ``"saturated_target"`` or
            ``"dead_layer"``.
        explanation: per image, the cause and the next step; empty when ok.
        covered_size: pixels under the map, more than ``image_size`` where the model padded its
            input.
    """

    raw: Tensor
    weights: Tensor
    activations: Tensor
    score: Tensor
    target: list[str]
    target_layer: str
    method: str
    status: list[str]
    explanation: list[str]
    image_size: tuple[int, int]
    covered_size: tuple[int, int]

    def heatmap(self, relu: bool = True, normalize: bool = True) -> np.ndarray:
        """Maps of the image's size ``(b, height, width)``: ReLU, bilinear enlarging, then division
        by the largest magnitude.

        In [0, 1] with ``relu``, in [-1, 1] without. Zero stays zero: the smallest value is not
        subtracted, which would make weak evidence look like none, and a map without evidence is not
        scaled at all.
        """
        maps = self.raw.relu() if relu else self.raw
        maps = F.interpolate(
            maps[:, None], self.covered_size, mode="bilinear", align_corners=False
        )[:, 0]
        maps = maps[:, : self.image_size[0], : self.image_size[1]]
        if normalize:
            top = maps.abs().amax((1, 2), keepdim=True)
            maps = maps / torch.where(top > 0, top, 1)
        return maps.cpu().numpy()

    def ranking(self, kind: str = "support", image: int | None = None) -> Tensor:
        """Channel numbers, first the ones that matter most: ``(c,)`` for one image, ``(b, c)`` for
        all.

        Args:
            kind: ``"support"`` (raise the score most), ``"inhibit"`` (lower it most) or ``"abs"``.
            image: which; all when ``None`` (an image without weights is then in no meaningful
                order).

        Raises:
            ValueError: unknown kind, or an image whose weights are all zero, with the reason.
        """
        weights = self.weights if image is None else self.weights[image]
        keys = {"support": weights, "inhibit": -weights, "abs": weights.abs()}
        if kind not in keys:
            raise ValueError(f"ranking: expected one of {', '.join(keys)}, received {kind!r}.")
        if image is not None and not bool(weights.any()):
            raise ValueError(
                f"ranking: all weights of image {image} are zero. {self.explanation[image]}"
            )
        return keys[kind].argsort(dim=-1, descending=True, stable=True)

    def table(
        self, image: int = 0, kind: str = "support", top: int = 5, names=None
    ) -> list[tuple[int, str, float]]:
        """The ``top`` channels of an image as ``(number, name, weight)``."""
        channels = self.ranking(kind, image)[:top].tolist()
        return [
            (c, names[c] if names else f"channel {c}", float(self.weights[image, c]))
            for c in channels
        ]


class GradCAM:
    """Explains a model's score by one of its layers.

    Hooks exist only while an image is being explained, so there is nothing to clean up; the
    ``with`` form is for those who expect one, and lets every exception through. The model is never
    moved, switched or given gradients.

    Args:
        model: in eval mode; may be frozen.
        target_layer: dotted name, module, or ``None``: the last `Conv2d` outside a shortcut, or for
            a timm transformer the first norm of its last block.
        device: ``None``, or the device the model is on.
        method: a key of `WEIGHTS`.
        to_map: for layers whose output is neither ``(b, c, h, w)`` nor the tokens of a timm model:
            a function to ``(b, c, h, w)``.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> with GradCAM(net) as cam:
    ...     maps = cam.compute_attribution(torch.rand(5, 3, 8, 8), target=[0, 1, 0, 1, 0], relu=False)
    >>> maps.shape
    (5, 8, 8)
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer=None,
        device=None,
        method: str = "gradcam",
        to_map: Callable[[Tensor], Tensor] | None = None,
    ):
        if method not in WEIGHTS:
            raise ValueError(f"method: expected one of {', '.join(WEIGHTS)}, received {method!r}.")
        self.target_layer, self._module = find_layer(
            model, default_layer(model) if target_layer is None else target_layer
        )
        self.model, self.method, self._to_map = model, method, to_map
        _check_device(model, device)

    def __enter__(self) -> "GradCAM":
        return self

    def __exit__(self, *exception) -> None:
        return None

    def compute_attribution(
        self,
        image: Tensor,
        target_embedding=None,
        baseline_embedding=None,
        target=None,
        relu: bool = True,
        normalize: bool = True,
    ) -> np.ndarray:
        """The map to draw: ``(height, width)`` for one image, ``(b, height, width)`` for a batch,
        equal to one by one.

        Args:
            image: ``(3, height, width)`` or ``(b, 3, height, width)``.
            target_embedding, baseline_embedding, target: as in `ctrace.look.targets.make_target`. With
                none of them, the norm of the output.
            relu, normalize: as in `Explanation.heatmap`.

        Raises:
            ValueError: bad input, a saturated target or a dead layer; `explain` returns those as a
                status instead.

        Warns:
            UserWarning: an image has no evidence for its target; its map is zero.
        """
        result = self.explain(image, target, target_embedding, baseline_embedding)
        _speak(result, relu)
        maps = result.heatmap(relu, normalize)
        return maps[0] if len(maps) == 1 else maps

    def explain(
        self, image: Tensor, target=None, target_embedding=None, baseline_embedding=None
    ) -> Explanation:
        """Everything behind `compute_attribution`, with a status per image instead of an exception."""
        ask = partial(
            make_target,
            target=target,
            target_embedding=target_embedding,
            baseline_embedding=baseline_embedding,
        )
        return self._explain(prepare_images(self.model, image), ask)

    def explain_pair(
        self, first: Tensor, second: Tensor, similarity: str = "cosine"
    ) -> Explanation:
        """Two images, each explained by its similarity to the other, in one pass: row 0 is the
        first, row 1 the second.
        """
        first, second = prepare_images(self.model, first), prepare_images(self.model, second)
        if len(first) != 1 or len(second) != 1 or first.shape != second.shape:
            received = f"{tuple(first.shape)} and {tuple(second.shape)}"
            raise ValueError(
                f"explain_pair: expected two single images of one size, received {received}."
            )
        if similarity not in SIMILARITIES:
            raise ValueError(
                f"similarity: expected one of {', '.join(SIMILARITIES)}, received {similarity!r}."
            )
        return self._explain(
            torch.cat([first, second]),
            lambda output: make_target(output, similarity, output.flip(0)),
        )

    def _explain(self, images: Tensor, ask: Callable[[Tensor], Target]) -> Explanation:
        check_ready(self.model)
        with capture(self.model, self._module) as seen:
            output = one_output(self.model(images), len(images))
            target = ask(output.detach())
            score = target(output)
            stuck = saturation(
                output, score, target, lambda v: seen.backward(output, v, retain_graph=True)[0]
            )
            seen.backward(score.sum())
        [layer] = seen.values()
        return self._read(layer, score, target, stuck, tuple(images.shape[2:]))

    def _read(
        self,
        layer: Captured,
        score: Tensor,
        target: Target,
        stuck: list[str],
        image_size: tuple[int, int],
    ) -> Explanation:
        acts, grads = (
            self._as_map(x, image_size) for x in (layer.activation, layer.gradient)
        )  # (b, c, h, w)
        if not bool(torch.isfinite(grads).all() & torch.isfinite(acts).all()):
            raise ArithmeticError(
                f"{layer.name}: NaN or infinity in activations or gradients. In float16, try bfloat16 or float32."
            )
        weights = WEIGHTS[self.method](acts, grads)
        raw = (weights * acts).sum(1)  # (b, h, w)
        noise = raw.abs().amax((1, 2)) <= _rounding_level(
            acts, grads, torch.finfo(layer.activation.dtype).eps
        )
        dead = (grads == 0).flatten(1).all(1)
        verdicts = [
            self._verdict(*row)
            for row in zip(stuck, dead.tolist(), noise.tolist(), raw.amax((1, 2)).tolist())
        ]
        keep = ~(noise | dead | torch.tensor([bool(reason) for reason in stuck], device=raw.device))
        return Explanation(
            raw=torch.where(keep[:, None, None], raw, 0),
            weights=torch.where(keep[:, None], weights.mean((2, 3)), 0),
            activations=acts,
            score=score.detach(),
            target=target.words,
            target_layer=layer.name,
            method=self.method,
            status=[status for status, _ in verdicts],
            explanation=[explanation for _, explanation in verdicts],
            image_size=image_size,
            covered_size=covered_size(self.model, layer.activation, raw.shape[1:], image_size),
        )

    def _as_map(self, output: Tensor, image_size: tuple[int, int]) -> Tensor:
        maps = (
            self._to_map(output)
            if self._to_map
            else layer_to_map(output, self.model, self._module, image_size)
        )
        if maps.ndim != 4 or len(maps) != len(output):
            raise ValueError(
                f"to_map: expected (b, c, h, w) from {tuple(output.shape)}, it returned {tuple(maps.shape)}."
            )
        return at_least_float32(maps)

    def _verdict(self, stuck: str, dead: bool, noise: bool, highest: float) -> tuple[str, str]:
        if stuck:
            return "saturated_target", stuck
        if dead:
            return "dead_layer", _why_dead(self.model, self.target_layer)
        if noise:
            return "no_evidence", (
                f"the map at {self.target_layer} is zero up to rounding: the activations are zero, or their weights cancel, "
                "as in front of a normalisation over the same places. Name a layer behind it, or use method='hirescam'."
            )
        if highest <= 0:
            return "no_evidence", (
                f"no place at {self.target_layer} raises this score: the raw map is negative everywhere. "
                "relu=False shows what lowers it; another target, or method='hirescam', may find support."
            )
        return "ok", ""


def _rounding_level(acts: Tensor, grads: Tensor, eps: float) -> Tensor:
    """Magnitude ``(b,)`` that a map can reach by rounding alone, when each gradient is off by a few
    ``eps`` of its channel's size.
    """
    size = (grads.square().mean((2, 3), keepdim=True) * acts.square()).sum(1)  # (b, h, w)
    return 4 * eps * size.sqrt().amax((1, 2))


def _why_dead(model: nn.Module, layer: str) -> str:
    live, names = live_layer(model), [name for name, _ in model.named_modules()]
    if live and (live.startswith(f"{layer}.") or names.index(layer) > names.index(live)):
        return (
            f"the score's gradient is exactly zero at every patch token of {layer}: behind the last attention the pooling reads the "
            f"class token only. Use target_layer={live!r}, where patches still count."
        )
    return (
        f"the score's gradient is exactly zero everywhere at {layer}: the score does not depend on it (detached, or under no_grad in "
        "the model), or every path to it is shut (ReLUs at zero, float16 underflow). Name a layer on the path to the output."
    )


def _speak(result: Explanation, relu: bool) -> None:
    """Say what an array cannot: refuse what has no answer, warn about what has an empty one."""
    said = [
        f"image {i}: {status}: {why}"
        for i, (status, why) in enumerate(zip(result.status, result.explanation))
    ]
    refused = [
        words
        for words, status in zip(said, result.status)
        if status in ("saturated_target", "dead_layer")
    ]
    if refused:
        raise ValueError(
            "\n".join(refused)
            + "\nGradCAM.explain returns the other maps together with these statuses."
        )
    shown = result.raw.relu() if relu else result.raw
    for i, empty in enumerate((shown == 0).flatten(1).all(1).tolist()):
        if empty:
            warnings.warn(f"{said[i]} Its map is zero.", stacklevel=3)


def _check_device(model: nn.Module, device) -> None:
    at = next((p.device for p in model.parameters()), torch.device("cpu"))
    wanted = at if device is None else torch.device(device)
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device: 'cuda' asked for, but torch sees no CUDA device here. Leave device=None to use the model's own."
        )
    if wanted.type != at.type or (wanted.index is not None and wanted.index != at.index):
        raise ValueError(
            f"device: asked for {wanted}, but the model is on {at} and is not moved for you: model.to({str(wanted)!r})."
        )
