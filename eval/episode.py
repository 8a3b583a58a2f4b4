"""One environment, one episode at a time: what happens between two decisions of a policy.

The runner lives in the evaluating process or in a worker; both send it the same two commands. Timeline, for
n_obs_steps = 2, n_action_steps = 3 and n_latency_steps = 0 (o = observation, a = action, | = decision):

    o0 | a0 o1 a1 o2 a2 o3 | a3 ...        history at a decision: the newest 2 observations, o0 repeated at the start

With n_latency_steps = L the policy sees the history as it was L control steps ago and the first L actions of its answer
are skipped, as they were due while it was thinking (Diffusion Policy's way of simulating latency).
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.shared.errors import InputError

# A picklable recipe for an environment with Dict observations (workers call it in their own process).
EnvFactory = Callable[[], Any]
# (environment) -> (observation -> action): a scripted expert that may look into the simulator.
ActorFactory = Callable[[Any], Callable[[Mapping[str, Any]], NDArray[np.floating]]]


@dataclass(frozen=True)
class Start:
    """Where an episode begins in place of what its seed draws.

    Attributes:
        state: of the simulator.
        seed: drew what the state leaves out (sizes of objects); None is the episode's own.
        model_file: robomimic's attribute of a demonstration, which says the same where no seed is known.
    """

    state: tuple[float, ...]
    seed: int | None = None
    model_file: str | None = None


@dataclass(frozen=True)
class Episode:
    """One entry of the work queue.

    Attributes:
        seed: of the environment's reset and of the policy's noise.
        arm: network evaluations per action chunk, or a named sampler such as "euler10".
        start: where to begin; None is what the seed draws.
    """

    seed: int
    arm: int | str
    start: Start | None = None


@dataclass(frozen=True)
class Recipe:
    """All a runner needs to build itself, in this process or another.

    Attributes:
        make_env: builds the environment.
        obs_keys: keys the policy reads.
        n_obs_steps: observations in a history.
        n_latency_steps: control steps between an observation and the first action computed from it.
        max_steps: episode limit, a safeguard behind the environment's own truncation.
        make_actor: acts in place of a policy, with access to the environment; None for a policy.
        keep: store observations, actions and rewards with the record ("trajectory"), and frames if the environment
            renders ("frames").
    """

    make_env: EnvFactory
    obs_keys: tuple[str, ...]
    n_obs_steps: int
    n_latency_steps: int = 0
    max_steps: int | None = None
    make_actor: ActorFactory | None = None
    keep: tuple[str, ...] = ()


@dataclass
class Reply:
    """What a runner answers: either a history to decide on, or a finished episode's record, or an error.

    Attributes:
        history: per key (n_obs_steps, *shape) float32; None when the episode is over.
        record: the finished episode's numbers; None while it runs.
        error: the exception raised by the environment, or how the worker was lost.
        bad_input: the error will not go away by trying again (an observation that is not finite).
        env_s: seconds spent in the environment since the last reply.
        extras: trajectory arrays and frames if they were asked for.
    """

    history: dict[str, NDArray[np.float32]] | None = None
    record: dict[str, Any] | None = None
    error: str | None = None
    bad_input: bool = False
    env_s: float = 0.0
    extras: dict[str, Any] = field(default_factory=dict)


class NotFiniteError(ValueError):
    """An environment returned a NaN or an infinity."""


class EpisodeRunner:
    """Steps one environment through one episode after another."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.env: Any = None
        self._actor: Callable[[Mapping[str, Any]], NDArray[np.floating]] | None = None

    def start(self, episode: Episode) -> Reply:
        """Reset to the episode's seed; answer with its first history."""
        return self._guarded(lambda: self._start(episode))

    def advance(self, actions: NDArray[np.floating]) -> Reply:
        """Execute actions (k, action_dim) until they or the episode end; answer with a history or a record."""
        return self._guarded(lambda: self._advance(actions))

    def close(self) -> None:
        """Release the environment."""
        if self.env is not None:
            self.env.close()
            self.env = None

    def _guarded(self, act: Callable[[], Reply]) -> Reply:
        begin = time.perf_counter()
        try:
            reply = act()
        except Exception as error:  # whatever a simulator raises belongs to this episode, not to the evaluation
            self.env = None  # its state is unknown now; the next episode builds a fresh one
            ours = isinstance(error, NotFiniteError | InputError)
            reply = Reply(error=str(error) if ours else f"{type(error).__name__}: {error}", bad_input=ours)
        reply.env_s = time.perf_counter() - begin
        return reply

    def _start(self, episode: Episode) -> Reply:
        recipe = self.recipe
        if self.env is None:
            self.env = recipe.make_env()
        seed = int(episode.seed)
        options: dict[str, Any] | None = None
        if (start := episode.start) is not None:
            seed = seed if start.seed is None else start.seed
            options = {"reset_to_state": np.asarray(start.state)}
            if start.model_file is not None:
                options["model_file"] = start.model_file
        observation, _ = self.env.reset(seed=seed, options=options)
        self.episode = episode
        self.rewards: list[float] = []
        self.coverages: list[float] = []
        self.success_step: int | None = None
        self._digest = hashlib.blake2b(digest_size=16)
        length = recipe.n_obs_steps + recipe.n_latency_steps
        self._history: deque[dict[str, NDArray[np.float32]]] = deque(maxlen=length)
        self._trajectory: dict[str, list[NDArray[Any]]] = {}
        self._frames: list[NDArray[np.uint8]] = []
        self._check(observation, 0)
        self._initial = _state(observation)
        self._last = observation
        self._history.extend([self._select(observation)] * length)
        self._keep_frame()
        if recipe.make_actor is None:
            return Reply(history=self._window())
        self._actor = recipe.make_actor(self.env)
        while True:
            reply = self._advance(np.atleast_2d(np.asarray(self._actor(self._last))))
            if reply.record is not None:
                return reply

    def _advance(self, actions: NDArray[np.floating]) -> Reply:
        dtype = self.env.action_space.dtype
        for action in np.asarray(actions):
            if "trajectory" in self.recipe.keep:
                self._keep_step(self._last, action)
            observation, reward, terminated, truncated, info = self.env.step(action.astype(dtype))
            self._check(observation, len(self.rewards) + 1)
            if not np.isfinite(reward):
                raise NotFiniteError(f"reward {reward} at step {len(self.rewards) + 1}")
            self._last = observation
            self._history.append(self._select(observation))
            self.rewards.append(float(reward))
            self._digest.update(np.asarray(action, np.float32).tobytes() + np.float64(reward).tobytes())
            if "coverage" in info:
                self.coverages.append(float(info["coverage"]))
            if self.success_step is None and _is_success(info):
                self.success_step = len(self.rewards)
            self._keep_frame()
            limit = self.recipe.max_steps
            if terminated or truncated or (limit is not None and len(self.rewards) >= limit):
                return self._finish()
        return Reply(history=self._window())

    def _finish(self) -> Reply:
        extras: dict[str, Any] = {}
        if "trajectory" in self.recipe.keep:
            extras["trajectory"] = {key: np.stack(values) for key, values in self._trajectory.items()}
        if self._frames:
            extras["frames"] = self._frames
        return Reply(record=self._record(), extras=extras)

    def _record(self) -> dict[str, Any]:
        """Return what happened, as JSON values; nothing in it depends on time, batch or worker."""
        record: dict[str, Any] = {
            "seed": self.episode.seed,
            "arm": str(self.episode.arm),
            "status": "ok",
            "success": self.success_step is not None,
            "max_reward": max(self.rewards),
            "sum_reward": float(np.sum(self.rewards)),
            "final_reward": self.rewards[-1],
            "length": len(self.rewards),
            "steps_to_success": self.success_step,
            "digest": self._digest.hexdigest(),
        }
        if self.coverages:
            record["final_coverage"] = self.coverages[-1]
            record["max_coverage"] = max(self.coverages)
        if self._initial is not None:
            record["initial_state"] = [float(v) for v in self._initial]
            final = _state(self._last)
            record["final_state"] = [float(v) for v in final] if final is not None else None
        return record

    def _select(self, observation: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
        return {key: np.array(observation[key], np.float32) for key in self.recipe.obs_keys}

    def _window(self) -> dict[str, NDArray[np.float32]]:
        oldest = list(self._history)[: self.recipe.n_obs_steps]
        return {key: np.stack([step[key] for step in oldest]) for key in self.recipe.obs_keys}

    def _check(self, observation: Mapping[str, Any], step: int) -> None:
        for key, value in observation.items():
            if not np.isfinite(value).all():
                raise NotFiniteError(f"observation '{key}' is not finite at step {step}")

    def _keep_step(self, observation: Mapping[str, Any], action: NDArray[np.floating]) -> None:
        for key, value in {**observation, "action": np.asarray(action, np.float32)}.items():
            self._trajectory.setdefault(key, []).append(np.array(value))

    def _keep_frame(self) -> None:
        if "frames" in self.recipe.keep:
            self._frames.append(np.asarray(self.env.render(), np.uint8))


def _state(observation: Mapping[str, Any]) -> NDArray[np.floating] | None:
    return np.array(observation["state"]).ravel() if "state" in observation else None


def _is_success(info: Mapping[str, Any]) -> bool:
    """Read the success flag under the names in use: Gymnasium's and LeRobot's, robomimic's dict, Meta-World's."""
    value = info.get("is_success", info.get("success", False))
    return bool(value["task"] if isinstance(value, Mapping) else value)
