"""The toy aviary: birds made of known parts on cluttered backgrounds, re-rendered for every
intervention.

>>> from ctrace.aviary import render, sample_scene
>>> scene = sample_scene(seed=3)
>>> with_tail, without_tail = render(scene), render(scene.without("tail"))
>>> changed = (with_tail.image != without_tail.image).any(0)
>>> bool((with_tail.masks["tail"][changed] > 0).all())  # nothing else moved
True
"""

from .data import (
    MARKED,
    SPLITS,
    Aviary,
    Cached,
    Individuals,
    drop_parts,
    mark_place,
    scene_seed,
    soft_target,
)
from .drawing import Rendering, render, render_levels
from .scene import BACKGROUNDS, Distractor, Individual, Pose, Scene, sample_individual, sample_scene
from .species import (
    PARTS,
    SPECIES,
    VARIANTS,
    Species,
    check_species,
    consistent_species,
    differing_parts,
    species_by_name,
    sufficient_parts,
    twin_pairs,
)
from .truth import KINDS, centred_logits, importance_table, noise_ceiling, part_importance

__all__ = [
    "BACKGROUNDS",
    "KINDS",
    "MARKED",
    "PARTS",
    "SPECIES",
    "SPLITS",
    "VARIANTS",
    "Aviary",
    "Cached",
    "Distractor",
    "Individual",
    "Individuals",
    "Pose",
    "Rendering",
    "Scene",
    "Species",
    "centred_logits",
    "check_species",
    "consistent_species",
    "differing_parts",
    "drop_parts",
    "importance_table",
    "mark_place",
    "noise_ceiling",
    "part_importance",
    "render",
    "render_levels",
    "sample_individual",
    "sample_scene",
    "scene_seed",
    "soft_target",
    "species_by_name",
    "sufficient_parts",
    "twin_pairs",
]
