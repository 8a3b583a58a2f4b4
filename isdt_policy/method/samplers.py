"""From noise to actions: pure functions (flow_map, noise, cond, ...) -> action.

A time grid is a decreasing tuple 1 = t_0 > ... > t_n = 0; every interval costs one network evaluation unless said
otherwise. `SAMPLERS` is the one place where a sampler is registered, with the kinds of network that it can ask; `plan` turns
an arm, as users write it, into something that runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import expand, flow_map_step, interpolate
from isdt_policy.method.noise_schedule import NoiseSchedule, Scheduler
from isdt_policy.method.shapes import Embeddings, Samples, Times, no_type_check
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError, nearest

Generators = Sequence[torch.Generator]


def uniform_grid(n: int) -> tuple[float, ...]:
    """n equal steps from 1 to 0."""
    return tuple(1 - i / n for i in range(n + 1))


def _pairs(times: Sequence[float], like: Samples) -> list[tuple[Times, Times]]:
    full = [torch.full((like.shape[0],), time, dtype=like.dtype, device=like.device) for time in times]
    return list(zip(full, full[1:]))


# Of a flow map and of its diagonal: (flow_map, noise, cond, times) -> action.


def compose(flow_map: FlowMap, noise: Samples, cond: Embeddings, times: Sequence[float]) -> Samples:
    """x <- X(x, t_i -> t_{i+1}): the flow map composed with itself. One interval is the one-step policy."""
    x = noise
    for t, s in _pairs(times, noise):
        x = flow_map.step(x, t, s, cond)
    return x


def restart(
    flow_map: FlowMap, noise: Samples, cond: Embeddings, times: Sequence[float], generators: Generators | None = None
) -> Samples:
    """Multistep consistency sampling (Song et al. 2303.01469, algorithm 1): jump to the data, add noise, jump again.

    Args:
        generators: one per row, sources of the noise that is added; None adds the initial noise again.
    """
    x, fresh = noise, noise
    pairs = _pairs(times, noise)
    for i, (t, s) in enumerate(pairs):
        data = flow_map.step(x, t, torch.zeros_like(t), cond)
        if i == len(pairs) - 1:
            return data
        if generators is not None:
            fresh = torch.stack([torch.randn(noise.shape[1:], generator=g, dtype=noise.dtype) for g in generators])
        x = interpolate(flow_map.path, data, fresh.to(noise.device), s)
    return x


def euler(flow_map: FlowMap, noise: Samples, cond: Embeddings, times: Sequence[float]) -> Samples:
    """First-order integration of the velocity on the network's diagonal: the multi-step baseline of the same network.

    The step keeps (data, noise) as the velocity predicts them, which is Euler's on the linear path and DDIM's rule on the
    trigonometric one.
    """
    x = noise
    for t, s in _pairs(times, noise):
        x = flow_map_step(flow_map.path, x, flow_map.velocity(x, t, cond), t, s)
    return x


def heun(flow_map: FlowMap, noise: Samples, cond: Embeddings, times: Sequence[float]) -> Samples:
    """Second-order integration on the diagonal; two evaluations an interval, one in the last."""
    x = noise
    pairs = _pairs(times, noise)
    for i, (t, s) in enumerate(pairs):
        v = flow_map.velocity(x, t, cond)
        ahead = flow_map_step(flow_map.path, x, v, t, s)
        if i == len(pairs) - 1:
            return ahead
        d = flow_map.path.phase_rate * (s - t).reshape(-1, *(1,) * (x.ndim - 1))
        x = x + d * (v + flow_map.velocity(ahead, s, cond)) / 2
    return x


# Of a network that answers with the action itself.


def regress(flow_map: FlowMap, noise: Samples, cond: Embeddings, times: Sequence[float]) -> Samples:
    """Start from zero in place of noise, ask for the action, shrink it to the next time, ask again: no draw at all.

    Only the shape of `noise` is read. Times (1, 0) are plain regression, (1, t*, 0) the Minimum Iterative Policy.
    """
    x = action = torch.zeros_like(noise)
    for t, s in _pairs(times, noise):
        action = flow_map.network(x, t, torch.zeros_like(t), cond)
        x = flow_map.path.alpha(expand(s, x)) * action
    return action


# Of a diffusion policy, through diffusers' schedulers.


def _spacing(schedule: NoiseSchedule, n: int) -> str:
    """How n levels are picked: "trailing" starts at the last, where x is the pure noise it is given (Lin et al. 2305.08891).

    Not for epsilon: at that level the data is a rounding error of the noise, and dividing by sqrt(abar) = 5e-4 makes it
    arbitrary; "leading", which starts a step earlier, is what Diffusion Policy runs. Nor where n does not divide the
    number of levels: diffusers' DDIM then steps to other levels than it evaluates next.
    """
    return "leading" if schedule.prediction == "epsilon" or schedule.train_steps % n else "trailing"


def _denoise(
    flow_map: FlowMap,
    x: Samples,
    cond: Embeddings,
    scheduler: Scheduler,
    schedule: NoiseSchedule,
    n: int,
    **step: object,
) -> Samples:
    scheduler.set_timesteps(n)
    times = schedule.times(scheduler.alphas_cumprod)
    for k in scheduler.timesteps.tolist():
        t = torch.full((x.shape[0],), times[k].item(), dtype=x.dtype, device=x.device)
        x = scheduler.step(flow_map.velocity(x, t, cond), k, x, **step).prev_sample
    return x


def ddim(
    flow_map: FlowMap, noise: Samples, cond: Embeddings, n: int, schedule: NoiseSchedule, clip: float | None = None
) -> Samples:
    """Deterministic sampling in n evaluations by diffusers' DDIMScheduler (Song et al. 2010.02502, eta = 0).

    Args:
        clip: bound of the predicted data at every step; None does not bound it.
    """
    scheduler = schedule.scheduler("ddim", clip, _spacing(schedule, n))
    return _denoise(flow_map, noise, cond, scheduler, schedule, n)


def ddpm(
    flow_map: FlowMap,
    noise: Samples,
    cond: Embeddings,
    n: int,
    schedule: NoiseSchedule,
    clip: float | None = None,
    generators: Generators | None = None,
) -> Samples:
    """Ancestral sampling in n evaluations by diffusers' DDPMScheduler (Ho et al. 2006.11239).

    Args:
        generators: one per row, sources of the noise of every step, so that a row does not depend on its neighbours; None
            draws from PyTorch's global generator.
    """
    scheduler = schedule.scheduler("ddpm", clip, _spacing(schedule, n))
    source = None if generators is None else list(generators)
    return _denoise(flow_map, noise, cond, scheduler, schedule, n, generator=source)


@dataclass(frozen=True)
class Sampler:
    """A way of sampling.

    Attributes:
        run: (flow_map, noise, cond, times) -> action; of a diffusion policy (flow_map, noise, cond, n, schedule, clip).
        kinds: what a network must have been taught to be asked this way, keys of `KINDS`.
        draws: whether it draws noise after the initial one, from `generators`, one per row.
    """

    run: Callable[..., Tensor]
    kinds: tuple[str, ...]
    draws: bool = False


# The first sampler that suits a kind is the one that a bare number of evaluations means. A sampler that costs more than one
# evaluation an interval also says so in shared/arm.py, where evaluations are counted without torch.
SAMPLERS: dict[str, Sampler] = {
    "compose": Sampler(compose, ("flow_map",)),
    "euler": Sampler(euler, ("velocity", "flow_map")),
    "heun": Sampler(heun, ("velocity", "flow_map")),
    "restart": Sampler(restart, ("consistency", "flow_map"), draws=True),
    "regress": Sampler(regress, ("regression",)),
    "ddim": Sampler(ddim, ("diffusion",)),
    "ddpm": Sampler(ddpm, ("diffusion",), draws=True),
}


@dataclass(frozen=True)
class Kind:
    """What an objective teaches its network.

    Attributes:
        taught: in words, for messages.
        usual_nfe: network evaluations with which such a policy is usually run.
    """

    taught: str
    usual_nfe: int = 1


KINDS: dict[str, Kind] = {
    "flow_map": Kind("it was trained as a flow map"),
    "velocity": Kind("it was trained on its diagonal alone, the velocity, and knows no jumps", 10),
    "consistency": Kind("it was trained to jump to the data alone"),
    "regression": Kind("it was trained to answer with the action itself"),
    "diffusion": Kind("it was trained on the noise levels of a diffusers scheduler", 10),
}


@dataclass(frozen=True)
class Sampling:
    """What a policy's network was taught; saved with the policy, given by the objective that trained it.

    Attributes:
        kind: a key of `KINDS`.
        refine_time: of regression: t* of the second evaluation; 0 has none.
        prediction, train_steps, beta_schedule: of diffusion, see `NoiseSchedule`.
    """

    kind: str = "flow_map"
    refine_time: float = 0.0
    prediction: str = NoiseSchedule.prediction
    train_steps: int = NoiseSchedule.train_steps
    beta_schedule: str = NoiseSchedule.beta_schedule

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                f"sampling.kind='{self.kind}' is not one of {', '.join(KINDS)}.{nearest(self.kind, KINDS)}"
            )
        if not 0 <= self.refine_time < 1:
            raise InputError(f"sampling.refine_time must be in [0, 1), got {self.refine_time}.")

    @classmethod
    def read(cls, values: Mapping[str, object]) -> Sampling:
        """From a mapping, as config.json holds it."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"unknown key 'sampling.{unknown[0]}'.{nearest(unknown[0], known)}")
        return cls(**values)  # type: ignore[arg-type]  # checked in __post_init__

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise levels of a diffusion policy."""
        return NoiseSchedule(self.prediction, self.train_steps, self.beta_schedule)

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of the samplers that such a network can be asked with; a bare number means the first."""
        return tuple(name for name, sampler in SAMPLERS.items() if self.kind in sampler.kinds)

    @property
    def usual_nfe(self) -> int:
        """Network evaluations with which such a policy is usually run."""
        return 2 if self.refine_time else KINDS[self.kind].usual_nfe


