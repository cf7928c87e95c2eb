"""What a layer said about a batch of images: signed maps, channel weights, and a status each."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ctrace.arguments import Count, checked
from ctrace.check import check_number, one_of


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
        maps = F.interpolate(maps[:, None], self.covered_size, mode="bilinear")[:, 0]
        maps = maps[:, : self.image_size[0], : self.image_size[1]]
        if normalize:
            top = maps.abs().amax((1, 2), keepdim=True)
            maps = maps / torch.where(top > 0, top, 1)
        return maps.cpu().numpy()

    @checked
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
        if image is not None:
            check_number("image", image, whole=True, at_least=0, below=len(self.weights))
        weights = self.weights if image is None else self.weights[image]
        keys = {"support": weights, "inhibit": -weights, "abs": weights.abs()}
        key = keys[one_of("ranking", kind, keys)]
        if image is not None and not bool(weights.any()):
            why = self.explanation[image]
            raise ValueError(f"ranking: all weights of image {image} are zero. {why}")
        return key.argsort(dim=-1, descending=True, stable=True)

    @checked
    def table(
        self, image: int = 0, kind: str = "support", top: Count = 5, names=None
    ) -> list[tuple[int, str, float]]:
        """The ``top`` channels of an image as ``(number, name, weight)``."""
        check_number("image", image, whole=True, at_least=0, below=len(self.weights))
        weights = self.weights[image].tolist()
        names = names or [f"channel {c}" for c in range(len(weights))]
        return [(c, names[c], weights[c]) for c in self.ranking(kind, image)[:top].tolist()]
