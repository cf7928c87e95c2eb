"""Regions of an image and the graph over them: how much each is tied to each other, by place and by
features.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ctrace.arguments import Count, check_fields, checked, numbering, shaped, warn, within
from ctrace.check import check_number
from ctrace.cut.graph import Graph
from ctrace.cut.kway import kway_ncut
from ctrace.cut.ncut import Ncut

NO_TIES = 1e-6  # mean off-diagonal weight below which exp(-tL) is the identity to the eye
SAMPLE = 1000  # regions whose distances a large graph's bandwidths are read from


@dataclass(eq=False)
class RegionSet:
    """The regions of a batch of images: groups of patches, the nodes of the graph.

    Attributes:
        features: ``H (b, m, c)``, the mean over a region's patches; ``(m, c)`` is a batch of one.
        positions: ``P (b, m, 2)``, the mean of its patches' centres, x then y in [-1, 1]; one ``(m,
            2)`` serves every image.
        members: the region of each patch ``(b, n)``, in 0 ... m - 1; by default each is its own.
        grid_hw: rows and columns of patches, ``n = h * w``; one row by default.

    Raises:
        ValueError: shapes that contradict each other.
    """

    features: shaped("b m c|m c")
    positions: shaped("b m 2|m 2")
    members: numbering("images n", below="m") | None = None
    grid_hw: tuple[Count, Count] | None = None

    def __post_init__(self):
        check_fields(self)
        self.features = self.features if self.features.ndim == 3 else self.features[None]
        b, m, _ = self.H.shape
        self.positions = self.P.expand(b, -1, -1) if self.P.ndim == 2 else self.P
        if self.members is None:
            self.members = torch.arange(m, device=self.H.device).expand(b, m)
        h, w = self.grid_hw = self.grid_hw or (1, self.members.shape[1])
        if self.P.shape != (b, m, 2) or self.members.shape != (b, h * w):
            raise ValueError(
                f"regions: expected P {(b, m, 2)} and members {(b, h * w)} on a {h} x {w} grid, "
                f"received {(*self.P.shape,)} and {(*self.members.shape,)}."
            )

    @property
    def H(self) -> Tensor:
        """Features ``(b, m, c)``."""
        return self.features

    @property
    def P(self) -> Tensor:
        """Centres ``(b, m, 2)``."""
        return self.positions

    @property
    def m(self) -> int:
        """Regions per image."""
        return self.H.shape[1]

    @classmethod
    def from_patches(cls, out) -> "RegionSet":
        """Every patch of a `PatchOutput` is its own region, m = n."""
        return cls(out.H, out.P, grid_hw=out.grid_hw)

    @classmethod
    def pooled(cls, out, size: int = 2) -> "RegionSet":
        """Blocks of ``size`` x ``size`` patches; smaller ones at the right and lower edge where the
        grid is no multiple.
        """
        (h, w), device = out.grid_hw, out.H.device
        check_number("size", size, whole=True, at_least=1, at_most=max(h, w))
        row, column = (torch.arange(side, device=device) // size for side in (h, w))
        block = (row[:, None] * (int(column[-1]) + 1) + column).flatten()  # (n,)
        return cls.grouped(out, block.expand(len(out.H), -1), int(block[-1]) + 1)

    @classmethod
    def segmented(cls, out, k: int) -> "RegionSet":
        """The k segments of each image's own normalised cut, see `ctrace.cut.kway.kway_ncut`.

        Raises:
            ArithmeticError: a segment came out empty, which a smaller ``k`` avoids.
        """
        labels = [kway_ncut(Ncut(n_eig=k).fit_transform(H)).argmax(1) for H in out.H]
        return cls.grouped(out, torch.stack(labels), k)

    @classmethod
    def grouped(cls, out, members: Tensor, m: int) -> "RegionSet":
        """Regions from the number of each patch's region, ``members (b, n)`` in 0 ... m - 1."""
        belongs = F.one_hot(members, m).to(out.H.dtype)  # (b, n, m)
        size = belongs.sum(1)  # (b, m)
        if bool((size == 0).any()):
            image, empty = (size == 0).nonzero()[0].tolist()
            raise ArithmeticError(
                f"regions: region {empty} of image {image} has no patch. Ask for fewer than {m}."
            )
        share = rearrange(belongs / size[:, None], "b n m -> b m n")
        return cls(share @ out.H, share @ out.P.to(out.H), members, out.grid_hw)

    @checked
    def on_grid(self, values: Tensor) -> Tensor:
        """One value per region ``(b, m)`` laid on the patches ``(b, h, w)``; with channels ``(b, m,
        k)`` to ``(b, h, w, k)``.
        """
        if values.shape[:2] != self.H.shape[:2]:
            raise ValueError(
                f"values: expected one per region, {(*self.H.shape[:2],)}, got {(*values.shape,)}."
            )
        rows = torch.arange(len(values), device=values.device)[:, None]
        on_patches = values[rows, self.members.to(values.device)]  # (b, n, ...)
        return rearrange(on_patches, "b (h w) ... -> b h w ...", h=self.grid_hw[0])


