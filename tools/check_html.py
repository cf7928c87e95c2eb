"""Check the built book without a browser.

    python tools/check_html.py _build/html

Looks for links and anchors that lead nowhere, pictures without a description, anything a page would
fetch from another host, ids used twice on a page, and directives or errors that were printed
instead of rendered.
"""

import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes whose target the browser fetches by itself, as opposed to a link that waits for a
# click.
FETCHED = {
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("video", "src"),
    ("audio", "src"),
    ("embed", "src"),
    ("object", "data"),
    ("input", "src"),
    ("video", "poster"),
}
FETCHING_RELS = {
    "stylesheet",
    "icon",
    "shortcut",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "modulepreload",
}
VERBATIM = {"script", "style", "pre", "code", "textarea", "template"}
CSS_FETCH = re.compile(r"""(?:url\(|@import)\s*['"]?((?:https?:)?//[^'")\s;]+)""")
UNRENDERED = re.compile(r":::+\{|```\{|\{(?:glue|cite|numref|ref|eq|doc):?[a-z]*\}`")
FILE_NAME = re.compile(r"\S*\.(?:png|jpe?g|gif|svg|webp)$|^_?images/", re.IGNORECASE)


class Page(HTMLParser):
    """What one HTML file holds: ids, links, fetched addresses, pictures, loose text."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.ids, self.links, self.fetched, self.images, self.text = [], [], [], [], []
        self.errors = 0
        self._verbatim = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(found["id"])
        if tag == "a" and found.get("name"):
            self.ids.append(found["name"])
        if "system-message" in (found.get("class") or "").split():
            self.errors += 1
        self._collect_addresses(tag, found)
        if tag == "img":
            self.images.append(
                (found.get("src") or "", found.get("alt"), found.get("aria-hidden") == "true")
            )
        if tag in VERBATIM:
            self._verbatim += 1

    def _collect_addresses(self, tag, found):
        if tag in ("a", "area") and found.get("href"):
            self.links.append(found["href"])
        self.fetched += [
            found[name] for fetching, name in FETCHED if tag == fetching and found.get(name)
        ]
        self.fetched += [
            part.split()[0] for part in (found.get("srcset") or "").split(",") if part.strip()
        ]
        if tag == "meta" and (found.get("http-equiv") or "").lower() == "refresh":
            self.links.append(
                (found.get("content") or "").lower().partition("url=")[2].strip("'\" ")
            )
        if tag == "link" and FETCHING_RELS & set((found.get("rel") or "").lower().split()):
            self.fetched.append(found.get("href") or "")
        self.fetched += CSS_FETCH.findall(found.get("style") or "")

    def handle_endtag(self, tag):
        if tag in VERBATIM:
            self._verbatim = max(0, self._verbatim - 1)

    def handle_data(self, data):
        if self.lasttag == "style":
            self.fetched += CSS_FETCH.findall(data)
        if not self._verbatim:
            self.text.append(data)


def is_external(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme in (
        "http",
        "https",
        "ws",
        "wss",
        "ftp",
    )


def picture_problems(page: Page) -> list[str]:
    problems = []
    for source, alt, hidden in page.images:
        shown = source if len(source) < 80 else source[:77] + "..."
        if hidden:
            continue
        if alt is None or not alt.strip():
            problems.append(f"picture without alt text: {shown}")
        elif FILE_NAME.search(alt.strip()):
            problems.append(f"picture whose alt text is a file name ({alt}): {shown}")
    return problems


def own_problems(page: Page) -> list[str]:
    """What can be seen on the page alone."""
    problems = picture_problems(page)
    problems += [
        f"fetched from another host: {address}" for address in page.fetched if is_external(address)
    ]
    problems += [
        f"id used {count} times: {name}" for name, count in Counter(page.ids).items() if count > 1
    ]
    problems += [
        f"printed instead of rendered: {match.group()}..."
        for match in UNRENDERED.finditer("".join(page.text))
    ]
    problems += ["an error message of the builder is on the page"] * page.errors
    return problems


def link_problems(root: Path, path: Path, pages: dict[Path, Page]) -> list[str]:
    page, problems = pages[path], []
    for address in dict.fromkeys([*page.links, *page.fetched]):
        parts = urlsplit(address)
        if is_external(address) or parts.scheme or (not parts.path and not parts.fragment):
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if target.is_dir():
            target = target / "index.html"
        if not target.is_relative_to(root) or not target.exists():
            problems.append(f"leads nowhere: {address}")
        elif (
            parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids
        ):
            problems.append(f"no such place on the target page: {address}")
    return problems


def style_problems(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}: fetched from another host: {address}"
        for path in sorted(root.rglob("*.css"))
        for address in CSS_FETCH.findall(path.read_text(encoding="utf-8", errors="replace"))
    ]


def check(root: Path) -> tuple[int, list[str]]:
    """Number of pages, and one line for every problem in them."""
    root = root.resolve()
    # Folders with an underscore hold what the builder needs; _static may carry sample pages of a
    # theme.
    files = [
        path
        for path in sorted(root.rglob("*.html"))
        if not path.relative_to(root).parts[0].startswith("_")
    ]
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in files}
    problems = style_problems(root)
    for path, page in pages.items():
        found = own_problems(page) + link_problems(root, path, pages)
        problems += [f"{path.relative_to(root)}: {problem}" for problem in found]
    return len(pages), problems


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    count, problems = check(Path(sys.argv[1]))
    if count == 0:
        sys.exit(f"{sys.argv[1]} holds no HTML page. Build the book first: make book")
    if problems:
        sys.exit("\n".join([*problems, f"{len(problems)} problems in {count} pages"]))
    print(f"{count} pages: links, anchors, alt texts, hosts and ids are in order")


if __name__ == "__main__":
    main()
