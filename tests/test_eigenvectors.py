import pytest
import torch
from reference import central_difference, leading_eigenvectors, relative_error, subspace_angle

from ctrace import Graph, Ncut, PrecomputedGraph, bandwidth, kway_ncut, ncut_eigenvectors

DOUBLE = torch.float64


def blobs(sizes=(70, 50, 40, 30), c=6, spread=2.5, seed=0):
    torch.manual_seed(seed)
    return torch.cat(
        [torch.randn(n, c, dtype=DOUBLE) + spread * torch.randn(c, dtype=DOUBLE) for n in sizes]
    )


def symmetric_blobs():
    """Four copies of one blob, turned by 90 degrees: every eigenvalue but two is repeated."""
    torch.manual_seed(1)
    blob = torch.randn(40, 2, dtype=DOUBLE) * 0.3 + torch.tensor([3.0, 0.0])
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=DOUBLE)
    return torch.cat([blob, blob @ quarter, blob @ quarter @ quarter, blob @ quarter.T])


def identical_clusters(sizes=(50, 40, 30, 20)):
    torch.manual_seed(2)
    return torch.randn(len(sizes), 6, dtype=DOUBLE).repeat_interleave(torch.tensor(sizes), 0)


def disconnected():
    torch.manual_seed(3)
    return torch.cat(
        [torch.randn(n, 3, dtype=DOUBLE) + shift for n, shift in ((60, 0), (50, 200), (40, -200))]
    )


CASES = {
    "random": (blobs(), None, 4),
    "identical": (identical_clusters(), 2.0, 4),
    "identical, equal sizes": (identical_clusters((40, 40, 40, 40)), 2.0, 4),
    "symmetric": (symmetric_blobs(), 1.0, 4),
    "disconnected": (disconnected(), 1.0, 3),
}


@pytest.fixture(params=["dense", "krylov"])
def solver(request, monkeypatch):
    """Both ways of solving, at any size, each on its own."""
    for limit in ("DENSE_UP_TO", "DENSE_AT_MOST"):
        monkeypatch.setattr(f"ctrace.cut.krylov.{limit}", 10**6 if request.param == "dense" else 0)
    return request.param


def kway_loss(sigma, k, weight):
    """Depends on every score, through the whole pipeline."""
    return lambda x: (kway_ncut(ncut_eigenvectors(Graph(x, sigma), k)[0]).square() * weight).sum()


# --- eigenvectors


@pytest.mark.parametrize("sigma", ["local", "median", 3.0])
def test_eigenvectors_agree_with_the_full_decomposition(solver, sigma):
    x = blobs()
    graph = Graph(x, sigma)
    U, spectrum = ncut_eigenvectors(graph, 4)
    eigval, V = leading_eigenvectors(graph.weights(), 4)
    assert subspace_angle(U, V) < 1e-6
    assert (spectrum.eigval - eigval).abs().max() < 1e-12
    assert torch.allclose(U.T @ U, torch.eye(4, dtype=DOUBLE), atol=1e-12)
    assert abs(float(spectrum.eigval[0]) - 1) < 1e-12


def test_spectrum_reports_the_next_eigenvalue(solver):
    graph = Graph(blobs())
    eigval, _ = leading_eigenvectors(graph.weights(), 5)
    assert abs(ncut_eigenvectors(graph, 4)[1].eigengap - float(eigval[3] - eigval[4])) < 1e-10


def test_spectrum_counts_the_columns_of_all_products(solver, monkeypatch):
    graph, seen, plain = Graph(blobs().requires_grad_()), [], Graph.matmul
    monkeypatch.setattr(Graph, "matmul", lambda g, v: (seen.append(v.shape[1]), plain(g, v))[1])
    U, spectrum = ncut_eigenvectors(graph, 4)
    assert spectrum.forward == sum(seen) > 0 and spectrum.backward == 0
    kway_ncut(U).pow(3).sum().backward()
    assert spectrum.backward == sum(seen) - spectrum.forward > 0


