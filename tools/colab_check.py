"""Run the notebooks the way Colab does: the .ipynb alone, in an empty folder, in an environment
without `ctrace`.

    python -m tools.colab_check                    a new environment, every notebook from end to end
    python -m tools.colab_check --borrow           the same, with the torch of this environment
    python -m tools.colab_check --borrow --quick   of most notebooks only what asks for a package

The install cell at the top of each notebook does its real work. Only its address is redirected: git
fetches the last commit of this checkout in place of the published repository, so what is tested is
what would be published.

What is borrowed is torch, torchvision and the packages that follow the torch build (CUDA, triton),
linked one by one: anything else that a notebook needs has to be asked for by `ctrace` itself. The
quick form runs the notebooks in `WHOLE` from end to end. For every notebook it runs each import in
its cells and in the modules that it depends on, inside functions too, and opens each photograph
that it names; that needs what `make test` installs here, and about a minute.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from importlib.metadata import distributions
from pathlib import Path

from tools.freeze_constraints import FOLLOWS_TORCH, canonical

HERE = Path(__file__).resolve().parents[1]
WHOLE = ("05_gradcam",)
INSTALL = """
import json, sys
from pathlib import Path

for path in sorted(Path(".").glob("*.ipynb")):
    cells = json.loads(path.read_text())["cells"]
    exec("".join(next(cell["source"] for cell in cells if cell["cell_type"] == "code")))

import ctrace
if not Path(ctrace.__file__).is_relative_to(sys.prefix):
    sys.exit(f"ctrace came from {ctrace.__file__}, not from the install cell")
"""
LOOK = """
import json, sys
from ctrace.world.photos import PHOTOS, load_photo

problems, tried = [], {}
for name, needs in json.load(sys.stdin).items():
    calls = [(statement, exec, statement) for statement in needs["imports"]]
    calls += [(f"load_photo({w!r})", load_photo, w) for w in needs["words"] if w in PHOTOS]
    for said, call, argument in calls:
        if said not in tried:
            try:
                tried[said] = None
                call(argument)
            except Exception as error:
                tried[said] = f"{type(error).__name__}: {error}"
        problems += [f"{name}: {said}: {tried[said]}"] * bool(tried[said])
    print(f"{name}: {len(calls)} imports and photographs", flush=True)
sys.exit("\\n".join(problems) or None)
"""
RUN = """
import sys, time
import nbclient, nbformat

for name in sys.argv[1:]:
    started = time.time()
    notebook = nbformat.read(name, 4)
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3").execute()
    print(f"{name}: {time.time() - started:.0f} s", flush=True)
"""


def repository_url() -> str:
    return tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def redirected_environment(folder: Path) -> dict[str, str]:
    """Environment variables under which git takes this checkout for the published repository."""
    # each of these could let the checkout's ctrace through
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    settings = {f"url.file://{HERE}.insteadOf": repository_url(), "safe.directory": "*"}
    environment["GIT_CONFIG_COUNT"] = str(len(settings))
    for number, (key, value) in enumerate(settings.items()):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return environment | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{environment['PATH']}",
        "JUPYTER_PREFER_ENV_PATH": "1",
    }


def make_environment(folder: Path, borrow: bool, environment: dict[str, str]) -> Path:
    """A new virtual environment with what Colab has and `ctrace` is not part of. Returns its
    python.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    if borrow:
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = subprocess.check_output([python, "-c", where], text=True, env=environment).strip()
        borrow_torch(Path(sysconfig.get_path("purelib")), Path(site))
    command = [python, "-m", "pip", "install", "-q", "nbclient", "ipykernel"]
    subprocess.check_call(command, env=environment)
    asked = [python, "-c", "import ctrace"]
    if not subprocess.run(asked, cwd=folder, capture_output=True, env=environment).returncode:
        sys.exit("ctrace is importable before the install cell has run: this would test nothing")
    return python


def borrow_torch(lender: Path, borrower: Path) -> list[str]:
    """Link torch and what follows its build from one folder of packages into another."""
    names = []
    for found in distributions(path=[str(lender)]):
        if FOLLOWS_TORCH.match(canonical(found.metadata["Name"])):
            names.append(canonical(found.metadata["Name"]))
            for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
                if not (borrower / top).exists():
                    (borrower / top).symlink_to(lender / top)
    if "torch" not in names:
        sys.exit(
            f"--borrow: there is no torch in {lender}. Run `make test` first, or leave it out."
        )
    return sorted(names)


def needs_of(notebook: Path, package) -> dict[str, list[str]]:
    """What a notebook asks of its environment: import statements, its own and those of the modules
    it runs on that lead out of `ctrace`, and every word that could name a photograph.
    """
    from tools.depends import read

    source = read(notebook)
    if source is None:
        sys.exit(f"{notebook.name}: not plain Python, so its imports cannot be listed")
    imports = imports_in(source.tree)
    for module in package.closure(source):
        imports |= {
            line for line in imports_in(package.sources[module].tree) if "ctrace" not in line
        }
    return {"imports": sorted(imports), "words": sorted(set(source.strings))}


def imports_in(tree) -> set[str]:
    """Absolute imports of a source, one name a line, without those inside `try`: they may fail."""
    tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try)]
    may_fail = {id(node) for each in tries for node in ast.walk(each)}
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in may_fail:
            lines |= {f"import {alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and id(node) not in may_fail:
            lines |= {f"from {node.module} import {alias.name}" for alias in node.names}
    return {line for line in lines if not line.startswith("from __future__")}


def run_notebooks(borrow: bool, quick: bool) -> None:
    notebooks = sorted((HERE / "notebooks").glob("*.ipynb"))
    if not notebooks:
        sys.exit("notebooks/ holds no notebook")
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "content"
        empty.mkdir()
        for path in notebooks:
            shutil.copy(path, empty)
        environment = redirected_environment(Path(folder) / "env")
        python = make_environment(Path(folder) / "env", borrow, environment)

        def step(code: str, *names: str, given: str | None = None) -> None:
            command = [python, "-c", code, *names]
            if subprocess.run(
                command, cwd=empty, env=environment, input=given, text=True
            ).returncode:
                sys.exit("a notebook does not run on its own")

        step(INSTALL)
        if quick:
            from tools.depends import Package

            package = Package(HERE)
            step(LOOK, given=json.dumps({path.stem: needs_of(path, package) for path in notebooks}))
        whole = [path.name for path in notebooks if not quick or path.stem in WHOLE]
        step(RUN, *whole)
    print(f"{len(notebooks)} notebooks {'have what they need' if quick else 'run'} on their own")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--borrow", action="store_true", help="link torch from this environment")
    parser.add_argument("--quick", action="store_true", help="run only the notebooks in WHOLE")
    arguments = parser.parse_args()
    run_notebooks(arguments.borrow, arguments.quick)
