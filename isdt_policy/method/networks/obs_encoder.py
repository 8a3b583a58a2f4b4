"""From an observation history to one embedding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class StateEncoder(nn.Module):
    """Flattens low-dimensional histories and passes them through an MLP: {key: (batch, n_obs_steps, d)} -> (batch, cond_dim).

    What cameras see joins them as features.

    The embedding does not depend on the times, so it is computed once per batch and shared by every evaluation of the
    network. It has no time axis either: capacity is cheaper here than in the UNet.

    Args:
        obs_dims: features per key; keys are read in this order.
        n_obs_steps: observations in a history.
        cond_dim: size of the embedding.
        hidden: widths of the hidden layers.
        octaves: also read sin and cos of pi x / 2, pi x, 2 pi x, ... of every normalised entry x, so many of each. An MLP
            learns what changes quickly with its input last (Tancik et al., arXiv 2006.10739), and the last pixels before a
            contact or a goal are a thousandth of the workspace.
        extra: features that are read beside them, as they are.
    """

    def __init__(
        self,
        obs_dims: Mapping[str, int],
        n_obs_steps: int,
        cond_dim: int,
        hidden: Sequence[int],
        octaves: int = 0,
        extra: int = 0,
    ) -> None:
        super().__init__()
        self.keys = tuple(obs_dims)
        self.octaves = octaves
        width = n_obs_steps * sum(obs_dims.values()) * (1 + 2 * octaves) + extra
        layers: list[nn.Module] = []
        for h in hidden:
            layers += [nn.Linear(width, h), nn.LayerNorm(h), nn.SiLU()]
            width = h
        self.layers = nn.Sequential(*layers, nn.Linear(width, cond_dim))

    def forward(self, obs: Mapping[str, Tensor], features: Tensor | None = None) -> Tensor:
        """Embed states {key: (batch, n_obs_steps, d)}, normalised, and features (batch, extra)."""
        if not self.keys:
            return self.layers(features)
        x = torch.cat([obs[key].flatten(1) for key in self.keys], dim=-1)
        if self.octaves:
            angles = torch.cat([x * (math.pi / 2 * 2.0**k) for k in range(self.octaves)], dim=-1)
            x = torch.cat([x, angles.sin(), angles.cos()], dim=-1)
        return self.layers(x if features is None else torch.cat([x, features], dim=-1))
