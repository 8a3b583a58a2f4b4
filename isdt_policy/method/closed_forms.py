"""Flow maps that are known exactly, with the networks' call signature: the yardstick of every objective and sampler.

Each function returns a callable network(x_t, t, s, cond) -> F, per unit of phase, such that
X(x_t, t -> s) = a x_t - b F is the exact flow of the given data distribution on the given path. All are smooth in every
argument, work in float64, and can be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from isdt_policy.method.flow_map import Network
from isdt_policy.method.interpolants import Interpolant, Trigonometric, data_and_noise, expand
from isdt_policy.method.shapes import Samples, Times

MapFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def point_mass(path: Interpolant, location: Tensor) -> Network:
    """All data at `location`. The flow is a straight line in (data, noise), so F is the velocity, whatever s is."""

    def network(x_t: Samples, t: Times, s: Times, cond: Tensor) -> Samples:
        time = expand(t, x_t)
        z = (x_t - path.alpha(time) * location) / path.beta(time)
        return path.alpha_rate(time) * location + path.beta_rate(time) * z

    return network


def gaussian_map(path: Interpolant, mean: Tensor, std: Tensor) -> MapFunction:
    """X(x, t, s) for data N(mean, diag(std^2)): affine, each axis stretched by the ratio of standard deviations."""

    def spread(time: Tensor) -> Tensor:
        return (path.alpha(time).square() * std.square() + path.beta(time).square()).sqrt()

    def exact(x: Samples, t: Times, s: Times) -> Samples:
        t, s = expand(t, x), expand(s, x)
        return path.alpha(s) * mean + spread(s) / spread(t) * (x - path.alpha(t) * mean)

    return exact


def gaussian_velocity(path: Interpolant, mean: Tensor, std: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """v(x, t) = E[v_t | x_t = x] for data N(mean, diag(std^2))."""

    def velocity(x: Samples, t: Times) -> Samples:
        t = expand(t, x)
        a, b, da, db = path.alpha(t), path.beta(t), path.alpha_rate(t), path.beta_rate(t)
        gain = (a * da * std.square() + b * db) / (a.square() * std.square() + b.square())
        return da * mean + gain * (x - a * mean)

    return velocity


def gaussian(path: Interpolant, mean: Tensor, std: Tensor) -> Network:
    """The network of `gaussian_map`; on the diagonal, where X holds no information, the velocity itself."""
    exact, velocity = gaussian_map(path, mean, std), gaussian_velocity(path, mean, std)

    def network(x_t: Samples, t: Times, s: Times, cond: Tensor) -> Samples:
        a, b = path.map_coefficients(expand((t - s) * path.phase_rate, x_t))
        diagonal = b == 0
        off = (a * x_t - exact(x_t, t, s)) / torch.where(diagonal, torch.ones_like(b), b)
        return torch.where(diagonal, velocity(x_t, t), off)

    return network


def gaussian_posterior(
    path: Interpolant, mean: Tensor, std: Tensor
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(E[x | x_t], E[z | x_t]) for data N(mean, diag(std^2)): the data and the noise that the velocity stands for."""
    velocity = gaussian_velocity(path, mean, std)

    def posterior(x: Samples, t: Times) -> tuple[Samples, Samples]:
        return data_and_noise(path, x, velocity(x, t), t)

    return posterior


def gaussian_denoiser(mean: Tensor, std: Tensor, prediction: str) -> Network:
    """The exact network of a diffusion policy for data N(mean, diag(std^2)): predicts noise, data or velocity at time t."""
    path = Trigonometric()
    velocity, posterior = gaussian_velocity(path, mean, std), gaussian_posterior(path, mean, std)

    def network(x_t: Samples, t: Times, s: Times, cond: Tensor) -> Samples:
        data, noise = posterior(x_t, t)
        return {"epsilon": noise, "sample": data, "v_prediction": velocity(x_t, t)}[prediction]

    return network


def two_point_velocity(path: Interpolant, location: float, weight: float = 0.5) -> Callable[[Tensor, Tensor], Tensor]:
    """v(x, t) for data at +location (probability `weight`) and -location on every axis."""

    def velocity(x: Samples, t: Times) -> Samples:
        t = expand(t, x)
        a, b = path.alpha(t), path.beta(t)
        logit = torch.log(torch.tensor(weight / (1 - weight), dtype=x.dtype)) + 2 * a * location * x / b.square()
        mean = location * torch.tanh(logit / 2)  # E[data | x_t = x]
        return path.alpha_rate(t) * mean + path.beta_rate(t) * (x - a * mean) / b

    return velocity


def integrate(
    path: Interpolant, velocity: Callable[[Tensor, Tensor], Tensor], x: Samples, t: Times, s: Times, steps: int = 400
) -> Samples:
    """X(x, t -> s) of any velocity by classical Runge-Kutta in the phase."""
    h = (s - t) / steps
    step = expand(h * path.phase_rate, x)
    for i in range(steps):
        time = t + i * h
        k1 = velocity(x, time)
        k2 = velocity(x + step / 2 * k1, time + h / 2)
        k3 = velocity(x + step / 2 * k2, time + h / 2)
        k4 = velocity(x + step * k3, time + h)
        x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x
