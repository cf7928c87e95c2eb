"""Claims about figures that can be touched: the page holds the numbers that the cell computed, and
the script computes of them what `ctrace` does.
"""

import base64
import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from ctrace.aviary import PARTS, SPECIES
from ctrace.aviary.drawing import render
from ctrace.aviary.scene import sample_scene
from ctrace.aviary.truth import centred_logits, part_importance
from ctrace.cut.affinity import bandwidth
from ctrace.cut.kway import kway_ncut
from ctrace.cut.ncut import Ncut
from ctrace.cut.tracing import ablate, best_overlap, segment_strength, trace_channels
from ctrace.viz import gallery, touch
from ctrace.viz.paint import laid_over
from ctrace.world.features import GridFeatures
from ctrace.world.filterbank import filter_bank
from ctrace.world.models import load_model
from ctrace.world.photos import load_photo

SCRIPT = touch.FOLDER / "ctrace-figures.js"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(
    NODE is None, reason="node is not here: the script's numbers are left to make browser"
)


@pytest.fixture(scope="module")
def bank() -> GridFeatures:
    return touch.rounded(filter_bank(load_photo("astronaut"), grid=16))


@pytest.fixture(scope="module")
def example(bank) -> dict:
    photo = load_photo("astronaut")
    return touch.explorer_example("An astronaut", [photo], bank, 4, (0.75, 0.15), most=6)


def from_page(example: dict) -> np.ndarray:
    """The features as the script reads them."""
    features = example["features"]
    kind = {8: np.int8, 16: "<i2"}[features["bits"]]
    whole = np.frombuffer(base64.b64decode(features["data"]), kind)
    return whole.reshape(-1, len(features["scale"])) * np.array(features["scale"])


