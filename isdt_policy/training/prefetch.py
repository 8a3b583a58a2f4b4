"""The windows of the next step, read by a thread while a GPU computes the present one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import torch
from torch import Tensor

from isdt_policy.datasets.windows import Batch
from isdt_policy.shared.values import Array


class Prefetch:
    """Batches by the number of their step.

    Args:
        read: the batch of a step, a function of its number alone.
        ahead: read the next batch in a thread; a CPU that computes has no core to spare for that.
        pin: put batches into memory from which a GPU copies by itself.
    """

    def __init__(self, read: Callable[[int], Batch], ahead: bool, pin: bool) -> None:
        self._read, self._pin = read, pin
        self._pool = ThreadPoolExecutor(1, "prefetch") if ahead else None
        self._next: tuple[int, Future[Batch]] | None = None

    def __call__(self, step: int) -> Batch:
        """The batch of a step. An error in reading it is raised here."""
        if self._pool is None:
            return self._fetch(step)
        number, future = self._next or (-1, None)
        batch = future.result() if future is not None and number == step else self._fetch(step)
        self._next = (step + 1, self._pool.submit(self._fetch, step + 1))
        return batch

    def _fetch(self, step: int) -> Batch:
        batch = self._read(step)
        if not self._pin:
            return batch
        # Tensors in the place of arrays, which the trainer turns into tensors anyway.
        pinned = {key: _pinned(batch[key]) for key in ("action", "is_pad")}
        return cast(Batch, {"obs": {key: _pinned(value) for key, value in batch["obs"].items()}, **pinned})


def _pinned(array: Array) -> Tensor:
    return torch.as_tensor(array).pin_memory()
