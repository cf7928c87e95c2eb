"""From a scene to pixels and masks: a pure function, anti-aliased at any size, bit-identical on
every machine.

Each shape is a signed distance; the share of a pixel it covers is `clip(0.5 - distance / pixel, 0,
1)`. Layers are laid over one another from back to front, and the same coverages, taken from front
to back, give the mask of every part. All array arithmetic is float32 with correctly rounded
operations only, and the result is rounded to 256 grey levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from . import shapes
from .backdrop import Canvas, Slices, distractor_distance, draw_backdrop, tint, toadstool
from .scene import Colour, Distractor, Scene
from .species import PARTS

OUTLINE = 0.05  # width of the dark rim inside every shape, in bird units
MARK_SIZE = 0.075  # radius of the toadstool, in image widths


class Layer(NamedTuple):
    """One coat of paint: whose it is, where, how opaque `(h, w)`, and which colour, broadcast to
    `(3, h, w)`.
    """

    owner: str
    where: Slices
    alpha: np.ndarray
    colour: np.ndarray


@dataclass(frozen=True)
class Rendering:
    """A picture and the truth about it.

    Attributes:
        image: `(3, size, size)` float32 in [0, 1], multiples of 1/255.
        masks: for each drawn part (and "body", "eye", "marks", "mark", "distractor 0", ...) the
            visible share of every pixel, `(size, size)` float32 in [0, 1]; exactly 0 where the part
            contributes nothing.
        bird: the visible share of the whole bird, the sum of its parts' masks.
    """

    image: torch.Tensor
    masks: dict[str, torch.Tensor]
    bird: torch.Tensor


class _Brush:
    """Bird coordinates on a canvas: turns a shape into a layer."""

    def __init__(self, canvas: Canvas, scene: Scene):
        self.canvas, self.pose = canvas, scene.pose
        self.cos, self.sin = scene.pose.turn
        self.side = -1.0 if scene.pose.flip else 1.0

    def crop(self, centre: shapes.Point, radius: float) -> tuple[Slices, np.ndarray, np.ndarray]:
        """Slices of a square that contains the circle, and its pixel centres in bird units."""
        p = self.pose
        where, u, v = self.canvas.crop(*p.place(*centre), radius * p.scale)
        dx, dy = (
            (u - np.float32(p.x)) * np.float32(self.side / p.scale),
            (np.float32(p.y) - v) * np.float32(1 / p.scale),
        )
        cos, sin = np.float32(self.cos), np.float32(self.sin)
        return where, cos * dx + sin * dy, cos * dy - sin * dx

    def coverage(self, distance: np.ndarray) -> np.ndarray:
        return self.canvas.coverage(distance, self.pose.scale)

    def rimmed(self, colour: np.ndarray, distance: np.ndarray, strength: float = 0.5) -> np.ndarray:
        """The colour, darkened towards the outline of the shape."""
        rim = 1 - self.coverage(
            distance + np.float32(OUTLINE + 0.5 / (self.pose.scale * self.canvas.size))
        )
        return colour * (1 - np.float32(strength) * rim)


def _luminance(colour: Colour) -> float:
    return 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2]


def _contrast(colour: Colour) -> np.ndarray:
    """Cream on dark colours, near-black on light ones."""
    return tint((0.16, 0.14, 0.18) if _luminance(colour) > 0.5 else (0.97, 0.94, 0.84))


def _part_layer(brush: _Brush, part: str, variant: str, colour: Colour) -> Layer:
    shape = shapes.PART_SHAPES[part][variant]
    where, x, y = brush.crop(shape.centre, shape.radius)
    distance = shape.distance(x, y).astype(np.float32)
    paint = tint(colour) * np.clip(1 + 0.16 * (y - np.float32(shape.centre[1])), 0.85, 1.15)
    if part == "wing":
        paint = paint + brush.coverage(shapes.wing_pattern(variant, x, y)) * (
            _contrast(colour) - paint
        )
    return Layer(part, where, brush.coverage(distance), brush.rimmed(paint, distance))


def _body_layer(brush: _Brush, scene: Scene, colour: Colour) -> Layer:
    where, x, y = brush.crop((0.1, 0.2), 1.45)
    distance = shapes.body(x, y, scene.individual.head, scene.individual.depth).astype(np.float32)
    light = np.clip(1 + 0.22 * y, 0.8, 1.2)
    under = np.clip(0.5 - shapes.belly(x, y) * 4, 0, 1) * np.float32(0.45)
    paint = tint(colour) * light
    paint = paint + under * (np.float32(0.35) * tint(colour) + np.float32(0.62) - paint)
    return Layer("body", where, brush.coverage(distance), brush.rimmed(paint, distance))


def _mark_layers(brush: _Brush, scene: Scene, colour: Colour) -> list[Layer]:
    layers = []
    paint = tint((0.20, 0.14, 0.14) if _luminance(colour) > 0.4 else (0.96, 0.92, 0.80))
    for slot in scene.individual.marks:
        where, x, y = brush.crop(shapes.MARKS[slot], shapes.MARK_RADIUS + 0.02)
        layers.append(
            Layer(
                "marks",
                where,
                brush.coverage(shapes.disc(x, y, *shapes.MARKS[slot], shapes.MARK_RADIUS)),
                paint,
            )
        )
    return layers


def _eye_layers(brush: _Brush) -> list[Layer]:
    cx, cy = shapes.EYE
    where, x, y = brush.crop(shapes.EYE, 0.16)
    coats = (
        (cx, cy, 0.135, (0.98, 0.97, 0.93)),
        (cx + 0.015, cy, 0.09, (0.08, 0.07, 0.10)),
        (cx + 0.045, cy + 0.035, 0.034, (1.0, 1.0, 1.0)),
    )
    return [
        Layer("eye", where, brush.coverage(shapes.disc(x, y, *circle)), tint(colour))
        for *circle, colour in coats
    ]


def _bird_layers(canvas: Canvas, scene: Scene) -> list[Layer]:
    """Tail and legs behind the body, crest behind the head's outline, wing and beak in front."""
    brush, colours, visible = _Brush(canvas, scene), dict(scene.colours), scene.visible()

    def part(name):
        return [_part_layer(brush, name, visible[name], colours[name])] if name in visible else []

    marks = [] if "marks" in scene.hidden else _mark_layers(brush, scene, colours["body"])
    body = [_body_layer(brush, scene, colours["body"])]
    return (
        part("tail")
        + part("legs")
        + part("crest")
        + body
        + marks
        + part("wing")
        + _eye_layers(brush)
        + part("beak")
    )


