"""The bird in its own coordinates: signed distances of the body and of every part variant.

Bird units: the chest is about one unit from the middle of the body, x points forward, y up. A
signed distance is negative inside. Only +, -, *, /, sqrt, min and max are used, which IEEE 754
rounds identically on every machine:
no sine, no exponential, so a picture has one checksum everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]
Point = tuple[float, float]


class Shape(NamedTuple):
    """A signed distance field and a circle (centre, radius) that contains where it is negative."""

    distance: Field
    centre: Point
    radius: float


def disc(x, y, cx, cy, r):
    """Distance to a disc about (cx, cy)."""
    dx, dy = x - cx, y - cy
    return np.sqrt(dx * dx + dy * dy) - r


def ellipse(x, y, cx, cy, rx, ry):
    """First-order distance (implicit value over the length of its gradient): exact on the border."""
    u, v = (x - cx) / rx, (y - cy) / ry
    level = np.sqrt(u * u + v * v)
    slope = np.sqrt(u * u / (rx * rx) + v * v / (ry * ry))
    return (level - 1) * level / np.maximum(slope, np.float32(1e-6))


def cone(x, y, ax, ay, ra, bx, by, rb):
    """A stroke from a to b whose radius goes from `ra` to `rb`."""
    vx, vy = bx - ax, by - ay
    px, py = x - ax, y - ay
    t = np.clip((px * vx + py * vy) / (vx * vx + vy * vy), 0, 1)
    dx, dy = px - t * vx, py - t * vy
    return np.sqrt(dx * dx + dy * dy) - (ra + t * (rb - ra))


def polygon(x, y, corners):
    """Distance to a polygon, convex or not (nearest edge, sign by crossings)."""
    best, inside = None, None
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1]):
        vx, vy, px, py = bx - ax, by - ay, x - ax, y - ay
        t = np.clip((px * vx + py * vy) / (vx * vx + vy * vy), 0, 1)
        dx, dy = px - t * vx, py - t * vy
        squared = dx * dx + dy * dy
        best = squared if best is None else np.minimum(best, squared)
        if vy:
            crossing = ((y >= ay) != (y >= by)) & (px < py * (vx / vy))
            inside = crossing if inside is None else inside ^ crossing
    return np.where(inside, -np.sqrt(best), np.sqrt(best))


def union(*fields):
    """What is in any of the shapes: the least of their distances."""
    out = fields[0]
    for field in fields[1:]:
        out = np.minimum(out, field)
    return out


def blend(a, b, k):
    """Union with a fillet of width `k`, for the neck."""
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.minimum(a, b) - h * h * (k * 0.25)


def strokes(*cones):
    """The distance to several cones together, as a function of x and y."""
    return lambda x, y: union(*(cone(x, y, *c) for c in cones))


# --- body
# -----------------------------------------------------------------------------------------------------

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


# Nine places for the marks of an individual, all on the body of the smallest bird; the fifth slips
# under the wing's edge.
MARKS: tuple[Point, ...] = (
    (0.70, 0.02),
    (0.66, -0.30),
    (0.40, -0.52),
    (0.05, -0.60),
    (0.42, -0.22),
    (0.88, 0.36),
    (0.50, 0.42),
    (0.16, 0.44),
    (-0.22, 0.36),
)
MARK_RADIUS = 0.115
EYE = (0.88, 0.76)

# --- parts
# ----------------------------------------------------------------------------------------------------

WING_FROM, WING_TO = (0.18, 0.06), (-0.82, -0.16)


def wing(x, y):
    """Distance to the wing, without its markings."""
    return cone(x, y, *WING_FROM, 0.355, *WING_TO, 0.12)


def wing_pattern(variant: str, x, y):
    """Signed distance of the light markings on the wing, in coordinates along and across it."""
    # A unit vector along the wing (pointing back) from its end points, without trigonometry.
    ux, uy = WING_TO[0] - WING_FROM[0], WING_TO[1] - WING_FROM[1]
    length = float(np.sqrt(ux * ux + uy * uy))
    ux, uy = ux / length, uy / length
    along = (x - WING_FROM[0]) * ux + (y - WING_FROM[1]) * uy
    across = (x - WING_FROM[0]) * uy - (y - WING_FROM[1]) * ux
    if variant == "bars":
        return union(*(np.abs(along - a) - 0.075 for a in (-0.14, 0.18, 0.50, 0.82)))
    if variant == "spots":
        dots = (
            (-0.2, 0.0),
            (0.02, 0.19),
            (0.02, -0.19),
            (0.22, 0.0),
            (0.42, 0.16),
            (0.42, -0.16),
            (0.62, 0.0),
            (0.84, 0.0),
        )
        return union(*(disc(along, across, a, b, 0.09) for a, b in dots))
    if variant == "tip":
        return 0.36 - along
    rings = disc(along, across, 0.08, 0.0, 0.25)
    return np.maximum(
        rings, 0.11 - disc(along, across, 0.08, 0.0, 0.0)
    )  # "eye": a ring with a dark pupil


BEAKS: dict[str, Shape] = {
    "cone": Shape(
        lambda x, y: polygon(
            x, y, [(1.06, 0.96), (1.36, 0.86), (1.88, 0.54), (1.32, 0.36), (1.06, 0.30)]
        ),
        (1.45, 0.62),
        0.6,
    ),
    "hook": Shape(
        lambda x, y: polygon(
            x,
            y,
            [
                (1.04, 1.0),
                (1.34, 1.0),
                (1.60, 0.84),
                (1.72, 0.56),
                (1.70, 0.26),
                (1.58, 0.0),
                (1.50, 0.30),
                (1.36, 0.42),
                (1.04, 0.36),
            ],
        ),
        (1.40, 0.5),
        0.65,
    ),
    "sickle": Shape(
        strokes(
            (1.10, 0.66, 0.17, 1.55, 0.66, 0.14),
            (1.55, 0.66, 0.14, 1.88, 0.48, 0.10),
            (1.88, 0.48, 0.10, 2.06, 0.16, 0.04),
        ),
        (1.54, 0.45),
        0.7,
    ),
    "spoon": Shape(
        lambda x, y: union(
            cone(x, y, 1.10, 0.60, 0.15, 1.62, 0.52, 0.09), ellipse(x, y, 1.76, 0.50, 0.25, 0.24)
        ),
        (1.48, 0.52),
        0.6,
    ),
}

CRESTS: dict[str, Shape] = {
    "fan": Shape(
        strokes(
            (0.78, 1.08, 0.07, 1.14, 1.52, 0.10),
            (0.74, 1.08, 0.07, 0.82, 1.66, 0.11),
            (0.68, 1.08, 0.07, 0.48, 1.64, 0.11),
            (0.62, 1.06, 0.07, 0.18, 1.46, 0.10),
        ),
        (0.66, 1.38),
        0.7,
    ),
    "spike": Shape(
        lambda x, y: polygon(
            x,
            y,
            [(1.06, 1.03), (0.86, 1.28), (0.50, 1.48), (-0.18, 1.60), (0.10, 1.22), (0.26, 0.84)],
        ),
        (0.45, 1.17),
        0.7,
    ),
    "baubles": Shape(
        strokes(
            (0.80, 1.10, 0.04, 1.10, 1.48, 0.04),
            (1.10, 1.48, 0.155, 1.11, 1.49, 0.155),
            (0.72, 1.10, 0.04, 0.68, 1.62, 0.04),
            (0.68, 1.62, 0.155, 0.69, 1.62, 0.155),
            (0.62, 1.08, 0.04, 0.27, 1.44, 0.04),
            (0.27, 1.44, 0.155, 0.26, 1.45, 0.155),
        ),
        (0.68, 1.40),
        0.7,
    ),
}

TAILS: dict[str, Shape] = {
    "fan": Shape(
        strokes(
            *(
                (-1.02, 0.02, 0.09, bx, by, 0.12)
                for bx, by in (
                    (-1.52, 0.52),
                    (-1.72, 0.30),
                    (-1.80, 0.04),
                    (-1.73, -0.22),
                    (-1.54, -0.44),
                )
            )
        ),
        (-1.42, 0.03),
        0.75,
    ),
    "fork": Shape(
        strokes((-1.0, 0.04, 0.17, -1.92, 0.46, 0.035), (-1.0, 0.0, 0.17, -1.92, -0.42, 0.035)),
        (-1.42, 0.02),
        0.78,
    ),
    "lance": Shape(
        lambda x, y: polygon(
            x, y, [(-0.95, 0.17), (-1.42, 0.34), (-2.12, 0.08), (-1.42, -0.20), (-0.95, -0.14)]
        ),
        (-1.50, 0.06),
        0.68,
    ),
    "racket": Shape(
        strokes(
            (-1.0, 0.05, 0.055, -1.70, 0.36, 0.055),
            (-1.70, 0.36, 0.21, -1.71, 0.37, 0.21),
            (-1.0, -0.01, 0.055, -1.70, -0.30, 0.055),
            (-1.70, -0.30, 0.21, -1.71, -0.31, 0.21),
        ),
        (-1.44, 0.03),
        0.82,
    ),
}


def _pair(one: Callable[[np.ndarray, np.ndarray, float], np.ndarray]) -> Shape:
    """Two legs, drawn by the same field at two hips."""
    return Shape(lambda x, y: np.minimum(one(x, y, -0.14), one(x, y, 0.30)), (0.12, -1.08), 0.72)


def _stilt(x, y, hip):
    return union(
        cone(x, y, hip, -0.62, 0.065, hip - 0.06, -1.02, 0.065),
        cone(x, y, hip - 0.06, -1.02, 0.085, hip, -1.40, 0.065),
        cone(x, y, hip, -1.40, 0.06, hip + 0.22, -1.44, 0.05),
        cone(x, y, hip, -1.40, 0.06, hip - 0.16, -1.44, 0.05),
    )


def _webbed(x, y, hip):
    return union(
        cone(x, y, hip, -0.62, 0.065, hip, -1.2, 0.065),
        polygon(x, y, [(hip - 0.03, -1.10), (hip + 0.30, -1.50), (hip - 0.16, -1.50)]),
    )


def _boot(x, y, hip):
    return union(
        cone(x, y, hip, -0.60, 0.17, hip - 0.01, -1.22, 0.13),
        cone(x, y, hip, -1.40, 0.07, hip + 0.16, -1.43, 0.06),
        cone(x, y, hip, -1.22, 0.07, hip, -1.42, 0.07),
    )


LEGS: dict[str, Shape] = {"stilts": _pair(_stilt), "webbed": _pair(_webbed), "boots": _pair(_boot)}

WING = Shape(wing, (-0.28, -0.04), 0.85)
PART_SHAPES: dict[str, dict[str, Shape]] = {
    "beak": BEAKS,
    "crest": CRESTS,
    "tail": TAILS,
    "legs": LEGS,
    "wing": {v: WING for v in ("bars", "spots", "tip", "eye")},
}
