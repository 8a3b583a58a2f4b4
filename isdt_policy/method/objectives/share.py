"""Several processes that train together: each draws for the whole batch and takes its own rows.

So what is drawn for a window does not depend on how many processes there are. Process r of n has the rows r, r + n, r + 2n, ...:
the first rows of the batch are then the first rows of every process, and all have as much to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from isdt_policy.shared.errors import InputError


class Ended(InputError):
    """Another process of this training has ended."""


@contextmanager
def others_alive() -> Iterator[None]:
    """An exchange between processes: where it fails, another one has ended, and says why.

    Raises:
        Ended: it failed.
    """
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Ended(
            f"another process of this training has ended or does not answer ({reason[:160]}). The last checkpoint is intact; see "
            "what that process says, then go on with resume=."
        ) from error


@dataclass(frozen=True)
class Share:
    """The rows of one process.

    Attributes:
        rank: number of the process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def of(self, mine: int) -> int:
        """How many rows all processes have, if this one has so many."""
        return mine * self.size

    def take(self, rows: Tensor) -> Tensor:
        """The rows of this process, of those of the whole batch."""
        return rows if self.size == 1 else rows[self.rank :: self.size]

    def whole(self, *mine: Tensor) -> tuple[Tensor, ...]:
        """Vectors of the whole batch, from those (rows,) that every process has of its own rows. They carry no gradient.

        Raises:
            Ended: another process has ended.
        """
        if self.size == 1:
            return mine
        stacked = torch.stack([vector.detach() for vector in mine])
        parts = [torch.empty_like(stacked) for _ in range(self.size)]
        with others_alive():
            torch.distributed.all_gather(parts, stacked)
        return tuple(torch.stack(parts, dim=-1).flatten(1))


class SharedGenerator(torch.Generator):
    """A source of draws that knows which rows of the whole batch this process has."""

    share = Share()


def share_of(generator: torch.Generator) -> Share:
    """Whose rows are drawn; those of a generator without a share are the whole batch."""
    return getattr(generator, "share", Share())
