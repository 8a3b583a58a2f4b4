"""robomimic's recordings put back into the simulator: observations from raw states, absolute actions from delta ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.formats import Episode, Recording
from isdt_policy.envs import make, task_spec
from isdt_policy.envs.robomimic_args import task_of
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import Array, Json


def recorded_task(attributes: Json, source: str) -> str:
    """Return the task that a raw file's attributes (`env_args`, or robosuite's own `env_info`) describe.

    Raises:
        InputError: they say nothing, or an environment that is not among ours.
    """
    if "env_args" in attributes:
        return task_of(attributes["env_args"])
    if "env_info" in attributes:
        info = json.loads(attributes["env_info"])
        kwargs = {key: value for key, value in info.items() if key != "env_name"}
        version = attributes.get("repository_version")
        return task_of({"env_name": info.get("env_name"), "env_version": version, "env_kwargs": kwargs})
    raise InputError(
        f"'{source}' holds raw simulator states without observations, and neither env_args nor env_info says of which "
        "environment; they cannot be replayed."
    )


def observer(task: str) -> Callable[[Array, str | None], dict[str, NDArray[np.float32]]]:
    """Return a function (states, model_file) -> every low-dimensional observation of the task."""
    env: Any = make(task)
    return env.observations_of  # type: ignore[no-any-return]


def actions_fit(recording: Recording, task: str) -> bool:
    """Whether the recorded actions are of the kind that a task takes."""
    wanted = task_spec(task).action_space
    # Without env_args, robomimic's files are what they were released as: delta.
    return not wanted or (recording.attributes.get("action_space") or {}).get("type", "delta") == wanted["type"]


def with_actions_of(recording: Recording, task: str) -> Recording:
    """Return the recording with the actions of `task`; the same one where they fit already.

    Delta actions become absolute ones with the same targets. That needs the recorded `states`: what a displacement leads to
    depends on where the hand was.

    Raises:
        InputError: the way from the recorded actions to the task's is not known.
    """
    if actions_fit(recording, task):
        return recording
    wanted = task_spec(task).action_space
    recorded = recording.attributes.get("action_space") or {}
    if wanted["type"] != "absolute":
        raise InputError(
            f"'{recording.path}' holds {recorded.get('type')} actions and task '{task}' takes {wanted['type']} ones; only "
            "delta actions are converted, to absolute ones."
        )
    models = {n: info.get("model_file") for n, info in zip(recording.numbers, recording.info)}

    def load(numbers: Sequence[int]) -> Iterator[Episode]:
        env: Any = make(task.removesuffix("_abs"), obs_keys=["object"])
        for number, episode in zip(numbers, recording.load(numbers), strict=True):
            if "states" not in episode:
                raise InputError(f"'{recording.path}' has no states; without them its actions cannot be made absolute.")
            action = env.absolute_actions(episode["states"], episode["action"], models.get(number))
            yield {**episode, "action": action}

    attributes = {**recording.attributes, "action_space": {**recorded, **wanted, "rate_hz": task_spec(task).rate_hz}}
    return replace(recording, task=task, attributes=attributes, load=load)
