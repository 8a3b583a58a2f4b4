"""The endpoint taught by the network's own flow: jumps along the trajectories of its averaged weights.

Flow matching and Eulerian self-distillation look at points between data and noise; neither ever looks at X(z, 1 -> 0), the
only point a policy of one evaluation uses. Here the averaged weights walk from fresh noise to an action by small Euler steps
of their own velocity, and the jumps between points of that walk are regressed: the whole way, and half and quarter ways, so
that two and four evaluations are taught what one is. No other network, and no data but the observations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isdt_policy.method.device import sent
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import flow_map_step
from isdt_policy.method.objectives.parts import draw_noise
from isdt_policy.method.objectives.share import share_of


@dataclass(frozen=True)
class Averaged:
    """The running average of the weights, as a teacher.

    Attributes:
        flow_map: of the averaged weights.
        cond: their embedding of the batch's observations, (batch, cond_dim), without a graph.
    """

    flow_map: FlowMap
    cond: Tensor


@dataclass(frozen=True)
class Jumps:
    """What the endpoint term asks of the network: X(x_t, t -> s) = target.

    Attributes:
        rows: (n,) int64, row of the batch whose condition belongs to a jump.
        x_t, target: (n, horizon, action_dim), without a graph.
        t, s: (n,).
    """

    rows: Tensor
    x_t: Tensor
    t: Tensor
    s: Tensor
    target: Tensor


def trajectory(flow_map: FlowMap, noise: Tensor, cond: Tensor, steps: int) -> Tensor:
    """Points of Euler's method on the diagonal at times 1, 1 - 1/steps, ..., 0: (steps + 1, batch, horizon, action_dim)."""
    x, points = noise, [noise]
    with torch.no_grad():
        for i in range(steps):
            t = torch.full(noise.shape[:1], 1 - i / steps, dtype=noise.dtype, device=noise.device)
            v = flow_map.velocity(x, t, cond).to(noise.dtype)
            x = flow_map_step(flow_map.path, x, v, t, t - 1 / steps)
            points.append(x)
    return torch.stack(points)


def draw_jumps(
    averaged: Averaged, like: Tensor, rows: int, steps: int, levels: int, generator: torch.Generator
) -> Jumps:
    """The first `rows` of a batch walk once each; a walk gives the jump 1 -> 0 and, from two levels on, one shorter jump.

    Args:
        like: (batch, horizon, action_dim), of which shape and type are read.
        steps: of a walk, a multiple of 2^(levels - 1).
        levels: lengths that are taught: 1, then 1/2, 1/4, ..., each as often; a shorter jump starts at a uniform multiple of
            its length.
    """
    share = share_of(generator)
    noise = draw_noise(like[:rows], generator)
    walk = trajectory(averaged.flow_map, noise, averaged.cond[:rows], steps)
    row = torch.arange(rows)
    start, end = torch.full((rows,), 0), torch.full((rows,), steps)  # numbers of points of the walk: 0 is noise
    if levels > 1:
        length = steps // 2 ** torch.randint(1, levels, (share.of(rows),), generator=generator)
        first = (torch.rand(share.of(rows), generator=generator) * (steps // length)).long() * length
        length, first = share.take(length), share.take(first)
        row, start, end = torch.cat([row, row]), torch.cat([start, first]), torch.cat([end, first + length])
    row, start, end = (sent(number, like, torch.int64) for number in (row, start, end))
    t, s = (1 - number.to(like.dtype) / steps for number in (start, end))
    return Jumps(row, walk[start, row], t, s, walk[end, row])
