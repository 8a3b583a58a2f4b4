"""A policy behind a websocket, for openpi's clients and ours.

Protocol, one msgpack message per frame (see `wire`):

    server -> client   on connecting: metadata (keys, shapes, window, task, ...)
    client -> server   one observation: {key: (d,)} or {key: (n_obs_steps, d)} or {key: (batch, n_obs_steps, d)}
    server -> client   {"actions": (n_action_steps, action_dim), "action_pred": (horizon, action_dim), "server_timing": {...}}
                       with a leading batch axis if the observation had one
                       a TEXT frame if something was wrong; the connection stays open unless the frame was unreadable

With {key: (d,)} the connection keeps the history, one observation per message: right if the client asks in every control
step. A client that executes whole chunks sends histories, or steps of the history would be missing.

Further keys of a message: "reset": True forgets the connection's history and begins a new stream of noise (before the
observation in the same message, which may be absent); "noise_seeds" (batch, 2) makes the answer a function of the message.
"known" (horizon, action_dim) and "weight" (horizon,), with the batch axis if the observation has one, ask for a chunk that
continues a started one (real-time chunking; see `freezing`): known[n_obs_steps - 1] is the action of the newest
observation's step, weight is 1 where an action is frozen, 0 where it is free. The metadata's "continues" says whether the
policy can.

Around it: HTTP GET /healthz answers 200; "Authorization: Api-Key KEY" is checked when a key is set; messages are bounded
in size and rate, connections in number. Inference runs in one thread beside the event loop, on all requests that waited
for it together; a request's answer does not depend on the others (`Policy.inference_rows`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import logging
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.deploy.wire import pack, unpack
from isdt_policy.shared.errors import InputError, nearest

if TYPE_CHECKING:
    from isdt_policy.envs.protocol import Policy

log = logging.getLogger("isdt_policy.deploy")

RESERVED = ("reset", "noise_seeds", "known", "weight")
MAX_BATCH = 64
Obs = dict[str, NDArray[np.float32]]
Known = tuple[
    NDArray[np.float32], NDArray[np.float32]
]  # actions (batch, horizon, action_dim), weights (batch, horizon)


@dataclass
class _Request:
    """Rows waiting for inference."""

    obs: Obs
    noise_seeds: NDArray[np.int64]
    known: Known | None
    answer: asyncio.Future[tuple[NDArray[np.float32], NDArray[np.float32], float]]

    @property
    def rows(self) -> int:
        return len(self.noise_seeds)


class PolicyServer:
    """Serves one policy.

    Args:
        policy: anything behind the policy protocol, with `obs_dims` or a `config` that has them.
        host, port: where to listen; port 0 takes a free one (see `port` after `start`).
        nfe: network evaluations per chunk.
        api_key: required of every client, or None.
        max_bytes: of one message.
        max_rate: messages per second and connection, averaged over a second.
        max_connections: at a time.
        message_timeout_s: from the first fragment of a message to its last, and how long a ping may stay unanswered, which
            is what ends a single frame that never gets complete.
        metadata: sent to clients beside what the policy says of itself.

    Example:
        async with PolicyServer(policy) as server:
            await asyncio.Event().wait()
    """

    def __init__(
        self,
        policy: Policy,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        nfe: int | str = 1,
        api_key: str | None = None,
        max_bytes: int = 1 << 20,
        max_rate: float = 500.0,
        max_connections: int = 64,
        message_timeout_s: float = 10.0,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if min(max_bytes, max_rate, max_connections, message_timeout_s) <= 0:
            raise InputError("max_bytes, max_rate, max_connections and message_timeout_s must be above 0.")
        if api_key == "":
            raise InputError("api_key is empty, which would let everyone in; leave it out to switch the check off.")
        self.policy, self.nfe = policy, nfe
        self.host, self.port = host, port
        self.api_key, self.max_bytes, self.max_rate, self.max_connections = (
            api_key,
            max_bytes,
            max_rate,
            max_connections,
        )
        self.message_timeout_s = message_timeout_s
        dims = getattr(policy, "obs_dims", None) or getattr(getattr(policy, "config", None), "obs_dims", None)
        if dims is None:
            raise InputError("the policy does not say how many features its observations have (obs_dims).")
        self.obs_dims: dict[str, int] = dict(dims)
        for key in self.obs_dims:
            if key in RESERVED:
                raise InputError(f"an observation may not be called '{key}': the server's protocol uses that name.")
        self.metadata = {**self._describe(), **(metadata or {})}
        self._closing, self._answering = False, 0
        self.connections = self.requests = self.batches = self.refused = 0
        self._waiting: deque[_Request] = deque()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")

    def _describe(self) -> dict[str, Any]:
        policy = self.policy
        return {
            "server": "isdt-policy",
            "task": getattr(policy, "task", ""),
            "obs_dims": self.obs_dims,
            "action_dim": getattr(policy, "action_dim", None)
            or getattr(getattr(policy, "config", None), "action_dim", None),
            "n_obs_steps": policy.n_obs_steps,
            "n_action_steps": policy.n_action_steps,
            "horizon": getattr(policy, "horizon", None),
            "steps": str(self.nfe),
            "continues": hasattr(policy, "continue_action"),
        }

    async def __aenter__(self) -> PolicyServer:
        from websockets.asyncio.server import serve

        # One call before the first client, who should not pay for allocations and kernel choices.
        blank = {key: np.zeros((1, self.policy.n_obs_steps, d), np.float32) for key, d in self.obs_dims.items()}
        await self._infer(blank, np.zeros((1, 2), np.int64))
        try:
            self._server = await serve(
                self._handle,
                self.host,
                self.port,
                compression=None,  # arrays of floats do not shrink; it would cost latency
                max_size=self.max_bytes,
                max_queue=4,
                ping_interval=self.message_timeout_s,
                ping_timeout=self.message_timeout_s,
                process_request=self._on_http,
                open_timeout=5,
                close_timeout=2,
            )
        except OSError as error:
            raise InputError(
                f"cannot listen on {self.host}:{self.port}: {error.strerror or error}. Give another port=."
            ) from error
        bound: Any = next(iter(self._server.sockets)).getsockname()
        self.port = int(bound[1])
        self._batcher = asyncio.create_task(self._run_batches())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop accepting, answer what is waiting, close every connection with 1001 (going away)."""
        self._closing = True
        for _attempt in range(200):
            if not self._answering:
                break
            await asyncio.sleep(0.01)
        self._server.close()
        await self._server.wait_closed()
        self._batcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._batcher
        self._thread.shutdown()

    # HTTP.

    def _on_http(self, connection: Any, request: Any) -> Any:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self.api_key is not None:
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Api-Key {self.api_key}".encode()):
                self.refused += 1
                return connection.respond(
                    http.HTTPStatus.UNAUTHORIZED, "This server wants the header 'Authorization: Api-Key KEY'.\n"
                )
        if self._closing or self.connections >= self.max_connections:
            self.refused += 1
            why = "The server is closing.\n" if self._closing else "Too many connections.\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, why)
        return None

    # One connection.

    async def _handle(self, connection: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        self.connections += 1
        state = _Connection(self)
        try:
            await connection.send(pack(self.metadata))
            while (message := await self._read(connection)) is not None:
                self._answering += 1
                try:
                    if not await self._respond(connection, state, message):
                        return
                finally:
                    self._answering -= 1
        except ConnectionClosed:
            pass  # in the middle of an answer: the client is gone
        finally:
            self.connections -= 1

    async def _read(self, connection: Any) -> str | bytes | None:
        """Return the next message, or None if it dripped in so slowly that the connection was closed."""
        fragments: list[Any] = []
        try:
            async with asyncio.timeout(None) as limit:
                async for fragment in connection.recv_streaming():
                    if not fragments:
                        limit.reschedule(asyncio.get_running_loop().time() + self.message_timeout_s)
                    fragments.append(fragment)
        except TimeoutError:
            self.refused += 1
            await connection.send(f"The message was not complete within {self.message_timeout_s:g} s.")
            await connection.close(1008, "slow message")
            return None
        joined: str | bytes = type(fragments[0])().join(fragments)
        return joined

    async def _respond(self, connection: Any, state: _Connection, message: str | bytes) -> bool:
        """Answer one frame; False if the connection was closed over it."""
        begin = time.perf_counter()
        if not state.allow(begin):
            self.refused += 1
            await connection.send(f"Too many messages: at most {self.max_rate:g} per second and connection.")
            return True
        try:
            if isinstance(message, str):
                raise _Unreadable("a text frame; messages are binary msgpack frames.")
            reply = await state.answer(message)
        except _Unreadable as error:
            self.refused += 1
            await connection.send(f"The message cannot be read: {error}")
            await connection.close(1007, "unreadable message")
            return False
        except InputError as error:
            self.refused += 1
            await connection.send(f"InputError: {error}")
            return True
        except Exception as error:
            log.exception("inference failed")
            # The class alone: a traceback would tell strangers about this machine. It is in the log.
            await connection.send(f"Internal error: {type(error).__name__}. The server's log has the traceback.")
            await connection.close(1011, "internal error")
            return False
        if state.previous_ms is not None:
            reply["server_timing"]["prev_total_ms"] = state.previous_ms
        await connection.send(pack(reply))
        state.previous_ms = (time.perf_counter() - begin) * 1e3
        return True

    # Inference.

    async def infer(
        self, obs: Obs, noise_seeds: NDArray[np.int64], known: Known | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
        """Answer rows: (action, action_pred, milliseconds of the inference they were part of)."""
        request = _Request(obs, noise_seeds, known, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._wake.set()
        return await request.answer

    async def _run_batches(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                group = [self._waiting.popleft()]
                while self._waiting and _fits(group, self._waiting[0]):
                    group.append(self._waiting.popleft())
                await self._answer(group)

    async def _answer(self, group: list[_Request]) -> None:
        obs = {key: np.concatenate([r.obs[key] for r in group]) for key in self.obs_dims}
        try:
            known = [r.known for r in group if r.known is not None]
            joined = (np.concatenate([k for k, _ in known]), np.concatenate([w for _, w in known])) if known else None
            action, pred, ms = await self._infer(obs, np.concatenate([r.noise_seeds for r in group]), joined)
        except Exception as error:
            for request in group:
                if not request.answer.done():
                    request.answer.set_exception(error)
            return
        self.requests += len(group)
        self.batches += 1
        start = 0
        for request in group:
            rows = slice(start, start + request.rows)
            start += request.rows
            if not request.answer.done():  # the client may have gone
                request.answer.set_result((action[rows], pred[rows], ms))

    async def _infer(
        self, obs: Obs, noise_seeds: NDArray[np.int64], known: Known | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
        def call() -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
            begin = time.perf_counter()
            if known is None:
                answer = self.policy.predict_action(obs, nfe=self.nfe, noise_seeds=noise_seeds)
            else:
                proceed: Any = self.policy.continue_action  # type: ignore[attr-defined]
                answer = proceed(obs, *known, nfe=self.nfe, noise_seeds=noise_seeds)
            return answer["action"], answer["action_pred"], (time.perf_counter() - begin) * 1e3

        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _fits(group: list[_Request], request: _Request) -> bool:
    """Whether a request can be computed with these: together small enough, and of the same kind."""
    same = (request.known is None) == (group[0].known is None)
    return same and sum(r.rows for r in group) + request.rows <= MAX_BATCH


class _Unreadable(InputError):
    """A frame that is not a message: whoever sent it does not speak this protocol."""


class _Connection:
    """State of one client: history, noise stream, allowance of messages."""

    def __init__(self, server: PolicyServer) -> None:
        self.server = server
        self.previous_ms: float | None = None
        self._tokens, self._last = server.max_rate, time.perf_counter()
        self._reset()

    def _reset(self) -> None:
        self._history: deque[Obs] = deque(maxlen=self.server.policy.n_obs_steps)
        self._stream = int(np.random.default_rng().integers(2**62))
        self._asked = 0

    def allow(self, now: float) -> bool:
        """Token bucket of one second's messages."""
        rate = self.server.max_rate
        self._tokens = min(rate, self._tokens + (now - self._last) * rate)
        self._last = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    async def answer(self, data: bytes) -> dict[str, Any]:
        """Read a message and answer it.

        Raises:
            _Unreadable: not msgpack, or not a map.
            InputError: keys, shapes or values that do not fit.
        """
        try:
            message = unpack(data)
        except InputError as error:
            raise _Unreadable(str(error)) from None
        if not isinstance(message, dict):
            raise _Unreadable(f"a {type(message).__name__}; it must be a map of observations.")
        given = {key: value for key, value in message.items() if key not in RESERVED}
        if message.get("reset", False) is True:
            self._reset()
            if not given:
                return {"reset": True, "server_timing": {"infer_ms": 0.0}}
        obs, batched = self._observations(given)
        rows = len(next(iter(obs.values())))
        seeds = message.get("noise_seeds")
        if seeds is None:
            seeds = np.stack([np.full(rows, self._stream), np.arange(self._asked, self._asked + rows)], axis=1)
        elif not isinstance(seeds, np.ndarray) or seeds.shape != (rows, 2) or seeds.dtype.kind not in "iu":
            raise InputError(f"noise_seeds must be integers of shape ({rows}, 2).")
        known = self._known(message, rows, batched)
        self._asked += rows
        action, pred, ms = await self.server.infer(obs, seeds.astype(np.int64), known)
        if not batched:
            action, pred = action[0], pred[0]
        return {"actions": action, "action_pred": pred, "server_timing": {"infer_ms": ms}}

    def _known(self, message: Mapping[Any, Any], rows: int, batched: bool) -> Known | None:
        """Return what the answer has to continue, with the batch axis, or None."""
        if "known" not in message and "weight" not in message:
            return None
        if not self.server.metadata["continues"]:
            raise InputError(
                "this server's policy cannot continue a started chunk: leave out known and weight, or serve a trained "
                "flow map with rtc=true, or a file exported with prefix=true."
            )
        m = self.server.metadata
        arrays = []
        for key, shape in (("known", (m["horizon"], m["action_dim"])), ("weight", (m["horizon"],))):
            if key not in message:
                raise InputError(f"known and weight belong together; '{key}' is missing.")
            value, expected = message[key], (rows, *shape) if batched else shape
            if not isinstance(value, np.ndarray) or value.shape != expected or value.dtype.kind not in "iuf":
                raise InputError(f"{key} must be an array of numbers of shape {expected}.")
            value = value.astype(np.float32)
            if not np.isfinite(value).all():
                raise InputError(f"{key} holds NaN or infinity.")
            arrays.append(value if batched else value[None])
        known, weight = arrays
        if not np.isin(weight, (0, 1)).all():
            raise InputError("weight must be 1 (frozen) or 0 (free) for every action.")
        return known, weight

    def _observations(self, given: Mapping[Any, Any]) -> tuple[Obs, bool]:
        """Return {key: (batch, n_obs_steps, d)} and whether the message had the batch axis."""
        n, dims = self.server.policy.n_obs_steps, self.server.obs_dims
        obs: Obs = {}
        for key, dim in dims.items():
            if key not in given:
                names = [name for name in map(str, given)]
                raise InputError(
                    f"the policy reads observation '{key}', given: {', '.join(names)[:200] or 'nothing'}.{nearest(key, names)}"
                )
            try:
                value = np.asarray(given[key])
            except (TypeError, ValueError):  # a ragged list
                value = np.asarray(None)
            if value.dtype.kind not in "biuf":
                raise InputError(f"observation '{key}' is not an array of numbers.")
            value = value.astype(np.float32)
            allowed = {1: (dim,), 2: (n, dim), 3: (value.shape[0], n, dim) if value.ndim == 3 else None}
            if value.shape != allowed.get(value.ndim) or (value.ndim == 3 and not 1 <= len(value) <= MAX_BATCH):
                raise InputError(
                    f"observation '{key}' has shape {value.shape}; allowed: ({dim},), ({n}, {dim}) or (1..{MAX_BATCH}, {n}, {dim})."
                )
            if not np.isfinite(value).all():
                raise InputError(f"observation '{key}' holds NaN or infinity; the policy will not act on it.")
            obs[key] = value
        if len({(value.ndim, value.shape[: value.ndim - 1]) for value in obs.values()}) > 1:
            raise InputError("the observations disagree on whether they have history and batch axes.")
        ndim = next(iter(obs.values())).ndim
        if ndim == 3:
            return obs, True
        if ndim == 2:
            return {key: value[None] for key, value in obs.items()}, False
        self._history.extend([obs] * (n if not self._history else 1))
        return {key: np.stack([row[key] for row in self._history])[None] for key in dims}, False
