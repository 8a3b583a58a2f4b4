"""Progress for people: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from typing import TextIO


def duration(seconds: float) -> str:
    """Seconds as people read them.

    >>> [duration(s) for s in (7, 75, 3720)]
    ['0:07', '1:15', '1:02:00']
    """
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Counts towards `total`, showing rate, time left and a few values.

    Args:
        total: count at the end.
        label: first word of the line.
        unit: what is counted.
        initial: count already done, left out of the rate.
        every_s: seconds between plain lines when the stream is not a terminal.
    """

    def __init__(
        self,
        total: int,
        label: str,
        unit: str = "step",
        initial: int = 0,
        every_s: float = 15,
        stream: TextIO | None = None,
    ) -> None:
        self.total, self.label, self.unit, self.count, self.initial = total, label, unit, initial, initial
        self.every_s, self.stream = every_s, stream or sys.stderr
        self.start = self.last = time.monotonic()
        self._bar = None
        if self.stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=initial, desc=label, unit=unit, dynamic_ncols=True, file=self.stream)

    def update(self, count: int = 1, **values: float | str) -> None:
        """Advance by `count`; `values` are shown with three digits."""
        self.count += count
        if self._bar is not None:
            self._bar.set_postfix({k: _short(v) for k, v in values.items()}, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self.last >= self.every_s or self.count >= self.total:
            self.last = now
            rate = (self.count - self.initial) / max(now - self.start, 1e-9)
            left = duration((self.total - self.count) / rate) if rate else "?"
            shown = "  ".join(f"{k} {_short(v)}" for k, v in values.items())
            print(
                f"{self.label} {self.count}/{self.total} {self.unit}s  {rate:.1f}/s  "
                f"elapsed {duration(now - self.start)}  left {left}  {shown}".rstrip(),
                file=self.stream,
                flush=True,
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"
