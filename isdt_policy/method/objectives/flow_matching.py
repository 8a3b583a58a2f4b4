"""Flow matching (Lipman et al., arXiv 2210.02747; Albergo & Vanden-Eijnden, 2209.15571): the velocity alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.objectives.base import DRAWN, Draws, Loss, mean_square
from isdt_policy.method.objectives.parts import check_choice, draw_points, guided_velocity, weighted
from isdt_policy.method.objectives.times import TIMES
from isdt_policy.method.samplers import Sampling
from isdt_policy.method.shapes import Chunks, Embedding, Embeddings, Kept


@dataclass(frozen=True)
class FlowMatching:
    """|| F(x_t, t, t) - v_g ||^2. Its minimiser is the marginal velocity, which Euler and Heun integrate.

    Attributes:
        guidance_scale, cond_drop, weight_power: see `ISD`.
        times: name of the time draw, of which the later time is t.
    """

    sampling: ClassVar[Sampling] = Sampling("velocity")

    guidance_scale: float = 1.0
    cond_drop: float = 0.0
    times: str = "beta"
    weight_power: float = 0.0

    def __post_init__(self) -> None:
        check_choice(self, times=TIMES)

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
        v_g = guided_velocity(flow_map, points, null, self.guidance_scale)
        prediction = flow_map.velocity(points.x_t, points.t, points.cond).to(action.dtype)
        loss = mean_square(prediction - v_g, keep)
        return weighted(loss, self.weight_power, diagonal=loss)
