"""Notices that a control loop has fallen silent."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from isdt_policy.shared.errors import InputError

log = logging.getLogger("isdt_policy.deploy")


class Watchdog:
    """Calls `on_silence` once, from its own thread, when `beat` has not been called for `timeout_s`; again after a new beat.

    Example:
        with Watchdog(0.5, lambda: safety.stop("the control loop is silent")) as watchdog:
            while running:
                watchdog.beat()
    """

    def __init__(self, timeout_s: float, on_silence: Callable[[], None]) -> None:
        if timeout_s <= 0:
            raise InputError(f"watchdog timeout must be above 0 s, got {timeout_s}.")
        self.timeout_s, self.on_silence = timeout_s, on_silence
        self.silences = 0
        self._beat, self._closing = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._beat.set()
        self._thread.join()

    def beat(self) -> None:
        """The loop lives."""
        self._beat.set()

    def _watch(self) -> None:
        while not self._closing:
            heard = self._beat.wait(self.timeout_s)
            if not heard:
                self.silences += 1
                log.error("watchdog: silence for %.3g s", self.timeout_s)
                self.on_silence()
                self._beat.wait()
            self._beat.clear()
