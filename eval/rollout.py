"""Rollouts: every listed (seed, arm) exactly once, with results that depend on nothing else.

An *arm* is one way of sampling the same policy: a number of network evaluations, or a named baseline ("euler10"). The
work queue holds every (seed, arm); slots take the next entry when theirs is over. Environment seed and policy noise
belong to the episode, never to the slot, so the numbers are the same for one environment or fifty, with or without
workers.

Floating point needs one thing more. A matrix product picks its algorithm by the number of rows, so one row alone and
the same row among sixteen differ in the last bit, and contact physics turns that into another episode. Inference
batches are therefore padded to one fixed number of rows (`inference_batch`); within a fixed size that is a multiple of
8, a row does not depend on its position or its neighbours (a test proves it for the networks here).
A policy with an attribute `inference_rows` does this itself and is handed unpadded rows.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs.protocol import Policy
from isdt_policy.eval.episode import ActorFactory, EnvFactory, Episode, Recipe, Reply, Start
from isdt_policy.eval.seeds import check_seeds
from isdt_policy.eval.statistics import bootstrap_mean, wilson
from isdt_policy.eval.workers import LocalSlots, ProcessSlots, Slots
from isdt_policy.shared.errors import InputError

MAX_ATTEMPTS = 2
MAX_LOST = 20  # restarts forgiven to an episode because a neighbour took its worker down
MAX_FIRST_ERRORS = 3  # an evaluation that begins like this is set up wrongly
LATENCY_CALLS = 20


@dataclass(frozen=True)
class Protocol:
    """What decides an episode's outcome besides seed, arm and policy. Results with equal protocols may be compared.

    Attributes:
        task: registered task id.
        seed_protocol: rule from seed to initial state; None is the task's first.
        n_latency_steps: simulated latency of inference, in control steps.
        n_action_steps: actions executed per chunk; None is the policy's own number, any other must equal it.
        noise_scale: of the initial noise; None is the policy's own, any other must equal it.
        inference_batch: most rows in an inference call. Calls are padded to it unless the policy has an attribute
            `inference_rows`, by which it says that its rows do not depend on their neighbours.
        max_steps: episode limit; None is the task's.
        init: where initial states come from: "seed", or "train:<store>" for the start states of demonstrations.
    """

    task: str
    seed_protocol: str | None = None
    n_latency_steps: int = 0
    n_action_steps: int | None = None
    noise_scale: float | None = None
    inference_batch: int = 16
    max_steps: int | None = None
    init: str = "seed"


@dataclass
class EvalResult:
    """Per-episode records, their summary, and where the time went.

    Attributes:
        protocol: conditions of the evaluation.
        arms: names of the arms in the order asked for.
        seeds: in the order asked for.
        records: one dict per (seed, arm), ordered by arm, then as `seeds`.
        summary: per arm what `summarise` computes, with "latency" added.
        timing: seconds in environments, in the policy and in all, and episodes per second.
        extras: per (seed, arm) trajectory and frames, if they were asked for.
    """

    protocol: Protocol
    arms: list[str]
    seeds: list[int]
    records: list[dict[str, Any]]
    summary: dict[str, dict[str, Any]]
    timing: dict[str, float]
    extras: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)

    def of(self, arm: int | str) -> list[dict[str, Any]]:
        """Return the records of one arm, in the order of the seeds."""
        return [record for record in self.records if record["arm"] == str(arm)]


class FunctionPolicy:
    """A plain function as a policy: observation dict -> action (action_dim,) or chunk (k, action_dim).

    >>> policy = FunctionPolicy(lambda obs: obs["agent_pos"], obs_keys=("agent_pos",))
    >>> policy.predict_action({"agent_pos": np.zeros((3, 1, 2))})["action"].shape
    (3, 1, 2)
    """

    n_obs_steps = 1

    def __init__(
        self, function: Callable[[dict[str, Any]], Any], obs_keys: Iterable[str], n_action_steps: int = 1
    ) -> None:
        self.function, self.obs_keys, self.n_action_steps = function, tuple(obs_keys), n_action_steps

    def reset(self) -> None:
        """Nothing to forget."""

    def predict_action(
        self,
        obs: Mapping[str, NDArray[np.floating]],
        *,
        nfe: int | str = 1,
        noise_seeds: NDArray[np.int64] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Call the function on each row's newest observation."""
        batch = len(next(iter(obs.values())))
        rows = [self.function({key: value[i, -1] for key, value in obs.items()}) for i in range(batch)]
        action = np.stack([np.atleast_2d(np.asarray(row, np.float32)) for row in rows])
        return {"action": action, "action_pred": action}


