"""One environment, one episode at a time: what happens between two decisions of a policy.

The runner lives in the evaluating process or in a worker; both send it the same two commands. Timeline, for
n_obs_steps = 2, n_action_steps = 3 and n_latency_steps = 0 (o = observation, a = action, | = decision):

    o0 | a0 o1 a1 o2 a2 o3 | a3 ...        history at a decision: the newest 2 observations, o0 repeated at the start

With n_latency_steps = L the policy sees the history as it was L control steps ago, and the first L actions of its answer are
skipped: their time passed while the policy was computing (this is how Diffusion Policy simulates latency).
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from isdt_policy.eval.result import EpisodeRecord, Kept
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError

Env = gymnasium.Env
Observation = Mapping[str, NDArray[np.generic]]
# Builds an environment with Dict observations; workers call it in their own process, so it must be picklable.
EnvFactory = Callable[[], Env]
# (environment) -> (observation -> action): a scripted expert that may look into the simulator.
ActorFactory = Callable[[Env], Callable[[Observation], ArrayLike]]


@dataclass(frozen=True)
class Start:
    """Where an episode begins, if its seed does not decide it.

    Attributes:
        state: the simulator's state.
        seed: draws what the state leaves out (sizes of objects); None: the episode's own seed.
        model_file: robomimic's attribute of a demonstration, which says the same where no seed is known.
    """

    state: tuple[float, ...]
    seed: int | None = None
    model_file: str | None = None


@dataclass(frozen=True)
class Episode:
    """One entry of the work queue.

    Attributes:
        seed: decides the environment's reset and the policy's noise.
        arm: how the policy is asked.
        start: where to begin; None: where the seed says.
    """

    seed: int
    arm: Arm
    start: Start | None = None

    @property
    def key(self) -> tuple[int, Arm]:
        """Which record belongs to it."""
        return self.seed, self.arm


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
        history: per key (n_obs_steps, *shape): float32, pictures as bytes; None when the episode is over.
        record: the finished episode's numbers; None while it runs.
        error: the exception raised by the environment, or how the worker was lost.
        bad_input: the error will not go away by trying again (an observation that is not finite).
        env_s: seconds spent in the environment since the last reply.
        kept: trajectory and frames, if they were asked for.
    """

    history: dict[str, NDArray[np.generic]] | None = None
    record: EpisodeRecord | None = None
    error: str | None = None
    bad_input: bool = False
    env_s: float = 0.0
    kept: Kept | None = None


class NotFiniteError(ValueError):
    """An environment returned a NaN or an infinity."""


