"""`isdt bench`: training step, inference, data and environments against stated baselines."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isdt_policy.shared.errors import InputError, nearest

if TYPE_CHECKING:
    from isdt_policy.lab.bench.measure import Timing
    from isdt_policy.method.policy import Policy

HELP = """
usage: isdt bench <what> [key=value ...]

Times in turns (ours, baseline, ours, baseline ...) in one process: medians with quartiles, ratios with their range over the
turns. The baseline is the usual Conv1d UNet trained and sampled as DDPM through diffusers, with as many parameters
(within 2 %), on the same data. The baseline
needs: pip install 'isdt-policy[diffusers,pusht]'

  train    one complete training step (iSD-T with guidance and central difference) against one plain DDPM step
  infer    one network evaluation, and predict_action at one step against DDIM-10 and DDPM-100; one row, as a robot asks
  eval     an evaluation, against one environment at a time with one row per call; the results must be the same
  data     windows, images, memory and import (what isdt data bench says about it, with the same options)
  serve    one request to a server process, and many clients at a fixed rate: latency, lost and mixed up answers
  env      one control step of our environment against what it wraps: gym-pusht's, or bare robosuite (task=lift, can, square)

  size=4m            4m, 16m or 63m parameters
  batch=256          training: windows per step
  rounds=7           turns
  calls=3            calls per turn (infer: ten times as many)
  threads=0          CPU threads; 0 leaves PyTorch's choice
  device=cpu         or cuda (timed by events; network evaluations also as CUDA graphs)
  compile=true       training and CUDA inference: torch.compile ours, as training.compile does
  guidance_scale=2   training: anything but 1 costs its evaluation
  task=pusht         env; eval: or lift, whose simulator takes all the time; its expert acts
  checkpoint=PATH    eval, serve: a trained policy; without one, an untrained network of that size
  episodes=32        eval: episodes per turn
  n_envs=16          eval: environments of the evaluator at a time
  n_workers=0        eval: processes of the evaluator
  clients=16         serve: connections, each asking at rate=50 Hz for seconds=60
  data=PATH          data, train: default bundled:pusht_expert
  out=FILE.json      also write the numbers as JSON, and the table beside it as .md

examples
  isdt bench train size=4m
  isdt bench train size=16m rounds=3
  isdt bench infer size=63m threads=2 out=results/bench_infer_63m.json
  isdt bench eval episodes=200 rounds=1 n_envs=32 n_workers=2 threads=1
  isdt bench eval task=lift episodes=60 rounds=1 n_envs=4 n_workers=2
  isdt bench serve threads=1
  isdt bench serve clients=1 rate=100 seconds=60
  isdt bench env task=lift calls=100
