"""Each check is shown a fault of every kind that it is there to find, and something sound."""

import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ctrace.world.models import MODEL_VARIABLE, chosen_model
from ctrace.world.weights import WEIGHTS_VARIABLE
from tools import (
    address,
    browser_check,
    check_html,
    check_links,
    check_notebooks,
    colab_check,
    depends,
    freeze_constraints,
    fresh_cache,
    house,
)

ROOT = Path(__file__).resolve().parents[1]
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").glob("*.md"))]


# ---- check_html ----


def html_problems(folder: Path, body: str, other: str = "<p id='there'>x</p>") -> list[str]:
    (folder / "index.html").write_text(f"<html><head></head><body>{body}</body></html>")
    (folder / "other.html").write_text(f"<html><body>{other}</body></html>")
    (folder / "dot.png").write_bytes(b"x")
    return check_html.check(folder)[1]


SOUND = [
    '<a href="other.html">x</a>',
    '<a href="other.html#there">x</a>',
    '<p id="here"></p><a href="#here">x</a>',
    '<a href="#">top</a>',
    '<a href="https://example.org/x">a link waits for a click</a>',
    '<a href="mailto:a@example.org">x</a>',
    '<meta http-equiv="Refresh" content="0; url=other.html">',
    '<img src="dot.png" alt="A dot.">',
    '<img src="data:image/png;base64,AAAA" alt="A dot.">',
    '<img src="dot.png" aria-hidden="true">',
    "<pre>:::{tab-item} shown on purpose</pre>",
    "<code>```{note}</code>",
    '<div style="background: url(dot.png)"></div>',
]
FAULTS = {
    '<a href="missing.html">x</a>': "leads nowhere",
    '<a href="../outside.html">x</a>': "leads nowhere",
    '<a href="other.html#nowhere">x</a>': "no such place",
    '<a href="#nowhere">x</a>': "no such place",
    '<img src="missing.png" alt="A dot.">': "leads nowhere",
    '<meta http-equiv="Refresh" content="0; url=missing.html">': "leads nowhere",
    '<script src="missing.js"></script>': "leads nowhere",
    '<img src="dot.png">': "without alt",
    '<img src="dot.png" alt=" ">': "without alt",
    '<img src="dot.png" alt="_images/abc.png">': "file name",
    '<img src="dot.png" alt="plot.svg">': "file name",
    '<script src="https://cdn.example.org/a.js"></script>': "another host",
    '<script src="//cdn.example.org/a.js"></script>': "another host",
    '<img src="https://example.org/a.png" alt="A dot.">': "another host",
    '<img src="dot.png" srcset="https://example.org/a.png 2x" alt="A dot.">': "another host",
    '<link rel="stylesheet" href="https://example.org/a.css">': "another host",
    '<link rel="preconnect" href="https://example.org">': "another host",
    '<iframe src="https://example.org"></iframe>': "another host",
    '<style>@import "https://example.org/a.css";</style>': "another host",
    "<style>p { background: url(//example.org/a.png) }</style>": "another host",
    "<p style=\"background: url('https://example.org/a.png')\">x</p>": "another host",
    '<p id="a"></p><p id="a"></p>': "id used 2 times",
    "<p>:::{tab-item} Example 1</p>": "printed instead of rendered",
    "<p>{cite:p}`shi2000`</p>": "printed instead of rendered",
    '<aside class="system-message error">x</aside>': "error message",
}


@pytest.mark.parametrize("body", SOUND)
def test_html_check_accepts(tmp_path, body):
    assert html_problems(tmp_path, body) == []


@pytest.mark.parametrize("body", FAULTS)
def test_html_check_reports(tmp_path, body):
    problems = html_problems(tmp_path, body)
    assert (
        len(problems) == 1 and FAULTS[body] in problems[0] and problems[0].startswith("index.html")
    )


