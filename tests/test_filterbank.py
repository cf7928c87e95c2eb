"""Claims about the named channels."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from ctrace.world import filterbank
from ctrace.world.filterbank import WEIGHTS, filter_bank, rgb_to_lab
from ctrace.world.photos import load_photo


def grating(angle: float, px: float, size: int = 96) -> torch.Tensor:
    """A grey sine grating (3, size, size); waves of `px` pixels travel along `angle` degrees."""
    y, x = torch.meshgrid(torch.arange(size) * 1.0, torch.arange(size) * 1.0, indexing="ij")
    along = x * math.cos(math.radians(angle)) + y * math.sin(math.radians(angle))
    return (0.5 + 0.3 * torch.sin(2 * math.pi * along / px)).expand(3, size, size)


def half_and_half(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.cat([left[..., : left.shape[-1] // 2], right[..., right.shape[-1] // 2 :]], -1)


def test_lab_agrees_with_scikit_image():
    color = pytest.importorskip("skimage.color")
    rgb = torch.rand(3, 8, 9, dtype=torch.float64)
    expected = color.rgb2lab(rgb.permute(1, 2, 0).numpy())
    assert np.abs(rgb_to_lab(rgb).permute(1, 2, 0).numpy() - expected).max() < 0.01


def test_grey_has_no_colour():
    grey = torch.linspace(0, 1, 11).expand(3, 1, 11)
    assert rgb_to_lab(grey)[1:].abs().max() < 1e-4


@pytest.mark.parametrize(
    "name, grid, expected",
    [("coffee", 36, (24, 36)), ("hopper", 36, (36, 31)), ("coffee", (10, 7), (10, 7))],
)
def test_the_longer_side_has_grid_cells_and_the_aspect_is_kept(name, grid, expected):
    bank = filter_bank(load_photo(name, 144), grid)
    assert bank.grid_hw == expected and bank.features.shape == (
        math.prod(expected),
        len(bank.names),
    )


def test_each_family_has_the_variance_of_its_weight():
    bank = filter_bank(load_photo("astronaut", 144), 36)
    variance = dict(zip(bank.names, bank.features.var(0, correction=0).tolist()))
    families = {"texture": "texture", "contrast": "contrast", "position": "position", "colour": "*"}
    for family, word in families.items():
        total = sum(value for name, value in variance.items() if word in name)
        assert total == pytest.approx(WEIGHTS[family] ** 2, rel=1e-3), family
    assert bank.features.mean(0).abs().max() < 1e-5


@pytest.mark.parametrize("px", filterbank.TEXTURE_PX)
@pytest.mark.parametrize("orientation", filterbank.ORIENTATIONS)
def test_a_grating_excites_the_texture_channel_that_bears_its_name_most(px, orientation):
    # Before standardisation, since that is where channels can be compared with each other.
    lab = rgb_to_lab(grating(filterbank.ORIENTATIONS[orientation], px))[None]
    energy = {name: channel.mean().item() for name, channel in filterbank._texture(lab).items()}
    assert max(energy, key=energy.get) == f"{orientation} texture {px} px"


@pytest.mark.parametrize(
    "name, stripe",
    [
        ("horizontal", lambda x, y: y),
        ("vertical", lambda x, y: x),
        (
            "rising",
            lambda x, y: x + y,
        ),  # y points down: x + y stays the same on the way up and to the right
        ("falling", lambda x, y: x - y),
    ],
)
def test_the_name_of_a_texture_says_how_its_lines_lie(name, stripe):
    image = Image.new("L", (96, 96))
    image.putdata([255 * (stripe(x, y) // 5 % 2) for y in range(96) for x in range(96)])
    lab = rgb_to_lab(pil_to_tensor(image.convert("RGB")) / 255)[None]
    energy = {channel: values.mean().item() for channel, values in filterbank._texture(lab).items()}
    assert max(energy, key=energy.get).startswith(name)


@pytest.mark.parametrize("px", filterbank.TEXTURE_PX)
def test_the_texture_of_a_grating_is_its_amplitude_in_lightness(px):
    wave = torch.sin(2 * math.pi * torch.arange(128) / px).expand(1, 1, 128, 128)
    texture = filterbank._texture(50 + 10 * wave)[f"vertical texture {px} px"]
    assert texture[0, 12:-12, 12:-12].sub(10).abs().max() < 0.3


def test_detail_finer_than_the_working_image_leaves_no_false_texture():
    # Lines every 3 pixels, seen at a quarter of the size: without smoothing first they would come
    # back as broad stripes.
    fine = (torch.arange(384) % 3 == 0).float().expand(3, 384, 384)
    light = rgb_to_lab(filterbank._resize(fine, (96, 96)))[0, 0]
    assert light[8:-8, 8:-8].std() < 3


def test_texture_does_not_depend_on_the_phase():
    first, shifted = (
        filterbank._texture(rgb_to_lab(grating(0, 8).roll(s, -1))[None]) for s in (0, 2)
    )
    a, b = (t["vertical texture 8 px"][0, 8:-8, 8:-8] for t in (first, shifted))
    assert (a - b).abs().max() < 0.02 * a.mean()


def test_a_flat_patch_has_neither_texture_nor_contrast():
    lab = rgb_to_lab(torch.full((1, 3, 64, 64), 0.7))
    for channels in (filterbank._texture(lab), filterbank._contrast(lab)):
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
    colour = bank.features[:, [bank.index("a* green-red"), bank.index("b* blue-yellow")]]
    assert (colour == 0).all() and torch.isfinite(bank.features).all()


def test_features_are_differentiable_with_respect_to_the_image():
    image = pil_to_tensor(load_photo("coffee", 48)).double() / 255
    image = (0.1 + 0.8 * image).requires_grad_()
    direction = 1e-6 * torch.randn(
        image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )

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
    bank = filter_bank(
        load_photo("coffee", 96), 24, weights={"texture": 0, "position": 0, "contrast": 0}
    )
    assert bank.names == ("L* lightness", "a* green-red", "b* blue-yellow")


@pytest.mark.parametrize(
    "images, options, message",
    [
        ([], {}, "at least one image"),
        (torch.zeros(4, 8, 8), {}, "channels come first|Channels come first"),
        (torch.randn(3, 8, 8) * 3, {}, "mean and standard deviation"),
        (torch.full((3, 8, 8), torch.nan), {}, r"\[0, 1\]"),
        (torch.full((3, 8, 8), 0.5), {"grid": 8}, "one flat colour"),
        (torch.rand(3, 8, 8), {"weights": {"color": 1}}, "expected one of colour, .*'color'"),
        (torch.rand(3, 8, 8), {"weights": {"colour": -1}}, "at least 0"),
        (torch.rand(3, 8, 8), {"grid": 1}, "at least 2 x 2"),
        ([torch.rand(3, 8, 8), torch.rand(3, 8, 16)], {"grid": 8}, "different aspect"),
    ],
)
def test_unusable_input_to_the_filter_bank_is_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        filter_bank(images, **options)
