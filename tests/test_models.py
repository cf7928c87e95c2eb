"""Bundled models keep the bars their cards state; every other model comes through the same door, in
words.
"""

import json
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file
from torch.utils.data import Subset

from ctrace.aviary import (
    MARKED,
    SPECIES,
    Aviary,
    Cached,
    Individuals,
    centred_logits,
    part_importance,
    sample_scene,
    species_by_name,
)
from ctrace.stats import equal_error_rate
from ctrace.world import models, weights
from ctrace.world.models import BUNDLED, MODEL_DIR, build_bundled, load_model, model_card
from ctrace.world.photos import as_pixels, load_photo
from ctrace.world.weights import read_checkpoint
from tools import train_aviary

AVIARY = [name for name in BUNDLED if name.startswith("aviary")]
CLASSIFIERS = [f"aviary-{kind}-{seed}" for kind in ("resnet", "vit") for seed in range(3)]
MARKED_LABELS = [i for i, s in enumerate(SPECIES) if s.name in MARKED]


@torch.no_grad()
def answers(model, data):
    return torch.cat(
        [model(model.info.preprocess(part.float() / 255)) for part in data.images.split(70)]
    )


def accuracy(model, data):
    return float((answers(model, data).argmax(1) == data.targets).float().mean())


def marked_scenes(rule):
    """A hundred held-out scenes of the species that the toadstool was tied to in training."""
    data = Aviary("test", 700, spurious=rule)
    return Cached(Subset(data, [i for i in range(700) if data.label(i) in MARKED_LABELS]))


@pytest.fixture(scope="module")
def held_out():
    return Cached(Aviary("test", 280))


# --- what the bundled models can do


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_know_at_least_95_percent_of_held_out_scenes(name, held_out):
    assert accuracy(load_model(name, device="cpu"), held_out) >= 0.95
    assert min(model_card(name)["accuracy"][split] for split in ("train", "val", "test")) >= 0.95


@pytest.mark.parametrize("name", ["aviary-resnet-0", "aviary-vit-0"])
def test_untrained_weights_know_nothing(name, held_out):
    torch.manual_seed(0)
    assert accuracy(load_model(name, "random", device="cpu"), held_out) < 0.2


def test_verification_errs_on_less_than_a_tenth_of_held_out_individuals():
    model, data = load_model("aviary-embedding", device="cpu"), Cached(Individuals("test", 40, 4))
    unit = F.normalize(answers(model, data), dim=1)
    assert unit.shape == (160, models.EMBEDDING_SIZE)
    upper = torch.triu(torch.ones(160, 160, dtype=torch.bool), 1)
    cosine, same = (unit @ unit.T)[upper], (data.targets[:, None] == data.targets)[upper]
    assert equal_error_rate(cosine[same], cosine[~same]) < 0.1


def test_the_cheating_model_falls_to_chance_on_its_species_when_the_mark_moves():
    model = load_model("aviary-cheating", device="cpu")
    assert accuracy(model, Cached(Aviary("test", 140, spurious="tied"))) >= 0.95
    assert accuracy(model, marked_scenes("tied")) >= 0.95
    assert accuracy(model, marked_scenes("moved")) <= 2 / len(SPECIES)


def test_the_honest_model_does_not_care_where_the_mark_is():
    assert accuracy(load_model("aviary-resnet-0", device="cpu"), marked_scenes("moved")) >= 0.95


def test_the_shuffled_model_knows_its_training_images_by_heart_and_nothing_else(held_out):
    assert model_card("aviary-shuffled")["accuracy"]["train"] >= 0.95
    assert accuracy(load_model("aviary-shuffled", device="cpu"), held_out) <= 0.15


def test_a_twin_is_told_apart_by_the_one_part_that_differs():
    model, target = (
        load_model("aviary-resnet-0", device="cpu"),
        SPECIES.index(species_by_name("iris")),
    )
    scene = sample_scene(2_000_000_123, species_by_name("iris"))
    laurel = SPECIES.index(species_by_name("laurel"))
    before, after = centred_logits(model, [scene, scene.swap("beak", "sickle")])
    assert before[target] > before[laurel] and after[target] < after[laurel]
    assert sum(part_importance(model, scene, target).values()) > 0


# --- a network for real photographs

