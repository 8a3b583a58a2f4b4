"""Ctrl-C and SIGTERM end training after the step in progress, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Training stopped when it was asked to, and saved a checkpoint.

    Attributes:
        step: of the checkpoint.
        signal: number of the signal that asked.
    """

    def __init__(self, step: int, signal: int) -> None:
        super().__init__(f"stopped at step {step}, which is saved")
        self.step, self.signal = step, signal


@dataclass
class StopRequest:
    """Whether a signal has asked to stop.

    Attributes:
        note: tells people a line.
        signal: number of the signal; 0 before any.
    """

    note: Callable[[str], None]
    signal: int = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler: the first signal is noted, the second one stops at once."""
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        self.note("stopping after this step, with a checkpoint; press Ctrl-C again to stop at once, without one")


@contextmanager
def stop_requests(note: Callable[[str], None]) -> Iterator[StopRequest]:
    """Note Ctrl-C and SIGTERM while the block runs. In another thread than the main one, Python hears no signals."""
    request = StopRequest(note)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
