"""Resumable cells: each piece of the study is one JSON file, written whole or not at all; what is there is not run again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from isdt_policy.shared.cluster import Where
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.files import write_text
from isdt_policy.shared.progress import Progress
from isdt_policy.shared.values import Json, parse_json

SCHEMA = "isdt-study/1"
HERE = Where()


@dataclass(frozen=True)
class Cell:
    """One piece of work: a training run, or several side by side, with measurements.

    Attributes:
        name: its JSON file's name, without suffix.
        settings: everything that decides the result; JSON values only.
        run: does the work and returns the result; JSON values only.
    """

    name: str
    settings: Json
    run: Callable[[], object]


def run_cells(cells: Iterable[Cell], folder: Path, label: str, where: Where = HERE, threads: int = 1) -> list[Json]:
    """Run the cells whose file is missing, and return all contents in order.

    Args:
        cells: what there is to do.
        folder: for their files.
        label: what people see.
        where: one after another here, or on a cluster.
        threads: of a cell.

    Raises:
        InputError: a file holds a result of other settings, or cannot be read.
    """
    cells = list(cells)
    contents = [read_cell(folder, cell) for cell in cells]  # settings are checked before anything runs
    todo = sum(content is None for content in contents)
    bar = Progress(len(cells), label, unit="cell", initial=len(cells) - todo, every_s=0)
    number = {cell.name: i for i, cell in enumerate(cells)}
    try:
        with where.pool(threads) as pool:
            for cell in (cell for cell, content in zip(cells, contents) if content is None):
                pool.submit(cell.name, cell.run)
            for _ in range(todo):
                name, result = pool.next()
                i = number[name]
                contents[i] = {"schema": SCHEMA, "settings": cells[i].settings, "result": result}
                write_json(folder / f"{name}.json", contents[i])
                bar.update(1, cell=name)
    finally:
        bar.close()
    return [content for content in contents if content is not None]


def read_cell(folder: Path, cell: Cell) -> Json | None:
    """Content of a finished cell; None if it has not been run."""
    path = folder / f"{cell.name}.json"
    if not path.exists():
        return None
    content = read_json(path)
    was, now = content.get("settings"), json.loads(json.dumps(cell.settings))
    if was != now:
        keys = sorted(set(was or {}) | set(now))
        key = next(k for k in keys if (was or {}).get(k) != now.get(k))
        raise InputError(
            f"{path} holds a result with {key}={(was or {}).get(key)}, now {key}={now.get(key)}. Ask for the same settings, "
            "delete the file, or choose another out=."
        )
    return content


def read_json(path: Path) -> Json:
    """A file of the study. InputError if it is none."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it, and its cell is run again.") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"{path} is not a result of isdt study ({SCHEMA}); choose another out=.")
    return content


def write_json(path: Path, content: object) -> None:
    """Write a file of the study; a reader sees the whole of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content) + "\n")
