"""Channel tracing: cut the features into segments, then ask each segment which channels hold it
together.

The sign is fixed once, here: an attribution is ``+ ds_j / dx``, the effect of *raising* a channel
inside segment j on the strength ``s_j`` of that segment. Positive channels support the segment,
negative ones inhibit it. The recipe this follows negates the score before differentiating and sorts
descending, which puts the channels a segment lacks first; ``order="literal"`` reproduces it.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ctrace.arguments import Count, Features, check_places, checked, numbering, real, truth
from ctrace.check import check_names, check_number, one_of
from ctrace.cut.affinity import in_plain_mode
from ctrace.cut.eigenvectors import Spectrum, eigenvector_factors
from ctrace.cut.graph import Graph
from ctrace.cut.kway import kway_ncut
from ctrace.cut.ncut import Ncut
from ctrace.world.features import GridFeatures

__all__ = ["trace_channels", "ChannelTrace", "segment_strength", "ablate", "best_overlap"]

OBJECTIVES = ("association", "cut", "score")
KINDS = ("support", "inhibit", "abs")
ORDERS = ("effect", "literal")


@dataclass(frozen=True)
class ChannelTrace:
    """Segments, and what holds each together.

    Attributes:
        segments: segment of each point ``(n,)``, 0 is the largest.
        scores: strength ``s_j`` of each segment ``(k,)``; NaN for an empty one.
        attributions: ``(k, c)``, signed: ``> 0`` where raising the channel inside the segment
            strengthens it. NaN for an empty one.
        names: one per channel.
        soft: k-way scores ``Z (n, k)``.
        objective: how strength was measured.
        spectrum: eigenvalues and eigengap of the cut.
    """

    segments: Tensor
    scores: Tensor
    attributions: Tensor
    names: tuple[str, ...]
    soft: Tensor = field(repr=False)
    objective: str
    spectrum: Spectrum = field(repr=False)

    @checked
    def ranking(
        self, kind: str = "support", segment: int | None = None, order: str = "effect"
    ) -> Tensor:
        """Channel numbers, first the ones that matter most: ``(c,)`` for one segment, ``(k, c)``
        for all.

        Args:
            kind: ``"support"`` (most positive first), ``"inhibit"`` (most negative first) or
                ``"abs"``.
            segment: which; all when ``None`` (an empty segment's row is then in no meaningful
                order).
            order: ``"effect"``, or ``"literal"`` for the published recipe's sign, which is the
                opposite.

        Raises:
            ValueError: unknown kind, order or segment, or an empty segment.
        """
        one_of("kind", kind, KINDS)
        rows = slice(None) if segment is None else self._check_segment(segment)
        sign = 1 if one_of("order", order, ORDERS) == "effect" else -1
        effect = sign * self.attributions[rows]
        key = {"support": effect, "inhibit": -effect, "abs": effect.abs()}[kind]
        return torch.argsort(key, dim=-1, descending=True, stable=True)

    @checked
    def table(
        self, segment: int, kind: str = "support", top: Count = 5
    ) -> list[tuple[int, str, float]]:
        """The ``top`` channels of a segment as ``(number, name, attribution)``; fewer where fewer
        support it, or inhibit it: a channel that does neither belongs to ``"abs"`` alone.
        """
        best = self.ranking(kind, segment)[:top].tolist()
        rows = [(c, self.names[c], float(self.attributions[segment, c])) for c in best]
        sign = {"support": 1, "inhibit": -1}.get(kind)
        return [row for row in rows if sign is None or sign * row[2] > 0]

    @checked
    def mask(self, segment: int) -> Tensor:
        """Points of a segment ``(n,)``, boolean."""
        return self.segments == self._check_segment(segment)

    def _check_segment(self, segment: int) -> int:
        check_number("segment", segment, whole=True, at_least=0, below=len(self.scores))
        if bool(torch.isnan(self.scores[segment])):
            raise ValueError(
                f"segment {segment} is empty: no point was assigned to it, so no channel holds it. "
                "Ask for fewer segments."
            )
        return segment


@in_plain_mode
@checked
def trace_channels(
    features: Features | GridFeatures,
    n_segments: Count,
    objective: str = "association",
    names: tuple[str, ...] | None = None,
    **ncut,
) -> ChannelTrace:
    """Cuts features into segments and attributes each segment to the channels.

    Args:
        features: ``(n, c)``, or a `GridFeatures`, whose names are kept. Several images are
            segmented jointly: stack their rows. Sixteen bits are computed in float32.
        n_segments: k.
        objective: what a segment's strength is, see `segment_strength`.
        names: channel names for a plain tensor.
        ncut: passed to `Ncut`: ``sigma``, ``affinity``, ``seed``, ``memory_limit``, ...

    Returns:
        A `ChannelTrace`. An attribution is the mean of the gradient over the segment: times the
        segment's size, the slope of its strength when the channel is raised throughout, with the
        bandwidth's rule applied again. (The ``"median"`` is the distance of one pair of points, and
        its slope theirs alone: pass it as a number.)

    Raises:
        ValueError: bad features, choices or names, or more points than `Ncut` cuts exactly
            (``max_exact``).
        ArithmeticError: the gap below the k-th eigenvalue is closed: this k cannot be
            differentiated.
    """
    one_of("objective", objective, OBJECTIVES)
    if isinstance(features, GridFeatures):
        if names is not None:
            raise ValueError(
                "names: these features carry their own; leave names out, or pass features.features "
                "with your names."
            )
        features, names = features.features, features.names
    x = features.detach().clone().requires_grad_()
    names = names if names is not None else [f"ch {c}" for c in range(x.shape[1])]
    names = check_names(names, x.shape[1])
    solver = Ncut(n_eig=n_segments, track_grad=True, **ncut)
    if len(x) > solver.max_exact:
        raise ValueError(
            f"features: {len(x)} points, and an exact trace takes max_exact={solver.max_exact}. "
            "Use a coarser grid, or raise max_exact."
        )
    with torch.enable_grad():
        U = solver.fit_transform(x).detach().requires_grad_()
        Z = kway_ncut(U)
        segments = Z.detach().argmax(1)
        strengths = segment_strength(Z, segments, solver.graph, objective)
        attributions = _attributions(strengths, segments, U, solver)
    scores, soft = strengths.detach(), Z.detach()
    return ChannelTrace(segments, scores, attributions, names, soft, objective, solver.spectrum)


@checked
def segment_strength(
    Z: real("n k"),
    segments: numbering("n", below="k"),
    graph: Graph,
    objective: str = "association",
) -> Tensor:
    """Strength of each segment ``(k,)``, differentiable; NaN for an empty segment.

    - ``"association"``: ``z_j^T W z_j / z_j^T D z_j`` with soft membership ``z_j = D^-1/2 Z_j``:
      the share of the segment's weight that stays inside it. Over all segments the shares sum to
      ``lam_1 + ... + lam_k``, the best value any k segments can have.
    - ``"cut"``: minus the normalized cut of the segment as assigned, ``-cut(A, rest) / volume(A)``.
      The assignment is held fixed, so no eigenvector is differentiated: it asks only about the
      borders as they are.
    - ``"score"``: ``mean |Z_ij|`` over the segment, as published. Unit columns pin it near
      ``1 / sqrt(size)``: its gradient is small.
    """
    inside = torch.nn.functional.one_hot(segments, Z.shape[1]).to(Z.dtype)  # (n, k)
    size = inside.sum(0)
    if objective == "score":
        strength = (Z.abs() * inside).sum(0) / size
    else:
        degree = graph @ torch.ones_like(Z[:, :1])  # (n, 1), differentiable
        z = Z / degree.sqrt() if objective == "association" else inside
        strength = (z * (graph @ z)).sum(0) / (z * z * degree).sum(0)  # 1 - cut / volume
        strength = strength - 1 if objective == "cut" else strength
    return torch.where(size > 0, strength, torch.nan)


def _attributions(strengths: Tensor, segments: Tensor, U: Tensor, solver: Ncut) -> Tensor:
    """``(k, c)``: the gradient of each strength, averaged over its segment; NaN for an empty one.

    Equal to k backward passes to the features, but all segments share one implicit solve, one pass
    over the graph for the features and one for the bandwidth.
    """
    graph, found = solver.graph, segments.unique().tolist()
    factors, pulls, whole = [], [], []
    for j in found:
        with graph.deferred() as direct:  # what the strength owes to W itself, with U held
            pull, _ = torch.autograd.grad(
                strengths[j],
                (U, graph.x),
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        factors.append(direct)
        pulls.append(pull)
    through_U = eigenvector_factors(graph, U.detach(), solver.spectrum, pulls)
    attributions = U.new_full((len(strengths), graph.x.shape[1]), torch.nan, requires_grad=False)
    for j, direct, implicit in zip(found, factors, through_U, strict=True):
        left, right = (torch.cat(side, 1) for side in zip(*direct, implicit, strict=True))
        own = (segments == j).nonzero()[:, 0]
        attributions[j] = graph.vjp(left, right, own).mean(0)
        whole.append((left, right))
    if graph.differentiates_sigma:
        for j, slope in zip(found, graph.sigma_vjp(whole), strict=True):
            (grad,) = torch.autograd.grad(
                graph.sigma, graph.x, slope, retain_graph=True, materialize_grads=True
            )
            attributions[j] += grad[segments == j].mean(0)
    return attributions


# --- ablation


@checked
def ablate(features: Features, channels) -> Tensor:
    """The features with the given channels set to their mean over all points: they no longer tell
    points apart.
    """
    x = features.detach().clone()
    channels = check_places("channels", channels, x.shape[1]).to(x.device)
    x[:, channels] = x[:, channels].mean(0)
    return x


@checked
def best_overlap(mask: truth("n"), segments: numbering("n")) -> float:
    """How much of a segment survives in another segmentation: its largest intersection over union
    with any segment there.
    """
    overlaps = [
        ((segments == j) & mask).sum() / ((segments == j) | mask).sum() for j in segments.unique()
    ]
    return float(max(overlaps))
