"""Kills: each piece of work is killed at a file operation or at a time, looked at, resumed to its end, and compared."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from harness import Ack, Sitting, orphans, sit
from works import WORKS, inputs

from isdt_policy.datasets.generate import generate


class Kills:
    """Trials of one work.

    Args:
        name: of the work.
        folder: for everything; the inputs and a straight run are made where they are absent.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.work, self.folder, self.given = WORKS[name], folder / name, folder / "inputs"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.given / "run").exists():
            self.given.mkdir(exist_ok=True)
            done = sit(lambda ack: inputs(self.given), folder / "inputs.log", timeout_s=600)
            assert done.code == 0, done.said
        self.straight = self.folder / "straight_0"
        shutil.rmtree(self.straight, ignore_errors=True)
        done = self._sit(self.straight, self._do(self.straight), at_event=10**9, timeout_s=600)
        assert done.code == 0, done.said
        self.seconds, self.events = done.seconds, done.events

    def _sit(self, place: Path, do: Callable[[Ack], object], **how: float) -> Sitting:
        place.mkdir(exist_ok=True)
        return sit(do, place.with_name(f"{place.name}.log"), **how)  # type: ignore[arg-type]

    def _do(self, place: Path) -> Callable[[Ack], object]:
        def do(ack: Ack) -> None:
            self.work.before(place, self.given)
            ack()
            self.work.do(place, self.given, ack)

        return do

    def _afterwards(self, place: Path, acknowledged: int) -> Callable[[Ack], object]:
        """Look, go on to the end, compare; each that went well is acknowledged."""

        def do(ack: Ack) -> None:
            self.work.look(place, self.given, acknowledged)
            ack()
            self.work.do(place, self.given, lambda: None)
            ack()
            self.work.compare(place, self.straight)
            ack()

        return do

    def trial(self, number: int) -> tuple[str, str]:
        """("survived", "lost" or "wrong", what was seen). A kill that came before or after the work is made again."""
        rng, place = random.Random(number), self.folder / f"trial_{number}"
        for attempt in range(9):
            shutil.rmtree(place, ignore_errors=True)
            if number % 2 == 0:
                how = {"at_event": rng.randint(1, max(1, round(self.events * 0.9**attempt)))}
            else:
                how = {"after_s": rng.uniform(0.02, 0.95 * self.seconds * 0.8**attempt)}
            sitting = self._sit(place, self._do(place), **how)
            if sitting.code > 0:
                return "wrong", f"ended by itself: {sitting.said}"
            if sitting.killed and sitting.acknowledged:
                break
        else:
            return "not killed", ""
        acknowledged = sitting.acknowledged - 1
        after = self._sit(place, self._afterwards(place, acknowledged))
        if after.code:
            outcome = "lost" if after.acknowledged == 0 else "wrong"
            return outcome, f"after {how}, {acknowledged} acknowledged: {after.said[-600:]}"
        shutil.rmtree(place)
        place.with_name(f"{place.name}.log").unlink(missing_ok=True)
        return "survived", ""


def orphan_trial(folder: Path, number: int) -> tuple[str, str]:
    """Kill a generation with two worker processes; none may outlive it by more than ten seconds."""
    place = folder / f"orphans_{number}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)

    def work(ack: Ack) -> None:
        (place / "session").write_text(str(os.getpid()))
        generate(str(place / "o.zarr"), "avoiding", episodes=10_000, workers=2)

    sitting = sit(work, place / "log", after_s=random.Random(number).uniform(0.5, 12))
    assert sitting.killed, sitting.said
    session = int((place / "session").read_text())
    for _ in range(100):
        left = orphans(session)
        if not left:
            shutil.rmtree(place)
            return "survived", ""
        time.sleep(0.1)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return "wrong", f"{len(left)} processes live on"