"""

SIZES = {"4m": (64, 128, 256), "16m": (128, 256, 512), "63m": (256, 512, 1024)}
BUNDLED = "bundled:pusht_expert"


def main(args: list[str]) -> int:
    """Run one benchmark."""
    from isdt_policy.datasets.arguments import bind

    if not args or any(a in ("-h", "--help", "help") for a in args):
        print(HELP.strip())
        return 0
    what, rest = args[0], args[1:]
    if what not in BENCHES:
        raise InputError(f"unknown benchmark '{what}'.{nearest(what, BENCHES)} Benchmarks: {', '.join(BENCHES)}.")
    BENCHES[what](**bind(BENCHES[what], rest))
    return 0


def train(
    size: str = "4m",
    batch: int = 256,
    rounds: int = 7,
    calls: int = 3,
    threads: int = 0,
    device: str = "cpu",
    compile: bool = True,
    guidance_scale: float = 2.0,
    data: str = BUNDLED,
    out: str = "",
) -> dict[str, Any]:
    """One step of ours (Trainer.train_step: data, forward, backward, optimiser, EMA) and of the baseline (the same parts)."""
    from isdt_policy.datasets.store import DemoStore
    from isdt_policy.datasets.windows import WindowDataset
    from isdt_policy.envs import task_spec
    from isdt_policy.lab.bench.measure import interleaved, ratio
    from isdt_policy.method.objectives import ISD
    from isdt_policy.training.trainer import Trainer, TrainingConfig

    down_dims = _check(size, threads, device)
    spec = task_spec("pusht")
    windows = WindowDataset(DemoStore.open(data), list(spec.default_obs_keys), "action", task=spec)
    policy = _policy(down_dims, windows.statistics())
    count = sum(p.numel() for p in policy.parameters())
    settings = TrainingConfig(batch_size=batch, device=device, compile=compile, threads=threads, tensorboard=False)
    _say(f"{count / 1e6:.2f} M parameters; compiling ours takes a minute or two" if compile else f"{count} parameters")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(policy, ISD(guidance_scale=guidance_scale), windows, None, settings, Path(folder))
        trainer.train_step()
        plain = _ddpm_step(count, down_dims, windows, policy, batch, device)
        timings = interleaved({"iSD-T step": trainer.train_step, "DDPM step": plain}, rounds=rounds, calls=calls)
    steps = [trainer.indices(i) for i in range(200)]
    fetch = interleaved({"data": _each(windows.batch, steps)}, rounds=1, calls=100)["data"]
    _, weights = _baseline_network(count, down_dims, windows, device)
    facts = {
        "parameters": {"iSD-T": count, "DDPM": weights}, "batch": batch, "guidance_scale": guidance_scale,
        "compile": trainer.compile_note, "device": device,
        "ratios": {"iSD-T step / DDPM step": ratio(timings["iSD-T step"], timings["DDPM step"])},
        "data_share_of_step": fetch.median / timings["iSD-T step"].median,
    }  # fmt: skip
    return _report(f"train size={size}", timings, facts, out)


def infer(
    size: str = "4m",
    rounds: int = 7,
    calls: int = 3,
    threads: int = 0,
    device: str = "cpu",
    compile: bool = True,
    out: str = "",
) -> dict[str, Any]:
    """Batch 1: one network evaluation of each, then whole calls."""
    from functools import partial

    import numpy as np
    import torch

    from isdt_policy.datasets.store import DemoStore
    from isdt_policy.datasets.windows import WindowDataset
    from isdt_policy.envs import task_spec
    from isdt_policy.lab.bench.measure import bandwidth, interleaved, ratio

    down_dims = _check(size, threads, device)
    spec = task_spec("pusht")
    windows = WindowDataset(DemoStore.open(BUNDLED), list(spec.default_obs_keys), "action", task=spec)
    policy = _policy(down_dims, windows.statistics()).eval().to(device)
    policy.inference_rows = 1
    count = sum(p.numel() for p in policy.parameters())
    network, weights = _baseline_network(count, down_dims, windows, device)
    obs = {key: value[:1] for key, value in windows.batch(np.arange(1))["obs"].items()}
    x = torch.randn(1, policy.horizon, 2, device=device)
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    with torch.inference_mode():
        cond = policy.encode({key: torch.as_tensor(value).to(device) for key, value in obs.items()})
        flat = torch.randn(1, _width(windows), device=device)
        ours: dict[str, Callable[[], object]] = {}
        with tempfile.TemporaryDirectory() as folder:
            if device == "cpu":
                from isdt_policy.deploy.export import export
                from isdt_policy.deploy.runner import OnnxPolicy

                _say("exporting ours to ONNX")
                for stored, name in (("float32", ""), ("int8", ", int8")):
                    with torch.inference_mode(False):
                        path = export(policy, Path(folder) / f"{stored}.onnx", weights=stored)
                    fast = OnnxPolicy(path, threads=torch.get_num_threads())
                    ours[f"ours, 1 step, ONNX Runtime{name}"] = partial(fast.predict_action, obs)
            ours["ours, 1 step, PyTorch"] = lambda: policy.predict_action(obs)
            evaluate: dict[str, Callable[[], object]] = {
                "network, ours": lambda: policy.network(x, one, zero, cond),
                "network, Conv1d": lambda: network(x, one, flat),
            }
            if device != "cpu":
                if compile:
                    _say("compiling ours")
                    graphed = torch.compile(policy.network, mode="reduce-overhead", fullgraph=True)
                    evaluate["network, ours, compiled and graphed"] = lambda: graphed(x, one, zero, cond)
                evaluate["network, ours, CUDA graph"] = _graph(lambda: policy.network(x, one, zero, cond))
                evaluate["network, Conv1d, CUDA graph"] = _graph(lambda: network(x, one, flat))
            timings = interleaved(evaluate, rounds=rounds, calls=10 * calls, warmup=10, device=device)
            if device == "cpu":
                # The graph of the whole call holds one evaluation; its own overhead is part of the figure.
                timings |= interleaved(ours, rounds=rounds, calls=10 * calls, warmup=10, device=device)
            else:
                timings |= interleaved(ours, rounds=rounds, calls=10 * calls, warmup=10)
            floor = 1e3 * bandwidth(4 * count, device)
            multi = {
                "Conv1d, DDIM-10": _sampler(network, policy, obs, windows, "ddim", 10, device),
                "Conv1d, DDPM-100": _sampler(network, policy, obs, windows, "ddpm", 100, device),
            }
            timings |= interleaved(multi, rounds=rounds, calls=calls, warmup=1)
    best = "ours, 1 step, ONNX Runtime" if device == "cpu" else "ours, 1 step, PyTorch"
    facts = {
        "parameters": {"ours": count, "Conv1d": weights}, "rows": 1, "device": device,
        "floor_ms": floor, "floor": "reading the weights once, measured in this process",
        "ratios": {
            "network, Conv1d / ours": ratio(timings["network, Conv1d"], timings["network, ours"]),
            f"Conv1d network / {best}": ratio(timings["network, Conv1d"], timings[best]),
            f"DDIM-10 / {best}": ratio(timings["Conv1d, DDIM-10"], timings[best]),
            f"DDPM-100 / {best}": ratio(timings["Conv1d, DDPM-100"], timings[best]),
        },
        "p99 / p50": {name: t.p99 / t.median for name, t in timings.items()},
        "ours / floor": {name: timings[name].median / floor for name in ours},
    }  # fmt: skip
    return _report(f"infer size={size}", timings, facts, out)


def evaluation(
    size: str = "4m",
    task: str = "pusht",
    checkpoint: str = "",
    episodes: int = 32,
    rounds: int = 3,
    n_envs: int = 16,
    n_workers: int = 0,
    threads: int = 0,
    out: str = "",
) -> dict[str, Any]:
    """Seconds per evaluation: ours, and one environment at a time, with the same record for every seed or an error."""
    from functools import partial

    from isdt_policy.datasets.store import DemoStore
    from isdt_policy.datasets.windows import WindowDataset
    from isdt_policy.envs import make, task_spec
    from isdt_policy.envs.experts import expert
    from isdt_policy.eval.rollout import Protocol, evaluate
    from isdt_policy.lab.bench.measure import interleaved, ratio
    from isdt_policy.method.policy import Policy

    down_dims = _check(size, threads, "cpu")
    policy: Any
    if checkpoint:
        policy = Policy.from_pretrained(checkpoint)
    elif task != "pusht":
        policy = expert(task)
        policy.inference_rows = 1
    else:
        spec = task_spec(task)
        windows = WindowDataset(DemoStore.open(BUNDLED), list(spec.default_obs_keys), "action", task=spec)
        policy = _policy(down_dims, windows.statistics()).eval()
    seeds = list(range(100_000, 100_000 + episodes))
    records: dict[Any, Any] = {}
    make_env = partial(make, task, obs_keys=list(policy.obs_keys))
    ours = partial(evaluate, policy, Protocol(task=task), seeds, (1,), n_envs=n_envs, n_workers=n_workers)
    ways = {"evaluator": _keep(records, ours), "one at a time": _keep(records, partial(_loop, policy, make_env, seeds))}
    if policy.inference_rows != 1:
        ways["one at a time, rows not padded"] = partial(_loop, policy, make_env, seeds, rows=1)
    _say(f"{episodes} episodes in {len(ways)} ways, {rounds} times; nothing is printed meanwhile")
    timings = interleaved(ways, rounds=rounds, calls=1, warmup=0)
    ours_records, loop_records = records.values()
    if ours_records != loop_records:
        raise InputError("the evaluator and the plain loop disagree on a seed; please report this.")
    facts = {
        "policy": checkpoint or f"{type(policy).__name__}, {'scripted' if task != 'pusht' else 'untrained'}",
        "episodes": episodes, "seeds": f"{seeds[0]} to {seeds[-1]}", "n_envs": n_envs, "n_workers": n_workers,
        "success, length and reward of every seed equal": True,
        "ratios": {f"{name} / evaluator": ratio(timings[name], timings["evaluator"]) for name in ways if name != "evaluator"},
    }  # fmt: skip
    return _report(f"eval task={task}", timings, facts, out)


def data(
    data: str = BUNDLED,
    keys: tuple[str, ...] | None = None,
    batch: int = 256,
    rounds: int = 7,
    seconds: float = 0.1,
    parts: tuple[str, ...] | None = None,
    frames: int = 7000,
    out: str = "",
) -> dict[str, Any]:
    """Windows, images, memory and import; see `isdt data bench`. A call of a turn is the mean of the calls in it."""
    from isdt_policy.datasets.bench import measure
    from isdt_policy.lab.bench.measure import summary

    facts = measure(data, keys, batch, rounds, seconds, parts, frames)
    timings = {name: summary([[ms] for ms in times]) for name, times in facts.pop("ms").items()}
    return _report("data", timings, facts, out)


def env(task: str = "pusht", rounds: int = 7, calls: int = 300, out: str = "") -> dict[str, Any]:
    """Control steps of our environment, state observations included, and of what it wraps: gym-pusht's, or bare robosuite."""
    from isdt_policy.envs import make
    from isdt_policy.lab.bench.measure import interleaved, ratio

    if task == "pusht":
        import gym_pusht  # noqa: F401
        import gymnasium

        name, keys = "gym-pusht", ["state"]
        theirs = _stepper(gymnasium.make("gym_pusht/PushT-v0", obs_type="state"), 100, 400, 2)
    elif task in ("lift", "can", "square"):
        name, keys = "bare robosuite", None
        bare = make(task)
        bare.reset(seed=0)
        theirs = _bare(bare.sim)  # type: ignore[attr-defined]
    else:
        raise InputError(f"task='{task}' is not one of pusht, lift, can, square.")
    low, high, size = (100, 400, 2) if task == "pusht" else (-0.5, 0.5, 7)
    ways = {"ours": _stepper(make(task, obs_keys=keys), low, high, size), name: theirs}
    timings = interleaved(ways, rounds=rounds, calls=calls)
    facts = {"ratios": {f"ours / {name}": ratio(timings["ours"], timings[name])}}
    return _report(f"env task={task}", timings, facts, out)


