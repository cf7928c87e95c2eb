"""Claims about figures: what is drawn, under which scale, and that nothing outside the figure
changes.
"""

import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from ctrace import viz
from ctrace.viz import paint

H, W = 6, 9
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
SEGMENTS = torch.arange(3).repeat_interleave(3).expand(H, W)
MASK = SEGMENTS == 1
MAPS = torch.randn(5, H, W, generator=torch.Generator().manual_seed(0))


def everything() -> dict:
    return {
        "curves": viz.show_curves(
            [1, 10, 100], {"up": [1, 2, 3], "down": [3, 2, 1]}, "n", "time (s)", logx=True
        ),
        "grid": viz.show_grid([PHOTO, SEGMENTS, MAPS[0], viz.Panel(PHOTO, outline=MASK)]),
        "intervals": viz.show_intervals(
            {"mass": {"vs plain": [[1, 0, 2], [3, 2, 4]], "vs random": [[-1, -2, 0], [5, 4, 6]]}},
            ["seed 0", "seed 1"],
            "difference",
        ),
        "hist": viz.show_hist({"in": torch.rand(20), "out": torch.rand(50)}, "activation"),
        "scatter": viz.show_scatter(
            {"all": (torch.randn(9), torch.randn(9))}, "predicted", "measured", identity=True
        ),
    }


def titles(figure) -> list[str]:
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def scales(figure) -> set:
    """Colour limits of the drawn scalar maps; photographs and colour bars left out."""
    return {
        image.get_clim()
        for ax in figure.axes
        for image in ax.images
        if np.ndim(image.get_array()) == 2
    }


@pytest.fixture(scope="module")
def figures() -> dict:
    return everything()


@pytest.mark.parametrize("name", sorted(everything()))
def test_every_figure_shows_itself_as_a_png_on_white(figures, name):
    png = figures[name]._repr_png_()
    assert isinstance(figures[name], Figure) and png.startswith(b"\x89PNG")
    assert figures[name].get_facecolor()[:3] == (1, 1, 1)


def test_no_figure_is_wider_than_the_column(figures):
    assert all(figure.get_figwidth() <= viz.WIDTH + 1e-9 for figure in figures.values())


def test_drawing_changes_no_setting():
    with matplotlib.rc_context({"font.size": 7.7, "axes.grid": True, "figure.facecolor": "pink"}):
        before = dict(matplotlib.rcParams)
        everything()
        assert dict(matplotlib.rcParams) == before


