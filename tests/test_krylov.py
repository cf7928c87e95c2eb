"""The two iterations on matrices whose answer is known."""

import pytest
import torch

from ctrace.cut.krylov import conjugate_gradients, leading_eigenpairs

DOUBLE = torch.float64


def positive_definite(n=60, seed=0, spread=3.0):
    torch.manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(n, n, dtype=DOUBLE))[0]
    return (Q * torch.logspace(0, spread, n, dtype=DOUBLE)) @ Q.T


def test_conjugate_gradients_solve_every_column_to_its_own_length():
    A, B = positive_definite(), torch.randn(60, 4, dtype=DOUBLE)
    B = B * torch.tensor([1.0, 1e-6, 0.0, 1e6])
    X = conjugate_gradients(lambda v: A @ v, B, 1e-10)
    short = torch.linalg.norm(A @ X - B, dim=0) <= 1.01e-10 * B.norm(dim=0)
    assert short.all() and (X[:, 2] == 0).all()


def test_a_column_that_rests_is_the_column_alone():
    A, B = positive_definite(), torch.randn(60, 2, dtype=DOUBLE)
    B[:, 0] = A[:, 0]  # solved in other numbers of steps
    both = conjugate_gradients(lambda v: A @ v, B, 1e-12)
    for j in range(2):
        alone = conjugate_gradients(lambda v: A @ v, B[:, j : j + 1], 1e-12)
        assert torch.allclose(both[:, j], alone[:, 0], rtol=0, atol=1e-9)


def test_a_good_preconditioner_needs_one_step():
    A, products = positive_definite(), []

    def product(v):
        products.append(v.shape)
        return A @ v

    conjugate_gradients(product, torch.randn(60, 3, dtype=DOUBLE), 1e-8, torch.linalg.inv(A).matmul)
    assert len(products) <= 2


def test_the_residual_is_recomputed_so_that_drift_does_not_count_as_convergence():
    A, b = positive_definite(200, spread=3.5).float(), torch.randn(200, 1)
    x = conjugate_gradients(lambda v: A @ v, b, 1e-3)
    assert float((A @ x - b).norm() / b.norm()) < 2e-3


def test_no_convergence_says_how_far_it_came():
    A = positive_definite(spread=9.0)
    with pytest.raises(ArithmeticError, match="after 5 steps, expected 1.0e-10"):
        conjugate_gradients(lambda v: A @ v, torch.ones(60, 1, dtype=DOUBLE), 1e-10, max_steps=5)


def test_leading_eigenpairs_are_those_of_the_decomposition():
    A = positive_definite(300, spread=1.0) / 10
    eigval, eigvec = torch.linalg.eigh(A)
    U, lam = leading_eigenpairs(lambda v: A @ v, eigvec[:, -1:], 5)
    assert (lam[:5] - eigval.flip(0)[:5]).abs().max() < 1e-12
    assert torch.allclose(
        (U[:, :5] * eigvec.flip(1)[:, :5]).sum(0).abs(), torch.ones(5, dtype=DOUBLE), atol=1e-12
    )
