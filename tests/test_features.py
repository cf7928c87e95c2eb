"""Claims about features that know their names, and about the tokens of a transformer as such
features. No network, no published weights.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from ctrace.check import fingerprint
from ctrace.world.features import GridFeatures, conv_features, prepare_grid_features, timm_features
from ctrace.world.models import load_model
from ctrace.world.photos import as_pixels, load_photo
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


# --- maps of convolutions as features


@pytest.fixture(scope="module")
def squeezenet():
    return load_model("squeezenet", device="cpu")


RAW = dict(unit=False, centre=False)


def hooked(model, layer, x):
    """What a plain forward hook sees, ``(b, c, h, w)``."""
    seen = []
    hook = model.get_submodule(layer).register_forward_hook(
        lambda module, args, output: seen.append(output.clone())
    )
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("layer", ["features.0", "features.10", "features.12.squeeze"])
def test_without_padding_the_features_are_what_a_plain_hook_sees(layer, squeezenet):
    images = [load_photo("coffee", (160, 130)), load_photo("hopper", (160, 130))]
    grid = conv_features(images, squeezenet, layer, pad=0, **RAW)
    x = 255 * torch.stack(as_pixels(images)) - torch.tensor([123.0, 117, 104])[:, None, None]
    plain = hooked(squeezenet, layer, x)
    assert grid.n_images == 2 and grid.names[:2] == (f"{layer}/0", f"{layer}/1")
    torch.testing.assert_close(grid.maps().permute(0, 3, 1, 2), plain, rtol=1e-4, atol=1e-3)


def test_with_padding_they_are_those_of_the_mirrored_photograph_less_the_cells_outside(squeezenet):
    """Fire8 sees pixels 8 k + 9 in the middle of its cell k, all counted from 0. 54 pixels ahead
    put its cell 6 on pixel 3 of the photograph, half a pixel from the middle of the first 8.
    """
    image = load_photo("astronaut", 192)
    grid = conv_features(image, squeezenet, "features.10", pad=48, **RAW)
    x = squeezenet.info.preprocess(as_pixels(image)[0], (192, 192))
    whole = hooked(squeezenet, "features.10", F.pad(x, (54, 48, 54, 48), mode="reflect"))
    assert grid.grid_hw == (24, 24)
    literal = whole[:, :, 6:30, 6:30].permute(0, 2, 3, 1)
    torch.testing.assert_close(grid.maps(), literal, rtol=1e-4, atol=1e-3)


def test_a_mirrored_frame_has_no_strips_where_zeros_have(squeezenet):
    """Features of a smooth slope: with zeros around it the rim is unlike the inside."""
    slope = torch.linspace(0.2, 0.8, 192).expand(3, 192, 192)
    inside, rim = [], []
    for pad in (0, 48):
        maps = conv_features(slope, squeezenet, "features.10", pad, centre=False).maps()[0]
        along = F.cosine_similarity(maps[1:, 12], maps[:-1, 12], dim=-1)  # a column, lines equal
        rim.append(float(along.min()))
        inside.append(float(along[6:16].min()))
    assert rim[0] < 0.9 and rim[1] > 0.9999 and min(inside) > 0.99


def positive(model):
    """All weights positive and none zero, so that a brighter dot raises every cell that sees it."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator, dtype=torch.double) + 0.5
        parameter.data /= parameter[0].numel() if parameter.ndim > 1 else 1
    return model.double().eval()


def plain_net():
    """ResNet's way to shrink: odd kernels padded by half, so that cell 0 lies on pixel 0."""
    pool, convs = nn.MaxPool2d(3, 2, 1), ((3, 4, 7, 2, 3), (4, 4, 3, 2, 1))
    first, second = (nn.Conv2d(*shape) for shape in convs)
    return nn.Sequential(first, nn.ReLU(), pool, second)


