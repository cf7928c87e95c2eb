"""Figures with captions and alt texts, alone or in tabs, from one Python call.

The same cell output is drawn twice, because its two readers understand different languages. The
book takes the `text/markdown` form: a MyST figure, or a tab set of figures, numbered and open to
cross references. Jupyter and Colab take the `text/html` form: the same pictures in a small page of
plain HTML and CSS, with no script.

Nothing here imports a plotting library: anything with a `savefig` method is a figure.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

DPI = 110
HEAVY = 300_000
"""Bytes of a PNG from which on a JPEG is tried, because photographs are in it."""
CHART = "ctrace-chart"
"""Class of the figures that follow the reader's colour scheme."""
_MIME_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"GIF89a": "image/gif"}
_MIME_TYPES[b"\xff\xd8\xff"] = "image/jpeg"
_GLUE_PREFIX = "application/papermill.record/"
_STYLE_FILE = Path(__file__).parents[1] / "data/figures/gallery.css"
_STYLE = f"<style>\n{_STYLE_FILE.read_text(encoding='utf-8')}</style>"


class _Item(NamedTuple):
    label: str
    picture: bytes
    alt: str
    caption: str
    chart: bool

    @property
    def mime_type(self) -> str:
        return next(v for start, v in _MIME_TYPES.items() if self.picture.startswith(start))


class Gallery:
    """A row of tabs, each holding one captioned figure.

    Invariant: every tab has its own label, a picture, an alt text and a caption; `add` refuses
    anything less. Tabs with the same label move together through the whole book, so that a reader
    who chooses "Example 2" once keeps it.

    Args:
        slug: a name that no other figure or gallery of the book has: lower-case letters, digits and
            hyphens. Picture number i can be referred to as `fig-<slug>-i`, counted from 1.

    Raises:
        ValueError: the slug holds other characters.

    Example:
        >>> from ctrace.viz.gallery import Gallery
        >>> dot = b"\\x89PNG\\r\\n\\x1a\\n"  # or a figure, or a PIL image
        >>> gallery = Gallery("parrots")
        >>> gallery = gallery.add("Example 1", dot, alt="A red parrot.", caption="The parrot.")
        >>> len(gallery)
        1
        >>> gallery.add("Example 1", dot, alt="The same.", caption="Again.")
        Traceback (most recent call last):
        ...
        ValueError: Gallery 'parrots' already has a tab 'Example 1' (tabs so far: Example 1). ...
    """

    def __init__(self, slug: str):
        self.slug = _checked_slug(slug, "Gallery slug")
        self._items: list[_Item] = []

    def __len__(self) -> int:
        return len(self._items)

    def add(self, label: str, figure: Any, alt: str, caption: str) -> Gallery:
        """Append a tab and return the gallery, so that calls chain.

        Args:
            label: what the tab says; one short line.
            figure: anything with `savefig` (it is closed, so that the notebook does not show it a
                second time), a PIL image, or the bytes of a PNG, JPEG or (animated) GIF. A figure
                goes as PNG, and where photographs make that heavy as JPEG.
            alt: what a reader who cannot see the picture needs to know; a sentence, not a file
                name.
            caption: the text under the picture. MyST (`$x$`, `**b**`, citations) is rendered in the
                book.

        Raises:
            ValueError: a label that is taken, or an empty label, alt or caption.
            TypeError: a picture that is neither of these.
        """
        label = _checked_text(label, "label", f"Gallery '{self.slug}'")
        taken = [item.label for item in self._items]
        if label in taken:
            raise ValueError(
                f"Gallery '{self.slug}' already has a tab '{label}' (tabs so far: "
                f"{', '.join(taken)}). Give each tab its own label."
            )
        where = f"Gallery '{self.slug}', tab '{label}'"
        self._items.append(_checked_item(label, figure, alt, caption, where))
        return self

    def show(self) -> None:
        """Display the gallery as the output of the current cell.

        Raises:
            ValueError: the gallery has no tab.
        """
        if not self._items:
            raise ValueError(
                f"Gallery '{self.slug}' is empty. Call .add(label, figure, alt, caption) before "
                ".show()."
            )
        tabs, page = ["::::{tab-set}"], []
        for number, item in enumerate(self._items, 1):
            key, label = f"{self.slug}-{number}", item.label
            _glue(key, item)
            sync = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "tab"
            tabs += [f":::{{tab-item}} {label}", f":sync: {sync}", ""]
            tabs += [_figure_markdown(key, item), ":::"]
            page += [
                f'<input type="radio" name="{self.slug}" id="tab-{key}"',
                " checked>" if number == 1 else ">",
                f'<label for="tab-{key}">{html.escape(label)}</label>{_figure_html(item)}',
            ]
        _display(
            {
                "text/markdown": "\n".join([*tabs, "::::"]),
                "text/html": f'{_STYLE}<div class="ctrace-gallery">{"".join(page)}</div>',
                "text/plain": f"Gallery '{self.slug}': {', '.join(i.label for i in self._items)}",
            }
        )


def show_figure(figure: Any, alt: str, caption: str, name: str) -> None:
    """Display one captioned figure, with its alt text, in the book and in Jupyter alike.

    Args:
        figure: as in `Gallery.add`.
        alt: what a reader who cannot see the picture needs to know.
        caption: the text under the picture.
        name: a name that no other figure of the book has; refer to it as `fig-<name>`.

    Raises:
        ValueError: an empty alt or caption, or a name with other characters than lower-case
            letters, digits, hyphens.
        TypeError: a picture that is neither of these.
    """
    name = _checked_slug(name, "Figure name")
    item = _checked_item("", figure, alt, caption, f"Figure '{name}'")
    _glue(name, item)
    _display(
        {
            "text/markdown": _figure_markdown(name, item),
            "text/html": _STYLE + _figure_html(item, "ctrace-figure"),
            "text/plain": f"Figure '{name}': {item.alt}",
        }
    )


