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
from typing import Any, NamedTuple

DPI = 110
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"GIF89a": "image/gif"}
_GLUE_PREFIX = "application/papermill.record/"

_STYLE = """
.ctrace-figure, .ctrace-gallery figure { margin: .5em 0; max-width: 100%; }
.ctrace-figure img, .ctrace-gallery img { max-width: 100%; height: auto; background: #fff; }
.ctrace-figure figcaption, .ctrace-gallery figcaption { font-size: .92em; opacity: .85; max-width: 46em; }
.ctrace-gallery { display: flex; flex-wrap: wrap; position: relative; }
.ctrace-gallery input { position: absolute; opacity: 0; }
.ctrace-gallery label { padding: .35em .9em; margin: 0; cursor: pointer; border-bottom: 3px solid transparent; }
.ctrace-gallery input:checked + label { border-bottom-color: currentColor; font-weight: 600; }
.ctrace-gallery input:focus-visible + label { outline: 2px solid currentColor; outline-offset: -2px; }
.ctrace-gallery figure { display: none; order: 99; width: 100%; }
.ctrace-gallery input:checked + label + figure { display: block; }
@media print { .ctrace-gallery figure { display: block; order: initial; } }
"""


class _Item(NamedTuple):
    label: str
    picture: bytes
    alt: str
    caption: str


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
        >>> gallery = Gallery("parrots").add("Example 1", dot, alt="A red parrot.", caption="The parrot.")
        >>> len(gallery)
        1
        >>> gallery.add("Example 1", dot, alt="The same.", caption="Again.")
        Traceback (most recent call last):
        ...
        ValueError: Gallery 'parrots' already has a tab 'Example 1' (tabs so far: Example 1). Give each tab its own label.
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
                second time), a PIL image, or the bytes of a PNG or of an (animated) GIF.
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
                f"Gallery '{self.slug}' already has a tab '{label}' (tabs so far: {', '.join(taken)}). "
                "Give each tab its own label."
            )
        where = f"Gallery '{self.slug}', tab '{label}'"
        alt, caption = _checked_alt(alt, where), _checked_text(caption, "caption", where)
        self._items.append(_Item(label, _picture(figure, where), alt, caption))
        return self

    def show(self) -> None:
        """Display the gallery as the output of the current cell.

        Raises:
            ValueError: the gallery has no tab.
        """
        if not self._items:
            raise ValueError(
                f"Gallery '{self.slug}' is empty. Call .add(label, figure, alt, caption) before .show()."
            )
        for number, item in enumerate(self._items, 1):
            _glue(f"{self.slug}-{number}", item.picture)
        _display(self._bundle())

    def _bundle(self) -> dict[str, str]:
        labels = ", ".join(item.label for item in self._items)
        return {
            "text/markdown": self._markdown(),
            "text/html": self._html(),
            "text/plain": f"Gallery '{self.slug}': {labels}",
        }

    def _markdown(self) -> str:
        lines = ["::::{tab-set}"]
        for number, item in enumerate(self._items, 1):
            lines += [f":::{{tab-item}} {item.label}", f":sync: {_sync_key(item.label)}", ""]
            lines += [_figure_markdown(f"{self.slug}-{number}", item), ":::"]
        return "\n".join([*lines, "::::"])

    def _html(self) -> str:
        parts = []
        for number, item in enumerate(self._items, 1):
            key = f"{self.slug}-{number}"
            checked = " checked" if number == 1 else ""
            parts.append(
                f'<input type="radio" name="{self.slug}" id="tab-{key}"{checked}>'
                f'<label for="tab-{key}">{html.escape(item.label)}</label>{_figure_html(item)}'
            )
        return f'<style>{_STYLE}</style><div class="ctrace-gallery">{"".join(parts)}</div>'


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
    where = f"Figure '{name}'"
    item = _Item(
        "",
        _picture(figure, where),
        _checked_alt(alt, where),
        _checked_text(caption, "caption", where),
    )
    _glue(name, item.picture)
    _display(
        {
            "text/markdown": _figure_markdown(name, item),
            "text/html": f"<style>{_STYLE}</style>{_figure_html(item, 'ctrace-figure')}",
            "text/plain": f"Figure '{name}': {item.alt}",
        }
    )


