"""From a scene to pixels and masks: a pure function, anti-aliased at any size, bit-identical on
every machine.

Each shape is a signed distance; the share of a pixel it covers is `clip(0.5 - distance / pixel, 0,
1)`. Layers are laid over one another from back to front, and the same coverages, taken from front
to back, give the mask of every part. All array arithmetic is float32 with correctly rounded
operations only, and the result is rounded to 256 grey levels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ctrace.arguments import checked
from ctrace.aviary import shapes
from ctrace.aviary.backdrop import Canvas, Slices, distractor, draw_backdrop, tint, toadstool
from ctrace.aviary.scene import Colour, Distractor, Individual, Scene
from ctrace.aviary.species import PARTS

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

    def crop(self, centre: shapes.Point, radius: float) -> tuple[Slices, np.ndarray, np.ndarray]:
        """Slices of a square that contains the circle, and its pixel centres in bird units."""
        p, side = self.pose, -1.0 if self.pose.flip else 1.0
        where, u, v = self.canvas.crop(*p.place(*centre), radius * p.scale)
        forward = (u - np.float32(p.x)) * np.float32(side / p.scale)
        up = (np.float32(p.y) - v) * np.float32(1 / p.scale)
        return where, *shapes.rotated(forward, up, p.tilt)

    def layer(self, owner: str, where: Slices, distance: np.ndarray, paint: np.ndarray) -> Layer:
        """A shape in that paint, darkened towards its outline."""
        return _rimmed(self.canvas, owner, where, distance, paint, self.pose.scale, OUTLINE)

    def coverage(self, distance: np.ndarray) -> np.ndarray:
        """Share of each pixel inside a shape, from a distance in bird units."""
        return self.canvas.coverage(distance, self.pose.scale)


def _rimmed(canvas: Canvas, owner: str, where: Slices, distance, paint, unit, outline) -> Layer:
    """A shape whose last `outline` units inside are dark; a unit is that share of the picture."""
    distance = distance.astype(np.float32)
    rim = 1 - canvas.coverage(distance + np.float32(outline + 0.5 / (unit * canvas.size)), unit)
    shade = paint * (1 - np.float32(0.5) * rim)
    return Layer(owner, where, canvas.coverage(distance, unit), shade)


def _luminance(colour: Colour) -> float:
    return 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2]


def _contrast(colour: Colour) -> np.ndarray:
    """Cream on dark colours, near-black on light ones."""
    return tint((0.16, 0.14, 0.18) if _luminance(colour) > 0.5 else (0.97, 0.94, 0.84))


def _part_layer(brush: _Brush, part: str, variant: str, colour: Colour) -> Layer:
    shape = shapes.PART_SHAPES[part][variant]
    where, x, y = brush.crop(shape.centre, shape.radius)
    paint = tint(colour) * np.clip(1 + 0.16 * (y - np.float32(shape.centre[1])), 0.85, 1.15)
    if part == "wing":
        pattern = brush.coverage(shapes.wing_pattern(variant, x, y))
        paint = paint + pattern * (_contrast(colour) - paint)
    return brush.layer(part, where, shape.distance(x, y), paint)


def _body_layer(brush: _Brush, bird: Individual, colour: Colour) -> Layer:
    where, x, y = brush.crop((0.1, 0.2), 1.45)
    paint = tint(colour) * np.clip(1 + 0.22 * y, 0.8, 1.2)
    under = np.clip(0.5 - shapes.belly(x, y) * 4, 0, 1) * np.float32(0.45)
    paint = paint + under * (np.float32(0.35) * tint(colour) + np.float32(0.62) - paint)
    return brush.layer("body", where, shapes.body(x, y, bird.head, bird.depth), paint)


def _disc_layer(brush: _Brush, owner: str, centre: shapes.Point, radius: float, colour: Colour):
    where, x, y = brush.crop(centre, radius + 0.02)
    coverage = brush.coverage(shapes.disc(x, y, *centre, radius))
    return Layer(owner, where, coverage, tint(colour))


def _mark_layers(brush: _Brush, bird: Individual, colour: Colour) -> list[Layer]:
    paint = (0.20, 0.14, 0.14) if _luminance(colour) > 0.4 else (0.96, 0.92, 0.80)
    places = (shapes.MARKS[slot] for slot in bird.marks)
    return [_disc_layer(brush, "marks", place, shapes.MARK_RADIUS, paint) for place in places]


def _eye_layers(brush: _Brush) -> list[Layer]:
    cx, cy = shapes.EYE
    white = _disc_layer(brush, "eye", (cx, cy), 0.135, (0.98, 0.97, 0.93))
    pupil = _disc_layer(brush, "eye", (cx + 0.015, cy), 0.09, (0.08, 0.07, 0.10))
    glint = _disc_layer(brush, "eye", (cx + 0.045, cy + 0.035), 0.034, (1.0, 1.0, 1.0))
    return [white, pupil, glint]


def _bird_layers(canvas: Canvas, scene: Scene) -> list[Layer]:
    """Tail and legs behind the body, crest behind the head's outline, wing and beak in front."""
    brush, colours, visible = _Brush(canvas, scene), dict(scene.colours), scene.visible()

    def parts(*names):
        seen = [name for name in names if name in visible]
        return [_part_layer(brush, name, visible[name], colours[name]) for name in seen]

    body = [_body_layer(brush, scene.individual, colours["body"])]
    if "marks" not in scene.hidden:
        body += _mark_layers(brush, scene.individual, colours["body"])
    behind = parts("tail", "legs", "crest")
    return behind + body + parts("wing") + _eye_layers(brush) + parts("beak")


