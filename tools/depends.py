"""Which files of `ctrace` a notebook runs on, read from the sources without running them.

    python -m tools.depends            the modules and the data of every notebook
    python -m tools.depends viz/panels the notebooks that run on files with this in their path

A notebook depends on the modules that its imports lead to, on those that these lead to, and so on.
Imports inside functions count, and so do modules named in a string. A name that comes from a
package (``from ctrace import Ncut``, ``viz.show_grid``) leads through the package's `__init__` to
the module that defines it, not to everything the package imports. A folder of `ctrace/data`, and
any other file that is no module, belongs to the sources that name it in a string, or to all when
none does. What cannot be read in this way leads to all of `ctrace`.

Modules are taken to define and do nothing else when they are imported. One that does more, such as
setting a default of matplotlib, belongs to every notebook that imports anything of `ctrace`.
"""

import ast
import re
import sys
from functools import cached_property
from pathlib import Path

import nbformat

from tools.house import HERE, ROOT, bindings, modules_of, nearest

DEFINES = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
NOT_RUN = ("__name__ == '__main__'", "TYPE_CHECKING")
DOTTED = re.compile(rf"\b{ROOT}(?:\.\w+)+")


class Source:
    """The text of a module, or all code of a notebook."""

    def __init__(self, text: str, module: str = "", is_package: bool = False):
        self.tree, self.is_package = ast.parse(text), is_package
        self.bindings = bindings(text, module, is_package)

    @cached_property
    def strings(self) -> list[str]:
        """Strings that the code works with: docstrings only speak."""
        nodes = list(ast.walk(self.tree))
        spoken = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        strings = (n for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))
        return [node.value for node in strings if id(node) not in spoken]

    @cached_property
    def uses(self) -> set[str]:
        """Dotted names: imported ones with the attributes taken of them, and those in strings."""
        chains = _Chains({name: target for name, target in self.bindings})
        chains.visit(self.tree)
        found = {target for _, target in self.bindings} | chains.found
        for text in self.strings:
            found.update(f"{name}.*" for name in DOTTED.findall(text))
            if "import" in text and ROOT in text:
                try:
                    found |= Source(text).uses
                except SyntaxError:
                    continue  # prose: its dotted names are found already
        return found

    @property
    def acts(self) -> bool:
        """Whether importing this does more than define names."""
        return not all(_defines(statement) for statement in self.tree.body)


class _Chains(ast.NodeVisitor):
    """Attributes of bound names: ``viz.show_grid`` as ``ctrace.viz.show_grid``, and as
    ``ctrace.viz.*`` where a name is handed on whole.
    """

    def __init__(self, bound: dict[str, str]):
        # `import ctrace.look` binds `ctrace`; `import ctrace.look as look` and `from` bind the end
        self.bound = {name: ROOT if name == ROOT else target for name, target in bound.items()}
        self.found: set[str] = set()

    def visit_Attribute(self, node):
        chain, start = [], node
        while isinstance(start, ast.Attribute):
            chain.append(start.attr)
            start = start.value
        if isinstance(start, ast.Name) and start.id in self.bound:
            self.found.add(".".join([self.bound[start.id], *reversed(chain)]))
        else:
            self.visit(start)

    def visit_Name(self, node):
        if node.id in self.bound:
            self.found.add(f"{self.bound[node.id]}.*")


def _defines(statement) -> bool:
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = getattr(statement, "targets", None) or [statement.target]
        return all(isinstance(target, ast.Name | ast.Tuple) for target in targets)
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    if isinstance(statement, ast.If):
        return ast.unparse(statement.test) in NOT_RUN
    return isinstance(statement, DEFINES)


class Package:
    """The sources and the data of `ctrace` below a root folder."""

    def __init__(self, root: Path):
        self.root, self.paths = root, modules_of(root / ROOT)
        self.sources = {
            module: Source(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
            for module, path in self.paths.items()
        }
        self.data: dict[str, list[Path]] = {}  # by the name that a source would call it
        for path in sorted((root / ROOT).rglob("*")):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                parts = path.relative_to(root / ROOT).parts
                name = parts[1] if parts[0] == "data" else path.name
                self.data.setdefault(name, []).append(path)

    def lead(self, name: str) -> set[str]:
        """Modules that the use of a dotted name leads to."""
        module = nearest(name, self.paths)
        if module not in self.sources or not self.sources[module].is_package:
            return {module} & self.paths.keys()
        attribute = name.removeprefix(module).strip(".").partition(".")[0]
        if not attribute:  # only imported: what is taken of it counts
            return set()
        target = dict(self.sources[module].bindings).get(attribute)
        if target not in (None, name):
            return self.lead(target) or self.lead(f"{target}.*")
        return {module, f"{module}.__main__"} & self.paths.keys()

    def closure(self, source: Source) -> set[str]:
        """Modules that a source runs on."""
        found, todo = set(), [source]
        while todo:
            each = todo.pop()
            new = set().union(*(self.lead(name) for name in each.uses)) - found
            if each.is_package:  # asked for as a whole
                new |= set().union(*(self.lead(target) for _, target in each.bindings)) - found
            found |= new
            todo += [self.sources[module] for module in new]
        acting = {module for module, each in self.sources.items() if each.acts}
        return found | acting if source.uses else found

    def files(self, notebook: Path) -> list[Path]:
        """Files of `ctrace` that a notebook runs on: modules, then data."""
        source = read(notebook)
        if source is None:
            return [*self.paths.values(), *(path for paths in self.data.values() for path in paths)]
        modules = sorted(self.closure(source))
        named = named_by([source, *(self.sources[module] for module in modules)])
        mine = [name for name in self.data if name in named or name in self.unnamed]
        return [self.paths[module] for module in modules] + [
            path for name in mine for path in self.data[name]
        ]

    @cached_property
    def unnamed(self) -> set[str]:
        """Data that no source names."""
        notebooks = [read(path) for path in sorted((self.root / "notebooks").glob("*.ipynb"))]
        return set(self.data) - named_by([*self.sources.values(), *filter(None, notebooks)])


def named_by(sources: list[Source]) -> set[str]:
    """Every part of every path-like string: ``data/models`` names ``data`` and ``models``."""
    return {part for source in sources for text in source.strings for part in text.split("/")}


def read(notebook: Path) -> Source | None:
    """The code of a notebook, or None when it is not plain Python: a magic could call anything."""
    cells = nbformat.read(notebook, 4).cells
    try:
        return Source("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    except SyntaxError:
        return None


def main() -> None:
    package, wanted = Package(HERE), (sys.argv[1:] or [None])[0]
    for notebook in sorted((HERE / "notebooks").glob("*.ipynb")):
        files = [path.relative_to(HERE / ROOT).as_posix() for path in package.files(notebook)]
        if wanted is None:
            print(f"{notebook.stem}\n    {' '.join(files)}")
        elif any(wanted in name for name in files):
            print(notebook.stem)


if __name__ == "__main__":
    main()
