"""The doctor: is this graph fit to be cut, and into how many pieces?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ctrace.eigenvectors import solve
from ctrace.graph import Graph, PrecomputedGraph

__all__ = ["diagnose", "Diagnosis"]

SMALL_GAP = 5e-3  # photographs with named channels show .01 to .05, random features less than this
LONELY = 1e-3  # weight to all other nodes, relative to the weight to itself


@dataclass(frozen=True)
class Diagnosis:
    """What the leading eigenvalues and the degrees say about a graph; ``print`` it.

    Attributes:
        n: points. components: connected components, counted as eigenvalues equal to 1 (a lower bound if all shown are).
        degree: smallest, median and largest degree. eigval: leading eigenvalues, descending. gaps: ``lam_k - lam_(k+1)`` for
        k = 1, 2, ... suggested_k: the k with the widest gap, from 2 and
        from the number of components on. notes: in words, what is wrong and what to try.
    """

    n: int
    components: int
    degree: tuple[float, float, float]
    eigval: Tensor
    gaps: Tensor
    suggested_k: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        low, middle, high = self.degree
        lines = [
            f"graph of {self.n} points, {self.components} connected component{'s' if self.components > 1 else ''}",
            f"degree: {low:.3g} to {high:.3g}, median {middle:.3g}",
            "eigenvalues: " + " ".join(f"{v:.4f}" for v in self.eigval.tolist()),
            f"widest eigengap: {float(self.gaps[self.suggested_k - 1]):.4f}, after k = {self.suggested_k}",
        ]
        return "\n".join(lines + [f"- {note}" for note in self.notes])


def diagnose(graph: Graph | PrecomputedGraph | Tensor, n_eig: int = 12, seed: int = 0) -> Diagnosis:
    """Examines a graph, or the default graph of features ``(n, c)``.

    Raises:
        ValueError: what `Graph` raises; fewer than three points.
    """
    graph = Graph(graph.detach(), seed=seed) if isinstance(graph, Tensor) else graph
    if graph.n < 3:
        raise ValueError(f"diagnose: expected at least 3 points, received {graph.n}; two points have only one possible cut.")
    n_eig = max(2, min(n_eig, graph.n - 1))
    with torch.no_grad():
        _, spectrum = solve(graph, n_eig, seed)
    eigval = torch.cat([spectrum.eigval, spectrum.eigval.new_tensor([spectrum.next_eigval])])
    gaps = eigval[:-1] - eigval[1:]
    components = int((eigval > 1 - spectrum.rounding).sum())
    fewest = min(max(2, components), n_eig)  # a cut into fewer pieces than there are is undefined
    suggested = int(gaps[fewest - 1 :].argmax()) + fewest
    degree = tuple(float(q) for q in (graph.degree.min(), graph.degree.median(), graph.degree.max()))
    return Diagnosis(graph.n, components, degree, eigval[:-1], gaps, suggested, _notes(graph, components, eigval, gaps, suggested))


def _notes(graph, components: int, eigval: Tensor, gaps: Tensor, suggested: int) -> tuple[str, ...]:
    notes = []
    lonely = int((graph.degree < 1 + LONELY).sum()) if isinstance(graph, Graph) else 0
    if components >= len(eigval):
        notes.append(f"all {len(eigval)} eigenvalues shown are 1: the bandwidth is far too small, points stand alone. Widen sigma.")
    elif components > 1:
        notes.append(f"the graph falls into {components} pieces: a cut into fewer than {components} is undefined. Widen sigma to join them.")
    if 0 < lonely < graph.n:
        notes.append(f"{lonely} points have almost no weight to any other: outliers, or sigma too small for them. Try sigma='local'.")
    if components < len(eigval) and float(gaps[suggested - 1]) < SMALL_GAP:
        notes.append(
            f"no open eigengap (widest {float(gaps[suggested - 1]):.1e}): these points have no clear number of segments, and the "
            "subspace moves with small changes of the features. Read results at several k, or try another sigma."
        )
    return tuple(notes) or ("connected, with an open eigengap: ready to be cut.",)
