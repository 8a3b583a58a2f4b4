"""`isdt data bench`: how fast windows are read, against the straightforward sampler and against copying memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.store import DemoStore
from isdt_policy.datasets.windows import WindowDataset, window_indices
from isdt_policy.errors import InputError

HELP = """
usage: isdt data bench PATH [keys=a,b] [batch=256] [seconds=2] [format=table]

Windows per second of three ways to make the same batches: ours, a per-item Python sampler (slice, pad, stack, as the
usual data sets do it), and a plain copy of as many bytes. All in one process, turn by turn, best of the turns.

  keys=a,b       stored observation keys; default: all but images and outcomes
  batch=256      windows per batch
  seconds=2      per way
  format=table   or json

examples
  isdt data bench bundled:pusht_expert
"""

HORIZON, N_OBS, N_ACTION = 16, 2, 8
_TURNS = 5


class PerItemSampler:
    """One window at a time in plain NumPy: what is compared against, and the semantics both have."""

    def __init__(self, arrays: dict[str, NDArray[np.float32]], ends: NDArray[np.int64]) -> None:
        self.arrays = arrays
        self.indices = window_indices(ends, HORIZON, N_OBS - 1, N_ACTION - 1)

    def item(self, index: int) -> dict[str, NDArray[np.float32]]:
        begin, end, sample_begin, sample_end = self.indices[index]
        result = {}
        for key, array in self.arrays.items():
            length = HORIZON if key == "action" else N_OBS
            stop = min(sample_end, length)
            # A window may hold fewer real steps than observations are asked for; those that follow are then padding.
            sample = array[begin : begin + max(stop - sample_begin, 1)]
            window = np.empty((length, array.shape[1]), np.float32)
            first = min(sample_begin, length)
            window[:first] = sample[0]
            window[first:stop] = sample[: stop - first]
            window[stop:] = array[end - 1]
            result[key] = window
        return result

    def batch(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        items = [self.item(int(index)) for index in indices]
        return {key: np.stack([item[key] for item in items]) for key in self.arrays}


def bench(
    path: str, keys: tuple[str, ...] | None = None, batch: int = 256, seconds: float = 2.0, format: str = "table"
) -> int:
    """Measure and print; see HELP."""
    if format not in ("table", "json"):
        raise InputError(f"format='{format}' is not one of table, json.")
    if batch < 1 or seconds <= 0:
        raise InputError(f"batch must be at least 1 and seconds above 0, got batch={batch}, seconds={seconds}.")
    facts = measure(DemoStore.open(path), keys, batch, seconds)
    if format == "json":
        print(json.dumps(facts, indent=2))
        return 0
    print(f"{path}: batches of {batch} windows, {facts['bytes_per_batch']} bytes; keys {', '.join(facts['keys'])}")
    for name in ("ours", "per_item", "memcpy"):
        print(f"  {name:<9}{facts[name]:>14,.0f} windows/s")
    print(
        f"  ours / per_item {facts['ours'] / facts['per_item']:.1f}   memcpy / ours {facts['memcpy'] / facts['ours']:.1f}"
    )
    return 0


def measure(store: DemoStore, keys: tuple[str, ...] | None, batch: int, seconds: float) -> dict[str, Any]:
    """Windows per second of each way."""
    from isdt_policy.datasets.store import NOT_OBSERVED
    from isdt_policy.datasets.summary import is_low_dim

    chosen = keys or tuple(k for k in store.keys if k not in NOT_OBSERVED and is_low_dim(store, k))
    ours = WindowDataset(store, chosen, horizon=HORIZON, n_obs_steps=N_OBS, n_action_steps=N_ACTION)
    arrays = {k: store.read(k).reshape(store.n_steps, -1).astype(np.float32) for k in (*chosen, "action")}
    plain = PerItemSampler(arrays, store.episode_ends)
    order = np.random.default_rng(0).permutation(ours.n_windows)
    batches = [order[i : i + batch] for i in range(0, max(1, len(order) - batch), batch)]
    example = ours.batch(batches[0])
    parts = [*example["obs"].values(), example["action"], example["is_pad"]]

    def copy(_: NDArray[np.int64]) -> None:
        for part in parts:
            part.copy()

    ways: dict[str, Callable[[NDArray[np.int64]], Any]] = {"ours": ours.batch, "per_item": plain.batch, "memcpy": copy}
    best = dict.fromkeys(ways, 0.0)
    for _ in range(_TURNS):  # turn by turn, so that a busy moment of the machine does not fall on one of them
        for name, way in ways.items():
            best[name] = max(best[name], _rate(way, batches, seconds / _TURNS))
    return {
        "keys": list(chosen), "batch": batch, "windows": ours.n_windows,
        "bytes_per_batch": sum(part.nbytes for part in parts), **best,
    }  # fmt: skip


def _rate(way: Callable[[NDArray[np.int64]], Any], batches: list[NDArray[np.int64]], seconds: float) -> float:
    # Processor time of this thread: another program on the machine does not count, and all three ways use one thread.
    done, start = 0, time.thread_time()
    while True:
        for indices in batches[:20]:
            way(indices)
            done += len(indices)
        elapsed = time.thread_time() - start
        if elapsed > seconds:
            return done / elapsed
