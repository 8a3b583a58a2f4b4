"""What `isdt eval data` compares, on which recordings. Importing this file loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import at_least
from isdt_policy.shared.files import PathText


@dataclass(frozen=True)
class Settings:
    """What is compared, and on which recordings.

    Attributes:
        checkpoint: a run, a checkpoint, or a folder written by save_pretrained.
        data: demonstrations; default: those that the run was trained on.
        episodes: held_out: those that training left out. all: every episode, for recordings that training has not seen.
        arms: ways of asking the policy: numbers of network evaluations, and samplers such as euler10.
        steps: ask at so many recorded steps, evenly spaced over the episodes.
        replays: draw so many episodes with the chunks that the policy would have executed.
        seed: another seed draws other noise.
        device: where the policy computes: cpu, cuda, cuda:1, mps, or auto for a GPU if there is one.
        out: folder; default: CHECKPOINT/eval_data. It gets held_out.json and held_out.html.
    """

    checkpoint: PathText
    data: PathText | None = None
    episodes: Literal["held_out", "all"] = "held_out"
    arms: tuple[Arm, ...] = (Arm(), Arm(intervals=2), Arm("euler", 10))
    steps: int = 1000
    replays: int = 4
    seed: int = 0
    out: Path | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        at_least(0, replays=self.replays)
