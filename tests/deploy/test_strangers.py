"""A server among strangers: whoever sends what, others are served; and a client whose server does anything at all."""

import asyncio
import socket
import subprocess
import sys
import threading
import time

import msgpack
import numpy as np
import pytest
from isdt_deploy_server import FromTheDocuments, Running, row
from isdt_deploy_toys import MLP, observations, tiny_policy
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import connect

from isdt_policy.deploy import server as server_module
from isdt_policy.deploy.client import PolicyClient
from isdt_policy.deploy.runtime import Runtime
from isdt_policy.deploy.wire import pack, unpack
from isdt_policy.shared.errors import InputError, nearest

pytestmark = pytest.mark.slow


class Toy:
    """Answers with the seed of the row; raises or answers nonsense where the observation says so."""

    n_obs_steps, n_action_steps, horizon, obs_keys, obs_dims, action_dim, task = 1, 2, 3, ("x",), {"x": 1}, 1, ""
    errors = (None, StopIteration("x"), SystemExit(3), RuntimeError("/home/me"), KeyboardInterrupt(), GeneratorExit())
    seconds, most = 0.0, 0

    def reset(self):
        pass

    def predict_action(self, obs, *, nfe=1, noise_seeds=None):
        time.sleep(self.seconds)
        wish = obs["x"][:, 0, 0]
        self.most = max(self.most, len(wish))
        for number, error in enumerate(self.errors):
            if error is not None and (wish == number).any():
                raise error
        pred = np.repeat(noise_seeds[:, None, :1], 3, axis=1).astype(np.float32)
        pred[wish == 6] = np.nan
        return {"action": pred[:, 1:] if not (wish == 7).any() else pred[:0], "action_pred": pred}


def ask(x, seed=9):
    return {"x": np.full((1, 1, 1), float(x), np.float32), "noise_seeds": np.array([[seed, 0]])}


@pytest.fixture(scope="module")
def running():
    with Running(Toy()) as server:
        yield server


@pytest.mark.parametrize(("x", "reason"), [
    (1, r"^Internal error: StopIteration\."), (2, r"^Internal error: SystemExit\."), (3, r"^Internal error: RuntimeError\."),
    (4, r"^Internal error: KeyboardInterrupt\."), (6, "action has NaN or infinity"), (7, r"action has shape \(0, 3, 1\)"),
    (5, r"^Internal error: GeneratorExit\."),
])  # fmt: skip
def test_whatever_a_policy_does_is_an_answer_and_the_connection_goes_on(running, x, reason):
    client = FromTheDocuments(running.uri)
    with pytest.raises(RuntimeError, match=reason):
        client.infer(ask(x))
    assert client.infer(ask(0))["actions"].tolist() == [[[9], [9]]]


