"""Writing a demonstration store; its layout and what is promised stand at the top of store.py."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import zarr

from isdt_policy.envs import task_spec
from isdt_policy.shared import files
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import Array, Json, JsonObject, parse_json

SCHEMA = 1
# At most so many steps a chunk and chunks a shard: low-dimensional arrays, a few hundred kilobytes a file.
_CHUNK_STEPS, _CHUNKS_PER_SHARD = 1024, 16
# At most so many bytes of each, before compression: images. A chunk is what a reader decodes for one frame, and each costs
# a fraction of a millisecond beside its bytes; a shard is what an append writes again.
_CHUNK_BYTES, _SHARD_BYTES = 2**20, 2**23

Episode = Mapping[str, Array]


class DemoWriter:
    """Appends episodes to a store; each is either completely there or not at all.

    What `append` and `extend` return for is on the disk: it survives a kill, and a power cut (`durable`).

    Args:
        path: a .zarr folder, new or to be continued.
        task: task id, recorded.
        provenance: where the data comes from (command, source, licence, ...), recorded.
        overwrite: replace what is there, if this program wrote it.
        attributes: further attributes of a new store, as listed at the top of store.py.
        durable: flush every append to the disk before it returns; False leaves that to whoever moves the store into place.

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
        provenance: Json | None = None,
        overwrite: bool = False,
        attributes: Json | None = None,
        durable: bool = True,
    ) -> None:
        self.path, self.durable = Path(path), durable
        self._unflushed: set[Path] = set()
        if self.path.suffix == ".zip":
            raise InputError(f"'{path}': write a .zarr folder, then pack it with pack_zip.")
        files.check_writable(self.path, folder=True)
        self._lock = contextlib.ExitStack()
        busy = f"'{path}' is being written by another process; a store has one writer at a time."
        self._lock.enter_context(files.locked(self.path, busy))
        try:
            if overwrite and self.path.exists():
                files.remove(self.path)
            if not self.path.exists():
                self._create({**(attributes or {}), "task": task, "provenance": dict(provenance or {})})
            group = self._open()
            self._content = parse_json((self.path / "zarr.json").read_bytes())
        except OSError as error:
            self.close()
            raise InputError(f"'{path}' cannot be written ({brief(error)}).") from error
        except BaseException:
            self.close()
            raise
        self._data, self._meta = (_group(group, name) for name in ("data", "meta"))
        self.n_episodes = int(self.attrs["n_episodes"])
        self.n_steps = int(self._meta["episode_ends"][self.n_episodes - 1]) if self.n_episodes else 0  # type: ignore[index]

    @property
    def attrs(self) -> JsonObject:
        """Attributes of the store."""
        return dict(self._content["attributes"])

    def append(self, episode: Episode, attributes: Json | None = None, info: Json | None = None) -> int:
        """Add one episode {key: (T, *shape)} and return its number.

        Args:
            episode: arrays of equal length.
            attributes: attributes of the store that change in the same instant in which the episode appears.
            info: what is known of the episode beside its arrays; it appears in the same instant too.

        Raises:
            InputError: no steps, unequal lengths, NaN in the action, keys, shapes or dtypes unlike earlier episodes, or the
                disk is full; the store then holds the earlier episodes and can be appended to again.
        """
        self.extend([episode], attributes, [info] if info is not None else None)
        return self.n_episodes - 1

    def extend(
        self,
        episodes: Sequence[Episode],
        attributes: Json | None = None,
        info: Sequence[Json] | None = None,
    ) -> None:
        """Add several episodes in one write, all visible at once: quicker than one by one, as a shard is then written once.

        Raises:
            InputError: as `append`; none of them is then in the store.
        """
        several = [{key: np.asarray(value) for key, value in episode.items()} for episode in episodes]
        if not several:
            return
        self._check(several)
        joined = {key: np.concatenate([arrays[key] for arrays in several]) for key in several[0]}
        lengths = [len(next(iter(arrays.values()))) for arrays in several]
        try:
            changed = dict(attributes or {})
            if info is not None:
                changed |= self._add_info(info)
            self._write(joined, changed, lengths)
        except OSError as error:
            what = f"episode {self.n_episodes}" if len(several) == 1 else f"{len(several)} episodes"
            before = "the 1 before it is safe" if self.n_episodes == 1 else f"the {self.n_episodes} before it are safe"
            raise InputError(
                f"'{self.path}': {what} could not be written ({brief(error)}); {before}. Free some space and go on appending."
            ) from error

    def set_episode_info(self, info: Sequence[Json]) -> None:
        """Replace what is known of all episodes, one object each, in one instant."""
        if any(info):
            self._commit(self._add_info(info, anew=True))

    def close(self) -> None:
        """Release the store to other writers."""
        self._lock.close()

    def __enter__(self) -> DemoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def describe(self, attributes: Json) -> None:
        """Change attributes of the store, all in one instant; the episodes stay as they are."""
        self._commit(attributes)

    def _create(self, attributes: Json) -> None:
        # Built aside and renamed, so that a kill between two of its files leaves no half store under the real name.
        temporary = self.path.with_name(f".{self.path.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            group = zarr.create_group(
                temporary,
                zarr_format=3,
                attributes={**attributes, "isdt_schema": SCHEMA, "n_episodes": 0, "episode_info": [0, 0, 0]},
            )
            group.create_group("data")
            group.create_group("meta").create_array("episode_ends", shape=(0,), chunks=(4096,), dtype="int64")
            files.replace(temporary, self.path)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _open(self) -> zarr.Group:
        refused = f"'{self.path}' exists and was not written by this package; it is not appended to."
        try:
            group = zarr.open_group(self.path, mode="r+")
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise InputError(refused) from error
        if "isdt_schema" not in group.attrs:
            raise InputError(refused)
        return group

    def _write(self, arrays: Episode, attributes: Json, lengths: Sequence[int]) -> None:
        end, count = self.n_steps + sum(lengths), self.n_episodes + len(lengths)
        for key, value in arrays.items():
            if key not in self._data:
                self._create_array(key, value)
            # Else zarr compares every chunk with the fill value first, which takes longer than compressing it.
            array = self._data[key].with_config({"write_empty_chunks": True})
            array.resize((end, *value.shape[1:]))
            array[self.n_steps : end] = value
            self._wrote(array, self.n_steps, end)
        ends = self._meta["episode_ends"]
        ends.resize((count,))
        ends[self.n_episodes : count] = self.n_steps + np.cumsum(lengths)
        self._wrote(ends, self.n_episodes, count)
        self._commit({**attributes, "n_episodes": count})
        self.n_episodes, self.n_steps = count, end

    def _commit(self, attributes: Json) -> None:
        """Change attributes in one replacement of one file: all of them, whatever happens, or none."""
        if self.durable:
            files.flush_files(self._unflushed, self.path)
        self._unflushed.clear()
        content = {**self._content, "attributes": {**self._content["attributes"], **attributes}}
        files.write_text(self.path / "zarr.json", json.dumps(content, indent=2), durable=self.durable)
        self._content = content

    def _add_info(self, info: Sequence[Json], anew: bool = False) -> JsonObject:
        """Write a line of JSON for each episode after the bytes that are there; the attributes that make them count."""
        lines = [dict(entry) for entry in info]
        span = self.attrs.get("episode_info")
        if not anew:
            known = [] if span else read_info(self._meta, None)  # written by version 0.1
            count = span[2] if span else 0
            lines = [*(known + [{}] * self.n_episodes)[count : self.n_episodes], *lines]
        start, stop, count = span or (0, 0, 0)
        if span is None and "episode_info" in self._meta:
            start = stop = self._meta["episode_info"].shape[0]
        text = np.frombuffer("".join(json.dumps(line) + "\n" for line in lines).encode(), np.uint8)
        if "episode_info" not in self._meta:
            self._meta.create_array("episode_info", shape=(0,), chunks=(2**20,), dtype="uint8")
        array = self._meta["episode_info"]
        array.resize((stop + len(text),))
        array[stop:] = text
        self._wrote(array, stop, stop + len(text))
        if anew or span is None:
            start, count = stop, 0
        return {"episode_info": [start, stop + len(text), count + len(lines)]}

    def _wrote(self, array: zarr.Array, start: int, stop: int) -> None:
        """Remember the files that hold rows of an array, and its metadata, for the next commit."""
        step, folder = (array.shards or array.chunks)[0], self.path / array.path
        for number in range(start // step, (stop - 1) // step + 1):
            self._unflushed.add(folder / array.metadata.encode_chunk_key((number, *[0] * (array.ndim - 1))))
        self._unflushed.add(folder / "zarr.json")

    def _check(self, episodes: Sequence[Episode]) -> None:
        # Asked of the files once, not once an episode.
        stored = {key: (array.shape[1:], array.dtype) for key, array in self._data.arrays()} if self.n_episodes else {}
        for arrays in episodes:
            check_episode(arrays)
            given = {key: (value.shape[1:], value.dtype) for key, value in arrays.items()}
            if given != (stored := stored or given):
                raise InputError(f"episodes of a store must be alike: {unlike(stored, given)}.")

    def _create_array(self, key: str, value: Array) -> None:
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


def _group(parent: zarr.Group, name: str) -> zarr.Group:
    member = parent[name]
    assert isinstance(member, zarr.Group)
    return member


Look = Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]


