"""The rows of the study: one objective each, on the same network, data, optimiser and number of steps.

`isd_t` is the base. A row that removes or replaces one part differs from it in that part alone, so what the part buys can
be read off as a difference of two rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from isdt_policy.method.objectives import LATER_SETTINGS, OBJECTIVES
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.values import JsonObject

COND_DROP = 0.1  # wherever guidance could read the null branch, so that rows differ in its scale alone
NFE = (1, 2, 4, 10)  # each run by the sampler of the objective's own kind


@dataclass(frozen=True)
class Row:
    """One way of training.

    Attributes:
        title: as the table shows it.
        objective: key of `OBJECTIVES`.
        settings: what differs from the objective's own defaults.
        interpolant, precondition: settings of the policy.
        network: options of the network that differ from the cell's.
        warm_start: share of the steps that train the diagonal alone.
    """

    title: str
    objective: str
    settings: JsonObject = field(default_factory=dict)
    interpolant: str = "linear"
    precondition: bool = True
    network: JsonObject = field(default_factory=dict)
    warm_start: float = 0.0


BASE = {"weight_power": 0.0, "bound": 1.0, "derivative": "jvp"}


def _isd(title: str, **changes: Any) -> Row:
    """A row that differs from the base in `changes` alone."""
    of_row = ("interpolant", "precondition", "network", "warm_start")
    outside = {key: changes.pop(key) for key in of_row if key in changes}
    return Row(title, "isd", {**BASE, **changes}, **outside)


def _unbounded(title: str, power: float, interpolant: str = "linear") -> Row:
    return Row(title, "isd", {"weight_power": power, "bound": 0.0}, interpolant=interpolant)


ROWS: dict[str, Row] = {
    "isd_t": _isd("iSD-T, bounded residual (base: linear, w = 1)"),
    "weight_none": _unbounded("no bound, p = 0", 0.0),
    "weight_half": _unbounded("adaptive weight p = 0.5", 0.5),
    "weight_one": _unbounded("adaptive weight p = 1", 1.0),
    "times_one": _isd("weight by times, p = 1", weight_power=1.0, weight_by="times"),
    "bound_third": _isd("bound 0.3 in place of 1", bound=0.3),
    "trigonometric": _isd("trigonometric path", interpolant="trigonometric"),
    "trigonometric_none": _unbounded("trigonometric, no bound, p = 0", 0.0, "trigonometric"),
    "trigonometric_one": _unbounded("trigonometric, p = 1 (the paper's)", 1.0, "trigonometric"),
    "guidance_2": _isd("training guidance w = 2", guidance_scale=2.0),
    "guidance_times": _isd(
        "training guidance w = 2, weight by times, p = 1", guidance_scale=2.0, weight_power=1.0, weight_by="times"
    ),
    "guidance_3": _isd(
        "training guidance w = 3, weight by times, p = 1", guidance_scale=3.0, weight_power=1.0, weight_by="times"
    ),
    "unpreconditioned": _isd("preconditioning off", precondition=False),
    "warm_start": _isd("half of the steps on the diagonal alone", warm_start=0.5),
    "central": _isd("central difference for the exact JVP", derivative="central"),
    # The residual along the sample's velocity holds its noise, and a bound would bias it: compare with "no bound, p = 0".
    "sample_velocity": Row(
        "single-sample velocity, no bound, p = 0", "isd", {"weight_power": 0.0, "bound": 0.0, "velocity": "sample"}
    ),
    "sample_times": Row(
        "single-sample velocity, weight by times, p = 1", "isd",
        {"weight_power": 1.0, "weight_by": "times", "bound": 0.0, "velocity": "sample"},
    ),
    "off_third": _isd(
        "weight by times, p = 1, self-distillation at 0.3", weight_power=1.0, weight_by="times", off_diagonal_weight=0.3
    ),
    "off_tenth": _isd(
        "weight by times, p = 1, self-distillation at 0.1", weight_power=1.0, weight_by="times", off_diagonal_weight=0.1
    ),
    "guidance_third": _isd(
        "training guidance w = 2, weight by times, p = 1, self-distillation at 0.3",
        guidance_scale=2.0, weight_power=1.0, weight_by="times", off_diagonal_weight=0.3,
    ),
    "uniform_times": _isd("uniform times", times="uniform"),
    "one_step_times": _isd("a quarter of the pairs at (1, 0)", times="one_step_mix"),
    "fast_times": _isd("time features of 8 periods", network={"time_periods": 8.0}),
    "fast_times_none": Row(
        "time features of 8 periods, no bound, p = 0", "isd", {"weight_power": 0.0, "bound": 0.0},
        network={"time_periods": 8.0},
    ),
    "meanflow": Row("MeanFlow", "meanflow"),
    "meanflow_plain": Row("MeanFlow, p = 0", "meanflow", {"weight_power": 0.0}),
    "consistency": Row("consistency training, continuous", "consistency"),
    "consistency_discrete": Row("consistency training, discrete", "consistency_discrete"),
    "lagrangian": Row("Lagrangian self-distillation", "lagrangian"),
    "progressive": Row("progressive self-distillation", "progressive"),
    "shortcut": Row("shortcut", "progressive", {"levels": 7}),
    "naive_derivative": Row("naive: through the derivative", "eulerian", {"through_derivative": True}),
    "naive_divided": Row(
        "naive: divided by the step", "eulerian", {"through_derivative": False, "divide_by_step": True}
    ),
    "flow_matching": Row("flow matching, Euler", "flow_matching"),
    "flow_matching_2": Row("flow matching, Euler, training guidance w = 2", "flow_matching", {"guidance_scale": 2.0}),
    # Predicting the sample: with epsilon, diffusers' few-step spacing starts from a level that pure noise does not have.
    "ddim": Row("diffusion, DDIM", "diffusion", {"prediction": "sample"}, interpolant="trigonometric"),
}  # fmt: skip


def chosen(kind: str, names: Sequence[str], allowed: Sequence[str]) -> list[str]:
    """`names`, or all that are allowed if none is given. InputError for an unknown one."""
    for name in names:
        if name not in allowed:
            raise InputError(f"unknown {kind} '{name}'.{nearest(name, allowed)} Allowed: {', '.join(allowed)}.")
    return list(dict.fromkeys(names)) or list(allowed)


def build_objective(row: Row) -> Any:
    """The objective of a row."""
    kind = OBJECTIVES[row.objective]
    shared = {"cond_drop": COND_DROP} if any(f.name == "guidance_scale" for f in fields(kind)) else {}
    return kind(**shared, **row.settings)


def describe(row: Row) -> JsonObject:
    """Every setting of a row, as the record of its cells: a changed default is a changed cell."""
    settings = asdict(build_objective(row)).items()
    return {**asdict(row), "settings": {k: v for k, v in settings if k not in LATER_SETTINGS or v != LATER_SETTINGS[k]}}
