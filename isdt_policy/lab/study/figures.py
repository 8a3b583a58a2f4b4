"""Figures of the study, PNG, drawn from cells."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from isdt_policy.lab.study.densities import DENSITIES
from isdt_policy.lab.study.rows import NFE
from isdt_policy.lab.study.table import Cells, Run, by_row
from isdt_policy.shared.plotting import BAD, INK, LINE, MUTED, SERIES, plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Rows in the foreground; every other row is grey, or left out where there is no room.
COLORS = {
    "isd_t": SERIES[0],
    "weight_none": SERIES[2],
    "weight_one": SERIES[3],
    "times_one": SERIES[4],
    "meanflow": SERIES[1],
    "consistency": BAD,
    "naive_divided": SERIES[6],
    "flow_matching": SERIES[5],
    "ddim": SERIES[7],
}
TOP = 60  # of the quality panels, in floors
FAR = 1000  # gradient ratios beyond it are drawn there
LOW = 0.7  # where the axis of the score begins; what is below it stands at the edge as an arrow


def draw_toys(cells: Cells, folder: Path, pictures: Path) -> None:
    """Samples at one evaluation, quality against evaluations, gradient norms.

    Args:
        pictures: folder of <density>/<row>.npy, points of one evaluation.
    """
    with plots("The figures of isdt study") as plt:
        _samples(plt.figure, cells, pictures).savefig(folder / "toys_samples.png", dpi=110)
        _quality(plt.figure, cells).savefig(folder / "toys_quality.png", dpi=110)
        _gradients(plt.figure, cells).savefig(folder / "toys_gradients.png", dpi=110)
        plt.close("all")


def draw_pusht(cells: Cells, folder: Path) -> None:
    """Every seed's success at 1, 2, 10 evaluations, score at one, gradient ratio (dotted: 5); a bar at each mean."""
    rows = by_row(cells)
    panels: list[tuple[str, Callable[[Run], float]]] = [
        *((f"success at {n}, %", lambda r, n=n: 100 * r["success"][NFE.index(n)]["value"]) for n in (1, 2, 10)),
        (f"score at 1 (<: below {LOW})", lambda r: r["score"][NFE.index(1)]["value"]),
        ("gradient, 99 % / median", lambda r: r["gradient"]["p99_over_median"]),
    ]
    with plots("The figures of isdt study") as plt:
        figure = plt.figure(figsize=(13, 1.2 + 0.24 * len(rows)), layout="constrained")
        for i, (axes, (label, value)) in enumerate(zip(figure.subplots(1, len(panels), sharey=True), panels)):
            low = LOW if label.startswith("score") else -np.inf
            for y, (row, runs) in enumerate(rows.items()):
                known = [run["result"] for run in runs if run["result"]["success"] and run["result"]["gradient"]]
                _dots(axes, y, np.array([value(result) for result in known]), low, COLORS.get(row, MUTED))
                if i == 0 and len(known) < len(runs):
                    axes.plot(axes.get_xlim()[0], y, "x", color=BAD)
            if label.startswith("gradient"):
                axes.axvline(5, color=INK, lw=0.8, ls=":")
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            axes.set_xlabel(label, size=9)
            axes.grid(axis="x")
        first = figure.axes[0]
        first.set_yticks(range(len(rows)), [_short_title(runs[0]["settings"]["title"]) for runs in rows.values()])
        first.invert_yaxis()
        figure.savefig(folder / "pusht.png", dpi=110)
        plt.close(figure)


def _dots(axes: Axes, y: int, values: np.ndarray, low: float, color: str) -> None:
    """One row of a panel: a dot per seed, an arrow at the edge for what is below `low`, a bar at the mean."""
    for shown, marker in ((values[values >= low], "o"), (np.maximum(values[values < low], low), "<")):
        axes.plot(shown, [y] * len(shown), marker, ms=5, alpha=0.6, color=color)
    if len(values) and values.mean() >= low:
        axes.plot([values.mean()] * 2, [y - 0.35, y + 0.35], color=color, lw=2)


def _samples(new: Callable[..., Figure], cells: Cells, pictures: Path) -> Figure:
    titles = {cell["settings"]["row"]: cell["settings"]["title"] for cell in cells}
    densities = list(dict.fromkeys(cell["settings"]["density"] for cell in cells))
    shown = [row for row in COLORS if row in titles] or list(titles)[:7]
    figure = new(figsize=(1.75 * (1 + len(shown)), 1.85 * len(densities) + 0.4), layout="constrained")
    grid = figure.subplots(len(densities), 1 + len(shown), squeeze=False)
    for i, (line, density) in enumerate(zip(grid, densities)):
        data = DENSITIES[density](1500, torch.Generator().manual_seed(0)).numpy()
        for axes, row in zip(line, ["", *shown]):
            axes.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[], aspect="equal")
            for spine in axes.spines.values():
                spine.set_visible(True)
            path = pictures / density / f"{row}.npy"
            if row and not path.exists():
                continue
            points = np.load(path, allow_pickle=False).astype(float) if row else data
            axes.scatter(*points.T, s=1.3, lw=0, alpha=0.65, color=COLORS.get(row, INK) if row else INK)
            outside = float((~(np.abs(points) < 2.6).all(axis=1)).mean())
            if outside > 0.01:
                axes.text(2.5, -2.5, f"{100 * outside:.0f} % outside", ha="right", size=7, color=MUTED)
            if i == 0:
                axes.set_title(textwrap.fill(_short_title(titles[row]), 22) if row else "data", size=8)
    figure.suptitle("Samples at one network evaluation, first seed", size=10)
    return figure


