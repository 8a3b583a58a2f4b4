"""Every study by the type of its settings; cells, tables and figures of the method study: toys and PushT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from isdt_policy.lab.study import tasks
from isdt_policy.lab.study.cells import Cell, read_json, run_cells
from isdt_policy.lab.study.densities import DENSITIES
from isdt_policy.lab.study.figures import draw_pusht, draw_toys
from isdt_policy.lab.study.pusht import PUSHT_ROWS, pusht_config, run_pusht
from isdt_policy.lab.study.rows import ROWS, chosen, describe
from isdt_policy.lab.study.settings import Pusht, Report, Tasks, Toys
from isdt_policy.lab.study.table import Cells, pusht_table, single_runs, toy_tables
from isdt_policy.lab.study.toys import run_toys, stray_shares
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.files import write_text


def study(what: object) -> str:
    """Run what is missing of a study, write its tables and figures, and return what to print."""
    match what:
        case Toys():
            return toys(what)
        case Pusht():
            return pusht(what)
        case Tasks():
            return tasks.study(what)
        case Report():
            return write(what.out)
        case _:
            raise TypeError(f"{type(what).__name__} is no study")


def toys(study: Toys) -> str:
    """Run the toy cells that are missing; write tables and figures and return what to print."""
    torch.set_num_threads(study.threads)
    rows: list[str] = chosen("row", study.rows, list(ROWS))
    densities: list[str] = [*(study.densities or DENSITIES)]
    settings, seeds = study.cell(), list(study.seeds)

    def cell(row: str) -> Cell:
        pictures = {density: study.out / "toys" / "samples" / density / f"{row}.npy" for density in densities}
        # What is trained side by side shares random numbers, so all of it is part of what decides a result.
        what = {"row": row, "title": ROWS[row].title, "densities": densities, "seeds": seeds}
        return Cell(
            row,
            {**what, **asdict(settings), "of_row": describe(ROWS[row])},
            lambda: run_toys(ROWS[row], densities, seeds, settings, pictures),
        )

    run_cells([cell(row) for row in rows], study.out / "toys" / "cells", "study toys", study, study.threads)
    return write(study.out) if study.report else ""


def pusht(study: Pusht) -> str:
    """Run the PushT cells that are missing; write their table and figure and return what to print."""
    settings = study.cell()
    rows = chosen("row", study.rows, list(PUSHT_ROWS))
    for row in rows:  # refuses what does not fit, before hours of work
        pusht_config(PUSHT_ROWS[row], 0, settings, study.work / row, study.threads)

    def cell(row: str, seed: int) -> Cell:
        name = f"{row}_{seed}"
        what = {"row": row, "title": PUSHT_ROWS[row].title, "seed": seed}
        return Cell(
            name,
            {**what, **asdict(settings), "of_row": describe(PUSHT_ROWS[row])},
            lambda: run_pusht(PUSHT_ROWS[row], seed, settings, study.work / name, study.threads),
        )

    cells = [cell(row, seed) for seed in study.seeds for row in rows]
    run_cells(cells, study.out / "pusht" / "cells", "study pusht", study, study.threads)
    return write(study.out) if study.report else ""


def write(out: Path) -> str:
    """Write what the cells below `out` give; returns the tables and the names of their files.

    Raises:
        InputError: there are no cells, or they were made with different settings.
    """
    order = [*ROWS, *PUSHT_ROWS]
    parts = []
    studies: dict[str, Callable[[Cells, Path], str]] = {"toys": _toys_report, "pusht": _pusht_report}
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


def _toys_report(cells: Cells, out: Path) -> str:
    runs = single_runs(cells)
    draw_toys(runs, out, out / "toys" / "samples")
    return toy_tables(runs, stray_shares(out / "toys" / "samples"))


def _pusht_report(cells: Cells, out: Path) -> str:
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
