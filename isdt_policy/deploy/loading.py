"""What acts: a trained policy, an exported file or a policy server; and the limits that come with it.

The one module of this room that loads a policy. Everything else is handed one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isdt_policy.deploy.client import PolicyClient
from isdt_policy.deploy.runner import OnnxPolicy
from isdt_policy.deploy.safety import FILE, Limits
from isdt_policy.envs import task_ids, task_spec
from isdt_policy.envs.protocol import Policy
from isdt_policy.shared.errors import InputError

if TYPE_CHECKING:
    from isdt_policy.envs.registry import TaskSpec
    from isdt_policy.method.policy import Policy as Trained

ADDRESS = ("ws://", "wss://")


def load_policy(checkpoint: str, mode: str = "sync") -> Policy:
    """Load what acts.

    Args:
        checkpoint: address of a server (ws://HOST:PORT), a .onnx file, or a run, a checkpoint, a folder of save_pretrained.
            The key of a server comes from the environment variable ISDT_API_KEY.
        mode: of the runtime; "rtc" gives a policy that can continue a started chunk.

    Raises:
        InputError: nothing there that can be loaded.
    """
    if checkpoint.startswith(ADDRESS):
        return PolicyClient(checkpoint, api_key=os.environ.get("ISDT_API_KEY"))
    if checkpoint.endswith(".onnx"):
        return OnnxPolicy(checkpoint)
    policy = load_trained(checkpoint)
    if mode != "rtc":
        return policy
    from isdt_policy.deploy.freezing import PrefixPolicy

    return PrefixPolicy(policy)


def load_trained(checkpoint: str) -> Trained:
    """Load a trained policy from a run, a checkpoint or a folder of save_pretrained.

    Raises:
        InputError: nothing there that can be loaded.
    """
    from isdt_policy.method.policy import (
        Policy as Trained,
    )  # with torch, which an exported file or a server does not need

    return Trained.from_pretrained(checkpoint)


def nfe_of(policy: Policy, asked: str | None) -> int | str:
    """Network evaluations per chunk: what was asked for, or what the policy is fixed to, or 1.

    Raises:
        InputError: another number than the policy is fixed to (an exported file, a server).
    """
    fixed = getattr(policy, "nfe", None)
    if asked is not None and fixed is not None and asked != str(fixed):
        raise InputError(f"nfe={asked}: this policy runs nfe={fixed} and cannot change it.")
    chosen = str(fixed if asked is None and fixed is not None else asked or 1)
    return int(chosen) if chosen.isdigit() else chosen


def task_of(policy: Policy, asked: str | None) -> TaskSpec:
    """The task that was asked for, or the one the policy was trained on.

    Raises:
        InputError: neither names one, or it is unknown.
    """
    name = str(asked or getattr(policy, "task", "") or "")
    if not name:
        raise InputError("the checkpoint names no task; give task=NAME, for example task=pusht.")
    return task_spec(name)


def find_limits(checkpoint: str, policy: Policy, spec: TaskSpec | None, path: str | None) -> Limits:
    """The limits named, or those that travel with the policy, or the bounds of the task's actions."""
    if path is not None:
        return Limits.load(path)
    metadata: Mapping[str, Any] = getattr(policy, "metadata", {})
    if metadata.get("limits"):
        return Limits.from_dict(metadata["limits"])
    for folder in (checkpoint, f"{checkpoint}/policy", f"{checkpoint}/checkpoints/last/policy"):
        if (Path(folder) / FILE).is_file():
            return Limits.load(Path(folder) / FILE)
    if spec is None:
        task = str(getattr(policy, "task", "") or "")
        if task not in task_ids():
            return Limits()
        spec = task_spec(task)
    low, high = (np.broadcast_to(bound, spec.action.shape).tolist() for bound in (spec.action.low, spec.action.high))
    return Limits(low=low, high=high)
