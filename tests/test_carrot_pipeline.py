"""The pipeline from images to explanations: each part equal to the long way round, and no gradient
or optimiser anywhere.
"""

import ast
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import multiprocessing

import ctrace.carrot
from ctrace.carrot import __main__ as runner
from ctrace.carrot.diffusion import READOUTS
from ctrace.carrot.graph import RegionGraphBuilder, RegionSet
from ctrace.carrot.head import RidgeHead
from ctrace.carrot.pipeline import Carrot, Embeddings
from ctrace.world.datasets import aviary_splits
from ctrace.world.tokens import TimmViTPatchBackbone
from tests import two_processes_ridge


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return TimmViTPatchBackbone(
        VisionTransformer(
            img_size=32, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=0
        ).eval()
    )


@pytest.fixture(scope="module")
def splits():
    return aviary_splits(train=42, test=14, size=32)


def scaled(images):
    return 4 * images - 2


def overflowing(backbone):
    carrot = Carrot(backbone, preprocess=scaled)
    carrot.readout = lambda diffused, H, graph: diffused.mean(1) / 0
    return carrot


def make(backbone, splits, readout="degree", **settings):
    return Carrot(backbone, readout=readout, preprocess=scaled, **({"lam": 1e-3} | settings)).fit(
        splits["train"], progress=False
    )


def test_predictions_are_the_composition_of_the_parts(backbone, splits):
    carrot = make(backbone, splits, t=1.5)
    images = torch.stack([splits["test"][i][0] for i in range(5)])
    regions = RegionSet.from_patches(backbone(scaled(images)))
    graph = RegionGraphBuilder().build(regions)
    diffused = torch.linalg.matrix_exp(-1.5 * graph.L) @ regions.H.double()
    g = (graph.d[..., None] * diffused).sum(1) / graph.d.sum(1, keepdim=True)
    torch.testing.assert_close(carrot.embed(images), g, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        carrot.predict(images), g @ carrot.head.theta + carrot.head.bias, rtol=1e-8, atol=1e-8
    )
    assert carrot.train.G.shape == (42, 12) and carrot.head.lam == 1e-3 and carrot.path is None


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("intercept", [False, True])
def test_every_decomposition_of_an_explanation_sums_to_its_score(
    backbone, splits, readout, intercept
):
    carrot, image = make(backbone, splits, readout), splits["test"][3][0]
    carrot.head = RidgeHead(1e-3, "n", intercept).fit(carrot.train.G, carrot.train.labels)
    for target, versus in ((None, None), (4, None), (4, 9)):
        why = carrot.explain(image, target, versus)
        logits = carrot.predict(image[None])[0]
        torch.testing.assert_close(why.logits, logits)
        assert why.target == (int(logits.argmax()) if target is None else 4)
        assert abs(why.score - float(logits[why.target] - (logits[9] if versus else 0))) < 1e-10
        for view in (why.weight_view, why.dual_view):
            assert abs(float(view.sum()) - why.score) < 1e-10 * max(1, float(view.abs().max()))
        if readout in ("mean", "sum", "degree"):
            assert abs(float(why.region_split.sum()) + why.bias - why.score) < 1e-10
        else:
            assert why.region_split is None
        assert why.region_removal.shape == (16,) and why.on_grid(why.region_removal).shape == (4, 4)


def test_leave_one_out_of_an_explanation_is_the_pipeline_fitted_again_without_the_image(
    backbone, splits
):
    carrot, image = make(backbone, splits), splits["test"][5][0]
    why = carrot.explain(image, target=5, versus=8)
    for i in range(42):
        rest = torch.arange(42) != i
        again = Carrot(backbone, preprocess=scaled, lam=carrot.head.penalty / 41)  # the same r
        z = again.fit(
            Embeddings(carrot.train.G[rest], carrot.train.labels[rest]), num_classes=14
        ).predict(image[None])[0]
        assert abs(float(z[5] - z[8]) - why.score - float(why.leave_one_out[i])) < 1e-8
    effects = why.leave_one_out.tolist()
    assert why.helpful(3) == sorted(range(42), key=effects.__getitem__)[:3] and all(
        effects[i] < 0 for i in why.helpful(42)
    )
    assert why.harmful(3) == sorted(range(42), key=lambda i: -effects[i])[:3] and all(
        effects[i] > 0 for i in why.harmful(42)
    )
    assert len(why.helpful(42)) + len(why.harmful(42)) == 42


