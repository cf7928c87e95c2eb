"""The doctor: is this graph fit to be cut, into how many pieces, and does the cut survive noise?"""

from dataclasses import dataclass, replace

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ctrace.arguments import Count, Features, Positive, Seed, checked
from ctrace.check import check_number
from ctrace.cut.affinity import bandwidth, row_tiles
from ctrace.cut.eigenvectors import solve
from ctrace.cut.graph import Graph, PrecomputedGraph

__all__ = ["diagnose", "Diagnosis"]

SMALL_GAP = 5e-3  # photographs with named channels show .01 to .05, random features less than this
LONELY = 1e-3  # weight to all other nodes, relative to the weight to itself
JOINED = 1e-6  # least weight that joins two points, relative to the root of their degrees' product
STABLE = 0.9  # cosine of the largest angle that noise may turn a span by: 26 degrees
SALT = 0x5EED  # features that were drawn with the same seed would be their own noise


@dataclass(frozen=True)
class Diagnosis:
    """What degrees, leading eigenvalues and noise say about a graph; ``print`` it.

    Attributes:
        n: points.
        components: connected components, where a weight joins two points if it exceeds 1e-6 of the
            root of their degrees' product: a weaker one leaves no trace in float32 eigenvalues.
        degree: smallest, median and largest degree.
        eigval: leading eigenvalues, descending; empty if the graph was not solved.
        gaps: ``lam_k - lam_(k+1)`` for k = 1, 2, ...
        stability: for k = 1, 2, ... the cosine of the largest angle between the spans of k vectors
            without and with noise: 1 if the span stays, 0 if it loses a direction. Empty if the
            graph was not solved, or could not be under noise.
        suggested_k: the number of components if several of them are more than a point, since that
            cut severs nothing. Else the k with the widest gap, from 2 and from the number of
            components on, among those whose span stays (0.9 or more), or among all if none does.
            None if the graph was not solved.
        notes: in words, what is wrong and what to try.
    """

    n: int
    components: int
    degree: tuple[float, float, float]
    eigval: Tensor
    gaps: Tensor
    stability: Tensor
    suggested_k: int | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        low, middle, high = self.degree
        plural = "s" if self.components > 1 else ""
        lines = [
            f"graph of {self.n} points, {self.components} connected component{plural}",
            f"degree: {low:.3g} to {high:.3g}, median {middle:.3g}",
        ]
        rows = {"eigenvalues": self.eigval, "eigengaps": self.gaps, "stability": self.stability}
        for name, row in rows.items():
            if len(row) > 0:
                lines.append(f"{name:12}" + " ".join(f"{v:.3f}" for v in row.tolist()))
        if self.suggested_k is not None:
            gap = float(self.gaps[self.suggested_k - 1])
            lines.append(f"suggested k = {self.suggested_k}, eigengap {gap:.4f}")
        return "\n".join(lines + [f"- {note}" for note in self.notes])


@checked
def diagnose(
    graph: Graph | Features, n_eig: Count = 12, seed: Seed = 0, noise: Positive = 1.0
) -> Diagnosis:
    """Examines a graph, or the default graph of features ``(n, c)``.

    It is solved a second time under normal noise on the features, with the bandwidth's rule applied
    again. Where only weights are given, they are multiplied by ``exp(noise * z)``, ``z`` normal.

    Args:
        graph: a graph, or features.
        n_eig: eigenvalues to look at.
        seed: for the solver and the noise.
        noise: how far two points are moved against each other (root mean square), as a multiple of
            the median distance of a point to its 7th neighbour.

    Raises:
        ValueError: what `Graph` raises; fewer than three points; noise that is not positive.
    """
    graph = Graph(graph.detach(), seed=seed) if isinstance(graph, Tensor) else graph
    n = check_number("points", graph.n, whole=True, at_least=3)  # two have only one cut
    n_eig = max(2, min(n_eig, n - 1))
    degree = tuple(float(pick(graph.degree)) for pick in (torch.min, torch.median, torch.max))
    # The weight of a point to itself is 1 in a graph of features, unknown in a given W.
    given = isinstance(graph, PrecomputedGraph)
    lonely = 0 if given else int((graph.degree < 1 + LONELY).sum())
    components = _components(graph)
    if max(lonely, components) > n_eig:
        # Each piece brings an eigenvalue 1, and by Gershgorin each lonely point one within 2 *
        # LONELY of 1: a solver finds no gap to converge on.
        note = (
            f"{lonely} of {n} points stand alone: sigma is far too small. Try sigma='local'."
            if lonely > n_eig
            else f"{components} pieces: a cut into {n_eig} or fewer is undefined. Widen sigma, or "
            "ask for more eigenvalues (n_eig)."
        )
        return Diagnosis(n, components, degree, *[graph.degree.new_empty(0)] * 3, None, (note,))
    with torch.no_grad():
        U, spectrum = solve(graph, n_eig, seed)
        stability, trouble = _stability(graph, U, noise, seed)
    eigval = torch.cat([spectrum.eigval, spectrum.eigval.new_tensor([spectrum.next_eigval])])
    gaps = eigval[:-1] - eigval[1:]
    fewest = min(max(2, components), n_eig)  # a cut into fewer pieces than there are is undefined
    last = fewest if components - lonely > 1 else n_eig
    widest = int(gaps[fewest - 1 : last].argmax()) + fewest
    stays = stability[:last] >= STABLE
    stays[: fewest - 1] = False
    steady = gaps[: len(stays)].where(stays, -1)
    suggested = int(steady.argmax()) + 1 if bool(stays.any()) else widest
    found = Diagnosis(n, components, degree, eigval[:-1], gaps, stability, suggested, ())
    return replace(found, notes=_notes(found, lonely, widest, trouble))


