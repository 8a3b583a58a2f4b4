"""Images of a store: held in memory, mapped from a file of decoded frames, or left on disk."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.fetch import cache
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.values import Array

# Keys with more numbers a step than this are images: kept as stored, read in groups of frames, no range computed.
LOW_DIM = 256
MODES = ("auto", "ram", "mmap", "disk")
# Decoded at once for the mapped file, where there is room: zarr takes several times as much beside it.
_BLOCK_BYTES, _BLOCKS_PER_LIMIT = 8 * 2**20, 32
_LEFT_FREE = 4 * 2**30


class Store(Protocol):
    """What is needed of a store."""

    @property
    def episode_ends(self) -> NDArray[np.int64]:
        """(n_episodes,): where every episode ends."""
        ...

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Array: ...


def is_image(store: Store, key: str) -> bool:
    """Whether a step of a key is too large to be a vector."""
    return int(np.prod(store.read(key, 0, 1).shape[1:])) > LOW_DIM


class OnDisk:
    """Frames that stay in the store and are decoded when asked for."""

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, key

    def take(self, steps: NDArray[np.int64]) -> Array:
        """Frames of any steps, (*steps.shape, numbers per frame); neighbours are decoded together, and each step once."""
        wanted, place = np.unique(steps, return_inverse=True)
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)
        read = [self.store.read(self.key, int(run[0]), int(run[-1]) + 1) for run in runs]
        distinct = np.concatenate(read).reshape(len(wanted), -1)
        return np.asarray(distinct[place.reshape(steps.shape)])


class Mapped:
    """Frames in a file that is mapped into memory.

    Pages that were read stay mapped and count as memory of this process until somebody takes them back. So the mapping is let
    go of before it can hold more than `limit` bytes; what the system keeps cached is mapped again in a moment.

    Args:
        file: a .npy file of shape (n_steps, numbers per frame).
        limit: bytes, at least those of one window.
    """

    # Linux may map the whole huge page around a byte that is read.
    _PAGE = 2**21

    def __init__(self, file: Path, limit: int) -> None:
        with file.open("rb") as stream:
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._offset = stream.tell()
        self.array: Array = np.frombuffer(self._map, dtype, offset=self._offset).reshape(shape)
        self._pages, self._held = max(1, limit // self._PAGE), 0
        self._fits = len(self._map) <= limit

    def take(self, steps: NDArray[np.int64]) -> Array:
        """Frames of any steps, (B, n) -> (B, n, numbers per frame)."""
        if self._fits:
            return take(self.array, steps)
        size = self.array[:1].nbytes
        first, last = (self._offset + step * size for step in (steps.min(axis=1), steps.max(axis=1) + 1))
        pages = self._held + np.cumsum((last - 1) // self._PAGE - first // self._PAGE + 1)
        out = np.empty((*steps.shape, self.array.shape[1]), self.array.dtype)
        start = 0
        for border in np.flatnonzero(np.diff(pages // self._pages, prepend=0)).tolist():
            take(self.array, steps[start:border], out[start:border])
            self._map.madvise(mmap.MADV_DONTNEED)
            start = border
        self._held = int(pages[-1]) % self._pages
        take(self.array, steps[start:], out[start:])
        return out


def take(array: Array, steps: NDArray[np.int64], out: Array | None = None) -> Array:
    """Rows of any steps, into `out` if given. Whole rows are copied, which for a mapped file also reads each page once."""
    if out is None:
        out = np.empty((*steps.shape, array.shape[1]), array.dtype)
    # mode="clip": in NumPy's default mode `out` is filled by way of a second array of its size.
    np.take(array, steps, axis=0, out=out, mode="clip")
    return out


@dataclass(frozen=True)
class ImageMemory:
    """Where images are held while windows of them are read.

    Attributes:
        mode: "ram"; "mmap", a file of decoded frames beside other downloads, mapped into memory and paged in by the system as
            windows are read; "disk", left in the store and decoded anew for every batch. "auto" takes the first of these for
            which there is room.
        limit: bytes that images may take in RAM under "auto", and pages of the mapped file at any time; None takes half of
            what is free.

    Raises:
        InputError: an unknown mode.
    """

    mode: str = "auto"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode '{self.mode}' is not one of {', '.join(MODES)}.{nearest(self.mode, MODES)}")


def frames(store: Store, keys: Sequence[str], memory: ImageMemory) -> dict[str, Array | Mapped | OnDisk]:
    """Image keys as (n_steps, numbers per frame) arrays in the stored dtype, or what gives their rows.

    Args:
        store: demonstrations.
        keys: image keys.
        memory: where to hold them.
    """
    if not keys:
        return {}
    size = sum(store.read(key, 0, 1).nbytes for key in keys) * int(store.episode_ends[-1])
    mode, limit = memory.mode, free_memory() // 2 if memory.limit is None else memory.limit
    if mode == "auto":
        mode = "ram" if size <= limit else "mmap" if size < _free_cache() else "disk"
        room = f", which is slow: {cache()} has no room for them (ISDT_DATA names another folder)"
        print(
            f"images {', '.join(keys)}: {size / 2**20:.0f} MiB decoded, {limit / 2**20:.0f} MiB allowed: mode {mode}"
            + room * (mode == "disk"),
            file=sys.stderr,
        )
    if mode == "disk":
        return {key: OnDisk(store, key) for key in keys}
    if mode == "mmap":
        # Half for the mapping: batches and what decodes them take room too.
        return {key: Mapped(decoded_file(store, key, limit), limit // 2 // len(keys)) for key in keys}
    return {key: _in_memory(store, key) for key in keys}


def free_memory() -> int:
    """Bytes that can be taken without swapping, under the limit of a container if there is one."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    group = Path("/sys/fs/cgroup")
    try:
        return min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free