def serve(
    size: str = "4m",
    checkpoint: str = "",
    clients: int = 16,
    rate: float = 50.0,
    seconds: float = 60.0,
    rounds: int = 7,
    calls: int = 20,
    threads: int = 1,
    out: str = "",
) -> dict[str, Any]:
    """A server process: one request against the same call in this process, then many clients at a fixed rate."""
    import asyncio

    import numpy as np

    from isdt_policy.deploy.client import PolicyClient
    from isdt_policy.deploy.command import load_policy
    from isdt_policy.lab.bench import serve as bench
    from isdt_policy.lab.bench.measure import interleaved, ratio, summary

    with tempfile.TemporaryDirectory() as folder:
        name = checkpoint
        if not checkpoint:
            from isdt_policy.datasets.store import DemoStore
            from isdt_policy.datasets.windows import WindowDataset
            from isdt_policy.deploy.export import export
            from isdt_policy.envs import task_spec

            spec = task_spec("pusht")
            windows = WindowDataset(DemoStore.open(BUNDLED), list(spec.default_obs_keys), "action", task=spec)
            policy = _policy(_check(size, threads, "cpu"), windows.statistics())
            _say("exporting to ONNX")
            checkpoint = str(export(policy, Path(folder) / "policy.onnx"))
            name = f"untrained, {size}, ONNX Runtime"
        _check(size, threads, "cpu")
        local = load_policy(checkpoint)
        with bench.server(checkpoint, threads) as uri:
            with PolicyClient(uri) as remote:
                _say(f"one request, served and in this process, {rounds} times {calls}")
                frames, answers = bench.questions(local, remote.obs_dims, clients)
                dims = remote.obs_dims.items()
                obs = {key: np.full((1, remote.n_obs_steps, dim), 200, np.float32) for key, dim in dims}
                timings = interleaved(
                    {"served": lambda: remote.predict_action(obs), "in process": lambda: local.predict_action(obs)},
                    rounds=rounds, calls=calls, warmup=10,
                )  # fmt: skip
            _say(f"{clients} clients at {rate:g} Hz for {seconds:g} s")
            load = asyncio.run(bench.load(uri, frames, answers, rate, seconds))
    timings[f"{clients} clients, from when due"] = summary([load.ms])
    p50, p95, p99, worst = np.quantile(load.ms, [0.5, 0.95, 0.99, 1])
    facts = {
        "policy": name, "clients": clients, "rate": f"{rate:g} Hz each, for {seconds:g} s",
        "asked": load.asked, "answered": load.answered, "wrong or another client's": load.wrong,
        "latency p50 / p95 / p99 / largest, ms": f"{p50:.1f} / {p95:.1f} / {p99:.1f} / {worst:.1f}",
        "answered within the period": f"{100 * np.mean(np.asarray(load.ms) <= 1e3 / rate):.2f} %",
        "served - 1.5 in process, ms": timings["served"].median - 1.5 * timings["in process"].median,
        "ratios": {"served / in process": ratio(timings["served"], timings["in process"])},
    }  # fmt: skip
    return _report("serve", timings, facts, out)


