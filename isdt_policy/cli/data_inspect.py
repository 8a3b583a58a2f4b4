"""`isdt data inspect`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar, Literal

from isdt_policy.cli.command import PathText
from isdt_policy.datasets import summary
from isdt_policy.datasets.store import DemoStore


@dataclass(frozen=True)
class Inspect:
    """Show what a store holds: episodes, their lengths, and shape, type and range of every key.

    Examples:
        isdt data inspect bundled:pusht_expert
        isdt data inspect demos.zarr format=json

    What is shown:
        path: a store.
        format: table for people, json for programs.
    """

    path: PathText
    format: Literal["table", "json"] = "table"

    positional: ClassVar = ("path",)

    def run(self, command: str) -> int:
        facts = summary.summary(DemoStore.open(self.path))
        print(json.dumps(facts, indent=2) if self.format == "json" else summary.table(facts))
        return 0