def _figure_markdown(key: str, item: _Item) -> str:
    # The alt text is written as a JSON string: bare, a '#' or a ':' in it would end the option
    # early.
    alt = json.dumps(item.alt, ensure_ascii=False)
    return f"```{{glue:figure}} {key}\n:alt: {alt}\n:name: fig-{key}\n\n{item.caption}\n```"


def _figure_html(item: _Item, css_class: str = "") -> str:
    source = f"data:{_mime_type(item.picture)};base64," + base64.b64encode(item.picture).decode()
    attribute = f' class="{css_class}"' if css_class else ""
    return (
        f'<figure{attribute}><img src="{source}" alt="{html.escape(item.alt)}">'
        f"<figcaption>{html.escape(item.caption)}</figcaption></figure>"
    )


def _sync_key(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "tab"


def _checked_slug(slug: str, what: str) -> str:
    if not isinstance(slug, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug):
        raise ValueError(
            f"{what} must be lower-case letters, digits and single hyphens, like 'channel-maps'; got {slug!r}."
        )
    return slug


def _checked_text(text: str, what: str, where: str) -> str:
    """The text on one line; markdown would read a blank line or an indent as structure."""
    line = " ".join(str(text or "").split())
    if not line:
        raise ValueError(
            f"{where}: {what} is empty. Say in one sentence what the reader should see."
        )
    if "```" in line or ":::" in line:
        raise ValueError(
            f"{where}: {what} holds a code or directive fence, which would end the figure early: {line!r}."
        )
    return line


def _checked_alt(alt: str, where: str) -> str:
    alt = _checked_text(alt, "alt", where)
    if re.fullmatch(r"\S+\.(png|svg|jpe?g|gif|webp)", alt, flags=re.IGNORECASE):
        raise ValueError(f"{where}: alt is a file name ({alt!r}). Describe the picture instead.")
    return alt


def _picture(figure: Any, where: str) -> bytes:
    if isinstance(figure, (bytes, bytearray)):
        if not bytes(figure).startswith(tuple(_SIGNATURES)):
            raise TypeError(
                f"{where}: got {len(figure)} bytes that start with neither the PNG signature nor GIF89a. Pass PNG or GIF bytes."
            )
        return bytes(figure)
    buffer = io.BytesIO()
    if hasattr(figure, "savefig"):
        figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
        _close(figure)
    elif hasattr(figure, "getbands") and hasattr(figure, "save"):  # a PIL image
        figure.save(buffer, format="PNG", optimize=True)
    else:
        raise TypeError(
            f"{where}: expected a figure with savefig, a PIL image or PNG or GIF bytes, got {type(figure).__name__}. "
            "An Axes has its figure in .figure; an array can go through PIL.Image.fromarray."
        )
    return buffer.getvalue()


def _close(figure: Any) -> None:
    # Notebooks draw every open pyplot figure at the end of a cell; this one has its place already.
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and isinstance(figure, pyplot.Figure):
        pyplot.close(figure)


def _mime_type(picture: bytes) -> str:
    return next(mime for signature, mime in _SIGNATURES.items() if picture.startswith(signature))


def _glue(key: str, picture: bytes) -> None:
    """Store a picture under a name in the notebook, invisibly, as `myst_nb.glue` would (which Colab
    does not have).
    """
    data = {
        _GLUE_PREFIX + _mime_type(picture): base64.b64encode(picture).decode(),
        _GLUE_PREFIX + "text/plain": repr(key),
    }
    _display(data, metadata={"scrapbook": {"name": key, "mime_prefix": _GLUE_PREFIX}})


def _display(data: dict[str, str], metadata: dict[str, Any] | None = None) -> None:
    try:
        from IPython.display import display
    except ImportError:
        raise ImportError(
            "Showing a figure needs IPython, which every Jupyter notebook has. "
            "In a plain script, save the figure with savefig instead."
        ) from None
    display(data, raw=True, metadata=metadata)
