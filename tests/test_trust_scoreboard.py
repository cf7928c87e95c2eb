"""The one list of methods, the scores of a method, and what may be said from stored scores."""

import csv

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from benchmarks import scoreboard as benchmark
from benchmarks.scoreboard import extended, save
from ctrace.aviary import Aviary
from ctrace.carrot.attribution import centrality
from ctrace.carrot.head import RidgeHead
from ctrace.carrot.pipeline import Carrot
from ctrace.stats import crossed_interval
from ctrace.trust.columns import (
    CONTROLS,
    control_maps,
    dependence_scores,
    held_out,
    map_scores,
    mark_scores,
)
from ctrace.trust.localize import controls
from ctrace.trust.methods import CarrotClassifier, cnn_methods, enlarge, token_methods
from ctrace.trust.scoreboard import FALLING, Scoreboard, read_scoreboard, score
from ctrace.world.models import load_model
from ctrace.world.tokens import PatchOutput, TimmViTPatchBackbone, patch_centers

pytestmark = pytest.mark.filterwarnings("ignore:image .*integrated gradients sum to")


@pytest.fixture(scope="module")
def model():
    return load_model("aviary-resnet-0", device="cpu")


@pytest.fixture(scope="module")
def birds(model):
    return held_out(model, 4)


@pytest.fixture(scope="module")
def methods(model):
    data = Aviary("train", 56)
    images, labels = zip(*(data[i] for i in range(len(data))))
    return cnn_methods((model.info.preprocess(torch.stack(images)), torch.tensor(labels)))


@pytest.fixture(scope="module")
def carrot():
    backbone = TimmViTPatchBackbone(load_model("aviary-vit-0", device="cpu"))
    return Carrot(backbone).fit(
        DataLoader(Aviary("train", 70), batch_size=70), num_classes=14, progress=False
    )


def edges(model, images, targets):
    return controls(images, torch.ones_like(images[:, 0]))["edges"]


def test_every_method_gives_finite_maps_and_a_batch_equals_one_by_one(model, birds, methods):
    few = birds.first(2)
    for name, method in methods.items():
        maps = method(model, few.images, few.targets)
        assert maps.shape == (2, 96, 96) and bool(torch.isfinite(maps).all()), name
        alone = torch.cat(
            [method(model, few.images[i : i + 1], few.targets[i : i + 1]) for i in range(2)]
        )
        assert float((maps - alone).abs().max()) <= 2e-4 * float(maps.abs().max()), name


def test_every_method_but_the_segment_answers_the_class_it_is_asked_about(model, birds, methods):
    few = birds.first(1)
    for name, method in methods.items():
        own, other = (method(model, few.images, (few.targets + shift) % 14) for shift in (0, 3))
        assert torch.equal(own, other) == (name == "channel tracing, segment"), name


def test_a_carrot_as_a_classifier_answers_as_the_carrot_does(carrot):
    images = torch.stack([Aviary("test", 3)[i][0] for i in range(3)])
    wrapped = CarrotClassifier(carrot)
    assert (
        float((wrapped(carrot.preprocess(images)).detach() - carrot.predict(images)).abs().max())
        <= 1e-5
    )


def test_the_maps_of_a_carrot_are_what_its_explanation_says(carrot):
    carrot, train = Carrot(carrot.backbone), carrot.train
    carrot.head = RidgeHead(1e-3, "n").fit(train.G, train.labels)  # logits with a mean over classes
    image = Aviary("test", 3)[0][0]
    explained, wrapped, grid = carrot.explain(image, target=5), CarrotClassifier(carrot), (12, 12)
    for name, values in zip(token_methods(), (explained.region_split, explained.region_removal)):
        others = [carrot.explain(image, target=k) for k in range(14)]
        mean = torch.stack(
            [o.region_split if name == "CARROT region split" else o.region_removal for o in others]
        ).mean(0)
        small = enlarge((values - mean).view(1, *grid).float(), (96, 96))
        maps = token_methods()[name](wrapped, carrot.preprocess(image[None]), torch.tensor([5]))
        assert float((maps - small).abs().max()) <= 1e-5 * float(small.abs().max()), name


