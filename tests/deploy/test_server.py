"""The server against clients written from the wire format, ours, openpi's where it is installed, and against nonsense."""

import threading
import time
import urllib.error
import urllib.request

import msgpack
import numpy as np
import pytest
from isdt_deploy_server import FromTheDocuments, Running, row
from isdt_deploy_toys import MLP, observations, tiny_policy
from websockets.exceptions import ConnectionClosed, InvalidStatus

from isdt_policy.deploy.client import PolicyClient
from isdt_policy.deploy.freezing import PrefixPolicy
from isdt_policy.deploy.runtime import Runtime
from isdt_policy.deploy.server import PolicyServer
from isdt_policy.deploy.serving import Serving
from isdt_policy.deploy.wire import pack, unpack
from isdt_policy.shared.errors import InputError


@pytest.fixture(scope="module")
def policy():
    return tiny_policy(network=MLP)


@pytest.fixture(scope="module")
def running(policy):
    with Running(policy) as server:
        yield server


def test_a_client_written_from_the_wire_format_is_answered(running, policy):
    client = FromTheDocuments(running.uri)
    assert client.metadata["obs_dims"] == {"agent_pos": 2, "keypoints": 18}
    obs, seeds = observations(1), np.array([[5, 2]])
    reply = client.infer({**row(obs), "noise_seeds": seeds})
    expected = policy.predict_action(obs, noise_seeds=seeds)
    assert np.array_equal(reply["actions"], expected["action"][0])
    assert np.array_equal(reply["action_pred"], expected["action_pred"][0])
    assert reply["server_timing"]["infer_ms"] > 0
    assert client.infer(row(obs))["server_timing"]["prev_total_ms"] >= reply["server_timing"]["infer_ms"]


def test_openpis_own_client_is_answered(running, policy):
    from openpi_client import websocket_client_policy

    client = websocket_client_policy.WebsocketClientPolicy(running.uri)
    assert client.get_server_metadata()["task"] == "pusht"
    obs, seeds = observations(1), np.array([[5, 2]])
    reply = client.infer({**row(obs), "noise_seeds": seeds})
    assert np.array_equal(reply["actions"], policy.predict_action(obs, noise_seeds=seeds)["action"][0])
    with pytest.raises(RuntimeError, match="reads observation 'agent_pos'"):
        client.infer({"state": np.zeros(2)})


def test_single_observations_make_a_history_that_reset_forgets(running, policy):
    client = FromTheDocuments(running.uri)
    obs, seeds = observations(1), np.array([[5, 2]])
    old, new = ({k: v[0, i] for k, v in obs.items()} for i in (0, 1))

    def expected(first, second):
        history = {k: np.stack([first[k], second[k]])[None] for k in first}
        return policy.predict_action(history, noise_seeds=seeds)["action"][0]

    assert np.array_equal(client.infer({**old, "noise_seeds": seeds})["actions"], expected(old, old))
    assert np.array_equal(client.infer({**new, "noise_seeds": seeds})["actions"], expected(old, new))
    assert client.infer({"reset": True})["reset"] is True
    assert np.array_equal(client.infer({**new, "noise_seeds": seeds})["actions"], expected(new, new))


def test_openpis_broker_asks_once_a_chunk(policy):
    """As its documentation has it: single observations, n_action_steps of every answer executed."""
    from openpi_client import action_chunk_broker, websocket_client_policy

    seeds, n = np.array([[5, 2]]), policy.n_action_steps
    with Running(policy, history="chunks") as server:
        client = websocket_client_policy.WebsocketClientPolicy(server.uri)
        broker = action_chunk_broker.ActionChunkBroker(client, action_horizon=n)
        for number in (1, 2):
            now = {key: value[0, 1] for key, value in observations(1, seed=number).items()}
            still = {key: np.stack([value, value])[None] for key, value in now.items()}
            chunk = [broker.infer({**now, "noise_seeds": seeds})["actions"] for _ in range(n)]
            assert np.array_equal(np.stack(chunk), policy.predict_action(still, noise_seeds=seeds)["action"][0])


