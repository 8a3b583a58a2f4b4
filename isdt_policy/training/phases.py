"""The parts of a run, in order, and what each of them trains: the objective, the windows and the learning rate.

    diagonal    flow matching alone: the warm start
    complete    the objective as it is
    finish      from the averaged weights on, at a low learning rate: the flow is taken to its end
    endpoint    from those averaged weights on: the endpoint is taught by the flow (`objectives/endpoint.py`)

`TrainingConfig` says how long each is; all but "complete" may be absent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Set
from typing import Literal

from isdt_policy.method.objectives.base import Objective
from isdt_policy.method.objectives.isd import ISD
from isdt_policy.shared.errors import InputError
from isdt_policy.training.settings import TrainingConfig

Phase = Literal["diagonal", "complete", "finish", "endpoint"]


def phase_of(config: TrainingConfig, step: int) -> Phase:
    """The part of a run that a step belongs to."""
    if step < config.diagonal_steps:
        return "diagonal"
    if step < config.finish_start:
        return "complete"
    return "finish" if step < config.endpoint_start else "endpoint"


def begins_from_average(config: TrainingConfig, step: int) -> bool:
    """Whether a step is the first of a part that goes on from the averaged weights."""
    phase = phase_of(config, step)
    return phase in ("finish", "endpoint") and (step == 0 or phase_of(config, step - 1) != phase)


def objectives_of(objective: Objective, config: TrainingConfig) -> dict[Phase, Objective]:
    """The objective of every part. One without an endpoint to teach finishes as it trains.

    Raises:
        InputError: a part for which the objective has no term.
    """
    phases: dict[Phase, Objective] = dict.fromkeys(("diagonal", "complete", "finish", "endpoint"), objective)  # type: ignore[arg-type]
    if config.endpoint_steps and not getattr(objective, "endpoint_weight", 0.0):
        raise InputError("training.endpoint_steps needs an endpoint to teach: objective.endpoint_weight above 0.")
    if config.diagonal_steps:
        phases["diagonal"] = _with(objective, "diagonal_steps", off_diagonal_weight=0.0)
    if hasattr(objective, "endpoint_weight"):
        phases["diagonal"] = phases["finish"] = _with(
            objective, "finish_steps", off_diagonal_weight=0.0, endpoint_weight=0.0
        )
        phases["endpoint"] = _with(objective, "endpoint_steps", off_diagonal_weight=0.0)
        if config.endpoint_steps:
            phases["complete"] = _with(objective, "endpoint_steps", endpoint_weight=0.0)
    return phases


def _with(objective: Objective, setting: str, **weights: float) -> Objective:
    if not all(hasattr(objective, name) for name in weights):
        raise InputError(f"training.{setting} needs an objective with a self-distillation term.")
    return dataclasses.replace(objective, **weights)  # type: ignore[type-var]


def follow_steps(training: dict[str, object], planned: Mapping[str, int] | None, given: Set[str]) -> None:
    """Where training.steps is given and a part of the run is not, the part keeps its share; and what is compiled must pay.

    Args:
        training: the section of the settings; changed in place.
        planned: the same without the given steps; None if none are given.
        given: keys that were given, such as "training.steps".
    """
    if planned is None:
        return
    steps = training["steps"]
    if isinstance(steps, int) and steps > 0:  # all else is refused later
        for part in ("diagonal_steps", "finish_steps", "endpoint_steps"):
            if f"training.{part}" not in given:
                training[part] = planned[part] * steps // planned["steps"]
    if training["compile"] is True and "training.compile" not in given:
        training["compile"] = "auto"


def rows_of(objectives: Iterable[Objective], config: TrainingConfig) -> dict[str, int]:
    """How many rows of a batch the terms of objectives are taken on, by the setting that says so."""
    counts, batch = {"training.batch_size": config.batch_size}, config.batch_size * config.draws_per_obs
    for objective in objectives:
        if isinstance(objective, ISD) and objective.off_diagonal_weight > 0:
            name = (
                f"the share of the batch that objective.off_diagonal_fraction={objective.off_diagonal_fraction:g} takes"
            )
            counts[name] = objective.off_diagonal_rows(batch)
        if isinstance(objective, ISD) and objective.endpoint_weight > 0:
            name = f"the share of the batch that objective.endpoint_fraction={objective.endpoint_fraction:g} takes"
            counts[name] = math.ceil(objective.endpoint_fraction * batch)
    return counts


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then cosine to zero where the finish begins; the finish and the endpoint have rates of their own."""
    c, short = config, min(100, config.warmup_steps)
    if step < c.finish_start or c.finish_start == c.steps:
        return warmed_cosine(c.lr, step, c.warmup_steps, c.finish_start)
    if step < c.endpoint_start or not c.endpoint_steps:
        return warmed_cosine(c.finish_lr, step - c.finish_start, short, c.finish_steps)
    return warmed_cosine(c.endpoint_lr, step - c.endpoint_start, short, c.endpoint_steps)


def warmed_cosine(peak: float, step: int, warmup: int, steps: int) -> float:
    """Linear warm-up to `peak`, then cosine to zero after `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
