"""One page that shows a flow map's diagnostics: six panels, each under its own sentence."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isdt_policy.shared.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, LINE, GOOD, LOOK, BLUE, SAND = "#1d2733", "#6b7785", "#e3e8ed", "#0f8b8d", "#d1495b", "#3d5a80", "#e09f3e"
MOST_NUMBERED = 12  # cells across of a triangle whose values are written out
TERMS = {
    "diagonal": ("flow matching\n(diagonal)", BLUE),
    "off_diagonal": ("self-distillation\n(off-diagonal)", SAND),
    "loss": ("loss as\ntrained", GOOD),
}


def draw_page(info: Mapping[str, Any], path: Path, title: str) -> None:
    """Draw the page of `isdt diagnose` from the content of diagnostics.json.

    Raises:
        InputError: Matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("the figures need Matplotlib: pip install 'isdt-policy[report]'") from error
    from matplotlib.figure import Figure  # no pyplot: a figure of our own touches no global state

    style: Any = {
        "font.family": "sans-serif", "font.size": 9.5, "axes.edgecolor": "#c3cad2", "axes.labelcolor": MUTED,
        "axes.spines.top": False, "axes.spines.right": False, "xtick.color": MUTED, "ytick.color": MUTED,
        "text.color": INK, "axes.axisbelow": True,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(15.5, 10.6), facecolor="white")
        grid = figure.add_gridspec(2, 3, left=0.06, right=0.98, top=0.80, bottom=0.06, hspace=0.58, wspace=0.24)
        axes = [figure.add_subplot(grid[row, column]) for row in range(2) for column in range(3)]
        figure.text(0.06, 0.966, title, fontsize=21, weight="bold", va="center")
        figure.text(0.06, 0.934, f"{info['n_windows']} windows, {info['data']}", fontsize=11, color=MUTED, va="center")
        panels = (
            (_diversity, "diversity", "Is one step varied enough?"),
            (_chunk, "", "The same along the chunk"),
            (_gradients, "gradients", "Are gradients steady?"),
            (_residual, "consistency", "Is the map consistent with its velocity?"),
            (_semigroup, "semigroup", "Do two steps agree with one?"),
            (_null, "null", "Has the null branch drifted?"),
        )
        reading = {line["key"]: line for line in info["reading"]}
        for ax, (draw, key, question) in zip(axes, panels):
            _heading(ax, question, reading.get(key))
            draw(ax, info)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)


def _heading(ax: Axes, question: str, line: Mapping[str, Any] | None) -> None:
    good = line["good"] if line else None
    colour = {True: GOOD, False: LOOK, None: MUTED}[good]
    box = ax.get_position()
    assert ax.figure is not None
    top = box.y1 + 0.098
    if good is not None:
        ax.figure.text(box.x0, top, "●", color=colour, fontsize=12, va="top")
    indent = 0.014 if good is not None else 0.0
    ax.figure.text(box.x0 + indent, top, question, fontsize=12.5, weight="bold", va="top")
    text = (
        line["text"]
        if line
        else "Spread over draws at every step of the prediction; shaded: the part that is executed next."
    )
    ax.figure.text(
        box.x0, top - 0.024, textwrap.fill(text[:1].upper() + text[1:], 67), fontsize=9, color=MUTED, va="top",
        linespacing=1.3,
    )  # fmt: skip


def _diversity(ax: Axes, info: Mapping[str, Any]) -> None:
    d = info["diversity"]
    one, many = (_rms(d[name], axis=1) for name in ("one_step", "euler"))
    data = float(_rms(d["data"]))
    positive = np.concatenate([one, many, [data]])
    low, high = positive[positive > 0].min() / 1.4, positive.max() * 1.4
    ax.plot([low, high], [low, high], color="#aab4bf", lw=1, zorder=1)
    ax.annotate("equal spread", (low, low), (6, 34), textcoords="offset points", color=MUTED, fontsize=8.5)
    ax.scatter(many, one, s=16, color=GOOD, alpha=0.45, lw=0, label="one observation")
    ax.plot([_rms(many)], [_rms(one)], "o", ms=10, color=INK, mec="white", mew=1.5, label="all together")
    ax.axhline(data, color=LOOK, lw=1.4, ls=(0, (4, 3)), label="data's distance from the mean")
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    for axis in (ax.xaxis, ax.yaxis):
        _plain_log(axis)
    ax.set_xlabel(f"spread of {d['euler_steps']}-step Euler samples")
    ax.set_ylabel("spread of one-step samples")
    ax.grid(color=LINE, lw=0.7, which="major")
    ax.legend(frameon=False, loc="lower right", fontsize=8.5)


