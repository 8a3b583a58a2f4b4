"""`isdt study`: objectives on the same network, data, optimiser and number of steps, over training seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from isdt_policy.lab.study import settings
from isdt_policy.shared import terminal


class _Verb:
    """Runs the study whose settings it has."""

    bare: ClassVar = True

    def run(self, command: str) -> int:
        from isdt_policy.lab.study import run

        terminal.show(run.study(self))
        return 0


@dataclass(frozen=True)
class Toys(_Verb, settings.Toys):
    """Compare objectives on densities in the plane: sliced Wasserstein distance over its sampling floor.

    A row of the table is an objective. Its result is one JSON file, so the same command continues a killed study, and rows can
    be added later. Gradient norms and diverged runs are reported too.

    Examples:
        isdt study toys 'rows=[isd_t,meanflow]' 'densities=[two_moons]' 'seeds=[0]' steps=2000 out=/tmp/study
        isdt study toys                                          every row, three densities, three seeds
    """


@dataclass(frozen=True)
class Pusht(_Verb, settings.Pusht):
    """Compare objectives on PushT from states: score and success.

    A row of the table is an objective, trained and evaluated as isdt train and isdt eval do it. The same command continues a
    killed study, and rows can be added later.

    Examples:
        isdt study pusht 'rows=[isd_t,weight_none,weight_one]'
        isdt study pusht 'rows=[meanflow]' 'seeds=[0]' episodes=10 out=/tmp/study
    """


@dataclass(frozen=True)
class Report(_Verb, settings.Report):
    """Write the tables and figures of study toys and study pusht again.

    Examples:
        isdt study report
        isdt study report out=/tmp/study
    """


@dataclass(frozen=True)
class Tasks(_Verb, settings.Tasks):
    """Compare this project's recipes with flow matching, MeanFlow, diffusion and regression, over training seeds.

    Within a task, all runs share network, data and steps. Every run is an ordinary isdt train and isdt eval, and continues like
    them. The same command in a second terminal takes the runs that are left.

    Examples:
        isdt study tasks 'experiments=[can]' 'seeds=[42]'   Can, iSD-T and four baselines, one training seed
        isdt study tasks 'experiments=[pusht_human]' 'objectives=[recipe,meanflow]' data.path=pusht_cchi_v7_replay.zarr
        isdt study tasks 'experiments=[lift]' training.steps=2000 out=/tmp/t   any setting of isdt train, for all runs
        isdt study tasks report=only                        tables and figures of the results that are there
    """

    rest: ClassVar = "overrides"
