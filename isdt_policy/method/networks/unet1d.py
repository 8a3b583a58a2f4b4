"""The conditional 1D temporal UNet, written time-major.

Same shape as Diffusion Policy's (Chi et al. 2303.04137, section IV and appendix): residual blocks of two convolutions with
GroupNorm, FiLM conditioning on time and observations, down and up sampling by two. It differs in three ways:

- Layout (batch, time, channel). A convolution of width k is one matrix product over k concatenated shifts, which on CPUs
  with matrix units is about twice as fast, forward and backward, as `Conv1d` on (batch, channel, time).
- Two times: t (where the sample is) and s (where it is taken).
- Time features and `cond` pass through a small MLP before FiLM; it has no time axis, so it costs almost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isdt_policy.method.networks.linear import Linear
from isdt_policy.method.networks.time_embedding import MAX_PERIODS, TimeEmbedding
from isdt_policy.shared.errors import InputError


class TimeConv(nn.Module):
    """Convolution over time, (batch, T, c_in) -> (batch, T / stride, c_out), zero padding k // 2."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.linear = Linear(kernel_size * c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        pad = self.kernel_size // 2
        steps = x.shape[1]
        x = F.pad(x, (0, 0, pad, pad))
        shifts = [x[:, k : k + steps : self.stride] for k in range(self.kernel_size)]
        return self.linear(torch.cat(shifts, dim=-1))


class Upsample(nn.Module):
    """Doubles the time axis: each step and its neighbours produce two steps (contains a stride-2 transposed convolution)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = TimeConv(channels, 2 * channels, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, channels = x.shape
        return self.conv(x).reshape(batch, 2 * steps, channels)


class TimeGroupNorm(nn.Module):
    """GroupNorm for (batch, T, channels): statistics over time and the channels of a group, computed in float32."""

    def __init__(self, groups: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, channels = x.shape
        grouped = x.reshape(batch, steps, self.groups, channels // self.groups)
        if grouped.dtype == torch.bfloat16:
            grouped = grouped.float()
        mean = grouped.mean(dim=(1, 3), keepdim=True)
        centred = grouped - mean
        variance = centred.square().mean(dim=(1, 3), keepdim=True)
        normed = (centred * (variance + self.eps).rsqrt()).reshape(batch, steps, channels)
        return (normed * self.weight + self.bias).to(x.dtype)


class ResidualBlock(nn.Module):
    """conv -> norm -> FiLM -> SiLU -> conv -> norm -> SiLU, plus the input."""

    def __init__(self, c_in: int, c_out: int, embed_dim: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.conv1 = TimeConv(c_in, c_out, kernel_size)
        self.norm1 = TimeGroupNorm(groups, c_out)
        self.film = Linear(embed_dim, 2 * c_out)
        self.conv2 = TimeConv(c_out, c_out, kernel_size)
        self.norm2 = TimeGroupNorm(groups, c_out)
        self.skip = Linear(c_in, c_out) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, embed: Tensor) -> Tensor:
        scale, shift = self.film(embed)[:, None].chunk(2, dim=-1)  # (batch, 1, c_out) each
        h = F.silu(self.norm1(self.conv1(x)) * (1 + scale) + shift)
        h = F.silu(self.norm2(self.conv2(h)))
        return h + self.skip(x)


def _through(blocks: nn.Module, h: Tensor, embed: Tensor) -> Tensor:
    for block in blocks.children():
        h = block(h, embed)
    return h


@dataclass(frozen=True)
class UNet1dConfig:
    """Size of a `UNet1d`.

    Attributes:
        down_dims: channels at each resolution, fine to coarse.
        kernel_size: odd width of the convolutions.
        groups: groups of the normalisation; divides every entry of down_dims.
        time_dim: number of time features, a multiple of 4.
        embed_dim: width of the conditioning MLP.
        time_periods: periods of the fastest time feature over [0, 1]; see `TimeEmbedding`.
    """

    down_dims: tuple[int, ...] = (64, 128, 256)
    kernel_size: int = 5
    groups: int = 8
    time_dim: int = 64
    embed_dim: int = 256
    time_periods: float = MAX_PERIODS

    def build(self, action_dim: int, cond_dim: int, horizon: int) -> UNet1d:
        """The network with fresh weights."""
        return UNet1d(action_dim, cond_dim, horizon, self)


class UNet1d(nn.Module):
    """network(x_t, t, s, cond) -> (batch, horizon, action_dim).

    Args:
        action_dim: features of one action.
        cond_dim: size of the observation embedding.
        horizon: steps in a window; a multiple of 2 ** (len(down_dims) - 1).
        config: see `UNet1dConfig`.

    Raises:
        InputError: sizes that do not fit each other.
    """

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        horizon: int,
        config: UNet1dConfig = UNet1dConfig(),
    ) -> None:
        super().__init__()
        down_dims, kernel_size, groups, embed_dim = (
            config.down_dims,
            config.kernel_size,
            config.groups,
            config.embed_dim,
        )
        levels = len(down_dims)
        if horizon % 2 ** (levels - 1):
            raise InputError(
                f"horizon {horizon} is not a multiple of {2 ** (levels - 1)}, which {levels} resolutions "
                f"(down_dims={list(down_dims)}) need; use a multiple, or fewer down_dims."
            )
        for channels in down_dims:
            if channels % groups:
                raise InputError(f"down_dims {list(down_dims)}: {channels} is not divisible by groups={groups}.")
        if kernel_size % 2 == 0:
            raise InputError(f"kernel_size must be odd so that the window keeps its length, got {kernel_size}.")

        def block(c_in: int, c_out: int) -> ResidualBlock:
            return ResidualBlock(c_in, c_out, embed_dim, kernel_size, groups)

        self.time_embedding = TimeEmbedding(config.time_dim, config.time_periods)
        self.embed = nn.Sequential(
            Linear(config.time_dim + cond_dim, embed_dim), nn.SiLU(), Linear(embed_dim, embed_dim), nn.SiLU()
        )
        pairs = list(zip([action_dim, *down_dims[:-1]], down_dims))
        self.down = nn.ModuleList(nn.ModuleList([block(a, b), block(b, b)]) for a, b in pairs)
        self.downsample = nn.ModuleList(TimeConv(b, b, 3, stride=2) for b in down_dims[:-1])
        self.middle = nn.ModuleList([block(down_dims[-1], down_dims[-1]) for _ in range(2)])
        self.upsample = nn.ModuleList(Upsample(b) for b in reversed(down_dims[1:]))
        self.up = nn.ModuleList(
            nn.ModuleList([block(b + a, a), block(a, a)]) for a, b in zip(down_dims[-2::-1], down_dims[:0:-1])
        )
        self.final = TimeConv(down_dims[0], down_dims[0], kernel_size)
        self.final_norm = TimeGroupNorm(groups, down_dims[0])
        self.out = Linear(down_dims[0], action_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        embed = self.embed(torch.cat([self.time_embedding(t, s), cond], dim=-1))
        h = x_t  # (batch, horizon, action_dim)
        skips = []
        for level, blocks in enumerate(self.down):
            h = _through(blocks, h, embed)
            if level < len(self.downsample):
                skips.append(h)
                h = self.downsample[level](h)
        h = _through(self.middle, h, embed)
        # (batch, horizon / 2 ** (levels - 1), down_dims[-1])
        for upsample, blocks in zip(self.upsample, self.up):
            h = _through(blocks, torch.cat([upsample(h), skips.pop()], dim=-1), embed)
        return self.out(F.silu(self.final_norm(self.final(h))))
