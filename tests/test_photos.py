"""Claims about photographs, named channels and transformer tokens. No network, no published weights."""

import importlib.util
import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from ctrace import photos
from ctrace.photos import (
    PHOTOS,
    WEIGHTS,
    GridFeatures,
    filter_bank,
    load_images_helper,
    load_photo,
    photo_names,
    prepare_grid_features,
    rgb_to_lab,
    timm_features,
)


def grating(angle: float, px: float, size: int = 96) -> torch.Tensor:
    """A grey sine grating (3, size, size) whose waves of `px` pixels travel along `angle` degrees."""
    y, x = torch.meshgrid(torch.arange(size) * 1.0, torch.arange(size) * 1.0, indexing="ij")
    along = x * math.cos(math.radians(angle)) + y * math.sin(math.radians(angle))
    return (0.5 + 0.3 * torch.sin(2 * math.pi * along / px)).expand(3, size, size)


def half_and_half(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.cat([left[..., : left.shape[-1] // 2], right[..., right.shape[-1] // 2:]], -1)


# --- photographs ---


def test_every_listed_photograph_is_a_colour_photograph_of_the_asked_size():
    for name in photo_names():
        image = load_photo(name, size=96)
        pixels = np.asarray(image).astype(float)
        assert image.mode == "RGB" and max(image.size) == 96, name
        assert pixels.std() > 10 and np.ptp(pixels, axis=2).max() > 30, f"{name} is flat or grey"


def test_the_photographs_of_the_required_packages_are_there():
    assert {"astronaut", "chelsea", "coffee", "hopper", "motorcycle", "retina", "rocket"} <= set(photo_names())


def test_every_photograph_states_source_licence_and_description():
    assert all(photo.source and photo.licence and photo.description for photo in PHOTOS.values())


@pytest.mark.parametrize("name", ["coffee", "hopper"])
def test_loading_keeps_the_aspect(name):
    full, small = load_photo(name, size=None), load_photo(name, size=120)
    assert abs(full.width / full.height - small.width / small.height) < 0.02


def test_a_size_of_two_numbers_is_width_and_height_exactly():
    assert load_photo("coffee", size=(100, 140)).size == (100, 140)


@pytest.mark.parametrize("size", [0, -3, (0, 10), (10, 10, 10)])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(ValueError, match="size must be"):
        load_photo("coffee", size=size)


def test_an_unknown_photograph_lists_close_names():
    with pytest.raises(ValueError, match="Did you mean 'astronaut'"):
        load_photo("astronout")
    with pytest.raises(ValueError, match="'chelsea'"):
        load_photo("qqqq")


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-image"):
        load_photo("coffee")
    assert photo_names() == []


def test_a_package_without_its_data_is_told_apart_from_a_missing_package(monkeypatch, tmp_path):
    monkeypatch.setattr(photos, "_photo_file", lambda photo: tmp_path / photo.path)
    with pytest.raises(FileNotFoundError, match="sample data"):
        load_photo("coffee")


# --- load_images_helper ---


def test_paths_and_images_mix_and_come_back_as_rgb(tmp_path):
    Image.new("RGBA", (4, 3), (255, 0, 0, 255)).save(tmp_path / "a.png")
    images = load_images_helper([str(tmp_path / "a.png"), tmp_path / "a.png", Image.new("L", (2, 2), 7)])
    assert [image.mode for image in images] == ["RGB"] * 3
    assert images[0].getpixel((0, 0)) == (255, 0, 0) and images[2].getpixel((0, 0)) == (7, 7, 7)


def test_one_image_alone_is_a_list_of_one():
    assert len(load_images_helper(Image.new("RGB", (2, 2)))) == 1


def test_a_photograph_with_a_rotation_tag_is_turned_upright(tmp_path):
    image = Image.new("RGB", (6, 3))
    image.getexif()[0x0112] = 6
    image.save(tmp_path / "phone.jpg", exif=image.getexif())
    assert load_images_helper([tmp_path / "phone.jpg"])[0].size == (3, 6)


def test_unusable_images_are_refused_by_cause(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match="not an image that Pillow can read"):
        load_images_helper([tmp_path / "text.png"])
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        load_images_helper(["nowhere.png"])
    with pytest.raises(ValueError, match="received ndarray"):
        load_images_helper([np.zeros((2, 2, 3))])
    with pytest.raises(ValueError, match="empty list"):
        load_images_helper([])


# --- GridFeatures ---


def small_grid() -> GridFeatures:
    return GridFeatures(torch.arange(2 * 2 * 3 * 2.0).reshape(12, 2), ("a", "b"), (2, 3), 2)


def test_rows_are_ordered_image_then_y_then_x():
    grid = small_grid()
    for image, y, x in [(0, 0, 0), (0, 1, 2), (1, 0, 1)]:
        assert torch.equal(grid.maps()[image, y, x], grid.features[(image * 2 + y) * 3 + x])


def test_zscores_have_mean_zero_deviation_one_and_leave_a_constant_channel_at_zero():
    grid = small_grid().with_features(torch.stack([torch.randn(12), torch.full((12,), 0.3)], 1))
    z = grid.zscores().flatten(0, 2)
    assert torch.allclose(z[:, 0].mean(), torch.tensor(0.0), atol=1e-6)
    assert torch.allclose(z[:, 0].pow(2).mean(), torch.tensor(1.0), atol=1e-5)
    assert (z[:, 1] == 0).all()


def test_gradients_flow_back_through_select_and_maps():
    grid = small_grid().requires_grad_()
    grid.select(["b"]).maps().sum().backward()
    assert grid.features.grad.tolist() == [[0.0, 1.0]] * 12


def test_selecting_keeps_names_with_their_columns():
    assert torch.equal(small_grid().select(["b", "a"]).features, small_grid().features.flip(1))
    assert small_grid().select("b").names == ("b",)


def test_an_unknown_channel_lists_close_names():
    with pytest.raises(ValueError, match="Did you mean 'b\\* blue-yellow'"):
        GridFeatures(torch.zeros(1, 2), ("b* blue-yellow", "L*"), (1, 1)).index("b* blue-yelow")


@pytest.mark.parametrize("arguments, message", [
    ((torch.zeros(12, 2), ("a", "b"), (3, 3), 2), "n = 12"),
    ((torch.zeros(0, 2), ("a", "b"), (0, 3), 2), "n = 0"),
    ((torch.zeros(12, 2), ("a",), (2, 3), 2), "expected 2 channel names"),
    ((torch.zeros(12, 2), ("a", "a"), (2, 3), 2), "more than once"),
    ((torch.zeros(12, 2).long(), ("a", "b"), (2, 3), 2), "floating-point"),
    ((torch.zeros(2, 2, 3, 2), ("a", "b"), (2, 3), 2), r"\(n, c\)"),
    ((np.zeros((12, 2)), ("a", "b"), (2, 3), 2), "ndarray"),
])
def test_contradictory_shapes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GridFeatures(*arguments)


# --- the filter bank ---


def test_lab_agrees_with_scikit_image():
    color = pytest.importorskip("skimage.color")
    rgb = torch.rand(3, 8, 9, dtype=torch.float64)
    expected = color.rgb2lab(rgb.permute(1, 2, 0).numpy())
    assert np.abs(rgb_to_lab(rgb).permute(1, 2, 0).numpy() - expected).max() < 0.01


def test_grey_has_no_colour():
    grey = torch.linspace(0, 1, 11).expand(3, 1, 11)
    assert rgb_to_lab(grey)[1:].abs().max() < 1e-4


@pytest.mark.parametrize("name, grid, expected", [
    ("coffee", 36, (24, 36)), ("hopper", 36, (36, 31)), ("coffee", (10, 7), (10, 7))])
def test_the_longer_side_has_grid_cells_and_the_aspect_is_kept(name, grid, expected):
    bank = filter_bank(load_photo(name, 144), grid)
    assert bank.grid_hw == expected and bank.features.shape == (math.prod(expected), len(bank.names))


def test_each_family_has_the_variance_of_its_weight():
    bank = filter_bank(load_photo("astronaut", 144), 36)
    variance = dict(zip(bank.names, bank.features.var(0, correction=0).tolist()))
    families = {"texture": "texture", "contrast": "contrast", "position": "position", "colour": "*"}
    for family, word in families.items():
        total = sum(value for name, value in variance.items() if word in name)
        assert total == pytest.approx(WEIGHTS[family] ** 2, rel=1e-3), family
    assert bank.features.mean(0).abs().max() < 1e-5


@pytest.mark.parametrize("px", photos.TEXTURE_PX)
@pytest.mark.parametrize("orientation", photos._ORIENTATIONS)
def test_a_grating_excites_the_texture_channel_that_bears_its_name_most(px, orientation):
    # Before standardisation, since that is where channels can be compared with each other.
    lab = rgb_to_lab(grating(photos._ORIENTATIONS[orientation], px))[None]
    energy = {name: channel.mean().item() for name, channel in photos._texture(lab).items()}
    assert max(energy, key=energy.get) == f"{orientation} texture {px} px"


@pytest.mark.parametrize("name, stripe", [
    ("horizontal", lambda x, y: y), ("vertical", lambda x, y: x),
    ("rising", lambda x, y: x + y),  # y points down: x + y stays the same on the way up and to the right
    ("falling", lambda x, y: x - y)])
def test_the_name_of_a_texture_says_how_its_lines_lie(name, stripe):
    image = Image.new("L", (96, 96))
    image.putdata([255 * (stripe(x, y) // 5 % 2) for y in range(96) for x in range(96)])
    lab = rgb_to_lab(photos._as_tensor(image))[None]
    energy = {channel: values.mean().item() for channel, values in photos._texture(lab).items()}
    assert max(energy, key=energy.get).startswith(name)


def test_texture_does_not_depend_on_the_phase():
    first, shifted = (photos._texture(rgb_to_lab(grating(0, 8).roll(s, -1))[None]) for s in (0, 2))
    a, b = (t["vertical texture 8 px"][0, 8:-8, 8:-8] for t in (first, shifted))
    assert (a - b).abs().max() < 0.02 * a.mean()


def test_a_flat_patch_has_neither_texture_nor_contrast():
    lab = rgb_to_lab(torch.full((1, 3, 64, 64), 0.7))
    for channels in (photos._texture(lab), photos._contrast(lab)):
        assert max(channel.max().item() for channel in channels.values()) < 0.005


def test_contrast_is_high_where_lightness_varies():
    image = half_and_half(torch.full((3, 96, 96), 0.5), grating(0, 6))
    bank = filter_bank(image, 24)
    contrast = bank.maps()[0, :, :, bank.index("contrast 8 px")]
    assert contrast[:, 14:].min() > contrast[:, :10].max()


def test_positions_grow_rightwards_and_downwards():
    bank = filter_bank(load_photo("coffee", 96), 24)
    x, y = (bank.maps()[0, :, :, bank.index(f"position {axis}")] for axis in "xy")
    assert (x.diff(dim=1) > 0).all() and (x.diff(dim=0) == 0).all()
    assert (y.diff(dim=0) > 0).all() and (y.diff(dim=1) == 0).all()


def test_the_channels_hardly_depend_on_the_resolution_of_the_photograph():
    small, large = (filter_bank(load_photo("astronaut", size), 30).features for size in (240, 480))
    assert (small - large).pow(2).mean() < 0.01 * large.pow(2).mean()


def test_the_same_photograph_gives_the_same_features_from_path_image_and_tensor(tmp_path):
    image = load_photo("chelsea", 96)
    image.save(tmp_path / "cat.png")
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    first = filter_bank(image, 24).features
    for other in (tmp_path / "cat.png", str(tmp_path / "cat.png"), tensor, tensor / 255, [image]):
        assert torch.equal(filter_bank(other, 24).features, first)


def test_images_are_standardised_jointly_and_stacked_in_order():
    images = [load_photo(name, (96, 64)) for name in ("coffee", "rocket")]
    bank = filter_bank(images, 24)
    light = bank.maps()[..., bank.index("L* lightness")]
    assert bank.n_images == 2 and light.mean().abs() < 1e-5
    assert light[0].mean() > light[1].mean() + 0.2, "the lit table is brighter than the evening sky"


def test_a_grey_photograph_keeps_its_colour_channels_at_exactly_zero():
    bank = filter_bank(load_photo("coffee", 96).convert("L"), 24)
    colour = bank.select(["a* green-red", "b* blue-yellow"]).features
    assert (colour == 0).all() and torch.isfinite(bank.features).all()


def test_features_are_differentiable_with_respect_to_the_image():
    image = (0.1 + 0.8 * photos._as_tensor(load_photo("coffee", 48)).double()).requires_grad_()
    direction = 1e-6 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(x):
        return filter_bank(x, 12).features[:40].pow(2).sum()

    loss(image).backward()
    with torch.no_grad():
        change = (loss(image + direction) - loss(image - direction)) / 2
    assert change.item() == pytest.approx((image.grad * direction).sum().item(), rel=1e-5)


def test_a_flat_grey_region_has_finite_gradients():
    image = half_and_half(torch.zeros(3, 32, 32), torch.ones(3, 32, 32)).requires_grad_()
    filter_bank(image, 8).features.pow(3).sum().backward()
    assert torch.isfinite(image.grad).all()


def test_a_weight_of_zero_removes_the_family_and_its_names():
    bank = filter_bank(load_photo("coffee", 96), 24, weights={"texture": 0, "position": 0, "contrast": 0})
    assert bank.names == ("L* lightness", "a* green-red", "b* blue-yellow")


@pytest.mark.parametrize("images, options, message", [
    ([], {}, "at least one image"),
    (torch.zeros(4, 8, 8), {}, "channels come first|Channels come first"),
    (torch.randn(3, 8, 8) * 3, {}, "mean and standard deviation"),
    (torch.full((3, 8, 8), torch.nan), {}, r"\[0, 1\]"),
    (torch.full((3, 8, 8), 0.5), {"grid": 8}, "one flat colour"),
    (torch.rand(3, 8, 8), {"weights": {"color": 1}}, "unknown channel families"),
    (torch.rand(3, 8, 8), {"weights": {"colour": -1}}, "not negative"),
    (torch.rand(3, 8, 8), {"grid": 1}, "at least 2 x 2"),
    ([torch.rand(3, 8, 8), torch.rand(3, 8, 16)], {"grid": 8}, "different aspect"),
])
def test_unusable_input_to_the_filter_bank_is_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        filter_bank(images, **options)


# --- tokens ---


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("hw", [(3, 3), (2, 4)])
def test_prefix_tokens_are_dropped_and_the_patches_keep_their_order(prefix, hw):
    n = math.prod(hw)
    tokens = torch.arange(2 * (prefix + n) * 3.0).reshape(2, prefix + n, 3)
    features, b, h, w = prepare_grid_features(["x", "y"], lambda _: torch.zeros(1), lambda _: tokens, prefix, hw)
    assert (b, h, w) == (2, *hw)
    assert torch.equal(features.reshape(2, n, 3), tokens[:, prefix:])


def test_a_square_grid_is_found_without_being_told_and_one_prefix_token_is_the_default():
    features, b, h, w = prepare_grid_features(["x"], lambda _: torch.zeros(1), lambda _: torch.zeros(1, 17, 6))
    assert features.shape == (16, 6) and (b, h, w) == (1, 4, 4)


@pytest.mark.parametrize("tokens, prefix, hw, message", [
    (torch.zeros(1, 9, 6), 1, None, r"grid_hw=\(h, w\)"),
    (torch.zeros(1, 18, 6), 1, None, "num_prefix_tokens = 2"),
    (torch.zeros(1, 9, 6), 1, (3, 3), "expected h \\* w = 8"),
    (torch.zeros(1, 3, 6), 5, None, "cannot hold"),
    (torch.zeros(1, 6, 4, 4), 1, None, "token axis"),
    (torch.zeros(2, 17, 6), 1, None, r"\(1, tokens, channels\)"),
])
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
    assert grid.names[:2] == ("ch 0", "ch 1") and grid.features.shape == (9, 12) and not grid.features.requires_grad


def test_the_model_is_left_in_the_mode_it_was_found_in():
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, **TINY).train()
    timm_features(load_photo("coffee", 64), model)
    assert model.training


def test_a_local_checkpoint_is_what_the_features_come_from(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, **TINY)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    options = {**TINY, "pretrained": True, "img_size": 48}
    photo = load_photo("coffee", 64)
    loaded = timm_features(photo, "vit_tiny_patch16_224", checkpoint=tmp_path / "weights.pth", **options)
    assert torch.equal(loaded.features, timm_features(photo, model).features)
    with pytest.raises(FileNotFoundError, match="no weight file"):
        timm_features(photo, "vit_tiny_patch16_224", checkpoint=tmp_path / "none.pth", **options)


def test_missing_weights_are_an_error_that_names_model_reason_and_ways_on(monkeypatch):
    def no_network(*args, **kwargs):
        raise ConnectionError("host unreachable")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(RuntimeError) as caught:
        timm_features(load_photo("coffee", 64), "vit_tiny_patch16_224")
    for part in ("vit_tiny_patch16_224", "host unreachable", "network", "checkpoint=", "pretrained_cfg_overlay",
                 "pretrained=False"):
        assert part in str(caught.value)


def test_an_unknown_or_unsuitable_model_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'vit_tiny_patch16_224'"):
        timm_features(load_photo("coffee", 64), "vit_tiny_patch16_244")
    with pytest.raises(ValueError, match="not a timm token model"):
        timm_features(load_photo("coffee", 64), "resnet18", pretrained=False)
