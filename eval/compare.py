"""`isdt compare`: results side by side, with differences on common seeds, intervals and p-values.

Two results compare episode by episode where task, seed protocol and the other conditions agree and seeds are shared; the
pairing removes the difficulty of the start states, which is most of the variance. Results of several training seeds of one
configuration form a group: their interval also covers chance in training.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isdt_policy.eval.statistics import (
    Estimate,
    bootstrap_mean,
    hierarchical_bootstrap,
    mcnemar,
    paired_difference,
    sample_size,
    wilson,
)
from isdt_policy.shared.errors import InputError, nearest

FORMATS = ("markdown", "csv", "latex")
CSV_COLUMNS = (
    *("policy", "steps", "n", "runs", "success", "success_low", "success_high", "score", "score_low", "score_high"),
    *("latency_ms", "paired_n", "success_difference", "success_difference_low", "success_difference_high"),
    *("p_success", "score_difference", "score_difference_low", "score_difference_high", "p_score"),
)

HELP = """usage: isdt compare RESULT [RESULT ...] [key=value ...]

Compare evaluations (eval_info.json, or folders that hold one). The first row is the reference; every other row shows
its difference on the seeds they share, with a 95 % interval, and two p-values: exact McNemar for success, permutation
of signs for the score.

examples
  isdt compare outputs/a/eval outputs/b/eval                    every arm of both
  isdt compare outputs/a/eval outputs/b/eval arm=1              one-step results only
  isdt compare format=latex out=table.tex outputs/*/eval        a table for a paper
  isdt compare a=run1/eval,run2/eval,run3/eval b=run4/eval,...  groups of training seeds: name=RESULT,RESULT,...
  isdt compare protocol=diffusion_policy a=s1/e50,s1/e100,...   best and last-10 average over checkpoints, 3 seeds
  isdt compare curves=learning.svg outputs/a/curve/*/           success against training
  isdt compare pairs=pairs.svg outputs/a/eval                   every seed's best reward, the first row's against the others'
  isdt compare power=0.70,0.75                                  how many episodes tell 0.70 from 0.75

options
  arm=1                only this arm (number of steps, or a sampler such as euler10)
  format=markdown      markdown, csv or latex
  out=FILE             write the table there instead of printing it
  confidence=0.95      of the intervals
  curves=FILE.svg      also draw success against windows seen and minutes of training (results must come from checkpoints
                       with a step number, as `isdt eval curve` makes them)
  pairs=FILE.svg       also draw one point per seed: its best reward in the first row, and in each other row
"""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was evaluated.
        arm: how it was sampled.
        n: episodes (over all training seeds).
        runs: training seeds behind it.
        success: rate with interval.
        score: mean maximum reward with interval.
        latency_ms: median of one row; None without a policy.
        paired: seeds shared with the reference; 0 for the reference itself.
        success_difference: on shared seeds.
        p_success: exact McNemar, or a permutation of signs for groups.
        score_difference: on shared seeds.
        p_score: permutation of signs.
        failures: on shared seeds, how many fail in the reference alone, here alone, in both, and in how many both would fail
            if the same seeds were not the harder ones for both (single runs only).
    """

    name: str
    arm: str
    n: int
    runs: int
    success: Estimate
    score: Estimate
    latency_ms: float | None
    paired: int = 0
    success_difference: Estimate | None = None
    p_success: float | None = None
    score_difference: Estimate | None = None
    p_score: float | None = None
    failures: tuple[int, int, int, float] | None = None


@dataclass(frozen=True)
class Group:
    """Results of one configuration, one per training seed."""

    name: str
    infos: tuple[Mapping[str, Any], ...]

    def episodes(self, arm: str) -> list[dict[int, Mapping[str, Any]]]:
        """Return per training seed {episode seed: record}."""
        return [{r["seed"]: r for r in info["episodes"] if r["arm"] == arm} for info in self.infos]

    @property
    def arms(self) -> list[str]:
        """Arms that every member has."""
        return [arm for arm in self.infos[0]["arms"] if all(arm in info["arms"] for info in self.infos)]


