"""iSD-T: improved self-distillation of flow maps with training guidance (Kim et al., arXiv 2601.22679).

One screen in the paper's order. Symbols are those of docs/notation.md; velocities and derivatives are per unit of phase.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import eulerian_residual
from isdt_policy.method.objectives.base import DRAWN, Draws, Loss, mean_square
from isdt_policy.method.objectives.parts import (
    DERIVATIVES,
    check_choice,
    draw_points,
    first_rows,
    guided_velocity,
    prediction_and_rate,
    weighted,
)
from isdt_policy.method.objectives.times import TIMES
from isdt_policy.method.objectives.weighting import bounded, by_times
from isdt_policy.method.samplers import Sampling
from isdt_policy.shared.errors import InputError


@dataclass(frozen=True)
class ISD:
    """The objective with each of its parts on its own switch.

    Attributes:
        guidance_scale: w of the training guidance; 1 is plain flow matching on the diagonal, and saves an evaluation.
        cond_drop: fraction of a batch trained without its condition, so that the null branch is learnt; guidance needs it.
        derivative: "jvp" (exact, forward mode, rides on the evaluation of F) or "central" (a difference of two evaluations
            more, in float32). On a trained UNet under bfloat16 both are 3 % from the float64 value.
        eps: half width of the central difference, in units of t.
        velocity: "self" distils the network's own marginal velocity; "sample" uses the velocity of the single sample, as
            MeanFlow does.
        times: name of the time draw, a key of `TIMES`.
        weight_power: p of the adaptive weighting; 0 switches it off.
        weight_by: "sample" weighs a sample by its own loss, as the paper does; "times" by that of the other samples at nearby
            times, which leaves the minimiser where it is. See `weighting`.
        bound: root mean square of a sample's residual beyond which it is shortened to it, per unit of phase (data and
            velocities have about unit variance); 0 leaves it as it is. See `bounded`.
        off_diagonal_weight: factor of the self-distillation term. At 0 the term is not evaluated at all: plain flow
            matching, at less than half the cost of a step.
    """

    sampling: ClassVar[Sampling] = Sampling("flow_map")

    guidance_scale: float = 1.0
    cond_drop: float = 0.0
    derivative: Literal["jvp", "central"] = "jvp"
    eps: float = 0.005
    velocity: Literal["self", "sample"] = "self"
    times: str = "beta"
    weight_power: float = 1.0
    weight_by: Literal["sample", "times"] = "sample"
    bound: float = 0.0
    off_diagonal_weight: float = 1.0
    off_diagonal_fraction: float = 1.0

    def __post_init__(self) -> None:
        check_choice(
            self, derivative=DERIVATIVES, velocity=("self", "sample"), times=TIMES, weight_by=("sample", "times")
        )
        if self.bound < 0:
            raise InputError(f"objective.bound must be at least 0 (0: no bound), got {self.bound}.")
        if not 0 < self.off_diagonal_fraction <= 1:
            raise InputError(
                f"objective.off_diagonal_fraction must be above 0 and at most 1, got {self.off_diagonal_fraction}; "
                "no self-distillation at all is objective.off_diagonal_weight=0."
            )

    def __call__(
        self,
        flow_map: FlowMap,
        action: Tensor,
        cond: Tensor,
        null: Tensor,
        generator: torch.Generator,
        *,
        keep: Tensor | None = None,
        draws: Draws = DRAWN,
    ) -> Loss:
        """Loss on one batch; see `Objective`."""
        points = draw_points(flow_map.path, action, cond, null, generator, self.times, self.cond_drop, draws)

        # 1. Flow matching with training guidance.
        diagonal = flow_map.velocity(points.x_t, points.t, points.cond).to(action.dtype)
        v_g = guided_velocity(flow_map, points, null, self.guidance_scale)
        diagonal_loss = mean_square(diagonal - v_g, keep)
        if self.off_diagonal_weight <= 0:
            return self._weighted(diagonal_loss, points.t, points.t, diagonal=diagonal_loss)

        # 2. Eulerian self-distillation. target = F + residual; no division by the step, nor by its sine.
        v_hat = diagonal.detach() if self.velocity == "self" else v_g
        off, v_off, keep_off = first_rows(self.off_diagonal_rows(len(action)), points, v_hat, keep)
        off_diagonal, rate = prediction_and_rate(flow_map, off, v_off, self.derivative, self.eps)
        prediction = off_diagonal.detach()
        residual = eulerian_residual(flow_map.path, off.x_t, prediction, v_off, rate, off.t, off.s)
        off_diagonal_loss = mean_square(off_diagonal - (prediction + residual), keep_off)

        # 3. Weights of the residual, and of the per-sample sum; on the rows that are left s = t, and the residual is 0.
        weight = self.off_diagonal_weight * bounded(off_diagonal_loss, self.bound)
        left = points.t[len(off.t) :]
        zero = torch.zeros_like(left)
        per_sample = diagonal_loss + torch.cat([weight * off_diagonal_loss, zero])
        terms = {"diagonal": diagonal_loss, "off_diagonal": torch.cat([off_diagonal_loss, zero])}
        return self._weighted(per_sample, points.t, torch.cat([off.s, left]), **terms)

    def off_diagonal_rows(self, batch: int) -> int:
        """Number of rows that are self-distilled, one at least."""
        return math.ceil(self.off_diagonal_fraction * batch)

    def weight_by_times(self, per_sample: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Weight of each sample (batch,); see `by_times`."""
        return by_times(per_sample, t, s, self.weight_power)

    def _weighted(self, per_sample: Tensor, t: Tensor, s: Tensor, **terms: Tensor) -> Loss:
        if self.weight_by == "sample":
            return weighted(per_sample, self.weight_power, **terms)
        weight = self.weight_by_times(per_sample, t, s)
        return Loss((weight * per_sample).mean(), {name: term.mean().detach() for name, term in terms.items()})
