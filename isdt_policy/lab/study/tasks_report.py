"""Tables and figure of the study of tasks, from the episodes of its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isdt_policy.eval.comparison import Group, Row, compare
from isdt_policy.eval.result import Result
from isdt_policy.lab.study.settings import OBJECTIVES, RECIPE
from isdt_policy.shared import tables
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.files import write_text
from isdt_policy.shared.plotting import BAD, MUTED, SERIES, plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure

TITLES = {
    RECIPE: "**iSD-T**",
    "flow_matching": "flow matching",
    "meanflow": "MeanFlow",
    "diffusion": "diffusion",
    "regression": "regression",
}

# Results of one experiment: {objective: {training seed: result}}.
ByObjective = Mapping[str, Mapping[int, Result]]

# Rows of every experiment, see `rows_of`.
Rows = Mapping[str, Sequence[Row]]


def results(out: Path) -> dict[str, ByObjective]:
    """Results by experiment, objective and training seed; objectives in the order of `OBJECTIVES`, others last."""
    found: dict[str, dict[str, dict[int, Result]]] = {}
    for path in sorted(out.glob("*/*_*/eval_info.json")):
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


def headline(rows: Rows) -> str:
    """The recipe at one evaluation beside the best baselines of each experiment, a line each, in Markdown.

    The baseline is the one that succeeded most often on the same episodes: a choice in favour of the baselines.
    """
    lines = []
    for experiment, own in rows.items():
        others = [row for row in own if row.name != RECIPE and row.success]
        recipe = next((row for row in own if (row.name, row.arm.name) == (RECIPE, "1")), None)
        once = [row for row in others if row.arm.intervals == 1]
        more = [row for row in others if row.arm.intervals > 1]
        ours = f"**{_percent(recipe)}**" if recipe else ""
        lines.append([f"`{experiment}`", ours, _best(once), _best(more)])
    header = ("success, % [95 %]", "iSD-T, 1 evaluation", "best baseline, 1 evaluation", "best baseline, 2 to 100")
    return tables.markdown(header, lines)


def _best(rows: Sequence[Row]) -> str:
    """The highest rate of success and all that have it; "" if there is none."""
    best = max((row.success.value for row in rows if row.success), default=None)
    first = [row for row in rows if row.success and row.success.value == best]
    once = all(row.arm.intervals == 1 for row in rows)
    names = ", ".join(TITLES.get(row.name, row.name) + ("" if once else f" with {words(row.arm)}") for row in first)
    return f"{_percent(first[0])} ({names})" if first else ""


def summary(rows: Rows) -> str:
    """Success at the evaluations that matter most, a line each, in every experiment, a column each, in Markdown."""
    columns = [{(row.name, row.arm.name): row for row in own} for own in rows.values()]
    lines = []
    for title, key in SUMMARY.items():
        cells = [_percent(by[key]) if key in by else "" for by in columns]
        if title.startswith("**"):
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        lines.append([title, *cells])
    counts = {
        f"{row.runs} x {row.n // row.runs}" for by in columns for key, row in by.items() if key in SUMMARY.values()
    }
    note = f"Training seeds x episodes: {', '.join(sorted(counts, reverse=True))}; each in the tables below."
    return tables.markdown(["success, % [95 %]", *rows], lines) + f"\n\n{note}"


def table(by_objective: ByObjective, rows: Sequence[Row]) -> str:
    """The results of one experiment, and their rows, in Markdown; differences are from its first row."""
    header = (
        "policy", "evaluations", "success, % [95 %]", "by training seed", "score [95 %]", "difference in success", "p", "minutes",
    )  # fmt: skip
    lines = []
    for row in rows:
        there = [result for result in by_objective[row.name].values() if row.arm in result.arms]
        rates = [result[row.arm].success_rate for result in there]
        seeds = ", ".join(f"{100 * rate.value:.1f}" for rate in rates if rate)
        trainings = [result.origin.policy.training for result in there]
        costs = [training["seconds"] / 60 for training in trainings if training]
        minutes = f"{sum(costs) / len(costs):.0f}" if costs else ""
        score = f"{row.score.value:.3f} [{row.score.low:.3f}, {row.score.high:.3f}]"
        name = TITLES.get(row.name, row.name)
        lines.append([name, words(row.arm), _percent(row), seeds, score, *_difference(row), minutes])
    trained = sorted({seed for by_seed in by_objective.values() for seed in by_seed})
    n = sorted({row.n // row.runs for row in rows})
    many = any(row.runs > 1 for row in rows)
    note = (
        f"{' or '.join(map(str, n))} episodes for each training seed ({', '.join(map(str, trained))}). Intervals: "
        + ("bootstrap over training seeds and episodes, for a single training seed " if many else "")
        + "Wilson for success, bootstrap for the score. Differences from the first row on common episode seeds, p: "
        + ("exact McNemar for single training seeds, else " if many else "")
        + ("permutation of signs over episodes." if many else "exact McNemar.")
        + " These differences and p take the trained policies as given: chance in training is not in them."
    )
    return tables.markdown(header, lines) + f"\n\n{note}"


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
            counts = (f.reference_alone, f.here_alone, f.both, f"{f.expected:.1f}")
            lines.append([seed, row.n, words(row.arm), *counts, _p(p)])
    header = (
        "training seed", "episodes", "against", "1 evaluation alone", "the other alone", "both", "by chance", "p",
    )  # fmt: skip
    return f"Episodes that fail:\n\n{tables.markdown(header, lines)}" if lines else ""


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


def _difference(row: Row) -> tuple[str, str]:
    """The difference in success with its interval, and its p."""
    d = row.difference
    if d is None or d.success is None or d.p_success is None:
        return "", ""
    e = d.success
    return f"{100 * e.value:+.1f} [{100 * e.low:+.1f}, {100 * e.high:+.1f}]", _p(d.p_success)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def write(out: Path) -> str:
    """Write tables.md and success.png below `out`; returns the tables.

    Raises:
        InputError: there are no results.
    """
    found = results(out)
    if not found:
        raise InputError(f"no results below '{out}'. Run some: isdt study tasks experiments=[lift] out={out}")
    rows = {experiment: rows_of(by) for experiment, by in found.items()}
    text = told(found, rows)
    write_text(out / "tables.md", text)
    draw(rows).savefig(out / "success.png", dpi=120)
    return text


def told(found: Mapping[str, ByObjective], rows: Rows) -> str:
    """All tables in Markdown: what README shows, the summary, and a section per experiment."""
    parts = [headline(rows), summary(rows)]
    for name, by in found.items():
        parts += [part for part in (f"### {name}", table(by, rows[name]), failures(by)) if part]
    return "\n\n".join(parts) + "\n"


COLOURS = dict(
    zip(
        (RECIPE, "meanflow", "flow_matching", "diffusion", "regression"),
        (SERIES[0], SERIES[1], SERIES[5], SERIES[3], BAD),
    )
)


def draw(rows: Rows) -> Figure:
    """Success against network evaluations, a line per objective with intervals; a panel per experiment.

    The scale begins below the recipe's lowest; points under it are arrows with their value.
    """
    # One scale for all panels, so that a small difference looks like one; a policy that does not work would flatten the others.
    shown = {experiment: [row for row in own if row.success] for experiment, own in rows.items()}
    recipe = [100 * r.success.low for own in shown.values() for r in own if r.name == RECIPE and r.success]
    floor = max(0, 10 * int((min(recipe, default=0) - 15) // 10))
    with plots("The figure of isdt study tasks") as plt:
        figure = plt.figure(figsize=(3.4 * len(shown) + 1.6, 3.4), layout="constrained")
        panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        handles: dict[str, ErrorbarContainer] = {}
        for axes, (experiment, own) in zip(panels, shown.items()):
            axes.set_title(experiment)
            handles |= _panel(axes, own, floor)
        panels[0].set_ylabel("success, % (95 %)")
        figure.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize=8)
        plt.close(figure)
    return figure


def _panel(axes: Axes, in_panel: Sequence[Row], floor: int) -> dict[str, ErrorbarContainer]:
    """One experiment; returns what the legend shows."""
    lines: dict[str, list[Row]] = {}
    for row in in_panel:
        own = row.name != RECIPE or row.arm.sampler != "euler"
        title = TITLES.get(row.name, row.name).strip("*") + ("" if own else ", its velocity by Euler")
        lines.setdefault(title, []).append(row)
    handles: dict[str, ErrorbarContainer] = {}
    for number, (title, rows) in enumerate(lines.items()):
        shift = 1.05 ** (number - len(lines) / 2)  # beside each other instead of on top
        x = [row.arm.intervals * shift for row in rows]
        rates = [row.success for row in rows if row.success]
        y = [100 * rate.value for rate in rates]
        ends = [[100 * (r.value - r.low) for r in rates], [100 * (r.high - r.value) for r in rates]]
        euler, colour = "Euler" in title, COLOURS.get(rows[0].name, MUTED)
        handles[title] = axes.errorbar(
            x, y, yerr=ends, fmt="D" if euler else "o-", ms=5, lw=1.4, capsize=2, color=colour,
            mfc="white" if euler else None, zorder=3 if rows[0].name == RECIPE else 2,
        )  # fmt: skip
        for at, value in zip(x, y):
            if value < floor:
                axes.plot(at, floor + 1, "v", ms=5, color=colour)
                text = f"{value:.1f}"
                axes.annotate(text, (at, floor + 1), (7, -1), textcoords="offset points", color=colour, fontsize=8)
    axes.set_xscale("log")
    most = max(row.arm.intervals for row in in_panel)
    ticks = [tick for tick in (1, 2, 4, 10, 100) if tick <= max(most, 4)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlim(0.8, 1.25 * ticks[-1])
    axes.minorticks_off()
    axes.set_xlabel("network evaluations per chunk")
    axes.grid(axis="y")
    axes.set_ylim(floor, 101)
    return handles
