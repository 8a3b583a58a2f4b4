"""Demonstrations that follow from others by moving or reflecting the scene."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.store import DemoStore
from isdt_policy.envs import TaskSpec
from isdt_policy.errors import InputError


class MemoryStore:
    """Episodes held in memory, readable like a `DemoStore`."""

    def __init__(self, arrays: dict[str, NDArray[Any]], episode_ends: NDArray[np.int64]) -> None:
        self._arrays, self.episode_ends = arrays, episode_ends
        self.keys = tuple(sorted(arrays))

    @property
    def n_episodes(self) -> int:
        return len(self.episode_ends)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        if key not in self._arrays:
            raise InputError(f"no key '{key}'; there are {', '.join(self.keys)}.")
        return self._arrays[key][start:stop]


def with_mirror_images(store: DemoStore | MemoryStore, task: TaskSpec) -> MemoryStore:
    """Episode i becomes episodes 2 i (as recorded) and 2 i + 1 (in the mirror).

    Only the task's stored keys and the action are kept: other keys are derived, so that they are mirrored consistently.
    """
    if task.mirror_fn is None:
        raise InputError(f"task '{task.id}' has no mirror symmetry; set data.mirror=false.")
    keys = [*task.stored_keys, "action"]
    whole = {key: store.read(key) for key in keys}
    mirrored = task.mirror_fn(whole)
    starts = np.concatenate([[0], store.episode_ends[:-1]])
    pieces: dict[str, list[NDArray[Any]]] = {key: [] for key in keys}
    for start, end in zip(starts, store.episode_ends):
        for source in (whole, mirrored):
            for key in keys:
                pieces[key].append(source[key][start:end])
    lengths = np.repeat(np.diff(store.episode_ends, prepend=0), 2)
    return MemoryStore({key: np.concatenate(value) for key, value in pieces.items()}, np.cumsum(lengths))


def with_goals_in_hindsight(store: DemoStore, task: TaskSpec) -> MemoryStore:
    """Every episode in a scene placed so that its end is the task's goal; stored keys and the action, others are derived."""
    if task.hindsight_fn is None:
        raise InputError(
            f"task '{task.id}' has goals that cannot be moved to where an episode ended; set data.hindsight=false."
        )
    keys = [*task.stored_keys, "action"]
    whole = {key: store.read(key) for key in keys}
    starts = np.concatenate([[0], store.episode_ends[:-1]])
    episodes = [
        task.hindsight_fn({key: whole[key][start:end] for key in keys})
        for start, end in zip(starts, store.episode_ends)
    ]
    return MemoryStore({key: np.concatenate([e[key] for e in episodes]) for key in keys}, store.episode_ends)
