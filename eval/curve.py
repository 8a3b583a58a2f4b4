"""`isdt eval curve`: success of every checkpoint a run has kept, against the windows it had seen and the time it had taken."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isdt_policy.eval.seeds import SELECTION_START
from isdt_policy.shared.errors import InputError

HELP = """usage: isdt eval curve checkpoint=RUN [key=value ...]

Evaluate every checkpoint of a run and draw success against training: windows seen, and minutes. Keep checkpoints to see
with training.keep_checkpoints=N. Interrupted, it goes on where it stopped.

examples
  isdt train experiment=pusht_demo training.keep_checkpoints=12 name=curve
  isdt eval curve checkpoint=outputs/curve steps=[1,2] baselines=[euler10]
  isdt compare curves=learning.png outputs/a/curve/*/ outputs/b/curve/*/          several runs in one figure

keys
  every key of `isdt eval`; here episodes=50, seed_start=200000 (selection seeds: a curve is looked at to choose), videos=0 and
  report=false unless given. out=RUN/curve holds a folder per checkpoint and curve.png.
"""


def main(args: Sequence[str]) -> int:
    """Run `isdt eval curve`."""
    from isdt_policy.eval import command
    from isdt_policy.eval.compare import Group, draw_curves

    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    usual = [f"seed_start={SELECTION_START}", "episodes=50", "videos=0", "report=false"]
    options = command.parse_options([*usual, *args])  # what is given comes last, and counts
    folders = checkpoints(options.checkpoint)
    out = Path(options.out) if options.out else Path(str(options.checkpoint)) / "curve"
    infos = []
    for number, folder in enumerate(folders, start=1):
        print(f"checkpoint {number} of {len(folders)}: {folder}")
        one = replace(options, checkpoint=str(folder), out=str(out / folder.name))
        infos.append(command.run(one, command="isdt eval curve " + shlex.join(args)))
    figure = out / "curve.png"
    draw_curves([Group(folder.name, (info,)) for folder, info in zip(folders, infos)], None, figure)
    print(f"curve: {figure}")
    return 0


def checkpoints(run: str | None) -> list[Path]:
    """The checkpoints that a run has kept, oldest first.

    Raises:
        InputError: no run there, or none kept.
    """
    if run is None:
        raise InputError("which run? For example: isdt eval curve checkpoint=outputs/pusht_demo")
    found = sorted(p for p in Path(run, "checkpoints").glob("*") if p.name.isdigit() and (p / "policy").is_dir())
    if not found:
        raise InputError(
            f"'{run}' holds no checkpoints/STEP; give the directory of a run, such as outputs/pusht_demo, trained with "
            "training.keep_checkpoints=N."
        )
    return found


def training_of(checkpoint: str | Path) -> dict[str, Any] | None:
    """What a checkpoint had cost: {"step", "windows": drawn so far, "seconds": of training, pauses left out}.

    None where the checkpoint does not lie in the run that made it (RUN, RUN/checkpoints/STEP or .../last).
    """
    path = Path(checkpoint)
    path = path / "checkpoints" / "last" if (path / "checkpoints" / "last").exists() else path
    run = path.parent.parent
    try:
        step = int(json.loads((path / "state" / "trainer.json").read_text())["step"])
        batch = int(json.loads((run / "config.json").read_text())["training"]["batch_size"])
        text = (run / "log.jsonl").read_text()
        # A run that is still writing may show half of its last line.
        records = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (OSError, KeyError, ValueError):
        return None
    clocks = [r["elapsed_s"] for r in records if r["step"] <= step and "elapsed_s" in r]
    # The clock starts again with every sitting: the last reading before it falls back belongs to a sitting that ended.
    ended = [a for a, b in zip(clocks, clocks[1:]) if b < a]
    return {"step": step, "windows": step * batch, "seconds": sum(ended) + (clocks[-1] if clocks else 0.0)}
