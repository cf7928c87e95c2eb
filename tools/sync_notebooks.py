"""notebooks/NN_name.py (percent, the source) -> notebooks/NN_name.ipynb (generated, no outputs).
One direction.

python tools/sync_notebooks.py           write every .ipynb
python tools/sync_notebooks.py --check   write nothing, fail when one is out of date
"""

import argparse
import hashlib
import sys
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parents[1]
METADATA = {
    "accelerator": "GPU",  # what Colab gives to whoever opens the page
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def render(source: Path) -> str:
    """The text of the .ipynb that belongs to a percent script; the same text every time."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        cell.id = _cell_id(cell, seen)
        cell.metadata.pop("lines_to_next_cell", None)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def _cell_id(cell, seen: dict[str, int]) -> str:
    # From the content, not at random and not by position: a new cell must not rewrite the ids of
    # the others.
    name = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:10]
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}-{seen[name]}"


def out_of_date(folder: Path) -> list[str]:
    """One sentence for every notebook that is not what its script renders to."""
    scripts = {path.stem: path for path in folder.glob("*.py")}
    pages = {path.stem: path for path in folder.glob("*.ipynb")}
    problems = [
        f"{stem}.py has no .ipynb: run `make sync`"
        for stem in sorted(scripts.keys() - pages.keys())
    ]
    problems += [
        f"{stem}.ipynb has no .py: the percent script is the source"
        for stem in sorted(pages.keys() - scripts.keys())
    ]
    for stem in sorted(scripts.keys() & pages.keys()):
        if pages[stem].read_text(encoding="utf-8") != render(scripts[stem]):
            problems.append(
                f"{stem}.ipynb is not what {stem}.py renders to: edit the .py, then run `make sync`"
            )
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    folder = ROOT / "notebooks"
    if parser.parse_args().check:
        problems = out_of_date(folder)
        sys.exit("\n".join(problems) or None)
    for source in sorted(folder.glob("*.py")):
        source.with_suffix(".ipynb").write_text(render(source), encoding="utf-8")
        print(f"{source.stem}.ipynb")


if __name__ == "__main__":
    main()
