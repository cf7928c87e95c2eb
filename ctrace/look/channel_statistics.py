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
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy import stats
from torch import Tensor, nn
from tqdm import tqdm

from ctrace.check import check_ready, prepare_images
from ctrace.look.convs import channel_means, conv_layers
from ctrace.look.moments import FairSample, Moments, welch_greater

__all__ = ["ChannelStatistics"]

SHAPIRO_CAP = (
    5000  # scipy doubts its own p-values beyond it, and the test rejects everything long before
)
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
        weight_sums: ``(channels,)``, by which another model with the same layer names is told
            apart.
        sample: activations of some images, for the Shapiro test; empty unless asked for.
    """

    layers: dict[str, int]
    moments: Moments
    weight_sums: Tensor
    sample: FairSample

    @classmethod
    def collect(
        cls,
        model: nn.Module,
        loader: Iterable,
        layers=None,
        num_classes: int | None = None,
        device=None,
        progress: bool = True,
        shapiro_sample: int = 0,
        seed: int = 0,
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
            shapiro_sample: keep this many images' activations, at most 5,000, for
                `shapiro_pvalues`.
            seed: of the draw of these.

        Raises:
            ValueError: no batch or a malformed one, a model in training mode or without
                convolutions, a layer that is not reached, reached twice, or not finite.
        """
        check_ready(model)
        convs = conv_layers(model, layers)
        if not 0 <= shapiro_sample <= SHAPIRO_CAP:
            raise ValueError(
                f"shapiro_sample: expected 0 to {SHAPIRO_CAP}, received {shapiro_sample}."
            )
        rank = dist.get_rank() if _is_distributed() else 0
        generator, self = torch.Generator().manual_seed(seed + 1_000_003 * rank), None
        with torch.no_grad(), channel_means(model, convs) as run:
            for batch in tqdm(
                loader, desc="channel statistics", unit="batch", disable=not progress or rank > 0
            ):
                images, labels = _images_and_labels(batch)
                output, values = run(prepare_images(model, images))
                if self is None:
                    k = _number_of_outputs(output) if num_classes is None else num_classes
                    self = _nothing_yet(convs, k, device or values.device, shapiro_sample)
                self = self._add(
                    values, _check_labels(labels, len(values), len(self.count)), generator
                )
        self = _all_reduce(self) if _is_distributed() else self
        if self is None:
            raise ValueError(
                "loader: no batch came out of it. An iterator that has been used up, or drop_last with few images?"
            )
        self._check_finite()
        return self

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

    def welch_pvalues(self, layers=None, classes=None) -> dict[str, Tensor]:
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
        classes = (
            torch.arange(len(self.count))
            if classes is None
            else torch.as_tensor(classes).reshape(-1)
        )
        self.check_classes(classes)
        here = classes.to(self.moments.mean.device)
        return {layer: self.welch(layer)[1][here].T for layer in self._named(layers)}

    def shapiro_pvalues(self, layers=None) -> dict[str, Tensor]:
        """p that a channel's activations are normal ``(channels,)`` by layer (Shapiro and Wilk
        1965); 1 for a constant channel.

        With thousands of images it is small for any real channel, so a gate that asks for a small
        one lets everything through.

        Raises:
            ValueError: the statistics were collected without a sample.
        """
        rows = self.sample.rows
        if len(rows) < 3:
            raise ValueError(
                f"Shapiro test: the sample holds {len(rows)} images, and it needs 3. Collect with shapiro_sample=500, or leave "
                "p_value_threshold out."
            )
        return {
            layer: torch.tensor([_shapiro(x) for x in rows[:, self._place(layer)].T])
            for layer in self._named(layers)
        }

    def testable(self) -> Tensor:
        """Which classes can be tested ``(classes,)``: at least two images inside and two outside."""
        return (self.count >= 2) & (self.count.sum() - self.count >= 2)

    def check_classes(self, classes: Tensor) -> None:
        """Raises ValueError, in words, if one of these classes ``(n,)`` cannot be tested."""
        classes, count = classes.cpu().unique(), self.count.cpu()
        outside = [c for c in classes.tolist() if not 0 <= c < len(count)]
        if outside:
            raise ValueError(
                f"class {outside[0]}: these statistics hold the classes 0 to {len(count) - 1}."
            )
        wrong = classes[~self.testable().cpu()[classes]].tolist()
        if wrong:
            named = ", ".join(
                f"class {c} ({'never seen' if count[c] == 0 else f'{count[c]} of {count.sum()} images'})"
                for c in wrong[:5]
            )
            raise ValueError(
                f"{named}{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}: a test needs two images of the class and two of "
                "others. Collect over more images, or ask only for classes in statistics.testable()."
            )

    def check_model(self, model: nn.Module, layers: list[str]) -> None:
        """Raises ValueError unless these layers of the model are the ones the statistics were
        collected on.
        """
        convs = conv_layers(model, layers)
        missing = [name for name in convs if name not in self.layers]
        if missing:
            raise ValueError(
                f"statistics: they hold nothing about {', '.join(missing)}. Were they collected on another model, or with a choice of "
                f"layers? They hold: {', '.join(self.layers)}."
            )
        for name, conv in convs.items():
            if conv.out_channels != self.layers[name]:
                raise ValueError(
                    f"statistics of another model: {name!r} has {conv.out_channels} channels here, {self.layers[name]} there."
                )
            off = (_weight_sums(conv) - self.weight_sums[self._place(name)]).abs()
            if bool(
                (
                    off
                    > WEIGHT_SLACK
                    * conv.weight.detach().flatten(1).abs().sum(1, dtype=torch.float64).cpu()
                ).any()
            ):
                raise ValueError(
                    f"statistics of another model: the weights of {name!r} are not those they were collected on. Another seed or "
                    "checkpoint of the same architecture? Collect them again on this one."
                )

    def merge(self, other: "ChannelStatistics") -> "ChannelStatistics":
        """The statistics of both sets of images together.

        Raises:
            ValueError: of different models, layers or numbers of classes.
        """
        same = self.layers == other.layers and len(self.count) == len(other.count)
        if not same or not torch.allclose(self.weight_sums, other.weight_sums):
            raise ValueError(
                "merge: both must come from the same model, layers and number of classes; these do not."
            )
        moments = self.moments.merge(other.moments.to(self.moments.mean.device))
        return replace(self, moments=moments, sample=self.sample.merge(other.sample))

    def save(self, path) -> None:
        """Write one safetensors file: no pickle, so that loading executes nothing."""
        m, sample = self.moments.to("cpu"), self.sample
        tensors = {
            "count": m.count,
            "mean": m.mean,
            "m2": m.m2,
            "weight_sums": self.weight_sums,
            "sample": sample.rows,
            "keys": sample.keys,
        }
        metadata = {"layers": json.dumps(self.layers), "cap": str(sample.cap)}
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, str(path), metadata
        )

    @classmethod
    def load(cls, path, device="cpu") -> "ChannelStatistics":
        """Read what `save` wrote.

        Raises:
            ValueError: no such file, or not one of these.
        """
        if not Path(path).is_file():
            raise ValueError(
                f"no statistics at {path}. Write them with ChannelStatistics.collect(...).save(path)."
            )
        try:
            with safe_open(str(path), "pt") as file:
                layers, cap = json.loads(file.metadata()["layers"]), int(file.metadata()["cap"])
                count, mean, m2, weight_sums, rows, keys = map(
                    file.get_tensor, ("count", "mean", "m2", "weight_sums", "sample", "keys")
                )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} holds no channel statistics ({error}). A model's weights, or a file cut short?"
            ) from error
        return cls(
            layers, Moments(count, mean, m2).to(device), weight_sums, FairSample(rows, keys, cap)
        )

    def _place(self, layer: str) -> slice:
        if layer not in self.layers:
            raise ValueError(
                f"layer: these statistics have no {layer!r}. They hold: {', '.join(self.layers)}."
            )
        names, sizes = list(self.layers), list(self.layers.values())
        start = sum(sizes[: names.index(layer)])
        return slice(start, start + self.layers[layer])

    def _named(self, layers) -> list[str]:
        return (
            [layers] if isinstance(layers, str) else list(self.layers if layers is None else layers)
        )

    def _add(
        self, values: Tensor, labels: Tensor, generator: torch.Generator
    ) -> "ChannelStatistics":
        """With one more batch. Only the rows of its classes are touched, in place: all 1,000 would
        cost more than the model.
        """
        here = self.moments.mean.device
        present, group = (x.to(here) for x in labels.unique(return_inverse=True))
        merged = self.moments[present].merge(
            Moments.of_groups(values.to(here), group, len(present))
        )
        for name in ("count", "mean", "m2"):
            getattr(self.moments, name)[present] = getattr(merged, name)
        return (
            replace(self, sample=self.sample.draw(values, generator)) if self.sample.cap else self
        )

    def _check_finite(self) -> None:
        if not bool(
            torch.isfinite(self.moments.m2.sum())
        ):  # one pass over the table, not one a layer
            bad = [
                name
                for name in self.layers
                if not bool(torch.isfinite(self.of_layer(name).m2).all())
            ]
            raise ValueError(
                f"the activations of {bad[0]!r} are not all finite, so no mean is. Half precision overflowing? Use float32."
            )