@pytest.mark.parametrize("build", [lambda: load_model("squeezenet", "random", "cpu"), plain_net])
@pytest.mark.parametrize("side", [168, 173])
def test_a_moved_dot_is_seen_by_the_cells_around_it(build, side):
    """Averaged over the eight places in a cell, the middle of the cells that see the dot is its
    place, at half a pixel; in the layer's own grid, it is not.
    """
    model, places = positive(build()), torch.arange(80, 88)
    layer = "features.10" if hasattr(model, "features") else "3"
    background = torch.full((3, side, 96), 0.6, dtype=torch.double)
    dots = [background.clone() for _ in places]
    for dot, place in zip(dots, places):
        dot[:, place, 48] = 1
    worst = []
    for pad in (48, 0):
        grid = conv_features([background, *dots], model, layer, pad, **RAW)
        maps = grid.maps()
        moved = ((maps[1:] - maps[:1]).abs().sum(-1) > 0).any(2)  # (8, h)
        middle = [(row.nonzero().min() + row.nonzero().max()) / 2 for row in moved]
        cells, step = grid.grid_hw[0], 8
        found = (torch.stack(middle).mean() - (cells - 1) / 2) * step + (side - 1) / 2
        worst.append(abs(float(found - places.double().mean())))
        if pad:
            assert cells == round(side / 8)
    assert worst[0] <= 0.5 + 1e-6 and worst[1] > 1


def test_rows_have_length_one_and_their_mean_over_all_photographs_is_taken_off(squeezenet):
    images = [load_photo("coffee", (160, 128)), load_photo("hopper", (160, 128))]
    raw = conv_features(images, squeezenet, "features.10", **RAW).features
    unit = raw / raw.norm(dim=1, keepdim=True)
    grid = conv_features(images, squeezenet, "features.10")
    assert (grid.n_images, grid.grid_hw) == (2, (16, 20))
    torch.testing.assert_close(grid.features, unit - unit.mean(0))
    alone = conv_features(images[0], squeezenet, "features.10", centre=False).features
    torch.testing.assert_close(alone, unit[: 16 * 20], atol=1e-5, rtol=1e-4)


def test_gradients_reach_an_image_that_asks_and_cost_nothing_where_none_does():
    torch.manual_seed(0)
    model, image = plain_net().double().eval(), torch.rand(3, 64, 72, dtype=torch.double)
    direction = torch.randn(image.shape, dtype=torch.double)

    def value(x):
        grid = conv_features(x, model, "3", pad=16)
        return grid.features[:, grid.index("3/2")].square().sum()

    asked = image.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(asked), asked)
    step = 1e-6 * direction
    measured = (value(image + step) - value(image - step)) / 2e-6
    assert float((slope * direction).sum()) == pytest.approx(float(measured), rel=1e-5)
    assert not conv_features(image, model, "3", pad=16).features.requires_grad


def test_a_network_is_left_as_it_was_found(squeezenet):
    model = plain_net().double().train()
    before = fingerprint(model)
    conv_features(torch.rand(3, 64, 64, dtype=torch.double), model, "3", pad=16)
    assert fingerprint(model) == before
    assert not squeezenet.training


class Blur(nn.Module):
    """Halves the grid in a way that cannot be read off."""

    def forward(self, x):
        return F.avg_pool2d(x, 2)


class TwoMaps(nn.Module):
    def forward(self, x):
        return [x, x]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(layer="fire8"), "layer: expected one of .*'fire8'"),
        (dict(layer="features.10", sides=((96, 96), (96, 88))), "received .*Use load_photo"),
        (dict(layer="features.10", sides=((50, 60),)), "pad: expected less than a side"),
        (
            dict(layer="0", pad=2, model=nn.Sequential(nn.Conv2d(3, 2, 31))),
            "pad: 2 pixels are fewer than the layer cuts off",
        ),
        (dict(layer="features.10", pad=-8), "pad: expected a whole number above 0"),
        (dict(layer="features.12", black=True), "no channel fires.*unit=False"),
        (dict(layer="1", model=nn.Sequential(nn.Conv2d(3, 2, 3), Blur())), "Use pad=0"),
        (dict(layer="0", model=nn.Sequential(*[nn.Conv2d(3, 3, 1)] * 2)), "one call.*saw 2 calls"),
        (
            dict(layer="1", model=nn.Sequential(nn.Conv2d(3, 2, 3), TwoMaps())),
            "one map, saw another kind",
        ),
    ],
)
def test_what_cannot_be_laid_on_a_grid_is_refused_in_words(arguments, message, squeezenet):
    layer, model = arguments["layer"], arguments.get("model", squeezenet)
    images = [torch.rand(3, *side) for side in arguments.get("sides", ((96, 96),))]
    if arguments.get("black"):
        model = load_model("squeezenet", "random", "cpu")
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    with pytest.raises(ValueError, match=message):
        conv_features(images, model, layer, arguments.get("pad", 48))
