"""Progress for people: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TextIO

_RECENT_S = 30.0  # the rate that an estimate rests on is that of the last half minute


def duration(seconds: float) -> str:
    """Seconds as people read them.

    >>> [duration(s) for s in (7, 75, 3720)]
    ['0:07', '1:15', '1:02:00']
    """
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Counts towards `total`, showing the recent rate, the time left and a few values.

    No time left is promised before the rate is known: not from the first counts, which hold whatever was compiled or loaded
    on the way.

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
        self.total, self.label, self.unit, self.count = total, label, unit, initial
        self.every_s, self.stream = every_s, stream or sys.stderr
        self.start = time.monotonic()
        self._shown = self.start
        self._recent: deque[tuple[float, int]] = deque([(self.start, initial)])
        self._first: float | None = None  # when the first count came
        self._bar = None
        if self.stream.isatty():
            from tqdm import tqdm

            layout = "{desc}: {percentage:3.0f}% |{bar:12}| {n_fmt}/{total_fmt} {postfix}"
            self._bar = tqdm(
                total=total,
                initial=initial,
                desc=label,
                unit=unit,
                dynamic_ncols=True,
                file=self.stream,
                bar_format=layout,
            )

    def update(self, count: int = 1, **values: float | str) -> None:
        """Advance by `count`; `values` are shown with three digits."""
        now = time.monotonic()
        self.count += count
        if self._first is None:  # the clock of the rate starts here
            self._first = now
            self._recent.clear()
        self._recent.append((now, self.count))
        while len(self._recent) > 2 and now - self._recent[0][0] > _RECENT_S:
            self._recent.popleft()
        shown = "  ".join(f"{k} {_short(v)}" for k, v in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._rate()}  {shown}".strip(), refresh=False)
            self._bar.update(count)
        elif now - self._shown >= self.every_s or self.count >= self.total:
            self._shown = now
            line = f"{self.label} {self.count}/{self.total} {self.unit}s  elapsed {duration(now - self.start)}"
            print(f"{line}  {self._rate()}  {shown}".rstrip(), file=self.stream, flush=True)

    def note(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _rate(self) -> str:
        (then, before), (now, count) = self._recent[0], self._recent[-1]
        if (now - then < 1 and self.count < self.total) or count == before:
            return ""
        rate = (count - before) / max(now - then, 1e-9)
        shown = f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"
        return shown if self.count >= self.total else f"{shown}  left {duration((self.total - self.count) / rate)}"


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"
