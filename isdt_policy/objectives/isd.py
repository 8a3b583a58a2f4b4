"""iSD-T: improved self-distillation of flow maps with training guidance (Kim et al., arXiv 2601.22679).

One screen in the paper's order. Symbols are those of docs/notation.md; velocities and derivatives are per unit of phase.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isdt_policy.flow_map import FlowMap, central_difference, exact_derivative, null_like
from isdt_policy.interpolants import conditional_velocity, eulerian_residual, interpolate
from isdt_policy.objectives.base import Loss, mean_square
from isdt_policy.objectives.times import TIMES
from isdt_policy.objectives.weighting import adaptive


@dataclass(frozen=True)
class ISD:
    """The objective with each of its parts on its own switch.

    Attributes:
        guidance_scale: w of the training guidance; 1 is plain flow matching on the diagonal, and saves an evaluation.
        cond_drop: fraction of a batch trained without its condition, so that the null branch is learnt.
        derivative: "central" (two evaluations in float32) or "jvp" (exact, forward mode).
        eps: half width of the central difference, in units of t.
        velocity: "self" distils the network's own marginal velocity; "sample" uses the velocity of the single sample, as
            MeanFlow does.
        times: name of the time draw, a key of `TIMES`.
        weight_power: p of the adaptive weighting; 0 switches it off.
        off_diagonal_weight: factor of the self-distillation term. At 0 the term is not evaluated at all: plain flow
            matching, at less than half the cost of a step.
    """

    guidance_scale: float = 1.0
    cond_drop: float = 0.1
    derivative: Literal["central", "jvp"] = "central"
    eps: float = 0.005
    velocity: Literal["self", "sample"] = "self"
    times: str = "beta"
    weight_power: float = 1.0
    off_diagonal_weight: float = 1.0

    def __call__(
        self,
        flow_map: FlowMap,
        action: Tensor,
        cond: Tensor,
        null: Tensor,
        generator: torch.Generator,
        *,
        keep: Tensor | None = None,
        noise: Tensor | None = None,
        t: Tensor | None = None,
        s: Tensor | None = None,
        drop: Tensor | None = None,
    ) -> Loss:
        """Loss on one batch; see `Objective`. noise, t, s and drop may be given to fix the draws."""
        batch = action.shape[0]
        # Draws happen on the generator's device (CPU) and move, so that a run does not depend on the accelerator.
        if noise is None:
            noise = torch.randn(action.shape, generator=generator).to(action)
        if t is None or s is None:
            t, s = (time.to(action) for time in TIMES[self.times](batch, generator))
        if drop is None:
            drop = torch.rand(batch, generator=generator).to(action.device) < self.cond_drop
        cond = null_like(cond, null, drop)

        x_t = interpolate(flow_map.path, action, noise, t)
        v_t = conditional_velocity(flow_map.path, action, noise, t)

        # F on and off the diagonal, as one evaluation of twice the batch.
        distil = self.off_diagonal_weight > 0
        if distil:
            both = flow_map.network(
                torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([t, s]), torch.cat([cond, cond])
            )
            diagonal, off_diagonal = (part.to(action.dtype) for part in both.chunk(2))
        else:
            diagonal = flow_map.velocity(x_t, t, cond).to(action.dtype)

        # 1. Flow matching with training guidance: v_g = u + w (v_t - u), u = sg F(x_t, t, t, null).
        v_g = v_t
        if self.guidance_scale != 1.0:
            with torch.no_grad():
                u = flow_map.velocity(x_t, t, null.expand(batch, -1)).to(action.dtype)
            v_g = u + self.guidance_scale * (v_t - u)
        diagonal_loss = mean_square(diagonal - v_g, keep)
        if not distil:
            total = (adaptive(diagonal_loss, self.weight_power) * diagonal_loss).mean()
            return Loss(total, {"diagonal": diagonal_loss.mean().detach()})

        # 2. Eulerian self-distillation. target = F + residual; no division by the step, nor by its sine.
        v_hat = diagonal.detach() if self.velocity == "self" else v_g
        if self.derivative == "central":
            rate = central_difference(flow_map, x_t, t, s, cond, v_hat, self.eps)
        else:
            rate = exact_derivative(flow_map, x_t, t, s, cond, v_hat)
        prediction = off_diagonal.detach()
        residual = eulerian_residual(flow_map.path, x_t, prediction, v_hat, rate.to(action.dtype), t, s)
        off_diagonal_loss = mean_square(off_diagonal - (prediction + residual), keep)

        # 3. Adaptive weighting of the per-sample sum.
        per_sample = diagonal_loss + self.off_diagonal_weight * off_diagonal_loss
        total = (adaptive(per_sample, self.weight_power) * per_sample).mean()
        return Loss(
            total, {"diagonal": diagonal_loss.mean().detach(), "off_diagonal": off_diagonal_loss.mean().detach()}
        )
