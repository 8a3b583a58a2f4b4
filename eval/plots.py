"""The figures of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from isdt_policy.envs.pusht_scene import outline
from isdt_policy.eval.result import Result
from isdt_policy.eval.statistics import Estimate
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.page import svg
from isdt_policy.shared.plotting import ACCENT, BAD, GOOD, GRID, LINE, SERIES, plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAPS = 3  # most arms in the map of start states


@dataclass(frozen=True)
class Plot:
    """A figure as an element of a page.

    Attributes:
        title: above it; "" for none.
        svg: the drawing.
    """

    title: str
    svg: Markup


def plots_of(result: Result) -> list[Plot]:
    """What every report shows: success against evaluations and latency, where there is something to compare, and scores."""
    found = [_plot("Every episode's score, sorted", partial(_scores, result=result))]
    if len(result.arms) > 1 and all(summary.success_rate for summary in result.arms.values()):
        if all(summary.latency for summary in result.arms.values()):
            found.insert(0, _plot("Success against inference latency", partial(_latency, result=result)))
        found.insert(0, _plot("Success against network evaluations", partial(_evaluations, result=result)))
    if any(record.mode is not None for record in result.episodes):
        found.append(_plot("How many ways the successes took", partial(_ways, result=result)))
    return found


def start_map(result: Result) -> Plot | None:
    """Where episodes of PushT start, and how they end; None for other tasks."""
    if result.protocol.task != "pusht" or result.episodes[0].initial_state is None:
        return None
    arms = list(result.arms)[:MAPS]
    size = (4.1 * len(arms), 4.8) if len(arms) > 1 else (5.0, 5.5)
    with plots("The report") as plt:
        figure, axes = plt.subplots(1, len(arms), figsize=size, layout="constrained", squeeze=False)
        for ax, arm in zip(axes[0], arms):
            _map(ax, result, arm)
        plt.close(figure)
        return Plot("", svg(figure))


def _plot(title: str, draw: Callable[[Axes], None]) -> Plot:
    with plots("The report") as plt:
        figure, axes = plt.subplots(figsize=(4.0, 3.0), layout="constrained")
        draw(axes)
        plt.close(figure)
        return Plot(title, svg(figure))


def _evaluations(axes: Axes, result: Result) -> None:
    mapped = sorted((arm for arm in result.arms if not arm.sampler), key=lambda arm: arm.nfe)
    others = [arm for arm in result.arms if arm.sampler]
    if mapped:
        label = "flow map" if others else ""
        _error_bars(axes, [arm.nfe for arm in mapped], _rates(result, mapped), (GOOD, "o-", label))
    for arm in others:
        (rate,) = _rates(result, [arm])
        _error_bars(axes, [arm.nfe], [rate], (ACCENT, "s", ""))
        _label(axes, arm.nfe, rate, arm.title, ACCENT)
    ticks = sorted({arm.nfe for arm in result.arms})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.minorticks_off()
    axes.set_xlim(min(ticks) / 1.3, max(ticks) * 1.6)
    axes.set_xlabel("network evaluations per chunk")
    _percent_axis(axes)
    if mapped and others:
        _legend_above(axes)


def _latency(axes: Axes, result: Result) -> None:
    for i, (arm, summary) in enumerate(result.arms.items()):
        rate, latency = summary.success_rate, summary.latency
        if rate is None or latency is None:
            continue
        colour, marker = (ACCENT, "s") if arm.sampler else (GOOD, "o")
        x = latency.single_row_ms.p50
        _error_bars(axes, [x], [rate], (colour, marker, ""))
        # At two heights in turn: one and two evaluations lie close together.
        _label(axes, x, rate, arm.title, colour, low=bool(i % 2))
    low, high = axes.get_xlim()
    axes.set_xlim(0, high + 0.25 * (high - low))
    axes.set_xlabel("median latency of one row, ms")
    _percent_axis(axes)


def _scores(axes: Axes, result: Result) -> None:
    for arm, colour in zip(result.arms, (GOOD, *SERIES) * (1 + len(result.arms) // len(SERIES))):
        scores = np.sort([record.max_reward for record in result.of(arm)])
        share = (np.arange(len(scores)) + 0.5) / len(scores) * 100
        axes.plot(share, scores, "o-" if len(scores) < 20 else "-", ms=3, color=colour, lw=2, label=arm.title)
    axes.set(xlabel="episodes, % (sorted)", ylabel="highest reward", ylim=(-0.02, 1.05), xlim=(0, 100))
    if (highest := max(record.max_reward for record in result.episodes)) > 1.05:
        axes.set_ylim(top=1.05 * highest)
    axes.grid(axis="y")
    _legend_above(axes)


def _ways(axes: Axes, result: Result) -> None:
    for arm, colour in zip(result.arms, (GOOD, *SERIES) * (1 + len(result.arms) // len(SERIES))):
        taken = np.bincount([r.mode for r in result.of(arm) if r.mode is not None] or [0])
        taken = np.sort(taken[taken > 0])[::-1]
        label = f"{arm.title}: {len(taken)}"
        axes.plot(np.arange(1, len(taken) + 1), taken, "o-", ms=3, color=colour, lw=2, label=label)
    axes.set(xlabel="ways, from the most to the least frequent", ylabel="successes")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    _legend_above(axes)


def _map(axes: Axes, result: Result, arm: Arm) -> None:
    from matplotlib.collections import PolyCollection

    scale = 1 / 3 if len(result.seeds) <= 60 else 1 / 5
    goal = outline(256, 256, np.pi / 4, 1.0)
    axes.add_collection(PolyCollection([goal], facecolor=GRID, edgecolor=LINE, lw=1.2))
    for success, colour in ((True, GOOD), (False, BAD)):
        states = [r.initial_state for r in result.of(arm) if bool(r.success) is success and r.initial_state]
        outlines = [outline(x, y, angle, scale) for _, _, x, y, angle in states]
        axes.add_collection(PolyCollection(outlines, facecolor=colour, edgecolor="white", lw=0.4, alpha=0.85))
        for agent_x, agent_y, x, y, _ in states:
            axes.plot([agent_x, x], [agent_y, y], color=colour, lw=0.5, alpha=0.25)
        label = "success" if success else "failure"
        axes.plot([], [], "s", color=colour, ms=8, label=f"{label} ({len(states)})")
    axes.set(xlim=(0, 512), ylim=(512, 0), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    axes.set_title(arm.title)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=2)


def _rates(result: Result, arms: Sequence[Arm]) -> list[Estimate]:
    return [rate for arm in arms if (rate := result[arm].success_rate) is not None]


def _error_bars(axes: Axes, x: Sequence[float], rates: Sequence[Estimate], look: tuple[str, str, str]) -> None:
    """Rates in percent with their intervals; `look` is colour, marker and label."""
    colour, style, label = look
    y = np.array([100 * r.value for r in rates])
    error = np.abs(np.array([[100 * r.low for r in rates], [100 * r.high for r in rates]]) - y)
    axes.errorbar(x, y, error, fmt=style, color=colour, lw=2, ms=7, capsize=4, elinewidth=1.5, label=label)


def _label(axes: Axes, x: float, rate: Estimate, text: str, colour: str, low: bool = False) -> None:
    """Name a point beside it, inside the axes whether the rate is high or low."""
    y = 100 * rate.value
    heights = (5, -13) if y > 50 else (20, 7)
    axes.annotate(text, (x, y), (7, heights[low]), textcoords="offset points", color=colour)


def _legend_above(axes: Axes) -> None:
    """Points and curves may lie anywhere in the axes."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8.5, borderaxespad=0.2)


def _percent_axis(axes: Axes) -> None:
    axes.set(ylabel="success, %", ylim=(-3, 103))
    axes.grid(axis="y")
