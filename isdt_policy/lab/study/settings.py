"""What each study runs, and with which budget. Importing this file loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError, at_least

OUT = Path("results/method_study")


@dataclass(frozen=True)
class ToySettings:
    """Budget and measurement of a toy cell.

    Attributes:
        steps, batch_size, lr, ema_decay: of the training; warm-up, cosine to zero, gradient clip 1, float32.
        width, depth, time_dim, time_periods: of the MLP.
        samples: points per measurement; the sampling floor depends on it.
        repeats: independent measurements that are averaged.
    """

    steps: int = 4000
    batch_size: int = 256
    lr: float = 3e-3
    ema_decay: float = 0.999
    width: int = 128
    depth: int = 3
    time_dim: int = 16
    time_periods: float = 1.0
    samples: int = 4096
    repeats: int = 12


@dataclass(frozen=True)
class PushtSettings:
    """Budget and measurement of a PushT cell.

    Attributes:
        experiment: configuration whose data, network and optimiser every cell shares.
        steps, batch_size: optimiser steps, and windows in each.
        n_action_steps: actions executed of each chunk.
        episodes: selection seeds (200000 ...) per number of evaluations, the same for every cell.
        compile: torch.compile the network in training.
    """

    experiment: str = "pusht_demo"
    steps: int = 3000
    batch_size: int = 64
    n_action_steps: int = 8
    episodes: int = 50
    compile: bool = True


@dataclass(frozen=True)
class Study:
    """Which cells of the method study to run, and where they stay.

    Attributes:
        rows: ways of training; default: all. A wrong name lists them.
        seeds: training seeds.
        threads: CPU threads.
        out: folder of cells, tables and figures.
        report: write tables and figures at the end.
    """

    rows: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    threads: int = 1
    out: Path = OUT
    report: bool = True

    def __post_init__(self) -> None:
        if not self.seeds or min(self.seeds) < 0:
            raise InputError(f"seeds={list(self.seeds)} must be training seeds from 0 on, for example seeds=[0,1,2].")
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is int:
                at_least(1, **{field.name: value})


@dataclass(frozen=True)
class Toys(ToySettings, Study):
    """The toy study.

    Attributes:
        densities: what is learnt; default: all.
    """

    densities: tuple[Literal["eight_gaussians", "checkerboard", "two_moons"], ...] = ()

    def cell(self) -> ToySettings:
        """The settings that decide the result of a cell."""
        return ToySettings(**{f.name: getattr(self, f.name) for f in fields(ToySettings)})


@dataclass(frozen=True)
class Pusht(PushtSettings, Study):
    """The PushT study.

    Attributes:
        work: where runs live until their cell is done.
    """

    work: Path = Path("outputs/study")

    def cell(self) -> PushtSettings:
        """The settings that decide the result of a cell."""
        return PushtSettings(**{f.name: getattr(self, f.name) for f in fields(PushtSettings)})


@dataclass(frozen=True)
class Report:
    """What is told of toys and PushT.

    Attributes:
        out: folder of the study.
    """

    out: Path = OUT


RECIPE = "recipe"  # the objective that the experiment itself names
OBJECTIVES = (RECIPE, "flow_matching", "meanflow", "diffusion", "regression")


@dataclass(frozen=True)
class Tasks:
    """Which cells of the study of tasks to run.

    Attributes:
        experiments: names of configs/experiment.
        objectives: "recipe", the objective that the experiment names, and names of configs/objective.
        seeds: training seeds.
        episodes: final-evaluation seeds (100000 ...) per arm, the same for every cell.
        arms: in place of the usual ones, where a policy can be asked so. More of them can be added later.
        threads: CPU threads of a cell.
        n_envs, n_workers: environments at a time, and processes that step them, of the evaluation.
        out: where results stay: a folder per cell with eval_info.json and train_config.json, tables.md and success.png.
        work: where runs live, with their weights.
        overrides: settings of isdt train that all cells share, such as data.path=.
        report: true writes tables and figures at the end, only does nothing else, false leaves them.
    """

    experiments: tuple[str, ...] = ()
    objectives: tuple[str, ...] = OBJECTIVES
    seeds: tuple[int, ...] = (42, 43, 44)
    episodes: int = 200
    arms: tuple[Arm, ...] = ()
    threads: int = 1
    n_envs: int = 16
    n_workers: int = 0
    out: Path = Path("results/tasks")
    work: Path = Path("outputs")
    report: Literal["true", "false", "only"] = "true"
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least(1, episodes=self.episodes, threads=self.threads, n_envs=self.n_envs)
        if self.report != "only" and not self.experiments:
            raise InputError("which experiments? For example: isdt study tasks experiments=[lift,can]")
