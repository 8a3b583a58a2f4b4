"""Clocks of the control loop, and the threads that run inference beside it.

On the virtual clock an inference takes the injected latency and nothing else takes time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from isdt_policy.deploy.latency import Draw


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
        compute_s: how long every job took, in seconds.
        total_s: the same with the injected latency.
    """

    def __init__(self, latency: Draw, rng: np.random.Generator) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._latency, self._rng = latency, rng
        self.compute_s: list[float] = []
        self.total_s: list[float] = []

    def submit(self, fn: Callable[..., object], /, *args: object, **kwargs: object) -> Future[object]:
        """Start a job."""

        def job() -> object:
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

    def submit(self, fn: Callable[..., object], /, *args: object, **kwargs: object) -> Future[object]:
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


class _Later(Future[object]):
    ready_at = 0.0

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def done(self) -> bool:
        return self._clock.now() >= self.ready_at - 1e-9

    def result(self, timeout: float | None = None) -> object:
        if timeout is not None and self.ready_at > self._clock.now() + timeout + 1e-9:
            raise TimeoutError
        return super().result(0)