BENCHES: dict[str, Callable[..., dict[str, Any]]] = {
    "train": train,
    "infer": infer,
    "eval": evaluation,
    "data": data,
    "env": env,
    "serve": serve,
}


# Parts.


def _check(size: str, threads: int, device: str) -> tuple[int, ...]:
    import torch

    if size not in SIZES:
        raise InputError(f"size='{size}' is not one of {', '.join(SIZES)}.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device='{device}', but this PyTorch finds no GPU.")
    if threads:
        torch.set_num_threads(threads)
    return SIZES[size]


def _policy(down_dims: tuple[int, ...], statistics: Any) -> Policy:
    import numpy as np
    import torch

    from isdt_policy.method.policy import Policy, PolicyConfig

    torch.manual_seed(0)
    dims = {key: int(np.size(value["min"])) for key, value in statistics.items() if key != "action"}
    network = {"name": "unet1d", "down_dims": list(down_dims)}
    policy = Policy(PolicyConfig(task="pusht", obs_dims=dims, action_dim=2, network=network))
    policy.normalizer.fit(statistics)
    return policy


def _width(windows: Any) -> int:
    """Entries of one flattened observation history."""
    import numpy as np

    return sum(v[0].size for v in windows.batch(np.arange(1))["obs"].values())


def _baseline_network(count: int, down_dims: tuple[int, ...], windows: Any, device: str) -> tuple[Any, int]:
    import torch

    from isdt_policy.lab.bench.baseline import matched

    torch.manual_seed(0)
    network = matched(2, _width(windows), down_dims, count).to(device)
    return network.eval(), sum(p.numel() for p in network.parameters())


