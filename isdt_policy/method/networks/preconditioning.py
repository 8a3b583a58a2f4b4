"""Scaling of a network's input and output so that both have unit variance at initialisation."""

from __future__ import annotations

from torch import Tensor, nn

from isdt_policy.method.interpolants import Interpolant, expand


class Preconditioned(nn.Module):
    """F(x_t, t, s, c) = c_out(t) * network(c_in(t) x_t, t, s, c).

    c_in = 1 / sqrt(alpha^2 sigma_d^2 + beta^2) and c_out = sqrt(alpha'^2 sigma_d^2 + beta'^2): the inverse standard
    deviation of x_t and the standard deviation of the conditional velocity, for data of standard deviation sigma_d. Both
    depend on t, so they are inside the function whose total derivative the objective takes.

    Args:
        network: the core, called as network(x_t, t, s, cond).
        path: interpolant.
        sigma_data: standard deviation of the normalised actions.
        enabled: False passes values through unscaled, for the ablation.
    """

    def __init__(self, network: nn.Module, path: Interpolant, sigma_data: float, enabled: bool = True) -> None:
        super().__init__()
        self.network, self.path, self.sigma_data, self.enabled = network, path, sigma_data, enabled

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        if not self.enabled:
            return self.network(x_t, t, s, cond)
        time, variance = expand(t, x_t), self.sigma_data**2
        c_in = (self.path.alpha(time).square() * variance + self.path.beta(time).square()).rsqrt()
        c_out = (self.path.alpha_rate(time).square() * variance + self.path.beta_rate(time).square()).sqrt()
        return c_out * self.network(c_in * x_t, t, s, cond)
