"""Figures of several results: success against training, and best rewards seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isdt_policy.eval.comparison import Group, Line, common_seeds, lines
from isdt_policy.eval.result import Result
from isdt_policy.eval.tables import run_and_step
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.plotting import ACCENT, BAD, LINE, SAND, SERIES, plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_pairs(groups: Sequence[Group], arm: Arm | None, path: Path) -> None:
    """Draw the best reward of every shared seed, the first row's against each other row's, coloured by who succeeds.

    Several training seeds of a row are averaged; a success is then a majority of them.

    Raises:
        InputError: fewer than two rows, or no seeds in common.
    """
    first, *others = lines(groups, arm)
    if not others:
        raise InputError("pairs= needs two rows: give a second result, or leave arm= out.")
    # Rows of one result: its name would only be repeated, and is too long for an axis.
    alone = all(group.name == first[0].name for group, _ in others)
    with plots("pairs=") as plt:
        figure, panels = plt.subplots(
            1, len(others), figsize=(3.6 * len(others), 3.9), layout="constrained", squeeze=False
        )
        for axes, line in zip(panels[0], others, strict=True):
            _pairs(axes, first, line, alone)
        figure.savefig(path)
        plt.close(figure)


def _pairs(axes: Axes, first: Line, other: Line, alone: bool) -> None:
    here, there = (f"arm {arm}" if alone else f"{group.name}, {arm}" for group, arm in (first, other))
    sides = [group.episodes(arm) for group, arm in (first, other)]
    shared = common_seeds(*sides)
    if not shared:
        raise InputError(f"{here} and {there} share no seeds, so there are no pairs to draw.")
    x, y = (np.array([np.mean([run[s].max_reward for run in side]) for s in shared]) for side in sides)
    a, b = (np.array([np.mean([bool(run[s].success) for run in side]) > 0.5 for s in shared], bool) for side in sides)
    for who, label, colour in (
        (a & b, "both succeed", LINE),
        (a & ~b, f"only {here}", ACCENT),
        (~a & b, f"only {there}", SAND),
        (~a & ~b, "neither", BAD),
    ):
        axes.plot(x[who], y[who], "o", ms=4, alpha=0.7, color=colour, label=f"{label}: {int(who.sum())}")
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    room = 0.04 * (high - low) + 1e-6
    limits = (low - room, high + room)
    axes.set(xlabel=f"best reward: {here}", ylabel=f"best reward: {there}", xlim=limits, ylim=limits, aspect="equal")
    axes.legend(fontsize=7, loc="lower left")


def draw_curves(groups: Sequence[Group], arm: Arm | None, path: Path) -> None:
    """Draw success with its interval against windows seen and minutes of training, one line per run and arm.

    Results that do not say what their training had cost are drawn against the step alone.

    Raises:
        InputError: a result of a checkpoint whose path names no step, or without a rate of success.
    """
    results = [result for group in groups for result in group.results]
    costs = [result.origin.policy.training for result in results]
    scales: dict[str, list[float]] = {"training step": [run_and_step(result)[1] for result in results]}
    if all(costs):
        scales = {
            "training windows seen, thousands": [cost["windows"] / 1000 for cost in costs if cost],
            "minutes of training": [cost["seconds"] / 60 for cost in costs if cost],
        }
    runs: dict[tuple[str, Arm], list[int]] = {}
    for i, result in enumerate(results):
        for name in result.arms:
            if arm in (None, name):
                runs.setdefault((run_and_step(result)[0], name), []).append(i)
    if not runs:
        raise InputError(f"no result has arm={arm}, so there is no curve to draw.")
    with plots("curves=") as plt:
        figure, panels = plt.subplots(
            1, len(scales), figsize=(6 * len(scales), 3.6), layout="constrained", sharey=True, squeeze=False
        )
        for axes, (label, x) in zip(panels[0], scales.items()):
            for ((run, name), members), colour in zip(runs.items(), SERIES * (1 + len(runs) // len(SERIES))):
                members = sorted(members, key=lambda i: x[i])
                text = f"{Path(run).name}, {name.title}"
                _band(axes, [x[i] for i in members], [results[i] for i in members], name, (colour, text))
            axes.set(xlabel=label, ylim=(0, 100))
            axes.set_xlim(left=0)
            axes.grid(axis="y")
        n = results[0].arms[next(iter(runs))[1]].n
        panels[0][0].set_ylabel(f"success, % (n = {n}, 95 %)")
        panels[0][0].legend(fontsize=8)
        figure.savefig(path)
        plt.close(figure)


def _band(axes: Axes, x: Sequence[float], results: Sequence[Result], arm: Arm, look: tuple[str, str]) -> None:
    colour, label = look
    rates = [result.arms[arm].success_rate for result in results]
    known = [rate for rate in rates if rate is not None]
    if len(known) < len(rates):
        raise InputError("the environment does not report success, so there is no curve of it to draw.")
    axes.plot(x, [100 * r.value for r in known], "o-", ms=3, color=colour, label=label)
    low, high = [100 * r.low for r in known], [100 * r.high for r in known]
    axes.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
