"""Which map can be trusted: tests that a map can fail, controls that must fail them, and how sure
we are.

Everything takes prepared images ``(b, 3, height, width)`` and maps ``(b, height, width)``; any
method of drawing maps will do.
"""

from ctrace.trust.controls import controls, guided_backpropagation, planted_lie, planted_truth
from ctrace.trust.falsify import Falsification, angle_between, falsify, logit_drop
from ctrace.trust.fills import FILLS, filled
from ctrace.trust.localize import Scores, mass_inside, part_correlation, pointing_game
from ctrace.trust.perturb import Curve, Road, deletion, impute, insertion, road
from ctrace.trust.randomize import Cascade, cascade, randomize, stages
from ctrace.trust.rates import PairedTest, Rate, cohens_h, falsification_rate, paired_test, wilson
from ctrace.trust.thresholds import ThresholdVerdict, falsify_by_threshold

__all__ = [
    "controls",
    "guided_backpropagation",
    "planted_lie",
    "planted_truth",
    "Falsification",
    "angle_between",
    "falsify",
    "logit_drop",
    "FILLS",
    "filled",
    "Scores",
    "mass_inside",
    "part_correlation",
    "pointing_game",
    "Curve",
    "Road",
    "deletion",
    "insertion",
    "road",
    "impute",
    "Cascade",
    "cascade",
    "randomize",
    "stages",
    "PairedTest",
    "Rate",
    "cohens_h",
    "falsification_rate",
    "paired_test",
    "wilson",
    "ThresholdVerdict",
    "falsify_by_threshold",
]
