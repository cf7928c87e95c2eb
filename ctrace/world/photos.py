"""Colour photographs that need no network: they lie inside wheels that are installed anyway.

`ctrace/data/photos.csv` lists them, each with its source and its licence.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ctrace.arguments import Count, checked
from ctrace.check import check_pixels, one_of

TABLE = Path(__file__).parents[1] / "data" / "photos.csv"

PHOTOS = {row["name"]: row for row in csv.DictReader(TABLE.read_text("utf-8").splitlines())}
"""Name -> row of the table: ``package`` (the distribution to install), ``path`` (the file, from the
folder of the installed packages), ``licence``, ``source`` (who took it, where it was published) and
``description`` (what can be seen).
"""


def _photo_file(path: str) -> Path | None:
    # find_spec locates a package without importing it: loading a photo costs no import time.
    spec = importlib.util.find_spec(path.split("/")[0])
    return Path(spec.origin).parents[1] / path if spec and spec.origin else None


def photo_names() -> list[str]:
    """Names of the photographs that are on this machine, sorted.

    `PHOTOS` is the full table; a name is left out here when the package that carries it is not
    installed.

    >>> {"astronaut", "chelsea", "coffee", "hopper"} <= set(photo_names())
    True
    """
    files = {name: _photo_file(photo["path"]) for name, photo in PHOTOS.items()}
    return sorted(name for name, file in files.items() if file is not None and file.is_file())


@checked
def load_photo(name: str, size: Count | tuple[Count, Count] | None = 480) -> Image.Image:
    """One photograph from an installed wheel, as an RGB image.

    Args:
        name: one of `photo_names()`.
        size: pixels of the longer side, aspect kept; or ``(width, height)``, which crops around the
            centre to that aspect and then resizes; or None for the file as it is.

    Raises:
        ValueError: unknown name (close names are listed) or a size below one pixel.
        ModuleNotFoundError: the package that carries the photograph is not installed.
        FileNotFoundError: the package is installed without its data file.

    >>> load_photo("coffee", size=300).size
    (300, 200)
    """
    photo = PHOTOS[one_of("photograph", name, PHOTOS)]
    file, package = _photo_file(photo["path"]), photo["package"]
    if file is None:
        raise ModuleNotFoundError(
            f"the photograph {name!r} lies inside {package}, which is not installed: pip install "
            f"{package}, or choose one of {photo_names()}."
        )
    if not file.is_file():
        raise FileNotFoundError(
            f"{package} is installed without its sample data {photo['path']}, as repackaged ones "
            "are. Install the wheel from the package index."
        )
    return _resize(rgb_image(file), size)


def _resize(image: Image.Image, size: int | tuple[int, int] | None) -> Image.Image:
    if size is None:
        return image
    if isinstance(size, int):
        scale = size / max(image.size)
        target = tuple(max(1, round(side * scale)) for side in image.size) if size > 0 else (0, 0)
    else:
        target = tuple(size)
    if len(target) != 2 or min(target) < 1:
        expected = "a positive number of pixels, (width, height) or None"
        raise ValueError(f"size: expected {expected}, received {size!r}.")
    return ImageOps.fit(image, target, method=Image.Resampling.LANCZOS)


def load_images_helper(pil_images_or_paths) -> list[Image.Image]:
    """RGB images, upright, from paths, PIL images or a mixture of both; one alone counts as a list
    of one.

    Raises:
        ValueError: empty list, or an entry that `rgb_image` refuses.
        FileNotFoundError: a path that does not exist.
    """
    return [rgb_image(entry) for entry in as_list(pil_images_or_paths)]


def as_list(images) -> list:
    """Images as a list; a path, a PIL image or an array with three axes is a list of one."""
    alone = isinstance(images, (str, Path, Image.Image)) or getattr(images, "ndim", None) == 3
    if not alone and not isinstance(images, Iterable):
        raise ValueError(f"image: expected images or paths, received {type(images).__name__}.")
    images = [images] if alone else list(images)
    if not images:
        raise ValueError("image: expected at least one image, none came. A pattern without files?")
    return images


def as_pixels(images) -> list[Tensor]:
    """Paths, PIL images and tensors, one or several, as tensors ``(3, height, width)`` in [0, 1]; a
    tensor keeps its gradient.
    """
    each = (x if isinstance(x, Tensor) else pil_to_tensor(rgb_image(x)) for x in as_list(images))
    return [check_pixels(x) for x in each]


def rgb_image(entry) -> Image.Image:
    """RGB image, 8 bits a channel, of a path or a PIL image, upright by its rotation tag.

    Grey levels of 16 bits are brought from 0..65535 to 0..255.

    Raises:
        ValueError: no image, a file that cannot be read, or pixels whose white nobody knows (32-bit
            integers, floats).
        FileNotFoundError: a path that does not exist.
    """
    if not isinstance(entry, (str, Path, Image.Image)):
        got = f"received {type(entry).__name__}. An array: PIL.Image.fromarray(array)"
        raise ValueError(f"image: expected a path or a PIL image, {got}.")
    if isinstance(entry, Image.Image):
        return _eight_bits(ImageOps.exif_transpose(entry)).convert("RGB")
    if not Path(entry).is_file():
        raise FileNotFoundError(
            f"image: no file at {str(entry)!r} (looked from {Path.cwd()}). Check the path; "
            "photographs by name come from load_photo."
        )
    try:
        with Image.open(entry) as image:
            return rgb_image(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"image: {str(entry)!r} is a file but not an image that Pillow can read ({error}). It "
            "may be cut off or carry the wrong extension."
        ) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    # convert("RGB") would clip these at 255 in silence.
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        low, high = image.getextrema()
        raise ValueError(
            f"image: mode {image.mode!r}, 32-bit pixels from {low:g} to {high:g} do not say what "
            "is white. Scale them to 0..255: PIL.Image.fromarray(array.astype('uint8'))."
        )
    return image
