"""Normalized Cut embedding with a scikit-learn style interface: fit, transform, and what the solver
found.
"""

import torch
from torch import Tensor

from ctrace.check import check_features
from ctrace.cut.eigenvectors import ncut_eigenvectors
from ctrace.cut.graph import Graph
from ctrace.cut.nystrom import farthest_points, masses, propagate

__all__ = ["Ncut"]


class Ncut:
    """Normalized Cut embedding of feature rows.

    Up to ``max_exact`` points every point is in the graph. Beyond it the graph is built on
    ``n_landmarks`` points spread over the data, each standing for the points nearest to it, and the
    others are interpolated (`ctrace.cut.nystrom`); ``n_exact`` says how many points the solve was exact
    for.

    Args:
        n_eig: eigenvectors to keep, k.
        sigma: bandwidth: ``None`` (the affinity's own default: ``"local"`` scales for rbf, which
            show an open eigengap on features of photographs, 0.5 for cosine), a number, a rule's
            name, or one scale per point; see `ctrace.cut.affinity.bandwidth`.
        affinity: ``"rbf"``, ``"cosine"`` or a differentiable symmetric function.
        track_grad, exact_gradient: either one keeps the autograd graph, with the exact gradient;
            both off detaches the result.
        device: where to compute; the features' own device when ``None``. Results return to the
            features' device.
        max_exact: points up to which the graph is exact.
        n_landmarks: points of the graph beyond that.
        n_neighbors: landmarks that a new point is interpolated from.
        memory_limit: bytes that the ``(n, n)`` weights may take; beyond it they are computed again
            for each product.
        seed: for everything random. The same seed gives the same answer.

    >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    >>> ncut = Ncut(n_eig=2, sigma=1.0)
    >>> ncut.fit_transform(x).shape
    torch.Size([4, 2])
    >>> ncut.eigval
    tensor([1.0000, 1.0000])
    """

    def __init__(
        self,
        n_eig: int = 10,
        sigma=None,
        affinity="rbf",
        track_grad: bool = False,
        exact_gradient: bool = False,
        device=None,
        *,
        max_exact: int = 20_000,
        n_landmarks: int = 4096,
        n_neighbors: int = 16,
        memory_limit: int = 2**30,
        seed: int = 0,
    ):
        if not isinstance(n_eig, int) or n_eig < 1:
            raise ValueError(f"n_eig: expected a whole number of at least 1, received {n_eig!r}.")
        self.n_eig, self.sigma, self.affinity = n_eig, sigma, affinity
        self.track_grad = track_grad or exact_gradient
        self.device = _check_device(device)
        self.max_exact, self.n_landmarks, self.n_neighbors = max_exact, n_landmarks, n_neighbors
        self.memory_limit, self.seed = memory_limit, seed
        self.graph = self.spectrum = None

    def fit(self, X: Tensor) -> "Ncut":
        """Solves for the eigenvectors of ``X (n, c)``. Raises what `ctrace.cut.graph.Graph` and
        `ncut_eigenvectors` raise.
        """
        self._fit(X)
        return self

    def fit_transform(self, X: Tensor) -> Tensor:
        """Eigenvectors at the rows of ``X``: ``(n, k)``, with autograd history if it is tracked."""
        U, x, landmarks = self._fit(X)
        if landmarks is not None:
            U = propagate(U, x[landmarks], x, self.n_neighbors, pinned=landmarks)
        return (U if self.track_grad else U.detach()).to(X.device)

    def transform(self, X: Tensor) -> Tensor:
        """Eigenvectors interpolated at new rows ``(m, k)``; at a fitted row, the fitted vector.

        The fitted rows count as constants here: with tracking on, a gradient reaches ``X`` only.
        """
        if self.graph is None:
            raise ValueError(
                "transform: this Ncut has not been fitted. Call fit(X) or fit_transform(X) first."
            )
        x = check_features(X, rows_at_least=1).to(self.graph.x.device)
        if x.shape[1] != self.graph.x.shape[1]:
            raise ValueError(
                f"transform: expected {self.graph.x.shape[1]} channels, as fitted, received {x.shape[1]}."
            )
        with torch.set_grad_enabled(self.track_grad and torch.is_grad_enabled()):
            return propagate(self._eigvec, self.graph.x.detach(), x, self.n_neighbors).to(X.device)

    def _fit(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x = check_features(X).to(self.device or X.device)
        x = x if self.track_grad else x.detach()
        landmarks, mass, points = None, None, x
        if len(x) > self.max_exact:
            landmarks = farthest_points(x.detach(), self.n_landmarks, self.seed)
            points = x[landmarks]
            mass = masses(points, x)
        self.graph = Graph(points, self.sigma, self.affinity, self.memory_limit, self.seed, mass)
        U, self.spectrum = ncut_eigenvectors(self.graph, self.n_eig, self.seed)
        if mass is not None:
            U = (
                U / mass.sqrt()[:, None]
            )  # the entry of one of the points that the landmark stands for
        self._eigvec = U.detach()
        return U, x, landmarks

    def _after_fit(self, name: str):
        if self.spectrum is None:
            raise ValueError(
                f"{name}: this Ncut has not been fitted. Call fit(X) or fit_transform(X) first."
            )
        return self.spectrum

    @property
    def eigval(self) -> Tensor:
        """Eigenvalues ``(k,)`` of the last fit, descending."""
        return self._after_fit("eigval").eigval

    @property
    def eigengap(self) -> float:
        """``lam_k - lam_(k+1)`` of the last fit."""
        return self._after_fit("eigengap").eigengap

    @property
    def n_exact(self) -> int:
        """Points that the last fit was exact for."""
        self._after_fit("n_exact")
        return self.graph.n

    @property
    def bandwidth(self) -> Tensor | None:
        """The bandwidth that the last fit used. A rule is applied anew at each fit; a number is
        kept.
        """
        self._after_fit("bandwidth")
        return self.graph.sigma


def _check_device(device) -> torch.device | None:
    if device is None:
        return None
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device='cuda': this torch sees no CUDA device. Leave device out to compute where the features are, or install a CUDA "
            "build of torch and check torch.cuda.is_available()."
        )
    return device
