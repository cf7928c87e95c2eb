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
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ctrace.aviary import SPECIES, Aviary, Cached

__all__ = ["Split", "Splits", "aviary_splits", "folder_splits", "parquet_splits"]

COLUMNS = ("image", "label", "class_name", "split")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True, eq=False)
class Split(Dataset):
    """Item i: an image ``(3, size, size)`` in [0, 1] and its class number.

    Attributes:
        labels: ``(n,)``.
        names: where each image comes from, in words.
        identity: changes with any image, label or size, and with nothing else: neither with names
            nor with places.
        read: grey levels ``(3, size, size)`` uint8 of image i.
    """

    labels: Tensor
    names: Sequence[str]
    identity: str
    read: Callable[[int], Tensor] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} outside a split of {len(self)} images")
        return self.read(index).float() / 255, int(self.labels[index])

    def share(self, number: int, of: int) -> "Split":
        """Images ``number, number + of, ...``: what one of ``of`` processes works on; together they
        have every image once.

        Raises:
            ValueError: no such share, or no image in it.
        """
        if not 0 <= number < min(of, len(self)):
            last = min(of, len(self)) - 1
            raise ValueError(
                f"share: expected a number from 0 to {last} ({of} shares of {len(self)} images), received {number}."
            )
        rows = range(number, len(self), of)
        names = [self.names[i] for i in rows]
        return Split(
            self.labels[number::of],
            names,
            f"{self.identity} share {number} of {of}",
            lambda i: self.read(rows[i]),
        )


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
        if name not in self.splits:
            raise ValueError(f"no split {name!r}; there are {', '.join(self.splits)}.")
        return self.splits[name]

    def __str__(self) -> str:
        sizes = ", ".join(f"{len(split)} {name}" for name, split in self.splits.items())
        return f"{sizes} images of {len(self.classes)} classes" + (
            f", {len(self.unreadable)} unreadable left out" * bool(self.unreadable)
        )


def aviary_splits(train: int, test: int, val: int = 0, size: int = 96, **settings) -> Splits:
    """Toy birds, rendered once; species take turns, so their numbers are equal.

    Args:
        train, test, val: number of images of each; no validation split when 0.
        size: pixels.
        settings: of `ctrace.aviary.Aviary`, such as ``spurious``.
    """
    splits = {}
    for name, n in (("train", train), ("val", val), ("test", test)):
        if not n and name == "val":
            continue
        _check_size(name, n)
        cached = Cached(Aviary(name, n, size, **settings))
        identity = _identity(
            size,
            (
                (image.numpy().tobytes(), label)
                for image, label in zip(cached.images, cached.targets.tolist())
            ),
        )
        splits[name] = Split(
            cached.targets,
            [f"{name} scene {i}" for i in range(n)],
            identity,
            cached.images.__getitem__,
        )
    return Splits(splits, tuple(s.name for s in SPECIES))


