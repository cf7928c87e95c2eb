"""Scenes: small value objects that hold everything needed to draw one picture, and the
interventions on them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ctrace.arguments import Seed, checked
from ctrace.aviary.shapes import MARKS, Point, cosine_sine, rows
from ctrace.aviary.species import PARTS, SPECIES, VARIANTS, Species
from ctrace.check import one_of

Colour = tuple[float, float, float]

# Parts and distractors draw from the same vivid palette: a colour alone never says "this is a
# part".
VIVID: tuple[Colour, ...] = rows("""
    .84 .20 .18,  .95 .55 .13,  .97 .80 .20,  .20 .62 .40,  .15 .48 .78,
    .49 .30 .66,  .93 .45 .60,  .95 .93 .86,  .17 .17 .22
""")
PLUMAGES: tuple[Colour, ...] = rows("""
    .55 .57 .60,  .62 .47 .34,  .40 .50 .62,  .58 .60 .38,
    .86 .80 .68,  .34 .36 .42,  .74 .45 .32,  .38 .58 .58
""")
BACKGROUNDS = ("sky", "foliage", "water", "bark")
DISTRACTORS = ("disc", "ring", "triangle", "bar", "petal")
HIDEABLE = (*PARTS, "marks")

# One independent random stream per aspect of a scene, so that changing one aspect leaves the others
# as they were.
_STREAMS = ("species", "pose", "plumage", "background", "distractors", "individual", "noise")


def _stream(seed: int, name: str) -> np.random.RandomState:
    # RandomState, because its stream is frozen for all numpy versions; only uniform draws and
    # integers are used.
    return np.random.RandomState([seed, _STREAMS.index(name)])


@dataclass(frozen=True)
class Pose:
    """Where the bird is: body centre `x, y` and `scale` in image widths, `tilt` (tangent of half
    the angle), `flip`.
    """

    x: float
    y: float
    scale: float
    tilt: float
    flip: bool

    def place(self, x: float, y: float) -> Point:
        """The image position of a point given in bird units (x forward, y up)."""
        (cos, sin), side = cosine_sine(self.tilt), -1.0 if self.flip else 1.0
        across, up = cos * x - sin * y, sin * x + cos * y
        return self.x + self.scale * side * across, self.y - self.scale * up


@dataclass(frozen=True)
class Individual:
    """What one bird keeps for life beside its species: which mark slots are filled, and two
    proportions (1 = average).
    """

    marks: tuple[int, ...]
    head: float
    depth: float


@dataclass(frozen=True)
class Distractor:
    """A coloured shape behind the bird: centre and size in image widths, `turn` the tangent of half
    its rotation.
    """

    shape: str
    x: float
    y: float
    size: float
    turn: float
    colour: Colour


@dataclass(frozen=True)
class Scene:
    """Everything `render` needs; hashable, comparable, and changed only by making a new one.

    Attributes:
        parts: variant of each part, in the order of `PARTS`.
        hidden: names out of `HIDEABLE` that are not drawn.
        individual: marks and proportions of this bird.
        colours: one RGB colour in [0, 1] for body, beak, crest, wing, tail and legs; never
            diagnostic.
        pose, background, background_seed, light, distractors, perch: the nuisance attributes.
        mark: centre of the toadstool that `spurious` worlds tie to a species, in image widths, or
            None.
        noise_seed, noise: seed and half-width (in grey levels of 255) of the pixel noise.
    """

    parts: tuple[str, ...]
    individual: Individual
    colours: tuple[tuple[str, Colour], ...]
    pose: Pose
    background: str
    background_seed: int
    light: float
    distractors: tuple[Distractor, ...]
    perch: tuple[float, float, float]
    noise_seed: int
    hidden: frozenset[str] = frozenset()
    mark: Point | None = None
    noise: int = 4

    def visible(self) -> dict[str, str]:
        """The diagnostic parts that are drawn, as part -> variant."""
        return {p: v for p, v in zip(PARTS, self.parts) if p not in self.hidden}

    def without(self, *names: str) -> Scene:
        """The same scene with these parts removed (of `HIDEABLE`); what they covered comes into
        view.
        """
        hidden = self.hidden | {one_of("part", name, HIDEABLE) for name in names}
        return replace(self, hidden=hidden)

    def swap(self, part: str, variant: str) -> Scene:
        """The same scene with one part exchanged for another variant of it, e.g. another species'
        part.
        """
        one_of(part, variant, VARIANTS[one_of("part", part, PARTS)])
        parts = (variant if name == part else own for name, own in zip(PARTS, self.parts))
        return replace(self, parts=tuple(parts))

    def with_background(self, background: str, seed: int | None = None) -> Scene:
        """The same bird and distractors before another backdrop (`seed` None keeps the present
        one).
        """
        one_of("background", background, BACKGROUNDS)
        seed = self.background_seed if seed is None else seed
        return replace(self, background=background, background_seed=seed)

    def without_distractor(self, index: int) -> Scene:
        """The same scene with distractor `index` removed; the masks of later distractors move up by
        one.
        """
        n = len(self.distractors)
        if not 0 <= index < n:
            raise ValueError(f"this scene has {n} distractors; there is no number {index}")
        return replace(self, distractors=self.distractors[:index] + self.distractors[index + 1 :])

    def moved(self, dx: float, dy: float) -> Scene:
        """The same scene with the bird moved by `dx, dy` image widths; perch and backdrop stay."""
        return replace(self, pose=replace(self.pose, x=self.pose.x + dx, y=self.pose.y + dy))

    def with_noise(self, seed: int) -> Scene:
        """The same scene photographed again: only the pixel noise differs."""
        return replace(self, noise_seed=seed)

    def with_mark(self, mark: tuple[float, float] | None) -> Scene:
        """The same scene with the toadstool at `mark` (image widths from the upper left), or
        without one.
        """
        return replace(self, mark=mark)


def _between(rng: np.random.RandomState, low: float, high: float) -> float:
    return float(low + (high - low) * rng.random_sample())


def _pick(rng: np.random.RandomState, options):
    return options[rng.randint(len(options))]


@checked
def sample_individual(seed: Seed) -> Individual:
    """The bird number `seed`: three to six of the nine mark slots, head size and body depth.

    >>> sample_individual(1) == sample_individual(1), sample_individual(1) == sample_individual(2)
    (True, False)
    """
    rng = _stream(seed, "individual")
    marks = sorted(int(i) for i in rng.permutation(len(MARKS))[: 3 + rng.randint(4)])
    return Individual(tuple(marks), _between(rng, 0.86, 1.12), _between(rng, 0.88, 1.1))


def _sample_pose(rng: np.random.RandomState) -> Pose:
    scale = _between(rng, 0.185, 0.215)
    tilt, flip = _between(rng, -0.13, 0.13), bool(rng.randint(2))
    return Pose(_between(rng, 0.46, 0.54), _between(rng, 0.51, 0.58), scale, tilt, flip)


def _sample_colours(rng: np.random.RandomState) -> tuple[tuple[str, Colour], ...]:
    body = _pick(rng, PLUMAGES)
    # A part in the colour of the body would be invisible wherever it overlaps it.
    distinct = [c for c in VIVID if sum(abs(a - b) for a, b in zip(c, body)) > 0.45]
    return (("body", body), *((part, _pick(rng, distinct)) for part in PARTS))


def _sample_distractor(rng: np.random.RandomState) -> Distractor:
    shape, x, y = _pick(rng, DISTRACTORS), _between(rng, 0.05, 0.95), _between(rng, 0.05, 0.95)
    size, turn = _between(rng, 0.05, 0.085), _between(rng, -1, 1)
    return Distractor(shape, x, y, size, turn, _pick(rng, VIVID))


def _perch_under(pose: Pose) -> tuple[float, float, float]:
    """A point of the branch under the feet and its slope, both in image coordinates."""
    cos, sin = cosine_sine(pose.tilt)
    return *pose.place(0.1, -1.47), (sin if pose.flip else -sin) / cos


@checked
def sample_scene(
    seed: Seed,
    species: Species | None = None,
    individual: Individual | None = None,
    background: str | None = None,
) -> Scene:
    """Draws a complete scene; the same arguments give the same scene on every machine.

    Args:
        seed: below 2**32. Every aspect has its own stream: fixing the species leaves the rest as it
            was.
        species: None draws one of `SPECIES` uniformly.
        individual: None draws a bird never seen before or again.
        background: one of `BACKGROUNDS`; None draws one.

    >>> sample_scene(7).with_noise(1).pose == sample_scene(7).pose
    True
    """
    pose, objects = _sample_pose(_stream(seed, "pose")), _stream(seed, "distractors")
    behind = _stream(seed, "background")
    drawn, behind_seed = _pick(behind, BACKGROUNDS), int(behind.randint(2**31))
    return Scene(
        parts=(species or _pick(_stream(seed, "species"), SPECIES)).variants,
        individual=individual or sample_individual(seed),
        colours=_sample_colours(_stream(seed, "plumage")),
        pose=pose,
        background=drawn if background is None else one_of("background", background, BACKGROUNDS),
        background_seed=behind_seed,
        light=_between(behind, 0.86, 1.08),
        distractors=tuple(_sample_distractor(objects) for _ in range(2 + objects.randint(5))),
        perch=_perch_under(pose),
        noise_seed=int(_stream(seed, "noise").randint(2**31)),
    )
