"""Evaluation: rollouts over listed seeds, statistics with intervals, reports, comparisons.

`evaluate` runs any policy behind `isdt_policy.envs.protocol.Policy`; no module here imports torch or a policy class.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isdt_policy.eval.function_policy import FunctionPolicy
    from isdt_policy.eval.journal import Journal
    from isdt_policy.eval.protocol import Protocol
    from isdt_policy.eval.result import Result
    from isdt_policy.eval.rollout import Scene, Workers, evaluate
    from isdt_policy.eval.seeds import final_seeds, selection_seeds

_HOMES = {
    "FunctionPolicy": "function_policy", "Journal": "journal", "Protocol": "protocol", "Result": "result", "Scene": "rollout",
    "Workers": "rollout", "evaluate": "rollout", "final_seeds": "seeds", "selection_seeds": "seeds",
}  # fmt: skip

__all__ = [
    "FunctionPolicy", "Journal", "Protocol", "Result", "Scene", "Workers", "evaluate", "final_seeds", "selection_seeds",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
