"""Success while a run trains: a few episodes of its averaged weights, in a process of their own, beside the training.

<run>/rollouts/STEP/        policy, eval_info.json, report.html with films, log.txt
<run>/checkpoints/best_success/policy     the weights that did best; of equal ones the later
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from isdt_policy.envs import make
from isdt_policy.eval.result import FILE, Result
from isdt_policy.eval.seeds import SELECTION_START
from isdt_policy.method.policy import Policy
from isdt_policy.shared.children import ISDT
from isdt_policy.shared.errors import InputError
from isdt_policy.training import checkpoint
from isdt_policy.training.loggers import Log, Silence

PATIENCE_S = 1800.0  # for episodes that are still running when they are needed


@dataclass(frozen=True)
class Measured:
    """What some episodes showed.

    Attributes:
        step: of the weights.
        success: rate, or the mean score where a task has no success.
        told: in words.
    """

    step: int
    success: float
    told: str


class Rollouts:
    """Measures every `every` steps, one measurement at a time; a run that goes on finds those that are there.

    Args:
        run: directory of the run.
        every: steps between measurements.
        episodes: of each, on selection seeds: those on which people choose.
        log: of the run.
        step: at which the run begins or goes on; measurements of later steps are void.
    """

    def __init__(self, run: Path, every: int, episodes: int, log: Log | Silence, step: int) -> None:
        self._run, self._every, self._episodes, self._log = run, every, episodes, log
        self._folder = run / "rollouts"
        self._running: tuple[int, subprocess.Popen[bytes]] | None = None
        self.best: Measured | None = None
        self.latest: Measured | None = None
        for folder in sorted(self._folder.glob("[0-9]*")):
            if int(folder.name) > step or not (folder / FILE).exists():
                shutil.rmtree(folder)
                continue
            self.latest = _read(folder)
            if (folder / "policy").exists():
                self._choose(self.latest)

    def after(self, step: int, policy: Policy) -> str:
        """Call after every step: takes what has ended, and starts what is due. Returns what to tell of it."""
        before = self.latest
        self._collect(wait=step % self._every == 0)
        new = self.latest if self.latest is not before else None
        if step % self._every == 0:
            self._start(step, policy)
        return f"after {new.step} steps: {new.told}" if new else ""

    def _start(self, step: int, policy: Policy) -> None:
        folder = self._folder / f"{step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        policy.save_pretrained(folder / "policy")
        films = all(importlib.util.find_spec(name) for name in ("av", "matplotlib"))
        words = [
            "eval", f"checkpoint={folder / 'policy'}", f"out={folder}", f"arms=[{policy.sampling.usual_nfe}]",
            f"episodes={self._episodes}", f"seed_start={SELECTION_START}", f"report={str(films).lower()}", "videos=2",
        ]  # fmt: skip
        with (folder / "log.txt").open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", ISDT, *words], stdin=subprocess.PIPE, stdout=out, stderr=out,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self._running = step, process

    def finish(self) -> str:
        """Wait for the last episodes; returns what to tell."""
        self._collect(wait=True)
        if self.best is None:
            return f"no episodes could be run; see {self._folder}"
        return (
            f"best at step {self.best.step}: {self.best.told} on the seeds it was chosen on. On others: isdt eval "
            f"checkpoint={self._run / 'checkpoints' / 'best_success'}"
        )

    def stop(self) -> None:
        """End what is running."""
        if self._running:
            self._running[1].kill()
            self._running[1].wait()
            self._running = None

    def _collect(self, wait: bool) -> None:
        if self._running is None or (not wait and self._running[1].poll() is None):
            return
        step, process = self._running
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.stop()
        self._running, folder = None, self._folder / f"{step:07d}"
        if process.returncode != 0 or not (folder / FILE).exists():
            last = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
            print(f"isdt train: no episodes of step {step}: {' '.join(last) or 'they took too long'}", file=sys.stderr)
            return
        self.latest = measured = _read(folder)
        self._log.write(step, {"rollout_success": measured.success, **_films(folder)})
        self._choose(measured)

    def _choose(self, measured: Measured) -> None:
        before = self.best
        if before is not None and measured.success < before.success:
            shutil.rmtree(self._folder / f"{measured.step:07d}" / "policy")
            return
        self.best = measured
        (self._run / "checkpoints").mkdir(exist_ok=True)
        checkpoint.point(self._run / "checkpoints" / "best_success", f"../rollouts/{measured.step:07d}")
        if before is not None:
            shutil.rmtree(self._folder / f"{before.step:07d}" / "policy", ignore_errors=True)


def check_task(task: str) -> None:
    """Refuse to measure where there is nothing to act in.

    Raises:
        InputError: no registered task, or its simulator is not installed.
    """
    if not task:
        raise InputError(
            "training.eval_every runs episodes, and demonstrations without a registered task have no simulator. Leave it out; "
            "isdt eval data says what can be said without one."
        )
    make(task).close()


def _read(folder: Path) -> Measured:
    first, numbers = Result.load(folder).first
    rate = numbers.success_rate
    shown = numbers.score if rate is None else rate
    told = f"{shown.value:.2f} [{shown.low:.2f}, {shown.high:.2f}] {'score' if rate is None else 'success'}"
    return Measured(int(folder.name), shown.value, f"{told} in {numbers.n} episodes at {first.name}")


def _films(folder: Path) -> dict[str, Path]:
    found = sorted(folder.rglob("*.mp4"))
    return {f"rollout_{number}": path for number, path in enumerate(found)}