@pytest.mark.parametrize("readout", ["degree", "mean_var"])
def test_removal_of_a_region_is_the_graph_without_it(backbone, splits, readout):
    carrot, image = make(backbone, splits, readout), splits["test"][2][0]
    why = carrot.explain(image)
    regions = carrot.regions_of(image[None])
    W = carrot.graph.build(regions).W[0]
    for i in (0, 7, 15):
        rest = torch.arange(16) != i
        graph = type(carrot.graph.build(regions)).from_weights(W[rest][:, rest])
        H = regions.H[:, rest].double()
        g = carrot.readout(carrot.operator(H, graph), H, graph)[0]
        assert (
            abs(
                why.score - float(carrot.head.predict(g)[why.target]) - float(why.region_removal[i])
            )
            < 1e-8
        )


def test_lambda_is_chosen_by_leave_one_out_on_the_training_images_alone(backbone, splits):
    carrot = Carrot(backbone, preprocess=scaled).fit(splits["train"], progress=False)
    lams = carrot.path.lams.tolist()
    errors = [
        RidgeHead(lam, "n", True)
        .fit(carrot.train.G, carrot.train.labels)
        .loo_residuals()
        .square()
        .mean()
        for lam in lams
    ]
    assert carrot.head.lam == lams[int(torch.stack(errors).argmin())] == carrot.path.best


def test_coarse_regions_go_through(backbone, splits):
    carrot = make(backbone, splits, regions=partial(RegionSet.pooled, size=2))
    why = carrot.explain(splits["test"][0][0])
    assert why.region_removal.shape == (4,) and why.on_grid(why.region_removal).shape == (4, 4)


@pytest.mark.parametrize("readout", ["degree", "mean_var"])
def test_regions_get_the_split_and_the_drop_of_every_logit(backbone, splits, readout):
    carrot = make(backbone, splits, readout)
    regions = carrot.regions_of(torch.stack([splits["test"][i][0] for i in range(3)]))
    graph = carrot.graph.build(regions)
    whole = carrot.read(regions, graph) @ carrot.head.theta
    if carrot.readout.is_linear:
        split = carrot.region_split(regions, graph, carrot.head.theta)
        assert (split.sum(1) - whole).abs().max() < 1e-9
    removal = carrot.region_removal(regions, graph, carrot.head.theta)
    rest = torch.arange(16) != 9
    less = type(graph).from_weights(graph.W[:, rest][:, :, rest])
    H = regions.H[:, rest].double()
    without = carrot.readout(carrot.operator(H, less), H, less) @ carrot.head.theta
    torch.testing.assert_close(removal[:, 9], whole - without, rtol=0, atol=1e-8)


def test_an_explanation_diffuses_the_tokens_once(backbone, splits, monkeypatch):
    carrot, calls = make(backbone, splits), []
    diffuse = type(carrot.operator).forward
    monkeypatch.setattr(
        type(carrot.operator),
        "__call__",
        lambda self, H, graph: calls.append(H.shape[2]) or diffuse(self, H, graph),
    )
    carrot.explain(splits["test"][0][0])
    assert calls == [12, 1]  # the tokens, and the readout's weights for the split


