"""Training objectives, one file each; all are called alike (see base.py). `OBJECTIVES` is the registry."""

from isdt_policy.objectives.base import Loss, Objective
from isdt_policy.objectives.isd import ISD

OBJECTIVES: dict[str, type] = {"isd": ISD}

__all__ = ["ISD", "OBJECTIVES", "Loss", "Objective"]
