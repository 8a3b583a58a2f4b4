"""`isdt data doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from isdt_policy.cli.command import PathText
from isdt_policy.datasets import doctor
from isdt_policy.shared import terminal


@dataclass(frozen=True)
class Doctor:
    """Find what is wrong with demonstrations before training does.

    It finds values that are not finite, constant or saturated dimensions, outlier actions, frozen or repeated frames, repeated
    episodes, quaternions that flip their sign, wrong episode boundaries, episodes that do not end in a success, actions that
    are shifted against observations, observations that give the action away, and units that look wrong. Every finding says
    where it is and what to do.

    An error means that a policy trained on these demonstrations will be wrong; the exit code is then 1. A warning is probably
    a mistake. A note is worth knowing.

    Examples:
        isdt data doctor demos.zarr
        isdt data doctor pusht_cchi_v7_replay.zarr task=pusht images=false

    What is checked:
        path: a store.
        task: check the numbers against the units and ranges of this task; default: the task that the store names.
        images: also check the images, which takes longest.
        format: table for people, json for programs.
    """

    path: PathText
    task: str | None = None
    images: bool = True
    format: Literal["table", "json"] = "table"

    positional: ClassVar = ("path",)

    def run(self, command: str) -> int:
        found = doctor.examine(self.path, self.task, self.images)
        if self.format == "json":
            print(json.dumps([asdict(finding) for finding in found], indent=2))
        else:
            terminal.show(doctor.table(found, self.path))
        return int(any(finding.level == "error" for finding in found))