def test_html_check_reads_style_sheets(tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "a.css").write_text("@import url('https://example.org/font.css');")
    assert "another host" in html_problems(tmp_path, "<p>x</p>")[0]


@pytest.mark.parametrize(
    "body, code", [(None, 1), ("<p>x</p>", 0), ('<a href="missing.html">x</a>', 1)]
)
def test_html_check_exit_status(tmp_path, body, code):
    if body:
        html_problems(tmp_path, body)
    assert (
        subprocess.run(
            [sys.executable, "tools/check_html.py", tmp_path], cwd=ROOT, capture_output=True
        ).returncode
        == code
    )


def test_link_check_lists_each_external_link_once_without_anchor(tmp_path):
    html_problems(
        tmp_path,
        '<a href="https://a.example/x#1">x</a><a href="https://a.example/x#2">x</a>'
        '<a href="other.html">x</a>',
    )
    assert check_links.external_links(tmp_path) == {"https://a.example/x": "index.html"}


def test_link_check_tells_what_answers_from_what_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(check_links, "ATTEMPTS", 1)
    html_problems(tmp_path, "<p>x</p>")
    with browser_check.served(tmp_path) as base:
        assert check_links.failure(f"{base}/index.html") is None
        assert check_links.failure(f"{base}/missing.html") == "HTTP 404"
    assert "refused" in check_links.failure(f"{base}/index.html")


# ---- check_notebooks ----


def run_of(*outputs, tags=(), count=1, source="print(1)"):
    cell = new_code_cell(
        source, outputs=list(outputs), execution_count=count, metadata={"tags": list(tags)}
    )
    return new_notebook(cells=[new_markdown_cell("# Title"), cell])


PRINTED = new_output("stream", name="stdout", text="gap < 0.25 at k = 4\n")
ERROR = new_output("error", ename="ValueError", evalue="bad", traceback=[])


@pytest.mark.parametrize(
    "run, expected",
    [
        (run_of(PRINTED), None),
        (run_of(ERROR, tags=["raises-exception"]), None),
        (None, "failed or did not run"),
        (run_of(count=None), "cell 2 did not run"),
        (run_of(ERROR), "cell 2 ended in ValueError: bad"),
        (run_of(PRINTED, tags=["raises-exception"]), "raised nothing"),
    ],
)
def test_run_of_a_notebook_is_judged(run, expected):
    problems = check_notebooks.run_problems("x.ipynb", run)
    assert problems == [] if expected is None else expected in problems[0]


@pytest.mark.parametrize(
    "page, complaint",
    [
        ("<pre>gap &lt; 0.25 at <span>k</span> = 4</pre>", None),
        ("<pre>gap &lt; 0.31 at k = 4</pre>", "does not show"),
        (None, "was not built"),
    ],
)
def test_page_must_show_what_its_run_printed(tmp_path, page, complaint):
    if page:
        (tmp_path / "x.html").write_text(page)
    problems = check_notebooks.page_problems("x.ipynb", run_of(PRINTED), tmp_path / "x.html")
    assert problems == [] if complaint is None else complaint in problems[0]


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda notebook: None, None),
        (
            lambda notebook: notebook.cells[1].metadata.tags.append("skip-execution"),
            "would not run",
        ),
        (
            lambda notebook: notebook.metadata.update(mystnb={"execution_mode": "off"}),
            "switch execution off",
        ),
        (
            lambda notebook: notebook.metadata.update(execution={"allow_errors": True}),
            "switch execution off",
        ),
        (lambda notebook: notebook.cells.pop(), "no code cell"),
    ],
)
def test_notebook_that_evades_execution_is_noticed(tmp_path, change, complaint):
    notebook = run_of()
    change(notebook)
    nbformat.write(notebook, tmp_path / "x.ipynb")
    problems = check_notebooks.shape_problems(tmp_path / "x.ipynb")
    assert problems == [] if complaint is None else complaint in problems[0]


