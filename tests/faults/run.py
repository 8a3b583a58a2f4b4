"""The fault suite: `make test-faults`, or `python tests/faults/run.py PART=TRIALS ...`.

A part goes on where it was stopped: trials are kept in build/faults/PART.jsonl. `python tests/faults/run.py table` writes
results/faults/ from what is there. TARGETS below are the numbers of a full run.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "deploy"), str(HERE.parent / "datasets")]

WORK = Path(os.environ.get("ISDT_FAULTS", "/dev/shm/isdt_faults" if Path("/dev/shm").is_dir() else "/tmp/isdt_faults"))
KEPT = ROOT / "build" / "faults"
# Number of a trial -> ("survived", "lost" or "wrong"; or how many of each, of a block), what was seen.
Trial = Callable[[int], tuple[str | dict[str, int], str]]
BLOCKS = {"commands": 1000, "messages": 500, "files": 100}  # so many are tried in one trial

# Part -> (trials of a full run, what a trial is).
TARGETS = {
    "kill_store": (200, "a writer of a store is killed, looked at, resumed, compared"),
    "kill_record": (150, "`isdt data record`, likewise"),
    "kill_generate": (150, "`isdt data generate`, likewise"),
    "kill_convert": (200, "`isdt data convert overwrite=true` to five formats: the old or the new one, complete"),
    "kill_train": (120, "`isdt train`: the same bits as a run that nobody stopped"),
    "kill_eval": (120, "`isdt eval`: the same episodes"),
    "kill_tune": (60, "`isdt tune`: the same scores"),
    "orphans": (20, "`isdt data generate workers=2` is killed: no process lives on"),
    "power_store": (40, "power cut of a journalled disk while a store is appended to: what was acknowledged is there"),
    "power_convert": (30, "power cut around the end of a conversion"),
    "power_train": (20, "power cut of a run: its acknowledged checkpoint is there and the run goes on"),
    "power_eval": (20, "power cut of an evaluation: a result that was acknowledged is there, and it goes on to the same episodes"),
    "disk": (60, "the disk fills up or can only be read: one line, exit 2, no parts; then the same command succeeds"),
    "messages": (10_000, "hostile messages while sixteen clients are served; lost and wrong count answers to the clients"),
    "files_zarr": (10_000, "mutated stores of our own"),
    "files_zip": (10_000, "mutated packed stores"),
    "files_diffusion_policy": (10_000, "mutated Zarr stores of Diffusion Policy"),
    "files_robomimic": (10_000, "mutated HDF5 files of robomimic"),
    "files_lerobot": (10_000, "mutated LeRobot v3 folders"),
    "files_minari": (10_000, "mutated Minari folders"),
    "files_policy": (10_000, "mutated folders of a policy: config.json and weights"),
    "files_journal": (10_000, "mutated journals of an evaluation"),
    "files_result": (10_000, "mutated eval_info.json"),
    "files_limits": (10_000, "mutated limits.json"),
    "files_run": (10_000, "mutated runs: config.json, provenance.json, trainer.json, on resume"),
    "files_onnx": (10_000, "mutated ONNX files of an exported policy"),
    "commands": (1_000_000, "commands over every combination of limits, differenced as a robot would"),
    "sensors": (500, "sensors that die in the loop: nothing moves on actions older than max_age"),
    "servers": (200, "servers that die, freeze or lie: the loop holds within its time and goes on"),
}  # fmt: skip


def trials_of(part: str) -> Trial:
    """The function that makes one trial (or one block of them) of a part."""
    kind, _, name = part.partition("_")
    if kind == "kill":
        from kills import Kills

        return Kills(name, WORK).trial
    if part == "orphans":
        from kills import orphan_trial

        return lambda number: orphan_trial(WORK, number)
    if kind == "power":
        from power import Power

        return Power(name, WORK).trial
    if kind == "files":
        from mutants import trial

        return trial(name, WORK)
    import loops

    return getattr(loops, part)(WORK)


def done(part: str) -> Iterator[dict[str, Any]]:
    """Trials that are kept."""
    file = KEPT / f"{part}.jsonl"
    for line in file.read_text().splitlines() if file.exists() else ():
        yield json.loads(line)


def run(part: str, count: int) -> None:
    """Make the trials of a part that are missing."""
    known = {entry["trial"] for entry in done(part)}
    missing = [number for number in range(-(-count // BLOCKS.get(part.split("_")[0], 1))) if number not in known]
    if not missing:
        return
    from isdt_policy.shared.provenance import commit

    KEPT.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    about = {"commit": commit()}
    print(f"{part}: {count} are asked for, {len(known)} trials are there", flush=True)
    trial, begin = trials_of(part), time.monotonic()
    with (KEPT / f"{part}.jsonl").open("a", buffering=1) as kept:
        for number in missing:
            outcome, seen = trial(number)
            counts = {outcome: 1} if isinstance(outcome, str) else dict(outcome)
            kept.write(
                json.dumps({"trial": number, **about, "counts": counts, **({"seen": seen} if seen else {})}) + "\n"
            )
            if counts.keys() & {"lost", "wrong"}:
                print(f"{part} {number}: {outcome}: {seen}", flush=True)
    print(f"{part}: {len(missing)} trials in {time.monotonic() - begin:.0f} s", flush=True)


def table() -> int:
    """Write results/faults/; returns how many trials were lost or wrong."""
    from isdt_policy.shared.provenance import decides_bits
    from isdt_policy.shared.tables import markdown

    rows, numbers, bad, commits = [], {}, 0, set()
    for part, (target, what) in TARGETS.items():
        found: Counter[str] = Counter()
        for entry in done(part):
            found.update(entry["counts"])
            commits.add(str(entry["commit"]))
        tried = sum(found[name] for name in ("survived", "lost", "wrong"))
        bad += found["lost"] + found["wrong"]
        numbers[part] = {"target": target, "tried": tried, **{n: found[n] for n in ("survived", "lost", "wrong")}}
        small = "" if tried >= target else f" (target {target:,})"
        rows.append([f"`{part}`", what, f"{tried:,}{small}", *(f"{found[n]:,}" for n in ("survived", "lost", "wrong"))])
    out = ROOT / "results" / "faults"
    out.mkdir(parents=True, exist_ok=True)
    machine = {**decides_bits(), "cores": os.cpu_count(), "system": platform.platform(aliased=True)}
    (out / "faults.json").write_text(
        json.dumps(
            {"command": "make test-faults", "commits": sorted(commits), "machine": machine, "parts": numbers}, indent=1
        )
        + "\n"
    )
    head = (HERE / "README.head.md").read_text()
    text = head.replace("COMMIT", ", ".join(sorted(commits))).replace(
        "MACHINE", f"{machine['processor']}, {machine['cores']} cores"
    )
    (out / "README.md").write_text(
        text + markdown(["part", "a trial", "tried", "survived", "lost", "wrong"], rows) + "\n"
    )
    print(text + markdown(["part", "a trial", "tried", "survived", "lost", "wrong"], rows))
    return bad


def main(args: list[str]) -> int:
    """`PART=TRIALS ...`, `table`, or nothing for a full run."""
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # every intervention is counted; here there are very many
    if args == ["table"]:
        return 1 if table() else 0
    wanted = [arg.partition("=") for arg in args] or [(part, "=", str(target)) for part, (target, _) in TARGETS.items()]
    for part, _, count in wanted:
        if part not in TARGETS:
            print(f"unknown part '{part}'; there are {', '.join(TARGETS)}", file=sys.stderr)
            return 2
        run(part, int(count or TARGETS[part][0]))
    return (1 if table() else 0) if not args else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
