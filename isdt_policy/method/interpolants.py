"""The two paths between data and noise, as scalar functions of time.

Time t is in [0, 1] at every public door: 0 is data, 1 is noise. Each path also has its own natural variable, its *phase*:
t itself for the linear path, the angle pi t / 2 in radians for the trigonometric one. **All velocities and all total
derivatives in this package are per unit of phase.** The conversion happens here, in `phase` and `phase_rate`, and nowhere
else: mixing "per radian" with "per unit of t" leaves a loss curve that looks healthy and a target that is wrong.

Symbols (method notes in docs/notation.md):  x data, z noise, x_t = alpha x + beta z, v = d x_t / d phase, F = what the
network predicts, X = where the flow carries x_t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from isdt_policy.method.shapes import Samples, Times, no_type_check


@runtime_checkable
class Interpolant(Protocol):
    """A path x_t = alpha(t) x + beta(t) z with its flow-map parameterisation X = a(d) x_t - b(d) F, d = phase(t) - phase(s)."""

    @property
    def phase_rate(self) -> float:
        """d phase / d t, a constant."""
        ...

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data at time t in [0, 1]."""
        ...

    def beta(self, t: Tensor) -> Tensor:
        """Weight of the noise at time t in [0, 1]."""
        ...

    def alpha_rate(self, t: Tensor) -> Tensor:
        """d alpha / d phase."""
        ...

    def beta_rate(self, t: Tensor) -> Tensor:
        """d beta / d phase."""
        ...

    def map_coefficients(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of X = a x_t - b F for a step of d phase."""
        ...

    def map_coefficient_rates(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """(da/dd, db/dd)."""
        ...


@no_type_check
@dataclass(frozen=True)
class Linear:
    """x_t = (1 - t) x + t z; v = z - x; X = x_t - (t - s) F. Phase is t."""

    @property
    def phase_rate(self) -> float:
        return 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def beta(self, t: Tensor) -> Tensor:
        return t

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def beta_rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def map_coefficients(self, d: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(d), d

    def map_coefficient_rates(self, d: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(d), torch.ones_like(d)


@no_type_check
@dataclass(frozen=True)
class Trigonometric:
    """x_t = cos(phi) x + sin(phi) z, phi = pi t / 2; v = cos(phi) z - sin(phi) x per radian; X = cos(d) x_t - sin(d) F."""

    @property
    def phase_rate(self) -> float:
        return math.pi / 2

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t * self.phase_rate)

    def beta(self, t: Tensor) -> Tensor:
        return torch.sin(t * self.phase_rate)

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -torch.sin(t * self.phase_rate)

    def beta_rate(self, t: Tensor) -> Tensor:
        return torch.cos(t * self.phase_rate)

    def map_coefficients(self, d: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cos(d), torch.sin(d)

    def map_coefficient_rates(self, d: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.sin(d), torch.cos(d)


INTERPOLANTS: dict[str, type[Linear] | type[Trigonometric]] = {"linear": Linear, "trigonometric": Trigonometric}


@no_type_check
def expand(t: Tensor, like: Tensor) -> Tensor:
    """View a per-sample scalar (batch,) so that it broadcasts over `like` (batch, ...)."""
    return t.reshape(t.shape[0], *(1,) * (like.ndim - 1))


def interpolate(path: Interpolant, x: Samples, z: Samples, t: Times) -> Samples:
    """x_t = alpha(t) x + beta(t) z."""
    t = expand(t, x)
    return path.alpha(t) * x + path.beta(t) * z


def conditional_velocity(path: Interpolant, x: Samples, z: Samples, t: Times) -> Samples:
    """v_t = d x_t / d phase along one (data, noise) pair."""
    t = expand(t, x)
    return path.alpha_rate(t) * x + path.beta_rate(t) * z


def data_and_noise(path: Interpolant, x_t: Samples, v: Samples, t: Times) -> tuple[Samples, Samples]:
    """Recover (x, z) from a point and its velocity: the inverse of `interpolate` and `conditional_velocity` together.

    The 2x2 system has determinant alpha beta' - beta alpha' = 1 on both paths.
    """
    t = expand(t, x_t)
    x = path.beta_rate(t) * x_t - path.beta(t) * v
    z = path.alpha(t) * v - path.alpha_rate(t) * x_t
    return x, z


def flow_map_step(path: Interpolant, x_t: Samples, prediction: Samples, t: Times, s: Times) -> Samples:
    """X(x_t, t -> s) = a(d) x_t - b(d) F. X(x, t -> t) = x whatever F is."""
    a, b = path.map_coefficients(expand((t - s) * path.phase_rate, x_t))
    return a * x_t - b * prediction


def eulerian_residual(
    path: Interpolant, x_t: Samples, prediction: Samples, velocity: Samples, derivative: Samples, t: Times, s: Times
) -> Samples:
    """d X(x_t, t -> s) / d phase(t) along the flow: zero exactly where X is the flow map of `velocity`.

    With X = a x_t - b F and d x_t = v:   a' x_t + a v - b' F - b D.
    Linear: (v - F) - d D.  Trigonometric: cos(d) (v - F) - sin(d) (x_t + D).

    Args:
        prediction: F(x_t, t, s).
        velocity: v, per unit of phase.
        derivative: D, the total derivative of F along (v, 1, 0), per unit of phase.
    """
    d = expand((t - s) * path.phase_rate, x_t)
    a, b = path.map_coefficients(d)
    a_rate, b_rate = path.map_coefficient_rates(d)
    return a_rate * x_t + a * velocity - b_rate * prediction - b * derivative