class Listener(Interface):
    """Told of every finished episode."""

    def __call__(self, record: Mapping[str, Any], done: int, total: int) -> None:
        """Take one record; `done` of `total` are finished."""
        ...


def evaluate(
    policy: Policy | None,
    protocol: Protocol,
    seeds: Sequence[int],
    arms: Sequence[int | str] = (1,),
    *,
    n_envs: int = 16,
    n_workers: int = 0,
    out: str | Path | None = None,
    fingerprint: str | None = None,
    make_env: EnvFactory | None = None,
    make_actor: ActorFactory | None = None,
    init_states: Mapping[int, Start] | None = None,
    keep: Sequence[str] = (),
    timeout_s: float = 120.0,
    backend: Callable[[Recipe, int], Slots] | None = None,
    listeners: Sequence[Listener] = (),
) -> EvalResult:
    """Run every (seed, arm) once and summarise.

    Args:
        policy: anything behind the policy protocol; None if `make_actor` acts.
        protocol: conditions of the evaluation.
        seeds: distinct, from one seed range.
        arms: values of the policy's `steps`.
        n_envs: environments at a time. Does not change results.
        n_workers: spawned processes that step them; 0 steps them in this process. Does not change results.
        out: folder for `episodes.jsonl`, written as episodes finish; an interrupted evaluation resumes from it.
        fingerprint: of the policy's weights; a resumed evaluation must show the same.
        make_env: builds the environment; None makes `protocol.task`. Picklable if there are workers.
        make_actor: scripted expert, (environment) -> (observation -> action), in place of a policy.
        init_states: per seed where its episode begins in place of what the seed draws.
        keep: "trajectory" and/or "frames", returned in `EvalResult.extras`.
        timeout_s: longest silence of a worker before it counts as hung.
        backend: builds the slots, (recipe, n_slots) -> Slots; None chooses by n_workers.
        listeners: told of every finished episode.

    Raises:
        InputError: for empty, repeated or mixed seeds, an environment that returns NaN, a policy that raises or whose
            actions do not fit. Episodes finished before are kept in `out`.
    """
    seeds, names = [int(seed) for seed in seeds], [str(arm) for arm in arms]
    check_seeds(seeds)
    _check_counts(names, n_envs, n_workers, protocol)
    if (policy is None) == (make_actor is None):
        raise InputError("give either a policy or make_actor (a scripted expert), not both and not neither.")
    recipe = _recipe(policy, protocol, make_env, make_actor, keep)
    journal = Journal(out, protocol, fingerprint)
    wanted = [Episode(seed, arm, _start(init_states, seed)) for arm in arms for seed in seeds]
    journalled = {} if keep else journal.finished()  # of other arms and seeds too
    finished = {_key(episode): journalled[_key(episode)] for episode in wanted if _key(episode) in journalled}
    queue = deque(episode for episode in wanted if _key(episode) not in finished)
    n_slots = max(1, min(n_envs, len(queue)))
    run = _Run(policy, protocol, queue, finished, journal, [*listeners], len(wanted))
    if queue:
        if backend is not None:
            run.slots = backend(recipe, n_slots)
        elif n_workers:
            run.slots = ProcessSlots(recipe, n_slots, n_workers, timeout_s)
        else:
            run.slots = LocalSlots(recipe, n_slots)
        try:
            run.drive(n_slots)
        finally:
            run.slots.close()
            journal.close()
    records = [finished[_key(episode)] for episode in wanted]
    result = EvalResult(protocol, names, seeds, records, {}, run.timing(), run.extras)
    for arm in arms:
        summary = summarise(result.of(arm))
        summary["latency"] = run.latency(arm)
        result.summary[str(arm)] = summary
    return result


