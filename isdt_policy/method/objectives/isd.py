"""iSD-T: improved self-distillation of flow maps with training guidance (Kim et al., arXiv 2601.22679).

One screen in the paper's order. Symbols are those of docs/notation.md; velocities and derivatives are per unit of phase.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import eulerian_residual, flow_map_step
from isdt_policy.method.objectives.base import DRAWN, Draws, Loss, mean_square
from isdt_policy.method.objectives.endpoint import Averaged, Jumps, draw_jumps
from isdt_policy.method.objectives.parts import (
    DERIVATIVES,
    Points,
    check_choice,
    draw_points,
    first_rows,
    guided_velocity,
    prediction_and_rate,
    weighted,
)
from isdt_policy.method.objectives.share import Share, share_of
from isdt_policy.method.objectives.times import TIMES
from isdt_policy.method.objectives.weighting import adaptive, bounded, by_times
from isdt_policy.method.samplers import Sampling
from isdt_policy.method.shapes import Chunks, Embedding, Embeddings, Kept, Rows, Times
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
        off_diagonal_fraction: share of the rows that the self-distillation term is taken on.
        endpoint_weight: factor of the endpoint term: jumps of the network towards the walk of its averaged weights, see
            `endpoint.py`. At 0 nothing walks.
        endpoint_fraction: share of the rows that walk.
        endpoint_steps: Euler steps of a walk.
        endpoint_levels: lengths of the jumps: 1 teaches 1 -> 0 alone, 2 the halves too, 3 also the quarters.
        endpoint_power: p of the adaptive weighting of the endpoint term; its target holds no noise of a single sample.
    """

    sampling: ClassVar[Sampling] = Sampling("flow_map")

    guidance_scale: float = 1.0
    cond_drop: float = 0.0
    derivative: str = "jvp"
    eps: float = 0.005
    velocity: str = "self"
    times: str = "beta"
    weight_power: float = 1.0
    weight_by: str = "sample"
    bound: float = 0.0
    off_diagonal_weight: float = 1.0
    off_diagonal_fraction: float = 1.0
    endpoint_weight: float = 0.0
    endpoint_fraction: float = 0.25
    endpoint_steps: int = 8
    endpoint_levels: int = 3
    endpoint_power: float = 0.0

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
        if not 0 < self.endpoint_fraction <= 1:
            raise InputError(
                f"objective.endpoint_fraction must be above 0 and at most 1, got {self.endpoint_fraction}."
            )
        if self.endpoint_levels < 1 or self.endpoint_steps % 2 ** (self.endpoint_levels - 1):
            raise InputError(
                f"objective.endpoint_steps={self.endpoint_steps} is not a multiple of "
                f"{2 ** max(self.endpoint_levels - 1, 0)}, which the shortest jumps of "
                f"objective.endpoint_levels={self.endpoint_levels} need."
            )

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
        averaged: Averaged | None = None,
    ) -> Loss:
        """Loss on one batch; see `Objective`.

        Args:
            averaged: the teacher of the endpoint term, without which there is none.
        """
        points = draw_points(flow_map.path, action, cond, null, generator, self.times, self.cond_drop, draws)

        # 1. Flow matching with training guidance; the jumps of 3 ride on its evaluation.
        jumps = None
        if self.endpoint_weight > 0 and averaged is not None:
            rows = math.ceil(self.endpoint_fraction * len(action))
            jumps = draw_jumps(averaged, action, rows, self.endpoint_steps, self.endpoint_levels, generator)
        diagonal, jumped = diagonal_and_jumps(flow_map, points, jumps, cond)
        v_g = guided_velocity(flow_map, points, null, self.guidance_scale)
        diagonal_loss = mean_square(diagonal - v_g, keep)
        per_sample, s_of, terms = diagonal_loss, points.t, {"diagonal": diagonal_loss}

        # 2. Eulerian self-distillation. target = F + residual; no division by the step, nor by its sine.
        if self.off_diagonal_weight > 0:
            v_hat = diagonal.detach() if self.velocity == "self" else v_g
            off, v_off, keep_off = first_rows(self.off_diagonal_rows(len(action)), points, v_hat, keep)
            off_diagonal, rate = prediction_and_rate(flow_map, off, v_off, self.derivative, self.eps)
            prediction = off_diagonal.detach()
            residual = eulerian_residual(flow_map.path, off.x_t, prediction, v_off, rate, off.t, off.s)
            off_diagonal_loss = mean_square(off_diagonal - (prediction + residual), keep_off)
            # Weights of the residual, and of the per-sample sum; on the rows that are left s = t, and the residual is 0.
            weight = self.off_diagonal_weight * bounded(off_diagonal_loss, self.bound)
            left = points.t[len(off.t) :]
            zero = torch.zeros_like(left)
            per_sample, s_of = diagonal_loss + torch.cat([weight * off_diagonal_loss, zero]), torch.cat([off.s, left])
            terms["off_diagonal"] = torch.cat([off_diagonal_loss, zero])
        loss = self._weighted(per_sample, points.t, s_of, share_of(generator), **terms)
        if jumps is None or jumped is None:
            return loss

        # 3. The endpoint: where the averaged weights' own flow arrives.
        endpoint_loss = mean_square(flow_map_step(flow_map.path, jumps.x_t, jumped, jumps.t, jumps.s) - jumps.target)
        endpoint = (adaptive(endpoint_loss, self.endpoint_power) * endpoint_loss).mean()
        return Loss(
            loss.total + self.endpoint_weight * endpoint, {**loss.terms, "endpoint": endpoint_loss.mean().detach()}
        )

    def off_diagonal_rows(self, batch: int) -> int:
        """Number of rows that are self-distilled, one at least."""
        return math.ceil(self.off_diagonal_fraction * batch)

    def weight_by_times(self, per_sample: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Weight of each sample (batch,); see `by_times`."""
        return by_times(per_sample, t, s, self.weight_power)

    def _weighted(self, per_sample: Rows, t: Times, s: Times, share: Share, **terms: Rows) -> Loss:
        if self.weight_by == "sample":
            return weighted(per_sample, self.weight_power, **terms)
        weight = share.take(self.weight_by_times(*share.whole(per_sample, t, s)))
        return Loss((weight * per_sample).mean(), {name: term.mean().detach() for name, term in terms.items()})


def diagonal_and_jumps(
    flow_map: FlowMap, points: Points, jumps: Jumps | None, cond: Tensor
) -> tuple[Tensor, Tensor | None]:
    """F(x_t, t, t) at the points and F at the jumps, as one evaluation.

    Args:
        cond: the batch's embeddings, none dropped, (batch, cond_dim).
    """
    p, q = points, jumps
    if q is None:
        return flow_map.velocity(p.x_t, p.t, p.cond).to(p.x_t.dtype), None
    both = flow_map.network(
        torch.cat([p.x_t, q.x_t]), torch.cat([p.t, q.t]), torch.cat([p.t, q.s]), torch.cat([p.cond, cond[q.rows]])
    )
    diagonal, jumped = both.to(p.x_t.dtype).split([len(p.t), len(q.t)])
    return diagonal, jumped
