"""What stands behind the bird: four kinds of backdrop, the perch, distractors, the toadstool."""

import numpy as np

from ctrace.aviary.scene import Colour
from ctrace.aviary.shapes import cone, disc, ellipse, polygon, rotated, union

Slices = tuple[slice, slice]
EVERYWHERE: Slices = (slice(None), slice(None))


class Canvas:
    """A `(3, size, size)` float32 picture and the centres of its pixels in image widths."""

    def __init__(self, size: int):
        self.size = size
        self.rgb = np.empty((3, size, size), np.float32)
        self.axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)

    def crop(self, x: float, y: float, radius: float) -> tuple[Slices, np.ndarray, np.ndarray]:
        """Slices of the square around (x, y), one pixel wider than `radius`, and its coordinates
        `(h, 1)`, `(1, w)`.
        """

        def span(c):
            low, high = int((c - radius) * self.size) - 1, int((c + radius) * self.size) + 2
            return slice(min(max(low, 0), self.size), max(min(high, self.size), 0))

        rows, cols = span(y), span(x)
        return (rows, cols), self.axis[None, cols], self.axis[rows, None]

    def coverage(self, distance: np.ndarray, unit: float = 1.0) -> np.ndarray:
        """Share of each pixel inside the shape, from a signed distance measured in `unit` image
        widths.
        """
        pixels = distance * np.float32(unit * self.size)
        return np.clip(np.float32(0.5) - pixels, 0, 1).astype(np.float32)

    def paint(self, where: Slices, alpha: np.ndarray, colour: np.ndarray) -> None:
        """Lays `colour` (broadcast to `(3, h, w)`) over the crop with opacity `alpha`."""
        view = self.rgb[(slice(None), *where)]
        view += alpha * (colour - view)


def tint(colour) -> np.ndarray:
    """A colour as ``(3, 1, 1)``, to be mixed over a picture."""
    return np.asarray(colour, np.float32).reshape(3, 1, 1)


def _mix(a, b, weight: np.ndarray) -> np.ndarray:
    return tint(a) + weight * (tint(b) - tint(a))


