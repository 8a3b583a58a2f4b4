"""What is measured against: the usual network, training step and samplers of a diffusion policy.

Both sides get the same help: autocast and torch.compile where ours have them, a fused optimiser, one call that averages all
weights, and numbers that are on the device before a loop begins.

The network is the conditional 1D UNet of Diffusion Policy (Chi et al., arXiv 2303.04137, appendix): `Conv1d` on
(batch, channel, time), GroupNorm, Mish, FiLM from one diffusion step and the flattened observations. It lives in the
benchmark alone; policies use `isdt_policy.method.networks.unet1d`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from isdt_policy.lab.bench.subject import Subject
from isdt_policy.method.networks.image_encoder import Cameras, Look
from isdt_policy.method.policy import Policy
from isdt_policy.shared.extras import require
from isdt_policy.shared.values import Json
from isdt_policy.training.trainer import Windows

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
    for extra in (0, 8, -8, 16, -16, 24, -24):
        dims = [max(8, d + extra * d // down_dims[0]) // 8 * 8 for d in down_dims]
        for step_dim in (256, 224, 192, 160, 128, 96, 64, 288, 320, 384):
            with torch.device("meta"):
                count = sum(p.numel() for p in ConvUNet(action_dim, cond_dim, dims, step_dim).parameters())
            if abs(count / parameters - 1) <= 0.02:
                return ConvUNet(action_dim, cond_dim, dims, step_dim)
    raise ValueError(f"no ConvUNet of {parameters} parameters near down_dims={list(down_dims)}")


def baseline_network(ours: Subject, device: str) -> ConvUNet:
    """The usual network with as many parameters as ours, for the same observations and actions."""
    torch.manual_seed(0)
    return matched(ours.policy.config.action_dim, ours.obs_width, ours.down_dims, ours.parameters).to(device).eval()


@dataclass(frozen=True)
class How:
    """What makes a training step fast.

    Attributes:
        device: "cpu", "cuda", ...
        bf16: run the network under autocast to bfloat16.
        compile: torch.compile the network.
        graphs: on a GPU, start what was compiled as CUDA graphs.
    """

    device: str = "cpu"
    bf16: bool = False
    compile: bool = False
    graphs: bool = False

    def __str__(self) -> str:
        how = f"{'bf16 autocast' if self.bf16 else 'float32'}, {'compiled' if self.compile else 'eager'}"
        return f"{how}, CUDA graphs" if self.graphs else how


def ddpm_step(
    network: nn.Module, policy: Policy, windows: Windows, batch: int, how: How, cameras: Cameras | None = None
) -> Callable[[], float]:
    """A training step of DDPM: data, forward, backward, AdamW, average of the weights.

    Args:
        network: a `ConvUNet`, on its device.
        policy: its normaliser is used.
        batch: windows per step.
        cameras: encoders of pictures, whose features the network reads behind the states; None for states alone.
    """
    mode = "reduce-overhead" if how.graphs and torch.device(how.device).type == "cuda" else None
    predict = torch.compile(network, mode=mode) if how.compile else network
    parameters: list[Tensor] = [*network.parameters(), *(cameras.parameters() if cameras is not None else ())]
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, fused=True)
    signal, level = noise_levels(how.device)
    rng = np.random.default_rng(0)

    def step() -> float:
        if how.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        read = windows.batch(rng.integers(0, windows.n_windows, batch))
        obs, x = _normalised(policy, read, how.device)
        if cameras is not None:
            pictures = {key: torch.as_tensor(read["obs"][key]).to(how.device) for key in cameras.cameras}
            look = Look(cameras.draw_corners(batch, torch.Generator()), bf16=how.bf16)
            obs = torch.cat([obs, cameras(pictures, look)], dim=-1)
        noise = torch.randn_like(x)
        k = torch.randint(0, TRAIN_STEPS, (batch,), device=how.device)
        with torch.autocast(torch.device(how.device).type, torch.bfloat16, enabled=how.bf16):
            prediction = predict(signal[k] * x + level[k] * noise, k, obs)
        loss = (prediction.float() - noise).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 0.001)
        return loss.item()

    return step


def noise_levels(device: str) -> tuple[Tensor, Tensor]:
    """(signal, noise) standard deviations of every step of the schedule, each (TRAIN_STEPS, 1, 1), on the device."""
    kept = _scheduler("ddpm").alphas_cumprod.to(device)[:, None, None]
    return kept.sqrt(), (1 - kept).sqrt()


def sampler(
    network: Callable[[Tensor, Tensor, Tensor], Tensor], ours: Subject, kind: Literal["ddim", "ddpm"], steps: int, device: str
) -> Callable[[], object]:  # fmt: skip
    """predict_action of the baseline: normalise, `steps` evaluations through diffusers, denormalise; one row."""
    scheduler = _scheduler(kind)
    scheduler.set_timesteps(steps)
    policy, obs = ours.policy, ours.first_obs()
    # The network gets its times from the device; the schedule's own arithmetic is on numbers of the CPU.
    times = list(zip(scheduler.timesteps, scheduler.timesteps.to(device)[:, None]))
    batch = {"obs": obs, "action": torch.zeros(1, policy.horizon, policy.config.action_dim)}

    @torch.inference_mode()
    def act() -> object:
        flat, x = _normalised(policy, batch, device)
        x = torch.randn_like(x)
        for k, on_device in times:
            x = scheduler.step(network(x, on_device, flat), k, x).prev_sample
        part = {key: torch.as_tensor(value).to(device) for key, value in obs.items()}
        return policy.normalizer.unnormalize_action(x, part).cpu().numpy()

    return act


def _normalised(policy: Policy, batch: Json, device: str) -> tuple[Tensor, Tensor]:
    """(flattened observations, action) of a batch, normalised, on the device."""
    obs = {key: torch.as_tensor(value).to(device) for key, value in batch["obs"].items()}
    with torch.no_grad():
        flat = torch.cat([x.flatten(1) for x in policy.normalizer.normalize_obs(obs).values()], dim=-1)
        return flat, policy.normalizer.normalize_action(torch.as_tensor(batch["action"]).to(device), obs)


def _scheduler(kind: Literal["ddim", "ddpm"]) -> Any:
    diffusers = require("diffusers", "diffusers", "The baseline")
    maker = {"ddim": diffusers.DDIMScheduler, "ddpm": diffusers.DDPMScheduler}[kind]
    return maker(num_train_timesteps=TRAIN_STEPS, beta_schedule="squaredcos_cap_v2", clip_sample=True)
