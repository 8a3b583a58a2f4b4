"""How a search is made. Importing this file loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from isdt_policy.shared.arm import Arm
from isdt_policy.shared.cluster import Where
from isdt_policy.shared.errors import InputError, at_least


@dataclass(frozen=True)
class Tuning(Where):
    """How to search.

    Attributes:
        trials: how many runs the search has in all, with those of earlier commands.
        looks: at these shares of its steps a run is rolled out and may be stopped. It is always rolled out at its end.
        look_episodes: episodes of such a rollout, on the first selection seeds.
        episodes: episodes of the rollout at the end.
        nfe: network evaluations per chunk, or a sampler such as euler10.
        prune: stop a run that scores below the median of earlier runs at the same look; false: every run finishes.
        startup: so many trials run before any is stopped, and before the search learns from scores.
        seed: another seed tries other settings.
        n_envs: how many environments run at a time.
        device: where policies are rolled out: cpu, cuda, cuda:1, mps, or auto for a GPU if there is one; training.device says where
            they train.
        keep: keep the checkpoints of every trial; false: only those of the best.
        out: folder for everything that is written.
    """

    trials: int = 16
    looks: tuple[float, ...] = (0.4,)
    look_episodes: int = 20
    episodes: int = 50
    nfe: Arm = field(default_factory=Arm)
    prune: bool = True
    startup: int = 4
    seed: int = 0
    n_envs: int = 16
    keep: bool = False
    out: Path = Path("outputs/tune")
    device: str = "cpu"

    def __post_init__(self) -> None:
        counts = ("trials", "look_episodes", "episodes", "startup", "n_envs")
        at_least(1, **{name: getattr(self, name) for name in counts})
        if any(not 0 < share < 1 for share in self.looks):
            raise InputError(f"looks={list(self.looks)} must lie between 0 and 1; the end is always looked at.")

    def to_json(self) -> dict[str, object]:
        """As the files of a search hold it."""
        values = {f.name: getattr(self, f.name) for f in fields(Tuning)}
        looks = [f"{share:g}" for share in self.looks]
        return {**values, "looks": looks, "nfe": self.nfe.name, "out": str(self.out)}
