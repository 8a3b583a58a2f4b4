"""`isdt serve`: a policy behind a websocket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from dataclasses import dataclass, fields
from typing import ClassVar

from isdt_policy.cli.command import PathText
from isdt_policy.deploy.loading import ADDRESS, load_policy, nfe_of
from isdt_policy.deploy.server import PolicyServer
from isdt_policy.deploy.serving import Endpoint, Serving
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Serve(Endpoint):
    """Serve a policy over a websocket.

    Messages are msgpack, and openpi's clients work too. Ctrl-C answers what was asked and ends. Set ISDT_API_KEY in the
    environment to ask clients for a key; an argument would be visible in the list of processes.

    Examples:
        isdt serve checkpoint=outputs/pusht_demo                      on 127.0.0.1:8000
        isdt serve checkpoint=policy.onnx port=9000                   an exported policy, without torch
        ISDT_API_KEY=secret isdt serve checkpoint=... host=0.0.0.0    other machines can ask, with the key
        isdt serve checkpoint=... history=chunks names=observation/image:front,observation/state:state    openpi's clients

    What is served:
        checkpoint: a run, a checkpoint, a folder of save_pretrained, zoo:NAME, or a .onnx file.
        nfe: network evaluations per chunk; default: 1, or the number that an exported policy is fixed to.
        rtc: clients may send actions that the answer must continue, which takes two evaluations. A .onnx file that can do it
            does it without this option.
        device: where a checkpoint computes: cpu, cuda, cuda:1, mps, or auto for a GPU if there is one.
    """

    checkpoint: PathText
    nfe: Arm | None = None
    rtc: bool = False
    device: str = "cpu"

    positional: ClassVar = ("checkpoint",)
    renamed: ClassVar = {"steps": "nfe"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port < 2**16:
            raise InputError(f"port={self.port} must be from 0, which takes a free one, to 65535.")
        if self.checkpoint.startswith(ADDRESS):
            raise InputError("a server serves a policy, not another server: give checkpoint=PATH.")

    def run(self, command: str) -> int:
        """Serve until interrupted; return 0."""
        policy = load_policy(self.checkpoint, "rtc" if self.rtc else "sync", self.device)
        if self.rtc and not hasattr(policy, "continue_action"):
            raise InputError(f"rtc=true: {self.checkpoint} cannot continue chunks; export it with prefix=true nfe=2.")
        endpoint = {field.name: getattr(self, field.name) for field in fields(Endpoint)}
        nfe = nfe_of(policy, self.nfe.name if self.nfe else None)
        serving = Serving(**endpoint, nfe=nfe, api_key=os.environ.get("ISDT_API_KEY"))
        if self.host not in ("127.0.0.1", "localhost", "::1") and serving.api_key is None:
            print(
                f"warning: {self.host} may be reached by others, and ISDT_API_KEY is not set: anyone may ask.",
                file=sys.stderr,
            )
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
        logging.getLogger("websockets").setLevel(logging.ERROR)
        asyncio.run(self._serve(PolicyServer(policy, serving)))
        return 0

    async def _serve(self, server: PolicyServer) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows; not the main thread
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with server:
            print(f"serving {self.checkpoint} on ws://{self.host}:{server.port} (Ctrl-C ends)", flush=True)
            await stop.wait()
        print(f"served {server.requests} requests in {server.batches} batches, refused {server.refused}.", flush=True)
