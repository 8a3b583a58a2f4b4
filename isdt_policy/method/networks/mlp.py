"""A small MLP with the networks' call signature, for low-dimensional densities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isdt_policy.method.networks.linear import Linear
from isdt_policy.method.networks.time_embedding import MAX_PERIODS, TimeEmbedding


class MLP(nn.Module):
    """network(x_t, t, s, cond) for x_t (batch, horizon, action_dim), flattened inside.

    Args:
        width, depth: of the hidden layers.
        time_dim, time_periods: number of time features and periods of the fastest one over [0, 1]; see `TimeEmbedding`.
    """

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        horizon: int,
        width: int = 256,
        depth: int = 3,
        time_dim: int = 64,
        time_periods: float = MAX_PERIODS,
    ) -> None:
        super().__init__()
        size = horizon * action_dim
        self.time_embedding = TimeEmbedding(time_dim, time_periods)
        widths = [size + time_dim + cond_dim] + [width] * depth
        layers: list[nn.Module] = []
        for a, b in zip(widths, widths[1:]):
            layers += [Linear(a, b), nn.SiLU()]
        self.hidden = nn.Sequential(*layers)
        self.out = Linear(width, size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        h = self.hidden(torch.cat([x_t.flatten(1), self.time_embedding(t, s), cond], dim=-1))
        return self.out(h).reshape(x_t.shape)
