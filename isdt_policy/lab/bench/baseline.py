"""What is measured against: the usual network and the usual objective of a diffusion policy.

The network is the conditional 1D UNet of Diffusion Policy (Chi et al., arXiv 2303.04137, appendix): `Conv1d` on
(batch, channel, time), GroupNorm, Mish, FiLM from one diffusion step and the flattened observations. It lives in the
benchmark alone; policies use `isdt_policy.method.networks.unet1d`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

TRAIN_STEPS = 100  # of the noise schedule, as in Diffusion Policy


class ConvBlock(nn.Sequential):
    """Conv1d -> GroupNorm -> Mish, (batch, c_in, T) -> (batch, c_out, T)."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int = 5, groups: int = 8) -> None:
        super().__init__(
            nn.Conv1d(c_in, c_out, kernel_size, padding=kernel_size // 2), nn.GroupNorm(groups, c_out), nn.Mish()
        )


class ConditionalBlock(nn.Module):
    """Two `ConvBlock`s with FiLM between them, plus the input."""

    def __init__(self, c_in: int, c_out: int, cond_dim: int) -> None:
        super().__init__()
        self.first, self.second = ConvBlock(c_in, c_out), ConvBlock(c_out, c_out)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, 2 * c_out))
        self.skip = nn.Conv1d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, bias = self.film(cond)[..., None].chunk(2, dim=1)
        return self.second(self.first(x) * scale + bias) + self.skip(x)


class ConvUNet(nn.Module):
    """network(x, k, cond) -> noise estimate, (batch, horizon, action_dim).

    Args:
        action_dim: features of one action.
        cond_dim: size of the flattened observations.
        down_dims: channels at each resolution.
        step_dim: features of the diffusion step.
    """

    def __init__(self, action_dim: int, cond_dim: int, down_dims: Sequence[int], step_dim: int = 256) -> None:
        super().__init__()
        self.step_dim = step_dim
        self.step = nn.Sequential(nn.Linear(step_dim, 4 * step_dim), nn.Mish(), nn.Linear(4 * step_dim, step_dim))
        width = step_dim + cond_dim
        pairs = list(zip([action_dim, *down_dims[:-1]], down_dims))
        self.down = nn.ModuleList(
            nn.ModuleList([ConditionalBlock(a, b, width), ConditionalBlock(b, b, width)]) for a, b in pairs
        )
        self.downsample = nn.ModuleList(nn.Conv1d(b, b, 3, stride=2, padding=1) for b in down_dims[:-1])
        self.middle = nn.ModuleList(ConditionalBlock(down_dims[-1], down_dims[-1], width) for _ in range(2))
        back = list(zip(down_dims[-2::-1], down_dims[:0:-1]))
        self.up = nn.ModuleList(
            nn.ModuleList([ConditionalBlock(2 * b, a, width), ConditionalBlock(a, a, width)])
            for a, b in zip(down_dims[-2::-1], down_dims[:0:-1])
        )
        self.upsample = nn.ModuleList(nn.ConvTranspose1d(a, a, 4, stride=2, padding=1) for a, _ in back)
        self.out = nn.Sequential(ConvBlock(down_dims[0], down_dims[0]), nn.Conv1d(down_dims[0], action_dim, 1))

    def forward(self, x: Tensor, k: Tensor, cond: Tensor) -> Tensor:
        half = self.step_dim // 2
        rates = torch.exp(torch.arange(half, device=x.device) * (-math.log(10000) / (half - 1)))
        angles = k[:, None].float() * rates
        cond = torch.cat([self.step(torch.cat([angles.sin(), angles.cos()], dim=-1)), cond], dim=-1)
        h = x.transpose(1, 2)
        skips = []
        for level, blocks in enumerate(self.down.children()):
            for block in blocks.children():
                h = block(h, cond)
            skips.append(h)
            if level < len(self.downsample):
                h = self.downsample[level](h)
        for block in self.middle:
            h = block(h, cond)
        # The deepest skip meets the middle at its own resolution; each level then halves channels and doubles time.
        for blocks, upsample in zip(self.up.children(), self.upsample):
            h = torch.cat([h, skips.pop()], dim=1)
            for block in blocks.children():
                h = block(h, cond)
            h = upsample(h)
        return self.out(h).transpose(1, 2)


def matched(action_dim: int, cond_dim: int, down_dims: Sequence[int], parameters: int) -> ConvUNet:
    """A `ConvUNet` of as many parameters, within 2 %.

    The layers outside the convolutions differ between the two networks, so `down_dims` alone do not give the same count:
    the width of the diffusion step's features makes up for it, and where that is not enough, all channels by eights.
    """
    best: ConvUNet | None = None
    for extra in (0, 8, -8, 16, -16, 24, -24):
        dims = [max(8, d + extra * d // down_dims[0]) // 8 * 8 for d in down_dims]
        for step_dim in (256, 224, 192, 160, 128, 96, 64, 288, 320, 384):
            with torch.device("meta"):
                count = sum(p.numel() for p in ConvUNet(action_dim, cond_dim, dims, step_dim).parameters())
            if abs(count / parameters - 1) <= 0.02:
                best = ConvUNet(action_dim, cond_dim, dims, step_dim)
                return best
    raise ValueError(f"no ConvUNet of {parameters} parameters near down_dims={list(down_dims)}")
