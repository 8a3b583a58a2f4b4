"""Tables and figures of the method study, from its cells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from isdt_policy.lab.study.cells import read_json
from isdt_policy.lab.study.figures import draw_pusht, draw_toys
from isdt_policy.lab.study.pusht import PUSHT_ROWS
from isdt_policy.lab.study.rows import ROWS
from isdt_policy.lab.study.table import Cells, pusht_table, single_runs, toy_tables
from isdt_policy.lab.study.toys import stray_shares
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.files import write_text


def write(out: Path) -> str:
    """Write what the cells below `out` give; returns the tables and the names of their files.

    Raises:
        InputError: there are no cells, or they were made with different settings.
    """
    order = [*ROWS, *PUSHT_ROWS]
    parts = []
    studies: dict[str, Callable[[Cells, Path], str]] = {"toys": _toys, "pusht": _pusht}
    for study, make in studies.items():
        cells = [read_json(path) for path in sorted((out / study / "cells").rglob("*.json"))]
        cells = [cell for cell in cells if cell["settings"]["row"] in order]
        cells.sort(key=lambda cell: order.index(cell["settings"]["row"]))
        if cells:
            conditions, text = _conditions(cells), make(cells, out)
            write_text(out / f"{study}.md", f"{conditions}\n{text}")
            parts += [text, f"written: {out / f'{study}.md'}"]
    if not parts:
        raise InputError(f"no cells below '{out}'. Run some: isdt study toys out={out}")
    return "\n".join(parts)


def _toys(cells: Cells, out: Path) -> str:
    runs = single_runs(cells)
    draw_toys(runs, out, out / "toys" / "samples")
    return toy_tables(runs, stray_shares(out / "toys" / "samples"))


def _pusht(cells: Cells, out: Path) -> str:
    draw_pusht(cells, out)
    return pusht_table(cells)


def _conditions(cells: Cells) -> str:
    """The settings that all cells share, as a line above the table."""
    skip = ("row", "title", "density", "densities", "seed", "seeds", "of_row")
    shared = {key: value for key, value in cells[0]["settings"].items() if key not in skip}
    for cell in cells:
        for key, value in shared.items():
            if cell["settings"][key] != value:
                raise InputError(
                    f"the cells were made with different settings: {key}={value} and {key}={cell['settings'][key]}; "
                    "keep each in an out= of its own."
                )
    line = ", ".join(f"{key} {value}" for key, value in shared.items())
    return f"Mean over training seeds [lowest to highest]. {line}.\n"
