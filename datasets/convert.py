"""Demonstrations from one file to another, whatever the formats."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets import formats
from isdt_policy.datasets.formats import Recording
from isdt_policy.datasets.formats.robomimic_replay import with_actions_of
from isdt_policy.datasets.store import resolve_path, task_attributes
from isdt_policy.shared import files
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.progress import Progress


def convert(
    source: str | Path,
    target: str | Path,
    to: str | None = None,
    keys: Sequence[str] | None = None,
    task: str | None = None,
    overwrite: bool = False,
    command: str = "",
) -> None:
    """Convert demonstrations from one format to another.

    Args:
        source: demonstrations in any format that is known; only read.
        target: what is written.
        to: format of the target; None takes it from the name of the target.
        keys: only these keys and the action; None takes all.
        task: the registered task that was recorded. Its units and ranges are written down, and the actions become the task's.
        overwrite: replace what this program wrote at `target` before.
        command: recorded in the provenance.

    Raises:
        InputError: the source cannot be read, the target exists or cannot be written, or the way to the task's actions is
            not known.
    """
    recording = formats.read(resolve_path(source))
    if task is not None:
        known = {k: v for k, v in task_attributes(task).items() if k != "env"}  # which versions recorded it is unknown
        recording = with_actions_of(recording, task)
        recording = replace(recording, task=task, attributes={**known, **recording.attributes})
    if keys is not None:
        recording = _only(recording, keys)
    write(recording, Path(target), to, overwrite, {"command": command})


def write(
    recording: Recording,
    target: Path,
    to: str | None = None,
    overwrite: bool = False,
    made: Mapping[str, object] | None = None,
) -> None:
    """Write a recording so that the target is either absent (or as before) or complete.

    Args:
        recording: what to write.
        target: where.
        to: format; None takes it from the name of the target.
        overwrite: replace what this program wrote there before.
        made: how it came about (the command, which episodes, ...), recorded in the provenance.

    Raises:
        InputError: the target exists, has no format, or cannot be written.
    """
    to = to or formats.of_target(target)
    writer = formats.module(to)
    if not hasattr(writer, "write"):
        raise InputError(f"format '{to}' is read, not written.")
    if target.exists() and not overwrite:
        raise InputError(f"'{target}' exists; give another name, or overwrite=true.")
    files.check_replaceable(target)  # before an hour of conversion, not after
    before = recording.attributes.get("provenance")
    provenance = {
        "source": str(recording.path), "source_format": recording.format, "sha256": sha256(recording.path),
        **(made or {}), **({"before": before} if before else {}),
    }  # fmt: skip
    carried = {k: v for k, v in recording.attributes.items() if k not in ("provenance", "next_attempt")}
    aside = target.parent / f".{target.name}.part"
    try:
        for as_bytes in (True, False):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            episodes = _bytes_where_lossless(recording) if as_bytes else recording.episodes
            try:
                shown = _shown(replace(recording, attributes=carried, episodes=episodes), target.name)
                writer.write(shown, aside / target.name, provenance)
                break
            except _NotBytes:
                continue  # some image holds other values than whole 0..255: again, as they are
        files.replace(aside / target.name, target)
    except (OSError, RuntimeError) as error:
        # HDF5 notices a full disk again when it closes the file, as a RuntimeError that hides the first.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise InputError(f"'{target}' cannot be written ({str(cause).splitlines()[0]}).") from error
    finally:
        # After an error zarr's other writes may still be under way, and put a file where one was just removed.
        for _ in range(20):
            shutil.rmtree(aside, ignore_errors=True)
            if not aside.exists():
                break
            time.sleep(0.05)
    for note in recording.notes:
        print(f"note: {note}")
    print(f"{target}: {recording.n_episodes} episodes from {recording.path} ({recording.format} -> {to})")


class _NotBytes(Exception):
    pass


def _bytes_where_lossless(recording: Recording) -> Any:
    """Episodes with float images turned to uint8; raises _NotBytes at the first that would lose something."""

    def episodes() -> Iterator[dict[str, NDArray[Any]]]:
        for episode in recording.episodes():
            for key, value in episode.items():
                if value.ndim == 4 and value.shape[-1] in (1, 3, 4) and value.dtype.kind == "f":
                    episode[key] = _as_bytes(value, key)
            yield episode

    return episodes


def _as_bytes(images: NDArray[Any], key: str) -> NDArray[np.uint8]:
    whole = np.empty(images.shape, np.uint8)
    back, same = np.empty_like(images[0]), np.empty(images.shape[1:], np.bool_)
    # Frame by frame, so that it is compared while it is in the processor's cache; values beyond 0..255 come back different.
    with np.errstate(invalid="ignore"):
        for frame, out in zip(images, whole):
            np.copyto(out, frame, casting="unsafe")
            np.copyto(back, out)
            if not np.equal(back, frame, out=same).all():
                raise _NotBytes(key)
    return whole


def _shown(recording: Recording, label: str) -> Recording:
    """The same with a progress bar."""

    def episodes() -> Iterator[dict[str, NDArray[Any]]]:
        progress = Progress(recording.n_episodes, label, "episode")
        for episode in recording.episodes():
            yield episode
            progress.update()
        progress.close()

    return replace(recording, episodes=episodes)


def sha256(path: Path) -> str:
    """Digest of a file, or of a directory's files with their names."""
    total = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(file_path.relative_to(path).as_posix().encode() + b"\0" + file_path.read_bytes())
    return total.hexdigest()


def _only(recording: Recording, keys: Sequence[str]) -> Recording:
    wanted = {*keys, "action"}

    def episodes() -> Iterator[dict[str, NDArray[Any]]]:
        for episode in recording.episodes():
            missing = sorted(wanted - set(episode))
            if missing:
                raise InputError(f"'{recording.path}' has no key '{missing[0]}'; it has {', '.join(sorted(episode))}.")
            yield {key: value for key, value in episode.items() if key in wanted}

    return replace(recording, episodes=episodes)


def chosen(recording: Recording, numbers: Sequence[int]) -> Recording:
    """Only these episodes, in this order; masks are renumbered."""
    wanted = list(numbers)
    place = {old: new for new, old in enumerate(wanted)}
    masks = {
        name: sorted(place[i] for i in mask if i in place)
        for name, mask in recording.attributes.get("masks", {}).items()
    }

    def episodes() -> Iterator[dict[str, NDArray[Any]]]:
        for index, episode in enumerate(recording.episodes()):
            if index in place:
                yield episode

    info = [recording.info[i] for i in wanted] if recording.info else []
    attributes = {**recording.attributes, **({"masks": masks} if masks else {})}
    return replace(recording, n_episodes=len(wanted), episodes=episodes, info=info, attributes=attributes)
