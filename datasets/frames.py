"""Images of a store, held in memory or mapped from a file of decoded frames."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isdt_policy.errors import InputError, nearest

# Keys with more numbers a step than this are images: kept as stored, read in groups of frames, no range computed.
LOW_DIM = 256
MODES = ("auto", "ram", "mmap")
_BLOCK_BYTES = 8 * 2**20


class Store(Protocol):
    """What is needed of a store."""

    @property
    def episode_ends(self) -> NDArray[np.int64]: ...
    def read(self, key: str, start: int = 0, stop: int | None = None) -> NDArray[Any]: ...


def is_image(store: Store, key: str) -> bool:
    return int(np.prod(store.read(key, 0, 1).shape[1:])) > LOW_DIM


def frames(store: Store, keys: Sequence[str], mode: str = "auto") -> dict[str, NDArray[Any]]:
    """Image keys as (n_steps, numbers per frame) arrays in the stored dtype.

    Args:
        store: demonstrations.
        keys: image keys.
        mode: "ram", "mmap" or "auto"; see `WindowDataset`.
    """
    if mode not in MODES:
        raise InputError(f"mode '{mode}' is not one of {', '.join(MODES)}.{nearest(mode, MODES)}")
    if not keys:
        return {}
    size = sum(store.read(key, 0, 1).nbytes for key in keys) * int(store.episode_ends[-1])
    if mode == "auto":
        mode = "ram" if size < free_memory() / 2 else "mmap"
        if size > 2**28:
            print(f"images {', '.join(keys)}: {size / 2**30:.1f} GiB decoded, held in mode {mode}", file=sys.stderr)
    return {key: _in_memory(store, key) if mode == "ram" else _mapped(store, key) for key in keys}


def free_memory() -> int:
    """Bytes that can be taken without swapping; without /proc, half of all there is."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _in_memory(store: Store, key: str) -> NDArray[Any]:
    values = store.read(key)
    return np.ascontiguousarray(values).reshape(len(values), -1)


def _mapped(store: Store, key: str) -> NDArray[Any]:
    """The frames as a read-only mapped .npy file, written once per state of the store, block by block."""
    from isdt_policy.datasets.fetch import cache

    file = cache() / "frames" / f"{_fingerprint(store, key)}.npy"
    if not file.exists():
        first = store.read(key, 0, 1)
        steps, block = int(store.episode_ends[-1]), max(1, _BLOCK_BYTES // first.nbytes)
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
    return np.load(file, mmap_mode="r")  # type: ignore[no-any-return]


def _fingerprint(store: Store, key: str) -> str:
    """Changes when the store is written: its path, its episodes, and when its files' folder last changed."""
    path = Path(getattr(store, "path", "memory")).resolve()
    changed = [p.stat().st_mtime_ns for p in (path, path / "zarr.json", path / "data" / key) if p.exists()]
    return hashlib.sha256(repr((str(path), key, changed, store.episode_ends.tolist())).encode()).hexdigest()[:24]
