"""Distance of samples to data, with the distance between two samples of the data beside it; gradient norms of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

DIRECTIONS = 32


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = DIRECTIONS) -> float:
    """Sliced Wasserstein-1 distance of two samples of equal size in the plane.

    The mean over directions of the mean distance between sorted projections. The directions are equally spaced over a half
    turn instead of random, so that the distance is a function of its arguments. W1, because its floor falls as n^(-1/2)
    where data has gaps, and W2's as n^(-1/4): a high floor flatters every method.

    Args:
        a, b: (n, 2), the same n.
    """
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 2:
        raise ValueError(f"two samples (n, 2) of equal size are compared, got {tuple(a.shape)} and {tuple(b.shape)}")
    angle = torch.arange(directions) * (math.pi / directions)
    axes = torch.stack([angle.cos(), angle.sin()]).to(a)  # (2, directions)
    return ((a @ axes).T.sort().values - (b @ axes).T.sort().values).abs().mean().item()


def sampling_floor(draw: Callable[[], Tensor], repeats: int = 48) -> float:
    """Mean distance between two independent samples of the data: what a perfect model scores."""
    return sum(sliced_wasserstein(draw(), draw()) for _ in range(repeats)) / repeats


def stray_share(points: Tensor, reference: Tensor, fresh: Tensor) -> float:
    """Share of points where there is no data: farther from the nearest of `reference` than 99 % of fresh data are.

    0.01 is perfect. Projections hardly see points in the gaps of a density, so this stands beside the sliced distance.

    Args:
        points, reference, fresh: (any number, 2); the last two are samples of the data.
    """
    limit = _nearest(fresh, reference).quantile(0.99)
    return (_nearest(points, reference) > limit).double().mean().item()


def _nearest(points: Tensor, reference: Tensor) -> Tensor:
    return torch.cat([torch.cdist(part, reference).amin(dim=1) for part in points.split(500)])


def gradient_norms(norms: Sequence[float]) -> dict[str, float] | None:
    """Median, 99 % quantile and maximum of the gradient norms of a run, and 99 % / median; None of an empty run."""
    if not norms:
        return None
    ordered = sorted(norms)
    middle = median(ordered)
    high = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return {"median": middle, "p99": high, "max": ordered[-1], "p99_over_median": high / max(middle, 1e-12)}


def gradient_trace(norms: Sequence[float], bins: int = 60) -> list[list[float]]:
    """[last step, median, maximum] of the gradient norm in equal stretches of a run, for a figure."""
    size = max(1, math.ceil(len(norms) / bins))
    parts = [norms[i : i + size] for i in range(0, len(norms), size)]
    return [
        [min((i + 1) * size, len(norms)), round(median(part), 4), round(max(part), 4)] for i, part in enumerate(parts)
    ]
