"""What the commands of the page on your own data cost: processor seconds to start and for each
thousand images, and memory.

    python benchmarks/your_data.py

Each command runs on two numbers of images, in a process of its own with one thread; the difference
is the cost of the images, what is left is the start. Processor seconds, not those of the clock, so
that a busy machine, whose load is printed, changes less. Weights are random: they cost what trained
ones do.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from ctrace.world.photos import load_photo, photo_names

FEW, MANY, PEOPLE = 32, 96, 4  # images


def write_images(folder: Path, files: list[str]) -> None:
    """JPEG files of 250 x 250 pixels, cut out of the sample photographs."""
    for i, name in enumerate(files):
        photo = load_photo(photo_names()[i % len(photo_names())], (400, 400))
        x, y = 7 * i % 150, 11 * i % 150
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photo.crop((x, y, x + 250, y + 250)).save(folder / name, "JPEG", quality=90)


def class_folder(root: Path, n: int) -> None:
    """n training images of four classes, and as few held-out ones as there can be."""
    write_images(root, [f"train/{i % PEOPLE}/{i}.jpg" for i in range(n)])
    write_images(root, [f"val/{k}/0.jpg" for k in range(PEOPLE)])


def faces(root: Path, n: int) -> None:
    """n images, each in one pair of one person and one of two."""
    each = n // PEOPLE
    write_images(root, [f"p{i % PEOPLE}/p{i % PEOPLE}_{i // PEOPLE:04d}.jpg" for i in range(n)])
    starts = [(k, i) for k in range(PEOPLE) for i in range(0, each - 1, 2)]
    same = [f"p{k} {i} {i + 1}" for k, i in starts]
    other = [f"p{k} {i} p{(k + 1) % PEOPLE} {i + 1}" for k, i in starts]
    (root / "pairs.txt").write_text("\n".join([str(len(same)), *same, *other]))


COMMANDS = {
    "CARROT, vit_small_patch16_224": (
        class_folder,
        "ctrace.carrot --data {data} --held-out val --model vit_small_patch16_224",
    ),
    "channel statistics, resnet50": (
        class_folder,
        "ctrace.look statistics --data {data} --model resnet50 --out {data}/out.safetensors",
    ),
    "pairs, resnet50": (
        faces,
        "ctrace.look pairs --pairs {data}/pairs.txt --images {data} --model resnet50",
    ),
}


def cost(make, command: str, n: int) -> tuple[float, float]:
    """Processor seconds, and the largest memory so far of any child in GiB."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), n)
        arguments = ["-m", *command.format(data=folder).split(), "--weights", "random"]
        one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = subprocess.run(
            [sys.executable, *arguments, "--device", "cpu"],
            env=os.environ | one,
            capture_output=True,
            text=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if process.returncode:
            raise RuntimeError(process.stderr)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, after.ru_maxrss / 2**20


def main() -> None:
    busy = f"{os.getloadavg()[0]:.0f} processes at work on {os.cpu_count()} processors"
    print(f"one thread; torch {torch.__version__}; JPEG files of 250 x 250 pixels; {busy}\n")
    print("| command | images | start, s | 1,000 images, s | largest memory so far, GiB |")
    print("|---|---|---|---|---|")
    for name, (make, command) in COMMANDS.items():
        (first, _), (second, memory) = (cost(make, command, n) for n in (FEW, MANY))
        each = (second - first) / (MANY - FEW)
        start = f"{first - FEW * each:.0f} | {1000 * each:.0f} | {memory:.1f}"
        print(f"| {name} | {FEW}, {MANY} | {start} |", flush=True)


if __name__ == "__main__":
    main()
