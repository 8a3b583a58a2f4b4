"""The registry of tasks: what datasets, evaluation and configurations need to know of an environment.

A spec is readable without any simulator installed; only `make` imports one.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, cast

import gymnasium
import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs.protocol import Arrays, Observation
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.extras import installed_version

Env: TypeAlias = gymnasium.Env[Observation, NDArray[np.float32]]

# task id -> module with `SPECS[id]` and `make_env(id, ...)`. A module must import no simulator at its top level.
_ROBOMIMIC = ("lift", "can", "square", "tool_hang", "transport")
TASKS: dict[str, str] = {
    "pusht": "isdt_policy.envs.pusht",
    "avoiding": "isdt_policy.envs.avoiding",
    **{f"{task}{mode}": "isdt_policy.envs.robomimic" for mode in ("", "_abs") for task in _ROBOMIMIC},
    **{task: "isdt_policy.envs.gymnasium_robotics" for task in ("franka_kitchen", "adroit_door")},
}
_TASKS_VARIABLE = "ISDT_TASKS"  # names of modules with further tasks


@dataclass(frozen=True)
class ArraySpec:
    """One observation or action array.

    Attributes:
        shape: without batch or time axes.
        dtype: NumPy name.
        unit: physical unit of the entries.
        low: hard lower bounds, one per entry, or one for all.
        high: hard upper bounds, likewise.
        description: what the entries are, in order.
    """

    shape: tuple[int, ...]
    dtype: str
    unit: str
    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    description: str

    def bounds(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the lower and upper bounds, one per entry, of the array's own type."""
        low, high = (np.broadcast_to(np.asarray(bound, self.dtype), self.shape) for bound in (self.low, self.high))
        return low, high

    def space(self) -> gymnasium.Space[Any]:
        """Return the Gymnasium space of this array."""
        return gymnasium.spaces.Box(*self.bounds(), self.shape, np.dtype(self.dtype).type)


@dataclass(frozen=True)
class ActionPart:
    """Entries of an action that belong together: they have one unit, and are scaled alike.

    Attributes:
        kind: what they are. "rotation" is axis-angle (3 entries) or two rows of the matrix (6); "joints" are positions,
            velocities or torques of joints.
        size: how many.
    """

    kind: Literal["position", "rotation", "gripper", "joints", "other"]
    size: int


def _nothing_derived(stored: Arrays, key: str) -> NDArray[np.float32]:
    raise InputError(
        f"observation '{key}' has to be recorded; it does not follow from {', '.join(stored) or 'nothing'}."
    )


