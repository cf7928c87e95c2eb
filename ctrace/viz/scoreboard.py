"""The scoreboard as a table, whose colours mean something, and one of its columns as intervals."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from .canvas import INK, POSITIVE, QUIET, WIDTH, Picture, new_picture, styled

_BETTER, _WORSE = (214, 232, 244), (250, 226, 208)

_CSS = """
.ctrace-board { overflow-x: auto; margin: 1em 0; }
.ctrace-board table { border-collapse: collapse; font-size: .82em; line-height: 1.25; background: #fff; color: #22262B; margin: 0; }
.ctrace-board caption { caption-side: bottom; text-align: left; padding: .6em .2em; color: inherit; }
.ctrace-board th, .ctrace-board td { padding: .25em .55em; text-align: right; white-space: nowrap; border-bottom: 1px solid #E3E6EA; }
.ctrace-board thead th { vertical-align: bottom; white-space: normal; max-width: 6.5em; border-bottom: 2px solid #8A9099; }
.ctrace-board thead th:first-child { text-align: left; }
.ctrace-board tbody th { text-align: left; font-weight: 500; position: sticky; left: 0; background: #fff; }
.ctrace-board tr.group th { font-weight: 700; padding-top: .9em; border-bottom: 1px solid #8A9099; }
.ctrace-board small { display: block; color: #4A4F57; font-size: .85em; }
"""


class Table:
    """A table that a notebook displays by itself; as plain text where there is no HTML."""

    def __init__(self, markup: str, text: str):
        self.markup, self.text = markup, text

    def _repr_html_(self) -> str:
        return self.markup

    def __repr__(self) -> str:
        return self.text


def score_table(
    groups: Mapping[str, Sequence[str]],
    columns: Mapping[str, str],
    cells: Mapping[tuple[str, str], tuple],
    caption: str,
    digits: int = 2,
) -> Table:
    """Rows in groups; each cell a value over its interval, tinted by a verdict.

    Args:
        groups: heading -> its rows, in order.
        columns: name -> what stands over it.
        cells: row and column -> ``(value, low, high, verdict)`` with a verdict in -1 (worse), 0
            (cannot be told) and 1 (better); a missing cell is left blank.
        caption: says what the tints mean.
    """
    head = "".join(f'<th scope="col">{html.escape(label)}</th>' for label in columns.values())
    body, lines = [], ["\t".join(["", *columns.values()])]
    for heading, rows in groups.items():
        body.append(
            f'<tr class="group"><th scope="rowgroup" colspan="{len(columns) + 1}">{html.escape(heading)}</th></tr>'
        )
        for row in rows:
            drawn = [_cell(cells.get((row, column)), digits) for column in columns]
            body.append(f'<tr><th scope="row">{html.escape(row)}</th>{"".join(drawn)}</tr>')
            lines.append(
                "\t".join(
                    [
                        row,
                        *(
                            _number(cells[row, c][0], digits) if (row, c) in cells else ""
                            for c in columns
                        ),
                    ]
                )
            )
    table = f'<table><caption>{html.escape(caption)}</caption><thead><tr><th scope="col">method</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    frame = (
        f'<div class="ctrace-board" tabindex="0" role="region" aria-label="Scores">{table}</div>'
    )
    return Table(f"<style>{_CSS}</style>{frame}", "\n".join(lines))


def _cell(cell: tuple | None, digits: int) -> str:
    if cell is None:
        return "<td></td>"
    value, low, high, verdict = cell
    tint = {1: _BETTER, -1: _WORSE}.get(verdict)
    style = f' style="background: rgb{tint}"' if tint else ""
    value, low, high = (_number(v, digits) for v in (value, low, high))
    return f"<td{style}>{value}<small>{low} to {high}</small></td>"


def _number(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no minus sign before a zero


@styled
def show_scores(
    panels: Mapping[str, Mapping[str, tuple]],
    references: Mapping[str, float] | None = None,
    quiet: Sequence[str] = (),
) -> Picture:
    """One panel per column: every row's value with its interval, the best on top.

    Args:
        panels: title -> row -> ``(value, low, high)``, in the order to draw.
        references: title -> a value to draw as a line across its panel.
        quiet: rows drawn in grey: controls.
    """
    most = max(len(rows) for rows in panels.values())
    figure = new_picture(WIDTH, 0.9 + 0.21 * most)
    for ax, (title, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for y, (row, (value, low, high)) in enumerate(reversed(rows.items())):
            colour = QUIET if row in quiet else INK
            ax.plot([low, high], [y, y], color=colour, linewidth=1.4, solid_capstyle="butt")
            ax.plot(value, y, "D" if row in quiet else "o", color=colour, markersize=3.6)
        if references and title in references:
            ax.axvline(references[title], color=POSITIVE, linewidth=0.9, linestyle="--")
        ax.set(title=title, yticks=range(len(rows)), ylim=(-0.7, len(rows) - 0.3))
        ax.set_yticklabels(list(reversed(rows)), fontsize=7.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
        ax.spines["left"].set_visible(False)
    return figure