SQUEEZED = {  # what it says about whole photographs in 227 x 227 pixels
    "chelsea": ("Egyptian cat", 0.81),
    "coffee": ("espresso", 0.98),
    "hopper": ("bow tie", 0.64),
    "motorcycle": ("moped", 0.65),
    "motorcycle_right": ("moped", 0.70),
    "china": ("bell cote", 0.52),
}


@pytest.fixture(scope="module")
def squeezenet():
    return load_model("squeezenet", device="cpu")


@torch.no_grad()
def probabilities(model, photo, size=None):
    return model(model.info.preprocess(as_pixels(photo)[0], size)).softmax(1)[0]


@pytest.mark.parametrize("photo", SQUEEZED)
def test_squeezenet_names_what_the_photographs_show(photo, squeezenet):
    name, value = SQUEEZED[photo]
    p = probabilities(squeezenet, load_photo(photo))
    assert int(p.argmax()) == squeezenet.info.index(name)
    assert float(p.max()) == pytest.approx(value, abs=0.02)


def test_squeezenet_takes_any_size_and_in_their_own_sizes_says_the_same(squeezenet):
    for photo, name in (("chelsea", "Egyptian cat"), ("coffee", "espresso"), ("hubble", "bubble")):
        image = load_photo(photo, 352)
        p = probabilities(squeezenet, image, image.size[::-1])
        assert int(p.argmax()) == squeezenet.info.index(name)
    with torch.no_grad():
        assert squeezenet(torch.zeros(1, 3, 100, 180)).shape == (1, 1000)


def test_squeezenet_sees_the_pixels_that_its_authors_fed_it(squeezenet):
    """Their deploy file: red, green, blue from 0 to 255 less 123, 117, 104. Nothing is resized."""
    image = load_photo("coffee", (227, 227))
    literal = np.asarray(image, np.float32) - np.array([123, 117, 104], np.float32)
    x = squeezenet.info.preprocess(as_pixels(image)[0])
    assert x.shape == (1, 3, 227, 227)
    np.testing.assert_allclose(x[0].permute(1, 2, 0), literal, atol=2e-4)


def test_squeezenet_is_torchvisions_with_the_published_padding_in_half_the_precision(squeezenet):
    stored = read_checkpoint(MODEL_DIR / "squeezenet.safetensors")
    assert {v.dtype for v in stored.values()} == {torch.float16}
    literal = torchvision.models.squeezenet1_0(weights=None)
    literal.load_state_dict({name: v.float() for name, v in stored.items()})
    x = squeezenet.info.preprocess(as_pixels(load_photo("hopper"))[0])
    with torch.no_grad():
        features = F.pad(literal.features(x), (1, 1, 1, 1))
        expected = literal.eval().classifier(features).flatten(1)
        torch.testing.assert_close(squeezenet(x), expected)
        assert (literal(x) - expected).abs().max() > 0.1  # without the padding: another network


def test_squeezenet_comes_with_its_card_and_its_licence(squeezenet):
    card = model_card("squeezenet")
    assert {"source", "licence", "changes", "accuracy", "published_accuracy"} <= set(card)
    assert card["parameters"] == sum(p.numel() for p in squeezenet.parameters())
    stored = read_checkpoint(MODEL_DIR / "squeezenet.safetensors").values()
    assert card["not_zero"] == sum(int(v.count_nonzero()) for v in stored)
    licence = (MODEL_DIR / card["licence_file"]).read_text()
    assert "BSD" in card["licence"] and "Redistributions of source code must retain" in licence


def test_a_class_is_found_by_any_of_its_names(squeezenet):
    info = squeezenet.info
    assert len(info.classes) == 1000 and info.classes[281] == "tabby, tabby cat"
    names = ("tabby, tabby cat", "tabby", "tabby cat", "espresso", "Egyptian cat")
    assert [info.index(name) for name in names] == [281, 281, 281, 967, 285]
    with pytest.raises(ValueError, match="class: .*'expresso'. Did you mean 'espresso'"):
        info.index("expresso")
    with pytest.raises(ValueError, match=r"'crane' is the name of \[134, 517\]. Choose by number"):
        info.index("crane")
    bird = load_model("aviary-resnet-0", device="cpu").info
    assert bird.index(SPECIES[3].name) == 3
    with pytest.raises(ValueError, match="class: "):
        replace(bird, classes=None).index("iris")


# --- how they are trained