def folder_splits(root, size: int, unreadable: str = "raise", progress: bool = True) -> Splits:
    """Images in ``root/<split>/<class>/``; splits are called train, test and maybe val (or
    validation).

    Args:
        root: the folder.
        size: images are resized to this many pixels a side, whole, without a crop.
        unreadable: "raise" on images that cannot be decoded, all of them listed; "report" leaves
            them out, warns with their number, and keeps the list.
        progress: a bar on stderr while every image is decoded once.

    Raises:
        ValueError: folders or images missing, a split without images, an image that cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(
            f"no folder {root}. Expected {root}/train/<class>/*.jpg and {root}/test/<class>/*.jpg."
        )
    records = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and p.name.lower() in SPLIT_NAMES):
        for path in sorted(p for p in folder.glob("*/*") if p.suffix.lower() in IMAGE_ENDINGS):
            records.append(
                (
                    SPLIT_NAMES[folder.name.lower()],
                    path.parent.name,
                    str(path.relative_to(root)),
                    path.read_bytes,
                )
            )
    if not records:
        found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"no images under {root}/<split>/<class>/ with a split train, val or test. The folder holds: {found}."
        )
    classes = tuple(sorted({record[1] for record in records}, key=_natural))
    return _assemble(
        ((split, classes.index(name), where, read) for split, name, where, read in records),
        classes,
        size,
        unreadable,
        progress,
        len(records),
    )


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
    table = _read_table(path)
    labels, names, splits = (table.column(name).to_pylist() for name in COLUMNS[1:])
    order = sorted(set(labels), key=_natural)
    named = dict(zip(labels, names))
    clash = [(label, name) for label, name in zip(labels, names) if named[label] != name]
    if clash or len(set(named.values())) != len(named):
        twice = (
            clash[0]
            if clash
            else next(
                (label, name)
                for label, name in named.items()
                if list(named.values()).count(name) > 1
            )
        )
        raise ValueError(
            f"{path}: label {twice[0]!r} and class_name {twice[1]!r} are not one to one. Was the class map made per split?"
        )
    if unknown := {split for split in splits if str(split).lower() not in SPLIT_NAMES}:
        raise ValueError(
            f"{path}: split holds {sorted(map(str, unknown))[:5]}; expected {', '.join(SPLIT_NAMES)}."
        )
    images, number = table.column("image"), {label: i for i, label in enumerate(order)}
    records = (
        (SPLIT_NAMES[split.lower()], number[label], f"row {i}", partial(_cell_bytes, images, i))
        for i, (split, label) in enumerate(zip(splits, labels))
    )
    return _assemble(
        records,
        tuple(str(named[label]) for label in order),
        size,
        unreadable,
        progress,
        len(labels),
    )


def _read_table(path):
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            'reading a parquet table needs pyarrow: pip install "ctrace[parquet]", or unpack the table into folders.'
        ) from error
    if not Path(path).is_file():
        raise ValueError(f"no parquet file at {path}.")
    try:
        table = parquet.read_table(path)
    except Exception as error:  # pyarrow raises its own types for a bad file
        raise ValueError(
            f"{path} is no readable parquet file ({str(error).splitlines()[0]}). Cut short, or another format?"
        ) from error
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise ValueError(
            f"{path}: the columns {', '.join(missing)} are missing; it has {', '.join(table.column_names)}. Rename yours to {', '.join(COLUMNS)}."
        )
    for name in COLUMNS[1:]:
        if empty := table.column(name).null_count:
            raise ValueError(f"{path}: {empty} of {len(table)} cells of {name} are empty.")
    return table


def _cell_bytes(column, i: int) -> bytes:
    value = column[i].as_py()
    value = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(value, bytes):
        raise ValueError(f"expected encoded image bytes, received {type(value).__name__}")
    return value


def _assemble(
    records, classes: tuple[str, ...], size: int, unreadable: str, progress: bool, total: int
) -> Splits:
    """Decodes every image once, to know which can be read and what identifies the data, and keeps
    how to read them again.
    """
    if unreadable not in ("raise", "report"):
        raise ValueError(f"unreadable: expected 'raise' or 'report', received {unreadable!r}.")
    kept, bad = {}, []
    for split, label, where, read in tqdm(
        records, desc="checking images", unit="image", total=total, disable=not progress
    ):
        try:
            content = read()
            _decode(content, size)
        except UnidentifiedImageError:
            bad.append((where, "no image, or of a format that is not known"))
            continue
        except Exception as error:  # decoders raise many types for a bad file
            bad.append((where, str(error).splitlines()[0] if str(error) else type(error).__name__))
            continue
        kept.setdefault(split, []).append(
            (label, where, read, blake2b(content, digest_size=16).digest())
        )
    if bad:
        listed = "; ".join(f"{where}: {reason}" for where, reason in bad[:5]) + (
            "; ..." if len(bad) > 5 else ""
        )
        message = f"{len(bad)} of {total} images cannot be read: {listed}"
        if unreadable == "raise":
            raise ValueError(
                f"{message}. Repair them, or pass unreadable='report' to leave them out with a warning."
            )
        warnings.warn(f"{message}. They are left out; the list is in .unreadable.", stacklevel=3)
    for name in ("train", "test"):
        _check_size(name, len(kept.get(name, ())))
    splits = {name: _split(kept[name], size) for name in ("train", "val", "test") if name in kept}
    _warn_of_unseen(splits, classes)
    return Splits(splits, classes, tuple(bad))


def _split(items, size: int) -> Split:
    labels, names, reads, digests = zip(*items)
    return Split(
        torch.tensor(labels),
        names,
        _identity(size, zip(digests, labels)),
        partial(_read, reads, size),
    )


def _read(reads: Sequence[Callable[[], bytes]], size: int, index: int) -> Tensor:
    return _decode(reads[index](), size)


def _decode(content: bytes, size: int) -> Tensor:
    with Image.open(io.BytesIO(content)) as image:
        resized = (
            ImageOps.exif_transpose(image)
            .convert("RGB")
            .resize((size, size), Image.Resampling.BICUBIC)
        )
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()  # (3, size, size)


def _identity(size: int, items) -> str:
    digest = blake2b(f"{size}".encode(), digest_size=16)
    for content, label in items:
        digest.update(blake2b(content, digest_size=16).digest() + int(label).to_bytes(4, "little"))
    return digest.hexdigest()


def _check_size(name: str, n: int) -> None:
    if n < 1:
        raise ValueError(f"the {name} split is empty: it needs at least one (readable) image.")


def _warn_of_unseen(splits: dict[str, Split], classes: tuple[str, ...]) -> None:
    seen = set(splits["train"].labels.tolist())
    if unseen := [name for i, name in enumerate(classes) if i not in seen]:
        warnings.warn(
            f"{len(unseen)} classes have no training image and can never be right: {', '.join(unseen[:5])}.",
            stacklevel=4,
        )


def _natural(name):
    """Sorts numbers as numbers, whether written as text or not, and before words."""
    text = str(name)
    return (0, int(text), "") if text.isdecimal() else (1, 0, text)
