"""Photographs that need no network, and features with names.

Four things, in the order in which data flows:

1. `photo_names`, `load_photo`: colour photographs that lie inside installed wheels.
2. `GridFeatures`: a feature matrix that remembers its channel names and its grid.
3. `filter_bank`: colour, texture, contrast and position, each channel with a name a reader understands.
4. `prepare_grid_features`, `timm_features`: the tokens of a vision transformer on the same footing.

Nothing here opens a connection, except `timm_features(..., pretrained=True)`, which asks timm for weights.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# --- 1. Photographs ------------------------------------------------------------------------------


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
    Photo("astronaut", "NASA Great Images", "public domain",
          "Eileen Collins in an orange suit, flag and shuttle model behind her",
          _SKIMAGE, "skimage/data/astronaut.png"),
    Photo("chelsea", "Stefan van der Walt", "CC0",
          "Chelsea, a tabby cat, close up", _SKIMAGE, "skimage/data/chelsea.png"),
    Photo("china", "danielbuechele, Flickr 6061409035", "CC BY 2.0",
          "a red and green tower above trees, a lake and a pale sky",
          _SKLEARN, "sklearn/datasets/images/china.jpg"),
    Photo("coffee", "Rachel Michetti, courtesy of Pikolo Espresso Bar", "CC0",
          "a white cup on a red saucer on a wooden table", _SKIMAGE, "skimage/data/coffee.png"),
    Photo("flower", "vultilion, Flickr 6056698931", "CC BY 2.0",
          "an orange dahlia before blurred dark leaves", _SKLEARN, "sklearn/datasets/images/flower.jpg"),
    Photo("hopper", "official portrait of Rear Admiral Grace Hopper, United States Navy", "public domain",
          "Grace Hopper in dark uniform and cap, flag and blue backdrop",
          _MATPLOTLIB, "matplotlib/mpl-data/sample_data/grace_hopper.jpg"),
    Photo("hubble", "NASA, HubbleSite release 2012-37", "public domain",
          "the Hubble eXtreme Deep Field: galaxies on black", _SKIMAGE, "skimage/data/hubble_deep_field.jpg"),
    Photo("motorcycle", "Middlebury stereo benchmark 2014, left view (Scharstein et al., GCPR 2014)",
          "no terms stated in the wheel; cite the benchmark",
          "a red motorcycle in a garage", _SKIMAGE, "skimage/data/motorcycle_left.png"),
    Photo("motorcycle_right", "Middlebury stereo benchmark 2014, right view (Scharstein et al., GCPR 2014)",
          "no terms stated in the wheel; cite the benchmark",
          "the same motorcycle, seen 193 mm further right", _SKIMAGE, "skimage/data/motorcycle_right.png"),
    Photo("retina", "Mikael Häggström, Wikimedia Commons", "CC0",
          "the fundus of a left eye: vessels, optic disc, macula", _SKIMAGE, "skimage/data/retina.jpg"),
    Photo("rocket", "SpaceX, launch of DSCOVR on Falcon 9", "public domain",
          "a white rocket and lattice towers at dusk", _SKIMAGE, "skimage/data/rocket.jpg"),
    Photo("tissue", "Center for Microscopy and Molecular Imaging", "no known copyright restrictions",
          "stained colonic glands: brown glands in bluish tissue", _SKIMAGE, "skimage/data/ihc.png"),
)
PHOTOS: dict[str, Photo] = {photo.name: photo for photo in _PHOTOS}


def _photo_file(photo: Photo) -> Path | None:
    # find_spec locates a top-level package without importing it: loading a photo costs no import time.
    spec = importlib.util.find_spec(photo.path.split("/")[0])
    return None if spec is None or spec.origin is None else Path(spec.origin).parents[1] / photo.path


def photo_names() -> list[str]:
    """Names of the photographs that are on this machine, sorted.

    `PHOTOS` is the full table; a name is left out here when the package that carries it is not installed.

    >>> {"astronaut", "chelsea", "coffee", "hopper"} <= set(photo_names())
    True
    """
    files = {name: _photo_file(photo) for name, photo in PHOTOS.items()}
    return sorted(name for name, file in files.items() if file is not None and file.is_file())


def load_photo(name: str, size: int | tuple[int, int] | None = 480) -> Image.Image:
    """One photograph from an installed wheel, as an RGB image.

    Args:
        name: one of `photo_names()`.
        size: pixels of the longer side, aspect kept; or ``(width, height)``, which crops around the centre to
            that aspect and then resizes; or None for the file as it is.

    Raises:
        ValueError: unknown name (close names are listed) or a size below one pixel.
        ModuleNotFoundError: the package that carries the photograph is not installed.
        FileNotFoundError: the package is installed without its data file.

    >>> load_photo("coffee", size=300).size
    (300, 200)
    """
    if name not in PHOTOS:
        raise ValueError(f"no photograph is named {name!r}. {_close(name, PHOTOS)}")
    file = _photo_file(PHOTOS[name])
    if file is None:
        package = PHOTOS[name].package
        raise ModuleNotFoundError(
            f"the photograph {name!r} lies inside {package}, which is not installed. "
            f"Install it (pip install {package}) or choose one of {photo_names()}.")
    if not file.is_file():
        raise FileNotFoundError(
            f"expected the photograph {name!r} at {PHOTOS[name].path} inside {PHOTOS[name].package}, and it is not "
            "there. A repackaged or trimmed installation leaves sample data out; install the package from its wheel.")
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
        raise ValueError(f"size must be a positive number of pixels, (width, height) or None; received {size!r}.")
    return ImageOps.fit(image, target, method=Image.Resampling.LANCZOS)


def _close(name: str, known: Sequence[str] | Mapping) -> str:
    """The end of an error message about an unknown name: what was probably meant, or what there is."""
    close = difflib.get_close_matches(str(name), list(known), n=4, cutoff=0.5)
    close = close or [other for other in known if str(name).lower() in other.lower()][:4]
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    shown = list(known)[:24]
    return f"Known: {', '.join(map(repr, shown))}{', ...' if len(known) > len(shown) else ''}."


def load_images_helper(pil_images_or_paths) -> list[Image.Image]:
    """RGB images, upright, from paths, PIL images or a mixture of both; one alone counts as a list of one.

    Raises:
        ValueError: empty list, or an entry that is neither a path nor a PIL image, or a file that is no image.
        FileNotFoundError: a path that does not exist.
    """
    if isinstance(pil_images_or_paths, (str, Path, Image.Image)):
        pil_images_or_paths = [pil_images_or_paths]
    images = [_as_rgb(entry) for entry in pil_images_or_paths]
    if not images:
        raise ValueError("expected at least one image, received an empty list. "
                         "Check the pattern that listed the files.")
    return images


def _as_rgb(entry) -> Image.Image:
    if isinstance(entry, Image.Image):
        return ImageOps.exif_transpose(entry).convert("RGB")
    if not isinstance(entry, (str, Path)):
        raise ValueError(f"expected a path or a PIL image, received {type(entry).__name__}. "
                         "Turn an array into an image with PIL.Image.fromarray.")
    if not Path(entry).is_file():
        raise FileNotFoundError(f"no image file at {str(entry)!r} (looked from {Path.cwd()}). "
                                "Check the path; photographs by name come from load_photo.")
    try:
        with Image.open(entry) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{str(entry)!r} is a file but not an image that Pillow can read. "
                         "It may be cut off or carry the wrong extension; open it once by hand.") from error


# --- 2. Features that know their names -----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GridFeatures:
    """Feature vectors on a grid, with a name for each channel.

    Invariant: ``n = n_images * h * w`` and row ``(image * h + y) * w + x`` is the cell ``(y, x)`` of that image.

    Attributes:
        features: floating-point tensor ``(n, c)``.
        names: ``c`` different names.
        grid_hw: cells ``(h, w)`` of one image.
        n_images: how many images are stacked.

    Raises:
        ValueError: shapes that contradict each other, integer features, repeated names.

    >>> grid = GridFeatures(torch.arange(12.0).reshape(6, 2), ("a", "b"), (2, 3), 1)
    >>> grid.maps().shape
    torch.Size([1, 2, 3, 2])
    >>> grid.maps()[0, 1, 2].tolist()
    [10.0, 11.0]
    >>> grid.select(["b"]).features[:, 0].tolist()
    [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]
    """

    features: Tensor
    names: tuple[str, ...]
    grid_hw: tuple[int, int]
    n_images: int = 1

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "grid_hw", tuple(self.grid_hw))
        _check_matrix(self.features)
        _check_names(self.names, self.features.shape[1])
        _check_rows(self.features.shape[0], self.grid_hw, self.n_images)

    def maps(self) -> Tensor:
        """The features as images: a view ``(b, h, w, c)``."""
        return self.features.reshape(self.n_images, *self.grid_hw, len(self.names))

    def zscores(self) -> Tensor:
        """``(b, h, w, c)`` maps for the eye: each channel centred and divided by its standard deviation over all rows.

        A constant channel is zero everywhere. The result is detached.
        """
        x = self.features.detach()
        x = x - x.mean(0)
        std = x.pow(2).mean(0).sqrt()
        flat = std <= 1e-6 * self.features.detach().abs().amax(0)
        return (x / std.masked_fill(flat, 1) * ~flat).reshape(self.maps().shape)

    def requires_grad_(self, requires_grad: bool = True) -> GridFeatures:
        """Switches gradient tracking of `features` in place and returns the same object."""
        self.features.requires_grad_(requires_grad)
        return self

    def with_features(self, features: Tensor) -> GridFeatures:
        """The same names and grid around another ``(n, c)`` tensor."""
        return replace(self, features=features)

    def to(self, *args, **kwargs) -> GridFeatures:
        """The same features on another device or in another floating-point type, as `torch.Tensor.to`."""
        return self.with_features(self.features.to(*args, **kwargs))

    def index(self, name: str) -> int:
        """Column of the channel called `name`.

        Raises:
            ValueError: no such channel; close names are listed.
        """
        if name not in self.names:
            raise ValueError(f"no channel is named {name!r}. {_close(name, self.names)}")
        return self.names.index(name)

    def select(self, names: Sequence[str]) -> GridFeatures:
        """Only the channels in `names`, in that order; gradients flow back to all of `features`."""
        columns = [self.index(name) for name in ([names] if isinstance(names, str) else names)]
        return replace(self, features=self.features[:, columns], names=tuple(self.names[i] for i in columns))


def _check_matrix(features) -> None:
    if not isinstance(features, Tensor) or features.ndim != 2 or not features.is_floating_point():
        got = f"{features.dtype} of shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features)
        raise ValueError(f"expected floating-point features of shape (n, c), received {got}. "
                         "Maps (b, h, w, c) become rows with maps.flatten(0, 2).")


def _check_names(names: tuple, c: int) -> None:
    if len(names) != c:
        raise ValueError(f"expected {c} channel names, one per column of the features, received {len(names)}. "
                         "If columns were dropped by hand, use select, which keeps the names in step.")
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < c else []
    if repeated:
        raise ValueError(f"channel names must differ, and {repeated} occur more than once. "
                         "Number them, or a ranking by name cannot be read.")


def _check_rows(n: int, grid_hw: tuple, n_images: int) -> None:
    if len(grid_hw) != 2 or min(*grid_hw, n_images) < 1 or n != n_images * math.prod(grid_hw):
        raise ValueError(
            f"expected n = n_images * h * w rows, received n = {n} with n_images = {n_images} and grid_hw = {grid_hw}. "
            "Prefix tokens (class, register) left in the rows and a swapped (h, w) are the usual causes.")


# --- 3. A filter bank with named channels --------------------------------------------------------

CELL_PX = 4
"""Pixels of the working image per grid cell. "8 px" in a channel name counts these pixels: two cells."""

TEXTURE_PX = (4, 8, 16)
"""Wavelengths of the texture channels."""

CONTRAST_PX = (8, 24)
"""Window widths of the local contrast channels."""

WEIGHTS = {"colour": 1.0, "texture": 0.35, "contrast": 0.2, "position": 0.3}
"""Default weight of each family. The family's channels together have the variance weight squared."""

