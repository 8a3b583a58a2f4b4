"""openpi's own client and ActionChunkBroker against `isdt serve`, success in PushT for every way of sending observations.

python results/interop/openpi_broker.py 100          episodes, on seeds from 200000 on
"""

import socket
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from isdt_policy import Policy, make_env
from isdt_policy.eval.statistics import wilson

CHECKPOINT = "zoo:pusht_human"


def served(history, port):
    words = ["serve", f"checkpoint={CHECKPOINT}", f"history={history}", f"port={port}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "isdt_policy", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while True:
        try:
            return process, WebsocketClientPolicy(host="127.0.0.1", port=port)
        except OSError:
            time.sleep(0.3)


def run(way, episodes, port):
    policy = Policy.from_pretrained(CHECKPOINT)
    env = make_env("pusht", obs_keys=policy.obs_keys)
    process, client = served("chunks" if way == "chunks" else "steps", port)
    every = 1 if way == "every step" else policy.n_action_steps
    successes = 0
    for seed in range(200_000, 200_000 + episodes):
        broker = ActionChunkBroker(client, action_horizon=every)
        client.infer({"reset": True})
        last = now = env.reset(seed=seed)[0]
        over = success = False
        while not over:
            sent = {key: np.stack([last[key], now[key]]) for key in now} if way == "histories" else now
            last = now
            now, _, terminated, truncated, info = env.step(broker.infer(sent)["actions"])
            success, over = success or bool(info["is_success"]), terminated or truncated
        successes += success
    process.terminate()
    process.wait()
    return successes


if __name__ == "__main__":
    n = int(sys.argv[1])
    print(
        f"openpi-client {version('openpi-client')}, numpy {version('numpy')}, {CHECKPOINT}, "
        f"one evaluation, seeds 200000 to {200_000 + n - 1}"
    )
    for way in ("chunks", "histories", "steps", "every step"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        k = run(way, n, port)
        rate = wilson(k, n)
        print(f"{way:<11} {k} of {n} [{100 * rate.low:.0f}, {100 * rate.high:.0f}] %", flush=True)
