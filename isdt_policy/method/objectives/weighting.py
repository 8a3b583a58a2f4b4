"""Per-sample weights of the loss: named functions of the per-sample loss (batch,) -> (batch,), without gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from isdt_policy.method.shapes import Grouped, Rows

WIDTH = 0.1  # in t and s, of the neighbourhood in `by_times`


def adaptive(per_sample: Rows, power: float = 1.0, floor: float = 0.01) -> Rows:
    """1 / (l + floor)^power of the detached loss l. power = 0 is plain least squares.

    power = 1 turns least squares into something like least logarithms: the minimiser of the diagonal term is then no
    longer the mean velocity but leans to a mode. That bias ruins low-dimensional densities and can help a controller,
    which must commit to one way around an obstacle; hence a switch.
    """
    return (per_sample.detach() + floor).pow(-power)


def by_times(
    per_sample: Grouped,
    t: Grouped,
    s: Grouped,
    power: float = 1.0,
    floor: float = 0.01,
) -> Grouped:
    """1 / (m + floor)^power with m the mean loss of the *other* samples of the batch at nearby times (t, s), (..., batch).

    Evens out what the loss demands at different times, as `adaptive` does, without its bias: given its times, a sample's
    weight does not depend on the noise in its own error, so the minimiser stays the mean velocity. A leave-one-out
    Nadaraya-Watson estimate: nothing to learn or to store, unlike a weight network (EDM2, arXiv 2312.02696).
    """
    loss = per_sample.detach()
    near = (-((_differences(t)).square() + _differences(s).square()) / (2 * WIDTH**2)).exp()  # (..., batch, batch)
    # A tail that never ends: a sample that is alone at its times takes the mean of the others.
    near = near + 1e-6
    near.diagonal(dim1=-2, dim2=-1).fill_(0.0)
    total = near.sum(dim=-1)
    # As a product of batches, also of a single one: `near @ loss[..., None]` sums in another order, and the bits are others.
    estimate = torch.einsum("...ij,...j->...i", near, loss) / total.clamp_min(1e-12)
    mean = torch.where(total > 0, estimate, loss)  # a batch of one has no others
    return (mean + floor).pow(-power)


def _differences(x: Tensor) -> Tensor:
    return x[..., :, None] - x[..., None, :]


def bounded(per_sample: Rows, bound: float) -> Rows:
    """min(1, bound / sqrt(l)) of the detached squared residual l: the residual r is shortened to r min(1, bound / |r|).

    The gradient of w |F - sg(F + r)|^2 is -2 w r, so a weight is a factor on r. Along the network's own velocity r is a
    function of (x_t, t, s) alone, hence r = 0 stays the solution: a bound does not bias what is learnt, as a weight on the
    diagonal's error does, which holds the noise of a single sample. bound = 0 means none.
    """
    if not bound:
        return torch.ones_like(per_sample)
    return (bound / per_sample.detach().sqrt().clamp_min(1e-12)).clamp_max(1.0)
