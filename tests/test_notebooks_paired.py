"""The notebooks as files: generated from their scripts, listed in the book, openable in Colab. None
of them is run here.
"""

import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from tools import sync_notebooks
from tools.check_notebooks import pages_in_toc, shape_problems, toc_problems

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
SCRIPT = """\
# %% [markdown]
# # Title

# %% tags=["remove-cell"]
value = 1

# %%
print(value)
"""


def every_notebook(test):
    return pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)(test)


def cells(path: Path) -> list:
    return nbformat.read(path, 4).cells


def test_every_notebook_is_what_its_script_renders_to():
    assert sync_notebooks.out_of_date(ROOT / "notebooks") == []


def test_book_and_folder_hold_the_same_notebooks():
    assert toc_problems(ROOT) == []


def entries(text: str, folder: Path, pattern: str) -> list[tuple[str, str]]:
    """Pages that a list of chapters names: file, and the name it goes by there."""
    found = re.findall(pattern, text, re.M)
    return [((folder / file).resolve().relative_to(ROOT).as_posix(), name) for name, file in found]


def test_sidebar_introduction_and_readme_agree_on_names_and_order():
    listed = pages_in_toc(yaml.safe_load((ROOT / "_toc.yml").read_text()))[1:]
    chapters = [page for page in listed if page.startswith("notebooks/") or (page in SHORT)]
    files = [
        f"{page}.ipynb" if page.startswith("notebooks/") else f"{page}.md" for page in chapters
    ]
    names = [title_of(ROOT / file) for file in files]
    intro = (ROOT / "book/intro.md").read_text()
    assert entries(intro, ROOT / "book", r"^\[([^]]+)\]\(([^)]+)\)$") == list(zip(files, names))
    notebooks = [pair for pair in zip(files, names) if pair[0].endswith(".ipynb")]
    readme = (ROOT / "README.md").read_text()
    assert entries(readme, ROOT, r"^\|[^|]*\| \[([^]]+)\]\(([^)]+)\) \|") == notebooks


SHORT = [f"book/{name}" for name in ("segment", "trace", "look", "relate", "trust")]


def title_of(path: Path) -> str:
    """What the sidebar shows of a page, up to a colon."""
    text = cells(path)[0].source if path.suffix == ".ipynb" else path.read_text()
    return re.search(r"(?m)^# ([^:\n]+)", text).group(1)


@every_notebook
def test_notebook_cannot_pass_without_running(path):
    assert shape_problems(path) == []


@every_notebook
def test_notebook_carries_no_outputs(path):
    code = [cell for cell in cells(path) if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)


@every_notebook
def test_first_cell_is_the_title_and_no_other_title_follows(path):
    titles = [
        cell.source
        for cell in cells(path)
        if cell.cell_type == "markdown" and re.search(r"(?m)^# \S", cell.source)
    ]
    assert cells(path)[0].cell_type == "markdown"
    assert titles == [cells(path)[0].source]


@every_notebook
def test_badge_opens_this_very_notebook_in_colab(path):
    badge = cells(path)[1]
    place = ADDRESS.removeprefix("https://").replace("github.com", "github")
    target = f"https://colab.research.google.com/{place}"
    assert f"({target}/blob/main/notebooks/{path.name})" in badge.source
    assert badge.metadata.tags == ["remove-cell"]


@every_notebook
def test_install_cell_comes_before_any_other_code_and_names_the_repository(path):
    install = next(cell for cell in cells(path) if cell.cell_type == "code")
    assert 'find_spec("ctrace") is None' in install.source and f'"git+{ADDRESS}"' in install.source
    assert install.metadata.tags == ["remove-cell"]


@every_notebook
def test_colab_gives_the_notebook_a_gpu(path):
    assert nbformat.read(path, 4).metadata["accelerator"] == "GPU"


@every_notebook
def test_page_chooses_its_device_once_and_works_on_it(path):
    code = [cell.source for cell in cells(path) if cell.cell_type == "code"]
    assert device_problems(code) == []


@every_notebook
def test_no_cell_is_longer_than_thirty_lines(path):
    long = {
        number: cell.source.splitlines()[0]
        for number, cell in enumerate(cells(path), 1)
        if cell.cell_type == "code" and len(cell.source.splitlines()) > 30
    }
    assert long == {}


