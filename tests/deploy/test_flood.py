"""`isdt serve` as a process of its own, against ten thousand messages it cannot answer."""

import contextlib
import os
import pickle
import re
import socket
import threading
import time
from collections import Counter

import isdt_deploy_toys
import numpy as np
import pytest
from isdt_deploy_toys import observations
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from isdt_policy.deploy.client import PolicyClient
from isdt_policy.deploy.wire import pack

pytestmark = pytest.mark.slow

MESSAGES = 10_000
SEEDS = np.array([[1, 1]])


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with isdt_deploy_toys.served(tmp_path_factory.mktemp("served")) as running:
        yield running


def row(obs):
    return {key: value[0] for key, value in obs.items()}


def memory(process):
    """Resident megabytes of its own, files left out."""
    with open(f"/proc/{process.pid}/status") as status:
        return int(re.search(r"RssAnon:\s+(\d+)", status.read())[1]) / 1024


def nonsense(rng):
    """One (kind, frame, whether it is a message, so that the connection goes on)."""
    good = row(observations(1))
    data = bytearray(pack(good))
    kind = rng.choice(["noise", "mutated", "truncated", "pickle", "shape", "nan", "key", "oversized"],
                      p=[0.1, 0.15, 0.1, 0.05, 0.25, 0.2, 0.1, 0.05])  # fmt: skip
    if kind == "noise":
        return kind, rng.bytes(int(rng.integers(0, 300))), None
    if kind == "mutated":
        for _ in range(int(rng.integers(1, 6))):
            data[rng.integers(len(data))] = rng.integers(256)
        return kind, bytes(data), None
    if kind == "truncated":
        return kind, bytes(data[: rng.integers(len(data))]), False
    if kind == "pickle":
        return kind, pickle.dumps(good), False
    if kind == "oversized":
        return kind, bytes(100_001), False
    if kind == "shape":
        shape = tuple(int(n) for n in rng.integers(0, 5, int(rng.integers(4))))
        return kind, pack({**good, "keypoints": np.zeros(shape)}), True
    if kind == "nan":
        good["keypoints"] = np.full(18, rng.choice([np.nan, np.inf, -np.inf]))
        return kind, pack(good), True
    return kind, pack({str(rng.integers(100)): np.zeros(2), "agent_pos": np.zeros(2)}), True


def test_ten_thousand_bad_messages_are_answered_or_closed_on_and_nobody_else_notices(served):
    process, uri, policy = served
    expected = policy.predict_action(observations(1), noise_seeds=SEEDS)["action"]
    done, wrong, asked = threading.Event(), [], []

    def witness():
        with PolicyClient(uri) as client:
            while not done.is_set():
                got = client.predict_action(observations(1), noise_seeds=SEEDS)["action"]
                asked.append(client.reconnects)
                if not np.array_equal(got, expected):
                    wrong.append(got)
                time.sleep(0.02)

    thread = threading.Thread(target=witness)
    thread.start()
    rng, seen, connection, before = np.random.default_rng(0), Counter(), None, None
    for i in range(MESSAGES):
        if connection is None:
            connection = connect(uri, compression=None, max_size=None)
            connection.recv(timeout=10)
        kind, frame, goes_on = nonsense(rng)
        try:
            connection.send(frame)
            reply = connection.recv(timeout=10)
            assert isinstance(reply, str) or kind in ("mutated", "noise"), (
                kind,
                frame,
            )  # some mutations still are messages
            if isinstance(reply, str) and reply.startswith("The message cannot be read"):
                assert goes_on is not True, (kind, reply)
                with pytest.raises(ConnectionClosed) as closed:
                    connection.recv(timeout=10)
                assert closed.value.rcvd.code == 1007
                connection = None
            else:
                assert goes_on is not False, (kind, reply)
            seen[kind, "answered"] += 1
        except ConnectionClosed as closed:
            seen[kind, f"closed with {closed.rcvd.code}"] += 1
            connection = None
        if i == MESSAGES // 5:
            before = memory(process)
    done.set()
    thread.join()
    assert sum(seen.values()) == MESSAGES
    assert [end for kind, end in seen if end != "answered"] == ["closed with 1009"], seen
    assert min(seen.values()) > 200, seen
    assert not wrong
    assert len(asked) > 50
    assert max(asked) == 0  # the other client was never cut off
    assert process.poll() is None
    assert memory(process) - before < 20


def test_messages_that_drip_in_are_closed_on(served):
    process, uri, policy = served

    def slowly():
        for byte in pack(row(observations(1))):
            yield bytes([byte])
            time.sleep(0.05)

    with connect(uri, compression=None) as connection:  # in fragments, pings answered
        connection.recv(timeout=10)
        begin = time.monotonic()
        with contextlib.suppress(ConnectionClosed):
            connection.send(slowly())
        with contextlib.suppress(ConnectionClosed):
            connection.recv(timeout=10)
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=10)
        assert connection.protocol.close_rcvd.code == 1008
        assert time.monotonic() - begin < 8

    host, port = uri.removeprefix("ws://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:  # one frame that never gets complete
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        raw.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}".encode())
        raw.recv(4096)
        raw.sendall(b"\x82\xfe\x03\xe8" + os.urandom(4))  # 1000 masked bytes are announced
        begin = time.monotonic()
        with contextlib.suppress(OSError):  # broken pipe or reset, as the system has it
            while time.monotonic() - begin < 10:
                raw.sendall(b"x")
                time.sleep(0.1)
        assert time.monotonic() - begin < 8

    with PolicyClient(uri) as client:
        got = client.predict_action(observations(1), noise_seeds=SEEDS)["action"]
        assert np.array_equal(got, policy.predict_action(observations(1), noise_seeds=SEEDS)["action"])
    assert process.poll() is None
