"""Results of a task: the shipped recipe and its baselines on the same network, data and steps, over training seeds.

A cell is an ordinary run of `isdt train` and an ordinary `isdt eval` of it; both resume. What is left of a cell is its
eval_info.json and the configuration it was trained with, so every number of the table can be traced to its episodes.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isdt_policy.eval.command import Options
from isdt_policy.eval.command import run as run_eval
from isdt_policy.eval.comparison import Group, Row, compare
from isdt_policy.eval.result import Result
from isdt_policy.eval.seeds import FINAL_START
from isdt_policy.method.objectives import completed
from isdt_policy.method.policy import find_policy
from isdt_policy.method.samplers import Sampling, plan
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.files import write_text
from isdt_policy.training.command import train
from isdt_policy.training.config import compose_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECIPE = "recipe"  # the objective that the experiment itself names
OBJECTIVES = (RECIPE, "flow_matching", "meanflow", "diffusion", "regression")
TITLES = {
    RECIPE: "**iSD-T**",
    "flow_matching": "flow matching",
    "meanflow": "MeanFlow",
    "diffusion": "diffusion",
    "regression": "regression",
}

# How a policy of each kind is asked: as its users run it, and at the few evaluations that it is compared at.
ARMS: dict[str, tuple[str, ...]] = {
    "flow_map": ("1", "2"),
    "velocity": ("1", "2", "euler10"),
    "consistency": ("1", "2"),
    "regression": ("1",),
    "diffusion": ("ddim2", "ddim10", "ddpm100"),
}
RECIPE_ARMS = ("1", "2", "4", "euler10")


@dataclass(frozen=True)
class Tasks:
    """Which cells to run; the arguments of `isdt study tasks`.

    Attributes:
        experiments: names of configs/experiment; required.
        objectives: "recipe" and names of configs/objective.
        seeds: training seeds.
        episodes: final-evaluation seeds (100000 ...) per arm, the same for every cell.
        arms: in place of `RECIPE_ARMS` and `ARMS` where a policy can be asked so; more of them can be added later.
        threads: CPU threads of a cell.
        n_envs, n_workers: of the evaluation.
        out: where results stay; a folder per experiment.
        work: where runs live, with their weights.
        report: "true" writes tables and figures at the end, "only" does nothing else, "false" leaves them.
    """

    experiments: tuple[str, ...] = ()
    objectives: tuple[str, ...] = OBJECTIVES
    seeds: tuple[str, ...] = ("42", "43", "44")
    episodes: int = 200
    arms: tuple[str, ...] = ()
    threads: int = 1
    n_envs: int = 16
    n_workers: int = 0
    out: str = "results/tasks"
    work: str = "outputs"
    report: str = "true"


def run_tasks(tasks: Tasks, overrides: Sequence[str]) -> None:
    """Run every cell that is missing and that no other process is running, one training seed of all before the next.

    Args:
        overrides: further settings of `isdt train` that all cells share, such as data.path=.

    Raises:
        InputError: nothing to run, a bad setting, or a cell made with other settings.
    """
    if not tasks.experiments:
        raise InputError("which experiments? For example: isdt study tasks experiments=[lift,can]")
    for seed in tasks.seeds:
        if not seed.isdigit():
            raise InputError(f"seeds={list(tasks.seeds)}: '{seed}' is not a whole number.")
    cells = [
        (experiment, objective, int(seed))
        for seed in tasks.seeds
        for objective in tasks.objectives
        for experiment in tasks.experiments
    ]
    configs = {cell: cell_config(*cell, tasks, overrides) for cell in cells}  # all are checked before anything runs
    arms = {cell: arms_of(cell[1], config, tasks.arms) for cell, config in configs.items()}
    for number, (cell, config) in enumerate(configs.items(), start=1):
        name = "_".join(map(str, cell))
        folder = cell_folder(tasks.out, *cell)
        if finished(folder, config, arms[cell]):
            continue
        with _claim(Path(tasks.work) / f"{name}.lock") as mine:
            if not mine:
                print(f"cell {number} of {len(cells)}: {name} is being run by another process")
            elif not finished(folder, config, arms[cell]):
                print(f"cell {number} of {len(cells)}: {name}", flush=True)
                run_cell(config, arms[cell], folder, tasks)


def cell_folder(out: str | Path, experiment: str, objective: str, seed: int) -> Path:
    """Where the result of a cell stays."""
    return Path(out) / experiment / f"{objective}_{seed}"


def cell_config(
    experiment: str, objective: str, seed: int, tasks: Tasks, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """The configuration of a cell's training run, as `isdt train` composes it."""
    name = f"{experiment}_{objective}_{seed}"
    # Baselines draw standard normal noise, as their papers have it.
    chosen = [] if objective == RECIPE else [f"objective={objective}", "policy.noise_scale=1"]
    config = compose_config([
        f"experiment={experiment}", *chosen, f"name={name}", f"run_dir={Path(tasks.work) / name}", "if_exists=resume",
        f"training.seed={seed}", f"training.threads={tasks.threads}", *overrides,
    ])  # fmt: skip
    return json.loads(json.dumps(config))  # type: ignore[no-any-return]  # tuples as config.json holds them