def test_drawing_never_loads_pyplot():
    code = (
        "import sys; from ctrace import viz; viz.show_hist({'a': [1, .5, .4]}, 'x')._repr_png_(); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_each_segment_is_numbered_inside_itself():
    (ax,) = viz.show_grid([viz.Panel(PHOTO, segments=SEGMENTS)]).axes
    for text in ax.texts:
        x, y = text.get_position()
        assert SEGMENTS[int(y), int(x)] == int(text.get_text())
    assert texts(ax) == ["0", "1", "2"]


def test_a_segment_has_the_same_colour_in_every_segmentation():
    only_two = np.where(SEGMENTS == 2, 2, -1)
    colours = (
        paint.coloured_segments(SEGMENTS.numpy(), None)[0, 8],
        paint.coloured_segments(only_two, None)[0, 8],
    )
    assert np.array_equal(*colours) and np.array_equal(colours[0], viz.segment_colour(2))


def test_a_cell_without_a_segment_is_blank():
    without = np.where(SEGMENTS == 2, -1, SEGMENTS)
    assert (paint.coloured_segments(without, viz.as_rgb(PHOTO))[:, 60:] == 1).all()
    assert (paint.coloured_segments(without, None)[:, 6:] == 1).all()
    assert texts(viz.show_grid([without]).axes[0]) == ["0", "1"]


def test_borders_run_between_segments_and_nowhere_else():
    lines = paint.segment_borders(np.array([[0, 0], [0, 1]]))
    assert sorted(lines) == [((1, 1), (1, 2)), ((1, 1), (2, 1))]


def test_axes_of_curves_and_scatters_are_labelled(figures):
    for name, expected in (("curves", ("n", "time (s)")), ("scatter", ("predicted", "measured"))):
        ax = figures[name].axes[0]
        assert (ax.get_xlabel(), ax.get_ylabel()) == expected
    assert figures["curves"].axes[0].get_xscale() == "log"


def test_the_identity_line_is_at_45_degrees(figures):
    ax = figures["scatter"].axes[0]
    assert ax.get_aspect() == 1 and ax.lines[0].get_slope() == 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: viz.show_grid([torch.zeros(2, 3, 4, 4)]), "RGB image"),
        (lambda: viz.show_grid([viz.Panel(PHOTO, segments=SEGMENTS.flatten())]), "reshape"),
        (lambda: viz.show_grid([PHOTO], ["a", "b"]), "expected 1 titles.*received 2 titles"),
        (lambda: viz.show_grid([-MAPS[0].abs()], scale="unsigned"), "draw values.abs"),
        (lambda: viz.show_grid([MAPS[0]], scale="log"), "scale: expected one of signed, unsigned"),
        (lambda: viz.show_grid([viz.Panel(PHOTO, MAPS[0])]), "of the image's size"),
        (lambda: viz.show_grid([viz.Panel(values=MAPS[0], outline=torch.ones(2, 2))]), r"\(2, 2\)"),
        (lambda: viz.show_curves([1, 2], {"a": [[1, 2]]}, "x", "y"), "expected a with 1 dim"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- the primitives
# --------------------------------------------------------------------------------------------------


def test_an_image_prepared_for_a_model_is_refused_and_told_how_to_undo_it():
    normalised = (torch.rand(3, 8, 8) - 0.5) / 0.25
    with pytest.raises(ValueError, match=r"looks normalised.*image \* std \+ mean"):
        viz.show_grid([normalised])
    with pytest.raises(ValueError, match="looks normalised"):
        viz.show_grid([torch.full((3, 8, 8), torch.nan)])
    viz.show_grid([torch.rand(3, 8, 8) + 1e-6])  # what a resize does


def test_all_maps_of_a_grid_share_one_scale_and_an_empty_one_says_so():
    figure = viz.show_grid([PHOTO, MAPS[0], 0.1 * MAPS[1], 0 * MAPS[2]], unit="score")
    ((low, high),) = scales(figure)
    assert low == -high < 0
    assert [texts(ax) for ax in figure.axes[:4]] == [[], [], [], ["no evidence"]]
    assert figure.axes[-1].get_ylabel() == "score"
    assert scales(viz.show_grid([MAPS.abs()[0]], scale="unsigned", limit=2)) == {(0, 2)}


def test_a_map_over_its_photo_takes_the_colour_of_its_sign_in_proportion():
    heat = torch.zeros(60, 90)
    heat[10, 5], heat[20, 6] = 2.0, -1.0
    ax = viz.show_grid([viz.Panel(PHOTO, heat, outline=heat != 0)], limit=2.0).axes[0]
    shown = np.asarray(ax.images[0].get_array())
    red, blue = (shown[at][0] - shown[at][2] for at in ((10, 5), (20, 6)))
    assert red > -blue > 0
    assert np.ptp(shown[30], axis=-1).max() < 1e-12, "no evidence takes no colour"


def test_outlines_are_drawn_on_cells_and_masks_of_halves_are_rounded():
    figure = viz.show_grid([viz.Panel(values=MAPS[0], outline=0.9 * MASK)])
    assert all(len(lines.get_segments()) == 2 * H for lines in figure.axes[0].collections)


def test_a_spotlight_shows_the_photograph_inside_and_a_ghost_outside():
    rgb, shown = viz.as_rgb(PHOTO), viz.spotlight(PHOTO, MASK)
    assert np.array_equal(shown[:, 30:60], rgb[:, 30:60])
    assert shown[:, :30].min() > 0.8 and np.ptp(shown[:, :30], axis=-1).max() == 0


def test_tensors_with_gradients_are_drawn_and_keep_their_graph():
    values = torch.randn(H, W, requires_grad=True)
    viz.show_grid([values * 2])
    assert values.requires_grad and values.grad is None


def test_titles_stand_over_columns_and_names_beside_rows():
    figure = viz.show_grid([PHOTO] * 4, ["a", "b"], columns=2, rows=["first", "second"])
    assert titles(figure) == ["a", "b"]
    assert [ax.get_ylabel() for ax in figure.axes[::2]] == ["first", "second"]


def test_numbers_are_written_into_cells():
    ax = viz.show_grid([torch.tensor([[1.0, -2.5], [torch.nan, 0.0]])], numbers=".1f").axes[0]
    assert texts(ax) == ["1.0", "\N{MINUS SIGN}2.5", "", "0.0"]


def test_every_curve_and_every_band_is_drawn_in_its_panel():
    curves = {"left": {"a": [1, 2], "b": [2, 1]}, "right": {"a": [3, 4]}}
    figure = viz.show_curves([0, 1], curves, "x", "y", bands={"right": {"a": ([2, 3], [4, 5])}})
    left, right = figure.axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[1, 2], [2, 1]]
    assert len(left.collections) == 0 and len(right.collections) == 1
    assert right.collections[0].get_datalim(right.transData).intervaly.tolist() == [2, 5]
    assert [ax.get_title() for ax in figure.axes] == ["left", "right"]


def test_seven_curves_are_told_apart_by_colour_and_five_by_dash_and_marker_as_well():
    lines = viz.show_curves([0, 1], {str(i): [i, i] for i in range(7)}, "x", "y").axes[0].lines
    assert len({line.get_color() for line in lines}) == 7
    assert len({(str(line._unscaled_dash_pattern), line.get_marker()) for line in lines[:5]}) == 5


def test_panels_with_labels_of_their_own_do_not_share_an_axis():
    curves = {"left": {"a": [1, 2]}, "right": {"b": [300, 400]}}
    left, right = viz.show_curves([0, 1], curves, "x", ["one", "two"]).axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("one", "two")
    assert left.get_ylim()[1] < 3 < right.get_ylim()[0]


def test_intervals_stand_where_they_were_measured(figures):
    ax = figures["intervals"].axes[0]
    points = [line.get_xdata().tolist() for line in ax.lines if line.get_linestyle() == "None"]
    assert [1, -1] in points and [3, 5] in points
    assert [label.get_text() for label in ax.get_yticklabels()] == ["vs plain", "vs random"]


def test_an_estimate_without_interval_has_no_length():
    ax = viz.show_intervals({"": {"a": [[1.0]], "b": [[2.0]]}}, ["g"], "x").axes[0]
    ((bars,),) = [container.lines[2] for container in ax.containers]
    assert all(np.ptp(piece[:, 0]) == 0 for piece in bars.get_segments())


def test_histograms_count_shares_of_each_group(figures):
    heights = [patch.get_height() for patch in figures["hist"].axes[0].patches]
    assert sum(heights) == pytest.approx(2.0)


def test_a_line_stands_at_the_mean_of_each_group_of_a_histogram():
    ax = viz.show_hist({"low": [1, 2, 6], "high": [5, 9]}, "angle").axes[0]
    assert [line.get_xdata() for line in ax.lines] == [[3, 3], [7, 7]]
