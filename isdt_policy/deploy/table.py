"""Success against inference latency for the three ways to live with it, on common seeds.

On the virtual clock: inference takes the stated latency and nothing else takes time, so a table is a function of the weights
and the seeds. A finished cell is kept in the JSON file; the same settings go on where they were stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from isdt_policy.deploy.controller import Control, control
from isdt_policy.deploy.latency import parse_latency
from isdt_policy.deploy.loading import find_limits, load_policy, task_of
from isdt_policy.deploy.report import Record
from isdt_policy.deploy.runtime import MODES, Mode
from isdt_policy.deploy.safety import Safety
from isdt_policy.envs import make
from isdt_policy.envs.protocol import Policy
from isdt_policy.envs.registry import TaskSpec
from isdt_policy.eval.origin import versions
from isdt_policy.eval.statistics import Estimate, wilson
from isdt_policy.shared import page as pages
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.files import check_writable, write_text
from isdt_policy.shared.plotting import SERIES, plots
from isdt_policy.shared.progress import Progress
from isdt_policy.shared.provenance import commit
from isdt_policy.shared.tables import markdown
from isdt_policy.shared.values import JsonObject, parse_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).parent / "templates" / "table.html"
STEPS_OF_DELAY = (0, 1, 2, 3, 4, 6)


class Cell(TypedDict):
    """One mode at one latency."""

    mode: str
    latency: str
    commit: str | None
    periods: int
    held: int
    interventions: dict[str, int]
    records: list[Record]


class Table(TypedDict):
    """What a file holds."""

    task: str
    weights: str
    episodes: int
    seed: int
    nfe: int
    rate_hz: float
    device: str
    command: str
    versions: dict[str, str]
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Grid:
    """What a table compares.

    Attributes:
        latencies: constant delays; default: 0, 1, 2, 3, 4 and 6 control steps of the task.
        modes: what happens while the policy computes; isdt deploy --help explains them.
        episodes: how many episodes a cell has; all cells have the same seeds.
        seed: the first episode starts from this seed, the others from the seeds that follow.
        nfe: network evaluations per chunk, the same in all modes (rtc takes at least two).
        rate: control steps per second; default: the task's.
        device: where the policy computes: cpu, cuda, cuda:1, mps, or auto for a GPU if there is one.
    """

    latencies: tuple[str, ...] = ()
    modes: tuple[Mode, ...] = MODES
    episodes: int = 50
    seed: int = 100_000
    nfe: int = 2
    rate: float | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.nfe < 1 or (self.rate is not None and not self.rate > 0):
            raise InputError("episodes, nfe and rate must be above 0.")
        for text in self.latencies:
            parse_latency(text)

    def at(self, spec: TaskSpec) -> Grid:
        """The same grid with the task's rate, and delays in its control steps, where none were given."""
        rate = self.rate or float(spec.rate_hz)
        delays = self.latencies or tuple(f"{1e3 * k / rate:g}ms" for k in STEPS_OF_DELAY)
        return replace(self, rate=rate, latencies=delays)


def measure(checkpoint: str, task: str | None, grid: Grid, file: Path, command: str) -> Table:
    """Fill every cell that `file` does not hold yet, and return its content.

    Args:
        checkpoint: a trained policy; an exported file or a server is fixed to one mode.
        task: None is the task that the policy was trained on.
        grid: what is compared.
        file: JSON; written after every cell.
        command: kept in the file.

    Raises:
        InputError: no trained policy, or the file holds a table of something else.
    """
    if checkpoint.endswith(".onnx") or "://" in checkpoint:
        raise InputError("the table needs a checkpoint: give a run directory or a folder of save_pretrained.")
    from isdt_policy.method.policy import weights_sha256  # with torch

    check_writable(file)
    policies = {mode: load_policy(checkpoint, mode, grid.device) for mode in grid.modes}
    first = next(iter(policies.values()))
    spec = task_of(first, task)
    grid = grid.at(spec)
    result: Table = {
        "task": spec.id,
        "weights": weights_sha256(checkpoint),
        "episodes": grid.episodes,
        "seed": grid.seed,
        "nfe": grid.nfe,
        "rate_hz": float(grid.rate or spec.rate_hz),
        "device": str(getattr(first, "computes_on", "cpu")),
        "command": command,
        "versions": versions(spec.id),
        "cells": {},
    }
    if file.is_file():
        found = _read(file)
        said = {key: value for key, value in result.items() if key not in ("command", "versions", "cells")}
        if changed := [key for key, value in said.items() if found.get(key) != value]:
            raise InputError(f"{file} holds a table with another {', '.join(changed)}; give another out=.")
        result["cells"] = found["cells"]
    bar = Progress(len(grid.latencies) * len(grid.modes), "table", "cell", every_s=5)
    for text in grid.latencies:
        for mode in grid.modes:
            name = f"{mode} {text}"
            if name not in result["cells"]:
                result["cells"][name] = _cell(checkpoint, policies[mode], spec, grid, mode, text)
                write_text(file, json.dumps(result, indent=1) + "\n")
            bar.update(1)
    bar.close()
    return result


def _read(file: Path) -> JsonObject:
    try:
        found = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}. Give another out=.") from None
    if not isinstance(found, dict) or not isinstance(found.get("cells"), dict):
        raise InputError(f"{file} is not a table of isdt deploy table; give another out=.")
    found.setdefault("nfe", found.get("steps"))  # its name in version 0.1.0
    found.setdefault("device", "cpu")
    return found