# Channels vary by less than this (units of L*, where 2.3 is a just noticeable difference) only through rounding.
_CONSTANT = 0.01
# Degrees along which the light varies, that is, across the lines; y points down.
_ORIENTATIONS = {"horizontal": 90.0, "rising": 45.0, "vertical": 0.0, "falling": 135.0}


def filter_bank(images, grid: int | tuple[int, int] = 72, weights: Mapping[str, float] | None = None) -> GridFeatures:
    """Colour, texture, contrast and position of photographs, one named channel each.

    Every photograph is brought to a working image of `CELL_PX` pixels per grid cell, so the channels do not depend on
    its resolution. Channels, in this order:

    - ``L* lightness``, ``a* green-red``, ``b* blue-yellow``: CIE L*a*b* (sRGB, D65), averaged over the cell and
      its rim.
    - ``horizontal texture 4 px`` and so on: amplitude of a Gabor quadrature pair on L*, for lines that lie
      horizontally, rise to the right, stand vertically, fall to the right; wavelengths `TEXTURE_PX`.
    - ``contrast 8 px`` and so on: standard deviation of L* in windows of `CONTRAST_PX`.
    - ``position x``, ``position y``: centre of the cell, rightwards and downwards.

    Each channel is standardised over all images jointly, then multiplied by its family's weight over the square root
    of the family's size: squared distances within a family of weight w average ``2 w**2``, however many scales it has.
    The default weights are meant for a Normalized Cut with rbf affinity and local scaling. A channel that is constant
    (a* and b* of a grey photograph) carries no distance: it keeps its place and its name and is exactly zero.

    Args:
        images: one or several of: PIL image, path, tensor ``(3, H, W)`` in [0, 1] or uint8. Gradients flow from the
            features to a tensor that asks for them.
        grid: cells along the longer side, the other side following the aspect ratio; or ``(h, w)``.
        weights: replaces entries of `WEIGHTS`; 0 removes a family, and its channels, altogether.

    Returns:
        `GridFeatures` with ``b * h * w`` rows, float32 (or the type of a floating-point tensor input).

    Raises:
        ValueError: no image, a tensor outside [0, 1], unknown weights, photographs of different aspect with an int
            `grid`, or photographs without any visible structure.

    >>> bank = filter_bank(load_photo("chelsea", 200), grid=24)
    >>> bank.grid_hw, bank.names[:3]
    ((16, 24), ('L* lightness', 'a* green-red', 'b* blue-yellow'))
    """
    weights = _check_weights(weights)
    tensors = [_as_tensor(image) for image in _as_list(images)]
    h, w = _grid_hw([tuple(t.shape[-2:]) for t in tensors], grid)
    lab = torch.cat([_working_lab(t, h, w) for t in tensors])  # (b, 3, height, width)
    families = {"colour": _colour, "texture": _texture, "contrast": _contrast, "position": _position}
    columns, names = [], []
    for family, weight in weights.items():
        if weight > 0:
            channels = families[family](lab)  # name -> (b, h, w)
            values = _standardise(torch.stack(list(channels.values()), -1).flatten(0, 2))  # (n, channels of the family)
            columns.append(values * (weight / math.sqrt(len(channels))))
            names += channels
    features = torch.cat(columns, 1)
    _check_structure(features, names)
    return GridFeatures(features, tuple(names), (h, w), len(tensors))