def test_maps_of_tokens_lie_on_their_own_grid_which_need_not_be_square(carrot):
    wrapped, (h, w) = CarrotClassifier(carrot), (2, 4)
    H = torch.rand(1, h * w, wrapped.fc.in_features, generator=torch.Generator().manual_seed(0))
    regions = carrot.regions(PatchOutput(H, patch_centers((h, w)), (h, w), (8, 8)))
    graph = carrot.graph.build(regions)
    wrapped.regions = lambda images: (regions, graph)
    omega = centrality(graph, carrot.operator, carrot.readout)  # (1, m)
    shares = omega[0, :, None] * (H[0].double() @ wrapped.fc.weight.T)  # (m, k)
    own = (shares - shares.mean(1, keepdim=True))[:, 5].view(h, w).float()
    asked = wrapped, torch.zeros(1, 3, 16, 32), torch.tensor([5])
    split = token_methods()["CARROT region split"](*asked)[0]
    corners = ([0, 0, -1, -1], [0, -1, 0, -1])
    assert split.shape == (16, 32) and torch.allclose(split[corners], own[corners], rtol=1e-4)


def test_the_planted_truth_scores_best_and_the_lie_worst(model, birds):
    maps = control_maps(birds)
    truth, lie = (
        map_scores(model, birds, maps[name], curves=4, tested=2)
        for name in ("planted truth", "planted lie")
    )
    assert np.allclose(truth["parts: removal"].values, 1) and np.allclose(
        lie["parts: removal"].values, -1
    )
    assert truth["pointing"].values.all() and not lie["pointing"].values.any()
    assert truth["survived"].values.all() and not lie["survived"].values.any()
    assert (truth["deletion"].values < lie["deletion"].values).all() and (
        truth["insertion"].values > lie["insertion"].values
    ).all()


def test_a_map_that_ignores_the_model_depends_on_none_and_sees_no_mark(model, birds):
    kept = dependence_scores(model, edges, birds, n=2)
    assert all(np.allclose(kept[column].values, 1) for column in ("kept at half", "kept at all"))
    cheating = load_model("aviary-cheating", device="cpu")
    assert not mark_scores(edges, cheating, model, n=4)["mark"].values.any()


def test_the_benchmark_keeps_every_column_of_a_row_and_collects_it(tmp_path, monkeypatch, birds):
    for name, value in {
        "KEPT": tmp_path,
        "worlds": lambda kind: ["aviary-resnet-0"] * (kind == "resnet"),
        "birds_of": lambda model, folder, n: birds.first(2),
        "aviary_images": lambda model, split, n: None,
        "cnn_methods": lambda train: {"edges": edges},
    }.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark, "control_maps", lambda birds: {})
    benchmark.score_rows("aviary-resnet-0")
    scores = benchmark.collect()
    stored = {c for r, c in read_scoreboard().values if r == "Grad-CAM"}
    assert scores.rows == ["edges"] and {c for _, c in scores.values} == stored
    assert scores.values["edges", "pointing"].shape == (1, 2)


def test_a_failed_map_is_counted_and_scored_as_chance(model, birds):
    scored = map_scores(model, birds, torch.zeros(4, 96, 96), curves=0, tested=2)
    assert scored["parts: swap"].failed.all() and not scored["parts: swap"].values.any()
    assert scored["pointing"].failed.all() and 0 < scored["pointing"].values.mean() < 0.3
    assert (
        scored["survived"].failed.all()
        and not scored["survived"].values.any()
        and not scored["falsified"].values.any()
    )


def board(seed=0):
    rng = np.random.default_rng(seed)
    base = rng.random((3, 40))
    values = {
        ("a", "pointing"): base,
        ("b", "pointing"): base - 0.05,
        ("c", "pointing"): rng.random((3, 40)),
        ("a", "deletion"): base,
    }
    values[("b", "deletion")] = base + 0.1
    values = {key: value.round(4).astype(np.float32) for key, value in values.items()}
    return Scoreboard(values, dict.fromkeys(values, 2), dict.fromkeys(values, ("m0", "m1", "m2")))


def test_differences_are_taken_bird_by_bird():
    scores = board()
    close = scores.difference("a", "b", "pointing")
    assert (
        abs(close.value - 0.05) < 1e-4 and 0.0499 < close.low and close.high < 0.0501
    )  # far tighter than either mean
    assert scores.interval("a", "pointing").high - scores.interval("a", "pointing").low > 0.05
    unlike = scores.difference("a", "c", "pointing")
    assert unlike.low < 0 < unlike.high


def test_intervals_are_about_other_models_and_other_birds():
    values = board().values["c", "pointing"] + np.array(
        [[0.0], [0.2], [0.4]]
    )  # models that differ more than birds do
    key = "c", "pointing"
    scores = Scoreboard({key: values}, {key: 0}, {key: ("m0", "m1", "m2")})
    ours, alone = scores.interval("c", "pointing"), scores.of("m1", 40).interval("c", "pointing")
    assert ours == crossed_interval(values) and ours.high - ours.low > 0.8
    assert alone == crossed_interval(values[1:2]) and alone.high - alone.low < 0.25