def test_a_bad_request_fails_alone_among_those_it_was_computed_with(monkeypatch):
    policy = Toy()
    policy.seconds = 0.05  # so that requests wait for each other
    wrong, right, failed = [], [], []

    def innocent(i):
        with PolicyClient(running.uri) as client:
            for k in range(8):
                obs = {"x": np.zeros((1, 1, 1))}
                got = client.predict_action(obs, noise_seeds=np.array([[10 * i + k, 0]]))["action"]
                (right if (got == 10 * i + k).all() else wrong).append(got)

    def attacker(x):
        with PolicyClient(running.uri) as client:
            for _ in range(8):
                with pytest.raises(InputError, match=r"Internal error|NaN"):
                    client.predict_action({"x": np.full((1, 1, 1), x)})
                failed.append(x)

    with Running(policy) as running:
        threads = [threading.Thread(target=innocent, args=(i,)) for i in range(3)]
        threads += [threading.Thread(target=attacker, args=(x,)) for x in (1, 2, 3, 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert policy.most > 1  # they did share batches
    assert (len(right), len(wrong), len(failed)) == (24, 0, 32)


def test_seeds_that_no_generator_takes_are_refused_before_they_are_computed():
    with Running(tiny_policy(network=MLP)) as running:
        client = FromTheDocuments(running.uri)
        for seeds in (np.array([[-(2**63), 0]]), np.array([[2**64 - 1, 0]], np.uint64)):
            with pytest.raises(RuntimeError, match=r"^InputError: noise_seeds must be above -2\*\*63"):
                client.infer({**row(observations(1)), "noise_seeds": seeds})
        edge = np.array([[-(2**63) + 1, 0]])
        assert client.infer({**row(observations(1)), "noise_seeds": edge})["actions"].shape == (8, 2)


FLOOD = """
import socket, sys, threading
host, port = sys.argv[1], int(sys.argv[2])
frame, first = (bytes.fromhex(line) for line in sys.stdin)
def flood():
    raw = socket.create_connection((host, port))
    raw.sendall(f"GET / HTTP/1.1\\r\\nHost: {host}\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n".encode())
    raw.recv(4096)
    raw.sendall(first)
    while True:
        raw.sendall(frame * max(1, 8000 // len(frame)))
threads = [threading.Thread(target=flood) for _ in range(3)]
[thread.start() for thread in threads]
"""


async def processor_time():
    return time.thread_time()


def serve_one(running, n=60):
    """An innocent client's slowest answer but for a tenth, seconds; and the share of time that the server's loop computed."""
    times, begin = [], time.perf_counter()
    used = asyncio.run_coroutine_threadsafe(processor_time(), running.loop).result()
    with PolicyClient(running.uri, timeout_s=30) as client:
        for _ in range(n):
            asked = time.perf_counter()
            client.predict_action({"x": np.zeros((1, 1, 1))}, noise_seeds=np.array([[1, 0]]))
            times.append(time.perf_counter() - asked)
            time.sleep(0.01)
    used = asyncio.run_coroutine_threadsafe(processor_time(), running.loop).result() - used
    return float(np.percentile(times, 90)), used / (time.perf_counter() - begin)


def binary(data, fin=True):
    return Frame(Opcode.BINARY, data, fin).serialize(mask=True)


@pytest.mark.parametrize(("frame", "first"), [
    (b"\x00\x80\x00\x00\x00\x00", binary(b"", fin=False)),
    (b"\x8a\x80\x00\x00\x00\x00", b""),
    (binary(msgpack.packb({f"keypoint{i}": 0 for i in range(900)})), b""),
    (binary(msgpack.packb({"x": [[0] * 50_000] * 3})), b""),
], ids=["empty fragments", "pongs", "near misses", "long lists"])  # fmt: skip
def test_a_flood_of_some_does_not_keep_others_waiting(frame, first):
    """Three connections send as fast as they can. A stream of empty frames made others wait for over a second.

    The share of time is what counts: waiting times are also those of other programs on the machine.
    """
    with Running(Toy(), message_timeout=600) as running:
        quiet, quiet_share = serve_one(running)
        command = [sys.executable, "-c", FLOOD, *running.uri.removeprefix("ws://").split(":")]
        flood = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
        flood.stdin.write(f"{frame.hex()}\n{first.hex()}\n")
        flood.stdin.close()
        try:
            time.sleep(0.5)
            loud, loud_share = serve_one(running)
            ended = flood.poll()
        finally:
            flood.kill()
            flood.wait()
    assert ended is None  # nobody was cut off for it either
    assert loud_share < quiet_share + 0.4, (quiet_share, loud_share)
    assert loud < 3 * quiet + 1, (quiet, loud)


def test_a_map_of_very_many_keys_is_refused_unread(running):
    client = FromTheDocuments(running.uri)
    begin = time.perf_counter()
    client.connection.send(msgpack.packb({f"keypoint{i}": 0 for i in range(60_000)}))
    assert "cannot be read" in client.connection.recv(timeout=10)
    assert time.perf_counter() - begin < 1  # 2.7 s of looking for the nearest name


def test_near_misses_are_looked_for_among_few():
    begin = time.perf_counter()
    assert nearest("keypoints", (f"keypoint{i}" for i in range(10**9))).startswith(" Did you mean 'keypoint")
    assert nearest("k" * 10**6, ["k" * 10**6]) == ""
    assert time.perf_counter() - begin < 0.5


def test_silent_connections_make_room_and_busy_ones_do_not(monkeypatch):
    monkeypatch.setattr(server_module, "SILENT_S", 0.4)
    with Running(Toy(), max_connections=3) as running:
        silent = [FromTheDocuments(running.uri) for _ in range(3)]
        with pytest.raises(InvalidStatus) as refused:
            FromTheDocuments(running.uri)
        assert refused.value.response.status_code == 503
        time.sleep(0.5)
        assert silent[1].infer(ask(0))["actions"].shape == (1, 2, 1)
        late = FromTheDocuments(running.uri)  # in the place of silent[0]
        assert late.infer(ask(0))["actions"].shape == (1, 2, 1)
        with pytest.raises(ConnectionClosed) as closed:
            silent[0].connection.recv(timeout=5)
        assert closed.value.rcvd.code == 1013
        assert silent[1].infer(ask(0))["actions"].shape == (1, 2, 1)


def test_browsers_and_doubled_headers_are_refused(running):
    with pytest.raises(InvalidStatus) as refused:
        connect(running.uri, origin="https://elsewhere.example")
    assert refused.value.response.status_code == 403
    with Running(Toy(), api_key="secret") as guarded:
        twice = [("Authorization", "Api-Key secret"), ("Authorization", "Api-Key secret")]
        with pytest.raises(InvalidStatus) as refused:
            connect(guarded.uri, additional_headers=twice)
        assert refused.value.response.status_code == 401
        assert FromTheDocuments(guarded.uri, "secret").infer(ask(0))["actions"].shape == (1, 2, 1)


def test_the_arrays_of_another_package_get_a_line_that_says_so(running):
    client = FromTheDocuments(running.uri)
    theirs = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": (1,), b"data": bytes(4)}
    client.connection.send(msgpack.packb({"x": theirs}))
    assert "packed by msgpack-numpy; pack with openpi_client" in client.connection.recv(timeout=10)


# Clients.


class Stub:
    """A server that answers every request with what a function makes of it: frames, after as many seconds."""

    def __init__(self, answer):
        self.answer = answer

    def __enter__(self):
        ready = threading.Event()
        said = {"server": "isdt-policy", "task": "", "obs_dims": {"x": 1}, "action_dim": 1, "n_obs_steps": 1,
                "n_action_steps": 2, "horizon": 3, "steps": "1", "continues": False, "numbers": True}  # fmt: skip

        async def handle(connection):
            await connection.send(pack(said))
            async for frame in connection:
                for wait, reply in self.answer(unpack(frame)):
                    await asyncio.sleep(wait)
                    await connection.send(reply if isinstance(reply, bytes | str) else pack(reply))

        async def main():
            self.stop, self.loop = asyncio.Event(), asyncio.get_running_loop()
            async with serve(handle, "127.0.0.1", 0) as server:
                self.uri = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
                ready.set()
                await self.stop.wait()

        self.thread = threading.Thread(target=lambda: asyncio.run(main()))
        self.thread.start()
        assert ready.wait(10)
        return self.uri

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join()


def good(value, number):
    pred = np.full((1, 3, 1), value, np.float32)
    return {"actions": pred[:, 1:], "action_pred": pred, "server_timing": {}, "request": number}


@pytest.mark.parametrize("change", [
    {"action_pred": np.zeros((1, 4, 1), np.float32)}, {"actions": np.zeros((1, 2, 2), np.float32)}, {"actions": None},
    {"action_pred": np.full((1, 3, 1), np.nan, np.float32)}, {"actions": "abc"}, {"action_pred": np.zeros((1, 3, 1), np.int8)},
    {"action_pred": [[[0.0], [0.0], [0.0]]]}, "no map", "text",
], ids=str)  # fmt: skip
def test_a_malformed_answer_is_held_for_and_does_not_end_the_loop(change):
    """Every second answer is malformed."""

    def answer(message):
        number = message["request"]
        if number % 2 == 0:
            broken = {"no map": pack([1, 2]), "text": "nonsense"}.get(change) if isinstance(change, str) else None
            return [(0, broken if broken is not None else good(number, number) | change)]
        return [(0, good(number, number))]

    with Stub(answer) as uri, PolicyClient(uri) as client:
        runtime = Runtime(client)
        actions = [runtime.step({"x": [float(i)]}).action for i in range(6)]
    assert [None if a is None else float(a[0]) for a in actions] == [1, 1, None, 3, 3, None]


def test_a_late_answer_is_not_taken_for_that_of_the_next_request():
    def answer(message):
        return [(0.5 if message["request"] == 1 else 0.0, good(message["request"], message["request"]))]

    with Stub(answer) as uri, PolicyClient(uri, timeout_s=0.3) as client:
        with pytest.raises(TimeoutError, match=r"did not answer within 0\.3 s"):
            client.predict_action({"x": np.zeros((1, 1, 1))})
        time.sleep(0.3)  # the first answer is there by now
        got = client.predict_action({"x": np.zeros((1, 1, 1))})
        assert got["action"].ravel().tolist() == [2, 2]
        assert client.reconnects == 0


def test_a_frozen_server_costs_the_time_that_was_asked_for():
    """Its port takes connections and bytes, and nothing ever comes back."""

    def freeze(message):
        return [(2.5, b"")]

    with Stub(freeze) as uri, PolicyClient(uri, timeout_s=0.3) as client:
        for _ in range(3):
            begin = time.monotonic()
            with pytest.raises(TimeoutError):
                client.predict_action({"x": np.zeros((1, 1, 1))})
            assert time.monotonic() - begin < 0.8
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        with pytest.raises(InputError, match="no policy server"):
            PolicyClient(f"ws://127.0.0.1:{silent.getsockname()[1]}", timeout_s=5, patience_s=0.5)
        assert time.monotonic() - begin < 2
