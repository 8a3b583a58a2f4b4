"""Scripted experts and the demonstrations they give.

`expert(task, seed)` is a policy that evaluation can run like any other; `generate_episodes(...)` yields demonstrations.
"""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from typing import Protocol, TypeAlias, cast

from isdt_policy.envs.protocol import Info, Observation, Policy
from isdt_policy.shared.children import end_with_parent
from isdt_policy.shared.errors import InputError, nearest

# task id -> module with `expert(seed, task)`, `episode(seed, index, task)` and `facts(seed, index)`
EXPERTS: dict[str, str] = {
    "pusht": "isdt_policy.envs.experts.pusht",
    "avoiding": "isdt_policy.envs.experts.avoiding",
    **{
        f"{name}{mode}": f"isdt_policy.envs.experts.{name}"
        for name in ("lift", "can", "square")
        for mode in ("", "_abs")
    },
}


# (arrays, info) of a demonstration -> more arrays; workers call it in their own processes, so it must be picklable.
More: TypeAlias = Callable[[Observation, Info], Observation]


class ExpertModule(Protocol):
    """What the module of an expert holds."""

    def expert(self, seed: int, task: str) -> Policy:
        """The expert as a policy."""
        ...

    def episode(self, seed: int, index: int, *, task: str) -> tuple[Observation, Info]:
        """Demonstration `index` of the set `seed`: arrays with time first, and facts about it."""
        ...

    def facts(self, seed: int, index: int) -> Info:
        """What is decided about a demonstration before it begins."""
        ...


def expert(task: str, seed: int = 0) -> Policy:
    """Return the scripted expert of a task; the seed chooses its style.

    Raises:
        InputError: if the task has no expert.
    """
    return _module(task).expert(seed, task=task)


def generate_episodes(
    task: str,
    episodes: int,
    seed: int = 0,
    workers: int = 1,
    keep_failures: bool = False,
    first: int = 0,
    more: More | None = None,
) -> Iterator[tuple[Observation, Info]]:
    """Yield demonstrations of a task's expert, in an order that does not depend on `workers`.

    Episode i is a function of (seed, i) alone, so an interrupted generation goes on with `first` = the next
    `info["index"]` not yet seen.

    Args:
        task: name in the registry.
        episodes: number of episodes to yield.
        seed: seed of the whole set.
        workers: processes; 1 works in this one.
        keep_failures: yield failed attempts too instead of leaving them out.
        first: index of the first attempt.
        more: adds arrays, such as pictures, to the demonstrations that are kept.

    Yields:
        (arrays, info): arrays with time first, {"state", "action", "coverage"} for PushT, every low-dimensional observation,
        "action", "reward" and "states" for robomimic's tasks; info {"index", "seed", "success", ...}.

    Raises:
        InputError: if the task has no expert, or a number is out of range.
    """
    _module(task)  # refuses a task without an expert before anything is started
    if episodes < 0 or workers < 1 or first < 0 or seed < 0:
        raise InputError(
            f"episodes, first and seed must be >= 0 and workers >= 1, got episodes={episodes}, first={first}, "
            f"seed={seed}, workers={workers}."
        )
    kept = 0
    attempt = partial(_attempt, task, seed, keep_failures, more)
    attempts = _attempts(attempt, first, workers)
    while kept < episodes:
        arrays, info = next(attempts)
        if info["success"] or keep_failures:
            kept += 1
            yield arrays, info
    attempts.close()


def facts(task: str, seed: int, index: int) -> Info:
    """Return what is known of demonstration `index` of the set `seed` without running it: its style, its reset seed."""
    return _module(task).facts(seed, index)


def _attempts(
    attempt: Callable[[int], tuple[Observation, Info]], first: int, workers: int
) -> Generator[tuple[Observation, Info], None, None]:
    """Yield attempts first, first + 1, ... for ever, a few computed ahead."""
    if workers == 1:
        for index in itertools.count(first):
            yield attempt(index)
        return
    # spawn: a forked child of a process that has started torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        ahead: deque[Future[tuple[Observation, Info]]] = deque()
        try:
            for index in itertools.count(first):
                ahead.append(pool.submit(attempt, index))
                if len(ahead) > 4 * workers:
                    yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _attempt(task: str, seed: int, keep_failures: bool, more: More | None, index: int) -> tuple[Observation, Info]:
    arrays, info = _module(task).episode(seed, index, task=task)
    if more is not None and (info["success"] or keep_failures):
        arrays = {**arrays, **more(arrays, info)}
    return arrays, info


def _module(task: str) -> ExpertModule:
    if task not in EXPERTS:
        raise InputError(
            f"task '{task}' has no scripted expert.{nearest(task, EXPERTS)} Experts: {', '.join(EXPERTS)}."
        )
    return cast("ExpertModule", importlib.import_module(EXPERTS[task]))
