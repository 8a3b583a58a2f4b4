"""Denoising diffusion (Ho et al., arXiv 2006.11239), as Diffusion Policy trains it (Chi et al., 2303.04137).

Levels are those of diffusers' DDPMScheduler; the network is told a level by its time on the trigonometric path
(see noise_schedule.py), and is therefore trained on that path only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from isdt_policy.method.device import sent
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import Trigonometric
from isdt_policy.method.noise_schedule import NoiseSchedule
from isdt_policy.method.objectives.base import DRAWN, Draws, Loss, mean_square
from isdt_policy.method.objectives.parts import draw_noise, weighted
from isdt_policy.method.objectives.share import share_of
from isdt_policy.method.samplers import Sampling
from isdt_policy.method.shapes import Chunks, Embedding, Embeddings, Kept
from isdt_policy.shared.errors import InputError


@dataclass(frozen=True)
class Diffusion:
    """|| F(x_k, t_k, t_k, c) - y ||^2 at a uniform level k; y is noise, data or velocity.

    Attributes:
        prediction, train_steps, beta_schedule: see `NoiseSchedule`.
        weight_power: p of the adaptive weighting.
    """

    prediction: str = NoiseSchedule.prediction
    train_steps: int = NoiseSchedule.train_steps
    beta_schedule: str = NoiseSchedule.beta_schedule
    weight_power: float = 0.0

    def __post_init__(self) -> None:
        _ = self.sampling.schedule  # refuses wrong names

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            "diffusion",
            prediction=self.prediction,
            train_steps=self.train_steps,
            beta_schedule=self.beta_schedule,
        )

    def __call__(
        self,
        flow_map: FlowMap,
        action: Chunks,
        cond: Embeddings,
        null: Embedding,
        generator: torch.Generator,
        *,
        keep: Kept | None = None,
        draws: Draws = DRAWN,
    ) -> Loss:
        """Loss on one batch; see `Objective`. It draws a noise level and no times."""
        if not isinstance(flow_map.path, Trigonometric):
            raise InputError("objective=diffusion preserves variance and needs policy.interpolant=trigonometric.")
        noise, level = draws.noise, draws.level
        if noise is None:
            noise = draw_noise(action, generator)
        if level is None:
            share = share_of(generator)
            level = share.take(torch.randint(self.train_steps, (share.of(action.shape[0]),), generator=generator))
        # Of the level, on the CPU: on a GPU nothing of the schedule is copied there and nothing waits.
        kept, times = self.sampling.schedule.levels()
        kept = kept.to(action.dtype)[level.cpu()][:, None, None]
        signal, spread = sent(kept**0.5, action), sent((1 - kept) ** 0.5, action)
        x_k = signal * action + spread * noise
        targets = {"epsilon": noise, "sample": action}
        target = targets.get(self.prediction)
        if target is None:
            target = signal * noise - spread * action
        t = sent(times[level.cpu()], action)
        loss = mean_square(flow_map.velocity(x_k, t, cond).to(action.dtype) - target, keep)
        return weighted(loss, self.weight_power, diffusion=loss)