def finished(folder: Path, config: Mapping[str, Any], arms: Sequence[str]) -> bool:
    """Whether the result of a cell is there, with these arms; InputError if it was trained with other settings."""
    if not (folder / "eval_info.json").exists():
        return False
    was, result = json.loads((folder / "train_config.json").read_text()), Result.load(folder)
    # Training does not read it, so it is the evaluation's that counts; cells from before it was a setting have 1.
    was["policy"]["noise_scale"] = (result.origin.policy.config or {}).get("noise_scale", 1.0)
    was["objective"] = completed(was["objective"], config["objective"])
    for section in ("data", "network", "objective", "policy", "training"):
        before, now = was[section], config[section]
        for key in sorted({*before, *now} - OF_THE_MACHINE):
            if before.get(key) != now.get(key):
                raise InputError(
                    f"{folder} was made with {section}.{key}={before.get(key)}, now {now.get(key)}. Ask for the same settings, "
                    "delete the folder, or choose another out=."
                )
    return set(map(Arm.parse, arms)) <= set(result.arms)


# Where the data lie, how many threads learn from them, in which precision: no part of what a cell is.
OF_THE_MACHINE = {"path", "threads", "amp", "tensorboard", "keep_checkpoints"}


@contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Whether this process may run a cell; the claim ends with the process, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
    path.unlink(missing_ok=True)


def arms_of(objective: str, config: Mapping[str, Any], wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Arms of a cell's evaluation: those wanted that its policy can be asked, or else the usual ones."""
    sampling = Sampling.read(config["policy"].get("sampling", {}))
    if not wanted:
        return RECIPE_ARMS if objective == RECIPE else ARMS[sampling.kind]
    able = tuple(arm for arm in wanted if _answers(arm, sampling))
    if not able:
        raise InputError(
            f"no entry of arms=[{','.join(wanted)}] suits '{objective}', which is asked {', '.join(ARMS[sampling.kind])}."
        )
    return able


def _answers(arm: str, sampling: Sampling) -> bool:
    try:
        plan(arm, sampling)
    except InputError:
        return False
    return True


def run_cell(config: dict[str, Any], arms: Sequence[str], folder: Path, tasks: Tasks) -> None:
    """Train, evaluate, and put the result into `folder`."""
    run = train(config, command="isdt study tasks")
    scale = config["policy"]["noise_scale"]
    saved = json.loads((find_policy(run) / "config.json").read_text()).get("noise_scale", 1.0)
    options = Options(
        checkpoint=str(run), steps=tuple(arms), episodes=tasks.episodes, seed_start=FINAL_START, n_envs=tasks.n_envs,
        n_workers=tasks.n_workers, videos=0, report=False, out=str(run / "eval"),
        noise_scale=None if scale == saved else scale,
    )  # fmt: skip
    command = f"isdt eval checkpoint={run} 'steps=[{','.join(arms)}]' episodes={tasks.episodes}"
    command += "" if scale == saved else f" noise_scale={scale}"
    result = run_eval(options, command)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "config.json", folder / "train_config.json")
    result.save(folder)


# Tables.


# Results of one experiment: {objective: {training seed: result}}.
ByObjective = Mapping[str, Mapping[int, Result]]


def results(out: str | Path) -> dict[str, ByObjective]:
    """Results by experiment, objective and training seed; objectives in the order of `OBJECTIVES`, others last."""
    found: dict[str, dict[str, dict[int, Result]]] = {}
    for path in sorted(Path(out).glob("*/*_*/eval_info.json")):
        objective, _, seed = path.parent.name.rpartition("_")
        found.setdefault(path.parent.parent.name, {}).setdefault(objective, {})[int(seed)] = Result.load(path)
    order = {name: i for i, name in enumerate(OBJECTIVES)}
    return {
        experiment: dict(sorted(by.items(), key=lambda item: order.get(item[0], len(order))))
        for experiment, by in found.items()
    }


