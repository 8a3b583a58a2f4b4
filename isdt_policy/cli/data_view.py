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
    """Draw episodes into one HTML page: plots, frames of the cameras, and what the doctor found.

    The page opens without network.

    Examples:
        isdt data view demos.zarr
        isdt data view demos.zarr out=some.html episodes=3,17,90-99

    What is drawn:
        path: a store.
        out: the page; default: the name of the store with .html, in the current folder.
        episodes: their numbers; ranges include both ends. Default: the first 20.
        frames: frames of each camera and episode, evenly spaced.
        task: the registered task whose units and ranges the doctor checks; default: what the store says.
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