def test_a_loose_tolerance_takes_fewer_products_and_keeps_its_word(monkeypatch):
    monkeypatch.setattr("ctrace.cut.krylov.DENSE_UP_TO", 0)
    monkeypatch.setattr("ctrace.cut.krylov.DENSE_AT_MOST", 0)
    columns = []
    for tolerance in (None, 1e-3):
        x = blobs().requires_grad_()
        U, spectrum = ncut_eigenvectors(Graph(x), 4, 0, tolerance, tolerance)
        kway_ncut(U).pow(3).sum().backward()
        columns.append((spectrum.forward, spectrum.backward))
        assert spectrum.residual <= (tolerance or 1e-12)
    assert columns[1][0] < columns[0][0] and columns[1][1] < columns[0][1]
    with pytest.raises(ValueError, match="tolerance: expected a finite number above 0"):
        ncut_eigenvectors(Graph(x), 4, tolerance=-1.0)


def test_each_column_is_positive_at_its_largest_entry(solver):
    U, _ = ncut_eigenvectors(Graph(blobs()), 4)
    assert (U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all()


def test_krylov_solves_a_spectrum_with_hardly_any_gap(monkeypatch):
    monkeypatch.setattr("ctrace.cut.krylov.DENSE_UP_TO", 0)
    monkeypatch.setattr("ctrace.cut.krylov.DENSE_AT_MOST", 0)
    torch.manual_seed(0)
    graph = Graph(torch.randn(700, 100, dtype=DOUBLE), "median")
    U, spectrum = ncut_eigenvectors(graph, 10)
    assert spectrum.eigengap < 2e-4
    assert subspace_angle(U, leading_eigenvectors(graph.weights(), 10)[1]) < 1e-6


@pytest.mark.parametrize("n, k", [(600, 100), (530, 63)])
def test_a_basis_that_would_outgrow_the_points_gives_way_to_the_whole_decomposition(n, k):
    torch.manual_seed(0)
    graph = Graph(torch.randn(n, 20))
    U, spectrum = ncut_eigenvectors(graph, k)
    eigval, V = leading_eigenvectors(graph.weights().double(), k)
    assert (spectrum.eigval - eigval).abs().max() < 1e-5 and subspace_angle(U, V) < 1e-3


@pytest.mark.parametrize("stand_in", [True, False])
@pytest.mark.parametrize("seed", range(4, 10))
def test_few_distinct_colours_give_eigenvectors_and_no_ghosts(seed, stand_in, monkeypatch):
    """Five colours, 600 points: a basis that filled up with rounding had eigenvalues above 1."""
    if not stand_in:
        monkeypatch.setattr("ctrace.cut.krylov.DENSE_AT_MOST", 0)
    torch.manual_seed(seed)
    graph = Graph(torch.rand(5, 3)[torch.randint(5, (600,))], 0.05)
    U, spectrum = ncut_eigenvectors(graph, 5)
    S = graph.weights() / (graph.degree[:, None] * graph.degree).sqrt()
    assert spectrum.eigval.max() < 1 + 1e-5
    assert (U.T @ U - torch.eye(5)).abs().max() < 1e-5
    assert (S @ U - U * spectrum.eigval).norm(dim=0).max() < 1e-5


@pytest.mark.parametrize("spoil", ["residual", "twist", "range"])
def test_an_iteration_that_went_wrong_is_replaced_or_refused(spoil, monkeypatch):
    monkeypatch.setattr("ctrace.cut.krylov.DENSE_UP_TO", 0)
    monkeypatch.setattr("ctrace.cut.krylov.FEWEST_STEPS", 0)
    graph = Graph(blobs((300, 200, 100)))
    _, U = leading_eigenvectors(graph.weights(), 12)

    def wrong(product, known, k, *_):
        V = {"residual": U.flip(0), "twist": U[:, [0] * 12], "range": U}[spoil]
        values = (V * product(V)).sum(0)
        return V, values + 1 if spoil == "range" else values

    monkeypatch.setattr("ctrace.cut.krylov.leading_eigenpairs", wrong)
    assert subspace_angle(ncut_eigenvectors(graph, 4)[0], U[:, :4]) < 1e-6
    monkeypatch.setattr("ctrace.cut.krylov.DENSE_AT_MOST", 100)
    with pytest.raises(ArithmeticError, match="eigenvectors: the (residual|vectors|values)"):
        ncut_eigenvectors(graph, 4)


def test_features_changed_in_place_are_noticed_by_the_backward_pass():
    x = blobs().requires_grad_()
    U = Ncut(4, track_grad=True).fit_transform(x)
    with torch.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        kway_ncut(U).pow(3).sum().backward()


def test_as_many_eigenvectors_as_points_are_allowed():
    x = blobs((3, 2))
    x.requires_grad_()
    U, spectrum = ncut_eigenvectors(Graph(x, 3.0), 5)
    assert spectrum.eigengap == float("inf")
    (U @ U.T).square().sum().backward()
    assert x.grad.abs().max() < 1e-10  # the projector onto everything is the identity


# --- gradient


@pytest.mark.parametrize("case", CASES)
def test_kway_gradient_equals_differences_of_the_resolved_pipeline(solver, case):
    x, sigma, k = CASES[case]
    sigma = bandwidth(
        x, "local" if sigma is None else sigma
    )  # scales are held constant by the gradient
    torch.manual_seed(4)
    f = kway_loss(sigma, k, torch.randn(len(x), k, dtype=DOUBLE))
    points = x.clone().requires_grad_()
    f(points).backward()
    for _ in range(3):
        direction = torch.randn_like(x)
        slope = float((points.grad * direction).sum())
        assert relative_error(slope, central_difference(f, x, direction)) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_float32_gradient_is_within_a_thousandth_of_float64(solver, case):
    x, sigma, k = CASES[case]
    sigma = bandwidth(x, "local" if sigma is None else sigma)
    torch.manual_seed(4)
    weight = torch.randn(len(x), k, dtype=DOUBLE)
    grads = []
    for dtype in (DOUBLE, torch.float32):
        points = x.to(dtype, copy=True).requires_grad_()
        kway_loss(sigma.to(dtype), k, weight.to(dtype))(points).backward()
        grads.append(points.grad.double())
    assert (grads[1] - grads[0]).norm() / grads[0].norm() < 1e-3


def test_gradient_of_single_eigenvectors_is_right_when_eigenvalues_differ(solver):
    x = blobs((40, 30, 20))
    sigma = bandwidth(x, "median")
    torch.manual_seed(0)
    weight = torch.randn(90, 3, dtype=DOUBLE)

    def f(x):
        return (ncut_eigenvectors(Graph(x, sigma), 3)[0] * weight).sum()

    points = x.clone().requires_grad_()
    f(points).backward()
    direction = torch.randn_like(x)
    assert (
        relative_error(
            float((points.grad * direction).sum()), central_difference(f, x, direction, 1e-5)
        )
        < 1e-6
    )


def test_gradcheck_passes_for_precomputed_weights():
    torch.manual_seed(0)
    A = torch.rand(9, 9, dtype=DOUBLE, requires_grad=True)

    def f(A):
        U, _ = ncut_eigenvectors(PrecomputedGraph(A + A.T), 3)
        return U @ U.T

    assert torch.autograd.gradcheck(f, (A,))


def test_matrix_free_gradient_equals_the_stored_one(monkeypatch):
    monkeypatch.setattr("ctrace.cut.affinity.TILE_BYTES", 31 * 190 * 8)
    monkeypatch.setattr("ctrace.cut.krylov.DENSE_UP_TO", 0)
    monkeypatch.setattr("ctrace.cut.krylov.DENSE_AT_MOST", 0)
    grads = []
    for limit in (2**30, 0):
        points = blobs().requires_grad_()
        Z = kway_ncut(Ncut(4, track_grad=True, memory_limit=limit).fit_transform(points))
        Z.pow(3).sum().backward()
        grads.append(points.grad)
    assert torch.allclose(grads[0], grads[1], rtol=1e-6, atol=1e-12)


def test_gradient_sums_to_zero_in_every_channel(solver):
    x = blobs().requires_grad_()
    kway_ncut(Ncut(4, track_grad=True).fit_transform(x)).pow(3).sum().backward()
    assert x.grad.abs().max() > 1e-6
    assert x.grad.sum(0).abs().max() < 1e-12 * x.grad.abs().sum()


def test_backward_twice_through_one_graph_and_through_a_new_one():
    x = blobs().requires_grad_()
    ncut = Ncut(4, track_grad=True)
    grads = []
    loss = kway_ncut(ncut.fit_transform(x)).pow(3).sum()
    grads += [torch.autograd.grad(loss, x, retain_graph=True)[0], torch.autograd.grad(loss, x)[0]]
    grads += [torch.autograd.grad(kway_ncut(ncut.fit_transform(x)).pow(3).sum(), x)[0]]
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def test_a_loss_on_one_vector_of_a_repeated_eigenvalue_is_refused(solver):
    x = disconnected().requires_grad_()
    U, _ = ncut_eigenvectors(Graph(x, 1.0), 3)
    with pytest.raises(ArithmeticError, match="which vectors stand for them"):
        (U * torch.arange(3)).sum().backward()


def test_a_gap_closed_at_k_is_refused_with_the_eigenvalues(solver):
    x = disconnected().requires_grad_()
    with pytest.raises(
        ArithmeticError,
        match="k=2 falls inside a group of equal eigenvalues: "
        "the last kept are 1, 1, the next is 1",
    ):
        ncut_eigenvectors(Graph(x, 1.0), 2)
    with pytest.warns(RuntimeWarning, match="k=2 falls inside"):
        ncut_eigenvectors(Graph(x.detach(), 1.0), 2)


# --- invariance


def test_row_permutation_permutes_the_answer(solver):
    x = blobs()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    grads = []
    for points in (x, x[order]):
        points = points.clone().requires_grad_()
        Z = kway_ncut(Ncut(4, track_grad=True).fit_transform(points))
        Z.pow(3).sum().backward()
        grads.append((Z.detach(), points.grad))
    assert torch.allclose(grads[0][0][order], grads[1][0], atol=1e-9)
    assert torch.allclose(grads[0][1][order], grads[1][1], atol=1e-9)


def test_same_seed_same_answer(solver):
    x = blobs()
    assert torch.equal(Ncut(4, seed=3).fit_transform(x), Ncut(4, seed=3).fit_transform(x))


def test_the_seed_of_the_iteration_does_not_change_the_subspace(monkeypatch):
    monkeypatch.setattr("ctrace.cut.krylov.DENSE_UP_TO", 0)
    monkeypatch.setattr("ctrace.cut.krylov.DENSE_AT_MOST", 0)
    assert (
        subspace_angle(
            Ncut(4, seed=0).fit_transform(blobs()), Ncut(4, seed=1).fit_transform(blobs())
        )
        < 1e-9
    )


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_graph_of_few_distinct_rows_and_many_copies_is_solved_and_differentiated(dtype):
    """Its weights have rank 12: after two products a Krylov basis has nowhere to grow, and must not
    fill up with rounding.
    """
    for seed in range(3):
        rows = torch.nn.functional.normalize(
            torch.randn(12, 16, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1
        )
        x = rows.repeat(400, 1).requires_grad_()
        U, spectrum = ncut_eigenvectors(Graph(x, 0.3), 2)
        assert spectrum.residual < (3e-6 if dtype == torch.float32 else 1e-11)
        kway_ncut(U).abs().amax(1).mean().backward()
        assert float(x.grad.abs().max()) > 0
        torch.testing.assert_close(
            x.grad[:12], x.grad[-12:], rtol=1e-2, atol=1e-3 * float(x.grad.abs().max())
        )
