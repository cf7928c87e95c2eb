"""A sample of `benchmarks/sweep.py`: right on every spectrum, and never more products than what
LAPACK would have cost.
"""

import pytest
import torch

from benchmarks import sweep
from ctrace import Graph
from ctrace.cut.eigenvectors import solve
from ctrace.cut.krylov import ADVANCE, DENSE_UP_TO, LAPACK_COST, SPARE

SIZES = {2: (1, 2), 9: (1, 4, 9), 120: (2, 60), 300: (10, 300), 800: (2, 100)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("spectrum", sweep.SPECTRA)
def test_the_subspace_is_right_and_no_shape_stalls(spectrum, n, dtype):
    x, sigma = sweep.SPECTRA[spectrum](n, torch.Generator().manual_seed(n))
    if bool((x == x[0]).all()):
        pytest.skip("two rows that are the same have nothing to cut")
    graph = Graph(x.to(dtype), 1.0 if n <= 9 else sigma)  # a few rows may have no local scale
    known = sweep.truth(graph)
    for k in SIZES[n]:
        U, found = solve(graph, k)
        assert not sweep.flaws(graph, U, found, known), k
        checks = 3 * (k + 1)  # of the answers of up to three ways
        steps = 0 if n <= DENSE_UP_TO else ADVANCE * LAPACK_COST * n + k + SPARE
        assert found.forward <= checks + steps


def test_a_flaw_is_seen():
    x, sigma = sweep.SPECTRA["three clusters"](60, torch.Generator().manual_seed(0))
    graph = Graph(x, sigma)
    U, found = solve(graph, 3)
    known = sweep.truth(graph)
    turned = torch.cat([U[:, :2], U[:, 2:].flip(0)], 1)
    assert "subspace" in sweep.flaws(graph, turned, found, known)[0]
    found.eigval = found.eigval + 1e-4
    assert "eigenvalues" in sweep.flaws(graph, U, found, known)[0]
