"""HDF5 files of unknown origin: nothing outside the file is read, no size is believed, every chunk is accounted for."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from isdt_policy.datasets.formats import probe
from isdt_policy.datasets.opening import LARGEST_CHUNK
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import require
from isdt_policy.shared.values import Array, JsonObject

if TYPE_CHECKING:
    import h5py

SIGNATURE = b"\x89HDF\r\n\x1a\n"


def h5() -> ModuleType:
    """The package h5py."""
    return require("h5py", "formats", "HDF5 files")


def opened(path: Path) -> h5py.File:
    """Open a file for reading.

    Raises:
        InputError: it is not complete, another program writes it, it takes data from other files, or HDF5 crashes on it.
    """
    open_ = h5().File  # h5py, or the line that says how to install it
    probe.look(path)
    try:
        file: h5py.File = open_(path, "r")
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise InputError(
                f"'{path}' is open in another program, which may still write it; close it there."
            ) from error
        raise InputError(f"'{path}' is not a complete HDF5 file ({_first_line(error)}); download it again.") from error
    try:
        _refuse_other_files(path, file)
    except BaseException:
        file.close()
        raise
    return file


class _Disk(io.FileIO):
    """A file that remembers the first error instead of raising it: HDF5 crashes the process when a write fails."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            rest = memoryview(data).cast("B")
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


@contextmanager
def written(path: Path, **how: Any) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """A new file, and a function to be called now and then, which raises if the disk is full.

    Raises:
        OSError: something could not be written.
    """
    disk = _Disk(path, "w+b")

    def check() -> None:
        if disk.error is not None:
            raise disk.error

    try:
        with h5().File(disk, "w", **how) as file:
            yield file, check
        check()
    finally:
        disk.close()


def array(path: Path, dataset: h5py.Dataset) -> Array:
    """Read a dataset of numbers whole.

    Raises:
        InputError: it holds something else, or claims rows or chunks that the file does not hold.
    """
    if dataset.dtype.kind not in "biuf":
        raise InputError(
            f"'{path}': {dataset.name} holds {'text ' * is_text(dataset)}(dtype {dataset.dtype}), not numbers."
        )
    check(path, dataset)
    try:
        return np.asarray(dataset[()])
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"'{path}': {dataset.name} cannot be read ({_first_line(error)}); it is damaged, download it again."
        ) from error


def check(path: Path, dataset: h5py.Dataset) -> None:
    """Refuse a dataset that is not all in the file; HDF5 reads what is missing as zeros.

    Raises:
        InputError: rows or chunks are missing, or a chunk is too large.
    """
    if not dataset.size or dataset.shape is None:
        return
    if dataset.chunks is None:
        missing = dataset.id.get_storage_size() < dataset.size * dataset.dtype.itemsize
    else:
        if math.prod(dataset.chunks) * dataset.dtype.itemsize > LARGEST_CHUNK:
            raise InputError(
                f"'{path}': a chunk of {dataset.name} claims over {LARGEST_CHUNK >> 20} MB; it is not read."
            )
        wanted = math.prod(math.ceil(size / part) for size, part in zip(dataset.shape, dataset.chunks))
        missing = dataset.id.get_num_chunks() < wanted
    if missing:
        raise InputError(
            f"'{path}' is incomplete: {dataset.name} claims {dataset.shape[0] if dataset.shape else 1} rows, which were never "
            "all written; they would be read as zeros. Record or download it again."
        )


def leaves(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    """Datasets under a group, named with dots."""
    for name, value in group.items():
        named = prefix + plain(name)
        yield from [(named, value)] if isinstance(value, h5().Dataset) else leaves(value, f"{named}.")


def plain(value: object) -> Any:
    """An attribute or a string as a JSON value."""
    if isinstance(value, h5().Empty):
        return None
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()  # text may hold bytes that are none
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, int | float | bool | None) else str(value)


def attributes(item: h5py.Group) -> JsonObject:
    """All attributes of a group as JSON values."""
    return {plain(key): plain(value) for key, value in item.attrs.items()}  # a damaged name is bytes


def _refuse_other_files(path: Path, file: h5py.File) -> None:
    h5py = h5()

    def visit(name: str, link: object) -> str | None:
        if isinstance(link, h5py.ExternalLink):
            return f"'{name}' is a link to another file ('{link.filename}'); it is not followed."
        found = file.get(name) if isinstance(link, h5py.HardLink) else None
        if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
            return f"'{name}' takes its data from other files; they are not read."
        return None

    outside = file.visititems_links(visit)  # ends with the first that is found
    if outside:
        raise InputError(f"'{path}': {outside}")


def is_text(dataset: h5py.Dataset) -> bool:
    """Whether a dataset holds strings. (Bytes of pictures are kept as objects too.)"""
    return dataset.dtype.kind in "SU" or h5().check_string_dtype(dataset.dtype) is not None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
