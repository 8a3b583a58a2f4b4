"""Power cuts: the work runs on an ext4 image, whose journal and caches are thrown away at a moment; then it is mounted again.

The cut is EXT4_IOC_SHUTDOWN without flushing (what the tests of file systems themselves use): nothing that was not on the
device gets there. What a drive loses from a cache of its own, in spite of a flush, is not covered. It needs root and a loop
device.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from harness import Ack, sit
from kills import Kills
from works import WORKS

from isdt_policy.eval.result import Result

_SHUTDOWN, _NO_FLUSH = 0x8004587D, struct.pack("I", 2)


def possible() -> bool:
    """Whether this machine lets us cut."""
    tools = all(shutil.which(tool) for tool in ("mkfs.ext4", "mount", "umount"))
    return tools and os.geteuid() == 0 and Path("/dev/loop-control").exists()


def cut(place: Path) -> None:
    """The power of a file system goes off."""
    folder = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(folder, _SHUTDOWN, _NO_FLUSH)
    finally:
        os.close(folder)


class Power(Kills):
    """Trials of one work on a disk whose power is cut."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, folder)
        self.name = name
        self.image, self.disk = folder / f"{name}.ext4", folder / f"{name}_disk"
        if os.path.ismount(self.disk):
            subprocess.run(["umount", self.disk], check=True)
        self.disk.mkdir(exist_ok=True)
        with self.image.open("wb") as file:
            file.truncate(96 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.image], check=True)

    def trial(self, number: int) -> tuple[str, str]:
        """See `Kills.trial`."""
        mount = ["mount", "-o", "loop,commit=30", self.image, self.disk]
        place = self.disk / f"trial_{number}"
        subprocess.run(mount, check=True)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        os.sync()  # what was there long before
        log = self.folder / "power.log"
        at = random.Random(number).uniform(0.1, 1.5) * self.seconds
        begin = time.monotonic()
        sitting = sit(self._acknowledging(place), log, at_event=0, after_s=at, end=lambda: cut(self.disk))
        time.sleep(max(0.0, at - (time.monotonic() - begin)))
        if not sitting.killed:
            cut(self.disk)
        subprocess.run(["umount", self.disk], check=True)
        subprocess.run(mount, check=True)
        try:
            if not sitting.acknowledged:
                return "not killed", ""  # the cut came before the work
            after = sit(self._after(place, max(0, sitting.acknowledged - 1)), log)
            if after.code:
                outcome = "lost" if after.acknowledged == 0 else "wrong"
                return outcome, f"cut after {at:.2f} s, {sitting.acknowledged - 1} acknowledged: {after.said[-600:]}"
            shutil.rmtree(place)
            return "survived", ""
        finally:
            subprocess.run(["umount", self.disk], check=True)

    def _acknowledging(self, place: Path) -> Callable[[Ack], object]:
        work = WORKS[self.name]

        def do(ack: Ack) -> None:
            work.before(place, self.given)
            ack()
            if self.name != "eval":  # an episode's line is promised within a second, the result at once
                work.do(place, self.given, ack)
                return
            work.do(place, self.given, lambda: None)
            ack()

        return do

    def _after(self, place: Path, acknowledged: int) -> Callable[[Ack], object]:
        if self.name != "eval":
            return self._afterwards(place, acknowledged)

        def do(ack: Ack) -> None:
            if acknowledged:
                Result.load(place / "eval")
            ack()
            self.work.do(place, self.given, lambda: None)
            self.work.compare(place, self.straight)

        return do
