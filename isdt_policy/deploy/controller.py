"""The control loop: a simulator at a fixed rate, the policy in its own thread, limits in between.

Every period the simulator moves, whether the policy has answered or not: as a robot would. One period:

    wait for the beat -> read the observation (or lose it) -> Runtime.step -> Safety -> environment.step

The clock is the wall's, or virtual. On the virtual clock an inference takes the injected latency and nothing else takes
time: the same episodes, faster than they would last and repeatable, for tables of success against latency.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.deploy.latency import Draw
from isdt_policy.deploy.runtime import Executor, Runtime
from isdt_policy.deploy.safety import Safety, Watchdog

log = logging.getLogger("isdt_policy.deploy")


class WallClock:
    """Seconds as they pass."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    def sleep_until(self, moment: float) -> None:
        """Return at `moment`, or at once if it is past."""
        # The scheduler wakes sleepers late; the last half millisecond is spent awake.
        rest = moment - self.now()
        if rest > 5e-4:
            time.sleep(rest - 5e-4)
        while self.now() < moment:
            pass


class VirtualClock:
    """Seconds that pass only when slept."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Seconds since the start."""
        return self._now

    def sleep_until(self, moment: float) -> None:
        """Jump to `moment`."""
        self._now = max(self._now, moment)


class TimedThread:
    """One thread that runs inference, adds the injected latency and writes both down.

    Attributes:
        compute_s: duration of every job, seconds.
        total_s: with the injected latency.
    """

    def __init__(self, latency: Draw, rng: np.random.Generator) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._latency, self._rng = latency, rng
        self.compute_s: list[float] = []
        self.total_s: list[float] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a job."""

        def job() -> Any:
            begin = time.perf_counter()
            try:
                return fn(*args, **kwargs)
            finally:
                self.compute_s.append(time.perf_counter() - begin)
                time.sleep(self._latency(self._rng))
                self.total_s.append(time.perf_counter() - begin)

        return self._pool.submit(job)

    def close(self) -> None:
        """Wait for a running job and end the thread."""
        self._pool.shutdown()


class VirtualThread:
    """Computes a job at once and hands its result over when the virtual clock has reached its time."""

    def __init__(self, clock: VirtualClock, latency: Draw, rng: np.random.Generator) -> None:
        self._clock, self._latency, self._rng = clock, latency, rng
        self.compute_s: list[float] = []
        self.total_s: list[float] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a job."""
        begin = time.perf_counter()
        future = _Later(self._clock)
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # handed to whoever asks for the result
            future.set_exception(error)
        self.compute_s.append(time.perf_counter() - begin)
        delay = self._latency(self._rng)
        self.total_s.append(delay)
        future.ready_at = self._clock.now() + delay
        return future

    def close(self) -> None:
        """Nothing to end."""


class _Later(Future[Any]):
    ready_at = 0.0

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def done(self) -> bool:
        return self._clock.now() >= self.ready_at - 1e-9

    def result(self, timeout: float | None = None) -> Any:
        if timeout is not None and self.ready_at > self._clock.now() + timeout + 1e-9:
            raise TimeoutError
        return super().result(0)


@dataclass
class EpisodeRecord:
    """One episode: what happened, and the commands, from which it can be replayed."""

    seed: int
    success: bool = False
    max_reward: float = 0.0
    commands: list[NDArray[np.float32]] = field(default_factory=list)
    finished: bool = False


