"""A feature matrix that remembers its channel names and its grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ctrace.world.photos import close_names


@dataclass(frozen=True, eq=False)
class GridFeatures:
    """Feature vectors on a grid, with a name for each channel.

    Invariant: ``n = n_images * h * w`` and row ``(image * h + y) * w + x`` is the cell ``(y, x)``
    of that image.

    Attributes:
        features: floating-point tensor ``(n, c)``.
        names: ``c`` different names.
        grid_hw: cells ``(h, w)`` of one image.
        n_images: how many images are stacked.

    Raises:
        ValueError: shapes that contradict each other, integer features, repeated names.

    >>> import torch
    >>> grid = GridFeatures(torch.arange(12.0).reshape(6, 2), ("a", "b"), (2, 3), 1)
    >>> grid.maps().shape
    torch.Size([1, 2, 3, 2])
    >>> grid.maps()[0, 1, 2].tolist()
    [10.0, 11.0]
    >>> grid.select(["b"]).features[:, 0].tolist()
    [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]
    """

    features: Tensor
    names: tuple[str, ...]
    grid_hw: tuple[int, int]
    n_images: int = 1

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "grid_hw", tuple(self.grid_hw))
        _check_matrix(self.features)
        _check_names(self.names, self.features.shape[1])
        _check_rows(self.features.shape[0], self.grid_hw, self.n_images)

    def maps(self) -> Tensor:
        """The features as images: a view ``(b, h, w, c)``."""
        return self.features.reshape(self.n_images, *self.grid_hw, len(self.names))

    def zscores(self) -> Tensor:
        """``(b, h, w, c)`` maps for the eye: each channel centred and divided by its standard
        deviation over all rows.

        A constant channel is zero everywhere. The result is detached.
        """
        x = self.features.detach()
        x = x - x.mean(0)
        std = x.pow(2).mean(0).sqrt()
        flat = std <= 1e-6 * self.features.detach().abs().amax(0)
        return (x / std.masked_fill(flat, 1) * ~flat).reshape(self.maps().shape)

    def requires_grad_(self, requires_grad: bool = True) -> GridFeatures:
        """Switches gradient tracking of `features` in place and returns the same object."""
        self.features.requires_grad_(requires_grad)
        return self

    def with_features(self, features: Tensor) -> GridFeatures:
        """The same names and grid around another ``(n, c)`` tensor."""
        return replace(self, features=features)

    def to(self, *args, **kwargs) -> GridFeatures:
        """The same features on another device or in another floating-point type, as
        `torch.Tensor.to`.
        """
        return self.with_features(self.features.to(*args, **kwargs))

    def index(self, name: str) -> int:
        """Column of the channel called `name`.

        Raises:
            ValueError: no such channel; close names are listed.
        """
        if name not in self.names:
            raise ValueError(f"no channel is named {name!r}. {close_names(name, self.names)}")
        return self.names.index(name)

    def select(self, names: Sequence[str]) -> GridFeatures:
        """Only the channels in `names`, in that order; gradients flow back to all of `features`."""
        columns = [self.index(name) for name in ([names] if isinstance(names, str) else names)]
        return replace(
            self, features=self.features[:, columns], names=tuple(self.names[i] for i in columns)
        )


def _check_matrix(features) -> None:
    if not isinstance(features, Tensor) or features.ndim != 2 or not features.is_floating_point():
        got = (
            f"{features.dtype} of shape {tuple(features.shape)}"
            if isinstance(features, Tensor)
            else type(features)
        )
        raise ValueError(
            f"expected floating-point features of shape (n, c), received {got}. "
            "Maps (b, h, w, c) become rows with maps.flatten(0, 2)."
        )


def _check_names(names: tuple, c: int) -> None:
    if len(names) != c:
        raise ValueError(
            f"expected {c} channel names, one per column of the features, received {len(names)}. "
            "If columns were dropped by hand, use select, which keeps the names in step."
        )
    repeated = (
        sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < c else []
    )
    if repeated:
        raise ValueError(
            f"channel names must differ, and {repeated} occur more than once. "
            "Number them, or a ranking by name cannot be read."
        )


def _check_rows(n: int, grid_hw: tuple, n_images: int) -> None:
    if len(grid_hw) != 2 or min(*grid_hw, n_images) < 1 or n != n_images * math.prod(grid_hw):
        raise ValueError(
            f"expected n = n_images * h * w rows, received n = {n} with n_images = {n_images} and grid_hw = {grid_hw}. "
            "Prefix tokens (class, register) left in the rows and a swapped (h, w) are the usual causes."
        )
