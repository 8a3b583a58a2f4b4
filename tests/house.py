"""The plan of the house, measured: `python tests/house.py` prints the figures and names whatever breaks a rule.

The packages are read in the layout in which they install (`envs`, `datasets`, `eval` and `configs` inside `isdt_policy`), as
text: nothing is imported. Imports inside functions count as arrows too.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# From the roof down. A room may import what stands below it; rooms of one floor do not know each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("lab",),
    ("deploy", "training"),
    ("method",),
    ("datasets", "eval"),
    ("envs",),
    ("shared",),
)

LIMITS = {
    "cycles": 0,
    "arrows up": 0,
    "internal imports inside functions": 25,
    "functions over 60 lines": 0,
    "functions with more than 8 parameters": 0,
    "files over 400 lines": 0,
    "Any": 200,
    "lines of help by hand": 0,
}

# Functions whose parameters are set from outside this code, and why.
MANY_PARAMETERS: dict[str, str] = {}

# Files that may be longer than 400 lines, and why one file is easier to read than two.
LONG_FILES: dict[str, str] = {}


@dataclass
class Module:
    """One source file.

    Attributes:
        name: as it is imported.
        path: where it stands.
        lines: of source.
        imports: (module, line, inside a function) of every import of this package.
        long_functions: (name, lines) over 60.
        wide_functions: (name, parameters) over 8.
        any_count: uses of `Any`.
        help_lines: lines of text constants called HELP.
    """

    name: str
    path: Path
    lines: int = 0
    imports: list[tuple[str, int, bool]] = field(default_factory=list)
    long_functions: list[tuple[str, int]] = field(default_factory=list)
    wide_functions: list[tuple[str, int]] = field(default_factory=list)
    any_count: int = 0
    help_lines: int = 0

    @property
    def room(self) -> str:
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""


def read(root: Path = ROOT) -> dict[str, Module]:
    """Every module of a checkout by its name as installed."""
    setup = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders: dict[str, str] = setup["package-dir"]
    modules: dict[str, Module] = {}
    for package in setup["packages"]:
        home = max((p for p in folders if f"{package}.".startswith(f"{p}.")), key=len)
        folder = root / folders[home] / Path(*package.removeprefix(home).strip(".").split("."))
        for path in sorted(folder.glob("*.py")):
            name = package if path.stem == "__init__" else f"{package}.{path.stem}"
            modules[name] = Module(name, path)
    for module in modules.values():
        _measure(module, modules)
    return modules


def _measure(module: Module, modules: dict[str, Module]) -> None:
    text = module.path.read_text()
    module.lines = len(text.splitlines())
    tree = ast.parse(text)
    checking = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in checking:
            for target in _targets(node, module, modules):
                if target != module.name:
                    module.imports.append((target, node.lineno, inside))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > 60:
                module.long_functions.append((node.name, length))
            a = node.args
            names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ("self", "cls")]
            if len(names) > 8 and f"{module.name}:{node.name}" not in MANY_PARAMETERS:
                module.wide_functions.append((node.name, len(names)))
            inside = True
        if isinstance(node, ast.Name) and node.id == "Any":
            module.any_count += 1
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and "HELP" in node.targets[0].id
            and isinstance(node.value, (ast.Constant, ast.JoinedStr, ast.Call))
        ):
            module.help_lines += (node.end_lineno or 0) - node.lineno + 1
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(tree, False)


def _targets(node: ast.Import | ast.ImportFrom, module: Module, modules: dict[str, Module]) -> list[str]:
    """The modules of this package that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name in modules]
    base = node.module or ""
    if node.level:  # from . import x
        package = module.name.split(".")
        package = package[: len(package) - node.level + (module.path.stem == "__init__")]
        base = ".".join([*package, *filter(None, [base])])
    found = []
    for alias in node.names:
        if f"{base}.{alias.name}" in modules:
            found.append(f"{base}.{alias.name}")
        elif base in modules:
            found.append(base)
    return sorted(set(found))


def floor_of(room: str) -> int | None:
    """Number of a room's floor, counted from the ground; None outside the plan (the package itself, configs)."""
    return next((len(FLOORS) - i for i, rooms in enumerate(FLOORS) if room in rooms), None)


def arrows_up(modules: dict[str, Module]) -> list[str]:
    """Imports of a higher room, or of another room of the same floor."""
    found = []
    for module in modules.values():
        for target, line, _ in module.imports:
            a, b = floor_of(module.room), floor_of(modules[target].room)
            if a is not None and b is not None and (b > a or (b == a and module.room != modules[target].room)):
                found.append(f"{module.name}:{line} imports {target}")
    return found


def cycles(modules: dict[str, Module]) -> list[str]:
    """Groups of modules that import each other, directly or round a corner (Tarjan's strongly connected components)."""
    graph = {m.name: sorted({t for t, _, _ in m.imports if not m.name.startswith(f"{t}.")}) for m in modules.values()}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def connect(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in graph[name]:
            if target not in index:
                connect(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(" <-> ".join(sorted(group)))

    for name in graph:
        if name not in index:
            connect(name)
    return found


def figures(modules: dict[str, Module]) -> dict[str, list[str] | int]:
    """Name of a rule -> what breaks it, or a count."""
    every = modules.values()
    return {
        "cycles": cycles(modules),
        "arrows up": arrows_up(modules),
        "internal imports inside functions": [
            f"{m.name}:{line} {t}" for m in every for t, line, inside in m.imports if inside
        ],
        "functions over 60 lines": [f"{m.name}:{name} {n}" for m in every for name, n in m.long_functions],
        "functions with more than 8 parameters": [
            f"{m.name}:{name} {n}" for m in every for name, n in m.wide_functions
        ],
        "files over 400 lines": [f"{m.name} {m.lines}" for m in every if m.lines > 400 and m.name not in LONG_FILES],
        "Any": sum(m.any_count for m in every),
        "lines of help by hand": sum(m.help_lines for m in every),
        "source lines": sum(m.lines for m in every),
    }


def main() -> int:
    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    broken = False
    for name, value in figures(read(root)).items():
        count = value if isinstance(value, int) else len(value)
        limit = LIMITS.get(name)
        over = limit is not None and count > limit
        broken |= over
        print(f"{'!' if over else ' '} {name:<40}{count:>7}{'' if limit is None else f'   at most {limit}'}")
        if over and isinstance(value, list):
            print("".join(f"      {line}\n" for line in value), end="")
    return int(broken)


if __name__ == "__main__":
    raise SystemExit(main())
