"""Windows of episodes, as training reads them.

A window is `horizon` steps. Its first step holds the oldest of n_obs_steps observations; windows may begin n_obs_steps - 1
steps before an episode and end n_action_steps - 1 steps after it, and are filled by repeating the episode's first and last
step, as in Diffusion Policy.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Protocol, TypedDict

import numba
import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.frames import ImageMemory, frames, is_image, take
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import Array


class Store(Protocol):
    """What windows need of a store."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the arrays."""
        ...

    @property
    def episode_ends(self) -> NDArray[np.int64]:
        """(n_episodes,): where every episode ends."""
        ...

    @property
    def n_episodes(self) -> int: ...
    def read(self, key: str, start: int = 0, stop: int | None = None) -> Array: ...


class Batch(TypedDict):
    """Windows by number.

    Attributes:
        obs: {key: (batch, n_obs_steps, d)} float32 in the store's units; images (batch, n_obs_steps, height, width, channels)
            in the stored dtype.
        action: (batch, horizon, action_dim) float32.
        is_pad: (batch, horizon) bool, true where the action is edge padding.
    """

    obs: dict[str, Array]
    action: NDArray[np.float32]
    is_pad: NDArray[np.bool_]


class Deriver(Protocol):
    """What windows need of a task: observation keys computed from stored ones."""

    @property
    def stored_keys(self) -> tuple[str, ...]:
        """Keys from which the task computes the others."""
        ...

    def derive(self, stored: Mapping[str, Array], keys: Sequence[str]) -> dict[str, NDArray[np.float32]]: ...


@numba.njit(cache=True)
def _fill_indices(ends, horizon, pad_before, pad_after, mask, out):  # type: ignore[no-untyped-def]
    row = 0
    for episode in range(len(ends)):
        if not mask[episode]:
            continue
        first = 0 if episode == 0 else ends[episode - 1]
        length = ends[episode] - first
        for start in range(-pad_before, length - horizon + pad_after + 1):
            begin, end = max(start, 0), min(start + horizon, length)
            out[row, 0] = begin + first
            out[row, 1] = end + first
            out[row, 2] = begin - start
            out[row, 3] = horizon - (start + horizon - end)
            row += 1
    return row


