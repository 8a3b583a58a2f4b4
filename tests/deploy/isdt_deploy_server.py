"""A server in a thread, and a client written from the description of the wire format."""

import asyncio
import threading

import msgpack
import numpy as np
from websockets.sync.client import connect

from isdt_policy.deploy.server import PolicyServer, Serving


class Running:
    """A server in a thread of its own."""

    def __init__(self, policy, **options):
        self.policy, self.options = policy, {"port": 0, **options}

    def __enter__(self):
        ready = threading.Event()

        async def serve():
            self.stop, self.loop = asyncio.Event(), asyncio.get_running_loop()
            async with PolicyServer(self.policy, Serving(**self.options)) as self.server:
                ready.set()
                await self.stop.wait()

        self.thread = threading.Thread(target=lambda: asyncio.run(serve()))
        self.thread.start()
        assert ready.wait(20)
        self.uri = f"ws://127.0.0.1:{self.server.port}"
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(20)
        assert not self.thread.is_alive()


class FromTheDocuments:
    """openpi's client, from its description: metadata first, then one binary frame each way, arrays as maps."""

    def __init__(self, uri, api_key=None):
        headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        self.connection = connect(uri, compression=None, max_size=None, additional_headers=headers)
        self.metadata = self.decode(self.connection.recv())

    def infer(self, obs):
        def encode(x):
            return {b"__ndarray__": True, b"data": x.tobytes(), b"dtype": x.dtype.str, b"shape": x.shape}

        self.connection.send(msgpack.packb(obs, default=encode))
        reply = self.connection.recv(timeout=10)
        if isinstance(reply, str):
            raise RuntimeError(reply)
        return self.decode(reply)

    @staticmethod
    def decode(data):
        def decode(x):
            if b"__ndarray__" in x:
                return np.ndarray(buffer=x[b"data"], dtype=np.dtype(x[b"dtype"]), shape=x[b"shape"])
            return x

        return msgpack.unpackb(data, object_hook=decode)


def row(obs, i=0):
    return {key: value[i] for key, value in obs.items()}
