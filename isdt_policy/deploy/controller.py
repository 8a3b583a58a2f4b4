"""The control loop: a simulator at a fixed rate, the policy in its own thread, limits in between.

Every period the simulator moves, whether the policy has answered or not: as a robot would. One period:

    wait for the beat -> read the observation (or lose it) -> Runtime.step -> Safety -> environment.step

The clock is the wall's, or virtual. On the virtual clock an inference takes the injected latency and nothing else takes
time: the same episodes, faster than they would last and repeatable, for tables of success against latency.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isdt_policy.deploy.clock import TimedThread, VirtualClock, VirtualThread, WallClock
from isdt_policy.deploy.latency import Draw
from isdt_policy.deploy.report import Episode, Report
from isdt_policy.deploy.runtime import Mode, Runtime
from isdt_policy.deploy.safety import Safety
from isdt_policy.deploy.watchdog import Watchdog
from isdt_policy.envs.protocol import Policy, frozen
from isdt_policy.eval.episode import Env, Observation, success_in


@dataclass(frozen=True)
class Control:
    """How an environment is driven.

    Attributes:
        rate_hz: control steps per second.
        mode, nfe, execute, ensemble: how the policy is asked; see `Runtime`.
        seed: the first episode starts from it, the others from the seeds that follow. It also decides the policy's noise.
        episodes: stop after so many episodes; None: do not.
        seconds: stop after so many seconds of control; None: do not.
        virtual: use the virtual clock, not the wall clock.
        latency: draws the seconds that are added to an inference.
        drop_obs: share of observations that are lost, 0 to 1; the first of an episode never is.
        max_steps: an episode ends after so many control steps; None: only when the environment ends it.
    """

    rate_hz: float
    mode: Mode = "sync"
    nfe: int | str = 1
    execute: int | None = None
    ensemble: float | None = None
    seed: int = 0
    episodes: int | None = None
    seconds: float | None = None
    virtual: bool = False
    latency: Draw = lambda rng: 0.0
    drop_obs: float = 0.0
    max_steps: int | None = None


def control(
    policy: Policy,
    env: Env,
    safety: Safety,
    settings: Control,
    on_period: Callable[[Report], None] | None = None,
) -> Report:
    """Drive an environment until `episodes` are finished or `seconds` of control have passed, whichever is first.

    Args:
        policy: behind the policy protocol.
        env: environment with Dict observations.
        safety: the limits; their `position` key is read from the observations.
        settings: see `Control`.
        on_period: called after every period, for displays; its time counts.
    """
    if not settings.virtual:
        # Evaluation computes 16 rows whatever is asked, so that last bits do not depend on neighbours; a robot has none.
        policy = frozen(policy, settings.nfe, one_row=True)
    loop = _Loop(policy, env, safety, settings, on_period)
    silence = max(10 * loop.period, 1.0)
    bark = Watchdog(silence, lambda: safety.stop(f"the control loop was silent for {silence:g} s"))
    try:
        with contextlib.nullcontext() if settings.virtual else bark as watchdog:
            loop.run(watchdog)
    finally:
        loop.thread.close()
        loop.report.interventions = dict(safety.counts)
        loop.report.stale_cameras = dict(loop.runtime.cameras.stale)
        loop.report.stopped = safety.stopped
    return loop.report


class _Loop:
    """The loop of one run: what it drives, and what it has measured."""

    def __init__(
        self, policy: Policy, env: Env, safety: Safety, settings: Control, on_period: Callable[[Report], None] | None
    ) -> None:
        self.env, self.safety, self.settings, self.on_period = env, safety, settings, on_period
        self.period = 1 / settings.rate_hz
        rng = np.random.default_rng([settings.seed, 1])
        self.clock: WallClock | VirtualClock
        self.thread: TimedThread | VirtualThread
        if settings.virtual:
            self.clock = VirtualClock()
            self.thread = VirtualThread(self.clock, settings.latency, rng)
        else:
            self.clock = WallClock()
            self.thread = TimedThread(settings.latency, rng)
        # Half a period for the policy, the rest for the simulator, in the periods in which there is nothing else to do.
        self.runtime = Runtime(
            policy, mode=settings.mode, nfe=settings.nfe, execute=settings.execute, ensemble=settings.ensemble,
            executor=self.thread, wait_s=self.period / 2,
        )  # fmt: skip
        self.report = Report(settings.rate_hz, compute_s=self.thread.compute_s, inference_s=self.thread.total_s)
        self.lost = np.random.default_rng([settings.seed, 2])

    def run(self, watchdog: Watchdog | None) -> None:
        """All episodes."""
        count, report = self.settings.episodes, self.report
        while self.safety.stopped is None and (count is None or len(report.episodes) < count) and not self._over():
            record = Episode(self.settings.seed + len(report.episodes))
            report.episodes.append(record)
            with contextlib.nullcontext() if self.settings.virtual else _uncollected():
                self.episode(record, watchdog)

    def episode(self, record: Episode, watchdog: Watchdog | None) -> None:
        """One episode, from reset to its end or that of the run."""
        clock, report, safety = self.clock, self.report, self.safety
        observation, _ = self.env.reset(seed=record.seed)
        self.runtime.reset(seed=record.seed)
        key = safety.limits.position
        safety.reset(None if key is None else observation[key])
        before_s = report.running_s
        start = beat = clock.now()
        taken = 0.0  # when the observation was taken, on the clock that starts with the episode's first beat
        first, dead = True, False
        while not record.finished:
            if watchdog is not None:
                watchdog.beat()
            stolen = _stolen_ticks()
            drop = not first and self.settings.drop_obs > 0 and self.lost.random() < self.settings.drop_obs
            decision = self.runtime.step(None if drop else observation, taken)
            if first:  # the first chunk is waited for with the robot at rest: the beat begins when it is there
                start = beat = clock.now()
                first = False
            age = 0.0 if decision.taken_s is None else max(0.0, clock.now() - start - decision.taken_s)
            command = safety(decision.action, age)
            if command is None:
                safety.stop("the first action is missing, too old or not finite, and there is nothing to hold")
                break
            if decision.action is None:
                report.held += 1
            else:
                report.age_s.append(age)
            before, observation = observation, self._move(record, command)
            beat = self._keep_time(beat, stolen)
            dead = _same_bits(before, observation) and (dead or self._told_to_move(record))
            if not dead:  # the robot was told to move, and nothing that is seen has moved since
                taken = beat - start
            report.running_s = before_s + clock.now() - start
            if safety.stopped is not None or self._over():
                break
        report.lost_observations += self.runtime.repeated_observations

    def _move(self, record: Episode, command: NDArray[np.float32]) -> Observation:
        """Hand a command to the environment and note what comes of it."""
        record.commands.append(command)
        observation, reward, terminated, truncated, info = self.env.step(command)
        record.max_reward = max(record.max_reward, float(reward))
        record.success = record.success or bool(success_in(info))
        record.finished = bool(terminated or truncated or len(record.commands) == self.settings.max_steps)
        return observation

    def _told_to_move(self, record: Episode) -> bool:
        """Whether the last command means motion: a position that is new, or a displacement that is not neutral."""
        command, neutral = record.commands[-1], self.safety.limits.neutral or (None,) * len(record.commands[-1])
        last = record.commands[-2] if len(record.commands) > 1 else command
        return any(c != (was if rest is None else rest) for c, was, rest in zip(command, last, neutral))

    def _keep_time(self, beat: float, stolen: int) -> float:
        """Close the period that began at `beat`, wait for the next one and return its beginning."""
        report, clock = self.report, self.clock
        report.periods += 1
        done = clock.now()
        report.work_s.append(done - beat)
        beat += self.period
        if done > beat:
            report.missed += 1
            report.missed_stolen += _stolen_ticks() > stolen
            beat = max(beat, done)  # a missed beat is not caught up by hurrying
        if self.on_period is not None:
            self.on_period(report)
        clock.sleep_until(beat)
        return beat

    def _over(self) -> bool:
        return self.settings.seconds is not None and self.report.running_s >= self.settings.seconds - 1e-9


def _same_bits(before: Observation | None, after: Observation | None) -> bool:
    """Whether two observations are equal in every number; what is not there or not finite is the runtime's to find."""
    if before is None or after is None:
        return False
    return before.keys() == after.keys() and all(np.array_equal(before[key], after[key]) for key in after)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Collect cyclic garbage now, before the beat, and not again until the end of the episode.

    A full collection walks every object that torch and the simulator hold: tens of milliseconds, at no chosen moment.
    """
    before = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _stolen_ticks() -> int:
    """Time that a hypervisor kept from this machine's cores, all together, in ticks of 10 ms; 0 where it is not told."""
    try:
        with open("/proc/stat", "rb", buffering=0) as stat:
            return int(stat.read(200).split(maxsplit=9)[8])
    except (OSError, ValueError, IndexError):
        return 0


def replay(env: Env, record: Episode) -> list[NDArray[np.uint8]]:
    """Frames of an episode, rendered afterwards from its commands: drawing would have cost the loop its beat."""
    env.reset(seed=record.seed)
    frames = [np.asarray(env.render(), np.uint8)]
    for command in record.commands:
        env.step(command)
        frames.append(np.asarray(env.render(), np.uint8))
    return frames