def test_rows_follow_the_data_whatever_it_is(backbone, splits, capsys):
    carrot, data = Carrot(backbone, preprocess=scaled), splits["train"]
    made = carrot.embeddings(data, progress=False)
    expected = carrot.embed(torch.stack([data[i][0] for i in range(42)]))
    torch.testing.assert_close(made.G, expected, rtol=1e-6, atol=1e-6)
    assert made.labels.tolist() == data.labels.tolist() and capsys.readouterr().err == ""
    batches = [(data[i][0][None], [3]) for i in range(2)]
    assert carrot.embeddings(batches).labels.tolist() == [3, 3]
    assert "embedding" in capsys.readouterr().err


class Counting(Carrot):
    """Counts the images that it embeds."""

    seen = 0

    def embed(self, images):
        self.seen += len(images)
        return super().embed(images)


def test_kept_embeddings_are_read_again_and_those_of_other_settings_are_not(
    backbone, splits, tmp_path
):
    variants = [
        {},
        {"t": 3.0},
        {"readout": "max"},
        {"graph": RegionGraphBuilder(quantile=0.2)},
        {"graph": RegionGraphBuilder(sigma_s=torch.tensor(0.3))},
        {"graph": RegionGraphBuilder(sigma_s=torch.tensor(0.30001))},
        {"regions": partial(RegionSet.pooled, size=2)},
        {"preprocess": torch.nn.functional.normalize},
    ]
    for settings in variants:
        first, again = (Counting(backbone, **({"preprocess": scaled} | settings)) for _ in "12")
        made = first.embeddings(splits["train"], tmp_path / "new", progress=False)
        read = again.embeddings(splits["train"], tmp_path / "new", progress=False)
        assert (first.seen, again.seen) == (42, 0)
        assert torch.equal(made.G, read.G) and torch.equal(made.labels, read.labels)
    assert len(list((tmp_path / "new").iterdir())) == len(variants)


def test_kept_embeddings_follow_the_weights_the_buffers_and_the_pixels(splits, tmp_path):
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=0
    ).eval()
    vit.register_buffer("shift", torch.zeros(1), persistent=False)

    def seen(data):
        carrot = Counting(TimmViTPatchBackbone(vit), preprocess=scaled)
        carrot.embeddings(data, tmp_path, progress=False)
        return carrot.seen

    assert [seen(splits["test"]), seen(splits["test"])] == [14, 0]
    vit.shift += 1
    assert seen(splits["test"]) == 14
    with torch.no_grad():
        vit.patch_embed.proj.bias[0] += 1e-6
    assert seen(splits["test"]) == 14
    image, label = splits["test"][0]
    assert seen([(image[None], [label])]) == seen([(image[None] * 0.999, [label])]) == 1


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_text("hello"),
        lambda path: save_file({"weight": torch.ones(2)}, str(path)),
    ],
)
def test_a_damaged_or_foreign_file_is_an_error_that_says_so(backbone, splits, tmp_path, harm):
    carrot = Carrot(backbone, preprocess=scaled)
    carrot.embeddings(splits["test"], tmp_path, progress=False)
    harm(next(tmp_path.iterdir()))
    with pytest.raises(ValueError, match="damaged or no file of embeddings.*Delete the file"):
        carrot.embeddings(splits["test"], tmp_path, progress=False)