def main(args: list[str]) -> int:
    """Run `isdt compare`."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    options, groups = _parse(args)
    if "power" in options:
        print(_power(options["power"]))
        return 0
    confidence = float(options.get("confidence", 0.95))
    if options.get("protocol") == "diffusion_policy":
        text = diffusion_policy_table(groups, options.get("arm", "1"))
    else:
        rows = compare(groups, options.get("arm"), confidence)
        text = render(rows, options.get("format", "markdown"))
    if "out" in options:
        Path(options["out"]).write_text(text + "\n", encoding="utf-8")
        print(f"table: {options['out']}")
    else:
        print(text)
    if "curves" in options:
        draw_curves(groups, options.get("arm"), Path(options["curves"]))
        print(f"curves: {options['curves']}")
    if "pairs" in options:
        draw_pairs(groups, options.get("arm"), Path(options["pairs"]))
        print(f"pairs: {options['pairs']}")
    return 0


def compare(groups: Sequence[Group], arm: str | None = None, confidence: float = 0.95) -> list[Row]:
    """Return one row per group and arm; the first is the reference of all differences.

    Raises:
        InputError: if conditions differ, an arm is missing, or nothing is shared.
    """
    lines = _lines(groups, arm)
    reference = lines[0]
    return [_row(group, a, None if (group, a) == reference else reference, confidence) for group, a in lines]


def _lines(groups: Sequence[Group], arm: str | None) -> list[tuple[Group, str]]:
    _check_comparable(groups)
    lines = [(group, a) for group in groups for a in group.arms if arm is None or a == arm]
    if not lines:
        known = sorted({a for group in groups for a in group.arms})
        raise InputError(f"no result has arm={arm}.{nearest(str(arm), known)} There are: {', '.join(known)}.")
    return lines


def render(rows: Sequence[Row], form: str = "markdown") -> str:
    """Return the table as Markdown, CSV (plain numbers) or LaTeX (booktabs)."""
    if form not in FORMATS:
        raise InputError(f"format='{form}' is unknown.{nearest(form, FORMATS)} Allowed: {', '.join(FORMATS)}.")
    if form == "csv":
        return _csv(rows)
    head = ["policy", "steps", "n", "success, %", "score", "latency, ms", "Δ success", "p", "Δ score", "p"]
    cells = [_cells(row) for row in rows]
    if form == "markdown":
        widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
        lines = [
            "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths)) + " |"
            for line in [head, ["-" * width for width in widths], *cells]
        ]
        return "\n".join([*lines, "", _footnote(rows), *_who_fails(rows)])
    body = " \\\\\n".join(" & ".join(_latex(text) for text in line) for line in cells)
    head_text = " & ".join(_latex(text) for text in head)
    return (
        f"% {_footnote(rows)}\n\\begin{{tabular}}{{llrllrllll}}\n\\toprule\n{head_text} \\\\\n\\midrule\n"
        f"{body} \\\\\n\\bottomrule\n\\end{{tabular}}"
    )


def diffusion_policy_table(groups: Sequence[Group], arm: str = "1") -> str:
    """Return Diffusion Policy's two numbers per group: best checkpoint / average of the last ten, mean over seeds.

    A group holds the evaluations of many checkpoints of several training seeds (there: 3 seeds, every 50 epochs, 50 initial
    states each). The maximum over checkpoints is biased upwards: it is chosen on the episodes it reports, here shown
    beside the average, which is not.
    """
    lines = [
        "| policy | steps | seeds | episodes each | best checkpoint | last-10 average |",
        "|---|---|---|---|---|---|",
    ]
    for group in groups:
        runs: dict[str, list[tuple[int, float]]] = {}
        sizes = set()
        for info in group.infos:
            if arm not in info["arms"]:
                raise InputError(f"'{group.name}' has a result without arm={arm}; it has {', '.join(info['arms'])}.")
            run, step = _run_and_step(info)
            runs.setdefault(run, []).append((step, info["arms"][arm]["score"]["value"]))
            sizes.add(info["arms"][arm]["n"])
        best = [max(score for _, score in points) for points in runs.values()]
        last = [float(np.mean([score for _, score in sorted(points)[-10:]])) for points in runs.values()]
        n = "/".join(str(size) for size in sorted(sizes))
        lines.append(f"| {group.name} | {arm} | {len(runs)} | {n} | {_mean_std(best)} | {_mean_std(last)} |")
    lines += ["", "Score = mean over episodes of the maximum reward; mean ± standard deviation over training seeds."]
    return "\n".join(lines)


def draw_pairs(groups: Sequence[Group], arm: str | None, path: Path) -> None:
    """Draw the best reward of every shared seed, the first row's against each other row's, coloured by who succeeds.

    Several training seeds of a row are averaged; a success is then a majority of them.
    """
    (first, first_arm), *others = _lines(groups, arm)
    if not others:
        raise InputError("pairs= needs two rows: give a second result, or leave arm= out.")
    # Rows of one result: its name would only be repeated, and is too long for an axis.
    alone = all(group.name == first.name for group, _ in others)
    figure = _figure((3.6 * len(others), 3.9))
    for axes, (group, a) in zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True):
        here, there = (f"arm {arm}" if alone else f"{row.name}, {arm}" for row, arm in ((first, first_arm), (group, a)))
        sides = [first.episodes(first_arm), group.episodes(a)]
        shared = sorted(set.intersection(*[set(run) for side in sides for run in side]))
        x, y = (np.array([np.mean([run[s]["max_reward"] for run in side]) for s in shared]) for side in sides)
        wins = [np.array([np.mean([run[s]["success"] for run in side]) > 0.5 for s in shared], bool) for side in sides]
        for who, label, colour in (
            (wins[0] & wins[1], "both succeed", "#bbbbbb"),
            (wins[0] & ~wins[1], f"only {here}", "#1f77b4"),
            (~wins[0] & wins[1], f"only {there}", "#ff7f0e"),
            (~wins[0] & ~wins[1], "neither", "#d62728"),
        ):
            axes.plot(x[who], y[who], "o", ms=4, alpha=0.7, color=colour, label=f"{label}: {int(who.sum())}")
        low = min(x.min(), y.min())
        room = 0.04 * (max(x.max(), y.max()) - low) + 1e-6
        limits = (low - room, max(x.max(), y.max()) + room)
        axes.set(xlabel=f"best reward: {here}", ylabel=f"best reward: {there}")
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        axes.legend(fontsize=7, loc="lower left")
    figure.savefig(path)


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("curves= and pairs= need Matplotlib: pip install 'isdt-policy[report]'.") from error
    return Figure(figsize=size, layout="constrained")


def draw_curves(groups: Sequence[Group], arm: str | None, path: Path) -> None:
    """Draw success with its interval against windows seen and minutes of training, one line per run and arm.

    Results that do not say what their training had cost are drawn against the step alone.
    """
    infos = [info for group in groups for info in group.infos]
    costs = [info["policy"].get("training") for info in infos]
    axes_of: dict[str, list[float]] = {"training step": [_run_and_step(info)[1] for info in infos]}
    if all(costs):
        axes_of = {
            "training windows seen, thousands": [cost["windows"] / 1000 for cost in costs],
            "minutes of training": [cost["seconds"] / 60 for cost in costs],
        }
    runs: dict[tuple[str, str], list[int]] = {}
    for i, info in enumerate(infos):
        for name in info["arms"]:
            if arm in (None, name):
                runs.setdefault((_run_and_step(info)[0], name), []).append(i)
    figure = _figure((6 * len(axes_of), 3.6))
    for axes, (label, x) in zip(figure.subplots(1, len(axes_of), sharey=True, squeeze=False)[0], axes_of.items()):
        for (run, name), members in runs.items():
            members = sorted(members, key=lambda i: x[i])
            rates = [infos[i]["arms"][name]["success_rate"] for i in members]
            at = [x[i] for i in members]
            (line,) = axes.plot(
                at, [100 * r["value"] for r in rates], "o-", ms=3, label=f"{Path(run).name}, {_words(name)}"
            )
            low, high = [100 * r["low"] for r in rates], [100 * r["high"] for r in rates]
            axes.fill_between(at, low, high, color=line.get_color(), alpha=0.12, lw=0)
        axes.set(xlabel=label, ylim=(0, 100))
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    first = figure.axes[0]
    first.set_ylabel(f"success, % (n = {infos[0]['arms'][next(iter(runs))[1]]['n']}, 95 %)" if runs else "success, %")
    first.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _words(arm: str) -> str:
    return f"{arm} step{'' if arm == '1' else 's'}" if arm.isdigit() else arm


def _row(group: Group, arm: str, reference: tuple[Group, str] | None, confidence: float) -> Row:
    runs = group.episodes(arm)
    success = [[float(r["success"]) for r in run.values()] for run in runs]
    score = [[float(r["max_reward"]) for r in run.values()] for run in runs]
    n = sum(len(run) for run in runs)
    latencies = [info["arms"][arm]["latency"] for info in group.infos]
    latency = [x["single_row_ms"]["p50"] for x in latencies if x]
    if len(runs) == 1:
        rate = wilson(int(sum(success[0])), n, confidence)
        mean = bootstrap_mean(score[0], confidence)
    else:
        rate, mean = hierarchical_bootstrap(success, confidence), hierarchical_bootstrap(score, confidence)
    row = Row(group.name, arm, n, len(runs), rate, mean, float(np.median(latency)) if latency else None)
    return row if reference is None else _with_differences(row, runs, reference, confidence)


def _with_differences(
    row: Row, runs: Sequence[Mapping[int, Any]], reference: tuple[Group, str], confidence: float
) -> Row:
    """Add differences on the seeds that all runs of both sides share (each seed averaged over the runs of a side)."""
    others = reference[0].episodes(reference[1])
    shared = sorted(set.intersection(*[set(run) for run in [*runs, *others]]))
    if not shared:
        return row

    def values(side: Sequence[Mapping[int, Any]], name: str) -> list[float]:
        return [float(np.mean([run[seed][name] for run in side])) for seed in shared]

    a, b = values(others, "success"), values(runs, "success")
    success_difference, p_success = paired_difference(a, b, confidence)
    failures = None
    if len(runs) == len(others) == 1:
        p_success = mcnemar(a, b).p_value
        first, second = 1 - np.array(a), 1 - np.array(b)
        both = int((first * second).sum())
        failures = (int(first.sum()) - both, int(second.sum()) - both, both, float(first.mean() * second.sum()))
    score_difference, p_score = paired_difference(values(others, "max_reward"), values(runs, "max_reward"), confidence)
    return Row(
        row.name, row.arm, row.n, row.runs, row.success, row.score, row.latency_ms,
        len(shared), success_difference, p_success, score_difference, p_score, failures,
    )  # fmt: skip


def _check_comparable(groups: Sequence[Group]) -> None:
    first = groups[0].infos[0]["protocol"]
    for group in groups:
        for info in group.infos:
            for key, value in info["protocol"].items():
                if key not in ("inference_batch", "n_action_steps", "noise_scale") and first.get(key) != value:
                    raise InputError(
                        f"'{group.name}' was evaluated with {key}={value}, '{groups[0].name}' with {key}={first.get(key)}: "
                        "their episodes are different ones. Evaluate both under the same conditions."
                    )


def _parse(args: Sequence[str]) -> tuple[dict[str, str], list[Group]]:
    from isdt_policy.eval.command import read_info

    allowed = ("arm", "format", "out", "confidence", "curves", "pairs", "power", "protocol")
    options: dict[str, str] = {}
    named: list[tuple[str | None, list[str]]] = []
    for arg in args:
        key, separator, value = arg.partition("=")
        if separator and key in allowed:
            options[key] = value
        elif separator and not Path(arg).exists():
            if not all(Path(path).exists() for path in value.split(",")):
                raise InputError(
                    f"'{arg}': neither an option ({', '.join(allowed)}) nor name=RESULT,RESULT,... with results that "
                    f"exist.{nearest(key, allowed)}"
                )
            named.append((key, value.split(",")))
        else:
            named.append((None, [arg]))
    if options.get("protocol", "diffusion_policy") != "diffusion_policy":
        raise InputError(f"protocol='{options['protocol']}' is unknown; allowed: diffusion_policy.")
    if not named and "power" not in options:
        raise InputError("nothing to compare: give results, for example isdt compare outputs/a/eval outputs/b/eval")
    infos = [(name, [read_info(path) for path in paths], paths) for name, paths in named]
    titles = _titles([paths[0] for name, paths in named if name is None])
    groups = [Group(name or titles[paths[0]], tuple(found)) for name, found, paths in infos]
    return options, groups


def _titles(paths: Sequence[str]) -> dict[str, str]:
    """Return the part of each path that tells it from the others."""
    parts = {path: [p for p in Path(path).parts if p not in ("eval", "eval_info.json", "/")] for path in paths}
    if len(paths) > 1:
        while all(len(p) > 1 for p in parts.values()) and len({p[0] for p in parts.values()}) == 1:
            parts = {path: p[1:] for path, p in parts.items()}
        while all(len(p) > 1 for p in parts.values()) and len({p[-1] for p in parts.values()}) == 1:
            parts = {path: p[:-1] for path, p in parts.items()}
    return {path: "/".join(p[-3:]) or path for path, p in parts.items()}


def _run_and_step(info: Mapping[str, Any]) -> tuple[str, int]:
    """Read run and training step from the checkpoint's path: <run>/checkpoints/<step>."""
    parts = Path(info["policy"]["checkpoint"] or "").parts
    for i, part in enumerate(parts):
        digits = part.rpartition("_")[2].rpartition("=")[2]
        if i and parts[i - 1] == "checkpoints" and digits.isdigit():
            return "/".join(parts[: i - 1]), int(digits)
    raise InputError(
        f"checkpoint '{info['policy']['checkpoint']}' names no training step; expected RUN/checkpoints/STEP."
    )


