"""The scoreboard's table and panels."""

from ctrace import viz

CELLS = {
    ("a <b>", "x"): (0.5, 0.4, 0.6, 1),
    ("a <b>", "y"): (-0.001, -0.2, 0.1, -1),
    ("c", "x"): (0.25, 0.2, 0.3, 0),
}


def table():
    return viz.score_table(
        {"first": ["a <b>"], "second": ["c"]}, {"x": "X", "y": "Y"}, CELLS, "What colours mean."
    )


def test_the_table_holds_every_value_its_interval_and_its_verdict():
    markup = table()._repr_html_()
    assert (
        markup.count("<td") == 4 and markup.count("<td></td>") == 1
    )  # the cell that does not exist is blank
    assert "0.50<small>0.40 to 0.60</small>" in markup and "0.25<small>" in markup
    assert markup.count("background: rgb(214") == 1 and markup.count("background: rgb(250") == 1
    assert "-0.00" not in markup and "0.00<small>-0.20 to 0.10</small>" in markup


def test_the_table_is_readable_without_sight_and_without_html():
    markup = table()._repr_html_()
    assert "a &lt;b&gt;" in markup and "<caption>What colours mean.</caption>" in markup
    assert (
        markup.count('scope="row"') == 2
        and markup.count('scope="col"') == 3
        and 'tabindex="0"' in markup
    )
    assert repr(table()).splitlines() == ["\tX\tY", "a <b>\t0.50\t0.00", "c\t0.25\t"]


def test_panels_draw_each_row_once_best_on_top_and_controls_in_grey():
    rows = {"best": (0.9, 0.8, 0.95), "control": (0.4, 0.3, 0.5)}
    figure = viz.show_scores({"one": rows, "two": rows}, {"one": 0.4}, quiet=["control"])
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["control", "best"]
    assert [line.get_marker() for line in first.lines if line.get_marker() != "None"] == ["D", "o"]
    assert len(first.lines) == len(second.lines) + 1  # the reference