def summarise(records: Sequence[Mapping[str, Any]], confidence: float = 0.95) -> dict[str, Any]:
    """Summarise one arm's records.

    An episode recorded as `error` counts as a failure with score 0: leaving it out would reward a policy for breaking
    its simulator.

    Returns:
        success_rate (Wilson interval), score (mean over episodes of the maximum reward, bootstrap interval), n,
        n_success, n_error, mean_steps_to_success (successes only, None if there are none), mean_length, final_coverage
        and max_coverage (None where the environment gives none); under other projects' names in "aliases".
    """
    n = len(records)
    successes = sum(bool(r["success"]) for r in records)
    scores = [float(r["max_reward"]) for r in records]
    sums = [float(r["sum_reward"]) for r in records]
    steps = [r["steps_to_success"] for r in records if r["steps_to_success"] is not None]
    rate, score = wilson(successes, n, confidence), bootstrap_mean(scores, confidence)
    return {
        "n": n,
        "n_success": successes,
        "n_error": sum(r["status"] == "error" for r in records),
        "success_rate": rate.as_dict(),
        "score": score.as_dict(),
        "mean_sum_reward": float(np.mean(sums)),
        "mean_steps_to_success": float(np.mean(steps)) if steps else None,
        "mean_length": float(np.mean([r["length"] for r in records])),
        "final_coverage": _mean_of(records, "final_coverage"),
        "max_coverage": _mean_of(records, "max_coverage"),
        "aliases": {
            # Diffusion Policy
            "test/mean_score": score.value,
            # LeRobot (percent)
            "avg_sum_reward": float(np.mean(sums)),
            "avg_max_reward": score.value,
            "pc_success": 100 * rate.value,
            "pc_success_ci95": [100 * rate.low, 100 * rate.high],
            "n_success": successes,
            # robomimic
            "Success_Rate": rate.value,
            "Return": float(np.mean(sums)),
            "Horizon": float(np.mean([r["length"] for r in records])),
        },
    }


def _stated(header: Mapping[str, Any]) -> dict[str, Any]:
    """A journal's header without what was left to the policy, so that a condition added since reads as left to it."""
    return {**header, "protocol": {k: v for k, v in header["protocol"].items() if v is not None}}


