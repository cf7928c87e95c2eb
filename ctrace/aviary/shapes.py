"""The bird in its own coordinates: signed distances of the body and of every part variant.

Bird units: the chest is about one unit from the middle of the body, x points forward, y up. A
signed distance is negative inside. Only ``+ - * /``, sqrt, min and max are used, which IEEE 754
rounds identically on every machine:
no sine, no exponential, so a picture has one checksum everywhere.
"""

from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np

from ctrace.aviary.species import VARIANTS

Point = tuple[float, float]


def cosine_sine(turn: float) -> tuple[float, float]:
    """Of the angle whose half has the tangent `turn`, correctly rounded on every machine."""
    return (1 - turn * turn) / (1 + turn * turn), 2 * turn / (1 + turn * turn)


def rotated(x, y, turn: float):
    """The coordinates of (x, y) along axes turned by that angle."""
    cos, sin = cosine_sine(turn)
    return cos * x + sin * y, cos * y - sin * x


def disc(x, y, cx, cy, r):
    """Distance to a disc about (cx, cy)."""
    dx, dy = x - cx, y - cy
    return np.sqrt(dx * dx + dy * dy) - r


def ellipse(x, y, cx, cy, rx, ry):
    """First-order distance (implicit value over length of its gradient), exact on the border."""
    u, v = (x - cx) / rx, (y - cy) / ry
    level = np.sqrt(u * u + v * v)
    slope = np.sqrt(u * u / (rx * rx) + v * v / (ry * ry))
    return (level - 1) * level / np.maximum(slope, np.float32(1e-6))


def _from_segment(x, y, ax, ay, bx, by):
    """Vector from the nearest point of the segment a to b, and where on it that lies (0 to 1)."""
    vx, vy, px, py = bx - ax, by - ay, x - ax, y - ay
    t = np.clip((px * vx + py * vy) / (vx * vx + vy * vy), 0, 1)
    return px - t * vx, py - t * vy, t


def cone(x, y, ax, ay, ra, bx, by, rb):
    """A stroke from a to b whose radius goes from `ra` to `rb`."""
    dx, dy, t = _from_segment(x, y, ax, ay, bx, by)
    return np.sqrt(dx * dx + dy * dy) - (ra + t * (rb - ra))


def polygon(x, y, corners):
    """Distance to a polygon, convex or not (nearest edge, sign by crossings)."""
    nearest, inside = np.inf, False
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1]):
        dx, dy, _ = _from_segment(x, y, ax, ay, bx, by)
        nearest = np.minimum(nearest, dx * dx + dy * dy)
        if by - ay:
            inside ^= ((y >= ay) != (y >= by)) & (x - ax < (y - ay) * ((bx - ax) / (by - ay)))
    return np.where(inside, -np.sqrt(nearest), np.sqrt(nearest))


def union(*fields):
    """What is in any of the shapes: the least of their distances."""
    return reduce(np.minimum, fields)


def blend(a, b, k):
    """Union with a fillet of width `k`, for the neck."""
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.minimum(a, b) - h * h * (k * 0.25)


# --- body ---

HEAD = (0.74, 0.66)  # centre of the head
HEAD_RADIUS = 0.5


def body(x, y, head: float = 1.0, depth: float = 1.0):
    """Trunk and head as one outline; `head` and `depth` are an individual's proportions (1 =
    average).
    """
    trunk = cone(x, y / depth, 0.22, -0.08, 0.70, -0.95, 0.02, 0.22)
    return blend(trunk, disc(x, y, *HEAD, HEAD_RADIUS * head), 0.45)


def belly(x, y):
    """Distance to the light belly."""
    return ellipse(x, y, 0.42, -0.42, 0.62, 0.44)


def rows(text: str) -> tuple[tuple[float, ...], ...]:
    """Rows of numbers, separated by commas.

    >>> rows("1 .5, -2 0")
    ((1.0, 0.5), (-2.0, 0.0))
    """
    return tuple(tuple(map(float, row.split())) for row in text.split(","))


