"""The same work queue on a Ray cluster: environments in actors, inference and records in the driving process.

Policy, noise and journal stay where the evaluation was started, so results per seed are those of one machine, and losing
a node costs only the episodes in flight there: they start again elsewhere.
"""

from __future__ import annotations

import time
from collections import deque
from types import ModuleType

from isdt_policy.eval.episode import Recipe, Reply
from isdt_policy.eval.workers import Command, Host
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import require


class RaySlots:
    """Slots spread over the nodes of a Ray cluster; slot i lives in actor i % n_workers.

    Args:
        recipe: what the actors build; must be picklable, and its modules importable on every node.
        n_slots: environments in all.
        n_workers: actors; None takes one per CPU of the cluster.
        address: the cluster's address; None joins the cluster that this process is connected to, or starts one here.
        timeout_s: longest silence on one command, the start of an actor included.
    """

    concurrent = True

    def __init__(
        self,
        recipe: Recipe,
        n_slots: int,
        n_workers: int | None = None,
        address: str | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        ray = require("ray", "ray", "backend=ray")
        self._ray, self._recipe, self._timeout_s = ray, recipe, timeout_s
        self._started = not ray.is_initialized()
        if self._started:
            try:
                ray.init(address=address, log_to_driver=False)
            except ConnectionError as error:
                raise InputError(f"no Ray cluster at '{address}': {str(error).splitlines()[0]}") from error
        cpus = int(ray.cluster_resources().get("CPU", 1))
        self._workers = [_Worker(ray, recipe, cpus=1) for _ in range(min(n_workers or cpus, cpus, n_slots))]
        self._owner: dict[object, tuple[int, _Worker]] = {}  # what is under way: reference -> slot, worker

    def submit(self, slot: int, command: Command) -> None:
        """Send a command to the slot's actor."""
        worker = self._workers[slot % len(self._workers)]
        self._owner[worker.send(slot, command)] = slot, worker

    def collect(self) -> list[tuple[int, Reply]]:
        """Wait for answers, deaths and deadlines."""
        if not self._owner:
            raise RuntimeError("collect() without anything submitted")
        answers: list[tuple[int, Reply]] = []
        while not answers:
            busy = {id(worker): worker for _, worker in self._owner.values()}.values()
            deadline = min(worker.since for worker in busy) + self._timeout_s
            left = max(0.01, deadline - time.monotonic())
            ready, _ = self._ray.wait(list(self._owner), num_returns=1, timeout=left)
            more, _ = self._ray.wait(list(self._owner), num_returns=len(self._owner), timeout=0)
            for reference in {*ready, *more}:
                if reference not in self._owner:
                    continue  # its actor was replaced a moment ago
                slot, worker = self._owner[reference]
                try:
                    reply = self._ray.get(reference)
                except self._ray.exceptions.RayError as error:
                    answers += self._replace(worker, f"Ray worker lost ({type(error).__name__})")
                    continue
                del self._owner[reference]
                worker.answered(slot)
                answers.append((slot, reply))
            for worker in list(busy):
                if worker.outstanding and time.monotonic() >= worker.since + self._timeout_s and not worker.gone:
                    answers += self._replace(worker, f"no answer for {self._timeout_s:g} s, Ray worker killed")
        return answers

    def close(self) -> None:
        """Stop the actors, and the cluster if it was started here."""
        for worker in self._workers:
            worker.kill()
        if self._started:
            self._ray.shutdown()

    def _replace(self, worker: _Worker, reason: str) -> list[tuple[int, Reply]]:
        slots = list(worker.outstanding)
        worker.kill()
        for reference in [r for r, (_, owner) in self._owner.items() if owner is worker]:
            del self._owner[reference]
        self._workers[self._workers.index(worker)] = self._replacement()
        # An actor works in order, so the first unanswered command is the culprit; the others only lost their environment.
        return [(slot, Reply(error="lost" if i else reason)) for i, slot in enumerate(slots)]

    def _replacement(self) -> _Worker:
        """An actor that answers. For seconds after the loss of a node Ray may still place actors there: such a death is no
        fault of an episode and must not cost one its second try."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            # It asks for no CPU of its own: after the loss of a node there may be none to spare.
            worker = _Worker(self._ray, self._recipe, cpus=0)
            try:
                worker.wait_until_ready(max(1.0, deadline - time.monotonic()))
                return worker
            except self._ray.exceptions.RayError as error:
                worker.kill()
                if time.monotonic() >= deadline:
                    raise RuntimeError(f"the Ray cluster started no worker within {self._timeout_s:g} s") from error
                time.sleep(0.5)


class _Worker:
    """One actor and the slots whose commands it has not answered yet."""

    def __init__(self, ray: ModuleType, recipe: Recipe, cpus: int) -> None:
        self._ray = ray
        actor = ray.remote(num_cpus=cpus, max_restarts=0, scheduling_strategy="SPREAD")(_Host)
        self._actor = actor.remote(recipe)
        self.outstanding: deque[int] = deque()
        self.since = 0.0
        self.gone = False

    def wait_until_ready(self, timeout_s: float) -> None:
        """Raises RayError if the actor dies or does not answer in time."""
        self._ray.get(self._actor.ready.remote(), timeout=timeout_s)

    def send(self, slot: int, command: Command) -> object:
        if not self.outstanding:
            self.since = time.monotonic()
        self.outstanding.append(slot)
        return self._actor.obey.remote(slot, command)

    def answered(self, slot: int) -> None:
        self.outstanding.remove(slot)
        self.since = time.monotonic()

    def kill(self) -> None:
        self.gone = True
        self._ray.kill(self._actor, no_restart=True)


class _Host(Host):
    """Body of an actor."""

    def ready(self) -> None:
        """Answered as soon as the actor runs."""
