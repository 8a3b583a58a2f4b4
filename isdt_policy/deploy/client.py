"""Client of a policy server: a remote policy behind the policy protocol, which reconnects.

Example:
    with PolicyClient("ws://127.0.0.1:8000") as policy:
        runtime = Runtime(policy, mode="async", executor=ThreadPoolExecutor(1))
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isdt_policy.deploy.wire import pack, unpack
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import require
from isdt_policy.shared.values import Json

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


class PolicyClient:
    """Satisfies `isdt_policy.envs.protocol.Policy`. One thread at a time.

    Histories travel with every request, so a lost connection costs nothing but time: the request is sent again.

    Args:
        uri: ws://host:port, or wss:// behind a proxy.
        api_key: the server's key, if it asks for one.
        timeout_s: wait so long for an answer, also from a server that is frozen.
        patience_s: try so long to connect or reconnect; waits between attempts double from 50 ms to 1 s.

    Attributes:
        metadata: what the server says of its policy.
        server_timing: what the last answer took on the server, in milliseconds.
        reconnects: number of connections after the first.

    Raises:
        InputError: no server within patience_s, a refused key, or a server of another kind.
    """

    def __init__(
        self, uri: str, *, api_key: str | None = None, timeout_s: float = 5.0, patience_s: float = 10.0
    ) -> None:
        if not uri.startswith(("ws://", "wss://")):
            raise InputError(f"'{uri}' must begin with ws:// or wss://, for example ws://127.0.0.1:8000.")
        require("websockets", "serve", "A policy server's client")
        self.uri, self.api_key, self.timeout_s, self.patience_s = uri, api_key, timeout_s, patience_s
        self.server_timing: dict[str, float] = {}
        self.reconnects = -1
        self._connection: ClientConnection | None = None
        self._number = self._unanswered = 0
        self._connect()
        m = self.metadata
        try:
            self.obs_dims = {str(key): int(size) for key, size in m["obs_dims"].items()}
            self.image_shapes = {str(key): tuple(map(int, shape)) for key, shape in m.get("images", {}).items()}
            sources = m.get("image_sources", {}).items()  # a runtime makes pictures smaller before they travel
            self.image_sources = {str(key): tuple(map(int, shape)) for key, shape in sources}
            self.n_obs_steps, self.n_action_steps = int(m["n_obs_steps"]), int(m["n_action_steps"])
            self.horizon, self.action_dim = int(m["horizon"]), int(m["action_dim"])
            self.task, self.nfe = str(m["task"]), str(m["steps"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{uri} does not say what its policy reads and answers ({error!r}).") from None
        self.obs_keys = (*self.obs_dims, *self.image_shapes)
        if m.get("continues"):
            self.continue_action = self._continue_action

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def reset(self) -> None:
        """Nothing to forget: histories and noise seeds travel with every request."""

    def predict_action(
        self,
        obs: Mapping[str, NDArray[np.generic]],
        *,
        nfe: int | str | None = None,
        noise_seeds: NDArray[np.int64] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Ask the server; arguments as in the protocol. `nfe` must be the server's own, or None.

        Raises:
            InputError: what the server says is wrong with the observations; another nfe; no server within patience_s.
            TimeoutError: no answer within timeout_s.
        """
        return self._request(obs, nfe, noise_seeds, {})

    def _continue_action(
        self,
        obs: Mapping[str, NDArray[np.generic]],
        known: NDArray[np.floating],
        weight: NDArray[np.floating],
        *,
        nfe: int | str | None = None,
        noise_seeds: NDArray[np.int64] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """See `isdt_policy.deploy.freezing.PrefixPolicy.continue_action`; only if the server's policy can."""
        frozen = {"known": np.asarray(known, np.float32), "weight": np.asarray(weight, np.float32)}
        return self._request(obs, nfe, noise_seeds, frozen)

    def _request(
        self,
        obs: Mapping[str, NDArray[np.generic]],
        nfe: int | str | None,
        noise_seeds: NDArray[np.int64] | None,
        frozen: Mapping[str, NDArray[np.float32]],
    ) -> dict[str, NDArray[np.float32]]:
        if nfe is not None and str(nfe) != self.nfe:
            raise InputError(f"nfe={nfe}: the server runs nfe={self.nfe}; start it with another nfe=.")
        message: dict[str, object] = {key: np.asarray(obs[key], np.float32) for key in self.obs_dims if key in obs}
        message.update({key: np.asarray(obs[key]) for key in self.image_shapes if key in obs})
        message.update(frozen)
        if noise_seeds is not None:
            message["noise_seeds"] = np.asarray(noise_seeds, np.int64)
        self._number += 1
        message["request"] = self._number
        reply = self._ask(pack(message), self._number)
        timing = reply.get("server_timing")
        self.server_timing = timing if isinstance(timing, dict) else {}
        batch = len(next(iter(obs.values())))
        return {
            "action": self._chunk(reply, "actions", (batch, self.n_action_steps, self.action_dim)),
            "action_pred": self._chunk(reply, "action_pred", (batch, self.horizon, self.action_dim)),
        }

    def _chunk(self, reply: Mapping[str, object], key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        value = reply.get(key)
        if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype.kind != "f":
            got = f"of shape {value.shape}" if isinstance(value, np.ndarray) else f"that is a {type(value).__name__}"
            raise InputError(f"{self.uri} answered {key} {got}, expected numbers of shape {shape}.")
        if not np.isfinite(value).all():
            raise InputError(f"{self.uri} answered {key} with NaN or infinity.")
        return value.astype(np.float32, copy=False)

    def _ask(self, data: bytes, number: int) -> dict[str, object]:
        from websockets.exceptions import ConnectionClosed

        for attempt in range(3):
            try:
                connection = self._connection or self._connect()
                give_up = time.monotonic() + self.timeout_s
                connection.send(data)
                return self._answer(connection, number, give_up)
            except ConnectionClosed:
                self._drop()
                if attempt == 2:
                    raise InputError(
                        f"{self.uri} closed the connection three times in a row; see the server's log."
                    ) from None
            except TimeoutError:
                self._unanswered += 1
                # Without numbers a late answer would be taken for that of the next question; with many unanswered ones the
                # next could not even be sent.
                if not self.metadata.get("numbers") or self._unanswered >= 3:
                    self._drop()
                raise TimeoutError(f"{self.uri} did not answer within {self.timeout_s:g} s.") from None
        raise AssertionError("unreachable")

    def _answer(self, connection: ClientConnection, number: int, give_up: float) -> dict[str, object]:
        """The answer to request `number`; late ones to earlier requests are dropped."""
        while True:
            frame = connection.recv(timeout=max(0.0, give_up - time.monotonic()))
            if isinstance(frame, str):
                raise InputError(f"{self.uri} says: {frame}")
            reply = unpack(frame)
            if not isinstance(reply, dict):
                raise InputError(f"{self.uri} answered something that is no action chunk.")
            if reply.get("request", number) != number:
                continue
            self._unanswered = 0
            if "error" in reply:
                raise InputError(f"{self.uri} says: {reply['error']}")
            return reply

    def _drop(self) -> None:
        """End the connection without waiting for the other side, which may be frozen."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.socket.shutdown(socket.SHUT_RDWR)
            self._connection.close()
        self._connection, self._unanswered = None, 0

    def _connect(self) -> ClientConnection:
        from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
        from websockets.sync.client import connect

        headers = {} if self.api_key is None else {"Authorization": f"Api-Key {self.api_key}"}
        give_up, wait = time.monotonic() + self.patience_s, 0.05
        within = min(self.timeout_s, self.patience_s)
        while True:
            try:
                self._connection = connect(
                    self.uri,
                    compression=None,
                    max_size=None,
                    additional_headers=headers,
                    open_timeout=within,
                    close_timeout=0.5,
                )
                self.metadata = self._read_metadata(self._connection, within)
                break
            except InvalidURI as error:
                raise InputError(f"'{self.uri}' is not an address: {error}") from None
            except InvalidStatus as error:
                if error.response.status_code == 401:
                    raise InputError(f"{self.uri} refuses the API key; give the right one: api_key=KEY.") from None
                reason: Exception = error
            except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed, EOFError) as error:
                reason = error
            self._drop()
            if time.monotonic() + wait > give_up:
                raise InputError(
                    f"no policy server at {self.uri}: {reason}. Start one: isdt serve checkpoint=PATH"
                ) from None
            time.sleep(wait)
            wait = min(2 * wait, 1.0)
        self.reconnects += 1
        return self._connection

    def _read_metadata(self, connection: ClientConnection, seconds: float) -> Json:
        said = connection.recv(timeout=seconds)
        try:
            metadata = None if isinstance(said, str) else unpack(said)
        except InputError:
            metadata = None
        if not isinstance(metadata, dict) or metadata.get("server") != "isdt-policy":
            self.close()
            raise InputError(f"{self.uri} is not an isdt-policy server.")
        return metadata
