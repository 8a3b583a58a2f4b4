"""Cores of a machine that does other things too: threads that wait without spinning, and no more of them than are free."""

from __future__ import annotations

import os
import time
from pathlib import Path

# LLVM's and Intel's OpenMP, and GNU's: turns of a loop, about 0.03 ms; without it, 3 ms.
_BRIEFLY = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "3000"}


def wait_briefly() -> None:
    """Let threads that wait for each other sleep soon. Only a process that has not loaded torch yet obeys; what a user set stays.

    OpenMP's threads spin at every barrier, for as long as milliseconds. Where another process has taken the core of the thread
    that is waited for, both cores are busy and nothing gets done. Not to spin at all halves the speed of a quiet machine: to
    wake a thread takes longer than most barriers do. docs/scale.md has the measurements.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in _BRIEFLY.items():
            os.environ.setdefault(name, value)


def free_cores(most: int, seconds: float = 0.25) -> int:
    """How many of `most` cores other processes leave free now: one at least.

    Linux tells how busy its cores were while this function slept; elsewhere the mean of the last minute has to do.

    Args:
        most: cores that this process may use.
        seconds: how long to watch.
    """
    if most <= 1:
        return 1
    before = _busy_s()
    if before is None:
        return max(1, most - round(os.getloadavg()[0])) if hasattr(os, "getloadavg") else most
    mine, start = time.process_time(), time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - start
    after = _busy_s() or before
    others = (after - before - (time.process_time() - mine)) / elapsed
    idle = (os.cpu_count() or most) - others
    return max(1, min(most, round(idle)))


def _busy_s() -> float | None:
    """Seconds that the cores of this machine have worked since it started; None where nothing tells."""
    try:
        user, nice, system, _, _, irq, soft_irq = Path("/proc/stat").read_text().split()[1:8]
    except (OSError, ValueError):
        return None
    return sum(map(int, (user, nice, system, irq, soft_irq))) / os.sysconf("SC_CLK_TCK")
