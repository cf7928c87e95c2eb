"""Tokens of any timm token model: the right ones, in the right order, normed once, and the model
left alone.
"""

import pytest
import timm
import torch
from torch import nn

from ctrace.world.models import load_model
from ctrace.world.tokens import TimmViTPatchBackbone, patch_centers

MODELS = {  # name, prefix tokens; all small and random
    "vit_tiny_patch16_224": 1,
    "deit_tiny_distilled_patch16_224": 2,
    "vit_wee_patch16_reg1_gap_256": 1,  # a register, no class token
    "vit_small_patch14_reg4_dinov2": 5,  # a class token and four registers
    "vit_base_patch16_siglip_224": 0,
    "eva02_tiny_patch14_224": 1,
}
SIZES = [(56, 56), (28, 84)]


def small(name, size):
    """A shallow random model whose norms have an affine part, so that applying one twice shows."""
    torch.manual_seed(0)
    patch = 16 if "patch16" in name else 14
    size = tuple(side // 14 * patch for side in size)
    model = timm.create_model(name, img_size=size, depth=1, embed_dim=48, num_heads=3).eval()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return model, torch.randn(2, 3, *size), (patch, patch)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_those_of_forward_features_without_the_prefix(name, size):
    model, images, patch = small(name, size)
    out = TimmViTPatchBackbone(model)(images)
    h, w = (side // step for side, step in zip(images.shape[2:], patch))
    with torch.no_grad():
        tokens = model.forward_features(images)
    assert model.num_prefix_tokens == MODELS[name]
    torch.testing.assert_close(out.H, tokens[:, MODELS[name] :], rtol=0, atol=0)
    assert (out.grid_hw, out.patch_hw, out.H.shape[1], out.P.shape) == (
        (h, w),
        patch,
        h * w,
        (h * w, 2),
    )
    assert not out.H.requires_grad


def test_the_final_norm_is_applied_once():
    model, images, _ = small("vit_tiny_patch16_224", (56, 56))
    out, raw = TimmViTPatchBackbone(model)(images), []
    with (
        model.norm.register_forward_pre_hook(lambda module, args: raw.append(args[0].detach())),
        torch.no_grad(),
    ):
        model.forward_features(images)
        once = model.norm(raw[0])[:, 1:]
    torch.testing.assert_close(out.H, once)
    assert (model.norm(once) - once).detach().norm() > 0.1 * once.norm()


@pytest.mark.parametrize("name", MODELS)
def test_without_the_final_norm_the_tokens_end_before_it(name):
    model, images, _ = small(name, (56, 56))
    out, raw = TimmViTPatchBackbone(model, out_norm=False)(images), []
    hook = model.norm.register_forward_pre_hook(lambda module, args: raw.append(args[0].detach()))
    model.forward_features(images)
    hook.remove()
    torch.testing.assert_close(out.H, raw[0][:, MODELS[name] :])


def test_each_token_sits_where_its_patch_is():
    """One bright patch in a model without attention changes one token, and P points there."""
    model, images, _patch = small("vit_tiny_patch16_224", (28, 84))
    model.blocks = nn.Identity()
    backbone, row, column = TimmViTPatchBackbone(model), 1, 4
    changed = images.clone()
    changed[:, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] += 1
    before, after = backbone(images), backbone(changed)
    moved = (after.H - before.H).abs().amax((0, 2)) > 0
    assert moved.nonzero().flatten().tolist() == [row * 6 + column]
    x, y = ((before.P[moved][0] + 1) / 2 * torch.tensor([96, 32])).tolist()
    assert (x, y) == (
        pytest.approx(column * 16 + 8, abs=1e-4),
        pytest.approx(row * 16 + 8, abs=1e-4),
    )


def test_centres_by_hand():
    expected = [[-0.5, -2 / 3], [0.5, -2 / 3], [-0.5, 0], [0.5, 0], [-0.5, 2 / 3], [0.5, 2 / 3]]
    torch.testing.assert_close(patch_centers((3, 2)), torch.tensor(expected, dtype=torch.double))


def test_a_bundled_model_is_read_with_the_patch_of_its_convolutional_stem():
    out = TimmViTPatchBackbone("aviary-vit-0", device="cpu")(torch.randn(1, 3, 96, 96))
    assert (out.grid_hw, out.patch_hw, out.H.shape) == ((12, 12), (8, 8), (1, 144, 64))


def test_a_timm_name_without_weights_gives_random_ones_on_purpose():
    out = TimmViTPatchBackbone(
        "vit_tiny_patch16_224", pretrained=False, img_size=(64, 96), device="cpu"
    )(torch.randn(1, 3, 64, 96))
    assert (out.grid_hw, out.H.shape) == ((4, 6), (1, 24, 192))


def test_it_is_a_module_called_by_name_whose_model_is_frozen_unless_asked_otherwise():
    settings = dict(pretrained=False, img_size=64, out_norm=True, device="cpu")
    for freeze in (True, False):
        backbone = TimmViTPatchBackbone("test_vit", freeze=freeze, **settings)
        assert isinstance(backbone, nn.Module) and len(list(backbone.parameters())) > 10
        assert all(p.requires_grad is not freeze for p in backbone.parameters())
        assert backbone.model.info.input_size == (3, 64, 64) and backbone.model.info.grid == (4, 4)
    H, P = backbone(backbone.model.info.preprocess(torch.rand(1, 3, 80, 80)))
    assert H.shape[:2] == (1, 16) and P.shape == (16, 2) and not H.requires_grad


def test_the_model_is_left_as_it_was_found():
    model, images, _ = small("vit_tiny_patch16_224", (56, 56))
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    TimmViTPatchBackbone(model, img_size=(32, 32))(torch.randn(1, 3, 32, 32))
    TimmViTPatchBackbone(model)(images)
    assert model.training and model.patch_embed.img_size == (64, 64)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_dropout_of_a_training_model_does_not_reach_the_tokens():
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=1, proj_drop_rate=0.5
    ).train()
    backbone, images = TimmViTPatchBackbone(model), torch.randn(1, 3, 32, 32)
    assert torch.equal(backbone(images).H, backbone(images).H)


def test_a_model_of_dynamic_size_takes_other_sizes():
    model = timm.create_model("vit_tiny_patch16_224", depth=1, dynamic_img_size=True)
    assert TimmViTPatchBackbone(model)(torch.randn(1, 3, 48, 80)).grid_hw == (3, 5)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_a_model_without_tokens_is_refused_by_name(name):
    with pytest.raises(ValueError, match="not a timm token model|expected tokens"):
        TimmViTPatchBackbone(timm.create_model(name))(torch.randn(1, 3, 224, 224))


def test_a_size_that_the_patch_does_not_divide_is_refused_with_one_that_it_does():
    model, *_ = small("vit_tiny_patch16_224", (56, 56))
    with pytest.raises(
        ValueError, match=r"70 x 90 pixels are not whole patches of 16 x 16.*Resize to 64 x 80"
    ):
        TimmViTPatchBackbone(model)(torch.randn(1, 3, 70, 90))


def test_another_size_than_the_models_is_refused_with_the_way_to_get_it():
    model, *_ = small("vit_tiny_patch16_224", (56, 56))
    with pytest.raises(
        ValueError, match=r"expected 64 x 64 pixels, received 32 x 32.*img_size=\(32, 32\)"
    ):
        TimmViTPatchBackbone(model)(torch.randn(1, 3, 32, 32))


def test_pooled_tokens_and_single_images_are_refused():
    model, images, _ = small("vit_tiny_patch16_224", (56, 56))
    with pytest.raises(ValueError, match=r"needs image\[None\]"):
        TimmViTPatchBackbone(model)(images[0])
    model.forward_features = lambda x: torch.zeros(len(x), 48)
    with pytest.raises(ValueError, match="drops or pools"):
        TimmViTPatchBackbone(model)(images)


def test_an_unknown_name_lists_close_ones():
    with pytest.raises(ValueError, match="aviary-vit-0"):
        TimmViTPatchBackbone("aviary-vit-9")


def test_loading_prints_what_was_loaded(capsys):
    TimmViTPatchBackbone("aviary-vit-1")
    assert "bundled weights" in capsys.readouterr().out
    TimmViTPatchBackbone(load_model("aviary-vit-1"), device="cpu")
