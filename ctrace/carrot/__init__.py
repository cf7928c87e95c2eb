"""CARROT: a graph over patch tokens, a closed-form head, and exact attribution. One file per
mathematical object.

Images -> `TimmViTPatchBackbone` -> `RegionSet` -> `RegionGraphBuilder` -> `DiffusionOperator` ->
`GraphReadout` -> `RidgeHead`; `Carrot` is all of it in a row. Nothing here uses a gradient or an
optimiser.
"""

from ctrace.carrot.attribution import (
    centrality,
    edge_energy,
    node_energy,
    region_contributions,
    remove_edge,
    remove_edges,
    remove_nodes,
    remove_subgraph,
    subset_logits,
)
from ctrace.carrot.graph import RegionGraph, RegionGraphBuilder
from ctrace.carrot.head import RidgeHead, training_contribution
from ctrace.carrot.operator import DiffusionOperator
from ctrace.carrot.pipeline import Carrot, Explanation
from ctrace.carrot.readout import READOUTS, GraphReadout
from ctrace.carrot.regions import RegionSet
from ctrace.world.tokens import PatchOutput, TimmViTPatchBackbone, patch_centers

__all__ = [
    "READOUTS",
    "Carrot",
    "DiffusionOperator",
    "Explanation",
    "GraphReadout",
    "PatchOutput",
    "RegionGraph",
    "RegionGraphBuilder",
    "RegionSet",
    "RidgeHead",
    "TimmViTPatchBackbone",
    "centrality",
    "edge_energy",
    "node_energy",
    "patch_centers",
    "region_contributions",
    "remove_edge",
    "remove_edges",
    "remove_nodes",
    "remove_subgraph",
    "subset_logits",
    "training_contribution",
]
