"""Turns: every way runs a little, then the next, round after round, so that a busy moment falls on all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

Ratio = tuple[float, float, float]  # median over turns, smallest and largest turn


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call: median, quartiles and 99th percentile of all calls; `rounds` are medians per round."""

    median: float
    low: float
    high: float
    p99: float
    calls: int
    rounds: tuple[float, ...]


def interleaved(
    ways: Mapping[str, Callable[[], object]], *, rounds: int, calls: int, warmup: int = 3, device: str = "cpu"
) -> dict[str, Timing]:
    """Time `calls` calls of every way in each of `rounds` rounds.

    On CUDA a call is timed between events and the device is idle when it starts; on a CPU by the wall clock.

    Args:
        ways: name -> function to time.
        rounds, calls: turns, and calls per turn.
        warmup: calls of each way before anything is timed.
    """
    timer = _cuda_ms if torch.device(device).type == "cuda" else _wall_ms
    for way in ways.values():
        for _ in range(warmup):
            way()
    times: dict[str, list[list[float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append([timer(way) for _ in range(calls)])
    return {name: summary(values) for name, values in times.items()}


def summary(rounds: list[list[float]]) -> Timing:
    """Summarise the calls of all rounds, in milliseconds."""
    flat = np.concatenate([np.asarray(r) for r in rounds])
    low, median, high, p99 = (float(q) for q in np.quantile(flat, [0.25, 0.5, 0.75, 0.99]))
    return Timing(median, low, high, p99, len(flat), tuple(float(np.median(r)) for r in rounds))


def ratio(a: Timing, b: Timing) -> Ratio:
    """a / b: its median over rounds, and its smallest and largest value in a round, which shows how noisy the machine is."""
    per_round = np.asarray(a.rounds) / np.asarray(b.rounds)
    return float(np.median(per_round)), float(per_round.min()), float(per_round.max())


def _wall_ms(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return 1e3 * (time.perf_counter() - start)


def _cuda_ms(way: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    way()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def bandwidth(bytes_read: int, device: str = "cpu") -> float:
    """Seconds to read so many bytes once: the floor of a network evaluation whose weights are that large."""
    buffer = torch.ones(bytes_read // 4, device=device)
    timer = _cuda_ms if torch.device(device).type == "cuda" else _wall_ms
    for _ in range(3):
        buffer.sum()
    return float(np.median([timer(lambda: buffer.sum()) for _ in range(15)])) / 1e3