class Journal:
    """Records on disk: one JSON line per finished episode, appended and flushed at once.

    A killed evaluation loses at most the episodes in flight; a line cut in half by the kill is dropped on reopening.
    """

    def __init__(self, out: str | Path | None, protocol: Protocol, fingerprint: str | None) -> None:
        self.path = None if out is None else Path(out) / "episodes.jsonl"
        self._file: Any = None
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header = {"protocol": asdict(protocol), "policy": fingerprint}
        head = self.path.with_name("protocol.json")
        if head.exists() and self.path.exists():
            found = json.loads(head.read_text())
            if _stated(found) != _stated(header):
                raise InputError(
                    f"{self.path.parent} holds episodes of another evaluation ({_difference(found, header)}); "
                    "mixing them would be wrong. Give another out=, or overwrite=true to start anew."
                )
        else:
            write_atomically(head, json.dumps(header, indent=1))

    def finished(self) -> dict[tuple[int, str], dict[str, Any]]:
        """Return the records already there, without those that ended in an error: they get another chance."""
        if self.path is None or not self.path.exists():
            return {}
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        records = [json.loads(line) for line in whole.splitlines()]
        return {(r["seed"], r["arm"]): r for r in records if r["status"] == "ok"}

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record."""
        if self.path is None:
            return
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _Run:
    """State of one evaluation: the queue, what the slots are doing, and the clocks."""

    slots: Slots

    def __init__(
        self,
        policy: Policy | None,
        protocol: Protocol,
        queue: deque[Episode],
        finished: dict[tuple[int, str], dict[str, Any]],
        journal: Journal,
        listeners: list[Listener],
        total: int,
    ) -> None:
        self.policy, self.protocol, self.queue, self.finished = policy, protocol, queue, finished
        self.journal, self.listeners, self.total = journal, listeners, total
        self.playing: dict[int, Episode] = {}
        self.decisions: dict[int, int] = {}
        self.waiting: dict[int, dict[str, NDArray[np.float32]]] = {}  # slots whose history awaits a decision
        self.attempts: dict[tuple[int, str], int] = {}
        self.lost: dict[tuple[int, str], int] = {}
        self.calls: dict[str, list[tuple[int, float]]] = {}  # arm -> (rows, seconds) of every inference call
        self.last_obs: dict[str, NDArray[np.float32]] | None = None
        self.extras: dict[tuple[int, str], dict[str, Any]] = {}
        self.env_s = self.policy_s = self.wall_s = 0.0
        self.ran = self.errors = 0

    def drive(self, n_slots: int) -> None:
        """Run until the queue is empty and every slot is done."""
        begin = time.perf_counter()
        if self.policy is not None:
            self.policy.reset()
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
            self._finish(slot, reply.record, reply.extras)
        elif reply.bad_input:
            raise InputError(
                f"the environment of task '{self.protocol.task}' failed at seed {episode.seed}: {str(reply.error).rstrip('.')}. "
                f"{self._kept()}"
            )
        else:
            self._retry(slot, episode, reply.error or "unknown error")

    def _retry(self, slot: int, episode: Episode, error: str) -> None:
        key = _key(episode)
        counter = self.lost if error == "lost" else self.attempts
        counter[key] = counter.get(key, 0) + 1
        if counter[key] < (MAX_LOST if error == "lost" else MAX_ATTEMPTS):
            self._start(slot, episode)
            return
        record = {
            "seed": episode.seed,
            "arm": str(episode.arm),
            "status": "error",
            "error": f"{error} (tried {counter[key]} times)",
            "success": False,
            "max_reward": 0.0,
            "sum_reward": 0.0,
            "final_reward": 0.0,
            "length": 0,
            "steps_to_success": None,
            "digest": None,
        }
        self._finish(slot, record, {})

    def _finish(self, slot: int, record: dict[str, Any], extras: dict[str, Any]) -> None:
        key = _key(self.playing.pop(slot))
        self.finished[key] = record
        self.errors += record["status"] == "error"
        if self.errors == len(self.finished) == MAX_FIRST_ERRORS:
            raise InputError(
                f"each of the first {self.errors} episodes failed, so nothing can be measured: {record['error']}"
            )
        if extras:
            self.extras[key] = extras
        self.journal.append(record)
        self.ran += 1
        for listener in self.listeners:
            listener(record, len(self.finished), self.total)

    def _decide(self) -> None:
        """Answer the largest group of waiting slots that share an arm."""
        groups: dict[int | str, list[int]] = {}
        for slot in sorted(self.waiting):
            groups.setdefault(self.playing[slot].arm, []).append(slot)
        arm, slots = max(groups.items(), key=lambda item: len(item[1]))
        slots = slots[: self.protocol.inference_batch]
        obs = {key: np.stack([self.waiting[s][key] for s in slots]) for key in self.waiting[slots[0]]}
        noise_seeds = np.array([(self.playing[s].seed, self.decisions[s]) for s in slots], np.int64)
        actions = self._predict(obs, arm, noise_seeds)[:, self.protocol.n_latency_steps :]
        for slot, chunk in zip(slots, actions):
            del self.waiting[slot]
            self.decisions[slot] += 1
            self.slots.submit(slot, chunk)

    def _predict(
        self, obs: dict[str, NDArray[np.float32]], arm: int | str, noise_seeds: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        assert self.policy is not None
        rows = len(noise_seeds)
        padded = rows if hasattr(self.policy, "inference_rows") else self.protocol.inference_batch
        index = np.minimum(np.arange(padded), rows - 1)  # the last row fills up
        filled = {key: value[index] for key, value in obs.items()}
        where = f"at seed {noise_seeds[0, 0]}, decision {noise_seeds[0, 1]}, steps={arm}, batch of {padded}"
        begin = time.perf_counter()
        try:
            answer = self.policy.predict_action(filled, nfe=arm, noise_seeds=noise_seeds[index])
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"the policy raised {type(error).__name__}: {error} ({where}). {self._kept()}") from error
        action = np.asarray(answer["action"])[:rows]
        elapsed = time.perf_counter() - begin
        self.policy_s += elapsed
        self.calls.setdefault(str(arm), []).append((rows, elapsed))
        self.last_obs = {key: value[:1] for key, value in obs.items()}
        if action.ndim != 3 or action.shape[0] != rows or action.shape[1] != self.policy.n_action_steps:
            raise InputError(
                f"the policy answered with actions of shape {action.shape}; expected ({rows}, "
                f"{self.policy.n_action_steps}, action_dim) {where}. {self._kept()}"
            )
        if not np.isfinite(action).all():
            raise InputError(f"the policy answered with an action that is not finite {where}. {self._kept()}")
        return action

    def _kept(self) -> str:
        if self.journal.path is None:
            return f"{len(self.finished)} of {self.total} episodes were done."
        return f"The {len(self.finished)} of {self.total} episodes done are kept in {self.journal.path}."

    def timing(self) -> dict[str, float]:
        """Return seconds by place. Overhead is what is left beside environments and policy when both run here."""
        return {
            "wall_s": self.wall_s,
            "env_s": self.env_s,
            "policy_s": self.policy_s,
            "overhead_s": max(0.0, self.wall_s - self.env_s - self.policy_s),
            "episodes": self.ran,
            "episodes_per_s": self.ran / self.wall_s if self.wall_s else 0.0,
        }

    def latency(self, arm: int | str) -> dict[str, Any] | None:
        """Return percentiles (ms) of the inference calls of one arm: batched as they ran, and one row alone."""
        calls = self.calls.get(str(arm))
        if not calls or self.policy is None or self.last_obs is None:
            return None
        return {
            "single_row_ms": percentiles(single_row_seconds(self.policy, self.last_obs, arm)),
            "batch_ms": percentiles([seconds for _, seconds in calls]),
            "batch_rows": float(np.mean([rows for rows, _ in calls])),
            "calls": len(calls),
        }


def single_row_seconds(
    policy: Policy, obs: Mapping[str, NDArray[np.floating]], arm: int | str, calls: int = LATENCY_CALLS
) -> list[float]:
    """Time calls with one row, as a robot makes them: without the padding that evaluation needs."""
    alone: Policy = policy.alone() if hasattr(policy, "alone") else policy
    times = []
    for i in range(calls + 2):
        begin = time.perf_counter()
        alone.predict_action(obs, nfe=arm, noise_seeds=np.array([[0, i]], np.int64))
        times.append(time.perf_counter() - begin)
    return times[2:]  # the first calls choose algorithms and allocate


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p95, p99 in milliseconds.

    >>> percentiles([0.001, 0.002, 0.003])["p50"]
    2.0
    """
    return {f"p{q}": float(np.percentile(seconds, q)) * 1e3 for q in (50, 95, 99)}