@dataclass
class Report:
    """What a run measured. Times in seconds.

    Attributes:
        periods: control steps made.
        running_s: time they took, without the resets between episodes.
        missed: periods whose work ended after the next was due.
        missed_stolen: of those, the ones in which the hypervisor ran something else on a core (Linux in a virtual machine).
        held: periods without a fresh action; the last command was repeated.
        lost_observations: dropped on purpose, or not finite.
        work_s: from every beat to the end of that period's work: wake-up, policy, limits, simulator. Above 1 / rate_hz it
            is a miss; how far below it stays is the margin.
        age_s: of the observation behind every fresh action.
        compute_s, inference_s: duration of every inference, alone and with the injected latency.
        interventions: of the safety stage, by kind.
        stopped: why the run ended early, or None.
    """

    rate_hz: float
    periods: int = 0
    running_s: float = 0.0
    missed: int = 0
    missed_stolen: int = 0
    held: int = 0
    lost_observations: int = 0
    work_s: list[float] = field(default_factory=list)
    age_s: list[float] = field(default_factory=list)
    compute_s: list[float] = field(default_factory=list)
    inference_s: list[float] = field(default_factory=list)
    interventions: dict[str, int] = field(default_factory=dict)
    stopped: str | None = None
    episodes: list[EpisodeRecord] = field(default_factory=list)

    @property
    def rate_kept(self) -> float:
        """Periods per second."""
        return self.periods / self.running_s if self.running_s else 0.0

    def summary(self) -> dict[str, Any]:
        """Return JSON values: percentiles in milliseconds, success over the finished episodes."""
        done = [e for e in self.episodes if e.finished]
        return {
            "rate_hz": self.rate_hz,
            "rate_kept_hz": self.rate_kept,
            "periods": self.periods,
            "deadline_misses": self.missed,
            "deadline_misses_while_cores_were_stolen": self.missed_stolen,
            "held": self.held,
            "lost_observations": self.lost_observations,
            "work_ms": percentiles(self.work_s),
            "inference_ms": percentiles(self.inference_s),
            "compute_ms": percentiles(self.compute_s),
            "action_age_ms": percentiles(self.age_s),
            "interventions": dict(self.interventions),
            "stopped": self.stopped,
            "episodes": len(done),
            "successes": sum(e.success for e in done),
            "score": float(np.mean([e.max_reward for e in done])) if done else None,
            "records": [
                {"seed": e.seed, "success": e.success, "max_reward": e.max_reward, "length": len(e.commands)}
                for e in done
            ],
        }


def percentiles(seconds: list[float]) -> dict[str, float] | None:
    """Return p50, p95, p99 and the maximum in milliseconds; None of nothing.

    >>> percentiles([0.001, 0.002, 0.003])["p50"]
    2.0
    """
    if not seconds:
        return None
    return {**{f"p{q}": float(np.percentile(seconds, q)) * 1e3 for q in (50, 95, 99)}, "max": max(seconds) * 1e3}


def control(
    policy: Any,
    env: Any,
    safety: Safety,
    *,
    rate_hz: float,
    first_seed: int = 0,
    episodes: int | None = None,
    seconds: float | None = None,
    mode: str = "sync",
    nfe: int | str = 1,
    execute: int | None = None,
    ensemble: float | None = None,
    latency: Draw = lambda rng: 0.0,
    drop_obs: float = 0.0,
    virtual: bool = False,
    on_period: Callable[[Report], None] | None = None,
) -> Report:
    """Drive an environment until `episodes` are finished or `seconds` of control have passed, whichever is first.

    Args:
        policy: behind the policy protocol.
        env: with Dict observations; reset with seeds first_seed, first_seed + 1, ... The policy's noise belongs to the
            seed too, as in evaluation.
        safety: limits; its `position` key is read from the observations.
        rate_hz: of control.
        mode, nfe, execute, ensemble: see `Runtime`.
        latency: added to every inference.
        drop_obs: share of observations that get lost, 0 to 1; never the first of an episode.
        virtual: the virtual clock instead of the wall's.
        on_period: called after every period, for displays; its time counts.
    """
    period = 1 / rate_hz
    clock: WallClock | VirtualClock = VirtualClock() if virtual else WallClock()
    rng = np.random.default_rng([first_seed, 1])
    thread: TimedThread | VirtualThread = (
        VirtualThread(clock, latency, rng) if isinstance(clock, VirtualClock) else TimedThread(latency, rng)
    )
    executor: Executor = thread
    # Half a period for the policy, the rest for the simulator, on the periods in which there is nothing else to do.
    runtime = Runtime(
        policy, mode=mode, nfe=nfe, execute=execute, ensemble=ensemble, executor=executor, wait_s=period / 2
    )
    report = Report(rate_hz, compute_s=thread.compute_s, inference_s=thread.total_s)
    lost = np.random.default_rng([first_seed, 2])
    silence = max(10 * period, 1.0)
    watchdog = (
        None if virtual else Watchdog(silence, lambda: safety.stop(f"the control loop was silent for {silence:g} s"))
    )
    try:
        if watchdog is not None:
            watchdog.__enter__()
        seed = first_seed
        while safety.stopped is None and (episodes is None or len(report.episodes) < episodes):
            if seconds is not None and report.running_s >= seconds - 1e-9:
                break
            record = EpisodeRecord(seed)
            report.episodes.append(record)
            with contextlib.nullcontext() if virtual else _uncollected():
                _episode(
                    env, runtime, safety, record, report, clock, period, seconds, drop_obs, lost, watchdog, on_period
                )
            seed += 1
    finally:
        thread.close()
        if watchdog is not None:
            watchdog.__exit__(None, None, None)
        report.interventions = dict(safety.counts)
        report.stopped = safety.stopped
    return report


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


