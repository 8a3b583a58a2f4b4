"""Make docs/api.md from the docstrings: `python docs/make_api.py`. A test holds the page to what this prints.

Only sources are read, nothing is imported, so that it takes no time and needs no simulator.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

HEAD = """
# Python API

Made from the docstrings by `python docs/make_api.py`; change them there.

These names may be relied on. Everything else may move between versions. They are imported when they are first used, so
`import isdt_policy` is quick and loads no torch.

```python
from isdt_policy import DemoStore, Policy, Protocol, compose_config, evaluate, make_env, train
```
"""

# Title, and what is under it: (import line's name, file, name in the file, members to show).
PUBLIC = {
    "Train": [
        ("compose_config", "isdt_policy/training/config.py", "compose_config", ()),
        ("train", "isdt_policy/training/run.py", "train", ()),
    ],
    "Act": [
        (
            "Policy", "isdt_policy/method/policy.py", "Policy",
            ("from_pretrained", "predict_action", "plan", "acting", "alone", "reset", "save_pretrained", "task", "obs_keys",
             "n_obs_steps", "n_action_steps", "horizon", "noise_scale"),
        ),
        ("make_env", "envs/registry.py", "make", ()),
    ],
    "Evaluate": [
        ("evaluate", "eval/rollout.py", "evaluate", ()),
        ("Protocol", "eval/protocol.py", "Protocol", ()),
    ],
    "Demonstrations": [
        (
            "DemoStore", "datasets/store.py", "DemoStore",
            ("open", "episode", "read", "n_episodes", "n_steps", "task", "masks", "shape", "dtype", "episode_info"),
        ),
    ],
}  # fmt: skip

# What the names above take and return, by the package that it is imported from.
NEEDED = {
    "isdt_policy.eval": [
        ("Result", "eval/result.py", "Result", ("load", "save", "__getitem__", "of")),
        ("ArmSummary", "eval/result.py", "ArmSummary", ()),
        ("EpisodeRecord", "eval/result.py", "EpisodeRecord", ()),
        ("Workers", "eval/rollout.py", "Workers", ()),
        ("Scene", "eval/rollout.py", "Scene", ()),
        ("Journal", "eval/journal.py", "Journal", ("clear",)),
        ("final_seeds", "eval/seeds.py", "final_seeds", ()),
        ("selection_seeds", "eval/seeds.py", "selection_seeds", ()),
    ],
    "isdt_policy.datasets": [
        ("DemoWriter", "datasets/writer.py", "DemoWriter", ("append", "extend", "close")),
        ("Recorder", "datasets/recorder.py", "Recorder", ("step", "end", "discard")),
    ],
    "isdt_policy.envs": [
        ("register", "envs/registry.py", "register", ()),
        ("TaskSpec", "envs/registry.py", "TaskSpec", ()),
        ("ArraySpec", "envs/registry.py", "ArraySpec", ()),
        ("ActionPart", "envs/registry.py", "ActionPart", ()),
    ],
    "isdt_policy.shared": [
        ("Arm", "isdt_policy/shared/arm.py", "Arm", ("parse", "name", "nfe")),
        ("InputError", "isdt_policy/shared/errors.py", "InputError", ()),
    ],
}

Definition = ast.ClassDef | ast.FunctionDef


def page() -> str:
    """The text of docs/api.md."""
    parts = [HEAD.strip()]
    for title, names in PUBLIC.items():
        parts += [f"## {title}", *(entry("isdt_policy", *name) for name in names)]
    parts += ["## What they take and return"]
    for package, names in NEEDED.items():
        parts += [entry(module_of(package, name[1], name[0]), *name) for name in names]
    return "\n\n".join(parts) + "\n"


def module_of(package: str, file: str, name: str) -> str:
    """Where a name is imported from: the package if its __init__ lists it, else the file's module."""
    listed = (ROOT / file).with_name("__init__.py").read_text(encoding="utf-8")
    return package if f'"{name}"' in listed else f"{package}.{Path(file).stem}"