@dataclass(frozen=True)
class TaskSpec:
    """What a task is, independent of any simulator object.

    Attributes:
        id: name in the registry.
        observations: every observation key the environment can give.
        action: the action array.
        action_type: meaning of an action, with its unit.
        max_episode_steps: steps after which an episode is truncated.
        rate_hz: control rate.
        success: the success criterion in words.
        default_obs_keys: what a policy reads unless told otherwise.
        seed_protocols: named rules that turn a seed into an initial state; the first is the default.
        packages: distributions that decide the physics, recorded with every result.
        extra: the extra of this package that installs them.
        stored_keys: keys from which `derive` computes the others.
        derive_fn: implementation of `derive`.
        mirror_fn: {key: (T, d)} of stored keys and "action" -> the same episode seen in the mirror, for tasks whose scene has
            that symmetry; None for the others.
        hindsight_fn: {key: (T, d)} of an episode's stored keys and "action" -> the episodes it demonstrates with goals named in
            hindsight, each in a scene placed so that its end is the goal; None for tasks where that cannot be done.
        nudges_fn: the same for the beginnings of what is done in an episode, with the goal close to where it started.
        recorded_as: per picture, other names under which recordings hold it.
        draw_fn: ({key: (n, d)} of stored keys, name of a picture) -> (n, height, width, 3) uint8, as the environment draws it; None
            for tasks that cannot draw a scene from what is stored.
        success_fn: {key: (n, d)} of stored keys -> (n,) whether each state is a success; None where that takes the simulator.
        modes: number of ways in which an episode can succeed, where the environment names the way (`info["mode"]`, from 0); 0
            elsewhere.
        neutral: the action that means no motion, sent while an answer is missing: a number per entry (0 for a displacement),
            or None for an entry that keeps its last value (a gripper). None as a whole: all entries keep theirs, as positions do.
        action_parts: what the entries of an action are, in order; empty: one part of all.
        action_space: facts about the actions that a dataset records too ("type", "controller", "rotation"), for
            `check_recorded`; empty where the array says it all.
    """

    id: str
    observations: Mapping[str, ArraySpec]
    action: ArraySpec
    action_type: str
    max_episode_steps: int
    rate_hz: float
    success: str
    default_obs_keys: tuple[str, ...]
    seed_protocols: tuple[str, ...] = ("env",)
    packages: tuple[str, ...] = ()
    extra: str = ""
    stored_keys: tuple[str, ...] = ()
    derive_fn: Callable[[Arrays, str], NDArray[np.float32]] = _nothing_derived
    mirror_fn: Callable[[Arrays], dict[str, NDArray[np.float32]]] | None = None
    hindsight_fn: Callable[[Arrays], list[dict[str, NDArray[np.float32]]]] | None = None
    nudges_fn: Callable[[Arrays], list[dict[str, NDArray[np.float32]]]] | None = None
    recorded_as: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    draw_fn: Callable[[Arrays, str], NDArray[np.uint8]] | None = None
    success_fn: Callable[[Arrays], NDArray[np.bool_]] | None = None
    modes: int = 0
    neutral: tuple[float | None, ...] | None = None
    action_parts: tuple[ActionPart, ...] = ()
    action_space: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises InputError where the description of an action does not fit its size."""
        size = math.prod(self.action.shape)
        if not self.action_parts:
            object.__setattr__(self, "action_parts", (ActionPart("other", size),))
        if (entries := sum(part.size for part in self.action_parts)) != size:
            raise InputError(f"task '{self.id}': action_parts have {entries} entries, the action has {size}.")
        if self.neutral is not None and len(self.neutral) != size:
            raise InputError(f"task '{self.id}': neutral has {len(self.neutral)} entries, the action has {size}.")

    def versions(self) -> dict[str, str]:
        """Return the installed version of every package that decides the physics ("not installed" if absent)."""
        return {name: installed_version(name) or "not installed" for name in self.packages}

    def derive(self, stored: Arrays, keys: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """Compute observation keys from stored arrays, over any leading axes.

        Args:
            stored: arrays (..., d), in environment units; keys that are asked for and present pass through as float32.
            keys: observation keys wanted.

        Returns:
            Per key a float32 array (..., *shape).

        Raises:
            InputError: for an unknown key, or one that cannot be computed from what is stored.
        """
        result: dict[str, NDArray[np.float32]] = {}
        for key in keys:
            if key in stored:
                array = np.asarray(stored[key], np.float32)
                shape = self.observations[key].shape if key in self.observations else array.shape
                # Other people's stores keep e.g. keypoints as (9, 2) where the observation is flat.
                size = int(np.prod(shape))
                for axes in range(1, array.ndim + 1):
                    if int(np.prod(array.shape[array.ndim - axes :])) == size:
                        array = array.reshape(*array.shape[: array.ndim - axes], *shape)
                        break
                result[key] = array
                continue
            check_keys(self, [key], also=stored)
            missing = [name for name in self.stored_keys if name not in stored]
            if missing:
                raise InputError(
                    f"observation '{key}' of task '{self.id}' is computed from {', '.join(self.stored_keys)}, "
                    f"but the data hold only: {', '.join(stored) or 'nothing'}."
                )
            result[key] = self.derive_fn(stored, key)
        return result


class TaskModule(Protocol):
    """What a module of tasks holds."""

    SPECS: Mapping[str, TaskSpec]

    def make_env(
        self,
        task: str,
        *,
        obs_keys: tuple[str, ...] | None,
        seed_protocol: str,
        render_mode: str | None,
        **options: object,
    ) -> Env:
        """Build the environment of a task; `make` has checked the arguments."""
        ...


def observation_space(spec: TaskSpec, keys: Iterable[str]) -> gymnasium.Space[Observation]:
    """Return the Gymnasium space of a task's observation of these keys."""
    spaces = {key: spec.observations[key].space() for key in keys}
    return cast("gymnasium.Space[Observation]", gymnasium.spaces.Dict(spaces))


def register(module: str) -> tuple[str, ...]:
    """Make the tasks of your own module known, in this process and in the workers it starts.

    The module needs `SPECS`, {task id: TaskSpec}, and `make_env(task, *, obs_keys, seed_protocol, render_mode)`. For the
    command line name it in the environment variable ISDT_TASKS (several with commas), which is what this function does too.
    A module is never imported because a file names it.

    Returns:
        The ids of its tasks.

    Raises:
        InputError: no such module, members missing, or an id that is taken.
    """
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"the module '{module}' with your tasks cannot be imported ({error}); is its folder in PYTHONPATH?"
        ) from error
    for member in ("SPECS", "make_env"):
        if not hasattr(found, member):
            raise InputError(f"the module '{module}' has no '{member}'; a module of tasks needs SPECS and make_env.")
    for task, spec in found.SPECS.items():
        if TASKS.get(task, module) != module:
            raise InputError(f"'{module}' names a task '{task}', which there is already, in {TASKS[task]}.")
        if spec.id != task:
            raise InputError(f"'{module}' has SPECS['{task}'] with id='{spec.id}'; the two must agree.")
        if task not in TASKS:
            TASKS[task] = module
            _register_with_gymnasium(task)
    named = [name for name in os.environ.get(_TASKS_VARIABLE, "").split(",") if name]
    if module not in named:
        os.environ[_TASKS_VARIABLE] = ",".join([*named, module])  # spawned processes inherit it
    return tuple(found.SPECS)


def task_ids() -> tuple[str, ...]:
    """Return the names of all registered tasks."""
    return tuple(TASKS)


