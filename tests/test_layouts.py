"""Data sets as they lie on disk give the same images from every layout, and the commands of the
page on them run as they stand there.
"""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pyarrow import parquet

from ctrace import carrot, look
from ctrace.carrot.__main__ import main as carrot_main
from ctrace.look.__main__ import class_numbers
from ctrace.look.__main__ import main as look_main
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.world.layouts import lfw_pairs, read_splits
from ctrace.world.models import load_model

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
# split, class number, file
ROWS = [
    (("train", "test")[i % 3 == 2], i % 2, f"{CLASSES[i % 2]}/bird_{i:04d}.png") for i in range(12)
]


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (24, 24, 3), np.uint8))


def save(root: Path, files) -> None:
    for i, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(root / file, "PNG")


def folder(root: Path, held_out="test") -> Path:
    names = {"train": "train", "test": held_out}
    save(root, [f"{names[split]}/{file}" for split, _, file in ROWS])
    return root


def cub(root: Path) -> Path:
    save(root / "images", [file for _, _, file in ROWS])
    lines = {
        "images": [f"{i} {file}" for i, (_, _, file) in enumerate(ROWS, 1)],
        "image_class_labels": [f"{i} {k + 1}" for i, (_, k, _) in enumerate(ROWS, 1)],
        "train_test_split": [f"{i} {int(s == 'train')}" for i, (s, _, _) in enumerate(ROWS, 1)],
        "classes": [f"{k} {name}" for k, name in enumerate(CLASSES, 1)],
    }
    for name, rows in lines.items():
        (root / f"{name}.txt").write_text("\n".join(rows) + "\n")
    return root


def table(path: Path, label: bool = True) -> Path:
    save(path.parent / "photos", [file for _, _, file in ROWS])
    columns = {
        "image": [f"photos/{file}" for _, _, file in ROWS],
        "class_name": [CLASSES[k] for _, k, _ in ROWS],
        "split": [split for split, _, _ in ROWS],
    } | ({"label": [k for _, k, _ in ROWS]} if label else {})
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(columns), path)
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *zip(*columns.values())])
    return path


def faces(root: Path, folds=2, each=2) -> Path:
    """A folder as LFW's, with its list of pairs."""
    save(root, [f"{name}/{name}_{k:04d}.jpg" for name in ("Ann_A", "Bob_B") for k in range(1, 5)])
    same = [f"{('Ann_A', 'Bob_B')[i % 2]}\t{1 + i % 3}\t{2 + i % 3}" for i in range(each)]
    other = [f"Ann_A\t{1 + i}\tBob_B\t{2 + i}" for i in range(each)]
    counts = f"{folds}\t{each}" if folds > 1 else f"{each}"
    (root / "pairs.txt").write_text("\n".join([counts, *((same + other) * folds)]) + "\n")
    return root


def everything(splits) -> dict:
    """Split and class name -> images, in an order that no layout decides."""
    found = {}
    for name, split in splits.splits.items():
        for image, label in split:
            found.setdefault((name, splits.classes[label]), []).append(image)
    return {key: torch.stack(sorted(v, key=lambda x: float(x.sum()))) for key, v in found.items()}


def test_every_layout_of_the_same_images_gives_the_same_pixels_splits_and_classes(tmp_path):
    (tmp_path / "t").mkdir()
    paths = [folder(tmp_path / "f"), cub(tmp_path / "c")]
    for name, label in (("a.csv", True), ("b.csv", False), ("a.parquet", True)):
        paths.append(table(tmp_path / "t" / name, label))
    want, *others = (read_splits(path, 16, progress=False) for path in paths)
    assert want.classes == CLASSES and len(want["train"]) == 8 and len(want["test"]) == 4
    for got in others:
        assert got.classes == CLASSES
        a, b = everything(want), everything(got)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_split_that_is_not_asked_for_may_be_missing(tmp_path):
    root = folder(tmp_path, held_out="val")
    with pytest.raises(ValueError, match="the test split is empty: there is train, val"):
        read_splits(root, 8, progress=False)
    splits = read_splits(root, 8, progress=False, needs=("train", "val"))
    assert len(splits["val"]) == 4 and "test" not in splits.splits


def broken(path: Path, name: str, line: int, text: str | None) -> Path:
    """A layout with one line changed, or dropped."""
    lines = (path / name).read_text().splitlines()
    lines[line - 1 : line] = [] if text is None else [text]
    (path / name).write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    "name, line, text, words",
    [
        ("images.txt", 3, "three a.png", r"images.txt, line 3: .* received 'three a.png'"),
        ("images.txt", 3, "3", r"images.txt, line 3: expected a number and a name, received '3'"),
        ("images.txt", 4, "3 a.png", r"images.txt, line 4: 3 stands in line 3 already"),
        ("images.txt", 2, None, r"images.txt and .*_labels.txt do not list .* images: 2\."),
        ("train_test_split.txt", 12, None, r"train_test_split.txt do not list .*: 12\."),
        ("train_test_split.txt", 5, "5 2", r"split.txt, line 5: .* one of 0; 1, received '2'"),
        ("image_class_labels.txt", 7, "7 9", r"labels.txt, line 7: expected one of 1; 2, .* '9'"),
        ("images.txt", 1, "1 gone.png", r"1 of 12 images cannot be read: gone.png"),
        ("classes.txt", 1, "", r"image_class_labels.txt, line 1: expected one of 2, received '1'"),
    ],
)
def test_a_wrong_line_of_cub_is_named(tmp_path, name, line, text, words):
    with pytest.raises(ValueError, match=words):
        read_splits(broken(cub(tmp_path), name, line, text), 8, progress=False)


