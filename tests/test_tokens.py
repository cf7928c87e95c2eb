"""Tokens on their grid: every prefix count and shape, and the mistakes that are refused."""

import pytest
import timm
import torch
from torch import nn

from ctrace.world.tokens import covered_size, layer_to_map, tokens_to_map


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_tokens_land_on_their_patch(prefix, grid):
    h, w = grid
    tokens = torch.full((2, prefix + h * w, 7), -1.0)
    for i in range(h):
        for j in range(w):
            tokens[:, prefix + i * w + j] = 10 * i + j
    maps = tokens_to_map(tokens, num_prefix_tokens=prefix, grid=grid)
    assert maps.shape == (2, 7, h, w)
    assert torch.equal(maps[1, 3], 10.0 * torch.arange(h)[:, None] + torch.arange(w))


def vit(**settings):
    return timm.models.VisionTransformer(
        img_size=48, patch_size=8, embed_dim=12, depth=3, num_heads=2, num_classes=4, **settings
    ).eval()


MODELS = {
    "class token": (dict(), 1),
    "no prefix": (dict(class_token=False, global_pool="avg"), 0),
    "registers": (dict(reg_tokens=4), 5),
}


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("size", [(48, 48), (40, 64), (43, 61)])
def test_the_grid_is_read_off_a_timm_model(case, size):
    settings, prefix = MODELS[case]
    padded = size == (43, 61)
    model = vit(dynamic_img_size=True, dynamic_img_pad=padded, **settings)
    tokens = model.forward_features(torch.rand(1, 3, *size))
    assert model.num_prefix_tokens == prefix
    maps = tokens_to_map(tokens, model, size)
    h, w = -(-size[0] // 8), -(-size[1] // 8)
    assert maps.shape == (1, 12, h, w) and torch.equal(maps[0, :, 1, 2], tokens[0, prefix + w + 2])
    assert covered_size(model, tokens, (h, w), size) == ((h * 8, w * 8) if padded else size)


def test_a_distilled_model_has_two_prefix_tokens():
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224", depth=1, embed_dim=12, num_heads=2
    ).eval()
    assert tokens_to_map(torch.zeros(1, 2 + 196, 12), model, (224, 224)).shape == (1, 12, 14, 14)


@pytest.mark.parametrize(
    "shape, words",
    [
        ((1, 8, 17), "on axis 2: transpose"),
        ((17, 1, 8), "on axis 0: transpose"),
        ((1, 16, 8), "1 prefix \\+ 4 x 4 patch = 17"),
        ((17, 8), "expected \\(b, n, c\\)"),
    ],
)
def test_a_token_axis_mistake_is_refused(shape, words):
    with pytest.raises(ValueError, match=words):
        tokens_to_map(torch.zeros(shape), num_prefix_tokens=1, grid=(4, 4))


def test_nothing_is_guessed_for_a_model_that_does_not_say():
    with pytest.raises(ValueError, match="grid: cannot be read off"):
        tokens_to_map(torch.zeros(1, 17, 8), nn.Identity(), (32, 32))
    with pytest.raises(ValueError, match="num_prefix_tokens: the model does not say"):
        tokens_to_map(torch.zeros(1, 17, 8), grid=(4, 4))


def test_channels_last_layers_are_turned_by_what_they_are_or_what_the_model_says():
    maps = torch.rand(1, 4, 4, 9)
    turned = maps.permute(0, 3, 1, 2)
    assert torch.equal(layer_to_map(maps, nn.Identity(), nn.Linear(9, 9), (32, 32)), turned)
    swin = nn.Identity()
    swin.output_fmt = "NHWC"
    assert torch.equal(layer_to_map(maps, swin, nn.Identity(), (32, 32)), turned)
    assert torch.equal(layer_to_map(turned, swin, nn.Conv2d(3, 9, 8), (32, 32)), turned)


@pytest.mark.parametrize(
    "shape, words",
    [
        ((1, 7, 7, 64), "Are its channels last"),
        ((1, 64, 1, 1), "1 x 1.*before the pooling"),
        ((1, 64), "no image axes"),
    ],
)
def test_a_layer_that_cannot_point_anywhere_is_refused(shape, words):
    with pytest.raises(ValueError, match=words):
        layer_to_map(torch.zeros(shape), nn.Identity(), nn.Identity(), (224, 224))