def _check_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    unknown = set(weights or {}) - set(WEIGHTS)
    if unknown:
        raise ValueError(f"unknown channel families {sorted(unknown)}; the families are {list(WEIGHTS)}.")
    merged = {**WEIGHTS, **(weights or {})}
    if not all(0 <= weight < math.inf for weight in merged.values()) or not any(merged.values()):
        raise ValueError(f"weights must be finite, not negative and not all zero; received {merged}. "
                         "A weight of 0 removes a family.")
    return merged


def _check_structure(features: Tensor, names: list[str]) -> None:
    visible = [i for i, name in enumerate(names) if not name.startswith("position")]
    if visible and not bool((features[:, visible] != 0).any()):
        raise ValueError("every colour, texture and contrast channel is constant: the photographs are one flat colour. "
                         "A segmentation would show position alone; check that the right images were loaded.")


def _as_list(images) -> list:
    images = [images] if isinstance(images, (str, Path, Image.Image)) else images
    if isinstance(images, Tensor):
        images = [images] if images.ndim == 3 else list(images)
    if not len(images):
        raise ValueError("expected at least one image, received none.")
    return list(images)


def _as_tensor(image) -> Tensor:
    """One image as sRGB values ``(3, H, W)`` in [0, 1]."""
    if not isinstance(image, Tensor):
        image = _as_rgb(image)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        image = pixels.reshape(image.height, image.width, 3).permute(2, 0, 1)
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected an image tensor of shape (3, H, W), received {tuple(image.shape)}. "
                         "Channels come first: permute(2, 0, 1).")
    if image.dtype == torch.uint8:
        return image / 255
    # Written so that NaN fails too.
    if not image.is_floating_point() or not bool(((image >= 0) & (image <= 1)).all()):
        raise ValueError(f"expected uint8 or floating-point values in [0, 1], received {image.dtype} from "
                         f"{image.min()} to {image.max()}. Was a model's mean and standard deviation applied? "
                         "Pass the pixels before that.")
    return image


