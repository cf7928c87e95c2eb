"""Statistics of channels: equal to a literal loop, however they are split, and refused where they
cannot be had.
"""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import nn

import ctrace
from ctrace.check import fingerprint
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.world.models import load_model
from tests import two_processes
from tests.reference_gradcam import Residual
from tests.reference_parchgrad import (
    activations,
    class_pvalue,
    dead_channel_net,
    labelled_images,
    make_net,
)

N, CLASSES = 30, 4
DATA = Path(ctrace.__file__).parent / "data/statistics"


def loader(n=N, batch=7, seed=1):
    images, labels = labelled_images(n, CLASSES, seed)
    return list(zip(images.split(batch), labels.split(batch)))


def collect(net=None, batches=None, **settings):
    return ChannelStatistics.collect(
        net or make_net(), loader() if batches is None else batches, progress=False, **settings
    )


def assert_same(a, b, **tolerance):
    for ours, theirs in zip(
        (a.moments.count, a.moments.mean, a.moments.m2),
        (b.moments.count, b.moments.mean, b.moments.m2),
    ):
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.fixture(scope="module")
def statistics():
    return collect()


@pytest.mark.parametrize("layer, index", [("0", 0), ("3", 3)])
def test_statistics_and_class_tests_equal_a_literal_loop(statistics, layer, index):
    images, labels = labelled_images(N, CLASSES)
    rows = activations(make_net(), index, images)
    ours, p = statistics.of_layer(layer), statistics.welch_pvalues()[layer]
    assert p.shape == (len(rows[0]), CLASSES)
    for k in range(CLASSES):
        inside = torch.tensor(
            [row for row, label in zip(rows, labels) if label == k], dtype=torch.float64
        )
        torch.testing.assert_close(ours.mean[k], inside.mean(0), rtol=0, atol=1e-12)
        torch.testing.assert_close(ours.variance()[k], inside.var(0), rtol=1e-9, atol=1e-14)
        for channel in range(len(rows[0])):
            assert (
                abs(p[channel, k].item() - class_pvalue(rows, labels.tolist(), k, channel)) < 1e-9
            )


def test_layers_differ_in_their_p_values(statistics):
    p = statistics.welch_pvalues()
    assert (p["0"][:6] - p["3"][:6]).abs().max() > 0.1


def test_batch_size_order_and_merging_do_not_matter(statistics):
    batches = loader(batch=1)
    for other in (
        collect(batches=batches[::-1]),
        collect(batches=batches[:11]).merge(collect(batches=batches[11:])),
    ):
        assert_same(other, statistics, rtol=1e-10, atol=1e-12)


def test_a_dead_channel_has_p_1_in_every_class():
    net = make_net()
    with torch.no_grad():
        net[3].bias[2] = -1e6
    statistics = collect(net)
    assert (statistics.welch_pvalues("3")["3"][2] == 1).all() and (
        statistics.of_layer("3").m2[:, 2] == 0
    ).all()


def test_the_file_holds_everything(statistics, tmp_path):
    statistics = collect()
    statistics.save(tmp_path / "s.safetensors")
    again = ChannelStatistics.load(tmp_path / "s.safetensors")
    assert_same(again, statistics, rtol=0, atol=0)
    assert again.layers == statistics.layers and torch.equal(again.weights, statistics.weights)
    assert_same(again.merge(statistics), statistics.merge(again), rtol=0, atol=0)


def test_a_file_of_half_the_size_keeps_seven_digits(statistics, tmp_path):
    statistics.save(tmp_path / "s.safetensors", torch.float32)
    again = ChannelStatistics.load(tmp_path / "s.safetensors")
    assert_same(again, statistics, rtol=1e-7, atol=0)
    assert again.moments.mean.dtype == again.moments.m2.dtype == torch.double
    assert not torch.equal(again.moments.mean, statistics.moments.mean)


