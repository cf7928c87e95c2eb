"""Data sets as they lie on disk: class folders, the tables of CUB-200-2011, a csv or parquet table,
the pairs of LFW. Each layout is one function from a path to images; what contradicts itself is
refused with its file and line.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ctrace.world.datasets import Splits, assemble, few

COLUMNS = ("image", "class_name", "split")  # and where classes are numbered, "label"
CUB = ("images", "image_class_labels", "train_test_split", "classes")


def read_splits(path, size: int, **options) -> Splits:
    """The data set at a path; its layout is read off what lies there: a csv or parquet file, a
    folder with CUB's ``images.txt``, or class folders.

    Args:
        path: file or folder.
        size: pixels a side.
        **options: ``unreadable``, ``progress`` and ``needs`` of `ctrace.world.datasets.assemble`.

    Raises:
        ValueError: what the layout's own function says.
    """
    path = Path(path)
    tables = {".csv": csv_splits, ".parquet": parquet_splits}
    is_cub = (path / "images.txt").is_file()
    read = tables.get(path.suffix) or (cub_splits if is_cub else folder_splits)
    return read(path, size, **options)


def folder_splits(root, size: int, **options) -> Splits:
    """Images in ``root/<split>/<class>/``, in folders below these too, as ImageNet's lie; every
    file counts as an image unless its name begins with a dot.

    Args:
        root: the folder; its splits are train, val and test (or training, valid, validation).
        size: pixels a side.
        **options: see `read_splits`.

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
    return assemble(root, records, classes, size, **options)


# --- tables


def csv_splits(path, size: int, **options) -> Splits:
    """A csv table with the columns ``image`` (a path, from the table's folder), ``class_name`` and
    ``split``; ``label`` where classes have numbers. Other arguments as in `read_splits`.

    Raises:
        ValueError: as `parquet_splits`, with the line.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a csv table in UTF-8: {error}.") from error
    header = reader.fieldnames or []
    if missing := [name for name in COLUMNS if name not in header]:
        got = f"line 1 names {', '.join(header) or 'nothing'}"
        raise ValueError(f"{path}: no column {', '.join(missing)}; {got}.")
    if ragged := [line for line, row in rows if None in row or None in row.values()]:
        raise ValueError(f"{path}, line {ragged[0]}: expected {len(header)} cells. An extra comma?")
    columns = {name: [row[name] or None for _, row in rows] for name in header}
    places = [f"line {line}, {row['image']}" for line, row in rows]
    return _table(Path(path), columns, places, size, options)


def parquet_splits(path, size: int, **options) -> Splits:
    """A parquet table with the columns of `csv_splits`, whose ``image`` may also be encoded bytes
    or a struct with ``bytes``. Other arguments as in `read_splits`.

    Class numbers follow the labels, or the names where there are none, sorted as numbers where they
    are numbers, over the whole table.

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
        columns = {name: table.column(name) for name in COLUMNS}
    except Exception as error:  # pyarrow raises its own types for a bad file
        wanted = "image, class_name, split and maybe label"
        raise ValueError(f"{path}: expected a parquet table with {wanted}: {error}") from error
    if "label" in table.column_names:
        columns["label"] = table.column("label")
    columns |= {name: column.to_pylist() for name, column in columns.items() if name != "image"}
    return _table(Path(path), columns, [f"row {i}" for i in range(len(table))], size, options)


def _table(path: Path, columns: dict, places: list[str], size: int, options: dict) -> Splits:
    """Images from columns; ``places`` says in words where each row stands."""
    names, splits = columns["class_name"], columns["split"]
    labels = columns.get("label", names)
    for name, column in (("label", labels), ("class_name", names), ("split", splits)):
        if empty := [place for place, cell in zip(places, column) if cell is None]:
            raise ValueError(f"{path}: empty cells in {name}: {few(empty)}.")
    first = dict(zip(zip(reversed(labels), reversed(names)), reversed(places)))
    pairs = sorted(first, key=lambda pair: _natural(pair[0]))
    if not len(pairs) == len(set(labels)) == len(set(names)):
        places = few(first[pair] for pair in pairs)
        message = f"label and class_name are not one to one: {few(pairs)}; first in {places}"
        raise ValueError(f"{path}: {message}.")
    reads = (partial(_cell_bytes, path.parent, columns["image"], i) for i in range(len(places)))
    records = list(zip(splits, names, places, reads))
    return assemble(path, records, [name for _, name in pairs], size, **options)


def _cell_bytes(folder: Path, column, i: int) -> bytes:
    value = column[i].as_py() if hasattr(column[i], "as_py") else column[i]
    value = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(value, str):
        return (folder / value).read_bytes()
    if not isinstance(value, bytes):
        raise ValueError(f"expected encoded image bytes, received {type(value).__name__}")
    return value


# --- CUB-200-2011


