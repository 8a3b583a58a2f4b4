"""Exponential moving average of the weights, for evaluation only."""

from __future__ import annotations

import torch
from torch import nn


class EMA:
    """A copy of a module whose parameters follow the online ones.

    The decay at step n is min(decay, (1 + n) / (10 + n)), so that early averages do not keep the random initialisation.
    It is a function of the training step, so there is no counter that a resumed run could lose.
    """

    def __init__(self, online: nn.Module, averaged: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = averaged.requires_grad_(False)
        self.module.load_state_dict(online.state_dict())
        self._pairs = (list(averaged.parameters()), [p.detach() for p in online.parameters()])

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._pairs[0], self._pairs[1], 1 - decay)