def _components(graph: Graph) -> int:
    """Connected components of the weights above `JOINED`, each tile of rows read once."""
    root, labels, count = graph.degree.sqrt(), torch.arange(graph.n), graph.n
    for rows in row_tiles(graph.n, graph.x):
        joined = graph.rows(rows) > JOINED * root[rows, None] * root
        own, other = joined.nonzero(as_tuple=True)
        ends = labels[rows][own.cpu()], labels[other.cpu()]
        edges = coo_array((torch.ones(len(own)), ends), (count, count))
        count, merged = connected_components(edges, directed=False)
        labels = torch.from_numpy(merged).long()[labels]
        if count == 1:
            break
    return count


def _stability(graph: Graph, U: Tensor, noise: float, seed: int) -> tuple[Tensor, str]:
    """`Diagnosis.stability`, or nothing and why not."""
    try:
        V, _ = solve(_disturbed(graph, noise, seed), U.shape[1], seed)
    except (ValueError, ArithmeticError) as error:
        return U.new_empty(0), str(error)
    overlap = U.T @ V
    spans = range(1, len(overlap) + 1)
    return torch.stack([torch.linalg.svdvals(overlap[:k, :k])[-1] for k in spans]), ""


def _disturbed(graph: Graph, noise: float, seed: int) -> Graph:
    x, generator = graph.x.detach(), torch.Generator().manual_seed(seed ^ SALT)
    normal = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x)
    if isinstance(graph, PrecomputedGraph):
        return PrecomputedGraph(x * (noise * (normal + normal.T) / 2**0.5).exp())
    near = 2**0.5 * bandwidth(x, "local").median()  # to the 7th neighbour
    # The difference of two points moves by 2 c variances of one entry.
    return Graph(x + noise * near / (2 * x.shape[1]) ** 0.5 * normal, *graph.recipe)


def _notes(found: Diagnosis, lonely: int, widest: int, trouble: str) -> tuple[str, ...]:
    k, pieces, gap = found.suggested_k, found.components, float(found.gaps[widest - 1])
    cosine = float(found.stability[widest - 1]) if len(found.stability) > 0 else 1.0
    notes = {
        f"the graph falls into {pieces} pieces: a cut into fewer than {pieces} is undefined. Widen "
        "sigma to join them.": pieces > 1,
        f"{lonely} points have almost no weight to any other: outliers, or sigma too small for "
        "them. Try sigma='local'.": lonely > 0,
        f"no open eigengap (widest {gap:.1e}): these points have no clear number of segments. Read "
        "results at several k, or try another sigma.": gap < SMALL_GAP,
        f"the span at the widest gap, k = {widest}, is lost under noise (cosine {cosine:.2f}), "
        + (f"the one at k = {k} stays. " if k != widest else "and so is every other. ")
        + "A wider bandwidth is steadier, such as sigma='median'.": cosine < STABLE,
        f"stability was not measured. {trouble}": bool(trouble),
    }
    true = tuple(note for note, holds in notes.items() if holds)
    ready = f"connected, with an open eigengap that survives noise: ready to be cut into {k}."
    return true or (ready,)
