"""What `isdt diagnose` measures on. Importing this file loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from isdt_policy.shared.errors import at_least
from isdt_policy.shared.files import PathText


@dataclass(frozen=True)
class Settings:
    """What is measured, on what, and how finely.

    Attributes:
        checkpoint: a run, a checkpoint, a folder written by save_pretrained, or zoo:NAME (give data= then).
        data: demonstrations; default: those that the run was trained on. The episodes that were held out are used, or all
            episodes if the folder does not say which were.
        out: folder; default: CHECKPOINT/diagnostics.
        batches: measure gradients on so many training batches; 0: do not.
        windows: measure everything else on so many held-out windows.
        draws: chunks drawn per observation, to see how varied they are.
        grid: times between data and noise at which the map is checked, in pairs.
        seed: another seed draws other noise and batches.
        device: cpu, cuda, cuda:N, mps, or auto for a GPU if there is one.
    """

    checkpoint: PathText
    data: PathText | None = None
    out: Path | None = None
    batches: int = 50
    windows: int = 256
    draws: int = 64
    grid: int = 10
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        at_least(0, batches=self.batches)
        at_least(2, windows=self.windows, draws=self.draws, grid=self.grid)
