"""A policy server as a process of its own, asked at a fixed rate by many clients at once."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.deploy.wire import pack, unpack
from isdt_policy.shared.errors import InputError

QUESTIONS = 32  # different ones per client, asked in turn


@contextmanager
def server(checkpoint: str, threads: int) -> Iterator[str]:
    """Run `isdt serve` and give its address."""
    command = [sys.executable, "-m", "isdt_policy", "serve", f"checkpoint={checkpoint}", "port=0"]
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


def questions(policy: Any, obs_dims: dict[str, int], clients: int) -> tuple[list[list[bytes]], NDArray[np.float32]]:
    """Return messages per client, no two alike, and the right answers (clients, QUESTIONS, n_action_steps, d)."""
    rng, answers = np.random.default_rng(0), []
    frames: list[list[bytes]] = []
    for client in range(clients):
        frames.append([])
        for k in range(QUESTIONS):
            obs = {
                key: rng.uniform(50, 450, (1, policy.n_obs_steps, dim)).astype(np.float32)
                for key, dim in obs_dims.items()
            }
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
                action = unpack(reply)["actions"]
                result.wrong += not np.allclose(action, answers[which, k % QUESTIONS], rtol=0, atol=tolerance)

    ready, tasks = asyncio.Event(), [asyncio.create_task(client(i)) for i in range(len(frames))]
    await asyncio.sleep(0.5)
    start = time.perf_counter() + 0.1
    ready.set()
    await asyncio.gather(*tasks)
    return result
