"""Claims about features that know their names, and about the tokens of a transformer as such
features. No network, no published weights.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from ctrace.world.features import GridFeatures, prepare_grid_features, timm_features
from ctrace.world.photos import load_photo
from ctrace.world.weights import WEIGHTS_VARIABLE


def small_grid() -> GridFeatures:
    return GridFeatures(torch.arange(2 * 2 * 3 * 2.0).reshape(12, 2), ("a", "b"), (2, 3), 2)


def test_rows_are_ordered_image_then_y_then_x():
    grid = small_grid()
    for image, y, x in [(0, 0, 0), (0, 1, 2), (1, 0, 1)]:
        assert torch.equal(grid.maps()[image, y, x], grid.features[(image * 2 + y) * 3 + x])


def test_zscores_have_mean_zero_deviation_one_and_leave_a_constant_channel_at_zero():
    x = torch.stack([torch.randn(12), torch.full((12,), 0.3)], 1)
    grid = replace(small_grid(), features=x)
    z = grid.zscores().flatten(0, 2)
    assert torch.allclose(z[:, 0].mean(), torch.tensor(0.0), atol=1e-6)
    assert torch.allclose(z[:, 0].pow(2).mean(), torch.tensor(1.0), atol=1e-5)
    assert (z[:, 1] == 0).all()


def test_gradients_flow_back_through_maps():
    grid = small_grid()
    grid.features.requires_grad_()
    grid.maps()[..., grid.index("b")].sum().backward()
    assert grid.features.grad.tolist() == [[0.0, 1.0]] * 12


def test_features_move_to_another_precision_with_their_names_and_grid():
    grid = small_grid().to(torch.float64)
    assert grid.features.dtype == torch.float64
    assert (grid.names, grid.grid_hw, grid.n_images) == (("a", "b"), (2, 3), 2)


def test_an_unknown_channel_lists_close_names():
    with pytest.raises(ValueError, match="Did you mean 'b\\* blue-yellow'"):
        GridFeatures(torch.zeros(1, 2), ("b* blue-yellow", "L*"), (1, 1)).index("b* blue-yelow")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.zeros(12, 2), ("a", "b"), (3, 3), 2), "n = 12"),
        ((torch.zeros(0, 2), ("a", "b"), (0, 3), 2), "at least 1 rows"),
        ((torch.zeros(12, 2), ("a",), (2, 3), 2), "expected 2 names"),
        ((torch.zeros(12, 2), ("a", "a"), (2, 3), 2), "'a'. repeat"),
        ((torch.zeros(12, 2).long(), ("a", "b"), (2, 3), 2), "expected float32 or float64"),
        ((torch.zeros(2, 2, 3, 2), ("a", "b"), (2, 3), 2), r"\(n, c\)"),
        ((np.zeros((12, 2)), ("a", "b"), (2, 3), 2), "ndarray"),
    ],
)
def test_contradictory_shapes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GridFeatures(*arguments)


# --- tokens as features


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
        ["x"], lambda _: torch.zeros(3, 8, 8), lambda _: torch.zeros(1, 17, 6)
    )
    assert features.shape == (16, 6) and (b, h, w) == (1, 4, 4)


@pytest.mark.parametrize(
    "tokens, prefix, hw, message",
    [
        (torch.zeros(1, 9, 6), 1, None, r"grid_hw=\(h, w\)"),
        (torch.zeros(1, 18, 6), 1, None, "the right num_prefix_tokens"),
        (torch.zeros(1, 9, 6), 1, (3, 3), r"1 prefix \+ 3 x 3 patch = 10"),
        (torch.zeros(1, 3, 6), 5, None, "-2 patches"),
        (torch.zeros(1, 6, 4, 4), 1, None, "token axis"),
        (torch.zeros(2, 17, 6), 1, None, r"\(1, tokens, channels\)"),
    ],
)
def test_tokens_that_fit_no_grid_are_refused(tokens, prefix, hw, message):
    with pytest.raises(ValueError, match=message):
        prepare_grid_features(["x"], lambda _: torch.zeros(3, 8, 8), lambda _: tokens, prefix, hw)


def test_an_oblong_image_is_not_laid_on_a_square_grid_because_its_patches_are_a_square_number():
    oblong, tokens = torch.zeros(3, 32, 128), torch.zeros(1, 17, 6)  # 2 x 8 patches of 16
    with pytest.raises(ValueError, match=r"\(3, 32, 128\) do not say their grid.*grid_hw=\(h, w\)"):
        prepare_grid_features(["x"], lambda _: oblong, lambda _: tokens)
    *_, h, w = prepare_grid_features(["x"], lambda _: oblong, lambda _: tokens, 1, (2, 8))
    assert (h, w) == (2, 8)


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


def test_each_module_is_left_in_the_mode_it_was_found_in():
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, **TINY).train()
    model.blocks.eval()
    before = [module.training for module in model.modules()]
    timm_features(load_photo("coffee", 64), model)
    assert [module.training for module in model.modules()] == before


def test_a_local_checkpoint_is_what_the_features_come_from(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, **TINY)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    options = {**TINY, "pretrained": True, "img_size": 48}
    photo = load_photo("coffee", 64)
    loaded = timm_features(
        photo, "vit_tiny_patch16_224", checkpoint=tmp_path / "weights.pth", **options
    )
    assert torch.equal(loaded.features, timm_features(photo, model).features)
    with pytest.raises(ValueError, match="no weight file"):
        timm_features(photo, "vit_tiny_patch16_224", checkpoint=tmp_path / "none.pth", **options)


def test_a_name_goes_through_the_one_door_to_weights(tmp_path, monkeypatch, capsys):
    name, photo = "vit_tiny_patch16_224", load_photo("coffee", 64)
    model = timm.create_model(name, img_size=48, **TINY)
    torch.save(model.state_dict(), tmp_path / f"{name}.pth")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    found = timm_features(photo, name, **{**TINY, "pretrained": True, "img_size": 48})
    assert f"local file {name}.pth" in capsys.readouterr().out
    assert torch.equal(found.features, timm_features(photo, model).features)


def test_missing_weights_are_an_error_that_names_model_reason_and_ways_on(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError) as caught:
        timm_features(load_photo("coffee", 64), "vit_tiny_patch16_224")
    for part in ("vit_tiny_patch16_224", "set to offline", "network", WEIGHTS_VARIABLE, "bundled"):
        assert part in str(caught.value)


def test_an_unknown_or_unsuitable_model_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'vit_tiny_patch16_224'"):
        timm_features(load_photo("coffee", 64), "vit_tiny_patch16_244")
    with pytest.raises(ValueError, match="not a timm token model"):
        timm_features(load_photo("coffee", 64), "resnet18", pretrained=False)
