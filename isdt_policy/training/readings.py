"""What the steps of a training came to, read from the device some steps later, so that no step waits for its own numbers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isdt_policy.shared.errors import InputError

BEHIND = 2  # steps that a GPU may be behind the numbers that are asked of it

_ADVICE = "Lower training.lr, keep training.grad_clip=1, or set training.amp=off; the last checkpoint is intact."


class NonFiniteLoss(InputError):
    """A loss term became NaN or infinite; names the step and the term."""


@dataclass(frozen=True)
class _Waiting:
    step: int
    names: tuple[str, ...]
    values: Tensor  # (names,) on the host, complete when `ready` is
    ready: torch.cuda.Event | None
    rate: float


class Readings:
    """Numbers of steps on their way from the device.

    Args:
        behind: how many steps they may be late; 0 reads those of every step at once.
    """

    def __init__(self, behind: int) -> None:
        self.behind = behind
        self._waiting: deque[_Waiting] = deque()

    def add(self, step: int, values: Mapping[str, Tensor], rate: float) -> Tensor:
        """Take the numbers of a step; return whether all are finite, () bool on the device.

        Args:
            step: its number.
            values: "loss", the terms of the loss, and "grad_norm", all ().
            rate: the learning rate.
        """
        numbers = torch.stack([value.detach().to(values["loss"].dtype) for value in values.values()])
        host, ready = numbers, None
        if numbers.device.type == "cuda":
            host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self._waiting.append(_Waiting(step, tuple(values), host, ready, rate))
        return torch.isfinite(numbers).all()

    def due(self) -> list[dict[str, float]]:
        """The numbers of the steps that are `behind` steps old, oldest first.

        Raises:
            NonFiniteLoss: a number of one of them is not finite.
        """
        return [self._read() for _ in range(len(self._waiting) - self.behind)]

    def rest(self) -> list[dict[str, float]]:
        """The numbers of all steps that are left, waiting for them; see `due`."""
        return [self._read() for _ in range(len(self._waiting))]

    def forget(self) -> None:
        """Drop what is on its way: another run goes on."""
        self._waiting.clear()

    def _read(self) -> dict[str, float]:
        late = self._waiting.popleft()
        if late.ready is not None:
            late.ready.synchronize()
        values = dict(zip(late.names, late.values.tolist()))
        # A term says more than the total, and both more than the gradient.
        for name in sorted(
            values, key=lambda name: ("loss", "grad_norm").index(name) if name in ("loss", "grad_norm") else -1
        ):
            if not math.isfinite(values[name]):
                what = {"loss": "the loss", "grad_norm": "the gradient norm"}.get(name, f"loss term '{name}'")
                raise NonFiniteLoss(f"step {late.step}: {what} is {values[name]}. {_ADVICE}")
        return {**values, "lr": late.rate}


def shown(values: Mapping[str, float], success: Mapping[str, float]) -> dict[str, float]:
    """What people see of a step: the terms, not their adaptively weighted sum, which stays near 1 however well a run goes.

    Args:
        values: of the step.
        success: what episodes have shown so far, if any were run.
    """
    terms = {k: v for k, v in values.items() if k not in ("loss", "grad_norm", "lr")}
    return {**(terms or {"loss": values["loss"]}), **success, "grad": values["grad_norm"], "lr": values["lr"]}


def means(window: list[dict[str, float]]) -> dict[str, float]:
    """Means of some steps' numbers, and the largest gradient norm."""
    found = {key: float(np.mean([v[key] for v in window if key in v])) for key in window[-1]}
    return {**found, "grad_norm_max": max(v["grad_norm"] for v in window)}
