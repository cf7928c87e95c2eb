"""Which regions made the model say this: exact, without a gradient.

Two different questions. `region_contributions` splits a logit into parts that sum to it.
`remove_nodes`, `remove_edges` and `remove_subgraph` ask what the logit becomes when something is
taken out of the graph and everything else is left: degrees, diffusion and readout follow,
bandwidths and the other weights stay. A part of a sum need not be an effect.
"""

import torch
from einops import einsum
from torch import Tensor

from ctrace.carrot.diffusion import DiffusionOperator, GraphReadout, exp_action
from ctrace.carrot.graph import RegionGraph

CHUNK_BYTES = 2**27  # graphs rebuilt at a time, for readouts that are not linear


def centrality(graph: RegionGraph, operator: DiffusionOperator, readout="mean") -> Tensor:
    """How much each original token counts in the embedding: ``omega (b, m)`` with ``g = omega^T
    H``.

    ``w^T exp(-tL) H = (exp(-tL) w)^T H``, so it is one diffusion of the readout's weights ``w``.
    With equal degrees and the mean readout every region counts 1/m, whatever the edges are.

    Raises:
        ValueError: a readout that is no weighted sum (`GraphReadout.is_linear`).
    """
    readout = GraphReadout(readout) if isinstance(readout, str) else readout
    return operator(readout.weights(graph.d)[..., None], graph)[..., 0]


def region_contributions(omega: Tensor, H: Tensor, theta: Tensor) -> Tensor:
    """The logits split over regions: ``omega_i h_i . theta_k``, ``(b, m, k)``; summed over regions,
    the logits without intercept.
    """
    return omega[..., None] * (H.to(omega) @ theta.to(omega))


def edge_energy(graph: RegionGraph, H: Tensor) -> Tensor:
    """``W_ij |h_i / sqrt(d_i) - h_j / sqrt(d_j)|^2 / 2`` ``(b, m, m)``: what each edge pays for
    tying unlike regions.

    Summed over everything it is the Dirichlet energy ``trace(H^T L H)``.
    """
    scaled = H.to(graph.W) * graph.d.rsqrt()[..., None]  # (b, m, c)
    return graph.W * torch.cdist(scaled, scaled).square() / 2


def node_energy(graph: RegionGraph, H: Tensor) -> Tensor:
    """Each region's share of the Dirichlet energy ``(b, m)``: the sum over its edges of
    `edge_energy`.
    """
    return edge_energy(graph, H).sum(2)


def remove_nodes(H: Tensor, graph: RegionGraph, operator, readout, theta: Tensor) -> Tensor:
    """Logits of the image without region i, for every i: ``(b, m, k)``, without intercept.

    Equal to deleting row and column i of the weights and computing everything again, all regions in
    one call. Arguments as in `subset_logits`.
    """
    keep = 1 - torch.eye(H.shape[1], device=H.device)
    return subset_logits(H, graph, operator, readout, theta, keep)


def remove_subgraph(H, graph: RegionGraph, operator, readout, theta: Tensor, nodes) -> Tensor:
    """Logits without a set of regions, all removed together: ``(b, k)``. ``nodes`` holds their
    numbers, the same in each image.
    """
    keep = torch.ones(H.shape[1], 1, device=H.device)
    keep[torch.as_tensor(nodes, dtype=torch.long, device=H.device)] = 0
    return subset_logits(H, graph, operator, readout, theta, keep)[:, 0]


def subset_logits(H, graph: RegionGraph, operator, readout, theta: Tensor, keep) -> Tensor:
    """Logits of the image with only some of its regions, for many choices at once.

    Args:
        H: tokens ``(b, m, c)``.
        graph, operator, readout: what leads from them to an embedding.
        theta: the head's weights ``(p, k)``.
        keep: ``(m, r)`` or ``(b, m, r)``; column j holds 1 for the regions that stay in choice j
            and 0 for the others.

    Returns:
        ``(b, r, k)``, without intercept: column by column what the reduced graph gives.

    Raises:
        ValueError: masks that do not fit, or a choice that keeps nothing.
    """
    keep = _check_keep(keep, graph.W)
    if not readout.is_linear:
        return _rebuilt(H, graph, operator, readout, theta, keep)
    d = graph.W @ keep  # (b, m, r), the degrees in each reduced graph
    s = _check_degrees(torch.where(keep > 0, d, torch.inf)).rsqrt()
    return _read(lambda v: s * (graph.W @ (s * v)), readout.weights(d, keep), operator, H, theta)


