"""The package as a house: how much code each room holds, and which rooms lean on which.

    python tools/house.py            the plan, as text
    python tools/house.py --check    the same, and exit 1 when the house has outgrown its bounds

A room is a folder of `ctrace`, or for the files at its root the root itself. A line of code is a
line that is not blank, not a comment and not part of a docstring. An arrow is an import from one
room into another; it runs up when the room it comes from stands before the other in `ORDER`, the
way the data flows.
"""

import argparse
import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ORDER = ("check", "stats", "aviary", "world", "cut", "look", "carrot", "trust", "published", "viz")
MOST_CODE, MOST_FILES, MOST_LINES = 4700, 50, 300


def code_lines(text: str) -> int:
    """Lines of a module that are neither blank, comment nor docstring.

    >>> code_lines('"A docstring."\\n# a comment\\n\\nx = 1\\n')
    1
    """
    documented = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            documented.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate((line.strip() for line in text.splitlines()), 1)
    return sum(bool(line) and line[0] != "#" and i not in documented for i, line in lines)


def room_of(module: str) -> str:
    """The room of a dotted module name: ``ctrace.cut.graph`` is in ``cut``, ``ctrace`` in
    ``ctrace``.
    """
    return (module.split(".") + ["ctrace"])[1] if "." in module else "ctrace"


def imported(text: str, module: str, is_package: bool) -> set[str]:
    """The `ctrace` modules that a module imports, inside functions too; relative imports made
    absolute.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(start + (node.module or "").split(".")).strip(".")
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return {name for name in found if name.split(".")[0] == "ctrace"}


def survey(package: Path):
    """Per room ``(code, lines, files)``, arrows between rooms with their number, and files with too
    many lines.
    """
    code, lines, files, arrows, long = Counter(), Counter(), Counter(), Counter(), []
    for path in sorted(package.rglob("*.py")):
        text, parts = (
            path.read_text(encoding="utf-8"),
            path.relative_to(package.parent).with_suffix("").parts,
        )
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        room, length = room_of(module), text.count("\n")
        code[room] += code_lines(text)
        lines[room] += length
        files[room] += 1
        long += [(path.relative_to(package.parent), length)] * (length > MOST_LINES)
        targets = {room_of(name) for name in imported(text, module, path.name == "__init__.py")}
        arrows.update((room, target) for target in targets - {room, "ctrace"} if room != "ctrace")
    return code, lines, files, arrows, long


def runs_up(arrow: tuple[str, str]) -> bool:
    """Whether an import points from an earlier room to a later one."""
    return ORDER.index(arrow[0]) < ORDER.index(arrow[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    code, lines, files, arrows, long = survey(ROOT / "ctrace")
    print(f"{'room':<12}{'code':>6}{'lines':>7}{'files':>7}  imports from")
    for room in ("ctrace", *ORDER):
        below = ", ".join(sorted(b for a, b in arrows if a == room))
        print(f"{room:<12}{code[room]:>6}{lines[room]:>7}{files[room]:>7}  {below}")
    up = [arrow for arrow in arrows if runs_up(arrow)]
    print(f"{'all':<12}{sum(code.values()):>6}{sum(lines.values()):>7}{sum(files.values()):>7}")
    named = ", ".join(f"{a} -> {b}" for a, b in up) or "none"
    print(f"{len(arrows)} arrows, {len(up)} run up: {named}")
    print("\n".join(f"{path}: {length} lines, {MOST_LINES} at most" for path, length in long))
    outgrown = sum(code.values()) > MOST_CODE or sum(files.values()) > MOST_FILES or up or long
    if arguments.check and outgrown:
        sys.exit(
            f"the house has outgrown {MOST_CODE} lines of code, {MOST_FILES} files, or its order"
        )


if __name__ == "__main__":
    main()