def _quality(new: Callable[..., Figure], cells: Cells) -> Figure:
    densities = list(dict.fromkeys(cell["settings"]["density"] for cell in cells))
    figure = new(figsize=(4.1 * len(densities), 3.9), layout="constrained")
    panels = figure.subplots(1, len(densities), squeeze=False, sharey=True)[0]
    for axes, density in zip(panels, densities):
        group = by_row([cell for cell in cells if cell["settings"]["density"] == density])
        for row, runs in sorted(group.items(), key=lambda item: item[0] in COLORS):
            ratios = np.array([run["result"]["ratio"] for run in runs], dtype=float)
            known = ~np.isnan(ratios).all(axis=0)  # where every run of a row diverged there is nothing to draw
            if not known.any():
                continue
            steps, ratios = np.array(NFE)[known], ratios[:, known]
            color, front = COLORS.get(row, LINE), row in COLORS
            label = _short_title(runs[0]["settings"]["title"]) if front else None
            axes.plot(
                steps, np.nanmean(ratios, axis=0), "o-", color=color, ms=3.5, lw=1.8 if front else 0.9, label=label
            )
            if front:
                axes.fill_between(steps, np.nanmin(ratios, 0), np.nanmax(ratios, 0), color=color, alpha=0.15, lw=0)
        axes.axhline(1, color=INK, lw=0.8, ls=":")
        axes.set(xscale="log", yscale="log", xticks=NFE, xlabel="network evaluations")
        axes.set_xticklabels([str(n) for n in NFE])
        axes.minorticks_off()
        ticks = [1, 1.5, 2, 3, 5, 10, 20, 40]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_ylim(0.9, TOP)
        axes.set_title(density.replace("_", " "), size=10)
        axes.tick_params(labelsize=8)
    panels[0].set_ylabel("sliced Wasserstein / sampling floor", size=9)
    # A row that is missing in one panel may stand in another.
    lines = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(
        lines.values(),
        lines.keys(),
        loc="outside lower center",
        ncols=min(4, len(lines) or 1),
        fontsize=8,
    )
    return figure


def _gradients(new: Callable[..., Figure], cells: Cells) -> Figure:
    rows = by_row(cells)
    figure = new(figsize=(12, max(4.6, 1 + 0.19 * len(rows))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    first = cells[0]["settings"]["density"]
    for row, runs in by_row([cell for cell in cells if cell["settings"]["density"] == first]).items():
        trace = np.array(runs[0]["result"]["trace"], dtype=float)
        if row in COLORS and len(trace):
            left.plot(
                trace[:, 0], trace[:, 1], color=COLORS[row], lw=1.5, label=_short_title(runs[0]["settings"]["title"])
            )
            left.fill_between(trace[:, 0], trace[:, 1], trace[:, 2], color=COLORS[row], alpha=0.18, lw=0)
    left.set(yscale="log", xlabel="training step", ylabel="gradient norm before clipping")
    left.set_title(f"median and maximum along a run ({first.replace('_', ' ')}, first seed)", size=9)
    left.legend(fontsize=8, ncols=2)
    for y, (row, runs) in enumerate(rows.items()):
        known = [run["result"] for run in runs if run["result"]["gradient"]]
        for failed, marker in ((False, "o"), (True, "x")):
            values = [min(r["gradient"]["p99_over_median"], FAR) for r in known if r["diverged"] == failed]
            color = BAD if failed else COLORS.get(row, MUTED)
            right.plot(values, [y] * len(values), marker, ms=6 if failed else 4, alpha=0.7, color=color)
    right.axvline(5, color=INK, lw=0.8, ls=":")
    right.set(xscale="log", xlim=(1, 1.3 * FAR))
    right.set_xlabel("99 % / median of the gradient norm (dotted: 5)")
    right.set_title(f"every run; cross: diverged; {FAR} and beyond at the edge", size=9)
    right.set_yticks(range(len(rows)), [_short_title(runs[0]["settings"]["title"]) for runs in rows.values()])
    right.invert_yaxis()
    left.set_ylim(top=min(left.get_ylim()[1], 1e4))
    for axes, axis in ((left, left.yaxis), (right, right.xaxis)):
        axes.tick_params(labelsize=8)
        low, high = axis.get_view_interval()
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        wide = high / low > 100
        axis.set_minor_formatter(lambda v, _, wide=wide: "" if wide or f"{v:.0e}"[0] not in "25" else f"{v:g}")
        axis.set_tick_params(which="minor", labelsize=8, labelcolor=MUTED)
    return figure


def _short_title(title: str) -> str:
    return title.split(" (")[0]