def _episode(
    env: Any,
    runtime: Runtime,
    safety: Safety,
    record: EpisodeRecord,
    report: Report,
    clock: WallClock | VirtualClock,
    period: float,
    seconds: float | None,
    drop_obs: float,
    lost: np.random.Generator,
    watchdog: Watchdog | None,
    on_period: Callable[[Report], None] | None,
) -> None:
    observation, _ = env.reset(seed=record.seed)
    runtime.reset(seed=record.seed)
    key = safety.limits.position
    safety.reset(None if key is None else observation[key])
    before_s = report.running_s
    start = beat = clock.now()
    first = True
    while True:
        if watchdog is not None:
            watchdog.beat()
        stolen = _stolen_ticks()
        drop = not first and drop_obs > 0 and lost.random() < drop_obs
        decision = runtime.step(None if drop else observation)
        if first:  # the first chunk is waited for with the robot at rest: the beat begins when it is there
            start = beat = clock.now()
            first = False
        command = safety(decision.action, decision.age * period)
        if command is None:
            raise AssertionError("the first decision has an action")
        if decision.action is None:
            report.held += 1
        else:
            report.age_s.append(decision.age * period + max(0.0, clock.now() - beat))
        record.commands.append(command)
        observation, reward, terminated, truncated, info = env.step(command)
        record.max_reward = max(record.max_reward, float(reward))
        record.success = record.success or _is_success(info)
        report.periods += 1
        done = clock.now()
        report.work_s.append(done - beat)
        beat += period
        if done > beat:
            report.missed += 1
            report.missed_stolen += _stolen_ticks() > stolen
            beat = max(beat, done)  # a missed beat is not caught up by hurrying
        if on_period is not None:
            on_period(report)
        clock.sleep_until(beat)
        report.running_s = before_s + clock.now() - start
        if terminated or truncated:
            record.finished = True
            break
        if safety.stopped is not None or (seconds is not None and report.running_s >= seconds - 1e-9):
            break
    report.lost_observations += runtime.repeated_observations


def _stolen_ticks() -> int:
    """Time that a hypervisor kept from this machine's cores, all together, in ticks of 10 ms; 0 where it is not told."""
    try:
        with open("/proc/stat", "rb", buffering=0) as stat:
            return int(stat.read(200).split(maxsplit=9)[8])
    except (OSError, ValueError, IndexError):
        return 0


def _is_success(info: Mapping[str, Any]) -> bool:
    value = info.get("is_success", info.get("success", False))
    return bool(value["task"] if isinstance(value, Mapping) else value)


def replay(env: Any, record: EpisodeRecord) -> list[NDArray[np.uint8]]:
    """Frames of an episode, rendered afterwards from its commands: drawing would have cost the loop its beat."""
    env.reset(seed=record.seed)
    frames = [np.asarray(env.render(), np.uint8)]
    for command in record.commands:
        env.step(command)
        frames.append(np.asarray(env.render(), np.uint8))
    return frames
