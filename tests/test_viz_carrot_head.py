"""Figures of the ridge head: what is drawn is what was measured."""

import numpy as np
import torch
from matplotlib.colors import to_hex

from ctrace import viz
from ctrace.viz.canvas import NEGATIVE, POSITIVE


def test_bars_under_training_pictures_have_the_sign_and_the_share_of_the_largest():
    pictures = list(torch.rand(3, 3, 8, 8))
    rows = [
        ("one", pictures, list("abc"), torch.tensor([0.2, -0.4, 0.1])),
        ("two", pictures[:1], ["d"], torch.tensor([-0.1])),
    ]
    figure = viz.show_training_images(torch.rand(3, 8, 8), "asked", rows, "effect")
    bars = [patch for ax in figure.axes for patch in ax.patches]
    np.testing.assert_allclose(
        [bar.get_width() for bar in bars], [0.5, -1.0, 0.25, -0.25], rtol=1e-6
    )
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == [
        POSITIVE,
        NEGATIVE,
        POSITIVE,
        NEGATIVE,
    ]
    assert len(figure._repr_png_()) > 1000


def test_every_training_image_is_a_dot_in_every_panel_and_the_title_says_the_correlation():
    effect = torch.tensor([0.0, 1.0, 2.0, 3.0])
    figure = viz.show_claims(
        effect,
        {"same": 2 * effect, "turned": -effect},
        torch.tensor([True, False, False, True]),
        "real",
        "said",
    )
    for ax, sign in zip(figure.axes, ("+1.00", "-1.00")):
        assert (
            sum(len(line.get_xdata()) for line in ax.lines if line.get_linestyle() == "None") == 4
        )
        assert f"correlation {sign}" in ax.get_title()


def test_borders_lie_where_the_two_logits_are_equal():
    w, b = np.array([1.0, 2.0]), -0.5
    figure = viz.show_refits(
        torch.randn(4, 2),
        torch.tensor([0, 1, 0, 1]),
        {"all": (w, b)},
        ("a", "b"),
        query=torch.zeros(2),
    )
    border = figure.axes[0].lines[0]
    np.testing.assert_allclose(
        w[0] * border.get_xdata() + w[1] * border.get_ydata() + b, 0, atol=1e-12
    )