def test_a_missing_table_of_cub_is_named(tmp_path):
    (cub(tmp_path) / "classes.txt").unlink()
    with pytest.raises(ValueError, match="classes.txt: expected a text file: .*No such file"):
        read_splits(tmp_path, 8, progress=False)


@pytest.mark.parametrize(
    "line, text, words",
    [
        (1, "image,class,split,label", "no column class_name; line 1 names image, class, split"),
        (3, "photos/a.png,wren,train,0,1", "line 3: expected 4 cells"),
        (3, "photos/a.png,wren", "line 3: expected 4 cells"),
        (4, "photos/a.png,,train,0", "empty cells in class_name: line 4, photos/a.png"),
        (5, "gone.png,001.Black_footed_Albatross,test,0", "line 5, gone.png: .*No such file"),
        (6, "a.png,002.Laysan_Albatross,dev,1", r"split holds \['dev'\].* line 6, a.png"),
        (7, "a.png,002.Laysan_Albatross,test,5", "not one to one: .*; first in .*line 7, a.png"),
        (2, 'photos/"a,001.Black_footed_Albatross,train,0', 'line 2, photos/"a: .*No such file'),
        (2, '"photos/a.png,wren,train,0', "expected a csv table in UTF-8: unexpected end of data"),
    ],
)
def test_a_wrong_line_of_a_csv_table_is_named(tmp_path, line, text, words):
    table(tmp_path / "birds.csv")
    with pytest.raises(ValueError, match=words):
        read_splits(broken(tmp_path, "birds.csv", line, text) / "birds.csv", 8, progress=False)


def test_a_csv_table_of_another_encoding_or_place_is_refused(tmp_path):
    (tmp_path / "birds.csv").write_bytes("image,class_name,split\nä,ö,train".encode("latin-1"))
    for name in ("birds.csv", "gone.csv"):
        with pytest.raises(ValueError, match="expected a csv table in UTF-8"):
            read_splits(tmp_path / name, 8)


# --- pairs


def test_pairs_are_those_of_the_list_in_its_order(tmp_path):
    pairs = lfw_pairs(faces(tmp_path) / "pairs.txt", tmp_path)
    named = [pairs.files[i].stem for i in torch.stack([pairs.first, pairs.second], 1).flatten()]
    assert named[:4] == ["Ann_A_0001", "Ann_A_0002", "Bob_B_0002", "Bob_B_0003"]
    assert named[4:8] == ["Ann_A_0001", "Bob_B_0002", "Ann_A_0002", "Bob_B_0003"]
    assert pairs.same.tolist() == [True, True, False, False] * 2
    assert pairs.fold.tolist() == [0] * 4 + [1] * 4 and len(set(pairs.files)) == len(pairs.files)
    assert lfw_pairs(faces(tmp_path, folds=1) / "pairs.txt", tmp_path).fold.tolist() == [0] * 4


@pytest.mark.parametrize(
    "line, text, words",
    [
        (1, "two 2", "line 1: expected folds and pairs, '10 300', received 'two 2'"),
        (1, "3 2", "expected 3 x 2 x 2 = 12 pairs after line 1, received 8. Cut short"),
        (3, "Ann_A", "line 3: expected 'name 1 4' or 'name 1 other 2', received .'Ann_A'"),
        (3, "Ann_A 1 Bob_B", "line 3: expected 'name 1 4'"),
        (4, "Ann_A 1 Bob_B 9", "line 4: there is no .*Bob_B_0009.jpg"),
    ],
)
def test_a_wrong_line_of_pairs_is_named(tmp_path, line, text, words):
    with pytest.raises(ValueError, match=words):
        lfw_pairs(broken(faces(tmp_path), "pairs.txt", line, text) / "pairs.txt", tmp_path)


# --- the commands


def commands() -> list[str]:
    """Every command of the page, its lines joined."""
    text = (ROOT / "book" / "your_data.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.S))
    lines = blocks.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.startswith("python -m ctrace")]


