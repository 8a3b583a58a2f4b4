"""What the checks of the doctor read and what they find."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.store import DemoStore
from isdt_policy.envs import TaskSpec
from isdt_policy.shared.values import Array

# Keys that say how it went rather than what was seen; they may be constant or jump.
OUTCOMES = ("reward", "rewards", "done", "dones", "coverage", "success", "n_contacts")


@dataclass(frozen=True)
class Finding:
    """One thing found. `step` counts within the episode; `count` is how many such places there are."""

    level: str
    check: str
    key: str
    message: str
    advice: str
    episode: int | None = None
    step: int | None = None
    count: int = 1


@dataclass(frozen=True)
class Demos:
    """What the checks read: low-dimensional keys as float64 (n_steps, d), images from the store piece by piece."""

    store: DemoStore
    low_dim: dict[str, NDArray[np.float64]]
    spec: TaskSpec | None

    @property
    def ends(self) -> NDArray[np.int64]:
        """(n_episodes,): where every episode ends in the store."""
        return self.store.episode_ends

    @property
    def observations(self) -> dict[str, NDArray[np.float64]]:
        """Keys that say what was seen: neither the action nor how it went."""
        return {key: value for key, value in self.low_dim.items() if key not in ("action", *OUTCOMES)}

    @property
    def within(self) -> NDArray[np.bool_]:
        """(n_steps - 1,): steps t and t + 1 belong to one episode."""
        inside = np.ones(self.store.n_steps - 1, np.bool_)
        inside[self.ends[:-1] - 1] = False
        return inside

    def place(self, step: int) -> dict[str, int]:
        """Episode and step within it of a step of the store."""
        episode = int(np.searchsorted(self.ends, step, side="right"))
        return {"episode": episode, "step": int(step - (self.ends[episode - 1] if episode else 0))}


def runs(still: NDArray[np.bool_], active: NDArray[np.bool_], length: int) -> list[int]:
    """First steps of runs of `still` at least `length` long during most of which something is `active`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], still.astype(np.int8), [0]])))
    return [int(a) for a, b in zip(edges[::2], edges[1::2]) if b - a >= length and active[a:b].mean() > 0.5]


def few(numbers: Array) -> str:
    """The first numbers, and how many there are."""
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (f", ... ({len(numbers)})" if len(numbers) > 8 else "")


def quaternion_columns(key: str, value: NDArray[np.float64]) -> list[int]:
    """First columns of the quaternions in a key: by its name, or four columns whose norm is 1 all along."""
    if "quat" in key and value.shape[1] % 4 == 0:
        return list(range(0, value.shape[1], 4))
    firsts, first = [], 0
    while first + 4 <= value.shape[1]:
        four = value[:, first : first + 4]
        if (np.abs(np.linalg.norm(four, axis=1) - 1) < 1e-4).all() and (np.ptp(four, axis=0) > 1e-3).all():
            firsts.append(first)
            first += 3
        first += 1
    return firsts