@pytest.mark.parametrize(
    "listed, present, complaint",
    [
        (["01_a"], ["01_a"], None),
        ([], ["01_a"], "not in _toc.yml"),
        (["01_a", "02_b"], ["01_a"], "does not exist"),
        ([], [], "no notebook"),
    ],
)
def test_contents_and_folder_must_agree(tmp_path, listed, present, complaint):
    (tmp_path / "notebooks").mkdir()
    for stem in present:
        nbformat.write(run_of(), tmp_path / "notebooks" / f"{stem}.ipynb")
    chapters = (
        "".join(f"      - file: notebooks/{stem}\n" for stem in listed) or "      - file: book/x\n"
    )
    (tmp_path / "_toc.yml").write_text(
        f"format: jb-book\nroot: book/intro\nparts:\n  - chapters:\n{chapters}"
    )
    problems = check_notebooks.toc_problems(tmp_path)
    assert problems == [] if complaint is None else complaint in problems[0]


def test_changed_cell_does_not_find_the_old_run(tmp_path):
    path, cache = tmp_path / "x.ipynb", tmp_path / "cache"
    nbformat.write(run_of(), path)
    get_cache(str(cache)).cache_notebook_bundle(
        CacheBundleIn(run_of(PRINTED), str(path)), check_validity=False
    )
    assert check_notebooks.cached_run(path, cache).cells[1].outputs == [PRINTED]
    nbformat.write(run_of(source="print(2)"), path)
    assert check_notebooks.cached_run(path, cache) is None


# ---- one run for tests and book ----


def nbmake(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *options]
    command += ["--nbmake", "--nbmake-kernel=python3", "."]
    path = os.pathsep.join([str(folder), str(ROOT)])  # the tree's own ctrace, this tree's tools
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_passing_run_reaches_the_cache_and_a_failing_one_does_not(tmp_path):
    shutil.copy(ROOT / "conftest.py", tmp_path)
    nbformat.write(run_of(count=None, source="print(40 + 2)"), tmp_path / "good.ipynb")
    assert nbmake(tmp_path).returncode == 0
    nbformat.write(run_of(count=None, source="assert 1 == 2"), tmp_path / "bad.ipynb")
    assert nbmake(tmp_path).returncode == 1
    cache = tmp_path / "_build" / ".jupyter_cache"
    assert (
        check_notebooks.cached_run(tmp_path / "good.ipynb", cache).cells[1].outputs[0].text
        == "42\n"
    )
    assert check_notebooks.cached_run(tmp_path / "bad.ipynb", cache) is None


PACKAGE = {
    "ctrace/__init__.py": "from ctrace.cut.solve import solve\nfrom ctrace.look.map import see\n",
    "ctrace/cut/__init__.py": "",
    "ctrace/cut/solve.py": "def solve():\n    from ctrace.cut.graph import W\n\n    return W\n",
    "ctrace/cut/graph.py": "W = 1\n",
    "ctrace/look/__init__.py": "",
    "ctrace/look/map.py": "FOLDER = 'data/models'\nsee = 2\n",
    "ctrace/viz/__init__.py": "from ctrace.viz.curves import curve\n"
    "from ctrace.viz.maps import draw\n",
    "ctrace/viz/colours.py": "RED = 'red'\nSTYLE = 'book.mplstyle'\n",
    "ctrace/viz/book.mplstyle": "font.size: 9\n",
    "ctrace/viz/maps.py": "from ctrace.viz.colours import RED\n\ndraw = RED\n",
    "ctrace/viz/curves.py": "curve = 3\n",
    "ctrace/data/models/a.bin": "1",
    "ctrace/data/tables/a.csv": "1",
    "constraints.txt": "a==1\n",
}
NOTEBOOKS = {
    "draws": "from ctrace import viz\nprint(viz.draw)",
    "solves": "import ctrace\nprint(ctrace.solve())",
    "looks": "from ctrace import see, viz\nprint(see, viz.curve)",
    "reads": "from importlib.resources import files\n"
    "print((files('ctrace') / 'data/tables/a.csv').read_text())",
}


