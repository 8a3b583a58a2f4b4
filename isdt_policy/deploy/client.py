"""Client of a policy server: a remote policy behind the policy protocol, which reconnects.

Example:
    with PolicyClient("ws://127.0.0.1:8000") as policy:
        runtime = Runtime(policy, mode="async", executor=ThreadPoolExecutor(1))
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.deploy.wire import pack, unpack
from isdt_policy.shared.errors import InputError


class PolicyClient:
    """Satisfies `isdt_policy.envs.protocol.Policy`. One thread at a time.

    Histories travel with every request, so a lost connection costs nothing but time: the request is sent again.

    Args:
        uri: ws://host:port, or wss:// behind a proxy.
        api_key: if the server wants one.
        timeout_s: of one answer.
        patience_s: how long to try to (re)connect before giving up; waits between attempts double from 50 ms to 1 s.

    Attributes:
        metadata: what the server says of its policy.
        server_timing: of the last answer, milliseconds.
        reconnects: connections made after the first.

    Raises:
        InputError: no server within patience_s, a refused key, or a server of another kind.
    """

    def __init__(
        self, uri: str, *, api_key: str | None = None, timeout_s: float = 5.0, patience_s: float = 10.0
    ) -> None:
        if not uri.startswith(("ws://", "wss://")):
            raise InputError(f"'{uri}' must begin with ws:// or wss://, for example ws://127.0.0.1:8000.")
        self.uri, self.api_key, self.timeout_s, self.patience_s = uri, api_key, timeout_s, patience_s
        self.server_timing: dict[str, float] = {}
        self.reconnects = -1
        self._connection: Any = None
        self._connect()
        m = self.metadata
        self.obs_dims: dict[str, int] = m["obs_dims"]
        self.obs_keys = tuple(self.obs_dims)
        self.n_obs_steps, self.n_action_steps = int(m["n_obs_steps"]), int(m["n_action_steps"])
        self.horizon, self.action_dim = int(m["horizon"]), int(m["action_dim"])
        self.task, self.nfe = str(m["task"]), str(m["steps"])
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
        obs: Mapping[str, NDArray[np.floating]],
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
        obs: Mapping[str, NDArray[np.floating]],
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
        obs: Mapping[str, NDArray[np.floating]],
        nfe: int | str | None,
        noise_seeds: NDArray[np.int64] | None,
        frozen: Mapping[str, NDArray[np.float32]],
    ) -> dict[str, NDArray[np.float32]]:
        if nfe is not None and str(nfe) != self.nfe:
            raise InputError(f"nfe={nfe}: the server runs nfe={self.nfe}; start it with another nfe=.")
        message: dict[str, Any] = {key: np.asarray(obs[key], np.float32) for key in self.obs_keys if key in obs}
        message.update(frozen)
        if noise_seeds is not None:
            message["noise_seeds"] = np.asarray(noise_seeds, np.int64)
        reply = self._ask(pack(message))
        if not isinstance(reply, dict) or "actions" not in reply:
            raise InputError(f"{self.uri} answered something that is no action chunk.")
        self.server_timing = reply["server_timing"]
        return {"action": reply["actions"], "action_pred": reply["action_pred"]}

    def _ask(self, data: bytes) -> Any:
        from websockets.exceptions import ConnectionClosed

        for attempt in range(3):
            try:
                if self._connection is None:
                    self._connect()
                self._connection.send(data)
                reply = self._connection.recv(timeout=self.timeout_s)
            except ConnectionClosed:
                self._connection = None
                if attempt == 2:
                    raise InputError(
                        f"{self.uri} closed the connection three times in a row; see the server's log."
                    ) from None
                continue
            except TimeoutError:
                # A late answer would be taken for that of the next question.
                self.close()
                raise
            if isinstance(reply, str):
                raise InputError(f"{self.uri} says: {reply}")
            return unpack(reply)
        raise AssertionError("unreachable")

    def _connect(self) -> None:
        from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI
        from websockets.sync.client import connect

        headers = {} if self.api_key is None else {"Authorization": f"Api-Key {self.api_key}"}
        give_up, wait = time.monotonic() + self.patience_s, 0.05
        while True:
            try:
                self._connection = connect(
                    self.uri, compression=None, max_size=None, additional_headers=headers, open_timeout=self.timeout_s
                )
                self.metadata: dict[str, Any] = unpack(self._connection.recv(timeout=self.timeout_s))
                break
            except InvalidURI as error:
                raise InputError(f"'{self.uri}' is not an address: {error}") from None
            except InvalidStatus as error:
                if error.response.status_code == 401:
                    raise InputError(f"{self.uri} refuses the API key; give the right one: api_key=KEY.") from None
                reason: Exception = error
            except (OSError, TimeoutError, InvalidHandshake, EOFError) as error:
                reason = error
            if time.monotonic() + wait > give_up:
                raise InputError(
                    f"no policy server at {self.uri}: {reason}. Start one: isdt serve checkpoint=PATH"
                ) from None
            time.sleep(wait)
            wait = min(2 * wait, 1.0)
        if self.metadata.get("server") != "isdt-policy":
            self.close()
            raise InputError(f"{self.uri} is not an isdt-policy server.")
        self.reconnects += 1
