"""On a trained model: a map planted right passes every test, one planted wrong fails every test,
and controls sit at chance.
"""

import numpy as np
import pytest
import torch

from ctrace.aviary import PARTS, Aviary, importance_table, render
from ctrace.stats import spearman
from ctrace.trust.falsify import falsify
from ctrace.trust.hide import deletion, insertion, road
from ctrace.trust.localize import (
    controls,
    part_correlation,
    planted_lie,
    planted_truth,
    pointing_game,
    positive_mass_inside,
)
from ctrace.trust.randomize import randomize
from ctrace.world.models import load_model

B = 5


@pytest.fixture(scope="module")
def world():
    model, data = load_model("aviary-resnet-0", device="cpu"), Aviary("test", B)
    scenes = [data.scene(i) for i in range(B)]
    drawn = [render(scene) for scene in scenes]
    images = model.info.preprocess(torch.stack([d.image for d in drawn]))
    masks = torch.stack(
        [torch.stack([d.masks[part] for part in PARTS]) for d in drawn]
    )  # (b, p, height, width)
    return model, scenes, images, masks, importance_table(model, scenes, list(range(B)))


@pytest.fixture(scope="module")
def maps(world):
    _, _, images, masks, importance = world
    return {
        "truth": planted_truth(masks, importance),
        "lie": planted_lie(masks, importance),
        **controls(images, masks),
    }


def test_falsification_lets_the_planted_truth_survive_and_not_the_lie(world, maps):
    model, _, images, _, _ = world
    results = {
        name: falsify(maps[name], images, model, torch.arange(B))
        for name in ("truth", "lie", "random")
    }
    verdicts = {name: [r.verdict for r in found] for name, found in results.items()}
    assert verdicts["truth"] == ["survived"] * B and verdicts["lie"] == ["falsified"] * B
    assert verdicts["random"].count("survived") <= 1


def test_the_planted_truth_beats_the_random_map_on_every_image_and_the_random_map_the_lie(
    world, maps
):
    model, _, images, _, _ = world
    for score in (
        lambda m: -deletion(model, images, m, torch.arange(B), steps=10).auc,
        lambda m: insertion(model, images, m, torch.arange(B), steps=10).auc,
        lambda m: road(model, images, m, torch.arange(B), shares=(0.1, 0.5)),
    ):
        truth, chance, lie = (score(maps[name]) for name in ("truth", "random", "lie"))
        assert (truth > chance).all() and (chance > lie).all()


def test_localisation_scores_put_the_truth_at_one_and_the_lie_at_the_bottom(world, maps):
    _, _, _, masks, importance = world
    parts = masks.sum(1)
    assert (
        part_correlation(maps["truth"], masks, importance).mean == pytest.approx(1)
        and pointing_game(maps["truth"], parts).mean == 1
    )
    assert (
        part_correlation(maps["lie"], masks, importance).mean == pytest.approx(-1)
        and pointing_game(maps["lie"], parts).mean == 0
    )
    assert (
        positive_mass_inside(maps["truth"], parts).mean > 0.9
        and positive_mass_inside(maps["lie"], parts).mean < 0.01
    )


def test_the_planted_truth_follows_the_model_when_it_loses_its_weights_and_the_lie_does_not(
    world, maps
):
    model, scenes, _, masks, importance = world
    random = randomize(model, 3)
    again = importance_table(random, scenes, list(range(B)))
    likeness = [
        spearman(m.flatten(1), n.flatten(1)).mean()
        for m, n in ((maps["truth"], planted_truth(masks, again)), (maps["lie"], maps["lie"]))
    ]
    parts_alike = spearman(importance, again)
    assert parts_alike.mean() < 0.7 and likeness[1] == pytest.approx(1) and likeness[0] < 0.99
    assert np.abs(again).mean() < 0.2 * np.abs(importance).mean()
