"""Forget cached runs of notebooks that ran on something else than what is there now.

jupyter-cache compares the code of a notebook only. A figure drawn by an older `ctrace`, or by
another torch, would stay in the book. So every run that nbmake puts into the cache (conftest.py)
says what it was made of: the files of `ctrace` that the notebook depends on (tools/depends.py), the
pins, the interpreter, the torch build, whether there was a GPU and, on a page that asks for one,
the model that a reader has named. A run that does not say it, or says something else, goes.

    python -m tools.fresh_cache     prints the notebooks that are left to run; on stderr, why
"""

import hashlib
import os
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nbformat

from tools.depends import HERE, Package

CACHE = Path("_build") / ".jupyter_cache"
SETTINGS = ("CTRACE_MODEL", "CTRACE_WEIGHTS_DIR")  # what a reader asks a page to run with
ASKS = "chosen_model"  # and the call by which a page does


def made_of(notebook: Path, package: Package) -> dict[str, str]:
    """What a run of a notebook depends on beside its own cells: name -> version or hash."""
    files = [*package.files(notebook), package.root / "constraints.txt"]
    parts = {
        path.relative_to(package.root).as_posix(): hash_of(path) for path in files if path.exists()
    }
    parts["python"] = ".".join(map(str, sys.version_info[:2]))
    parts["device"] = "a GPU" if has_gpu() else "the CPU"
    if ASKS in notebook.read_text(encoding="utf-8"):
        parts |= {name: os.environ.get(name, "") for name in SETTINGS}
    return parts | {name: installed(name) for name in ("torch", "torchvision")}


@cache
def has_gpu() -> bool:
    import torch  # seconds: not for a reader of this file's other functions

    return torch.cuda.is_available()


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def changes(record, package: Package) -> list[str]:
    """Why a cached run is not what a run would be now; empty when nothing has changed."""
    notebook = package.root / "notebooks" / Path(record.uri).name
    then = record.data.get("made_of")
    if not notebook.exists():
        return ["the notebook"]
    if then is None:
        return ["a run of unknown origin"]
    now = made_of(notebook, package)
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


def refresh(root: Path = HERE) -> dict[str, list[str]]:
    """Drop the runs that are out of date. Returns the notebooks with what has changed for them."""
    from jupyter_cache import get_cache

    if not (root / CACHE).exists():
        return {}
    runs, package, dropped = get_cache(str(root / CACHE)), Package(root), {}
    for record in runs.list_cache_records():
        changed = changes(record, package)
        if changed:
            dropped[Path(record.uri).stem] = changed
            runs.remove_cache(record.pk)
    return dropped


def has_run(notebook: Path, package: Package) -> bool:
    """Whether the cache holds a passing run of a notebook's present cells on what is there now."""
    from jupyter_cache import get_cache

    if not (package.root / CACHE).exists():
        return False
    try:
        record = get_cache(str(package.root / CACHE)).match_cache_notebook(
            nbformat.read(notebook, 4)
        )
    except KeyError:
        return False
    return Path(record.uri).name == notebook.name and not changes(record, package)


def left_to_run(root: Path = HERE) -> list[Path]:
    """The notebooks whose present cells have no passing run on what is there now."""
    package, notebooks = Package(root), sorted((root / "notebooks").glob("*.ipynb"))
    return [notebook for notebook in notebooks if not has_run(notebook, package)]


def main(root: Path = HERE) -> None:
    for name, changed in sorted(refresh(root).items()):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        why = f"{', '.join(changed[:3])}{more} changed"
        print(f"{name} will run again: {why}", file=sys.stderr)
    left, count = left_to_run(root), len(list((root / "notebooks").glob("*.ipynb")))
    if not left:
        print(f"{count} notebooks: all passed before, nothing has changed", file=sys.stderr)
    for notebook in left:
        print(notebook.relative_to(root).as_posix())


if __name__ == "__main__":
    main()