SUMMARY: dict[str, tuple[str, str]] = {
    "**iSD-T, 1**": (RECIPE, "1"),
    "iSD-T, 2": (RECIPE, "2"),
    "MeanFlow, 1": ("meanflow", "1"),
    "MeanFlow, 2": ("meanflow", "2"),
    "flow matching, 1": ("flow_matching", "1"),
    "flow matching, 10": ("flow_matching", "euler10"),
    "DDIM, 2": ("diffusion", "ddim2"),
    "DDIM, 10": ("diffusion", "ddim10"),
    "DDPM, 100": ("diffusion", "ddpm100"),
    "regression, 1": ("regression", "1"),
}


def summary(found: Mapping[str, ByObjective]) -> str:
    """Success at the evaluations that matter most, a line each, in every experiment, a column each, in Markdown."""
    rows = [{(row.name, row.arm.name): row for row in rows_of(by)} for by in found.values()]
    lines = ["| success, % [95 %] | " + " | ".join(found) + " |", "|" + "---|" * (len(found) + 1)]
    for title, key in SUMMARY.items():
        cells = [_percent(by[key]) if key in by else "" for by in rows]
        if title.startswith("**"):
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    counts = {f"{row.runs} x {row.n // row.runs}" for by in rows for key, row in by.items() if key in SUMMARY.values()}
    note = f"Training seeds x episodes: {', '.join(sorted(counts, reverse=True))}; each in the tables below."
    return "\n".join([*lines, "", note])


