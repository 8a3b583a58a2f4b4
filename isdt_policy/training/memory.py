"""Memory that a training takes: the most so far, and how much the first step will take."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from isdt_policy.shared.errors import InputError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_FEW = (16, 32)  # rows of the steps that are measured


class Measurable(Protocol):
    """What a training shows of itself here."""

    def gradient_of_rows(self, rows: int) -> None:
        """Compute the gradient of so many rows, in the most expensive phase, uncompiled, and forget it."""
        ...


@dataclass(frozen=True)
class Need:
    """Bytes of a step, in tensors; libraries take some hundred MB besides.

    Attributes:
        fixed: of gradients and moments, whatever the batch.
        per_row: of each row of the batch.
    """

    fixed: float
    per_row: float

    def of(self, rows: int) -> float:
        """Bytes of a step with so many rows."""
        return self.fixed + rows * self.per_row


def need_of(training: Measurable, parameters: Sequence[Tensor]) -> Need:
    """What a step takes beside the weights, from two small steps: what is saved for the backward pass grows with the rows."""
    peaks = [_peak(lambda rows=rows: training.gradient_of_rows(rows)) for rows in _FEW]  # type: ignore[misc]
    per_row = (peaks[1] - peaks[0]) / (_FEW[1] - _FEW[0])
    moments = 2 * sum(parameter.nbytes for parameter in parameters)
    return Need(peaks[0] - _FEW[0] * per_row + moments, per_row)


def check_room(need: Need, rows: int, free: int, device: str, compiled: bool) -> str:
    """Refuse a step for which there is no room; return what to tell otherwise.

    Args:
        need: see `need_of`; of uncompiled steps.
        rows: of the batch of this process.
        free: bytes that are free on the device.
        device: its name, for people.
        compiled: the steps will be compiled. They keep less, nobody knows how much before; so only what is fixed counts.

    Raises:
        InputError: there is no room.
    """
    needed = need.fixed if compiled else need.of(rows)
    told = f"a step of {rows} windows takes about {need.of(rows) / 1e9:.1f} GB on {device}, of which {free / 1e9:.1f} GB are free"
    if needed <= free:
        return told + ("; compiled, it takes less" if compiled else "")
    most = int((free - need.fixed) / need.per_row) if free > need.fixed else 0
    how = (
        f"At most {most} windows fit"
        if most
        else "Weights, gradients and moments alone do not fit: take a smaller network"
    )
    raise InputError(f"{told}. {how}; or add GPUs (nproc=N), which share the batch.")


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process may still take on a GPU; None on another device, which has what the machine has."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class _Held(TorchDispatchMode):
    """Counts the bytes of all tensors that are made and not yet let go of."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # as torch declares it
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._let_go, storage.nbytes())

    def _let_go(self, nbytes: int) -> None:
        self.now -= nbytes


def _peak(act: Callable[[], None]) -> int:
    """Most bytes of tensors, made meanwhile, that were held at a time."""
    with _Held() as held:
        act()
    return held.peak


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process has held, in MiB, where the system counts it: Linux does in KiB, macOS in bytes."""
    peaks = {"peak_gpu_mb": torch.cuda.max_memory_allocated(device) / 2**20} if device.type == "cuda" else {}
    if resource is None:
        return peaks
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_rss_mb": peak / (2**20 if sys.platform == "darwin" else 2**10), **peaks}