def test_a_name_for_a_key_that_is_not_read_is_refused(policy):
    with pytest.raises(InputError, match=r"names: the policy reads no 'statee'\."):
        PolicyServer(policy, Serving(names=("x:statee",)))
    with pytest.raises(InputError, match="must be NAME:KEY"):
        Serving(names=("state",))


def test_how_single_observations_are_taken_is_said_once(policy, caplog):
    for history, said in (("steps", 1), ("chunks", 0)):
        caplog.clear()
        with Running(policy, history=history) as server:
            client = FromTheDocuments(server.uri)
            for _ in range(3):
                client.infer({key: value[0, 0] for key, value in observations(1).items()})
        assert caplog.text.count("serve with history=chunks") == said


def test_clients_asked_at_once_share_batches_and_nothing_else(running, policy):
    n, rounds = 12, 10
    obs = [observations(1, seed=i) for i in range(n)]
    wrong, latencies = [], []

    def ask(i):
        with PolicyClient(running.uri) as client:
            for k in range(rounds):
                seeds, begin = np.array([[i, k]]), time.perf_counter()
                got = client.predict_action(obs[i], noise_seeds=seeds)["action"]
                latencies.append(time.perf_counter() - begin)
                if not np.array_equal(got, policy.predict_action(obs[i], noise_seeds=seeds)["action"]):
                    wrong.append((i, k))

    before = running.server.requests, running.server.batches
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(latencies) == n * rounds == running.server.requests - before[0]
    assert running.server.batches - before[1] < n * rounds


def test_a_remote_policy_runs_in_the_runtime_like_a_local_one(running, policy):
    steps = [{k: v[0, 0] for k, v in observations(1, seed=i).items()} for i in range(12)]
    with PolicyClient(running.uri) as remote:
        runtimes = [Runtime(p) for p in (remote, policy)]
        for runtime in runtimes:
            runtime.reset(seed=4)
        for obs in steps:
            a, b = (runtime.act(obs) for runtime in runtimes)
            assert np.array_equal(a, b)


def test_frozen_actions_travel_and_come_back_beside_free_requests(policy):
    able = PrefixPolicy(policy)
    obs, seeds, rng = observations(3), np.array([[5, 0], [5, 1], [5, 2]]), np.random.default_rng(0)
    known = rng.uniform(100, 400, (3, 16, 2)).astype(np.float32)
    weight = np.concatenate([np.ones((3, 4)), np.zeros((3, 2)), np.zeros((3, 10))], axis=1).astype(np.float32)
    expected = able.continue_action(obs, known, weight, nfe=2, noise_seeds=seeds)["action_pred"]
    with Running(able, nfe=2) as running, PolicyClient(running.uri) as client:
        got = client.continue_action(obs, known, weight, noise_seeds=seeds)["action_pred"]
        assert np.array_equal(got, expected)
        assert np.array_equal(got[:, :4], known[:, :4])
        free = able.predict_action(obs, nfe=2, noise_seeds=seeds)["action_pred"]
        assert np.array_equal(client.predict_action(obs, noise_seeds=seeds)["action_pred"], free)
        # openpi's wire format, one observation without the batch axis, further keys
        plain = FromTheDocuments(running.uri)
        one = {**row(obs), "known": known[0], "weight": weight[0], "noise_seeds": seeds[:1]}
        alone = able.continue_action(row(obs, slice(0, 1)), known[:1], weight[:1], nfe=2, noise_seeds=seeds[:1])
        assert np.array_equal(plain.infer(one)["action_pred"], alone["action_pred"][0])
        for change, reason in (
            ({"known": known}, r"known must be an array of numbers of shape \(16, 2\)"),
            ({"weight": weight[0] * np.nan}, "weight holds NaN"),
            ({"weight": weight[0] + 0.5}, "1 .frozen. or 0 .free."),
        ):
            with pytest.raises(RuntimeError, match=reason):
                plain.infer({**one, **change})
        del one["weight"]
        with pytest.raises(RuntimeError, match="'weight' is missing"):
            plain.infer(one)
        runtimes = [Runtime(p, mode="rtc", nfe=2) for p in (client, able)]
        for runtime in runtimes:
            runtime.reset(seed=4)
        for i in range(20):
            step = {k: v[0, 0] for k, v in observations(1, seed=i).items()}
            assert np.array_equal(*(runtime.act(step) for runtime in runtimes))


