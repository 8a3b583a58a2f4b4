"""How the two times of a training sample are drawn: named functions (batch, generator) -> (t, s) with s <= t in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from isdt_policy.method.shapes import Times

TimeDraw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def _ordered(u: Tensor) -> tuple[Times, Times]:
    return u.amax(dim=0), u.amin(dim=0)


def beta(batch: int, generator: torch.Generator, a: float = 0.8) -> tuple[Times, Times]:
    """Two independent draws of Beta(a, 1), sorted. a = 0.8 leans to the data end; the reference recipe's choice.

    Beta(a, 1) has distribution function u^a, so its draw is a power of a uniform one.
    """
    return _ordered(torch.rand(2, batch, generator=generator).pow(1 / a))


def uniform(batch: int, generator: torch.Generator) -> tuple[Times, Times]:
    """Two independent uniform draws, sorted."""
    return _ordered(torch.rand(2, batch, generator=generator))


def logit_normal(batch: int, generator: torch.Generator, mean: float = -0.4, std: float = 1.0) -> tuple[Times, Times]:
    """Two independent sigmoids of normal draws, sorted: most samples at middle times."""
    return _ordered(torch.sigmoid(mean + std * torch.randn(2, batch, generator=generator)))


def one_step_mix(batch: int, generator: torch.Generator, fraction: float = 0.25) -> tuple[Times, Times]:
    """`beta`, with a fraction of the pairs moved to (1, 0): the pair that a one-step policy evaluates.

    Independent draws reach the corner t = 1, s = 0 with density zero, yet it is the only point a one-step policy uses.
    """
    t, s = beta(batch, generator)
    corner = torch.rand(batch, generator=generator) < fraction
    return torch.where(corner, torch.ones_like(t), t), torch.where(corner, torch.zeros_like(s), s)


TIMES: dict[str, TimeDraw] = {
    "beta": beta,
    "uniform": uniform,
    "logit_normal": logit_normal,
    "one_step_mix": one_step_mix,
}
