"""Files that other people rely on: written whole or not at all, and nothing of theirs deleted.

Every file and folder that this program replaces goes through here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from isdt_policy.shared.errors import InputError

Json = Mapping[str, Any]  # an object of a JSON file; whoever reads a value checks it

# A folder that this program wrote holds one of these files with this text in it.
_MARKERS = (
    ("zarr.json", "isdt_schema"),  # a demonstration store
    (".zattrs", "provenance"),  # Diffusion Policy's layout
    ("meta/isdt.json", "{"),  # LeRobot's
    ("data/metadata.json", "isdt_attributes"),  # Minari's
    ("provenance.json", "isdt_policy"),  # a run
)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never half."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never half."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def check_writable(path: Path) -> None:
    """Make the folder of a file that is to be written, before the work whose result it will hold.

    Raises:
        InputError: nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"'{path}' cannot be written: {error.strerror or error}. Name another place.") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        why = "it is a folder" if path.is_dir() else f"no right to write in '{path.parent}'"
        raise InputError(f"'{path}' cannot be written: {why}. Name another place.")


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether this process may do a piece of work: False while another process holds the same lock file.

    The claim ends with the block, and with the process, however that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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


def is_ours(folder: Path) -> bool:
    """Whether this program wrote the folder."""
    return any(_holds(folder / name, text) for name, text in _MARKERS)


def check_replaceable(target: Path) -> None:
    """Refuse to replace what this program did not make.

    Raises:
        InputError: `target` is a folder that holds something else, or the current folder, or one above it.
    """
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

    A kill leaves the old or the new one; for the instant between two renames the old one is `.<name>.old`.

    Raises:
        InputError: see `check_replaceable`.
    """
    check_replaceable(target)
    old = target.with_name(f".{target.name}.old")
    if target.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
        os.rename(new, target)
        shutil.rmtree(old)
    else:
        os.replace(new, target)


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
