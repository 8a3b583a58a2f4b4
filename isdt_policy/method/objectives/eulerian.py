"""Eulerian self-distillation (Boffi et al., arXiv 2505.18825): the flow map does not change along the flow.

The residual as it stands, squared and differentiated. `ISD` is what this becomes when the derivative is frozen and the
prediction keeps a factor of one; the switches here are the ways in which the plain form differs, for the study of what
they cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import eulerian_residual, expand
from isdt_policy.method.objectives.base import DRAWN, Draws, Loss
from isdt_policy.method.objectives.parts import DERIVATIVES, Points, check_choice, derivative_along, distil, draw_points
from isdt_policy.method.objectives.times import TIMES
from isdt_policy.method.samplers import Sampling
from isdt_policy.method.shapes import Chunks, Embedding, Embeddings, Kept, Samples


@dataclass(frozen=True)
class Eulerian:
    """|| dX(x_t, t -> s) / dphi(t) ||^2 along the network's own velocity, beside flow matching on the diagonal.

    Attributes:
        guidance_scale, cond_drop, derivative, eps, times, weight_power, off_diagonal_weight: see `ISD`.
        through_derivative: differentiate D as well, the gradient of the residual in full; false freezes D.
        divide_by_step: divide the residual by b(d) (t - s, or its sine), as solving the identity for the displacement does:
            naive, and unbounded near the diagonal.
    """

    sampling: ClassVar[Sampling] = Sampling("flow_map")

    guidance_scale: float = 1.0
    cond_drop: float = 0.0
    derivative: str = "central"
    eps: float = 0.005
    through_derivative: bool = True
    divide_by_step: bool = False
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

        def residual(v_hat: Samples, prediction: Samples) -> Samples:
            if self.through_derivative:
                rate = _derivative_with_graph(flow_map, points, v_hat, self.derivative, self.eps)
            else:
                rate = derivative_along(flow_map, points, v_hat, self.derivative, self.eps)
            r = eulerian_residual(flow_map.path, points.x_t, prediction, v_hat, rate, points.t, points.s)
            if self.divide_by_step:
                _, b = flow_map.path.map_coefficients(expand((points.t - points.s) * flow_map.path.phase_rate, r))
                r = r / b.clamp_min(1e-6)
            return r

        return distil(self, flow_map, points, null, keep, residual)


def _derivative_with_graph(
    flow_map: FlowMap, points: Points, velocity: Samples, derivative: str, eps: float
) -> Samples:
    """D with its gradient, in full precision: the same two routes as flow_map.py, which cut the graph on purpose."""
    x_t, t, s, cond, rate = points.x_t, points.t, points.s, points.cond, flow_map.path.phase_rate
    with torch.autocast(x_t.device.type, enabled=False):
        if derivative == "jvp":
            tangents = (velocity, torch.full_like(t, 1 / rate))
            return torch.func.jvp(lambda x, time: flow_map.network(x, time, s, cond), (x_t, t), tangents)[1]
        dx = eps * rate * velocity
        ahead = flow_map.network(x_t + dx, t + eps, s, cond)
        behind = flow_map.network(x_t - dx, t - eps, s, cond)
        return (ahead - behind) / (2 * eps * rate)
