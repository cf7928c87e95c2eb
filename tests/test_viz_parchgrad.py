"""Claims about the figures of input attributions, channels and intervals."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from ctrace import viz

PHOTO = torch.rand(3, 24, 36, generator=torch.Generator().manual_seed(0))
MAP = torch.rand(24, 36, generator=torch.Generator().manual_seed(1))
MASK = torch.zeros(24, 36)
MASK[5:9, 10:20] = 1


def drawn(ax):
    return np.asarray(ax.images[0].get_array())


@pytest.fixture(scope="module")
def figures():
    rows = [("channel 1", [PHOTO] * 3, [MAP[:6, :9]] * 3)] * 2
    return {
        "mass": viz.show_mass([PHOTO] * 3, [None, MAP, 7 * MAP], ["a", "b", "c"], [MASK] * 3),
        "channels": viz.show_channels(rows, columns=3),
    }


@pytest.mark.parametrize("name", ["mass", "channels"])
def test_every_figure_shows_itself_and_fits_the_column(figures, name):
    assert (
        figures[name]._repr_png_().startswith(b"\x89PNG")
        and figures[name].get_figwidth() <= viz.WIDTH + 1e-9
    )


def test_a_map_looks_the_same_however_it_is_scaled_and_none_is_the_picture(figures):
    picture, one, seven = figures["mass"].axes[:3]
    np.testing.assert_allclose(drawn(one), drawn(seven), atol=1e-6)
    np.testing.assert_allclose(drawn(picture), PHOTO.permute(1, 2, 0).numpy(), atol=1e-6)
    assert [len(ax.collections) for ax in (picture, one)] == [0, 1], (
        "the border of the mask belongs on the maps"
    )


def test_more_mass_is_redder():
    left = torch.full((24, 36), 0.1)
    left[:, :18] = 1.0
    colours = drawn(viz.show_mass([PHOTO], [left], limit=2.0).axes[0])
    redness = colours[..., 0] - colours[..., 1]
    assert redness[:, :18].min() > redness[:, 18:].max()


def test_a_channel_shows_colour_only_where_it_fires():
    acts = torch.zeros(6, 9)
    acts[0, 0] = 2.0
    colours = drawn(viz.show_channels([("one", [PHOTO], [acts])], columns=1).axes[0])
    np.testing.assert_allclose(colours[:4, :4], PHOTO.permute(1, 2, 0).numpy()[:4, :4], atol=1e-6)
    assert np.ptp(colours[4:], -1).max() < 1e-6


def test_the_sweep_has_a_frame_for_each_share_and_never_ends():
    other = torch.zeros_like(MAP)
    other[:5] = 1.0
    animation = Image.open(
        io.BytesIO(viz.sweep_gif(PHOTO, {1.0: MAP, 0.5: other, 0.1: MAP**4}, MASK, seconds=0.5))
    )
    assert animation.format == "GIF" and animation.n_frames == 3 and animation.info["loop"] == 0
    frames = []
    for i in range(3):
        animation.seek(i)
        assert animation.info["duration"] == 500
        frames.append(np.asarray(animation.convert("RGB")).astype(int))
    assert all(np.abs(a - b).mean() > 1 for a, b in pairwise(frames))


@pytest.mark.parametrize("wrong", [MAP - 0.5, torch.zeros(24, 36)])
def test_signed_and_empty_maps_are_refused(wrong):
    with pytest.raises(ValueError, match="not negative and not zero everywhere"):
        viz.show_mass([PHOTO], [wrong])


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"image's size \(24, 36\), received \(6, 9\)"):
        viz.show_mass([PHOTO], [MAP[:6, :9]])