def test_a_server_that_cannot_continue_says_so(running):
    client = FromTheDocuments(running.uri)
    with pytest.raises(RuntimeError, match="cannot continue a started chunk"):
        client.infer({**row(observations(1)), "known": np.zeros((16, 2)), "weight": np.zeros(16)})
    with PolicyClient(running.uri) as ours, pytest.raises(InputError, match="can continue a started chunk"):
        Runtime(ours, mode="rtc")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"agent_pos": np.zeros(2)}, "reads observation 'keypoints'"),
        ({"agent_pos": np.zeros(3), "keypoints": np.zeros(18)}, r"shape \(3,\); allowed"),
        ({"agent_pos": np.array([np.nan, 0]), "keypoints": np.zeros(18)}, "holds NaN"),
        ({"agent_pos": "home", "keypoints": np.zeros(18)}, "not an array of numbers"),
        ({"agent_pos": [[1, 2], [3]], "keypoints": np.zeros(18)}, "not an array of numbers"),
        ({"agent_pos": np.zeros((2, 2)), "keypoints": np.zeros(18)}, "disagree"),
        ({"agent_pos": np.zeros((65, 2, 2)), "keypoints": np.zeros((65, 2, 18))}, r"1\.\.64"),
        ({**row(observations(1)), "noise_seeds": np.zeros((1, 2))}, "noise_seeds must be integers"),
        ({}, "reads observation 'agent_pos', given: nothing"),
    ],
)
def test_a_message_that_does_not_fit_gets_a_line_and_the_connection_goes_on(running, message, reason):
    client = FromTheDocuments(running.uri)
    with pytest.raises(RuntimeError, match=reason):
        client.infer(message)
    assert client.infer(row(observations(1)))["actions"].shape == (8, 2)


def array(dtype="<f4", shape=(2,), data=b"\0" * 8):
    return {b"__ndarray__": True, b"dtype": dtype, b"shape": shape, b"data": data}


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        pack(1),
        pack([1, 2]),
        pack({"agent_pos": np.zeros(2)})[:-3],
        pack({"a": 1}) + b"\x00",
        b"\xdd\xff\xff\xff\xff",  # an array of 2^32 - 1 entries
        b"\x91" * 5000,  # nested 5000 deep
        msgpack.packb({"agent_pos": array(dtype="|O", data=b"cos\nsystem\n(S'true'\ntR.")}),
        msgpack.packb({"agent_pos": array(dtype="f4,f4")}),
        msgpack.packb({"agent_pos": array(shape=(-1,))}),
        msgpack.packb({"agent_pos": array(shape=(2**20, 2**20, 2**20))}),
        msgpack.packb({"agent_pos": array(shape=(3,))}),
        msgpack.packb({"agent_pos": array(shape="x")}),
        msgpack.packb({b"__npgeneric__": True, b"dtype": "<f4", b"data": "x"}),
        "text",
    ],
)
def test_a_frame_that_is_no_message_gets_a_line_and_a_close(running, frame):
    client = FromTheDocuments(running.uri)
    client.connection.send(frame)
    assert client.connection.recv(timeout=10).startswith("The message cannot be read: ")
    with pytest.raises(ConnectionClosed) as closed:
        client.connection.recv(timeout=10)
    assert closed.value.rcvd.code == 1007