def _grid_hw(sizes: list[tuple[int, int]], grid: int | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(grid, int):
        found = {tuple(grid)}
    else:
        found = {tuple(max(1, round(side * grid / max(size))) for side in size) for size in sizes}
    if len(found) > 1:
        raise ValueError(f"photographs of different aspect get different grids at grid={grid}: {sorted(found)}. "
                         "Pass grid=(h, w), or crop them alike with load_photo(name, size=(width, height)).")
    (hw,) = found
    if len(hw) != 2 or min(hw) < 2:
        raise ValueError(f"expected a grid of at least 2 x 2 cells, received grid={grid!r}, which gives {hw}.")
    return hw


def _working_lab(image: Tensor, h: int, w: int) -> Tensor:
    """The working image, ``(1, 3, h * CELL_PX, w * CELL_PX)``, in L*a*b*."""
    size = (h * CELL_PX, w * CELL_PX)
    image = F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)
    return rgb_to_lab(image)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """CIE L*a*b* (D65, 2 degrees) of sRGB values in [0, 1]; channels in dimension -3, differentiable.

    L* runs from 0 to 100; a* is negative for green, positive for red; b* is negative for blue, positive for yellow.

    >>> rgb_to_lab(torch.tensor([1.0, 1.0, 1.0]).reshape(3, 1, 1)).flatten().round().abs().tolist()
    [100.0, 0.0, 0.0]
    """
    to_xyz = rgb.new_tensor([[0.412453, 0.357580, 0.180423],
                             [0.212671, 0.715160, 0.072169],
                             [0.019334, 0.119193, 0.950227]])
    to_xyz = to_xyz / to_xyz.sum(1, keepdim=True)  # so that white is (1, 1, 1) exactly and grey has no colour
    to_lab = rgb.new_tensor([[0, 116, 0], [500, -500, 0], [0, 200, -200]])
    # The clamps keep the branch that `where` does not take finite, in the derivative as well.
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = torch.einsum("ij,...jhw->...ihw", to_xyz, linear)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.einsum("ij,...jhw->...ihw", to_lab, f) - rgb.new_tensor([16, 0, 0]).reshape(3, 1, 1)


