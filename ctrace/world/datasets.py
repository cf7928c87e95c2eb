"""Labelled images in splits: one class map for all, nothing skipped in silence.

`ctrace.world.layouts` reads what lies on disk; the toy aviary is drawn here.

>>> splits = aviary_splits(train=14, test=14, size=32)
>>> splits.classes[:2], len(splits["train"]), tuple(splits["test"][3][0].shape)
(('aster', 'briar'), 14, (3, 32, 32))
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ctrace.arguments import warn
from ctrace.aviary import SPECIES, Aviary, Cached
from ctrace.check import check_number, one_of
from ctrace.world.photos import rgb_image

SPLITS = {"training": "train", "valid": "val", "validation": "val"} | {
    name: name for name in ("train", "val", "test")
}


@dataclass(frozen=True, eq=False)
class Split(Dataset):
    """Item i: an image ``(3, size, size)`` in [0, 1] and its class number.

    Attributes:
        labels: ``(n,)``.
        names: where each image comes from, in words.
        reads: what gives image i, grey levels ``(3, size, size)`` uint8.
    """

    labels: Tensor
    names: Sequence[str]
    reads: Sequence[Callable[[], Tensor]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.reads[index]().float() / 255, int(self.labels[index])


@dataclass(frozen=True, eq=False)
class Splits:
    """The splits of a data set under one class map.

    Attributes:
        splits: those of "train", "val" and "test" that there are.
        classes: names by class number, the same in every split.
        unreadable: ``(name, reason)`` of each image that was left out.
    """

    splits: dict[str, Split]
    classes: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...] = ()

    def __getitem__(self, name: str) -> Split:
        return self.splits[one_of("split", name, self.splits)]

    def __str__(self) -> str:
        sizes = ", ".join(f"{len(split)} {name}" for name, split in self.splits.items())
        left_out = f", {len(self.unreadable)} unreadable left out" if self.unreadable else ""
        return f"{sizes} images of {len(self.classes)} classes{left_out}"


def aviary_splits(train: int, test: int, val: int = 0, size: int = 96, **settings) -> Splits:
    """Toy birds, rendered once; species take turns, so their numbers are equal.

    Args:
        train, test, val: number of images of each; no validation split when 0.
        size: pixels.
        settings: of `ctrace.aviary.Aviary`, such as ``spurious``.
    """
    check_number("train", train, whole=True, at_least=1)
    check_number("test", test, whole=True, at_least=1)
    splits = {}
    for name, n in (("train", train), ("val", val), ("test", test)):
        if n:
            birds = Cached(Aviary(name, n, size, **settings))
            reads = [partial(birds.images.__getitem__, i) for i in range(n)]
            splits[name] = Split(birds.targets, [f"{name} scene {i}" for i in range(n)], reads)
    return Splits(splits, tuple(s.name for s in SPECIES))


def assemble(
    source,
    records: Sequence[tuple[str, str, str, Callable[[], bytes]]],
    classes: Sequence[str],
    size: int,
    unreadable: str = "raise",
    progress: bool = True,
    needs: Sequence[str] = ("train", "test"),
) -> Splits:
    """Decodes every image once, to know which can be read, and keeps how to read them again.

    Args:
        source: where they come from, for messages.
        records: of each image its split, its class, where it lies in words, and what reads its
            bytes.
        classes: names by class number.
        size: images are resized to this many pixels a side, whole, without a crop.
        unreadable: "raise" on images that cannot be decoded, all of them listed; "report" leaves
            them out, warns with their number, and keeps the list.
        progress: a bar on stderr.
        needs: splits that must not be empty.

    Raises:
        ValueError: an unknown split, one without images, an image that cannot be read.
    """
    one_of("unreadable", unreadable, ("raise", "report"))
    records = [(str(split).lower(), *rest) for split, *rest in records]
    if unknown := {split: where for split, _, where, _ in records if split not in SPLITS}:
        known = f"expected {', '.join(SPLITS)}"
        raise ValueError(
            f"{source}: split holds {list(unknown)}; {known}. See {few(unknown.items())}."
        )
    kept, bad = {"train": [], "val": [], "test": []}, []
    number = {name: i for i, name in enumerate(classes)}
    for split, name, where, read in tqdm(records, "checking images", disable=not progress):
        image = partial(decode, read, size)
        try:
            image()
        except Exception as error:  # decoders raise many types for a bad file
            bad.append((where, str(error) or type(error).__name__))
        else:
            kept[SPLITS[split]].append((number[name], where, image))
    if bad:
        message = f"{len(bad)} of {len(records)} images cannot be read: {few(bad)}"
        if unreadable == "raise":
            raise ValueError(f"{message}. Repair them, or unreadable='report' leaves them out.")
        warn(f"{message}. They are left out; the list is in .unreadable.")
    splits = {}
    for name, items in kept.items():
        if items:
            labels, names, reads = zip(*items)
            splits[name] = Split(torch.tensor(labels), names, reads)
        elif name in needs:
            there = ", ".join(name for name in kept if kept[name]) or "nothing"
            hint = f"there is {there}; in folders, no images under {name}/<class>/"
            raise ValueError(f"{source}: the {name} split is empty: {hint}.")
    seen = set(splits["train"].labels.tolist() if "train" in splits else range(len(classes)))
    unseen = [name for i, name in enumerate(classes) if i not in seen]
    if unseen:
        message = f"{len(unseen)} classes have no training image and can never be right"
        warn(f"{message}: {few(unseen)}.")
    return Splits(splits, tuple(map(str, classes)), tuple(bad))


def decode(read: Callable[[], bytes], size: int) -> Tensor:
    """Grey levels ``(3, size, size)`` uint8 of an encoded image."""
    with Image.open(io.BytesIO(read())) as image:
        resized = rgb_image(image).resize((size, size), Image.Resampling.BICUBIC)
    return rearrange(torch.from_numpy(np.array(resized)), "h w c -> c h w").contiguous()


def few(items) -> str:
    """The first five, for a message."""
    words = [": ".join(map(str, x)) if isinstance(x, tuple) else str(x) for x in items]
    return "; ".join(words[:5]) + ("; ..." if len(words) > 5 else "")
