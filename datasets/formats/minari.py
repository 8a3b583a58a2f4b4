"""Minari datasets: NAME/data/{main_data.hdf5, metadata.json}, one group `episode_N` per episode.

How keys are called here and there:

    observations (a Box)      observation        actions       action        terminations   terminated
    observations/a/b (Dict)   a.b                rewards       reward        truncations    truncated

Minari keeps one observation more than actions; it goes to meta/episode_info (`last_observation`) and comes back from there.
The metadata (spaces, environment, author, ...) goes to the attribute `minari` as it is. `infos` are not carried over (ours that
tell how it went, such as coverage, are written there and come back), nor are spaces other than Box and Dict, nor the Arrow
storage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.formats import Recording, images
from isdt_policy.datasets.store import NOT_OBSERVED
from isdt_policy.shared.errors import InputError

_FILE = "main_data.hdf5"
_NAMES = {"actions": "action", "rewards": "reward", "terminations": "terminated", "truncations": "truncated"}
_SINGLE = "observation"  # name of an observation that is a plain array


LOOK = "folder with data/metadata.json and data/main_data.hdf5"
ENDINGS = ()


def recognises(path: Path) -> bool:
    return (path / "data" / "metadata.json").exists() or (path / _FILE).exists()


def read(path: Path) -> Recording:
    """Open a Minari dataset: its folder, or the folder `data` in it.

    Raises:
        InputError: not HDF5 storage, cut short, spaces that have no place in a store, or no episodes.
    """
    where = _data_folder(path)
    metadata = _metadata(where)
    file = _open(where / _FILE)
    with file:
        names = sorted((name for name in file if name.startswith("episode_")), key=lambda n: int(n.split("_")[1]))
        if not names:
            raise InputError(f"'{path}' holds no episodes.")
        info = [_info(where, file[name]) for name in names]
        dropped = {key for name in names for key in file[name].get("infos", {}) if key not in NOT_OBSERVED}
        notes = [f"infos are not carried over: {', '.join(sorted(dropped))}"] if dropped else []
    attributes: dict[str, Any] = metadata.pop("isdt_attributes", {})
    attributes.pop("provenance", None)
    task, filled = attributes.pop("task", None), attributes.pop("filled", [])
    if "env_spec" in metadata:
        spec = json.loads(metadata["env_spec"])
        attributes.setdefault("env", {"id": spec.get("id"), "kwargs": spec.get("kwargs", {})})
    attributes["minari"] = metadata

    def episodes() -> Iterator[dict[str, NDArray[Any]]]:
        with _open(where / _FILE) as file:
            for name in names:
                episode = _episode(where, file[name])
                yield {key: value for key, value in episode.items() if key not in filled}

    return Recording("minari", path, len(names), episodes, task, attributes, info, notes)


def write(recording: Recording, path: Path, provenance: dict[str, Any]) -> None:
    """Write a dataset that `minari.MinariDataset(path / "data")` opens, pixels as they are. `path` must not exist."""
    h5py = _h5py()
    folder = path / "data"
    folder.mkdir(parents=True)
    info = recording.info or [{}] * recording.n_episodes
    steps, first = 0, dict[str, Any]()
    with h5py.File(folder / _FILE, "w", track_order=True) as file:
        for number, episode in enumerate(recording.episodes()):
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


def _metadata(where: Path) -> dict[str, Any]:
    try:
        metadata: dict[str, Any] = json.loads((where / "metadata.json").read_text())
    except ValueError as error:
        raise InputError(
            f"'{where / 'metadata.json'}' is not complete JSON ({error}); download the dataset again."
        ) from None
    storage = metadata.get("data_format", "hdf5")
    if storage != "hdf5":
        raise InputError(
            f"'{where}' is stored as '{storage}'; only HDF5 is read. Write it again with data_format='hdf5'."
        )
    return metadata


def _leaves(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Datasets under a group, named with dots."""
    for name, value in group.items():
        yield from [(prefix + name, value)] if hasattr(value, "shape") else _leaves(value, f"{prefix}{name}.")