class EpisodeRunner:
    """Steps one environment through one episode after another."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.env: Env | None = None
        self._trace: _Trace | None = None

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
        options: dict[str, object] | None = None
        if (start := episode.start) is not None:
            seed = seed if start.seed is None else start.seed
            options = {"reset_to_state": np.asarray(start.state)}
            if start.model_file is not None:
                options["model_file"] = start.model_file
        self._draw(True)
        observation, _ = self.env.reset(seed=seed, options=options)
        self._trace = trace = _Trace(episode, recipe, observation)
        self._keep_frame()
        if recipe.make_actor is None:
            return Reply(history=trace.window())
        actor = recipe.make_actor(self.env)
        while True:
            reply = self._advance(np.atleast_2d(np.asarray(actor(trace.last))))
            if reply.record is not None:
                return reply

    def _advance(self, actions: NDArray[np.floating]) -> Reply:
        env, trace = self.env, self._trace
        assert env is not None
        assert trace is not None
        # Drawing is dear: only what a history will hold is drawn, or all, if the whole trajectory is kept.
        unread = 0 if "trajectory" in self.recipe.keep else len(actions) - trace.length
        for number, action in enumerate(np.asarray(actions)):
            self._draw(number >= unread)
            observation, reward, terminated, truncated, info = env.step(action.astype(env.action_space.dtype))
            trace.step(action, observation, float(reward), info)
            self._keep_frame()
            limit = self.recipe.max_steps
            if terminated or truncated or (limit is not None and len(trace.rewards) >= limit):
                return Reply(record=trace.record(), kept=trace.kept())
        return Reply(history=trace.window())

    def _draw(self, draw: bool) -> None:
        """Tell the environment whether the pictures of its next observation will be read, if it asks."""
        if self.env is not None and hasattr(self.env.unwrapped, "draw_images"):
            self.env.unwrapped.draw_images = draw

    def _keep_frame(self) -> None:
        if "frames" in self.recipe.keep:
            assert self.env is not None
            assert self._trace is not None
            self._trace.frames.append(_picture(self.env.render()))


class _Trace:
    """What has happened so far in one episode."""

    def __init__(self, episode: Episode, recipe: Recipe, observation: Observation) -> None:
        self.episode, self.recipe, self.last = episode, recipe, observation
        self.rewards: list[float] = []
        self.coverages: list[float] = []
        self.mode: int | None = None
        self.success_step: int | None = None
        self.reports_success = False
        self.steps: dict[str, list[NDArray[np.generic]]] = {}
        self.frames: list[NDArray[np.uint8]] = []
        self._digest = hashlib.blake2b(digest_size=16)
        _check_finite(observation, 0)
        self._initial = _state(observation)
        self.length = recipe.n_obs_steps + recipe.n_latency_steps
        self._history = deque([self._select(observation)] * self.length, maxlen=self.length)

    def step(
        self, action: NDArray[np.floating], observation: Observation, reward: float, info: Mapping[str, object]
    ) -> None:
        """Take one step of the environment."""
        number = len(self.rewards) + 1
        if "trajectory" in self.recipe.keep:
            for key, value in {**self.last, "action": np.asarray(action, np.float32)}.items():
                self.steps.setdefault(key, []).append(np.array(value))
        _check_finite(observation, number)
        if not np.isfinite(reward):
            raise NotFiniteError(f"reward {reward} at step {number}")
        self.last = observation
        self._history.append(self._select(observation))
        self.rewards.append(reward)
        self._digest.update(np.asarray(action, np.float32).tobytes() + np.float64(reward).tobytes())
        if "coverage" in info:
            self.coverages.append(float(np.asarray(info["coverage"])))
        mode = info.get("mode")
        if isinstance(mode, int | np.integer):
            self.mode = int(mode)
        success = success_in(info)
        self.reports_success |= success is not None
        if success and self.success_step is None:
            self.success_step = number

    def window(self) -> dict[str, NDArray[np.generic]]:
        """The history that the policy may see now: per key (n_obs_steps, *shape)."""
        oldest = list(self._history)[: self.recipe.n_obs_steps]
        return {key: np.stack([step[key] for step in oldest]) for key in self.recipe.obs_keys}

    def record(self) -> EpisodeRecord:
        """The numbers of the finished episode."""
        final = _state(self.last)
        return EpisodeRecord(
            seed=self.episode.seed,
            arm=self.episode.arm,
            success=self.success_step is not None if self.reports_success else None,
            max_reward=max(self.rewards),
            sum_reward=float(np.sum(self.rewards)),
            final_reward=self.rewards[-1],
            length=len(self.rewards),
            steps_to_success=self.success_step,
            digest=self._digest.hexdigest(),
            final_coverage=self.coverages[-1] if self.coverages else None,
            max_coverage=max(self.coverages) if self.coverages else None,
            initial_state=self._initial,
            final_state=None if self._initial is None else final,
            mode=self.mode,
        )

    def kept(self) -> Kept | None:
        """Trajectory and frames, if they were asked for."""
        if not self.recipe.keep:
            return None
        return Kept({key: np.stack(values) for key, values in self.steps.items()}, self.frames)

    def _select(self, observation: Observation) -> dict[str, NDArray[np.generic]]:
        found = {key: np.asarray(observation[key]) for key in self.recipe.obs_keys}
        return {key: np.array(v, v.dtype if v.dtype == np.uint8 else np.float32) for key, v in found.items()}


def _picture(rendered: object) -> NDArray[np.uint8]:
    """What an environment drew as (height, width, 3) uint8.

    Raises:
        InputError: it is no picture.
    """
    picture = np.asarray(rendered[-1] if isinstance(rendered, list) and rendered else rendered)
    if picture.ndim == 2:  # grey
        picture = np.repeat(picture[..., None], 3, axis=2)
    if picture.ndim != 3 or picture.shape[2] not in (3, 4) or picture.dtype.kind not in "uif":
        kind = type(rendered).__name__ if rendered is not None else "nothing"
        raise InputError(
            f"render() gave {kind} in place of a picture of shape (height, width, 3); the environment must draw with "
            "render_mode='rgb_array'"
        )
    if picture.dtype.kind == "f":  # 0 to 1
        picture = 255 * np.clip(picture, 0, 1)
    return picture[..., :3].astype(np.uint8)


def _check_finite(observation: Observation, step: int) -> None:
    for key, value in observation.items():
        if not np.isfinite(value).all():
            raise NotFiniteError(f"observation '{key}' is not finite at step {step}")


def _state(observation: Observation) -> tuple[float, ...] | None:
    return tuple(float(v) for v in np.ravel(observation["state"])) if "state" in observation else None


def success_in(info: Mapping[str, object]) -> bool | None:
    """The success flag under the names in use (Gymnasium's and LeRobot's, robomimic's dict, Meta-World's); None without one."""
    value = info.get("is_success", info.get("success"))
    if isinstance(value, Mapping):
        value = value.get("task")
    return None if value is None else bool(value)
