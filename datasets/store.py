"""The demonstration store, on disk and in the hand.

Layout (Zarr v3; Diffusion Policy's Zarr v2 stores have the same two groups and are read as they are):

    data/<key>           (n_steps, *shape), all episodes one after another, time first
    meta/episode_ends    (n_episodes,) int64, exclusive end of each episode: increasing, the last equals n_steps
    meta/episode_info    (n_bytes,) uint8, may be absent: UTF-8 JSON, one object per episode (its name in the file it came
                         from, the simulator's model, ...): a line each, or one list where the attribute is absent
    attributes           isdt_schema   1
                         task          task id, or null
                         n_episodes    committed episodes, see below
                         episode_info  [first byte, last byte, lines] of meta/episode_info that count
                         keys          {key: {"unit": str, "meaning": str, "quaternion": xyzw or wxyz}}, what the numbers are
                         action_space  {"type": absolute or delta and of what, "rate_hz", "gripper": [entry, ...], ...}
                         action_key, obs_keys, robot_type   as `isdt data describe` was told
                         env           {"id", "kwargs", "versions"} of the environment that was recorded
                         masks         {name: [episode, ...]}, named subsets such as train and valid
                         provenance    {"source", "command", "sha256", "license", "versions", ...}
                         All but isdt_schema, task and n_episodes may be absent. Shape and dtype of a key stand in its array.

    Rows are time steps at the control rate: observation and action of step t stand in row t, the action being what was
    commanded after seeing that observation. Images are uint8 (height, width, channel) and chunked by groups of frames;
    low-dimensional arrays by 1024 steps; chunks are gathered in shards, one file each (about 1 and 8 MiB of images).

`n_episodes` in the attributes is the commit record of our own stores. An append writes the data, then the ends and the
information, and last the attributes, in one atomic replacement of one file: episode, its information and the attributes that
change with it appear together. Whatever lies beyond is an episode that was never finished; readers do not see it and the next
append overwrites it.

What is promised:

    append, extend          what they returned for is on the disk: neither a kill nor a power cut loses it
    convert, split, merge   the target is what it was before, or complete and on the disk
    opening                 every chunk that the episodes need is there. A store that was copied in part is refused, not read as
                            zeros. In stores of others an array without any chunk is its fill value, and so are chunks of
                            rewards and the like: their writers may leave such chunks out. Both are noted.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray

from isdt_policy.datasets import formats, opening
from isdt_policy.datasets.writer import DemoWriter, brief, read_info, task_attributes
from isdt_policy.shared import files
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.values import Array, Json, JsonObject

__all__ = ["NOT_OBSERVED", "DemoStore", "DemoWriter", "pack_zip", "resolve_path", "task_attributes"]

T = TypeVar("T")

# Keys that tell what was done and how it went, not what was seen; every other key is an observation.
NOT_OBSERVED = ("action", "reward", "done", "terminated", "truncated", "states", "coverage", "success")
# Of these, chunks that hold nothing but zeros may be left out by other writers.
_SPARSE = (*NOT_OBSERVED[1:5], *NOT_OBSERVED[6:])


def resolve_path(path: str | Path) -> Path:
    """Turn "bundled:NAME" into the file that comes with the package; other paths stay as they are."""
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
        left_out: {name under data/: why it cannot be read}.
        notes: what a reader should know: what is left out, and rows that no file holds.
    """

    def __init__(self, path: Path, group: zarr.Group, listing: opening.Listing) -> None:
        self.path, self._listing = path, listing
        self.attrs: JsonObject = dict(group.attrs)
        _check_attributes(path, self.attrs)
        data, meta = (_member(group, name, path) for name in ("data", "meta"))
        if "episode_ends" not in meta:
            raise InputError(
                f"'{path}' has no meta/episode_ends: not a demonstration store, or one that was cut short."
            )
        self._arrays: dict[str, zarr.Array] = {}
        self.left_out: dict[str, str] = {}
        for name in listing.members("data"):
            self._take(data, name)
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
        self.notes = [f"data/{name} is left out: {why}" for name, why in self.left_out.items()]
        self.notes += [note for key in self.keys for note in self._account(key)]

    def _take(self, data: zarr.Group, name: str) -> None:
        """Add one array of data/, or say why not."""
        try:
            found = _retried(lambda: data.get(name))
        except Exception as error:
            if opening.missing_codec(error) is None:
                raise _unreadable(self.path, f"data/{name}", error) from error
            self.left_out[name] = _reason(error)
            return
        if not isinstance(found, zarr.Array):
            self.left_out[name] = "it is a group; keys stand directly under data/"
        elif found.dtype.kind not in "biuf":
            self.left_out[name] = f"it holds {'text' if found.dtype.kind in 'USTO' else found.dtype}, not numbers"
        else:
            opening.check_chunk(found, f"data/{name}", self.path)
            self._arrays[name] = found

    def _account(self, key: str) -> list[str]:
        """Refuse a key of which chunks are missing; a note where that is no error."""
        gap = opening.gap(self._arrays[key], f"data/{key}", self.n_steps, self._listing)
        if gap is None:
            return []
        fill = self._arrays[key].fill_value
        if "isdt_schema" not in self.attrs and (gap.whole or key in _SPARSE):
            return [f"data/{key}: {gap.count} chunks are in no file, from step {gap.start} on; they are read as {fill}"]
        first, last = np.searchsorted(self.episode_ends, [gap.start, gap.stop - 1], side="right").tolist()
        raise InputError(
            f"'{self.path}' is incomplete: no file holds steps {gap.start} to {gap.stop - 1} of data/{key} (episodes {first} to "
            f"{last}){f', and {gap.count - 1} more chunks are missing' if gap.count > 1 else ''}; they would be read as {fill}. "
            "Copy or download the store again."
        )

    def _read_ends(self, meta: zarr.Group) -> NDArray[np.int64]:
        array = meta["episode_ends"]
        if not isinstance(array, zarr.Array) or array.ndim != 1 or array.dtype.kind not in "iu":
            look = f"{array.dtype} {array.shape}" if isinstance(array, zarr.Array) else "a group"
            raise InputError(f"'{self.path}': meta/episode_ends must be a list of integers, found {look}.")
        opening.check_chunk(array, "meta/episode_ends", self.path)
        count = min(self.attrs.get("n_episodes", array.shape[0]), array.shape[0])
        if opening.gap(array, "meta/episode_ends", count, self._listing):
            raise InputError(
                f"'{self.path}' is incomplete: a chunk of meta/episode_ends is missing. Copy the store again."
            )
        try:
            ends = np.asarray(array[:count])
        except Exception as error:
            raise _unreadable(self.path, "meta/episode_ends", error) from error
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
        if "://" in str(path):
            raise InputError(
                f"'{path}' is an address, and stores are read from a disk, where what is missing is seen. Bring it there first, "
                "such as with isdt data fetch."
            )
        if not where.exists():
            raise InputError(f"no demonstrations at '{path}': the path does not exist.")
        try:
            return cls(where, *_retried(lambda: opening.opened(where)))
        except Exception as error:  # a file of unknown origin may be wrong in any way
            _refuse_other_format(where)
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"'{path}' is not a Zarr store, or it was cut short ({brief(error)}). "
                "Give a .zarr folder or a .zarr.zip file with data/ and meta/episode_ends."
            ) from error

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episode_ends)

    @property
    def n_steps(self) -> int:
        """Number of steps of all episodes."""
        return int(self.episode_ends[-1]) if len(self.episode_ends) else 0

    @property
    def task(self) -> str | None:
        """Task id recorded by the writer, if any."""
        return self.attrs.get("task")

    @property
    def masks(self) -> dict[str, NDArray[np.int64]]:
        """Named subsets of episodes, {name: sorted episode indices}."""
        return {name: np.asarray(chosen, np.int64) for name, chosen in self.attrs.get("masks", {}).items()}

    def episode_info(self) -> list[JsonObject]:
        """One object per episode with what is known of it beside its arrays; empty objects if nothing is."""
        span = self.attrs.get("episode_info")
        try:
            array = self._meta.get("episode_info")
            if isinstance(array, zarr.Array):
                opening.check_chunk(array, "meta/episode_info", self.path)
                if opening.gap(array, "meta/episode_info", span[1] if span else array.shape[0], self._listing):
                    raise ValueError("a chunk is missing")
            info = read_info(self._meta, span)
        except InputError:
            raise
        except Exception as error:
            raise _unreadable(self.path, "meta/episode_info", error) from error
        return (info + [{}] * self.n_episodes)[: self.n_episodes]

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one step of `key`."""
        return tuple(self._array(key).shape[1:])

    def dtype(self, key: str) -> np.dtype[np.generic]:
        """Stored type of `key`."""
        return np.dtype(self._array(key).dtype)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Array:
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

    def episode(self, index: int) -> dict[str, Array]:
        """Every key of one episode, {key: (T, *shape)}."""
        if not 0 <= index < self.n_episodes:
            raise InputError(f"'{self.path}' has episodes 0 to {self.n_episodes - 1}, asked for {index}.")
        start = int(self.episode_ends[index - 1]) if index else 0
        return {key: self.read(key, start, int(self.episode_ends[index])) for key in self.keys}

    def _array(self, key: str) -> zarr.Array:
        if key in self.left_out:
            raise InputError(f"'{self.path}': data/{key} cannot be read: {self.left_out[key]}.")
        if key not in self._arrays:
            raise InputError(
                f"'{self.path}' has no key '{key}'; it has {', '.join(self.keys)}.{nearest(key, self.keys)}"
            )
        return self._arrays[key]


def pack_zip(source: str | Path, target: str | Path) -> Path:
    """Pack a store folder into one .zip (its members are not compressed again), which appears when it is complete."""
    source, target = Path(source), Path(target)
    DemoStore.open(source)  # refuses what is not a store
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(p for p in source.rglob("*") if p.is_file()):
                if file.suffix not in (".part", ".partial"):  # a killed writer left it
                    # A fixed date: the same episodes give the same bytes.
                    info = zipfile.ZipInfo(file.relative_to(source).as_posix(), (2020, 1, 1, 0, 0, 0))
                    archive.writestr(info, file.read_bytes())
        files.replace(temporary, target)
    except OSError as error:
        raise InputError(f"'{target}' cannot be written ({brief(error)}).") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


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


def _check_attributes(path: Path, attributes: Json) -> None:
    """Refuse attributes of our own that are not what they must be."""
    count, span = attributes.get("n_episodes", 0), attributes.get("episode_info", [0, 0, 0])
    masks, keys = attributes.get("masks", {}), attributes.get("keys", {})
    right = {
        "n_episodes": type(count) is int
        and count >= 0
        and ("isdt_schema" not in attributes or "n_episodes" in attributes),
        "episode_info": isinstance(span, list) and len(span) == 3 and all(type(n) is int and n >= 0 for n in span),
        "task": isinstance(attributes.get("task"), str | None),
        "keys": isinstance(keys, dict) and all(isinstance(entry, dict) for entry in keys.values()),
        "masks": isinstance(masks, dict)
        and all(isinstance(m, list) and all(type(n) is int and n >= 0 for n in m) for m in masks.values()),
        "provenance": isinstance(attributes.get("provenance", {}), dict),
    }
    wrong = [name for name, holds in right.items() if not holds]
    if wrong:
        raise InputError(f"'{path}': its attribute '{wrong[0]}' is damaged; copy or convert the store again.")


def _retried(work: Callable[[], T]) -> T:
    """Do it again with more codecs, if one was missing."""
    try:
        return work()
    except Exception as error:
        if "imagecodecs" in (opening.missing_codec(error) or "") and opening.register_codecs():
            return work()
        raise


# Codecs that do not come with zarr's own dependency: pattern of the codec's name -> what to install.
_CODEC_PACKAGES = {"imagecodecs": "imagecodecs", "zfpy": "'numcodecs[zfpy]'", "pcodec": "'numcodecs[pcodec]'"}


def _unreadable(path: Path, what: str, error: Exception) -> InputError:
    return InputError(f"'{path}': {what} cannot be read: {_reason(error)}.")


def _reason(error: Exception) -> str:
    codec = opening.missing_codec(error)
    if codec:
        package = next((p for pattern, p in _CODEC_PACKAGES.items() if pattern in codec), None)
        install = f"pip install {package}" if package else "install the package that provides it"
        return f"it is compressed with the codec '{codec}', which is missing here: {install}"
    return f"a chunk is damaged ({brief(error)}); copy the store again"
