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
from ctrace.world.datasets import aviary_splits
from ctrace.world.layouts import folder_splits, parquet_splits


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
    with pytest.raises(IndexError):
        splits["val"][3]


def test_a_table_and_folders_of_the_same_images_give_the_same_pixels(tmp_path):
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
        assert torch.equal(a[name][0][0], c[name][0][0])
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


def test_class_folders_that_are_the_same_number_keep_one_order(tmp_path):
    rows = [(split, 0, name) for split in ("train", "test") for name in ("1", "01", "10", "001")]
    assert folder_splits(folders(tmp_path, rows), 8, progress=False).classes == (
        "001",
        "01",
        "1",
        "10",
    )


def test_any_ending_and_any_depth_is_read_and_a_folder_that_is_no_split_is_refused(tmp_path):
    root = folders(tmp_path, ROWS)
    (root / "train" / "wren" / "young").mkdir()
    (root / "train" / "wren" / "young" / "a.jfif").write_bytes(png(7))
    (root / "train" / "wren" / ".DS_Store").write_bytes(b"no image")
    assert len(folder_splits(root, 8, progress=False)["train"]) == 4
    (root / "eval" / "wren").mkdir(parents=True)
    (root / "eval" / "wren" / "b.png").write_bytes(png(8))
    with pytest.raises(ValueError, match=r"split holds \['eval'\]; expected training"):
        folder_splits(root, 8, progress=False)


def test_sixteen_bit_images_keep_their_grey_and_images_without_a_known_white_are_refused(tmp_path):
    grey, unknown = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((10, 10), 9000, np.uint16)).save(grey, "PNG")
    Image.fromarray(np.full((10, 10), 0.5, np.float32)).save(unknown, "TIFF")
    images = [grey.getvalue()] + [png(i) for i in range(5)]
    image, _ = parquet_splits(table(tmp_path, images=images), 8, progress=False)["train"][0]
    torch.testing.assert_close(image, torch.full((3, 8, 8), round(9000 / 257) / 255))
    with pytest.raises(ValueError, match="row 0: .* do not say what is white"):
        parquet_splits(table(tmp_path, images=[unknown.getvalue(), *images[1:]]), 8, progress=False)


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
            "cannot identify image" in reason for _, reason in splits.unreadable
        )


def test_an_empty_image_cell_is_an_unreadable_image_not_a_crash(tmp_path):
    with pytest.raises(
        ValueError, match="1 of 6 images .* row 3: expected encoded image bytes, received NoneType"
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
        (lambda p: aviary_splits(train=0, test=2), "train: expected a whole number at least 1"),
        (
            lambda p: aviary_splits(train=2, test=2, size=32)["val"],
            "split: expected one of train, test, received 'val'",
        ),
        (lambda p: folder_splits(p / "nowhere", 8), "nowhere: the train split is empty"),
        (lambda p: folder_splits(p, 8), "no images under train/<class>/"),
        (
            lambda p: folder_splits(folders(p, ROWS[:4]), 8, progress=False),
            "the test split is empty",
        ),
        (
            lambda p: folder_splits(folders(p), 8, unreadable="skip", progress=False),
            "unreadable: expected one of raise, report",
        ),
        (
            lambda p: parquet_splits(p / "nowhere.parquet", 8),
            "nowhere.parquet: expected a parquet table",
        ),
        (
            lambda p: parquet_splits(table(p, drop=("label", "split")), 8),
            "expected a parquet table with image, label, class_name, split: .*'label'|label",
        ),
        (
            lambda p: parquet_splits(table(p, ROWS[4:]), 8, progress=False),
            "the train split is empty",
        ),
        (
            lambda p: parquet_splits(table(p, [*ROWS[:5], ("test", 7, "kite")]), 8),
            "not one to one: 7: kite; 7: wren|not one to one: 7: wren; 7: kite",
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
            "empty cells in label",
        ),
        (
            lambda p: parquet_splits(folders(p) / "train" / "wren" / "0.png", 8),
            "0.png: expected a parquet table",
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
