"""Regression: behaviour cloning in one evaluation, the action predicted from the observation alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.objectives.base import DRAWN, Draws, Loss, mean_square
from isdt_policy.method.objectives.parts import weighted
from isdt_policy.method.samplers import Sampling
from isdt_policy.method.shapes import Chunks, Embedding, Embeddings, Kept


@dataclass(frozen=True)
class Regression:
    """|| F(0, 1, 0, c) - x ||^2: the network at zero noise answers with the chunk. No draw; its minimiser is E[x | c].

    Attributes:
        weight_power: p of the adaptive weighting.
    """

    sampling: ClassVar[Sampling] = Sampling("regression")

    weight_power: float = 0.0

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
        loss = mean_square(regressed(flow_map, action, cond) - action, keep)
        return weighted(loss, self.weight_power, regression=loss)


def regressed(flow_map: FlowMap, action: Chunks, cond: Embeddings) -> Chunks:
    """F(0, 1, 0, c), the answer from zero; only the shape and type of `action` are read."""
    ones = torch.ones(action.shape[0], dtype=action.dtype, device=action.device)
    return flow_map.network(torch.zeros_like(action), ones, torch.zeros_like(ones), cond).to(action.dtype)
