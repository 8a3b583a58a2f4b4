"""Pictures of a store as policies read them: bytes under the task's names, recorded or drawn from recorded states."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence

import numpy as np

from isdt_policy.datasets.frames import decoded_file, is_image
from isdt_policy.datasets.windows import Store
from isdt_policy.envs.registry import TaskSpec
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.pixels import as_bytes, check_layout
from isdt_policy.shared.values import Array

_BLOCK_BYTES = 32 * 2**20


def is_picture(store: Store, spec: TaskSpec, key: str) -> bool:
    """Whether an observation is a picture: the task says so, or the store holds one under this name."""
    if key in spec.observations:
        return len(spec.observations[key].shape) == 3
    return key in store.keys and is_image(store, key)


def with_pictures(store: Store, spec: TaskSpec, keys: Sequence[str]) -> Store:
    """The store, with every picture among `keys` as bytes; the store itself if there is none among them.

    A picture that was recorded under another name (`TaskSpec.recorded_as`) is found, and one that was not recorded is drawn from
    states, where the task can do that.

    Args:
        store: demonstrations.
        spec: of their task.
        keys: observations that are read.

    Raises:
        InputError: a picture that is neither there nor can be drawn, or that is none (grey, channels first, floats in [0, 1]).
    """
    pictures = [key for key in keys if is_picture(store, spec, key)]
    return Seen(store, spec, pictures) if pictures else store


def source_of(store: Store, key: str) -> tuple[int, ...] | None:
    """Shape of a camera's own pictures, if the store says that it holds them resized."""
    said = getattr(store, "attrs", {}).get("keys", {}).get(key)
    shape = said.get("source_shape") if isinstance(said, dict) and said.get("resized") == "area" else None
    whole = isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and 0 < n < 2**16 for n in shape)
    return tuple(shape) if whole and shape is not None and shape[2] == 3 else None


def picture_sources(seen: Seen) -> dict[str, tuple[int, ...]]:
    """Shapes of the cameras' own pictures, of those that the store holds resized."""
    found = {key: source_of(seen.store, name) for key, name in seen.names.items() if name}
    return {key: shape for key, shape in found.items() if shape is not None}


class Seen:
    """A store whose pictures are bytes under the task's names; see `with_pictures`."""

    def __init__(self, store: Store, spec: TaskSpec, pictures: Sequence[str]) -> None:
        self.store, self.spec = store, spec
        self.episode_ends, self.n_episodes = store.episode_ends, store.n_episodes
        # Under which name each was recorded; "" is drawn.
        self.names = {key: self._find(key) for key in pictures}
        self.keys = tuple(dict.fromkeys([*store.keys, *pictures]))
        self._whole: dict[str, Array] = {}

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Array:
        """Steps [start, stop) of `key`. All of a picture is kept once it was asked for, so that several may share it."""
        if key not in self.names:
            return self.store.read(key, start, stop)
        if key in self._whole:
            return self._whole[key][start:stop]
        n = int(self.episode_ends[-1])
        if start == 0 and stop is None:
            self._whole[key] = self._all(key, n)
            return self._whole[key]
        return self._part(key, start, n if stop is None else min(stop, n))

    def identity(self, key: str) -> str:
        """Changes when the pictures do."""
        if self.names.get(key):
            return f"{self.names[key]} uint8"
        states = [hashlib.sha256(np.ascontiguousarray(self.store.read(k)).tobytes()) for k in self.spec.stored_keys]
        return repr((self.spec.id, key, self.spec.versions(), [digest.hexdigest() for digest in states]))

    def _find(self, key: str) -> str:
        recorded = next((name for name in (key, *self.spec.recorded_as.get(key, ())) if name in self.store.keys), "")
        known = self.spec.observations.get(key)
        if not recorded and (self.spec.draw_fn is None or not set(self.spec.stored_keys) <= set(self.store.keys)):
            raise InputError(
                f"the demonstrations hold no pictures '{key}', and they cannot be drawn from what is there: "
                f"{', '.join(self.store.keys)}.{nearest(key, self.store.keys)}"
            )
        if recorded:
            first = self.store.read(recorded, 0, 1)
            check_layout(first.shape[1:], recorded, None)
            resized_from = source_of(self.store, recorded)
            if known is not None and known.shape not in (first.shape[1:], resized_from):
                size, ours = ("x".join(map(str, shape[:2])) for shape in (first.shape[1:], known.shape))
                raise InputError(
                    f"'{recorded}' was recorded with {size} px, and task '{self.spec.id}' gives '{key}' with {ours} px: a policy "
                    "would not see there what it was trained on. Record or convert it at that size."
                )
            as_bytes(first, recorded)
        return recorded

    def _part(self, key: str, start: int, stop: int) -> Array:
        if name := self.names[key]:
            return as_bytes(self.store.read(name, start, stop), name)
        assert self.spec.draw_fn is not None
        return self.spec.draw_fn({k: self.store.read(k, start, stop) for k in self.spec.stored_keys}, key)

    def _all(self, key: str, n: int) -> Array:
        """All steps, block by block: other people's floats take four times the room of bytes."""
        first = self._part(key, 0, 1)
        if not self.names[key]:
            print(
                f"images {key}: {n} pictures drawn from states, once; they are kept beside other downloads",
                file=sys.stderr,
            )
            return np.asarray(np.load(decoded_file(self, key, sys.maxsize)).reshape(n, *first.shape[1:]))
        whole = np.empty((n, *first.shape[1:]), np.uint8)
        block = self._span(_BLOCK_BYTES // (4 * first.nbytes))
        for start in range(0, n, block):
            whole[start : start + block] = self._part(key, start, min(start + block, n))
        return whole

    def _span(self, steps: int) -> int:
        """About so many steps, with borders where the store's chunks have theirs."""
        span = getattr(self.store, "span", None)
        return max(1, steps) if span is None else int(span(_BLOCK_BYTES))
