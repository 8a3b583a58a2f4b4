"""Options that several verbs share: what acts (a trained policy, or the scripted expert of a task), and where it is stepped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from isdt_policy.cli.command import PathText
from isdt_policy.envs import task_spec
from isdt_policy.envs.experts import expert
from isdt_policy.envs.protocol import ObsSpec, Policy
from isdt_policy.envs.registry import TaskSpec
from isdt_policy.eval.ray_backend import RaySlots
from isdt_policy.eval.rollout import Workers
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.pixels import check_layout
from isdt_policy.shared.recorded import Recorded

Scripted = Literal["expert"]


@dataclass(frozen=True)
class Actor:
    """Something that acts in a task.

    Attributes:
        policy: what acts.
        spec: the task in which it acts.
        fingerprint: identity of its weights, or the name of a scripted policy.
        checkpoint: where it was loaded from; None for a scripted policy.
        name: the scripted policy's name; None for a trained one.
    """

    policy: Policy
    spec: TaskSpec
    fingerprint: str
    checkpoint: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Acting:
    """Options that say what acts.

    What acts:
        checkpoint: a run, a checkpoint, a folder written by save_pretrained, or a trained policy of the zoo, zoo:NAME.
        policy: expert: the task's scripted expert acts, not a checkpoint.
        task: where it acts; default: the task that the checkpoint was trained on.
        n_action_steps: how many actions of a chunk are executed before the next chunk is asked for; default: as the checkpoint
            says.
        noise_scale: the initial noise is multiplied by this, 0 to 1; a smaller number draws actions nearer to the middle;
            default: as the checkpoint says.
        device: where the policy computes: cpu, cuda, cuda:1, mps, or auto for a GPU if there is one. The last bits of an answer
            depend on it.
    """

    checkpoint: PathText | None = None
    policy: Scripted | None = None
    task: str | None = None
    n_action_steps: int | None = None
    noise_scale: float | None = None
    device: str = "cpu"

    def check_acting(self) -> None:
        """Check what can be checked before anything is loaded."""
        if (self.checkpoint is None) == (self.policy is None):
            raise InputError("give either checkpoint=PATH or policy=expert (with task=NAME).")
        if self.policy is None:
            return
        if self.n_action_steps is not None:
            raise InputError("n_action_steps= is for checkpoints; an expert decides at every step.")
        if self.noise_scale is not None:
            raise InputError("noise_scale= is for checkpoints; an expert draws nothing.")
        if self.device != "cpu":
            raise InputError("device= is for checkpoints; an expert computes where the environment does.")
        if self.task is None:
            raise InputError("policy=expert needs task=NAME, for example task=pusht.")

    def actor(self) -> Actor:
        """Load what acts, and check that it fits the task.

        Raises:
            InputError: nothing there, an unknown task, or observations and actions that do not fit it.
        """
        if self.policy is not None:
            spec = task_spec(str(self.task))
            return Actor(expert(spec.id), spec, self.policy, name=self.policy)
        from isdt_policy.method import policy as method
        from isdt_policy.method.device import device_to_act

        checkpoint, device = str(self.checkpoint), device_to_act(self.device)
        policy = method.Policy.from_pretrained(checkpoint).acting(self.n_action_steps, self.noise_scale).to(device)
        task = self.task or policy.task
        if not task and Recorded.of(policy):
            raise InputError(
                "this policy was trained on recordings of a robot, for which there is no simulator to run episodes in. Held-out "
                f"recordings: isdt eval data checkpoint={checkpoint}"
            )
        if not task:
            raise InputError("the checkpoint names no task; give task=NAME, for example task=pusht.")
        spec = task_spec(task)
        check_fits(policy, spec)
        return Actor(policy, spec, policy.fingerprint, checkpoint)

    def asked(self, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        """The arms; an expert has one."""
        return arms if self.policy is None else (Arm.parse(self.policy),)


def check_fits(policy: Policy, spec: TaskSpec) -> None:
    """Check that a policy can act in a task.

    Raises:
        InputError: it reads an observation that the task does not give, or answers with actions of another size.
    """
    for key in policy.obs_keys:
        if key not in spec.observations:
            raise InputError(
                f"the policy reads observation '{key}', which task '{spec.id}' does not give."
                f"{nearest(key, spec.observations)} It gives: {', '.join(spec.observations)}."
            )
    config = getattr(policy, "config", None)
    dims: Mapping[str, int] = getattr(config, "obs_dims", None) or {}
    for key, dim in dims.items():
        shape = spec.observations[key].shape
        if (dim,) != shape:
            raise InputError(f"the policy reads '{key}' with {dim} features; task '{spec.id}' gives shape {shape}.")
    images: Mapping[str, ObsSpec] = getattr(config, "images", None) or {}
    for key, seen in images.items():
        if spec.observations[key].shape != seen.source:  # that is resized
            check_layout(spec.observations[key].shape, f"{spec.id}: {key}", seen.shape)
    size: int | None = getattr(config, "action_dim", None)
    if size is not None and (size,) != spec.action.shape:
        raise InputError(
            f"the policy answers with {size} numbers per action; task '{spec.id}' takes shape {spec.action.shape}."
        )


@dataclass(frozen=True)
class Stepping:
    """Options that say where environments are stepped.

    Attributes:
        n_envs: how many environments run at a time. This option and the next four do not change a result.
        n_workers: how many processes step them; 0: this process steps them, which is best for PushT.
        backend: local: this machine. ray: a Ray cluster, with n_workers actors, or one per CPU.
        address: HOST:PORT of a running Ray cluster; default: start one on this machine.
        timeout_s: a worker that is silent for so many seconds is replaced. Its episode is tried once more, then it counts as
            an error.
    """

    n_envs: int = 16
    n_workers: int = 0
    backend: Literal["local", "ray"] = "local"
    address: str | None = None
    timeout_s: float = 120.0

    def workers(self) -> Workers:
        """Where environments are stepped."""
        if self.backend == "local":
            return Workers(self.n_envs, self.n_workers, self.timeout_s)
        n_workers = self.n_workers or None
        slots = partial(RaySlots, n_workers=n_workers, address=self.address, timeout_s=self.timeout_s)
        return Workers(self.n_envs, self.n_workers, self.timeout_s, slots)
