"""Several processes that train one policy: `torchrun -m isdt_policy train`, or any launcher that sets its variables.

The batch is that of the run, whatever the number of processes: each takes its rows (`method/objectives/share.py`), gradients are
averaged, and all do the same step with the same weights. Process 0 alone writes, and what it writes knows of no processes.

The network is not wrapped: DistributedDataParallel writes into buffers while torch.func.jvp holds them, and its static graph has
no forward mode (torch 2.13). One sum of all gradients after the backward pass is all that is needed of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from isdt_policy.method.device import find_device
from isdt_policy.method.objectives.share import Ended, Share, SharedGenerator, others_alive
from isdt_policy.shared.errors import InputError

T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A process that has ended is noticed at once, because its connections close. This is for one that hangs, and leaves process 0 the
# time to validate and to write while the others wait.
_PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        local_rank: number of this process on its machine, and of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def share(self) -> Share:
        """The rows of a batch that this process has."""
        return Share(self.rank, self.size)

    def device(self, name: str) -> str:
        """`training.device` for this process: each has a GPU of its own."""
        if self.size == 1 or name not in ("auto", "cuda"):
            return name
        return f"cuda:{self.local_rank}" if name == "cuda" or torch.cuda.is_available() else "cpu"

    def generator(self, seed: int) -> torch.Generator:
        """A source of draws for the rows of this process."""
        generator = SharedGenerator()
        generator.share = self.share
        return generator.manual_seed(seed)

    def average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over all processes, all in one exchange.

        Raises:
            Ended: another process has ended.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with others_alive():
            dist.all_reduce(flat)
        flat /= self.size
        means = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [mean.view_as(tensor) for mean, tensor in zip(means, tensors)])

    def largest(self, number: int) -> int:
        """The largest of the numbers of all processes; see `average` for errors."""
        if self.size == 1:
            return number
        told = torch.tensor([number])
        with others_alive():
            dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return int(told.item())

    def together(self, act: Callable[[], T]) -> T:
        """Do something in every process; where one of them cannot, all end with its error.

        Raises:
            InputError: of the first process that could not; or another process has ended.
        """
        if self.size == 1:
            return act()
        result, refusal = None, None
        try:
            result = act()
        except InputError as error:
            refusal = str(error)
        refusals: list[str | None] = [None] * self.size
        with others_alive():
            dist.all_gather_object(refusals, refusal)
        for rank, text in enumerate(refusals):
            if text is not None:
                raise InputError(f"process {rank}: {text}" if rank else text)
        return result  # type: ignore[return-value]

    def first(self, act: Callable[[], object]) -> None:
        """Let process 0 do something, while the others wait; see `together`."""
        self.together(act if self.rank == 0 else lambda: None)

    def agree(self, facts: Mapping[str, object]) -> None:
        """Check that something is the same in all processes.

        Raises:
            InputError: it is not; names the first fact that differs, and the process.
        """
        if self.size == 1:
            return
        told: list[dict[str, object]] = [{} for _ in range(self.size)]
        with others_alive():
            dist.all_gather_object(told, json.loads(json.dumps(facts)))
        for rank, other in enumerate(told):
            for key in sorted({*told[0], *other}):
                if told[0].get(key) != other.get(key):
                    raise InputError(
                        f"the processes of this training do not agree: {key} is {told[0].get(key)} in process 0 and "
                        f"{other.get(key)} in process {rank}. Give all of them the same command and the same data."
                    )


ALONE = World()


class Told(InputError):
    """An error that process 0 tells people, raised in another process."""


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The processes that a launcher has started, until the block ends; this one alone if none has.

    Args:
        device: `training.device`.

    Raises:
        InputError: variables of a launcher that do not make sense, a device that is not there, or other processes that do not
            come.
    """
    world = from_environment()
    if world.size == 1:
        yield world
        return
    mine = find_device(world.device(device), "training.device")
    if mine.type == "cuda":
        torch.cuda.set_device(mine)
    # Numbers on GPUs go through NCCL; what processes tell each other besides, through Gloo.
    backend = "cpu:gloo,cuda:nccl" if mine.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the {world.size} processes of this training did not find each other: {_line(error)}"
        ) from error
    try:
        yield world
    except Ended:
        raise
    except InputError as error:  # the same in every process, see `World.together`
        if world.rank == 0:
            raise
        raise Told(str(error)) from error
    finally:
        dist.destroy_process_group()


def from_environment() -> World:
    """This process as RANK, WORLD_SIZE and LOCAL_RANK describe it, which torchrun, srun and accelerate set.

    Raises:
        InputError: they do not make sense.
    """
    if _number("WORLD_SIZE", 1) == 1:
        return ALONE
    absent = [name for name in _VARIABLES if not os.environ.get(name)]
    if absent:
        raise InputError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} asks for several processes, but {', '.join(absent)} is not set. Start them "
            "with isdt train nproc=N, or with torchrun --nproc-per-node=N -m isdt_policy train ...; or unset WORLD_SIZE."
        )
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if not 0 <= rank < size:
        raise InputError(f"RANK={rank} is not below WORLD_SIZE={size}.")
    return World(rank, size, _number("LOCAL_RANK", rank))


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal():
        raise InputError(f"{variable}='{text}' is not a whole number; launchers of several processes set it.")
    return int(text)


def check_divides(size: int, counts: Mapping[str, int]) -> None:
    """Refuse counts of rows that the processes cannot share equally.

    Args:
        size: number of processes.
        counts: what is counted -> how many rows of the whole batch.

    Raises:
        InputError: a count that is no multiple of `size`.
    """
    for what, count in counts.items():
        if count % size:
            raise InputError(
                f"{what} is {count}, which {size} processes cannot share equally. Take a multiple of {size}, or another number "
                "of processes."
            )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A short identity of tensors."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:12]


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]