@pytest.fixture
def small_tree(tmp_path):
    """A package and four notebooks."""
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "notebooks").mkdir()
    for name, code in NOTEBOOKS.items():
        nbformat.write(run_of(count=None, source=code), tmp_path / "notebooks" / f"{name}.ipynb")
    return tmp_path


def made_of(root: Path) -> dict[str, dict[str, str]]:
    package = depends.Package(root)
    paths = sorted((root / "notebooks").glob("*.ipynb"))
    return {path.stem: fresh_cache.made_of(path, package) for path in paths}


def changed_by(root: Path, name: str, text: str) -> set[str]:
    """Notebooks that a new text of a file makes run again."""
    before = made_of(root)
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(text)
    return {name for name, parts in made_of(root).items() if parts != before[name]}


@pytest.mark.parametrize(
    "changed, again",
    [
        ("ctrace/viz/colours.py", "draws"),  # a page that draws nothing with it does not run again
        ("ctrace/viz/maps.py", "draws"),
        ("ctrace/viz/curves.py", "looks"),
        ("ctrace/cut/graph.py", "solves"),  # imported inside a function of what is used
        ("ctrace/look/map.py", "looks"),
        ("ctrace/data/models/a.bin", "looks"),  # data belongs to the module that names its folder
        ("ctrace/data/models/b.bin", "looks"),
        ("ctrace/data/tables/a.csv", "reads"),  # or to the notebook that does
        ("ctrace/viz/book.mplstyle", "draws"),
        ("ctrace/data/other/a.bin", "draws solves looks reads"),
        ("constraints.txt", "draws solves looks reads"),
        ("ctrace/cut/new.py", ""),
        ("ctrace/__pycache__/a.pyc", ""),
        ("README.md", ""),
    ],
)
def test_what_runs_on_a_changed_file_runs_again_and_nothing_else(small_tree, changed, again):
    text = PACKAGE.get(changed, "") + "changed = 1\n"
    assert changed_by(small_tree, changed, text) == set(again.split())


ROOT_INIT, VIZ_INIT = PACKAGE["ctrace/__init__.py"], PACKAGE["ctrace/viz/__init__.py"]


@pytest.mark.parametrize(
    "name, text, again",
    [
        ("ctrace/__init__.py", ROOT_INIT.replace("cut.solve", "cut.graph"), "solves"),
        ("ctrace/viz/__init__.py", VIZ_INIT.replace("viz.maps", "viz.colours"), "draws"),
        ("ctrace/viz/__init__.py", VIZ_INIT + "print('hello')\n", "draws looks solves"),
        ("ctrace/cut/graph.py", "import os\n\nos.environ['A'] = 'b'\n", "draws looks solves"),
    ],
)
def test_other_way_to_a_name_counts_and_so_does_a_module_that_acts(small_tree, name, text, again):
    assert changed_by(small_tree, name, text) == set(again.split())


@pytest.mark.parametrize(
    "code, modules",
    [
        ("from ctrace.viz import *", "viz viz.colours viz.curves viz.maps"),
        ("from ctrace import viz\nprint(viz)", "viz viz.colours viz.curves viz.maps"),
        ("from ctrace.viz import maps\nmaps.draw", "viz.colours viz.maps"),
        ("import ctrace.viz.curves as c", "viz.curves"),
        ("import ctrace.viz.curves", "viz.curves"),
        ("script = 'from ctrace import solve'", "cut.graph cut.solve"),
        ("run('-m', 'ctrace.viz')", "viz viz.colours viz.curves viz.maps"),
        ("import torch", ""),
    ],
)
def test_modules_that_code_runs_on(small_tree, code, modules):
    found = depends.Package(small_tree).closure(depends.Source(code))
    assert {name.removeprefix("ctrace.") for name in found} == set(modules.split())


