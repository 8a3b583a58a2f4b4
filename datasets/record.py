"""`isdt data record`: what a policy or an expert does, kept as demonstrations; and a recorder for one's own loop."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isdt_policy.datasets.arguments import bind
from isdt_policy.datasets.store import DemoStore, DemoWriter, task_attributes
from isdt_policy.envs import task_spec
from isdt_policy.shared.errors import InputError

HELP = """
usage: isdt data record out=PATH (checkpoint=PATH | policy=expert task=NAME) [key=value ...]

Let a policy act and keep what it did as demonstrations. Episode i starts from seed_start + i, so an interrupted command
goes on where it stopped when it is given again; asking for more episodes later adds them.

  out=PATH               a .zarr directory
  checkpoint=PATH        run directory, checkpoint or folder written by save_pretrained
  policy=expert          the task's scripted expert instead, from the same initial states
  task=NAME              default: the task the checkpoint was trained on
  steps=1                network evaluations per action chunk, or a sampler's name (euler10, ...)
  episodes=50            seeds to run; with successes_only=true fewer may be kept
  seed_start=0           first seed; 0..99999 are for training, 100000 on are those policies are measured on
  successes_only=false   leave failures out
  max_steps=N            shorter episodes than the task's own limit
  n_envs=16              environments at a time; does not change the result
  overwrite=false        true replaces what is at PATH

examples
  isdt data record out=rollouts.zarr checkpoint=outputs/pusht_demo
  isdt data record out=good.zarr checkpoint=outputs/pusht_demo episodes=500 successes_only=true
  isdt data record out=expert.zarr policy=expert task=pusht episodes=20

