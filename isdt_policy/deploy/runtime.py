"""The runtime: from one observation per control step to one action per control step.

It keeps what a policy does not: the history of observations, the plan (action chunks), and an inference that may still be
running. In every mode `Runtime.step` is called once per control step, and never waits longer than it is told to.

Timeline for n_obs_steps = 2, execute = 4, an inference that takes 2 control steps (| = observation it starts from):

    step        0   1   2   3   4   5   6   7   8   9
    "sync"      a0  a1  a2  a3 |-   -   b0  b1  b2  b3     nothing new until b is there: the caller holds
    "async"     a0  a1  a2  a3 |a4  a5  b2  b3 |b4  b5     a goes on meanwhile; b0 and b1 were due earlier and are skipped
    "rtc"       as "async", but b was asked to begin with a4, a5: no jump where the chunks meet

"rtc" is real-time chunking (Black, Galliker, Levine, 2506.07339) for flow maps, see `freezing`. Its inference is told which
actions will be executed before it can answer.

Imports NumPy only.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

from isdt_policy.deploy.cameras import CameraWatch, stamps
from isdt_policy.shared.errors import InputError, nearest

if TYPE_CHECKING:  # the module behind this name loads Gymnasium, which a robot's computer may not have
    from isdt_policy.envs.protocol import Policy

log = logging.getLogger("isdt_policy.deploy")

Mode = Literal["sync", "async", "rtc"]
MODES: tuple[Mode, ...] = get_args(Mode)
Array = NDArray[np.float32]
Seen = tuple[int, float | None]


class Executor(Protocol):
    """Where inference runs: a `concurrent.futures` executor of one thread, or `Inline`."""

    def submit(self, fn: Callable[..., object], /, *args: object, **kwargs: object) -> Future[object]:
        """Start `fn`."""
        ...


class Continuing(Protocol):
    """A policy that can continue a started chunk; see `freezing.PrefixPolicy.continue_action`."""

    def continue_action(
        self,
        obs: Mapping[str, Array],
        known: Array,
        weight: Array,
        *,
        nfe: int | str,
        noise_seeds: NDArray[np.int64] | None,
    ) -> Mapping[str, Array]:
        """Like `predict_action`, in agreement with known actions."""
        ...


class Inline:
    """Runs every job at once, in the calling thread."""

    def submit(self, fn: Callable[..., object], /, *args: object, **kwargs: object) -> Future[object]:
        """Run `fn` and return its finished future."""
        future: Future[object] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # handed to whoever asks for the result, as other executors do
            future.set_exception(error)
        return future


@dataclass(frozen=True)
class Chunk:
    """Actions (k, action_dim) for the control steps origin, origin + 1, ...

    Attributes:
        seen: step in which the newest observation behind them came, and when it was taken (None if that was not said).
    """

    origin: int
    seen: Seen
    actions: Array

    def at(self, step: int) -> Array | None:
        """Return the action for a control step, or None outside the chunk."""
        return self.actions[step - self.origin] if 0 <= step - self.origin < len(self.actions) else None


@dataclass(frozen=True)
class Decision:
    """What to do in one control step.

    Attributes:
        action: (action_dim,) in the environment's units; None if the plan holds none for this step: hold.
        step: control steps since reset.
        age: control steps since the newest observation the action is based on came; 0 without an action. An observation that
            was lost, is not finite, or is the last one again, does not count as come.
        taken_s: when that observation was taken, on the caller's clock; None if the caller does not say, or without an action.
    """

    action: Array | None
    step: int
    age: int
    taken_s: float | None = None


class Runtime:
    """Runs a policy one control step at a time.

    Args:
        policy: anything behind `isdt_policy.envs.protocol.Policy`; mode "rtc" also needs `continue_action` (see
            `freezing.PrefixPolicy`).
        mode: "sync", "async" or "rtc"; see the timeline above. With an inference that answers at once the first two act
            alike.
        nfe: network evaluations per chunk, or a sampler's name.
        execute: actions of a chunk to execute before the next inference starts (the receding horizon); None is the
            policy's n_action_steps.
        ensemble: m of temporal ensembling (ACT, 2304.13705): every chunk that covers a step takes part with weight
            exp(-m i), i = 0 for the oldest. None uses the newest chunk alone. Useful with a small `execute`.
        executor: where inference runs; None runs it inside `step`.
        wait_s: longest time `step` waits for a running inference if the plan holds no action for this step, seconds; None
            waits until it is there. The first chunk after a reset is always waited for: there is nothing to do without it.

    Example:
        runtime = Runtime(policy)
        runtime.reset(seed=0)
        while running:
            robot.move(runtime.act(robot.observe()))
    """

    def __init__(
        self,
        policy: Policy,
        *,
        mode: Mode = "sync",
        nfe: int | str = 1,
        execute: int | None = None,
        ensemble: float | None = None,
        executor: Executor | None = None,
        wait_s: float | None = None,
    ) -> None:
        if mode not in MODES:
            raise InputError(f"mode='{mode}' is not one of {', '.join(MODES)}.{nearest(mode, MODES)}")
        if mode == "rtc" and not hasattr(policy, "continue_action"):
            raise InputError(
                "mode='rtc' needs a policy that can continue a started chunk: wrap a trained one in "
                "isdt_policy.deploy.freezing.PrefixPolicy, or export it with prefix=true; else use mode='async'."
            )
        self.execute = policy.n_action_steps if execute is None else execute
        longest = getattr(policy, "horizon", policy.n_action_steps + policy.n_obs_steps - 1) - policy.n_obs_steps + 1
        if not 1 <= self.execute <= longest:
            raise InputError(
                f"execute={self.execute} is not possible: a chunk holds 1 to {longest} actions from now on."
            )
        if ensemble is not None and not (math.isfinite(ensemble) and ensemble >= 0):
            raise InputError(f"ensemble={ensemble} must be a finite number of at least 0 (ACT uses 0.01).")
        # The window (rows, columns) that answers must have; rows are a lower bound where the policy does not say.
        self._exact = hasattr(policy, "horizon")
        config = getattr(policy, "config", None)
        columns: int | None = getattr(policy, "action_dim", None) or getattr(config, "action_dim", None)
        self._window = (
            longest + policy.n_obs_steps - 1 if self._exact else self.execute + policy.n_obs_steps - 1,
            columns,
        )
        self.policy, self.mode, self.nfe, self.ensemble, self.wait_s = policy, mode, nfe, ensemble, wait_s
        self._executor: Executor = Inline() if executor is None else executor
        self.cameras = CameraWatch(policy)
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Forget everything: history, plan, a running inference (its answer will be ignored), counters.

        Args:
            seed: makes the noise of decision k a function of (seed, k), as evaluation does; None draws fresh noise.
        """
        self.seed = seed
        self.step_index = 0
        self.decisions = 0
        self.repeated_observations = 0
        self.error: Exception | None = None  # of the latest inference, if that failed
        self._history: deque[dict[str, Array]] = deque(maxlen=self.policy.n_obs_steps)
        self._seen: Seen = (0, None)
        self._newest: float | None = None
        self._chunks: list[Chunk] = []
        self._pending: Future[object] | None = None
        self._asked_at = 0
        self._asked_seen: Seen = self._seen
        self._delays: deque[int] = deque(maxlen=10)
        self._executed: deque[Array] = deque(maxlen=max(1, self.policy.n_obs_steps - 1))
        self.policy.reset()

    def act(self, obs: Mapping[str, object] | None) -> Array:
        """One control step that must have an action: `step`, or the reason why there is none.

        Raises:
            InputError: no action for this step; the inference's own error if there was one.
        """
        action = self.step(obs).action
        if action is None:
            if self.error is not None:
                raise _as_input_error(self.error)
            raise InputError("no action has arrived for this step; use step() and hold, or wait_s=None.")
        return action

    def step(self, obs: Mapping[str, object] | None, taken_s: float | Mapping[str, float] | None = None) -> Decision:
        """One control step: take the newest observation, start inference if it is due, return the action for now.

        Args:
            obs: {key: (d,)} in the environment's units; keys the policy does not read are ignored. None stands for an
                observation that was lost, and one with NaN counts as lost: the newest good one is repeated.
            taken_s: when it was taken, seconds on any clock that goes on. One that was not taken later than the last is not
                new. Without it an observation with the same bits as the last is not new, as a sensor that has died repeats
                itself; give the time if yours may truly see the same twice. With a time per key an observation is as old as
                its oldest part: a camera that has stopped makes it old.

        Raises:
            InputError: a missing key or a wrong shape; no usable observation yet; or the first inference failed.
        """
        self._observe(obs, *stamps(taken_s))
        now = self.step_index
        self._collect(now, 0.0)
        if self._pending is None and self._due(now):
            self._ask(now)
            self._collect(now, 0.0)
        action, seen = self._choose(now)
        if action is None and self._pending is not None:
            self._collect(now, self.wait_s if self._chunks else None)
            action, seen = self._choose(now)
        if not self._chunks and self.error is not None:
            raise _as_input_error(self.error)
        self.step_index += 1
        if action is not None:
            self._executed.append(action)
        return Decision(action, now, 0) if action is None else Decision(action, now, now - seen[0], seen[1])

    def _observe(self, obs: Mapping[str, object] | None, oldest: float | None, newest: float | None) -> None:
        row = None if obs is None else self._checked(obs)
        if row is not None and self._history and not self._is_new(row, newest):
            row = None
        if row is None:
            if not self._history:
                raise InputError(
                    "the first observation after a reset is missing or not finite; there is nothing to repeat."
                )
            self.repeated_observations += 1
            row = self._history[-1]
        else:
            self._seen, self._newest = (self.step_index, oldest), newest
            if self._history:
                self.cameras.next(self._history[-1], row)
            else:
                self.cameras.first(row)
        if not self._history:  # the history begins as if the robot had stood still
            self._history.extend([row] * self.policy.n_obs_steps)
        else:
            self._history.append(row)

    def _is_new(self, row: dict[str, Array], taken_s: float | None) -> bool:
        last = self._newest
        if taken_s is not None and last is not None:
            return taken_s > last
        return any(not np.array_equal(value, self._history[-1][key]) for key, value in row.items())

    def _checked(self, obs: Mapping[str, object]) -> dict[str, Array] | None:
        row: dict[str, Array] = {}
        for key in self.policy.obs_keys:
            if key not in obs:
                raise InputError(f"the policy reads observation '{key}', given: {', '.join(obs)}.{nearest(key, obs)}")
            value = self.cameras.fitted(key, np.asarray(obs[key]))
            picture = value.dtype == np.uint8 and value.ndim == 3
            row[key] = np.array(
                value, np.uint8 if picture else np.float32
            )  # a copy: simulators like to reuse their buffers
            expected = self._history[-1][key].shape if self._history else row[key].shape
            if row[key].shape != expected:
                raise InputError(f"observation '{key}' has shape {row[key].shape}, before it was {expected}.")
        return row if all(np.isfinite(value).all() for value in row.values()) else None

    def _due(self, now: int) -> bool:
        return not self._chunks or now - self._chunks[-1].origin >= self.execute

    def _ask(self, now: int) -> None:
        obs = {key: np.stack([row[key] for row in self._history])[None] for key in self.policy.obs_keys}
        seeds = None if self.seed is None else np.array([[self.seed, self.decisions]], np.int64)
        if self.mode == "rtc" and self._chunks:
            known, weight = self._commitment(now)
            call = cast(Continuing, self.policy).continue_action
            self._pending = self._executor.submit(call, obs, known[None], weight[None], nfe=self.nfe, noise_seeds=seeds)
        else:
            self._pending = self._executor.submit(self.policy.predict_action, obs, nfe=self.nfe, noise_seeds=seeds)
        self._asked_at, self._asked_seen = now, self._seen
        self.decisions += 1

    def _commitment(self, now: int) -> tuple[Array, Array]:
        """Return what the next chunk has to continue: the window of known actions (T, d), and 1 where they are frozen (T,).

        Frozen: executed already, or due before the answer can be there (the longest delay of the last ten answers). The
        rest of the old plan binds nothing: 2506.07339 holds on to it with weights that decay, which here cost more
        than it gave (PushT without latency: 88 % without them, 72 % with them).
        """
        plan = self._chunks[-1]
        first = self.policy.n_obs_steps - 1
        horizon = self.policy.horizon  # type: ignore[attr-defined]
        known = np.zeros((horizon, plan.actions.shape[1]), np.float32)
        weight = np.zeros(horizon, np.float32)
        past = list(self._executed)[-first:] if first else []
        for i, action in enumerate(past):
            known[first - len(past) + i], weight[first - len(past) + i] = action, 1
        delay = max(self._delays, default=1)
        left = plan.origin + len(plan.actions) - now
        for j in range(min(left, delay, horizon - first)):
            known[first + j], weight[first + j] = plan.actions[now + j - plan.origin], 1
        return known, weight

    def _collect(self, now: int, wait_s: float | None) -> None:
        if self._pending is None:
            return
        try:
            pred = self._read(self._pending.result(wait_s))
        except TimeoutError:
            if self._pending.done():  # raised by the policy (a remote one), not by waiting
                self._failed(TimeoutError("the policy did not answer in time"))
            return
        except Exception as error:
            self._failed(error)
            return
        self._pending, self.error = None, None
        actions = pred[self.policy.n_obs_steps - 1 :]
        # In "sync" the robot stood still while it waited, so the chunk begins when it arrives.
        origin = now if self.mode == "sync" else self._asked_at
        if self._chunks:
            self._delays.append(now - self._asked_at)
        self._chunks.append(Chunk(origin, self._asked_seen, actions))
        if self.ensemble is None:
            del self._chunks[:-1]

    def _read(self, answer: object) -> Array:
        """The predicted window (horizon, action_dim) of an answer.

        Raises:
            InputError: it is none: other rows or columns than this policy's, or no numbers.
        """
        try:
            with np.errstate(over="ignore"):  # too large a number becomes infinite; the safety stage refuses it
                pred = np.asarray(cast(Mapping[str, object], answer)["action_pred"]).astype(
                    np.float32, casting="same_kind"
                )
        except (TypeError, ValueError, KeyError, IndexError):
            raise InputError("the policy answered something that is no action chunk.") from None
        rows, columns = self._window
        if self._chunks:
            columns = self._chunks[-1].actions.shape[1]
        right = pred.ndim == 3 and len(pred) == 1 and pred.shape[2] == (columns or pred.shape[2])
        if not right or not (pred.shape[1] == rows if self._exact else pred.shape[1] >= rows):
            raise InputError(
                f"the policy answered a window of shape {pred.shape}, expected (1, {rows}, {columns or 'action_dim'})."
            )
        return pred[0]

    def _failed(self, error: Exception) -> None:
        """The plan in hand goes on; a new inference starts with the next step."""
        log.warning("inference failed at step %d: %s", self._asked_at, error)
        self._pending, self.error = None, error

    def _choose(self, now: int) -> tuple[Array | None, Seen]:
        nothing: tuple[None, Seen] = (None, (now, None))
        if self.mode == "sync" and self._due(now):
            return nothing  # the rest of the chunk lies beyond the horizon that was asked for
        self._chunks = [c for c in self._chunks[:-1] if c.at(now) is not None] + self._chunks[-1:]
        covering = [(c, c.at(now)) for c in self._chunks]
        actions = [(chunk, action) for chunk, action in covering if action is not None]
        if not actions:
            return nothing
        if self.ensemble is None:
            return actions[-1][1], actions[-1][0].seen
        weights = np.exp(-self.ensemble * np.arange(len(actions)))
        mean = np.average(np.stack([action for _, action in actions]), axis=0, weights=weights)
        return mean.astype(np.float32), actions[-1][0].seen


def _as_input_error(error: Exception) -> InputError:
    """What a user is told of a failed inference."""
    return error if isinstance(error, InputError) else InputError(f"inference failed: {type(error).__name__}: {error}")