def test_oversized_messages_are_refused_unread(policy):
    with Running(policy, max_bytes=10_000) as running:
        client = FromTheDocuments(running.uri)
        with pytest.raises(ConnectionClosed) as closed:
            client.infer({"agent_pos": np.zeros(5_000)})
        assert closed.value.rcvd.code == 1009
        assert FromTheDocuments(running.uri).infer(row(observations(1)))["actions"].shape == (8, 2)


def test_rate_connections_key_and_health(policy):
    with Running(policy, max_rate=5, max_connections=2, api_key="secret") as running:
        http = running.uri.replace("ws://", "http://")
        assert urllib.request.urlopen(f"{http}/healthz").status == 200
        for key in (None, "Secret"):
            with pytest.raises(InvalidStatus) as refused:
                FromTheDocuments(running.uri, key)
            assert refused.value.response.status_code == 401
        with pytest.raises(InputError, match="refuses the API key"):
            PolicyClient(running.uri, api_key="wrong")
        first, _ = FromTheDocuments(running.uri, "secret"), FromTheDocuments(running.uri, "secret")
        with pytest.raises(InvalidStatus) as refused:
            FromTheDocuments(running.uri, "secret")
        assert refused.value.response.status_code == 503
        for _ in range(5):
            assert first.infer(row(observations(1)))["actions"].shape == (8, 2)
        with pytest.raises(RuntimeError, match="at most 5 per second"):
            [first.infer(row(observations(1))) for _ in range(10)]
        time.sleep(0.5)
        assert first.infer(row(observations(1)))["actions"].shape == (8, 2)


def test_a_client_survives_a_restart_of_the_server(policy):
    with Running(policy) as running:
        port = running.server.port
        client = PolicyClient(running.uri)
        seeds = np.array([[1, 2]])
        before = client.predict_action(observations(1), noise_seeds=seeds)["action"]
    restarted = Running(policy, port=port)
    threading.Timer(0.3, restarted.__enter__).start()  # away for a moment
    try:
        assert np.array_equal(client.predict_action(observations(1), noise_seeds=seeds)["action"], before)
        assert client.reconnects == 1
    finally:
        client.close()
        restarted.__exit__()


def test_without_a_server_the_client_gives_up_in_time_and_says_how_to_start_one():
    begin = time.monotonic()
    with pytest.raises(InputError, match="Start one: isdt serve"):
        PolicyClient("ws://127.0.0.1:9", patience_s=0.3)
    assert time.monotonic() - begin < 5
    with pytest.raises(InputError, match="must begin with ws://"):
        PolicyClient("http://127.0.0.1")


def test_a_failing_policy_answers_in_text_and_tells_strangers_nothing(policy):
    class Broken:
        n_obs_steps, n_action_steps, horizon, obs_keys, obs_dims, action_dim = 2, 8, 16, ("x",), {"x": 1}, 1
        calls = 0

        def predict_action(self, obs, *, nfe=1, noise_seeds=None):
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("/home/me/secret")
            return {"action": np.zeros((1, 8, 1)), "action_pred": np.zeros((1, 16, 1))}

    with Running(Broken()) as running:
        with pytest.raises(
            RuntimeError, match=r"^Internal error: RuntimeError\. The server's log has the traceback\.$"
        ):
            FromTheDocuments(running.uri).infer({"x": np.zeros(1)})
        assert urllib.request.urlopen(running.uri.replace("ws", "http") + "/healthz").status == 200


def test_arrays_survive_the_wire_and_objects_are_refused():
    for value in (np.arange(6, dtype=np.int64).reshape(2, 3), np.float32(2.5), np.zeros((0, 3)), np.array(True)):
        back = unpack(pack({"x": value}))["x"]
        assert back.dtype == value.dtype
        assert np.array_equal(back, value)
        assert np.shape(back) == np.shape(value)
    for value in (np.array([object()]), np.array(["a"]), np.array([1j]), object()):
        with pytest.raises(InputError):
            pack({"x": value})
