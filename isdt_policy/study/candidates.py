"""Objectives under study: variants that are compared here before any of them becomes a switch of the family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isdt_policy.flow_map import FlowMap
from isdt_policy.interpolants import eulerian_residual
from isdt_policy.objectives.base import Loss, mean_square
from isdt_policy.objectives.parts import derivative_along, diagonal_and_off_diagonal, draw_points, guided_velocity
from isdt_policy.samplers import Sampling


@dataclass(frozen=True)
class BoundedISD:
    """iSD-T with the residual of each sample shortened to at most `bound`, and no adaptive weight.

    The residual r along the network's own velocity is a function of (x_t, t, s) alone, so where r = 0 is the solution, r
    shortened is too: a bound on it cannot bias what is learnt. The diagonal's error holds the noise of a single sample
    and is left alone, since shortening it would move its minimiser from the mean towards a mode, as the adaptive weight
    does.

    Attributes:
        bound: root mean square of the residual of a sample beyond which it is shortened, per unit of phase; data has
            about unit variance, and velocities too.
        guidance_scale, cond_drop, derivative, eps, velocity, times, off_diagonal_weight: see `ISD`. With velocity="sample"
            the residual holds noise, and the bound does bias it.
    """

    sampling: ClassVar[Sampling] = Sampling("flow_map")

    bound: float = 1.0
    guidance_scale: float = 1.0
    cond_drop: float = 0.1
    derivative: Literal["central", "jvp"] = "central"
    eps: float = 0.005
    velocity: Literal["self", "sample"] = "self"
    times: str = "beta"
    off_diagonal_weight: float = 1.0

    def __call__(
        self, flow_map: FlowMap, action: Tensor, cond: Tensor, null: Tensor, generator: torch.Generator,
        *, keep: Tensor | None = None,
    ) -> Loss:  # fmt: skip
        """Loss on one batch; see `Objective`."""
        points = draw_points(flow_map.path, action, cond, null, generator, self.times, self.cond_drop)
        target = guided_velocity(flow_map, points, null, self.guidance_scale)
        if self.off_diagonal_weight <= 0:
            diagonal = flow_map.velocity(points.x_t, points.t, points.cond).to(action.dtype)
            loss = mean_square(diagonal - target, keep).mean()
            return Loss(loss, {"diagonal": loss.detach()})
        diagonal, off_diagonal = diagonal_and_off_diagonal(flow_map, points)
        v_hat = diagonal.detach() if self.velocity == "self" else target
        prediction = off_diagonal.detach()
        rate = derivative_along(flow_map, points, v_hat, self.derivative, self.eps)
        residual = eulerian_residual(flow_map.path, points.x_t, prediction, v_hat, rate, points.t, points.s)
        diagonal_loss = mean_square(diagonal - target, keep)
        off_loss = mean_square(off_diagonal - (prediction + residual), keep)
        # The gradient of w |F - sg(F + r)|^2 is -2 w r: a weight min(1, bound / |r|) is a residual cut at the bound.
        shorten = (self.bound / off_loss.detach().sqrt().clamp_min(1e-12)).clamp_max(1.0)
        total = (diagonal_loss + self.off_diagonal_weight * shorten * off_loss).mean()
        return Loss(total, {"diagonal": diagonal_loss.mean().detach(), "off_diagonal": off_loss.mean().detach()})


STUDY_OBJECTIVES: dict[str, type] = {"isd_bounded": BoundedISD}