def _distractor_layer(canvas: Canvas, index: int, d: Distractor) -> Layer:
    where, u, v = canvas.crop(d.x, d.y, 1.1 * d.size)
    dx, dy = (u - np.float32(d.x)) / np.float32(d.size), (v - np.float32(d.y)) / np.float32(d.size)
    distance = distractor(d.shape, *shapes.rotated(dx, dy, d.turn))
    return _rimmed(canvas, f"distractor {index}", where, distance, tint(d.colour), d.size, 0.12)


def _toadstool_layers(canvas: Canvas, mark: shapes.Point) -> list[Layer]:
    where, u, v = canvas.crop(*mark, MARK_SIZE)
    x, y = ((axis - np.float32(at)) / np.float32(MARK_SIZE) for axis, at in zip((u, v), mark))
    coats = [(canvas.coverage(field, MARK_SIZE), colour) for field, colour in toadstool(x, y)]
    return [Layer("mark", where, coverage, tint(colour)) for coverage, colour in coats]


def _visible_masks(size: int, layers: list[Layer]) -> dict[str, np.ndarray]:
    """Front to back: a layer shows its opacity times what the layers before it let through."""
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
    shape, dtype = (2, *canvas.rgb.shape), np.int8
    grain = rng.randint(-scene.noise, scene.noise + 1, shape, dtype).astype(np.float32)
    levels = canvas.rgb * np.float32(255 * scene.light) + (grain[0] + grain[1])
    return np.clip(np.floor(levels + np.float32(0.5)), 0, 255).astype(np.uint8)


def _draw(scene: Scene, size: int) -> tuple[Canvas, list[Layer]]:
    if not isinstance(size, int) or size < 32:
        raise ValueError(f"size: expected a whole number of pixels, at least 32; received {size!r}")
    canvas = draw_backdrop(size, scene.background, scene.background_seed, scene.perch)
    layers = [_distractor_layer(canvas, i, d) for i, d in enumerate(scene.distractors)]
    if scene.mark is not None:
        layers += _toadstool_layers(canvas, scene.mark)
    layers += _bird_layers(canvas, scene)
    for layer in layers:
        canvas.paint(layer.where, layer.alpha, layer.colour)
    return canvas, layers


@checked
def render_levels(scene: Scene, size: int = 96) -> np.ndarray:
    """The picture alone, as `(3, size, size)` uint8 grey levels: what data sets store."""
    return _develop(_draw(scene, size)[0], scene)


@checked
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