def _free_cache() -> int:
    """Bytes free where decoded frames are kept, less what others will want: a tenth of the disk, at most 4 GiB."""
    folder = cache()
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.free - min(usage.total // 10, _LEFT_FREE)


def _in_memory(store: Store, key: str) -> Array:
    values = store.read(key)
    return np.ascontiguousarray(values).reshape(len(values), -1)


def decoded_file(store: Store, key: str, limit: int) -> Path:
    """The frames as a .npy file, written once per state of the store, block by block, in well under `limit` bytes."""
    file = cache() / "frames" / f"{_fingerprint(store, key)}.npy"
    if not file.exists():
        first = store.read(key, 0, 1)
        steps, block = (
            int(store.episode_ends[-1]),
            max(1, min(_BLOCK_BYTES, limit // _BLOCKS_PER_LIMIT) // first.nbytes),
        )
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                header = {"descr": first.dtype.str, "fortran_order": False, "shape": (steps, first[0].size)}
                np.lib.format.write_array_header_1_0(stream, header)
                for start in range(0, steps, block):
                    stream.write(np.ascontiguousarray(store.read(key, start, min(start + block, steps))).data)
            os.replace(temporary, file)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise InputError(
                f"decoded frames cannot be written to '{file}' ({error}); set ISDT_DATA elsewhere."
            ) from error
    return file


def _fingerprint(store: Store, key: str) -> str:
    """Changes when the store is written: its path, its episodes, and when its files' folder last changed."""
    inner = getattr(store, "store", store)
    name = getattr(store, "names", {}).get(key) or key
    path = Path(getattr(inner, "path", "memory")).resolve()
    changed = [p.stat().st_mtime_ns for p in (path, path / "zarr.json", path / "data" / name) if p.exists()]
    # What is not read as it is stored says itself when it changes.
    identity = getattr(store, "identity", None)
    more = () if identity is None else (identity(key),)
    return hashlib.sha256(repr((str(path), key, changed, store.episode_ends.tolist(), *more)).encode()).hexdigest()[:24]