def _power(text: str) -> str:
    try:
        a, b = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"power={text} is not two rates, for example power=0.70,0.75.") from None
    independent = sample_size(a, b)
    lines = [f"to tell {a:g} from {b:g} (80 % power, 5 % two-sided) you need, per policy,"]
    lines.append(f"  n = {independent} episodes on different seeds,")
    for correlation in (0.3, 0.6):
        try:
            n = sample_size(a, b, correlation=correlation)
        except InputError:
            continue
        lines.append(f"  n = {n} on common seeds if outcomes correlate by {correlation},")
    return "\n".join(lines)[:-1] + "."


def _cells(row: Row) -> list[str]:
    def difference(e: Estimate | None, scale: float, digits: int) -> str:
        if e is None:
            return ""
        return f"{scale * e.value:+.{digits}f} ({scale * e.low:+.{digits}f} to {scale * e.high:+.{digits}f})"

    n = str(row.n) if row.runs == 1 else f"{row.n} ({row.runs} runs)"
    return [
        row.name,
        row.arm,
        n,
        f"{100 * row.success.value:.1f} ({100 * row.success.low:.1f} to {100 * row.success.high:.1f})",
        f"{row.score.value:.3f} ({row.score.low:.3f} to {row.score.high:.3f})",
        "" if row.latency_ms is None else f"{row.latency_ms:.1f}",
        difference(row.success_difference, 100, 1),
        _p(row.p_success),
        difference(row.score_difference, 1, 3),
        _p(row.p_score),
    ]