def _colour(lab: Tensor) -> dict[str, Tensor]:
    names = ("L* lightness", "a* green-red", "b* blue-yellow")
    # Blurred over about one cell on each side: fur and stained tissue otherwise fall apart into speckles.
    return dict(zip(names, F.avg_pool2d(_blur(lab, 0.75 * CELL_PX), CELL_PX).unbind(1)))


def _texture(lab: Tensor) -> dict[str, Tensor]:
    channels = {}
    for px in TEXTURE_PX:
        kernels = torch.stack([part for angle in _ORIENTATIONS.values() for part in _gabor(px, angle)]).to(lab)
        responses = _filter(lab[:, :1], kernels[:, None])  # (b, 2 * orientations, height, width)
        energy = responses.pow(2).unflatten(1, (-1, 2)).sum(2)  # the pair's sum does not depend on the phase
        energy = F.avg_pool2d(_blur(energy, px / 2), CELL_PX)
        names = (f"{orientation} texture {px} px" for orientation in _ORIENTATIONS)
        channels.update(zip(names, _amplitude(energy).unbind(1)))
    return channels


def _contrast(lab: Tensor) -> dict[str, Tensor]:
    light = lab[:, :1]
    channels = {}
    for px in CONTRAST_PX:
        variance = _blur((light - _blur(light, px / 4)) ** 2, px / 4)  # a Gaussian of width px / 4 spans px pixels
        channels[f"contrast {px} px"] = _amplitude(F.avg_pool2d(variance, CELL_PX))[:, 0]
    return channels