@pytest.mark.parametrize(
    "name", ["aviary-resnet-1", "aviary-vit-1", "aviary-shuffled", "aviary-embedding"]
)
def test_a_recipe_run_twice_writes_the_same_weights_and_card(name, tmp_path, monkeypatch):
    """Every kind of recipe, cut down to nine steps on a few images."""
    assert model_card(name)["recipe"] == asdict(train_aviary.RECIPES[name])
    short = replace(
        train_aviary.RECIPES[name], steps=9, images=168, batch=8, stem_steps=2 * ("vit" in name)
    )
    monkeypatch.setitem(train_aviary.RECIPES, name, short)
    monkeypatch.setattr(train_aviary, "EVALUATED", 14)
    monkeypatch.setattr(train_aviary, "EVALUATED_BIRDS", 3)
    for folder in ("once", "twice"):
        monkeypatch.setattr(train_aviary, "OUTPUT", tmp_path / folder)
        train_aviary.train(name, tmp_path, "cpu")
    once, twice = (
        read_checkpoint(tmp_path / folder / f"{name}.safetensors") for folder in ("once", "twice")
    )
    assert once.keys() == twice.keys() and all(torch.equal(v, twice[k]) for k, v in once.items())
    assert json.loads((tmp_path / "once" / f"{name}.json").read_text())["recipe"] == asdict(short)


# --- what a loaded model carries


@pytest.mark.parametrize("name", AVIARY)
def test_bundled_models_carry_what_is_needed_to_feed_and_read_them(name):
    model, card = load_model(name, device="cpu"), model_card(name)
    info = model.info
    assert not model.training and info.input_size == (3, 96, 96) and min(info.grid) >= 12
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    assert {"recipe", "log", "training_seconds", "machine"} <= set(card)
    config = timm.data.resolve_model_data_config(model)
    assert (config["input_size"], config["mean"], config["std"]) == (
        info.input_size,
        info.mean,
        info.std,
    )
    tokens = model.forward_features(info.preprocess(torch.rand(2, 3, 96, 96)))
    if tokens.ndim == 3:
        assert tokens.shape[1] == info.num_prefix_tokens + info.grid[0] * info.grid[1]
    else:
        assert tuple(tokens.shape[2:]) == info.grid


def test_all_weights_together_stay_under_16_megabytes():
    files = list(MODEL_DIR.glob("*.safetensors"))
    assert {f.stem for f in files} == set(BUNDLED) and sum(f.stat().st_size for f in files) < 16e6


def test_preprocess_scales_and_resizes_and_says_what_is_wrong():
    info = load_model("aviary-resnet-0", "random", device="cpu").info
    image = torch.rand(3, 96, 96)
    torch.testing.assert_close(info.preprocess(image), (image[None] - 0.5) / 0.25)
    assert info.preprocess(torch.rand(2, 3, 50, 70)).shape == (2, 3, 96, 96)
    with pytest.raises(ValueError, match="Channels come first"):
        info.preprocess(torch.rand(1, 96, 96, 3))
    with pytest.raises(ValueError, match="need division by 255"):
        info.preprocess(image * 255)


# --- other models, and what goes wrong


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """The hub client without a network, and with an empty cache of its own."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv(weights.WEIGHTS_VARIABLE, raising=False)
    return tmp_path / "hub"


TINY = "test_vit"  # timm's own test architectures: 160 px, a fraction of a megabyte


@pytest.fixture
def cached(no_network):
    """Weights of the tiny model where the hub's client keeps what it has fetched."""
    torch.manual_seed(1)
    state = {k: v.contiguous() for k, v in timm.create_model(TINY).state_dict().items()}
    repository = timm.get_pretrained_cfg(TINY).hf_hub_id.replace("/", "--")
    folder = no_network / f"models--{repository}"
    (folder / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    save_file(state, str(folder / "snapshots" / ("a" * 40) / "model.safetensors"))
    return state


def test_pretrained_weights_are_taken_from_the_local_hub_cache(cached):
    for choice in ("pretrained", "auto"):
        model = load_model(TINY, choice, device="cpu")
        assert model.info.weights == "pretrained timm weights"
        assert all(torch.equal(v, cached[k]) for k, v in model.state_dict().items())
    assert model.info.num_prefix_tokens == model.num_prefix_tokens and model.info.grid == (10, 10)


def test_loading_from_the_cache_leaves_the_settings_of_the_hub_client_alone(cached, monkeypatch):
    """Another thread may be fetching something else at the same time."""
    seen, create = [], timm.create_model
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "_network_problem", lambda: "no network")
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda *a, **k: (seen.append(constants.HF_HUB_OFFLINE), create(*a, **k))[1],
    )
    load_model(TINY, "pretrained", device="cpu")
    assert seen == [False]