FLOW_MAP = Sampling()


@dataclass(frozen=True)
class Plan:
    """A sampler with all that it needs beside flow map, noise and condition.

    Attributes:
        run: (flow_map, noise, cond) -> action, and generators=... if `stochastic`.
        evaluations: network evaluations (NFE).
        stochastic: whether it draws noise after the initial one.
    """

    run: Callable[..., Tensor]
    evaluations: int
    stochastic: bool = False


@no_type_check
def plan(nfe: Arm | int | str, sampling: Sampling = FLOW_MAP, clip: float | None = None) -> Plan:
    """What `nfe` means for a policy whose network was taught `sampling`.

    1, 2, 4 run the kind's own sampler that many times; "euler10", "restart2", "ddim10" name sampler and number;
    "compose@0.6@0.3" or "@0.6@0.3" choose the times between 1 and 0 themselves.

    Args:
        clip: bound of the normalised data, for diffusion.

    Raises:
        InputError: it cannot be read, or names a sampler that this network cannot answer.
    """
    arm = Arm.parse(nfe)
    name = arm.sampler or sampling.samplers[0]
    forms = "a number of evaluations (1, 2, ...) or " + ", ".join(f"{n}N" for n in sampling.samplers)
    if name not in SAMPLERS or not arm.intervals:
        raise InputError(f"nfe='{arm}' names no sampler that there is; allowed: {forms}.{nearest(name, SAMPLERS)}")
    refuse = f"nfe='{arm}' does not suit this policy: {KINDS[sampling.kind].taught}; allowed: {forms}"
    sampler = SAMPLERS[name]
    if sampling.kind not in sampler.kinds:
        raise InputError(f"{refuse}.")
    if sampling.kind == "diffusion":
        if arm.times or arm.intervals > sampling.train_steps:
            raise InputError(f"{refuse}, N at most {sampling.train_steps}; diffusers chooses the noise levels.")
        run = partial(sampler.run, n=arm.intervals, schedule=sampling.schedule, clip=clip)
        return Plan(run, arm.nfe, sampler.draws)
    times = arm.grid
    if sampling.kind == "regression":
        most = 2 if sampling.refine_time else 1
        if arm.times or arm.intervals > most:
            raise InputError(f"nfe='{arm}': this policy answers in {' or '.join('12'[:most])} evaluations, no others.")
        times = (1.0, sampling.refine_time, 0.0) if arm.intervals == 2 else times
    return Plan(partial(sampler.run, times=times), arm.nfe, sampler.draws and arm.intervals > 1)
