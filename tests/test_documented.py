"""Every public name says what it is: modules, classes, functions, methods. What many classes implement is explained once."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("isdt_policy", "envs", "datasets", "eval", "configs")
# Explained where the thing that calls them is: cli/command.py, torch.nn.Module, diffusers' schedulers, formats/__init__.py.
CALLED = {"run", "forward", "set_timesteps", "step", "add_noise", "get_velocity", "recognises"}


def names():
    """(place, name, documented) of everything public."""
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            module = ast.parse(file.read_text(encoding="utf-8"))
            yield file, file.stem, ast.get_docstring(module) is not None
            yield from below(module, file)


def below(node, file):
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield file, child.name, ast.get_docstring(child) is not None
            if isinstance(child, ast.ClassDef):
                yield from below(child, file)


def test_every_public_name_is_explained():
    found = list(names())
    explained = CALLED | {name for _, name, documented in found if documented}
    silent = [f"{file.relative_to(ROOT)}: {name}" for file, name, _ in found if name not in explained]
    assert silent == []
    assert len(found) > 1000
