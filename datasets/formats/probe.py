"""A look at an HDF5 file by another process: HDF5's library ends the process on some damaged files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from isdt_policy.shared.errors import InputError

# Reads what HDF5 reads before the numbers. What can be said of the file is said by whoever reads it afterwards. Some damaged
# files are read for ever: after twenty seconds of the processor, not of the disk, the system ends the process.
_PROGRAM = """
import contextlib, json, signal, sys, h5py
limit = getattr(signal, "setitimer", lambda *_: None)
def look(item, seen):
    address = h5py.h5o.get_info(item.id).addr
    if address in seen:
        return
    seen.add(address)
    with contextlib.suppress(Exception):
        for name in item.attrs:
            with contextlib.suppress(Exception):
                item.attrs[name]
    for name in item if isinstance(item, h5py.Group) else ():
        with contextlib.suppress(Exception):
            if isinstance(item.get(name, getlink=True), h5py.HardLink):
                look(item[name], seen)
for line in sys.stdin:
    limit(getattr(signal, "ITIMER_PROF", 0), 20)
    with contextlib.suppress(Exception), h5py.File(json.loads(line), "r") as file:
        look(file, set())
    limit(getattr(signal, "ITIMER_PROF", 0), 0)
    print(flush=True)
"""
_looking: dict[int, subprocess.Popen[str]] = {}  # by our own process id: a forked process starts its own


def look(path: Path) -> None:
    """Have a file looked at; the process that looks stays for the next one, and ends with this one.

    Raises:
        InputError: whoever looked has crashed or did not come back.
    """
    process = _looking.get(os.getpid())
    if process is None or process.poll() is not None:
        process = _looking[os.getpid()] = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(str(path)) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        process.wait()
        raise InputError(f"'{path}' is damaged: HDF5 crashes or hangs when it reads it. Download it again.")
