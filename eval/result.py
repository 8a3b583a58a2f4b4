"""What an evaluation found: a record per episode, a summary per arm, and all it takes to get the same numbers again.

`Result.save` writes eval_info.json, `Result.load` reads it. The layout is that of version 0.1.0 (schema "isdt-eval/1"), with
the same numbers under the names of other projects.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isdt_policy.eval.inference import Latency
from isdt_policy.eval.origin import Origin, PolicyInfo
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.seeds import purpose
from isdt_policy.eval.statistics import Estimate, bootstrap_mean, entropy, wilson
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.files import write_text
from isdt_policy.shared.values import Json, fitting, parse_json

SCHEMA, VERSION = "isdt-eval/", 1
FILE = "eval_info.json"
NOT_REPORTED = "not reported by the environment"


@dataclass(frozen=True)
class EpisodeRecord:
    """What happened in one episode; nothing in it depends on time, batch or worker.

    Attributes:
        seed: decides the environment's reset and the policy's noise.
        arm: how the policy was asked.
        success: None if the environment never said whether it succeeded.
        max_reward, sum_reward, final_reward: largest, summed and last reward of its steps.
        length: number of steps.
        steps_to_success: number of the first step that was a success; None if there was none.
        digest: hash of every action and reward; None after an error.
        error: why the episode could not be run; it then counts as a failure with score 0.
        final_coverage, max_coverage: last and largest coverage, in a task that measures it.
        initial_state, final_state: observations "state", in a task that has them.
        mode: which of the task's ways a success took, counted from 0; None for a task that names none.
    """

    seed: int
    arm: Arm
    success: bool | None
    max_reward: float
    sum_reward: float = 0.0
    final_reward: float = 0.0
    length: int = 0
    steps_to_success: int | None = None
    digest: str | None = None
    error: str | None = None
    final_coverage: float | None = None
    max_coverage: float | None = None
    initial_state: tuple[float, ...] | None = None
    final_state: tuple[float, ...] | None = None
    mode: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the episode was run to its end."""
        return self.error is None

    @property
    def key(self) -> tuple[int, Arm]:
        """Which episode of an evaluation it is."""
        return self.seed, self.arm

    @classmethod
    def from_json(cls, data: Json) -> EpisodeRecord:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: a value is missing, or is none that an episode can have.
        """
        error = data.get("error", "unknown error") if data.get("status") == "error" else None
        if data["success"] not in (None, True, False):
            raise ValueError(f"success is {data['success']!r}")
        given = fitting(cls, {key: value for key, value in data.items() if key != "arm"})
        states = [data.get("initial_state"), data.get("final_state")]
        initial, final = (None if state is None else tuple(state) for state in states)
        read = ("seed", "arm", "success", "max_reward", "error", "initial_state", "final_state")
        return cls(
            seed=int(data["seed"]), arm=Arm.parse(data["arm"]), success=data["success"], max_reward=float(data["max_reward"]),
            error=error, initial_state=initial, final_state=final,
            **{key: value for key, value in given.items() if key not in read},
        )  # fmt: skip

    def to_json(self) -> dict[str, object]:
        """The record as JSON values, without what its task does not measure."""
        data: dict[str, object] = {"seed": self.seed, "arm": self.arm.name, "status": "ok" if self.ok else "error"}
        if not self.ok:
            data["error"] = self.error
        for name in ("success", "max_reward", "sum_reward", "final_reward", "length", "steps_to_success", "digest"):
            data[name] = getattr(self, name)
        if self.final_coverage is not None:
            data |= {"final_coverage": self.final_coverage, "max_coverage": self.max_coverage}
        if self.initial_state is not None:
            data["initial_state"] = list(self.initial_state)
            data["final_state"] = None if self.final_state is None else list(self.final_state)
        if self.mode is not None:
            data["mode"] = self.mode
        return data


@dataclass(frozen=True)
class ArmSummary:
    """The numbers of one arm.

    Attributes:
        n: episodes.
        n_success: successes; None if the environment never says whether an episode succeeded.
        n_error: episodes that could not be run; they count as failures with score 0, because leaving them out would reward
            a policy that breaks its simulator.
        success_rate: rate of success with its Wilson interval; None like `n_success`.
        score: mean over episodes of the highest reward, with its bootstrap interval.
        mean_sum_reward: over episodes.
        mean_steps_to_success: over successes; None if there are none.
        mean_length: over episodes.
        final_coverage, max_coverage: means; None for a task that measures no coverage.
        latency: how long inference took; None if this evaluation made no calls.
        mode_entropy: how evenly the successes spread over the ways in which the task can be done, from 0 (always the same)
            to 1 (all equally often); None for a task that names none, or without successes.
    """

    n: int
    n_success: int | None
    n_error: int
    success_rate: Estimate | None
    score: Estimate
    mean_sum_reward: float
    mean_steps_to_success: float | None
    mean_length: float
    final_coverage: float | None = None
    max_coverage: float | None = None
    latency: Latency | None = None
    mode_entropy: float | None = None

    @classmethod
    def of(
        cls, records: Sequence[EpisodeRecord], confidence: float = 0.95, latency: Latency | None = None, modes: int = 0
    ) -> ArmSummary:
        """Summarise the records of one arm.

        Args:
            modes: number of ways in which the task can be done; 0 where the environment names none.

        Raises:
            InputError: no records.
        """
        n = len(records)
        n_success = count_successes(records)
        steps = [r.steps_to_success for r in records if r.steps_to_success is not None]
        return cls(
            n=n,
            n_success=n_success,
            n_error=sum(not r.ok for r in records),
            success_rate=None if n_success is None else wilson(n_success, n, confidence),
            score=bootstrap_mean([r.max_reward for r in records], confidence),
            mean_sum_reward=float(np.mean([r.sum_reward for r in records])),
            mean_steps_to_success=float(np.mean(steps)) if steps else None,
            mean_length=float(np.mean([r.length for r in records])),
            final_coverage=_mean(r.final_coverage for r in records),
            max_coverage=_mean(r.max_coverage for r in records),
            latency=latency,
            mode_entropy=entropy([r.mode for r in records if r.mode is not None], modes),
        )

    @classmethod
    def from_json(cls, data: Json) -> ArmSummary:
        """Read what `to_json` wrote."""
        rate, latency = data["success_rate"], data["latency"]
        read = {
            "success_rate": None if rate is None else Estimate.from_dict(rate),
            "score": Estimate.from_dict(data["score"]),
            "latency": None if latency is None else Latency.from_json(latency),
        }
        plain = fitting(cls, {key: value for key, value in data.items() if key not in read})
        return cls(**{**plain, **read})

    def to_json(self) -> dict[str, object]:
        """The numbers as JSON values, and once more under the names of other projects."""
        data: dict[str, object] = asdict(self)
        latency = data.pop("latency")
        if self.mode_entropy is None:
            del data["mode_entropy"]
        return {**data, "aliases": self.aliases(), "latency": latency}

    def aliases(self) -> dict[str, object]:
        """The numbers as Diffusion Policy, LeRobot (in percent) and robomimic call them."""
        rate = self.success_rate
        return {
            "test/mean_score": self.score.value,
            "avg_sum_reward": self.mean_sum_reward,
            "avg_max_reward": self.score.value,
            "pc_success": None if rate is None else 100 * rate.value,
            "pc_success_ci95": None if rate is None else [100 * rate.low, 100 * rate.high],
            "n_success": self.n_success,
            "Success_Rate": None if rate is None else rate.value,
            "Return": self.mean_sum_reward,
            "Horizon": self.mean_length,
        }


@dataclass(frozen=True)
class Timing:
    """Where the time of an evaluation went, in seconds.

    Attributes:
        wall_s: the whole evaluation.
        env_s: environments, over all processes.
        policy_s: the policy.
        overhead_s: all else, when environments and policy run in one process.
        episodes: how many episodes were run now; those from a journal do not count.
        episodes_per_s: the same per second.
    """

    wall_s: float = 0.0
    env_s: float = 0.0
    policy_s: float = 0.0
    overhead_s: float = 0.0
    episodes: int = 0
    episodes_per_s: float = 0.0


@dataclass(frozen=True)
class Kept:
    """What an episode leaves beside its record, if it was asked for.

    Attributes:
        trajectory: per observation key, and "action": one row per step.
        frames: pictures (height, width, 3), the first before the first step.
    """

    trajectory: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    frames: Sequence[NDArray[np.uint8]] = ()


@dataclass(frozen=True)
class Result:
    """A finished evaluation.

    Attributes:
        protocol: its conditions.
        seeds: the seeds, in the order asked for.
        arms: what was compared, in the order asked for, with their numbers.
        episodes: one record per (arm, seed), ordered by arm, then as `seeds`.
        timing: where the time went.
        origin: where it comes from.
        kept: trajectories and frames, if they were asked for; not saved.

    Example:
        result = evaluate(policy, Protocol("pusht"), final_seeds(50), arms=[1, 2])
        print(result[1].success_rate, result[2].success_rate)
    """

    protocol: Protocol
    seeds: tuple[int, ...]
    arms: Mapping[Arm, ArmSummary]
    episodes: tuple[EpisodeRecord, ...]
    timing: Timing = Timing()
    origin: Origin = field(default_factory=Origin)
    kept: Mapping[tuple[int, Arm], Kept] = field(default_factory=dict, compare=False)

    def __getitem__(self, arm: Arm | int | str) -> ArmSummary:
        """The numbers of one arm."""
        return self.arms[Arm.parse(arm)]

    def of(self, arm: Arm | int | str) -> list[EpisodeRecord]:
        """The records of one arm, in the order of the seeds."""
        arm = Arm.parse(arm)
        return [record for record in self.episodes if record.arm == arm]

    def only(self, arms: Iterable[Arm]) -> Result:
        """The same with these arms alone."""
        kept = {arm: self.arms[arm] for arm in arms}
        return replace(self, arms=kept, episodes=tuple(r for r in self.episodes if r.arm in kept))

    @property
    def first(self) -> tuple[Arm, ArmSummary]:
        """The arm that was asked for first, and its numbers."""
        return next(iter(self.arms.items()))

    @property
    def seed_purpose(self) -> str:
        """What the seeds are for: "final", "selection", "training" or "other"."""
        return purpose(self.seeds) if self.protocol.init == "seed" else "training"

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read an eval_info.json, or the one in a folder.

        Raises:
            InputError: it cannot be read, is no result, or is damaged.
        """
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        try:
            data = parse_json(path.read_bytes())
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}. Give an {FILE} or its folder.") from error
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}.") from error
        schema = str(data.get("schema")) if isinstance(data, dict) else ""
        if not schema.startswith(SCHEMA):
            raise InputError(f"{path} is not a result of `isdt eval` (schema {SCHEMA}{VERSION}).")
        if schema != f"{SCHEMA}{VERSION}":
            raise InputError(f"{path} has schema {schema}; this version reads {SCHEMA}{VERSION}. Update isdt-policy.")
        try:
            return cls.from_json(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise InputError(f"{path} is damaged: {reason}") from error

    def save(self, folder: str | Path) -> Path:
        """Write eval_info.json into a folder; returns the file."""
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(self.to_json(), indent=1) + "\n", durable=True)
        return path

    @classmethod
    def from_json(cls, data: Json) -> Result:
        """Read what `to_json` wrote."""
        given = fitting(Origin, {key: value for key, value in data.items() if key != "policy"})
        if not data["arms"]:
            raise ValueError("it has no arm")
        policy = PolicyInfo(**fitting(PolicyInfo, data.get("policy", {})))
        return cls(
            protocol=Protocol.from_json(data["protocol"]),
            seeds=tuple(map(int, data["seeds"])),
            arms={Arm.parse(name): ArmSummary.from_json(summary) for name, summary in data["arms"].items()},
            episodes=tuple(map(EpisodeRecord.from_json, data["episodes"])),
            timing=Timing(**fitting(Timing, data.get("timing", {}))),
            origin=Origin(**given, policy=policy),
        )

    def to_json(self) -> dict[str, object]:
        """The content of eval_info.json: numbers first, then all it takes to get them again."""
        origin, (first, summary) = self.origin, self.first
        names = summary.aliases()
        return {
            "schema": f"{SCHEMA}{VERSION}",
            "arms": {arm.name: numbers.to_json() for arm, numbers in self.arms.items()},
            "protocol": self.protocol.to_json(),
            "seeds": list(self.seeds),
            "seed_purpose": self.seed_purpose,
            "command": origin.command,
            "options": origin.options,
            "commit": origin.commit,
            "created": origin.created,
            "policy": asdict(origin.policy),
            "versions": origin.versions,
            "hardware": origin.hardware,
            "timing": asdict(self.timing),
            # LeRobot's layout, of the first arm
            "aggregated": {
                **{key: names[key] for key in ("avg_sum_reward", "avg_max_reward", "pc_success")},
                "eval_s": self.timing.wall_s,
                "eval_ep_s": self.timing.wall_s / max(1, self.timing.episodes),
            },
            "per_episode": [
                {"episode_ix": i, "sum_reward": r.sum_reward, "max_reward": r.max_reward, "success": r.success, "seed": r.seed}
                for i, r in enumerate(self.of(first))
            ],
            "episodes": [record.to_json() for record in self.episodes],
        }  # fmt: skip


def count_successes(records: Sequence[EpisodeRecord]) -> int | None:
    """Number of successes; None if the environment said in no episode whether it succeeded.

    An environment that speaks of success in some episodes alone means by silence that there was none.
    """
    if any(r.ok for r in records) and all(r.success is None for r in records if r.ok):
        return None
    return sum(bool(r.success) for r in records)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known and all(map(math.isfinite, known)) else None
