"""The Minimum Iterative Policy (Pan et al., "Much Ado About Noising", arXiv 2512.01809): regression and one refinement.

Two regressions of the same network, no distribution: from zero, and from the action under a little noise. Sampling draws
nothing: the first answer, shrunk as the noisy action was, is given back to the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import interpolate
from isdt_policy.method.objectives.base import DRAWN, Draws, Loss, mean_square
from isdt_policy.method.objectives.parts import draw_noise, weighted
from isdt_policy.method.objectives.regression import regressed
from isdt_policy.method.samplers import Sampling
from isdt_policy.method.shapes import Chunks, Embedding, Embeddings, Kept
from isdt_policy.shared.errors import InputError


@dataclass(frozen=True)
class MIP:
    """|| F(0, 1, 0, c) - x ||^2 + || F(x_t*, t*, 0, c) - x ||^2 with x_t* = alpha(t*) x + beta(t*) z.

    Attributes:
        refine_time: t*, a small amount of noise. The paper counts time from noise to data: its t* = 0.9 is 0.1 here.
        weight_power: p of the adaptive weighting.
    """

    refine_time: float = 0.1
    weight_power: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.refine_time < 1:
            raise InputError(f"objective.refine_time must be between 0 (data) and 1 (noise), got {self.refine_time}.")

    @property
    def sampling(self) -> Sampling:
        return Sampling("regression", refine_time=self.refine_time)

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
        """Loss on one batch; see `Objective`. It draws noise alone."""
        noise = draws.noise
        if noise is None:
            noise = draw_noise(action, generator)
        t = torch.full((action.shape[0],), self.refine_time, dtype=action.dtype, device=action.device)
        x_t = interpolate(flow_map.path, action, noise, t)
        start = mean_square(regressed(flow_map, action, cond) - action, keep)
        refined = flow_map.network(x_t, t, torch.zeros_like(t), cond).to(action.dtype)
        refinement = mean_square(refined - action, keep)
        return weighted(start + refinement, self.weight_power, regression=start, refinement=refinement)
