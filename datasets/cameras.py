"""Pictures on their way from one format to another: made smaller, or drawn from recorded states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from isdt_policy.datasets.formats import Episode, Recording, is_picture
from isdt_policy.envs import TaskSpec, make, task_spec
from isdt_policy.envs.opengl import renderer
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.pixels import as_bytes, check_layout, resized
from isdt_policy.shared.values import Array, Json

Draw = Callable[[Episode, Json], Episode]  # (an episode, what is known of it) -> its pictures


@dataclass(frozen=True)
class Pictures:
    """What becomes of pictures in a conversion.

    Attributes:
        resize: height and width that all of them get; None leaves their size.
        render: cameras of the task that are drawn from recorded states.
    """

    resize: tuple[int, int] | None = None
    render: tuple[str, ...] = ()


AS_RECORDED = Pictures()


def with_drawn(recording: Recording, task: str | None, cameras: Sequence[str]) -> Recording:
    """The same with pictures as the task's cameras would have taken them, drawn from the states of every step.

    Raises:
        InputError: no task, no such camera, no states to draw from, or nothing that draws.
    """
    if task is None:
        raise InputError(f"render: '{recording.path}' does not say which task it shows; add task=.")
    names = camera_keys(task_spec(task), cameras)
    draw = drawer(task, names)
    first = next(recording.load(recording.numbers[:1]), {})
    spec = task_spec(task)
    needed = spec.stored_keys if spec.draw_fn is not None else ("states",)
    absent = [key for key in needed if key not in first]
    if absent:
        raise InputError(
            f"render: '{recording.path}' has no '{absent[0]}', from which task '{task}' draws; it has {', '.join(sorted(first))}."
        )
    infos = dict(zip(recording.numbers, recording.info)) if recording.info else {}
    draw({key: values[:1] for key, values in first.items()}, infos.get(recording.numbers[0], {}))  # or says why not

    def load(numbers: Sequence[int]) -> Iterator[Episode]:
        for number, episode in zip(numbers, recording.load(numbers)):
            yield {**episode, **draw(episode, infos.get(number, {}))}

    described = {key: {"renderer": {**renderer(spec.packages), "source": "recorded states"}} for key in names}
    return replace(_described(recording, described), load=load)


def camera_keys(spec: TaskSpec, cameras: Sequence[str]) -> tuple[str, ...]:
    """Observations of a task's cameras, by those names or by the cameras' own (agentview for agentview_image).

    Raises:
        InputError: the task has no such camera.
    """
    known = {key: key for key, array in spec.observations.items() if len(array.shape) == 3}
    known |= {key.removesuffix("_image"): key for key in known}
    known |= {other: key for key, others in spec.recorded_as.items() for other in others}
    for camera in cameras:
        if camera not in known:
            raise InputError(
                f"task '{spec.id}' has no camera '{camera}'.{nearest(camera, known)} It has: "
                f"{', '.join(dict.fromkeys(known.values())) or 'none'}."
            )
    return tuple(dict.fromkeys(known[camera] for camera in cameras))


@cache
def drawer(task: str, keys: tuple[str, ...]) -> Draw:
    """What draws these pictures of a task from the states of an episode; one simulator, used again.

    Raises:
        InputError: the task cannot be put into a recorded state, or nothing is installed that draws.
    """
    spec = task_spec(task)
    if (draw_fn := spec.draw_fn) is not None:
        return lambda episode, info: {
            key: draw_fn({name: np.asarray(episode[name]) for name in spec.stored_keys}, key) for key in keys
        }
    env: Any = make(task, list(keys))
    if not hasattr(env, "observations_of"):
        raise InputError(
            f"task '{task}' cannot be put into recorded states, so nothing is drawn from them. Record the pictures themselves."
        )

    def draw(episode: Episode, info: Json) -> Episode:
        # Sizes that are drawn anew in every episode are in its model, or follow from the seed of its reset.
        pictures: Episode = env.observations_of(
            episode["states"], info.get("model_file"), seed=info.get("reset_seed", 0)
        )
        return pictures

    return draw


def pictures_of(task: str, keys: tuple[str, ...], episode: Episode, info: Json) -> Episode:
    """Pictures of an episode; see `drawer`. Other processes can be asked for it."""
    return drawer(task, keys)(episode, info)


def with_size(recording: Recording, size: tuple[int, int]) -> Recording:
    """The same with all pictures of this height and width; see `pixels.resized`.

    Raises:
        InputError: there are no pictures, or something that is none, such as channels first or floats between 0 and 1.
    """
    first = next(recording.load(recording.numbers[:1]), {})
    keys = [key for key, values in first.items() if is_picture(values)]
    if not keys:
        raise InputError(f"resize: '{recording.path}' holds no pictures; it has {', '.join(sorted(first))}.")
    for key in keys:
        check_layout(first[key].shape[1:], key)
        as_bytes(first[key], key)
    described = {
        key: {"source_shape": list(first[key].shape[1:]), "resized": "area"} for key in keys
        if first[key].shape[1:3] != size
    }  # fmt: skip

    def change(episode: Episode) -> Episode:
        return {key: _fit(value, key, size) if key in keys else value for key, value in episode.items()}

    return _described(recording, described).changed(change)


def _fit(pictures: Array, key: str, size: tuple[int, int]) -> Array:
    as_read = as_bytes(pictures, key)
    return as_read if as_read.shape[1:3] == size else resized(as_read, size)


def _described(recording: Recording, found: Mapping[str, Json]) -> Recording:
    """The same, whose keys are described by these facts too."""
    keys = dict(recording.attributes.get("keys", {}))
    for key, facts in found.items():
        keys[key] = {**keys.get(key, {}), **facts}
    return replace(recording, attributes={**recording.attributes, "keys": keys})
