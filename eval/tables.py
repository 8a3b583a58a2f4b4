"""Comparisons as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from isdt_policy.eval.comparison import Group, Row
from isdt_policy.eval.result import NOT_REPORTED, Result
from isdt_policy.eval.statistics import Estimate
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.tables import columns, markdown

Format = Literal["markdown", "csv", "latex"]

CSV_COLUMNS = (
    *("policy", "steps", "n", "runs", "success", "success_low", "success_high", "score", "score_low", "score_high"),
    *("latency_ms", "paired_n", "success_difference", "success_difference_low", "success_difference_high"),
    *("p_success", "score_difference", "score_difference_low", "score_difference_high", "p_score"),
)
_HEAD = ("policy", "arm", "n", "success, %", "score", "latency, ms", "Δ success", "p", "Δ score", "p")


def render(rows: Sequence[Row], form: Format = "markdown") -> str:
    """The table as Markdown, CSV (plain numbers) or LaTeX (booktabs)."""
    if form == "csv":
        return _csv(rows)
    cells = [_cells(row) for row in rows]
    if form == "markdown":
        notes = [_footnote(rows), *(text for row in rows for text in _notes(row, rows[0]))]
        return "\n".join([markdown(_HEAD, cells, padded=True), "", *notes])
    body = " \\\\\n".join(" & ".join(_latex(text) for text in line) for line in cells)
    head = " & ".join(_latex(text) for text in _HEAD)
    return (
        f"% {_footnote(rows)}\n\\begin{{tabular}}{{llrllrllll}}\n\\toprule\n{head} \\\\\n\\midrule\n"
        f"{body} \\\\\n\\bottomrule\n\\end{{tabular}}"
    )


def diffusion_policy_table(groups: Sequence[Group], arm: Arm | None = None) -> str:
    """Diffusion Policy's two numbers per group: best checkpoint / average of the last ten, mean over seeds.

    A group holds the evaluations of many checkpoints of several training seeds (there: 3 seeds, every 50 epochs, 50 initial
    states each). The maximum over checkpoints is biased upwards: it is chosen on the episodes it reports, here shown
    beside the average, which is not.

    Raises:
        InputError: a result without the arm, or of a checkpoint whose path names no step.
    """
    rows, arm = [], arm or Arm()
    for group in groups:
        runs: dict[str, list[tuple[int, float]]] = {}
        sizes = set()
        for result in group.results:
            if arm not in result.arms:
                known = ", ".join(a.name for a in result.arms)
                raise InputError(f"'{group.name}' has a result without arm={arm}; it has {known}.")
            run, step = run_and_step(result)
            runs.setdefault(run, []).append((step, result[arm].score.value))
            sizes.add(result[arm].n)
        best = [max(score for _, score in points) for points in runs.values()]
        last = [float(np.mean([score for _, score in sorted(points)[-10:]])) for points in runs.values()]
        n = "/".join(map(str, sorted(sizes)))
        rows.append((group.name, arm, len(runs), n, _mean_std(best), _mean_std(last)))
    head = ("policy", "arm", "seeds", "episodes each", "best checkpoint", "last-10 average")
    note = "Score = mean over episodes of the maximum reward; mean ± standard deviation over training seeds."
    return "\n".join([markdown(head, rows), "", note])


def run_and_step(result: Result) -> tuple[str, int]:
    """Run and training step, from the path of the checkpoint: <run>/checkpoints/<step>.

    Raises:
        InputError: the path names no step.
    """
    checkpoint = result.origin.policy.checkpoint
    parts = Path(checkpoint or "").parts
    for i, part in enumerate(parts):
        digits = part.rpartition("_")[2].rpartition("=")[2]
        if i and parts[i - 1] == "checkpoints" and digits.isdigit():
            return "/".join(parts[: i - 1]), int(digits)
    raise InputError(f"checkpoint '{checkpoint}' names no training step; expected RUN/checkpoints/STEP.")


def summary(result: Result) -> str:
    """The numbers of one result, for a terminal."""
    rows = []
    for arm, numbers in result.arms.items():
        rate, score, latency, to_success = (
            numbers.success_rate,
            numbers.score,
            numbers.latency,
            numbers.mean_steps_to_success,
        )
        rows.append((
            arm,
            NOT_REPORTED if rate is None else f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})",
            f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})",
            "-" if to_success is None else f"{to_success:.0f}",
            "-" if latency is None else f"{latency.single_row_ms.p50:.1f} ms",
        ))  # fmt: skip
    lines = [columns(("arm", "success (95 %)", "score (95 %)", "to success", "latency"), rows)]
    lines += [
        f"arm {arm}: {numbers.n_error} episodes ended in an error and count as failures"
        for arm, numbers in result.arms.items()
        if numbers.n_error
    ]
    lines += [
        f"arm {arm}: entropy of the ways taken {numbers.mode_entropy:.2f} (1: all equally often, 0: always the same)"
        for arm, numbers in result.arms.items()
        if numbers.mode_entropy is not None
    ]
    timing, seeds = result.timing, result.seeds
    lines.append(
        f"n = {len(seeds)} episodes per arm, seeds {seeds[0]} to {seeds[-1]} ({result.seed_purpose})\n"
        f"{timing.wall_s:.0f} s: {timing.env_s:.0f} s environments, {timing.policy_s:.0f} s policy; "
        "latency: median of one row; to success: mean steps"
    )
    return "\n".join(lines)


def p_value(value: float | None) -> str:
    """A p-value in a table; "" for None."""
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _cells(row: Row) -> list[str]:
    d, n = row.difference, str(row.n) if row.runs == 1 else f"{row.n} ({row.runs} runs)"
    return [
        row.name,
        row.arm.name,
        n,
        NOT_REPORTED if row.success is None else _interval(row.success, 100, 1),
        _interval(row.score, 1, 3),
        "" if row.latency_ms is None else f"{row.latency_ms:.1f}",
        _interval(d.success, 100, 1, "+") if d and d.success else "",
        p_value(d.p_success) if d else "",
        _interval(d.score, 1, 3, "+") if d else "",
        p_value(d.p_score) if d else "",
    ]


def _interval(e: Estimate, scale: float, digits: int, sign: str = "") -> str:
    value, low, high = (f"{scale * x:{sign}.{digits}f}" for x in (e.value, e.low, e.high))
    return f"{value} ({low} to {high})"


def _csv(rows: Sequence[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        d = row.difference
        differences = [d.n, *_ends(d.success), d.p_success, *_ends(d.score), d.p_score] if d else [0, *[None] * 8]
        head = [row.name, row.arm.name, row.n, row.runs]
        writer.writerow([*head, *_ends(row.success), *_ends(row.score), row.latency_ms, *differences])
    return buffer.getvalue().rstrip("\n")


def _ends(e: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if e is None else (e.value, e.low, e.high)


def _footnote(rows: Sequence[Row]) -> str:
    paired = sorted({row.difference.n for row in rows if row.difference})
    shared = f"; differences from the first row on {'/'.join(map(str, paired))} common seeds" if paired else ""
    unpaired = sum(row.difference is None for row in rows) - 1
    note = f"; {unpaired} rows share no seeds with the first" if unpaired else ""
    several = any(row.runs > 1 for row in rows)
    kind = "bootstrap over training seeds and episodes" if several else "Wilson for success, bootstrap for the score"
    tests = "permutation of signs" if several else "exact McNemar (success), permutation of signs (score)"
    return f"{100 * rows[0].score.confidence:g} % intervals: {kind}{shared}; p: {tests}{note}."


def _notes(row: Row, reference: Row) -> list[str]:
    """What the numbers of a row do not say: rates on the common seeds where these are fewer, and who fails on which."""
    d, lines = row.difference, []
    if d is None:
        return []
    sizes = {side.n // side.runs for side in (row, reference)}
    if sizes != {d.n}:
        success = "" if d.rates is None else f"success {100 * d.rates[0]:.1f} and {100 * d.rates[1]:.1f} %, "
        lines.append(
            f"{row.name}, {row.arm}: on the {d.n} common seeds the first row and this one have {success}"
            f"score {d.scores[0]:.3f} and {d.scores[1]:.3f}; differences are of these."
        )
    if d.failures is not None:
        f = d.failures
        lines.append(
            f"{row.name}, {row.arm}: {f.reference_alone} seeds fail in the first row alone, {f.here_alone} here alone, {f.both} "
            f"in both ({f.expected:.1f} expected if the two failed independently)."
        )
    return lines


def _latex(text: str) -> str:
    text = text.replace("Δ", "$\\Delta$").replace("%", "\\%").replace("_", "\\_").replace("±", "$\\pm$")
    return text.replace("<", "$<$")


def _mean_std(values: Sequence[float]) -> str:
    mean = float(np.mean(values))
    return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f} ± {float(np.std(values, ddof=1)):.3f}"
