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
        checkpoint: run directory, checkpoint, or folder written by save_pretrained.
        data: demonstrations; default: those the run was trained on. Its held-out episodes are used, or all of them if the
            folder does not say which were held out.
        out: folder; default: diagnostics in the checkpoint's.
        batches: training batches whose gradient is taken; 0 leaves gradients out.
        windows: held-out windows that everything else is measured on.
        draws: chunks drawn per observation, for their spread.
        grid: times of the (t, s) triangle.
        seed: of every draw.
        device: "cpu", "cuda", ...
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