def cub_splits(root, size: int, **options) -> Splits:
    """The folder of CUB-200-2011 (Wah et al. 2011): ``images/`` and the tables ``images.txt``,
    ``image_class_labels.txt``, ``train_test_split.txt`` and ``classes.txt``, a number and a name a
    line. Other arguments as in `read_splits`.

    Raises:
        ValueError: a file missing, a line that is no number and name, a number that is given twice
            or not explained, an image that cannot be read.
    """
    root = Path(root)
    images, labels, training, classes = (_numbered(root / f"{name}.txt") for name in CUB)
    for name, table in (("image_class_labels", labels), ("train_test_split", training)):
        if missing := sorted(images.keys() ^ table.keys(), key=_natural):
            where = f"images.txt and {name}.txt do not list the same images"
            raise ValueError(f"{root}: {where}: {few(missing)}.")
    for name, table, known in (
        ("image_class_labels", labels, classes),
        ("train_test_split", training, {"0": "test", "1": "train"}),
    ):
        for line, value in table.values():
            if value not in known:
                message = f"expected one of {few(known)}, received {value!r}"
                raise ValueError(f"{root / name}.txt, line {line}: {message}.")
    records = [
        (
            "train" if training[i][1] == "1" else "test",
            classes[labels[i][1]][1],
            file,
            (root / "images" / file).read_bytes,
        )
        for i, (_, file) in images.items()
    ]
    return assemble(root, records, [name for _, name in classes.values()], size, **options)


def _numbered(path: Path) -> dict[str, tuple[int, str]]:
    """Lines "number name" of a file: number -> (line, name)."""
    found = {}
    for line, (number, *words) in _lines(path):
        if not number.isdecimal() or not words:
            got = " ".join([number, *words])
            raise ValueError(
                f"{path}, line {line}: expected a number and a name, received {got!r}."
            )
        if number in found:
            message = f"{number} stands in line {found[number][0]} already"
            raise ValueError(f"{path}, line {line}: {message}.")
        found[number] = line, " ".join(words)
    return found


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The words of each line that is not blank, with the line's number."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{path}: expected a text file: {error}.") from error
    return [(i, line.split()) for i, line in enumerate(text.splitlines(), 1) if line.strip()]


# --- LFW


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of images, of one person or of two.

    Attributes:
        files: every image of a pair, once.
        first, second: numbers of files ``(n,)``.
        same: whether a pair shows one person ``(n,)``.
        fold: ``(n,)``, from 0.
    """

    files: Sequence[Path]
    first: Tensor
    second: Tensor
    same: Tensor
    fold: Tensor


def lfw_pairs(path, images) -> Pairs:
    """The list of pairs of LFW (Huang et al. 2007), ``pairs.txt`` or ``pairsDevTest.txt``.

    Line 1 is the number of folds (left out where there is one) and that of pairs of each kind in a
    fold. Then three words a line, "name 1 4", for two images of one person, four, "name 1 other 2",
    for two persons.

    Args:
        path: the list.
        images: the folder of ``name/name_0001.jpg``.

    Raises:
        ValueError: a line of another form, too few or too many, an image that is not there.
    """
    path, images = Path(path), Path(images)
    (_, counts), *rows = _lines(path) or [(1, [])]
    if not 1 <= len(counts) <= 2 or not all(count.isdecimal() for count in counts):
        got = " ".join(counts)
        raise ValueError(f"{path}, line 1: expected folds and pairs, '10 300', received {got!r}.")
    folds, each = ([1, *map(int, counts)])[-2:]
    if len(rows) != 2 * folds * each:
        wanted = f"{folds} x 2 x {each} = {2 * folds * each} pairs after line 1"
        raise ValueError(f"{path}: expected {wanted}, received {len(rows)}. Cut short?")
    pairs, numbers = [], {}
    for line, words in rows:
        ids = {3: words[:2] + words[:1] + words[2:], 4: words}.get(len(words), [])
        if not ids or not (ids[1].isdecimal() and ids[3].isdecimal()):
            wanted = "'name 1 4' or 'name 1 other 2'"
            raise ValueError(f"{path}, line {line}: expected {wanted}, received {words}.")
        files = [images / name / f"{name}_{int(k):04d}.jpg" for name, k in (ids[:2], ids[2:])]
        if missing := [file for file in files if not file.is_file()]:
            raise ValueError(f"{path}, line {line}: there is no {missing[0]}.")
        pairs.append([numbers.setdefault(file, len(numbers)) for file in files])
    first, second = torch.tensor(pairs).T
    same = torch.tensor([len(words) == 3 for _, words in rows])
    return Pairs(list(numbers), first, second, same, torch.arange(len(rows)) // (2 * each))


def _natural(name):
    """Sorts numbers as numbers, whether written as text or not, and before words."""
    text = str(name)
    number = re.fullmatch(r"[-+]?\d+(\.\d+)?", text)
    return (0, float(text), text) if number else (1, 0, text)
