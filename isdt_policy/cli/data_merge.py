"""`isdt data merge`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from isdt_policy.cli.command import PathText
from isdt_policy.datasets import merge
from isdt_policy.shared.errors import InputError


@dataclass(frozen=True)
class Merge:
    """Write the episodes of several sources, one after another, into one target.

    The sources must have the same keys, shapes, types and task; their formats may differ. Masks keep their meaning, and each
    source gets a mask of its own, source_N.

    Examples:
        isdt data merge monday.zarr tuesday.zarr out=both.zarr

    What is merged:
        sources: demonstrations, two or more.
        out: file or folder that is written.
        overwrite: replace what isdt wrote at OUT before.
    """

    sources: tuple[PathText, ...]
    out: PathText
    overwrite: bool = False

    positional: ClassVar = ("sources",)

    def __post_init__(self) -> None:
        if len(self.sources) < 2:
            raise InputError("give at least two sources: isdt data merge A.zarr B.zarr out=C.zarr")

    def run(self, command: str) -> int:
        merge.merge(self.sources, self.out, self.overwrite, command)
        return 0
