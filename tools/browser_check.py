"""Read the built book in a real browser.

    python tools/browser_check.py _build/html      every page, light and dark, wide and narrow
    python tools/browser_check.py --self-test      pages with one planted fault each: is every fault
        reported?

On every page: the console stays empty, nothing is fetched from another host, every picture loads,
the page follows the light or dark setting of the system, no block is cut by its column at 1,440 px
and no output or equation at 390, and there nothing makes the page scroll sideways. In every
gallery: each tab shows exactly one picture, loaded, and not the one of another tab; the arrow keys
move through the tabs. Figures that can be touched are played through (`tools/touch_check.py`): with
mouse and keys on a wide light page, with a finger on a narrow dark one, and without any script.
"""

import argparse
import functools
import re
import shutil
import sys
import tempfile
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for tools and ctrace, when this file is run as a script
from tools.touch_check import play, without_script  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 800}

# The book's tab sets come from sphinx-design, those in Jupyter and Colab from ctrace.viz.gallery;
# both are radio buttons.
GALLERIES = ".sd-tab-set, .ctrace-gallery"
SHOWN_PICTURES = """set => [...set.querySelectorAll('img')]
    .filter(img => img.getClientRects().length > 0
        && getComputedStyle(img).visibility === 'visible')
    .map(img => ({src: img.currentSrc || img.src, loaded: img.complete && img.naturalWidth > 1}))"""
WIDEST = """() => { const seen = [];
    for (const el of document.querySelectorAll('body *')) {
        const box = el.getBoundingClientRect();
        if (box.right > innerWidth + 1 && box.width > 0)
            seen.push(el.tagName.toLowerCase() + '.' + el.className);
    }
    return seen.slice(0, 3).join(', '); }"""
# Blocks whose content is wider than they are, so that it scrolls or is cut. A narrow screen may
# scroll code, which nobody reads there line by line, and what says of itself that it scrolls.
CUT = """narrow => {
    document.querySelectorAll('details').forEach(folded => { folded.open = true; });
    const blocks = narrow ? '.cell_output, .cell_output *, mjx-container' : '*';
    const cut = [...document.querySelectorAll(`article ${blocks.replaceAll(', ', ', article ')}`)]
        .filter(el => el.matches('mjx-container')
            || !el.closest('.ct-figure, svg, .math, mjx-assistive-mml'))
        .filter(el => !(narrow && el.closest('[data-scrolls]')))
        .filter(el => el.clientWidth > 1 && el.scrollWidth > el.clientWidth + 1
            && getComputedStyle(el).display !== 'inline'
            && getComputedStyle(el).overflowX !== 'visible');
    return cut.map(el => `${el.tagName.toLowerCase()} of ${el.scrollWidth} px in `
        + `${el.clientWidth}: ${el.textContent.trim().replace(/\\s+/g, ' ').slice(0, 60)}`);
}"""
BROKEN_PICTURES = """() => [...document.images]
    .filter(img => img.loading !== 'lazy' || img.complete)
    .filter(img => !(img.complete && img.naturalWidth > 0)).map(img => img.getAttribute('src'))"""


