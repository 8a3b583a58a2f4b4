"""Sinusoidal features of the two times a flow map takes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_PERIODS = 8.0


class TimeEmbedding(nn.Module):
    """Features of t and of the step t - s, (batch, dim).

    Frequencies are geometric from a quarter period to max_periods over [0, 1]. The derivative of the network along t enters
    the training target, so the thousand-fold frequencies usual in diffusion models would put noise there: with 8 periods
    a central difference of half width 0.005 spans 0.5 rad of the fastest feature's phase.

    The features are computed in float32 whatever the autocast mode: bfloat16 cannot tell t from t + 0.002.
    """

    frequencies: Tensor

    def __init__(self, dim: int, max_periods: float = MAX_PERIODS) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"time embedding needs a multiple of 4 features, got {dim}")
        frequencies = 2 * math.pi * torch.logspace(math.log2(0.25), math.log2(max_periods), dim // 4, base=2.0)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        frequencies = self.frequencies.to(t.dtype)
        a = t[:, None] * frequencies
        b = (t - s)[:, None] * frequencies
        return torch.cat([a.sin(), a.cos(), b.sin(), b.cos()], dim=-1)