def _ddpm_step(
    count: int, down_dims: tuple[int, ...], windows: Any, policy: Policy, batch: int, device: str
) -> Callable[[], object]:
    """A plain training step as the field's code has it: eager float32, AdamW, EMA over the parameters."""
    import copy

    import numpy as np
    import torch

    from isdt_policy.lab.bench.baseline import TRAIN_STEPS

    scheduler = _scheduler("ddpm")
    network, _ = _baseline_network(count, down_dims, windows, device)
    network.train()
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    rng = np.random.default_rng(0)

    def step() -> float:
        obs, x = _normalised(policy, windows.batch(rng.integers(0, windows.n_windows, batch)), device)
        noise = torch.randn_like(x)
        k = torch.randint(0, TRAIN_STEPS, (batch,), device=device)
        loss = (network(scheduler.add_noise(x, noise, k), k, obs) - noise).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for a, b in zip(average.parameters(), network.parameters()):
                a.lerp_(b, 0.001)
        return loss.item()

    return step


def _sampler(
    network: Any, policy: Policy, obs: Any, windows: Any, kind: str, steps: int, device: str
) -> Callable[[], object]:
    """predict_action of the baseline: normalise, `steps` evaluations through diffusers, denormalise."""
    import torch

    scheduler = _scheduler(kind)
    scheduler.set_timesteps(steps)

    @torch.inference_mode()
    def act() -> object:
        batch = {"obs": obs, "action": torch.zeros(1, policy.horizon, 2)}
        flat, x = _normalised(policy, batch, device)
        x = torch.randn_like(x)
        for k in scheduler.timesteps:
            x = scheduler.step(network(x, k[None].to(device), flat), k, x).prev_sample
        part = {key: torch.as_tensor(value).to(device) for key, value in obs.items()}
        return policy.normalizer.unnormalize_action(x, part).cpu().numpy()

    return act


