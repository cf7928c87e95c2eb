"""Literal, slow versions of the formulas, against which the package is tested. Written to be read
next to the papers.
"""

import torch
from torch import Tensor


def rbf_weights(x: Tensor, sigma: Tensor | float) -> Tensor:
    """One weight at a time: ``exp(-|x_i - x_j|^2 / (2 sigma_i sigma_j))``."""
    n = len(x)
    scale = torch.as_tensor(sigma, dtype=x.dtype).expand(n)
    return torch.stack(
        [
            torch.stack(
                [
                    torch.exp(-(x[i] - x[j]).pow(2).sum() / (2 * scale[i] * scale[j]))
                    for j in range(n)
                ]
            )
            for i in range(n)
        ]
    )


def normalized_weights(W: Tensor) -> Tensor:
    """``S = D^-1/2 W D^-1/2``."""
    d = W.sum(1)
    return W / (d[:, None] * d[None, :]).sqrt()


def leading_eigenvectors(W: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenpairs of ``S`` from the full eigendecomposition."""
    eigval, eigvec = torch.linalg.eigh(normalized_weights(W))
    return eigval.flip(0)[:k], eigvec.flip(1)[:, :k]


def subspace_angle(A: Tensor, B: Tensor) -> float:
    """Sine of the largest angle between the column spaces of two orthonormal bases."""
    A, B = A.double(), B.double()
    return float(torch.linalg.matrix_norm(A - B @ (B.T @ A), 2))


def central_difference(f, x: Tensor, direction: Tensor, step: float = 1e-4) -> float:
    """Slope of ``f`` at ``x`` along a direction, everything in ``f`` computed anew at both ends."""
    with torch.no_grad():
        return float((f(x + step * direction) - f(x - step * direction)) / (2 * step))


def relative_error(got: float, want: float) -> float:
    """``|got - want| / |want|``."""
    return abs(got - want) / abs(want)
