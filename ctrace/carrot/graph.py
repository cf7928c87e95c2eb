"""From regions to a graph: how much each region is tied to each other, by place and by features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrace.carrot.regions import RegionSet
from ctrace.cut.graph import Graph

__all__ = ["RegionGraph", "RegionGraphBuilder"]

NO_TIES = 1e-6  # mean off-diagonal weight below which exp(-tL) is the identity to the eye
SAMPLE = 1000  # regions whose distances a large graph's bandwidths are read from


@dataclass(frozen=True, eq=False)
class RegionGraph:
    """The graph of each image, float64.

    Attributes:
        W: weights ``(b, m, m)``, symmetric, between 0 and 1, with ones on the diagonal.
        d: degrees ``W 1`` ``(b, m)``.
        L: normalised Laplacian ``I - D^-1/2 W D^-1/2`` ``(b, m, m)``, eigenvalues in [0, 2].
        sigma_s, sigma_f: the bandwidths in use ``(b,)``; None for a graph given by its weights.
    """

    W: Tensor
    d: Tensor
    L: Tensor
    sigma_s: Tensor | None = None
    sigma_f: Tensor | None = None

    @classmethod
    def from_weights(
        cls, W: Tensor, sigma_s: Tensor | None = None, sigma_f: Tensor | None = None
    ) -> RegionGraph:
        """A graph from symmetric non-negative weights ``(b, m, m)`` (a single ``(m, m)`` becomes a
        batch of one).

        Raises:
            ValueError: weights that are not square, symmetric, finite and non-negative, or a node
                without any weight.
        """
        W = _check_weights(W[None] if W.ndim == 2 else W)
        d = W.sum(-1)  # (b, m)
        if not bool((d > 0).all()):
            raise ValueError(
                f"graph: {int((d <= 0).sum())} nodes have no weight, not even to themselves; exp(-tL) would fade them away."
            )
        s = d.rsqrt()
        L = (
            torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
            - s[..., None] * W * s[..., None, :]
        )  # (b, m, m)
        return cls(W, d, L, sigma_s, sigma_f)


class RegionGraphBuilder:
    """``W_ij = exp(-|p_i - p_j|^2 / sigma_s^2) exp(-d_f(h_i, h_j)^2 / sigma_f^2)``, full unless
    ``knn`` is given.

    Args:
        sigma_s, sigma_f: bandwidths of place (in units of half an image side) and of features: a
            number, one per image ``(b,)``, or None, which takes the ``quantile`` of each image's
            distances between different regions.
        quantile: between 0 and 1; the median by default.
        metric: ``"l2"`` for ``d_f = |h_i - h_j|``, ``"cosine"`` for ``d_f = 1 - cos(h_i, h_j)``.
        knn: keep an edge if either end has it among its ``knn`` strongest; None keeps all.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(
        self,
        sigma_s=None,
        sigma_f=None,
        quantile: float = 0.5,
        metric: str = "l2",
        knn: int | None = None,
    ):
        if metric not in ("l2", "cosine"):
            raise ValueError(f"metric: expected 'l2' or 'cosine', received {metric!r}.")
        if not 0 < quantile <= 1:
            raise ValueError(
                f"quantile: expected a number above 0 and up to 1, received {quantile!r}. The median is 0.5."
            )
        if knn is not None and (not isinstance(knn, int) or knn < 1):
            raise ValueError(
                f"knn: expected None or a whole number of neighbours of at least 1, received {knn!r}."
            )
        self.sigma_s, self.sigma_f = sigma_s, sigma_f
        self.quantile, self.metric, self.knn = quantile, metric, knn

    def build(self, regions: RegionSet) -> RegionGraph:
        """The graph of each image, computed in float64 whatever the precision of the tokens.

        Raises:
            ArithmeticError: a bandwidth of zero, because most regions of an image coincide.

        Warns when a graph ties nothing to anything (mean weight between different regions below
        1e-6): diffusion is then the identity, whatever t.
        """
        by_place = _distances(regions.P.double())  # (b, m, m)
        by_feature = _distances(regions.H.double(), self.metric)  # (b, m, m)
        sigma_s = _bandwidths(self.sigma_s, by_place, self.quantile, "sigma_s")
        sigma_f = _bandwidths(self.sigma_f, by_feature, self.quantile, "sigma_f")
        W = torch.exp(
            -((by_place / sigma_s[:, None, None]) ** 2) - (by_feature / sigma_f[:, None, None]) ** 2
        )
        _warn_if_cut_off(W)
        return RegionGraph.from_weights(
            W if self.knn is None else _nearest(W, self.knn), sigma_s, sigma_f
        )

    def points(self, regions: RegionSet) -> list[Graph]:
        """The same graphs as `ctrace.cut.graph.Graph`, one per image, for more regions than an ``(m,
        m)`` matrix allows.

        Their products are computed tile by tile. Bandwidths are read from up to 1,000 regions.

        Raises:
            ValueError: a cosine metric or ``knn``, neither of which is a Gaussian of differences.
        """
        if self.metric != "l2" or self.knn is not None:
            raise ValueError(
                "points: needs metric='l2' and no knn: only a full Gaussian graph can be multiplied without its weights."
            )
        pick = torch.randperm(regions.m, generator=torch.Generator().manual_seed(0))[:SAMPLE].to(
            regions.H.device
        )
        P, H = regions.P.double(), regions.H.double()
        sigma_s = _bandwidths(self.sigma_s, _distances(P[:, pick]), self.quantile, "sigma_s")
        sigma_f = _bandwidths(self.sigma_f, _distances(H[:, pick]), self.quantile, "sigma_f")
        # exp(-|a|^2) is the rbf kernel of bandwidth 1/sqrt(2).
        scaled = torch.cat(
            [P / sigma_s[:, None, None], H / sigma_f[:, None, None]], 2
        )  # (b, m, 2 + c)
        return [Graph(x, sigma=0.5**0.5) for x in scaled]