@dataclass(frozen=True, eq=False)
class RegionGraph:
    """The graph of each image, float64; ``W, L = graph`` unpacks it.

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

    def __iter__(self):
        return iter((self.W, self.L))

    @classmethod
    @checked
    def from_weights(cls, W: Tensor, sigma_s=None, sigma_f=None) -> "RegionGraph":
        """A graph from symmetric non-negative weights ``(b, m, m)``; ``(m, m)`` becomes a batch of
        one.

        Raises:
            ValueError: weights that are not square, symmetric, finite and non-negative, or a node
                without any weight.
        """
        W = (W if W.ndim == 3 else W[None]).double()
        square = W.ndim == 3 and W.shape[1] == W.shape[2]
        if not square or not (W >= 0).all() or not torch.allclose(W, W.mT, rtol=1e-9, atol=1e-12):
            raise ValueError(
                f"weights: expected (b, m, m), finite, >= 0, symmetric, received {tuple(W.shape)}. "
                "NaN comes from the tokens; (W + W.mT) / 2 is symmetric."
            )
        d = W.sum(-1)  # (b, m)
        if lonely := int((d == 0).sum()):
            raise ValueError(
                f"graph: {lonely} nodes have no weight. Give every node one to itself, or drop it."
            )
        s = d.rsqrt()
        L = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device) - s[..., None] * W * s[:, None]
        return cls(W, d, L, sigma_s, sigma_f)


@dataclass(eq=False)
class RegionGraphBuilder:
    """``W_ij = exp(-|p_i - p_j|^2 / sigma_s^2) exp(-|h_i - h_j|^2 / sigma_f^2)``, every pair tied.

    Args:
        sigma_s, sigma_f: bandwidths of place (in units of half an image side) and of features: a
            number, one per image ``(b,)``, or None, which takes the ``quantile`` of each image's
            distances between different regions.
        quantile: above 0 and up to 1; the median by default.

    Raises:
        ValueError: a setting outside its range.
    """

    sigma_s: float | Tensor | None = None
    sigma_f: float | Tensor | None = None
    quantile: within(above=0, at_most=1) = 0.5

    def __post_init__(self):
        check_fields(self)

    @checked
    def build(self, regions: RegionSet) -> RegionGraph:
        """The graph of each image, computed in float64 whatever the precision of the tokens.

        Raises:
            ArithmeticError: a bandwidth of zero, because most regions of an image coincide.

        Warns when a graph ties nothing to anything (mean weight between different regions below
        1e-6): diffusion is then the identity, whatever t.
        """
        by_place, by_feature = _distances(regions.P), _distances(regions.H)  # (b, m, m)
        sigma_s = self._bandwidth("sigma_s", by_place)
        sigma_f = self._bandwidth("sigma_f", by_feature)
        near, alike = by_place / sigma_s[:, None, None], by_feature / sigma_f[:, None, None]
        W, m = torch.exp(-near.square() - alike.square()), regions.m
        ties = (W.sum((1, 2)) - m) / max(1, m * (m - 1))  # (b,), the diagonal is 1
        if cut_off := int((ties < NO_TIES).sum()):
            warn(
                f"graph: in {cut_off} of {len(W)} images regions have a mean weight below "
                f"{NO_TIES:g}: the bandwidth is far below the distances, W is the identity and "
                "diffusion does nothing. Leave sigma_s and sigma_f at None to adapt them."
            )
        return RegionGraph.from_weights(W, sigma_s, sigma_f)

    def points(self, regions: RegionSet) -> list[Graph]:
        """The same graphs as `ctrace.cut.graph.Graph`, one per image, for more regions than a
        matrix allows.

        Their products are computed tile by tile. Bandwidths are read from up to 1,000 regions.
        """
        pick = torch.randperm(regions.m, generator=torch.Generator().manual_seed(0))[:SAMPLE]
        P, H = regions.P.double(), regions.H.double()
        sigma_s = self._bandwidth("sigma_s", _distances(P[:, pick]))
        sigma_f = self._bandwidth("sigma_f", _distances(H[:, pick]))
        scaled = torch.cat([P / sigma_s[:, None, None], H / sigma_f[:, None, None]], 2)
        # exp(-|a|^2) is the rbf kernel of bandwidth 1/sqrt(2)
        return [Graph(x, sigma=0.5**0.5) for x in scaled]

    def _bandwidth(self, name: str, distance: Tensor) -> Tensor:
        """One per image ``(b,)``: as given, or a quantile of the distances between different
        regions.
        """
        (b, m, _), sigma = distance.shape, getattr(self, name)
        if sigma is not None:
            sigma = torch.as_tensor(sigma, dtype=distance.dtype, device=distance.device).expand(b)
            if not bool(((sigma > 0) & torch.isfinite(sigma)).all()):
                raise ValueError(f"{name}: expected positive numbers, received {sigma.tolist()}.")
            return sigma
        if m < 2:
            raise ValueError(f"{name}: an image of one region has no distances. Pass a number.")
        upper = torch.triu_indices(m, m, 1, device=distance.device)
        pairs = distance[:, upper[0], upper[1]].sort(1).values  # (b, m (m - 1) / 2)
        sigma = pairs[:, max(0, round(self.quantile * pairs.shape[1]) - 1)]  # (b,)
        if not bool((sigma > 0).all()):
            value, image = sigma.min(0)
            raise ArithmeticError(
                f"{name}: the {self.quantile:g} quantile of the distances is {value:g} in image "
                f"{image}: a blank image, or NaN? Pass {name}, or a larger quantile."
            )
        return sigma


def _distances(x: Tensor) -> Tensor:
    """Distances between the rows of ``x (b, m, c)``: ``(b, m, m)``, float64, symmetric, exactly 0
    on the diagonal.
    """
    # only differences matter; about the mean the squares of cdist's matrix product cancel less
    x = x.double() - x.double().mean(1, keepdim=True)
    distance = torch.cdist(x, x)
    itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    return ((distance + distance.mT) / 2).masked_fill(itself, 0)
