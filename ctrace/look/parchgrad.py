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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ctrace.arguments import Whole, checked, warn
from ctrace.check import check_number, one_of
from ctrace.look import saliency
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.hooks import edit_gradient, find_layers
from ctrace.look.partition import METHODS, default_convs, keep_channels, reweigh

ATTRIBUTIONS = {
    "grad": saliency.gradient,
    "inputgrad": saliency.input_x_gradient,
    "smoothgrad": saliency.smoothgrad,
    "ig": saliency.integrated_gradients,
}


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

    @checked
    def __init__(
        self,
        model: nn.Module,
        statistics: ChannelStatistics,
        layers=None,
        layer_ratio: float | None = None,
    ):
        if layers is not None and layer_ratio is not None:
            raise ValueError("pass layers or layer_ratio, not both: each says what to edit.")
        layers = default_convs(model, layer_ratio) if layers is None else layers
        convs = find_layers(model, layers, nn.Conv2d)
        self.model, self.statistics, self.layers, self._tests = model, statistics, list(convs), {}
        statistics.check_model(model, self.layers)

    @checked
    @contextmanager
    def partition(
        self,
        method: str = "cls",
        quantile: float | None = None,
        alpha: float | None = None,
        gamma=math.inf,
        variance_conservation: bool = True,
        exact_variance: bool = False,
        classes=None,
        shuffle: Whole | None = None,
    ) -> Iterator[Partition]:
        """Inside, every backward pass through the model is edited, each row by its own partition.

        Args:
            method: ``"cls"``, channels of the class, or ``"ins"``, channels this image excites.
            quantile, alpha, shuffle: see `ctrace.look.partition.keep_channels`.
            gamma, variance_conservation, exact_variance: see `ctrace.look.partition.reweigh`.
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
        if gamma != math.inf:
            check_number("gamma (math.inf stops all other channels)", gamma, above=0)
        named = None if classes is None else self.statistics.check_classes(classes)
        choices, seen = self._choices(method, quantile, alpha, shuffle), Partition()

        def rule(gradient: Tensor, activation: Tensor, name: str) -> Tensor:
            if name not in choices:  # the model's own output
                asked = self._classes_asked(gradient) if named is None else named
                seen.classes = asked.to(gradient.device).expand(len(gradient))
                return gradient
            kept = choices[name](seen.classes if method == "cls" else activation)
            none = ~kept.any(1, keepdim=True)
            seen.kept[name] = kept | none
            seen.empty[name] = seen.empty.get(name, False) | none.any()
            return reweigh(gradient, seen.kept[name], gamma, variance_conservation, exact_variance)

        edited = [self.model, *self.layers] if method == "cls" else self.layers
        with edit_gradient(self.model, edited, rule):
            yield seen
        # filled on the way back
        empty = ", ".join(name for name in reversed(seen.empty) if bool(seen.empty[name]))
        if empty:
            why = f"no channel was kept for some image at {empty}, so all were"
            warn(f"{why}. Raise alpha, or keep a share with quantile.")

    @checked
    def attribute(
        self,
        attribution: str,
        images: Tensor,
        target=None,
        settings: Mapping | None = None,
        **partition,
    ) -> Tensor:
        """An input attribution ``(b, c, height, width)`` through the partition.

        Args:
            attribution: a key of `ATTRIBUTIONS`.
            images, target: as in `ctrace.look.saliency`.
            settings: further arguments of the attribution, for example ``{"samples": 50}``.
            **partition: as in `partition`.
        """
        function = ATTRIBUTIONS[one_of("attribution", attribution, ATTRIBUTIONS)]
        with self.partition(**partition):
            return function(self.model, images, target, **settings or {})

    @checked
    def kept_for(self, classes, quantile=None, alpha=None) -> dict[str, Tensor]:
        """Which channels class masks keep, without any image: ``(classes asked, channels)`` by
        layer. A row may be empty.
        """
        classes = self.statistics.check_classes(classes).to(self._device())
        choices = self._choices("cls", quantile, alpha)
        return {name: choose(classes) for name, choose in choices.items()}

    def _choices(self, method: str, quantile, alpha, shuffle: int | None = None) -> dict:
        """By layer, a function from classes or activations to the kept channels ``(b, c)``. Its
        test is made once: with 1,000 classes that takes a second.
        """
        make, device = METHODS[one_of("method", method, METHODS)], self._device()

        def choice(name: str):
            key = method, name, device
            if key not in self._tests:
                self._tests[key] = make(self.statistics, name, device)
            test = self._tests[key]
            return lambda rows: keep_channels(*test(rows), quantile, alpha, shuffle, name)

        if quantile is None and alpha is None:
            raise ValueError("pass quantile, the share to keep, or alpha, the largest p to keep.")
        if quantile is not None:
            check_number("quantile", quantile, above=0, at_most=1)
        if alpha is not None:
            check_number("alpha, a p-value", alpha, at_least=0, at_most=1)
        return {name: choice(name) for name in self.layers}

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
                f"the class of a row cannot be told from the gradient {tuple(gradient.shape)} at "
                f"the output: expected one entry a row, of {k}. Ask for a logit, or pass classes=3."
            )
        classes = asked.to(torch.uint8).argmax(1)
        # a row that is asked nothing has no gradient to edit
        self.statistics.check_classes(classes[asked.any(1)])
        return classes
