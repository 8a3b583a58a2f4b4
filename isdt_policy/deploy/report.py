"""What a run of the control loop measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray


class Record(TypedDict):
    """An episode in a file."""

    seed: int
    success: bool
    max_reward: float
    length: int


@dataclass
class Episode:
    """One episode: what happened, and the commands, from which it can be replayed."""

    seed: int
    success: bool = False
    max_reward: float = 0.0
    commands: list[NDArray[np.float32]] = field(default_factory=list)
    finished: bool = False

    def as_dict(self) -> Record:
        """JSON values, without the commands."""
        return {
            "seed": self.seed,
            "success": self.success,
            "max_reward": self.max_reward,
            "length": len(self.commands),
        }


@dataclass
class Report:
    """What a run measured. Times in seconds.

    Attributes:
        periods: number of control steps.
        running_s: how long they took, without the resets between episodes.
        missed: periods whose work ended after the next one was due.
        missed_stolen: missed periods in which the hypervisor took a core away (Linux in a virtual machine).
        held: periods without a fresh action, in which the robot moved no further.
        lost_observations: observations that were dropped on purpose, or were not finite.
        work_s: from every beat to the end of that period's work: wake-up, policy, limits, simulator. Above 1 / rate_hz it
            is a miss; how far below it stays is the margin.
        age_s: how old the observation behind every fresh action was.
        compute_s, inference_s: how long every inference took, without and with the injected latency.
        interventions: how often the safety stage intervened, by kind.
        stale_cameras: control steps in a row for which a camera gave the same picture while something else changed, the longest
            time, by camera.
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
    stale_cameras: dict[str, int] = field(default_factory=dict)
    stopped: str | None = None
    episodes: list[Episode] = field(default_factory=list)

    @property
    def rate_kept(self) -> float:
        """Periods per second."""
        return self.periods / self.running_s if self.running_s else 0.0

    @property
    def finished(self) -> list[Episode]:
        """The episodes that came to their end."""
        return [episode for episode in self.episodes if episode.finished]

    @property
    def score(self) -> float | None:
        """Mean over the finished episodes of the largest reward."""
        return float(np.mean([e.max_reward for e in self.finished])) if self.finished else None

    def summary(self) -> dict[str, object]:
        """JSON values: percentiles in milliseconds, success over the finished episodes."""
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
            **({"stale_cameras": dict(self.stale_cameras)} if self.stale_cameras else {}),
            "stopped": self.stopped,
            "episodes": len(self.finished),
            "successes": sum(e.success for e in self.finished),
            "score": self.score,
            "records": [e.as_dict() for e in self.finished],
        }


def percentiles(seconds: list[float]) -> dict[str, float] | None:
    """p50, p95, p99 and the maximum in milliseconds; None of nothing.

    >>> percentiles([0.001, 0.002, 0.003])["p50"]
    2.0
    """
    if not seconds:
        return None
    return {**{f"p{q}": float(np.percentile(seconds, q)) * 1e3 for q in (50, 95, 99)}, "max": max(seconds) * 1e3}
