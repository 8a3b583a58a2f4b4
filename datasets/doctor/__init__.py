"""What is wrong with demonstrations, where, and what to do about it.

Each check is a generator of findings over a `Demos`; thresholds stand beside the reason for them.
"""

from __future__ import annotations

import numpy as np

from isdt_policy.datasets.doctor.demos import Demos, Finding
from isdt_policy.datasets.doctor.episodes import ends_in_failure, episode_lengths, jumps, repeated_episodes
from isdt_policy.datasets.doctor.images import image_frames
from isdt_policy.datasets.doctor.motion import alignment, frozen, leak
from isdt_policy.datasets.doctor.values import constant, not_finite, outliers, quaternions, saturated, units
from isdt_policy.datasets.store import DemoStore
from isdt_policy.datasets.summary import blocks, is_low_dim
from isdt_policy.envs import task_ids, task_spec
from isdt_policy.shared.errors import InputError, printable

__all__ = ["CHECKS", "Finding", "examine", "table"]

CHECKS = (
    episode_lengths, ends_in_failure, jumps, constant, saturated, outliers, frozen, leak, repeated_episodes, quaternions,
    alignment, units,
)  # fmt: skip


def examine(path: str, task: str | None = None, images: bool = True) -> list[Finding]:
    """Every finding, errors first. A store that cannot be opened is one finding."""
    try:
        store = DemoStore.open(path)
        low_dim = {
            key: np.concatenate([b.reshape(len(b), -1).astype(np.float64) for _, b in blocks(store, key)])
            for key in store.keys
            if is_low_dim(store, key)
        }
    except InputError as error:
        return [Finding("error", "structure", "", str(error), "convert or download the store again")]
    name = task or store.task
    known = name is not None and (task is not None or name in task_ids())
    demos = Demos(store, low_dim, task_spec(name) if known and name else None)
    findings = [Finding("note", "structure", "", note, "see docs/data.md") for note in store.notes]
    findings += not_finite(demos)
    finite = {key: value for key, value in low_dim.items() if np.isfinite(value).all()}
    demos = Demos(store, finite, demos.spec)
    for check in CHECKS:
        findings += check(demos)
    if images:
        findings += image_frames(demos)
    order = ("error", "warning", "note")
    return sorted(findings, key=lambda finding: order.index(finding.level))


def table(found: list[Finding], path: str) -> str:
    """The findings for people, and how many there are."""
    levels = [finding.level for finding in found]
    numbers = {level: levels.count(level) for level in ("error", "warning", "note")}
    counts = ", ".join(f"{n} {level}{'' if n == 1 else 's'}" for level, n in numbers.items())
    lines = "\n".join(map(_line, found)) or "nothing found"
    return printable(f"{lines}\n\n{path}: {counts}")


def _line(f: Finding) -> str:
    where = "" if f.episode is None else f" episode {f.episode}" + ("" if f.step is None else f" step {f.step}")
    more = f" (and {f.count - 1} more)" if f.count > 1 else ""
    place = f"{f.key}{where}{more}".strip()
    return f"{f.level:<8} {f.check}: {place}{': ' if place else ''}{f.message}\n         -> {f.advice}"
