"""A task made from a store: for a robot whose recordings are all there is, without a registered environment.

What a policy reads, what it answers and how fast is taken from the store. What a store does not say is asked for, in one line;
nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.doctor.demos import OUTCOMES
from isdt_policy.datasets.doctor.motion import equal_rows
from isdt_policy.datasets.store import NOT_OBSERVED, DemoStore
from isdt_policy.datasets.summary import is_low_dim
from isdt_policy.envs import ArraySpec, TaskSpec
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.recorded import Recorded
from isdt_policy.shared.values import Array

ACTIONS = ("absolute", "delta")
MARGIN = 0.05  # of the range of an action's entry: commands may go so far beyond what was recorded
SWITCH = 3  # an entry with at most so many values, such as a gripper's, is one
# Columns that count steps or say which episode it is.
_COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_COMMANDS = ("cmd", "command", "ctrl", "control")

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Told:
    """What the user says of a recording; empty where the recording is believed.

    Attributes:
        obs_keys: observations that are read.
        action_key: key that holds the commanded action.
        actions: "absolute" or "delta".
        rate_hz: control steps per second; 0 if the user does not say.
    """

    obs_keys: tuple[str, ...] = ()
    action_key: str = ""
    actions: str = ""
    rate_hz: float = 0.0


@dataclass(frozen=True)
class OwnTask:
    """A task made from a store.

    Attributes:
        spec: as a registered task has one; its id is the name of the store.
        action_key: key of the store that holds the action.
        recorded: what a controller needs to know.
        notes: how the store was read, one line each.
    """

    spec: TaskSpec
    action_key: str
    recorded: Recorded
    notes: tuple[str, ...]


class Renamed:
    """A store in which another key is the action. The key that was called "action" is no longer there."""

    def __init__(self, store: DemoStore, action_key: str) -> None:
        self._store, self._action_key = store, action_key
        self.episode_ends, self.n_episodes = store.episode_ends, store.n_episodes
        self.path, self.masks, self.attrs = store.path, store.masks, store.attrs
        self.keys = tuple(sorted({*store.keys} - {action_key} | {"action"}))

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Array:
        """Steps [start, stop) of a key."""
        return self._store.read(self._action_key if key == "action" else key, start, stop)


def with_action(store: DemoStore, action_key: str) -> DemoStore | Renamed:
    """The store, with another key as its action if one is named.

    Raises:
        InputError: it has no such key.
    """
    if action_key in ("", "action"):
        return store
    if action_key not in store.keys:
        raise InputError(
            f"data.action_key='{action_key}' is no key of '{store.path}'.{nearest(action_key, store.keys)} It has: "
            f"{', '.join(store.keys)}."
        )
    return Renamed(store, action_key)


def own_task(store: DemoStore, told: Told) -> OwnTask:
    """Make a task from a store.

    Args:
        store: demonstrations.
        told: what the user says of them.

    Raises:
        InputError: the store does not say what is needed, or `told` names keys that cannot be read.
    """
    name = store.path.name.split(".")[0] or str(store.path)
    action_key = told.action_key or str(store.attrs.get("action_key") or "") or _action_key(store)
    action = _flat(with_action(store, action_key), "action")
    space = store.attrs.get("action_space") or {}
    rate, kind = told.rate_hz or space.get("rate_hz") or 0, told.actions or str(space.get("type") or "")
    skipped = _skipped(store, action_key, action)
    chosen = told.obs_keys or tuple(map(str, store.attrs.get("obs_keys") or ()))
    keys = chosen or tuple(key for key in store.keys if key not in skipped)
    _check_read(store, keys, skipped)
    low_dim = {key: _flat(store, key) for key in keys if is_low_dim(store, key)}
    missing = [*_rate_missing(rate), *_kind_missing(kind, action, low_dim)]
    if missing:
        raise InputError(f"'{store.path}' does not say {' nor '.join(missing)}.")
    recorded = _recorded(store, action, kind, float(rate), low_dim)
    unit = {key: str(facts.get("unit", "")) for key, facts in store.attrs.get("keys", {}).items()}
    observations = {key: _array(_shape(store, key), str(store.dtype(key)), unit.get(key, "")) for key in keys}
    spec = TaskSpec(
        id=name,
        observations=observations,
        action=_array((action.shape[1],), "float32", unit.get(action_key, ""), recorded),
        action_type=kind,
        max_episode_steps=int(np.diff(store.episode_ends, prepend=0).max()),
        rate_hz=recorded.rate_hz,
        success="not recorded",
        default_obs_keys=tuple(keys),
        neutral=recorded.neutral,
    )
    left_out = ", ".join(f"{key} ({why})" for key, why in skipped.items() if key != action_key)
    said = {"rate_hz": rate, "type": kind}
    differs = [
        f"{key}={space[key]} in the store, {said[key]} as you say"
        for key in said
        if space.get(key, said[key]) != said[key]
    ]
    notes = [
        f"task      made from '{store.path}': {recorded.rate_hz:g} Hz, action '{action_key}' ({action.shape[1]} entries, {kind})",
        *([f"          {'; '.join(differs)}"] if differs else []),
        *([f"          not read: {left_out}"] if left_out and not chosen else []),
        *_quaternions(store, keys),
        f"          commands are limited to what was recorded: {_bounds(recorded)}",
    ]
    return OwnTask(spec, action_key, recorded, tuple(notes))


def _action_key(store: DemoStore) -> str:
    """The key that must be the action, by the layout of a store or by its name.

    Raises:
        InputError: none, or several.
    """
    if "action" in store.keys:
        return "action"
    named = [key for key in store.keys if "action" in key.lower() or key.lower() in _COMMANDS]
    if len(named) == 1:
        return named[0]
    what = f"several keys may be the action ({', '.join(named)})" if named else "no key is called action"
    raise InputError(
        f"'{store.path}': {what}; it has {', '.join(store.keys)}. Name the one that was commanded: data.action_key=KEY"
    )


def _skipped(store: DemoStore, action_key: str, action: Values) -> dict[str, str]:
    """{key that is not read unless it is asked for: why}."""
    found = {action_key: "the action"}
    for key in store.keys:
        if key in found:
            continue
        if key in (*NOT_OBSERVED, *OUTCOMES, *_COUNTERS) and key != "action":
            found[key] = "not an observation"
        elif not is_low_dim(store, key):
            found[key] = "pictures"
        else:
            values = _flat(store, key)
            if values.shape == action.shape and equal_rows(values, action) > 0.99:
                found[key] = "a copy of the action"
            elif "action" in key.lower():
                found[key] = "named like an action"
            elif np.ptp(values, axis=0).max(initial=0) == 0:
                found[key] = "constant"
    return found


def _check_read(store: DemoStore, keys: Sequence[str], skipped: dict[str, str]) -> None:
    for key in keys:
        if key not in store.keys:
            raise InputError(
                f"data.obs_keys: '{store.path}' has no key '{key}'.{nearest(key, store.keys)} It has: {', '.join(store.keys)}."
            )
        if skipped.get(key) in ("the action", "a copy of the action"):
            raise InputError(
                f"data.obs_keys: '{key}' is {skipped[key]}; a policy learns to copy it and has nothing to copy when it acts. "
                "Leave it out."
            )
        if "." in key:
            raise InputError(
                f"data.obs_keys: a policy cannot read a key with a dot, '{key}'. Convert with rename={key}:{key.replace('.', '_')}"
            )
    if not keys:
        why = ", ".join(f"{key} ({reason})" for key, reason in skipped.items())
        raise InputError(
            f"'{store.path}' holds nothing that a policy could read: {why}. Name keys: data.obs_keys=[KEY,...]"
        )


def _rate_missing(rate: float) -> list[str]:
    return [] if rate and rate > 0 else ["how many steps a second has (data.rate_hz=N)"]


def _kind_missing(kind: str, action: Values, low_dim: dict[str, Values]) -> list[str]:
    """Ask what the actions are, because it decides which command means that the robot stands still."""
    if kind:
        return []
    place = followed(action, low_dim)
    hint = f"; they lie close to '{place}', as positions do" if place else ""
    return [
        "what an action is (data.actions=absolute for positions to go to, data.actions=delta for displacements and "
        f"velocities{hint})"
    ]


def followed(action: Values, observations: dict[str, Values]) -> str:
    """The observation near which absolute actions lie: the robot's own position, in units of the action; "" if none."""
    spread = action.std(axis=0)
    moving = spread > 0
    near = {}
    for key, values in observations.items():
        if values.shape == action.shape and moving.any():
            near[key] = float((np.sqrt(((values - action) ** 2).mean(axis=0))[moving] / spread[moving]).max())
    best = min(near, key=lambda key: near[key], default="")
    return best if best and near[best] < 0.5 else ""