def _position(lab: Tensor) -> dict[str, Tensor]:
    shape = (len(lab), lab.shape[2] // CELL_PX, lab.shape[3] // CELL_PX)  # (b, h, w)
    y, x = torch.meshgrid(torch.arange(shape[1]) + 0.5, torch.arange(shape[2]) + 0.5, indexing="ij")
    return {"position x": x.to(lab).expand(shape), "position y": y.to(lab).expand(shape)}


def _standardise(values: Tensor) -> Tensor:
    """Columns of ``(n, c)`` to mean 0 and standard deviation 1; constant columns to 0."""
    centred = values - values.mean(0)
    variance = centred.pow(2).mean(0)
    flat = variance < _CONSTANT**2
    return centred / variance.masked_fill(flat, 1).sqrt() * ~flat  # filled before the root: its slope at 0 is infinite


def _amplitude(energy: Tensor) -> Tensor:
    return (energy + 1e-6).sqrt()  # the square root has no derivative at 0; 0.001 of an L* unit is invisible


def _gabor(px: float, angle: float) -> tuple[Tensor, Tensor]:
    """Even and odd Gabor kernels, ``(size, size)``; waves of `px` pixels travel along `angle` degrees (y down)."""
    sigma = 0.4 * px
    r = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1.0)
    along = r[None, :] * math.cos(math.radians(angle)) + r[:, None] * math.sin(math.radians(angle))
    envelope = torch.exp(-(r[None, :] ** 2 + r[:, None] ** 2) / (2 * sigma**2))
    envelope = envelope / envelope.sum()
    even = torch.cos(2 * math.pi * along / px)
    even = (even - (even * envelope).sum()) * envelope  # zero mean: a flat patch must give nothing
    return even, torch.sin(2 * math.pi * along / px) * envelope