def test_notebook_that_is_not_plain_python_runs_on_everything(small_tree):
    path = small_tree / "notebooks" / "draws.ipynb"
    nbformat.write(run_of(source="%run other.py"), path)
    everything = [path for path in (small_tree / "ctrace").rglob("*.*") if path.is_file()]
    assert sorted(depends.Package(small_tree).files(path)) == sorted(everything)


def test_every_notebook_runs_again_when_torch_changes(small_tree, monkeypatch):
    before = made_of(small_tree)
    monkeypatch.setattr(fresh_cache, "installed", lambda name: "0.0")
    assert all(parts != before[name] for name, parts in made_of(small_tree).items())


def test_only_pages_that_ask_for_a_model_run_again_when_another_is_named(small_tree, monkeypatch):
    for name in fresh_cache.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    asks = "from ctrace.world.models import chosen_model\nchosen_model()\n"
    nbformat.write(run_of(count=None, source=asks), small_tree / "notebooks" / "asks.ipynb")
    before, seen = made_of(small_tree), []
    for name, value in zip(fresh_cache.SETTINGS, ("resnet50", "folder")):
        monkeypatch.setenv(name, value)
        after = made_of(small_tree)
        seen.append(after["asks"])
        assert {n for n, parts in after.items() if parts != before[n]} == {"asks"}
    assert seen[0] != seen[1] and fresh_cache.SETTINGS[0] == MODEL_VARIABLE
    assert fresh_cache.SETTINGS[1] == WEIGHTS_VARIABLE and fresh_cache.ASKS == chosen_model.__name__


def append_to_colours(root: Path) -> None:
    """A change that draws differently and still names the style sheet."""
    with open(root / "ctrace" / "viz" / "colours.py", "a") as file:
        file.write("RED = 'crimson'\n")


def put_in_cache(root: Path, name: str, **data) -> None:
    path = root / "notebooks" / f"{name}.ipynb"
    bundle = CacheBundleIn(nbformat.read(path, 4), str(path), data=data)
    cache = get_cache(str(root / fresh_cache.CACHE))
    cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def test_only_runs_that_are_out_of_date_are_dropped(small_tree):
    assert fresh_cache.refresh(small_tree) == {}
    nbformat.write(run_of(source="print(0)"), small_tree / "notebooks" / "gone.ipynb")
    for name, parts in made_of(small_tree).items():
        put_in_cache(small_tree, name, made_of=parts)
    assert fresh_cache.refresh(small_tree) == {}
    put_in_cache(small_tree, "solves")
    append_to_colours(small_tree)
    (small_tree / "notebooks" / "gone.ipynb").unlink()
    assert fresh_cache.refresh(small_tree) == {
        "draws": ["ctrace/viz/colours.py"],
        "solves": ["a run of unknown origin"],
        "gone": ["the notebook"],
    }
    package, folder = depends.Package(small_tree), small_tree / "notebooks"
    assert fresh_cache.has_run(folder / "looks.ipynb", package)
    assert not fresh_cache.has_run(folder / "draws.ipynb", package)
    nbformat.write(run_of(source="print(1)"), folder / "looks.ipynb")  # other cells have not run
    assert not fresh_cache.has_run(folder / "looks.ipynb", package)


def test_no_notebook_is_left_to_run_when_all_have_passed(small_tree, capsys):
    fresh_cache.main(small_tree)
    names = [f"notebooks/{name}.ipynb" for name in sorted(made_of(small_tree))]
    assert capsys.readouterr().out.split() == names
    for name, parts in made_of(small_tree).items():
        put_in_cache(small_tree, name, made_of=parts)
    fresh_cache.main(small_tree)
    assert capsys.readouterr() == ("", "4 notebooks: all passed before, nothing has changed\n")
    append_to_colours(small_tree)
    fresh_cache.main(small_tree)
    left, why = capsys.readouterr()
    assert left == "notebooks/draws.ipynb\n" and "ctrace/viz/colours.py changed" in why


