"""The discrete noise levels of a diffusion policy: a door to `diffusers`' schedulers and to nothing else of it.

The schedule preserves variance, x_k = sqrt(abar_k) x + sqrt(1 - abar_k) z, so its levels k are points of the trigonometric
path: cos(phi_k) = sqrt(abar_k). `times` gives them as t in [0, 1], and the network of a diffusion policy takes these, twice,
where other objectives give it t and s. A network that predicts v is therefore the velocity of the trigonometric path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.extras import require

PREDICTIONS = ("epsilon", "sample", "v_prediction")
BETA_SCHEDULES = ("squaredcos_cap_v2", "linear", "scaled_linear")


class Denoised(Protocol):
    """What a step of a scheduler returns."""

    prev_sample: Tensor


@runtime_checkable
class Scheduler(Protocol):
    """What is used of a scheduler of diffusers."""

    alphas_cumprod: Tensor
    timesteps: Tensor

    def set_timesteps(self, n: int, /) -> None: ...
    def step(self, output: Tensor, level: int, sample: Tensor, /, **options: object) -> Denoised: ...


@dataclass(frozen=True)
class NoiseSchedule:
    """Noise levels and what the network predicts at them.

    Attributes:
        prediction: "epsilon" (the noise), "sample" (the data) or "v_prediction" (sqrt(abar) z - sqrt(1 - abar) x).
        train_steps: number of levels.
        beta_schedule: "squaredcos_cap_v2" (Nichol & Dhariwal, what Diffusion Policy uses), "linear" or "scaled_linear".
    """

    prediction: str = "epsilon"
    train_steps: int = 100
    beta_schedule: str = "squaredcos_cap_v2"

    def __post_init__(self) -> None:
        for name, allowed in (("prediction", PREDICTIONS), ("beta_schedule", BETA_SCHEDULES)):
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(f"{name}='{value}' is not one of {', '.join(allowed)}.{nearest(value, allowed)}")
        if self.train_steps < 2:
            raise InputError(f"train_steps must be at least 2, got {self.train_steps}.")

    def scheduler(self, name: str = "ddpm", clip: float | None = None, spacing: str = "leading") -> Scheduler:
        """A new diffusers scheduler of these levels, "ddpm" or "ddim".

        Args:
            clip: bound of the data that a step predicts, in normalised units; None does not bound it.
            spacing: how a sampler with fewer steps picks its levels, as diffusers calls it.

        Raises:
            InputError: diffusers is not installed.
        """
        module = require(f"diffusers.schedulers.scheduling_{name}", "diffusers", "diffusion policies")
        scheduler = getattr(module, {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler"}[name])(
            num_train_timesteps=self.train_steps,
            beta_schedule=self.beta_schedule,
            prediction_type=self.prediction,
            clip_sample=clip is not None,
            clip_sample_range=1.0 if clip is None else clip,
            timestep_spacing=spacing,
        )
        return cast(Scheduler, scheduler)

    def levels(self) -> tuple[Tensor, Tensor]:
        """(abar, t) of every level, each (train_steps,), on the CPU; see `times`."""
        return _levels(self)

    def times(self, alphas_cumprod: Tensor) -> Tensor:
        """t of every level on the trigonometric path, (train_steps,) float64, rising with the noise."""
        signal = alphas_cumprod.double()
        return torch.atan2((1 - signal).sqrt(), signal.sqrt()) / (math.pi / 2)


@lru_cache(maxsize=8)
def _levels(schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    kept = schedule.scheduler().alphas_cumprod
    return kept, schedule.times(kept)
