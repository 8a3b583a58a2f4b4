"""Files that other people rely on: written whole or not at all, and nothing of theirs deleted.

Every file and folder that this program replaces goes through here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from isdt_policy.shared.errors import InputError

PathText = Annotated[str, "PATH"]  # an option that is a path or an address: completion offers files

# A folder that this program wrote holds one of these files with this text in it.
_MARKERS = (
    ("zarr.json", "isdt_schema"),  # a demonstration store
    (".zattrs", "provenance"),  # Diffusion Policy's layout
    ("meta/isdt.json", "{"),  # LeRobot's
    ("data/metadata.json", "isdt_attributes"),  # Minari's
    ("provenance.json", "isdt_policy"),  # a run
)
# A single file that this program wrote holds one of these: our store or robomimic's, packed or as HDF5, and Diffusion Policy's.
_FILE_MARKERS = (b"isdt_schema", b"isdt_attributes", b'"provenance"')

# The disk is full, a quota or a limit of size is reached, or the disk can only be read.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def write_text(path: Path, text: str, durable: bool = False) -> None:
    """Write a file so that a reader sees the old content or the new, never half; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), durable)


def write_bytes(path: Path, data: bytes, durable: bool = False) -> None:
    """Write a file so that a reader sees the old content or the new, never half.

    Args:
        path: the file.
        data: its content.
        durable: wait until it is on the disk, so that it survives a power cut too.
    """
    part = path.with_name(path.name + ".part")
    with named(path):
        try:
            part.write_bytes(data)
            if durable:
                sync(part)
            os.replace(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """While the block runs, an error of the system that names no file gets the name of this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
    """Wait until what was written to a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush(path: Path, top: Path) -> None:
    """Wait until a file, or a folder with all it holds, is on the disk, and so are the folders between it and `top`."""
    flush_files((entry for entry in (path, *path.rglob("*")) if entry.is_file()), top)


def flush_files(files: Iterable[Path], top: Path) -> None:
    """Wait until files below a folder are on the disk, and so are the folders between them and `top`."""
    files = sorted({*files})
    folders = {folder for file in files for folder in file.parents if folder.is_relative_to(top)}
    for path in (*files, *sorted(folders, reverse=True)):
        sync(path)


def check_writable(path: Path, folder: bool = False) -> None:
    """Make the folder of what is to be written, before the work whose result it will hold, and try to write there.

    Args:
        path: a file, or a folder.
        folder: it may be a folder that is there.

    Raises:
        InputError: nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not folder:
            raise InputError(f"'{path}' cannot be written: it is a folder. Name another place.")
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, f"no right to write in '{path.parent}'")
        with tempfile.TemporaryFile(dir=path.parent) as trial:  # a full disk, too, is noticed before the work
            trial.write(bytes(4096))
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"'{path}' cannot be written: '{path.parent}' is not a folder. Name another place.") from None
    except OSError as error:
        raise InputError(f"'{path}' cannot be written: {error.strerror or error}. Name another place.") from None


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether this process may do a piece of work: False while another process holds the same lock file.

    The claim ends with the block, and with the process, however that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    from filelock import (
        FileLock,
        Timeout,
    )  # a robot's computer acts with NumPy and onnxruntime alone, and locks nothing

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def locked(target: Path, busy: str) -> Iterator[None]:
    """Keep other processes from writing a file or folder while the block runs.

    Args:
        target: what is written; the lock is the file `.<name>.lock` beside it, which is removed at the end.
        busy: what to say if another process holds the lock.

    Raises:
        InputError: another process holds it.
    """
    file = target.with_name(f".{target.name}.lock")
    file.touch()
    before = file.stat().st_ino
    with claim(file) as mine:
        # Its last holder may have removed the file since: a lock on a removed file keeps nobody out.
        if not mine or not file.exists() or file.stat().st_ino != before:
            raise InputError(busy)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def is_ours(path: Path) -> bool:
    """Whether this program wrote the folder, or the file of demonstrations."""
    if path.is_dir():
        return any(_holds(path / name, text) for name, text in _MARKERS)
    if not path.stat().st_size:
        return True  # nothing is lost
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(marker) >= 0 for marker in _FILE_MARKERS)


def check_replaceable(target: Path) -> None:
    """Refuse to replace what this program did not make.

    Raises:
        InputError: `target` is a file or folder that holds something else, or the current folder, or one above it.
    """
    if target.is_file() and not is_ours(target):
        raise InputError(
            f"'{target}' was not written by isdt, so it is not replaced. Name another file, or delete it yourself."
        )
    if not target.is_dir() or target.is_symlink():
        return
    here = Path.cwd()
    if here.resolve().is_relative_to(target.resolve()):
        raise InputError(
            f"'{target}' is the current folder or one above it, and would be deleted with all it holds. Name a new one."
        )
    if any(target.iterdir()) and not is_ours(target):
        raise InputError(
            f"'{target}' holds files that isdt did not write, so it is not replaced. Name another folder, or empty it yourself."
        )


def replace(new: Path, target: Path) -> None:
    """Put a finished file or folder in the place of `target`, which is moved aside first and deleted last.

    It is on the disk when this returns. A kill or a power cut leaves the old or the new one. Where a file system cannot exchange
    two names at once, a folder is `.<name>.old` for the instant between two renames.

    Raises:
        InputError: see `check_replaceable`.
    """
    check_replaceable(target)
    old = target.with_name(f".{target.name}.old")
    flush(new, new)
    if target.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        if _exchanged(new, target):
            os.rename(new, old)
        else:
            os.rename(target, old)
            os.rename(new, target)
        sync(target.parent)
        shutil.rmtree(old)
    else:
        os.replace(new, target)
    sync(target.parent)


def _exchanged(first: Path, second: Path) -> bool:
    """Exchange two names in one instant; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def remove(target: Path) -> None:
    """Delete a file or folder that this program made.

    Raises:
        InputError: see `check_replaceable`.
    """
    check_replaceable(target)
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def _holds(file: Path, text: str) -> bool:
    try:
        return text in file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
