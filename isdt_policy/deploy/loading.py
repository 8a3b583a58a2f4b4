"""What acts: a trained policy, an exported file or a policy server; and the limits that come with it.

The one module of this room that loads a policy. Everything else is handed one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isdt_policy.deploy.client import PolicyClient
from isdt_policy.deploy.limits import FILE, Limits, no_motion
from isdt_policy.deploy.runner import OnnxPolicy
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.recorded import Recorded

if TYPE_CHECKING:
    from isdt_policy.envs.protocol import Policy
    from isdt_policy.envs.registry import TaskSpec

ADDRESS = ("ws://", "wss://")


def load_policy(checkpoint: str, mode: str = "sync", device: str = "cpu") -> Policy:
    """Load what acts.

    Args:
        checkpoint: address of a server (ws://HOST:PORT), a .onnx file, or a run, a checkpoint, a folder of save_pretrained,
            zoo:NAME. The key of a server comes from the environment variable ISDT_API_KEY.
        mode: the runtime's mode; "rtc" gives a policy that can continue a started chunk.
        device: where a checkpoint computes, see `device_to_act`.

    Raises:
        InputError: nothing there that can be loaded, or a device that is not there.
    """
    if device != "cpu" and checkpoint.startswith(ADDRESS):
        raise InputError(f"device='{device}': a server computes where it runs; give device= to isdt serve.")
    if device != "cpu" and checkpoint.endswith(".onnx"):
        raise InputError(
            f"device='{device}': an exported file runs on the CPU; give the checkpoint that it was made from."
        )
    if checkpoint.startswith(ADDRESS):
        return PolicyClient(checkpoint, api_key=os.environ.get("ISDT_API_KEY"))
    if checkpoint.endswith(".onnx"):
        return OnnxPolicy(checkpoint)
    from isdt_policy.deploy import freezing  # with torch, which an exported file or a server does not need
    from isdt_policy.method.device import device_to_act

    policy = freezing.Policy.from_pretrained(checkpoint).to(device_to_act(device))
    return freezing.PrefixPolicy(policy) if mode == "rtc" else policy


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
    if not name and Recorded.of(policy) is not None:
        raise InputError(
            "this policy was trained on recordings of a robot, for which there is no simulator. Run it on the robot: "
            "docs/own_robot.md; or in a task that gives the same observations: task=NAME."
        )
    if not name:
        raise InputError("the checkpoint names no task; give task=NAME, for example task=pusht.")
    return _task_spec(name)


def load_for_robot(checkpoint: str) -> tuple[Policy, Limits, Recorded]:
    """Load what drives a robot of one's own: the policy, the limits of its commands, and what its recordings show.

    Args:
        checkpoint: see `load_policy`.

    Raises:
        InputError: nothing there that can be loaded, or a policy that was not trained on recordings of a robot.
    """
    policy = load_policy(checkpoint)
    recorded = Recorded.of(policy)
    if recorded is None:
        raise InputError(
            f"'{checkpoint}' was not trained on recordings of a robot, so it does not say how fast and within which limits to "
            "command one. In its simulator: isdt deploy"
        )
    limits = find_limits(checkpoint, policy, None)
    still = limits.neutral or recorded.neutral or (None,) * len(recorded.low)  # positions: every entry keeps its value
    return policy, replace(limits, neutral=still), recorded


def _task_spec(task: str) -> TaskSpec:
    """Looked up only where a task is named: a robot's computer may have no Gymnasium."""
    from isdt_policy.envs import task_spec

    return task_spec(task)


def find_limits(
    checkpoint: str, policy: Policy, spec: TaskSpec | None, path: str | None = None, *, loosen: bool = False
) -> Limits:
    """What the task, the policy and the user allow together.

    Args:
        checkpoint: where the policy came from; limits.json beside its weights counts as the policy's.
        policy: an exported file carries its limits; a policy that was trained on recordings alone knows what they show.
        spec: the task; None takes the policy's own, if it is known here.
        path: the user's file, or None.
        loosen: only the user's file holds, even where it allows what the task or the policy does not.

    Raises:
        InputError: a file that cannot be read, limits of different robots or that leave nothing allowed, or loosen alone.
    """
    mine = Limits() if path is None else Limits.load(path)
    if loosen and path is None:
        raise InputError("loosen=true lets limits=FILE replace the other limits; give the file.")
    if spec is None and (name := str(getattr(policy, "task", "") or "")):
        with contextlib.suppress(
            InputError, ModuleNotFoundError
        ):  # a task that is not known on this machine says nothing
            spec = _task_spec(name)
    task, own = task_limits(spec, policy), _own_limits(checkpoint, policy)
    if loosen:
        return Limits(position=own.position, neutral=own.neutral or task.neutral).and_also(mine, str(path))
    return task.and_also(own, "the limits beside the weights").and_also(mine, str(path))


def task_limits(spec: TaskSpec | None, policy: Policy) -> Limits:
    """The bounds of a task's actions and its neutral action, or what a policy without a known task says of itself."""
    if spec is None:
        metadata: Mapping[str, object] = getattr(policy, "metadata", {})
        config = getattr(policy, "config", None)
        words = str(metadata.get("action_type", getattr(config, "action_type", "")) or "")
        size = getattr(policy, "action_dim", None) or getattr(config, "action_dim", None)
        return Limits(neutral=no_motion(words, size) if size else None)
    low, high = (np.broadcast_to(bound, spec.action.shape).tolist() for bound in (spec.action.low, spec.action.high))
    return Limits(low=low, high=high, neutral=spec.neutral or no_motion(spec.action_type, spec.action.shape[0]))


def _own_limits(checkpoint: str, policy: Policy) -> Limits:
    metadata: Mapping[str, object] = getattr(policy, "metadata", {})
    embedded = metadata.get("limits")
    if isinstance(embedded, Mapping):
        return Limits.from_dict(embedded)
    for folder in (checkpoint, f"{checkpoint}/policy", f"{checkpoint}/checkpoints/last/policy"):
        if (Path(folder) / FILE).is_file():
            return Limits.load(Path(folder) / FILE)
    robot = Recorded.of(policy)
    if robot is None:
        return Limits()
    known = {key: value for key, value in asdict(robot).items() if key != "rate_hz"}
    return Limits.from_dict({**known, "position": robot.position or None})
