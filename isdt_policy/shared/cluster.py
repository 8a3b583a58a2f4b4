"""Pieces of work that do not know each other: one after another here, or many at a time on a Ray cluster."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol

from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import require


@dataclass(frozen=True)
class Where:
    """Where pieces of work run.

    Attributes:
        backend: local: in this process, one after another. ray: on a Ray cluster whose machines see the same files, as many at a
            time as it has CPUs.
        address: HOST:PORT of a running Ray cluster; default: start one on this machine.
    """

    backend: Literal["local", "ray"] = "local"
    address: str | None = None

    @contextmanager
    def pool(self, cpus: int = 1) -> Iterator[Pool]:
        """What runs the pieces, until the block ends.

        Args:
            cpus: of a piece.

        Raises:
            InputError: Ray is not installed, or there is no cluster.
        """
        if self.backend == "local":
            yield Here()
            return
        ray = require("ray", "ray", "backend=ray")
        started = not ray.is_initialized()
        if started:
            try:
                ray.init(address=self.address, log_to_driver=False)
            except ConnectionError as error:
                raise InputError(f"no Ray cluster at '{self.address}': {str(error).splitlines()[0]}") from error
        try:
            yield OnRay(ray, cpus)
        finally:
            if started:
                ray.shutdown()


class Pool(Protocol):
    """Runs pieces of work.

    Attributes:
        room: how many at a time.
    """

    room: int

    def submit(self, name: str, work: Callable[..., object], *given: object) -> None:
        """Take a piece of work; its name is told with its result."""
        ...

    def next(self) -> tuple[str, object]:
        """Wait for a piece: its name and its result. What it raised is raised."""
        ...


class Here:
    """Runs the pieces in this process, when they are asked for."""

    room = 1

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, Callable[..., object], tuple[object, ...]]] = deque()

    def submit(self, name: str, work: Callable[..., object], *given: object) -> None:
        """See `Pool`."""
        self._waiting.append((name, work, given))

    def next(self) -> tuple[str, object]:
        """See `Pool`."""
        name, work, given = self._waiting.popleft()
        return name, work(*given)


class OnRay:
    """Runs the pieces on a cluster; one whose machine is lost starts again on another, from its checkpoint if it has one.

    Args:
        ray: the module.
        cpus: of a piece.
    """

    def __init__(self, ray: ModuleType, cpus: int) -> None:
        self._ray, self._names = ray, dict[object, str]()
        self._run = ray.remote(num_cpus=cpus, max_retries=3)(_in_folder)
        self.room = max(1, int(ray.cluster_resources().get("CPU", 1)) // cpus)

    def submit(self, name: str, work: Callable[..., object], *given: object) -> None:
        """See `Pool`."""
        self._names[self._run.remote(str(Path.cwd()), work, *given)] = name

    def next(self) -> tuple[str, object]:
        """See `Pool`."""
        (done,), _ = self._ray.wait(list(self._names), num_returns=1)
        name = self._names.pop(done)
        try:
            return name, self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):  # Ray's own text is a traceback
                raise InputError(f"{name}: {error.cause}") from error
            raise


def _in_folder(folder: str, work: Callable[..., object], *given: object) -> object:
    """Paths mean what they mean where the work was handed in."""
    os.chdir(folder)
    return work(*given)
