"""Minari datasets: NAME/data/{main_data.hdf5, metadata.json}, one group `episode_N` per episode.

How keys are called here and there:

    observations (a Box)      observation        actions       action        terminations   terminated
    observations/a/b (Dict)   a.b                rewards       reward        truncations    truncated

Minari keeps one observation more than actions; it goes to meta/episode_info (`last_observation`) and comes back from there.
The metadata (spaces, environment, author, ...) goes to the attribute `minari` as it is. `infos` are not carried over (ours that
tell how it went, such as coverage, are written there and come back), nor are texts; both are noted. Spaces other than Box and
Dict, and the Arrow storage, are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isdt_policy.datasets.formats import Episode, Reading, Recording, hdf5, images
from isdt_policy.datasets.store import NOT_OBSERVED
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import Array, Json, JsonObject, parse_json

if TYPE_CHECKING:
    import h5py

_FILE = "main_data.hdf5"
_NAMES = {"actions": "action", "rewards": "reward", "terminations": "terminated", "truncations": "truncated"}
_SINGLE = "observation"  # name of an observation that is a plain array


LOOK = "folder with data/metadata.json and data/main_data.hdf5"
ENDINGS = ()


def recognises(path: Path) -> bool:
    return (path / "data" / "metadata.json").exists() or (path / _FILE).exists()


def read(path: Path, how: Reading) -> Recording:
    """Open a Minari dataset: its folder, or the folder `data` in it.

    Raises:
        InputError: not HDF5 storage, cut short, spaces that have no place in a store, or no episodes.
    """
    where = _data_folder(path)
    metadata = _metadata(where)
    with hdf5.opened(where / _FILE) as file:
        names = sorted((n for n in file if re.fullmatch(r"episode_\d+", n)), key=lambda n: int(n.split("_")[1]))
        if not names:
            raise InputError(f"'{path}' holds no episodes.")
        info = [_info(where, file[name], how) for name in names]
        notes = _left_out(file, names)
    own = metadata.pop("isdt_attributes", None)
    attributes: JsonObject = own if isinstance(own, dict) else {}
    attributes.pop("provenance", None)
    task, filled = attributes.pop("task", None), attributes.pop("filled", [])
    try:
        spec = json.loads(metadata.get("env_spec") or "{}")
    except (TypeError, ValueError):
        spec = {}
    if isinstance(spec, dict) and spec:
        attributes.setdefault("env", {"id": spec.get("id"), "kwargs": spec.get("kwargs", {})})
    attributes["minari"] = metadata

    def load(numbers: Sequence[int]) -> Iterator[Episode]:
        with hdf5.opened(where / _FILE) as file:
            for number in numbers:
                episode = _episode(where, file[names[number]], how)
                yield {key: value for key, value in episode.items() if key not in filled}

    return Recording("minari", path, range(len(names)), load, task, attributes, info, notes)


def write(recording: Recording, path: Path, provenance: JsonObject) -> None:
    """Write a dataset that `minari.MinariDataset(path / "data")` opens, pixels as they are. `path` must not exist."""
    folder = path / "data"
    folder.mkdir(parents=True)
    info = recording.info or [{}] * recording.n_episodes
    steps, first = 0, JsonObject()
    with hdf5.written(folder / _FILE, track_order=True) as (file, check):
        for number, episode in enumerate(recording.episodes()):
            check()
            first = first or episode
            steps += len(episode["action"])
            _write_episode(file.create_group(f"episode_{number}"), number, episode, info[number])
    filled = [ours for ours in _NAMES.values() if ours not in first]  # Minari needs them; they are no data of ours
    kept = {k: v for k, v in recording.attributes.items() if k != "minari"}
    metadata = {
        "dataset_id": f"{path.name}-v0", "minari_version": "0.5.0", "env_spec": None,
        "action_space": json.dumps(_box(first["action"])), "observation_space": json.dumps(_observation_space(first)),
        **recording.attributes.get("minari", {}),
        "data_format": "hdf5", "jpeg_encoding": False, "total_episodes": recording.n_episodes, "total_steps": steps,
        "dataset_size": (folder / _FILE).stat().st_size / 1e6,
        "isdt_attributes": {**kept, "task": recording.task, "provenance": provenance, "filled": filled},
    }  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}))


def _data_folder(path: Path) -> Path:
    for folder in (path, path / "data"):
        if (folder / "metadata.json").exists():
            return folder
    raise InputError(f"'{path}' has no data/metadata.json: not a Minari dataset, or one that was cut short.")


def _metadata(where: Path) -> JsonObject:
    try:
        metadata = parse_json((where / "metadata.json").read_bytes())
    except ValueError as error:
        raise InputError(
            f"'{where / 'metadata.json'}' is not complete JSON ({error}); download the dataset again."
        ) from None
    if not isinstance(metadata, dict):
        raise InputError(f"'{where / 'metadata.json'}' holds no JSON object; download the dataset again.")
    storage = metadata.get("data_format", "hdf5")
    if storage != "hdf5":
        raise InputError(
            f"'{where}' is stored as '{storage}'; only HDF5 is read. Write it again with data_format='hdf5'."
        )
    return metadata


def _left_out(file: h5py.File, names: Sequence[str]) -> list[str]:
    """What is in the file and not carried over."""
    infos = {key for name in names for key in file[name].get("infos", {}) if key not in NOT_OBSERVED}
    notes = [f"infos are not carried over: {', '.join(sorted(infos))}"] if infos else []
    groups = {name for name in file if name not in names}
    groups |= {
        f"episode_N/{key}" for name in names for key in file[name] if key not in ("observations", "infos", *_NAMES)
    }
    groups |= {
        f"observations/{key} (no numbers)" for name in names for key, d in _observed(file[name]) if hdf5.is_text(d)
    }
    return notes + ([f"not carried over: {', '.join(sorted(groups))}"] if groups else [])


def _observed(group: h5py.Group) -> list[tuple[str, h5py.Dataset]]:
    """(key, dataset) of every observation."""
    found = group.get("observations")
    if found is None:
        raise InputError(f"'{group.file.filename}': {group.name} has no observations; download it again.")
    return [(_SINGLE, found)] if hasattr(found, "shape") else list(hdf5.leaves(found))


def _observations(where: Path, group: h5py.Group, how: Reading) -> Episode:
    arrays = dict(_observed(group))
    clash = sorted(set(arrays) & {*NOT_OBSERVED, *_NAMES.values()})
    if clash:
        raise InputError(
            f"'{where}' has an observation called '{clash[0]}', a name that means something else in a store."
        )
    return {k: _pixels(where, data) for k, data in arrays.items() if how.wants(k) and not hdf5.is_text(data)}


def _pixels(where: Path, dataset: h5py.Dataset) -> Array:
    # Minari embeds images of its image spaces as JPEG files, one row of bytes each.
    if dataset.dtype == object:
        return np.stack([images.decode(np.asarray(row, np.uint8).tobytes()) for row in dataset])
    values = hdf5.array(where / _FILE, dataset)
    if values.ndim == 2 and len(values) and values.dtype == np.uint8 and bytes(values[0][:2]) == b"\xff\xd8":
        return np.stack([images.decode(row.tobytes()) for row in values])
    return values


def _episode(where: Path, group: h5py.Group, how: Reading) -> Episode:
    if not hasattr(group.get("actions"), "shape"):
        raise InputError(f"'{where}': {group.name} has no array of actions; a Dict or Tuple has no place in a store.")
    steps = len(group["actions"])
    arrays = {
        ours: hdf5.array(where / _FILE, group[theirs])
        for theirs, ours in _NAMES.items()
        if theirs in group and how.wants(ours)
    }
    infos = group.get("infos", {})
    told = [key for key in NOT_OBSERVED if key in infos and len(infos[key]) == steps and how.wants(key)]
    arrays |= {key: hdf5.array(where / _FILE, infos[key]) for key in told}
    observations = _observations(where, group, how)
    for key, value in observations.items():
        if len(value) not in (steps, steps + 1):
            raise InputError(f"'{where}': {group.name} has {len(value)} observations of '{key}' for {steps} actions.")
    return {**arrays, **{key: value[:steps] for key, value in observations.items()}}


def _info(where: Path, group: h5py.Group, how: Reading) -> JsonObject:
    info = {
        key: value for key, value in hdf5.attributes(group).items() if key in ("id", "seed") and np.ndim(value) == 0
    }
    steps = len(group["actions"]) if hasattr(group.get("actions"), "shape") else 0
    last = {
        key: data[steps].tolist()
        for key, data in _observed(group)
        if how.wants(key) and data.dtype.kind in "biuf" and data.ndim and len(data) > steps and data.ndim < 4
    }
    return {**info, **({"last_observation": last} if last else {})}


def _write_episode(group: h5py.Group, number: int, episode: Mapping[str, Array], info: Json) -> None:
    steps = len(episode["action"])
    last = info.get("last_observation", {})
    whole = {}
    for key, value in episode.items():
        if key not in (*NOT_OBSERVED, *_NAMES.values()):
            final = np.asarray([last[key]], value.dtype) if key in last else value[-1:]
            whole[key] = np.concatenate([value, final])
    if set(whole) == {_SINGLE}:
        group["observations"] = whole[_SINGLE]
    else:
        for key, value in whole.items():
            group[f"observations/{key.replace('.', '/')}"] = value
    ends = np.eye(1, steps, steps - 1, dtype=bool)[0]
    defaults = {"rewards": np.zeros(steps), "terminations": ends, "truncations": np.zeros(steps, bool)}
    for theirs, ours in _NAMES.items():
        group[theirs] = episode[ours] if ours in episode else defaults[theirs]
    for key in set(episode) & {*NOT_OBSERVED} - {*_NAMES.values()}:
        group[f"infos/{key}"] = episode[key]
    group.attrs["total_steps"], group.attrs["id"] = steps, number
    if "seed" in info:
        group.attrs["seed"] = info["seed"]


def _box(value: Array) -> JsonObject:
    shape = value.shape[1:]
    low, high = -np.inf, np.inf
    if value.dtype.kind in "iu":
        low, high = np.iinfo(value.dtype).min, np.iinfo(value.dtype).max
    elif value.dtype.kind == "b":
        low, high = 0, 1
    bounds = {"low": np.full(shape, low).tolist(), "high": np.full(shape, high).tolist()}
    return {"type": "Box", "dtype": str(value.dtype), "shape": list(shape), **bounds}


def _observation_space(episode: Mapping[str, Array]) -> JsonObject:
    observed = {k: v for k, v in episode.items() if k not in (*NOT_OBSERVED, *_NAMES.values())}
    if set(observed) == {_SINGLE}:
        return _box(observed[_SINGLE])
    space: JsonObject = {"type": "Dict", "subspaces": {}}
    for key, value in observed.items():
        inner, *parts = space, *key.split(".")
        for part in parts[:-1]:
            inner = inner["subspaces"].setdefault(part, {"type": "Dict", "subspaces": {}})
        inner["subspaces"][parts[-1]] = _box(value)
    return space
