"""Consistency training in continuous time (Song et al., arXiv 2303.01469; Lu & Song, 2410.11081): jumps to the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import eulerian_residual
from isdt_policy.method.objectives.base import DRAWN, Draws, Loss, mean_square
from isdt_policy.method.objectives.parts import DERIVATIVES, check_choice, draw_points, prediction_and_rate, weighted
from isdt_policy.method.objectives.times import TIMES
from isdt_policy.method.samplers import Sampling
from isdt_policy.method.shapes import Chunks, Embedding, Embeddings, Kept


@dataclass(frozen=True)
class Consistency:
    """|| F - sg(F + df/dphi) ||^2 for f(x_t, t) = X(x_t, t -> 0), along the velocity of the single sample.

    No diagonal term: f is tied to the data by its form alone, f(x, 0) = x.

    Attributes:
        cond_drop, derivative, eps: see `ISD`.
        times: name of the time draw, of which the later time is t.
        weight_power: p of the adaptive weighting; a half is close to the normalised tangent of sCM.
    """

    sampling: ClassVar[Sampling] = Sampling("consistency")

    cond_drop: float = 0.0
    derivative: str = "jvp"
    eps: float = 0.005
    times: str = "beta"
    weight_power: float = 0.5

    def __post_init__(self) -> None:
        check_choice(self, derivative=DERIVATIVES, times=TIMES)

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
        points = draw_points(flow_map.path, action, cond, null, generator, self.times, self.cond_drop, draws)
        points = replace(points, s=torch.zeros_like(points.t))
        prediction, rate = prediction_and_rate(flow_map, points, points.v_t, self.derivative, self.eps)
        residual = eulerian_residual(
            flow_map.path, points.x_t, prediction.detach(), points.v_t, rate, points.t, points.s
        )
        loss = mean_square(prediction - (prediction.detach() + residual), keep)
        return weighted(loss, self.weight_power, consistency=loss)
