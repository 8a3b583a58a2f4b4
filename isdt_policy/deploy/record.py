"""What a policy does, kept as demonstrations; and demonstrations as beginnings of episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.store import DemoStore, DemoWriter, task_attributes
from isdt_policy.envs import task_spec
from isdt_policy.envs.protocol import Policy
from isdt_policy.eval.episode import Start
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.rollout import Scene, Workers, evaluate
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.progress import Progress

# Seeds run before their episodes are written: bounds the memory and what an interruption costs.
_BLOCK = 32


@dataclass(frozen=True)
class Rollouts:
    """Which episodes to record; they are a function of these, so a recording can go on where it stopped.

    Attributes:
        protocol: conditions.
        seeds: one episode each.
        arm: how the policy is asked.
        init_states: per seed where its episode begins in place of what the seed draws.
        successes_only: leave failures out.
    """

    protocol: Protocol
    seeds: Sequence[int]
    arm: Arm
    init_states: Mapping[int, Start] | None = None
    successes_only: bool = False


def record(
    policy: Policy,
    rollouts: Rollouts,
    store: Path,
    source: Mapping[str, object],
    *,
    workers: Workers,
    overwrite: bool = False,
) -> str:
    """Run a policy on listed seeds and write its episodes; returns a line about the store.

    Args:
        policy: what acts.
        rollouts: which episodes.
        store: a .zarr folder. An interrupted recording goes on, with the same source; more seeds add episodes.
        source: what made the episodes; kept in the store, but for "command" the same in every sitting.
        workers: where environments are stepped.
        overwrite: replace a store that is there.

    Raises:
        InputError: the store was begun with another source, or no episode was worth keeping.
    """
    if store.suffix != ".zarr":
        raise InputError(f"'{store}' must end in .zarr; other formats: isdt data convert {store} TARGET afterwards.")
    task, seeds = rollouts.protocol.task, rollouts.seeds
    with DemoWriter(store, task, dict(source), overwrite, attributes=task_attributes(task)) as writer:
        _check_source(store, writer.attrs.get("provenance", {}), source)
        if "recorded" in writer.attrs and "episode_info" not in writer.attrs:  # begun by version 0.1
            writer.set_episode_info(writer.attrs["recorded"])
        after = writer.attrs.get("next_seed")
        todo = [seed for seed in seeds if after is None or seed >= int(after)]
        progress = Progress(len(seeds), store.name, "episode", initial=len(seeds) - len(todo))
        scene = Scene(init_states=rollouts.init_states, keep=("trajectory",))
        for i in range(0, len(todo), _BLOCK):
            block = todo[i : i + _BLOCK]
            result = evaluate(policy, rollouts.protocol, block, [rollouts.arm], workers=workers, scene=scene)
            for row in result.episodes:
                if rollouts.successes_only and row.success is None:
                    raise InputError("the environment does not report success: give successes_only=false.")
                if row.ok and (row.success or not rollouts.successes_only):
                    info = {"seed": row.seed, "success": row.success, "max_reward": row.max_reward}
                    # The next seed and the information appear in the same instant as the episode.
                    writer.append(carried_out(result.kept[row.key].trajectory, task), {"next_seed": row.seed + 1}, info)
                progress.update()
        progress.close()
        if not writer.n_episodes:
            raise InputError(f"no episode of {len(seeds)} was worth keeping; '{store}' is empty.")
    demos = DemoStore.open(store)
    won = sum(bool(info.get("success")) for info in demos.episode_info())
    return f"{store}: {demos.n_episodes} episodes ({won} successes), {demos.n_steps} steps of {', '.join(demos.keys)}"


def carried_out(trajectory: Mapping[str, NDArray[np.generic]], task: str) -> dict[str, NDArray[np.generic]]:
    """The same with the actions that were carried out: a policy may answer outside the action space, and is clipped to it."""
    action, spec = trajectory["action"], task_spec(task).action
    return {**trajectory, "action": np.clip(action, spec.low, spec.high).astype(action.dtype)}


def _check_source(store: Path, found: Mapping[str, object], source: Mapping[str, object]) -> None:
    for key, now in source.items():
        if key != "command" and found.get(key) != now:
            raise InputError(
                f"'{store}' was begun with {key}={found.get(key)}, now it is {now}; recording on would mix two sets. "
                "Give another store, or overwrite=true."
            )


def initial_states(store: str, episodes: int, numbers: Sequence[int] = ()) -> dict[int, Start]:
    """Where the demonstrations of a store begin.

    Args:
        store: a demonstration store.
        episodes: how many of them, from the first.
        numbers: take these episodes instead of the first ones.

    Raises:
        InputError: the store does not hold states of the simulator, or has no such episode.
    """
    demos = DemoStore.open(store)
    key = next((key for key in ("state", "states") if key in demos.keys), None)  # PushT's; the simulator's
    if key is None:
        raise InputError(
            f"{store} has neither 'state' nor 'states', so its initial states are unknown; it has {', '.join(demos.keys)}."
        )
    begins = [0, *(int(end) for end in demos.episode_ends[:-1])]
    chosen = list(numbers) or list(range(min(episodes, len(begins))))
    if unknown := [number for number in chosen if not 0 <= number < len(begins)]:
        raise InputError(f"{store} has no episode {unknown[0]}; it has 0 to {len(begins) - 1}.")
    info = demos.episode_info()
    found = {}
    for number in chosen:
        state = tuple(float(v) for v in demos.read(key, begins[number], begins[number] + 1)[0])
        found[number] = Start(state, info[number].get("reset_seed"), info[number].get("model_file"))
    return found
