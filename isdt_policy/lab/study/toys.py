"""Toy densities: points in the plane as chunks of one action, learnt and compared with the data.

The condition is a constant zero, so there is nothing to guide towards: the null branch and the conditional one learn the same
velocity, and training guidance of scale w leaves the mean of the target where it is and multiplies its noise by w.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isdt_policy.envs.protocol import ObsSpec
from isdt_policy.lab.study.densities import DENSITIES
from isdt_policy.lab.study.metrics import (
    gradient_norms,
    gradient_trace,
    sampling_floor,
    sliced_wasserstein,
    stray_share,
)
from isdt_policy.lab.study.rows import NFE, Row, build_objective
from isdt_policy.lab.study.settings import ToySettings
from isdt_policy.lab.study.side_by_side import History, train_side_by_side
from isdt_policy.method.networks import read_network
from isdt_policy.method.policy import Policy, PolicyConfig
from isdt_policy.training.trainer import TrainingConfig

SHOWN = 1500  # points of one cell that are kept for the figure


def toy_policy(row: Row, settings: ToySettings) -> Policy:
    """The untrained policy of a toy cell: an MLP over a single two-dimensional action."""
    mlp = {key: getattr(settings, key) for key in ("width", "depth", "time_dim", "time_periods")}
    policy = Policy(
        PolicyConfig(
            task="",
            observations={"none": ObsSpec((1,))},
            action_dim=2,
            n_obs_steps=1,
            horizon=1,
            n_action_steps=1,
            interpolant=row.interpolant,
            network=read_network({"name": "mlp", **mlp, **row.network}),
            cond_dim=1,
            encoder_hidden=(),
            precondition=row.precondition,
            sigma_data=1.0,
            obs_normalization="gaussian",
            action_normalization="gaussian",
            sampling=build_objective(row).sampling,
        )
    )
    one = {key: np.full(1, value) for key, value in (("min", -1.0), ("max", 1.0), ("mean", 0.0), ("std", 1.0))}
    two = {key: np.repeat(value, 2) for key, value in one.items()}  # the densities have mean 0 and variance 1
    policy.normalizer.fit({"none": one, "action": two}, "gaussian", "gaussian")
    for parameter in (*policy.encoder.parameters(), policy.null):  # the condition is a constant zero
        torch.nn.init.zeros_(parameter.requires_grad_(False))
    return policy


def train_toys(
    row: Row, densities: Sequence[str], seeds: Sequence[int], settings: ToySettings
) -> list[tuple[str, int, Policy, History]]:
    """Train a network per density and seed on fresh points; returns each with averaged weights, and how training went."""
    config = TrainingConfig(
        seed=seeds[0],
        steps=settings.steps,
        batch_size=settings.batch_size,
        lr=settings.lr,
        ema_decay=settings.ema_decay,
        diagonal_steps=int(row.warm_start * settings.steps),
        weight_decay=0.0,
        warmup_steps=100,
    )
    runs = [(density, seed) for seed in seeds for density in densities]
    policies, points = [], []
    for density, seed in runs:
        torch.manual_seed(seed)
        policies.append(toy_policy(row, settings))
        generator = torch.Generator().manual_seed(1_000_000 + seed)
        points.append(DENSITIES[density](settings.steps * settings.batch_size, generator))
    histories = train_side_by_side(policies, build_objective(row), points, config)
    return [(*run, policy, history) for run, policy, history in zip(runs, policies, histories)]


@torch.inference_mode()
def sample(policy: Policy, steps: int | str, n: int, generator: torch.Generator) -> Tensor:
    """n points (n, 2) of a toy policy in `steps` network evaluations."""
    noise = torch.randn(n, 1, 2, generator=generator)
    return policy.sample(noise, policy.encode({"none": torch.zeros(n, 1, 1)}), steps)[:, 0]


def run_toys(
    row: Row,
    densities: Sequence[str],
    seeds: Sequence[int],
    settings: ToySettings,
    pictures: Mapping[str, Path] | None = None,
) -> list[dict[str, object]]:
    """Train and measure one row: every density and seed, side by side.

    Args:
        pictures: per density, where to keep points of the first seed at one evaluation for the figure, a float16 .npy; None
            keeps none.

    Returns:
        Per density and seed "floor" and "noise": distance to the data of other data and of plain noise; "distance" and
        "ratio" to the floor per entry of `NFE` (null where samples are not finite); "gradient" (see `gradient_norms`),
        "trace"; "diverged" with its reason; "steps_done"; "cpu_seconds" of the training of all, divided by their number.
    """
    started = time.process_time()
    runs = train_toys(row, densities, seeds, settings)
    seconds = (time.process_time() - started) / len(runs)
    results = []
    for density, seed, policy, history in runs:
        picture = pictures[density] if pictures and seed == seeds[0] else None
        measured = _measured(policy, history, density, seed, settings, picture)
        results.append({"density": density, "seed": seed, **measured, "cpu_seconds": round(seconds, 1)})
    return results


@functools.cache
def _floor(density: str, n: int) -> float:
    """The same for every run, so that ratios differ by their distances alone."""
    generator = torch.Generator().manual_seed(2_000_000)
    return sampling_floor(lambda: DENSITIES[density](n, generator))


def _measured(
    policy: Policy, run: History, density: str, seed: int, settings: ToySettings, picture: Path | None
) -> dict[str, object]:
    n, reason = settings.samples, run.reason
    generator = torch.Generator().manual_seed(2_000_000 + seed)

    def data() -> Tensor:
        return DENSITIES[density](n, generator)

    floor = _floor(density, n)
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
        "gradient": gradient_norms(run.norms),
        "trace": gradient_trace(run.norms),
        "diverged": bool(reason),
        "reason": reason,
        "steps_done": len(run.norms),
    }


def stray_shares(pictures: Path) -> dict[tuple[str, str], float]:
    """(density, row) -> share of the kept points of one evaluation that lie where there is no data; see `stray_share`.

    Args:
        pictures: folder of <density>/<row>.npy.
    """
    shares = {}
    for density in DENSITIES:
        generator = torch.Generator().manual_seed(3_000_000)
        reference, fresh = (DENSITIES[density](n, generator) for n in (8192, 4096))
        for path in sorted((pictures / density).glob("*.npy")):
            points = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
            shares[density, path.stem] = stray_share(points, reference, fresh)
    return shares
