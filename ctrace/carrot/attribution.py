"""Which regions made the model say this: exact, without a gradient.

Two different questions. `region_contributions` splits a logit into parts that sum to it.
`remove_nodes`, `remove_edges` and `remove_subgraph` ask what the logit becomes when something is
taken out of the graph and everything else is left: degrees, diffusion and readout follow,
bandwidths and the other weights stay. A part of a sum need not be an effect. `Explanation` holds
both, beside the same two questions asked about training images.
"""

from dataclasses import dataclass
from itertools import product

import torch
from einops import einsum
from torch import Tensor

from ctrace.arguments import Numbers, check_places, checked, shaped
from ctrace.carrot.diffusion import DiffusionOperator, GraphReadout, exp_action
from ctrace.carrot.graph import RegionGraph, RegionSet

Tokens = shaped("b m c")


@checked
def centrality(
    graph: RegionGraph, operator: DiffusionOperator, readout: str | GraphReadout = "mean"
) -> Tensor:
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


@checked
def remove_nodes(H: Tokens, graph: RegionGraph, operator, readout, theta: Tensor) -> Tensor:
    """Logits of the image without region i, for every i: ``(b, m, k)``, without intercept.

    Equal to deleting row and column i of the weights and computing everything again, all regions in
    one call. Arguments as in `subset_logits`.
    """
    keep = 1 - torch.eye(H.shape[1], device=H.device)
    return subset_logits(H, graph, operator, readout, theta, keep)


@checked
def remove_subgraph(
    H: Tokens, graph: RegionGraph, operator, readout, theta: Tensor, nodes: Numbers
) -> Tensor:
    """Logits without a set of regions, all removed together: ``(b, k)``. ``nodes`` holds their
    numbers, the same in each image.
    """
    keep = torch.ones(H.shape[1], 1, device=H.device)
    keep[check_places("nodes", nodes, H.shape[1]).to(H.device)] = 0
    return subset_logits(H, graph, operator, readout, theta, keep)[:, 0]


@checked
def subset_logits(
    H: Tokens,
    graph: RegionGraph,
    operator: DiffusionOperator,
    readout: GraphReadout,
    theta: shaped("p k"),
    keep: Numbers,
) -> Tensor:
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
    if readout.is_linear and (len(theta), *graph.W.shape[:2]) != (H.shape[2], *H.shape[:2]):
        shapes = f"{tuple(H.shape)}, {tuple(theta.shape)} and {tuple(graph.W.shape)}"
        raise ValueError(f"H, theta, graph: expected (b, m, c), (c, k), (b, m, m), not {shapes}.")
    if not readout.is_linear:
        return _rebuilt(H, graph, operator, readout, theta, keep)
    d = graph.W @ keep  # (b, m, r), the degrees in each reduced graph
    if bool(((d == 0) & (keep > 0)).any()):
        raise ValueError("a region is left without any weight. Give each one to itself.")
    s = torch.where(keep > 0, d, torch.inf).rsqrt()
    omega = exp_action(lambda v: s * (graph.W @ (s * v)), readout.weights(d, keep), operator.t)
    return einsum(omega, H.to(omega) @ theta.to(omega), "b m r, b m k -> b r k")


@checked
def remove_edges(
    H: Tokens, graph: RegionGraph, operator, readout, theta: Tensor, edges: Numbers
) -> Tensor:
    """Logits after cutting one edge, for each of ``edges (e, 2)``: ``(b, e, k)``, without
    intercept.

    Raises:
        ValueError: an edge from a region to itself, or to one that is not there.
    """
    logits = []
    for i, j in _check_edges(edges, graph.W).tolist():
        W = graph.W.clone()
        W[:, i, j] = W[:, j, i] = 0
        logits.append(_once(W, H, operator, readout, theta))
    return torch.stack(logits, 1)


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why an image got the logit of a class, by ``n`` training images and by ``m`` regions.

    Attributes:
        target: the class, and ``versus`` the one it is set against, if any: then every number is
            about the difference of the two logits.
        logits: ``(k,)``.
        score: what is explained, the logit of the target (minus that of ``versus``).
        leave_one_out: change of the score when one training image is removed ``(n,)``; exact,
            negative for a helpful one.
        weight_view, dual_view: shares of the training images ``(n,)``; each sums to the score, and
            neither is an effect.
        region_split: shares of the regions ``(m,)``; with ``bias`` they sum to the score. None for
            a readout that is no weighted sum.
        region_removal: drop of the score when one region is taken out of the graph ``(m,)``; exact,
            positive for one that spoke for it.
        bias: the part of the score that no region has to do with.
        regions: with ``on_grid``, to lay numbers of regions on the image.
    """

    target: int
    versus: int | None
    logits: Tensor
    score: float
    leave_one_out: Tensor
    weight_view: Tensor
    dual_view: Tensor
    region_split: Tensor | None
    region_removal: Tensor
    bias: float
    regions: RegionSet

    def helpful(self, n: int = 5) -> list[int]:
        """The training images without which the score would be lowest, most helpful first; fewer
        than ``n`` if fewer help.
        """
        order = self.leave_one_out.argsort()[:n].tolist()
        return [i for i in order if self.leave_one_out[i] < 0]

    def harmful(self, n: int = 5) -> list[int]:
        """The training images without which the score would be highest, most harmful first."""
        order = self.leave_one_out.argsort(descending=True)[:n].tolist()
        return [i for i in order if self.leave_one_out[i] > 0]

    def on_grid(self, values: Tensor) -> Tensor:
        """Numbers of regions ``(m,)`` on the patches ``(h, w)``."""
        return self.regions.on_grid(values[None])[0]


def _once(W: Tensor, H: Tensor, operator, readout, theta: Tensor) -> Tensor:
    """Logits ``(b, k)`` of graphs given by their weights, the long way."""
    graph, H = RegionGraph.from_weights(W), H.to(W)
    if readout.is_linear:  # one column is diffused in place of c
        return einsum(centrality(graph, operator, readout), H @ theta.to(W), "b m, b m k -> b k")
    return readout(operator(H, graph), H, graph) @ theta.to(W)


def _rebuilt(H, graph: RegionGraph, operator, readout, theta: Tensor, keep: Tensor) -> Tensor:
    """The reduced graphs one by one, for readouts that need every diffused token."""
    b, _, r = keep.shape
    logits = graph.W.new_empty(b, r, theta.shape[1])
    for image, choice in product(range(b), range(r)):
        nodes = keep[image, :, choice].nonzero()[:, 0]
        W = graph.W[image, nodes[:, None], nodes][None]
        logits[image, choice] = _once(W, H[image, nodes][None], operator, readout, theta)[0]
    return logits


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
