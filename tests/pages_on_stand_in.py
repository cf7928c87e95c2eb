"""Runs pages of the book on the stand-in device, cell by cell; prints a line for each page.

    python tests/pages_on_stand_in.py 02 09     "ok PAGE, operations", or "failed PAGE, cell: why"

Every page defines ``device`` in its setup cell by the line `SETUP`. Here that line names the
stand-in, so a tensor that a page leaves on the CPU meets one that it moved, and is refused, as on a
GPU. It takes minutes a page: `make stand-in` runs all of them.
"""

import argparse
import os
import re
import sys
import traceback
from pathlib import Path

import jupytext
import matplotlib
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from stand_in import Watch

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SETUP = 'device = "cuda" if torch.cuda.is_available() else "cpu"'
ON_TIME = re.compile(r"(?m)^assert (seconds|time\.time\(\) - started) < \d+$")  # it is slow here


def run(path: Path) -> str:
    """One line: what came of running a page."""
    shell, watch = InteractiveShell.instance(), Watch()
    shell.reset()
    for number, cell in enumerate(jupytext.read(path, fmt="py:percent").cells):
        if cell.cell_type != "code":
            continue
        code = ON_TIME.sub("", cell.source.replace(SETUP, 'device = "standin"'))
        with watch, capture_output():
            done = shell.run_cell(code, silent=True)
        error = done.error_before_exec or done.error_in_exec
        if error is not None:
            where = traceback.extract_tb(error.__traceback__)[-1]
            why = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            return f"failed {path.stem}, cell {number}: {' '.join(why.split())}"
    return f"ok {path.stem}, {watch.operations} operations on the device"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "pages", nargs="*", help="numbers such as 02 or 10b; all of them by default"
    )
    parser.add_argument("--folder", type=Path, default=NOTEBOOKS)
    given, lines = parser.parse_args(), []
    matplotlib.use("Agg")
    os.chdir(given.folder)
    for path in sorted(given.folder.glob("[0-9][0-9]*_*.py")):
        if not given.pages or path.name.partition("_")[0] in given.pages:
            lines.append(run(path))
            print(lines[-1], flush=True)
    sys.exit(not lines or any(line.startswith("failed") for line in lines))


if __name__ == "__main__":
    main()
