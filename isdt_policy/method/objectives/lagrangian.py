"""Lagrangian self-distillation (Boffi et al., arXiv 2505.18825): the flow map moves at the velocity of where it arrives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import expand, flow_map_step
from isdt_policy.method.objectives.base import DRAWN, Draws, Loss
from isdt_policy.method.objectives.parts import DERIVATIVES, Points, check_choice, derivative_along, distil, draw_points
from isdt_policy.method.objectives.times import TIMES
from isdt_policy.method.samplers import Sampling
from isdt_policy.method.shapes import Chunks, Embedding, Embeddings, Kept, Samples


@dataclass(frozen=True)
class Lagrangian:
    """|| F - sg(F + r) ||^2 with r = v(X, s) - dX(x_t, t -> s) / dphi(s), beside flow matching on the diagonal.

    On the linear path the target is v(X, s) + (t - s) dF/ds. No division, and the derivative has no spatial part: nothing
    is differentiated along x.

    Attributes:
        guidance_scale, cond_drop, derivative, eps, times, weight_power, off_diagonal_weight: see `ISD`.
    """

    sampling: ClassVar[Sampling] = Sampling("flow_map")

    guidance_scale: float = 1.0
    cond_drop: float = 0.0
    derivative: str = "central"
    eps: float = 0.005
    times: str = "beta"
    weight_power: float = 0.0
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

        def error(_: Samples, prediction: Samples) -> Samples:
            frozen = prediction.detach()
            residual = lagrangian_residual(flow_map, points, frozen, self.derivative, self.eps)
            return prediction - (frozen + residual)

        return distil(self, flow_map, points, null, keep, error)


def lagrangian_residual(flow_map: FlowMap, points: Points, prediction: Samples, derivative: str, eps: float) -> Samples:
    """v(X, s) - dX(x_t, t -> s) / dphi(s), zero exactly where X is the flow map of v; without a graph.

    With X = a x_t - b F and d = phi(t) - phi(s):  dX / dphi(s) = -a' x_t + b' F - b dF/dphi(s).

    Args:
        prediction: F(x_t, t, s), (batch, horizon, action_dim).
    """
    path, x_t, t, s, cond = flow_map.path, points.x_t, points.t, points.s, points.cond
    with torch.no_grad():
        arrived = flow_map_step(path, x_t, prediction, t, s)
        velocity = flow_map.velocity(arrived, s, cond).to(x_t.dtype)
        # dF/dphi(s) is the derivative along the first time of the network with its times exchanged, at rest in x.
        exchanged = FlowMap(lambda x, s, t, c: flow_map.network(x, t, s, c), path)
        rate = derivative_along(exchanged, replace(points, t=s, s=t), torch.zeros_like(x_t), derivative, eps)
        d = expand((t - s) * path.phase_rate, x_t)
        (_, b), (a_rate, b_rate) = path.map_coefficients(d), path.map_coefficient_rates(d)
        return velocity - (-a_rate * x_t + b_rate * prediction - b * rate)
