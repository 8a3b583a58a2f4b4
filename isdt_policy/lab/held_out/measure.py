"""Errors of a policy's chunks against recorded ones, and what they are compared with.

A row is a recorded step t of an episode that the policy has not seen. Its chunk holds the actions of t, t + 1, ..., as far as the
episode goes. Everything is a root mean square, in units of the action.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from isdt_policy.datasets.windows import Store, WindowDataset
from isdt_policy.envs import TaskSpec
from isdt_policy.method.policy import Policy

Array = NDArray[np.float64]
MOST_NEIGHBOURS = 20_000  # steps among which the nearest one is looked for


@dataclass(frozen=True)
class Rows:
    """Recorded steps with what the policy sees and what was done from then on.

    Attributes:
        obs: {key: (n, n_obs_steps, ...)}.
        chunk: (n, steps, action_dim) the actions of this step and those that follow.
        inside: (n, steps) whether the step lies within the episode.
        before: (n, action_dim) the action of the step before; the first of an episode for its first step.
        episode, step: (n,) where a row stands.
    """

    obs: dict[str, NDArray[np.generic]]
    chunk: Array
    inside: NDArray[np.bool_]
    before: Array
    episode: NDArray[np.int64]
    step: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.chunk)

    def some(self, chosen: NDArray[np.int64]) -> Rows:
        """Only these rows."""
        return Rows(
            {key: value[chosen] for key, value in self.obs.items()}, self.chunk[chosen], self.inside[chosen],
            self.before[chosen], self.episode[chosen], self.step[chosen],
        )  # fmt: skip


def rows_of(store: Store, episodes: Iterable[int], policy: Policy, spec: TaskSpec | None) -> Rows:
    """Every step of some episodes."""
    c, chosen = policy.config, np.array(sorted(episodes), np.int64)
    # With a pad of a whole window on both sides there is one window a step, and then some that begin beyond the end.
    windows = WindowDataset(store, policy.obs_keys, c.horizon, c.n_obs_steps, c.horizon, episodes=chosen, task=spec)
    lengths = np.diff(store.episode_ends, prepend=0)[chosen]
    first = np.cumsum([0, *(lengths[:-1] + c.n_obs_steps - 1)])
    numbers = np.concatenate([start + np.arange(length) for start, length in zip(first, lengths)])
    batch, now = windows.batch(numbers), c.n_obs_steps - 1
    step = np.concatenate([np.arange(length) for length in lengths])
    action = batch["action"].astype(np.float64)[:, now:]
    before = np.where(step[:, None] > 0, np.roll(action[:, 0], 1, axis=0), action[:, 0])
    return Rows(dict(batch["obs"]), action, ~batch["is_pad"][:, now:], before, np.repeat(chosen, lengths), step)


def answers(policy: Policy, rows: Rows, nfe: int | str, seed: int) -> Array:
    """The policy's chunks (n, steps, action_dim), with noise that is a function of seed, episode and step."""
    seeds = np.stack([seed * 1_000_003 + rows.episode, rows.step], axis=1)
    predicted = policy.predict_action(rows.obs, nfe=nfe, noise_seeds=seeds)["action_pred"]  # type: ignore[arg-type]
    return predicted[:, policy.n_obs_steps - 1 :].astype(np.float64)


def rms(difference: Array, inside: NDArray[np.bool_], axis: tuple[int, ...] = (0,)) -> Array:
    """Root mean square of (n, steps, action_dim) over rows that lie inside their episode; NaN where there are none."""
    square = np.where(inside[..., None], difference**2, 0.0).sum(axis=axis)
    count = np.broadcast_to(inside[..., None], difference.shape).sum(axis=axis)
    return np.sqrt(np.divide(square, count, out=np.full_like(square, np.nan), where=count > 0))


def neighbours(policy: Policy, rows: Rows, others: Rows) -> tuple[Array, NDArray[np.bool_]] | None:
    """How far the chunk lies that a demonstrator executed where the observations were most alike, in another episode.

    Returns:
        Difference (n, steps, action_dim) and where both lie inside their episodes; None if there is no other episode, or
        the policy reads pictures alone.
    """
    chosen = np.unique(np.linspace(0, others.count - 1, MOST_NEIGHBOURS).astype(np.int64))
    others = others.some(chosen)
    a, b = (_features(policy, part) for part in (rows, others))
    if a is None or b is None:
        return None
    nearest = np.zeros(rows.count, np.int64)
    found = np.zeros(rows.count, np.bool_)
    for start in range(0, rows.count, 256):
        part = slice(start, start + 256)
        distance = torch.cdist(a[part], b)
        own = torch.from_numpy(rows.episode[part, None] == others.episode[None])
        distance[own] = torch.inf
        smallest = distance.min(dim=1)
        nearest[part], found[part] = smallest.indices.numpy(), smallest.values.isfinite().numpy()
    if not found.any():
        return None
    return others.chunk[nearest] - rows.chunk, rows.inside & others.inside[nearest] & found[:, None]


def _features(policy: Policy, rows: Rows) -> torch.Tensor | None:
    states = [key for key, spec in policy.config.observations.items() if spec.kind == "state"]
    if not states:
        return None
    obs = {key: torch.from_numpy(np.asarray(rows.obs[key], np.float32)) for key in policy.obs_keys}
    normal = policy.normalizer.normalize_obs(obs)
    return torch.cat([normal[key].flatten(1) for key in states], dim=1)


def disagreement(rows: Rows, predicted: Array, execute: int) -> Array:
    """Root mean square (action_dim,) of what two consecutive chunks say of the same steps: `execute` steps apart."""
    place = {(int(e), int(s)): i for i, (e, s) in enumerate(zip(rows.episode, rows.step))}
    pairs = [(i, place[e, s + execute]) for (e, s), i in place.items() if (e, s + execute) in place]
    here, there = np.array(pairs, np.int64).reshape(-1, 2).T
    steps = predicted.shape[1] - execute
    if not len(here) or steps < 1:
        return np.full(predicted.shape[2], np.nan)
    difference = predicted[here, execute:] - predicted[there, :steps]
    return rms(difference, rows.inside[there][:, :steps], axis=(0, 1))


def spaced(rows: Rows, count: int, execute: int) -> NDArray[np.int64]:
    """About `count` rows, evenly spaced, each with the row that is `execute` steps later if there is one."""
    if rows.count <= count:
        return np.arange(rows.count)
    first = np.unique(np.linspace(0, rows.count - 1, max(1, count // 2)).astype(np.int64))
    later = first + execute
    later = later[later < rows.count]
    return np.unique(np.concatenate([first, later]))


def replayed(predicted: Array, execute: int) -> list[tuple[NDArray[np.int64], Array]]:
    """The pieces (steps, actions) that an open loop executes of an episode's chunks (T, steps, action_dim)."""
    pieces = []
    for start in range(0, len(predicted), execute):
        steps = np.arange(start, min(start + execute, len(predicted)))
        pieces.append((steps, predicted[start, : len(steps)]))
    return pieces


def over_scale(value: Array, scale: Array) -> float:
    """Root mean square over entries of value over scale, leaving out entries without a scale."""
    good = (scale > 0) & np.isfinite(value) & np.isfinite(scale)
    return float(np.sqrt(np.mean((value[good] / scale[good]) ** 2))) if good.any() else float("nan")