def test_the_best_row_comes_first_whichever_way_the_column_counts():
    scores = board()
    assert scores.ranking("pointing", ["b", "a"]) == ["a", "b"]
    assert "deletion" in FALLING and scores.ranking("deletion") == ["a", "b"]


def test_rows_of_different_models_have_no_difference():
    scores = board()
    scores.models["c", "pointing"] = ("m3", "m4", "m5")
    with pytest.raises(ValueError, match="different models"):
        scores.difference("a", "c", "pointing")


def test_a_difference_is_taken_on_the_models_that_both_rows_have():
    scores = board()
    scores.models["c", "pointing"] = ("m2", "m9", "m0")
    a, c = scores.values["a", "pointing"][[0, 2]], scores.values["c", "pointing"][[2, 0]]
    assert scores.difference("a", "c", "pointing") == crossed_interval(a.astype(float) - c)
    assert scores.difference("a", "b", "pointing").value == pytest.approx(0.05, abs=1e-4)


def test_to_be_better_a_row_wins_against_every_control():
    base = np.random.default_rng(0).random((3, 60)).astype(np.float32)
    rows = {"mine": 0.5, "weak": 0.1, "strong": 0.5, "best": 0.9}
    values = {(row, "pointing"): base + shift for row, shift in rows.items()}
    models = dict.fromkeys(values, ("m0", "m1", "m2"))
    scores = Scoreboard(values, dict.fromkeys(values, 0), models)
    assert scores.verdict("mine", "pointing", ["weak"]) == 1
    assert scores.verdict("mine", "pointing", ["weak", "strong"]) == 0
    assert scores.verdict("mine", "pointing", ["weak", "strong", "best"]) == -1
    assert scores.verdict("mine", "deletion", ["weak"]) == 0  # no control was scored there


def test_what_was_scored_anew_replaces_its_models_and_leaves_the_others():
    old, one = board(), board(seed=1)
    key = ("a", "pointing")
    again = {key: one.values[key][:2]}
    new = Scoreboard(again, {key: 1}, {key: ("m2", "m7")})
    both = extended(old, new)
    assert both.models[key] == ("m0", "m1", "m2", "m7")
    assert np.array_equal(both.values[key], np.concatenate([old.values[key][:2], again[key]]))
    assert both.failures[key] == 3 and both.models["b", "pointing"] == ("m0", "m1", "m2")
    assert old.models[key] == ("m0", "m1", "m2")


def test_a_method_of_ones_own_stands_beside_the_stored_rows_of_that_network(model, birds):
    found = score(edges, model, "my edges", birds)
    assert {"my edges", "Grad-CAM", *CONTROLS} <= set(found.rows)
    for column in ("pointing", "parts: swap", "deletion"):
        mine, theirs = found.values["my edges", column], found.values["edges", column]
        assert np.abs(mine - theirs[:, : mine.shape[1]]).max() < 1e-3, column
    assert found.interval("my edges", "kept at half").low > 0.999  # it ignores the model
    assert found.ranking("pointing", ["my edges", "random"])[0] == "my edges"
    with pytest.raises(ValueError, match="has a row 'Grad-CAM' already"):
        score(edges, model, "Grad-CAM", birds)


def test_stored_rows_are_not_shown_beside_another_network_of_the_same_name(model, birds):
    other = load_model("aviary-resnet-1", device="cpu")
    other.info = model.info
    found = score(edges, other, birds=held_out(other, 4))
    assert set(found.rows) == {"yours", *CONTROLS}


def test_what_is_saved_is_read_back_and_the_table_is_made_of_it(tmp_path):
    scores = board()
    save(scores, tmp_path, torch="x")
    again = read_scoreboard(tmp_path)
    assert again.models == scores.models and again.failures == scores.failures
    assert all(np.array_equal(again.values[key], value) for key, value in scores.values.items())
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "# torch: x"
    renamed = Scoreboard(scores.values, dict.fromkeys(scores.values, 3), scores.models)
    save(renamed, tmp_path)  # what is saved later is what is read
    assert read_scoreboard(tmp_path).failures == renamed.failures
    with np.load(tmp_path / "birds.npz") as stored:
        assert not any("\t" in name or " " in name for name in stored.files)
    for line in csv.DictReader(lines[1:]):
        interval = scores.interval(line["row"], line["column"])
        assert [float(line[k]) for k in ("value", "low", "high")] == pytest.approx(
            [interval.value, interval.low, interval.high], abs=1e-4
        )
        assert (line["n"], line["failures"], line["models"]) == ("120", "2", "m0; m1; m2")
