"""Consistency training in discrete time (Song et al., arXiv 2303.01469, algorithm 3; iCT, 2310.14189)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from isdt_policy.method.flow_map import FlowMap, full_precision
from isdt_policy.method.interpolants import flow_map_step
from isdt_policy.method.objectives.base import DRAWN, Draws, Loss, mean_square
from isdt_policy.method.objectives.parts import Points, at_times, check_choice, draw_points, weighted
from isdt_policy.method.objectives.times import TIMES
from isdt_policy.method.samplers import Sampling
from isdt_policy.method.shapes import Chunks, Embedding, Embeddings, Kept, Samples
from isdt_policy.shared.errors import InputError


@dataclass(frozen=True)
class DiscreteConsistency:
    """|| f(x_t, t) - sg f(x_t', t') ||^2 / step for neighbours t' < t on a grid, both of the same data and noise.

    f(x_t, t) = X(x_t, t -> 0), so f(x, 0) = x: the lowest level learns from the data and hands it upwards. The target's
    error against the flow is of the order of the step. Constant maps also satisfy every level but the lowest.

    Attributes:
        cond_drop, weight_power: see `ISD`.
        intervals: of the grid on [0, 1], equal.
        times: name of the time draw, of which the later time is rounded up to the grid.
    """

    sampling: ClassVar[Sampling] = Sampling("consistency")

    cond_drop: float = 0.0
    intervals: int = 64
    times: str = "beta"
    weight_power: float = 0.5

    def __post_init__(self) -> None:
        check_choice(self, times=TIMES)
        if self.intervals < 1:
            raise InputError(f"objective.intervals must be at least 1, got {self.intervals}.")

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
        """Loss on one batch; see `Objective`. The end time s is 0, whatever is drawn."""
        path = flow_map.path
        points = draw_points(path, action, cond, null, generator, self.times, self.cond_drop, draws)
        # Rounded up, where 0 belongs to the first interval; the tolerance keeps a given grid point where it is.
        level = (points.t * self.intervals - 1e-4).ceil().clamp(1, self.intervals)
        zero = torch.zeros_like(level)
        here = at_times(path, action, points, level / self.intervals, zero)
        below = at_times(path, action, points, (level - 1) / self.intervals, zero)

        def jump(p: Points) -> Samples:
            return flow_map_step(path, p.x_t, flow_map.network(p.x_t, p.t, p.s, p.cond).to(action.dtype), p.t, p.s)

        # The difference of two jumps that are nearly the same: under bfloat16 its gradient was off by 61 %.
        with full_precision(action):
            with torch.no_grad():
                target = jump(below)
            error = jump(here) - target
        step = path.phase_rate / self.intervals
        loss = mean_square(error, keep) / step
        return weighted(loss, self.weight_power, consistency=loss)
