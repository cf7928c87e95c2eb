"""ParchGrad: partition the channels of some convolutions, let the gradient of the kept ones pass
(Park, Jeon and Choi 2023).

Channels that carry the class (or that this image excites) are kept, the gradient of the others is
damped or stopped on its way back, at every chosen layer. Any attribution that follows gradients
then follows the edited one::

    parch = ParchGrad(model, statistics)
    with parch.partition("cls", quantile=0.1):
        attribution = saliency.gradient(model, images, target)

The statistics come from training images: a channel chosen by a test on the image it explains
explains the test.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ctrace.look import saliency
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.convs import conv_layers, default_convs
from ctrace.look.hooks import edit_gradient
from ctrace.look.partition import ClassTest, InstanceTest, Selection, reweigh

__all__ = ["ATTRIBUTIONS", "METHODS", "ParchGrad", "Partition"]

ATTRIBUTIONS = {
    "grad": saliency.gradient,
    "inputgrad": saliency.input_x_gradient,
    "smoothgrad": saliency.smoothgrad,
    "ig": saliency.integrated_gradients,
}
METHODS = {"cls": ClassTest, "ins": InstanceTest}


@dataclass
class Partition:
    """What happened inside a `ParchGrad.partition` context.

    Attributes:
        kept: by layer, the channels kept in the last backward pass ``(b, c)``.
        empty: by layer, whether some row had no channel to keep, in any pass; there all were kept.
        classes: the class of each row of the last backward pass ``(b,)``, for class masks.
    """

    kept: dict[str, Tensor] = field(default_factory=dict)
    empty: dict[str, Tensor] = field(default_factory=dict)
    classes: Tensor | None = None


class ParchGrad:
    """A model with statistics of its channels, ready to attribute through a part of them.

    Args:
        model: in eval mode; nothing of it is changed.
        statistics: collected on this model.
        layers: convolutions to edit, by name or module; by default `default_convs`.
        layer_ratio: instead of ``layers``: the last share of all convolutions.

    Raises:
        ValueError: no convolution, no default for this kind of model, or statistics of another
            model.
    """

    def __init__(
        self,
        model: nn.Module,
        statistics: ChannelStatistics,
        layers=None,
        layer_ratio: float | None = None,
    ):
        if layers is not None and layer_ratio is not None:
            raise ValueError(
                "pass layers or layer_ratio, not both: each of them says which convolutions to edit."
            )
        self.model, self.statistics = model, statistics
        self.layers = (
            default_convs(model, layer_ratio)
            if layers is None
            else list(conv_layers(model, layers))
        )
        statistics.check_model(model, self.layers)
        self._tests = {}

    @contextmanager
    def partition(
        self,
        method: str = "cls",
        quantile: float | None = None,
        alpha: float | None = None,
        p_value_threshold: float | None = None,
        gamma: float = math.inf,
        variance_conservation: bool = True,
        exact_variance: bool = False,
        classes: int | None = None,
        shuffle: int | None = None,
    ) -> Iterator[Partition]:
        """Inside, every backward pass through the model is edited, each row by its own partition.

        Integrated gradients of an edited gradient do not sum to the change of the score, so their
        warning about that is held back.

        Args:
            method: ``"cls"``, channels of the class, or ``"ins"``, channels this image excites.
            quantile, alpha, p_value_threshold, shuffle: see `Selection`.
            gamma, variance_conservation, exact_variance: see `reweigh`.
            classes: for ``"cls"``, one class for all rows. By default each row's own: the logit its
                score asks for.

        Yields:
            `Partition`, filled while gradients pass.

        Raises:
            ValueError: an argument out of range, a class that cannot be tested, or a score whose
                class cannot be told.

        Warns:
            UserWarning: in some layer no channel met ``alpha``; there all were kept, as published.
        """
        if method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, received {method!r}.")
        if not gamma > 0:
            raise ValueError(
                f"gamma: expected a positive number, or math.inf to stop all other channels; received {gamma}."
            )
        selection, seen = Selection(quantile, alpha, p_value_threshold, shuffle), Partition()
        choices = self._choices(method, selection)
        if classes is not None:
            named = torch.tensor([classes])
            self.statistics.check_classes(named)

        def rule(gradient: Tensor, activation: Tensor, name: str) -> Tensor:
            if name not in choices:  # the model's own output
                seen.classes = (
                    self._classes_asked(gradient)
                    if classes is None
                    else named.to(gradient.device).expand(len(gradient))
                )
                return gradient
            test, choose = choices[name]
            kept = choose(*test(seen.classes if method == "cls" else activation))
            none = ~kept.any(1, keepdim=True)
            seen.kept[name], seen.empty[name] = (
                kept | none,
                seen.empty.get(name, False) | none.any(),
            )
            return reweigh(gradient, seen.kept[name], gamma, variance_conservation, exact_variance)

        with (
            edit_gradient(
                self.model, [self.model, *self.layers] if method == "cls" else self.layers, rule
            ),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "image .*integrated gradients sum to")
            yield seen
        _say_empty(seen)

    def attribute(
        self,
        attribution: str,
        images: Tensor,
        target=None,
        settings: dict | None = None,
        **partition,
    ) -> Tensor:
        """An input attribution ``(b, c, height, width)`` through the partition.

        Args:
            attribution: a key of `ATTRIBUTIONS`.
            images, target: as in `ctrace.look.saliency`.
            settings: further arguments of the attribution, for example ``{"samples": 50}``.
            **partition: as in `partition`.
        """
        function = _attribution(attribution)
        with self.partition(**partition):
            return function(self.model, images, target, **settings or {})

    def with_controls(
        self,
        attribution: str,
        images: Tensor,
        target=None,
        settings: dict | None = None,
        seed=0,
        **partition,
    ) -> dict:
        """The attribution three times: ``"plain"``, through the ``"partition"``, and through a
        ``"random"`` one of the same size.
        """
        plain = _attribution(attribution)(self.model, images, target, **settings or {})
        through = self.attribute(attribution, images, target, settings, **partition)
        random = self.attribute(
            attribution, images, target, settings, **partition | {"shuffle": seed}
        )
        return {"plain": plain, "partition": through, "random": random}

    def kept_for(
        self,
        classes,
        quantile: float | None = None,
        alpha: float | None = None,
        p_value_threshold: float | None = None,
    ) -> dict:
        """Which channels class masks keep, without any image: ``(classes asked, channels)`` by
        layer. A row may be empty.
        """
        classes = torch.as_tensor(classes).reshape(-1)
        self.statistics.check_classes(classes)
        choices = self._choices("cls", Selection(quantile, alpha, p_value_threshold))
        return {
            name: choose(*test(classes.to(self._device())))
            for name, (test, choose) in choices.items()
        }

    def _choices(self, method: str, selection: Selection) -> dict[str, tuple]:
        """By layer its test, made once (with 1,000 classes it takes a second), and how its outcome
        chooses.
        """
        device = self._device()
        for name in self.layers:
            if (method, name, device) not in self._tests:
                self._tests[method, name, device] = METHODS[method](self.statistics, name, device)
        return {
            name: (self._tests[method, name, device], selection.at(self.statistics, name, device))
            for name in self.layers
        }

    def _device(self) -> torch.device:
        return self.model.get_submodule(self.layers[0]).weight.device

    def _classes_asked(self, gradient: Tensor) -> Tensor:
        """The class of each row ``(b,)`` from the gradient at the logits ``(b, k)``: that of a
        class score has one entry.

        So rows need no bookkeeping: whatever an attribution does with an image, noisy copies or
        points along a path, each row says itself which class it is asked about.
        """
        k = len(self.statistics.count)
        asked = gradient != 0
        if gradient.ndim != 2 or gradient.shape[1] != k or bool((asked.sum(1) > 1).any()):
            raise ValueError(
                f"the class of a row cannot be told: the gradient at the model's output, {tuple(gradient.shape)}, should have a single "
                f"entry in each row, at one of {k} classes. Ask for a logit (target=class), or name the class: partition(classes=3)."
            )
        classes = asked.to(torch.uint8).argmax(1)
        self.statistics.check_classes(
            classes[asked.any(1)]
        )  # a row that is asked nothing has no gradient to edit
        return classes


def _attribution(name: str):
    if name not in ATTRIBUTIONS:
        raise ValueError(
            f"attribution: expected one of {', '.join(ATTRIBUTIONS)}, received {name!r}."
        )
    return ATTRIBUTIONS[name]


def _say_empty(seen: Partition) -> None:
    layers = [
        name for name in reversed(seen.empty) if bool(seen.empty[name])
    ]  # filled on the way back
    if layers:
        warnings.warn(
            f"no channel was kept for some image at {', '.join(layers)}, so all were, and its gradient there is the plain one. Raise "
            "alpha, or keep a share of the channels with quantile.",
            stacklevel=4,
        )
