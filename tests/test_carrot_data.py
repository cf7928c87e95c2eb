"""Images in splits: one class map, the same pixels from every source, and what is missing or broken
said aloud.
"""

import io
import pickle
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from ctrace.aviary import Aviary
from ctrace.carrot.data import aviary_splits, folder_splits, parquet_splits


def png(seed=0, size=20, mode="RGB"):
    pixels = np.random.RandomState(seed).randint(0, 256, (size, size, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


ROWS = [
    ("train", 7, "wren"),
    ("train", 10, "kite"),
    ("train", 7, "wren"),
    ("validation", 10, "kite"),
    ("test", 7, "wren"),
    ("test", 10, "kite"),
]


def table(tmp_path, rows=ROWS, images=None, drop=(), struct=False):
    images = [png(i) for i in range(len(rows))] if images is None else images
    columns = {
        "image": [{"bytes": b, "path": None} for b in images] if struct else images,
        "split": [r[0] for r in rows],
    }
    columns |= {"label": [r[1] for r in rows], "class_name": [r[2] for r in rows]}
    parquet.write_table(
        pa.table({name: values for name, values in columns.items() if name not in drop}),
        tmp_path / "birds.parquet",
    )
    return tmp_path / "birds.parquet"


def folders(tmp_path, rows=ROWS, images=None):
    for i, (split, _, name) in enumerate(rows):
        folder = tmp_path / split / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(png(i) if images is None else images[i])
    return tmp_path


def test_aviary_splits_are_the_aviarys_own_images_under_its_class_map():
    splits = aviary_splits(train=15, val=3, test=14, size=32)
    image, label = splits["val"][2]
    assert torch.equal(image, Aviary("val", 3, 32)[2][0]) and label == 2
    assert (
        splits["train"].labels.tolist() == [i % 14 for i in range(15)] and len(splits.classes) == 14
    )
    assert str(splits) == "15 train, 3 val, 14 test images of 14 classes"
    with pytest.raises(IndexError, match="split of 3"):
        splits["val"][3]


def test_a_table_and_folders_of_the_same_images_give_the_same_pixels_and_identity(tmp_path):
    a, b = (
        parquet_splits(table(tmp_path), 16, progress=False),
        folder_splits(folders(tmp_path / "f"), 16, progress=False),
    )
    assert (
        set(a.splits) == {"train", "val", "test"}
        and a.classes == ("wren", "kite")
        and b.classes == ("kite", "wren")
    )
    c = parquet_splits(table(tmp_path, struct=True), 16, progress=False)
    for name in a.splits:
        assert torch.equal(a[name][0][0], c[name][0][0]) and a[name].identity == c[name].identity
    assert torch.equal(a["test"][0][0], b["test"][1][0])  # folders go by class name: kite first
    assert (
        a["test"][0][0].shape == (3, 16, 16)
        and 0 <= a["test"][0][0].min()
        and a["test"][0][0].max() <= 1
    )


def test_class_numbers_are_the_same_in_every_split_also_where_a_class_is_missing(tmp_path):
    rows = [
        ("train", 2, "a"),
        ("train", 10, "b"),
        ("train", 33, "c"),
        ("test", 33, "c"),
        ("test", 10, "b"),
    ]
    splits = parquet_splits(table(tmp_path, rows), 8, progress=False)
    assert (
        splits.classes == ("a", "b", "c")
        and splits["train"].labels.tolist() == [0, 1, 2]
        and splits["test"].labels.tolist() == [2, 1]
    )


def test_the_identity_follows_images_labels_and_size_and_not_names(tmp_path):
    identity = lambda path, size=8: folder_splits(path, size, progress=False)["train"].identity
    first = identity(folders(tmp_path / "a"))
    assert identity(folders(tmp_path / "elsewhere")) == first
    assert identity(tmp_path / "a", 9) != first
    assert (
        identity(folders(tmp_path / "b", images=[png(5)] + [png(i) for i in range(1, 6)])) != first
    )
    relabelled = [
        (split, 17 - label, name) for split, label, name in ROWS
    ]  # the same images in the same order
    one, two = (
        parquet_splits(table(tmp_path, rows), 8, progress=False)["train"].identity
        for rows in (ROWS, relabelled)
    )
    assert one != two


def test_grey_palette_and_turned_photographs_are_read_as_colour_the_right_way_up(tmp_path):
    turned = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    turned.paste((255, 0, 0), (0, 0, 10, 10))
    exif = turned.getexif()
    exif[0x0112] = 3  # upside down
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    images = [
        png(0, mode="L"),
        png(1, mode="P"),
        png(2, mode="RGBA"),
        png(3),
        png(4),
        buffer.getvalue(),
    ]
    splits = parquet_splits(table(tmp_path, images=images), 10, progress=False)
    assert all(splits["train"][i][0].shape == (3, 10, 10) for i in range(3))
    red = splits["test"][1][0][0]
    assert red[:, 7:].min() > 0.9 and red[:, :3].max() < 0.1


def test_unreadable_images_are_listed_and_refused_or_counted_and_left_out(tmp_path):
    images = [png(0), png(1), png(2)[:60], png(3), png(4), b"no image"]
    for load in (
        lambda **k: parquet_splits(table(tmp_path, images=images), 8, progress=False, **k),
        lambda **k: folder_splits(folders(tmp_path / "f", images=images), 8, progress=False, **k),
    ):
        with pytest.raises(ValueError, match="2 of 6 images cannot be read"):
            load()
        with pytest.warns(UserWarning, match="2 of 6 images cannot be read.*left out"):
            splits = load(unreadable="report")
        assert (
            len(splits.unreadable) == 2 and len(splits["train"]) == 2 and len(splits["test"]) == 1
        )
        assert "2 unreadable left out" in str(splits) and any(
            "no image" in reason for _, reason in splits.unreadable
        )


def test_an_empty_image_cell_is_an_unreadable_image_not_a_crash(tmp_path):
    with pytest.raises(
        ValueError,
        match="1 of 6 images cannot be read: row 3: expected encoded image bytes, received NoneType",
    ):
        parquet_splits(
            table(tmp_path, images=[png(i) if i != 3 else None for i in range(6)]),
            8,
            progress=False,
        )


def test_a_class_without_training_images_is_announced(tmp_path):
    with pytest.warns(
        UserWarning, match="1 classes have no training image and can never be right: owl"
    ):
        folder_splits(folders(tmp_path, [*ROWS, ("test", 3, "owl")]), 8, progress=False)


def test_splits_survive_pickling_for_the_workers_of_a_loader(tmp_path):
    for splits in (
        folder_splits(folders(tmp_path / "f"), 8, progress=False),
        parquet_splits(table(tmp_path), 8, progress=False),
        aviary_splits(2, 2, size=32),
    ):
        again = pickle.loads(pickle.dumps(splits["train"]))
        assert torch.equal(again[1][0], splits["train"][1][0])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda p: aviary_splits(train=0, test=2), "the train split is empty"),
        (
            lambda p: aviary_splits(train=2, test=2, size=32)["val"],
            "no split 'val'; there are train, test",
        ),
        (lambda p: folder_splits(p / "nowhere", 8), "no folder"),
        (lambda p: folder_splits(p, 8), "no images under"),
        (
            lambda p: folder_splits(folders(p, ROWS[:4]), 8, progress=False),
            "the test split is empty",
        ),
        (
            lambda p: folder_splits(folders(p), 8, unreadable="skip", progress=False),
            "expected 'raise' or 'report'",
        ),
        (lambda p: parquet_splits(p / "nowhere.parquet", 8), "no parquet file"),
        (
            lambda p: parquet_splits(table(p, drop=("label", "split")), 8),
            "the columns label, split are missing; it has image, class_name",
        ),
        (
            lambda p: parquet_splits(table(p, ROWS[4:]), 8, progress=False),
            "the train split is empty",
        ),
        (
            lambda p: parquet_splits(table(p, [*ROWS[:5], ("test", 7, "kite")]), 8),
            "label 7 and class_name 'wren' are not one to one",
        ),
        (
            lambda p: parquet_splits(table(p, [*ROWS[:5], ("test", 11, "kite")]), 8),
            "not one to one",
        ),
        (
            lambda p: parquet_splits(table(p, [*ROWS[:5], ("holdout", 10, "kite")]), 8),
            r"split holds \['holdout'\]",
        ),
        (
            lambda p: parquet_splits(table(p, [*ROWS[:5], ("test", None, "kite")]), 8),
            "1 of 6 cells of label are empty",
        ),
        (
            lambda p: parquet_splits(folders(p) / "train" / "wren" / "0.png", 8),
            "no readable parquet file",
        ),
    ],
)
def test_what_is_missing_or_contradicts_itself_is_refused_in_words(tmp_path, make, words):
    with pytest.raises(ValueError, match=words):
        make(tmp_path)


def test_without_pyarrow_the_error_names_the_next_step(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install \"ctrace\[parquet\]\""):
        parquet_splits(tmp_path / "birds.parquet", 8)


def test_shares_hold_every_image_once_and_are_told_apart(tmp_path):
    whole = folder_splits(folders(tmp_path), 8, progress=False)["train"]
    shares = [whole.share(i, 2) for i in range(2)]
    assert sorted(name for share in shares for name in share.names) == sorted(whole.names)
    assert torch.equal(shares[1][0][0], whole[1][0]) and shares[1][0][1] == whole[1][1]
    assert len({whole.identity, *(share.identity for share in shares)}) == 3
    for number, of in ((2, 2), (-1, 2), (len(whole), len(whole) + 1)):
        with pytest.raises(ValueError, match="share: expected a number from 0"):
            whole.share(number, of)
