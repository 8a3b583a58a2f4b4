"""`isdt study`: objectives on the same network, data, optimiser and number of steps, over training seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from isdt_policy.lab.study import settings


class _Verb:
    """Runs the study whose settings it has."""

    bare: ClassVar = True

    def run(self, command: str) -> int:
        from isdt_policy.lab.study import run

        print(run.study(self))
        return 0


@dataclass(frozen=True)
class Toys(_Verb, settings.Toys):
    """Compare objectives on densities in the plane: sliced Wasserstein distance over its sampling floor.

    Every row is a cell with a JSON file of its own, which holds every density and training seed: a killed study goes on where it
    stopped, and rows can be added later with the same command. Gradient norms and diverged runs are counted too.

    Examples:
        isdt study toys 'rows=[isd_t,meanflow]' 'densities=[two_moons]' 'seeds=[0]' steps=2000 out=/tmp/study
        isdt study toys                                          every row, three densities, three seeds
    """


@dataclass(frozen=True)
class Pusht(_Verb, settings.Pusht):
    """Compare objectives on PushT from states: score and success.

    Cells call the ordinary training and evaluation. A killed study goes on where it stopped, and rows can be added later with
    the same command.

    Examples:
        isdt study pusht 'rows=[isd_t,weight_none,weight_one]'
        isdt study pusht 'rows=[meanflow]' 'seeds=[0]' episodes=10 out=/tmp/study
    """


@dataclass(frozen=True)
class Report(_Verb, settings.Report):
    """Write tables and figures of toys and PushT again, from the cells that are there.

    Examples:
        isdt study report
        isdt study report out=/tmp/study
    """


@dataclass(frozen=True)
class Tasks(_Verb, settings.Tasks):
    """Compare shipped recipes with flow matching, MeanFlow, diffusion and regression: success of every training seed.

    Network, data and steps are the same in a task. Every cell is an ordinary run of isdt train and isdt eval, and resumes like
    them. The same command in a second terminal takes the cells that are left.

    Examples:
        isdt study tasks 'experiments=[can]' 'seeds=[42]'   Can, iSD-T and four baselines, one training seed
        isdt study tasks 'experiments=[pusht_human]' 'objectives=[recipe,meanflow]' data.path=pusht_cchi_v7_replay.zarr
        isdt study tasks 'experiments=[lift]' training.steps=2000 out=/tmp/t   any setting of isdt train, for all cells
        isdt study tasks report=only                                        tables and figures from the cells that are there
    """

    rest: ClassVar = "overrides"
