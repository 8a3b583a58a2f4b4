"""What each study runs, and with which budget. Importing this file loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from isdt_policy.shared.arm import Arm
from isdt_policy.shared.cluster import Where
from isdt_policy.shared.errors import InputError, at_least

OUT = Path("results/method_study")


@dataclass(frozen=True)
class ToySettings:
    """Budget and measurement of a toy cell.

    Attributes:
        steps, batch_size, lr, ema_decay: how each network is trained; with warm-up, cosine to zero, gradient clip 1, float32.
        width, depth, time_dim, time_periods: sizes of the network, an MLP, and the speed of its time features.
        samples: points per measurement; the sampling floor depends on it.
        repeats: how many independent measurements are averaged.
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
        experiment: every run has the data, network and optimiser of this experiment.
        steps, batch_size: optimiser steps per run, and windows per step.
        n_action_steps: how many actions of a chunk are executed.
        episodes: selection seeds (from 200000) at each number of evaluations, the same for every run.
        compile: compile the network for training.
    """

    experiment: str = "pusht_demo"
    steps: int = 3000
    batch_size: int = 64
    n_action_steps: int = 8
    episodes: int = 50
    compile: bool = True


@dataclass(frozen=True)
class Study(Where):
    """Which cells of the method study to run, and where they stay.

    What is compared:
        rows: objectives and their variants; default: all. A wrong name prints the list.
        seeds: training seeds.
        threads: CPU threads.
        out: folder for results, tables and figures.
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
        densities: which densities are learnt; default: all three.
    """

    densities: tuple[Literal["eight_gaussians", "checkerboard", "two_moons"], ...] = ()

    def cell(self) -> ToySettings:
        """The settings that decide the result of a cell."""
        return ToySettings(**{f.name: getattr(self, f.name) for f in fields(ToySettings)})


@dataclass(frozen=True)
class Pusht(PushtSettings, Study):
    """The PushT study.

    Attributes:
        work: folder for the runs; a run is removed when it has been measured.
    """

    work: Path = Path("outputs/study")

    def cell(self) -> PushtSettings:
        """The settings that decide the result of a cell."""
        return PushtSettings(**{f.name: getattr(self, f.name) for f in fields(PushtSettings)})


@dataclass(frozen=True)
class Report:
    """What is told of toys and PushT.

    Attributes:
        out: folder of the study, as in study toys and study pusht.
    """

    out: Path = OUT


RECIPE = "recipe"  # the objective that the experiment itself names
OBJECTIVES = (RECIPE, "flow_matching", "meanflow", "diffusion", "regression")


@dataclass(frozen=True)
class Tasks(Where):
    """Which cells of the study of tasks to run.

    Attributes:
        experiments: which experiments (tasks), such as lift, can, square, pusht_human.
        objectives: recipe is the experiment's own objective; the others are names that isdt train objective= knows.
        seeds: training seeds.
        overrides: settings of isdt train that all runs share, such as data.path=.
        episodes: final seeds (from 100000) per arm, the same for every run.
        arms: ask the policies so, where they can be; default: what is usual for each kind. More arms can be added later.
        threads: CPU threads of a run.
        n_envs, n_workers: how many environments an evaluation runs at a time, and how many processes step them.
        out: folder for results: eval_info.json and train_config.json of every run, tables.md and success.png.
        work: folder for runs with their weights.
        report: true writes tables and figures at the end, false does not; only writes them and runs nothing.
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
