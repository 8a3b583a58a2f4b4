"""Rollouts: every listed (seed, arm) exactly once, with results that depend on nothing else.

The work queue holds every (seed, arm); slots take the next entry when theirs is over. Environment seed and policy noise belong
to the episode and never to the slot, so the numbers are the same for one environment or fifty, with or without workers.
What floating point needs beside that is told in inference.py.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs import make, task_ids, task_spec
from isdt_policy.envs.protocol import Policy
from isdt_policy.eval.episode import ActorFactory, EnvFactory, Episode, Recipe, Reply, Start
from isdt_policy.eval.inference import Inference
from isdt_policy.eval.journal import Journal
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.result import ArmSummary, EpisodeRecord, Kept, Result, Timing
from isdt_policy.eval.seeds import check_seeds
from isdt_policy.eval.workers import LocalSlots, ProcessSlots, Slots
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.progress import Progress

MAX_ATTEMPTS = 2
MAX_LOST = 20  # restarts forgiven to an episode because a neighbour took its worker down
MAX_FIRST_ERRORS = 3  # an evaluation that begins like this is set up wrongly


@dataclass(frozen=True)
class Workers:
    """Where environments are stepped. Nothing here changes a result.

    Attributes:
        n_envs: environments at a time.
        n_workers: spawned processes that step them; 0 steps them in this process.
        timeout_s: longest silence of a worker before it counts as hung.
        backend: builds the slots, (recipe, n_slots) -> Slots; None chooses by n_workers.
    """

    n_envs: int = 16
    n_workers: int = 0
    timeout_s: float = 120.0
    backend: Callable[[Recipe, int], Slots] | None = None

    def __post_init__(self) -> None:
        if self.n_envs < 1 or self.n_workers < 0:
            raise InputError(
                f"n_envs must be at least 1 and n_workers at least 0, got {self.n_envs} and {self.n_workers}."
            )
        if not self.timeout_s > 0:
            raise InputError(f"timeout_s must be above 0, got {self.timeout_s}.")

    def slots(self, recipe: Recipe, n_slots: int) -> Slots:
        """Build the slots."""
        if self.backend is not None:
            return self.backend(recipe, n_slots)
        if self.n_workers:
            return ProcessSlots(recipe, n_slots, self.n_workers, self.timeout_s)
        return LocalSlots(recipe)


@dataclass(frozen=True)
class Scene:
    """What is not the usual environment of a task, begun as its seeds say.

    Attributes:
        make_env: builds the environment; None makes `protocol.task`. Picklable if there are workers.
        make_actor: scripted expert, (environment) -> (observation -> action), in place of a policy.
        init_states: per seed where its episode begins in place of what the seed draws.
        keep: what `Result.kept` shall hold.
    """

    make_env: EnvFactory | None = None
    make_actor: ActorFactory | None = None
    init_states: Mapping[int, Start] | None = None
    keep: tuple[Literal["trajectory", "frames"], ...] = ()

    def __post_init__(self) -> None:
        for name in self.keep:
            if name not in ("trajectory", "frames"):
                raise InputError(f"keep='{name}' is unknown; allowed: trajectory, frames.")

    def start(self, seed: int) -> Start | None:
        """Where an episode begins; None is what the seed draws."""
        if self.init_states is None:
            return None
        if seed not in self.init_states:
            raise InputError(f"no initial state for seed {seed}; there are {len(self.init_states)}.")
        return self.init_states[seed]


Listener = Callable[[EpisodeRecord, int, int], None]  # (record, how many are finished, of how many)


class EpisodeProgress:
    """A listener: a progress line with the successes of every arm so far."""

    def __init__(self) -> None:
        self._counts: dict[Arm, tuple[int, int]] = {}
        self._line: Progress | None = None

    def __call__(self, record: EpisodeRecord, done: int, total: int) -> None:
        if self._line is None:
            self._line = Progress(total, "evaluate", "episode", initial=done - 1)
        won, n = self._counts.get(record.arm, (0, 0))
        self._counts[record.arm] = won + bool(record.success), n + 1
        shown: dict[str, float | str] = {f"arm {arm}": f"{k}/{n}" for arm, (k, n) in self._counts.items()}
        self._line.update(1, **(shown if record.success is not None else {}))  # type: ignore[arg-type]
        if done == total:
            self._line.close()


def evaluate(
    policy: Policy | None,
    protocol: Protocol,
    seeds: Sequence[int],
    arms: Sequence[Arm | int | str] = (1,),
    *,
    workers: Workers = Workers(),
    scene: Scene = Scene(),
    journal: Journal | None = None,
    listener: Listener | None = None,
) -> Result:
    """Run every (seed, arm) once and summarise.

    Args:
        policy: anything behind the policy protocol; None if `scene.make_actor` acts.
        protocol: conditions of the evaluation.
        seeds: distinct, from one seed range.
        arms: how the policy is asked: numbers of network evaluations, or samplers such as "euler10".
        workers: where environments are stepped.
        scene: another environment, initial states, or a wish for trajectories.
        journal: keeps records as episodes finish; an interrupted evaluation goes on from it.
        listener: told of every finished episode.

    Raises:
        InputError: empty, repeated or mixed seeds, an environment that returns NaN, a policy that raises or whose
            actions do not fit. Episodes finished before stay in `journal`.

    Example:
        result = evaluate(policy, Protocol("pusht"), range(100_000, 100_050), arms=[1, 2, "euler10"])
    """
    seeds, asked = tuple(int(seed) for seed in seeds), tuple(map(Arm.parse, arms))
    check_seeds(seeds)
    _check(policy, asked, protocol, scene)
    recipe = _recipe(policy, protocol, scene)
    wanted = [Episode(seed, arm, scene.start(seed)) for arm in asked for seed in seeds]
    device = getattr(policy, "computes_on", "cpu")
    there = journal.open(protocol, device) if journal is not None else {}  # of other arms and seeds too
    finished = {e.key: there[e.key] for e in wanted if e.key in there} if not scene.keep else {}
    queue = deque(episode for episode in wanted if episode.key not in finished)
    inference = None if policy is None else Inference(policy, protocol.inference_batch)
    run = _Run(inference, protocol, queue, finished, journal, listener)
    if queue:
        n_slots = min(workers.n_envs, len(queue))
        run.slots = workers.slots(recipe, n_slots)
        try:
            run.drive(n_slots)
        finally:
            run.slots.close()
            if journal is not None:
                journal.close()
    records = tuple(finished[episode.key] for episode in wanted)
    summaries = {}
    modes = task_spec(protocol.task).modes if protocol.task in task_ids() else 0
    for arm in asked:
        latency = None if inference is None else inference.latency(arm)
        summaries[arm] = ArmSummary.of([r for r in records if r.arm == arm], latency=latency, modes=modes)
    return Result(protocol, seeds, summaries, records, run.timing(), kept=run.kept)


class _Run:
    """State of one evaluation: the queue, what the slots are doing, and the clocks."""

    slots: Slots

    def __init__(
        self,
        inference: Inference | None,
        protocol: Protocol,
        queue: deque[Episode],
        finished: dict[tuple[int, Arm], EpisodeRecord],
        journal: Journal | None,
        listener: Listener | None,
    ) -> None:
        self.inference, self.protocol, self.queue, self.finished = inference, protocol, queue, finished
        self.journal, self.listener, self.total = journal, listener, len(queue) + len(finished)
        self.playing: dict[int, Episode] = {}
        self.decisions: dict[int, int] = {}
        self.waiting: dict[int, dict[str, NDArray[np.generic]]] = {}  # slots whose history awaits a decision
        self.attempts: dict[tuple[int, Arm], int] = {}
        self.lost: dict[tuple[int, Arm], int] = {}
        self.kept: dict[tuple[int, Arm], Kept] = {}
        self.env_s = self.wall_s = 0.0
        self.ran = self.errors = 0

    def drive(self, n_slots: int) -> None:
        """Run until the queue is empty and every slot is done."""
        begin = time.perf_counter()
        if self.inference is not None:
            self.inference.policy.reset()
        try:
            while True:
                for slot in range(n_slots):
                    if slot not in self.playing and self.queue:
                        self._start(slot, self.queue.popleft())
                if not self.playing:
                    return
                # With workers, decide as soon as half the slots are waiting, so that network and simulators overlap.
                enough = min(self.protocol.inference_batch, max(1, len(self.playing) // 2))
                everyone = len(self.waiting) == len(self.playing)
                if everyone or (self.slots.concurrent and len(self.waiting) >= enough):
                    self._decide()
                else:
                    for slot, reply in self.slots.collect():
                        self._receive(slot, reply)
        finally:
            self.wall_s = time.perf_counter() - begin

    def _start(self, slot: int, episode: Episode) -> None:
        self.playing[slot], self.decisions[slot] = episode, 0
        self.slots.submit(slot, episode)

    def _receive(self, slot: int, reply: Reply) -> None:
        episode = self.playing[slot]
        self.env_s += reply.env_s
        if reply.history is not None:
            self.waiting[slot] = reply.history
        elif reply.record is not None:
            self._finish(slot, reply.record, reply.kept)
        elif reply.bad_input:
            raise InputError(
                f"the environment of task '{self.protocol.task}' failed at seed {episode.seed}: {str(reply.error).rstrip('.')}."
                f"{self._done()}"
            )
        else:
            self._retry(slot, episode, reply.error or "unknown error")

    def _retry(self, slot: int, episode: Episode, error: str) -> None:
        counter = self.lost if error == "lost" else self.attempts
        tried = counter[episode.key] = counter.get(episode.key, 0) + 1
        if tried < (MAX_LOST if error == "lost" else MAX_ATTEMPTS):
            self._start(slot, episode)
            return
        failure = EpisodeRecord(*episode.key, success=False, max_reward=0.0, error=f"{error} (tried {tried} times)")
        self._finish(slot, failure, None)

    def _finish(self, slot: int, record: EpisodeRecord, kept: Kept | None) -> None:
        key = self.playing.pop(slot).key
        self.finished[key] = record
        self.errors += not record.ok
        if self.errors == len(self.finished) == MAX_FIRST_ERRORS:
            raise InputError(
                f"each of the first {self.errors} episodes failed, so nothing can be measured: {record.error}"
            )
        if kept is not None:
            self.kept[key] = kept
        if self.journal is not None:
            self.journal.append(record)
        self.ran += 1
        if self.listener is not None:
            self.listener(record, len(self.finished), self.total)

    def _decide(self) -> None:
        """Answer the largest group of waiting slots that share an arm."""
        assert self.inference is not None
        groups: dict[Arm, list[int]] = {}
        for slot in sorted(self.waiting):
            groups.setdefault(self.playing[slot].arm, []).append(slot)
        arm, slots = max(groups.items(), key=lambda item: len(item[1]))
        slots = slots[: self.protocol.inference_batch]
        obs = {key: np.stack([self.waiting[s][key] for s in slots]) for key in self.waiting[slots[0]]}
        noise_seeds = np.array([(self.playing[s].seed, self.decisions[s]) for s in slots], np.int64)
        try:
            actions = self.inference.ask(obs, arm, noise_seeds)
        except InputError as error:
            raise InputError(f"{error}{self._done()}") from error
        for slot, chunk in zip(slots, actions[:, self.protocol.n_latency_steps :]):
            del self.waiting[slot]
            self.decisions[slot] += 1
            self.slots.submit(slot, chunk)

    def _done(self) -> str:
        """What an evaluation that ends here leaves behind, as the last sentence of a message."""
        done = f"{len(self.finished)} of {self.total} episodes"
        if not self.finished:
            return ""
        return f" {done} were done." if self.journal is None else f" The {done} done are kept in {self.journal.path}."

    def timing(self) -> Timing:
        """Seconds by place."""
        policy_s = 0.0 if self.inference is None else self.inference.seconds
        rate = self.ran / self.wall_s if self.wall_s else 0.0
        overhead_s = max(0.0, self.wall_s - self.env_s - policy_s)
        return Timing(self.wall_s, self.env_s, policy_s, overhead_s, self.ran, rate)


def _recipe(policy: Policy | None, protocol: Protocol, scene: Scene) -> Recipe:
    obs_keys = () if policy is None else tuple(policy.obs_keys)
    make_env, max_steps = scene.make_env, protocol.max_steps
    if make_env is None:
        spec = task_spec(protocol.task)
        if max_steps is not None and not 1 <= max_steps <= spec.max_episode_steps:
            raise InputError(
                f"max_steps={max_steps} must be at least 1, and task '{spec.id}' ends after {spec.max_episode_steps} steps."
            )
        max_steps = max_steps or spec.max_episode_steps
        # The state is read for the record (initial-state map, repeatability), whatever the policy observes.
        keys = None if policy is None else tuple(dict.fromkeys([*obs_keys, *({"state"} & set(spec.observations))]))
        render_mode = "rgb_array" if "frames" in scene.keep else None
        make_env = partial(make, protocol.task, keys, seed_protocol=protocol.seed_protocol, render_mode=render_mode)
    n_obs_steps = 1 if policy is None else policy.n_obs_steps
    return Recipe(
        make_env, obs_keys, n_obs_steps, protocol.n_latency_steps, max_steps, scene.make_actor, tuple(scene.keep)
    )


def _check(policy: Policy | None, arms: Sequence[Arm], protocol: Protocol, scene: Scene) -> None:
    if not arms:
        raise InputError("no arms: give at least one, for example arms=[1,2,euler10].")
    if len(set(arms)) < len(arms):
        raise InputError(f"arms repeat themselves: {', '.join(arm.name for arm in arms)}.")
    if protocol.inference_batch < 1:
        raise InputError(f"inference_batch must be at least 1, got {protocol.inference_batch}.")
    if (policy is None) == (scene.make_actor is None):
        raise InputError("give either a policy or make_actor (a scripted expert), not both and not neither.")
    if policy is None:
        return
    if hasattr(policy, "plan"):  # refuses an arm that it cannot answer, before anything runs
        for arm in arms:
            policy.plan(arm.value)
    if protocol.n_action_steps not in (None, policy.n_action_steps):
        raise InputError(
            f"the protocol says n_action_steps={protocol.n_action_steps}, the policy answers with {policy.n_action_steps} actions."
        )
    own = getattr(policy, "noise_scale", None)
    if protocol.noise_scale not in (None, own):
        raise InputError(
            f"the protocol says noise_scale={protocol.noise_scale}, the policy draws "
            + ("no noise that can be scaled." if own is None else f"its noise at {own}.")
        )
    if not 0 <= protocol.n_latency_steps < policy.n_action_steps:
        raise InputError(
            f"n_latency_steps={protocol.n_latency_steps} leaves nothing of {policy.n_action_steps} actions to execute; "
            f"allowed: 0 to {policy.n_action_steps - 1}."
        )
