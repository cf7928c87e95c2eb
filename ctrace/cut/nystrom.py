"""More points than the exact graph takes: landmarks spread over the data, and interpolation from
them.

Each landmark stands for the points nearest to it. The columns are solved exactly on that weighted
graph (Fowlkes et al. 2004 call the idea Nystrom) and carried to every other point by weights that
sum to one, so that a constant column stays constant.
"""

import torch
from einops import einsum
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ctrace.arguments import Count, Features, Seed, checked, numbering, real

__all__ = ["farthest_points", "masses", "propagate"]

CANDIDATES = 8  # times the landmarks: the rows that farthest-point sampling chooses from
# small enough for a cache: larger temporaries cost more in page faults than in arithmetic
CHUNK_BYTES = 2**23


@checked
def farthest_points(x: Features, m: int, seed: Seed = 0) -> Tensor:
    """Indices ``(m,)`` of rows spread over the data, each the farthest from those before it.

    At most ``8 m`` candidate rows are looked at, drawn at random, so that the cost is ``O(m^2 c)``
    whatever ``n``.

    Raises:
        ValueError: more landmarks than rows.
    """
    if not 1 <= m <= len(x):
        raise ValueError(f"landmarks: expected between 1 and the {len(x)} rows, received {m}.")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    shuffled = order[: CANDIDATES * m].to(x.device)
    rows = x.detach()[shuffled]
    chosen = torch.zeros(m, dtype=torch.long, device=x.device)
    differences = rows - rows[0]  # memory that every round uses again
    nearest = differences.square_().sum(1)
    for i in range(1, m):
        chosen[i] = nearest.argmax()
        torch.sub(rows, rows[chosen[i]], out=differences)
        nearest = torch.minimum(nearest, differences.square_().sum(1))
    return shuffled[chosen]


@checked
def masses(landmarks: real("m c"), x: real("n c")) -> Tensor:
    """How many rows of ``x (n, c)`` have each landmark ``(m, c)`` as their nearest, ``(m,)``, at
    least one each; without gradient.

    Landmarks spread evenly where points crowd in some places. Without masses a cut of landmarks
    would forget the crowds.
    """
    with torch.no_grad():
        rows = max(1, CHUNK_BYTES // (x.element_size() * len(landmarks)))
        nearest = torch.empty(len(x), dtype=torch.long, device=x.device)
        for part, found in zip(x.split(rows), nearest.split(rows)):
            torch.argmin(_distances(part, landmarks), 1, out=found)
        # A copy of another landmark is nobody's nearest, yet stands for itself.
        return torch.bincount(nearest, minlength=len(landmarks)).clamp_min(1).to(x.dtype)


def _distances(x: Tensor, landmarks: Tensor) -> Tensor:
    """Distances ``(r, m)``; about a common centre, since the products behind `cdist` cancel."""
    centre = landmarks.mean(0)
    found = torch.cdist(x - centre, landmarks - centre)
    if not bool(torch.isfinite(found).all()):
        raise ValueError("features: distances overflow. Scale the features, or use float64.")
    return found


@checked
def propagate(
    values: real("m k"),
    landmarks: real("m c"),
    x: real("n c"),
    n_neighbors: Count = 16,
    pinned: numbering("m", below="n") | None = None,
) -> Tensor:
    """Interpolates ``values (m, k)``, known at ``landmarks (m, c)``, to the rows of ``x (n, c)``:
    ``(n, k)``.

    Each row takes a weighted mean over its nearest landmarks with weights ``softmax(-|x - l|^2 / (2
    s^2))``, ``s`` half the distance to the last of them. A row equal to a landmark takes that
    landmark's value. Differentiable in all three tensors; memory ``O(n k)`` plus a chunk, also with
    gradients.

    Args:
        pinned: the rows of ``x`` that the landmarks are ``(m,)``, when known; they take their
            values as they are.
    """
    p = min(n_neighbors, len(landmarks))
    rows = max(1, CHUNK_BYTES // (x.element_size() * max(len(landmarks), p * x.shape[1])))
    if torch.is_grad_enabled() and any(t.requires_grad for t in (values, landmarks, x)):
        # Recomputed in the backward pass: no chunk's (rows, p, c) tensors are kept.
        parts = [
            checkpoint(_interpolate, values, landmarks, part, p, use_reentrant=False)
            for part in x.split(rows)
        ]
        result = torch.cat(parts)
    else:
        # Written in place: small results kept between large temporaries would tear the allocator's
        # free blocks apart.
        result = values.new_empty(len(x), values.shape[1])
        for part, found in zip(x.split(rows), result.split(rows)):
            found.copy_(_interpolate(values, landmarks, part, p))
    return result if pinned is None else result.index_copy(0, pinned, values)


def _interpolate(values: Tensor, landmarks: Tensor, x: Tensor, p: int) -> Tensor:
    with torch.no_grad():
        near = _distances(x, landmarks).topk(p, largest=False).indices  # (r, p)
    # (r, p); differences, not products: exact zeros stay zero
    squared = (x[:, None] - landmarks[near]).square().sum(2)
    # all copies: weights stay equal
    scale = (squared.amax(1, keepdim=True) / 4).clamp_min(torch.finfo(x.dtype).tiny)
    weights = torch.softmax(-squared / (2 * scale), dim=1)
    same = squared.detach() == 0  # (r, p)
    share = same / same.sum(1, keepdim=True).clamp_min(1)
    weights = torch.where(same.any(1, keepdim=True), share, weights)
    return einsum(weights, values[near], "r p, r p k -> r k")
