"""A policy server as a process of its own: one request against the same call in this process, then many clients at a fixed
rate."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isdt_policy.deploy.client import PolicyClient
from isdt_policy.deploy.export import export
from isdt_policy.deploy.loading import load_policy
from isdt_policy.deploy.wire import pack, unpack
from isdt_policy.envs.protocol import Policy
from isdt_policy.lab.bench.measure import interleaved, ratio, summary
from isdt_policy.lab.bench.report import Measured
from isdt_policy.lab.bench.settings import Serve
from isdt_policy.lab.bench.subject import prepare, say, subject
from isdt_policy.shared.errors import InputError

QUESTIONS = 32  # different ones per client, asked in turn


def measure(what: Serve) -> Measured:
    """Time a request, then the clients' answers."""
    device = prepare(what.threads, what.device)
    checkpoint = what.checkpoint
    with tempfile.TemporaryDirectory() as folder:
        if not checkpoint:
            say("exporting to ONNX")
            checkpoint = str(export(subject(what.size).policy, Path(folder) / "policy.onnx"))
        local = load_policy(checkpoint, device=device)
        with server(checkpoint, what.threads, device) as uri:
            with PolicyClient(uri) as remote:
                say(f"one request, served and in this process, {what.rounds} times {what.calls}")
                frames, answers = questions(local, remote, what.clients)
                obs = question(remote, 200, 201)
                timings = interleaved(
                    {"served": lambda: remote.predict_action(obs), "in process": lambda: local.predict_action(obs)},
                    rounds=what.rounds, calls=what.calls, warmup=10,
                )  # fmt: skip
            say(f"{what.clients} clients at {what.rate:g} Hz for {what.seconds:g} s")
            answered = asyncio.run(load(uri, frames, answers, what.rate, what.seconds))
    timings[f"{what.clients} clients, from when due"] = summary([answered.ms])
    p50, p95, p99, worst = np.quantile(answered.ms, [0.5, 0.95, 0.99, 1])
    facts = {
        "policy": what.checkpoint or f"untrained, {what.size}, ONNX Runtime", "clients": what.clients,
        "device": device,
        "rate": f"{what.rate:g} Hz each, for {what.seconds:g} s",
        "asked": answered.asked, "answered": answered.answered, "wrong or another client's": answered.wrong,
        "latency p50 / p95 / p99 / largest, ms": f"{p50:.1f} / {p95:.1f} / {p99:.1f} / {worst:.1f}",
        "answered within the period": f"{100 * np.mean(np.asarray(answered.ms) <= 1e3 / what.rate):.2f} %",
        "served - 1.5 in process, ms": timings["served"].median - 1.5 * timings["in process"].median,
    }  # fmt: skip
    ratios = {"served / in process": ratio(timings["served"], timings["in process"])}
    return Measured("serve", timings, ratios, facts)


@contextmanager
def server(checkpoint: str, threads: int, device: str = "cpu") -> Iterator[str]:
    """Run `isdt serve` and give its address."""
    command = [sys.executable, "-m", "isdt_policy", "serve", f"checkpoint={checkpoint}", f"device={device}", "port=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            found = re.search(r"ws://\S+", process.stdout.readline())
            if found is None:
                raise InputError(f"the server did not start: {' '.join(command)}")
            yield found[0]
        finally:
            process.terminate()
            process.wait(20)


@dataclass
class Load:
    """What came back. Milliseconds count from when a question was due, so a late one counts its wait as well."""

    asked: int = 0
    answered: int = 0
    wrong: int = 0
    ms: list[float] = field(default_factory=list)


def question(remote: PolicyClient, low: int, high: int, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """One row of observations between two numbers."""
    rng, n = np.random.default_rng(seed), remote.n_obs_steps
    states = {k: rng.uniform(low, high, (1, n, d)).astype(np.float32) for k, d in remote.obs_dims.items()}
    return {**states, **{k: rng.integers(low, high, (1, n, *s), np.uint8) for k, s in remote.image_shapes.items()}}


def questions(policy: Policy, remote: PolicyClient, clients: int) -> tuple[list[list[bytes]], NDArray[np.float32]]:
    """Return messages per client, no two alike, and the right answers (clients, QUESTIONS, n_action_steps, d)."""
    answers = []
    frames: list[list[bytes]] = []
    for client in range(clients):
        frames.append([])
        for k in range(QUESTIONS):
            obs = question(remote, 50, 250, seed=client * QUESTIONS + k)
            seeds = np.array([[client, k]])
            frames[-1].append(pack({**{key: value[0] for key, value in obs.items()}, "noise_seeds": seeds}))
            answers.append(policy.predict_action(obs, noise_seeds=seeds)["action"][0])
    return frames, np.stack(answers).reshape(clients, QUESTIONS, *answers[0].shape)


async def load(uri: str, frames: list[list[bytes]], answers: NDArray[np.float32], rate: float, seconds: float) -> Load:
    """Ask from len(frames) connections, each at `rate` Hz for `seconds`."""
    from websockets.asyncio.client import connect

    result, period, n = Load(), 1 / rate, round(rate * seconds)
    # Rounding apart: rows of a batch of another size may differ in their last bits.
    tolerance = 1e-4 * float(np.abs(answers).max())

    async def client(which: int) -> None:
        async with connect(uri, compression=None, max_size=None) as connection:
            await connection.recv()
            await ready.wait()
            begin = start + which * period / len(frames)  # not all at the same moment
            for k in range(n):
                due = begin + k * period
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                result.asked += 1
                await connection.send(frames[which][k % QUESTIONS])
                reply = await connection.recv()
                result.ms.append(1e3 * (time.perf_counter() - due))
                if isinstance(reply, str):
                    continue
                result.answered += 1
                answer = unpack(reply)
                assert isinstance(answer, dict)
                action = answer["actions"]
                result.wrong += not np.allclose(action, answers[which, k % QUESTIONS], rtol=0, atol=tolerance)

    ready, tasks = asyncio.Event(), [asyncio.create_task(client(i)) for i in range(len(frames))]
    await asyncio.sleep(0.5)
    start = time.perf_counter() + 0.1
    ready.set()
    await asyncio.gather(*tasks)
    return result
