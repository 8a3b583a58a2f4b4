"""How long a policy takes to answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs.protocol import Policy
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.values import Json

CALLS = 20
WARM_UP = 2  # the first calls choose algorithms and allocate


@dataclass(frozen=True)
class Percentiles:
    """Of durations, in milliseconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Latency:
    """Inference calls of one arm.

    Attributes:
        single_row_ms: one row alone, as a robot asks.
        batch_ms: the calls of the evaluation.
        batch_rows: mean number of episodes in such a call.
        calls: number of such calls.
    """

    single_row_ms: Percentiles
    batch_ms: Percentiles
    batch_rows: float
    calls: int

    @classmethod
    def from_json(cls, data: Json) -> Latency:
        """Read what `to_json` wrote."""
        single, batch = (Percentiles(**data[key]) for key in ("single_row_ms", "batch_ms"))
        return cls(single, batch, float(data["batch_rows"]), int(data["calls"]))

    def to_json(self) -> dict[str, object]:
        """The numbers as JSON values."""
        return asdict(self)


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """Percentiles of durations.

    >>> percentiles([0.001, 0.002, 0.003]).p50
    2.0
    """
    return Percentiles(*(float(np.percentile(seconds, q)) * 1e3 for q in (50, 95, 99)))


def single_row_seconds(
    policy: Policy, obs: Mapping[str, NDArray[np.floating]], arm: Arm, calls: int = CALLS
) -> list[float]:
    """Time calls with one row, as a robot makes them, without the rows that an evaluation adds.

    Args:
        policy: what answers; `policy.alone()` is asked in its place if it has that method.
        obs: per key (1, n_obs_steps, *feature).
        arm: how it is asked.
        calls: number of calls that are timed.
    """
    alone: Policy = policy.alone() if hasattr(policy, "alone") else policy
    times = []
    for i in range(calls + WARM_UP):
        begin = time.perf_counter()
        alone.predict_action(obs, nfe=arm.value, noise_seeds=np.array([[0, i]], np.int64))
        times.append(time.perf_counter() - begin)
    return times[WARM_UP:]