def table(by_objective: ByObjective) -> str:
    """The results of one experiment in Markdown; differences are from its first row."""
    rows = rows_of(by_objective)
    lines = [
        "| policy | evaluations | success, % [95 %] | by training seed | score [95 %] | difference in success | p | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        there = [result for result in by_objective[row.name].values() if row.arm in result.arms]
        rates = [result[row.arm].success_rate for result in there]
        seeds = ", ".join(f"{100 * rate.value:.1f}" for rate in rates if rate)
        trainings = [result.origin.policy.training for result in there]
        costs = [training["seconds"] / 60 for training in trainings if training]
        minutes = f"{sum(costs) / len(costs):.0f}" if costs else ""
        lines.append(
            f"| {TITLES.get(row.name, row.name)} | {words(row.arm)} | {_percent(row)} | {seeds} | {row.score.value:.3f} "
            f"[{row.score.low:.3f}, {row.score.high:.3f}] | {_difference(row)} | {minutes} |"
        )
    trained = sorted({seed for by_seed in by_objective.values() for seed in by_seed})
    n = sorted({row.n // row.runs for row in rows})
    many = any(row.runs > 1 for row in rows)
    lines += [
        "",
        f"{' or '.join(map(str, n))} episodes for each training seed ({', '.join(map(str, trained))}). Intervals: "
        + ("bootstrap over training seeds and episodes, for a single training seed " if many else "")
        + "Wilson for success, bootstrap for the score. Differences from the first row on common episode seeds, p: "
        + ("exact McNemar for single training seeds, else " if many else "")
        + ("permutation of signs over episodes." if many else "exact McNemar.")
        + " These differences and p take the trained policies as given: chance in training is not in them.",
    ]
    return "\n".join(lines)


def failures(by_objective: ByObjective) -> str:
    """Which seeds fail at one evaluation of the recipe and which at more, for every training seed; "" without such arms."""
    lines = []
    one = Arm()
    for seed, result in by_objective.get(RECIPE, {}).items():
        others = [arm for arm in result.arms if arm != one]
        if one not in result.arms or not others:
            continue
        for row in rows_of({RECIPE: {seed: result.only([one, *others])}})[1:]:
            assert row.difference is not None
            f, p = row.difference.failures, row.difference.p_success
            assert f is not None
            assert p is not None
            lines.append(
                f"| {seed} | {row.n} | {words(row.arm)} | {f.reference_alone} | {f.here_alone} | {f.both} | {f.expected:.1f} | "
                f"{_p(p)} |"
            )
    head = "| training seed | episodes | against | 1 evaluation alone | the other alone | both | by chance | p |"
    return "\n".join(["Episodes that fail:", "", head, "|" + "---|" * 8, *lines]) if lines else ""


def rows_of(by_objective: ByObjective) -> list[Row]:
    """One row per objective and arm, over the training seeds that have the arm; differences are from the first."""
    lines = [
        (name, arm, tuple(result for result in by_seed.values() if arm in result.arms))
        for name, by_seed in by_objective.items()
        for arm in dict.fromkeys(arm for result in by_seed.values() for arm in result.arms)
    ]
    first = _only(*lines[0])
    return [compare([first])[0], *(compare([first, _only(*line)])[1] for line in lines[1:])]


def _only(name: str, arm: Arm, found: Sequence[Result]) -> Group:
    """A group with a single arm."""
    return Group(name, tuple(result.only([arm]) for result in found))


def words(arm: Arm) -> str:
    """An arm as a table names it: its evaluations, and the sampler if it is not the flow map's own."""
    kinds = {"": "", "euler": " (Euler)", "ddim": " (DDIM)", "ddpm": " (DDPM)"}
    return f"{arm.intervals}{kinds.get(arm.sampler, f' ({arm.sampler})')}"


def _percent(row: Row) -> str:
    if row.success is None:
        return "not reported"
    return f"{100 * row.success.value:.1f} [{100 * row.success.low:.0f}, {100 * row.success.high:.0f}]"


def _difference(row: Row) -> str:
    d = row.difference
    if d is None or d.success is None or d.p_success is None:
        return " | "
    e = d.success
    return f"{100 * e.value:+.1f} [{100 * e.low:+.1f}, {100 * e.high:+.1f}] | {_p(d.p_success)}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def report(out: str | Path) -> str:
    """Write tables.md and success.png below `out`; returns the tables."""
    found = results(out)
    if not found:
        raise InputError(f"no results below '{out}'. Run some: isdt study tasks experiments=[lift] out={out}")
    parts = [summary(found)]
    parts += [part for name, by in found.items() for part in (f"### {name}", table(by), failures(by)) if part]
    text = "\n\n".join(parts) + "\n"
    write_text(Path(out) / "tables.md", text)
    draw(found).savefig(Path(out) / "success.png", dpi=120)
    return text


COLOURS = {
    RECIPE: "#0b5fa5",
    "flow_matching": "#2a9d5c",
    "meanflow": "#e07b00",
    "diffusion": "#8e44ad",
    "regression": "#b03a2e",
}


def draw(found: Mapping[str, ByObjective]) -> Figure:
    """Success against network evaluations, a line per objective with intervals; a panel per experiment.

    The scale begins below the recipe's lowest; points under it are arrows with their value.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("the figure needs Matplotlib: pip install 'isdt-policy[report]', or report=false.") from error
    # One scale for all panels, so that a small difference looks like one; a policy that does not work would flatten the others.
    all_rows = {experiment: [row for row in rows_of(by) if row.success] for experiment, by in found.items()}
    recipe = [100 * r.success.low for rows in all_rows.values() for r in rows if r.name == RECIPE and r.success]
    floor = max(0, 10 * int((min(recipe, default=0) - 15) // 10))
    figure = Figure(figsize=(3.4 * len(found) + 1.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    handles: dict[str, Any] = {}
    for axes, (experiment, in_panel) in zip(panels, all_rows.items()):
        lines: dict[str, list[Row]] = {}
        for row in in_panel:
            own = row.name != RECIPE or row.arm.sampler != "euler"
            title = TITLES.get(row.name, row.name).strip("*") + ("" if own else ", its velocity by Euler")
            lines.setdefault(title, []).append(row)
        for number, (title, rows) in enumerate(lines.items()):
            shift = 1.05 ** (number - len(lines) / 2)  # beside each other instead of on top
            x = [row.arm.intervals * shift for row in rows]
            rates = [row.success for row in rows if row.success]
            y = [100 * rate.value for rate in rates]
            ends = [[100 * (r.value - r.low) for r in rates], [100 * (r.high - r.value) for r in rates]]
            style = "o-" if "Euler" not in title else "D"
            colour = COLOURS.get(rows[0].name, "#777777")
            handles[title] = axes.errorbar(
                x, y, yerr=ends, fmt=style, ms=5, lw=1.4, capsize=2, color=colour,
                mfc="white" if "Euler" in title else None, zorder=3 if rows[0].name == RECIPE else 2,
            )  # fmt: skip
            for at, value in zip(x, y):
                if value < floor:
                    axes.plot(at, floor + 1, "v", ms=5, color=colour)
                    axes.annotate(
                        f"{value:.1f}", (at, floor + 1), (7, -1), textcoords="offset points", color=colour, fontsize=8
                    )
        axes.set_xscale("log")
        most = max(row.arm.intervals for rows in lines.values() for row in rows)
        ticks = [tick for tick in (1, 2, 4, 10, 100) if tick <= max(most, 4)]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlim(0.8, 1.25 * ticks[-1])
        axes.minorticks_off()
        axes.set(xlabel="network evaluations per chunk", title=experiment)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(floor, 101)
    panels[0].set_ylabel("success, % (95 %)")
    figure.legend(list(handles.values()), list(handles), loc="outside right upper", frameon=False, fontsize=8)
    return figure
