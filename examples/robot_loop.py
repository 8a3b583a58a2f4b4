"""A policy on your robot. Copy this file, write a class like `Robot` for yours, and name it with --robot FILE.py:CLASS.

CHECKPOINT is a run, an exported .onnx file (needs no torch), or ws://HOST:PORT of `isdt serve`.
"""

import argparse
import contextlib
import importlib
import runpy
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from numpy import ndarray

from isdt_policy.deploy.loading import load_for_robot, nfe_of
from isdt_policy.deploy.runtime import Runtime
from isdt_policy.deploy.safety import Safety
from isdt_policy.deploy.watchdog import Watchdog
from isdt_policy.shared.errors import InputError


class Robot(Protocol):
    """What the loop needs of a robot; keys and units as in the recordings."""

    action_dim: int

    # The newest observation. None if none came in time; an OSError, such as a TimeoutError, means the same.
    def observe(self) -> dict[str, ndarray] | None: ...
    # Send a command (action_dim,), and return at once.
    def command(self, action: ndarray) -> None: ...
    # Stand still from now on. The watchdog calls it from its own thread while `observe` or `command` hangs.
    def hold(self) -> None: ...


def drive(policy, robot: Robot, limits, rate_hz: float, seconds: float, recorder=None) -> dict[str, int]:
    """Drive the robot; returns how often the safety stage intervened, by kind."""
    period = 1 / rate_hz
    safety = Safety(limits, action_dim=robot.action_dim, rate_hz=rate_hz, max_age_s=2 * policy.n_action_steps * period)
    if (observation := seen(robot)) is None:
        raise InputError("the robot does not answer; nothing was sent to it.")
    safety.reset(observation[limits.position] if limits.position else None)

    def silent() -> None:
        safety.stop("the robot or the loop was silent")
        robot.hold()

    with ThreadPoolExecutor(1) as inference, Watchdog(max(10 * period, 0.5), silent) as watchdog:
        runtime = Runtime(policy, nfe=nfe_of(policy, None), mode="async", executor=inference, wait_s=period / 2)
        runtime.act(observation)  # the first answer takes longest: before the clock starts
        runtime.reset()
        beat = start = time.monotonic()
        try:
            while beat - start < seconds:
                watchdog.beat()
                new = seen(robot)
                decision = runtime.step(new, time.monotonic())  # None: the last one counts, at its age
                age = 0.0 if decision.taken_s is None else time.monotonic() - decision.taken_s
                command = safety(decision.action, age)
                if command is None or safety.stopped:
                    break
                robot.command(command)
                observation = new or observation
                if recorder:
                    recorder.step(observation, command)
                beat = max(beat + period, time.monotonic())  # a late beat is not caught up by hurrying
                time.sleep(max(0.0, beat - time.monotonic()))
        finally:
            robot.hold()
            if recorder and recorder.n_steps:
                recorder.end()
    return dict(safety.counts)


def seen(robot: Robot) -> dict[str, ndarray] | None:
    with contextlib.suppress(OSError):
        return robot.observe()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--robot", required=True, metavar="FILE.py:CLASS")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--log", metavar="STORE.zarr")
    given = parser.parse_args()
    policy, limits, recorded = load_for_robot(given.checkpoint)
    file, _, name = given.robot.partition(":")
    store = given.log and importlib.import_module("isdt_policy.datasets.recorder")  # zarr: the loop itself needs none
    recorder = store.Recorder(store.DemoWriter(given.log)) if store else None
    counts = drive(policy, runpy.run_path(file)[name](), limits, recorded.rate_hz, given.seconds, recorder)
    print("interventions:", counts or "none")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"robot_loop: {error}") from None