def task_spec(task: str) -> TaskSpec:
    """Return the spec of a task.

    >>> task_spec("pusht").action.shape
    (2,)

    Raises:
        InputError: if no task has this name.
    """
    return _module(task).SPECS[task]


def make(
    task: str,
    obs_keys: Iterable[str] | None = None,
    seed_protocol: str | None = None,
    render_mode: str | None = None,
    **options: Any,
) -> Env:
    """Build a Gymnasium environment with a Dict observation.

    Args:
        task: name in the registry.
        obs_keys: observation keys wanted; None gives every key that needs no rendering.
        seed_protocol: rule from seed to initial state; None is the task's first.
        render_mode: None or "rgb_array".
        **options: the environment's own further arguments (`render_size`; robomimic's tasks: `control`, `rotation`); a
            misspelt one raises TypeError.

    Raises:
        InputError: for an unknown task, key, protocol or render mode, or a simulator that is missing or untested.
    """
    module = _module(task)
    spec = module.SPECS[task]
    if isinstance(obs_keys, str):
        raise InputError(f"obs_keys must be a list of keys, for example ['{obs_keys}'], got a string.")
    keys = None if obs_keys is None else tuple(obs_keys)
    if keys is not None:
        check_keys(spec, keys)
    protocol = spec.seed_protocols[0] if seed_protocol is None else seed_protocol
    if protocol not in spec.seed_protocols:
        raise InputError(
            f"unknown seed protocol '{protocol}' for task '{spec.id}'.{nearest(protocol, spec.seed_protocols)} "
            f"Allowed: {', '.join(spec.seed_protocols)}."
        )
    if render_mode not in (None, "rgb_array"):
        raise InputError(f"unknown render_mode '{render_mode}'. Allowed: None, 'rgb_array'.")
    for package in spec.packages:
        if installed_version(package) is None:
            raise InputError(
                f"task '{task}' needs the package '{package}', which is not installed. "
                f"Install it with: pip install 'isdt-policy[{spec.extra}]'"
            )
    env = module.make_env(task, obs_keys=keys, seed_protocol=protocol, render_mode=render_mode, **options)
    env.spec = gymnasium.spec(gymnasium_id(task))
    return env


def check_recorded(spec: TaskSpec, attributes: Mapping[str, object], source: str) -> None:
    """Refuse demonstrations whose recorded action space, controller or rate is not the task's.

    Args:
        spec: of the task to be trained or evaluated.
        attributes: of the demonstration store; what it does not say is not checked.
        source: name of the store, for the message.

    Raises:
        InputError: they differ; the message names both.
    """
    recorded = cast("Mapping[str, object]", attributes.get("action_space") or {})
    for key, ours in {**spec.action_space, "rate_hz": spec.rate_hz}.items():
        theirs = recorded.get(key)
        if theirs is not None and theirs != ours:
            raise InputError(
                f"'{source}' was recorded with {key}={theirs} in its action space, task '{spec.id}' has {key}={ours}. "
                "Train with the task it was recorded for, or convert it: isdt data convert SOURCE TARGET task=NAME"
            )


def gymnasium_id(task: str) -> str:
    """Return the task's name in Gymnasium's own registry, for `gymnasium.make`."""
    return f"isdt/{task}-v0"


def register_with_gymnasium() -> None:
    """Make every task available as `gymnasium.make("isdt_policy.envs:isdt/<task>-v0")`."""
    for task in TASKS:
        _register_with_gymnasium(task)


def _register_with_gymnasium(task: str) -> None:
    gymnasium.register(
        gymnasium_id(task),
        entry_point="isdt_policy.envs.registry:make",
        max_episode_steps=task_spec(task).max_episode_steps,
        kwargs={"task": task},
    )


def check_keys(spec: TaskSpec, keys: Iterable[str], also: Iterable[str] = ()) -> None:
    """Raise InputError naming the first key that is neither an observation of the task nor in `also`."""
    allowed = [*spec.observations, *(key for key in also if key not in spec.observations)]
    for key in keys:
        if key not in allowed:
            raise InputError(
                f"unknown observation key '{key}' for task '{spec.id}'.{nearest(key, allowed)} "
                f"Allowed: {', '.join(allowed)}."
            )


def _module(task: str) -> TaskModule:
    if task not in TASKS:
        for module in filter(None, os.environ.get(_TASKS_VARIABLE, "").split(",")):
            register(module)
    if task not in TASKS:
        raise InputError(f"unknown task '{task}'.{nearest(task, TASKS)} Tasks: {', '.join(TASKS)}.")
    return cast("TaskModule", importlib.import_module(TASKS[task]))


def checked_array(value: object, shape: tuple[int, ...], name: str) -> NDArray[np.float64]:
    """Return an action or a state as finite float64.

    Raises:
        InputError: it is not numbers of that shape, or not finite.
    """
    try:
        array = np.asarray(value, np.float64)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise InputError(f"{name} must be numbers of shape {shape}, got {value!r}.") from None
    if array.shape != shape:
        raise InputError(f"{name} must have shape {shape}, got {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError(f"{name} must be finite, got {array.tolist()}.")
    return array
