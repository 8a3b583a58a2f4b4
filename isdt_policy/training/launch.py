"""`isdt train nproc=N`: the processes of one machine that train together, without another launcher."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from isdt_policy.shared.errors import InputError, at_least
from isdt_policy.training.distributed import from_environment

_GRACE_S = 30.0  # for the others, once a process has failed: they notice, and say so


def start(nproc: int, args: Sequence[str]) -> int:
    """Run `isdt train` in several processes and wait for them.

    Args:
        nproc: how many.
        args: of `isdt train`, without nproc=.

    Returns:
        0, or the exit code of the process that failed first.

    Raises:
        InputError: nproc is below 1, or this process is itself one of several.
    """
    at_least(1, nproc=nproc)
    if from_environment().size > 1:
        raise InputError(
            "nproc= starts the processes itself, and a launcher has started several already. Leave nproc= out."
        )
    return run(nproc, [sys.executable, "-m", "isdt_policy", "train", *args])


def run(nproc: int, command: Sequence[str]) -> int:
    """Run a command in several processes that find each other by the variables of torchrun; see `start`."""
    variables = {
        **os.environ, "WORLD_SIZE": str(nproc), "LOCAL_WORLD_SIZE": str(nproc), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }  # fmt: skip
    if sys.platform == "linux":
        variables.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine need not know its own name
    children = [
        subprocess.Popen(
            command,
            env={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=None if rank == 0 else subprocess.DEVNULL,
        )
        for rank in range(nproc)
    ]
    # Ctrl-C reaches all processes of a terminal by itself; SIGTERM is handed on.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: _send(children, number)),
    }
    try:
        return _wait(children)
    finally:
        _send(children, signal.SIGKILL)
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    failed, deadline = 0, float("inf")
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        ended = [child.returncode for child in children if child.returncode]
        if ended and not failed:
            failed, deadline = ended[0], time.monotonic() + _GRACE_S
        time.sleep(0.05)
    failed = failed or next((child.returncode for child in children if child.returncode), 0)
    return failed if failed >= 0 else 128 - failed  # ended by a signal, as a shell counts


def _send(children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
