"""Did every notebook run, without an error, and does the book show that run?

    python tools/check_notebooks.py            after the book was built
    python tools/check_notebooks.py --shape    only what can be seen without running anything

Three questions, each with its own function: is every notebook a page (and every page a notebook),
can a notebook opt out of running, and does the built page hold the output of the run in the cache.
"""

import argparse
import html
import re
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
# Each of these lets a notebook count as passed although a cell of it did not run.
EVASIVE_CELL_TAGS = {"skip-execution", "nbmake", "no-execute"}
EVASIVE_METADATA = {"execution", "mystnb", "file_format", "nbmake"}
HIDING_TAGS = {"remove-cell", "remove-output", "remove_cell", "remove_output"}
ESCAPE_CODE = re.compile(r"\x1b\[[0-9;]*m")


def pages_in_toc(node) -> list[str]:
    """Every `file:` and `root:` entry of _toc.yml, wherever it stands."""
    if isinstance(node, list):
        return [page for item in node for page in pages_in_toc(item)]
    if not isinstance(node, dict):
        return []
    own = [node[key] for key in ("root", "file") if key in node]
    return own + [page for value in node.values() for page in pages_in_toc(value)]


def toc_problems(root: Path) -> list[str]:
    listed = pages_in_toc(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8")))
    in_toc = {
        Path(page).with_suffix("").as_posix() if page.endswith(".ipynb") else page
        for page in listed
    }
    in_toc = {page for page in in_toc if page.startswith("notebooks/")}
    in_folder = {f"notebooks/{path.stem}" for path in (root / "notebooks").glob("*.ipynb")}
    problems = [
        f"{page}.ipynb is not in _toc.yml: the book would leave it out"
        for page in sorted(in_folder - in_toc)
    ]
    problems += [
        f"{page} is in _toc.yml but {page}.ipynb does not exist"
        for page in sorted(in_toc - in_folder)
    ]
    return problems if in_folder else [*problems, "notebooks/ holds no notebook"]


def shape_problems(path: Path) -> list[str]:
    """Marks in a notebook that would let it pass without running."""
    notebook = nbformat.read(path, 4)
    problems = [
        f"{path.name}: notebook metadata '{key}' can switch execution off; remove it"
        for key in sorted(EVASIVE_METADATA & set(notebook.metadata))
    ]
    for number, cell in enumerate(notebook.cells, 1):
        tags = set(cell.metadata.get("tags", ()))
        problems += [
            f"{path.name}: cell {number} has the tag '{tag}', so it would not run; remove the tag"
            for tag in sorted(tags & EVASIVE_CELL_TAGS)
        ]
    if not code_cells(notebook):
        problems.append(f"{path.name}: no code cell, so it claims nothing that could fail")
    return problems


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def cached_run(path: Path, cache_dir: Path):
    """The notebook at this path with the outputs of its last passing run, or None when its cells
    have not run.
    """
    from jupyter_cache import get_cache

    try:
        return get_cache(str(cache_dir)).merge_match_into_file(str(path))[1]
    except KeyError:
        return None


def run_problems(name: str, run) -> list[str]:
    """What is wrong with an executed notebook."""
    if run is None:
        return [
            f"{name}: no passing run of its present cells in the cache; it failed or did not run"
        ]
    problems = []
    for number, cell in enumerate(run.cells, 1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        errors = [output for output in cell.outputs if output.output_type == "error"]
        expected = "raises-exception" in cell.metadata.get("tags", ())
        if cell.execution_count is None:
            problems.append(f"{name}: cell {number} did not run")
        if errors and not expected:
            problems.append(f"{name}: cell {number} ended in {errors[0].ename}: {errors[0].evalue}")
        if expected and not errors:
            problems.append(f"{name}: cell {number} is tagged raises-exception but raised nothing")
    return problems


def page_problems(name: str, run, page: Path) -> list[str]:
    """Printed lines of the run that the built page does not show."""
    if not page.exists():
        return [f"{name}: {page.name} was not built"]
    text = _visible(page.read_text(encoding="utf-8"))
    missing = [line for line in _printed_lines(run) if _squeezed(line) not in text]
    return [
        f"{name}: the page does not show what its run printed: '{line}'" for line in missing[:3]
    ]


def _printed_lines(run) -> list[str]:
    lines = []
    for cell in code_cells(run):
        if HIDING_TAGS & set(cell.metadata.get("tags", ())):
            continue
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stdout":
                lines += [
                    line for line in ESCAPE_CODE.sub("", output.text).splitlines() if line.strip()
                ]
    return lines


def _visible(page: str) -> str:
    return _squeezed(html.unescape(re.sub(r"<[^>]*>", "", page)))


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def book_problems(root: Path) -> list[str]:
    problems = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        run = cached_run(path, root / "_build" / ".jupyter_cache")
        problems += run_problems(path.name, run)
        if run is not None:
            page = root / "_build" / "html" / "notebooks" / f"{path.stem}.html"
            problems += page_problems(path.name, run, page)
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", action="store_true", help="do not look for runs and built pages")
    only_shape = parser.parse_args().shape
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    problems = toc_problems(ROOT) + [
        problem for path in notebooks for problem in shape_problems(path)
    ]
    problems += [] if only_shape else book_problems(ROOT)
    if problems:
        sys.exit("\n".join(problems))
    found = "is fit to run" if only_shape else "ran, and its page shows that run"
    print(f"{len(notebooks)} notebooks: every one {found}")


if __name__ == "__main__":
    main()
