"""`isdt deploy table`: success against inference latency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from isdt_policy.cli.command import PathText
from isdt_policy.deploy.table import Grid, figure, html, measure, page
from isdt_policy.shared import terminal
from isdt_policy.shared.files import write_text


@dataclass(frozen=True, kw_only=True)
class DeployTable(Grid):
    """Measure success against inference latency for sync, async and rtc.

    Time is simulated, and every cell of the table has the same seeds. The same command continues an interrupted table.

    Examples:
        isdt deploy table checkpoint=outputs/pusht_demo
        isdt deploy table checkpoint=outputs/lift 'latencies=[0ms,100ms,200ms]' episodes=50 out=results/deploy_lift

    What is measured:
        checkpoint: a run, a checkpoint, or a folder of save_pretrained.
        task: where it acts; default: the task that the checkpoint was trained on.
        out: writes OUT.json with all episodes, OUT.md with the table, OUT.png with the figure, and OUT.html with both.
    """

    checkpoint: PathText
    task: str | None = None
    out: PathText = "deploy_latency"

    positional: ClassVar = ("checkpoint",)
    renamed: ClassVar = {"steps": "nfe"}

    def run(self, command: str) -> int:
        file = Path(f"{self.out}.json")
        result = measure(self.checkpoint, self.task, self, file, command)
        text = page(result, self)
        write_text(file.with_suffix(".md"), text)
        figure(result, self, file.with_suffix(".png"))
        write_text(file.with_suffix(".html"), html(result, self))
        terminal.show(text)
        print(f"page: {file.with_suffix('.html')}  table: {file.with_suffix('.md')}  episodes: {file}")
        return 0
