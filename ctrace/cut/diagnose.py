"""The doctor: is this graph fit to be cut, and into how many pieces?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ctrace.cut.eigenvectors import solve
from ctrace.cut.graph import Graph, PrecomputedGraph

__all__ = ["diagnose", "Diagnosis"]

SMALL_GAP = 5e-3  # photographs with named channels show .01 to .05, random features less than this
LONELY = 1e-3  # weight to all other nodes, relative to the weight to itself


@dataclass(frozen=True)
class Diagnosis:
    """What the leading eigenvalues and the degrees say about a graph; ``print`` it.

    Attributes:
        n: points.
        components: connected components, counted as eigenvalues equal to 1 (a lower bound if all
            shown are). Where more than `n_eig` points stand alone, the graph is not solved: each of
            them counts as a piece and the others as one.
        degree: smallest, median and largest degree.
        eigval: leading eigenvalues, descending; empty if the graph was not solved.
        gaps: ``lam_k - lam_(k+1)`` for k = 1, 2, ...
        suggested_k: the k with the widest gap, from 2 and from the number of components on; None if
            the graph was not solved.
        notes: in words, what is wrong and what to try.
    """

    n: int
    components: int
    degree: tuple[float, float, float]
    eigval: Tensor
    gaps: Tensor
    suggested_k: int | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        low, middle, high = self.degree
        at_least = "at least " if self.components > len(self.eigval) > 0 else ""
        lines = [
            f"graph of {self.n} points, {at_least}{self.components} connected component{'s' if self.components > 1 else ''}",
            f"degree: {low:.3g} to {high:.3g}, median {middle:.3g}",
        ]
        if self.suggested_k is not None:
            lines.append("eigenvalues: " + " ".join(f"{v:.4f}" for v in self.eigval.tolist()))
            lines.append(
                f"widest eigengap: {float(self.gaps[self.suggested_k - 1]):.4f}, after k = {self.suggested_k}"
            )
        return "\n".join(lines + [f"- {note}" for note in self.notes])


def diagnose(graph: Graph | PrecomputedGraph | Tensor, n_eig: int = 12, seed: int = 0) -> Diagnosis:
    """Examines a graph, or the default graph of features ``(n, c)``.

    Raises:
        ValueError: what `Graph` raises; fewer than three points.
    """
    graph = Graph(graph.detach(), seed=seed) if isinstance(graph, Tensor) else graph
    if graph.n < 3:
        raise ValueError(
            f"diagnose: expected at least 3 points, received {graph.n}; two points have only one possible cut."
        )
    n_eig = max(2, min(n_eig, graph.n - 1))
    degree = tuple(
        float(q) for q in (graph.degree.min(), graph.degree.median(), graph.degree.max())
    )
    lonely = _lonely(graph)
    if lonely > n_eig:
        # By Gershgorin each lonely point brings an eigenvalue within 2 * LONELY of 1: a solver
        # finds no gap to converge on.
        note = f"{lonely} of {graph.n} points stand alone: the bandwidth is far too small. Widen sigma, or try sigma='local'."
        nothing = graph.degree.new_empty(0)
        return Diagnosis(
            graph.n, lonely + (lonely < graph.n), degree, nothing, nothing, None, (note,)
        )
    with torch.no_grad():
        _, spectrum = solve(graph, n_eig, seed)
    eigval = torch.cat([spectrum.eigval, spectrum.eigval.new_tensor([spectrum.next_eigval])])
    gaps = eigval[:-1] - eigval[1:]
    components = int((eigval > 1 - spectrum.rounding).sum())
    fewest = min(max(2, components), n_eig)  # a cut into fewer pieces than there are is undefined
    suggested = int(gaps[fewest - 1 :].argmax()) + fewest
    return Diagnosis(
        graph.n,
        components,
        degree,
        eigval[:-1],
        gaps,
        suggested,
        _notes(lonely, components, eigval, gaps, suggested),
    )


def _lonely(graph: Graph | PrecomputedGraph) -> int:
    """Points whose weight to all others is below LONELY; the weight to itself is 1 in a `Graph`,
    unknown in a given ``W``.
    """
    return int((graph.degree < 1 + LONELY).sum()) if isinstance(graph, Graph) else 0


def _notes(
    lonely: int, components: int, eigval: Tensor, gaps: Tensor, suggested: int
) -> tuple[str, ...]:
    notes = []
    if components >= len(eigval):
        notes.append(
            f"all {len(eigval)} eigenvalues shown are 1: the bandwidth is far too small, points stand alone. Widen sigma."
        )
    elif components > 1:
        notes.append(
            f"the graph falls into {components} pieces: a cut into fewer than {components} is undefined. Widen sigma to join them."
        )
    if lonely:
        notes.append(
            f"{lonely} points have almost no weight to any other: outliers, or sigma too small for them. Try sigma='local'."
        )
    if components < len(eigval) and float(gaps[suggested - 1]) < SMALL_GAP:
        notes.append(
            f"no open eigengap (widest {float(gaps[suggested - 1]):.1e}): these points have no clear number of segments, and the "
            "subspace moves with small changes of the features. Read results at several k, or try another sigma."
        )
    return tuple(notes) or ("connected, with an open eigengap: ready to be cut.",)
