"""`isdt eval data`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from isdt_policy.lab.held_out.settings import Settings
from isdt_policy.shared import terminal
from isdt_policy.shared.extras import require


@dataclass(frozen=True)
class EvalData(Settings):
    """Compare a policy's actions with recordings that it has not seen, without a robot and without a simulator.

    These numbers find a broken run. They do not rank good ones: of two sound policies the one with the larger error may succeed
    more often, because there is more than one good way. Only the robot says which.

    It writes held_out.json, and the page held_out.html with the error for every entry and step of a chunk, beside what another
    demonstrator did from the most similar observation, and with replays.

    Examples:
        isdt eval data checkpoint=outputs/my_robot
        isdt eval data checkpoint=outputs/my_robot data=today.zarr episodes=all     recordings of another day
    """

    renamed: ClassVar = {"nfe": "arms"}

    def run(self, command: str) -> int:
        from isdt_policy.lab.held_out import run

        require("matplotlib", "report", "The page")
        found = run.held_out(self, command)
        terminal.show(found.table)
        for line in found.lines:
            terminal.show(line)
        terminal.show(run.PLAINLY)
        for path in found.written:
            print(f"written: {path}")
        return 0
