"""`isdt data split`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from isdt_policy.cli.command import PathText
from isdt_policy.datasets import split


@dataclass(frozen=True)
class Split:
    """Write some of the episodes, or a training part and a validation part.

    Give exactly one of episodes=, exclude=, mask= and val_ratio=.

    Examples:
        isdt data split demos.zarr small.zarr episodes=0-9
        isdt data split demos.zarr clean.zarr exclude=17,42
        isdt data split demos.zarr parts val_ratio=0.1

    What is written:
        source: demonstrations in a format that isdt reads.
        out: file or folder that is written; with val_ratio= a folder that gets train.zarr and valid.zarr.
        overwrite: replace what isdt wrote at OUT before.

    Which episodes:
        episodes: these episodes, such as 0-99,120; ranges include both ends.
        exclude: all episodes but these.
        mask: the episodes of a mask; isdt data inspect lists the masks.
        val_ratio: put this share of the episodes, drawn at random as training does, into the validation part.
        seed: another seed draws another validation part.
    """

    source: PathText
    out: PathText
    overwrite: bool = False
    episodes: str | None = None
    exclude: str | None = None
    mask: str | None = None
    val_ratio: float | None = None
    seed: int = 0

    positional: ClassVar = ("source", "out")

    @property
    def which(self) -> split.Which:
        """The episodes that were asked for."""
        return split.Which(self.episodes, self.exclude, self.mask, self.val_ratio, self.seed)

    def __post_init__(self) -> None:
        _ = self.which  # checks what was given

    def run(self, command: str) -> int:
        split.split(self.source, self.out, self.which, self.overwrite, command)
        return 0