def unlike(first: Look, other: Look) -> str:
    """In what an episode differs from the first: keys, shapes or dtypes."""
    parts = []
    for key in sorted({*first, *other}):
        if first.get(key) != other.get(key):
            looks = ("absent" if key not in of else f"{of[key][1]} {tuple(of[key][0])}" for of in (first, other))
            parts.append(f"'{key}' is {' in the first, '.join(looks)} in this one")
    return "; ".join(parts)


def check_episode(arrays: Episode) -> None:
    """Refuse what cannot be an episode.

    Raises:
        InputError: no steps, unequal lengths, a key that is no name, text, steps without a number, or an action that is not
            finite.
    """
    lengths = {key: value.shape[0] if value.ndim else 0 for key, value in arrays.items()}
    if not lengths or min(lengths.values()) == 0:
        raise InputError("an episode needs at least one step of at least one key.")
    if len(set(lengths.values())) > 1:
        raise InputError(f"the keys of an episode must be equally long, given {lengths}.")
    for key, value in arrays.items():
        if "/" in key or not key or key.startswith("."):
            raise InputError(f"'{key}' cannot be a key: it must not be empty, begin with '.' or hold '/'.")
        if value.dtype.kind not in "biuf":
            raise InputError(f"'{key}' has dtype {value.dtype}; numbers are stored, nothing else.")
        if not value.size:
            raise InputError(
                f"'{key}' has no number in a step (its shape is {value.shape}); name the keys without it: keys=[...]."
            )
        if key == "action" and not np.isfinite(value).all():
            step = int(np.argwhere(~np.isfinite(value))[0, 0])
            raise InputError(f"the action is not finite at step {step} of the episode.")


