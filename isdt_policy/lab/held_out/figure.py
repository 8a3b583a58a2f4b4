"""Figures of `isdt eval data`: errors along the chunk, and replays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from isdt_policy.lab.held_out.measure import Array
from isdt_policy.shared import page
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.plotting import GRID, INK, MUTED, SERIES, plots

MOST = 12  # entries of an action that are drawn


def errors(error: Mapping[str, Array], demonstrators: Array | None, hold: Array, execute: int) -> Markup:
    """Error at every step of the chunk, a panel an entry of the action; shaded: the steps that are executed."""
    with plots("The figures of isdt eval data") as plt:
        figure, axes = _grid(plt, min(hold.shape[1], MOST))
        for i, ax in enumerate(axes):
            ax.axvspan(-0.5, execute - 0.5, color="#eef3f4", lw=0, zorder=0)
            for (arm, value), colour in zip(error.items(), SERIES):
                ax.plot(value[:, i], color=colour, lw=1.8, label=Arm.parse(arm).title)
            if demonstrators is not None:
                ax.plot(demonstrators[:, i], color=INK, lw=1.4, ls=(0, (4, 3)), label="demonstrators")
            ax.plot(hold[:, i], color=MUTED, lw=1.2, ls=(0, (1, 1.5)), label="repeat last action")
            ax.set(title=f"action[{i}]", ylim=(0, None), xlabel="step of the chunk")
            ax.grid(axis="y", color=GRID, lw=0.7)
        axes[0].legend(fontsize=8)
        drawn = page.svg(figure)
        plt.close(figure)
    return drawn


def replay(recorded: Array, pieces: Sequence[tuple[NDArray[np.int64], Array]]) -> Markup:
    """Recorded actions of an episode, and the chunks that the policy would have executed on the recorded observations."""
    with plots("The figures of isdt eval data") as plt:
        figure, axes = _grid(plt, min(recorded.shape[1], MOST))
        for i, ax in enumerate(axes):
            ax.plot(recorded[:, i], color=INK, lw=2.4, alpha=0.35, label="recorded")
            for number, (steps, actions) in enumerate(pieces):
                ax.plot(steps, actions[:, i], color=SERIES[number % 2], lw=1.4, label="policy" if number == 0 else None)
            ax.set(title=f"action[{i}]", xlabel="step")
            ax.grid(axis="y", color=GRID, lw=0.7)
        axes[0].legend(fontsize=8)
        drawn = page.svg(figure)
        plt.close(figure)
    return drawn


def _grid(plt, count):  # type: ignore[no-untyped-def]
    columns = min(count, 3)
    lines = -(-count // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.4 * columns, 2.2 * lines), layout="constrained", squeeze=False
    )
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:count])
