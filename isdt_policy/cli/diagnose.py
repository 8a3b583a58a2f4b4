"""`isdt diagnose`."""

from __future__ import annotations

from dataclasses import dataclass

from isdt_policy.lab.diagnose.settings import Settings
from isdt_policy.shared import terminal


@dataclass(frozen=True)
class Diagnose(Settings):
    """Say what a trained flow map got right and wrong, and what to do about it, without an environment.

    It asks: are gradients steady? Are one-step samples as varied as the data? Is the map consistent with its velocity? Do two
    steps agree with one? Does it follow its own flow? Has the null branch drifted? The answers stand in diagnostics.json and
    on the page diagnostics.html. It takes some minutes on one core.

    Examples:
        isdt diagnose checkpoint=outputs/pusht_demo
        isdt diagnose checkpoint=outputs/pusht_human data=/data/pusht_cchi_v7_replay.zarr    the demonstrations were moved
        isdt diagnose checkpoint=outputs/pusht_demo/checkpoints/0005000 out=early            an earlier checkpoint
        isdt diagnose checkpoint=outputs/pusht_demo batches=200                              sharper quantiles of the gradients
    """

    def run(self, command: str) -> int:
        from isdt_policy.lab.diagnose import run

        found = run.diagnose(self, command)
        for line in found.lines:
            terminal.show(f"{line.mark:<4} {line.title}: {line.text}")
        advice = run.reading.what_to_do(found.lines)
        print("What to do:" if advice else "Nothing here asks for a change.")
        for number, text in enumerate(advice, start=1):
            terminal.show(f"  {number}. {text}")
        for path in found.written:
            print(f"written: {path}")
        return 0
