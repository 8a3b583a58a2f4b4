"""`isdt eval curve`: success of every checkpoint a run has kept, against the windows it had seen and the time it had taken."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

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
    from isdt_policy.eval.comparison import Group
    from isdt_policy.eval.curves import draw_curves

    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    usual = [f"seed_start={SELECTION_START}", "episodes=50", "videos=0", "report=false"]
    options = command.parse_options([*usual, *args])  # what is given comes last, and counts
    folders = checkpoints(options.checkpoint)
    out = Path(options.out) if options.out else Path(str(options.checkpoint)) / "curve"
    results = []
    for number, folder in enumerate(folders, start=1):
        print(f"checkpoint {number} of {len(folders)}: {folder}")
        one = replace(options, checkpoint=str(folder), out=str(out / folder.name))
        results.append(command.run(one, command="isdt eval curve " + shlex.join(args)))
    figure = out / "curve.png"
    draw_curves([Group(folder.name, (result,)) for folder, result in zip(folders, results)], None, figure)
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
