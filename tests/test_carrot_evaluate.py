"""The protocol: each score equal to the slow way of finding it, and able to tell a right
attribution from a wrong one.
"""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from ctrace.carrot.head import RidgeHead, linear_datamodeling_scores, training_scores


@pytest.fixture(scope="module")
def fitted():
    generator = torch.Generator().manual_seed(0)
    G, y = torch.randn(60, 8, generator=generator), torch.arange(60) % 4
    g, target = torch.randn(7, 8, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    return RidgeHead(2.0, intercept=True).fit(G, y), G, y, g, target


def test_the_datamodel_score_is_the_correlation_with_fits_one_by_one(fitted):
    head, G, y, g, target = fitted
    scores = training_scores(head, g, target)
    got = linear_datamodeling_scores(scores, head, g, target, removed=0.5, subsets=12, seed=3)
    generator = torch.Generator().manual_seed(3)
    sums, truth = [], []
    for _ in range(12):
        kept = torch.randperm(60, generator=generator)[30:]
        again = RidgeHead(2.0, intercept=True).fit(G[kept], y[kept]).predict(g)
        truth.append([float(again[j, target[j]]) for j in range(7)])
        sums.append([float(scores["dual view"][j, kept].sum()) for j in range(7)])
    expected = [spearmanr(np.array(sums)[:, j], np.array(truth)[:, j]).statistic for j in range(7)]
    np.testing.assert_allclose(got["dual view"], expected, atol=1e-12)


def test_leave_one_out_foretells_refits_and_the_decompositions_and_chance_do_not(fitted):
    head, G, y, g, target = fitted
    scores = training_scores(head, g, target)
    means = {
        name: float(v.mean())
        for name, v in linear_datamodeling_scores(scores, head, g, target, 0.1, 60).items()
    }
    assert (
        means["leave-one-out"]
        > 0.9
        > max(means["weight view"], means["dual view"], means["neighbours"])
        and abs(means["random"]) < 0.3
    )


def test_every_score_means_what_presence_adds(fitted):
    head, G, y, g, target = fitted
    scores = training_scores(head, g, target)
    rest = torch.arange(60) != 5
    without = RidgeHead(2.0, intercept=True).fit(G[rest], y[rest]).predict(g)
    torch.testing.assert_close(
        scores["leave-one-out"][:, 5], (head.predict(g) - without).gather(1, target[:, None])[:, 0]
    )
    for view in ("weight view", "dual view"):
        torch.testing.assert_close(
            scores[view].sum(1), head.predict(g).gather(1, target[:, None])[:, 0]
        )
    assert bool(
        (
            scores["neighbours"][:, y == 0][target == 0]
            * scores["neighbours"][:, y == 0][target == 0].sign()
            >= 0
        ).all()
    )


def test_a_share_that_removes_nothing_is_refused(fitted):
    head, G, y, g, target = fitted
    with pytest.raises(ValueError, match="takes 1 to 59 of the 60 images, not 0.001"):
        linear_datamodeling_scores({}, head, g, target, 0.001)
