"""Normalized Cut embedding with a scikit-learn style interface."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ctrace.arguments import Bandwidth, Count, Positive, Seed, Whole, check_fields
from ctrace.check import check_device, check_features
from ctrace.cut.affinity import in_plain_mode
from ctrace.cut.eigenvectors import ncut_eigenvectors
from ctrace.cut.graph import Graph
from ctrace.cut.nystrom import farthest_points, masses, propagate

__all__ = ["Ncut"]


@dataclass(eq=False)
class Ncut:
    """Normalized Cut embedding of feature rows.

    Up to ``max_exact`` points every point is in the graph. Beyond it the graph is built on
    ``n_landmarks`` points spread over the data, each standing for the points nearest to it, and the
    others are interpolated (`ctrace.cut.nystrom`); ``n_exact`` says how many points the solve was
    exact for. Features of sixteen bits, and all features under `torch.autocast`, are computed in
    float32, and so is the result.

    Args:
        n_eig: eigenvectors to keep, k.
        sigma: bandwidth: ``None`` (the affinity's own default: ``"local"`` scales for rbf, 0.5 for
            cosine), a number, a rule's name, or one scale per point; see
            `ctrace.cut.affinity.bandwidth`. Local scales are distances between neighbours, and
            noise as large as those can take the span away: `diagnose` measures whether it does.
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
        bandwidth_grad: the gradient includes that of a bandwidth chosen by a rule; ``False`` holds
            the bandwidth fixed.
        tolerance, gradient_tolerance: where the iterations end, see `ncut_eigenvectors`.

    After a fit: ``graph`` and ``spectrum``; a fit that is refused leaves the one before as it was.

    >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    >>> ncut = Ncut(n_eig=2, sigma=1.0)
    >>> ncut.fit_transform(x).shape
    torch.Size([4, 2])
    >>> ncut.eigval
    tensor([1.0000, 1.0000])
    """

    n_eig: Count = 10
    sigma: Bandwidth = None
    affinity: str | Callable = "rbf"
    track_grad: bool = False
    exact_gradient: bool = False
    device: str | torch.device | int | None = None
    _: KW_ONLY
    max_exact: Count = 20_000
    n_landmarks: Count = 4096
    n_neighbors: Count = 16
    memory_limit: Whole = 2**30
    seed: Seed = 0
    bandwidth_grad: bool = True
    tolerance: Positive | None = None
    gradient_tolerance: Positive | None = None

    def __post_init__(self):
        check_fields(self)
        self.track_grad = self.track_grad or self.exact_gradient
        self.device = check_device(self.device)
        self.graph = self.spectrum = self._eigvec = None

    @in_plain_mode
    def fit(self, X: Tensor) -> "Ncut":
        """Solves for the eigenvectors of ``X (n, c)``. Raises what `ctrace.cut.graph.Graph` and
        `ncut_eigenvectors` raise.
        """
        self._fit(X)
        return self

    @in_plain_mode
    def fit_transform(self, X: Tensor) -> Tensor:
        """Eigenvectors at the rows of ``X``: ``(n, k)``, with autograd history if it is tracked."""
        U, x, landmarks = self._fit(X)
        if landmarks is not None:
            U = propagate(U, x[landmarks], x, self.n_neighbors, pinned=landmarks)
        return (U if self.track_grad else U.detach()).to(X.device)

    @in_plain_mode
    def transform(self, X: Tensor) -> Tensor:
        """Eigenvectors interpolated at new rows ``(m, k)``; at a fitted row, the fitted vector.

        The fitted rows count as constants here: with tracking on, a gradient reaches ``X`` only.
        """
        fitted = self._fitted("transform").graph.x.detach()
        x = check_features(X, rows_at_least=1).to(fitted.device)
        if x.shape[1] != fitted.shape[1] or x.dtype != fitted.dtype:
            raise ValueError(
                f"transform: expected {fitted.shape[1]} channels in {fitted.dtype}, as fitted, "
                f"received {x.shape[1]} in {x.dtype}."
            )
        with torch.set_grad_enabled(self.track_grad and torch.is_grad_enabled()):
            return propagate(self._eigvec, fitted, x, self.n_neighbors).to(X.device)

    def _fit(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x = check_features(X).to(self.device or X.device)
        x = x if self.track_grad else x.detach()
        landmarks, mass, points = None, None, x
        if len(x) > self.max_exact:
            landmarks = farthest_points(x.detach(), self.n_landmarks, self.seed)
            points = x[landmarks]
            mass = masses(points, x)
        settings = self.affinity, self.memory_limit, self.seed, mass, self.bandwidth_grad
        graph = Graph(points, self.sigma, *settings)
        tolerances = self.tolerance, self.gradient_tolerance
        U, spectrum = ncut_eigenvectors(graph, self.n_eig, self.seed, *tolerances)
        if mass is not None:  # the entry of one of the points that the landmark stands for
            U = U / mass.sqrt()[:, None]
        self.graph, self.spectrum, self._eigvec = graph, spectrum, U.detach()
        return U, x, landmarks

    def _fitted(self, name: str) -> "Ncut":
        if self.spectrum is None:
            raise ValueError(
                f"{name}: this Ncut has not been fitted. Call fit(X) or fit_transform(X) first."
            )
        return self

    @property
    def eigval(self) -> Tensor:
        """Eigenvalues ``(k,)`` of the last fit, descending."""
        return self._fitted("eigval").spectrum.eigval

    @property
    def eigengap(self) -> float:
        """``lam_k - lam_(k+1)`` of the last fit."""
        return self._fitted("eigengap").spectrum.eigengap

    @property
    def n_exact(self) -> int:
        """Points that the last fit was exact for."""
        return self._fitted("n_exact").graph.n

    @property
    def bandwidth(self) -> Tensor | None:
        """The bandwidth that the last fit used. A rule is applied anew at each fit; a number is
        kept.
        """
        sigma = self._fitted("bandwidth").graph.sigma
        return None if sigma is None else sigma.detach()
