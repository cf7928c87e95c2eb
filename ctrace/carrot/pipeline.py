"""From images to logits and back: to regions, and to training images. Frozen backbone, graph,
diffusion, readout, ridge head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ctrace.carrot.attribution import centrality, region_contributions, remove_nodes
from ctrace.carrot.embeddings import Embeddings, cache_key, embed
from ctrace.carrot.graph import RegionGraph, RegionGraphBuilder
from ctrace.carrot.head import RidgeHead
from ctrace.carrot.operator import DiffusionOperator
from ctrace.carrot.readout import GraphReadout
from ctrace.carrot.regions import RegionSet
from ctrace.carrot.ridge_path import leave_one_out_path

__all__ = ["Carrot", "Explanation"]

LAMS = tuple(10.0 ** (e / 2) for e in range(-12, 9))


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


class Carrot:
    """Images -> patch tokens -> regions -> graph -> ``exp(-tL) H`` -> readout -> ridge head. Only
    the head is fitted, in closed form.

    Args:
        backbone: a `TimmViTPatchBackbone`.
        t: diffusion time; 0 leaves the graph out.
        readout: one of `ctrace.carrot.readout.READOUTS`, or a `GraphReadout`.
        lam: penalty of the head; None chooses it by leave-one-out on the training images.
        scale, intercept: of the `RidgeHead`.
        graph: a `RegionGraphBuilder`; bandwidths adapted to each image by default.
        regions: a function from a `PatchOutput` to a `RegionSet`; every patch by default.
        preprocess: images in [0, 1] to the backbone's input; None takes the one of the model's
            ``info``.

    Attributes:
        head: the fitted `RidgeHead`.
        path: leave-one-out errors over lam where lam was chosen, else None.
        train: embeddings and labels of the training images.
    """

    def __init__(
        self,
        backbone,
        t: float = 2.0,
        readout: str | GraphReadout = "degree",
        lam: float | None = None,
        scale: str = "n",
        intercept: bool = True,
        graph: RegionGraphBuilder | None = None,
        regions: Callable | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
    ):
        info = getattr(backbone.model, "info", None)
        if preprocess is None and info is None:
            raise ValueError(
                "preprocess: the model carries no info that says how to prepare images. Get it from load_model, or pass preprocess."
            )
        self.backbone, self.preprocess = backbone, preprocess or info.preprocess
        self.graph, self.regions = graph or RegionGraphBuilder(), regions or RegionSet.from_patches
        self.operator = DiffusionOperator(t, "action")
        self.readout = readout if isinstance(readout, GraphReadout) else GraphReadout(readout)
        self.lam, self.scale, self.intercept = lam, scale, intercept
        self.head, self.path, self.train = None, None, None

    def settings(self) -> dict[str, str]:
        """Everything but weights and images that an embedding depends on, for its cache."""
        named = {"regions": self.regions, "preprocess": self.preprocess}
        return {
            name: _in_words(value)
            for name, value in (
                vars(self.graph) | vars(self.operator) | vars(self.readout) | named
            ).items()
        }

    def regions_of(self, images: Tensor) -> RegionSet:
        """Regions of images ``(b, 3, height, width)`` in [0, 1]."""
        return self.regions(self.backbone(self.preprocess(images)))

    def graph_of(self, regions: RegionSet) -> RegionGraph:
        """The graph of each image over its regions."""
        return self.graph.build(regions)

    def read(self, regions: RegionSet, graph: RegionGraph) -> Tensor:
        """Embeddings ``(b, c)``, float64."""
        return self.readout(self.operator(graph, regions.H), regions.H, graph)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Embeddings ``(b, c)`` of images ``(b, 3, height, width)`` in [0, 1]."""
        regions = self.regions_of(images)
        return self.read(regions, self.graph_of(regions))

    def embeddings(self, data, cache=None, progress: bool = True) -> Embeddings:
        """Embeddings of a whole data set, see `ctrace.carrot.embeddings.embed`.

        Args:
            data: a `Split`, or any iterable of batches ``(images, labels)``.
            cache: a folder where they are kept from run to run.
            progress: a bar on stderr.
        """
        key = None if cache is None else cache_key(self.backbone.model, self.settings(), data)
        return embed(self.embed, data, cache, key, progress=progress)

    def fit(
        self,
        data,
        num_classes: int | None = None,
        cache=None,
        progress: bool = True,
        lams: Sequence[float] = LAMS,
    ) -> "Carrot":
        """Embeds the training images, chooses lam by leave-one-out among ``lams`` unless it was
        given, and solves for the head.

        Args:
            data: a `Split`, an iterable of batches, or `Embeddings`.
            num_classes: of the class map; the largest training label plus one by default.

        Raises:
            ValueError: no lam under ``torch.distributed``, where no process has all images;
                otherwise as `RidgeHead.fit`.
        """
        self.train = (
            data if isinstance(data, Embeddings) else self.embeddings(data, cache, progress)
        )
        G, y = self.train.G, self.train.labels
        if self.lam is None and dist.is_available() and dist.is_initialized():
            raise ValueError(
                "lam: choosing it by leave-one-out needs all training images in one process. Pass lam under torch.distributed."
            )
        self.path = (
            leave_one_out_path(G, y, lams, self.scale, self.intercept, num_classes)
            if self.lam is None
            else None
        )
        lam = self.lam if self.path is None else self.path.best
        self.head = RidgeHead(lam, self.scale, self.intercept).fit(G, y, num_classes)
        return self

    def predict(self, images: Tensor) -> Tensor:
        """Logits ``(b, k)`` of images ``(b, 3, height, width)`` in [0, 1]."""
        return self._fitted().predict(self.embed(images).cpu())

    @torch.no_grad()
    def explain(
        self, image: Tensor, target: int | None = None, versus: int | None = None
    ) -> Explanation:
        """Everything this pipeline knows about one answer.

        Args:
            image: ``(3, height, width)`` in [0, 1].
            target: the class to explain; the predicted one by default.
            versus: another class; then the difference of the two logits is explained.

        Raises:
            ValueError: not one image, or a class that is not there.
        """
        if image.ndim != 3:
            raise ValueError(
                f"image: expected one image (3, height, width), received {tuple(image.shape)}. Explain images one at a time."
            )
        head, regions = self._fitted(), self.regions_of(image[None])
        graph = self.graph_of(regions)
        g = self.read(regions, graph).cpu()[0]  # (c,)
        logits = head.predict(g)  # (k,)
        target = int(logits.argmax()) if target is None else target
        v = _direction(target, versus, logits)
        split, removal = self._by_region(regions, graph, head.weights @ v)
        views = (head.training_contributions(g, view) @ v for view in ("weight", "dual"))
        bias = float(head.bias @ v)
        return Explanation(
            target,
            versus,
            logits,
            float(logits @ v),
            head.leave_one_out(g) @ v,
            *views,
            split,
            removal,
            bias,
            regions,
        )

    def _by_region(
        self, regions: RegionSet, graph: RegionGraph, w: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Additive split, where there is one, and the drop without each region ``(m,)``, for
        weights ``(c,)``.
        """
        W = w[:, None].to(graph.W)
        parts = (regions.H, graph, self.operator, self.readout)
        drop = self.read(regions, graph) @ W - remove_nodes(*parts, W)[0, :, 0]  # (1, m)
        if not self.readout.is_linear:
            return None, drop[0].cpu()
        omega = centrality(graph, self.operator, self.readout)
        return region_contributions(omega, regions.H, W)[0, :, 0].cpu(), drop[0].cpu()

    def _fitted(self) -> RidgeHead:
        if self.head is None:
            raise ValueError("this pipeline has no head yet: call fit(training images) first.")
        return self.head


def _direction(target: int, versus: int | None, logits: Tensor) -> Tensor:
    """What to multiply the logits ``(k,)`` with to get the score."""
    k = len(logits)
    if not 0 <= target < k or (versus is not None and (not 0 <= versus < k or versus == target)):
        raise ValueError(
            f"target, versus: expected two different classes from 0 to {k - 1}, received {target} and {versus}."
        )
    v = torch.zeros_like(logits)
    v[target] = 1
    if versus is not None:
        v[versus] = -1
    return v


def _in_words(value) -> str:
    """A setting for the name of a cache."""
    if isinstance(value, Tensor):
        return str(value.tolist())
    words = (
        f"{value.__module__}.{value.__qualname__}"
        if hasattr(value, "__qualname__") and not hasattr(value, "__self__")
        else repr(value)
    )
    if " at 0x" in words or "<lambda>" in words or "<locals>" in words:
        raise ValueError(
            f"cache: {words} cannot be told from another function after a restart. Define it by name in a module, or pass cache=None."
        )
    return words
