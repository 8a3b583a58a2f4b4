"""robomimic HDF5: data/demo_N/{obs/<key>, actions, rewards, dones, states}, mask/<name>, env_args.

How keys are called here and there:

    obs/<key>  <key>        actions  action        rewards  reward        dones  done        states  states
    any other array of a demo with one row per step keeps its name

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.formats import Recording
from isdt_policy.datasets.formats.robomimic_replay import observer, recorded_task
from isdt_policy.datasets.store import NOT_OBSERVED, task_attributes
from isdt_policy.envs import rotations
from isdt_policy.envs.robomimic import SCENES, SPECS, env_args, task_of
from isdt_policy.shared.errors import InputError

_NAMES = {"actions": "action", "rewards": "reward", "dones": "done"}
_BACK = {ours: theirs for theirs, ours in _NAMES.items()}


LOOK = ".hdf5 file with data/demo_N/obs"
ENDINGS = (".hdf5", ".h5")


def recognises(path: Path) -> bool:
    return path.is_file() and path.open("rb").read(8) == b"\x89HDF\r\n\x1a\n"


def read(path: Path) -> Recording:
    """Open a robomimic file.

    Raises:
        InputError: cut short, no demos, demos that differ in their keys, or raw states of an environment that is not ours.
    """
    where = path
    with _open(where) as file:
        if "data" not in file or not [n for n in file["data"] if _number(n) is not None]:
            raise InputError(f"'{path}' holds no data/demo_N: not a robomimic file.")
        data = file["data"]
        names = sorted((n for n in data if _number(n) is not None), key=lambda n: _number(n) or 0)
        _check(where, data, names)
        given = {key: _plain(value) for key, value in data.attrs.items()}
        raw = "obs" not in data[names[0]]
        task = recorded_task(given, str(path)) if raw else None
        attributes, notes = _attributes(data)
        if task is not None:
            notes = [note for note in notes if not note.startswith("env_args")]
            notes.append(f"no observations in the file: computed by replaying its states in task '{task}'")
            attributes = {**task_attributes(task), **attributes, "task": task}
        masks, missing = _masks(file, names)
        if missing:
            notes.append(f"the masks name {missing} demos that are not in this file; those entries are left out")
        ours = str(attributes.get("task"))
        convert = _rotation(ours, 7, data[names[0]]["actions"].shape[-1])
        if convert is not None:
            attributes["action_space"] = {**attributes.get("action_space", {}), "rotation": "6d"}
            notes.append(f"rotations of the actions written as 6D, as task '{ours}' takes them")
        info = [{"name": name, **{k: _plain(v) for k, v in data[name].attrs.items()}} for name in names]
        filled = tuple(json.loads(data.attrs["isdt_filled"])) if "isdt_filled" in data.attrs else ()
    if masks:
        attributes["masks"] = masks

    def episodes() -> Iterator[dict[str, NDArray[Any]]]:
        observe = observer(task) if task is not None else None
        with _open(where) as file:
            for name in names:
                episode = _episode(where, file["data"][name], filled, observe)
                yield episode if convert is None else {**episode, "action": convert(episode["action"])}

    return Recording(
        "robomimic",
        where,
        len(names),
        episodes,
        attributes.get("task"),
        {k: v for k, v in attributes.items() if k != "task"},
        info,
        notes,
    )


def write(recording: Recording, path: Path, provenance: dict[str, Any]) -> None:
    """Write a file that robomimic reads. rewards (0) and dones (1 at the end) are filled in where there are none."""
    h5py = _h5py()
    attributes = recording.attributes
    names = [
        str(info.get("name", f"demo_{i}"))
        for i, info in enumerate(recording.info + [{}] * (recording.n_episodes - len(recording.info)))
    ]
    if len(set(names)) < len(names):  # merged files may both have a demo_0
        names = [f"demo_{i}" for i in range(recording.n_episodes)]
    total, filled = 0, set[str]()
    try:
        with h5py.File(path, "w") as file:
            data = file.create_group("data")
            for index, episode in enumerate(recording.episodes()):
                convert = _rotation(str(recording.task), 10, episode["action"].shape[-1])
                if convert is not None:
                    episode = {**episode, "action": convert(episode["action"])}
                total += _write_demo(data.create_group(names[index]), episode, filled)
                if index < len(recording.info):
                    for key, value in recording.info[index].items():
                        if key not in ("name", "num_samples"):
                            data[names[index]].attrs[key] = value if np.isscalar(value) else json.dumps(value)
            data.attrs["total"] = total
            env = attributes.get("env", {})
            if recording.task in SPECS and "type" not in env:  # recorded here: as robomimic's scripts want to read it
                data.attrs["env_args"] = json.dumps(env_args(str(recording.task)), indent=4)
            elif env:
                type_ = env.get("type", 2)  # 1: robosuite, 2: gym, in robomimic's numbering
                arguments = {"env_name": env["id"], "type": type_, "env_kwargs": env.get("kwargs", {})}
                data.attrs["env_args"] = json.dumps({**arguments, **env.get("further", {})}, indent=4)
            for key, value in attributes.get("source_attributes", {}).items():
                data.attrs[key] = value
            data.attrs["isdt_filled"] = json.dumps(sorted(filled))
            kept = {k: v for k, v in attributes.items() if k not in ("env", "masks", "source_attributes")}
            data.attrs["isdt_attributes"] = json.dumps({**kept, "task": recording.task, "provenance": provenance})
            for name, chosen in attributes.get("masks", {}).items():
                file.create_dataset(f"mask/{name}", data=np.array([names[i] for i in chosen], "S"))
    except OSError as error:
        raise InputError(f"'{path}' cannot be written ({error}).") from error


def _rotation(task: str, per_arm: int, width: int) -> Callable[[NDArray[Any]], NDArray[Any]] | None:
    """Return what rewrites absolute actions of `per_arm` numbers per arm, 7 as 10 or 10 as 7; None where nothing is to do."""
    if task not in SPECS or SPECS[task].action_space["type"] != "absolute":
        return None
    if width != per_arm * SCENES[task.removesuffix("_abs")].n_arms:
        return None

    def rewritten(actions: NDArray[Any]) -> NDArray[Any]:
        parts = actions.reshape(len(actions), -1, per_arm)
        if per_arm == 10:
            turned = rotations.matrix_to_axis_angle(rotations.six_to_matrix(parts[..., 3:9]))
        else:
            turned = rotations.matrix_to_six(rotations.axis_angle_to_matrix(parts[..., 3:6]))
        joined = np.concatenate([parts[..., :3], turned, parts[..., -1:]], axis=-1)
        return joined.reshape(len(actions), -1).astype(actions.dtype)

    return rewritten


def _write_demo(demo: Any, episode: dict[str, NDArray[Any]], filled: set[str]) -> int:
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


def _episode(
    path: Path, demo: Any, filled: tuple[str, ...], observe: Callable[..., dict[str, NDArray[Any]]] | None = None
) -> dict[str, NDArray[Any]]:
    import h5py

    try:
        if observe is None:
            arrays = {key: value[()] for key, value in demo["obs"].items()}
        else:
            arrays = observe(demo["states"][()], _plain(demo.attrs.get("model_file")))
        steps = len(demo["actions"])
        for name, value in demo.items():
            one_row_per_step = isinstance(value, h5py.Dataset) and value.ndim and len(value) == steps
            if one_row_per_step and name not in filled:
                arrays[_NAMES.get(name, name)] = value[()]
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"'{path}': {demo.name} cannot be read ({error}); it is damaged, download it again."
        ) from error
    lengths = {key: len(value) for key, value in arrays.items()}
    if set(lengths.values()) != {steps}:
        wrong = next(key for key, length in lengths.items() if length != steps)
        raise InputError(f"'{path}': {demo.name}/obs/{wrong} has {lengths[wrong]} rows, actions have {steps}.")
    return arrays


def _check(path: Path, data: Any, names: list[str]) -> None:
    keys: set[str] | None = None
    for name in names:
        if "actions" not in data[name]:
            raise InputError(f"'{path}': data/{name} has no actions; the file was cut short or is no robomimic file.")
        if "obs" not in data[name] and "states" not in data[name]:
            raise InputError(f"'{path}': data/{name} has neither obs nor states.")
        if "obs" not in data[name]:
            found: set[str] = set()  # to be computed from the states
        else:
            found = set(data[name]["obs"])
        if keys is not None and found != keys:
            raise InputError(
                f"'{path}': data/{name}/obs differs from data/{names[0]}/obs in {', '.join(sorted(found ^ keys))}; "
                "the demos of a file must have the same keys."
            )
        keys = found


def _attributes(data: Any) -> tuple[dict[str, Any], list[str]]:
    """Our attributes from those of the group data/, and notes about what is missing."""
    given = {key: _plain(value) for key, value in data.attrs.items()}
    attributes: dict[str, Any] = json.loads(given.pop("isdt_attributes", "{}"))
    attributes.pop("provenance", None)
    notes = []
    arguments = given.pop("env_args", None)
    if arguments is not None:
        env = json.loads(arguments)
        further = {k: v for k, v in env.items() if k not in ("env_name", "type", "env_kwargs")}
        attributes["env"] = {
            **attributes.get("env", {}),
            "id": env.get("env_name"), "kwargs": env.get("env_kwargs", {}), "type": env.get("type"), "further": further,
        }  # fmt: skip
        attributes.setdefault("action_space", _action_space(env.get("env_kwargs", {})))
        attributes.setdefault("task", _task_name(env))
    else:
        notes.append("env_args is missing: which environment and controller were recorded is not known")
    rest = {k: v for k, v in given.items() if k not in ("total", "isdt_filled")}
    if rest:
        attributes["source_attributes"] = rest
    return attributes, notes


def _action_space(kwargs: dict[str, Any]) -> dict[str, Any]:
    controller = kwargs.get("controller_configs") or {}
    controller = controller.get("body_parts", {}).get("right", controller)  # robosuite 1.5 nests it
    delta = controller.get("control_delta", controller.get("input_type", "delta") == "delta")
    return {
        "type": "delta" if delta else "absolute",
        "controller": controller.get("type"),
        "rotation": "axis-angle",
        "rate_hz": kwargs.get("control_freq"),
    }


def _task_name(env_args: dict[str, Any]) -> str | None:
    """Our task, where the file was recorded in one of them; else the environment's own name."""
    try:
        return task_of(env_args)
    except InputError:
        return env_args.get("env_name")


def _masks(file: Any, names: list[str]) -> tuple[dict[str, list[int]], int]:
    """Masks as episode numbers, and how many demos they name that are not there."""
    numbers = {name: i for i, name in enumerate(names)}
    masks, unknown = {}, set()
    for name, mask in file.get("mask", {}).items():
        members = [_plain(member) for member in mask[()]]
        masks[name] = sorted(numbers[m] for m in members if m in numbers)
        unknown |= {m for m in members if m not in numbers}
    return masks, len(unknown)


def _number(name: str) -> int | None:
    match = re.fullmatch(r"demo_(\d+)", name)
    return int(match.group(1)) if match else None


def _plain(value: Any) -> Any:
    """HDF5 attribute or string as a JSON value."""
    if isinstance(value, bytes):
        return value.decode()
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


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
        raise InputError("robomimic files need h5py. Install it with: pip install 'isdt-policy[formats]'") from None
    return h5py
