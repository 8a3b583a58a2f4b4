"""Demonstrations from a scripted expert, resumable at any episode."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from isdt_policy import __version__
from isdt_policy.datasets import convert, formats
from isdt_policy.datasets.cameras import camera_keys, drawer, pictures_of
from isdt_policy.datasets.store import DemoStore, DemoWriter, pack_zip, task_attributes
from isdt_policy.envs import make, task_spec
from isdt_policy.envs.experts import EXPERTS, facts, generate_episodes
from isdt_policy.envs.opengl import renderer
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.progress import Progress
from isdt_policy.shared.values import JsonObject


def generate(
    out: str,
    task: str = "pusht",
    episodes: int = 200,
    seed: int = 0,
    workers: int = 2,
    format: str = "zarr",
    overwrite: bool = False,
    cameras: Sequence[str] = (),
) -> None:
    """Write `episodes` successful episodes of the task's expert to `out`, and go on where an earlier call stopped.

    Args:
        out: a .zarr folder, a .zarr.zip file, or for robomimic an .hdf5 file.
        task: a task that has an expert.
        episodes: in the finished store.
        seed: of the whole set; attempt i depends on (seed, i) alone.
        workers: processes; they do not change the result.
        format: "zarr" or "robomimic".
        overwrite: replace what this program wrote at `out` before.
        cameras: of the task, whose pictures are kept too.

    Raises:
        InputError: no expert, no such camera, nothing installed that draws, a number out of range, or `out` holds something else.
    """
    if episodes < 1:
        raise InputError(f"episodes must be at least 1, got {episodes}.")
    target = Path(out)
    _check_target(target, format, overwrite)
    if task not in EXPERTS:
        next(generate_episodes(task, 0))  # raises, naming the experts there are
    keys = camera_keys(task_spec(task), cameras)
    if keys:
        drawer(task, keys)  # raises, where nothing is installed that draws
    made_of = _provenance(task, seed, keys)
    directory = target if target.suffix == ".zarr" else target.with_name(f"{target.name}.part")
    with DemoWriter(directory, task, made_of, overwrite, attributes=_attributes(task, keys)) as writer:
        _check_same_source(writer.attrs, made_of, directory)
        first = int(writer.attrs.get("next_attempt", 0))
        if "attempts" in writer.attrs and "episode_info" not in writer.attrs:  # begun by version 0.1
            writer.set_episode_info([facts(task, seed, index) for index in writer.attrs["attempts"]])
        progress = Progress(episodes, "generate", "episode", initial=writer.n_episodes)
        more = partial(pictures_of, task, keys) if keys else None
        wanted = episodes - writer.n_episodes
        for arrays, info in generate_episodes(task, wanted, seed, workers, first=first, more=more):
            # Simulator states in full: an episode goes on from a rounded one, but not as it did.
            exact = ("states", *keys)
            stored = {k: np.asarray(v, None if k in exact else np.float32) for k, v in arrays.items()}
            index = info["index"]
            writer.append(stored, attributes={"next_attempt": index + 1}, info=facts(task, seed, index))
            progress.update(1, steps=len(arrays["action"]), kept=writer.n_episodes / (info["index"] + 1))
        progress.close()
    if format == "robomimic":
        _write_robomimic(directory, target, task, overwrite)
    elif directory != target:
        pack_zip(directory, target)
        shutil.rmtree(directory)
    store = DemoStore.open(target) if format == "zarr" else None
    if store is not None:
        print(f"{target}: {store.n_episodes} episodes, {store.n_steps} steps of {', '.join(store.keys)}")


def _check_target(target: Path, format: str, overwrite: bool) -> None:
    endings = {"zarr": (".zarr", ".zip"), "robomimic": (".hdf5", ".h5")}
    if format not in endings:
        raise InputError(f"unknown format '{format}'.{nearest(format, endings)} Allowed: {', '.join(endings)}.")
    if target.suffix not in endings[format]:
        wanted = ".zarr (a directory) or .zarr.zip (one file)" if format == "zarr" else ".hdf5"
        hint = " For HDF5 add format=robomimic." if target.suffix in endings["robomimic"] else ""
        raise InputError(f"out='{target}' must end in {wanted}.{hint}")
    if target.suffix != ".zarr" and target.exists() and not overwrite:
        raise InputError(
            f"'{target}' exists and a {target.suffix} is not added to; give another out, or overwrite=true."
        )


def _write_robomimic(directory: Path, target: Path, task: str, overwrite: bool) -> None:
    """Turn the finished store into a file that robomimic's scripts read and replay."""
    recording = formats.read(directory)
    env: Any = make(task)
    for info in recording.info:
        if hasattr(env, "model_xml"):  # robomimic replays states in the model they were recorded in
            env.reset(seed=info["reset_seed"])
            info["model_file"] = env.model_xml()
    convert.write(recording, target, "robomimic", overwrite)
    shutil.rmtree(directory)


# Raised whenever a scripted expert does something else for the same seed, so that no store mixes the two.
EXPERTS_VERSION = "2"


def _attributes(task: str, cameras: Sequence[str]) -> JsonObject:
    found = task_attributes(task)
    if not cameras:
        return found
    drawn = renderer(task_spec(task).packages)
    return {
        **found,
        "keys": {k: {**v, **({"renderer": drawn} if k in cameras else {})} for k, v in found["keys"].items()},
    }


def _provenance(task: str, seed: int, cameras: Sequence[str]) -> JsonObject:
    seen = f" cameras=[{','.join(cameras)}]" if cameras else ""
    return {
        "source": f"scripted expert of task {task}" + (f", seen by {', '.join(cameras)}" if cameras else ""),
        "command": f"isdt data generate task={task} seed={seed}{seen}",
        "task": task,
        "seed": seed,
        "versions": {
            "isdt-policy": __version__, "experts": EXPERTS_VERSION, "numpy": np.__version__, "python": platform.python_version(),
            **task_spec(task).versions(),
        },
        "license": "MIT",
    }  # fmt: skip


def _check_same_source(attrs: JsonObject, wanted: JsonObject, path: Path) -> None:
    found = attrs.get("provenance", {})
    for key in ("source", "seed", "versions"):
        if found.get(key) != wanted[key]:
            raise InputError(
                f"'{path}' was begun with {key}={found.get(key)}, now it is {wanted[key]}; "
                "an episode must be a function of the seed. Give another out, or overwrite=true."
            )
