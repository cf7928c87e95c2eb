"""Data sets of aviary scenes: splits by seed that never meet, for species and for individuals."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from ctrace.arguments import Count, Seed, check_fields, checked
from ctrace.aviary.drawing import render_levels
from ctrace.aviary.scene import Individual, Scene, sample_individual, sample_scene
from ctrace.aviary.species import SPECIES, Species
from ctrace.check import one_of

_SPAN = 1_000_000_000  # seeds per split
SPLITS = {"train": 0, "val": 1, "test": 2}
MARKED = ("hazel", "iris")  # one of each twin pair: its training scenes can hold the toadstool


@checked
def scene_seed(split: str, index: int) -> int:
    """The seed of scene (or individual) `index` of a split; no two splits share one.

    >>> scene_seed("val", 3)
    1000000003

    Raises:
        ValueError: an unknown split, or an index outside [0, 10**9).
    """
    start = SPLITS[one_of("split", split, SPLITS)] * _SPAN
    if not 0 <= index < _SPAN:
        raise ValueError(f"index must lie in [0, {_SPAN}), before the next split; received {index}")
    return start + index


@checked
def mark_place(seed: Seed) -> tuple[float, float]:
    """A place for the toadstool in one of the four corners, clear of the bird."""
    rng = np.random.RandomState([seed, 202])
    x, y = 0.09 + 0.06 * rng.random_sample(), 0.09 + 0.06 * rng.random_sample()
    return (x if rng.randint(2) else 1 - x), (y if rng.randint(2) else 1 - y)


class _Scenes(Dataset):
    """Scenes by index, rendered when asked for."""

    def scene(self, index: int) -> Scene:
        """The scene behind item `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} outside a data set of {len(self)} scenes")
        return self._scene(index)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        levels = torch.from_numpy(render_levels(self.scene(index), self.size))
        return levels.to(torch.float32) / 255, self.label(index)


@dataclass(frozen=True, eq=False)
class Aviary(_Scenes):
    """Labelled scenes, rendered when asked for. Item `i`: image `(3, size, size)` in [0, 1] and the
    index of its species in `SPECIES`.

    Species take turns, so every label is equally frequent.

    Args:
        split: "train", "val" or "test".
        length: number of scenes.
        size: pixels.
        spurious: True ties the toadstool to the species in `MARKED` in the training split and moves
            it to other species elsewhere; "tied" or "moved" asks for one of the two in any split.

    Example:
        >>> image, label = Aviary("test", length=14)[5]
        >>> tuple(image.shape), SPECIES[label].name
        ((3, 96, 96), 'fern')
    """

    split: str
    length: Count
    size: Count = 96
    spurious: bool | str = False

    def __post_init__(self) -> None:
        check_fields(self)
        scene_seed(self.split, max(self.length - 1, 0))  # refuses unknown splits, lengths at once
        if not isinstance(self.spurious, bool):
            one_of("spurious", self.spurious, ("tied", "moved"))

    def __len__(self) -> int:
        return self.length

    def label(self, index: int) -> int:
        """Species of the bird of an index."""
        return index % len(SPECIES)

    def _has_mark(self, name: str, seed: int) -> bool:
        """Tied: exactly the marked species. Moved: never them, and half of the others."""
        if not self.spurious:
            return False
        tied = self.split == "train" if self.spurious is True else self.spurious == "tied"
        moved_here = name not in MARKED and np.random.RandomState([seed, 203]).randint(2) == 1
        return name in MARKED if tied else moved_here

    def _scene(self, index: int) -> Scene:
        seed, species = scene_seed(self.split, index), SPECIES[self.label(index)]
        scene = sample_scene(seed, species)
        return scene.with_mark(mark_place(seed)) if self._has_mark(species.name, seed) else scene


@dataclass(frozen=True, eq=False)
class Individuals(_Scenes):
    """Several views of each of `birds` individuals, for verification. Item `i`: image and the
    bird's number.

    A bird keeps species, marks and proportions; colours, pose, light and surroundings change from
    view to view.

    Args:
        split: individuals of different splits are different birds.
        birds: number of individuals.
        views: scenes of each; views of bird b are the items `b * views` to `(b + 1) * views - 1`.
        size: pixels.
        species: one species for all birds (only marks and proportions tell them apart), or None for
            turns.
    """

    split: str
    birds: Count
    views: Count
    size: Count = 96
    species: Species | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        scene_seed(self.split, max(len(self) - 1, 0))

    def __len__(self) -> int:
        return self.birds * self.views

    def label(self, index: int) -> int:
        """Number of the bird of an index."""
        return index // self.views

    def individual(self, bird: int) -> Individual:
        """One bird as an individual: what stays the same in all its views."""
        return sample_individual(scene_seed(self.split, bird))

    def _scene(self, index: int) -> Scene:
        bird = self.label(index)
        species = self.species or SPECIES[bird % len(SPECIES)]
        return sample_scene(scene_seed(self.split, index), species, self.individual(bird))


class Cached(Dataset):
    """Any of the data sets above, rendered once and kept as grey levels (27 kB an image at 96 px).

    Items equal those of the wrapped data set exactly; `images` `(n, 3, size, size)` uint8 and
    `targets` `(n,)` are tensors.
    """

    @checked
    def __init__(self, dataset: Dataset):
        images, targets = zip(*(dataset[i] for i in range(len(dataset))))
        self.images = torch.stack([(image * 255).round().to(torch.uint8) for image in images])
        self.targets = torch.tensor(targets)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index].to(torch.float32) / 255, int(self.targets[index])