def _cell(checkpoint: str, policy: Policy, spec: TaskSpec, grid: Grid, mode: Mode, latency: str) -> Cell:
    rate_hz = float(grid.rate or spec.rate_hz)
    limits = find_limits(checkpoint, policy, spec)
    env = make(spec.id, tuple(dict.fromkeys([*policy.obs_keys, *filter(None, [limits.position])])))
    settings = Control(
        rate_hz,
        mode=mode,
        nfe=grid.nfe,
        seed=grid.seed,
        episodes=grid.episodes,
        virtual=True,
        latency=parse_latency(latency),
        max_steps=spec.max_episode_steps,
    )
    report = control(
        policy, env, Safety(limits, action_dim=spec.action.shape[0], rate_hz=rate_hz, positions=True), settings
    )
    env.close()
    return {
        "mode": mode,
        "latency": latency,
        "commit": commit(),
        "periods": report.periods,
        "held": report.held,
        "interventions": report.interventions,
        "records": [episode.as_dict() for episode in report.finished],
    }


def page(result: Table, grid: Grid) -> str:
    """The table in Markdown: success with its Wilson interval, and the share of control steps that were held."""
    first, n = result["seed"], result["episodes"]
    lines = [
        f"# Success against inference latency: {result['task']} at {result['rate_hz']:g} Hz",
        "",
        markdown(["latency", *grid.modes], _rows(result, grid)),
        "",
        f"Success with Wilson 95 % interval, n = {n} per cell, seeds {first} to {first + n - 1} in every cell, "
        f"{result['nfe']} network evaluations per chunk in every mode. Held: share of control steps without a fresh action.",
        "Simulated time: inference takes the stated latency, nothing else takes time. One training seed.",
        "",
        f"Weights {result['weights']}, commit {_commits(result)}, "
        + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
        + ". Every episode is in the JSON file beside this one.",
        "",
        "```sh",
        result["command"],
        "```",
        "",
    ]
    return "\n".join(lines)


def html(result: Table, grid: Grid) -> str:
    """The same as a page: the longest latency in large, the figure, every cell.

    Raises:
        InputError: Matplotlib is missing.
    """
    longest, first, n = _delays(result, grid)[-1], result["seed"], result["episodes"]
    cards = []
    for mode in grid.modes:
        rate, held = _success(result["cells"][f"{mode} {longest}"]), _held(result["cells"][f"{mode} {longest}"])
        text = f"95 %: {100 * rate.low:.0f} to {100 * rate.high:.0f} %, held {100 * held:.0f} %"
        cards.append({"title": f"{mode}, {longest}", "rate": rate, "text": text})
    with _drawn(result, grid) as drawing:
        svg = pages.svg(drawing)
    return pages.render(
        TEMPLATE, title=f"isdt deploy table: {result['task']} at {result['rate_hz']:g} Hz", cards=cards, figure=svg,
        sub=f"{n} episodes per cell, seeds {first} to {first + n - 1}, {result['nfe']} network evaluations per chunk",
        header=["latency", *grid.modes], rows=_rows(result, grid),
        facts={"command": result["command"], "commit": _commits(result), "weights": result["weights"],
               "device": result["device"], **result["versions"]},
    )  # fmt: skip


def _rows(result: Table, grid: Grid) -> list[list[str]]:
    def text(cell: Cell) -> str:
        done, r = cell["records"], _success(cell)
        score = sum(e["max_reward"] for e in done) / len(done)
        return f"{100 * r.value:.0f} % [{100 * r.low:.0f}, {100 * r.high:.0f}], score {score:.3f}, held {100 * _held(cell):.0f} %"

    return [
        [delay, *(text(result["cells"][f"{mode} {delay}"]) for mode in grid.modes)] for delay in _delays(result, grid)
    ]


def _commits(result: Table) -> str:
    return " and ".join(sorted({str(cell["commit"]) for cell in result["cells"].values()}))


def _held(cell: Cell) -> float:
    return cell["held"] / cell["periods"]


def _delays(result: Table, grid: Grid) -> tuple[str, ...]:
    return grid.latencies or tuple(dict.fromkeys(cell["latency"] for cell in result["cells"].values()))


def _success(cell: Cell) -> Estimate:
    return wilson(sum(e["success"] for e in cell["records"]), len(cell["records"]), 0.95)


def figure(result: Table, grid: Grid, path: Path) -> None:
    """Draw success against latency, one line per mode, with intervals.

    Raises:
        InputError: Matplotlib is missing.
    """
    with _drawn(result, grid) as drawing:
        drawing.savefig(path, dpi=150)


@contextmanager
def _drawn(result: Table, grid: Grid) -> Iterator[Figure]:
    delays = _delays(result, grid)
    with plots("The figure") as pyplot:
        drawing, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
        x = np.arange(len(delays), dtype=float)
        for i, mode in enumerate(grid.modes):
            rates = [_success(result["cells"][f"{mode} {delay}"]) for delay in delays]
            y = 100 * np.array([r.value for r in rates])
            spread = [y - 100 * np.array([r.low for r in rates]), 100 * np.array([r.high for r in rates]) - y]
            moved = x + 0.06 * (i - (len(grid.modes) - 1) / 2)
            axes.errorbar(
                moved, y, np.maximum(spread, 0), marker="o", capsize=2, label=mode, color=SERIES[i % len(SERIES)]
            )
        title = f"{result['task']}, {result['episodes']} seeds"
        axes.set(xlabel="inference latency", ylabel="success, %", ylim=(-3, 103), title=title)
        axes.set_xticks(x, delays)
        axes.legend()
        yield drawing
        pyplot.close(drawing)