def _blur(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of ``(b, channels, height, width)``, `sigma` in pixels, one axis after the other."""
    r = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1.0)
    g = torch.exp(-(r**2) / (2 * sigma**2)).to(maps)
    flat = maps.flatten(0, 1)[:, None]
    for kernel in (g[None, :], g[:, None]):
        flat = _filter(flat, (kernel / g.sum())[None, None])
    return flat.reshape(maps.shape)


def _filter(maps: Tensor, kernels: Tensor) -> Tensor:
    # Repeated border pixels: zeros would draw a frame of texture around every photograph.
    pad_y, pad_x = kernels.shape[-2] // 2, kernels.shape[-1] // 2
    return F.conv2d(F.pad(maps, (pad_x, pad_x, pad_y, pad_y), mode="replicate"), kernels)


# --- 4. Tokens of a vision transformer -----------------------------------------------------------


def prepare_grid_features(images: Sequence, transform: Callable, extract: Callable, num_prefix_tokens: int = 1,
                          grid_hw: tuple[int, int] | None = None) -> tuple[Tensor, int, int, int]:
    """Token features of several images as one matrix: ``(features (b * h * w, c), b, h, w)``.

    Args:
        images: what `transform` takes, usually PIL images.
        transform: image to tensor ``(3, H, W)``, the same shape for all images.
        extract: batch ``(b, 3, H, W)`` to tokens ``(b, num_prefix_tokens + h * w, c)``.
        num_prefix_tokens: tokens before the patches (class, distillation, registers), dropped here: 0, 1, 2, 5, ...
        grid_hw: patches ``(h, w)``; needed when their number is not a square.

    Raises:
        ValueError: no images, tokens of the wrong shape, or a token count that does not fit the grid.
    """
    if not len(images):
        raise ValueError("expected at least one image, received an empty list.")
    tokens = extract(torch.stack([transform(image) for image in images]))  # (b, num_prefix_tokens + h * w, c)
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or len(tokens) != len(images):
        got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"expected tokens of shape ({len(images)}, tokens, channels) from extract, received {got}. "
                         "A pooled embedding or a convolutional map (b, c, h, w) has no token axis; return the tokens.")
    h, w = _token_grid(tokens.shape[1], num_prefix_tokens, grid_hw)
    return tokens[:, num_prefix_tokens:].flatten(0, 1), len(tokens), h, w


def _token_grid(n_tokens: int, num_prefix_tokens: int, grid_hw: tuple[int, int] | None) -> tuple[int, int]:
    n = n_tokens - num_prefix_tokens
    if num_prefix_tokens < 0 or n < 1:
        raise ValueError(f"{n_tokens} tokens cannot hold {num_prefix_tokens} prefix tokens and a patch.")
    if grid_hw is not None and math.prod(grid_hw) != n:
        raise ValueError(f"expected h * w = {n} patches ({n_tokens} tokens less {num_prefix_tokens} prefix tokens), "
                         f"received grid_hw = {tuple(grid_hw)} with {math.prod(grid_hw)} cells. A wrong "
                         "num_prefix_tokens or another input size is the usual cause.")
    side = math.isqrt(n)
    if grid_hw is None and side * side != n:
        fits = [p for p in (0, 1, 2, 5) if p < n_tokens and math.isqrt(n_tokens - p) ** 2 == n_tokens - p]
        hint = f" (num_prefix_tokens = {fits[0]} would leave a square)" if fits else ""
        raise ValueError(f"{n} patches ({n_tokens} tokens less {num_prefix_tokens} prefix tokens) are no square grid"
                         f"{hint}. Pass grid_hw=(h, w) for an oblong image, or the right num_prefix_tokens.")
    return tuple(grid_hw) if grid_hw is not None else (side, side)


def timm_features(images, model, pretrained: bool = True, checkpoint: str | Path | None = None,
                  **model_kwargs) -> GridFeatures:
    """Patch tokens of a timm vision transformer, channels named ``ch 0``, ``ch 1``, ...

    Tokens come from the model's `forward_features` (final norm included), prefix tokens dropped. Size, mean, deviation
    and interpolation come from the model's own data configuration; the photograph is squeezed to the input size, not
    cropped, so that the grid covers all of it. The model runs in evaluation mode, without gradients, and is left as it
    was found.

    Args:
        images: one or several PIL images or paths.
        model: timm model name, or a module, which is used as it is.
        pretrained: for a name, load timm's published weights. False means random weights, on purpose.
        checkpoint: for a name, a local weight file, used instead of the published weights.
        **model_kwargs: passed to `timm.create_model`, e.g. ``img_size=(224, 448)`` or ``pretrained_cfg_overlay``.

    Raises:
        ValueError: unknown name (close names are listed), or a model without patch tokens.
        FileNotFoundError: no file at `checkpoint`.
        RuntimeError: the published weights cannot be had; the message names model, reason and ways on. Without a
            network this takes a minute of retries; the environment variable ``HF_HUB_OFFLINE=1`` ends them at once.
    """
    from timm.data import create_transform, resolve_model_data_config  # the import of timm takes seconds

    model = _timm_model(model, pretrained, checkpoint, model_kwargs) if isinstance(model, str) else model
    missing = [name for name in ("forward_features", "num_prefix_tokens", "patch_embed") if not hasattr(model, name)]
    if missing:
        raise ValueError(f"{type(model).__name__} has no {', '.join(missing)}: it is not a timm token model. "
                         "Use a vision transformer (vit_*, deit_*, eva*), or filter_bank for features without a model.")
    config = resolve_model_data_config(model)
    height, width = _input_size(model, config)
    transform = create_transform(**{**config, "input_size": (3, height, width), "crop_pct": 1.0, "crop_mode": "squash"})
    device = next(model.parameters()).device
    features, b, h, w = prepare_grid_features(
        load_images_helper(images), transform, lambda batch: _tokens(model, batch.to(device)),
        model.num_prefix_tokens, _patch_grid(model, height, width))
    return GridFeatures(features, tuple(f"ch {i}" for i in range(features.shape[1])), (h, w), b)


def _timm_model(name: str, pretrained: bool, checkpoint, model_kwargs: dict) -> torch.nn.Module:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise ValueError(f"timm has no model named {name!r}. {_close(name, timm.list_models())}")
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            raise FileNotFoundError(f"no weight file at {str(checkpoint)!r} (looked from {Path.cwd()}).")
        return timm.create_model(name, pretrained=False, checkpoint_path=str(checkpoint), **model_kwargs)
    if not pretrained:
        return timm.create_model(name, pretrained=False, **model_kwargs)
    try:
        return timm.create_model(name, pretrained=True, **model_kwargs)
    except Exception as error:  # hubs fail in many types; each means that there are no weights
        reason = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
        raise RuntimeError(
            f"no pretrained weights for {name!r} ({type(error).__name__}: {reason}). Ways on: (a) run once with a "
            "network; (b) pass checkpoint='weights.safetensors', or pretrained_cfg_overlay=dict(file=...), with a file "
            "you have; (c) pass pretrained=False for random weights, whose segments show architecture, not learning."
        ) from error


def _input_size(model, config: dict) -> tuple[int, int]:
    # A model built with its own img_size may carry the data configuration of the published size.
    size = getattr(model.patch_embed, "img_size", None) or config["input_size"][1:]
    return tuple(size)


def _patch_grid(model, height: int, width: int) -> tuple[int, int]:
    embed = model.patch_embed
    grid = embed.dynamic_feat_size((height, width)) if hasattr(embed, "dynamic_feat_size") else embed.grid_size
    return tuple(grid)


def _tokens(model: torch.nn.Module, batch: Tensor) -> Tensor:
    training = model.training
    try:
        with torch.no_grad():
            return model.eval().forward_features(batch)
    finally:
        model.train(training)