def _nothing_yet(convs: dict[str, nn.Conv2d], k: int, device, cap: int) -> ChannelStatistics:
    if k < 1:
        raise ValueError(f"num_classes: expected at least 1, received {k}.")
    layers = {name: conv.out_channels for name, conv in convs.items()}
    c = sum(layers.values())
    sums = torch.cat([_weight_sums(conv) for conv in convs.values()])
    return ChannelStatistics(
        layers, Moments.zeros(k, c, device), sums, FairSample(torch.zeros(0, c), cap=cap)
    )


def _number_of_outputs(output) -> int:
    """Classes of a classifier, read off its logits ``(b, classes)``."""
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise ValueError(
            "the model does not put out one row of logits per image, so the number of classes is unknown. Pass num_classes."
        )
    return output.shape[1]


def _images_and_labels(batch) -> tuple[Tensor, Tensor]:
    """The two halves of what a data loader yields."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = (
            f"{type(batch).__name__} of {len(batch)}"
            if isinstance(batch, (tuple, list))
            else type(batch).__name__
        )
        raise ValueError(f"loader: expected batches (images, labels), received a {got}.")
    return batch[0], torch.as_tensor(batch[1])


def _check_labels(labels: Tensor, b: int, k: int) -> Tensor:
    """The class number of each of ``b`` images ``(b,)``, on the CPU; refuses any other label."""
    labels = labels.detach().cpu()
    if labels.shape != (b,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels: expected one class number for each of the {b} images, received {labels.dtype} {tuple(labels.shape)}. A soft "
            "label has no class to test; take its argmax if that is what you mean."
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < k:
        raise ValueError(
            f"labels: classes run from 0 to {k - 1}, received {int(labels.min())} to {int(labels.max())}. "
            "Does the data number its classes as the model does? For an embedding model pass num_classes."
        )
    return labels.long()


def _weight_sums(conv: nn.Conv2d) -> Tensor:
    return conv.weight.detach().flatten(1).sum(1, dtype=torch.float64).cpu()


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _all_reduce(mine: ChannelStatistics | None) -> ChannelStatistics:
    """The statistics of all processes together, the same in each."""
    kinds = [None] * dist.get_world_size()
    dist.all_gather_object(kinds, mine and (mine.layers, len(mine.count)))
    if mine is None or any(kind != kinds[0] for kind in kinds):
        words = "; ".join(
            "no batch" if kind is None else f"{len(kind[0])} layers and {kind[1]} classes"
            for kind in kinds
        )
        raise ValueError(
            f"torch.distributed: every process needs images, and the same layers and classes. They have: {words}."
        )
    samples = [None] * len(kinds)
    dist.all_gather_object(samples, mine.sample)
    drawn = samples[0]
    for sample in samples[1:]:
        drawn = drawn.merge(sample)
    return replace(mine, moments=mine.moments.all_reduce(), sample=drawn)


def _shapiro(values: Tensor) -> float:
    return (
        1.0
        if bool((values == values[0]).all())
        else float(stats.shapiro(values.double().numpy()).pvalue)
    )