@contextmanager
def served(folder: Path):
    """The address at which a folder is served while the block runs."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def find_browser() -> str:
    for name in BROWSERS:
        path = shutil.which(name)
        if path:
            return path
    sys.exit(
        f"No browser found (looked for {', '.join(BROWSERS)}). On Debian: apt-get install chromium"
    )


@contextmanager
def browser():
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=find_browser(), headless=True, args=QUIET
        )
        try:
            yield running
        finally:
            running.close()


@contextmanager
def watched_page(running, base: str, scheme: str, problems: list[str], **settings):
    """A new page whose console, failed answers and requests to other hosts end up in `problems`."""
    context = running.new_context(viewport=WIDE, color_scheme=scheme, has_touch=True, **settings)
    page = context.new_page()
    page.set_default_timeout(5000)

    def route(request_route):
        url = request_route.request.url
        if url.startswith((base, "data:", "blob:")):
            request_route.continue_()
        else:
            problems.append(f"asks another host: {url}")
            request_route.abort()

    page.route("**/*", route)
    page.on(
        "console",
        lambda message: (
            problems.append(f"console {message.type}: {message.text}")
            if message.type in ("error", "warning")
            else None
        ),
    )
    page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
    page.on(
        "response",
        lambda answer: (
            problems.append(f"answer {answer.status}: {answer.url}")
            if answer.status >= 400
            else None
        ),
    )
    try:
        yield page
    finally:
        context.close()


def check_page(running, base: str, name: str, scheme: str, patience: int) -> tuple[int, list[str]]:
    """Number of galleries and of figures that can be touched on a page, and its problems under one
    colour scheme.
    """
    problems: list[str] = []
    with watched_page(running, base, scheme, problems) as page:
        page.goto(f"{base}/{name}", wait_until="load")
        page.wait_for_timeout(150)  # scripts that start after the load event
        problems += theme_problems(page, scheme)
        problems += [
            f"picture does not load: {source}" for source in page.evaluate(BROKEN_PICTURES)
        ]
        problems += maths_problems(page, patience)
        count, found = galleries(page)
        problems += found
        narrow = scheme == "dark"
        if not narrow:
            touched, found = play(page, narrow)
            problems += found + cut_problems(page, narrow)
        problems += width_problems(page)
        if narrow:
            touched, found = play(page, narrow)
            problems += found + cut_problems(page, narrow) + width_problems(page)
    if touched and not narrow:
        with watched_page(running, base, scheme, problems, java_script_enabled=False) as page:
            page.goto(f"{base}/{name}", wait_until="load")
            problems += without_script(page)
    count += touched
    return count, [f"{name} ({scheme}): {problem}" for problem in dict.fromkeys(problems)]


def theme_problems(page, scheme: str) -> list[str]:
    theme = page.evaluate("document.documentElement.dataset.theme || null")
    if theme not in (None, scheme):
        return [f"the system is {scheme}, the page is {theme}"]
    return []


def maths_problems(page, patience: int) -> list[str]:
    """Formulas that stayed source text."""
    if page.query_selector(".math") is None:
        return []
    try:
        page.wait_for_selector("mjx-container", state="attached", timeout=1000 * patience)
    except Exception:  # whatever kept MathJax away, the reader sees raw TeX
        return ["formulas are not rendered"]
    broken = page.evaluate(
        "[...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(e => e.textContent)"
    )
    return [f"formula with an error: {text}" for text in broken]


def cut_problems(page, narrow: bool) -> list[str]:
    """Blocks that are cut by their column, or can be read only by scrolling in them."""
    width = (NARROW if narrow else WIDE)["width"]
    return [f"at {width} px cut by its column: {block}" for block in page.evaluate(CUT, narrow)]


def width_problems(page) -> list[str]:
    page.set_viewport_size(NARROW)
    page.wait_for_timeout(100)
    width = page.evaluate("document.documentElement.scrollWidth")
    if width > NARROW["width"]:
        return [f"at {NARROW['width']} px the page is {width} px wide ({page.evaluate(WIDEST)})"]
    return []


def galleries(page) -> tuple[int, list[str]]:
    sets = [found for found in page.query_selector_all(GALLERIES) if found.query_selector("img")]
    return len(sets), [
        problem
        for number, found in enumerate(sets, 1)
        for problem in gallery_problems(page, found, number)
    ]


def gallery_problems(page, tab_set, number: int) -> list[str]:
    """Click every tab, then walk through the tabs with the arrow key."""
    inputs = tab_set.query_selector_all(":scope > input[type=radio]")
    if len(inputs) < 2:
        return [f"gallery {number} has {len(inputs)} tabs"]
    problems, sources = [], []
    for index, radio in enumerate(inputs, 1):
        label = tab_set.query_selector(f':scope > label[for="{radio.get_attribute("id")}"]')
        if label is None:
            return [f"gallery {number}, tab {index} has no label"]
        label.click()
        shown = tab_set.evaluate(SHOWN_PICTURES)
        if len(shown) != 1:
            problems.append(f"gallery {number}, tab {index} shows {len(shown)} pictures, not one")
        problems += [
            f"gallery {number}, tab {index}: its picture is not loaded"
            for item in shown
            if not item["loaded"]
        ]
        sources.append(tuple(item["src"] for item in shown))
    if len(set(sources)) < len(sources):
        problems.append(f"gallery {number}: two tabs show the same picture")
    return problems + arrow_key_problems(page, tab_set, inputs, number)


def arrow_key_problems(page, tab_set, inputs, number: int) -> list[str]:
    inputs[0].evaluate("radio => { radio.click(); radio.focus(); }")
    for index, radio in enumerate(inputs[1:], 2):
        before = tab_set.evaluate(SHOWN_PICTURES)
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(30)
        if not radio.is_checked() or tab_set.evaluate(SHOWN_PICTURES) == before:
            return [f"gallery {number}: the right arrow does not move to tab {index}"]
    return []


def pages_of(folder: Path) -> list[str]:
    """Pages a reader stays on: no sample pages of a theme, no redirects (their targets are in the
    list themselves).
    """
    paths = [
        path
        for path in sorted(folder.rglob("*.html"))
        if not path.relative_to(folder).parts[0].startswith("_")
    ]
    stays = [
        path
        for path in paths
        if 'http-equiv="refresh"' not in path.read_text(encoding="utf-8").lower()
    ]
    return [path.relative_to(folder).as_posix() for path in stays]


def check_site(folder: Path, report=print, patience: int = 20) -> tuple[int, int, list[str]]:
    """Pages and galleries seen, and problems, over all pages of a folder in both colour schemes.

    `patience` is how many seconds the formulas of a page may take to appear.
    """
    names = pages_of(folder)
    if not names:
        sys.exit(f"{folder} holds no HTML page. Build the book first: make book")
    total, problems = 0, []
    with served(folder) as base, browser() as running:
        for name in names:
            for scheme in ("light", "dark"):
                count, found = check_page(running, base, name, scheme, patience)
                problems += found
            total += count
            report(f"{name}: {count} galleries and figures to touch")
    return len(names), total, problems


def verdict(checked: int, problems: list[str], missing: list[str]) -> str:
    """How many pages and galleries passed, each counted once for both colour schemes. What is
    missing was not checked, and has failed.
    """
    failed = {place(problem) for problem in problems}
    return f"browser: {checked - len(failed)} passed, {len(failed) + len(missing)} failed"


def place(problem: str) -> tuple[str, str]:
    """The page a problem is on, and the gallery or figure when it is one of a gallery or figure."""
    page, _, what = problem.partition(": ")
    gallery = re.match(r"(gallery|figure) \d+", what)
    return page.rpartition(" (")[0], gallery[0] if gallery else ""


def notebook_outputs(folder: Path) -> int:
    """Write each executed notebook's plain-HTML outputs, which is what Jupyter and Colab show, as
    pages of their own.
    """
    from tools.check_notebooks import cached_run

    count = 0
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        run = cached_run(path, ROOT / "_build" / ".jupyter_cache")
        outputs = [
            output for cell in (run.cells if run else []) for output in cell.get("outputs", [])
        ]
        pages = [output.get("data", {}).get("text/html", "") for output in outputs]
        kinds = ('class="ctrace-gallery"', 'class="ctrace-touch"')
        twins = [page for page in pages if any(kind in page for kind in kinds)]
        if twins:
            (folder / f"{path.stem}.html").write_text(as_page("".join(twins)), encoding="utf-8")
            count += len(twins)
    return count


def as_page(body: str) -> str:
    # The empty icon keeps the browser from asking for /favicon.ico, which would be an error on the
    # console.
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>page</title>'
        '<link rel="icon" href="data:,">'
        f'<meta name="viewport" content="width=device-width"></head><body>{body}</body></html>'
    )


# ---- self-test ----


def _dot(colour: str) -> str:
    size = "width='40' height='40'"
    dot = f"<svg xmlns='http://www.w3.org/2000/svg' {size}><rect {size} fill='{colour}'/></svg>"
    return f"data:image/svg+xml,{dot.replace('<', '%3C').replace('>', '%3E')}"


def _tabs(first: str, second: str, rule: str = "", group: str = "g") -> str:
    style = (
        "<style>.ctrace-gallery img{display:none} "
        f".ctrace-gallery input:checked+label+img{{display:inline}}{rule}</style>"
    )
    tabs = "".join(
        f'<input type="radio" name="{name}" id="t{i}"{" checked" if i == 1 else ""}>'
        f'<label for="t{i}">Tab {i}</label><img alt="a dot" src="{source}">'
        for i, (name, source) in enumerate(((group, first), ("g", second)), 1)
    )
    return f'{style}<div class="ctrace-gallery">{tabs}</div>'


def _touchable(kind: str, photo, payload: dict) -> str:
    """A figure that can be touched as Jupyter shows it."""
    from ctrace.viz import gallery, touch

    shown, display = [], gallery._display
    gallery._display = lambda data, metadata=None: shown.append(data)
    try:
        words = {"alt": "A picture.", "caption": "A picture.", "name": "one", "label": "A figure"}
        touch.show_touchable(photo, kind=kind, payload=payload, **words)
    finally:
        gallery._display = display
    return shown[-1]["text/html"]


def _explorer(wrong: str = "") -> str:
    """A small channel explorer, with a payload that is `wrong` about the cut or the gradient, or
    with a script that is.
    """
    import torch
    from PIL import Image

    from ctrace.viz import touch
    from ctrace.world.features import GridFeatures

    rows = torch.randn(144, 3, generator=torch.Generator().manual_seed(0)) / 3
    rows[:, 0] += torch.arange(144) // 48  # three stripes
    rows[:, 1] += torch.arange(144) % 12 / 4
    grid = touch.rounded(GridFeatures(rows, ("first", "second", "third"), (12, 12)))
    photo = Image.radial_gradient("L").convert("RGB")
    example = touch.explorer_example("Stripes", [photo], grid, 3, (0.5, 0.5), most=4)
    if wrong == "cut":
        example["cuts"][3] = example["cuts"][3] | {"segments": example["cuts"][2]["segments"]}
    if wrong == "gradient":
        example["attributions"] = [2 * value for value in example["attributions"]]
    page = _touchable("explorer", photo, {"examples": [example]})
    if wrong == "sign":
        page = page.replace("state.literal ? -v : v", "v")
    if wrong == "hidden":
        page += "<style>img{display:none}</style>"
    return page[: page.rindex("<script>")] if wrong == "script" else page


def _bird(wrong: str = "") -> str:
    """A bird to take apart, with a script that is `wrong` about what a part adds."""
    from PIL import Image

    from ctrace.aviary import PARTS, SPECIES
    from ctrace.aviary.scene import sample_scene
    from ctrace.viz import touch
    from ctrace.world.models import load_model

    models = [load_model("aviary-resnet-0")] * 3
    scene, names = sample_scene(4, SPECIES[8]), [species.name for species in SPECIES]
    bird = touch.bird_example("A bird", scene, 8, models, (0.12, 0.12))
    payload = {"species": names, "parts": PARTS, "models": list("abc"), "birds": [bird]}
    page = _touchable("bird", Image.new("RGB", (9, 9)), payload)
    return page.replace("sum += factorial", "sum += 2 * factorial") if wrong else page


def _bandwidth(wrong: str = "") -> str:
    """Bandwidth and k, with a payload that is `wrong` about the eigenvalues."""
    import torch
    from PIL import Image

    from ctrace.viz import touch
    from ctrace.world.features import GridFeatures

    rows = 3 * torch.rand(144, 3, generator=torch.Generator().manual_seed(0))  # noise moves some
    grid = touch.rounded(GridFeatures(rows, ("first", "second", "third"), (12, 12)))
    photo = Image.radial_gradient("L").convert("RGB")
    example = touch.bandwidth_example("Noise", photo, grid, 3, (0.5, 1.0), most=4)
    if wrong:
        example["eigval"] = {key: [0.9 * v for v in own] for key, own in example["eigval"].items()}
    return _touchable("bandwidth", photo, {"k": 3, "examples": [example]})


def _guess(wrong: str = "") -> str:
    """Two rounds of guessing, with a script that is `wrong` about what is right."""
    import numpy as np
    from PIL import Image

    from ctrace.viz import touch

    photo, random = Image.radial_gradient("L").convert("RGB"), np.random.default_rng(0)
    maps = {name: random.uniform(-1, 1, (16, 16)) for name in ("one", "two", "three")}
    verdicts = {name: {"a test": "passed"} for name in maps}
    rounds = [touch.guess_example(f"Bird {i}", photo, maps, "two", verdicts, i) for i in (1, 2)]
    page = _touchable("guess", photo, {"question": "Which?", "rounds": rounds})
    return page.replace("i === rounds[n].asked", "i !== rounds[n].asked") if wrong else page


def planted() -> dict[str, tuple[str, str]]:
    """Page body -> a piece of the sentence that must be reported ('' where nothing may be)."""
    red, blue = _dot("red"), _dot("blue")
    return {
        "sound": (_tabs(red, blue), ""),
        "console": ("<script>console.error('planted')</script>", "console error: planted"),
        "script": ("<script>missing.call()</script>", "script error"),
        "host": ('<img alt="a dot" src="http://other.invalid/a.png">', "asks another host"),
        "file": ('<img alt="a dot" src="none.png">', "picture does not load"),
        "wide": ('<div style="width:900px">wide</div>', "at 390 px"),
        "cut": (
            "<article><pre style='width:300px;overflow:auto'>"
            + "a long line " * 9
            + "</pre></article>",
            "at 1440 px cut by its column: pre",
        ),
        "output": (
            "<article><div class='cell_output'><pre style='width:300px;overflow:auto'>"
            + "a long line " * 9
            + "</pre></div></article>",
            "at 390 px cut by its column: pre",
        ),
        "theme": (
            "<script>document.documentElement.dataset.theme='light'</script>",
            "the system is dark",
        ),
        "maths": ('<span class="math">\\(x\\)</span>', "formulas are not rendered"),
        "same": (_tabs(red, red), "two tabs show the same picture"),
        "both": (
            _tabs(red, blue, ".ctrace-gallery img{display:inline !important}"),
            "shows 2 pictures",
        ),
        "none": (
            _tabs(red, blue, ".ctrace-gallery img{display:none !important}"),
            "shows 0 pictures",
        ),
        "unloaded": (_tabs(red, "none.png"), "its picture is not loaded"),
        "keys": (_tabs(red, blue, group="other"), "the right arrow does not move"),
        "touch": (_explorer(), ""),
        "touch-cut": (_explorer("cut"), "cells are not where ctrace puts them"),
        "touch-gradient": (_explorer("gradient"), "gradient against ctrace"),
        "touch-sign": (_explorer("sign"), "does not turn the list around"),
        "touch-bird": (_bird(), ""),
        "touch-shares": (_bird("wrong"), "from those of ctrace"),
        "touch-bandwidth": (_bandwidth(), ""),
        "touch-eigenvalues": (_bandwidth("wrong"), "eigenvalues against ctrace"),
        "touch-guess": (_guess(), ""),
        "touch-count": (_guess("wrong"), "it counts"),
        "touch-script": (_explorer("script"), "does not come to life"),
        "touch-hidden": (_explorer("hidden"), "no static picture without a script"),
        "single": (
            '<div class="ctrace-gallery"><input type="radio"><img alt="a dot" src="'
            + red
            + '"></div>',
            "has 1 tabs",
        ),
    }


def self_test() -> tuple[int, list[str]]:
    """How many faults are planted; those that went unreported, and reports on a sound page."""
    bodies, missed = planted(), []
    with tempfile.TemporaryDirectory() as folder:
        for name, (body, _) in bodies.items():
            (Path(folder) / f"{name}.html").write_text(as_page(body), encoding="utf-8")
        _, _, problems = check_site(Path(folder), report=lambda line: None, patience=1)
    for name, (_, expected) in bodies.items():
        own = [problem for problem in problems if problem.startswith(f"{name}.html")]
        if not expected and own:
            missed.append(f"reported on a sound page: {own}")
        if expected and not any(expected in problem for problem in own):
            missed.append(f"planted fault '{name}' was not reported ('{expected}'), only {own}")
    return sum(bool(expected) for _, expected in bodies.values()), missed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        faults, missed = self_test()
        sys.exit("\n".join(missed) or print(f"browser check: reports all {faults} planted faults"))
    if arguments.folder is None:
        parser.error("which folder? After make book: _build/html")
    pages, galleries, problems = check_site(arguments.folder)
    missing = [] if galleries else [f"{arguments.folder} holds no gallery, although the book has"]
    with tempfile.TemporaryDirectory() as folder:
        if notebook_outputs(Path(folder)):
            more_pages, more_galleries, more = check_site(Path(folder))
            pages, galleries, problems = (
                pages + more_pages,
                galleries + more_galleries,
                problems + more,
            )
        else:
            missing.append("no executed notebook holds a gallery")
    print(f"{pages} pages and {galleries} galleries, of the book and of the notebooks' outputs")
    print(*problems, *missing, verdict(pages + galleries, problems, missing), sep="\n")
    sys.exit(bool(problems or missing))


if __name__ == "__main__":
    main()
