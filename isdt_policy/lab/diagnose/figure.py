"""Panels that show a flow map's diagnostics, each with the sentence that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from isdt_policy.lab.diagnose.gradients import summary
from isdt_policy.lab.diagnose.measure import Array, Measures, Triangle
from isdt_policy.lab.diagnose.reading import Line
from isdt_policy.shared import page
from isdt_policy.shared.plotting import ACCENT, BAD, GOOD, GRID, INK, MUTED, SAND, plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

MOST_NUMBERED = 12  # cells across of a triangle whose values are written out
TERMS = {
    "diagonal": ("flow matching\n(diagonal)", ACCENT),
    "off_diagonal": ("self-distillation\n(off-diagonal)", SAND),
    "loss": ("loss as\ntrained", GOOD),
}


@dataclass(frozen=True)
class Panel:
    """A figure of the page.

    Attributes:
        question: its heading.
        line: the finding that it shows, if one belongs to it.
        text: below the heading.
        svg: the figure.
    """

    question: str
    line: Line | None
    text: str
    svg: Markup


def panels(m: Measures, lines: Sequence[Line]) -> list[Panel]:
    """Draw every panel.

    Raises:
        InputError: Matplotlib is not installed.
    """
    found = {line.key: line for line in lines}
    along = "Spread over draws at every step of the prediction; shaded: the part that is carried out."
    wanted = (
        (_gradients, "gradients", "Are gradients steady?"),
        (_diversity, "diversity", "Is one step varied enough?"),
        (_chunk, "", "The same along the chunk"),
        (_residual, "consistency", "Is the map consistent with its velocity?"),
        (_semigroup, "semigroup", "Do two steps agree with one?"),
        (_flow, "flow", "Do few evaluations follow the network's own flow?"),
        (_null, "null", "Has the null branch drifted?"),
    )
    drawn = []
    for draw, key, question in wanted:
        with plots("The figures of isdt diagnose") as plt:
            figure, ax = plt.subplots(figsize=(5.6, 3.9), layout="constrained")
            draw(ax, m)
            line = found.get(key)
            drawn.append(Panel(question, line, line.text if line else along, page.svg(figure)))
            plt.close(figure)
    return drawn


def _diversity(ax: Axes, m: Measures) -> None:
    d = m.diversity
    one, many = _rms(d.one_step, axis=1), _rms(d.euler, axis=1)
    data = float(_rms(d.data))
    positive = np.concatenate([one, many, [data]])
    low, high = positive[positive > 0].min() / 1.4, positive.max() * 1.4
    ax.plot([low, high], [low, high], color="#aab4bf", lw=1, zorder=1)
    ax.annotate("equal spread", (low, low), (6, 34), textcoords="offset points", color=MUTED, fontsize=8.5)
    ax.scatter(many, one, s=16, color=GOOD, alpha=0.45, lw=0, label="one observation")
    ax.plot([_rms(many)], [_rms(one)], "o", ms=10, color=INK, mec="white", mew=1.5, label="all together")
    ax.axhline(data, color=BAD, lw=1.4, ls=(0, (4, 3)), label="data's distance from the mean")
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    for axis in (ax.xaxis, ax.yaxis):
        _plain_log(axis)
    ax.set_xlabel(f"spread of {d.euler_steps}-step Euler samples")
    ax.set_ylabel("spread of one-step samples")
    ax.grid(color=GRID, lw=0.7, which="major")
    ax.legend(loc="lower right", fontsize=8.5)


def _chunk(ax: Axes, m: Measures) -> None:
    from matplotlib.ticker import MaxNLocator

    d = m.diversity
    rows = (
        (d.data, "data's distance from the mean", BAD, (0, (4, 3))),
        (d.euler, f"{d.euler_steps}-step Euler samples", ACCENT, "-"),
        (d.one_step, "one-step samples", GOOD, "-"),
        (d.from_euler, "one step to Euler, same noise", SAND, (0, (1, 1.4))),
    )
    for spread, label, colour, dash in rows:
        values = _rms(spread, axis=0)
        ax.plot(np.arange(len(values)), values, color=colour, lw=2.2, ls=dash, label=label)
    ax.axvspan(m.executed.start - 0.5, m.executed.stop - 0.5, color="#eef3f4", lw=0, zorder=0)
    ax.set(xlabel="step of the predicted chunk", ylabel="normalised action units")
    ax.set_ylim(0, 1.5 * max(float(np.max(_rms(spread, axis=0))) for spread, *_ in rows))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", color=GRID, lw=0.7)
    ax.legend(loc="upper left", fontsize=8.5)


def _gradients(ax: Axes, m: Measures) -> None:
    norms = m.gradient_norms
    if not norms:
        ax.text(0.5, 0.5, "not measured", ha="center", va="center", color=MUTED, transform=ax.transAxes)
        ax.set_axis_off()
        return
    rng = np.random.default_rng(0)  # of the sideways scatter of the points alone
    names = list(norms)
    for row, name in enumerate(reversed(names)):
        values, found = np.array(norms[name]), summary(norms[name])
        colour = TERMS.get(name, (name, ACCENT))[1]
        ax.scatter(values, row + rng.uniform(-0.22, 0.22, len(values)), s=15, color=colour, alpha=0.5, lw=0)
        median, high = found.median, found.p99
        ax.plot([median, median], [row - 0.32, row + 0.32], color=colour, lw=3, solid_capstyle="round")
        ax.plot([high, high], [row - 0.32, row + 0.32], color=colour, lw=1.4, ls=(0, (2, 2)))
        ax.annotate(
            f"median {median:.2g},  99 % {high:.2g},  max {found.max:.2g}", (median, row + 0.36),
            ha="center", va="bottom", fontsize=8.5, color=colour,
        )  # fmt: skip
    ax.set_yticks(range(len(names)), [TERMS.get(name, (name, ACCENT))[0] for name in reversed(names)])
    ax.tick_params(axis="y", length=0, labelsize=8.5)
    ax.set_ylim(-0.55, len(names) - 0.3)
    low = min(min(norms[name]) for name in names)
    high = max(max(norms[name]) for name in names)
    ax.set_xscale("log")
    ax.set_xlim(max(low, high * 1e-4) / 1.8, high * 2.6)
    _plain_log(ax.xaxis)
    ax.set_xlabel(f"gradient norm of a training batch ({len(norms['loss'])} batches)")
    ax.grid(axis="x", color=GRID, lw=0.7)


def _residual(ax: Axes, m: Measures) -> None:
    _triangle(ax, m.consistency, "residual over velocity")


def _semigroup(ax: Axes, m: Measures) -> None:
    _triangle(ax, m.semigroup, "difference over the data's spread")


def _triangle(ax: Axes, values: Triangle, label: str) -> None:
    """One square per pair (t, s), s < t, coloured and labelled with its error in percent."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    colours = LinearSegmentedColormap.from_list("isdt", ["#f2f7f7", "#9fd0cf", "#e9c46a", "#d1495b"])
    n = len({*values.t})
    square = np.full((n, n), np.nan)
    i, j = (np.rint(time * n).astype(int) for time in (values.t, values.s))
    square[j, i - 1] = 100 * values.relative
    top = max(float(np.nanmax(square)), 1e-9)
    edges = np.arange(n + 1)
    mesh = ax.pcolormesh(edges, edges, square, cmap=colours, vmin=0, vmax=top, edgecolors="white", lw=1.5)
    if n <= MOST_NUMBERED:
        for row, column in np.argwhere(np.isfinite(square)):
            value = square[row, column]
            colour = "white" if value > 0.8 * top else INK
            text = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
            ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7.5, color=colour)
    ax.add_patch(Rectangle((n - 1, 0), 1, 1, fill=False, edgecolor=INK, lw=1.8, clip_on=False, zorder=3))
    shown = np.arange(n)[:: max(1, n // 5)]
    ax.set_xticks(
        np.arange(n)[:: -max(1, n // 5)] + 0.5, [f"{(k + 1) / n:g}" for k in np.arange(n)[:: -max(1, n // 5)]]
    )
    ax.set_yticks(shown + 0.5, [f"{k / n:g}" for k in shown])
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set(xlabel="from t  (1 = noise)", ylabel="to s  (0 = data)")
    if n > MOST_NUMBERED:
        assert ax.figure is not None
        bar = ax.figure.colorbar(mesh, ax=ax, fraction=0.04, pad=0.02)
        bar.outline.set_visible(False)  # type: ignore[operator]
    note = f"{label}, %\noutlined: the pair that one step uses"
    ax.text(0.02, 0.97, note, transform=ax.transAxes, va="top", fontsize=8.5, color=MUTED)


def _flow(ax: Axes, m: Measures) -> None:
    f = m.flow
    colours = (GOOD, ACCENT, SAND)
    for evaluations, distance, colour in zip(f.evaluations, f.distance, colours):
        label = f"{evaluations:g} evaluation{'s' if evaluations > 1 else ''}"
        ax.plot(100 * distance / f.spread, color=colour, lw=2.2, label=label)
    ax.axvspan(m.executed.start - 0.5, m.executed.stop - 0.5, color="#eef3f4", lw=0, zorder=0)
    ax.set(xlabel="step of the predicted chunk", ylabel="distance over the data's spread, %")
    ax.set_ylim(bottom=0)
    ax.grid(axis="y", color=GRID, lw=0.7)
    ax.legend(fontsize=8.5)


def _null(ax: Axes, m: Measures) -> None:
    d, t = m.null_drift, m.null_drift.t
    drift, noise, effect = (100 * part / d.velocity for part in (d.drift, d.noise, d.effect))
    ax.fill_between(t, 0, noise, color="#e6ebef", lw=0, label="drift that chance alone would show")
    ax.plot(t, effect, color=ACCENT, lw=2.2, label="what the observation changes")
    ax.plot(t, drift, "o-", color=GOOD, lw=2.2, ms=4.5, label="drift: null against mean over conditions")
    ax.set(xlabel="time t  (0 = data, 1 = noise)", ylabel="share of the velocity, %", xlim=(t[0], 1))
    ax.set_ylim(0, 1.35 * max(effect.max(), drift.max(), noise.max()))
    ax.grid(axis="y", color=GRID, lw=0.7)
    ax.legend(loc="upper left", fontsize=8.5)


def _plain_log(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 of every decade, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _rms(values: Array, axis: int | None = None) -> Array:
    return np.sqrt(np.square(values).mean(axis=axis))  # type: ignore[no-any-return]
