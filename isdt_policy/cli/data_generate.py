"""`isdt data generate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from isdt_policy.cli.command import PathText
from isdt_policy.datasets import generate
from isdt_policy.shared.errors import at_least


@dataclass(frozen=True)
class Generate:
    """Let a task's scripted expert make demonstrations.

    Failed attempts are left out. The number of processes does not change the result. The same command continues an
    interrupted one.

    Examples:
        isdt data generate out=demos.zarr                         200 episodes of PushT
        isdt data generate out=demos.zarr episodes=1000           800 more
        isdt data generate out=demos.zarr.zip seed=1 workers=8    one file, other episodes
        isdt data generate task=lift out=lift.zarr                Lift in robosuite
        isdt data generate task=can out=can.hdf5 format=robomimic
        isdt data generate task=lift_abs out=seen.zarr cameras=agentview,robot0_eye_in_hand

    What is made:
        out: a .zarr folder or a .zarr.zip file; with format=robomimic an .hdf5 file.
        task: a task that has an expert: pusht; lift, can, square (delta actions); lift_abs, can_abs, square_abs (absolute).
        episodes: how many episodes the finished store has; a larger number than before adds episodes.
        seed: another seed makes other episodes.
        workers: how many processes work.
        format: robomimic writes HDF5 that robomimic's scripts read, with env_args, states and model_file.
        cameras: keep what these cameras of the task see, too. Drawing takes most of the time.
        overwrite: replace what isdt wrote at OUT before.
    """

    out: PathText
    task: str = "pusht"
    episodes: int = 200
    seed: int = 0
    workers: int = 2
    format: Literal["zarr", "robomimic"] = "zarr"
    cameras: tuple[str, ...] = ()
    overwrite: bool = False

    positional: ClassVar = ("out",)

    def __post_init__(self) -> None:
        at_least(1, episodes=self.episodes, workers=self.workers)

    def run(self, command: str) -> int:
        generate.generate(
            self.out, self.task, self.episodes, self.seed, self.workers, self.format, self.overwrite, self.cameras
        )
        return 0
