"""Claims about colours: charts can be read on a white page and, turned by the style sheets, on a
dark one.
"""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ctrace.viz.paint import INK, NEGATIVE, POSITIVE, line_look

WHITE, DARK = "#FFFFFF", "#121212"  # the grounds of the book's pages
HUE_180 = np.array([[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]])


def turned(colour) -> np.ndarray:
    """What `invert(1) hue-rotate(180deg)` makes of a colour (Filter Effects, 8.5 and 8.6)."""
    return np.clip(HUE_180 @ (1 - np.array(to_rgb(colour))), 0, 1)


def luminance(colour) -> float:
    """Relative luminance (WCAG 2.2)."""
    c = np.array(to_rgb(colour))
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("black", "white") == pytest.approx(21)
    assert contrast("#777777", "white") == pytest.approx(4.48, abs=0.01)


def test_words_stand_out_on_both_pages():
    assert contrast(INK, WHITE) > 7 and contrast(turned(INK), DARK) > 7


@pytest.mark.parametrize("colour", [POSITIVE, NEGATIVE, *(line_look(i)["color"] for i in range(5))])
def test_no_colour_of_a_chart_is_fainter_on_the_dark_page_than_on_the_white_one(colour):
    on_dark = contrast(turned(colour), DARK)
    assert on_dark > 3 or on_dark >= contrast(colour, WHITE)


def test_hues_stay():
    red, blue = turned(POSITIVE), turned(NEGATIVE)
    assert red.argmax() == 0 and blue.argmax() == 2
