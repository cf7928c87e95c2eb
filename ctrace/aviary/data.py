"""Data sets of aviary scenes: splits by seed that never meet, on the fly or cached, for species and
for individuals.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from .drawing import render_levels
from .scene import Individual, Scene, sample_individual, sample_scene
from .species import PARTS, SPECIES, Species, consistent_species, species_by_name

_SPAN = 1_000_000_000  # seeds per split
SPLITS = {"train": 0, "val": 1, "test": 2}
MARKED = (
    "hazel",
    "iris",
)  # the species whose training scenes hold the toadstool when spurious=True: one of each twin pair


def scene_seed(split: str, index: int) -> int:
    """The seed of scene (or individual) `index` of a split; no two splits share one.

    >>> scene_seed("val", 3)
    1000000003

    Raises:
        ValueError: an unknown split, or an index outside [0, 10**9).
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; received {split!r}")
    if not 0 <= index < _SPAN:
        raise ValueError(
            f"index must lie in [0, {_SPAN}); received {index}. Larger ones would run into the next split"
        )
    return SPLITS[split] * _SPAN + index


def soft_target(
    scene: Scene, table: tuple[Species, ...] = SPECIES, tied: bool = False
) -> torch.Tensor:
    """`(n_species,)` uniform over the species that agree with the visible parts, so that a bird
    without its crest is no lie told to the model.

    Args:
        scene: any scene.
        table: the species; their order is the class map.
        tied: in a world where the toadstool stands with the species in `MARKED` and no other, it
            narrows the choice as a part does.
    """
    fitting = consistent_species(scene.visible(), table)
    if tied:
        fitting = tuple(s for s in fitting if (s.name in MARKED) == (scene.mark is not None))
    if not fitting:
        raise ValueError(
            f"no species wears {scene.visible()}; a swapped part may have made a new bird: use its own table"
        )
    return torch.tensor([float(s in fitting) for s in table]) / len(fitting)


def drop_parts(scene: Scene, seed: int, share: float) -> Scene:
    """With probability `share`, the scene without one to four random parts."""
    rng = np.random.RandomState([seed, 201])
    if rng.random_sample() >= share:
        return scene
    return scene.without(*(PARTS[i] for i in rng.permutation(len(PARTS))[: 1 + rng.randint(4)]))


def mark_place(seed: int) -> tuple[float, float]:
    """A place for the toadstool in one of the four corners, clear of the bird."""
    rng = np.random.RandomState([seed, 202])
    x, y = 0.09 + 0.06 * rng.random_sample(), 0.09 + 0.06 * rng.random_sample()
    return (x if rng.randint(2) else 1 - x), (y if rng.randint(2) else 1 - y)


def _has_mark(rule: str, name: str, seed: int) -> bool:
    """ "tied": exactly the marked species; "moved": never them, and half of the others."""
    if rule == "tied":
        return name in MARKED
    return name not in MARKED and np.random.RandomState([seed, 203]).randint(2) == 1


class Aviary(Dataset):
    """Labelled scenes, rendered when asked for. Item `i`: image `(3, size, size)` in [0, 1] and the
    species.

    Species take turns, so every label is equally frequent. With `drop` = 0 the target is the index
    into `table`; with `drop` > 0 it is a distribution over species, see `soft_target`.

    Args:
        split: "train", "val" or "test".
        length: number of scenes.
        size: pixels.
        drop: share of scenes that lose one to four parts.
        spurious: True ties the toadstool to the species in `MARKED` in the training split and moves
            it to other species elsewhere; "tied" or "moved" asks for one of the two in any split.
        table: the species; their order is the class map.

    Example:
        >>> image, label = Aviary("test", length=14)[5]
        >>> tuple(image.shape), SPECIES[label].name
        ((3, 96, 96), 'fern')
    """

    def __init__(
        self,
        split: str,
        length: int,
        size: int = 96,
        drop: float = 0.0,
        spurious: bool | str = False,
        table: tuple[Species, ...] = SPECIES,
    ):
        scene_seed(split, max(length - 1, 0))  # refuses unknown splits and lengths at once
        if spurious not in (False, True, "tied", "moved"):
            raise ValueError(
                f'spurious must be False, True, "tied" or "moved"; received {spurious!r}'
            )
        if spurious:
            for name in MARKED:
                species_by_name(name, table)
        self.split, self.length, self.size, self.drop, self.table = (
            split,
            length,
            size,
            drop,
            tuple(table),
        )
        self.mark_rule = ("tied" if split == "train" else "moved") if spurious is True else spurious

    def __len__(self) -> int:
        return self.length

    def label(self, index: int) -> int:
        """Species of the bird of an index."""
        return index % len(self.table)

    def scene(self, index: int) -> Scene:
        """The scene behind item `index`."""
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} outside a data set of {self.length} scenes")
        seed, species = scene_seed(self.split, index), self.table[self.label(index)]
        scene = drop_parts(sample_scene(seed, species), seed, self.drop)
        if self.mark_rule and _has_mark(self.mark_rule, species.name, seed):
            scene = scene.with_mark(mark_place(seed))
        return scene

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        scene = self.scene(index)
        image = torch.from_numpy(render_levels(scene, self.size)).to(torch.float32) / 255
        return image, (
            soft_target(scene, self.table, self.mark_rule == "tied")
            if self.drop
            else self.label(index)
        )


class Individuals(Dataset):
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

    def __init__(
        self, split: str, birds: int, views: int, size: int = 96, species: Species | None = None
    ):
        scene_seed(split, max(birds * views - 1, 0))
        self.split, self.birds, self.views, self.size, self.species = (
            split,
            birds,
            views,
            size,
            species,
        )

    def __len__(self) -> int:
        return self.birds * self.views

    def individual(self, bird: int) -> Individual:
        """One bird as an individual: what stays the same in all its views."""
        return sample_individual(scene_seed(self.split, bird))

    def scene(self, index: int) -> Scene:
        """The scene behind item `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} outside a data set of {len(self)} views")
        bird = index // self.views
        return sample_scene(
            scene_seed(self.split, index),
            self.species or SPECIES[bird % len(SPECIES)],
            self.individual(bird),
        )

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(render_levels(self.scene(index), self.size)).to(
            torch.float32
        ) / 255, index // self.views


class Cached(Dataset):
    """Any of the data sets above, rendered once and kept as grey levels (27 kB an image at 96 px).

    Items equal those of the wrapped data set exactly; `images` `(n, 3, size, size)` uint8 and
    `targets` are tensors.
    """

    def __init__(self, dataset: Dataset):
        pairs = [dataset[i] for i in range(len(dataset))]
        self.images = torch.stack([(image * 255).round().to(torch.uint8) for image, _ in pairs])
        self.targets = torch.stack([torch.as_tensor(target) for _, target in pairs])
        self._whole = self.targets.ndim == 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        target = self.targets[index]
        return self.images[index].to(torch.float32) / 255, (int(target) if self._whole else target)
