"""What an objective is: a function of a flow map and a batch that returns named, per-sample loss terms.

An objective takes tensors and a callable, never a configuration. Draws (noise, times, dropped conditions) come from the
generator that is handed in, and each may be passed explicitly instead, so that a test can fix it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from isdt_policy.flow_map import FlowMap


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise and the mean of each term, for the log and for the check that each is finite."""

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """One training objective."""

    def __call__(
        self, flow_map: FlowMap, action: Tensor, cond: Tensor, null: Tensor, generator: torch.Generator
    ) -> Loss:
        """Loss on one batch.

        Args:
            flow_map: network and path.
            action: clean, normalised chunks x, (batch, horizon, action_dim).
            cond: observation embeddings c, (batch, cond_dim).
            null: the embedding that stands for "no condition", (cond_dim,).
            generator: source of every random draw.
        """
        ...


def mean_square(error: Tensor) -> Tensor:
    """Mean over everything but the batch: (batch, ...) -> (batch,). Half precision is summed in float32."""
    error = error.float() if error.dtype in (torch.bfloat16, torch.float16) else error
    return error.square().flatten(1).mean(dim=1)