def remove_edges(H, graph: RegionGraph, operator, readout, theta: Tensor, edges) -> Tensor:
    """Logits after cutting one edge, for each of ``edges (e, 2)``: ``(b, e, k)``, without
    intercept.

    Raises:
        ValueError: an edge from a region to itself, or to one that is not there.
    """
    i, j = _check_edges(edges, graph.W).unbind(1)
    e, cut = torch.arange(len(i), device=i.device), graph.W[:, i, j]  # (b, e)
    if not readout.is_linear:
        cut_graphs = graph.W.repeat(len(i), 1, 1, 1)  # (e, b, m, m)
        cut_graphs[e, :, i, j] = cut_graphs[e, :, j, i] = 0
        return torch.stack([_once(W, H, operator, readout, theta) for W in cut_graphs], 1)

    def product(v):
        """Column e times the weights without edge e."""
        out = graph.W @ v
        out[:, i, e] -= cut * v[:, j, e]
        out[:, j, e] -= cut * v[:, i, e]
        return out

    d = product(torch.ones(*graph.d.shape, len(i), dtype=cut.dtype, device=cut.device))  # (b, m, e)
    s = _check_degrees(d).rsqrt()
    return _read(lambda v: s * product(s * v), readout.weights(d), operator, H, theta)


def _read(product, weights: Tensor, operator, H: Tensor, theta: Tensor) -> Tensor:
    """One column of readout weights per choice, all diffused together, then read against the head:
    ``(b, r, k)``.
    """
    omega = exp_action(product, weights, operator.t)  # (b, m, r)
    return einsum(omega, H.to(omega) @ theta.to(omega), "b m r, b m k -> b r k")


def _once(W: Tensor, H: Tensor, operator, readout, theta: Tensor) -> Tensor:
    """Logits ``(b, k)`` of graphs given by their weights, the long way."""
    graph, H = RegionGraph.from_weights(W), H.to(W)
    return readout(operator(H, graph), H, graph) @ theta.to(W)


def _rebuilt(H, graph: RegionGraph, operator, readout, theta: Tensor, keep: Tensor) -> Tensor:
    """The reduced graphs one by one in memory, in batches of equal size: for readouts that need
    every diffused token.
    """
    b, _, r = keep.shape
    sizes, logits = keep.sum(1).long(), graph.W.new_empty(b, r, theta.shape[1])  # (b, r), (b, r, k)
    for size in sizes.unique().tolist():
        for part in (sizes == size).nonzero().split(max(1, CHUNK_BYTES // (8 * size**2))):
            image, choice = part.unbind(1)
            nodes = keep[image, :, choice].nonzero()[:, 1].unflatten(0, (-1, size))  # (q, size)
            W = graph.W[image[:, None, None], nodes[:, :, None], nodes[:, None, :]]
            logits[image, choice] = _once(W, H[image[:, None], nodes], operator, readout, theta)
    return logits


def _check_degrees(d: Tensor) -> Tensor:
    if not bool((d > 0).all()):
        raise ValueError("a region is left without any weight. Give each one to itself.")
    return d


def _check_keep(keep, W: Tensor) -> Tensor:
    b, m, _ = W.shape
    keep = torch.as_tensor(keep, device=W.device).to(W.dtype)
    keep = keep.expand(b, -1, -1) if keep.ndim == 2 else keep
    fits = keep.ndim == 3 and keep.shape[:2] == (b, m) and ((keep == 0) | (keep == 1)).all()
    if not fits or not keep.any(1).all():
        raise ValueError(
            f"keep: expected zeros and ones ({m}, r) or ({b}, {m}, r), one column per choice, "
            f"received {(*keep.shape,)}; or a choice removes every region: keep at least one."
        )
    return keep


def _check_edges(edges, W: Tensor) -> Tensor:
    edges, m = torch.as_tensor(edges, device=W.device), W.shape[-1]
    pairs = edges.ndim == 2 and edges.shape[1] == 2 and not edges.is_floating_point()
    if not pairs or (edges[:, 0] == edges[:, 1]).any() or ((edges < 0) | (edges >= m)).any():
        raise ValueError(
            f"edges: expected pairs (e, 2) of two different regions in 0 ... {m - 1}, received "
            f"{(*edges.shape,)} {edges.dtype}; a region's tie to itself is no edge."
        )
    return edges
