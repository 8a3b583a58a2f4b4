"""`isdt study`: every objective on the same network, data and budget, over seeds; a table and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any

from isdt_policy.datasets.arguments import bind
from isdt_policy.shared.errors import InputError, nearest

OUT = "results/method_study"

HELP = """usage: isdt study toys|pusht|tasks|report [key=value ...]

Compare objectives on the same network, data, optimiser and number of steps, over training seeds: quality at 1, 2, 4 and 10
network evaluations, gradient norms, diverged runs. Every toy row, and every PushT run, is a cell with a JSON file of its own: a
killed study goes on where it stopped, and rows can be added later with the same command.

  toys      8 Gaussians, checkerboard, two moons: sliced Wasserstein distance over its sampling floor
  pusht     PushT from states: score and success; cells call the ordinary training and evaluation
  report    rewrite tables and figures of both from the cells that are there (they do so at their end)
  tasks     shipped recipes against flow matching, MeanFlow, diffusion and regression on the same network, data and steps:
            success of every training seed at 1, 2, 4 and more evaluations. Every cell is an ordinary run of isdt train
            and isdt eval, and resumes like them. The same command in a second terminal takes the cells that are left.

examples
  isdt study toys rows=[isd_t,meanflow] densities=[two_moons] seeds=1 steps=2000 out=/tmp/study
  isdt study toys                                          every row, three densities, three seeds
  isdt study pusht rows=[isd_t,weight_none,weight_one] seeds=3
  isdt study report
  isdt study tasks experiments=[can] seeds=[42]                       Can, iSD-T and four baselines, one training seed
  isdt study tasks experiments=[pusht_human] objectives=[recipe,meanflow] data.path=pusht_cchi_v7_replay.zarr
  isdt study tasks experiments=[lift] training.steps=1000 out=/tmp/t  any setting of isdt train, for all cells

keys of toys and pusht
  rows=[...]         default all: {rows}
  densities=[...]    toys: {densities}
  seeds=3            training seeds 0 ... seeds - 1
  out={out}
  threads=1          CPU threads
  report=true        write tables and figures at the end

  toys: {toy_settings}
  pusht: {pusht_settings}
  work=outputs/study pusht: where runs live until their cell is done

keys of tasks: {task_keys}
  objectives are "recipe", the one that the experiment names, and those of isdt train; out= holds a folder per cell with
  eval_info.json and train_config.json, tables.md and success.png; work= the runs with their weights; report=only rewrites tables
  and figures