def test_a_run_on_the_cpu_is_not_one_on_a_gpu(small_tree, monkeypatch):
    for name, parts in made_of(small_tree).items():
        put_in_cache(small_tree, name, made_of=parts)
    monkeypatch.setattr(fresh_cache, "has_gpu", lambda: True)
    dropped = fresh_cache.refresh(small_tree)
    assert list(dropped.values()) == 4 * [["device"]]


def test_only_notebooks_with_a_change_run_again_and_the_others_are_named(small_tree):
    shutil.copy(ROOT / "conftest.py", small_tree)
    assert "4 passed" in nbmake(small_tree, "--only-changed").stdout
    append_to_colours(small_tree)
    said = nbmake(small_tree, "--only-changed").stdout
    assert "1 passed, 3 skipped" in said and "passed before, nothing changed since" in said
    run = check_notebooks.cached_run(
        small_tree / "notebooks" / "draws.ipynb", small_tree / fresh_cache.CACHE
    )
    assert run.cells[1].outputs[0].text == "crimson\n"


# ---- a GPU is used or asked for ----


def test_make_gpu_fails_in_words_where_there_is_none():
    stamp = "ready"  # the environment is this one: nothing to install
    run = subprocess.run(
        ["make", "-o", stamp, "gpu", f"STAMP={stamp}", f"BIN={Path(sys.executable).parent}"],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0 and "sees no CUDA device, so nothing was run" in run.stderr
    assert "pytest" not in run.stdout and "jupyter-book" not in run.stdout


# ---- the browser's last line ----


def test_verdict_counts_a_page_or_gallery_once_whatever_is_wrong_with_it():
    page = [f"a.html ({scheme}): answer 404: http://x" for scheme in ("light", "dark")]
    gallery = ["a.html (dark): gallery 2, tab 1: its picture is not loaded"]
    assert browser_check.verdict(9, [], []) == "browser: 9 passed, 0 failed"
    assert browser_check.verdict(9, page, []) == "browser: 8 passed, 1 failed"
    assert browser_check.verdict(9, page + gallery, []) == "browser: 7 passed, 2 failed"
    assert browser_check.verdict(9, gallery, ["no gallery"]) == "browser: 8 passed, 2 failed"


# ---- the address ----


def test_every_mention_of_the_repository_is_the_one_in_pyproject():
    assert address.wrong_mentions(ROOT) == []


@pytest.mark.parametrize(
    "line",
    [
        "https://github.com/someone-else/ctrace",
        "git+https://github.com/someone-else/ctrace",
        "https://colab.research.google.com/github/someone-else/ctrace/blob/main/x.ipynb",
        "https://someone-else.github.io/ctrace/",
    ],
)
def test_other_address_is_noticed_and_rewritten(tmp_path, line):
    (tmp_path / "pyproject.toml").write_text(
        '[project.urls]\nRepository = "https://github.com/own-er/ctrace"\n'
    )
    (tmp_path / "README.md").write_text(f"See {line}\n")
    assert address.wrong_mentions(tmp_path) == [f"README.md:1: See {line}"]
    assert address.rewritten(line, "own-er") == line.replace("someone-else", "own-er")


# ---- packaging and pages ----


def test_every_module_stands_in_the_api_once_and_nothing_else_does():
    pages = "".join(page.read_text() for page in (ROOT / "book/api").glob("*.md"))
    listed = re.findall(r"automodule:: (\S+)", pages)
    paths = house.modules_of(ROOT / "ctrace")
    modules = {name for name, path in paths.items() if not path.name.startswith("__")}
    assert sorted(listed) == sorted(modules)


def test_pins_leave_out_torch_and_cover_the_book():
    pins = dict(
        re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    )
    assert {
        "jupyter-book",
        "myst-nb",
        "sphinx",
        "nbmake",
        "jupytext",
        "numpy",
        "timm",
        "playwright",
        "ruff",
    } <= pins.keys()
    assert not [name for name in pins if freeze_constraints.FOLLOWS_TORCH.match(name)]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_names_of_ctrace_in_prose_exist(path):
    for name in set(re.findall(r"\bctrace(?:\.\w+)+", path.read_text(encoding="utf-8"))):
        pkgutil.resolve_name(name)


def test_wheel_carries_the_data_files_at_any_depth(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "ctrace" / "data" / "deep" / "deeper").mkdir(parents=True)
    planted = [
        "ctrace/data/a.safetensors",
        "ctrace/data/deep/b.json",
        "ctrace/data/deep/deeper/c.png",
    ]
    for name in ["ctrace/__init__.py", *planted]:
        (tmp_path / name).touch()
    build = "from setuptools.build_meta import build_wheel; build_wheel('out')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    wheel = next((tmp_path / "out").glob("ctrace-*.whl"))
    assert set(planted) <= set(zipfile.ZipFile(wheel).namelist())


def test_what_is_no_module_stands_under_data():
    listed = subprocess.check_output(["git", "ls-files", "ctrace"], cwd=ROOT, text=True).split()
    assert listed and not [
        name for name in listed if not name.endswith(".py") and not name.startswith("ctrace/data/")
    ]


def test_readme_example_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("['")


# ---- house ----


@pytest.mark.parametrize(
    "text, lines",
    [
        ('"""A docstring\n\nof three lines."""\n', 0),
        ("# a comment\n\n   \nx = 1  # beside code\n", 1),
        ("@decorator\ndef f(x):\n    'What it does.'\n    return x\n", 3),
        ('async def f():\n    """One line."""\n', 1),
        ('class A:\n    """Two\n    lines."""\n\n    x: int = 1\n', 2),
        ('text = """\n# not a comment\n\nnor this\n"""\n', 4),
        ("f(\n    1,\n    # why\n    2,\n)\n", 4),
        ('def f():\n    x = 1\n    """A string that documents nothing."""\n', 3),
    ],
)
def test_lines_of_code_are_those_a_reader_would_count(text, lines):
    assert house.code_lines(text) == lines


@pytest.mark.parametrize(
    "text, names",
    [
        ("import ctrace.cut.graph, torch", {"ctrace.cut.graph"}),
        ("from ctrace.cut import graph, kway as k", {"ctrace.cut.graph", "ctrace.cut.kway"}),
        ("from .graph import Graph", {"ctrace.cut.graph.Graph"}),
        ("from ..world import photos", {"ctrace.world.photos"}),
        ("from .. import check", {"ctrace.check"}),
        ("def f():\n    from ctrace.stats import *", {"ctrace.stats.*"}),
        ("from ctraces import x", set()),
    ],
)
def test_imports_are_found_wherever_they_stand_and_relative_ones_made_absolute(text, names):
    assert house.imported(text, "ctrace.cut.ncut") == names


def test_relative_import_of_a_package_starts_in_the_package_itself():
    assert house.imported("from .graph import x", "ctrace.cut", is_package=True) == {
        "ctrace.cut.graph.x"
    }


def small_house(folder: Path, **files: str) -> house.House:
    for name, text in {"__init__": "", "cut/__init__": "", "look/__init__": "", **files}.items():
        path = folder / "ctrace" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return house.survey(folder / "ctrace")


DOWN = "from ctrace.check import checked\n"


def test_sound_house_is_counted_by_room(tmp_path):
    files = {
        "check": "def checked():\n    pass\n",
        "cut/a": DOWN,
        "look/b": DOWN + "from ctrace.cut.a import x\n",
    }
    found = small_house(tmp_path, **files)
    assert (found.code["cut"], found.code["look"], found.files["look"]) == (1, 2, 2)
    assert found.functions.total() == 1 and found.faults == []
    assert set(found.arrows) == {("cut", "check"), ("look", "check"), ("look", "cut")}
    assert "3 arrows between rooms, 0 run up" in house.plan(found)


@pytest.mark.parametrize(
    "files, fault",
    [
        (
            {"cut/a": "from ctrace.look.b import x", "look/b": ""},
            "cut -> look: this import runs up",
        ),
        ({"cut/a": "from ctrace import kway_ncut"}, "cut -> ctrace: this import runs up"),
        ({"attic": ""}, "ctrace.attic: its room has no place"),
        ({"cut/a": "\n" * 301}, "ctrace.cut.a: 301 lines, 300 at most"),
        ({"cut/a": "from .b import x", "cut/b": "def f():\n    from .a import y"}, "in a circle"),
        ({"cut/a": "x = 1\n" * 101}, "101 lines of code, 100 at most"),
        ({f"cut/a{i}": "" for i in range(8)}, "11 files, 10 at most"),
    ],
)
def test_every_fault_of_a_house_is_reported(tmp_path, monkeypatch, files, fault):
    monkeypatch.setattr(house, "MOST_CODE", 100)
    monkeypatch.setattr(house, "MOST_FILES", 10)
    faults = small_house(tmp_path, **files).faults
    assert len(faults) == 1 and fault in faults[0]


# ---- colab_check ----


def test_only_torch_and_what_follows_its_build_are_borrowed(tmp_path):
    lender, borrower = tmp_path / "lender", tmp_path / "borrower"
    borrower.mkdir()
    for name in ("torch", "nvidia-cublas", "nvidia-cudnn", "scikit-learn", "ctrace"):
        top = name.split("-")[0]
        folder = lender / f"{name.replace('-', '_')}-1.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: 1\n")
        (folder / "RECORD").write_text(f"{top}/x.py,,\n{folder.name}/METADATA,,\n../bin/x,,\n")
        (lender / top).mkdir(exist_ok=True)
        (lender / top / "x.py").touch()
    assert colab_check.borrow_torch(lender, borrower) == ["nvidia-cublas", "nvidia-cudnn", "torch"]
    assert {path.name for path in borrower.iterdir()} == {
        "torch",
        "nvidia",
        "torch-1.dist-info",
        "nvidia_cublas-1.dist-info",
        "nvidia_cudnn-1.dist-info",
    }


