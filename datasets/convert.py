"""Demonstrations from one file to another, whatever the formats."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets import cameras, formats
from isdt_policy.datasets.cameras import AS_RECORDED, Pictures
from isdt_policy.datasets.formats import EVERYTHING, Episode, Reading, Recording
from isdt_policy.datasets.formats.robomimic_replay import actions_fit, with_actions_of
from isdt_policy.datasets.store import DemoStore, resolve_path, task_attributes
from isdt_policy.datasets.writer import check_episode, unlike
from isdt_policy.envs import task_spec
from isdt_policy.shared import files
from isdt_policy.shared.errors import InputError, printable
from isdt_policy.shared.progress import Progress
from isdt_policy.shared.values import Array, JsonObject


def convert(
    source: str | Path,
    target: str | Path,
    to: str | None = None,
    task: str | None = None,
    overwrite: bool = False,
    how: Reading = EVERYTHING,
    command: str = "",
    pictures: Pictures = AS_RECORDED,
) -> None:
    """Convert demonstrations from one format to another.

    Args:
        source: demonstrations in any format that is known; only read.
        target: what is written.
        to: format of the target; None takes it from the name of the target.
        task: the registered task that was recorded. Its units and ranges are written down, and the actions become the task's.
        overwrite: replace what this program wrote at `target` before.
        how: which keys, under which names.
        command: recorded in the provenance.
        pictures: what becomes of them.

    Raises:
        InputError: the source cannot be read, the target exists or cannot be written, the way to the task's actions is
            not known, or pictures cannot be drawn or made smaller.
    """
    files.check_writable(Path(target), folder=True)
    path = resolve_path(source)
    recording = formats.read(path, how)
    whole = bool(pictures.render) or (task is not None and not actions_fit(recording, task))
    if whole:  # that takes the simulator's states
        recording = formats.read(path, replace(how, keys=None))
    if task is not None:
        known = {k: v for k, v in task_attributes(task).items() if k != "env"}  # which versions recorded it is unknown
        recording = with_actions_of(recording, task)
        recording = replace(recording, task=task, attributes={**known, **recording.attributes})
    if pictures.render:
        recording = cameras.with_drawn(recording, recording.task, pictures.render)
    if whole:
        drawn = {*cameras.camera_keys(task_spec(str(recording.task)), pictures.render)} if pictures.render else set()
        recording = recording.changed(lambda one: {k: v for k, v in one.items() if k in drawn or how.wants(k)})
    if pictures.resize is not None:
        recording = cameras.with_size(recording, pictures.resize)
    write(recording, Path(target), to, overwrite, {"command": command})


def as_store(path: str, command: str = "") -> str:
    """The store of demonstrations in any format: `path` itself, or what they are converted to, NAME.zarr in the working directory.

    A store that was made of the same bytes before is taken as it is.

    Args:
        path: demonstrations; one that is not there, or of no known format, is handed back for its reader to refuse.
        command: recorded in the provenance.

    Raises:
        InputError: they cannot be converted, or NAME.zarr holds something else.
    """
    source = resolve_path(path)
    if formats.recognised(source) in (None, "zarr", "diffusion_policy"):
        return path
    target = Path(re.sub(r"[^\w-]+", "_", source.resolve().name.split(".")[0]) + ".zarr")
    if not target.exists():
        convert(source, target, command=command)
    elif DemoStore.open(target).attrs.get("provenance", {}).get("sha256") != sha256(source):
        raise InputError(
            f"'{target}' exists and was not made of '{path}'. Convert to another name, and train on that: "
            f"isdt data convert {path} NAME.zarr"
        )
    return str(target)


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
    files.check_writable(target, folder=True)
    files.check_replaceable(target)  # before an hour of conversion, not after
    before = recording.attributes.get("provenance")
    provenance = {
        "source": str(recording.path), "source_format": recording.format, "sha256": sha256(recording.path),
        **(made or {}), **({"before": before} if before else {}),
    }  # fmt: skip
    carried = {k: v for k, v in recording.attributes.items() if k != "provenance"}
    recording = _checked(replace(recording, attributes=carried))
    with files.locked(target, f"'{target}' is being written by another process."):
        _write(recording, target, writer.write, provenance)
    for note in recording.notes:
        print(printable(f"note: {note}"))
    print(f"{target}: {recording.n_episodes} episodes from {recording.path} ({recording.format} -> {to})")


def _write(
    recording: Recording,
    target: Path,
    writer: Callable[[Recording, Path, JsonObject], None],
    provenance: JsonObject,
) -> None:
    """Write aside, and put it into place when it is complete."""
    aside = target.parent / f".{target.name}.part"
    try:
        for episodes in (recording.changed(_as_bytes), recording):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            try:
                writer(_shown(episodes, target.name), aside / target.name, provenance)
                break
            except _NotBytes:
                continue  # some image holds other values than whole 0..255: again, as they are
        files.replace(aside / target.name, target)
    except (OSError, RuntimeError, InputError) as error:
        # HDF5 notices a full disk again when it closes the file, as a RuntimeError that hides the first.
        cause = error if isinstance(error, OSError) else error.__cause__ or error.__context__
        if not isinstance(cause, OSError) or (isinstance(error, InputError) and cause.errno not in files.NO_ROOM):
            raise
        raise InputError(f"'{target}' cannot be written ({str(cause).splitlines()[0]}).") from error
    finally:
        # After an error zarr's other writes may still be under way, and put a file where one was just removed.
        for _ in range(20):
            shutil.rmtree(aside, ignore_errors=True)
            if not aside.exists():
                break
            time.sleep(0.05)


def _checked(recording: Recording) -> Recording:
    """The same, where an episode that cannot be written is named with the way to leave it out."""

    def load(numbers: Sequence[int]) -> Iterator[Episode]:
        first: dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]] | None = None
        for number, episode in zip(numbers, recording.load(numbers)):
            look = {key: (value.shape[1:], value.dtype) for key, value in episode.items()}
            first = first or look
            try:
                if "action" not in episode:
                    raise InputError(
                        f"there is no key 'action', only {', '.join(sorted(episode))}; if one of them is the commanded action: "
                        "rename=NAME:action."
                    )
                check_episode(episode)
                if look != first:
                    raise InputError(f"episodes must be alike: {unlike(first, look)}.")
            except InputError as error:
                name = recording.name(list(recording.numbers).index(number))
                out = (
                    "" if "action" not in episode else f" Leave it out: isdt data split SOURCE TARGET exclude={number}"
                )
                raise InputError(f"'{recording.path}', {name}: {error}{out}") from error
            yield episode

    return replace(recording, load=load)


class _NotBytes(Exception):
    """An image holds other values than whole numbers from 0 to 255."""


def _as_bytes(episode: Episode) -> Episode:
    """The same with float images as uint8; raises _NotBytes where that would lose something."""
    return {
        key: _whole(value) if value.ndim == 4 and value.shape[-1] in (1, 3, 4) and value.dtype.kind == "f" else value
        for key, value in episode.items()
    }


def _whole(images: Array) -> NDArray[np.uint8]:
    whole = np.empty(images.shape, np.uint8)
    back, same = np.empty_like(images[0]), np.empty(images.shape[1:], np.bool_)
    # Frame by frame, so that it is compared while it is in the processor's cache; values beyond 0..255 come back different.
    with np.errstate(invalid="ignore"):
        for frame, out in zip(images, whole):
            np.copyto(out, frame, casting="unsafe")
            np.copyto(back, out)
            if not np.equal(back, frame, out=same).all():
                raise _NotBytes
    return whole


def _shown(recording: Recording, label: str) -> Recording:
    """The same with a progress bar."""

    def load(numbers: Sequence[int]) -> Iterator[Episode]:
        progress = Progress(len(numbers), label, "episode")
        for episode in recording.load(numbers):
            yield episode
            progress.update()
        progress.close()

    return replace(recording, load=load)


def sha256(path: Path) -> str:
    """Digest of a file, or of a directory's files with their names."""
    total = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(file_path.relative_to(path).as_posix().encode() + b"\0" + file_path.read_bytes())
    return total.hexdigest()


def chosen(recording: Recording, places: Sequence[int]) -> Recording:
    """Only these episodes, in ascending order; masks are renumbered. The others are not read."""
    wanted = sorted(places)
    place = {old: new for new, old in enumerate(wanted)}
    masks = {
        name: sorted(place[i] for i in mask if i in place)
        for name, mask in recording.attributes.get("masks", {}).items()
    }
    return replace(
        recording,
        numbers=[recording.numbers[i] for i in wanted],
        info=[recording.info[i] for i in wanted] if recording.info else [],
        attributes={**recording.attributes, **({"masks": masks} if masks else {})},
    )