def _distractor_layer(canvas: Canvas, index: int, d: Distractor) -> Layer:
    where, u, v = canvas.crop(d.x, d.y, 1.1 * d.size)
    t = d.turn
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    dx, dy = (u - np.float32(d.x)) / np.float32(d.size), (v - np.float32(d.y)) / np.float32(d.size)
    distance = distractor_distance(d.shape, cos * dx + sin * dy, cos * dy - sin * dx).astype(
        np.float32
    )
    rim = 1 - canvas.coverage(distance + np.float32(0.12 + 0.5 / (d.size * canvas.size)), d.size)
    return Layer(
        f"distractor {index}",
        where,
        canvas.coverage(distance, d.size),
        tint(d.colour) * (1 - np.float32(0.5) * rim),
    )


def _toadstool_layers(canvas: Canvas, mark: tuple[float, float]) -> list[Layer]:
    where, u, v = canvas.crop(*mark, MARK_SIZE)
    fields = toadstool(
        (u - np.float32(mark[0])) / np.float32(MARK_SIZE),
        (v - np.float32(mark[1])) / np.float32(MARK_SIZE),
    )
    coats = zip(fields, ((0.95, 0.90, 0.80), (0.86, 0.13, 0.16), (1.0, 1.0, 1.0)))
    return [
        Layer("mark", where, canvas.coverage(field, MARK_SIZE), tint(colour))
        for field, colour in coats
    ]


def _visible_masks(size: int, layers: list[Layer]) -> dict[str, np.ndarray]:
    """Front to back: what a layer shows is its opacity times what the layers before it let through."""
    through = np.ones((size, size), np.float32)
    masks: dict[str, np.ndarray] = {}
    for layer in reversed(layers):
        mask = masks.setdefault(layer.owner, np.zeros((size, size), np.float32))
        mask[layer.where] += layer.alpha * through[layer.where]
        through[layer.where] *= 1 - layer.alpha
    return masks


def _develop(canvas: Canvas, scene: Scene) -> np.ndarray:
    """Light, pixel noise (a triangular law, its own seed), and 256 grey levels."""
    rng = np.random.RandomState([scene.noise_seed, 103])
    grain = rng.randint(
        -scene.noise, scene.noise + 1, (2, *canvas.rgb.shape), dtype=np.int8
    ).astype(np.float32)
    levels = canvas.rgb * np.float32(255 * scene.light) + (grain[0] + grain[1])
    return np.clip(np.floor(levels + np.float32(0.5)), 0, 255).astype(np.uint8)


def _draw(scene: Scene, size: int) -> tuple[Canvas, list[Layer]]:
    if not isinstance(size, int) or size < 32:
        raise ValueError(f"size must be a whole number of pixels, at least 32; received {size!r}")
    canvas = draw_backdrop(size, scene.background, scene.background_seed, scene.perch)
    layers = [_distractor_layer(canvas, i, d) for i, d in enumerate(scene.distractors)]
    if scene.mark is not None:
        layers += _toadstool_layers(canvas, scene.mark)
    layers += _bird_layers(canvas, scene)
    for layer in layers:
        canvas.paint(layer.where, layer.alpha, layer.colour)
    return canvas, layers


def render_levels(scene: Scene, size: int = 96) -> np.ndarray:
    """The picture alone, as `(3, size, size)` uint8 grey levels: what data sets store."""
    return _develop(_draw(scene, size)[0], scene)


def render(scene: Scene, size: int = 96) -> Rendering:
    """Draws a scene.

    Args:
        scene: see `sample_scene`.
        size: height and width in pixels, at least 32.

    Returns:
        Image, part masks and bird mask; equal scenes give equal bits.

    Example:
        >>> from ctrace.aviary import sample_scene
        >>> picture = render(sample_scene(0), size=64)
        >>> tuple(picture.image.shape), sorted(picture.masks)[:3]
        ((3, 64, 64), ['beak', 'body', 'crest'])
    """
    canvas, layers = _draw(scene, size)
    masks = {name: torch.from_numpy(mask) for name, mask in _visible_masks(size, layers).items()}
    own = [mask for name, mask in masks.items() if name in (*PARTS, "body", "eye", "marks")]
    image = torch.from_numpy(_develop(canvas, scene)).to(torch.float32) / 255
    return Rendering(image, masks, torch.stack(own).sum(0))
