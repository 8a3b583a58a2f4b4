"""`isdt data generate`: demonstrations from a scripted expert, resumable at any episode."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from isdt_policy.datasets.store import DemoStore, DemoWriter, pack_zip, task_attributes
from isdt_policy.envs import task_spec
from isdt_policy.shared.errors import InputError, nearest

HELP = """
usage: isdt data generate out=PATH [task=pusht] [episodes=200] [seed=0] [workers=2] [format=zarr] [overwrite=false]

Let a task's scripted expert make demonstrations. Failed attempts are left out. Attempt i is a function of (seed, i), so
the result does not depend on `workers`, and an interrupted command goes on where it stopped when it is given again.

  out=PATH         a .zarr directory, a .zarr.zip file, or with format=robomimic an .hdf5 file
  task=pusht       task with an expert: pusht, lift, can, square (delta actions), lift_abs, can_abs, square_abs (absolute)
  episodes=200     episodes in the finished store; raise it later to add more
  seed=0           seed of the whole set
  workers=2        processes
  format=zarr      or robomimic: HDF5 as robomimic's scripts read it, with env_args, states and model_file
  overwrite=false  true replaces what is at PATH

examples
  isdt data generate out=demos.zarr                         200 PushT episodes
  isdt data generate out=demos.zarr episodes=1000           800 more
  isdt data generate out=demos.zarr.zip seed=1 workers=8    one file, other episodes
  isdt data generate task=lift out=lift.zarr                Lift in robosuite
  isdt data generate task=can out=can.hdf5 format=robomimic
"""


def generate(
    out: str,
    task: str = "pusht",
    episodes: int = 200,
    seed: int = 0,
    workers: int = 2,
    format: str = "zarr",
    overwrite: bool = False,
) -> int:
    """Write `episodes` successful episodes of the task's expert to `out`; see HELP.

    Raises:
        InputError: no expert, a number out of range, or `out` holds something else.
    """
    from isdt_policy.envs.experts import EXPERTS, facts, generate_episodes
    from isdt_policy.shared.progress import Progress

    if episodes < 1:
        raise InputError(f"episodes must be at least 1, got {episodes}.")
    target = Path(out)
    _check_target(target, format, overwrite)
    if task not in EXPERTS:
        next(generate_episodes(task, 0))  # raises, naming the experts there are
    made_of = _provenance(task, seed)
    directory = target if target.suffix == ".zarr" else target.with_name(f"{target.name}.part")
    with DemoWriter(directory, task, made_of, overwrite, attributes=task_attributes(task)) as writer:
        _check_same_source(writer.attrs, made_of, directory)
        first = int(writer.attrs.get("next_attempt", 0))
        attempts = list(writer.attrs.get("attempts", []))
        progress = Progress(episodes, "generate", "episode", initial=writer.n_episodes)
        for arrays, info in generate_episodes(task, episodes - writer.n_episodes, seed, workers, first=first):
            attempts.append(info["index"])
            # Simulator states in full: an episode goes on from a rounded one, but not as it did.
            stored = {k: np.asarray(v, None if k == "states" else np.float32) for k, v in arrays.items()}
            # The next attempt is recorded in the same file replacement that commits the episode.
            writer.append(stored, attributes={"next_attempt": info["index"] + 1, "attempts": attempts})
            progress.update(1, steps=len(arrays["action"]), kept=writer.n_episodes / (info["index"] + 1))
        progress.close()
        writer.set_episode_info([facts(task, seed, index) for index in attempts])
    if format == "robomimic":
        _write_robomimic(directory, target, task, overwrite)
    elif directory != target:
        pack_zip(directory, target)
        shutil.rmtree(directory)
    store = DemoStore.open(target) if format == "zarr" else None
    if store is not None:
        print(f"{target}: {store.n_episodes} episodes, {store.n_steps} steps of {', '.join(store.keys)}")
    return 0


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
    from isdt_policy.datasets import convert, formats
    from isdt_policy.envs import make

    recording = formats.read(directory)
    env: Any = make(task)
    for info in recording.info:
        if hasattr(env, "model_xml"):  # robomimic replays states in the model they were recorded in
            env.reset(seed=info["reset_seed"])
            info["model_file"] = env.model_xml()
    convert.write(recording, target, "robomimic", overwrite)
    shutil.rmtree(directory)


# Raised whenever a scripted expert does something else for the same seed, so that no store mixes the two.
EXPERTS = "2"


def _provenance(task: str, seed: int) -> dict[str, Any]:
    from isdt_policy import __version__

    return {
        "source": f"scripted expert of task {task}",
        "command": f"isdt data generate task={task} seed={seed}",
        "task": task,
        "seed": seed,
        "versions": {
            "isdt-policy": __version__, "experts": EXPERTS, "numpy": np.__version__, "python": platform.python_version(),
            **task_spec(task).versions(),
        },
        "license": "MIT",
    }  # fmt: skip


def _check_same_source(attrs: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    found = attrs.get("provenance", {})
    for key in ("source", "seed", "versions"):
        if found.get(key) != wanted[key]:
            raise InputError(
                f"'{path}' was begun with {key}={found.get(key)}, now it is {wanted[key]}; "
                "an episode must be a function of the seed. Give another out, or overwrite=true."
            )