def test_notebook_needs_its_imports_those_of_its_modules_and_its_photographs(small_tree):
    (small_tree / "ctrace" / "cut" / "graph.py").write_text(
        "import os.path\n\n\ndef W():\n    from scipy import linalg, stats\n\n"
        "    try:\n        import pyarrow\n    except ImportError:\n        pass\n"
    )
    path = small_tree / "notebooks" / "solves.ipynb"
    nbformat.write(run_of(source="import ctrace, numpy as np\nctrace.solve('coffee')"), path)
    assert colab_check.needs_of(path, depends.Package(small_tree)) == {
        "imports": [
            "from scipy import linalg",
            "from scipy import stats",
            "import ctrace",
            "import numpy",
            "import os.path",
        ],
        "words": ["coffee"],
    }


def test_what_is_looked_for_in_the_new_environment_is_named_when_it_is_missing(tmp_path):
    (tmp_path / "ctrace" / "world").mkdir(parents=True)
    (tmp_path / "ctrace" / "world" / "photos.py").write_text(
        "PHOTOS = {'cup', 'tower'}\n\n\ndef load_photo(name):\n"
        "    if name == 'tower':\n        raise ImportError('it lies inside scikit-learn')\n"
    )
    needs = {
        "03_x": {"imports": ["import json", "import no_such_package"], "words": ["cup", "tower"]}
    }
    command = [sys.executable, "-c", colab_check.LOOK]
    found = subprocess.run(
        command,
        cwd=tmp_path,
        input=json.dumps(needs),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert found.returncode == 1 and found.stderr.splitlines() == [
        "03_x: import no_such_package: ModuleNotFoundError: No module named 'no_such_package'",
        "03_x: load_photo('tower'): ImportError: it lies inside scikit-learn",
    ]
