"""Demonstrations that follow from others by moving or reflecting the scene."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.windows import Store
from isdt_policy.envs import TaskSpec
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import Array


class MemoryStore:
    """Episodes held in memory, readable like a store.

    Attributes:
        origin: (n_episodes,) number of the recorded episode that each was made from.
    """

    def __init__(self, arrays: dict[str, Array], episode_ends: NDArray[np.int64], origin: NDArray[np.int64]) -> None:
        self._arrays, self.episode_ends, self.origin = arrays, episode_ends, origin
        self.keys = tuple(sorted(arrays))

    @property
    def n_episodes(self) -> int:
        return len(self.episode_ends)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Array:
        if key not in self._arrays:
            raise InputError(f"no key '{key}'; there are {', '.join(self.keys)}.")
        return self._arrays[key][start:stop]

    def made_from(self, recorded: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the episodes that were made from these recorded ones, rising."""
        return np.flatnonzero(np.isin(self.origin, recorded))


def with_mirror_images(store: Store, task: TaskSpec) -> MemoryStore:
    """Every episode is followed by itself as seen in the mirror."""
    if task.mirror_fn is None:
        raise InputError(f"task '{task.id}' has no mirror symmetry; set data.mirror=false.")
    mirror = task.mirror_fn
    return _made(store, task, lambda episode: [episode, mirror(episode)])


def with_goals_in_hindsight(store: Store, task: TaskSpec, nudges: bool = False) -> MemoryStore:
    """Every episode gives way to what it demonstrates with goals named in hindsight; see `TaskSpec.hindsight_fn`.

    Args:
        nudges: and to what `TaskSpec.nudges_fn` finds in it.
    """
    if task.hindsight_fn is None:
        raise InputError(
            f"task '{task.id}' has goals that cannot be moved to where an episode ended; set data.hindsight=false."
        )
    if not nudges:
        return _made(store, task, task.hindsight_fn)
    if task.nudges_fn is None:
        raise InputError(f"task '{task.id}' has no nudges; set data.nudges=false.")
    whole, short = task.hindsight_fn, task.nudges_fn
    return _made(store, task, lambda episode: [*whole(episode), *short(episode)])


def _made(
    store: Store,
    task: TaskSpec,
    make: Callable[[dict[str, Array]], list[dict[str, Array]]],
) -> MemoryStore:
    """The episodes that `make` makes of each.

    Only the task's stored keys and the action are kept: other keys are derived, and so agree with them.
    """
    keys = [*task.stored_keys, "action"]
    whole = {key: store.read(key) for key in keys}
    recorded = store.origin if isinstance(store, MemoryStore) else np.arange(store.n_episodes)
    made, origin = [], []
    for number, start, end in zip(recorded, np.concatenate([[0], store.episode_ends[:-1]]), store.episode_ends):
        found = make({key: whole[key][start:end] for key in keys})
        made += found
        origin += [number] * len(found)
    ends = np.cumsum([len(episode["action"]) for episode in made])
    return MemoryStore({key: np.concatenate([e[key] for e in made]) for key in keys}, ends, np.array(origin))
