"""How strongly every channel fires, overall and for every class: one pass over labelled images, any
number of them.

The statistic of a channel is the spatial mean of its convolution's output after a ReLU: before any
BatchNorm, as published. Collect from training images; the maps you judge come from others.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    >>> batches = [(torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 0, 1, 0, 1])) for _ in range(3)]
    >>> statistics = ChannelStatistics.collect(net, batches, progress=False)
    >>> statistics.count.tolist(), statistics.welch_pvalues()["0"].shape
    ([9, 9], torch.Size([4, 2]))
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ctrace.arguments import Count, checked
from ctrace.check import (
    as_tensor,
    check_batch,
    check_classes,
    check_device,
    check_number,
    check_ready,
    one_of,
    prepare_images,
)
from ctrace.look.activations import Moments, channel_means, welch_greater
from ctrace.look.hooks import find_layers

# of the summed sizes of a channel's weights: half precision moves their sum by less, another
# training by more
WEIGHT_SLACK = 5e-3


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """Moments per class of every channel of some convolutions, and the tests that need no more than
    these.

    Attributes:
        layers: number of channels by dotted name, in order.
        moments: all layers side by side ``(classes, channels)``.
        weights: sums of each channel's weights and of their magnitudes ``(2, channels)``, by which
            another model with the same layer names is told apart.
    """

    layers: dict[str, int]
    moments: Moments
    weights: Tensor

    @classmethod
    @checked
    def collect(
        cls,
        model: nn.Module,
        loader: Iterable,
        layers=None,
        num_classes: Count | None = None,
        device=None,
        progress: bool = True,
    ) -> "ChannelStatistics":
        """One pass over ``(images, labels)`` batches. Memory: 16 bytes per class and channel,
        whatever the number of images.

        Under ``torch.distributed`` each process passes its own share of the images and all end with
        the statistics of the whole. (`DistributedSampler` repeats some images to even the shares
        out unless ``drop_last=True``.)

        Args:
            model: in eval mode, not wrapped; left as found.
            loader: batches of images ``(b, 3, height, width)`` prepared as for training, and class
                numbers ``(b,)``. Any iterable will do: ``((model.info.preprocess(x), y) for x, y in
                loader)`` prepares on the way.
            layers: convolutions by name or module; all of them by default.
            num_classes: by default the number of the model's outputs.
            device: where the moments are kept; by default where the model is.
            progress: a bar on stderr.

        Raises:
            ValueError: no batch or a malformed one, a model in training mode or without
                convolutions, a layer that is not reached, reached twice, or not finite.
        """
        check_ready(model)
        device = check_device(device)
        convs, mine = find_layers(model, layers, nn.Conv2d), None
        distributed = dist.is_available() and dist.is_initialized()
        quiet = not progress or (distributed and dist.get_rank() > 0)
        with torch.no_grad(), channel_means(model, layers) as run:
            for batch in tqdm(loader, desc="channel statistics", unit="batch", disable=quiet):
                images, labels = check_batch(batch)
                output, values = run(prepare_images(model, images))
                if mine is None:
                    k = _number_of_outputs(output) if num_classes is None else num_classes
                    mine = cls._nothing_yet(convs, k, device or values.device)
                mine._add(values, check_classes(labels, len(values), len(mine.count), "labels"))
        mine = _all_reduce(mine) if distributed else mine
        if mine is None:
            raise ValueError("loader: no batch came out. A used-up iterator, or drop_last?")
        for name in mine.layers:
            if not bool(torch.isfinite(mine.of_layer(name).m2).all()):
                why = "so no mean is. Half precision overflowing? Use float32."
                raise ValueError(f"the activations of {name!r} are not all finite, {why}")
        return mine

    @property
    def count(self) -> Tensor:
        """Images seen of each class ``(classes,)``."""
        return self.moments.count[:, 0].long()

    def of_layer(self, layer: str) -> Moments:
        """The moments of one layer ``(classes, channels of the layer)``."""
        return self.moments.channels(self._place(layer))

    def welch(self, layer: str) -> tuple[Tensor, Tensor]:
        """t and p of every class against all other images, ``(classes, channels)`` each; NaN for a
        class that is not `testable`.
        """
        moments = self.of_layer(layer)
        return welch_greater(moments, moments.all_but_one())

    @checked
    def welch_pvalues(self, layers: Iterable | None = None, classes=None) -> dict[str, Tensor]:
        """One-sided p that a channel fires no more for a class than for all other images (Welch
        1947): small where it does.

        From each layer's own activations. Equal to ``scipy.stats.ttest_ind(inside, outside,
        equal_var=False, alternative="greater")``, and 1 for a channel that never changes.

        Args:
            layers: a name or several; all by default.
            classes: class numbers; all by default.

        Returns:
            ``(channels, classes)`` by layer.

        Raises:
            ValueError: a class with fewer than two images, or fewer than two outside it.
        """
        layers = [layers] if isinstance(layers, str) else self.layers if layers is None else layers
        here = self.check_classes(range(len(self.count)) if classes is None else classes)
        return {layer: self.welch(layer)[1][here].T for layer in layers}

    def testable(self) -> Tensor:
        """Which classes can be tested ``(classes,)``: two images inside at least, and outside."""
        return (self.count >= 2) & (self.count.sum() - self.count >= 2)

    def check_classes(self, classes) -> Tensor:
        """Class numbers ``(n,)`` where the moments are, if all of them can be tested."""
        classes, count = as_tensor("classes", classes).reshape(-1), self.count.tolist()
        classes = check_classes(classes, len(classes), len(count), "classes").to(self.count.device)
        wrong = classes[~self.testable()[classes]].unique().tolist()
        if wrong:
            named = ", ".join(f"class {c} ({count[c]} of {sum(count)} images)" for c in wrong[:5])
            need = "a test needs two images of the class and two of others"
            raise ValueError(f"{named}: {need}. Collect more, or see statistics.testable().")
        return classes

    def check_model(self, model: nn.Module, layers: list[str]) -> None:
        """Raises ValueError unless these layers of the model are the ones the statistics were
        collected on.
        """
        for name, conv in find_layers(model, layers, nn.Conv2d).items():
            place, there = self._place(name), self.layers[name]
            if conv.out_channels != there:
                differ = f"{name!r} has {conv.out_channels} channels here, {there} there"
            elif not _same_weights(_weights_of(conv), self.weights[:, place]):
                differ = f"the weights of {name!r} are not those they were collected on"
            else:
                continue
            raise ValueError(f"statistics of another model: {differ}. Collect them again here.")

    @checked
    def merge(self, other: "ChannelStatistics") -> "ChannelStatistics":
        """The statistics of both sets of images together.

        Raises:
            ValueError: of different models, layers or numbers of classes.
        """
        same = self.layers == other.layers and len(self.count) == len(other.count)
        if not same or not _same_weights(self.weights, other.weights):
            raise ValueError("merge: expected the same model, layers and classes in both.")
        theirs = other.moments.map(lambda table: table.to(self.moments.mean.device))
        return replace(self, moments=self.moments.merge(theirs))

    @checked
    def save(self, path: str | os.PathLike, dtype: torch.dtype = torch.double) -> None:
        """Write one safetensors file: no pickle, so that loading executes nothing.

        Args:
            path: of the file.
            dtype: of the moments in it; float32 halves the file and keeps seven digits.
        """
        m = self.moments.map(lambda table: table.to("cpu", dtype).contiguous())
        tensors = {"count": m.count, "mean": m.mean, "m2": m.m2, "weights": self.weights}
        try:
            save_file(tensors, str(path), {"layers": json.dumps(self.layers)})
        except SafetensorError as error:
            raise ValueError(f"path: cannot write {path}: {error}. Is its folder there?") from error

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike, device="cpu") -> "ChannelStatistics":
        """Read what `save` wrote.

        Raises:
            ValueError: no such file, or not one of these.
        """
        if not Path(path).is_file():
            raise ValueError(f"no statistics at {path}. ChannelStatistics.save writes them.")
        try:
            with safe_open(str(path), "pt") as file:
                layers = json.loads(file.metadata()["layers"])
                *tables, weights = map(file.get_tensor, ("count", "mean", "m2", "weights"))
            k, c = len(tables[0]), sum(layers.values())
            shapes = [tuple(x.shape) for x in (*tables, weights)]
            if shapes != [(k, 1), (k, c), (k, c), (2, c)]:
                raise ValueError(f"tables of shapes {shapes} for {c} channels")
            count, _, m2 = tables
            finite = all(bool(x.isfinite().all()) for x in (*tables, weights))
            if not finite or bool((count < 0).any() or (m2 < 0).any()):
                raise ValueError("a NaN or an infinity, or a negative count or spread")
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no channel statistics: {error}. Cut short?") from error
        return cls(layers, Moments(*tables).map(lambda x: x.to(device, torch.double)), weights)

    @classmethod
    def _nothing_yet(cls, convs: dict[str, nn.Conv2d], k: int, device) -> "ChannelStatistics":
        check_number("num_classes", k, whole=True, at_least=1)
        layers = {name: conv.out_channels for name, conv in convs.items()}
        weights = torch.cat([_weights_of(conv) for conv in convs.values()], 1)
        return cls(layers, Moments.zeros(k, sum(layers.values()), device), weights)

    def _place(self, layer: str) -> slice:
        names = list(self.layers)
        one_of("layer of these statistics", layer, names)
        start = sum(self.layers[name] for name in names[: names.index(layer)])
        return slice(start, start + self.layers[layer])

    def _add(self, values: Tensor, labels: Tensor) -> None:
        """One more batch. Only the rows of its classes are touched, in place: all 1,000 would cost
        more than the model.
        """
        here = self.moments.mean.device
        present, group = (x.to(here) for x in labels.unique(return_inverse=True))
        batch = Moments.of_groups(values.to(here), group, len(present))
        merged = self.moments[present].merge(batch)
        for name in ("count", "mean", "m2"):
            getattr(self.moments, name)[present] = getattr(merged, name)


def _number_of_outputs(output) -> int:
    """Classes of a classifier, read off its logits ``(b, classes)``."""
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise ValueError("num_classes: the model puts out no rows of logits. Pass num_classes.")
    return output.shape[1]


def _weights_of(conv: nn.Conv2d) -> Tensor:
    """Sum and sum of magnitudes of each channel's weights ``(2, c)``."""
    weight = conv.weight.detach().flatten(1).double().cpu()
    return torch.stack([weight.sum(1), weight.abs().sum(1)])


def _same_weights(a: Tensor, b: Tensor) -> bool:
    """Whether two ``(2, c)`` are of one model, in whatever precision."""
    return bool(((a[0] - b[0]).abs() <= WEIGHT_SLACK * torch.maximum(a[1], b[1])).all())


def _all_reduce(mine: ChannelStatistics | None) -> ChannelStatistics:
    """The statistics of all processes together, the same in each."""
    kinds = [None] * dist.get_world_size()
    dist.all_gather_object(kinds, mine and (mine.layers, len(mine.count)))
    if mine is None or any(kind != kinds[0] for kind in kinds):
        have = "; ".join(f"{len(k[0])} layers, {k[1]} classes" if k else "no batch" for k in kinds)
        raise ValueError(f"torch.distributed: every process needs images of one kind, have {have}.")
    return replace(mine, moments=mine.moments.all_reduce())
