"""`isdt deploy table`: success against inference latency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from isdt_policy.cli.command import PathText
from isdt_policy.deploy.runtime import MODES, Mode
from isdt_policy.deploy.table import Grid, figure, measure, page
from isdt_policy.shared.files import write_text


@dataclass(frozen=True)
class DeployTable:
    """Measure success against inference latency for sync, async and rtc.

    In simulated time and on the same seeds in every cell. The same command goes on where it was stopped.

    Examples:
        isdt deploy table checkpoint=outputs/pusht_demo
        isdt deploy table checkpoint=outputs/lift 'latencies=[0ms,100ms,200ms]' episodes=50 out=results/deploy_lift

    Options:
        checkpoint: a run, a checkpoint, or a folder of save_pretrained.
        task: default: the task that the checkpoint was trained on.
        latencies: constant delays; default: 0, 1, 2, 3, 4, 6 control steps of the task.
        modes: which of the three.
        episodes: per cell, all cells on the same seeds.
        seed: of the first episode.
        nfe: network evaluations per chunk, the same in all modes (rtc takes at least two).
        rate: control steps per second; default: the task's.
        out: beginning of three names: OUT.json has all episodes, OUT.md the table, OUT.png the figure.
    """

    checkpoint: PathText
    task: str | None = None
    latencies: tuple[str, ...] = ()
    modes: tuple[Mode, ...] = MODES
    episodes: int = Grid.episodes
    seed: int = Grid.seed
    nfe: int = Grid.nfe
    rate: float | None = None
    out: PathText = "deploy_latency"

    positional: ClassVar = ("checkpoint",)
    renamed: ClassVar = {"steps": "nfe"}

    def __post_init__(self) -> None:
        self._grid()

    def _grid(self) -> Grid:
        return Grid(self.latencies, self.modes, self.episodes, self.seed, self.nfe, self.rate)

    def run(self, command: str) -> int:
        """Return 0."""
        file = Path(f"{self.out}.json")
        result = measure(self.checkpoint, self.task, self._grid(), file, command)
        text = page(result, self._grid())
        write_text(file.with_suffix(".md"), text)
        figure(result, self._grid(), file.with_suffix(".png"))
        print(text)
        print(f"table: {file.with_suffix('.md')}  figure: {file.with_suffix('.png')}  episodes: {file}")
        return 0
