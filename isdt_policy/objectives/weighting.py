"""Per-sample weights of the loss: named functions of the per-sample loss (batch,) -> (batch,), without gradient."""

from __future__ import annotations

from torch import Tensor


def adaptive(per_sample: Tensor, power: float = 1.0, floor: float = 0.01) -> Tensor:
    """1 / (l + floor)^power of the detached loss l. power = 0 is plain least squares.

    power = 1 turns least squares into something like least logarithms: the minimiser of the diagonal term is then no
    longer the mean velocity but leans to a mode. That bias ruins low-dimensional densities and can help a controller,
    which must commit to one way around an obstacle; hence a switch.
    """
    return (per_sample.detach() + floor).pow(-power)
