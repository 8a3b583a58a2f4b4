"""Environments: one registry of task specs, seeded Gymnasium environments, scripted experts.

`make(task)` builds an environment, `task_spec(task)` says what it observes and accepts without importing a simulator.
"""

from isdt_policy.envs.registry import (
    ActionPart,
    ArraySpec,
    TaskSpec,
    make,
    register,
    register_with_gymnasium,
    task_ids,
    task_spec,
)

__all__ = ["ActionPart", "ArraySpec", "TaskSpec", "make", "register", "task_ids", "task_spec"]

register_with_gymnasium()
