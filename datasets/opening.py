"""Zarr stores of unknown origin: nothing outside is read, no size is believed, every chunk is accounted for."""

from __future__ import annotations

import math
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from isdt_policy.shared.errors import InputError

# What a file may make this process allocate at once. Stores of images have chunks of a few MB.
LARGEST_CHUNK = 2**29
_LARGEST_JSON = 2**26
# A .zip of chunks, which are compressed already, does not unpack to a hundred times its size.
_ZIP_RATIO, _ZIP_FREE = 100, 2**30
_JSON = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


@dataclass(frozen=True)
class Listing:
    """The files of a store.

    Attributes:
        root: the folder; None for a .zip, whose members are all in `sizes`.
        sizes: {name within the store: bytes}.
    """

    root: Path | None
    sizes: dict[str, int]

    def holds(self, name: str) -> bool:
        """Whether a file is there and not empty."""
        if self.sizes.get(name):
            return True
        try:  # behind a link to a folder, or being replaced while the folder was listed
            return self.root is not None and (self.root / name).stat().st_size > 0
        except OSError:
            return False

    def members(self, group: str) -> list[str]:
        """Names directly under a group."""
        if self.root is not None:
            folder = self.root / group
            return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
        inside = (name.removeprefix(f"{group}/") for name in self.sizes if name.startswith(f"{group}/"))
        return sorted({name.split("/")[0] for name in inside if "/" in name})


@dataclass(frozen=True)
class Gap:
    """Rows of an array that no file holds: Zarr reads them as its fill value.

    Attributes:
        start, stop: rows of the first chunk that is missing.
        count: chunks that are missing, at least.
        whole: no chunk of the array is there.
    """

    start: int
    stop: int
    count: int
    whole: bool


def opened(path: Path) -> tuple[zarr.Group, Listing]:
    """Open a folder or a .zip for reading.

    Raises:
        InputError: it points outside of itself, is not a complete archive, or claims sizes that cannot be.
    """
    return _zip(path) if path.is_file() else _folder(path)


def inside(entry: Path, root: Path) -> bool:
    """Whether a file lies in the folder `root`: links are followed within it, and from a snapshot of a hub cache to its blobs.

    The cache of the Hugging Face hub is REPOSITORY/snapshots/COMMIT/..., whose files are links into REPOSITORY/blobs.
    """
    place, base = entry.resolve(), root.absolute()
    if place.is_relative_to(base.resolve()):
        return True
    snapshots = next((p for p in (base, *base.parents) if p.name == "snapshots"), None)
    return snapshots is not None and place.is_relative_to((snapshots.parent / "blobs").resolve())


def gap(array: zarr.Array, name: str, rows: int, files: Listing) -> Gap | None:
    """Compare the chunks that an array needs for its first rows with the files that are there.

    Args:
        array: the array.
        name: where it is in the store, such as "data/action".
        rows: how many count.
        files: of the store.
    """
    if not array.ndim or not rows:
        return None
    step = (array.shards or array.chunks)[0]
    others = [math.ceil(size / part) for size, part in zip(array.shape[1:], (array.shards or array.chunks)[1:])]
    needed = math.ceil(rows / step) * math.prod(others)
    first, absent, present = None, 0, 0
    for number in range(needed):  # one after another: what a file claims may be too many to list
        place = _place(number, others)
        if files.holds(f"{name}/{array.metadata.encode_chunk_key(place)}"):
            present += 1
            continue
        first = place[0] if first is None else first
        absent += 1
        # What claims more chunks than there are files is not counted to its end.
        if needed > len(files.sizes) + 1000 and (present or absent > 1000):
            break
    if first is None:
        return None
    return Gap(first * step, min(rows, (first + 1) * step), absent, not present)


def check_chunk(array: zarr.Array, name: str, path: Path) -> None:
    """Refuse an array of which one chunk would not fit into any reasonable memory."""
    size = math.prod(array.chunks) * np.dtype(array.dtype).itemsize
    if size > LARGEST_CHUNK:
        raise InputError(
            f"'{path}': a chunk of {name} claims {size >> 20} MB; at most {LARGEST_CHUNK >> 20} MB are read. Write the array "
            "again in smaller chunks."
        )


def missing_codec(error: Exception) -> str | None:
    """Name of the codec that an error says is missing."""
    named = re.search(r"codec[^'\"]*['\"]+([\w.]+)", str(error))
    return named.group(1) if named else None


def register_codecs() -> bool:
    """Make the image codecs of the package imagecodecs known to Zarr, which they are not by themselves."""
    try:
        from imagecodecs import numcodecs
    except ImportError:
        return False
    numcodecs.register_codecs()
    return True


def _place(number: int, others: list[int]) -> tuple[int, ...]:
    """Coordinates of a chunk by its number; `others` are the counts along all axes but the first."""
    place: list[int] = []
    for count in reversed(others):
        number, rest = divmod(number, count)
        place.insert(0, rest)
    return (number, *place)


def _folder(path: Path) -> tuple[zarr.Group, Listing]:
    sizes = {}
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            entry = Path(folder, name)
            if entry.is_symlink() and not inside(entry, path):
                raise InputError(
                    f"'{entry}' is a link that points out of the store; it is not followed. Copy the store."
                )
        for name in names:
            entry = Path(folder, name)
            sizes[entry.relative_to(path).as_posix()] = entry.stat().st_size if entry.exists() else 0
    _check_json(path, sizes)
    return zarr.open_group(path, mode="r"), Listing(path, sizes)


def _zip(path: Path) -> tuple[zarr.Group, Listing]:
    if path.suffix != ".zip" and not zipfile.is_zipfile(path):
        raise InputError(
            f"'{path}' is no file of demonstrations; a store is a folder (.zarr) or an archive (.zarr.zip)."
        )
    if not zipfile.is_zipfile(path):
        raise InputError(f"'{path}' is a file but not a complete .zip archive; download or pack it again.")
    with zipfile.ZipFile(path) as archive:
        sizes = {member.filename: member.file_size for member in archive.infolist()}
    bad = next((n for n in sizes if n.startswith("/") or ".." in Path(n).parts), None)
    if bad:
        raise InputError(f"'{path}' holds the member '{bad}', which points outside the archive; it is not opened.")
    total, packed = sum(sizes.values()), path.stat().st_size
    if total > max(_ZIP_FREE, _ZIP_RATIO * packed):
        raise InputError(
            f"'{path}' has {packed >> 20} MB and claims to unpack to {total >> 20} MB; it is not opened. Unpack it yourself if "
            "you trust it."
        )
    # Archives made from a folder keep its name in front: find where meta/episode_ends is.
    within = next((n for n in sizes if "meta/episode_ends/" in n), None)
    if within is None:
        raise InputError(f"'{path}' holds no meta/episode_ends: not a demonstration store.")
    prefix = within.split("meta/episode_ends/")[0]
    _check_json(path, sizes)
    group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r", path=prefix.strip("/"))
    return group, Listing(None, {n.removeprefix(prefix): size for n, size in sizes.items() if n.startswith(prefix)})


def _check_json(path: Path, sizes: dict[str, int]) -> None:
    large = next((n for n, size in sizes.items() if size > _LARGEST_JSON and n.rpartition("/")[2] in _JSON), None)
    if large:
        raise InputError(f"'{path}': {large} has {sizes[large] >> 20} MB, which no metadata need; it is not read.")