def test_published_classes_of_imagenet_have_their_names_and_no_others(cached, capsys, tmp_path):
    model = load_model(TINY, "pretrained", device="cpu")
    assert model.info.classes[281] == "tabby, tabby cat" and len(model.info.classes) == 1000
    assert "1000 classes" in capsys.readouterr().out
    assert load_model(TINY, "random", device="cpu").info.classes is None
    save_file(cached, str(tmp_path / "thousand_faces.safetensors"))
    own = load_model(TINY, tmp_path / "thousand_faces.safetensors", device="cpu")
    assert own.info.classes is None


def test_published_weights_fit_another_input_size_and_are_not_held_twice(cached):
    model = load_model(TINY, "pretrained", device="cpu", img_size=(96, 64))
    assert model.info.input_size == (3, 96, 64) and model.info.grid == (6, 4)
    assert torch.equal(model.head.weight, cached["head.weight"])
    assert "state_dict" not in model.pretrained_cfg


def test_pretrained_without_a_network_fails_with_the_three_ways_on(no_network):
    with pytest.raises(
        ValueError,
        match=r"'test_vit': not in the hub cache.*\(1\) run once with a network.*"
        r"\(2\) set CTRACE_WEIGHTS_DIR.*\(3\) use a bundled",
    ):
        load_model(TINY, "pretrained", device="cpu")
    assert constants.HF_HUB_OFFLINE is True


def test_auto_without_a_network_says_aloud_that_the_weights_are_random(no_network, capsys):
    model = load_model(TINY, device="cpu")
    assert "RANDOM weights, untrained" in capsys.readouterr().out and model.info.weights.startswith(
        "RANDOM"
    )


def test_a_local_folder_of_weights_is_used_and_named(no_network, tmp_path, monkeypatch, capsys):
    torch.manual_seed(2)
    state = timm.create_model(TINY).state_dict()
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / f"{TINY}.pth"
    )
    monkeypatch.setenv(weights.WEIGHTS_VARIABLE, str(tmp_path))
    model = load_model(TINY, "pretrained", device="cpu")
    assert "local file test_vit.pth" in capsys.readouterr().out
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_path_fills_bundled_and_timm_architectures_alike(tmp_path):
    for name, model in (
        ("aviary-vit-1", build_bundled("aviary-vit-1")),
        (TINY, timm.create_model(TINY)),
    ):
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        save_file(state, str(tmp_path / "own.safetensors"))
        loaded = load_model(name, tmp_path / "own.safetensors", device="cpu")
        assert loaded.info.weights == "local file own.safetensors"
        assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("code inside a weight file was executed",)


def test_code_inside_a_weight_file_is_never_executed(tmp_path):
    torch.save({"weights": torch.zeros(1), "bomb": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Bomb()))
    for file in ("bomb.pth", "plain.pkl"):
        with pytest.raises(ValueError, match="was refused.*hold nothing but tensors"):
            read_checkpoint(tmp_path / file)


def test_unusable_weight_files_are_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match="no weight file at"):
        load_model("aviary-vit-0", tmp_path / "missing.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(
        (MODEL_DIR / "aviary-vit-0.safetensors").read_bytes()[:5000]
    )
    with pytest.raises(ValueError, match="cut.safetensors is no readable safetensors file"):
        load_model("aviary-vit-0", tmp_path / "cut.safetensors")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match="an empty file is at .*empty.pth"):
        read_checkpoint(tmp_path / "empty.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_checkpoint(tmp_path / "list.pth")
    with pytest.raises(ValueError, match="does not fit aviary-vit-0"):
        load_model("aviary-vit-0", MODEL_DIR / "aviary-resnet-0.safetensors")


def test_an_unknown_name_lists_close_ones():
    with pytest.raises(
        ValueError, match="model: expected one of .*'aviary-vit-7'. Did you mean 'aviary-vit-"
    ):
        load_model("aviary-vit-7")
    with pytest.raises(ValueError, match="Did you mean .*'resnet18'"):
        load_model("resnet_18")
    with pytest.raises(ValueError, match="bundled model: expected one of aviary-resnet-0"):
        model_card("resnet18")
