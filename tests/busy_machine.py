"""How fast training is beside other processes: threads that spin against today's defaults, in turn.

    python tests/busy_machine.py            # nothing else, one and four busy processes; about five minutes
    python tests/busy_machine.py 0 1 5      # these numbers of busy processes

Every way trains the first steps of `make demo` in a process of its own. What a machine does besides falls on all of them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

STEPS, ROUNDS = 12, 3
PROGRAM = f"""
import tempfile, time
from isdt_policy.cli import main
main(["--version"])
from isdt_policy.training.config import compose_config
from isdt_policy.training.run import build_trainer
import torch
folder = tempfile.mkdtemp()
trainer, _ = build_trainer(compose_config(["experiment=pusht_demo", "training.compile=false", f"run_dir={{folder}}/run"]))
trainer.train_step()
start = time.monotonic()
for _ in range({STEPS}):
    trainer.train_step()
print(torch.get_num_threads(), {STEPS} / (time.monotonic() - start))
"""
# GNU's own default: threads spin for about a millisecond, and there are as many as cores.
WAYS = {
    "spinning, a thread a core": {"GOMP_SPINCOUNT": "300000", "OMP_WAIT_POLICY": "", "OMP_NUM_THREADS": str(os.cpu_count())},
    "passive, a thread a core": {"OMP_NUM_THREADS": str(os.cpu_count())},
    "passive, a thread a free core": {},
}  # fmt: skip


def main() -> int:
    for busy in map(int, sys.argv[1:] or ("0", "1", "4")):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            speeds: dict[str, list[float]] = {way: [] for way in WAYS}
            threads: dict[str, set[str]] = {way: set() for way in WAYS}
            for _ in range(ROUNDS):
                for way, variables in WAYS.items():
                    count, speed = steps_per_s(variables)
                    speeds[way].append(speed)
                    threads[way].add(count)
        finally:
            for other in others:
                other.kill()
        base = statistics.median(speeds["spinning, a thread a core"])
        print(f"beside {busy} busy processes (load before: {os.getloadavg()[0]:.1f})")
        for way, found in speeds.items():
            middle = statistics.median(found)
            print(
                f"  {way:<32}{middle:7.2f} steps/s ({min(found):.2f} to {max(found):.2f}), {middle / base:5.2f} times, "
                f"threads {'/'.join(sorted(threads[way]))}",
                flush=True,
            )
    return 0


def steps_per_s(variables: dict[str, str]) -> tuple[str, float]:
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**clean, **variables}, capture_output=True, text=True, check=True
    )
    count, speed = done.stdout.split()[-2:]
    return count, float(speed)


if __name__ == "__main__":
    raise SystemExit(main())
