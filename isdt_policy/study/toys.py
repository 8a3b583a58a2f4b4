"""Toy densities: points in the plane as chunks of one action, learnt by the ordinary trainer, compared with the data.

The condition is a constant, so there is nothing to guide towards: the null branch and the conditional one learn the same
velocity, and training guidance of scale w leaves the mean of the target where it is and multiplies its noise by w.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isdt_policy.policy import Policy, PolicyConfig
from isdt_policy.study.densities import DENSITIES
from isdt_policy.study.metrics import gradient_norms, gradient_trace, sampling_floor, sliced_wasserstein
from isdt_policy.study.rows import NFE, Row, build_objective
from isdt_policy.training.trainer import NonFiniteLoss, Trainer, TrainingConfig

TRAINING_POINTS = 2**20
SHOWN = 1500  # points of one cell that are kept for the figure


@dataclass(frozen=True)
class ToySettings:
    """Budget and measurement of a toy cell.

    Attributes:
        steps, batch_size, lr, ema_decay: of the training; warm-up, cosine to zero, gradient clip 1, float32.
        width, depth, time_dim, time_periods: of the MLP.
        samples: points per measurement; the sampling floor depends on it.
        repeats: independent measurements that are averaged.
    """

    steps: int = 10000
    batch_size: int = 256
    lr: float = 3e-3
    ema_decay: float = 0.999
    width: int = 128
    depth: int = 3
    time_dim: int = 16
    time_periods: float = 1.0
    samples: int = 4096
    repeats: int = 24


class Points:
    """A density as the trainer reads demonstrations: windows of one action beside an observation that is always zero."""

    n_windows = TRAINING_POINTS

    def __init__(self, density: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(1_000_000 + seed)
        self._points = DENSITIES[density](self.n_windows, generator)[:, None].numpy()

    def batch(self, indices: NDArray[np.int64]) -> Mapping[str, Any]:
        n = len(indices)
        return {
            "obs": {"none": np.zeros((n, 1, 1), np.float32)},
            "action": self._points[indices],
            "is_pad": np.zeros((n, 1), bool),
        }


def toy_policy(row: Row, settings: ToySettings) -> Policy:
    """The untrained policy of a toy cell: an MLP over a single two-dimensional action."""
    mlp = {key: getattr(settings, key) for key in ("width", "depth", "time_dim", "time_periods")}
    policy = Policy(
        PolicyConfig(
            task="",
            obs_dims={"none": 1},
            action_dim=2,
            n_obs_steps=1,
            horizon=1,
            n_action_steps=1,
            interpolant=row.interpolant,
            network={"name": "mlp", **mlp, **row.network},
            cond_dim=1,
            encoder_hidden=(),
            precondition=row.precondition,
            sigma_data=1.0,
            obs_normalization="gaussian",
            action_normalization="gaussian",
            sampling=asdict(build_objective(row).sampling),
        )
    )
    one = {key: np.full(1, value) for key, value in (("min", -1.0), ("max", 1.0), ("mean", 0.0), ("std", 1.0))}
    two = {key: np.repeat(value, 2) for key, value in one.items()}  # the densities have mean 0 and variance 1
    policy.normalizer.fit({"none": one, "action": two}, "gaussian", "gaussian")
    return policy


def train_toy(row: Row, density: str, seed: int, settings: ToySettings) -> tuple[Policy, list[float], str]:
    """Train one cell; returns the averaged policy, the gradient norm of every step, and why it stopped early or ""."""
    torch.manual_seed(seed)
    config = TrainingConfig(
        seed=seed,
        steps=settings.steps,
        batch_size=settings.batch_size,
        lr=settings.lr,
        ema_decay=settings.ema_decay,
        diagonal_steps=int(row.warm_start * settings.steps),
        weight_decay=0.0,
        warmup_steps=100,
        amp="off",
        tensorboard=False,
    )
    trainer = Trainer(toy_policy(row, settings), build_objective(row), Points(density, seed), None, config, Path("."))
    norms: list[float] = []
    try:
        for _ in range(settings.steps):
            norms.append(trainer.train_step()["grad_norm"])
    except NonFiniteLoss as error:
        return trainer.ema.module, norms, str(error).split(". ")[0]
    return trainer.ema.module, norms, ""


@torch.inference_mode()
def sample(policy: Policy, steps: int | str, n: int, generator: torch.Generator) -> Tensor:
    """n points (n, 2) of a toy policy in `steps` network evaluations."""
    noise = torch.randn(n, 1, 2, generator=generator)
    return policy.sample(noise, policy.encode({"none": torch.zeros(n, 1, 1)}), steps)[:, 0]


def run_toy(row: Row, density: str, seed: int, settings: ToySettings, picture: Path | None = None) -> dict[str, Any]:
    """Train and measure one cell.

    Args:
        picture: where to keep points of one evaluation for the figure, a float16 .npy; None keeps none.

    Returns:
        "floor" and "noise": distance to the data of other data and of plain noise; "distance" and "ratio" to the floor per
        entry of `NFE` (null where samples are not finite); "gradient" (see `gradient_norms`), "trace"; "diverged" with its
        reason; "steps_done" and "cpu_seconds".
    """
    started = time.process_time()
    policy, norms, reason = train_toy(row, density, seed, settings)
    seconds = time.process_time() - started
    n = settings.samples
    generator = torch.Generator().manual_seed(2_000_000 + seed)

    def data() -> Tensor:
        return DENSITIES[density](n, generator)

    floor = sampling_floor(data)
    noise = sliced_wasserstein(torch.randn(n, 2, generator=generator), data())
    distance: list[float | None] = []
    for steps in NFE:
        values = [sliced_wasserstein(sample(policy, steps, n, generator), data()) for _ in range(settings.repeats)]
        mean = float(np.mean(values))
        distance.append(mean if math.isfinite(mean) else None)
    # One evaluation alone is no measure of divergence, since not every objective is meant for it. The best of all is.
    best = min((d for d in distance if d is not None), default=math.inf)
    if not reason and best > noise:
        reason = "at no number of evaluations nearer to the data than plain noise"
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        points = sample(policy, 1, SHOWN, generator).clamp(-1e4, 1e4)  # float16 ends at 65504
        np.save(picture, points.numpy().astype(np.float16))
    return {
        "floor": floor,
        "noise": noise,
        "distance": distance,
        "ratio": [None if d is None else d / floor for d in distance],
        "gradient": gradient_norms(norms),
        "trace": gradient_trace(norms),
        "diverged": bool(reason),
        "reason": reason,
        "steps_done": len(norms),
        "cpu_seconds": round(seconds, 1),
    }