def _csv(rows: Sequence[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        ds, dr = row.success_difference, row.score_difference
        writer.writerow(
            [row.name, row.arm, row.n, row.runs]
            + [row.success.value, row.success.low, row.success.high, row.score.value, row.score.low, row.score.high]
            + [row.latency_ms, row.paired]
            + ([ds.value, ds.low, ds.high] if ds else [None] * 3)
            + [row.p_success]
            + ([dr.value, dr.low, dr.high] if dr else [None] * 3)
            + [row.p_score]
        )
    return buffer.getvalue().rstrip("\n")


def _footnote(rows: Sequence[Row]) -> str:
    paired = sorted({row.paired for row in rows if row.paired})
    shared = f"; differences from the first row on {'/'.join(map(str, paired))} common seeds" if paired else ""
    unpaired = sum(row.paired == 0 for row in rows) - 1
    note = f"; {unpaired} rows share no seeds with the first" if unpaired else ""
    several = any(row.runs > 1 for row in rows)
    kind = "bootstrap over training seeds and episodes" if several else "Wilson for success, bootstrap for the score"
    tests = "permutation of signs" if several else "exact McNemar (success), permutation of signs (score)"
    return f"{100 * rows[0].success.confidence:g} % intervals: {kind}{shared}; p: {tests}{note}."


def _who_fails(rows: Sequence[Row]) -> list[str]:
    """Whether two rows fail on the same seeds, in words, for every row that has been counted."""
    lines = []
    for row in rows:
        if row.failures is not None:
            first, second, both, expected = row.failures
            lines.append(
                f"{row.name}, {row.arm}: {first} seeds fail in the first row alone, {second} here alone, {both} in both "
                f"({expected:.1f} if it were chance which)."
            )
    return lines


def _latex(text: str) -> str:
    text = text.replace("Δ", "$\\Delta$").replace("%", "\\%").replace("_", "\\_").replace("±", "$\\pm$")
    return text.replace("<", "$<$")


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _mean_std(values: Sequence[float]) -> str:
    mean = float(np.mean(values))
    return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f} ± {float(np.std(values, ddof=1)):.3f}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
