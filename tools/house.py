"""The package as a house: how much code each room holds, and which rooms lean on which.

    python tools/house.py            the plan, as text
    python tools/house.py --check    the same, and exit 1 when the house has outgrown its bounds

A room is a folder of `ctrace` or a file at its root. A line of code is a line that is not blank,
not a comment and not part of a docstring. An arrow is an import from one room into another, inside
functions too; it runs up when the room it comes from stands before the other in `ORDER`, the way
the data flows. The root itself imports from everywhere, so an import of a name of the root runs up.
"""

import argparse
import ast
import io
import sys
import tokenize
from collections import Counter
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
ROOT = "ctrace"
ORDER = ("check", "arguments", "stats", "aviary", "world", "cut", "look", "carrot", "trust")
ORDER += ("published", "viz")
# What holds today, rounded up: lower it when the house has shrunk, and raise it for a feature only.
MOST_CODE, MOST_FILES, MOST_LINES = 7286, 68, 300
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
NOT_CODE |= {tokenize.ENCODING, tokenize.ENDMARKER}
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def code_lines(text: str) -> int:
    """Lines of a module that are neither blank, comment nor docstring.

    >>> code_lines('"A docstring."\\n# a comment\\n\\nx = 1\\n')
    1
    """
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOT_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            code.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    blank = {number for number, line in enumerate(text.splitlines(), 1) if not line.strip()}
    return len(code - blank)


def modules_of(package: Path) -> dict[str, Path]:
    """Every module under a package folder by its dotted name; a package by its folder's name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def bindings(text: str, module: str = "", is_package: bool = False) -> list[tuple[str, str]]:
    """What the imports of a source bind, inside functions too: pairs of a name and the dotted name
    in `ctrace` that it stands for. Relative imports are made absolute.

    >>> bindings("from ctrace.cut import kway as k; import ctrace.look, torch")
    [('k', 'ctrace.cut.kway'), ('ctrace', 'ctrace.look')]
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(a.asname or a.name.partition(".")[0], a.name) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found += [(a.asname or a.name, f"{base}.{a.name}") for a in node.names]
    return [(name, target) for name, target in found if target.split(".")[0] == ROOT]


def imported(text: str, module: str = "", is_package: bool = False) -> set[str]:
    """Dotted names of `ctrace` that a source imports: modules, and names in modules."""
    return {target for _, target in bindings(text, module, is_package)}


def room_of(name: str) -> str:
    """The room of a dotted name: ``ctrace.cut.graph`` is in ``cut``; ``ctrace`` and the names that
    only its root has are in ``ctrace``.
    """
    return next((room for room in name.split(".")[1:2] if room in ORDER), ROOT)


def runs_up(arrow: tuple[str, str]) -> bool:
    """Whether an import points from an earlier room to a later one, or to the root."""
    order = (*ORDER, ROOT)
    return order.index(arrow[0]) < order.index(arrow[1])


@dataclass
class House:
    """What a survey finds: sums by room, how many files draw each arrow, and faults."""

    code: Counter = field(default_factory=Counter)
    lines: Counter = field(default_factory=Counter)
    files: Counter = field(default_factory=Counter)
    functions: Counter = field(default_factory=Counter)
    arrows: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def survey(package: Path) -> House:
    """Walk through every file of a package."""
    house, modules, leads = House(), modules_of(package), {}
    for module, path in modules.items():
        text, room = path.read_text(encoding="utf-8"), room_of(module)
        if room == ROOT != module:
            house.faults.append(f"{module}: its room has no place in ORDER")
        length, names = text.count("\n"), imported(text, module, path.name == "__init__.py")
        house.code[room] += code_lines(text)
        house.lines[room] += length
        house.files[room] += 1
        house.functions[room] += sum(
            isinstance(node, ast.FunctionDef) for node in ast.walk(ast.parse(text))
        )
        if length > MOST_LINES:
            house.faults.append(f"{module}: {length} lines, {MOST_LINES} at most")
        if room != ROOT:
            house.arrows.update((room, other) for other in {room_of(n) for n in names} - {room})
        leads[module] = {nearest(name, modules) for name in names} - {module}
    ups = sorted(arrow for arrow in house.arrows if runs_up(arrow))
    house.faults += [f"{a} -> {b}: this import runs up" for a, b in ups]
    return add_bounds(house, leads)


def nearest(name: str, modules: dict[str, Path]) -> str:
    """The module that a dotted name is, or is in."""
    while name not in modules and "." in name:
        name = name.rpartition(".")[0]
    return name


def add_bounds(house: House, leads: dict[str, set[str]]) -> House:
    """Add the faults of the house as a whole: its size, and modules that import in a circle."""
    for what, sums, most in (
        ("lines of code", house.code, MOST_CODE),
        ("files", house.files, MOST_FILES),
    ):
        if sums.total() > most:
            house.faults.append(f"{sums.total()} {what}, {most} at most")
    try:
        TopologicalSorter(leads).prepare()
    except CycleError as error:
        house.faults.append(f"imports in a circle: {' -> '.join(error.args[1])}")
    return house


def plan(house: House) -> str:
    """The survey as a table, the arrows and the faults below it."""
    sums = (house.code, house.lines, house.files, house.functions)
    rows = [f"{'room':<10}{'code':>6}{'lines':>7}{'files':>7}{'functions':>11}  imports from"]
    for room in (ROOT, *ORDER):
        below = ", ".join(sorted(b for a, b in house.arrows if a == room))
        numbers = "{:>6}{:>7}{:>7}{:>11}".format(*(each[room] for each in sums))
        rows.append(f"{room:<10}{numbers}  {below}".rstrip())
    total = "{:>6}{:>7}{:>7}{:>11}".format(*(each.total() for each in sums))
    ups = sum(map(runs_up, house.arrows))
    rows.append(f"{'all':<10}{total}  {len(house.arrows)} arrows between rooms, {ups} run up")
    return "\n".join(rows + house.faults)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="exit 1 when there is a fault")
    check, house = parser.parse_args().check, survey(HERE / ROOT)
    print(plan(house))
    sys.exit(1 if check and house.faults else 0)


if __name__ == "__main__":
    main()
