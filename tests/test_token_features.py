"""Claims about transformer tokens as features. No network, no published weights."""

import math

import numpy as np
import pytest
import timm
import torch

from ctrace.world.photos import load_photo
from ctrace.world.tokens import prepare_grid_features, timm_features


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("hw", [(3, 3), (2, 4)])
def test_prefix_tokens_are_dropped_and_the_patches_keep_their_order(prefix, hw):
    n = math.prod(hw)
    tokens = torch.arange(2 * (prefix + n) * 3.0).reshape(2, prefix + n, 3)
    features, b, h, w = prepare_grid_features(
        ["x", "y"], lambda _: torch.zeros(1), lambda _: tokens, prefix, hw
    )
    assert (b, h, w) == (2, *hw)
    assert torch.equal(features.reshape(2, n, 3), tokens[:, prefix:])


def test_a_square_grid_is_found_without_being_told_and_one_prefix_token_is_the_default():
    features, b, h, w = prepare_grid_features(
        ["x"], lambda _: torch.zeros(1), lambda _: torch.zeros(1, 17, 6)
    )
    assert features.shape == (16, 6) and (b, h, w) == (1, 4, 4)


@pytest.mark.parametrize(
    "tokens, prefix, hw, message",
    [
        (torch.zeros(1, 9, 6), 1, None, r"grid_hw=\(h, w\)"),
        (torch.zeros(1, 18, 6), 1, None, "num_prefix_tokens = 2"),
        (torch.zeros(1, 9, 6), 1, (3, 3), "expected h \\* w = 8"),
        (torch.zeros(1, 3, 6), 5, None, "cannot hold"),
        (torch.zeros(1, 6, 4, 4), 1, None, "token axis"),
        (torch.zeros(2, 17, 6), 1, None, r"\(1, tokens, channels\)"),
    ],
)
def test_tokens_that_fit_no_grid_are_refused(tokens, prefix, hw, message):
    with pytest.raises(ValueError, match=message):
        prepare_grid_features(["x"], lambda _: torch.zeros(1), lambda _: tokens, prefix, hw)


TINY = dict(pretrained=False, embed_dim=12, depth=1, num_heads=3)
TOKEN_MODELS = [
    ("vit_tiny_patch16_224", dict(img_size=48), 1, (3, 3)),
    ("deit_tiny_distilled_patch16_224", dict(img_size=48), 2, (3, 3)),
    ("vit_small_patch14_reg4_dinov2", dict(img_size=42), 5, (3, 3)),
    ("vit_base_patch16_siglip_gap_224", dict(img_size=48), 0, (3, 3)),
    ("vit_tiny_patch16_224", dict(img_size=(32, 64)), 1, (2, 4)),
]


@pytest.mark.parametrize("name, options, prefix, hw", TOKEN_MODELS)
def test_timm_tokens_agree_with_the_model_asked_by_hand(name, options, prefix, hw):
    torch.manual_seed(0)
    model = timm.create_model(name, **TINY, **options)
    images = [load_photo("coffee", 64), load_photo("chelsea", 64)]
    grid = timm_features(images, model)
    assert model.num_prefix_tokens == prefix and grid.grid_hw == hw and grid.n_images == 2
    config = timm.data.resolve_model_data_config(model)
    size = model.patch_embed.img_size
    for image, maps in zip(images, grid.maps()):
        squeezed = image.resize(size[::-1], {"bicubic": 3, "bilinear": 2}[config["interpolation"]])
        x = torch.from_numpy(np.array(squeezed)).permute(2, 0, 1)[None] / 255
        mean, std = (torch.tensor(config[key]).reshape(3, 1, 1) for key in ("mean", "std"))
        tokens = model.eval().forward_features((x - mean) / std)[0, prefix:]
        assert (maps.flatten(0, 1) - tokens).abs().max() < 1e-4


def test_a_model_by_name_gives_numbered_channels():
    grid = timm_features(load_photo("coffee", 64), "vit_tiny_patch16_224", img_size=48, **TINY)
    assert (
        grid.names[:2] == ("ch 0", "ch 1")
        and grid.features.shape == (9, 12)
        and not grid.features.requires_grad
    )


def test_the_model_is_left_in_the_mode_it_was_found_in():
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, **TINY).train()
    timm_features(load_photo("coffee", 64), model)
    assert model.training


def test_a_local_checkpoint_is_what_the_features_come_from(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, **TINY)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    options = {**TINY, "pretrained": True, "img_size": 48}
    photo = load_photo("coffee", 64)
    loaded = timm_features(
        photo, "vit_tiny_patch16_224", checkpoint=tmp_path / "weights.pth", **options
    )
    assert torch.equal(loaded.features, timm_features(photo, model).features)
    with pytest.raises(FileNotFoundError, match="no weight file"):
        timm_features(photo, "vit_tiny_patch16_224", checkpoint=tmp_path / "none.pth", **options)


def test_missing_weights_are_an_error_that_names_model_reason_and_ways_on(monkeypatch):
    def no_network(*args, **kwargs):
        raise ConnectionError("host unreachable")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(RuntimeError) as caught:
        timm_features(load_photo("coffee", 64), "vit_tiny_patch16_224")
    for part in (
        "vit_tiny_patch16_224",
        "host unreachable",
        "network",
        "checkpoint=",
        "pretrained_cfg_overlay",
        "pretrained=False",
    ):
        assert part in str(caught.value)


def test_an_unknown_or_unsuitable_model_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'vit_tiny_patch16_224'"):
        timm_features(load_photo("coffee", 64), "vit_tiny_patch16_244")
    with pytest.raises(ValueError, match="not a timm token model"):
        timm_features(load_photo("coffee", 64), "resnet18", pretrained=False)
