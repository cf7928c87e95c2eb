"""The matrix of scores: whole without its script, and nothing in it that asks another host."""

import re
from pathlib import Path

import numpy as np
import pytest

from ctrace.viz import matrix
from ctrace.viz.matrix import Cell, Column, show_matrix

FAMILIES = {"Ours": ["a <b>", "c"], "Theirs": ["d"]}
COLUMNS = {"x": Column("first", "what it asks"), "y": Column("second", "what else", True)}
CELLS = {
    ("a <b>", "x"): Cell(0.5, 0.25, 0.75, "best", "three birds"),
    ("c", "x"): Cell(-0.001, -0.2, 0.2),
    ("d", "y"): Cell(2.0, 1.0, 3.0, "worse"),
}


@pytest.fixture
def page(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    pictures = {"bird": {"c": np.zeros((8, 8, 3))}}
    show_matrix(FAMILIES, COLUMNS, CELLS, "What the tints mean.", pictures)
    return shown[0]


def test_every_number_stands_in_the_table_and_with_its_interval_below(page):
    whole = page["text/html"]
    first, plain = whole.split("<details>")
    assert first.count("data-value") == 3 and plain.count("<tr>") == 1 + 3
    assert (
        'data-value="0.500000" title="a &lt;b&gt;, first: 0.50 (0.25 to 0.75); three birds"'
        in first
    )
    for text in ("0.50 (0.25 to 0.75)", "0.00 (-0.20 to 0.20)", "2.00 (1.00 to 3.00)"):
        assert f"<td>{text}</td>" in plain
    assert "<b>" not in re.sub(r"<(style|script)>.*?</\1>", "", whole, flags=re.S)
    assert page["text/plain"].splitlines() == [
        "\tfirst\tsecond",
        "a <b>\t0.50\t",
        "c\t-0.00\t",
        "d\t\t2.00",
    ]


def test_heads_say_what_they_ask_and_which_way_is_good(page):
    heads = re.findall(
        r'<th scope="col" class="sort"( data-falls)?><span>(\w+)</span><small>(.*?)<',
        page["text/html"],
    )
    assert heads == [
        ("", "first", "what it asks\u00a0\u2191"),
        (" data-falls", "second", "what else\u00a0\u2193"),
    ]


def test_pictures_are_described_and_nothing_comes_from_elsewhere(page):
    whole = page["text/html"]
    assert whole.count("<img") == 1 and 'alt="map of c, bird"' in whole
    assert "data:image/jpeg;base64," in whole
    assert not re.search(r"https?://|//cdn|@import|fetch\(|XMLHttp|import ", whole)
    assert not re.search(r"\bid=", whole)  # two of them may stand on one page


def test_the_script_is_one_small_file():
    script = Path(matrix.__file__).parents[1] / "data" / "figures" / "matrix.js"
    assert script.stat().st_size < 6000 and "</script" not in script.read_text()
