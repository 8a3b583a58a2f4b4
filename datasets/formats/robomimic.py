"""robomimic HDF5: data/demo_N/{obs/<key>, actions, rewards, dones, states}, mask/<name>, env_args.

How keys are called here and there:

    obs/<key>  <key>        actions  action        rewards  reward        dones  done        states  states
    obs/a/b    a.b          any other array of a demo with one row per step keeps its name

Demos are taken in numerical order (demo_2 before demo_10); their names, `model_file` and other attributes go to
meta/episode_info, masks to the attribute `masks`, `env_args` to the attribute `env`. next_obs is not stored: it is obs one
step later, and is written as such (the last row repeated). Released files lack some of this (v0.1 samples have no
env_args, masks that name demos of a larger file): what is missing is left out and noted. Raw files, which hold states and
no observations, are replayed in robosuite.

Absolute actions have their rotation as axis-angle there, 7 numbers per arm, and as 6D in our tasks, 10 per arm; they are
converted on the way in and out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isdt_policy.datasets.formats import Episode, Reading, Recording, hdf5
from isdt_policy.datasets.formats.robomimic_env import environment, rewritten_rotation
from isdt_policy.datasets.formats.robomimic_replay import observer, recorded_task
from isdt_policy.datasets.store import NOT_OBSERVED, task_attributes
from isdt_policy.envs.robomimic_args import env_args
from isdt_policy.envs.robomimic_specs import SPECS
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import JsonObject

if TYPE_CHECKING:
    import h5py

LOOK = ".hdf5 file with data/demo_N/obs"
ENDINGS = (".hdf5", ".h5")
_NAMES = {"actions": "action", "rewards": "reward", "dones": "done"}
_BACK = {ours: theirs for theirs, ours in _NAMES.items()}
_SAMPLE = 20  # demos whose actions tell whether they are displacements


def recognises(path: Path) -> bool:
    return path.is_file() and path.open("rb").read(8) == hdf5.SIGNATURE


def read(path: Path, how: Reading) -> Recording:
    """Open a robomimic file.

    Raises:
        InputError: cut short, no demos, demos that differ in their keys, or raw states of an environment that is not ours.
    """
    with hdf5.opened(path) as file:
        data = file.get("data")
        names = sorted((n for n in data or () if _number(n) is not None), key=lambda n: _number(n) or 0)
        if not isinstance(data, hdf5.h5().Group) or not names:
            raise InputError(f"'{path}' holds no data/demo_N: not a robomimic file.")
        _check(path, data, names, how)
        given = hdf5.attributes(data)
        raw = "obs" not in data[names[0]]
        task = recorded_task(given, str(path)) if raw else None
        attributes, notes = _attributes(path, data, names, how)
        if task is not None:
            notes = [note for note in notes if not note.startswith("env_args")]
            notes.append(f"no observations in the file: computed by replaying its states in task '{task}'")
            attributes = {**task_attributes(task), **attributes, "task": task}
        masks, missing = _masks(file, names)
        if missing:
            notes.append(f"the masks name {missing} demos that are not in this file; those entries are left out")
        texts = {key for key, dataset in hdf5.leaves(data[names[0]].get("obs", {})) if dataset.dtype.kind not in "biuf"}
        notes += _left_out(file, data, names, texts)
        ours = str(attributes.get("task"))
        convert = rewritten_rotation(ours, 7, data[names[0]]["actions"].shape[-1])
        if convert is not None:
            attributes["action_space"] = {**attributes.get("action_space", {}), "rotation": "6d"}
            notes.append(f"rotations of the actions written as 6D, as task '{ours}' takes them")
        info = [{"name": name, **hdf5.attributes(data[name])} for name in names]
        filled = tuple(json.loads(given.get("isdt_filled") or "[]"))
    if masks:
        attributes["masks"] = masks

    def load(numbers: Sequence[int]) -> Iterator[Episode]:
        observe = observer(task) if task is not None else None
        with hdf5.opened(path) as file:
            for number in numbers:
                demo = file["data"][names[number]]
                arrays = _arrays(path, demo, how, filled, texts)
                if observe is not None:
                    states, model = hdf5.array(path, demo["states"]), hdf5.plain(demo.attrs.get("model_file"))
                    arrays |= observe(states, model)
                if convert is not None:
                    arrays["action"] = convert(arrays["action"])
                yield arrays

    kept = {k: v for k, v in attributes.items() if k != "task"}
    return Recording("robomimic", path, range(len(names)), load, attributes.get("task"), kept, info, notes)


def write(recording: Recording, path: Path, provenance: JsonObject) -> None:
    """Write a file that robomimic reads. rewards (0) and dones (1 at the end) are filled in where there are none."""
    attributes = recording.attributes
    names = [str(info.get("name")) for info in recording.info]
    if len(set(names)) < recording.n_episodes or any(_number(name) is None for name in names):
        names = [f"demo_{i}" for i in range(recording.n_episodes)]  # merged files may both have a demo_0
    total, filled = 0, set[str]()
    with hdf5.written(path) as (file, check):
        data = file.create_group("data")
        for index, episode in enumerate(recording.episodes()):
            check()
            convert = rewritten_rotation(str(recording.task), 10, episode["action"].shape[-1])
            if convert is not None:
                episode = {**episode, "action": convert(episode["action"])}
            total += _write_demo(data.create_group(names[index]), episode, filled)
            if index < len(recording.info):
                for key, value in recording.info[index].items():
                    if key not in ("name", "num_samples"):
                        data[names[index]].attrs[key] = _attribute(value)
        data.attrs["total"] = total
        env = attributes.get("env", {})
        if recording.task in SPECS and "type" not in env:  # recorded here: as robomimic's scripts want to read it
            data.attrs["env_args"] = json.dumps(env_args(str(recording.task)), indent=4)
        elif env:
            type_ = env.get("type", 2)  # 1: robosuite, 2: gym, in robomimic's numbering
            arguments = {"env_name": env["id"], "type": type_, "env_kwargs": env.get("kwargs", {})}
            data.attrs["env_args"] = json.dumps({**arguments, **env.get("further", {})}, indent=4)
        for key, value in attributes.get("source_attributes", {}).items():
            data.attrs[key] = _attribute(value)
        data.attrs["isdt_filled"] = json.dumps(sorted(filled))
        kept = {k: v for k, v in attributes.items() if k not in ("env", "masks", "source_attributes")}
        data.attrs["isdt_attributes"] = json.dumps({**kept, "task": recording.task, "provenance": provenance})
        for name, chosen in attributes.get("masks", {}).items():
            file.create_dataset(f"mask/{name}", data=np.array([names[i] for i in chosen], "S"))


def _attribute(value: object) -> object:
    """A JSON value as HDF5 keeps it."""
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)


def _write_demo(demo: h5py.Group, episode: Episode, filled: set[str]) -> int:
    steps = len(episode["action"])
    for key, value in episode.items():
        options = {"compression": "gzip", "compression_opts": 4} if value.ndim == 4 else {}
        if key in NOT_OBSERVED:
            demo.create_dataset(_BACK.get(key, key), data=value)
            continue
        demo.create_dataset(f"obs/{key}", data=value, **options)
        demo.create_dataset(f"next_obs/{key}", data=np.concatenate([value[1:], value[-1:]]), **options)
    for name, default in (("rewards", np.zeros(steps)), ("dones", np.eye(1, steps, steps - 1, dtype=np.int64)[0])):
        if name not in demo:
            demo.create_dataset(name, data=default)
            filled.add(name)
    demo.attrs["num_samples"] = steps
    return steps


def _arrays(path: Path, demo: h5py.Group, how: Reading, filled: Sequence[str], texts: Set[str]) -> Episode:
    """Every wanted array of a demo; each has one row per step."""
    steps = len(demo["actions"])
    arrays = {}
    for name, dataset in hdf5.leaves(demo["obs"]) if "obs" in demo else ():
        if how.wants(name) and name not in texts:
            arrays[name] = hdf5.array(path, dataset)
            if not dataset.shape or len(dataset) != steps:
                rows = len(dataset) if dataset.shape else 0
                raise InputError(
                    f"'{path}': {dataset.name} has {rows} rows, actions have {steps}. Leave it out: name the keys you want, "
                    "keys=..."
                )
    for name, value in demo.items():
        if _is_row_per_step(value, steps) and name not in filled and how.wants(_NAMES.get(name, name)):
            arrays[_NAMES.get(name, name)] = hdf5.array(path, value)
    return arrays


def _is_row_per_step(value: object, steps: int) -> bool:
    return (
        isinstance(value, hdf5.h5().Dataset)
        and bool(value.shape)
        and len(value) == steps
        and value.dtype.kind in "biuf"
    )


def _check(path: Path, data: h5py.Group, names: Sequence[str], how: Reading) -> None:
    first: set[str] | None = None
    for name in names:
        if not isinstance(data[name], hdf5.h5().Group) or not isinstance(data[name].get("actions"), hdf5.h5().Dataset):
            raise InputError(f"'{path}': data/{name} has no actions; the file was cut short or is no robomimic file.")
        if "obs" not in data[name] and "states" not in data[name]:
            raise InputError(f"'{path}': data/{name} has neither obs nor states.")
        obs = data[name].get("obs")
        if obs is not None and not isinstance(obs, hdf5.h5().Group):
            raise InputError(f"'{path}': data/{name}/obs is one array; robomimic's files have a group of arrays there.")
        # Without obs they are computed from the states.
        found = {key for key, _ in hdf5.leaves(obs) if how.wants(key)} if obs is not None else set()
        if found != (first := found if first is None else first):
            differing = ", ".join(sorted(found ^ first))
            raise InputError(
                f"'{path}': data/{name}/obs differs from data/{names[0]}/obs in {differing}; the demos of a file must have the "
                f"same keys. Name those you want, keys=..., or leave out the demo: isdt data split SOURCE TARGET exclude=..."
            )


def _attributes(path: Path, data: h5py.Group, names: Sequence[str], how: Reading) -> tuple[JsonObject, list[str]]:
    """Our attributes from those of the group data/, and notes about what is missing."""
    given = hdf5.attributes(data)
    own: JsonObject = json.loads(given.pop("isdt_attributes", None) or "{}")
    own.pop("provenance", None)
    sample = [hdf5.array(path, data[name]["actions"]) for name in names[:_SAMPLE]]
    fitting = [a for a in sample if a.ndim == 2 and a.shape[1:] == sample[0].shape[1:]]
    try:
        found, notes = environment(given, np.concatenate(fitting) if fitting else np.zeros((0, 0)), how.actions)
    except InputError as error:
        raise InputError(f"'{path}': {error}") from error
    env = {**own.get("env", {}), **found.pop("env", {})}
    rest = {k: v for k, v in given.items() if k not in ("total", "isdt_filled")}
    attributes = {**found, **own, **({"env": env} if env else {}), **({"source_attributes": rest} if rest else {})}
    return attributes, notes


def _left_out(file: h5py.File, data: h5py.Group, names: Sequence[str], texts: Set[str]) -> list[str]:
    """What is in the file and not carried over."""
    groups = {f"{name}/" for name in file if name not in ("data", "mask")}
    groups |= {f"data/{name}" for name in data if name not in names}
    for demo in names:
        steps = len(data[demo]["actions"])
        for name, value in data[demo].items():
            if name not in ("obs", "next_obs", "actions") and not _is_row_per_step(value, steps):
                groups.add(f"data/demo_N/{name}")
    found = sorted(groups | {f"obs/{key} (no numbers)" for key in texts})
    return [f"not carried over: {', '.join(found)}"] if found else []


def _masks(file: h5py.File, names: Sequence[str]) -> tuple[dict[str, list[int]], int]:
    """Masks as episode numbers, and how many demos they name that are not there."""
    numbers = {name: i for i, name in enumerate(names)}
    masks, unknown = {}, set()
    for name, mask in file.get("mask", {}).items():
        members = [hdf5.plain(member) for member in mask[()]]
        masks[name] = sorted(numbers[m] for m in members if m in numbers)
        unknown |= {m for m in members if m not in numbers}
    return masks, len(unknown)


def _number(name: str) -> int | None:
    match = re.fullmatch(r"demo_(\d+)", name)
    return int(match.group(1)) if match else None
