"""A table of scores that a reader can sort and filter: rows in families, a number in each cell, its
interval on hover and in a plain table below.

It is whole without its script and asks no other file for anything, so that it works in the book, in
Jupyter and from a folder.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ctrace.viz.paint import jpeg_address

_FOLDER = Path(__file__).parents[1] / "data" / "figures"
_SIGNS = {"best": "\u25b2", "better": "\u25b3", "worse": "\u25bc", "": ""}


PLAIN_COLUMNS = 5


class Cell(NamedTuple):
    """A number, where it may lie, how it is tinted ("best", "better", "worse" or "") and what else
    is said of it on hover.
    """

    value: float
    low: float
    high: float
    tint: str = ""
    note: str = ""

    def __str__(self) -> str:
        value, low, high = (f"{round(v, 2) + 0.0:.2f}" for v in self[:3])  # no minus zero
        return f"{value} ({low} to {high})"


class Column(NamedTuple):
    """The head of a column, what it asks in a few words, and whether less is better."""

    name: str
    meaning: str
    falling: bool = False


def show_matrix(
    families: Mapping[str, Sequence[str]],
    columns: Mapping[str, Column],
    cells: Mapping[tuple[str, str], Cell],
    caption: str,
    pictures: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> None:
    """Display a matrix of scores as the output of the current cell; as text where there is no HTML.

    Args:
        families: heading -> its rows, in order.
        columns: by the key that `cells` uses.
        cells: by row and column; a pair that is left out stays blank.
        caption: what the tints mean, and whatever holds for the whole table.
        pictures: head of a column of pictures -> row -> RGB image ``(height, width, 3)`` in [0, 1].
    """
    from IPython.display import display  # every notebook has it; drawing alone does not need it

    pictures = pictures or {}
    rows = [row for family in families.values() for row in family]
    head = "".join(_th("pic", name) for name in pictures)
    head += "".join(_column(column) for column in columns.values())
    body = [_body(*family, columns, cells, pictures) for family in families.items()]
    style, script = ((_FOLDER / f"matrix.{kind}").read_text("utf-8") for kind in ("css", "js"))
    table = f"<caption>{escape(caption)}</caption><thead><tr>{_th('', 'method')}{head}</tr></thead>"
    page = (
        f'<style>{style}</style><div class="ctrace-matrix"><div class="frame" data-scrolls '
        f'tabindex="0" role="region" aria-label="Scores"><table>{table}{"".join(body)}</table>'
        "</div>"
        f"{_plain(rows, columns, cells)}</div><script>{script}</script>"
    )
    lines = ["\t".join(["", *(column.name for column in columns.values())])]
    for row in rows:
        found = (cells.get((row, key)) for key in columns)
        lines.append("\t".join([row, *("" if c is None else f"{c.value:.2f}" for c in found)]))
    display({"text/html": page, "text/plain": "\n".join(lines)}, raw=True)


def _th(kind: str, text: str, rest: str = "") -> str:
    return f'<th scope="col" class="{kind}"{rest}><span>{escape(text)}</span></th>'


def _column(column: Column) -> str:
    falls, way = (" data-falls", "\u2193") if column.falling else ("", "\u2191")
    meaning = f"<small>{escape(column.meaning)}\u00a0{way}</small>"
    return _th("sort", column.name, falls).replace("</th>", f"{meaning}</th>")


def _body(family: str, rows, columns, cells, pictures) -> str:
    wide = 1 + len(pictures) + len(columns)
    name = escape(family)
    lines = [f'<tr class="group"><th colspan="{wide}" scope="rowgroup">{name}</th></tr>']
    for row in rows:
        drawn = "".join(
            f'<td class="pic">{_thumbnail(f"{row}, {head}", found.get(row))}</td>'
            for head, found in pictures.items()
        )
        drawn += "".join(
            _td(cells.get((row, key)), f"{row}, {c.name}") for key, c in columns.items()
        )
        lines.append(f'<tr><th scope="row">{escape(row)}</th>{drawn}</tr>')
    return f'<tbody data-family="{name}">{"".join(lines)}</tbody>'


def _td(cell: Cell | None, where: str) -> str:
    if cell is None:
        return "<td></td>"
    told = escape("; ".join(part for part in (f"{where}: {cell}", cell.note) if part))
    value = f"{round(cell.value, 2) + 0.0:.2f}<i>{_SIGNS[cell.tint]}</i>"
    return f'<td class="{cell.tint}" data-value="{cell.value:.6f}" title="{told}">{value}</td>'


def _thumbnail(alt: str, image) -> str:
    if image is None:
        return ""
    source = jpeg_address(image, quality=82)
    return f'<img src="{source}" alt="map of {escape(alt)}" width="38" height="38">'


def _plain(rows, columns, cells) -> str:
    """Values with their intervals, a table for each `PLAIN_COLUMNS` columns: they fit a page."""
    keys, tables = list(columns), []
    for part in (keys[i : i + PLAIN_COLUMNS] for i in range(0, len(keys), PLAIN_COLUMNS)):
        heads = "".join(f'<th scope="col">{escape(columns[key].name)}</th>' for key in part)
        lines = []
        for row in rows:
            found = (cells.get((row, key)) for key in part)
            drawn = "".join(f"<td>{'' if cell is None else cell}</td>" for cell in found)
            lines.append(f'<tr><th scope="row">{escape(row)}</th>{drawn}</tr>')
        tables.append(
            '<div class="frame" data-scrolls tabindex="0" role="region" '
            'aria-label="Scores and intervals"><table>'
            f'<thead><tr><th scope="col">method</th>{heads}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
        )
    title = "Every mean with its interval, as plain tables"
    return f"<details><summary>{title}</summary>{''.join(tables)}</details>"
