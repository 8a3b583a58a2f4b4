"""Memory that a training takes."""

from __future__ import annotations

import sys

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process has held, in MiB, where the system counts it: Linux does in KiB, macOS in bytes."""
    peaks = {"peak_gpu_mb": torch.cuda.max_memory_allocated(device) / 2**20} if device.type == "cuda" else {}
    if resource is None:
        return peaks
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_rss_mb": peak / (2**20 if sys.platform == "darwin" else 2**10), **peaks}