def _check_weights(W: Tensor) -> Tensor:
    if W.ndim != 3 or W.shape[1] != W.shape[2]:
        raise ValueError(f"weights: expected (b, m, m) or (m, m), received {tuple(W.shape)}.")
    W = W.double()
    if not bool(torch.isfinite(W).all()) or bool((W < 0).any()):
        raise ValueError(
            "weights: expected finite numbers >= 0. NaN or infinity comes from tokens that hold them: look upstream."
        )
    if not torch.allclose(W, W.transpose(1, 2), rtol=1e-9, atol=1e-12):
        raise ValueError("weights: expected a symmetric matrix. Use (W + W.transpose(-1, -2)) / 2.")
    return W


def _distances(x: Tensor, metric: str = "l2") -> Tensor:
    """Distances between the rows of ``x (b, m, c)``: ``(b, m, m)``, symmetric, exactly 0 on the
    diagonal.
    """
    if metric == "cosine":
        if bool((x == 0).all(-1).any()):
            raise ValueError("metric='cosine': a token of zeros has no direction. Use metric='l2'.")
        unit = F.normalize(x, dim=-1)
        distance = 1 - unit @ unit.transpose(1, 2)  # (b, m, m)
    else:
        # Only differences matter; without the mean the squares of cdist's matrix product cancel
        # less.
        distance = torch.cdist(
            x - x.mean(1, keepdim=True), x - x.mean(1, keepdim=True)
        )  # (b, m, m)
    distance = (distance + distance.transpose(1, 2)) / 2
    return distance.masked_fill(torch.eye(x.shape[1], dtype=torch.bool, device=x.device), 0)


def _bandwidths(sigma, distance: Tensor, quantile: float, name: str) -> Tensor:
    """One bandwidth per image ``(b,)``: as given, or the quantile of the distances between
    different regions.
    """
    b, m, _ = distance.shape
    if sigma is not None:
        sigma = torch.as_tensor(sigma, dtype=distance.dtype, device=distance.device).expand(b)
        if not bool((sigma > 0).all()) or not bool(torch.isfinite(sigma).all()):
            raise ValueError(
                f"{name}: expected positive numbers, received {sigma.tolist()}. None adapts it to each image."
            )
        return sigma
    if m < 2:
        raise ValueError(
            f"{name}: an image of one region has no distances to adapt to. Pass a number, or use more regions."
        )
    upper = torch.triu_indices(m, m, 1, device=distance.device)
    sigma = (
        distance[:, upper[0], upper[1]]
        .sort(1)
        .values[:, max(0, round(quantile * m * (m - 1) / 2) - 1)]
    )  # (b,)
    if not bool((sigma > 0).all()):
        raise ArithmeticError(
            f"{name}: the {quantile:g} quantile of the distances is 0 in image {int((sigma == 0).nonzero()[0])}: most regions coincide (a blank "
            f"image?). Pass {name} as a number, or a larger quantile."
        )
    return sigma


def _warn_if_cut_off(W: Tensor) -> None:
    m = W.shape[-1]
    ties = (W.sum((1, 2)) - m) / max(1, m * (m - 1))  # (b,), the diagonal is 1
    if bool((ties < NO_TIES).any()):
        warnings.warn(
            f"graph: in {int((ties < NO_TIES).sum())} of {len(W)} images the mean weight between different regions is below {NO_TIES:g} "
            f"(smallest {float(ties.min()):.1e}): the bandwidth is far below the distances, W is the identity and diffusion does nothing. "
            "Leave sigma_s and sigma_f at None to adapt them to each image.",
            stacklevel=3,
        )


def _nearest(W: Tensor, k: int) -> Tensor:
    """``W`` with the edges that are among the ``k`` strongest of either end, and its diagonal."""
    m = W.shape[-1]
    if k >= m:
        raise ValueError(
            f"knn: expected fewer neighbours than the {m - 1} other regions, received {k}. None keeps all edges."
        )
    own = torch.eye(m, dtype=torch.bool, device=W.device)
    keep = torch.zeros_like(W, dtype=torch.bool).scatter(
        2, W.masked_fill(own, -1).topk(k, dim=2).indices, True
    )
    return W * (keep | keep.transpose(1, 2) | own)
