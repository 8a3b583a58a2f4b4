"""Hostile messages, commands over every combination of limits, sensors and servers that die, disks that fill up."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

Trial = Callable[[int], tuple[str | dict[str, int], str]]


# Commands.


def commands(_: Path) -> Trial:
    """A block: about a thousand commands of some combination of limits."""
    from test_motion import KINDS, ORDER, drive, random_limits

    from isdt_policy.deploy.limits import Limits
    from isdt_policy.deploy.safety import Safety

    combinations = [names for r in range(len(KINDS) + 1) for names in itertools.combinations(KINDS, r)]

    def block(number: int) -> tuple[dict[str, int], str]:
        rng, names, made, wrong = np.random.default_rng(number), combinations[number % len(combinations)], 0, []
        while made < 1000:
            size, dt = int(rng.integers(1, 4)), float(10 ** rng.uniform(-3, -0.5))
            scale = 10 ** rng.uniform(-2, 2, size)
            values = random_limits(rng, names, size, scale)
            stage = Safety(Limits(**values, position="x"), action_dim=size, rate_hz=1 / dt)
            start = (scale * rng.normal(0, 1, size)).astype(np.float32).astype(np.float64)
            stage.reset(start)
            path = drive(rng, stage, start, scale, 250)
            made += 250
            held = [("finite", np.isfinite(path).all())]
            for name in set(names) & set(ORDER):
                order, power = ORDER[name]
                rounding = 2**order * np.abs(path).max(axis=0) * 2**-24
                changes = np.abs(np.diff(path, order, axis=0))
                held.append((name, (changes <= values[name] * dt**power * (1 + 1e-6) + rounding).all()))
            if "low" in names:
                held.append(("low", (path >= np.minimum(values["low"], start)).all()))
            if "high" in names:
                held.append(("high", (path <= np.maximum(values["high"], start)).all()))
            wrong += [f"{names}: {name} is exceeded" for name, holds in held if not holds]
        counts = {"survived": made - len(wrong), "wrong": len(wrong)}
        return {k: n for k, n in counts.items() if n}, "; ".join(wrong)

    return block


# Sensors.


class Dying:
    """A position whose sensor dies at a step, in one way, for so many steps."""

    def __init__(self, way: str, at: int, lasts: int) -> None:
        self.way, self.at, self.lasts = way, at, lasts

    def reset(self, seed: int | None = None, options: object = None) -> tuple[dict[str, object], dict[str, object]]:
        self.steps, self.commands = 0, [np.zeros(1)]
        self.seen = np.zeros(1, np.float32)
        return {"x": self.seen}, {}

    def step(self, command: np.ndarray) -> tuple[object, float, bool, bool, dict[str, object]]:
        self.steps += 1
        self.commands.append(command.astype(np.float64))
        if not self.at <= self.steps < self.at + self.lasts:
            self.seen = np.array(command) + np.float32(1e-4 * self.steps)
            return {"x": self.seen}, 0.0, self.steps >= 200, False, {}
        found = {
            "none": None, "nan": {"x": np.full(1, np.nan)}, "infinite": {"x": np.full(1, np.inf)}, "same": {"x": self.seen},
        }[self.way]  # fmt: skip
        return found, 0.0, self.steps >= 200, False, {}


class Walking:
    """A policy that always wants to go on: from what it saw, a chunk that moves."""

    n_obs_steps, n_action_steps, horizon, obs_keys = 1, 4, 8, ("x",)

    def reset(self) -> None:
        pass

    def predict_action(self, obs: dict[str, np.ndarray], **_: object) -> dict[str, np.ndarray]:
        chunk = obs["x"][:, -1:, :] + 0.1 * np.arange(1, 9)[None, :, None]
        return {"action": chunk[:, :4], "action_pred": chunk}


def sensors(_: Path) -> Trial:
    """One sensor that dies, in every way, mode and answer to a fault."""
    from isdt_policy.deploy.controller import Control, control
    from isdt_policy.deploy.latency import parse_latency
    from isdt_policy.deploy.limits import Limits
    from isdt_policy.deploy.safety import Safety

    ways = list(itertools.product(
        ("none", "nan", "infinite", "same"), ("sync", "async"), ("hold", "stop"), ("none", "30ms", "250ms"), (3, 500),
    ))  # fmt: skip

    def trial(number: int) -> tuple[str, str]:
        way, mode, on_fault, latency, lasts = ways[number % len(ways)]
        rng = random.Random(number)
        env, max_age = Dying(way, rng.randint(2, 60), lasts), rng.uniform(0.5, 1.5)
        stage = Safety(Limits(), action_dim=1, rate_hz=10, on_fault=on_fault, max_age_s=max_age, positions=True)
        settings = Control(10, mode=mode, virtual=True, episodes=1, latency=parse_latency(latency))
        report = control(Walking(), env, stage, settings)
        moves = np.abs(np.diff(np.concatenate(env.commands))) > 0
        silent = range(env.at + int(max_age * 10) + 2, min(env.at + lasts, len(moves)))
        late = [k for k in silent if moves[k]]
        about = f"{way}, {mode}, {on_fault}, latency {latency}, from step {env.at}, max_age {max_age:.2f} s"
        if late:
            return "wrong", f"{about}: moved in steps {late[:5]}"
        noticed = report.stopped is not None if on_fault == "stop" else report.interventions.get("stale", 0) > 0
        if lasts > 100 and not noticed:
            return "wrong", f"{about}: {report.interventions}, stopped {report.stopped}"
        if lasts < 100 and on_fault == "hold" and not moves[env.at + lasts + 12 : 190].any():
            return "lost", f"{about}: it did not go on"
        return "survived", ""

    return trial


# Servers.


def servers(folder: Path) -> Trial:
    """One server that dies, freezes or lies in the middle; the loop holds, within its time, and goes on."""
    from test_strangers import Stub, good

    from isdt_policy.deploy.client import PolicyClient
    from isdt_policy.deploy.runtime import Runtime
    from isdt_policy.deploy.wire import pack

    def lies(kind: str, number: int, rng: random.Random) -> list[tuple[float, object]]:
        right = good(number, number)
        broken: dict[str, object] = {
            "rows": right | {"action_pred": np.zeros((2, 3, 1), np.float32)}, "columns": right | {"actions": np.zeros((1, 2, 2))},
            "nan": right | {"action_pred": np.full((1, 3, 1), np.nan, np.float32)}, "text": "Traceback: out of memory",
            "nothing": b"", "noise": rng.randbytes(rng.randint(1, 99)), "cut": pack(right)[: rng.randint(1, 60)],
            "list": pack([1, 2]), "number": right | {"request": number + 1},
            "no number": {k: right[k] for k in right if k != "request"},
            "dtype": right | {"action_pred": np.zeros((1, 3, 1), np.int8)}, "words": right | {"actions": "abc"},
        }  # fmt: skip
        if kind == "late":
            return [(0.35, right)]
        if kind == "twice":
            return [(0, right), (0, good(-1.0, number))]
        return [(0, broken[kind])]

    kinds = [
        "late",
        "twice",
        "rows",
        "columns",
        "nan",
        "text",
        "nothing",
        "noise",
        "cut",
        "list",
        "number",
        "no number",
        "dtype",
        "words",
    ]

    def trial(number: int) -> tuple[str, str]:
        kind, rng = kinds[number % len(kinds)], random.Random(number)
        bad = {rng.randint(2, 9) for _ in range(3)}

        def answer(message: dict[str, int]) -> list[tuple[float, object]]:
            n = message["request"]
            return lies(kind, n, rng) if n in bad else [(0, good(n, n))]

        slowest, seen = 0.0, []
        with Stub(answer) as uri, PolicyClient(uri, timeout_s=0.2) as client:
            runtime = Runtime(client)
            for k in range(24):
                begin = time.monotonic()
                decision = runtime.step({"x": [float(k)]})
                slowest = max(slowest, time.monotonic() - begin)
                seen.append(None if decision.action is None else float(decision.action[0]))
        known = [value for value in seen if value is not None]
        about = f"{kind} at {sorted(bad)}: {seen}"
        if any(
            value < 0 or value != round(value) or (value in bad and kind not in ("late", "twice", "no number"))
            for value in known
        ):
            return "wrong", about
        if slowest > 5 or len(known) < 6 or seen[-2:] == [None, None]:
            return "lost", f"{about}, slowest {slowest:.1f} s"
        return "survived", ""

    return trial


# Messages.


def messages(folder: Path) -> Trial:
    """A block: five hundred hostile messages while sixteen clients are served, whose answers are compared bit for bit."""
    from isdt_deploy_toys import observations, served
    from test_flood import memory, nonsense
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    from isdt_policy.deploy.client import PolicyClient

    def block(number: int) -> tuple[dict[str, int], str]:
        done, found, rng = threading.Event(), Counter[str](), np.random.default_rng(number)
        with served(folder) as (process, uri, policy):
            rows = [observations(1, seed) for seed in range(16)]
            seeds = np.array([[1, 1]])
            expected = [policy.predict_action(obs, noise_seeds=seeds)["action"] for obs in rows]  # type: ignore[attr-defined]

            def client(i: int) -> None:
                with PolicyClient(uri, timeout_s=30) as one:
                    while not done.is_set():
                        try:
                            got = one.predict_action(rows[i], noise_seeds=seeds)["action"]
                            found["answered" if np.array_equal(got, expected[i]) else "wrong"] += 1
                        except Exception:
                            found["lost"] += 1
                        time.sleep(0.2)
                    found["lost"] += one.reconnects

            threads = [threading.Thread(target=client, args=(i,)) for i in range(16)]
            [thread.start() for thread in threads]
            connection, before = None, memory(process)
            for _ in range(500):
                if connection is None:
                    connection = connect(uri, compression=None, max_size=None, open_timeout=60)
                    connection.recv(timeout=60)
                _, frame, _ = nonsense(rng)
                try:
                    connection.send(frame)
                    reply = connection.recv(timeout=60)
                    found["survived"] += 1
                    if isinstance(reply, str) and reply.startswith("The message cannot be read"):
                        connection = None
                except ConnectionClosed as closed:
                    found["survived" if closed.rcvd is not None and closed.rcvd.code == 1009 else "wrong"] += 1
                    connection = None
                except TimeoutError:
                    found["wrong"] += 1  # no answer at all
                    connection = None
            grown, alive = memory(process) - before, process.poll() is None
            done.set()
            [thread.join() for thread in threads]
        seen = f"{found.pop('answered')} answers to clients, memory +{grown:.0f} MB"
        found["wrong"] += int(grown > 40) + int(not alive)
        return {name: n for name, n in found.items() if n}, seen

    return block


# Disks.


def disk(folder: Path) -> Trial:
    """A command on a disk that fills up after so many bytes, or can only be read; then again where there is room."""
    from kills import Kills

    given = Kills("store", folder).given
    place = folder / "disk"
    commands = {
        "convert": ["data", "convert", f"{given}/demos.zarr", f"{place}/o.zarr"],
        "convert_hdf5": ["data", "convert", f"{given}/demos.zarr", f"{place}/o.hdf5"],
        "view": ["data", "view", f"{given}/demos.zarr", f"out={place}/o.html", "episodes=0"],
        "generate": ["data", "generate", "task=avoiding", "episodes=2", "workers=1", f"out={place}/o.zarr"],
        "record": ["data", "record", f"out={place}/o.zarr", f"checkpoint={given}/run", "episodes=2", "max_steps=8"],
        "train": ["train", "task=avoiding", f"data.path={given}/demos.zarr", f"run_dir={place}/run", "training.steps=4",
                  "training.checkpoint_every=2", "if_exists=resume", "network.down_dims=[8,16]", "training.loggers=[auto]",
                  "training.diagonal_steps=1", "training.compile=false", "training.batch_size=8"],
        "eval": ["eval", f"checkpoint={given}/run", f"out={place}/e", "episodes=2", "max_steps=8", "videos=1"],
        "export": ["export", f"checkpoint={given}/run", f"out={place}/o.onnx", "check=2"],
        "deploy": ["deploy", f"checkpoint={given}/run", "seconds=1", "clock=virtual", f"out={place}/o.json"],
        "tune": ["tune", "task=avoiding", f"data.path={given}/demos.zarr", "training.steps=4", "training.loggers=[]",
                 "network.down_dims=[8,16]", "training.diagonal_steps=1", "training.compile=false", "training.batch_size=8",
                 "training.lr=choice(1e-4,1e-3)", "trials=1", "episodes=1", "look_episodes=1", f"out={place}/tune"],
    }  # fmt: skip

    def call(words: list[str]) -> tuple[int, str, str]:
        # A process of its own: torch's exporter does not go on in a child forked from one that has computed.
        done = subprocess.run(
            [sys.executable, "-m", "isdt_policy", *words], capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stderr, (done.stderr.strip().splitlines() or [""])[-1]

    def trial(number: int) -> tuple[str, str]:
        name, rng = list(commands)[number % len(commands)], random.Random(number)
        only_read, room = number // len(commands) % 4 == 3, int(10 ** rng.uniform(4, 6.2))
        os.path.ismount(place) and subprocess.run(["umount", place], check=True)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={max(room, 8192)}", "tmpfs", place], check=True)
        try:
            if only_read:
                subprocess.run(["mount", "-o", "remount,ro", place], check=True)
            code, said, line = call(commands[name])
            about = f"{name}, {'read-only' if only_read else f'{room} bytes'}: exit {code}: {line[-300:]}"
            if "Traceback" in said or code not in (0, 2) or (code == 2 and not line.startswith("isdt ")):
                return "wrong", f"{about} {said[-500:]}"
            parts = [str(p.relative_to(place)) for p in place.rglob("*") if p.name.endswith((".part", ".tmp", ".new"))]
            if parts:
                return "wrong", f"{about}; parts are left: {parts}"
            subprocess.run(["mount", "-o", "remount,rw,size=200m", place], check=True)
            again = call(commands[name])
            exists = code == 0 and again[0] == 2 and "exists" in again[2]  # it was done the first time
            if again[0] and not exists:
                return "lost", f"{about}; then, with room: exit {again[0]}: {again[1][-600:]}"
            return "survived", ""
        finally:
            subprocess.run(["umount", place], check=False)

    return trial
