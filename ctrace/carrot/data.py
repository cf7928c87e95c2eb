"""Labelled images in splits, from the toy aviary, folders, or a parquet table: one class map for
all splits, nothing skipped in silence.

>>> splits = aviary_splits(train=14, test=14, size=32)
>>> splits.classes[:2], len(splits["train"]), tuple(splits["test"][3][0].shape)
(('aster', 'briar'), 14, (3, 32, 32))
"""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ctrace.aviary import SPECIES, Aviary, Cached
from ctrace.check import check_number, one_of
from ctrace.world.photos import rgb_image

COLUMNS = ("image", "label", "class_name", "split")
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
        splits: "train", "test" and where there is one "val".
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


def folder_splits(root, size: int, unreadable: str = "raise", progress: bool = True) -> Splits:
    """Images in ``root/<split>/<class>/``, in folders below these too; every file counts as an
    image unless its name begins with a dot.

    Args:
        root: the folder; its splits train, test and maybe val (or training, valid, validation).
        size: images are resized to this many pixels a side, whole, without a crop.
        unreadable: "raise" on images that cannot be decoded, all of them listed; "report" leaves
            them out, warns with their number, and keeps the list.
        progress: a bar on stderr while every image is decoded once.

    Raises:
        ValueError: folders or images missing, a folder that is no split, a split without images, an
            image that cannot be read.
    """
    root, records = Path(root), []
    for path in sorted(root.rglob("*")):
        where = path.relative_to(root)
        if path.is_file() and not path.name.startswith(".") and len(where.parts) > 2:
            records.append((*where.parts[:2], str(where), path.read_bytes))
    classes = tuple(sorted({name for _, name, _, _ in records}, key=_natural))
    return _assemble(root, records, classes, size, unreadable, progress)


def parquet_splits(path, size: int, unreadable: str = "raise", progress: bool = True) -> Splits:
    """A parquet table with the columns ``image`` (encoded bytes, or a struct with ``bytes``),
    ``label``, ``class_name`` and ``split``.

    Class numbers follow the labels, sorted as numbers where they are numbers, over the whole table.
    Other arguments as in `folder_splits`.

    Raises:
        ValueError: a file or column missing, empty cells, a label with two names or a name with two
            labels, an unknown or empty split, an image that cannot be read.
        ImportError: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        message = 'a parquet table needs pyarrow: pip install "ctrace[parquet]", or use folders.'
        raise ImportError(message) from error
    try:
        table = parquet.read_table(path)
        columns = [table.column(name) for name in COLUMNS]
    except Exception as error:  # pyarrow raises its own types for a bad file
        message = f"{path}: expected a parquet table with {', '.join(COLUMNS)}: {error}"
        raise ValueError(message) from error
    if empty := [name for name, column in zip(COLUMNS[1:], columns[1:]) if column.null_count]:
        raise ValueError(f"{path}: empty cells in {', '.join(empty)}.")
    images, (labels, names, splits) = columns[0], (column.to_pylist() for column in columns[1:])
    pairs = sorted(set(zip(labels, names)), key=lambda pair: _natural(pair[0]))
    if not len(pairs) == len(set(labels)) == len(set(names)):
        raise ValueError(f"{path}: label and class_name are not one to one: {_few(pairs)}.")
    reads = [partial(_cell_bytes, images, i) for i in range(len(table))]
    rows = [f"row {i}" for i in range(len(table))]
    records = list(zip(splits, names, rows, reads))
    return _assemble(path, records, [name for _, name in pairs], size, unreadable, progress)


def _cell_bytes(column, i: int) -> bytes:
    value = column[i].as_py()
    value = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(value, bytes):
        raise ValueError(f"expected encoded image bytes, received {type(value).__name__}")
    return value


def _assemble(source, records, classes, size: int, unreadable: str, progress: bool) -> Splits:
    """Decodes every image once, to know which can be read, and keeps how to read them again."""
    one_of("unreadable", unreadable, ("raise", "report"))
    records = [(str(split).lower(), *rest) for split, *rest in records]
    if unknown := {split for split, *_ in records if split not in SPLITS}:
        known = ", ".join(SPLITS)
        raise ValueError(f"{source}: split holds {sorted(unknown)}; expected {known}.")
    kept, bad = {"train": [], "val": [], "test": []}, []
    for split, name, where, read in tqdm(records, "checking images", disable=not progress):
        image = partial(_decode, read, size)
        try:
            image()
        except Exception as error:  # decoders raise many types for a bad file
            bad.append((where, str(error) or type(error).__name__))
        else:
            kept[SPLITS[split]].append((classes.index(name), where, image))
    if bad:
        message = f"{len(bad)} of {len(records)} images cannot be read: {_few(bad)}"
        if unreadable == "raise":
            raise ValueError(f"{message}. Repair them, or unreadable='report' leaves them out.")
        warnings.warn(f"{message}. They are left out; the list is in .unreadable.", stacklevel=3)
    splits = {}
    for name, items in kept.items():
        if items:
            labels, names, reads = zip(*items)
            splits[name] = Split(torch.tensor(labels), names, reads)
        elif name != "val":
            raise ValueError(
                f"{source}: the {name} split is empty, no images under {name}/<class>/."
            )
    unseen = [classes[i] for i in set(range(len(classes))) - set(splits["train"].labels.tolist())]
    if unseen:
        message = f"{len(unseen)} classes have no training image and can never be right"
        warnings.warn(f"{message}: {_few(unseen)}.", stacklevel=3)
    return Splits(splits, tuple(map(str, classes)), tuple(bad))


def _decode(read: Callable[[], bytes], size: int) -> Tensor:
    with Image.open(io.BytesIO(read())) as image:
        resized = rgb_image(image).resize((size, size), Image.Resampling.BICUBIC)
    return rearrange(torch.from_numpy(np.array(resized)), "h w c -> c h w").contiguous()


def _natural(name):
    """Sorts numbers as numbers, whether written as text or not, and before words."""
    text = str(name)
    return (0, int(text), text) if text.isdecimal() else (1, 0, text)


def _few(items) -> str:
    words = [": ".join(map(str, x)) if isinstance(x, tuple) else str(x) for x in items]
    return "; ".join(words[:5]) + ("; ..." if len(words) > 5 else "")
