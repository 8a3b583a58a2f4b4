"""isdt-policy: one-step diffusion policies for robots, trained from scratch.

    from isdt_policy import DemoStore, Policy, Protocol, compose_config, evaluate, make_env, train

These names may be relied on; see docs/api.md. They are imported when they are first used, so that `import isdt_policy.envs` does
not load torch and `isdt --help` answers at once.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isdt_policy.datasets.store import DemoStore as DemoStore
    from isdt_policy.envs import make as make_env
    from isdt_policy.eval.protocol import Protocol as Protocol
    from isdt_policy.eval.rollout import evaluate as evaluate
    from isdt_policy.method.policy import Policy as Policy
    from isdt_policy.training.config import compose_config as compose_config
    from isdt_policy.training.run import train as train

__version__ = "0.1.0"
__all__ = ["DemoStore", "Policy", "Protocol", "__version__", "compose_config", "evaluate", "make_env", "train"]

_PUBLIC = {
    "DemoStore": ("datasets.store", "DemoStore"),
    "Policy": ("method.policy", "Policy"),
    "Protocol": ("eval.protocol", "Protocol"),
    "compose_config": ("training.config", "compose_config"),
    "evaluate": ("eval.rollout", "evaluate"),
    "make_env": ("envs", "make"),
    "train": ("training.run", "train"),
}

# In a clone, `datasets`, `envs`, `eval` and `configs` stand beside this folder; installed, they stand in it. A Python
# started in the clone finds this folder first, and has to find them too.
_clone = Path(__file__).parent.parent
if not (_clone / "isdt_policy" / "envs").exists() and (_clone / "envs" / "registry.py").exists():
    __path__.append(str(_clone))


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