def run(questions: list, example: dict) -> list:
    """Answers of the script's desk, in node."""
    program = f"""
        const {{ ctraceNumerics }} = require({str(SCRIPT)!r});
        const {{ x, n, wanted, questions }} = JSON.parse(require("fs").readFileSync(0));
        const columns = x.map((column) => Float64Array.from(column));
        const desk = ctraceNumerics().desk(columns, n, wanted);
        const plain = (key, v) => (ArrayBuffer.isView(v) ? Array.from(v) : v);
        const answers = questions.map(([question, given]) => desk[question](given));
        console.log(JSON.stringify(answers, plain));
    """
    x = from_page(example)
    given = {"x": x.T.tolist(), "n": len(x), "wanted": len(example["eigval"])}
    told = json.dumps(given | {"questions": questions})
    ran = subprocess.run([NODE, "-e", program], input=told, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def asked(example: dict, k: int, width: float = 1, **weights: float) -> list:
    every = [1.0] * len(example["names"])
    for number, weight in weights.items():
        every[int(number[1:])] = weight
    return ["cut", {"weights": every, "width": width, "k": k}]


def reference(x: torch.Tensor, k: int, width: float = 1):
    """Segments, strengths and attributions by autograd through everything, bandwidth included."""
    x = x.clone().requires_grad_()
    solver = Ncut(k, sigma=width * bandwidth(x, "local"), track_grad=True)
    soft = kway_ncut(solver.fit_transform(x))
    segments = soft.argmax(1)
    strengths = segment_strength(soft, segments, solver.graph)
    rows = []
    for j in range(k):
        (gradient,) = torch.autograd.grad(strengths[j], x, retain_graph=True)
        rows.append(gradient[segments == j].mean(0))
    return segments, strengths.detach(), torch.stack(rows), solver.eigval


def test_features_in_the_page_are_those_that_were_cut(bank, example):
    assert np.array_equal(from_page(example), bank.features.numpy())
    assert example["names"] == bank.names and example["grid"] == [16, 16]


@pytest.mark.parametrize("bits", [8, 16])
def test_rounding_is_off_by_half_a_scale_at_most(bits):
    raw = filter_bank(load_photo("coffee"), grid=12)
    near = touch.rounded(raw, bits).features
    half = raw.features.double().abs().amax(0) / (2 ** (bits - 1) - 1) / 2
    assert ((near - raw.features).abs() <= half * 1.00001 + 1e-12).all()
    assert torch.equal(touch.rounded(touch.rounded(raw, bits), bits).features, near)


def test_payload_says_how_ctrace_cuts(bank, example):
    for k in (2, 4, 6):
        trace = trace_channels(bank, k)
        cut = example["cuts"][k]
        segments = np.frombuffer(base64.b64decode(cut["segments"]), np.uint8)
        assert np.array_equal(segments, trace.segments.numpy())
        assert np.allclose(cut["strengths"], trace.scores, atol=1e-12)
        assert np.allclose(example["eigval"][:k], trace.spectrum.eigval, atol=1e-12)
    trace = trace_channels(bank, 4)
    own = trace.attributions[trace.segments[example["anchor"]]]
    assert np.allclose(example["attributions"], own, rtol=1e-6, atol=1e-14)


@needs_node
@pytest.mark.parametrize("width", [1.0, 0.7, 1.6])
def test_script_cuts_and_traces_as_ctrace_does(bank, example, width):
    for k in (2, 4, 6):
        segments, strengths, attributions, eigval = reference(bank.features, k, width)
        questions = [asked(example, k, width)] + [["trace", {"segment": j}] for j in range(k)]
        cut, *traces = run(questions, example)
        assert cut["segments"] == segments.tolist()
        assert np.allclose(cut["eigval"][:k], eigval, atol=1e-9)
        assert np.allclose(cut["strengths"], strengths, atol=1e-9)
        for own, there in zip(traces, attributions):
            assert np.allclose(own["attributions"], there, rtol=0, atol=1e-6 * there.abs().max())


@needs_node
def test_script_flattens_and_weights_as_ctrace_does(bank, example):
    first, heavy = 1, 18
    weighted = bank.features.clone()
    weighted[:, heavy] *= 1.5
    before = trace_channels(bank, 4)
    for x, weights in ((ablate(bank.features, [first]), {"c1": 0.0}), (weighted, {"c18": 1.5})):
        (cut,) = run([asked(example, 4, **weights)], example)
        after = trace_channels(x, 4)
        assert cut["segments"] == after.segments.tolist()
        left = best_overlap(before.mask(1), torch.tensor(cut["segments"]))
        assert left == pytest.approx(best_overlap(before.mask(1), after.segments))


@needs_node
def test_script_measures_a_nudge_as_ctrace_does_and_the_attribution_predicts_it(bank, example):
    k, channel, amount = 4, 1, 1e-3
    before = trace_channels(bank, k)
    steps = [{"segment": j, "channel": channel, "amount": amount} for j in range(k)]
    _, *nudged = run([asked(example, k)] + [["nudge", step] for step in steps], example)
    for j, answer in enumerate(nudged):
        moved = bank.features.clone()
        moved[before.mask(j), channel] += amount
        solver = Ncut(k)
        soft = kway_ncut(solver.fit_transform(moved))
        after = soft.argmax(1)
        now = int(torch.bincount(after[before.mask(j)]).argmax())
        strength = float(segment_strength(soft, after, solver.graph)[now])
        assert answer["strength"] == pytest.approx(strength, abs=1e-9)
        slope = float(before.attributions[j, channel] * before.mask(j).sum())
        measured = (answer["strength"] - float(before.scores[j])) / amount
        assert measured == pytest.approx(slope, rel=0.05, abs=2e-4)


@needs_node
def test_copies_of_a_point_are_cut_as_ctrace_does():
    torch.manual_seed(0)
    rows = torch.cat([torch.randn(30, 3), torch.zeros(12, 3), torch.randn(30, 3) + 4]).double()
    grid = touch.rounded(GridFeatures(rows, ("a", "b", "c"), (8, 9)))
    photo = Image.new("RGB", (9, 8), "red")
    example = touch.explorer_example("Copies", [photo], grid, 3, (0, 0), most=4)
    segments, strengths, attributions, _ = reference(grid.features, 3)
    cut, traced = run([asked(example, 3), ["trace", {"segment": 0}]], example)
    assert cut["segments"] == segments.tolist()
    assert np.allclose(cut["strengths"], strengths, atol=1e-9)
    there = attributions[0]
    assert np.allclose(traced["attributions"], there, rtol=0, atol=1e-6 * there.abs().max())


@needs_node
def test_small_decompositions_are_right():
    program = f"""
        const {{ ctraceNumerics }} = require({str(SCRIPT)!r});
        const given = JSON.parse(require("fs").readFileSync(0)), N = ctraceNumerics();
        const plain = (key, v) => (ArrayBuffer.isView(v) ? Array.from(v) : v);
        console.log(JSON.stringify([N.symmetricEigen(given), N.svd(given)], plain));
    """
    torch.manual_seed(1)
    A = torch.randn(7, 4).double()
    matrix = A @ A.T  # of rank four: three directions are nothing
    told = json.dumps(matrix.tolist())
    ran = subprocess.run([NODE, "-e", program], input=told, capture_output=True, text=True)
    eigen, svd = json.loads(ran.stdout)
    assert np.allclose(eigen["values"], torch.linalg.eigvalsh(matrix).flip(0), atol=1e-12)
    left, right = (np.array(svd[side]).T for side in "AB")
    assert np.allclose(left @ np.diag(svd["s"]) @ right.T, matrix, atol=1e-12)
    assert np.allclose(left.T @ left, np.eye(7), atol=1e-12)


# --- bandwidth and k


@needs_node
@pytest.mark.parametrize("sigma", [0, 0.25, 0.5, 4.0])
def test_script_spans_with_one_bandwidth_as_ctrace_does(bank, sigma):
    photo = load_photo("astronaut")
    given = touch.bandwidth_example("An astronaut", photo, bank, 4, (0.25, 0.5, 4.0), most=6)
    key = f"{sigma:g}" if sigma else "local"
    example = given | {"eigval": given["eigval"][key]}
    question = ["span", {"sigma": sigma, "noise": 0.01, "k": 4}]
    (found,) = run([question], example)
    solver = Ncut(7, sigma=sigma or "local")
    eigvec = solver.fit_transform(bank.features)
    segments = np.frombuffer(base64.b64decode(given["cuts"][key]), np.uint8)
    assert found["segments"] == kway_ncut(eigvec, 4).argmax(1).tolist() == segments.tolist()
    assert np.allclose(found["eigval"], solver.eigval, atol=1e-9)
    assert np.allclose(given["eigval"][key], solver.eigval, atol=1e-12)


@needs_node
def test_noise_moves_the_span_as_far_as_noise_of_this_size_does(bank):
    photo = load_photo("astronaut")
    example = touch.bandwidth_example("An astronaut", photo, bank, 4, (0.5,), most=6)
    example |= {"eigval": example["eigval"]["0.5"]}
    levels = (1e-6, 0.02, 0.2)
    found = run([["span", {"sigma": 0.5, "noise": n, "k": 4}] for n in levels], example)
    for level, answer in zip(levels, found):
        cosines = []
        for seed in range(12):
            normal = torch.randn(bank.features.shape, generator=torch.Generator().manual_seed(seed))
            spans = [
                Ncut(4, sigma=0.5).fit_transform(rows)
                for rows in (bank.features, bank.features + level * normal)
            ]
            cosines.append(float(torch.linalg.svdvals(spans[0].T @ spans[1]).min()))
        low, high = min(cosines), max(cosines)
        assert low - (high - low) - 1e-9 <= answer["cosine"] <= high + (high - low) + 1e-9


# --- a bird to take apart


@pytest.fixture(scope="module")
def apart():
    model, scene = load_model("aviary-resnet-0"), sample_scene(4, SPECIES[8])
    return model, scene, touch.bird_example("A bird", scene, 8, [model], (0.12, 0.12))


def table_of(features: dict) -> np.ndarray:
    whole = np.frombuffer(base64.b64decode(features["data"]), "<i2")
    return whole.reshape(-1, len(features["scale"])) * np.array(features["scale"])


def test_payload_holds_the_logits_of_every_set_of_parts_and_every_swap(apart):
    model, scene, bird = apart
    table, players = table_of(bird["logits"][0]), len(PARTS)
    assert len(table) == 2 ** (players + 1) + len(bird["swaps"])
    drawn = {
        0: scene.without(*PARTS),
        2**players - 1: scene,
        0b00101: scene.without(*(part for i, part in enumerate(PARTS) if i not in (0, 2))),
        2 ** (players + 1) - 1: scene.with_mark((0.12, 0.12)),
        2 ** (players + 1) + 3: scene.swap(*bird["swaps"][3]),
    }
    there = centred_logits(model, list(drawn.values())).numpy()
    assert np.allclose(table[list(drawn)], there, atol=2e-4)


def test_pictures_and_places_of_the_parts_are_those_of_the_scene(apart):
    _, scene, bird = apart
    side, across = bird["side"], bird["across"]
    sheet = Image.open(io.BytesIO(base64.b64decode(bird["sheet"].split(",")[1])))
    for number, each in ((31, scene), (0, scene.without(*PARTS))):
        x, y = number % across * side, number // across * side
        tile = np.asarray(sheet.crop((x, y, x + side, y + side))) / 255
        true = render(each, side).image.numpy().transpose(1, 2, 0)
        assert np.abs(tile - true).mean() < 0.02
    where = np.frombuffer(base64.b64decode(bird["where"]), np.uint8).reshape(side, side)
    masks = render(scene.with_mark((0.12, 0.12)), side).masks
    for i, part in enumerate([*PARTS, "mark"]):
        assert np.array_equal(where == i, masks[part].numpy() > 0.5)


@needs_node
def test_script_shares_out_what_ctrace_does(apart):
    model, scene, bird = apart
    program = f"""
        const {{ shapleyValues }} = require({str(SCRIPT)!r});
        const {{ table, players }} = JSON.parse(require("fs").readFileSync(0));
        console.log(JSON.stringify(shapleyValues(players, (mask) => table[mask])));
    """
    table = table_of(bird["logits"][0])[:, 8].tolist()
    told = json.dumps({"table": table, "players": list(range(len(PARTS)))})
    ran = subprocess.run([NODE, "-e", program], input=told, capture_output=True, text=True)
    there = part_importance(model, scene, 8, "shapley")
    assert np.allclose(json.loads(ran.stdout), list(there.values()), atol=1e-3)


# --- which map asked the trained model


@pytest.fixture(scope="module")
def guessing():
    photo = np.random.default_rng(0).uniform(0, 1, (32, 32, 3))
    maps = {name: np.full((32, 32), value) for name, value in zip("abcde", np.linspace(-1, 1, 5))}
    verdicts = {name: {"a test": f"what it says of {name}"} for name in maps}
    return photo, maps, verdicts


def test_each_map_keeps_its_name_its_picture_and_its_verdicts_in_a_drawn_order(guessing):
    photo, maps, verdicts = guessing
    rounds = [touch.guess_example("R", photo, maps, "b", verdicts, seed) for seed in range(20)]
    assert len({each["asked"] for each in rounds}) == len(maps)  # every place is possible
    for each in rounds[:5]:
        assert {entry["name"] for entry in each["maps"]} == set(maps)
        assert each["maps"][each["asked"]]["name"] == "b"
        for entry in each["maps"]:
            assert entry["verdicts"] == list(verdicts[entry["name"]].items())
            picture = Image.open(io.BytesIO(base64.b64decode(entry["picture"].split(",")[1])))
            there = laid_over(photo, maps[entry["name"]])
            assert np.abs(np.asarray(picture) / 255 - there).mean() < 0.1
    assert rounds[3] == touch.guess_example("R", photo, maps, "b", verdicts, 3)


def test_an_answer_that_is_no_map_and_missing_verdicts_are_refused(guessing):
    photo, maps, verdicts = guessing
    with pytest.raises(ValueError, match="asked: .*received 'z'"):
        touch.guess_example("R", photo, maps, "z", verdicts)
    with pytest.raises(ValueError, match="verdicts: expected those of"):
        touch.guess_example("R", photo, maps, "b", {"a": verdicts["a"]})


# --- both forms of the output


@pytest.fixture
def shown(monkeypatch, example):
    """What the book and what Jupyter are given."""
    sent = []
    monkeypatch.setattr(gallery, "_display", lambda data, metadata=None: sent.append(data))
    dot = Image.new("RGB", (4, 3), "red")
    words = {"alt": "A <red> dot.", "caption": "Red.", "name": "dot", "label": "A figure"}
    touch.show_touchable(dot, kind="explorer", payload={"examples": [example]}, **words)
    return sent[-1]


def payload_of(text: str) -> dict:
    (found,) = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def test_both_forms_hold_the_static_figure_and_the_same_payload(shown, example):
    book, page = shown["text/markdown"], shown["text/html"]
    assert book.startswith("```{glue:figure} dot\n") and ':alt: "A <red> dot."' in book
    assert 'data-figure="fig-dot"' in book and "```{raw} html" in book
    assert html.escape("A <red> dot.") in page and "<figcaption>Red.</figcaption>" in page
    assert payload_of(book) == payload_of(page) == json.loads(json.dumps({"examples": [example]}))


def test_only_what_stands_alone_brings_the_script_and_nothing_is_fetched(shown):
    book, page = shown["text/markdown"], shown["text/html"]
    assert "ctraceNumerics" not in book and "ctraceNumerics" in page
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", page)) - {"http://www.w3.org/2000/svg"}
    assert not addresses and "import(" not in page and "fetch(" not in page


def test_a_payload_cannot_end_its_script(monkeypatch):
    sent = []
    monkeypatch.setattr(gallery, "_display", lambda data, metadata=None: sent.append(data))
    dot, payload = Image.new("RGB", (4, 3)), {"examples": [], "note": "</script><b>"}
    touch.show_touchable(dot, "A dot.", "Red.", "dot", "explorer", payload, "A figure")
    assert payload_of(sent[-1]["text/html"]) == payload


def test_what_a_page_cannot_hold_is_refused(bank):
    photo = load_photo("astronaut")
    with pytest.raises(ValueError, match="photos: expected one for each image"):
        touch.explorer_example("two", [photo, photo], bank, 4, (0.5, 0.5))
    raw = filter_bank(photo, grid=16)
    with pytest.raises(ValueError, match="features: expected rounded"):
        touch.explorer_example("raw", [photo], raw, 4, (0.5, 0.5))
    with pytest.raises(ValueError, match="bits: expected 8 or 16"):
        touch.rounded(raw, 12)
    with pytest.raises(ValueError, match="at"):
        touch.explorer_example("outside", [photo], bank, 4, (1.5, 0.5))
    words = {"alt": "A dot.", "caption": "Red.", "name": "dot", "label": "A figure"}
    with pytest.raises(ValueError, match="kind"):
        touch.show_touchable(Image.new("RGB", (4, 3)), kind="game", payload={}, **words)
    with pytest.raises(ValueError, match="JSON"):
        dot, numbers = Image.new("RGB", (4, 3)), {"x": float("nan")}
        touch.show_touchable(dot, kind="explorer", payload=numbers, **words)


def test_pooled_cells_are_means_of_squares():
    maps = torch.arange(2 * 4 * 6 * 1.0).reshape(-1, 1)
    grid = touch.pooled(GridFeatures(maps, ("a",), (4, 6), 2))
    assert grid.grid_hw == (2, 3) and grid.n_images == 2
    assert grid.maps()[1, 1, 2, 0] == maps.reshape(2, 4, 6)[1, 2:, 4:].mean()
