"""Progressive self-distillation (Boffi et al., arXiv 2505.18825): one step equals two.

Shortcut models (Frans et al., 2410.12557) are its discrete case: steps of length 1, 1/2, 1/4, ... on their own grid, each
taught by two of half its length, the shortest by two steps of the velocity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from isdt_policy.method.device import sent
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import Interpolant, expand, flow_map_step
from isdt_policy.method.objectives.base import DRAWN, Draws, Loss
from isdt_policy.method.objectives.parts import Points, at_times, check_choice, distil, draw_points
from isdt_policy.method.objectives.share import share_of
from isdt_policy.method.objectives.times import TIMES
from isdt_policy.method.samplers import Sampling
from isdt_policy.method.shapes import Chunks, Embedding, Embeddings, Kept, Samples, Times


@dataclass(frozen=True)
class Progressive:
    """|| F(x_t, t, s) - sg(F of the two steps t -> u -> s) ||^2, beside flow matching on the diagonal.

    Attributes:
        guidance_scale, cond_drop, times, weight_power, off_diagonal_weight: see `ISD`.
        split: where u lies between s and t: in the "middle", or "uniform"ly drawn.
        levels: 0 takes t and s as drawn. n takes steps of length 2^-k, k = 0 ... n - 1, each as often, which start at
            multiples of their length: the shortcut model, to be sampled with 1, 2, 4, ... 2^(n-1) steps.
    """

    sampling: ClassVar[Sampling] = Sampling("flow_map")

    guidance_scale: float = 1.0
    cond_drop: float = 0.0
    split: str = "middle"
    levels: int = 0
    times: str = "beta"
    weight_power: float = 0.0
    off_diagonal_weight: float = 1.0

    def __post_init__(self) -> None:
        check_choice(self, split=("middle", "uniform"), times=TIMES)

    def __call__(
        self,
        flow_map: FlowMap,
        action: Chunks,
        cond: Embeddings,
        null: Embedding,
        generator: torch.Generator,
        *,
        keep: Kept | None = None,
        draws: Draws = DRAWN,
    ) -> Loss:
        """Loss on one batch; see `Objective`."""
        points = draw_points(flow_map.path, action, cond, null, generator, self.times, self.cond_drop, draws)
        # Off the diagonal: the points themselves, or, for a shortcut model, the same samples at the ends of dyadic steps.
        mine, batch = share_of(generator), share_of(generator).of(action.shape[0])
        off, fixed = points, draws.t is not None and draws.s is not None
        if self.levels and not fixed:
            start, end = (sent(mine.take(time), action) for time in dyadic_times(batch, self.levels, generator))
            off = at_times(flow_map.path, action, points, start, end)
        share = torch.full_like(off.t, 0.5)
        if self.split == "uniform":
            share = sent(mine.take(torch.rand(batch, generator=generator)), action)

        def error(_: Samples, prediction: Samples) -> Samples:
            return prediction - two_step_target(flow_map, off, share, self.levels)

        return distil(self, flow_map, points, null, keep, error, off_points=off)


def dyadic_times(batch: int, levels: int, generator: torch.Generator) -> tuple[Times, Times]:
    """Ends (t, s) of steps of length 2^-k, k uniform in 0 ... levels - 1, that start at a uniform multiple of it."""
    length = 0.5 ** torch.randint(levels, (batch,), generator=generator)
    index = (torch.rand(batch, generator=generator) / length).floor()
    return (index + 1) * length, index * length


def two_step_target(flow_map: FlowMap, points: Points, share: Times, levels: int = 0) -> Samples:
    """F of the composed steps t -> u -> s, u = t - share (t - s), without a graph.

    Args:
        share: the first step's part of the way, (batch,), in [0, 1].
        levels: of a shortcut model, whose shortest steps are taught by its velocity, F on the diagonal; 0 for none.
    """
    x_t, t, s, cond = points.x_t, points.t, points.s, points.cond
    u = t - share * (t - s)
    shortest = (t - s) < (1.5 * 0.5 ** (levels - 1) if levels else -1.0)
    with torch.no_grad():
        first = flow_map.network(x_t, t, torch.where(shortest, t, u), cond).to(x_t.dtype)
        between = flow_map_step(flow_map.path, x_t, first, t, u)
        second = flow_map.network(between, u, torch.where(shortest, u, s), cond).to(x_t.dtype)
        return compose_predictions(flow_map.path, x_t, first, second, t, u, s)


def compose_predictions(
    path: Interpolant, x_t: Samples, first: Samples, second: Samples, t: Times, u: Times, s: Times
) -> Samples:
    """F such that a(d) x_t - b(d) F is the step t -> u with `first` followed by the step u -> s with `second`.

    With d = d1 + d2:  F = b(d1) / b(d) a(d2) first + b(d2) / b(d) (second + a'(d1) x_t).
    Linear: the mean of the two, weighted by their lengths. The ratios stay in [0, 1] up to a right angle, so nothing is
    divided by a small number; a step of no length takes a half of each.
    """
    d1, d2 = (expand(d * path.phase_rate, x_t) for d in (t - u, u - s))
    (_, b1), (a2, b2), (_, b) = (path.map_coefficients(d) for d in (d1, d2, d1 + d2))
    a1_rate, _ = path.map_coefficient_rates(d1)
    short = b < 1e-6
    share1 = torch.where(short, 0.5, b1 / torch.where(short, 1.0, b))
    share2 = torch.where(short, 0.5, b2 / torch.where(short, 1.0, b))
    return share1 * a2 * first + share2 * (second + a1_rate * x_t)