From Python, around a loop of your own (teleoperation, another simulator): isdt_policy.datasets.record.Recorder.
"""

# Seeds run before their episodes are written: bounds the memory and what an interruption costs.
_BLOCK = 32


class Recorder:
    """Collects the steps of an episode and appends it to a store when it ends.

    Args:
        writer: where episodes go.

    Example:
        with DemoWriter("demos.zarr", task="pusht") as writer:
            recorder = Recorder(writer)
            obs, _ = env.reset()
            while not done:
                action = teleoperate(obs)
                recorder.step(obs, action)  # what was seen, and what was commanded after seeing it
                obs, *_, done = ...
            recorder.end()
    """

    def __init__(self, writer: DemoWriter) -> None:
        self.writer = writer
        self._rows: list[dict[str, NDArray[Any]]] = []

    @property
    def n_steps(self) -> int:
        """Steps of the episode under way."""
        return len(self._rows)

    def step(self, obs: Mapping[str, ArrayLike], action: ArrayLike, **more: ArrayLike) -> None:
        """Add one step. Arrays are copied, as environments like to reuse theirs.

        Args:
            obs: {key: array} seen at this step.
            action: commanded after seeing it.
            **more: further keys, such as reward.

        Raises:
            InputError: other keys than in the step before, or a key given twice.
        """
        given = [*obs, "action", *more]
        if len(set(given)) < len(given):
            raise InputError(f"a step gives a key twice: {', '.join(given)}.")
        if self._rows and set(given) != set(self._rows[0]):
            raise InputError(f"step {self.n_steps} has keys {', '.join(given)}; before: {', '.join(self._rows[0])}.")
        self._rows.append({key: np.array(value) for key, value in {**obs, "action": action, **more}.items()})

    def end(self) -> int:
        """Append the episode and return its number; the recorder is ready for the next.

        Raises:
            InputError: what `DemoWriter.append` refuses; the episode is then still here.
        """
        if not self._rows:
            raise InputError("there is no step to record.")
        for key in self._rows[0]:
            shapes = {row[key].shape for row in self._rows}
            if len(shapes) > 1:
                raise InputError(f"'{key}' changes its shape within an episode: {sorted(shapes)}.")
        number = self.writer.append({key: np.stack([row[key] for row in self._rows]) for key in self._rows[0]})
        self._rows = []
        return number

    def discard(self) -> None:
        """Forget the episode under way."""
        self._rows = []


def record(
    out: str,
    checkpoint: str | None = None,
    policy: str | None = None,
    task: str | None = None,
    steps: str = "1",
    episodes: int = 50,
    seed_start: int = 0,
    successes_only: bool = False,
    max_steps: int | None = None,
    n_envs: int = 16,
    overwrite: bool = False,
) -> int:
    """Run a policy on listed seeds and write its episodes to `out`; see HELP.

    Raises:
        InputError: no policy or two, a number out of range, `out` holds something else, or nothing was worth keeping.
    """
    from isdt_policy.eval.command import Options, check_task, load_policy, protocol_of
    from isdt_policy.eval.rollout import Scene, Workers, evaluate
    from isdt_policy.eval.seeds import purpose
    from isdt_policy.method.policy import weights_sha256
    from isdt_policy.shared.progress import Progress

    path = Path(out)
    if path.suffix != ".zarr":
        raise InputError(f"out='{out}' must end in .zarr; other formats: isdt data convert {out} TARGET afterwards.")
    if episodes < 1 or n_envs < 1:
        raise InputError(f"episodes and n_envs must be at least 1, got episodes={episodes}, n_envs={n_envs}.")
    purpose([seed_start, seed_start + episodes - 1])
    options = Options(checkpoint=checkpoint, policy=policy, task=task, max_steps=max_steps)
    actor = load_policy(options)
    name = check_task(options, actor)
    protocol = protocol_of(options, name)
    arm: int | str = policy or (int(steps) if steps.isdigit() else steps)
    source = {
        "source": f"rollouts of {checkpoint or policy}", "policy_sha256": weights_sha256(checkpoint) if checkpoint else None,
        "steps": str(arm), "seed_start": seed_start, "successes_only": successes_only, "max_steps": max_steps,
        "command": _command(),
    }  # fmt: skip
    with DemoWriter(path, name, source, overwrite, attributes=task_attributes(name)) as writer:
        found = writer.attrs.get("provenance", {})
        for key in ("policy_sha256", "source", "steps", "seed_start", "successes_only", "max_steps"):
            if found.get(key) != source[key]:
                raise InputError(
                    f"'{out}' was begun with {key}={found.get(key)}, now it is {source[key]}; recording on would mix two "
                    "sets. Give another out, or overwrite=true."
                )
        info: list[dict[str, Any]] = list(writer.attrs.get("recorded", []))
        first = int(writer.attrs.get("next_seed", seed_start))
        progress = Progress(episodes, path.name, "episode")
        progress.update(first - seed_start)
        for start in range(first, seed_start + episodes, _BLOCK):
            seeds = list(range(start, min(start + _BLOCK, seed_start + episodes)))
            result = evaluate(actor, protocol, seeds, [arm], workers=Workers(n_envs), scene=Scene(keep=("trajectory",)))
            for row in result.episodes:
                if row.ok and (row.success or not successes_only):
                    info.append({"seed": row.seed, "success": bool(row.success), "max_reward": row.max_reward})
                    # The next seed is recorded in the same file replacement that commits the episode.
                    writer.append(
                        _carried_out(result.kept[row.key].trajectory, name),
                        attributes={"next_seed": row.seed + 1, "recorded": info},
                    )
                progress.update()
        progress.close()
        writer.set_episode_info(info)
        if not writer.n_episodes:
            raise InputError(f"none of {episodes} episodes was a success; '{out}' is empty. Give successes_only=false.")
    store = DemoStore.open(path)
    won = sum(i["success"] for i in info)
    print(f"{out}: {store.n_episodes} episodes ({won} successes), {store.n_steps} steps of {', '.join(store.keys)}")
    return 0


def _carried_out(trajectory: Mapping[str, NDArray[Any]], task: str) -> dict[str, NDArray[Any]]:
    """The same with the actions that were carried out: a policy's may lie outside the action space, and are clipped to it."""
    action, spec = trajectory["action"], task_spec(task).action
    return {**trajectory, "action": np.clip(action, spec.low, spec.high).astype(action.dtype)}


def main(args: list[str]) -> int:
    """`isdt data record`."""
    if not args or any(arg in ("-h", "--help") for arg in args):
        print(HELP.strip())
        return 0
    return record(**bind(record, args))


def _command() -> str:
    return f"isdt {shlex.join(sys.argv[1:])}" if sys.argv[1:2] == ["data"] else ""