def test_the_bundled_statistics_are_of_the_bundled_network_and_of_the_groups_beside_them():
    bundled = ChannelStatistics.load(DATA / "squeezenet.safetensors")
    about = json.loads((DATA / "squeezenet.json").read_text())
    bundled.check_model(load_model("squeezenet", device="cpu"), list(bundled.layers))
    assert bundled.count.tolist() == list(about["counts"].values()) and bundled.count.sum() == 500
    members = [c for group in about["classes"].values() for c in group]
    assert len(members) == len(set(members)) and set(members) < set(range(1000))
    assert bundled.testable().all() and (bundled.moments.m2 >= 0).all()


def test_two_processes_find_what_one_finds(tmp_path):
    multiprocessing.spawn(two_processes.collect_share, (str(tmp_path),), nprocs=2)
    alone = collect(dead_channel_net(), two_processes.batches())
    first, second = (ChannelStatistics.load(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert_same(first, alone, rtol=1e-10, atol=1e-12)
    assert_same(first, second, rtol=0, atol=0)
    assert (first.of_layer("0").m2[:, 1] == 0).all() and (
        first.welch_pvalues("0")["0"][1] == 1
    ).all()
    for rank in range(2):
        assert "every process needs images" in (tmp_path / f"{rank}.txt").read_text()


def test_memory_does_not_grow_with_the_number_of_images():
    net, sizes = make_net(), {}
    for n in (4, 60):
        statistics = collect(net, (batch for _ in range(n) for batch in loader(8, 8)))
        m = statistics.moments
        sizes[n] = [x.numel() for x in (m.count, m.mean, m.m2, statistics.weights)]
        assert statistics.count.sum() == 8 * n
    assert sizes[4] == sizes[60]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_models_have_float32_means(half):
    net = make_net()
    exact = collect(net).of_layer("0").mean
    torch.testing.assert_close(
        collect(copy.deepcopy(net).to(half)).of_layer("0").mean, exact, rtol=0.02, atol=0.01
    )


@pytest.mark.parametrize("frozen", [True, False])
def test_the_model_is_left_exactly_as_found(frozen):
    model = Residual().requires_grad_(not frozen)
    before = fingerprint(model)
    images, labels = labelled_images(8)
    collect(model, [(images.float(), labels)])
    assert fingerprint(model) == before
    with pytest.raises(ValueError):
        collect(model, [(images.float(), labels + 9)])
    assert fingerprint(model) == before


def test_statistics_of_another_model_are_refused(statistics):
    statistics.check_model(make_net(), ["0", "3"])
    statistics.check_model(make_net().bfloat16(), ["0", "3"])
    wider = make_net()
    wider[3] = nn.Conv2d(6, 9, 3)
    cases = [
        (make_net(seed=1), ["0"], "weights of '0' are not"),
        (wider, ["3"], "'3' has 9 channels here, 8 there"),
    ]
    for model, layers, words in cases:
        with pytest.raises(ValueError, match=f"statistics of another model: .*{words}"):
            statistics.check_model(model, layers)
    with pytest.raises(
        ValueError, match="layer of these statistics: expected one of 0, received '3'"
    ):
        collect(layers="0").check_model(make_net(), ["0", "3"])
    with pytest.raises(ValueError, match="same model"):
        statistics.merge(collect(make_net(seed=1)))


def test_statistics_of_a_model_and_of_its_half_precision_copy_are_of_one_model(statistics):
    half = collect(make_net().bfloat16())
    half.check_model(make_net(), ["0", "3"])
    assert half.merge(statistics).count.sum() == 2 * N


def test_a_class_with_one_image_and_a_class_never_seen_are_refused_and_the_others_tested(
    statistics,
):
    images, labels = labelled_images(9)
    few = collect(
        batches=[(images, labels)], num_classes=6
    )  # class 0 has three images, 1 to 3 have two, 4 and 5 none
    with pytest.raises(
        ValueError,
        match=r"class 4 \(0 of \d+ images\), class 5 \(0 of \d+ images\): a test needs two",
    ):
        few.welch_pvalues()
    p = few.welch_pvalues(classes=few.testable().nonzero()[:, 0])
    assert p["0"].shape == (6, 4) and p["0"].isfinite().all()
    one = collect(batches=[(images[:5], torch.tensor([0, 0, 1, 1, 2]))])
    with pytest.raises(ValueError, match=r"class 2 \(1 of 5 images\)"):
        one.welch_pvalues(classes=2)
    alone = collect(batches=[(images[:3], torch.tensor([0, 0, 0]))])
    with pytest.raises(ValueError, match=r"class 0 \(3 of 3 images\).*two of others"):
        alone.welch_pvalues(classes=[0])
    with pytest.raises(ValueError, match="classes run from 0 to 3, received -1"):
        statistics.welch_pvalues(classes=-1)


IMAGES, LABELS = labelled_images(4)


@pytest.mark.parametrize(
    "batches, words",
    [
        ([], "no batch came out"),
        ([IMAGES], r"expected batches \(images, labels\), received a Tensor"),
        ([(IMAGES, LABELS, LABELS)], "received a tuple of 3"),
        ([(IMAGES, LABELS[:2])], "labels: expected one class for each of the 4 images"),
        ([(IMAGES, torch.eye(4))], "soft labels are no classes"),
        ([(IMAGES, LABELS + 1)], "classes run from 0 to 3, received 1 to 4"),
        ([(IMAGES, LABELS - 1)], "received -1 to 2"),
        ([((IMAGES * 255).byte(), LABELS)], "expected floating point"),
    ],
)
def test_a_malformed_loader_is_said(batches, words):
    with pytest.raises(ValueError, match=words):
        collect(batches=batches)


def test_a_model_that_cannot_be_measured_is_said(statistics):
    spare, conv = make_net(), nn.Conv2d(3, 3, 1).double()
    twice = nn.Sequential(conv, conv, nn.Flatten())
    spare.register_module("spare", nn.Conv2d(3, 3, 1))
    spare.forward = lambda x: make_net()(x)
    wide, maps = make_net(), nn.Sequential(nn.Conv2d(3, 4, 3)).double().eval()
    with torch.no_grad():
        wide[0].weight.mul_(float("inf"))
    cases = [
        (nn.Sequential(nn.Flatten(), nn.Linear(300, 4)), {}, "has no Conv2d"),
        (make_net().train(), {}, "BatchNorm2d '1' is in training mode"),
        (twice, {}, "'0' is used twice in one pass"),
        (spare, {}, "never reached by a forward pass"),
        (maps, {}, "Pass num_classes"),
        (maps, {"num_classes": 0}, "num_classes: expected a whole number at least 1"),
        (make_net(), {"layers": "1"}, "expected a Conv2d"),
        (wide, {}, "'0' are not all finite"),
    ]
    for model, settings, words in cases:
        with pytest.raises(ValueError, match=words):
            collect(model, **settings)
    assert collect(maps, num_classes=4).count.sum() == N
    with pytest.raises(ValueError, match="expected one of 0, 3, received 'x'"):
        statistics.of_layer("x")


def test_a_file_that_holds_something_else_is_said(tmp_path):
    with pytest.raises(ValueError, match="no statistics at"):
        ChannelStatistics.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no channel statistics"):
        ChannelStatistics.load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(("table", "value"), [("mean", float("nan")), ("m2", -1), ("count", -1)])
def test_a_file_altered_by_hand_is_refused(table, value, tmp_path):
    altered = collect()
    getattr(altered.moments, table)[0, 0] = value
    altered.save(tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match="a NaN or an infinity, or a negative count or spread"):
        ChannelStatistics.load(tmp_path / "s.safetensors")


def test_a_bar_is_drawn_only_when_asked_for(capsys):
    collect()
    assert capsys.readouterr().err == ""
    ChannelStatistics.collect(make_net(), loader())
    assert "channel statistics" in capsys.readouterr().err
