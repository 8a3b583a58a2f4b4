"""Training objectives, one file each; all are called alike (see base.py). `OBJECTIVES` is the registry."""

from isdt_policy.objectives.base import Loss, Objective
from isdt_policy.objectives.consistency import Consistency
from isdt_policy.objectives.consistency_discrete import DiscreteConsistency
from isdt_policy.objectives.diffusion import Diffusion
from isdt_policy.objectives.eulerian import Eulerian
from isdt_policy.objectives.flow_matching import FlowMatching
from isdt_policy.objectives.isd import ISD
from isdt_policy.objectives.lagrangian import Lagrangian
from isdt_policy.objectives.meanflow import MeanFlow
from isdt_policy.objectives.mip import MIP
from isdt_policy.objectives.progressive import Progressive
from isdt_policy.objectives.regression import Regression

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

# Settings that came later, at the value that changes nothing: a run or a cell without one was made with that, and is the same.
YOUNGER = {"off_diagonal_fraction": 1.0}

__all__ = [
    "ISD",
    "MIP",
    "OBJECTIVES",
    "YOUNGER",
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
]