def entry(module: str, name: str, file: str, own: str, members: tuple[str, ...]) -> str:
    """One public name with its members."""
    node = find(ast.parse((ROOT / file).read_text(encoding="utf-8")).body, own, file)
    parts = [f"### {name}", f"`from {module} import {name}`" if module != "isdt_policy" else ""]
    parts += ["" if "open" in members else signature(node, name), described(node, file)]  # such a class is not called
    for member in members:
        assert isinstance(node, ast.ClassDef)
        found = find(node.body, member, f"{file}: {own}")
        parts += [f"#### {name}.{member}", signature(found, member), described(found, file)]
    return "\n\n".join(part for part in parts if part)


def find(body: list[ast.stmt], name: str, where: str) -> Definition:
    """A class or function by its name."""
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return node
    raise SystemExit(f"docs/make_api.py: {where} has no '{name}'")


def signature(node: Definition, name: str) -> str:
    """How it is called, as code; "" for a property."""
    if isinstance(node, ast.ClassDef):
        made = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if made is not None:
            return call(name, parameters(made.args), "")
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and "ClassVar" not in ast.unparse(n.annotation)]
        return call(name, [ast.unparse(field) for field in fields], "") if fields else ""
    if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
        return f"`{name}: {ast.unparse(node.returns)}`" if node.returns else ""
    return call(name, parameters(node.args), f" -> {ast.unparse(node.returns)}" if node.returns else "")


def parameters(arguments: ast.arguments) -> list[str]:
    """One text per parameter, without self and cls."""
    with_defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + list(arguments.defaults)
    found = [_parameter(arg, default) for arg, default in zip(arguments.args, with_defaults)]
    if arguments.kwonlyargs:
        found += ["*", *(_parameter(arg, value) for arg, value in zip(arguments.kwonlyargs, arguments.kw_defaults))]
    if arguments.kwarg:
        found.append(f"**{_parameter(arguments.kwarg, None)}")
    return [text for text in found if text not in ("self", "cls")]


def _parameter(arg: ast.arg, default: ast.expr | None) -> str:
    text = arg.arg + (f": {ast.unparse(arg.annotation)}" if arg.annotation else "")
    return text if default is None else f"{text} = {ast.unparse(default)}"


def call(name: str, given: list[str], returned: str) -> str:
    """A call in a block, over several lines where one is too long."""
    line = f"{name}({', '.join(given)}){returned}"
    if len(line) > 100:
        line = "\n".join([f"{name}(", *(f"    {text}," for text in given), f"){returned}"])
    return f"```python\n{line}\n```"


def described(node: Definition, file: str) -> str:
    """The docstring in Markdown: sections with entries become lists, examples become code."""
    text = ast.get_docstring(node)
    if not text:
        raise SystemExit(f"docs/make_api.py: {file}: '{node.name}' is public and has no docstring")
    text, *doctest = re.split(r"\n(?=>>>)", text, maxsplit=1)
    head, *sections = re.split(r"^(Args|Attributes|Returns|Raises|Source|Examples?):\n", text, flags=re.MULTILINE)
    parts = [plain(part) for part in re.split(r"\n\s*\n", head.strip())]
    for title, body in zip(sections[::2], sections[1::2]):
        lines = [line[4:] for line in body.rstrip().splitlines()]
        if title.startswith("Example"):
            parts.append("```python\n" + "\n".join(lines) + "\n```")
        elif title in ("Returns", "Source"):
            parts.append(f"*{title}*: {plain(' '.join(' '.join(lines).split()))}")
        else:
            parts.append(f"*{title}*\n\n{listed(lines)}")
    return "\n\n".join([*parts, *(f"```python\n{part.strip()}\n```" for part in doctest)])


def plain(text: str) -> str:
    """Text whose stars and angle brackets Markdown leaves alone."""
    return "".join(
        part if part.startswith("`") else re.sub(r"([*<])", r"\\\1", part) for part in re.split(r"(`[^`]*`)", text)
    )


def listed(lines: list[str]) -> str:
    """A list from "name: text" entries, whose further lines are indented."""
    found: list[str] = []
    for line in lines:
        match = re.match(r"([\w*]+(?:, [\w*]+)*): (.*)", line)
        if match:
            names = ", ".join(f"`{name}`" for name in match[1].split(", "))
            found.append(f"- {names}: {plain(match[2])}")
        elif line.strip():
            found[-1] += f" {plain(line.strip())}"
    return "\n".join(found)


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(page(), encoding="utf-8")