def _normalised(policy: Policy, batch: Any, device: str) -> tuple[Any, Any]:
    import torch

    obs = {key: torch.as_tensor(value).to(device) for key, value in batch["obs"].items()}
    with torch.no_grad():
        flat = torch.cat([x.flatten(1) for x in policy.normalizer.normalize_obs(obs).values()], dim=-1)
        return flat, policy.normalizer.normalize_action(torch.as_tensor(batch["action"]).to(device), obs)


def _scheduler(kind: str) -> Any:
    try:
        from diffusers import DDIMScheduler, DDPMScheduler
    except ImportError as error:
        raise InputError("the baseline needs diffusers: pip install 'isdt-policy[diffusers]'") from error
    from isdt_policy.lab.bench.baseline import TRAIN_STEPS

    maker = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[kind]
    return maker(num_train_timesteps=TRAIN_STEPS, beta_schedule="squaredcos_cap_v2", clip_sample=True)


def _each(function: Callable[[Any], object], values: list[Any]) -> Callable[[], object]:
    position = 0

    def call() -> object:
        nonlocal position
        position += 1
        return function(values[position % len(values)])

    return call


def _graph(function: Callable[[], Any]) -> Callable[[], object]:
    """The same kernels as one CUDA graph, replayed on the same tensors."""
    import torch

    for _ in range(3):
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def _keep(records: dict[Any, Any], run: Callable[[], Any]) -> Callable[[], object]:
    """Run, and keep (seed, success, length, sum of rewards) of every episode."""

    def call() -> None:
        result = run()
        rows = result if isinstance(result, list) else result.records
        records[run] = [(r["seed"], r["success"], r["length"], r["sum_reward"]) for r in rows]

    return call