class Progress:
    """A progress bar with the running success rate on a terminal, plain lines elsewhere."""

    def __init__(self, stream: Any = None) -> None:
        self.stream = stream or sys.stderr
        self.counts: dict[str, list[int]] = {}
        self._bar: Any = None
        self._shown = -1

    def __call__(self, record: Mapping[str, Any], done: int, total: int) -> None:
        """Show one more episode."""
        count = self.counts.setdefault(record["arm"], [0, 0])
        count[0] += bool(record["success"])
        count[1] += 1
        rates = ", ".join(f"{arm}: {k}/{n} = {k / n:.0%}" for arm, (k, n) in self.counts.items())
        if self.stream.isatty():
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(total=total, initial=done - 1, unit="ep", file=self.stream, dynamic_ncols=True)
            self._bar.update(1)
            self._bar.set_postfix_str(rates)
            if done == total:
                self._bar.close()
        elif done * 10 // total > self._shown or done == total:
            self._shown = done * 10 // total
            print(f"evaluated {done}/{total} episodes  success by steps  {rates}", file=self.stream, flush=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never half."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _recipe(
    policy: Policy | None,
    protocol: Protocol,
    make_env: EnvFactory | None,
    make_actor: ActorFactory | None,
    keep: Sequence[str],
) -> Recipe:
    for name in keep:
        if name not in ("trajectory", "frames"):
            raise InputError(f"keep='{name}' is unknown; allowed: trajectory, frames.")
    obs_keys = () if policy is None else tuple(policy.obs_keys)
    n_obs_steps = 1 if policy is None else policy.n_obs_steps
    if policy is not None and protocol.n_action_steps not in (None, policy.n_action_steps):
        raise InputError(
            f"the protocol says n_action_steps={protocol.n_action_steps}, the policy answers with {policy.n_action_steps} actions."
        )
    own = getattr(policy, "noise_scale", None)
    if policy is not None and protocol.noise_scale not in (None, own):
        raise InputError(
            f"the protocol says noise_scale={protocol.noise_scale}, the policy draws "
            + ("no noise that can be scaled." if own is None else f"its noise at {own}.")
        )
    if policy is not None and not 0 <= protocol.n_latency_steps < policy.n_action_steps:
        raise InputError(
            f"n_latency_steps={protocol.n_latency_steps} leaves nothing of {policy.n_action_steps} actions to execute; "
            f"allowed: 0 to {policy.n_action_steps - 1}."
        )
    max_steps = protocol.max_steps
    if make_env is None:
        from isdt_policy.envs import make, task_spec

        spec = task_spec(protocol.task)
        max_steps = max_steps or spec.max_episode_steps
        # The state is read for the record (initial-state map, repeatability), whatever the policy observes.
        keys = (
            None
            if policy is None
            else tuple(dict.fromkeys([*obs_keys, *(["state"] if "state" in spec.observations else [])]))
        )
        render_mode = "rgb_array" if "frames" in keep else None
        make_env = partial(make, protocol.task, keys, seed_protocol=protocol.seed_protocol, render_mode=render_mode)
    return Recipe(make_env, obs_keys, n_obs_steps, protocol.n_latency_steps, max_steps, make_actor, tuple(keep))


