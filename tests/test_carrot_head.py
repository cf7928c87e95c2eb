"""The ridge head: equal to fitting again in all it says about its training images, and refused
where it cannot know.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import Ridge, RidgeCV
from torch import multiprocessing

from ctrace.carrot.head import RidgeHead, training_contribution
from ctrace.carrot.ridge import leave_one_out_path, one_hot, solve_dual, solve_primal
from tests import two_processes_ridge
from tests.two_processes_ridge import training_images

SETTINGS = [(scale, intercept) for scale in ("none", "n") for intercept in (False, True)]
WIDE = {"n": 12, "c": 30}  # fewer images than channels: the dual form


def new_images(m=5, c=6):
    return torch.randn(m, c, generator=torch.Generator().manual_seed(9)) + 5


def literal_ridge(G, Y, r, intercept):
    """Weights and bias from the normal equations with a column of ones that is not penalised."""
    G, Y = G.double(), Y.double()
    X = torch.cat([G, torch.ones(len(G), 1, dtype=torch.double)], 1) if intercept else G
    R = r * torch.eye(X.shape[1], dtype=torch.double)
    R[G.shape[1] :] = 0
    solution = torch.linalg.solve(X.T @ X + R, X.T @ Y)
    return solution[: G.shape[1]], solution[-1] if intercept else torch.zeros(
        Y.shape[1], dtype=torch.double
    )


def literal_logits(G, Y, r, intercept, g):
    W, bias = literal_ridge(G, Y, r, intercept)
    return g.double() @ W + bias


@pytest.mark.parametrize("size", [{}, WIDE], ids=["tall", "wide"])
@pytest.mark.parametrize("scale, intercept", SETTINGS)
def test_the_weights_solve_the_normal_equations(size, scale, intercept):
    G, y = training_images(**size)
    head = RidgeHead(0.3, scale, intercept).fit(G, y)
    W, bias = literal_ridge(G, one_hot(y), 0.3 * (len(G) if scale == "n" else 1), intercept)
    torch.testing.assert_close(head.theta, W, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(head.bias, bias, rtol=1e-9, atol=1e-10)
    assert intercept or not head.bias.any()


@pytest.mark.parametrize("size", [{}, WIDE], ids=["tall", "wide"])
@pytest.mark.parametrize("scale, intercept", SETTINGS)
def test_sklearn_finds_the_same(size, scale, intercept):
    G, y = training_images(**size)
    head = RidgeHead(0.3, scale, intercept).fit(G, y)
    peer = Ridge(alpha=head.penalty, fit_intercept=intercept, solver="svd").fit(
        G.double().numpy(), one_hot(y).numpy()
    )
    np.testing.assert_allclose(head.theta.T, peer.coef_, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(head.bias, peer.intercept_, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", [{}, WIDE], ids=["tall", "wide"])
@pytest.mark.parametrize("intercept", [False, True])
def test_primal_and_dual_say_the_same(size, intercept):
    G, y = training_images(**size)
    G, Y = G.double(), one_hot(y)
    centred = G - G.mean(0) * intercept, Y - Y.mean(0) * intercept
    primal, dual = (
        solve(*centred, 0.3, intercept / len(G)) for solve in (solve_primal, solve_dual)
    )
    for one, other in zip(primal, dual):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)
    head = RidgeHead(0.3, intercept=intercept).fit(G, y)
    for mine, one in zip((head.theta, head._smooth, head.residuals, 1 - head.leverage), primal):
        torch.testing.assert_close(mine, one, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("size", [{}, WIDE], ids=["tall", "wide"])
@pytest.mark.parametrize("view", ["weight", "dual"])
@pytest.mark.parametrize("scale, intercept", SETTINGS)
def test_contributions_of_all_training_images_sum_to_the_logits(size, view, scale, intercept):
    G, y = training_images(**size)
    head, g = RidgeHead(0.3, scale, intercept).fit(G, y), new_images(c=G.shape[1])
    parts = head.training_contributions(g, view)
    assert parts.shape == (5, len(G), 3) and parts.dtype == torch.double
    torch.testing.assert_close(parts.sum(1), head.predict(g), rtol=0, atol=1e-10)


def test_the_weight_view_gives_an_image_no_say_in_other_classes_and_the_dual_view_does():
    G, y = training_images()
    head = RidgeHead(0.3).fit(G, y)
    others = one_hot(y) == 0
    weight, dual = (head.training_contributions(G[0], view) for view in ("weight", "dual"))
    assert not weight[others].any() and bool((dual[others].abs() > 1e-6).all())
    torch.testing.assert_close(dual, training_contribution(G[0].double(), G.double(), head.alpha))
    torch.testing.assert_close(weight, head.smoother(G[0])[:, None] * one_hot(y))


@pytest.mark.parametrize("size", [{}, WIDE], ids=["tall", "wide"])
@pytest.mark.parametrize("scale, intercept", SETTINGS)
def test_leave_one_out_equals_fitting_again_for_every_training_image(size, scale, intercept):
    G, y = training_images(**size)
    head, g = RidgeHead(0.3, scale, intercept).fit(G, y), new_images(c=G.shape[1])
    change = head.leave_one_out(g)
    assert change.shape == (5, len(G), 3)
    for i in range(len(G)):
        rest = torch.arange(len(G)) != i
        again = literal_logits(
            G[rest], one_hot(y)[rest], head.penalty, intercept, g
        ) - head.predict(g)
        torch.testing.assert_close(change[:, i], again, rtol=0, atol=1e-8)
        refit = RidgeHead(head.penalty, "none", intercept).fit(
            G[rest], y[rest], num_classes=3
        ).predict(g) - head.predict(g)
        torch.testing.assert_close(change[:, i], refit, rtol=0, atol=1e-8)


def test_with_scale_n_the_penalty_of_the_full_set_is_held_and_that_makes_a_difference():
    G, y = training_images()
    head, rest, g = RidgeHead(0.3, "n").fit(G, y), torch.arange(40) != 7, new_images()
    held = RidgeHead(head.penalty, "none").fit(G[rest], y[rest]).predict(g) - head.predict(g)
    shrunk = RidgeHead(0.3, "n").fit(G[rest], y[rest]).predict(g) - head.predict(g)
    torch.testing.assert_close(head.leave_one_out(g)[:, 7], held, rtol=0, atol=1e-10)
    assert (shrunk - held).abs().max() > 1e-2 * held.abs().max()


def test_residuals_without_an_image_are_what_the_fit_without_it_misses():
    G, y = training_images()
    head = RidgeHead(0.3, intercept=True).fit(G, y)
    for i in (0, 11, 39):
        rest = torch.arange(40) != i
        expected = one_hot(y)[i] - literal_logits(G[rest], one_hot(y)[rest], 0.3, True, G[i])
        torch.testing.assert_close(head.loo_residuals()[i], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [{}, WIDE], ids=["tall", "wide"])
@pytest.mark.parametrize("intercept", [False, True])
def test_removing_a_group_equals_fitting_again_and_is_not_the_sum_of_single_removals(
    size, intercept
):
    G, y = training_images(**size)
    head, g, group = (
        RidgeHead(0.3, intercept=intercept).fit(G, y),
        new_images(c=G.shape[1]),
        [1, 5, 2, 8, 10],
    )
    rest = torch.ones(len(G), dtype=torch.bool)
    rest[group] = False
    again = literal_logits(G[rest], one_hot(y)[rest], 0.3, intercept, g) - head.predict(g)
    torch.testing.assert_close(head.leave_out(g, group), again, rtol=0, atol=1e-9)
    torch.testing.assert_close(head.leave_out(g[0], ~rest), again[0], rtol=0, atol=1e-9)
    assert (head.leave_one_out(g)[:, group].sum(1) - again).abs().max() > 1e-2 * again.abs().max()
    torch.testing.assert_close(head.leave_out(g, [5]), head.leave_one_out(g)[:, 5])


def test_one_image_and_one_class_are_the_slices_of_all():
    G, y = training_images()
    head, g, target = (
        RidgeHead(0.3, intercept=True).fit(G, y),
        new_images(),
        torch.tensor([0, 2, 1, 1, 0]),
    )
    asks = [head.leave_one_out] + [
        lambda *a, view=view, **k: head.training_contributions(*a, view=view, **k)
        for view in ("weight", "dual")
    ]
    for ask in asks:
        whole = ask(g)
        torch.testing.assert_close(ask(g[3]), whole[3])
        torch.testing.assert_close(ask(g[3], target=1), whole[3, :, 1])
        torch.testing.assert_close(ask(g, target=target), whole[torch.arange(5), :, target])
    torch.testing.assert_close(head.predict(g[3]), head.predict(g)[3])


@pytest.mark.parametrize("size", [{}, WIDE], ids=["tall", "wide"])
@pytest.mark.parametrize("scale, intercept", SETTINGS)
def test_the_path_over_lambda_holds_the_errors_of_each_head(size, scale, intercept):
    G, y = training_images(**size)
    lams = [1e-3, 0.1, 7.0]
    path = leave_one_out_path(G, y, lams, scale, intercept)
    for lam, error, accuracy in zip(lams, path.squared_error, path.accuracy):
        missed = RidgeHead(lam, scale, intercept).fit(G, y).loo_residuals()
        torch.testing.assert_close(error, missed.square().mean(), rtol=1e-9, atol=0)
        assert accuracy == ((one_hot(y) - missed).argmax(1) == y).double().mean()
    assert path.best == lams[int(path.squared_error.argmin())]


@pytest.mark.parametrize("intercept", [False, True])
def test_sklearn_finds_the_same_path(intercept):
    G, y = training_images()
    lams = np.logspace(-2, 3, 8)
    peer = RidgeCV(lams, fit_intercept=intercept, store_cv_results=True).fit(
        G.double().numpy(), one_hot(y).numpy()
    )
    path = leave_one_out_path(G, y, lams, intercept=intercept)
    np.testing.assert_allclose(path.squared_error, peer.cv_results_.mean((0, 1)), rtol=1e-9)
    assert path.best == peer.alpha_


def test_embeddings_far_from_zero_lose_no_digits_with_an_intercept():
    """Products about the mean: raw ones would cancel twelve digits of sixteen."""
    G, y = training_images()
    near, far = (RidgeHead(0.3, intercept=True).fit(G.double() + s, y) for s in (0, 1e6))
    torch.testing.assert_close(far.theta, near.theta, rtol=1e-7, atol=1e-9)


def test_a_refused_fit_leaves_the_head_as_it_was():
    G, y = training_images()
    head, g = RidgeHead(1e-9, intercept=True).fit(G, y), new_images()
    before, influence = head.predict(g), head.leave_one_out(g)
    with pytest.raises(ArithmeticError):
        head.fit(1e6 * G[:, :1].expand(-1, 6), y)
    assert torch.equal(head.predict(g), before) and torch.equal(head.leave_one_out(g), influence)


def test_a_fit_in_inference_mode_serves_a_gradient_later():
    G, y = training_images(20)
    with torch.inference_mode():
        head = RidgeHead().fit(G.clone(), y)
    g = G[:2].clone().requires_grad_()
    (slope,) = torch.autograd.grad(head.predict(g)[:, 0].sum(), g)
    assert torch.allclose(slope, head.theta[:, 0].expand(2, -1).to(g))


def test_a_dual_view_that_misses_the_logit_is_refused():
    """The weights are right at a penalty this small, but the residuals are rounding."""
    G, y = (
        1e3 * torch.randn(40, 6, generator=torch.Generator().manual_seed(0)),
        torch.arange(40) % 3,
    )
    head, peer = RidgeHead(1e-8).fit(G, y), RidgeHead(1e-3).fit(G, y)
    torch.testing.assert_close(head.predict(G), peer.predict(G), rtol=1e-6, atol=1e-6)
    shares = peer.training_contributions(G[0], "dual")
    torch.testing.assert_close(shares.sum(0), peer.predict(G[0]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ArithmeticError, match="dual view"):
        head.training_contributions(G[0], "dual")


def test_the_default_penalty_is_one():
    G, y = training_images()
    torch.testing.assert_close(
        RidgeHead().fit(G, y).theta, literal_ridge(G, one_hot(y), 1.0, False)[0]
    )


def test_two_processes_find_what_one_finds(tmp_path):
    multiprocessing.spawn(two_processes_ridge.fit_share, (str(tmp_path),), nprocs=2)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    G, y = training_images()
    for intercept in (False, True):
        alone = RidgeHead(0.1, "n", intercept).fit(G, y)
        for mine in (first, second):
            torch.testing.assert_close(
                mine[f"{intercept} weights"], alone.theta, rtol=1e-9, atol=1e-10
            )
            torch.testing.assert_close(mine[f"{intercept} bias"], alone.bias, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(
            torch.cat([first[f"{intercept} loo"], second[f"{intercept} loo"]], 1),
            alone.leave_one_out(G[:2]),
            rtol=1e-9,
            atol=1e-10,
        )
        for view in ("weight", "dual"):
            both = torch.cat([first[f"{intercept} {view}"], second[f"{intercept} {view}"]], 1)
            torch.testing.assert_close(both.sum(1), alone.predict(G[:2]), rtol=0, atol=1e-10)


def test_it_runs_under_inference_mode_and_leaves_no_gradient():
    with torch.inference_mode():
        G, y = training_images()
        head = RidgeHead(0.3, intercept=True).fit(G, y)
        assert not head.leave_one_out(G[0]).requires_grad
        leave_one_out_path(G, y, [1.0])
    G = G.clone().requires_grad_()
    assert not RidgeHead(0.3).fit(G, y).theta.requires_grad


def test_a_mislabelled_image_has_the_largest_residual_without_it():
    G, y = training_images(n=60)
    G = 0.3 * G + 3 * one_hot(y, 6)
    y[17] = (y[17] + 1) % 3
    head = RidgeHead(0.3, intercept=True).fit(G, y)
    assert int(head.loo_residuals()[torch.arange(60), y].argmax()) == 17


def test_a_class_map_wider_than_the_labels_keeps_its_classes():
    G, y = training_images()
    head = RidgeHead(0.3).fit(G, y, num_classes=5)
    assert head.predict(G).shape == (40, 5) and not head.predict(G)[:, 3:].any()


G3, Y3 = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: RidgeHead(0), "lam: expected a finite number above 0, received 0"),
        (lambda: RidgeHead(float("nan")), "finite number above 0"),
        (lambda: RidgeHead(1, scale="m"), "scale: expected one of none, n"),
        (lambda: RidgeHead(1).predict(G3), r"call fit\(G, y\) first"),
        (
            lambda: RidgeHead(1).fit(G3[0], Y3),
            r"features: expected a torch tensor with two axes \(n, c\)",
        ),
        (lambda: RidgeHead(1).fit(G3, Y3[:2]), r"expected 4 class numbers"),
        (lambda: RidgeHead(1).fit(G3, Y3.float()), r"targets \(n, k\), not torch.float32 \(4,\)"),
        (
            lambda: RidgeHead(1).fit(G3, Y3 + 1, num_classes=2),
            "labels: classes run from 0 to 1, received 1 to 2",
        ),
        (lambda: RidgeHead(1).fit(G3, Y3 - 1), "received -1 to 0"),
        (
            lambda: RidgeHead(1).fit(G3 * torch.tensor([[1.0], [torch.nan], [1], [torch.inf]]), Y3),
            "2 of 4 rows hold NaN",
        ),
        (lambda: RidgeHead(1).fit(G3[:0], Y3[:0]), "features: expected at least 1 row"),
        (
            lambda: RidgeHead(1, intercept=True).fit(G3[:1], Y3[:1]),
            "at least 2 training images, received 1",
        ),
        (
            lambda: RidgeHead(1).fit(G3, Y3).predict(torch.randn(2, 4)),
            r"expected \(3,\) or \(m, 3\), received \(2, 4\)",
        ),
        (
            lambda: RidgeHead(1).fit(G3, Y3).training_contributions(G3, "exact"),
            "view: expected one of weight, dual",
        ),
        (
            lambda: RidgeHead(1).fit(G3, Y3).leave_out(G3, [1, 1]),
            "different image numbers from 0 to 3",
        ),
        (
            lambda: RidgeHead(1).fit(G3, Y3).leave_out(G3, [4]),
            "different image numbers from 0 to 3",
        ),
        (
            lambda: RidgeHead(1).fit(G3, Y3).leave_out(G3, torch.ones(3, dtype=torch.bool)),
            "different image numbers",
        ),
        (lambda: RidgeHead(1).fit(G3, Y3).leave_out(G3, [0.7, 1.2]), "different image numbers"),
        (lambda: leave_one_out_path(G3, Y3, []), "at least 1 lam"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("solve", [solve_primal, solve_dual])
def test_a_tiny_penalty_is_solved_right_or_refused_never_wrong(solve):
    """Embeddings that are twins: all weights of a class are the same number, the share of its
    images.
    """
    twins, y, refused = torch.ones(6, 3, dtype=torch.double) * 1e3, torch.arange(6) % 2, 0
    for lam in 10.0 ** torch.arange(-14, 1):
        try:
            weights = solve(twins, one_hot(y), float(lam), 0.0)[0]
        except ArithmeticError as error:
            refused += "lost in the rounding" in str(error)
        else:
            torch.testing.assert_close(
                weights, torch.full((3, 2), 0.5e-3 / 3, dtype=torch.double), rtol=0.05, atol=0
            )
    assert 3 <= refused <= 9


def test_an_image_that_alone_decides_its_logit_is_refused_not_divided_by():
    G = torch.eye(3) * 1e6
    for wide in (G, torch.cat([G, torch.zeros(3, 1)], 1)):  # with a channel more, the dual way
        with pytest.raises(ArithmeticError, match="leverage 1 to rounding"):
            RidgeHead(1e-3).fit(wide, torch.arange(3)).leave_one_out(wide[0])
    with pytest.raises(ArithmeticError, match="leverage of 1 to rounding"):
        leave_one_out_path(G, torch.arange(3), [1e-3])
    with pytest.raises(ArithmeticError, match="nothing fixes the logits"):
        RidgeHead(1, intercept=True).fit(G3, Y3).leave_out(G3, [0, 1, 2, 3])


def test_attribution_of_many_images_at_once_holds_no_class_that_was_not_asked_for():
    G, y = training_images(n=300, c=8)
    head = RidgeHead(1.0).fit(G, y)
    assert head.leave_one_out(G, target=y).shape == (300, 300)
