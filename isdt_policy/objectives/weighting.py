"""Per-sample weights of the loss: named functions of the per-sample loss (batch,) -> (batch,), without gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def adaptive(per_sample: Tensor, power: float = 1.0, floor: float = 0.01) -> Tensor:
    """1 / (l + floor)^power of the detached loss l. power = 0 is plain least squares.

    power = 1 turns least squares into something like least logarithms: the minimiser of the diagonal term is then no
    longer the mean velocity but leans to a mode. That bias ruins low-dimensional densities and can help a controller,
    which must commit to one way around an obstacle; hence a switch.
    """
    return (per_sample.detach() + floor).pow(-power)


def bounded(per_sample: Tensor, bound: float) -> Tensor:
    """min(1, bound / sqrt(l)) of the detached squared residual l: the residual r is shortened to r min(1, bound / |r|).

    The gradient of w |F - sg(F + r)|^2 is -2 w r, so a weight is a factor on r. Along the network's own velocity r is a
    function of (x_t, t, s) alone, hence r = 0 stays the solution: a bound does not bias what is learnt, as a weight on the
    diagonal's error does, which holds the noise of a single sample. bound = 0 means none.
    """
    if not bound:
        return torch.ones_like(per_sample)
    return (bound / per_sample.detach().sqrt().clamp_min(1e-12)).clamp_max(1.0)