"""


def main(args: list[str]) -> int:
    """Entry of the verb."""
    if not args or any(a in ("-h", "--help", "help") for a in args):
        from isdt_policy.lab.study.densities import DENSITIES
        from isdt_policy.lab.study.pusht import PUSHT_ROWS, PushtSettings
        from isdt_policy.lab.study.tasks import Tasks
        from isdt_policy.lab.study.toys import ToySettings

        def defaults(settings: Any) -> str:
            values = {k: f"[{','.join(v)}]" if isinstance(v, tuple) else v for k, v in asdict(settings).items()}
            return ", ".join(f"{key}={value}" for key, value in values.items())

        print(
            HELP.format(
                rows=", ".join(PUSHT_ROWS), densities=", ".join(DENSITIES), out=OUT,
                toy_settings=defaults(ToySettings()), pusht_settings=defaults(PushtSettings()), task_keys=defaults(Tasks()),
            ).strip()
        )  # fmt: skip
        return 0
    studies = {"toys": toys, "pusht": pusht, "tasks": tasks, "report": report}
    if args[0] not in studies:
        raise InputError(f"unknown study '{args[0]}'.{nearest(args[0], studies)} Allowed: {', '.join(studies)}.")
    studies[args[0]](args[1:])
    return 0


def toys(args: Sequence[str]) -> None:
    """Run toy cells and write their tables and figures."""
    import torch

    from isdt_policy.lab.study.cells import Cell, run_cells
    from isdt_policy.lab.study.densities import DENSITIES
    from isdt_policy.lab.study.rows import ROWS, chosen, describe
    from isdt_policy.lab.study.toys import ToySettings, run_toys

    study, settings = _read(ToySettings, args)
    torch.set_num_threads(study.threads)
    out = Path(study.out)

    rows, densities = chosen("row", study.rows, list(ROWS)), chosen("density", study.densities, list(DENSITIES))

    seeds = list(range(study.seeds))

    def cell(row: str) -> Cell:
        pictures = {density: out / "toys" / "samples" / density / f"{row}.npy" for density in densities}
        # What is trained side by side shares random numbers, so all of it is part of what decides a result.
        what = {"row": row, "title": ROWS[row].title, "densities": densities, "seeds": seeds}
        return Cell(
            row,
            {**what, **asdict(settings), "of_row": describe(ROWS[row])},
            lambda: run_toys(ROWS[row], densities, seeds, settings, pictures),
        )

    cells = [cell(row) for row in rows]
    run_cells(cells, out / "toys" / "cells", "study toys")
    if study.report:
        report([f"out={out}"])


def pusht(args: Sequence[str]) -> None:
    """Run PushT cells and write their table."""
    from isdt_policy.lab.study.cells import Cell, run_cells
    from isdt_policy.lab.study.pusht import PUSHT_ROWS, PushtSettings, pusht_config, run_pusht
    from isdt_policy.lab.study.rows import chosen, describe

    study, settings = _read(PushtSettings, args)
    if study.densities:
        raise InputError("densities= belongs to isdt study toys.")
    out, work = Path(study.out), Path(study.work)
    rows = chosen("row", study.rows, list(PUSHT_ROWS))
    for row in rows:  # refuses what does not fit, before hours of work
        pusht_config(PUSHT_ROWS[row], 0, settings, work / row, study.threads)

    def cell(row: str, seed: int) -> Cell:
        what = {"row": row, "title": PUSHT_ROWS[row].title, "seed": seed}
        return Cell(
            f"{row}_{seed}",
            {**what, **asdict(settings), "of_row": describe(PUSHT_ROWS[row])},
            lambda: run_pusht(PUSHT_ROWS[row], seed, settings, work / f"{row}_{seed}", study.threads),
        )

    cells = [cell(row, seed) for seed in range(study.seeds) for row in rows]
    run_cells(cells, out / "pusht" / "cells", "study pusht")
    if study.report:
        report([f"out={out}"])


def tasks(args: Sequence[str]) -> None:
    """Run the cells of recipes and baselines, and write their tables."""
    from isdt_policy.lab.study.tasks import Tasks, report, run_tasks

    overrides = [arg for arg in args if "." in arg.partition("=")[0]]
    chosen = Tasks(**bind(Tasks, [arg for arg in args if arg not in overrides]))
    if chosen.report not in ("true", "false", "only"):
        raise InputError(f"report={chosen.report} is not one of true, false, only.")
    if chosen.report != "only":
        run_tasks(chosen, overrides)
    if chosen.report != "false":
        print(report(chosen.out))
        print(f"written: {Path(chosen.out) / 'tables.md'}, {Path(chosen.out) / 'success.png'}")


@dataclass(frozen=True)
class Study:
    """Which cells to run, beside the settings of a cell; see `HELP`."""

    rows: tuple[str, ...] = ()
    densities: tuple[str, ...] = ()
    seeds: int = 3
    threads: int = 1
    out: str = OUT
    work: str = "outputs/study"
    report: bool = True


def _read(settings: type, args: Sequence[str]) -> tuple[Study, Any]:
    """Split key=value arguments between `Study` and the settings of a cell."""
    mine = {f.name for f in fields(Study)}
    both = make_dataclass("Arguments", [], bases=(Study, settings), frozen=True)
    values = bind(both, args)
    for key, value in values.items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise InputError(f"{key}={value} must be at least 1.")
    study = Study(**{key: value for key, value in values.items() if key in mine})
    return study, settings(**{key: value for key, value in values.items() if key not in mine})


def report(args: Sequence[str]) -> None:
    """Write tables and figures from the cells below out=."""
    from isdt_policy.lab.study.cells import read_json
    from isdt_policy.lab.study.figures import draw_pusht, draw_toys
    from isdt_policy.lab.study.pusht import PUSHT_ROWS
    from isdt_policy.lab.study.rows import ROWS
    from isdt_policy.lab.study.table import pusht_table, single_runs, toy_tables
    from isdt_policy.lab.study.toys import stray_shares

    out = Path(bind(_only_out, args).get("out", OUT))
    order = [*ROWS, *PUSHT_ROWS]
    found = False
    for study in ("toys", "pusht"):
        cells: list[Any] = [read_json(path) for path in sorted((out / study / "cells").rglob("*.json"))]
        cells = [cell for cell in cells if cell["settings"]["row"] in order]
        cells.sort(key=lambda cell: order.index(cell["settings"]["row"]))
        if not cells:
            continue
        found = True
        if study == "toys":
            cells = single_runs(cells)
            draw_toys(cells, out, out / "toys" / "samples")
            text = toy_tables(cells, stray_shares(out / "toys" / "samples"))
        else:
            draw_pusht(cells, out)
            text = pusht_table(cells)
        (out / f"{study}.md").write_text(_conditions(cells) + "\n" + text)
        print(text)
        print(f"written: {out / f'{study}.md'}")
    if not found:
        raise InputError(f"no cells below '{out}'. Run some: isdt study toys out={out}")


def _only_out(out: str = OUT) -> None:
    """The arguments of `isdt study report`."""


def _conditions(cells: Sequence[Mapping[str, Any]]) -> str:
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
