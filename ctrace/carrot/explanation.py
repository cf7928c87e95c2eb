"""What a pipeline knows about one answer: by training images, and by regions."""

from dataclasses import dataclass

from torch import Tensor

from ctrace.carrot.graph import RegionSet


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why an image got the logit of a class, by training images and by regions; ``n`` training
    images, ``m`` regions.

    Attributes:
        target: the class, and ``versus`` the one it is set against, if any: then every number is
            about the difference of the two logits.
        logits: ``(k,)``.
        score: what is explained, the logit of the target (minus that of ``versus``).
        leave_one_out: change of the score when one training image is removed ``(n,)``; exact,
            negative for a helpful one.
        weight_view, dual_view: shares of the training images ``(n,)``; each sums to the score, and
            neither is an effect.
        region_split: shares of the regions ``(m,)``; with ``bias`` they sum to the score. None for
            a readout that is no weighted sum.
        region_removal: drop of the score when one region is taken out of the graph ``(m,)``; exact,
            positive for one that spoke for it.
        bias: the part of the score that no region has to do with.
        regions: with ``on_grid``, to lay numbers of regions on the image.
    """

    target: int
    versus: int | None
    logits: Tensor
    score: float
    leave_one_out: Tensor
    weight_view: Tensor
    dual_view: Tensor
    region_split: Tensor | None
    region_removal: Tensor
    bias: float
    regions: RegionSet

    def helpful(self, n: int = 5) -> list[int]:
        """The training images without which the score would be lowest, most helpful first; fewer
        than ``n`` if fewer help.
        """
        order = self.leave_one_out.argsort()[:n].tolist()
        return [i for i in order if self.leave_one_out[i] < 0]

    def harmful(self, n: int = 5) -> list[int]:
        """The training images without which the score would be highest, most harmful first."""
        order = self.leave_one_out.argsort(descending=True)[:n].tolist()
        return [i for i in order if self.leave_one_out[i] > 0]

    def on_grid(self, values: Tensor) -> Tensor:
        """Numbers of regions ``(m,)`` on the patches ``(h, w)``."""
        return self.regions.on_grid(values[None])[0]
