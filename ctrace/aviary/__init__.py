"""The toy aviary: birds made of known parts on cluttered backgrounds, re-rendered for every
intervention.

>>> from ctrace.aviary import render, sample_scene
>>> scene = sample_scene(seed=3)
>>> with_tail, without_tail = render(scene), render(scene.without("tail"))
>>> changed = (with_tail.image != without_tail.image).any(0)
>>> bool((with_tail.masks["tail"][changed] > 0).all())  # nothing else moved
True
"""

from ctrace.aviary.data import MARKED, Aviary, Cached, Individuals, mark_place, scene_seed
from ctrace.aviary.drawing import Rendering, render, render_levels
from ctrace.aviary.scene import BACKGROUNDS, Scene, sample_individual, sample_scene
from ctrace.aviary.species import PARTS, SPECIES, VARIANTS, Species, species_by_name
from ctrace.aviary.truth import KINDS, centred_logits, importance_table, part_importance