SETUP = 'device = "cuda" if torch.cuda.is_available() else "cpu"'
TO_DEVICE = re.compile(r"device=device\b|\.to\(\s*device\b")
ASSIGNED = re.compile(r"(?m)^\s*device = (.*)")
FIXED = re.compile(r"""device\s*=\s*["']cpu|torch\.device\(\s*["']cpu|\.to\(\s*["']cpu""")


def device_problems(code: list[str]) -> list[str]:
    """What keeps the cells of a page from running where there is a GPU. Not asked: programs that
    a page writes for another process, and lines that say why they stay on the CPU.
    """
    lines = [re.sub(r'(?s)""".*?"""', '""', cell) for cell in code]
    text = "\n".join(lines)
    wrong = [] if ASSIGNED.findall(text) == [SETUP.removeprefix("device = ")] else ["no one setup"]
    wrong += [] if TO_DEVICE.search(text.replace(SETUP, "")) else ["nothing is moved"]
    told = [line for line in text.splitlines() if "  # on the CPU, " not in line]
    return wrong + [f"fixed: {found}" for found in FIXED.findall("\n".join(told))]


# ---- the checks themselves ----


@pytest.mark.parametrize(
    "code, wrong",
    [
        (SETUP + "\nmodel.to(device)", []),
        (SETUP + "\nload_model('x', device=device)", []),
        ("model.to(device)", ["no one setup"]),
        (SETUP + "\nmodel.to(device)\ndevice = 'cuda'", ["no one setup"]),
        (SETUP + "\nprint(device)", ["nothing is moved"]),
        (SETUP + "\nmodel.to(device), load_model('x', device='cpu')", ["fixed: device='cpu"]),
        (SETUP + "\nmodel.to(device), x.to('cpu')", ["fixed: .to('cpu"]),
        (SETUP + "\nmodel.to(device), x.to('cpu')  # on the CPU, for a plot", []),
        (SETUP + '\nmodel.to(device)\ncode = """load_model(device=\'cpu\')"""', []),
    ],
)
def test_page_that_stays_on_the_cpu_is_noticed(code, wrong):
    assert device_problems([code]) == wrong


@pytest.fixture
def pair(tmp_path):
    (tmp_path / "01_x.py").write_text(SCRIPT)
    (tmp_path / "01_x.ipynb").write_text(sync_notebooks.render(tmp_path / "01_x.py"))
    return tmp_path


def test_rendering_is_the_same_every_time_and_keeps_the_tags(pair):
    assert sync_notebooks.out_of_date(pair) == []
    notebook = nbformat.read(pair / "01_x.ipynb", 4)
    assert [cell.source for cell in notebook.cells] == ["# Title", "value = 1", "print(value)"]
    assert notebook.cells[1].metadata.tags == ["remove-cell"]
    assert notebook.metadata["accelerator"] == "GPU"


def test_new_cell_leaves_the_ids_of_the_others(pair):
    before = [cell.id for cell in nbformat.read(pair / "01_x.ipynb", 4).cells]
    (pair / "01_x.py").write_text(SCRIPT.replace("# %%\nprint", "# %%\nother = 2\n\n# %%\nprint"))
    after = [cell.id for cell in nbformat.reads(sync_notebooks.render(pair / "01_x.py"), 4).cells]
    assert [name for name in after if name in before] == before and len(after) == 4


def test_equal_cells_get_different_ids(pair):
    (pair / "01_x.py").write_text("# %%\n1\n\n# %%\n1\n")
    ids = [cell.id for cell in nbformat.reads(sync_notebooks.render(pair / "01_x.py"), 4).cells]
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    "old, new",
    [("value = 1", "value = 2"), ("# # Title", "# # Other"), ("remove-cell", "hide-input")],
)
def test_edited_script_is_noticed(pair, old, new):
    (pair / "01_x.py").write_text(SCRIPT.replace(old, new))
    assert "run `make sync`" in sync_notebooks.out_of_date(pair)[0]


def test_outputs_in_a_notebook_are_noticed(pair):
    notebook = nbformat.read(pair / "01_x.ipynb", 4)
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    nbformat.write(notebook, pair / "01_x.ipynb")
    assert len(sync_notebooks.out_of_date(pair)) == 1


def test_half_a_pair_is_noticed(pair):
    (pair / "02_y.py").write_text(SCRIPT)
    (pair / "01_x.py").unlink()
    assert [problem.split(":")[0] for problem in sync_notebooks.out_of_date(pair)] == [
        "02_y.py has no .ipynb",
        "01_x.ipynb has no .py",
    ]
