"""A small MLP with the networks' call signature, for low-dimensional densities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isdt_policy.method.networks.linear import Linear
from isdt_policy.method.networks.time_embedding import MAX_PERIODS, TimeEmbedding


@dataclass(frozen=True)
class MLPConfig:
    """Size of an `MLP`.

    Attributes:
        width: of the hidden layers.
        depth: number of hidden layers.
        time_dim: number of time features, a multiple of 4.
        time_periods: periods of the fastest time feature over [0, 1]; see `TimeEmbedding`.
    """

    width: int = 256
    depth: int = 3
    time_dim: int = 64
    time_periods: float = MAX_PERIODS

    def build(self, action_dim: int, cond_dim: int, horizon: int) -> MLP:
        """The network with fresh weights."""
        return MLP(action_dim, cond_dim, horizon, self)


class MLP(nn.Module):
    """network(x_t, t, s, cond) for x_t (batch, horizon, action_dim), flattened inside.

    Args:
        action_dim, cond_dim, horizon: features of an action, of the observation embedding, and steps in a window.
        config: see `MLPConfig`.
    """

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        horizon: int,
        config: MLPConfig = MLPConfig(),
    ) -> None:
        super().__init__()
        size = horizon * action_dim
        self.time_embedding = TimeEmbedding(config.time_dim, config.time_periods)
        widths = [size + config.time_dim + cond_dim] + [config.width] * config.depth
        layers: list[nn.Module] = []
        for a, b in zip(widths, widths[1:]):
            layers += [Linear(a, b), nn.SiLU()]
        self.hidden = nn.Sequential(*layers)
        self.out = Linear(config.width, size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        h = self.hidden(torch.cat([x_t.flatten(1), self.time_embedding(t, s), cond], dim=-1))
        return self.out(h).reshape(x_t.shape)
