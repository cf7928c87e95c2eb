"""Regions: groups of patches with one feature vector and one position each, the nodes of the graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrace.cut.kway import kway_ncut
from ctrace.cut.ncut import Ncut
from ctrace.world.tokens import PatchOutput

__all__ = ["RegionSet"]


@dataclass(frozen=True, eq=False)
class RegionSet:
    """The regions of a batch of images. Each patch belongs to exactly one region, each region has
    at least one patch.

    Attributes:
        H: features ``(b, m, c)``, the mean over a region's patches.
        P: centres ``(b, m, 2)``, the mean of its patches' centres, x then y in [-1, 1].
        members: the region of each patch ``(b, n)``, in 0 ... m - 1.
        grid_hw: rows and columns of patches, ``n = h * w``.

    Raises:
        ValueError: shapes that contradict each other, or a region without patches.
    """

    H: Tensor
    P: Tensor
    members: Tensor
    grid_hw: tuple[int, int]

    def __post_init__(self):
        b, m, _ = self.H.shape
        h, w = self.grid_hw
        if self.P.shape != (b, m, 2) or self.members.shape != (b, h * w):
            raise ValueError(
                f"regions: expected P {(b, m, 2)} and members {(b, h * w)} for H {tuple(self.H.shape)} on a {h} x {w} grid, received "
                f"P {tuple(self.P.shape)} and members {tuple(self.members.shape)}."
            )

    @classmethod
    def from_patches(cls, out: PatchOutput) -> RegionSet:
        """Every patch is its own region, m = n."""
        b, n, _ = out.H.shape
        return cls._grouped(out, torch.arange(n, device=out.H.device).expand(b, n), n)

    @classmethod
    def pooled(cls, out: PatchOutput, size: int = 2) -> RegionSet:
        """Blocks of ``size`` x ``size`` patches; smaller ones at the right and lower edge where the
        grid is no multiple.
        """
        if not 1 <= size <= max(out.grid_hw):
            raise ValueError(
                f"size: expected 1 to {max(out.grid_hw)} patches on a {out.grid_hw} grid, received {size}."
            )
        h, w = out.grid_hw
        columns = -(-w // size)
        row, column = (
            torch.arange(h, device=out.H.device) // size,
            torch.arange(w, device=out.H.device) // size,
        )
        block = (row[:, None] * columns + column).flatten()  # (n,)
        return cls._grouped(out, block.expand(len(out.H), -1), -(-h // size) * columns)

    @classmethod
    def segmented(cls, out: PatchOutput, k: int) -> RegionSet:
        """The k segments of each image's own normalised cut, see `ctrace.cut.kway.kway_ncut`.

        Raises:
            ArithmeticError: a segment came out empty, which a smaller ``k`` avoids.
        """
        labels = [kway_ncut(Ncut(n_eig=k).fit_transform(H)).argmax(1) for H in out.H]
        return cls._grouped(out, torch.stack(labels), k)

    @classmethod
    def _grouped(cls, out: PatchOutput, members: Tensor, m: int) -> RegionSet:
        belongs = F.one_hot(members, m).to(out.H.dtype)  # (b, n, m)
        size = belongs.sum(1)  # (b, m)
        if bool((size == 0).any()):
            image, empty = (size == 0).nonzero()[0].tolist()
            raise ArithmeticError(
                f"regions: region {empty} of image {image} has no patch; {m} are too many for it. Ask for fewer."
            )
        share = (belongs / size[:, None]).transpose(1, 2)  # (b, m, n)
        return cls(share @ out.H, share @ out.P.to(out.H), members, out.grid_hw)

    @property
    def m(self) -> int:
        """Regions per image."""
        return self.H.shape[1]

    def on_grid(self, values: Tensor) -> Tensor:
        """One value per region ``(b, m)`` laid on the patches ``(b, h, w)``; with channels ``(b, m,
        k)`` to ``(b, h, w, k)``.
        """
        if values.shape[:2] != self.H.shape[:2]:
            raise ValueError(
                f"values: expected one per region, {tuple(self.H.shape[:2])}, received {tuple(values.shape)}."
            )
        rows = torch.arange(len(values), device=values.device)[:, None]
        return values[rows, self.members.to(values.device)].unflatten(
            1, self.grid_hw
        )  # (b, h, w, ...)