def window_indices(
    episode_ends: NDArray[np.int64],
    horizon: int,
    pad_before: int = 0,
    pad_after: int = 0,
    episode_mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Every window of every chosen episode, in order.

    Args:
        episode_ends: (n_episodes,) exclusive ends.
        horizon: steps in a window.
        pad_before, pad_after: steps a window may reach beyond its episode; at most horizon - 1.
        episode_mask: (n_episodes,) which episodes; None takes all.

    Returns:
        (N, 4): buffer_start, buffer_end (steps of the store the window holds), sample_start, sample_end (where they
        stand in the window; the rest is edge padding).
    """
    ends = np.asarray(episode_ends, np.int64)
    pad_before, pad_after = (min(max(pad, 0), horizon - 1) for pad in (pad_before, pad_after))
    mask = np.ones(len(ends), np.bool_) if episode_mask is None else np.asarray(episode_mask, np.bool_)
    lengths = np.diff(ends, prepend=0)[mask]
    count = int(np.maximum(lengths - horizon + pad_after + pad_before + 1, 0).sum())
    out = np.empty((count, 4), np.int64)
    assert _fill_indices(ends, horizon, pad_before, pad_after, mask, out) == count
    return out


@numba.njit(cache=True, nogil=True)
def _gather(sources, sizes, steps, rows, indices, out, is_pad):  # type: ignore[no-untyped-def]
    """Windows `indices` of every source: all of the first, then all of the second, ... in `out`; False if one is not there.

    sources: flat arrays of sizes[s] numbers a step, of which a window holds steps[s]; rows: (first, low, high) of every
    window, whose k-th step is clip(first + k, low, high).
    """
    count, horizon, longest = len(indices), is_pad.shape[1], steps.max()
    is_pad[:] = False
    for i in range(count):
        if indices[i] < 0 or indices[i] >= len(rows):
            return False
        first, low, high = rows[indices[i], 0], rows[indices[i], 1], rows[indices[i], 2]
        block = 0  # where the windows of this source begin in `out`
        if first >= low and first + longest - 1 <= high:
            # All inside the episode: one run of numbers a source. Unsigned indices, because a signed one may count from
            # the end, and that question keeps the loop from being compiled to vectors.
            for s in range(len(sources)):
                source, length = sources[s], sizes[s] * steps[s]
                begin, to = np.uint64(first * sizes[s]), np.uint64(block + i * length)
                for n in range(np.uint64(length)):
                    out[to + np.uint64(n)] = source[begin + np.uint64(n)]
                block += count * length
            continue
        for k in range(horizon):
            is_pad[i, k] = first + k < low or first + k > high
        for s in range(len(sources)):
            source, size, length = sources[s], sizes[s], sizes[s] * steps[s]
            for k in range(steps[s]):
                begin, to = min(max(first + k, low), high) * size, block + i * length + k * size
                for j in range(size):
                    out[to + j] = source[begin + j]
            block += count * length
    return True


class WindowDataset:
    """Training windows of chosen episodes: low-dimensional keys in memory as float32, images as they are stored.

    Args:
        store: demonstrations.
        obs_keys: observation keys, stored ones or ones the task derives from stored ones.
        horizon, n_obs_steps, n_action_steps: see the top of this file.
        episodes: indices of the episodes to use; None takes all.
        task: derives keys the store does not hold.
        images: where images are held; None takes the first place that has room.

    Raises:
        InputError: an unknown key or mode, NaN or infinity in what is read, or no episodes.
    """

    def __init__(
        self,
        store: Store,
        obs_keys: Sequence[str],
        horizon: int = 16,
        n_obs_steps: int = 2,
        n_action_steps: int = 8,
        episodes: NDArray[np.int64] | Sequence[int] | None = None,
        task: Deriver | None = None,
        images: ImageMemory | None = None,
    ) -> None:
        self.obs_keys, self.horizon, self.n_obs_steps = tuple(obs_keys), horizon, n_obs_steps
        chosen = np.arange(store.n_episodes) if episodes is None else np.asarray(episodes, np.int64)
        if not len(chosen):
            raise InputError("no episodes to make windows of; lower data.val_ratio or raise data.max_train_episodes.")
        mask = np.zeros(store.n_episodes, np.bool_)
        mask[chosen] = True
        indices = window_indices(store.episode_ends, horizon, n_obs_steps - 1, n_action_steps - 1, mask)
        # Rows (first, low, high): the step of the window's start, which may lie before the episode, and the clip bounds.
        ends = store.episode_ends
        episode = np.searchsorted(ends, indices[:, 0], side="right")
        low = np.concatenate([[0], ends[:-1]])[episode]
        self._rows = np.stack([indices[:, 0] - indices[:, 2], low, ends[episode] - 1], axis=1)
        pictures = tuple(key for key in self.obs_keys if key in store.keys and is_image(store, key))
        low_dim = [key for key in self.obs_keys if key not in pictures]
        self._arrays = {**_observations(store, low_dim, task), "action": _read(store, "action")}
        self._shapes = {key: store.read(key, 0, 1).shape[1:] for key in pictures}
        self._frames = frames(store, pictures, images or ImageMemory())
        # Flat, in the order in which one call writes them.
        self._flat_keys = (*low_dim, "action")
        self._flat = tuple(np.require(self._arrays[key].reshape(-1), np.float32, ["C", "W"]) for key in self._flat_keys)
        self._sizes = np.array([self._arrays[key].shape[1] for key in self._flat_keys])
        self._n_steps = np.array([*[n_obs_steps] * len(low_dim), horizon])
        self._row_size = int((self._sizes * self._n_steps).sum())
        self._steps = np.concatenate([np.arange(*bounds) for bounds in zip([0, *ends[:-1]], ends)])[
            np.repeat(mask, np.diff(ends, prepend=0))
        ]

    @property
    def n_windows(self) -> int:
        """How many windows there are."""
        return len(self._rows)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Windows by number."""
        found = self.numbers(indices)
        obs = {key: found["obs"][key] if key in found["obs"] else self._images(key, indices) for key in self.obs_keys}
        return {**found, "obs": obs}

    def numbers(self, indices: NDArray[np.int64]) -> Batch:
        """Windows by number, without their images."""
        indices = np.ascontiguousarray(indices, np.int64)
        count, at = len(indices), 0
        # One buffer and one call for all low-dimensional keys: allocations and calls cost as much as copying.
        buffer = np.empty(count * self._row_size, np.float32)
        is_pad = np.empty((count, self.horizon), np.bool_)
        if not _gather(self._flat, self._sizes, self._n_steps, self._rows, indices, buffer, is_pad):
            raise IndexError(
                f"windows are numbered 0 to {self.n_windows - 1}, asked for {indices.min()} to {indices.max()}."
            )
        blocks = []
        for steps, size in zip(self._n_steps.tolist(), self._sizes.tolist()):
            end = at + count * steps * size
            blocks.append(buffer[at:end].reshape(count, steps, size))
            at = end
        return {"obs": dict(zip(self._flat_keys[:-1], blocks)), "action": blocks[-1], "is_pad": is_pad}

    @property
    def image_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one image, per image key."""
        return dict(self._shapes)

    def _images(self, key: str, indices: NDArray[np.int64]) -> Array:
        rows, source = self._rows[indices], self._frames[key]
        chosen = np.clip(rows[:, :1] + np.arange(self.n_obs_steps), rows[:, 1:2], rows[:, 2:3])
        found = take(source, chosen) if isinstance(source, np.ndarray) else source.take(chosen)
        return found.reshape(*chosen.shape, *self._shapes[key])

    def statistics(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Per low-dimensional key min, max, mean and std over the steps of the chosen episodes, each (d,)."""
        result = {}
        for key, array in self._arrays.items():
            used = array[self._steps]
            result[key] = {
                "min": used.min(axis=0), "max": used.max(axis=0),
                "mean": used.mean(axis=0, dtype=np.float64), "std": used.std(axis=0, dtype=np.float64),
            }  # fmt: skip
        return result


def _read(store: Store, key: str) -> NDArray[np.float32]:
    """All steps of `key`, flattened to (n_steps, d)."""
    values = store.read(key)
    array = np.ascontiguousarray(values, np.float32).reshape(len(values), -1)
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        step = int(np.argmin(finite))
        episode = int(np.searchsorted(store.episode_ends, step, side="right"))
        raise InputError(
            f"'{key}' is not finite at step {step} (episode {episode}); find every such place: isdt data doctor."
        )
    return array


def _observations(store: Store, keys: Sequence[str], task: Deriver | None) -> dict[str, NDArray[np.float32]]:
    stored = [key for key in keys if key in store.keys]
    derived = [key for key in keys if key not in store.keys]
    arrays = {key: _read(store, key) for key in stored}
    if derived:
        if task is None:
            store.read(derived[0])  # raises, naming what there is
        assert task is not None
        sources = {key: _read(store, key) for key in task.stored_keys}
        arrays |= {key: v.reshape(len(v), -1) for key, v in task.derive(sources, derived).items()}
    return {key: arrays[key] for key in keys}


def train_val_split(n_episodes: int, val_ratio: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split episodes into training and validation, both sorted; at least one stays for training, and one is held out
    when val_ratio > 0."""
    if not 0 <= val_ratio < 1:
        raise InputError(f"data.val_ratio must be in [0, 1), got {val_ratio}.")
    if val_ratio == 0 or n_episodes < 2:
        return np.arange(n_episodes), np.empty(0, np.int64)
    held_out = min(max(1, round(n_episodes * val_ratio)), n_episodes - 1)
    order = np.random.default_rng(seed).permutation(n_episodes)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The shuffled order of n windows in an epoch: a function of its arguments, so any position can be resumed."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def batch_indices(
    n: int, batch_size: int, seed: int, step: int, rank: int = 0, world_size: int = 1
) -> NDArray[np.int64]:
    """Windows of one rank's batch at a step: a function of its arguments alone, so training resumes at any batch.

    The orders of the epochs stand one after another and are dealt out in batches, rank after rank, step after step. So
    every window comes once an epoch whatever the number of ranks; all batches are full, and one may reach over the end of
    an epoch.

    Args:
        n: number of windows.
        batch_size: of one rank.
        seed: of the orders.
        step: number of the step, from 0.
        rank, world_size: which of how many processes.

    Returns:
        (batch_size,) window numbers.

    Raises:
        InputError: no windows, or a number out of range.
    """
    if n < 1 or batch_size < 1 or step < 0 or not 0 <= rank < world_size:
        raise InputError(
            "batches need n >= 1 windows, batch_size >= 1, step >= 0 and 0 <= rank < world_size; "
            f"got n={n}, batch_size={batch_size}, step={step}, rank={rank}, world_size={world_size}."
        )
    first = (step * world_size + rank) * batch_size
    positions = np.arange(first, first + batch_size)
    parts = [_order(n, seed, int(e))[positions[positions // n == e] % n] for e in np.unique(positions // n)]
    return np.concatenate(parts)


@functools.lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return epoch_order(n, seed, epoch)


class WindowBatches:
    """Batches by number, for `torch.utils.data.DataLoader(batches, batch_size=None, num_workers=k)`.

    Item i is the batch of step first_step + i (see `batch_indices`); a DataLoader deals the numbers out to its workers and
    gives the batches back in order, so their number changes nothing.

    Args:
        windows: where batches are cut from.
        batch_size: of one rank.
        n_steps: batches from first_step on.
        seed: of the orders.
        first_step: where to resume.
        rank, world_size: which of how many processes.
    """

    def __init__(
        self,
        windows: WindowDataset,
        batch_size: int,
        n_steps: int,
        seed: int = 0,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        batch_indices(windows.n_windows, batch_size, seed, first_step, rank, world_size)  # refuses impossible numbers
        self.windows, self.batch_size, self.n_steps, self.seed = windows, batch_size, n_steps, seed
        self.first_step, self.rank, self.world_size = first_step, rank, world_size

    def __len__(self) -> int:
        return self.n_steps

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self.n_steps:
            raise IndexError(index)
        step = self.first_step + index
        return self.windows.batch(
            batch_indices(self.windows.n_windows, self.batch_size, self.seed, step, self.rank, self.world_size)
        )