def _recorded(store: DemoStore, action: Values, kind: str, rate_hz: float, low_dim: dict[str, Values]) -> Recorded:
    low, high = action.min(axis=0), action.max(axis=0)
    margin = MARGIN * (high - low)
    within = np.ones(len(action) - 1, np.bool_)
    within[store.episode_ends[:-1] - 1] = False
    step = np.abs(np.diff(action, axis=0))[within].max(axis=0, initial=0)
    absolute = "absolute" in kind.lower()
    said = (store.attrs.get("action_space") or {}).get("gripper") or ()
    switches = [entry in said or len(np.unique(column)) <= SWITCH for entry, column in enumerate(action.T)]
    return Recorded(
        rate_hz,
        low=tuple((low - margin).tolist()),
        high=tuple((high + margin).tolist()),
        step=tuple(np.where(step > 0, step, 1.0).tolist()),  # an entry that never moved is held by its bounds
        position=followed(action, low_dim) if absolute else "",
        neutral=None if absolute else tuple(None if switch else 0.0 for switch in switches),
    )


def _array(shape: tuple[int, ...], dtype: str, unit: str, recorded: Recorded | None = None) -> ArraySpec:
    low, high = (recorded.low, recorded.high) if recorded else (-np.inf, np.inf)
    return ArraySpec(shape, dtype, unit, low, high, "as recorded")


def _shape(store: DemoStore, key: str) -> tuple[int, ...]:
    shape = store.shape(key)
    return (int(np.prod(shape)),) if is_low_dim(store, key) else shape


def _flat(store: DemoStore | Renamed, key: str) -> Values:
    values = store.read(key)
    return values.reshape(len(values), -1).astype(np.float64)


def _quaternions(store: DemoStore, keys: Sequence[str]) -> list[str]:
    """Say whose order nobody knows: a policy reads the four numbers as they are, so the robot must give them as recorded."""
    known = store.attrs.get("keys", {})
    unknown = [key for key in keys if "quat" in key.lower() and "quaternion" not in known.get(key, {})]
    return [
        f"          {key}: nobody says whether it is xyzw or wxyz; the robot must give it as it was recorded "
        f"(isdt data describe {store.path} quaternion={key}:ORDER)"
        for key in unknown
    ]


def _bounds(recorded: Recorded) -> str:
    pairs = [f"{low:.3g} to {high:.3g}" for low, high in zip(recorded.low[:8], recorded.high[:8])]
    return ", ".join(pairs) + (", ..." if len(recorded.low) > 8 else "")
