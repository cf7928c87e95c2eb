"""Each check is shown a fault of every kind that it is there to find, and something sound."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import (
    address,
    check_html,
    check_links,
    check_notebooks,
    freeze_constraints,
    fresh_cache,
    house,
)
from tools.browser_check import served

ROOT = Path(__file__).resolve().parents[1]


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
    with served(tmp_path) as base:
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
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn

    path, cache = tmp_path / "x.ipynb", tmp_path / "cache"
    nbformat.write(run_of(), path)
    get_cache(str(cache)).cache_notebook_bundle(
        CacheBundleIn(run_of(PRINTED), str(path)), check_validity=False
    )
    assert check_notebooks.cached_run(path, cache).cells[1].outputs == [PRINTED]
    nbformat.write(run_of(source="print(2)"), path)
    assert check_notebooks.cached_run(path, cache) is None


# ---- one run for tests and book ----


def nbmake(folder: Path) -> int:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--nbmake",
        "--nbmake-kernel=python3",
        "-p",
        "no:cacheprovider",
        ".",
    ]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode


def test_passing_run_reaches_the_cache_and_a_failing_one_does_not(tmp_path):
    shutil.copy(ROOT / "conftest.py", tmp_path)
    nbformat.write(run_of(count=None, source="print(40 + 2)"), tmp_path / "good.ipynb")
    assert nbmake(tmp_path) == 0
    nbformat.write(run_of(count=None, source="assert 1 == 2"), tmp_path / "bad.ipynb")
    assert nbmake(tmp_path) == 1
    cache = tmp_path / "_build" / ".jupyter_cache"
    assert (
        check_notebooks.cached_run(tmp_path / "good.ipynb", cache).cells[1].outputs[0].text
        == "42\n"
    )
    assert check_notebooks.cached_run(tmp_path / "bad.ipynb", cache) is None


@pytest.fixture
def small_tree(tmp_path):
    (tmp_path / "ctrace" / "data").mkdir(parents=True)
    (tmp_path / "ctrace" / "a.py").write_text("x = 1\n")
    (tmp_path / "ctrace" / "data" / "w.bin").write_bytes(b"1")
    (tmp_path / "constraints.txt").write_text("a==1\n")
    (tmp_path / "_build" / ".jupyter_cache").mkdir(parents=True)
    fresh_cache.refresh(tmp_path)
    (tmp_path / "_build" / ".jupyter_cache").mkdir(exist_ok=True)
    return tmp_path


def test_cache_survives_when_nothing_changed(small_tree):
    (small_tree / "ctrace" / "__pycache__").mkdir()
    (small_tree / "ctrace" / "__pycache__" / "a.pyc").write_bytes(b"x")
    assert not fresh_cache.refresh(small_tree)
    assert (small_tree / "_build" / ".jupyter_cache").exists()


@pytest.mark.parametrize(
    "name", ["ctrace/a.py", "ctrace/data/w.bin", "ctrace/new.py", "constraints.txt"]
)
def test_cache_is_forgotten_when_the_package_changes(small_tree, name):
    (small_tree / name).write_text("changed\n")
    assert fresh_cache.refresh(small_tree)
    assert not (small_tree / "_build" / ".jupyter_cache").exists()


def test_cache_is_forgotten_when_torch_changes(small_tree, monkeypatch):
    monkeypatch.setattr(fresh_cache, "installed", lambda name: "0.0")
    assert fresh_cache.refresh(small_tree)


def test_cache_of_unknown_origin_is_forgotten(small_tree):
    (small_tree / "_build" / ".package-hash").unlink()
    assert fresh_cache.refresh(small_tree)


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


# ---- packaging and README ----


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
        (
            {"cut/a": "x = 1\n" * 150, **{f"cut/a{i}": "x = 1\n" * 290 for i in range(16)}},
            "4790 lines of code",
        ),
        ({f"cut/a{i}": "" for i in range(48)}, "51 files, 50 at most"),
    ],
)
def test_every_fault_of_a_house_is_reported(tmp_path, files, fault):
    faults = small_house(tmp_path, **files).faults
    assert len(faults) == 1 and fault in faults[0]