@pytest.fixture
def data_of_the_page(tmp_path, monkeypatch):
    folder(tmp_path / "imagenet", held_out="val"), cub(tmp_path / "CUB_200_2011")
    faces(tmp_path / "lfw"), table(tmp_path / "birds.csv"), table(tmp_path / "birds.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_page_run_as_they_stand_there(command, data_of_the_page, capsys):
    """With a bundled network in place of the one that has to be fetched."""
    _, _, package, *words = shlex.split(command)
    main, bundled = {
        "ctrace.carrot": (carrot_main, "aviary-vit-0"),
        "ctrace.look": (look_main, "aviary-resnet-0"),
    }[package]
    words[words.index("--model") + 1] = bundled
    main(words)
    said = capsys.readouterr().out
    assert f"{bundled}: bundled weights" in said
    if package == "ctrace.carrot":
        assert "8 train" in said and "accuracy on the" in said
    if "--out" in words:
        assert (data_of_the_page / words[words.index("--out") + 1]).stat().st_size > 100


def test_the_page_has_a_command_for_every_layout():
    text = " ".join(commands())
    for word in ("imagenet/", "CUB_200_2011/", "birds.csv", "birds.parquet", "lfw/pairs.txt"):
        assert word in text


def test_statistics_of_a_folder_are_those_of_its_images_under_the_models_class_numbers(tmp_path):
    for i in range(6):
        save(tmp_path / f"in/train/{('iris', 'aster')[i % 2]}", [f"{i}_{k}.png" for k in range(2)])
    out, model = tmp_path / "s.safetensors", load_model("aviary-resnet-0", device="cpu")
    argv = f"statistics --data {tmp_path}/in --model aviary-resnet-0 --out {out} --device cpu"
    look_main(argv.split())
    split = read_splits(tmp_path / "in", 96, progress=False, needs=("train",))["train"]
    species = [model.info.classes.index(name) for name in ("aster", "iris")]
    images, labels = (torch.stack(list(map(torch.as_tensor, v))) for v in zip(*split))
    batch = model.info.preprocess(images), torch.tensor(species)[labels]
    want = ChannelStatistics.collect(model, [batch], progress=False)
    found = ChannelStatistics.load(out)
    assert torch.equal(found.count, want.count) and want.count[species].tolist() == [6, 6]
    for layer in want.layers:
        torch.testing.assert_close(found.of_layer(layer).mean, want.of_layer(layer).mean)


def test_classes_get_the_numbers_of_the_model_where_it_has_their_names(monkeypatch):
    birds = load_model("aviary-resnet-0", device="cpu").info
    numbers, words = class_numbers(birds, ("iris", "aster"))
    assert [birds.classes[i] for i in numbers] == ["iris", "aster"] and words == "as in the model"
    imagenet = load_model("squeezenet", device="cpu").info
    numbers, _ = class_numbers(imagenet, ("n02123045", "n01440764"))
    assert [imagenet.classes[i].split(",")[0] for i in numbers] == ["tabby", "tench"]
    numbers, words = class_numbers(imagenet, CLASSES)
    assert numbers.tolist() == [0, 1] and words == f"as in the data, 0 is {CLASSES[0]}"
    with pytest.raises(ValueError, match="1 of 2 classes are not the model's: n0000. Rename"):
        class_numbers(imagenet, ("n02123045", "n0000"))


def test_cosines_of_pairs_are_those_of_the_embeddings(data_of_the_page, capsys):
    argv = "pairs --pairs lfw/pairs.txt --images lfw --model aviary-embedding --device cpu"
    look_main([*argv.split(), "--embedding", "output", "--out", "cosines.csv"])
    rows = list(csv.DictReader(Path("cosines.csv").read_text().splitlines()))
    model, row = load_model("aviary-embedding", device="cpu"), rows[3]
    a, b = (
        Image.open(Path("lfw", row[key].rpartition("_")[0], row[key])).resize((96, 96), 3)
        for key in ("first", "second")
    )
    x = torch.stack([torch.from_numpy(np.array(v)).permute(2, 0, 1) for v in (a, b)])
    with torch.no_grad():
        left, right = model(model.info.preprocess(x))
    assert abs(float(row["cosine"]) - float(F.cosine_similarity(left, right, dim=0))) < 1e-5
    assert [row["same"] for row in rows] == ["True", "True", "False", "False"] * 2
    said = capsys.readouterr().out
    assert "8 pairs of" in said and "equal error rate" in said and "accuracy over 2 folds" in said


def test_pairs_refuse_a_network_that_says_no_pooling_and_a_broken_image(data_of_the_page):
    argv = ["pairs", "--pairs", "lfw/pairs.txt", "--images", "lfw", "--model"]
    with pytest.raises(ValueError, match="squeezenet has no forward_head. Use --embedding output"):
        look_main([*argv, "squeezenet"])
    (data_of_the_page / "lfw" / "Ann_A" / "Ann_A_0001.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="Ann_A_0001.jpg cannot be read"):
        look_main([*argv, "aviary-resnet-0"])


@pytest.mark.parametrize("package", [carrot, look])
def test_help_shows_a_whole_command(package, capsys):
    main = {carrot: carrot_main, look: look_main}[package]
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert f"python -m {package.__name__} " in capsys.readouterr().out


def test_classes_that_are_numbers_come_in_the_order_of_numbers(tmp_path):
    names = ("-10", "-2", "0.5", "1", "2", "10", "cat")
    lines = ["image,class_name,split"]
    for place, name in enumerate(reversed(names)):
        for split in ("train", "test"):
            file = tmp_path / f"{place}{split}.png"
            Image.fromarray(np.full((8, 8, 3), place, np.uint8)).save(file)
            lines.append(f"{file.name},{name},{split}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    assert read_splits(tmp_path / "table.csv", 8).classes == names
