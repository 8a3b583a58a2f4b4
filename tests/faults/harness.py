"""Work in a forked process that is killed at a file operation or at a time; what it acknowledged before, and how it ended.

The process that forks has imported everything and computes nothing, so a trial costs no start. It holds no threads.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Ack = Callable[[], object]
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink")


@dataclass(frozen=True)
class Sitting:
    """What became of a process.

    Attributes:
        acknowledged: how often it said that something is done.
        code: exit code; minus the signal that ended it.
        said: its last words on stderr.
        seconds: how long it lived.
        events: how many file operations it made, if it lived to its end.
    """

    acknowledged: int
    code: int
    said: str
    seconds: float
    events: int = 0

    @property
    def killed(self) -> bool:
        """Whether it was killed."""
        return self.code == -signal.SIGKILL


def sit(
    work: Callable[[Ack], object],
    log: Path,
    at_event: int = 0,
    after_s: float = 0.0,
    timeout_s: float = 300.0,
    end: Callable[[], object] = lambda: None,
) -> Sitting:
    """Do a piece of work in a forked process.

    Args:
        work: is handed a function to call whenever something is done for good.
        log: takes its stdout and stderr.
        at_event: kill it at this file operation, counted from 1; 0 does not, and a number that is never reached counts them.
        after_s: kill it after so many seconds; 0 does not.
        timeout_s: kill it then in any case; its code is then 124.
        end: is called right before it is killed at a time.
    """
    read, write = os.pipe()
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(read)
        _child(work, log, at_event, write)
    os.close(write)
    code, acknowledged, events = None, 0, 0
    deadline = begin + (after_s or timeout_s)
    while True:
        ready, _, _ = select.select([read], [], [], max(0.0, deadline - time.monotonic()))
        if not ready and code is None:
            end()
            os.kill(child, signal.SIGKILL)
            code, deadline = (-signal.SIGKILL if after_s else 124), begin + 1e9
            continue
        chunk = os.read(read, 4096)
        if not chunk:
            break
        acknowledged += chunk.count(b".")
        if b"=" in chunk:
            events = int(chunk.partition(b"=")[2])
    os.close(read)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
    return Sitting(acknowledged, code if code == 124 else ended, said, time.monotonic() - begin, events)


def _child(work: Callable[[Ack], object], log: Path, at_event: int, pipe: int) -> None:
    code, seen = 1, 0
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)

        def count(event: str, _: object) -> None:
            nonlocal seen
            if event in EVENTS:
                seen += 1
                if seen == at_event:
                    os.kill(os.getpid(), signal.SIGKILL)

        if at_event:
            sys.addaudithook(count)
        work(lambda: os.write(pipe, b"."))
        os.write(pipe, f"={seen}".encode())
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def orphans(session: int) -> list[int]:
    """Processes of a session that is over."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
