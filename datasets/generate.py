"""`isdt data generate`: demonstrations from a scripted expert, resumable at any episode."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from isdt_policy.datasets.store import DemoStore, DemoWriter, pack_zip, task_attributes
from isdt_policy.envs import task_spec
from isdt_policy.errors import InputError

HELP = """
usage: isdt data generate out=PATH [task=pusht] [episodes=200] [seed=0] [workers=2] [overwrite=false]

Let a task's scripted expert make demonstrations. Failed attempts are left out. Attempt i is a function of (seed, i), so
the result does not depend on `workers`, and an interrupted command goes on where it stopped when it is given again.

  out=PATH         a .zarr directory, or a .zarr.zip file
  task=pusht       task with an expert
  episodes=200     episodes in the finished store; raise it later to add more
  seed=0           seed of the whole set
  workers=2        processes
  overwrite=false  true replaces what is at PATH

examples
  isdt data generate out=demos.zarr                         200 PushT episodes
  isdt data generate out=demos.zarr episodes=1000           800 more
  isdt data generate out=demos.zarr.zip seed=1 workers=8    one file, other episodes
"""


def generate(
    out: str, task: str = "pusht", episodes: int = 200, seed: int = 0, workers: int = 2, overwrite: bool = False
) -> int:
    """Write `episodes` successful episodes of the task's expert to `out`; see HELP.

    Raises:
        InputError: no expert, a number out of range, or `out` holds something else.
    """
    from isdt_policy.envs.experts import EXPERTS, generate_episodes
    from isdt_policy.progress import Progress

    if episodes < 1:
        raise InputError(f"episodes must be at least 1, got {episodes}.")
    target = Path(out)
    if target.suffix not in (".zarr", ".zip"):
        raise InputError(f"out='{out}' must end in .zarr (a directory) or .zarr.zip (one file).")
    if target.suffix == ".zip" and target.exists() and not overwrite:
        raise InputError(f"'{out}' exists and a .zip is not added to; give another out, or overwrite=true.")
    if task not in EXPERTS:
        next(generate_episodes(task, 0))  # raises, naming the experts there are
    made_of = _provenance(task, seed)
    directory = target.with_name(f"{target.name}.part") if target.suffix == ".zip" else target
    with DemoWriter(directory, task, made_of, overwrite, attributes=task_attributes(task)) as writer:
        _check_same_source(writer.attrs, made_of, directory)
        first = int(writer.attrs.get("next_attempt", 0))
        progress = Progress(episodes, "generate", "episode", initial=writer.n_episodes)
        for arrays, info in generate_episodes(task, episodes - writer.n_episodes, seed, workers, first=first):
            # The next attempt is recorded in the same file replacement that commits the episode.
            writer.append(
                {key: np.asarray(value, np.float32) for key, value in arrays.items()},
                attributes={"next_attempt": info["index"] + 1},
            )
            progress.update(1, steps=len(arrays["action"]), kept=writer.n_episodes / (info["index"] + 1))
        progress.close()
    if directory != target:
        pack_zip(directory, target)
        shutil.rmtree(directory)
    store = DemoStore.open(target)
    print(f"{target}: {store.n_episodes} episodes, {store.n_steps} steps of {', '.join(store.keys)}")
    return 0


def _provenance(task: str, seed: int) -> dict[str, Any]:
    from isdt_policy import __version__

    return {
        "source": f"scripted expert of task {task}",
        "command": f"isdt data generate task={task} seed={seed}",
        "task": task,
        "seed": seed,
        "versions": {
            "isdt-policy": __version__, "numpy": np.__version__, "python": platform.python_version(),
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
