"""Statistics that travel with the weights.

A normaliser is an affine map per feature, stored as buffers, so it is saved and loaded with the network. There is no
"identity until fitted": an unfitted normaliser holds NaN and refuses to act.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isdt_policy.method.shapes import Chunks, Frames
from isdt_policy.shared.errors import InputError, nearest

Statistics = Mapping[str, NDArray[np.floating] | Sequence[float]]


class Windows(TypedDict):
    """Windows, as far as statistics read them: {key: (batch, n_obs_steps, d)} and (batch, horizon, action_dim)."""

    obs: dict[str, NDArray[np.generic]]
    action: NDArray[np.float32]


MODES = ("limits", "gaussian", "gaussian_per_step")
ACTION_MODES = (*MODES, "gaussian_vectors")


class Affine(nn.Module):
    """normalised = (x - offset) * scale, per feature; trailing axes of x are `shape`."""

    offset: Tensor
    scale: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.full(shape, float("nan")))
        self.register_buffer("scale", torch.full(shape, float("nan")))

    def fit(self, statistics: Statistics, mode: str) -> None:
        """Set the map from {"min", "max", "mean", "std"} of the training episodes, each broadcastable to `shape`.

        "limits" maps [min, max] to [-1, 1], as Diffusion Policy does for PushT; "gaussian" maps to mean 0 and standard
        deviation 1. Where the statistics differ along the first of two axes (the steps of a window), these two pool them
        and "gaussian_per_step" does not. A feature that never changes keeps scale 1: it maps to 0 and is not amplified.
        """
        low, high, mean, std = (
            torch.as_tensor(np.asarray(statistics[key], np.float64)).expand(self.offset.shape).clone()
            for key in ("min", "max", "mean", "std")
        )
        if self.offset.ndim > 1 and mode != "gaussian_per_step":
            pooled = mean.mean(dim=0)
            std = ((std.square() + (mean - pooled).square()).mean(dim=0).sqrt()).expand_as(std)
            low, high, mean = (x.expand_as(std) for x in (low.amin(dim=0), high.amax(dim=0), pooled))
        if mode == "limits":
            offset, half = (high + low) / 2, (high - low) / 2
        elif mode in ("gaussian", "gaussian_per_step"):
            offset, half = mean, std
        else:
            raise InputError(f"unknown normalisation '{mode}'; allowed: {', '.join(MODES)}.{nearest(mode, MODES)}")
        self.offset.copy_(offset)
        self.scale.copy_(torch.where(half > 1e-6, 1 / half.clamp_min(1e-6), torch.ones_like(half)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.offset) * self.scale

    def inverse(self, x: Tensor) -> Tensor:
        """Back to the environment's units."""
        return x / self.scale + self.offset


