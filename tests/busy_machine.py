"""How fast training is beside other processes: ways in which threads wait, and how many there are, in turn.

    python tests/busy_machine.py                                        # beside none and one; five minutes
    python tests/busy_machine.py 4 out=results/busy_machine.json        # beside four; adds to what the file holds

Every way trains the first steps of `make demo` in a process of its own. The last column is what a user waits longer than on a
quiet machine with today's defaults. What a machine does besides falls on all of them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from isdt_policy.eval.origin import hardware
from isdt_policy.shared import files, tables
from isdt_policy.shared.provenance import commit

STEPS, SECONDS, ROUNDS = 60, 8.0, 2
PROGRAM = f"""
import sys, tempfile, time
from isdt_policy.cli import main
main(["--version"])
from isdt_policy.training.config import compose_config
from isdt_policy.training.run import build_trainer
import torch
folder = tempfile.mkdtemp()
given = ["experiment=pusht_demo", f"training.threads={{sys.argv[1]}}", f"run_dir={{folder}}/run"]
trainer, _ = build_trainer(compose_config(given))
trainer.train_step()
trainer.train_step()
start, steps = time.monotonic(), 0
while steps < 2 or (steps < {STEPS} and time.monotonic() - start < {SECONDS}):
    trainer.train_step()
    steps += 1
print(torch.get_num_threads(), steps / (time.monotonic() - start))
"""
DEFAULT = "isdt: spinning briefly, a thread a free core"
# Variables, and training.threads. GNU's own default: threads spin for milliseconds, and there are as many as cores.
ALL = str(os.cpu_count())
WAYS = {
    "OpenMP's default, a thread a core": ({"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": "300000"}, ALL),
    "never spinning, a thread a core": ({"GOMP_SPINCOUNT": "0"}, ALL),
    "spinning briefly, a thread a core": ({}, ALL),
    DEFAULT: ({}, "0"),
    "one thread": ({}, "1"),
}


def main(args: list[str]) -> int:
    out = next((Path(arg.removeprefix("out=")) for arg in args if arg.startswith("out=")), None)
    loads = [int(arg) for arg in args if not arg.startswith("out=")] or [0, 1]
    before = json.loads(out.read_text())["found"] if out is not None and out.exists() else []
    found: list[dict[str, Any]] = [one for one in before if one["beside"] not in loads]
    for busy in loads:
        found += [{"beside": busy, "way": way, **speed} for way, speed in beside(busy).items()]
        text = page(found)
        if out is not None:
            content = {"found": found, "hardware": hardware(), "commit": commit()}
            files.write_text(out, json.dumps(content, indent=1) + "\n")
            files.write_text(out.with_suffix(".md"), text + "\n")
    print(text)
    return 0


def page(found: list[dict[str, Any]]) -> str:
    """What was found, as a table."""
    quiet = next((one["median"] for one in found if one["beside"] == 0 and one["way"] == DEFAULT), float("nan"))
    rows = [
        (
            one["beside"],
            one["way"],
            "/".join(one["threads"]),
            f"{one['median']:.2f} ({one['low']:.2f} to {one['high']:.2f})",
            f"{quiet / one['median']:.1f}",
        )
        for one in found
    ]
    header = [
        "busy processes",
        "threads that wait, and how many",
        "threads",
        "steps/s (range)",
        "time over the quiet one",
    ]
    machine = hardware()
    about = (
        f"- first steps of make demo, compiled; medians of {ROUNDS} processes in turn\n"
        f"- {machine['processor']}, {machine['cores']} cores; commit {commit()}"
    )
    return "\n\n".join(["# tests/busy_machine.py", tables.markdown(header, rows), about])


def beside(busy: int) -> dict[str, dict[str, object]]:
    """Steps per second of every way beside so many busy processes."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    threads: dict[str, set[str]] = {way: set() for way in WAYS}
    try:
        for _ in range(ROUNDS):
            for way, (variables, wanted) in WAYS.items():
                count, speed = steps_per_s(variables, wanted)
                speeds[way].append(speed)
                threads[way].add(count)
    finally:
        for other in others:
            other.kill()
    return {
        way: {"median": statistics.median(all_), "low": min(all_), "high": max(all_), "threads": sorted(threads[way])}
        for way, all_ in speeds.items()
    }


def steps_per_s(variables: dict[str, str], wanted: str) -> tuple[str, float]:
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, wanted], env={**clean, **variables}, capture_output=True, text=True, check=True
    )
    count, speed = done.stdout.split()[-2:]
    return count, float(speed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
