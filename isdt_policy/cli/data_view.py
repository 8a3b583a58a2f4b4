"""`isdt data view`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from isdt_policy.cli.command import PathText
from isdt_policy.datasets import view
from isdt_policy.shared.errors import at_least


@dataclass(frozen=True)
class View:
    """Draw episodes into one HTML page: plots, camera frames, and what isdt data doctor finds.

    The page needs no network.

    Examples:
        isdt data view demos.zarr
        isdt data view demos.zarr out=some.html episodes=3,17,90-99

    What is drawn:
        path: a store.
        out: the page; default: the name of the store with .html, in the current folder.
        episodes: numbers of the episodes, such as 3,90-99; ranges include both ends. Default: the first 20.
        frames: how many frames of each camera are shown per episode, evenly spaced; drawn from the states where nothing was filmed.
        task: check the numbers against the units and ranges of this task; default: the task that the store names.
    """

    path: PathText
    out: Path | None = None
    episodes: str | None = None
    frames: int = 8
    task: str | None = None

    positional: ClassVar = ("path",)

    def __post_init__(self) -> None:
        at_least(0, frames=self.frames)

    def run(self, command: str) -> int:
        view.view(self.path, self.out, self.episodes, self.frames, self.task)
        return 0
