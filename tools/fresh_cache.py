"""Forget cached notebook runs when the code they ran on has changed.

jupyter-cache compares code cells only. A figure drawn by an older `ctrace`, or by another torch,
would stay in the book.
"""

import hashlib
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def package_hash(root: Path) -> str:
    """One hash over `ctrace/**`, the pins, the interpreter and the torch build."""
    files = [
        path
        for path in (root / "ctrace").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    digest = hashlib.sha256()
    for path in sorted([*files, root / "constraints.txt"]):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    digest.update(
        f"python {sys.version_info[:2]} torch {installed('torch')} {installed('torchvision')}".encode()
    )
    return digest.hexdigest()


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def refresh(root: Path) -> bool:
    """Delete the cache when the hash has moved. Returns whether it was deleted."""
    stamp, cache = root / "_build" / ".package-hash", root / "_build" / ".jupyter_cache"
    now = package_hash(root)
    stale = cache.exists() and (not stamp.exists() or stamp.read_text() != now)
    if stale:
        shutil.rmtree(cache)
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(now)
    return stale


if __name__ == "__main__":
    if refresh(ROOT):
        print("ctrace or its environment changed: every notebook will run again")