class Normalizer(nn.Module):
    """One affine map per observation key and one for the action chunk.

    Args:
        obs_dims: features per observation key.
        horizon, action_dim: shape of a chunk.
        action_reference: observation key whose newest value is the frame in which the chunk is expressed before it is
            normalised, or "" for none; see `frame_of`. A position target then becomes a displacement: its spread is a
            fraction of the workspace, so the same relative error of the network is a fraction of the pixels.
    """

    def __init__(self, obs_dims: Mapping[str, int], horizon: int, action_dim: int, action_reference: str = "") -> None:
        super().__init__()
        arms = action_reference.split(",")
        size = action_dim // len(arms)
        allowed = {4, 2} if action_dim == 2 else {3, size} if size > 3 else {size}
        if action_reference and (action_dim % len(arms) or any(obs_dims.get(key) not in allowed for key in arms)):
            raise InputError(
                f"action_reference='{action_reference}' must be an observation of the action's {action_dim} entries (an "
                "origin); for planar actions of 4 (x, y, cosine, sine); for an arm's of 3 (where its hand is; one per arm, "
                f"separated by commas); the policy reads {dict(obs_dims)}."
            )
        self.reference = action_reference
        self.obs = nn.ModuleDict({key: Affine(size) for key, size in obs_dims.items()})
        self.action = Affine(horizon, action_dim)

    def fit(
        self,
        statistics: Mapping[str, Statistics],
        obs_mode: str = "limits",
        action_mode: str = "limits",
        action_parts: Sequence[int] = (),
    ) -> None:
        """Fit every map.

        Args:
            statistics: one entry per observation key, and one named "action" (see `action_statistics`).
            obs_mode: see `Affine.fit`.
            action_mode: the same, or "gaussian_vectors": "gaussian_per_step" with one scale for all entries of a part. An entry
                that hardly changes, such as the tilt of a hand, is then not blown up to the weight of those that do.
            action_parts: sizes of the parts of an action (a position, a rotation, ...), in order; "gaussian_vectors" reads them.

        Raises:
            InputError: no statistics for a key, an unknown mode, or parts that do not add up to the action.
        """
        missing = [key for key in [*self.obs, "action"] if key not in statistics]
        if missing:
            raise InputError(f"no statistics for {', '.join(missing)}; the dataset offers {', '.join(statistics)}.")
        for key, affine in self.obs.items():
            affine.fit(statistics[key], obs_mode)  # type: ignore[operator]
        action = dict(statistics["action"])
        if action_mode == "gaussian_vectors":
            size = self.action.offset.shape[-1]
            if sum(action_parts) != size:
                raise InputError(
                    f"action_normalization='gaussian_vectors' needs the parts of an action of {size} entries, got "
                    f"{list(action_parts)}."
                )
            action["std"] = _pooled(np.asarray(action["std"], np.float64), action_parts)
            action_mode = "gaussian_per_step"
        elif action_mode not in MODES:
            raise InputError(
                f"unknown action_normalization '{action_mode}'; allowed: {', '.join(ACTION_MODES)}."
                f"{nearest(action_mode, ACTION_MODES)}"
            )
        self.action.fit(action, action_mode)

    def action_spread(self, statistics: Statistics) -> float:
        """Root mean square of the normalised actions: sigma_data of the preconditioning."""
        mean, std = (torch.as_tensor(np.asarray(statistics[key], np.float64)) for key in ("mean", "std"))
        centred = (mean - self.action.offset) * self.action.scale
        return float((centred.square() + (std * self.action.scale).square()).mean().sqrt())

    def check(self) -> None:
        """Raise if any statistic is missing: acting on raw values would move a robot by wrong amounts."""
        for name, buffer in self.named_buffers():
            if not torch.isfinite(buffer).all():
                raise InputError(f"the normaliser has no value for '{name}'; fit it, or load a complete checkpoint.")

    def normalize_obs(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per key (batch, n_obs_steps, d), normalised."""
        return {key: affine(obs[key]) for key, affine in self.obs.items()}

    def normalize_action(self, action: Chunks, obs: Mapping[str, Tensor]) -> Chunks:
        """Chunk (batch, horizon, action_dim) in the environment's units -> x."""
        return self.action(to_frame(action, self._frame(obs)) if self.reference else action)

    def unnormalize_action(self, x: Chunks, obs: Mapping[str, Tensor]) -> Chunks:
        """The inverse of `normalize_action`."""
        action = self.action.inverse(x)
        return from_frame(action, self._frame(obs)) if self.reference else action

    def _frame(self, obs: Mapping[str, Tensor]) -> Tensor:
        return frame_of(obs, self.reference, self.action.offset.shape[-1])


def _pooled(std: NDArray[np.float64], sizes: Sequence[int]) -> NDArray[np.float64]:
    """(..., d) with the entries of each vector replaced by their root mean square."""
    parts = np.split(std, np.cumsum(sizes)[:-1].tolist(), axis=-1)
    pooled = [np.broadcast_to(np.sqrt(np.square(p).mean(axis=-1, keepdims=True)), p.shape) for p in parts]
    return np.concatenate(pooled, axis=-1)


def frame_of(obs: Mapping[str, Tensor], reference: str, action_dim: int) -> Frames:
    """What `to_frame` takes, (batch, 1, action_dim or 4), from the newest observation of each key in `reference`.

    An arm's key holds the position of its hand, 3 entries, and moves the first three of that arm's share of the action:
    targets become displacements from the hand, its rotation and gripper stay as they are.
    """
    keys = reference.split(",")
    frames = [obs[key][:, -1:] for key in keys]
    size = action_dim // len(keys)
    if frames[0].shape[-1] >= size:
        return torch.cat(frames, dim=-1)
    return torch.cat([torch.nn.functional.pad(frame, (0, size - frame.shape[-1])) for frame in frames], dim=-1)


def to_frame(action: Chunks, frame: Frames) -> Chunks:
    """Actions (..., d) seen from a frame (..., d) = an origin, or for d = 2 (..., 4) = origin x, y and cosine, sine of its turn.

    What is done around an object looks alike at every pose of it once the axes turn with the object.
    """
    size = action.shape[-1]
    shifted = action - frame[..., :size]
    return shifted if frame.shape[-1] == size else _turn(shifted, frame[..., 2:3], -frame[..., 3:4])


def from_frame(action: Chunks, frame: Frames) -> Chunks:
    """The inverse of `to_frame`."""
    size = action.shape[-1]
    turned = action if frame.shape[-1] == size else _turn(action, frame[..., 2:3], frame[..., 3:4])
    return turned + frame[..., :size]


def _turn(v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x, y = v[..., :1], v[..., 1:2]
    return torch.cat([cos * x - sin * y, sin * x + cos * y], dim=-1)


def action_statistics(batches: Iterable[Windows], reference: str) -> dict[str, NDArray[np.float64]]:
    """min, max, mean and std of action chunks over all windows, each (horizon, action_dim), seen from `reference`."""
    count = 0
    total = square = np.zeros(())
    low, high = np.array(np.inf), np.array(-np.inf)
    for batch in batches:
        chunk = np.asarray(batch["action"], np.float64)
        if reference:
            seen = {key: torch.from_numpy(np.asarray(batch["obs"][key], np.float64)) for key in reference.split(",")}
            chunk = to_frame(torch.from_numpy(chunk), frame_of(seen, reference, chunk.shape[-1])).numpy()
        count += len(chunk)
        total, square = total + chunk.sum(axis=0), square + np.square(chunk).sum(axis=0)
        low, high = np.minimum(low, chunk.min(axis=0)), np.maximum(high, chunk.max(axis=0))
    mean = np.asarray(total / count)
    return {"min": low, "max": high, "mean": mean, "std": np.sqrt(np.maximum(square / count - mean**2, 0))}
