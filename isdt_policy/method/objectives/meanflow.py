"""MeanFlow (Geng et al., arXiv 2505.13447): the average velocity, from the velocity of single samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from isdt_policy.method.device import sent
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import eulerian_residual
from isdt_policy.method.objectives.base import DRAWN, Draws, Loss, mean_square
from isdt_policy.method.objectives.parts import (
    DERIVATIVES,
    check_choice,
    draw_points,
    guided_velocity,
    prediction_and_rate,
    weighted,
)
from isdt_policy.method.objectives.share import share_of
from isdt_policy.method.objectives.times import TIMES
from isdt_policy.method.samplers import Sampling
from isdt_policy.method.shapes import Chunks, Embedding, Embeddings, Kept


@dataclass(frozen=True)
class MeanFlow:
    """|| F - sg(F + r) ||^2 with r along the single sample's velocity; on the diagonal, r = v - F, this is flow matching.

    On the linear path the target is v_t - (t - s) D, the paper's equation; the trigonometric path has its own from the
    same residual. It differs from `ISD` in two things: the velocity is v_t of the sample in place of the network's own,
    and one term serves on and off the diagonal.

    Attributes:
        guidance_scale, cond_drop, derivative, eps: see `ISD`.
        off_diagonal_fraction: share of the rows with s < t; the others have s = t. The paper's choice is a quarter.
        times: name of the time draw; the paper's is the logit-normal.
        weight_power: p of the adaptive weighting.
        off_diagonal_weight: factor of the rows with s < t; at 0 all rows are on the diagonal and nothing is differentiated.
    """

    sampling: ClassVar[Sampling] = Sampling("flow_map")

    guidance_scale: float = 1.0
    cond_drop: float = 0.0
    derivative: str = "jvp"
    eps: float = 0.005
    off_diagonal_fraction: float = 0.25
    times: str = "logit_normal"
    weight_power: float = 1.0
    off_diagonal_weight: float = 1.0

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
        """Loss on one batch; see `Objective`."""
        points = draw_points(flow_map.path, action, cond, null, generator, self.times, self.cond_drop, draws)
        v_g = guided_velocity(flow_map, points, null, self.guidance_scale)
        if self.off_diagonal_weight <= 0:
            prediction = flow_map.velocity(points.x_t, points.t, points.cond).to(action.dtype)
            loss = mean_square(prediction - v_g, keep)
            return weighted(loss, self.weight_power, diagonal=loss)

        if draws.s is None:
            share = share_of(generator)
            drawn = share.take(torch.rand(share.of(action.shape[0]), generator=generator))
            off = sent(drawn, action) < self.off_diagonal_fraction
            points = replace(points, s=torch.where(off, points.s, points.t))
        prediction, rate = prediction_and_rate(flow_map, points, v_g, self.derivative, self.eps)
        residual = eulerian_residual(flow_map.path, points.x_t, prediction.detach(), v_g, rate, points.t, points.s)
        loss = mean_square(prediction - (prediction.detach() + residual), keep)

        on = points.s == points.t
        weight = torch.where(on, 1.0, self.off_diagonal_weight)
        return weighted(
            weight * loss, self.weight_power, diagonal=_mean_where(on, loss, generator),
            off_diagonal=_mean_where(~on, loss, generator),
        )  # fmt: skip


def _mean_where(rows: Tensor, loss: Tensor, generator: torch.Generator) -> Tensor:
    """Mean over some rows of the whole batch, as the mean of what the processes return."""
    share = share_of(generator)
    (counted,) = share.whole(rows.to(loss))
    return share.of(1) * torch.where(rows, loss, 0.0).sum() / counted.sum().clamp_min(1)
