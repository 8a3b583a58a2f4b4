"""Evaluation: rollouts over listed seeds, statistics with intervals, reports, comparisons.

`evaluate` runs any policy behind `isdt_policy.envs.protocol.Policy`; no module here imports torch or a policy class.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isdt_policy.eval.rollout import EvalResult, FunctionPolicy, Protocol, evaluate
    from isdt_policy.eval.seeds import final_seeds, selection_seeds

__all__ = ["EvalResult", "FunctionPolicy", "Protocol", "evaluate", "final_seeds", "selection_seeds"]

_HOMES = {"final_seeds": "seeds", "selection_seeds": "seeds"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'rollout')}"), name)
