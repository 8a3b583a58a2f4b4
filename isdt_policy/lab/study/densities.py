"""Two-dimensional densities that are hard to learn and easy to see: named functions (n, generator) -> points (n, 2).

All have zero mean and unit variance on each axis (exactly, by their moments), so that one network and one
preconditioning fit all of them. Float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Density = Callable[[int, torch.Generator], Tensor]


def eight_gaussians(n: int, generator: torch.Generator) -> Tensor:
    """Equal Gaussians at the corners of an octagon, standard deviation 1/8 of its radius r.

    Variance on an axis is r^2 / 2 + (r / 8)^2, which is 1 at r = 1.392.
    """
    radius = (1 / 2 + 1 / 64) ** -0.5
    angle = torch.randint(8, (n,), generator=generator) * (math.pi / 4)
    centre = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    return centre + radius / 8 * torch.randn(n, 2, generator=generator)


def checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """Uniform on the eight dark squares of a 4 x 4 board. Each axis is uniform on [-sqrt(3), sqrt(3)]: variance 1."""
    side = math.sqrt(3) / 2
    cell = torch.randint(8, (n,), generator=generator)
    row = cell // 2
    column = 2 * (cell % 2) + row % 2
    corner = torch.stack([column, row], dim=1) - 2.0
    return side * (corner + torch.rand(n, 2, generator=generator))


def two_moons(n: int, generator: torch.Generator) -> Tensor:
    """Two interleaved half circles of radius 1, centres 1 apart along x and 1/2 along y, blurred by 0.08."""
    blur = 0.08
    lower = torch.randint(2, (n,), generator=generator).float()
    angle = math.pi * torch.rand(n, generator=generator)
    sign = 1 - 2 * lower
    x = sign * angle.cos() + lower - 0.5
    y = sign * angle.sin() + 0.5 * lower - 0.25
    points = torch.stack([x, y], dim=1) + blur * torch.randn(n, 2, generator=generator)
    # Var x = 1/2 + 1/4; Var y = 1/2 - (2/pi)^2 within a moon, (2/pi - 1/4)^2 between the two.
    spread = torch.tensor([3 / 4, 1 / 2 - (2 / math.pi) ** 2 + (2 / math.pi - 1 / 4) ** 2]) + blur**2
    return points / spread.sqrt()


DENSITIES: dict[str, Density] = {
    "eight_gaussians": eight_gaussians,
    "checkerboard": checkerboard,
    "two_moons": two_moons,
}