def _figure_markdown(key: str, item: _Item) -> str:
    # The alt text is written as a JSON string: bare, a '#' or a ':' in it would end the option
    # early.
    alt = json.dumps(item.alt, ensure_ascii=False)
    scheme = f":figclass: {CHART}\n" * item.chart
    return f"```{{glue:figure}} {key}\n:alt: {alt}\n:name: fig-{key}\n{scheme}\n{item.caption}\n```"


def _figure_html(item: _Item, kind: str = "") -> str:
    names = f"{kind} {CHART * item.chart}".strip()
    attribute = f' class="{names}"' * bool(names)
    source = f"data:{item.mime_type};base64,{base64.b64encode(item.picture).decode()}"
    return (
        f'<figure{attribute}><img src="{source}" alt="{html.escape(item.alt)}">'
        f"<figcaption>{html.escape(item.caption)}</figcaption></figure>"
    )


def _checked_slug(slug: str, what: str) -> str:
    if not isinstance(slug, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug):
        raise ValueError(
            f"{what} must be lower-case letters, digits and single hyphens, like 'channel-maps'; "
            f"got {slug!r}."
        )
    return slug


def _checked_item(label: str, figure: Any, alt: str, caption: str, where: str) -> _Item:
    alt, caption = _checked_text(alt, "alt", where), _checked_text(caption, "caption", where)
    if re.fullmatch(r"\S+\.(png|svg|jpe?g|gif|webp)", alt, flags=re.IGNORECASE):
        raise ValueError(f"{where}: alt is a file name ({alt!r}). Describe the picture instead.")
    chart = _is_chart(figure)
    return _Item(label, _picture(figure, where, chart), alt, caption, chart)


def _checked_text(text: str, what: str, where: str) -> str:
    """The text on one line; markdown would read a blank line or an indent as structure."""
    line = " ".join(str(text or "").split())
    if not line:
        raise ValueError(f"{where}: {what} is empty. Say in a sentence what the reader should see.")
    if "```" in line or ":::" in line:
        raise ValueError(
            f"{where}: {what} holds a code or directive fence, which would end it: {line!r}."
        )
    return line


def _is_chart(figure: Any) -> bool:
    """Whether a figure is lines, bars and words alone. Such a figure can follow a dark page; the
    colours of photographs and maps are evidence and stay as they are.
    """
    axes = getattr(figure, "axes", None)
    if not hasattr(figure, "savefig") or not axes:
        return False
    coloured = (c for ax in axes for c in ax.collections if c.get_array() is not None)
    return not any(ax.images for ax in axes) and next(coloured, None) is None


def _picture(figure: Any, where: str, transparent: bool = False) -> bytes:
    """The bytes of a PNG, a JPEG or a GIF."""
    if isinstance(figure, bytes):
        if not figure.startswith(tuple(_MIME_TYPES)):
            raise TypeError(
                f"{where}: got {len(figure)} bytes that start with neither the PNG signature nor "
                "GIF89a, nor as a JPEG does. Pass PNG, JPEG or GIF bytes."
            )
        return figure
    buffer = io.BytesIO()
    if hasattr(figure, "savefig"):
        figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", transparent=transparent)
        # Notebooks draw every open pyplot figure at the end of a cell; this one has its place.
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None and isinstance(figure, pyplot.Figure):
            pyplot.close(figure)
    elif hasattr(figure, "getbands") and hasattr(figure, "save"):  # a PIL image
        figure.save(buffer, format="PNG", optimize=True)
    else:
        raise TypeError(
            f"{where}: expected a figure with savefig, a PIL image or PNG, JPEG or GIF bytes, got "
            f"{type(figure).__name__}. An Axes has its figure in .figure; an array can go through "
            "PIL.Image.fromarray."
        )
    return _lighter(buffer.getvalue())


def _lighter(png: bytes) -> bytes:
    """A heavy, opaque picture as a JPEG with all of its colours, where that halves it at least.

    Of a photograph a PNG keeps every grain. At this quality the two differ by one or two of 255 on
    average, which no eye sees.
    """
    if len(png) < HEAVY:
        return png
    image, buffer = Image.open(io.BytesIO(png)).convert("RGBA"), io.BytesIO()
    if image.getextrema()[3][0] < 255:
        return png
    image.convert("RGB").save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue() if len(buffer.getvalue()) < len(png) / 2 else png


def _glue(key: str, item: _Item) -> None:
    """Store a picture under a name in the notebook, invisibly, as `myst_nb.glue` would (which Colab
    does not have).
    """
    picture = base64.b64encode(item.picture).decode()
    data = {_GLUE_PREFIX + item.mime_type: picture, _GLUE_PREFIX + "text/plain": repr(key)}
    _display(data, metadata={"scrapbook": {"name": key, "mime_prefix": _GLUE_PREFIX}})


def _display(data: dict[str, str], metadata: dict[str, Any] | None = None) -> None:
    from IPython.display import display  # every notebook has it; drawing alone does not need it

    display(data, raw=True, metadata=metadata)
