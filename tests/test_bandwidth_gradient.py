"""The gradient of the whole function: a bandwidth that a rule chooses moves with the features."""

import pytest
import torch
from reference import central_difference, relative_error

from ctrace import Graph, Ncut, bandwidth, kway_ncut, ncut_eigenvectors, trace_channels

DOUBLE = torch.float64
RULES = ("local", "median", "degree")
WAYS = {
    "stored": {},
    "matrix-free": dict(memory_limit=0),
    "landmarks": dict(max_exact=60, n_landmarks=50, n_neighbors=8),
}


def clouds(sizes=(40, 30, 20), c=5, spread=2.0, seed=0):
    torch.manual_seed(seed)
    return torch.cat([torch.randn(m, c, dtype=DOUBLE) + spread * torch.randn(c) for m in sizes])


def cut_loss(settings, k=3):
    """A function of the features that sees every score, everything in it computed anew."""
    torch.manual_seed(1)
    weight = torch.randn(90, k, dtype=DOUBLE)

    def f(x):
        Z = kway_ncut(Ncut(k, track_grad=True, **settings).fit_transform(x))
        return (Z[: len(weight)] * weight[: len(Z)]).sum()

    return f


def gradient(f, x):
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


def error_along(f, x, grad, step=1e-6):
    direction = torch.randn(x.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    return relative_error(
        float((grad * direction).sum()), central_difference(f, x, direction, step)
    )


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_has_the_slope_of_its_differences(rule):
    x = clouds()
    weight = torch.rand(90, dtype=DOUBLE)

    def total(x):
        return (weight * bandwidth(x, rule)).sum()

    assert error_along(total, x, gradient(total, x)) < 1e-6


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES)
def test_gradient_equals_differences_with_the_rule_applied_again(rule, way):
    x, f = clouds(), cut_loss(WAYS[way] | dict(sigma=rule))
    grad = gradient(f, x)
    assert error_along(f, x, grad) < 1e-5
    assert grad.sum(0).abs().max() < 1e-10 * grad.abs().sum()  # rules see differences only
    frozen = gradient(cut_loss(WAYS[way] | dict(sigma=rule, bandwidth_grad=False)), x)
    assert error_along(f, x, frozen) > 1e-3


@pytest.mark.parametrize("objective", ("association", "cut", "score"))
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("memory_limit", (2**30, 0))
def test_a_trace_applies_the_rule_again(rule, objective, memory_limit):
    x = clouds(spread=1.0)  # segments that touch: else no neighbour is raised without the other
    settings = dict(objective=objective, sigma=rule, memory_limit=memory_limit)
    trace = trace_channels(x, 3, **settings)
    frozen = trace_channels(x, 3, bandwidth_grad=False, **settings)
    missed = []
    for j in range(3):
        bump = torch.zeros_like(x)
        bump[trace.mask(j)] = torch.randn(5, generator=torch.Generator().manual_seed(j)).double()
        slope = central_difference(
            lambda x, j=j: trace_channels(x, 3, **settings).scores[j], x, bump, 1e-6
        )
        predicted, without = (
            float(t.attributions[j] @ bump[trace.mask(j)].sum(0)) for t in (trace, frozen)
        )
        assert relative_error(predicted, slope) < 1e-5
        missed.append(relative_error(without, slope))
    assert max(missed) > 1e-4


@pytest.mark.parametrize("shape", [(), (90,)])
def test_a_given_tensor_gets_its_gradient(shape):
    x = clouds()
    given = 2 + torch.rand(shape, dtype=DOUBLE)

    def of_sigma(sigma):
        return kway_ncut(ncut_eigenvectors(Graph(x, sigma), 3)[0])[:, 0].pow(3).sum()

    grad = gradient(of_sigma, given)
    assert grad.shape == shape
    direction = torch.rand(shape, dtype=DOUBLE)
    slope = central_difference(of_sigma, given, direction, 1e-6)
    assert relative_error(float((grad * direction).sum()), slope) < 1e-6


def test_a_number_and_a_plain_tensor_are_constants():
    x = clouds()
    scales = bandwidth(x, "local")
    held = gradient(cut_loss(dict(sigma="local", bandwidth_grad=False)), x)
    assert torch.allclose(gradient(cut_loss(dict(sigma=scales)), x), held, rtol=1e-9, atol=1e-14)
    sigma = scales.clone().requires_grad_()
    cut_loss(dict(sigma=sigma, bandwidth_grad=False))(x.clone().requires_grad_()).backward()
    assert sigma.grad is None


def test_masses_do_not_change_what_a_bandwidth_is_worth():
    """A point of mass two is two copies of it at the same scale."""
    x = clouds((10, 8, 6))
    mass = torch.where(torch.arange(24) % 3 == 0, 2.0, 1.0).double()
    torch.manual_seed(3)
    left, right = torch.randn(2, 24, 2, dtype=DOUBLE)
    sigma = bandwidth(x, "local").requires_grad_()
    graph = Graph(x, sigma, mass=mass)
    (want,) = torch.autograd.grad((graph.weights() * (left @ right.T)).sum(), sigma)
    assert torch.allclose(graph.sigma_vjp([(left, right)])[0], want, rtol=1e-9)


def test_far_away_float32_features_keep_the_digits_of_their_slopes():
    x = clouds() + 300 * (torch.arange(90) % 2)[:, None]
    left, right = torch.randn(2, 90, 3, dtype=DOUBLE)
    scales = torch.full((90,), 1.5, dtype=DOUBLE)
    (exact,) = Graph(x, scales).sigma_vjp([(left, right)])
    (single,) = Graph(x.float(), scales).sigma_vjp([(left.float(), right.float())])
    assert ((single - exact).norm() / exact.norm()) < 1e-4


def corners(n=6):
    square = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]], dtype=DOUBLE)
    return 4 * square.repeat_interleave(n, 0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", (torch.float32, DOUBLE))
@pytest.mark.parametrize(
    "name, points, k",
    [
        ("copies", lambda: torch.cat([clouds(), clouds()[:1].expand(12, -1)]), 3),
        ("symmetric", lambda: torch.cat([clouds(), -clouds()]), 2),
        ("corners", lambda: corners(12) + 0.3 * clouds((48,), 2).round(decimals=1), 4),
        ("pieces", lambda: clouds(spread=0) + 30 * torch.eye(5)[:3].repeat_interleave(30, 0), 3),
        ("near copies", lambda: torch.cat([clouds(), clouds() + 1e-7]), 3),
    ],
)
def test_degenerate_rows_have_a_finite_gradient(rule, dtype, name, points, k):
    torch.manual_seed(0)
    x = points().to(dtype).requires_grad_()
    U = Ncut(k, sigma=rule, track_grad=True).fit_transform(x)
    kway_ncut(U)[:, 0].abs().sum().backward()
    assert x.grad.isfinite().all()


def test_degree_rule_solves_its_equation_and_refuses_what_has_no_solution():
    x = clouds()
    sigma, start = bandwidth(x, "degree"), x.std(0).sum()
    target = Graph(x, start).weights().mean(1).quantile(0.25)
    assert float(Graph(x, sigma).weights().mean()) == pytest.approx(float(target), rel=1e-12)
    assert float(bandwidth(10 * x, "degree")) == pytest.approx(10 * float(sigma))
    crowd = (torch.arange(100) >= 70).double()[:, None]
    with pytest.raises(ValueError, match="so many copies"):
        bandwidth(crowd, "degree")