def _observations(where: Path, group: Any) -> dict[str, NDArray[Any]]:
    found = group["observations"]
    arrays = {_SINGLE: found} if hasattr(found, "shape") else dict(_leaves(found))
    clash = sorted(set(arrays) & {*NOT_OBSERVED, *_NAMES.values()})
    if clash:
        raise InputError(
            f"'{where}' has an observation called '{clash[0]}', a name that means something else in a store."
        )
    return {key: _pixels(where, key, value) for key, value in arrays.items()}


def _pixels(where: Path, key: str, dataset: Any) -> NDArray[Any]:
    values = dataset[()]
    # Minari embeds images of its image spaces as JPEG files, one row of bytes each.
    if values.dtype == object or (
        values.ndim == 2 and values.dtype == np.uint8 and bytes(values[0][:2]) == b"\xff\xd8"
    ):
        return np.stack([images.decode(np.asarray(row, np.uint8).tobytes()) for row in values])
    if values.dtype.kind not in "biuf":
        raise InputError(f"'{where}': observation '{key}' holds {values.dtype}; a store holds numbers.")
    return np.asarray(values)


def _episode(where: Path, group: Any) -> dict[str, NDArray[Any]]:
    try:
        if not hasattr(group["actions"], "shape"):
            raise InputError(f"'{where}': actions are a Dict or Tuple; a store holds one array of actions.")
        steps = len(group["actions"])
        arrays = {ours: group[theirs][()] for theirs, ours in _NAMES.items() if theirs in group}
        infos = group.get("infos", {})
        arrays |= {key: infos[key][()] for key in NOT_OBSERVED if key in infos and len(infos[key]) == steps}
        observations = _observations(where, group)
    except (OSError, KeyError, RuntimeError) as error:
        raise InputError(f"'{where / _FILE}': {group.name} cannot be read ({error}); download it again.") from error
    for key, value in observations.items():
        if len(value) not in (steps, steps + 1):
            raise InputError(f"'{where}': {group.name} has {len(value)} observations of '{key}' for {steps} actions.")
    return {**arrays, **{key: value[:steps] for key, value in observations.items()}}


def _info(where: Path, group: Any) -> dict[str, Any]:
    info = {key: value.item() for key, value in group.attrs.items() if key in ("id", "seed") and np.ndim(value) == 0}
    steps = len(group["actions"]) if "actions" in group else 0
    last = {k: v[steps].tolist() for k, v in _observations(where, group).items() if len(v) > steps and v.ndim < 4}
    return {**info, **({"last_observation": last} if last else {})}


def _write_episode(group: Any, number: int, episode: Mapping[str, NDArray[Any]], info: Mapping[str, Any]) -> None:
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


def _box(value: NDArray[Any]) -> dict[str, Any]:
    shape = value.shape[1:]
    low, high = -np.inf, np.inf
    if value.dtype.kind in "iu":
        low, high = np.iinfo(value.dtype).min, np.iinfo(value.dtype).max
    elif value.dtype.kind == "b":
        low, high = 0, 1
    bounds = {"low": np.full(shape, low).tolist(), "high": np.full(shape, high).tolist()}
    return {"type": "Box", "dtype": str(value.dtype), "shape": list(shape), **bounds}


def _observation_space(episode: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    observed = {k: v for k, v in episode.items() if k not in (*NOT_OBSERVED, *_NAMES.values())}
    if set(observed) == {_SINGLE}:
        return _box(observed[_SINGLE])
    space: dict[str, Any] = {"type": "Dict", "subspaces": {}}
    for key, value in observed.items():
        inner, *parts = space, *key.split(".")
        for part in parts[:-1]:
            inner = inner["subspaces"].setdefault(part, {"type": "Dict", "subspaces": {}})
        inner["subspaces"][parts[-1]] = _box(value)
    return space


def _open(path: Path) -> Any:
    h5py = _h5py()
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"'{path}' is not a complete HDF5 file ({error}); download it again.") from error


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise InputError("Minari datasets need h5py. Install it with: pip install 'isdt-policy[formats]'") from None
    return h5py