def test_an_interrupted_run_leaves_no_file(backbone, splits, tmp_path, monkeypatch):
    carrot = Carrot(backbone, preprocess=scaled)
    monkeypatch.setattr(carrot, "regions_of", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        carrot.embeddings(splits["test"], tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_the_whole_pipeline_runs_under_inference_mode_and_changes_no_weight(backbone, splits):
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    with torch.inference_mode():
        carrot = make(backbone, splits, lam=None)
        why = carrot.explain(splits["test"][0][0])
    assert torch.isfinite(why.region_removal).all()
    assert all(
        torch.equal(before[name], tensor) for name, tensor in backbone.model.state_dict().items()
    )


def test_two_processes_that_embed_half_of_the_images_each_predict_as_one(tmp_path):
    multiprocessing.spawn(two_processes_ridge.fit_pipeline, (str(tmp_path),), nprocs=2)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    data = two_processes_ridge.birds()
    alone = two_processes_ridge.small_carrot().fit(data["train"], num_classes=14, progress=False)
    logits = alone.predict(torch.stack([image for image, _ in data["test"]]))
    assert torch.equal(first["labels"], data["train"].labels[::2]) and len(second["labels"]) == 11
    for mine in (first, second):
        torch.testing.assert_close(mine["logits"], logits, rtol=0, atol=1e-8)


def test_no_file_of_the_package_names_a_gradient_or_an_optimiser():
    banned = {
        "backward",
        "autograd",
        "optim",
        "requires_grad",
        "requires_grad_",
        "enable_grad",
        "grad",
        "SGD",
        "Adam",
        "AdamW",
        "LBFGS",
        "step",
        "func",
    }
    for path in Path(ctrace.carrot.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        used |= {
            name
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in (getattr(node, "module", None) or "").split(".")
        }
        used |= {
            alias.name.split(".")[-1]
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        assert not used & banned, (path.name, used & banned)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda b, s: Carrot(b), "no info that says how to prepare images"),
        (lambda b, s: Carrot(b, preprocess=scaled).predict(torch.rand(1, 3, 32, 32)), "call fit"),
        (lambda b, s: make(b, s).explain(torch.rand(1, 3, 32, 32)), "one image"),
        (
            lambda b, s: make(b, s).explain(torch.rand(3, 32, 32), target=14),
            "classes run from 0 to 13, received 14",
        ),
        (lambda b, s: make(b, s).explain(torch.rand(3, 32, 32), 2, 2), "two different classes"),
        (lambda b, s: make(b, s).explain(torch.rand(3, 32, 32), True), "whole class numbers"),
        (lambda b, s: Carrot(b, preprocess=scaled).embeddings([]), "no batch came out of it"),
        (
            lambda b, s: Carrot(b, preprocess=scaled).embeddings([(torch.rand(2, 3, 32, 32), [1])]),
            "labels: expected one class for each of the 2 images",
        ),
        (lambda b, s: overflowing(b).embeddings(s["test"]), "received 14, 14 not finite"),
        (
            lambda b, s: Carrot(b, preprocess=lambda x: x).embeddings(s["test"], "somewhere"),
            "cannot be told from another function",
        ),
    ],
)
def test_what_cannot_be_explained_is_refused_in_words(backbone, splits, call, words):
    with pytest.raises(ValueError, match=words):
        call(backbone, splits)


def test_the_runner_goes_from_a_data_set_to_accuracy_and_an_explanation(capsys, tmp_path):
    runner.main(
        [
            "--data",
            "aviary",
            "--train",
            "28",
            "--test",
            "14",
            "--model",
            "aviary-vit-0",
            "--cache",
            str(tmp_path),
            "--explain",
            "0",
            "--device",
            "cpu",
        ]
    )
    said = capsys.readouterr().out
    assert (
        "28 train, 14 test images of 14 classes" in said
        and "accuracy on the test split" in said
        and "helpful" in said
    )
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_the_runner_is_short():
    assert len(Path(runner.__file__).read_text().splitlines()) < 200


def test_a_cache_that_cannot_be_written_is_refused_before_the_work(backbone, splits, tmp_path):
    carrot = Carrot(backbone, preprocess=scaled)
    carrot.embed = lambda images: pytest.fail("embedded first")
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="cache: cannot write into"):
        carrot.embeddings(splits["test"], cache=tmp_path / "taken", progress=False)


def test_embedding_a_data_set_leaves_the_global_generator_and_no_unfinished_file(
    backbone, splits, tmp_path
):
    before = torch.get_rng_state()
    Carrot(backbone, preprocess=scaled).embeddings(splits["test"], cache=tmp_path, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}
