"""Cores of a machine that does other things too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from isdt_policy.shared import cores


@pytest.mark.parametrize(
    ("mine", "all_cores", "expected"),
    [(0.0, 0.0, 4), (0.0, 1.0, 3), (0.0, 3.9, 1), (1.0, 1.0, 4), (1.0, 3.0, 2)],
    ids=["idle", "one busy", "all busy", "busy with this process", "this process and two others"],
)
def test_what_others_leave(mine, all_cores, expected, monkeypatch):
    """`mine` and `all_cores`: how many cores this process, and all together, keep busy while it watches."""
    clock = [0.0]
    monkeypatch.setattr(cores.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(cores.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(cores.time, "process_time", lambda: mine * clock[0])
    monkeypatch.setattr(cores, "_busy_s", lambda: all_cores * clock[0])
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert cores.free_cores(4) == expected


def test_a_machine_that_does_not_tell_is_asked_for_its_mean_load(monkeypatch):
    monkeypatch.setattr(cores, "_busy_s", lambda: None)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.2, 0.0, 0.0))
    assert cores.free_cores(4) == 2
    assert cores.free_cores(2) == 1


def test_the_command_waits_briefly_unless_told_otherwise():
    """Before torch is loaded: later nobody reads these variables."""
    program = (
        "import os, sys; from isdt_policy.cli import main; main(['--version']); "
        "print(*map(os.environ.get, ('OMP_WAIT_POLICY', 'KMP_BLOCKTIME', 'GOMP_SPINCOUNT')), 'torch' in sys.modules)"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")}
    ways = [
        ({}, "PASSIVE 0 3000 False"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None None False"),
        ({"GOMP_SPINCOUNT": "9"}, "PASSIVE 0 9 False"),
    ]  # fmt: skip
    for given, expected in ways:
        done = subprocess.run([sys.executable, "-c", program], env={**clean, **given}, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == expected
