"""A policy behind a websocket, for openpi's clients and ours.

Protocol, one msgpack message per frame (see `wire`):

    server -> client   on connecting: metadata (keys, shapes, window, task, ...)
    client -> server   one observation: {key: (d,)}, {key: (n_obs_steps, d)} or {key: (batch, n_obs_steps, d)}; pictures (h, w, 3)
    server -> client   {"actions": (n_action_steps, action_dim), "action_pred": (horizon, action_dim), "server_timing": {...}}
                       with a leading batch axis if the observation had one
                       a TEXT frame if something was wrong; the connection stays open unless the frame was unreadable

With {key: (d,)} the connection keeps the history, one observation per message: right if the client asks in every control
step. A client that executes whole chunks sends histories, or is served with history=chunks.

Further keys of a message: "reset": True forgets the connection's history and begins a new stream of noise (before the
observation in the same message, which may be absent); "noise_seeds" (batch, 2) makes the answer a function of the message;
"request": N comes back with the answer, and what is wrong then comes as {"error": text, "request": N} instead of text.
"known" (horizon, action_dim) and "weight" (horizon,), with the batch axis if the observation has one, ask for a chunk that
continues a started one (real-time chunking; see `freezing`): known[n_obs_steps - 1] is the action of the newest
observation's step, weight is 1 where an action is frozen, 0 where it is free. The metadata's "continues" says whether the
policy can.

Around it: HTTP GET /healthz answers 200. "Authorization: Api-Key KEY" is checked when a key is set. Browsers are refused:
a page of somebody else could ask in its reader's name. Messages are bounded in size, rate and work, connections in number;
when there are too many, the one that has been silent longest makes room. Inference runs in one thread beside the event
loop, on all requests that waited for it together; a request's answer does not depend on the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hmac
import http
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from isdt_policy.deploy.fair_share import FRAGMENT_S, REFUSED_S, FairShare
from isdt_policy.deploy.runtime import Continuing
from isdt_policy.deploy.serving import Serving
from isdt_policy.deploy.session import MAX_BATCH, Contract, Question, Session, Unreadable, decode, number_of
from isdt_policy.deploy.wire import pack
from isdt_policy.envs.protocol import Policy, frozen
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import require
from isdt_policy.shared.values import JsonObject

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request as HttpRequest
    from websockets.http11 import Response

log = logging.getLogger("isdt_policy.deploy")

DEFAULT = Serving()
SILENT_S = 5.0  # after which a connection may have to make room for another
Answer = tuple[NDArray[np.float32], NDArray[np.float32], float]  # action, action_pred, milliseconds of the inference


class PolicyFailed(RuntimeError):
    """The policy raised, or answered something that is no action chunk."""


class PolicyServer:
    """Serves one policy.

    Args:
        policy: anything behind the policy protocol, with `obs_dims` or a `config` that has them (and `image_shapes`).
        settings: see `Serving`.

    Attributes:
        port: that it listens on.
        metadata: sent to every client.
        requests, batches, refused: counts.

    Example:
        async with PolicyServer(policy) as server:
            await asyncio.Event().wait()
    """

    def __init__(self, policy: Policy, settings: Serving = DEFAULT) -> None:
        require("websockets", "serve", "The policy server")
        require("msgpack", "serve", "The policy server")
        self.policy, self.settings, self.port = frozen(policy, settings.nfe, one_row=False), settings, settings.port
        self.contract = c = Contract.of(policy, settings.named)
        self.metadata = {
            "server": "isdt-policy",
            **c.metadata(),
            "steps": str(settings.nfe),  # the protocol's word for network evaluations
            "numbers": True,
        }
        self._closing, self._answering = False, 0
        self.requests = self.batches = self.refused = 0
        self._sessions: dict[FairShare, Session] = {}
        self._farewells: set[asyncio.Task[None]] = set()
        self._waiting: deque[tuple[Question, asyncio.Future[Answer]]] = deque()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")

    async def __aenter__(self) -> PolicyServer:
        from websockets.asyncio.server import ServerConnection, serve

        class Connection(FairShare, ServerConnection):
            pass

        # One call before the first client, who should not pay for allocations and kernel choices.
        c, s = self.contract, self.settings
        await self._infer([Question(c.blank(), np.zeros((1, 2), np.int64), None, True)])
        gc.freeze()  # what is loaded stays: many small frames made the collector go through all of it, at everybody's cost
        try:
            self._server = await serve(
                self._handle,
                s.host,
                s.port,
                create_connection=Connection,
                origins=[None],
                compression=None,  # arrays of floats do not shrink; it would cost latency
                max_size=c.max_bytes if s.max_bytes is None else s.max_bytes,
                max_queue=4,
                ping_interval=s.message_timeout,
                ping_timeout=s.message_timeout,
                process_request=self._on_http,
                open_timeout=5,
                close_timeout=2,
            )
        except OSError as error:
            raise InputError(
                f"cannot listen on {s.host}:{s.port}: {error.strerror or error}. Give another port=."
            ) from error
        bound = next(iter(self._server.sockets)).getsockname()
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
        gc.unfreeze()

    # HTTP.

    def _on_http(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self.settings.api_key is not None:
            given = request.headers.get_all("Authorization")
            wanted = f"Api-Key {self.settings.api_key}"
            if len(given) != 1 or not hmac.compare_digest(given[0].encode(), wanted.encode()):
                self.refused += 1
                return connection.respond(
                    http.HTTPStatus.UNAUTHORIZED, "This server wants one header 'Authorization: Api-Key KEY'.\n"
                )
        if self._closing or not self._has_room():
            self.refused += 1
            why = "The server is closing.\n" if self._closing else "Too many connections.\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, why)
        return None

    def _has_room(self) -> bool:
        """Whether one more connection fits, if need be in the place of the one that has been silent longest."""
        if len(self._sessions) < self.settings.max_connections:
            return True
        connection, session = min(self._sessions.items(), key=lambda item: item[1].heard)
        if time.perf_counter() - session.heard < SILENT_S:
            return False
        del self._sessions[connection]
        farewell = asyncio.create_task(connection.close(1013, "silent while others wait"))
        self._farewells.add(farewell)
        farewell.add_done_callback(self._farewells.discard)
        return True

    # One connection.

    async def _handle(self, connection: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        assert isinstance(connection, FairShare)

        if not self._has_room():  # others came while this one shook hands
            self.refused += 1
            await connection.close(1013, "too many connections")
            return
        once = self.settings.history == "chunks"
        session = self._sessions[connection] = Session(self.contract, self.settings.max_rate, once)
        try:
            await connection.send(pack(self.metadata))
            while (frame := await self._read(connection)) is not None:
                self._answering += 1
                try:
                    if not await self._respond(connection, session, frame):
                        return
                finally:
                    self._answering -= 1
                await connection.rested()
        except ConnectionClosed:
            pass  # in the middle of an answer: the client is gone
        finally:
            self._sessions.pop(connection, None)

    async def _read(self, connection: FairShare) -> str | bytes | None:
        """The next message, or None if it dripped in so slowly that the connection was closed."""
        seconds = self.settings.message_timeout
        fragments: list[str] | list[bytes] = []
        try:
            async with asyncio.timeout(None) as limit:
                async for fragment in connection.recv_streaming():
                    if not fragments:
                        limit.reschedule(asyncio.get_running_loop().time() + seconds)
                    connection.charge(FRAGMENT_S)
                    if fragment or not fragments:  # an empty one says nothing, and there may be any number of them
                        fragments.append(fragment)  # type: ignore[arg-type]
        except TimeoutError:
            self.refused += 1
            await connection.send(f"The message was not complete within {seconds:g} s.")
            await connection.close(1008, "slow message")
            return None
        joined: str | bytes = type(fragments[0])().join(fragments)  # type: ignore[arg-type]
        return joined

    async def _respond(self, connection: FairShare, session: Session, frame: str | bytes) -> bool:
        """Answer one frame; False if the connection was closed over it."""
        begin, work = time.perf_counter(), time.thread_time()
        if not session.allow(begin):
            self.refused += 1
            await connection.send(f"Too many messages: at most {self.settings.max_rate:g} per second and connection.")
            return True
        number: int | None = None
        try:
            try:
                message = decode(frame)
                number = number_of(message)
                question = session.read(message)
            finally:
                connection.charge(time.thread_time() - work)
            reply = await self._ask(question)
        except Unreadable as error:
            self.refused += 1
            await connection.send(f"The message cannot be read: {error}")
            await connection.close(1007, "unreadable message")
            return False
        except (InputError, PolicyFailed) as error:
            self.refused += 1
            connection.charge(REFUSED_S if isinstance(error, InputError) else 0)
            text = f"InputError: {error}" if isinstance(error, InputError) else str(error)
            await connection.send(text if number is None else pack({"error": text, "request": number}))
            return True
        if number is not None:
            reply["request"] = number
        if session.previous_ms is not None:
            reply["server_timing"]["prev_total_ms"] = session.previous_ms
        await connection.send(pack(reply))
        session.previous_ms = (time.perf_counter() - begin) * 1e3
        return True

    # Inference.

    async def _ask(self, question: Question | None) -> JsonObject:
        """The answer to one question, computed beside others."""
        if question is None:
            return {"reset": True, "server_timing": {"infer_ms": 0.0}}
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        self._wake.set()
        action, pred, ms = await answer
        if not question.batched:
            action, pred = action[0], pred[0]
        return {"actions": action, "action_pred": pred, "server_timing": {"infer_ms": ms}}

    async def _run_batches(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                group = [self._waiting.popleft()]
                while self._waiting and _fits([question for question, _ in group], self._waiting[0][0]):
                    group.append(self._waiting.popleft())
                await self._answer(group)

    async def _answer(self, group: list[tuple[Question, asyncio.Future[Answer]]]) -> None:
        """Compute a batch; one that fails is computed again one by one, so that a question can only fail alone."""
        try:
            answers = await self._infer([question for question, _ in group])
        except PolicyFailed as error:
            if len(group) > 1:
                for one in group:
                    await self._answer([one])
            elif not group[0][1].done():
                group[0][1].set_exception(error)
            return
        self.requests += len(group)
        self.batches += 1
        for (_, future), answer in zip(group, answers, strict=True):
            if not future.done():  # the client may have gone
                future.set_result(answer)

    async def _infer(self, questions: list[Question]) -> list[Answer]:
        """Ask the policy in its thread.

        Raises:
            PolicyFailed: whatever it raised, or an answer of another shape or not finite.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, questions)

    def _compute(self, questions: list[Question]) -> list[Answer]:
        begin = time.perf_counter()
        obs = {key: np.concatenate([q.obs[key] for q in questions]) for key in self.contract.shapes}
        seeds = np.concatenate([q.noise_seeds for q in questions])
        known = [q.known for q in questions if q.known is not None]
        try:
            if known:
                actions, weights = (np.concatenate([part[i] for part in known]) for i in (0, 1))
                policy = cast(Continuing, self.policy)
                answer = policy.continue_action(obs, actions, weights, nfe=self.settings.nfe, noise_seeds=seeds)
            else:
                answer = self.policy.predict_action(obs, nfe=self.settings.nfe, noise_seeds=seeds)
            action, pred = (np.asarray(answer[key], np.float32) for key in ("action", "action_pred"))
        except BaseException as error:
            # StopIteration cannot be handed over by a future, SystemExit would end the server
            if isinstance(error, InputError):
                raise PolicyFailed(f"InputError: {error}") from None
            log.exception("inference failed")
            # The class alone: a traceback would tell strangers about this machine. It is in the log.
            raise PolicyFailed(f"Internal error: {type(error).__name__}. The server's log has the traceback.") from None
        for name, value in (("action", action), ("action_pred", pred)):
            if value.ndim != 3 or len(value) != len(seeds) or not np.isfinite(value).all():
                what = "NaN or infinity" if value.ndim == 3 and len(value) == len(seeds) else f"shape {value.shape}"
                raise PolicyFailed(f"Internal error: the policy's {name} has {what}, which is not passed on.")
        ms = (time.perf_counter() - begin) * 1e3
        ends = np.cumsum([q.rows for q in questions])
        return [
            (action[end - q.rows : end], pred[end - q.rows : end], ms) for q, end in zip(questions, ends, strict=True)
        ]


def _fits(group: list[Question], question: Question) -> bool:
    """Whether a question can be computed with these: together small enough, and of the same kind."""
    same = (question.known is None) == (group[0].known is None)
    return same and sum(q.rows for q in group) + question.rows <= MAX_BATCH
