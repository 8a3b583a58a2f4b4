"""The demonstration store, on disk and in the hand.

Layout (Zarr v3; Diffusion Policy's Zarr v2 stores have the same two groups and are read as they are):

    data/<key>           (n_steps, *shape), all episodes one after another, time first
    meta/episode_ends    (n_episodes,) int64, exclusive end of each episode: increasing, the last equals n_steps
    meta/episode_info    (n_bytes,) uint8, may be absent: UTF-8 JSON, a list with one object per episode (its name in the
                         file it came from, the simulator's model, ...)
    attributes           isdt_schema   1
                         task          task id, or null
                         n_episodes    committed episodes, see below
                         keys          {key: {"unit": str, "meaning": str}}, what the numbers are
                         action_space  {"type": absolute or delta and of what, "rate_hz", ...}
                         env           {"id", "kwargs", "versions"} of the environment that was recorded
                         masks         {name: [episode, ...]}, named subsets such as train and valid
                         provenance    {"source", "command", "sha256", "license", "versions", ...}
                         All but the first three may be absent. Shape and dtype of a key stand in its array.

    Rows are time steps at the control rate: observation and action of step t stand in row t, the action being what was
    commanded after seeing that observation. Images are uint8 (height, width, channel) and chunked by groups of frames;
    low-dimensional arrays by 1024 steps; chunks are gathered in shards, one file each (about 1 and 8 MiB of images).

`n_episodes` in the attributes is the commit record of our own stores: an append writes the data, then the ends, and last
this one number, in one atomic file replacement. Whatever lies beyond it is an episode that was never finished; readers do
not see it and the next append overwrites it. Zarr replaces each file atomically, so a kill at any point leaves complete
episodes and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray

from isdt_policy.datasets import formats
from isdt_policy.envs import task_spec
from isdt_policy.shared import files
from isdt_policy.shared.errors import InputError, nearest

SCHEMA = 1
# Keys that tell what was done and how it went, not what was seen; every other key is an observation.
NOT_OBSERVED = ("action", "reward", "done", "terminated", "truncated", "states", "coverage", "success")
# At most so many steps a chunk and chunks a shard: low-dimensional arrays, a few hundred kilobytes a file.
_CHUNK_STEPS, _CHUNKS_PER_SHARD = 1024, 16
# At most so many bytes of each, before compression: images. A chunk is what a reader decodes for one frame, and each costs
# a fraction of a millisecond beside its bytes; a shard is what an append writes again.
_CHUNK_BYTES, _SHARD_BYTES = 2**20, 2**23


def resolve_path(path: str | Path) -> Path:
    """Turn "bundled:NAME" into the file that comes with the package; leave other paths alone."""
    text = str(path)
    if not text.startswith("bundled:"):
        return Path(path)
    name = text.removeprefix("bundled:")
    folder = Path(__file__).parent / "bundled"
    available = sorted(f.name.removesuffix(".zarr.zip") for f in folder.glob("*.zarr.zip"))
    if name not in available:
        raise InputError(
            f"no bundled demonstrations named '{name}'; there are: {', '.join(available)}.{nearest(name, available)}"
        )
    return folder / f"{name}.zarr.zip"


class DemoStore:
    """Read-only view of demonstrations; use `DemoStore.open`.

    Attributes:
        path: where it was opened from.
        keys: names under data/, sorted.
        episode_ends: (n_episodes,) int64.
        attrs: attributes of the root group.
    """

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self.path = path
        self.attrs: dict[str, Any] = dict(group.attrs)
        data, meta = (_member(group, name, path) for name in ("data", "meta"))
        if "episode_ends" not in meta:
            raise InputError(
                f"'{path}' has no meta/episode_ends: not a demonstration store, or one that was cut short."
            )
        try:
            self._arrays: dict[str, zarr.Array] = {key: array for key, array in data.arrays()}
        except Exception as error:
            raise _unreadable(path, "data/", error) from error
        self.keys = tuple(sorted(self._arrays))
        self._meta = meta
        self.episode_ends = self._read_ends(meta)
        if not self.n_episodes:
            raise InputError(f"'{path}' holds no episodes.")
        for key in self.keys:
            length = self._arrays[key].shape[0] if self._arrays[key].ndim else 0
            committed = length >= self.n_steps if "isdt_schema" in self.attrs else length == self.n_steps
            if not committed:
                raise InputError(
                    f"'{path}': data/{key} has {length} steps but meta/episode_ends says {self.n_steps}; the arrays of a "
                    "store must be equally long. It was cut short, or written by something else: convert it again."
                )

    def _read_ends(self, meta: zarr.Group) -> NDArray[np.int64]:
        try:
            ends = np.asarray(meta["episode_ends"][:])  # type: ignore[index]
        except Exception as error:
            raise _unreadable(self.path, "meta/episode_ends", error) from error
        ends = ends[: self.attrs.get("n_episodes", len(ends))]
        if ends.ndim != 1 or not np.issubdtype(ends.dtype, np.integer):
            raise InputError(
                f"'{self.path}': meta/episode_ends must be a list of integers, found {ends.dtype} {ends.shape}."
            )
        steps = np.diff(ends, prepend=0)
        if (steps <= 0).any():
            i = int(np.argmax(steps <= 0))
            raise InputError(
                f"'{self.path}': meta/episode_ends must increase, but entry {i} is {ends[i]} after {ends[i - 1] if i else 0}."
            )
        return ends.astype(np.int64)

    @classmethod
    def open(cls, path: str | Path) -> DemoStore:
        """Open a store: Zarr v2 or v3, a directory or a .zip, ours or Diffusion Policy's.

        Raises:
            InputError: nothing there, not a store, cut short, unequal lengths, or episode ends that do not fit.
        """
        where = resolve_path(path)
        if not where.exists():
            raise InputError(f"no demonstrations at '{path}': the path does not exist.")
        try:
            group = _open_zip(where) if where.is_file() else _open_directory(where)
        except (
            zarr.errors.BaseZarrError,
            FileNotFoundError,
            KeyError,
            ValueError,
            OSError,
            zipfile.BadZipFile,
        ) as error:
            _refuse_other_format(where)
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"'{path}' is not a Zarr store, or it was cut short ({_brief(error)}). "
                "Give a .zarr directory or .zarr.zip file with data/ and meta/episode_ends."
            ) from error
        return cls(where, group)

    @property
    def n_episodes(self) -> int:
        return len(self.episode_ends)

    @property
    def n_steps(self) -> int:
        return int(self.episode_ends[-1]) if len(self.episode_ends) else 0

    @property
    def task(self) -> str | None:
        """Task id recorded by the writer, if any."""
        return self.attrs.get("task")

    @property
    def masks(self) -> dict[str, NDArray[np.int64]]:
        """Named subsets of episodes, {name: sorted episode indices}."""
        return {name: np.asarray(chosen, np.int64) for name, chosen in self.attrs.get("masks", {}).items()}

    def episode_info(self) -> list[dict[str, Any]]:
        """One object per episode with what is known of it beside its arrays; empty objects if nothing is."""
        info: list[dict[str, Any]] = []
        if "episode_info" in self._meta:
            info = json.loads(np.asarray(self._meta["episode_info"][:]).tobytes())  # type: ignore[index]
        return (info + [{}] * self.n_episodes)[: self.n_episodes]

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one step of `key`."""
        return tuple(self._array(key).shape[1:])

    def dtype(self, key: str) -> np.dtype[Any]:
        return np.dtype(self._array(key).dtype)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Steps [start, stop) of `key`, (stop - start, *shape), in the stored dtype."""
        array = self._array(key)
        try:
            return np.asarray(array[start : self.n_steps if stop is None else min(stop, self.n_steps)])
        except MemoryError:
            raise  # the store is well; the caller asked for too much at once
        except Exception as error:
            raise _unreadable(self.path, f"data/{key}", error) from error

    def arrays(self) -> dict[str, zarr.Array]:
        """The arrays under data/ as zarr has them."""
        return dict(self._arrays)

    def span(self, n_bytes: int) -> int:
        """Steps of about `n_bytes` whose borders are those of chunks (or shards) of the key that takes most room."""
        if not self.keys:
            return self.n_steps
        largest = max(self._arrays.values(), key=lambda a: int(np.prod(a.shape[1:])) * a.dtype.itemsize)
        step_bytes = max(1, int(np.prod(largest.shape[1:])) * largest.dtype.itemsize)
        chunk = int((largest.shards or largest.chunks)[0])
        return max(1, n_bytes // (chunk * step_bytes)) * chunk

    def episode(self, index: int) -> dict[str, NDArray[Any]]:
        """Every key of one episode, {key: (T, *shape)}."""
        if not 0 <= index < self.n_episodes:
            raise InputError(f"'{self.path}' has episodes 0 to {self.n_episodes - 1}, asked for {index}.")
        start = int(self.episode_ends[index - 1]) if index else 0
        return {key: self.read(key, start, int(self.episode_ends[index])) for key in self.keys}

    def _array(self, key: str) -> zarr.Array:
        if key not in self._arrays:
            raise InputError(
                f"'{self.path}' has no key '{key}'; it has {', '.join(self.keys)}.{nearest(key, self.keys)}"
            )
        return self._arrays[key]


class DemoWriter:
    """Appends episodes to a store; each is either completely there or not at all.

    Args:
        path: a .zarr directory, new or to be continued.
        task: task id, recorded.
        provenance: where the data comes from (command, source, licence, ...), recorded.
        overwrite: replace what is there.
        attributes: further attributes of a new store, as listed at the top of this file.

    Raises:
        InputError: the store is being written by somebody else, or is not one of ours.

    Example:
        with DemoWriter("demos.zarr", task="pusht") as writer:
            writer.append({"state": state, "action": action})
    """

    def __init__(
        self,
        path: str | Path,
        task: str | None = None,
        provenance: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix == ".zip":
            raise InputError(f"'{path}': write a .zarr directory, then pack it with pack_zip.")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock: int | None = _lock(self.path)
        except OSError as error:
            raise InputError(f"'{path}' cannot be written ({_brief(error)}).") from error
        try:
            if overwrite and self.path.exists():
                files.remove(self.path)
            if self.path.exists():
                self._group = zarr.open_group(self.path, mode="r+")
                if "isdt_schema" not in self._group.attrs:
                    raise InputError(f"'{path}' exists and was not written by this package; it is not appended to.")
            else:
                self._group = self._create({**(attributes or {}), "task": task, "provenance": dict(provenance or {})})
        except OSError as error:
            self.close()
            raise InputError(f"'{path}' cannot be written ({_brief(error)}).") from error
        except BaseException:
            self.close()
            raise
        self._data, self._meta = self._group["data"], self._group["meta"]
        self.n_episodes = int(self._group.attrs["n_episodes"])  # type: ignore[arg-type]
        self.n_steps = int(self._meta["episode_ends"][self.n_episodes - 1]) if self.n_episodes else 0  # type: ignore[index]

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the store."""
        return dict(self._group.attrs)

    def _create(self, attributes: Mapping[str, Any]) -> zarr.Group:
        # Built aside and renamed, so that a kill between two of its files leaves no half store under the real name.
        temporary = self.path.with_name(f".{self.path.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        group = zarr.create_group(
            temporary, zarr_format=3, attributes={**attributes, "isdt_schema": SCHEMA, "n_episodes": 0}
        )
        group.create_group("data")
        group.create_group("meta").create_array("episode_ends", shape=(0,), chunks=(4096,), dtype="int64")
        os.rename(temporary, self.path)
        return zarr.open_group(self.path, mode="r+")

    def append(self, episode: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any] | None = None) -> int:
        """Add one episode {key: (T, *shape)} and return its number.

        Args:
            episode: arrays of equal length.
            attributes: attributes of the store that change in the same instant in which the episode appears.

        Raises:
            InputError: no steps, unequal lengths, NaN in the action, keys, shapes or dtypes unlike earlier episodes, or the
                disk is full; the store then holds the earlier episodes and can be appended to again.
        """
        arrays = {key: np.asarray(value) for key, value in episode.items()}
        self._check([arrays])
        try:
            return self._write(arrays, attributes or {})
        except OSError as error:
            raise InputError(
                f"'{self.path}': episode {self.n_episodes} could not be written ({_brief(error)}); the {self.n_episodes} "
                "before it are safe. Free some space and go on appending."
            ) from error

    def extend(self, episodes: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        """Add several episodes in one write, all visible at once: quicker than one by one, as a shard is then written once.

        Raises:
            InputError: as `append`; none of them is then in the store.
        """
        several = [{key: np.asarray(value) for key, value in episode.items()} for episode in episodes]
        if not several:
            return
        self._check(several)
        joined = {key: np.concatenate([arrays[key] for arrays in several]) for key in several[0]}
        try:
            self._write(joined, {}, [len(next(iter(arrays.values()))) for arrays in several])
        except OSError as error:
            raise InputError(
                f"'{self.path}': {len(several)} episodes could not be written ({_brief(error)}); the {self.n_episodes} "
                "before them are safe. Free some space and go on appending."
            ) from error

    def _write(
        self, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any], lengths: Sequence[int] | None = None
    ) -> int:
        steps = len(next(iter(arrays.values())))
        lengths = lengths or [steps]
        end = self.n_steps + steps
        for key, value in arrays.items():
            if key not in self._data:
                self._create_array(key, value)
            # Else zarr compares every chunk with the fill value first, which takes longer than compressing it.
            array = self._data[key].with_config({"write_empty_chunks": True})
            array.resize((end, *value.shape[1:]))
            array[self.n_steps : end] = value
        ends = self._meta["episode_ends"]
        count = self.n_episodes + len(lengths)
        ends.resize((count,))
        ends[self.n_episodes : count] = self.n_steps + np.cumsum(lengths)
        self._group.attrs.update({**attributes, "n_episodes": count})  # the commit: one file replaced
        self.n_episodes, self.n_steps = count, end
        return self.n_episodes - 1

    def _check(self, episodes: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        # Asked of the files once, not once an episode.
        stored = {key: (array.shape[1:], array.dtype) for key, array in self._data.arrays()} if self.n_episodes else {}
        for arrays in episodes:
            lengths = {key: value.shape[0] if value.ndim else 0 for key, value in arrays.items()}
            if not lengths or min(lengths.values()) == 0:
                raise InputError("an episode needs at least one step of at least one key.")
            if len(set(lengths.values())) > 1:
                raise InputError(f"the keys of an episode must be equally long, given {lengths}.")
            for key, value in arrays.items():
                if "/" in key or not key:
                    raise InputError(f"'{key}' cannot be a key: it must not be empty or hold '/'.")
                if value.dtype.kind not in "biuf":
                    raise InputError(f"'{key}' has dtype {value.dtype}; numbers are stored, nothing else.")
                if key == "action" and not np.isfinite(value).all():
                    raise InputError(
                        f"the action is not finite at step {int(np.argwhere(~np.isfinite(value))[0, 0])} of the episode."
                    )
            given = {key: (value.shape[1:], value.dtype) for key, value in arrays.items()}
            if given != (stored := stored or given):
                raise InputError(f"episodes of a store must be alike: stored {stored}, given {given}.")

    def _create_array(self, key: str, value: NDArray[Any]) -> None:
        steps = int(np.clip(_CHUNK_BYTES // max(1, value[0].nbytes), 1, _CHUNK_STEPS))
        chunks = int(np.clip(_SHARD_BYTES // max(1, steps * value[0].nbytes), 1, _CHUNKS_PER_SHARD))
        self._data.create_array(
            key,
            shape=(0, *value.shape[1:]),
            chunks=(steps, *value.shape[1:]),
            shards=(steps * chunks, *value.shape[1:]),
            dtype=value.dtype,
            overwrite=True,
        )

    def set_episode_info(self, info: Sequence[Mapping[str, Any]]) -> None:
        """Record one object per episode; see the top of this file."""
        put_episode_info(self._meta, info)

    def close(self) -> None:
        """Release the store to other writers."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = None

    def __enter__(self) -> DemoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def pack_zip(source: str | Path, target: str | Path) -> Path:
    """Pack a store directory into one .zip (uncompressed members: the chunks are compressed already), atomically."""
    source, target = Path(source), Path(target)
    DemoStore.open(source)  # refuses what is not a store
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(p for p in source.rglob("*") if p.is_file()):
                # A fixed date: the same episodes give the same bytes.
                info = zipfile.ZipInfo(file.relative_to(source).as_posix(), (2020, 1, 1, 0, 0, 0))
                archive.writestr(info, file.read_bytes())
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"'{target}' cannot be written ({_brief(error)}).") from error
    return target


def task_attributes(task: str) -> dict[str, Any]:
    """What a store says about a registered task: units and meaning of its keys, action space, environment."""
    spec = task_spec(task)
    arrays = {**spec.observations, "action": spec.action}
    return {
        "keys": {key: {"unit": a.unit, "meaning": a.description} for key, a in arrays.items()},
        "action_space": {"type": spec.action_type, "rate_hz": spec.rate_hz, **spec.action_space},
        "env": {"id": spec.id, "kwargs": {}, "versions": spec.versions()},
    }


def put_episode_info(meta: zarr.Group, info: Sequence[Mapping[str, Any]]) -> None:
    """Write meta/episode_info, if any episode has some."""
    if any(info):
        text = np.frombuffer(json.dumps(list(info)).encode(), np.uint8)
        meta.create_array("episode_info", data=text, overwrite=True)


def _member(group: zarr.Group, name: str, path: Path) -> zarr.Group:
    member = group.get(name)
    if not isinstance(member, zarr.Group):
        raise InputError(
            f"'{path}' has no group {name}/: not a demonstration store. Expected data/ and meta/episode_ends."
        )
    return member


def _refuse_other_format(path: Path) -> None:
    """Say what a file is, if it is demonstrations of another format."""
    found = formats.recognised(path)
    if found not in (None, "zarr", "diffusion_policy"):
        target = f"{path.name.split('.')[0]}.zarr"
        raise InputError(
            f"'{path}' holds demonstrations in the format '{found}'; a store is needed here. Convert them: "
            f"isdt data convert {path} {target}"
        )


def _open_directory(path: Path) -> zarr.Group:
    root = path.resolve()
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            entry = Path(folder, name)
            if entry.is_symlink() and not entry.resolve().is_relative_to(root):
                raise InputError(
                    f"'{entry}' is a link that points out of the store; it is not followed. Copy the store."
                )
    return zarr.open_group(path, mode="r")


def _open_zip(path: Path) -> zarr.Group:
    if not zipfile.is_zipfile(path):
        raise InputError(f"'{path}' is a file but not a complete .zip archive; download or pack it again.")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    bad = next((n for n in names if n.startswith("/") or ".." in Path(n).parts), None)
    if bad:
        raise InputError(f"'{path}' holds the member '{bad}', which points outside the archive; it is not opened.")
    # Archives made from a folder keep its name in front: find where meta/episode_ends is.
    inside = next((n for n in names if "meta/episode_ends/" in n), None)
    if inside is None:
        raise InputError(f"'{path}' holds no meta/episode_ends: not a demonstration store.")
    prefix = inside.split("meta/episode_ends/")[0].strip("/")
    return zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r", path=prefix)


def _lock(path: Path) -> int:
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # The kernel drops the lock when the process dies, however it dies.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise InputError(f"'{path}' is being written by another process; a store has one writer at a time.") from error
    return descriptor


def _brief(error: Exception) -> str:
    """The first line of an error, with its type."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}".rstrip(": ")


# Codecs that do not come with zarr's own dependency: pattern of the codec's name -> what to install.
_CODEC_PACKAGES = {"imagecodecs": "imagecodecs", "zfpy": "'numcodecs[zfpy]'", "pcodec": "'numcodecs[pcodec]'"}


def _unreadable(path: Path, what: str, error: Exception) -> InputError:
    named = re.search(r"codec[^'\"]*['\"]+([\w.]+)", str(error))
    if named:
        codec = named.group(1)
        package = next((p for pattern, p in _CODEC_PACKAGES.items() if pattern in codec), None)
        install = f"pip install {package}" if package else "install the package that provides it"
        return InputError(f"'{path}': {what} is compressed with the codec '{codec}', which is missing here: {install}.")
    return InputError(f"'{path}': {what} cannot be read ({_brief(error)}). A chunk is damaged; copy the store again.")
