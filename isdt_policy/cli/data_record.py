"""`isdt data record`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from isdt_policy.cli.acting import Acting
from isdt_policy.deploy.record import Rollouts, record
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.rollout import Workers
from isdt_policy.eval.seeds import purpose
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError, at_least


@dataclass(frozen=True, kw_only=True)
class Record(Acting):
    """Let a policy act, and keep what it did as demonstrations.

    Episode i starts from seed_start + i. The same command continues an interrupted one; a larger number of episodes adds some.
    To record in a loop of your own (teleoperation, another simulator), use isdt_policy.datasets.recorder.Recorder.

    Examples:
        isdt data record out=rollouts.zarr checkpoint=outputs/pusht_demo
        isdt data record out=good.zarr checkpoint=outputs/pusht_demo episodes=500 successes_only=true
        isdt data record out=expert.zarr policy=expert task=pusht episodes=20

    What is recorded:
        out: a .zarr folder.
        arm: network evaluations per action chunk, or a sampler such as euler10.
        episodes: how many episodes are run; with successes_only=true fewer may be kept.
        seed_start: first seed. Use 0 to 99999 here: policies are measured on 100000 and above.
        successes_only: leave failures out.
        max_steps: end episodes after so many steps; default: the task's limit.
        n_envs: how many environments run at a time; this does not change the result.
        overwrite: replace what isdt wrote at OUT before.
    """

    out: Annotated[Path, "STORE.zarr"]
    arm: Arm = Arm()  # noqa: RUF009 (frozen)
    episodes: int = 50
    seed_start: int = 0
    successes_only: bool = False
    max_steps: int | None = None
    n_envs: int = 16
    overwrite: bool = False

    renamed: ClassVar = {"steps": "arm"}

    def __post_init__(self) -> None:
        self.check_acting()
        at_least(1, episodes=self.episodes, n_envs=self.n_envs)
        purpose([self.seed_start, self.seed_start + self.episodes - 1])
        if self.out.suffix != ".zarr":
            raise InputError(
                f"out='{self.out}' must end in .zarr; other formats: isdt data convert {self.out} TARGET afterwards."
            )

    def run(self, command: str) -> int:
        actor = self.actor()
        (arm,) = self.asked((self.arm,))
        source = {
            "source": f"rollouts of {self.checkpoint or self.policy}",
            "policy_sha256": actor.fingerprint if actor.checkpoint else None,
            "steps": arm.name,
            "seed_start": self.seed_start,
            "successes_only": self.successes_only,
            "max_steps": self.max_steps,
            "command": command,
        }
        protocol = Protocol(
            actor.spec.id, actor.spec.seed_protocols[0], n_action_steps=self.n_action_steps, noise_scale=self.noise_scale,
            max_steps=self.max_steps,
        )  # fmt: skip
        seeds = range(self.seed_start, self.seed_start + self.episodes)
        rollouts = Rollouts(protocol, seeds, arm, successes_only=self.successes_only)
        print(record(actor.policy, rollouts, self.out, source, workers=Workers(self.n_envs), overwrite=self.overwrite))
        return 0
