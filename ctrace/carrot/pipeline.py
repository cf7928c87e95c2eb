"""From images to logits and back: to regions, and to training images. Frozen backbone, graph,
diffusion, readout, ridge head.
"""

import os
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ctrace.arguments import Count, Positive, checked
from ctrace.carrot.attribution import Explanation, centrality, region_contributions, remove_nodes
from ctrace.carrot.diffusion import DiffusionOperator, GraphReadout
from ctrace.carrot.graph import RegionGraph, RegionGraphBuilder, RegionSet
from ctrace.carrot.head import RidgeHead
from ctrace.carrot.ridge import leave_one_out_path, one_hot
from ctrace.check import check_batch, check_classes, seen

Data = Dataset | Iterable
LAMS = tuple(10.0 ** (e / 2) for e in range(-12, 9))


@dataclass(frozen=True, eq=False)
class Embeddings:
    """One row per image, in the order of the data.

    Attributes:
        G: ``(n, c)``.
        labels: class numbers ``(n,)``.
    """

    G: Tensor
    labels: Tensor


class Carrot:
    """Images -> patch tokens -> regions -> graph -> ``exp(-tL) H`` -> readout -> ridge head. Only
    the head is fitted, in closed form.

    Args:
        backbone: a `TimmViTPatchBackbone`.
        t: diffusion time; 0 leaves the graph out.
        readout: one of `ctrace.carrot.diffusion.READOUTS`, or a `GraphReadout`.
        lam: penalty of the head per training image (it has an intercept, which is free); None
            chooses it by leave-one-out on the training images.
        graph: a `RegionGraphBuilder`; bandwidths adapted to each image by default.
        regions: a function from a `PatchOutput` to a `RegionSet`; every patch by default.
        preprocess: images in [0, 1] to the backbone's input; None takes the one of the model's
            ``info``.

    Attributes:
        head: the `RidgeHead`, solved by `fit`.
        path: leave-one-out errors over lam where lam was chosen, else None.
        train: embeddings and labels of the training images.
    """

    @checked
    def __init__(
        self,
        backbone: nn.Module,
        t: float = 2.0,
        readout: str | GraphReadout = "degree",
        lam: Positive | None = None,
        graph: RegionGraphBuilder | None = None,
        regions: Callable | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
    ):
        if not hasattr(backbone, "model"):
            raise ValueError(f"backbone: expected a TimmViTPatchBackbone, got {seen(backbone)}.")
        info = getattr(backbone.model, "info", None)
        if preprocess is None and info is None:
            raise ValueError(
                "preprocess: the model has no info that says how to prepare images. Pass it, or "
                "take the model from load_model."
            )
        self.backbone, self.preprocess = backbone, preprocess or info.preprocess
        self.graph, self.regions = graph or RegionGraphBuilder(), regions or RegionSet.from_patches
        self.operator = DiffusionOperator(t)
        self.readout = GraphReadout(readout) if isinstance(readout, str) else readout
        self.lam, self.head, self.path, self.train = lam, RidgeHead(), None, None

    def regions_of(self, images: Tensor) -> RegionSet:
        """Regions of images ``(b, 3, height, width)`` in [0, 1]."""
        return self.regions(self.backbone(self.preprocess(images)))

    def read(self, regions: RegionSet, graph: RegionGraph) -> Tensor:
        """Embeddings ``(b, c)``, float64."""
        return self.readout(self.operator(regions.H, graph), regions.H, graph)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Embeddings ``(b, c)`` of images ``(b, 3, height, width)`` in [0, 1]."""
        regions = self.regions_of(images)
        return self.read(regions, self.graph.build(regions))

    @checked
    def embeddings(
        self, data: Data, cache: str | os.PathLike | None = None, progress=True
    ) -> Embeddings:
        """Embeddings of a whole data set.

        Args:
            data: a data set of (image, class number), or batches ``(images, labels)``.
            cache: a folder where they are kept from run to run, one file for each batch under a
                name that its pixels, the weights and the settings decide.
            progress: a bar on stderr.

        Raises:
            ValueError: no image, embeddings that are not finite, or a damaged file.
        """
        key = None if cache is None else self._key()
        own = torch.Generator()  # a loader would draw from the global one
        loader = DataLoader(data, 64, generator=own) if isinstance(data, Dataset) else data
        rows, labels = [], []
        for batch in tqdm(loader, desc="embedding", unit="batch", disable=not progress):
            images, y = check_batch(batch)
            rows.append(self._kept(images, cache, key) if cache else self.embed(images).cpu())
            labels.append(check_classes(y, len(images), what="labels").cpu())
        if not rows:
            raise ValueError("data: no batch came out of it. A used iterator, or no images?")
        G, y = torch.cat(rows), torch.cat(labels).long()
        if len(G) != len(y) or not bool(torch.isfinite(G).all()):
            raise ValueError(
                f"embeddings: expected finite rows, one for each of the {len(y)} labels; received "
                f"{len(G)}, {int((~torch.isfinite(G)).any(1).sum())} not finite. Half precision?"
            )
        return Embeddings(G, y)

    @checked
    def fit(
        self, data: Data | Embeddings, num_classes: Count | None = None, cache=None, progress=True
    ) -> "Carrot":
        """Embeds the training images, chooses lam by leave-one-out among `LAMS` unless it was
        given, and solves for the head.

        Args:
            data: a data set, an iterable of batches, or `Embeddings`.
            num_classes: of the class map; the largest training label plus one by default.
            cache, progress: as in `embeddings`.

        Raises:
            ValueError: no lam under ``torch.distributed``, where no process has all images;
                otherwise as `RidgeHead.fit`.
        """
        if self.lam is None and dist.is_available() and dist.is_initialized():
            raise ValueError(
                "lam: leave-one-out needs all images in one process. Pass lam where there are more."
            )
        train = data if isinstance(data, Embeddings) else self.embeddings(data, cache, progress)
        path, lam = None, self.lam
        if lam is None:
            path = leave_one_out_path(train.G, train.labels, LAMS, "n", True, num_classes)
            lam = path.best
        head = RidgeHead(lam, "n", intercept=True).fit(train.G, train.labels, num_classes)
        self.head, self.path, self.train = head, path, train
        return self

    @checked
    def predict(self, images: Tensor) -> Tensor:
        """Logits ``(b, k)`` of images ``(b, 3, height, width)`` in [0, 1]."""
        return self.head.predict(self.embed(images).cpu())

    @checked
    @torch.no_grad()
    def explain(self, image: Tensor, target=None, versus=None) -> Explanation:
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
                f"image: expected one image (3, height, width), received {tuple(image.shape)}."
            )
        head, regions = self.head, self.regions_of(image[None])
        graph = self.graph.build(regions)
        read = self.read(regions, graph)  # (1, c)
        g = read.cpu()[0]
        logits = head.predict(g)  # (k,)
        target = int(logits.argmax()) if target is None else target
        v = _direction(target, versus, len(logits))
        theta = (head.theta @ v)[:, None]  # (c, 1)
        removal = self.region_removal(regions, graph, theta, read)[0, :, 0].cpu()
        linear = self.readout.is_linear
        split = self.region_split(regions, graph, theta)[0, :, 0].cpu() if linear else None
        return Explanation(
            target,
            versus,
            logits,
            score=float(logits @ v),
            leave_one_out=head.leave_one_out(g) @ v,
            weight_view=head.training_contributions(g, "weight") @ v,
            dual_view=head.training_contributions(g, "dual") @ v,
            region_split=split,
            region_removal=removal,
            bias=float(head.bias @ v),
            regions=regions,
        )

    def region_split(self, regions: RegionSet, graph: RegionGraph, theta: Tensor) -> Tensor:
        """What each region adds to logits with weights ``theta (p, k)``: ``(b, m, k)``, for a
        readout that is a weighted sum.
        """
        omega = centrality(graph, self.operator, self.readout)
        return region_contributions(omega, regions.H, theta)

    def region_removal(self, regions, graph, theta: Tensor, g: Tensor | None = None) -> Tensor:
        """How far logits with weights ``theta (p, k)`` drop without each region: ``(b, m, k)``.
        ``g (b, p)`` are the embeddings, where they were read already.
        """
        g = self.read(regions, graph) if g is None else g
        without = remove_nodes(regions.H, graph, self.operator, self.readout, theta)
        return (g @ theta.to(g))[:, None] - without

    def _key(self):
        """A hash of everything but the pixels that an embedding depends on."""
        settings = (self.graph, self.operator, self.readout, self.regions, self.preprocess)
        try:
            digest = blake2b(pickle.dumps(settings) + str(self.backbone.model).encode())
        except (pickle.PicklingError, AttributeError) as error:
            raise ValueError(
                f"cache: {error}, so it cannot be told from another function after a restart. "
                "Define it by name in a module, or pass cache=None."
            ) from error
        model = self.backbone.model  # its buffers decide too, also those that no state dict holds
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            digest.update(name.encode() + _bytes(tensor))
        return digest

    def _kept(self, images: Tensor, folder, key) -> Tensor:
        """The embeddings of a batch, from a file where they were computed before."""
        key = key.copy()
        key.update(str(tuple(images.shape)).encode() + _bytes(images))
        path = Path(folder, f"{key.hexdigest()[:24]}.safetensors")
        if not path.exists():
            unfinished = path.with_suffix(f".{os.getpid()}")
            try:  # before the work, not after it
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished.touch()
            except OSError as error:
                raise ValueError(f"cache: cannot write into {folder}: {error}.") from error
            try:
                save_file({"G": self.embed(images).cpu().contiguous()}, unfinished)
                os.replace(unfinished, path)  # whole or not at all
            finally:
                unfinished.unlink(missing_ok=True)
        try:
            return load_file(path)["G"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(
                f"cache: {path} is damaged or no file of embeddings. Delete the file."
            ) from error


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _direction(target: int, versus: int | None, k: int) -> Tensor:
    """What to multiply the logits ``(k,)`` with to get the score."""
    check_classes(target, 1, k)
    if versus is not None and target == versus:
        raise ValueError(f"versus: expected two different classes, received {target} twice.")
    classes = [target] if versus is None else [target, versus]
    rows = one_hot(check_classes(classes, len(classes), k), k)
    return rows[0] if versus is None else rows[0] - rows[1]
