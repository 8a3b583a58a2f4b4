"""Exponential moving average of the weights, for evaluation only."""

from __future__ import annotations

import torch

from isdt_policy.method.policy import Policy


class EMA:
    """A copy of a policy whose parameters follow the online ones.

    The decay is a function of the training step (see `decay_at`), so there is no counter that a resumed run could lose.
    """

    def __init__(self, online: Policy, averaged: Policy, decay: float) -> None:
        self.decay = decay
        averaged.requires_grad_(False).load_state_dict(online.state_dict())
        self.module = averaged
        self._pairs = ([p.detach() for p in averaged.parameters()], [p.detach() for p in online.parameters()])

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(self._pairs[0], self._pairs[1], 1 - decay_at(self.decay, step))


def decay_at(decay: float, step: int) -> float:
    """min(decay, (1 + step) / (10 + step)): early averages do not keep the random initialisation."""
    return min(decay, (1 + step) / (10 + step))
