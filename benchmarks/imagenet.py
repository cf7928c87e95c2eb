"""Top-1 and top-5 accuracy of an ImageNet model on a folder of photographs, for its card.

    python -m benchmarks.imagenet FOLDER [--model squeezenet]

A photograph's class is the number that its file name starts with, as in 281_tabby.jpg. It is
measured twice: the whole photograph squeezed to the input, as `info.preprocess` does, and the
centre square of the input's size, cut from the photograph with its shorter side at 256 pixels.
"""

import argparse
import json
from pathlib import Path

import torch
from scipy.stats import binomtest
from torchvision.transforms import functional as TF

from ctrace.world.models import load_model
from ctrace.world.photos import as_pixels

TOP = 5


def squeezed(x, size):
    """The whole photograph ``(3, height, width)`` as it is; preprocess resizes it."""
    return x


def cropped(x, size):
    """The centre of the photograph with its shorter side at 256 pixels."""
    return TF.center_crop(TF.resize(x, 256, antialias=True).clamp(0, 1), size)


@torch.no_grad()
def hits(model, files, prepare) -> torch.Tensor:
    """Whether the class is the first, and among the first five ``(n, 2)``."""
    rows = []
    for file in files:
        x = prepare(as_pixels(file)[0], model.info.input_size[1:])
        best = model(model.info.preprocess(x))[0].topk(TOP).indices.tolist()
        label = int(file.name.partition("_")[0])
        rows.append([label == best[0], label in best])
    return torch.tensor(rows)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--model", default="squeezenet")
    asked = options.parse_args()
    files = sorted(f for f in asked.folder.iterdir() if f.name.partition("_")[0].isdigit())
    if not files:
        raise SystemExit(f"{asked.folder} holds no file like 281_tabby.jpg.")
    model = load_model(asked.model, device="cpu")
    for prepare in (squeezed, cropped):
        right = hits(model, files, prepare)
        for name, column in zip(("top-1", f"top-{TOP}"), right.T):
            k, n = int(column.sum()), len(column)
            low, high = binomtest(k, n).proportion_ci(method="wilson")
            record = {"accuracy": round(k / n, 3), "n": n, "95%": [round(low, 3), round(high, 3)]}
            print(f"{prepare.__name__}, {name}: {json.dumps(record)}")


if __name__ == "__main__":
    main()
