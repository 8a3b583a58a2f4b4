"""Statistics that travel with the weights.

A normaliser is an affine map per feature, stored as buffers, so it is saved and loaded with the network. There is no
"identity until fitted": an unfitted normaliser holds NaN and refuses to act.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isdt_policy.errors import InputError

Statistics = Mapping[str, Any]
MODES = ("limits", "gaussian")


class Affine(nn.Module):
    """normalised = (x - offset) * scale, per feature."""

    offset: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.full((size,), float("nan")))
        self.register_buffer("scale", torch.full((size,), float("nan")))

    def fit(self, statistics: Statistics, mode: str) -> None:
        """Set the map from {"min", "max", "mean", "std"} of the training episodes.

        "limits" maps [min, max] to [-1, 1], as Diffusion Policy does for PushT; "gaussian" maps to mean 0 and standard
        deviation 1. A feature that never changes keeps scale 1: it maps to 0 and cannot be amplified.
        """
        stats = {
            key: torch.as_tensor(np.asarray(value), dtype=torch.float32).flatten()
            for key, value in statistics.items()
            if key in ("min", "max", "mean", "std")
        }
        if mode == "limits":
            offset, half = (stats["max"] + stats["min"]) / 2, (stats["max"] - stats["min"]) / 2
        elif mode == "gaussian":
            offset, half = stats["mean"], stats["std"]
        else:
            raise InputError(f"unknown normalisation '{mode}'; allowed: {', '.join(MODES)}.")
        self.offset.copy_(offset)
        self.scale.copy_(torch.where(half > 1e-6, 1 / half.clamp_min(1e-6), torch.ones_like(half)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.offset) * self.scale

    def inverse(self, x: Tensor) -> Tensor:
        """Back to the environment's units."""
        return x / self.scale + self.offset


class Normalizer(nn.Module):
    """One affine map per observation key and one for the action."""

    def __init__(self, obs_dims: Mapping[str, int], action_dim: int) -> None:
        super().__init__()
        self.obs = nn.ModuleDict({key: Affine(size) for key, size in obs_dims.items()})
        self.action = Affine(action_dim)

    def fit(self, statistics: Mapping[str, Statistics], obs_mode: str = "limits", action_mode: str = "limits") -> None:
        """Fit every map; `statistics` has one entry per observation key and one named "action"."""
        missing = [key for key in [*self.obs, "action"] if key not in statistics]
        if missing:
            raise InputError(f"no statistics for {', '.join(missing)}; the dataset offers {', '.join(statistics)}.")
        for key, affine in self.obs.items():
            affine.fit(statistics[key], obs_mode)  # type: ignore[operator]
        self.action.fit(statistics["action"], action_mode)

    def check(self) -> None:
        """Raise if any statistic is missing: acting on raw values would move a robot by wrong amounts."""
        for name, buffer in self.named_buffers():
            if not torch.isfinite(buffer).all():
                raise InputError(f"the normaliser has no value for '{name}'; fit it, or load a complete checkpoint.")

    def normalize_obs(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per key (batch, n_obs_steps, d), normalised."""
        return {key: affine(obs[key]) for key, affine in self.obs.items()}
