"""Claims about photographs. No network."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from ctrace.world import photos
from ctrace.world.photos import PHOTOS, load_images_helper, load_photo, photo_names


def test_every_listed_photograph_is_a_colour_photograph_of_the_asked_size():
    for name in photo_names():
        image = load_photo(name, size=96)
        pixels = np.asarray(image).astype(float)
        assert image.mode == "RGB" and max(image.size) == 96, name
        assert pixels.std() > 10 and np.ptp(pixels, axis=2).max() > 30, f"{name} is flat or grey"


def test_the_photographs_of_the_required_packages_are_there():
    assert {"astronaut", "chelsea", "coffee", "hopper", "motorcycle", "retina", "rocket"} <= set(
        photo_names()
    )


def test_every_photograph_states_source_licence_and_description():
    stated = ("source", "licence", "description")
    assert all(photo[word] for photo in PHOTOS.values() for word in stated)


@pytest.mark.parametrize("name", ["coffee", "hopper"])
def test_loading_keeps_the_aspect(name):
    full, small = load_photo(name, size=None), load_photo(name, size=120)
    assert abs(full.width / full.height - small.width / small.height) < 0.02


def test_a_size_of_two_numbers_is_width_and_height_exactly():
    assert load_photo("coffee", size=(100, 140)).size == (100, 140)


@pytest.mark.parametrize("size", [0, -3, (0, 10), (10, 10, 10)])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(ValueError, match="size: expected"):
        load_photo("coffee", size=size)


def test_an_unknown_photograph_lists_close_names():
    with pytest.raises(ValueError, match="Did you mean 'astronaut'"):
        load_photo("astronout")
    with pytest.raises(ValueError, match="expected one of .*chelsea"):
        load_photo("qqqq")


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-image"):
        load_photo("coffee")
    assert photo_names() == []


def test_a_package_without_its_data_is_told_apart_from_a_missing_package(monkeypatch, tmp_path):
    monkeypatch.setattr(photos, "_photo_file", lambda path: tmp_path / path)
    with pytest.raises(FileNotFoundError, match="sample data"):
        load_photo("coffee")


def test_paths_and_images_mix_and_come_back_as_rgb(tmp_path):
    Image.new("RGBA", (4, 3), (255, 0, 0, 255)).save(tmp_path / "a.png")
    images = load_images_helper(
        [str(tmp_path / "a.png"), tmp_path / "a.png", Image.new("L", (2, 2), 7)]
    )
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
    with pytest.raises(ValueError, match="at least one image"):
        load_images_helper([])


def test_deep_grey_levels_keep_their_order_and_their_white(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    for image in load_images_helper([tmp_path / "deep.png", Image.fromarray(ramp)]):
        assert np.array_equal(np.asarray(image)[0, :, 0], np.arange(256))


@pytest.mark.parametrize("pixels", [np.eye(4, dtype=np.float32), 9000 * np.eye(4, dtype=np.int32)])
def test_pixels_without_a_known_white_are_refused_with_their_range(pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "measured.tif")
    with pytest.raises(ValueError, match=f"from 0 to {pixels.max():g} do not say what is white"):
        load_images_helper(tmp_path / "measured.tif")


def test_a_file_that_is_cut_off_is_named(tmp_path):
    load_photo("coffee", 64).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    with pytest.raises(ValueError, match="cut.jpg.*truncated"):
        load_images_helper(tmp_path / "cut.jpg")
