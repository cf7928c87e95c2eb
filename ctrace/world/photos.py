"""Colour photographs that need no network: they lie inside wheels that are installed anyway."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError


@dataclass(frozen=True)
class Photo:
    """Where a photograph comes from and on which terms.

    Attributes:
        name: the name `load_photo` takes.
        source: who took it and where it was published.
        licence: the terms, as the wheel that carries it states them.
        description: what can be seen.
        package: the distribution to install, e.g. ``"scikit-image"``.
        path: the file, relative to the folder that holds the imported package.
    """

    name: str
    source: str
    licence: str
    description: str
    package: str
    path: str


_SKIMAGE, _MATPLOTLIB, _SKLEARN = "scikit-image", "matplotlib", "scikit-learn"
_PHOTOS = (
    Photo(
        "astronaut",
        "NASA Great Images",
        "public domain",
        "Eileen Collins in an orange suit, flag and shuttle model behind her",
        _SKIMAGE,
        "skimage/data/astronaut.png",
    ),
    Photo(
        "chelsea",
        "Stefan van der Walt",
        "CC0",
        "Chelsea, a tabby cat, close up",
        _SKIMAGE,
        "skimage/data/chelsea.png",
    ),
    Photo(
        "china",
        "danielbuechele, Flickr 6061409035",
        "CC BY 2.0",
        "a red and green tower above trees, a lake and a pale sky",
        _SKLEARN,
        "sklearn/datasets/images/china.jpg",
    ),
    Photo(
        "coffee",
        "Rachel Michetti, courtesy of Pikolo Espresso Bar",
        "CC0",
        "a white cup on a red saucer on a wooden table",
        _SKIMAGE,
        "skimage/data/coffee.png",
    ),
    Photo(
        "flower",
        "vultilion, Flickr 6056698931",
        "CC BY 2.0",
        "an orange dahlia before blurred dark leaves",
        _SKLEARN,
        "sklearn/datasets/images/flower.jpg",
    ),
    Photo(
        "hopper",
        "official portrait of Rear Admiral Grace Hopper, United States Navy",
        "public domain",
        "Grace Hopper in dark uniform and cap, flag and blue backdrop",
        _MATPLOTLIB,
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    ),
    Photo(
        "hubble",
        "NASA, HubbleSite release 2012-37",
        "public domain",
        "the Hubble eXtreme Deep Field: galaxies on black",
        _SKIMAGE,
        "skimage/data/hubble_deep_field.jpg",
    ),
    Photo(
        "motorcycle",
        "Middlebury stereo benchmark 2014, left view (Scharstein et al., GCPR 2014)",
        "no terms stated in the wheel; cite the benchmark",
        "a red motorcycle in a garage",
        _SKIMAGE,
        "skimage/data/motorcycle_left.png",
    ),
    Photo(
        "motorcycle_right",
        "Middlebury stereo benchmark 2014, right view (Scharstein et al., GCPR 2014)",
        "no terms stated in the wheel; cite the benchmark",
        "the same motorcycle, seen 193 mm further right",
        _SKIMAGE,
        "skimage/data/motorcycle_right.png",
    ),
    Photo(
        "retina",
        "Mikael Häggström, Wikimedia Commons",
        "CC0",
        "the fundus of a left eye: vessels, optic disc, macula",
        _SKIMAGE,
        "skimage/data/retina.jpg",
    ),
    Photo(
        "rocket",
        "SpaceX, launch of DSCOVR on Falcon 9",
        "public domain",
        "a white rocket and lattice towers at dusk",
        _SKIMAGE,
        "skimage/data/rocket.jpg",
    ),
    Photo(
        "tissue",
        "Center for Microscopy and Molecular Imaging",
        "no known copyright restrictions",
        "stained colonic glands: brown glands in bluish tissue",
        _SKIMAGE,
        "skimage/data/ihc.png",
    ),
)
PHOTOS: dict[str, Photo] = {photo.name: photo for photo in _PHOTOS}


def _photo_file(photo: Photo) -> Path | None:
    # find_spec locates a top-level package without importing it: loading a photo costs no import
    # time.
    spec = importlib.util.find_spec(photo.path.split("/")[0])
    return (
        None if spec is None or spec.origin is None else Path(spec.origin).parents[1] / photo.path
    )


def photo_names() -> list[str]:
    """Names of the photographs that are on this machine, sorted.

    `PHOTOS` is the full table; a name is left out here when the package that carries it is not
    installed.

    >>> {"astronaut", "chelsea", "coffee", "hopper"} <= set(photo_names())
    True
    """
    files = {name: _photo_file(photo) for name, photo in PHOTOS.items()}
    return sorted(name for name, file in files.items() if file is not None and file.is_file())


def load_photo(name: str, size: int | tuple[int, int] | None = 480) -> Image.Image:
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
    if name not in PHOTOS:
        raise ValueError(f"no photograph is named {name!r}. {close_names(name, PHOTOS)}")
    file = _photo_file(PHOTOS[name])
    if file is None:
        package = PHOTOS[name].package
        raise ModuleNotFoundError(
            f"the photograph {name!r} lies inside {package}, which is not installed. "
            f"Install it (pip install {package}) or choose one of {photo_names()}."
        )
    if not file.is_file():
        raise FileNotFoundError(
            f"expected the photograph {name!r} at {PHOTOS[name].path} inside {PHOTOS[name].package}, and it is not "
            "there. A repackaged or trimmed installation leaves sample data out; install the package from its wheel."
        )
    with Image.open(file) as image:
        return _resize(image.convert("RGB"), size)


def _resize(image: Image.Image, size: int | tuple[int, int] | None) -> Image.Image:
    if size is None:
        return image
    if isinstance(size, int):
        scale = size / max(image.size)
        target = tuple(max(1, round(side * scale)) for side in image.size) if size > 0 else (0, 0)
    else:
        target = tuple(size)
    if len(target) != 2 or min(target) < 1:
        raise ValueError(
            f"size must be a positive number of pixels, (width, height) or None; received {size!r}."
        )
    return ImageOps.fit(image, target, method=Image.Resampling.LANCZOS)


def close_names(name: str, known: Sequence[str] | Mapping) -> str:
    """The end of an error message about an unknown name: what was probably meant, or what there is."""
    close = difflib.get_close_matches(str(name), list(known), n=4, cutoff=0.5)
    close = close or [other for other in known if str(name).lower() in other.lower()][:4]
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    shown = list(known)[:24]
    return f"Known: {', '.join(map(repr, shown))}{', ...' if len(known) > len(shown) else ''}."


def load_images_helper(pil_images_or_paths) -> list[Image.Image]:
    """RGB images, upright, from paths, PIL images or a mixture of both; one alone counts as a list
    of one.

    Raises:
        ValueError: empty list, or an entry that is neither a path nor a PIL image, or a file that
            is no image.
        FileNotFoundError: a path that does not exist.
    """
    if isinstance(pil_images_or_paths, (str, Path, Image.Image)):
        pil_images_or_paths = [pil_images_or_paths]
    images = [as_rgb(entry) for entry in pil_images_or_paths]
    if not images:
        raise ValueError(
            "expected at least one image, received an empty list. "
            "Check the pattern that listed the files."
        )
    return images


def as_rgb(entry) -> Image.Image:
    """RGB image of a path or a PIL image, turned upright by its rotation tag."""
    if isinstance(entry, Image.Image):
        return ImageOps.exif_transpose(entry).convert("RGB")
    if not isinstance(entry, (str, Path)):
        raise ValueError(
            f"expected a path or a PIL image, received {type(entry).__name__}. "
            "Turn an array into an image with PIL.Image.fromarray."
        )
    if not Path(entry).is_file():
        raise FileNotFoundError(
            f"no image file at {str(entry)!r} (looked from {Path.cwd()}). "
            "Check the path; photographs by name come from load_photo."
        )
    try:
        with Image.open(entry) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{str(entry)!r} is a file but not an image that Pillow can read. "
            "It may be cut off or carry the wrong extension; open it once by hand."
        ) from error
