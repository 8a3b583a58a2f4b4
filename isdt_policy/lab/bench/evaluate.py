"""An evaluation against a script that steps one environment at a time, one row per call; both must find the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import gymnasium
import numpy as np

from isdt_policy.envs import make
from isdt_policy.envs.experts import expert
from isdt_policy.envs.protocol import Policy as AnyPolicy
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.rollout import Workers, evaluate
from isdt_policy.eval.seeds import FINAL_START
from isdt_policy.lab.bench.measure import interleaved, ratio
from isdt_policy.lab.bench.report import Measured
from isdt_policy.lab.bench.settings import Eval
from isdt_policy.lab.bench.subject import prepare, say, subject
from isdt_policy.method.policy import Policy
from isdt_policy.shared.errors import InputError

Record = tuple[int, bool, int, float]  # seed, success, length, sum of rewards


def measure(what: Eval) -> Measured:
    """Time whole evaluations.

    Raises:
        InputError: the two ways disagree on a seed.
    """
    device = prepare(what.threads, what.device)
    policy, task = _policy(what), what.task
    if isinstance(policy, Policy):
        policy = policy.to(device)
    seeds = range(FINAL_START, FINAL_START + what.episodes)
    protocol = (
        Protocol(task) if isinstance(policy, Policy) else Protocol(task, inference_batch=1)
    )  # experts gain nothing
    found: dict[str, list[Record]] = {}

    def ours() -> None:
        result = evaluate(policy, protocol, seeds, workers=Workers(what.n_envs, what.n_workers))
        found["ours"] = [(r.seed, bool(r.success), r.length, r.sum_reward) for r in result.episodes]

    def plain(acting: AnyPolicy = policy, name: str = "plain") -> None:
        found[name] = _loop(acting, partial(make, task, obs_keys=list(policy.obs_keys)), seeds)

    ways: dict[str, Callable[[], object]] = {"evaluator": ours, "one at a time": plain}
    if isinstance(policy, Policy):
        ways["one at a time, rows not padded"] = partial(plain, policy.alone(), "one row")
    say(f"{what.episodes} episodes in {len(ways)} ways, {what.rounds} times; nothing is printed meanwhile")
    timings = interleaved(ways, rounds=what.rounds, calls=1, warmup=0)
    if found["ours"] != found["plain"]:
        raise InputError("the evaluator and the plain loop disagree on a seed; please report this.")
    facts = {
        "policy": what.checkpoint or f"{type(policy).__name__}, {'scripted' if task != 'pusht' else 'untrained'}",
        "episodes": what.episodes, "seeds": f"{seeds[0]} to {seeds[-1]}",
        "n_envs": what.n_envs, "n_workers": what.n_workers, "device": device,
        "success, length and reward of every seed equal": True,
    }  # fmt: skip
    ratios = {
        f"{name} / evaluator": ratio(t, timings["evaluator"]) for name, t in timings.items() if name != "evaluator"
    }
    return Measured(f"eval task={task}", timings, ratios, facts, task)


def _policy(what: Eval) -> AnyPolicy:
    """What acts: the checkpoint, an untrained policy, or a task's expert."""
    if what.checkpoint:
        return Policy.from_pretrained(what.checkpoint)
    if what.task == "pusht":
        return subject(what.size).policy.eval()
    return expert(what.task)


def _loop(policy: AnyPolicy, make_env: Callable[[], gymnasium.Env], seeds: Sequence[int]) -> list[Record]:
    """Evaluate as a script does."""
    env = make_env()
    try:
        return [_episode(policy, env, seed) for seed in seeds]
    finally:
        env.close()


def _episode(policy: AnyPolicy, env: gymnasium.Env, seed: int) -> Record:
    obs, _ = env.reset(seed=seed)
    history, rewards, decisions, success = [obs] * policy.n_obs_steps, list[float](), 0, False
    while True:
        stacked = {k: np.stack([o[k] for o in history])[None].astype(np.float32) for k in policy.obs_keys}
        answer = policy.predict_action(stacked, nfe=1, noise_seeds=np.array([(seed, decisions)]))
        decisions += 1
        for action in answer["action"][0]:
            obs, reward, terminated, truncated, info = env.step(action.astype(env.action_space.dtype))
            history = [*history[1:], obs]
            rewards.append(float(reward))
            success = success or bool(info["is_success"])
            if terminated or truncated:
                return seed, success, len(rewards), float(np.sum(rewards))
