"""Every study by the type of its settings, and the cells of the method study: toys and PushT."""

from __future__ import annotations

from dataclasses import asdict

import torch

from isdt_policy.lab.study import report, tasks
from isdt_policy.lab.study.cells import Cell, run_cells
from isdt_policy.lab.study.densities import DENSITIES
from isdt_policy.lab.study.pusht import PUSHT_ROWS, pusht_config, run_pusht
from isdt_policy.lab.study.rows import ROWS, chosen, describe
from isdt_policy.lab.study.settings import Pusht, Report, Tasks, Toys
from isdt_policy.lab.study.toys import run_toys


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
            return report.write(what.out)
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

    run_cells([cell(row) for row in rows], study.out / "toys" / "cells", "study toys")
    return report.write(study.out) if study.report else ""


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

    run_cells([cell(row, seed) for seed in study.seeds for row in rows], study.out / "pusht" / "cells", "study pusht")
    return report.write(study.out) if study.report else ""
