"""`isdt eval repeat`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, ClassVar

from isdt_policy.cli.acting import Acting, Scripted, Stepping
from isdt_policy.deploy.starts import initial_states
from isdt_policy.eval.origin import versions
from isdt_policy.eval.progress import EpisodeProgress
from isdt_policy.eval.result import Result
from isdt_policy.eval.rollout import Scene, evaluate
from isdt_policy.shared.errors import InputError, at_least


@dataclass(frozen=True, kw_only=True)
class EvalRepeat(Stepping):
    """Run a result again and compare it episode by episode.

    Returns 0 if every action and reward is the same, 1 if an episode differs.

    Examples:
        isdt eval repeat results/pusht_demo                              all of it
        isdt eval repeat outputs/a/eval checkpoint=PATH episodes=20      its first 20 seeds, with weights found elsewhere

    What is repeated:
        result: a file called eval_info.json, or the folder that holds it.
        checkpoint: where the weights lie now; default: where they lay.
        episodes: how many of its seeds, from the first; default: all.
    """

    result: Annotated[str, "RESULT"]
    checkpoint: str | None = None
    episodes: int | None = None

    positional: ClassVar = ("result",)

    def __post_init__(self) -> None:
        if self.episodes is not None:
            at_least(1, episodes=self.episodes)

    def run(self, command: str) -> int:
        before = Result.load(self.result)
        protocol, policy = before.protocol, before.origin.policy
        name: Scripted | None = None if policy.checkpoint or self.checkpoint else "expert"
        acting = Acting(
            self.checkpoint or policy.checkpoint, name, protocol.task, protocol.n_action_steps, protocol.noise_scale
        )
        acting.check_acting()
        actor = acting.actor()
        if actor.fingerprint != policy.fingerprint:
            raise InputError(
                f"the weights at '{actor.checkpoint}' are not the ones of {self.result} (sha256 {actor.fingerprint[:12]}, expected "
                f"{str(policy.fingerprint)[:12]}). Give the right ones: isdt eval repeat {self.result} checkpoint=PATH"
            )
        here = versions(protocol.task)
        for package, was in before.origin.versions.items():
            if here.get(package) != was:
                print(f"note: {package} was {was}, is {here.get(package)} here", file=sys.stderr)
        seeds = before.seeds[: self.episodes]
        starts = None
        if protocol.init != "seed":
            starts = initial_states(protocol.init.removeprefix("train:"), len(seeds), seeds)
        again = evaluate(
            actor.policy, protocol, seeds, list(before.arms), workers=self.workers(), scene=Scene(init_states=starts),
            listener=EpisodeProgress(),
        )  # fmt: skip
        return 0 if report_differences(before, again) == 0 else 1


def report_differences(before: Result, again: Result) -> int:
    """Print how a repeated evaluation compares with the stored one; returns how many episodes differ."""
    stored = {record.key: record for record in before.episodes}
    same = outcome = 0
    for new in again.episodes:
        was = stored[new.key]
        same += was.digest == new.digest
        outcome += was.success == new.success
        if was.digest != new.digest:
            print(
                f"differs: seed {new.seed}, arm {new.arm}: success {was.success} -> {new.success}, "
                f"max reward {was.max_reward:.4f} -> {new.max_reward:.4f}"
            )
    n = len(again.episodes)
    print(f"{same} of {n} episodes identical in every action and reward; {outcome} of {n} with the same outcome.")
    return n - same
