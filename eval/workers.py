"""Where episodes are stepped: in this process, or in spawned ones that may hang or die.

Every back end is a set of numbered slots with the same members: `submit(slot, command)`, `collect()` (blocks until at
least one submitted command is answered) and `close()`. A slot works on one command at a time.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isdt_policy.eval.episode import Episode, EpisodeRunner, Recipe, Reply
from isdt_policy.shared.children import end_with_parent

Command = Episode | NDArray[np.floating]  # start this episode, or execute these actions


class Slots(Protocol):
    """A back end that steps environments.

    Attributes:
        concurrent: whether commands are carried out while the caller does something else.
    """

    concurrent: bool

    def submit(self, slot: int, command: Command) -> None:
        """Hand a command to a slot that has none."""
        ...

    def collect(self) -> list[tuple[int, Reply]]:
        """Return at least one answer; call only while something is submitted."""
        ...

    def close(self) -> None:
        """Release all environments and processes."""
        ...


class Host:
    """Environments of one process, one per slot, each built when its slot first needs it."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._runners: dict[int, EpisodeRunner] = {}

    def obey(self, slot: int, command: Command) -> Reply:
        """Carry out one command."""
        runner = self._runners.setdefault(slot, EpisodeRunner(self._recipe))
        if isinstance(command, Episode):
            return runner.start(command)
        if runner.env is None:
            # This process replaced one that died while the slot waited for the policy: its episode must start again.
            return Reply(error="lost")
        return runner.advance(command)

    def close(self) -> None:
        """Release the environments."""
        for runner in self._runners.values():
            runner.close()


class LocalSlots:
    """Slots in this process: the fastest way for environments that step in well under a millisecond."""

    concurrent = False

    def __init__(self, recipe: Recipe) -> None:
        self._host = Host(recipe)
        self._pending: deque[tuple[int, Command]] = deque()

    def submit(self, slot: int, command: Command) -> None:
        """Queue a command."""
        self._pending.append((slot, command))

    def collect(self) -> list[tuple[int, Reply]]:
        """Carry out everything queued."""
        answers = [(slot, self._host.obey(slot, command)) for slot, command in self._pending]
        self._pending.clear()
        return answers

    def close(self) -> None:
        """Close the environments."""
        self._host.close()


class ProcessSlots:
    """Slots spread over spawned processes; slot i lives in process i % n_workers.

    A process that dies, or does not answer a command for `timeout_s`, is killed and replaced. The command it was working on
    is answered with an error. The other slots of that process are answered with "lost": their episodes start again, and that
    does not count as an attempt.

    Args:
        recipe: picklable; each process builds its own environments from it, so each has its own GL context.
        n_slots: environments in all.
        n_workers: processes.
        timeout_s: longest silence on one command, the building of the environment included.
    """

    concurrent = True

    def __init__(self, recipe: Recipe, n_slots: int, n_workers: int, timeout_s: float = 120.0) -> None:
        self._recipe, self._timeout_s = recipe, timeout_s
        # spawn, not fork: a forked child inherits threads and GL contexts of torch and the simulators, half alive.
        self._context = multiprocessing.get_context("spawn")
        self._workers = [_Worker(self._context, recipe) for _ in range(min(n_workers, n_slots))]

    def submit(self, slot: int, command: Command) -> None:
        """Send a command to the slot's process."""
        self._workers[slot % len(self._workers)].send(slot, command)

    def collect(self) -> list[tuple[int, Reply]]:
        """Wait for answers, deaths and deadlines."""
        while True:
            busy = [worker for worker in self._workers if worker.outstanding]
            if not busy:
                raise RuntimeError("collect() without anything submitted")
            deadline = min(worker.since for worker in busy) + self._timeout_s
            ready = wait(
                [w.connection for w in busy] + [w.process.sentinel for w in busy], max(0.0, deadline - time.monotonic())
            )
            answers: list[tuple[int, Reply]] = []
            for worker in busy:
                answers += worker.receive()
                if not worker.outstanding:
                    continue
                if worker.broken or worker.process.sentinel in ready:
                    worker.process.join(5.0)
                    code = worker.process.exitcode
                    answers += self._replace(worker, f"worker process died (exit code {code})")
                elif time.monotonic() >= worker.since + self._timeout_s:
                    answers += self._replace(worker, f"no answer for {self._timeout_s:g} s, worker process killed")
            if answers:
                return answers

    def close(self) -> None:
        """Stop every process."""
        for worker in self._workers:
            worker.stop()

    def _replace(self, worker: _Worker, reason: str) -> list[tuple[int, Reply]]:
        answers = worker.receive()  # answered before it died
        slots = list(worker.outstanding)
        worker.kill()
        self._workers[self._workers.index(worker)] = _Worker(self._context, self._recipe)
        # Commands are carried out in the order sent, so the first unanswered one is the culprit. All other slots of the
        # process lost their environment too, whether they were waiting for the worker or for the policy.
        return answers + [(slot, Reply(error="lost" if i else reason)) for i, slot in enumerate(slots)]


class _Worker:
    """One spawned process and the commands it has not answered yet."""

    def __init__(self, context: SpawnContext, recipe: Recipe) -> None:
        self.connection: Connection
        self.connection, remote = context.Pipe()
        self.process = context.Process(target=_work, args=(remote, recipe), daemon=True)
        self.process.start()
        remote.close()
        self.outstanding: deque[int] = deque()
        self.since = 0.0  # when it began the command at the head of `outstanding`
        self.broken = False

    def send(self, slot: int, command: Command) -> None:
        if not self.outstanding:
            self.since = time.monotonic()
        self.outstanding.append(slot)
        try:
            self.connection.send((slot, command))
        except OSError:
            self.broken = True

    def receive(self) -> list[tuple[int, Reply]]:
        answers: list[tuple[int, Reply]] = []
        try:
            while self.connection.poll():
                slot, reply = self.connection.recv()
                self.outstanding.remove(slot)
                self.since = time.monotonic()
                answers.append((slot, reply))
        except (EOFError, OSError):
            self.broken = True
        return answers

    def kill(self) -> None:
        self.process.kill()
        self.process.join(5.0)
        self.connection.close()

    def stop(self) -> None:
        try:
            self.connection.send(None)
        except OSError:
            self.broken = True
        self.process.join(0.2 if self.broken else 5.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(5.0)
        self.connection.close()


def _work(connection: Connection, recipe: Recipe) -> None:
    """Body of a worker process: obey commands for any slot until told to stop."""
    end_with_parent()
    host = Host(recipe)
    while True:
        try:
            message = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if message is None:
            break
        slot, command = message
        connection.send((slot, host.obey(slot, command)))
    host.close()
