"""Where a result comes from: command, policy, versions, machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata

from isdt_policy import __version__
from isdt_policy.envs import task_spec
from isdt_policy.envs.opengl import renderer
from isdt_policy.envs.protocol import Policy
from isdt_policy.shared.provenance import commit, decides_bits
from isdt_policy.shared.values import Json


@dataclass(frozen=True)
class PolicyInfo:
    """What acted.

    Attributes:
        checkpoint: where it was loaded from; None for a scripted policy.
        name: the scripted policy's name; None for a trained one.
        fingerprint: SHA-256 of its weights and configuration, or its name.
        parameters: how many parameters it has.
        training: what its training took: step, windows, seconds.
        config: its configuration.
        device: where it computed: cpu, or the name of a GPU.
        rows: of its network calls, if it says so. With the device they decide about the last bits of its answers.
    """

    checkpoint: str | None = None
    name: str | None = None
    fingerprint: str | None = None
    parameters: int | None = None
    training: Json | None = None
    config: Json | None = None
    device: str | None = None
    rows: int | None = None


@dataclass(frozen=True)
class Origin:
    """Where a result comes from.

    Attributes:
        command: the command line as it was typed.
        options: all its options, with defaults.
        commit: this software's git commit.
        created: when the result was made, in UTC.
        policy: what acted.
        versions: versions of the packages that can change a result.
        hardware: processor, its instructions, cores, threads and accelerator.
    """

    command: str = ""
    options: Json = field(default_factory=dict)
    commit: str | None = None
    created: str = ""
    policy: PolicyInfo = PolicyInfo()
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Json = field(default_factory=dict)

    @classmethod
    def now(cls, command: str, options: Json, policy: PolicyInfo, task: str) -> Origin:
        """The origin of a result that is made here and now."""
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return cls(command, options, commit(), created, policy, versions(task), hardware())


def describe_policy(policy: Policy, **more: object) -> PolicyInfo:
    """What a policy says of itself; `more` are the other fields of `PolicyInfo`."""
    parameters, saved = getattr(policy, "parameters", None), getattr(getattr(policy, "config", None), "to_json", None)
    config = None if saved is None else {key: value for key, value in saved().items() if key != "format_version"}
    count = None if parameters is None else sum(p.numel() for p in parameters())
    device, rows = getattr(policy, "computes_on", "cpu"), getattr(policy, "inference_rows", None)
    return PolicyInfo(parameters=count, config=config, device=device, rows=rows, **more)  # type: ignore[arg-type]


def versions(task: str) -> dict[str, str]:
    """Versions of the packages that can change a result of a task, and what draws its pictures."""
    found = {"isdt-policy": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "gymnasium"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, **renderer(task_spec(task).packages)}


def hardware() -> dict[str, object]:
    """Processor, its instructions, cores, threads and accelerator."""
    return {"cores": os.cpu_count(), "system": platform.platform(aliased=True), **decides_bits()}
