"""CARROT: a graph over patch tokens, a closed-form head, and exact attribution.

Images -> `TimmViTPatchBackbone` -> `RegionSet` -> `RegionGraphBuilder` -> `DiffusionOperator` ->
`GraphReadout` -> `RidgeHead`; `Carrot` is all of it in a row. Nothing here uses a gradient or an
optimiser.
"""

from ctrace.carrot.diffusion import READOUTS, DiffusionOperator, GraphReadout
from ctrace.carrot.graph import RegionGraph, RegionGraphBuilder, RegionSet
from ctrace.carrot.head import RidgeHead, training_contribution
from ctrace.carrot.pipeline import Carrot