def _chunk(ax: Axes, info: Mapping[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    d = info["diversity"]
    rows = (
        ("data", "data's distance from the mean", LOOK, (0, (4, 3))),
        ("euler", f"{d['euler_steps']}-step Euler samples", BLUE, "-"),
        ("one_step", "one-step samples", GOOD, "-"),
        ("from_euler", "one step to Euler, same noise", SAND, (0, (1, 1.4))),
    )
    for name, label, colour, dash in rows:
        values = _rms(d[name], axis=0)
        ax.plot(np.arange(len(values)), values, color=colour, lw=2.2, ls=dash, label=label)
    first, last = info["executed"]
    ax.axvspan(first - 0.5, last - 0.5, color="#eef3f4", lw=0, zorder=0)
    ax.set(xlabel="step of the predicted chunk", ylabel="normalised action units")
    ax.set_ylim(0, 1.5 * max(float(np.max(_rms(d[name], axis=0))) for name, *_ in rows))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", color=LINE, lw=0.7)
    ax.legend(frameon=False, loc="upper left", fontsize=8.5)


def _gradients(ax: Axes, info: Mapping[str, Any]) -> None:
    norms = info["gradient_norms"]
    if not norms:
        ax.text(0.5, 0.5, "not measured", ha="center", va="center", color=MUTED, transform=ax.transAxes)
        ax.set_axis_off()
        return
    rng = np.random.default_rng(0)  # of the sideways scatter of the points alone
    names = list(norms)
    for row, name in enumerate(reversed(names)):
        values = np.array(norms[name]["values"])
        colour = TERMS.get(name, (name, BLUE))[1]
        ax.scatter(values, row + rng.uniform(-0.22, 0.22, len(values)), s=15, color=colour, alpha=0.5, lw=0)
        median, high = norms[name]["median"], norms[name]["p99"]
        ax.plot([median, median], [row - 0.32, row + 0.32], color=colour, lw=3, solid_capstyle="round")
        ax.plot([high, high], [row - 0.32, row + 0.32], color=colour, lw=1.4, ls=(0, (2, 2)))
        ax.annotate(
            f"median {median:.2g},  99 % {high:.2g},  max {norms[name]['max']:.2g}", (median, row + 0.36),
            ha="center", va="bottom", fontsize=8.5, color=colour,
        )  # fmt: skip
    ax.set_yticks(range(len(names)), [TERMS.get(name, (name, BLUE))[0] for name in reversed(names)])
    ax.tick_params(axis="y", length=0, labelsize=8.5)
    ax.set_ylim(-0.55, len(names) - 0.3)
    low = min(min(norms[name]["values"]) for name in names)
    high = max(norms[name]["max"] for name in names)
    ax.set_xscale("log")
    ax.set_xlim(max(low, high * 1e-4) / 1.8, high * 2.6)
    _plain_log(ax.xaxis)
    ax.set_xlabel(f"gradient norm of a training batch ({norms['loss']['n']} batches)")
    ax.grid(axis="x", color=LINE, lw=0.7)


def _residual(ax: Axes, info: Mapping[str, Any]) -> None:
    _triangle(ax, info["consistency"], "residual over velocity")


def _semigroup(ax: Axes, info: Mapping[str, Any]) -> None:
    _triangle(ax, info["semigroup"], "difference over the data's spread")


def _triangle(ax: Axes, values: Mapping[str, Any], label: str) -> None:
    """One square per pair (t, s), s < t, coloured and labelled with its error in percent."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("isdt", ["#f2f7f7", "#9fd0cf", "#e9c46a", "#d1495b"])
    n = len({*values["t"]})
    square = np.full((n, n), np.nan)
    i, j = (np.rint(np.array(values[k]) * n).astype(int) for k in ("t", "s"))
    square[j, i - 1] = 100 * np.array(values["error"]) / values["scale"]
    top = max(float(np.nanmax(square)), 1e-9)
    edges = np.arange(n + 1)
    mesh = ax.pcolormesh(edges, edges, square, cmap=colours, vmin=0, vmax=top, edgecolors="white", lw=1.5)
    if n <= MOST_NUMBERED:
        for row, column in np.argwhere(np.isfinite(square)):
            value = square[row, column]
            colour = "white" if value > 0.8 * top else INK
            text = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
            ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7.5, color=colour)
    ax.add_patch(_corner(n))
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


def _corner(n: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((n - 1, 0), 1, 1, fill=False, edgecolor=INK, lw=1.8, clip_on=False, zorder=3)


def _null(ax: Axes, info: Mapping[str, Any]) -> None:
    d = info["null_drift"]
    t, velocity = np.array(d["t"]), np.array(d["velocity"])
    drift, noise, effect = (100 * np.array(d[name]) / velocity for name in ("drift", "noise", "effect"))
    ax.fill_between(t, 0, noise, color="#e6ebef", lw=0, label="drift that chance alone would show")
    ax.plot(t, effect, color=BLUE, lw=2.2, label="what the observation changes")
    ax.plot(t, drift, "o-", color=GOOD, lw=2.2, ms=4.5, label="drift: null against mean over conditions")
    ax.set(xlabel="time t  (0 = data, 1 = noise)", ylabel="share of the velocity, %", xlim=(t[0], 1))
    ax.set_ylim(0, 1.35 * max(effect.max(), drift.max(), noise.max()))
    ax.grid(axis="y", color=LINE, lw=0.7)
    ax.legend(frameon=False, loc="upper left", fontsize=8.5)


def _plain_log(axis: Any) -> None:
    """Ticks at 1, 2 and 5 of every decade, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _rms(values: Any, axis: int | None = None) -> Any:
    return np.sqrt(np.square(values).mean(axis=axis))