# Nine places for the marks of an individual, all on the body of the smallest bird; the fifth slips
# under the wing's edge.
MARKS: tuple[Point, ...] = rows(
    " .70 .02,  .66 -.30,  .40 -.52,  .05 -.60,  .42 -.22,  .88 .36,  .50 .42,  .16 .44,  -.22 .36"
)
MARK_RADIUS = 0.115
EYE = (0.88, 0.76)

# --- wing ---

WING_FROM, WING_TO = (0.18, 0.06), (-0.82, -0.16)
BARS = (-0.14, 0.18, 0.50, 0.82)
SPOTS = rows("-.2 0,  .02 .19,  .02 -.19,  .22 0,  .42 .16,  .42 -.16,  .62 0,  .84 0")


def wing_pattern(variant: str, x, y):
    """Signed distance of the light markings on the wing, in coordinates along and across it."""
    # A unit vector along the wing (pointing back) from its end points, without trigonometry.
    ux, uy = WING_TO[0] - WING_FROM[0], WING_TO[1] - WING_FROM[1]
    length = float(np.sqrt(ux * ux + uy * uy))
    ux, uy = ux / length, uy / length
    along = (x - WING_FROM[0]) * ux + (y - WING_FROM[1]) * uy
    across = (x - WING_FROM[0]) * uy - (y - WING_FROM[1]) * ux
    if variant == "bars":
        return union(*(np.abs(along - at) - 0.075 for at in BARS))
    if variant == "spots":
        return union(*(disc(along, across, *at, 0.09) for at in SPOTS))
    if variant == "tip":
        return 0.36 - along
    ring, pupil = (disc(along, across, 0.08, 0.0, radius) for radius in (0.25, 0.0))
    return np.maximum(ring, 0.11 - pupil)  # "eye": a ring with a dark pupil


# --- the other parts, from a table ---


@dataclass(frozen=True)
class Shape:
    """Pieces, and a circle (centre, radius) that contains where their distance is negative."""

    pieces: list[tuple[str, list[tuple[float, ...]]]]  # each its kind and its points
    centre: Point
    radius: float

    def distance(self, x, y):
        """Signed distance of all pieces together."""
        return union(*(_distance(kind, points, x, y) for kind, points in self.pieces))


def _distance(kind: str, points: list[tuple[float, ...]], x, y):
    if kind == "polygon":
        return polygon(x, y, points)
    if kind == "ellipse":
        return ellipse(x, y, *points[0])
    return union(*(cone(x, y, *a, *b) for a, b in zip(points, points[1:])))


HIPS = (-0.14, 0.30)


def _read_shapes(path: Path) -> dict[str, dict[str, Shape]]:
    """Part -> variant -> shape, from the table that says itself how it is to be read."""
    shapes: dict[str, dict[str, Shape]] = {}
    _, *blocks = path.read_text(encoding="utf-8").strip().split("\n\n")
    for block in blocks:
        head, *lines = block.splitlines()
        part, variant, *circle = head.split()
        cx, cy, radius = map(float, circle)
        pieces = [line.split(maxsplit=1) for line in lines]
        placed = [
            (kind, [(left + x, *rest) for x, *rest in rows(numbers)])
            for left in (HIPS if part == "legs" else [0.0])
            for kind, numbers in pieces
        ]
        shapes.setdefault(part, {})[variant] = Shape(placed, (cx, cy), radius)
    return shapes


TABLE = Path(__file__).parents[1] / "data" / "aviary" / "shapes.txt"
_FEATHERS = ("stroke", [(*WING_FROM, 0.355), (*WING_TO, 0.12)])
_WING = Shape([_FEATHERS], (-0.28, -0.04), 0.85)  # of every wing: the variants are patterns on it
PART_SHAPES = _read_shapes(TABLE) | {"wing": dict.fromkeys(VARIANTS["wing"], _WING)}
