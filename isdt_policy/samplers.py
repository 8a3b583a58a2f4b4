"""From noise to actions: pure functions (flow_map, noise, cond, times) -> action.

A time grid is a decreasing tuple 1 = t_0 > ... > t_n = 0; every interval costs one network evaluation unless said
otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from isdt_policy.errors import InputError, nearest
from isdt_policy.flow_map import FlowMap
from isdt_policy.interpolants import flow_map_step, interpolate

Sampler = Callable[[FlowMap, Tensor, Tensor, Sequence[float]], Tensor]


def uniform_grid(n: int) -> tuple[float, ...]:
    """n equal steps from 1 to 0."""
    return tuple(1 - i / n for i in range(n + 1))


def _pairs(times: Sequence[float], like: Tensor) -> list[tuple[Tensor, Tensor]]:
    full = [torch.full((like.shape[0],), time, dtype=like.dtype, device=like.device) for time in times]
    return list(zip(full, full[1:]))


def compose(flow_map: FlowMap, noise: Tensor, cond: Tensor, times: Sequence[float]) -> Tensor:
    """x <- X(x, t_i -> t_{i+1}): the flow map composed with itself. One interval is the one-step policy."""
    x = noise
    for t, s in _pairs(times, noise):
        x = flow_map.step(x, t, s, cond)
    return x


def restart(flow_map: FlowMap, noise: Tensor, cond: Tensor, times: Sequence[float]) -> Tensor:
    """Multistep consistency sampling: jump to the data, add the noise of the next time again, jump again.

    The noise that comes back is the initial one, so that the sampler stays a function of its arguments.
    """
    x = noise
    for t, s in _pairs(times, noise):
        data = flow_map.step(x, t, torch.zeros_like(t), cond)
        x = interpolate(flow_map.path, data, noise, s)
    return x


def euler(flow_map: FlowMap, noise: Tensor, cond: Tensor, times: Sequence[float]) -> Tensor:
    """First-order integration of the velocity on the network's diagonal: the multi-step baseline of the same network.

    The step keeps (data, noise) as the velocity predicts them, which is Euler's on the linear path and DDIM's rule on the
    trigonometric one.
    """
    x = noise
    for t, s in _pairs(times, noise):
        x = flow_map_step(flow_map.path, x, flow_map.velocity(x, t, cond), t, s)
    return x


def heun(flow_map: FlowMap, noise: Tensor, cond: Tensor, times: Sequence[float]) -> Tensor:
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


SAMPLERS: dict[str, Sampler] = {"compose": compose, "restart": restart, "euler": euler, "heun": heun}


def parse_steps(steps: int | str) -> tuple[Sampler, tuple[float, ...]]:
    """Turn `steps` as users write it into a sampler and its grid.

    1, 2, 4 compose the flow map that many times; "euler10", "heun5", "restart2" name a sampler and its intervals.

    >>> parse_steps(2)[1]
    (1.0, 0.5, 0.0)
    """
    match = re.fullmatch(r"([a-z]*)(\d+)", str(steps).strip())
    allowed = "a number of steps (1, 2, ...) or " + ", ".join(f"{name}N" for name in SAMPLERS)
    if not match or int(match[2]) < 1:
        raise InputError(f"steps={steps!r} is not {allowed}.{nearest(str(steps), SAMPLERS)}")
    name, n = match[1] or "compose", int(match[2])
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler '{name}' in steps={steps!r}; allowed: {allowed}.{nearest(name, SAMPLERS)}")
    return SAMPLERS[name], uniform_grid(n)


def evaluations(steps: int | str) -> int:
    """Number of network evaluations (NFE) that `steps` costs.

    >>> [evaluations(s) for s in (1, 2, "euler10", "heun5")]
    [1, 2, 10, 9]
    """
    sampler, times = parse_steps(steps)
    n = len(times) - 1
    return 2 * n - 1 if sampler is heun else n


__all__ = [
    "SAMPLERS",
    "compose",
    "euler",
    "evaluations",
    "heun",
    "parse_steps",
    "restart",
    "uniform_grid",
]
