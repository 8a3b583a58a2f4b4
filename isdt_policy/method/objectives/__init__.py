"""Training objectives, one file each; all are called alike (see base.py). `OBJECTIVES` is the registry."""

from collections.abc import Mapping

from isdt_policy.method.objectives.base import Loss, Objective
from isdt_policy.method.objectives.consistency import Consistency
from isdt_policy.method.objectives.consistency_discrete import DiscreteConsistency
from isdt_policy.method.objectives.diffusion import Diffusion
from isdt_policy.method.objectives.eulerian import Eulerian
from isdt_policy.method.objectives.flow_matching import FlowMatching
from isdt_policy.method.objectives.isd import ISD
from isdt_policy.method.objectives.lagrangian import Lagrangian
from isdt_policy.method.objectives.meanflow import MeanFlow
from isdt_policy.method.objectives.mip import MIP
from isdt_policy.method.objectives.progressive import Progressive
from isdt_policy.method.objectives.regression import Regression

OBJECTIVES: dict[str, type] = {
    "isd": ISD,
    "meanflow": MeanFlow,
    "eulerian": Eulerian,
    "lagrangian": Lagrangian,
    "progressive": Progressive,
    "consistency": Consistency,
    "consistency_discrete": DiscreteConsistency,
    "flow_matching": FlowMatching,
    "diffusion": Diffusion,
    "mip": MIP,
    "regression": Regression,
}

# Settings that came later, at the value that changes nothing: what was made before one existed was made with that.
LATER_SETTINGS = {
    "off_diagonal_fraction": 1.0, "endpoint_weight": 0.0,
    # Read only where the weight is above 0.
    "endpoint_fraction": 0.25, "endpoint_steps": 8, "endpoint_levels": 3, "endpoint_power": 0.0,
}  # fmt: skip


def completed(before: Mapping[str, object], now: Mapping[str, object]) -> dict[str, object]:
    """The settings of an objective as an older run saved them, with those of `now` that did not exist then."""
    return {**{key: value for key, value in LATER_SETTINGS.items() if key in now}, **before}


__all__ = [
    "ISD",
    "LATER_SETTINGS",
    "MIP",
    "OBJECTIVES",
    "Consistency",
    "Diffusion",
    "DiscreteConsistency",
    "Eulerian",
    "FlowMatching",
    "Lagrangian",
    "Loss",
    "MeanFlow",
    "Objective",
    "Progressive",
    "Regression",
    "completed",
]