def _smoothstep(values: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def value_noise(axis: np.ndarray, rng: np.random.RandomState, rows: int, cols: int) -> np.ndarray:
    """Smooth noise in [0, 1] with about `rows` by `cols` features, the same picture at every
    resolution.
    """
    lattice = (rng.randint(0, 256, (rows + 1, cols + 1)) / 255).astype(np.float32)

    def weights(n):
        at = axis * np.float32(n)
        low = np.minimum(at.astype(np.int64), n - 1)
        t = (at - low).astype(np.float32)
        return low, t * t * (3 - 2 * t)

    (r, tr), (c, tc) = weights(rows), weights(cols)
    # Gathers, not a matrix product: BLAS libraries add in different orders and would change the
    # checksum.
    bands = lattice[r] + tr[:, None] * (lattice[r + 1] - lattice[r])  # (size, cols + 1)
    return bands[:, c] + tc[None] * (bands[:, c + 1] - bands[:, c])


def _octaves(canvas: Canvas, rng: np.random.RandomState, *layers: tuple[int, int, float]):
    """A weighted sum of noises, each with its rows, columns and weight."""
    return sum(value_noise(canvas.axis, rng, rows, cols) * w for rows, cols, w in layers)


def _haze(canvas: Canvas, share: np.ndarray, colour: Colour, strength: float) -> None:
    """Clouds and ripples: blends towards a colour by a share of the pixel."""
    canvas.rgb += share * (tint(colour) - canvas.rgb) * np.float32(strength)


def _sky(canvas: Canvas, rng: np.random.RandomState) -> None:
    y, warm = canvas.axis[:, None], rng.random_sample()
    top = np.array([0.36, 0.60, 0.86]) + warm * np.array([0.12, -0.02, -0.06])
    bottom = np.array([0.80, 0.90, 0.96]) + warm * np.array([0.16, -0.04, -0.18])
    canvas.rgb[:] = _mix(top, bottom, y)
    clouds = _smoothstep(_octaves(canvas, rng, (5, 3, 0.65), (13, 8, 0.35)), 0.52, 0.74)
    _haze(canvas, clouds, (0.97, 0.97, 0.98), 0.85)
    hills = ((0.80, 0.16, 5, (0.46, 0.62, 0.56)), (0.88, 0.12, 7, (0.36, 0.54, 0.38)))
    for height, rise, bumps, colour in hills:
        ridge = height + rise * value_noise(canvas.axis, rng, 1, bumps)[:1]
        canvas.paint(EVERYWHERE, canvas.coverage(ridge - y), tint(colour))


def _foliage(canvas: Canvas, rng: np.random.RandomState) -> None:
    shade = _octaves(canvas, rng, (4, 4, 0.6), (11, 11, 0.4))
    canvas.rgb[:] = _mix((0.10, 0.22, 0.14), (0.34, 0.50, 0.26), shade)
    for i in range(24):
        near = i / 23 * np.array([0.22, 0.26, 0.10])  # later leaves are nearer and lighter
        cx, cy, turn = rng.random_sample(), rng.random_sample(), 2 * rng.random_sample() - 1
        length, hue = 0.08 + 0.05 * rng.random_sample(), rng.random_sample()
        where, x, y = canvas.crop(cx, cy, length)
        u, v = rotated(x - cx, y - cy, turn)
        bulge = 0.42 * length
        leaf = np.maximum(disc(u, v, 0, bulge, 1.14 * length), disc(u, v, 0, -bulge, 1.14 * length))
        colour = np.array([0.16, 0.34, 0.16]) + near + hue * np.array([0.18, 0.06, -0.04])
        vein = 1 + 0.22 * canvas.coverage(np.abs(v) - 0.006) - 0.18 * (v > 0)
        canvas.paint(where, canvas.coverage(leaf), tint(colour) * vein.astype(np.float32))


def _water(canvas: Canvas, rng: np.random.RandomState) -> None:
    canvas.rgb[:] = _mix((0.42, 0.66, 0.74), (0.12, 0.36, 0.50), canvas.axis[:, None])
    ripples = _smoothstep(_octaves(canvas, rng, (22, 4, 0.6), (34, 7, 0.4)), 0.56, 0.72)
    _haze(canvas, ripples, (0.74, 0.88, 0.90), 0.55)
    canvas.rgb *= 1 - 0.28 * _smoothstep(value_noise(canvas.axis, rng, 16, 3), 0.55, 0.8)
    for _ in range(5):
        cx, cy = rng.random_sample(), 0.1 + 0.85 * rng.random_sample()
        radius = 0.05 + 0.04 * rng.random_sample()
        where, x, y = canvas.crop(cx, cy, radius)
        notch = 0.25 * (x - cx) - np.abs(y - cy)
        pad = np.maximum(ellipse(x, y, cx, cy, radius, 0.5 * radius), notch)  # of a lily
        light = (0.85 + 0.3 * (y < cy)).astype(np.float32)
        canvas.paint(where, canvas.coverage(pad), tint((0.30, 0.54, 0.34)) * light)


def _bark(canvas: Canvas, rng: np.random.RandomState) -> None:
    grain = _octaves(canvas, rng, (4, 16, 0.55), (9, 30, 0.45))
    canvas.rgb[:] = _mix((0.34, 0.25, 0.19), (0.66, 0.54, 0.42), grain)
    furrow = _smoothstep(value_noise(canvas.axis, rng, 3, 11), 0.62, 0.82)
    canvas.rgb *= 1 - np.float32(0.5) * furrow
    moss = _smoothstep(value_noise(canvas.axis, rng, 5, 5), 0.62, 0.85) * np.float32(0.7)
    canvas.paint(EVERYWHERE, moss, tint((0.46, 0.56, 0.26)))
    cx, cy = rng.random_sample(), rng.random_sample()
    where, x, y = canvas.crop(cx, cy, 0.12)
    knot = ellipse(x, y, cx, cy, 0.07, 0.11)
    rings = 1 + 0.5 * canvas.coverage(np.abs(knot + 0.045) - 0.012)
    canvas.paint(where, canvas.coverage(knot), tint((0.36, 0.25, 0.18)) * rings)


_KINDS = {"sky": _sky, "foliage": _foliage, "water": _water, "bark": _bark}


def draw_backdrop(size: int, kind: str, seed: int, perch: tuple[float, float, float]) -> Canvas:
    """A new canvas with a backdrop and the branch through `perch` (a point and a slope)."""
    canvas = Canvas(size)
    _KINDS[kind](canvas, np.random.RandomState([seed, 101]))
    px, py, slope = perch
    x, y = canvas.axis[None], canvas.axis[:, None]
    branch = cone(x, y, -0.1, py + slope * (-0.1 - px), 0.030, 1.1, py + slope * (1.1 - px), 0.022)
    above = y - (py + slope * (x - px))
    lit = tint((0.42, 0.31, 0.23)) * (1.12 - np.clip(above * 14, -0.35, 0.35)).astype(np.float32)
    canvas.paint(EVERYWHERE, canvas.coverage(branch), lit)
    return canvas


def distractor(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance of a distractor of size 1."""
    if shape == "disc":
        return disc(x, y, 0, 0, 0.62)
    if shape == "ring":
        return np.abs(disc(x, y, 0, 0, 0.55)) - 0.2
    if shape == "triangle":
        return polygon(x, y, [(-0.8, -0.55), (0.8, -0.55), (0.0, 0.85)])
    if shape == "bar":
        return cone(x, y, -0.75, 0, 0.24, 0.75, 0, 0.24)
    return np.maximum(disc(x, y, 0, 0.5, 0.95), disc(x, y, 0, -0.5, 0.95))  # "petal"


def toadstool(x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, Colour]]:
    """Signed distances and colours of stem, cap and cap dots; they fit a circle of radius 1."""
    stem = cone(x, y, 0, 0.1, 0.2, 0, 0.72, 0.25)
    cap = np.maximum(ellipse(x, y, 0, 0.12, 0.95, 0.9), y - 0.14)
    spots = ((-0.45, -0.12, 0.17), (0.08, -0.42, 0.19), (0.52, -0.08, 0.15))
    dots = np.maximum(union(*(disc(x, y, *spot) for spot in spots)), cap + 0.03)
    return [(stem, (0.95, 0.90, 0.80)), (cap, (0.86, 0.13, 0.16)), (dots, (1.0, 1.0, 1.0))]