def _check_counts(arms: Sequence[str], n_envs: int, n_workers: int, protocol: Protocol) -> None:
    if not arms:
        raise InputError("no arms: give steps=[1,2] or baselines=[euler10].")
    if len(set(arms)) < len(arms):
        raise InputError(f"steps and baselines repeat themselves: {', '.join(arms)}.")
    if n_envs < 1 or n_workers < 0:
        raise InputError(f"n_envs must be at least 1 and n_workers at least 0, got {n_envs} and {n_workers}.")
    batch = protocol.inference_batch
    if batch < 1:
        raise InputError(f"inference_batch must be at least 1, got {batch}.")


def _start(init_states: Mapping[int, Start] | None, seed: int) -> Start | None:
    if init_states is None:
        return None
    if seed not in init_states:
        raise InputError(f"no initial state for seed {seed}; there are {len(init_states)}.")
    return init_states[seed]


def _key(episode: Episode) -> tuple[int, str]:
    return episode.seed, str(episode.arm)


def _mean_of(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [float(r[name]) for r in records if r.get(name) is not None]
    return float(np.mean(values)) if values and all(map(math.isfinite, values)) else None


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    if found["policy"] != wanted["policy"]:
        return f"policy {found['policy']}, now {wanted['policy']}"
    was, now = found["protocol"], wanted["protocol"]
    return ", ".join(f"{key} was {was.get(key)}, now {now[key]}" for key in now if was.get(key) != now[key])
