"""What is asked: every target against its formula, every wrong question in words."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ctrace.look.targets import make_target, saturation

G = torch.Generator().manual_seed(0)
E = torch.randn(3, 5, generator=G)
A, B = torch.randn(2, 3, 5, generator=G)


def cosine(u, v):
    return float((u * v).sum() / (u.norm() * v.norm()))


def test_class_targets_pick_one_logit_per_image():
    assert torch.equal(make_target(E, 2)(E), E[:, 2])
    for several in ([4, 0, 1], (4, 0, 1), torch.tensor([4, 0, 1])):
        assert torch.equal(make_target(E, several)(E), torch.stack([E[0, 4], E[1, 0], E[2, 1]]))
    assert torch.equal(make_target(E, "predicted")(E), E.amax(1))
    assert make_target(E, [4, 0, 1]).words == ["class 4", "class 0", "class 1"]


SIMILARITY_BY_HAND = {
    "cosine": cosine,
    "dot": lambda u, v: float((u * v).sum()),
    "euclidean": lambda u, v: -float(((u - v) ** 2).sum()),
}


@pytest.mark.parametrize("kind", SIMILARITY_BY_HAND)
def test_similarities_equal_their_formulas_for_one_reference_one_each_and_several(kind):
    by_hand = SIMILARITY_BY_HAND[kind]
    ask = lambda references, **more: make_target(E, kind, references, **more)(E)
    expected = lambda f: torch.tensor([f(i) for i in range(3)])
    torch.testing.assert_close(ask(A[0]), expected(lambda i: by_hand(E[i], A[0])))
    torch.testing.assert_close(ask(A), expected(lambda i: by_hand(E[i], A[i])))
    torch.testing.assert_close(
        ask(A[None]), expected(lambda i: sum(by_hand(E[i], a) for a in A) / 3)
    )
    torch.testing.assert_close(
        ask(A[0], baseline_embedding=B[0]),
        expected(lambda i: by_hand(E[i], A[0]) - by_hand(E[i], B[0])),
    )


def test_for_a_single_image_rows_of_references_are_a_gallery():
    one = E[:1]
    torch.testing.assert_close(make_target(one, None, A)(one), make_target(one, None, A[None])(one))
    assert "3 reference(s)" in make_target(one, None, A).words[0]


def test_norm_and_callable():
    torch.testing.assert_close(make_target(E, "norm")(E), E.norm(dim=1))
    torch.testing.assert_close(
        make_target(E, lambda out: out.softmax(1)[:, 0])(E), E.softmax(1)[:, 0]
    )


def test_half_precision_embeddings_are_compared_in_single():
    half = E.half()
    for ask in (make_target(half, "norm"), make_target(half, None, A)):
        assert torch.equal(ask(half), ask(half.float())) and ask(half).dtype == torch.float32


def test_no_target_is_the_norm_and_is_said():
    with pytest.warns(UserWarning, match="explaining the norm of the output"):
        assert torch.equal(make_target(E)(E), E.norm(dim=1))


def test_one_question_repeats_for_copies_of_its_image():
    for target in (make_target(E, [4, 0, 1]), make_target(E, None, A, B)):
        assert torch.equal(target.of(1, 4)(E[[1] * 4]), target(E)[[1] * 4])
        assert target.of(1, 4).words == [target.words[1]] * 4


WRONG = {
    "one target for three images": (
        dict(target=[1]),
        "one class for each of the 3 images, received shape \\(1,\\)",
    ),
    "two targets for three images": (dict(target=[1, 2]), "received shape \\(2,\\)"),
    "class out of range": (dict(target=5), "classes run from 0 to 4"),
    "negative class": (dict(target=-1), "classes run from 0 to 4"),
    "float class": (dict(target=torch.rand(5)), "Embeddings and soft labels are no classes"),
    "bool class": (dict(target=True), "whole class numbers"),
    "unknown word": (dict(target="cat"), "received 'cat'"),
    "similarity without reference": (
        dict(target="dot"),
        "similarity with a target_embedding.*received 'dot'",
    ),
    "class and embedding": (
        dict(target=1, target_embedding=A),
        "it names the similarity.*expected one of cosine, dot, euclidean, received 1",
    ),
    "baseline alone": (dict(baseline_embedding=A), "no target_embedding came"),
    "embedding of another model": (
        dict(target_embedding=torch.ones(7)),
        "expected \\(5,\\) for all images.*another model",
    ),
    "two references for three images": (dict(target_embedding=A[:2]), "gallery\\[None\\]"),
    "zero reference": (dict(target_embedding=torch.zeros(5)), "zero vector"),
    "NaN reference": (dict(target_embedding=A * torch.nan), "NaN"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_question_is_said(case):
    arguments, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        make_target(E, **arguments)


@pytest.mark.parametrize("score", [lambda out: out.sum(), lambda out: out, lambda out: 3.0])
def test_a_callable_that_does_not_score_each_image_is_said(score):
    with pytest.raises(ValueError, match="one score per image, shape \\(3,\\)"):
        make_target(E, score)(E)


def test_an_output_that_is_no_row_per_image_is_said():
    with pytest.raises(ValueError, match="Pass a callable"):
        make_target(torch.ones(2, 3, 4, 4), 1)


def stuck(embed, ask, dtype=torch.float32):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(3)).to(dtype).requires_grad_()
    output = embed(x)
    target = ask(output.detach())
    return [
        bool(r)
        for r in saturation(
            output,
            target(output),
            target,
            lambda v: torch.autograd.grad(output, x, v, retain_graph=True)[0],
        )
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalised", [True, False])
def test_saturation_is_found_where_calculus_puts_it_and_nowhere_else(dtype, normalised):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 16)).to(dtype)
    embed = (lambda x: F.normalize(net(x))) if normalised else net
    assert stuck(embed, lambda e: make_target(e, "norm"), dtype) == [normalised] * 3
    for kind in ("cosine", "dot", "euclidean"):
        self_pair = stuck(embed, lambda e: make_target(e, kind, e.float()), dtype)
        assert self_pair == [normalised or kind != "dot"] * 3
        assert stuck(embed, lambda e: make_target(e, kind, e.roll(1, 0)), dtype) == [False] * 3
        assert stuck(embed, lambda e: make_target(e, kind, e[0], e[0]), dtype) == [True] * 3
    one_of_them = stuck(embed, lambda e: make_target(e, None, e[1]), dtype)
    assert one_of_them == [False, True, False]


def test_a_probability_of_one_is_saturated_and_its_logit_is_not():
    net = nn.Linear(8, 4)
    hot = lambda x: net(x) * 1e4
    assert stuck(hot, lambda out: make_target(out, lambda o: o.softmax(1).amax(1))) == [True] * 3
    assert stuck(hot, lambda out: make_target(out, "predicted")) == [False] * 3
