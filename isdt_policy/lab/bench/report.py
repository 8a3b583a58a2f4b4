"""What a benchmark found, as a table and as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

from isdt_policy.eval.origin import hardware, versions
from isdt_policy.lab.bench.measure import Ratio, Timing
from isdt_policy.shared import files, tables
from isdt_policy.shared.provenance import commit


@dataclasses.dataclass(frozen=True)
class Measured:
    """The result of a benchmark.

    Attributes:
        what: its name and the size or task that it measured, such as "train size=4m".
        timings: way -> milliseconds per call.
        ratios: name -> how much longer one way takes than another.
        facts: all else that a reader must know; JSON values.
        task: whose versions are listed.
    """

    what: str
    timings: Mapping[str, Timing]
    ratios: Mapping[str, Ratio]
    facts: Mapping[str, object]
    task: str = "pusht"


def write(measured: Measured, out: Path | None) -> str:
    """Return the table; also write the numbers to `out` and the table beside it, if `out` is given."""
    machine, load, found, at = hardware(), os.getloadavg()[0], versions(measured.task), commit()
    parts = [f"# isdt bench {measured.what}"]
    if measured.timings:
        rows = [
            (name, f"{t.median:.3g}", f"{t.low:.3g} to {t.high:.3g}", f"{t.p99:.3g}", t.calls)
            for name, t in measured.timings.items()
        ]
        parts.append(tables.markdown(["what", "median, ms", "quartiles", "99 %", "calls"], rows))
    ratios = [(name, f"{r[0]:.2f}", f"{r[1]:.2f} to {r[2]:.2f}") for name, r in measured.ratios.items()]
    parts.append(tables.markdown(["ratio", "median of turns", "range"], ratios))
    notes = [f"- {key}: {_plain(value)}" for key, value in measured.facts.items()]
    notes.append(
        f"- {machine['processor']}, {machine['cores']} cores, threads {machine.get('torch_threads')}, load {load:.1f}"
    )
    notes.append(f"- {', '.join(f'{name} {version}' for name, version in found.items())}; commit {at}")
    text = "\n\n".join([*parts, "\n".join(notes)])
    if out:
        content = {
            "what": measured.what, "timings_ms": {n: dataclasses.asdict(t) for n, t in measured.timings.items()},
            **measured.facts, "ratios": measured.ratios, "hardware": machine, "load": load, "versions": found, "commit": at,
        }  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(out, json.dumps(content, indent=1) + "\n")
        files.write_text(out.with_suffix(".md"), text + "\n")
    return text


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
