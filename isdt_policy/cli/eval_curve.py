"""`isdt eval curve`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from isdt_policy.cli.eval import Eval
from isdt_policy.eval.comparison import Group
from isdt_policy.eval.curves import draw_curves
from isdt_policy.eval.seeds import SELECTION_START
from isdt_policy.shared.errors import InputError


@dataclass(frozen=True)
class EvalCurve(Eval):
    """Evaluate every checkpoint that a run has kept, and draw success against its training.

    The figure shows windows seen, and minutes. `training.keep_checkpoints=N` keeps checkpoints. The seeds are selection
    seeds, because a curve is looked at to choose. Interrupted, it goes on where it stopped.

    Examples:
        isdt train experiment=pusht_demo training.keep_checkpoints=12 name=curve
        isdt eval curve checkpoint=outputs/curve 'arms=[1,2,euler10]'
        isdt compare curves=learning.png outputs/a/curve/*/ outputs/b/curve/*/          several runs in one figure

    What is drawn:
        checkpoint: a run.
        out: default: RUN/curve; it holds a folder per checkpoint, and curve.png.
    """

    episodes: int = 50
    seed_start: int = SELECTION_START
    videos: int = 0
    report: bool = False

    def __post_init__(self) -> None:
        if self.checkpoint is None:
            raise InputError("which run? For example: isdt eval curve checkpoint=outputs/pusht_demo")
        super().__post_init__()

    def run(self, command: str) -> int:
        run = Path(str(self.checkpoint))
        folders, out = checkpoints(run), self.out or run / "curve"
        groups = []
        for number, folder in enumerate(folders, start=1):
            print(f"checkpoint {number} of {len(folders)}: {folder}")
            result = replace(self, checkpoint=str(folder)).evaluated(out / folder.name, command)
            groups.append(Group(folder.name, (result,)))
        draw_curves(groups, None, out / "curve.png")
        print(f"curve: {out / 'curve.png'}")
        return 0


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints that a run has kept, oldest first.

    Raises:
        InputError: no run there, or none kept.
    """
    found = sorted(p for p in (run / "checkpoints").glob("*") if p.name.isdigit() and (p / "policy").is_dir())
    if not found:
        raise InputError(
            f"'{run}' holds no checkpoints/STEP; give the directory of a run, such as outputs/pusht_demo, trained with "
            "training.keep_checkpoints=N."
        )
    return found
