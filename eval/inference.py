"""The policy's side of an evaluation: calls of a fixed number of rows, checks of what comes back, and the clock.

A matrix product picks its algorithm by the number of rows, so one row alone and the same row among sixteen differ in the last
bit, and contact physics turns that into another episode. Calls are therefore filled up to one fixed number of rows
(`Protocol.inference_batch`). Within a fixed number that is a multiple of 8, a row does not depend on its position or its
neighbours (a test proves it for the networks here). A policy with an attribute `inference_rows` does this itself and is handed
the rows as they are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs.protocol import Policy, frozen
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.looks import doubts, image_looks
from isdt_policy.shared.values import Json, fitting

log = logging.getLogger("isdt_policy.eval")

Observation = Mapping[str, NDArray[np.generic]]

CALLS = 20
WARM_UP = 2  # the first calls choose algorithms and allocate


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of durations, in milliseconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Latency:
    """Inference calls of one arm.

    Attributes:
        single_row_ms: a call with one row, as when a robot asks.
        batch_ms: a call of the evaluation.
        batch_rows: how many episodes such a call has on average.
        calls: how many such calls there were.
    """

    single_row_ms: Percentiles
    batch_ms: Percentiles
    batch_rows: float
    calls: int

    @classmethod
    def from_json(cls, data: Json) -> Latency:
        """Read what `to_json` wrote."""
        single, batch = (Percentiles(**fitting(Percentiles, data[key])) for key in ("single_row_ms", "batch_ms"))
        return cls(single, batch, float(data["batch_rows"]), int(data["calls"]))

    def to_json(self) -> dict[str, object]:
        """The numbers as JSON values."""
        return asdict(self)


class Inference:
    """Asks a policy, and remembers how long it took.

    Args:
        policy: what is asked.
        rows: most rows in a call.
    """

    def __init__(self, policy: Policy, rows: int) -> None:
        self.policy, self.rows = policy, rows
        self.calls: dict[Arm, list[tuple[int, float]]] = {}  # (rows, seconds) of every call
        self._last: Observation | None = None
        self._looks = image_looks(policy)

    @property
    def seconds(self) -> float:
        """Spent in the policy so far."""
        return sum(seconds for calls in self.calls.values() for _, seconds in calls)

    def ask(self, obs: Observation, arm: Arm, noise_seeds: NDArray[np.int64]) -> NDArray[np.float32]:
        """Action chunks (rows, n_action_steps, action_dim).

        Args:
            obs: per key (rows, n_obs_steps, *feature).
            arm: how the policy is asked.
            noise_seeds: (rows, 2): episode seed and number of the decision.

        Raises:
            InputError: the policy raises, or its actions are not finite or have another shape.
        """
        rows = len(noise_seeds)
        if self._looks:
            newest = {key: obs[key][:, -1].view(np.uint8) for key in self._looks if obs[key].dtype == np.uint8}
            for doubt in doubts(self._looks, newest):
                log.warning("evaluation: %s", doubt)
            self._looks = {}
        padded = rows if hasattr(self.policy, "inference_rows") else self.rows
        index = np.minimum(np.arange(padded), rows - 1)  # the last row fills up
        where = f"at seed {noise_seeds[0, 0]}, decision {noise_seeds[0, 1]}, arm {arm}, batch of {padded}"
        begin = time.perf_counter()
        try:
            answer = self.policy.predict_action(
                {key: value[index] for key, value in obs.items()}, nfe=arm.value, noise_seeds=noise_seeds[index]
            )
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"the policy raised {type(error).__name__}: {error} ({where}).") from error
        action = np.asarray(answer["action"])[:rows]
        self.calls.setdefault(arm, []).append((rows, time.perf_counter() - begin))
        self._last = {key: value[:1] for key, value in obs.items()}
        expected = (rows, self.policy.n_action_steps)
        if action.ndim != 3 or action.shape[:2] != expected:
            raise InputError(
                f"the policy answered with actions of shape {action.shape}; expected ({rows}, {expected[1]}, action_dim) {where}."
            )
        if not np.isfinite(action).all():
            raise InputError(f"the policy answered with an action that is not finite {where}.")
        return action

    def latency(self, arm: Arm) -> Latency | None:
        """How long the calls of an arm took, and how long a call with one row takes; None without calls."""
        calls = self.calls.get(arm)
        if not calls or self._last is None:
            return None
        return Latency(
            single_row_ms=percentiles(single_row_seconds(self.policy, self._last, arm)),
            batch_ms=percentiles([seconds for _, seconds in calls]),
            batch_rows=float(np.mean([rows for rows, _ in calls])),
            calls=len(calls),
        )


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """Percentiles of durations.

    >>> percentiles([0.001, 0.002, 0.003]).p50
    2.0
    """
    return Percentiles(*(float(np.percentile(seconds, q)) * 1e3 for q in (50, 95, 99)))


def single_row_seconds(
    policy: Policy, obs: Mapping[str, NDArray[np.generic]], arm: Arm, calls: int = CALLS
) -> list[float]:
    """Time calls with one row, as a robot makes them, without the rows that an evaluation adds.

    Args:
        policy: what answers; where it can be frozen, it is, to one row.
        obs: per key (1, n_obs_steps, *feature).
        arm: how it is asked.
        calls: number of calls that are timed.
    """
    alone = frozen(policy, arm.value, one_row=True)
    times = []
    for i in range(calls + WARM_UP):
        begin = time.perf_counter()
        alone.predict_action(obs, nfe=arm.value, noise_seeds=np.array([[0, i]], np.int64))
        times.append(time.perf_counter() - begin)
    return times[WARM_UP:]