def _loop(policy: Any, make_env: Callable[[], Any], seeds: list[int], rows: int = 0) -> list[dict[str, Any]]:
    """Evaluate as a script does: one environment, one row per call.

    Args:
        rows: what a call is padded to; 0 leaves what the evaluator has, whereby results are the same to the last bit.
    """
    import numpy as np

    env, before = make_env(), policy.inference_rows
    policy.inference_rows = rows or before
    records = []
    try:
        for seed in seeds:
            obs, _ = env.reset(seed=seed)
            history, rewards, decisions = [obs] * policy.n_obs_steps, [], 0
            over = success = False
            while not over:
                stacked = {k: np.stack([o[k] for o in history])[None].astype(np.float32) for k in policy.obs_keys}
                answer = policy.predict_action(stacked, nfe=1, noise_seeds=np.array([(seed, decisions)]))
                decisions += 1
                for action in answer["action"][0]:
                    obs, reward, terminated, truncated, info = env.step(action.astype(env.action_space.dtype))
                    history = [*history[1:], obs]
                    rewards.append(float(reward))
                    success = success or bool(info["is_success"])
                    over = terminated or truncated
                    if over:
                        break
            records.append(
                {"seed": seed, "success": success, "length": len(rewards), "sum_reward": float(np.sum(rewards))}
            )
    finally:
        env.close()
        policy.inference_rows = before
    return records


def _bare(simulator: Any) -> Callable[[], object]:
    import numpy as np

    rng = np.random.default_rng(0)
    return lambda: simulator.step(rng.uniform(-0.5, 0.5, 7))


def _stepper(environment: Any, low: float, high: float, size: int) -> Callable[[], object]:
    import numpy as np

    rng = np.random.default_rng(0)
    environment.reset(seed=0)

    def step() -> None:
        _, _, terminated, truncated, _ = environment.step(rng.uniform(low, high, size).astype(np.float32))
        if terminated or truncated:
            environment.reset(seed=0)

    return step


def _say(text: str) -> None:
    print(f"isdt bench: {text}", file=sys.stderr, flush=True)


def _report(what: str, timings: dict[str, Timing], facts: dict[str, Any], out: str) -> dict[str, Any]:
    """Print the table; write JSON and Markdown where `out` says."""
    import dataclasses
    import os

    from isdt_policy.eval.command import hardware, versions
    from isdt_policy.shared.provenance import commit

    machine = hardware()
    lines = [f"# isdt bench {what}", ""]
    if timings:
        lines += ["| what | median, ms | quartiles | 99 % | calls |", "|---|---|---|---|---|"]
        lines += [
            f"| {name} | {t.median:.3g} | {t.low:.3g} to {t.high:.3g} | {t.p99:.3g} | {t.calls} |"
            for name, t in timings.items()
        ]
        lines.append("")
    lines += ["| ratio | median of turns | range |", "|---|---|---|"]
    lines += [f"| {n} | {r[0]:.2f} | {r[1]:.2f} to {r[2]:.2f} |" for n, r in facts["ratios"].items()]
    lines.append("")
    rest = {key: value for key, value in facts.items() if key != "ratios"}
    lines += [f"- {key}: {_plain(value)}" for key, value in rest.items()]
    load = os.getloadavg()[0]
    lines += [
        f"- {machine['processor']}, {machine['cores']} cores, threads {machine.get('torch_threads')}, load {load:.1f}"
    ]
    task = what.partition("task=")[2] or "pusht"
    lines += [f"- {', '.join(f'{k} {v}' for k, v in versions(task).items())}; commit {commit()}"]
    print("\n".join(lines))
    result = {
        "what": what, "timings_ms": {n: dataclasses.asdict(t) for n, t in timings.items()}, **facts,
        "hardware": machine, "load": load, "versions": versions("pusht"), "commit": commit(),
    }  # fmt: skip
    if out:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    return result


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