def task_attributes(task: str) -> JsonObject:
    """What a store says about a registered task: units and meaning of its keys, action space, environment."""
    spec = task_spec(task)
    arrays = {**spec.observations, "action": spec.action}
    return {
        "keys": {key: {"unit": a.unit, "meaning": a.description} for key, a in arrays.items()},
        "action_space": {"type": spec.action_type, "rate_hz": spec.rate_hz, **spec.action_space},
        "env": {"id": spec.id, "kwargs": {}, "versions": spec.versions()},
    }


def put_episode_info(meta: zarr.Group, info: Sequence[Json]) -> None:
    """Write meta/episode_info as one list, as stores of others keep it, if any episode has some."""
    if any(info):
        text = np.frombuffer(json.dumps(list(info)).encode(), np.uint8)
        meta.create_array("episode_info", data=text, overwrite=True)


def read_info(meta: zarr.Group, span: Sequence[int] | None) -> list[JsonObject]:
    """The objects of meta/episode_info: lines within `span` (first byte, last byte, lines), or one list without it."""
    if "episode_info" not in meta:
        return []
    text = np.asarray(meta["episode_info"][slice(*span[:2]) if span else slice(None)]).tobytes()  # type: ignore[index]
    if not span and (not text.strip(b"\0") or text.startswith(b"{")):
        return []  # the lines of a first append that was killed
    found = [json.loads(line) for line in text.splitlines()] if span else json.loads(text)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError("not a list of objects")
    return found


def brief(error: Exception) -> str:
    """The first line of an error, with its type."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}".rstrip(": ")
