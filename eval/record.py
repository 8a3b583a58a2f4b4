"""Rollouts saved as a dataset, for training on what a policy did (or on what it did well)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from isdt_policy.envs.protocol import Policy
from isdt_policy.eval.episode import Start
from isdt_policy.eval.result import Result
from isdt_policy.eval.rollout import Scene, evaluate
from isdt_policy.shared.errors import InputError


def record_rollouts(
    policy: Policy,
    result: Result,
    store: str | Path,
    init_states: Mapping[int, Start] | None = None,
    successes_only: bool = False,
) -> Path:
    """Run the episodes of an evaluation's first arm again and save them.

    Episodes are a function of their seed, so this gives the trajectories behind the numbers without keeping those of
    every evaluation in memory.

    Args:
        policy: the one evaluated.
        result: the evaluation.
        store: path of the new dataset.
        init_states: as in the evaluation.
        successes_only: leave out failures.

    Raises:
        InputError: if the store exists, or there is nothing to save.
    """
    from isdt_policy.datasets.store import DemoWriter

    path = Path(store)
    if path.exists():
        raise InputError(f"{path} exists; recording into it would mix two sets. Give another record=.")
    arm, _ = result.first
    records = [r for r in result.of(arm) if r.ok and (r.success or not successes_only)]
    if not records:
        raise InputError("there is no episode to record.")
    scene = Scene(init_states=init_states, keep=("trajectory",))
    again = evaluate(policy, result.protocol, [r.seed for r in records], [arm], scene=scene)
    provenance = {
        "source": "rollouts",
        "steps": arm.name,
        "protocol": asdict(result.protocol),
        "seeds": list(again.seeds),
    }
    with DemoWriter(path, task=result.protocol.task, provenance=provenance) as writer:
        for record in again.episodes:
            writer.append(dict(again.kept[record.key].trajectory))
    return path
