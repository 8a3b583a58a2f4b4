"""Progress for people: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import TextIO

from isdt_policy.shared import terminal

_RECENT_S = 30.0  # the rate that an estimate rests on is that of the last half minute
_FEWEST = 3  # counts that it rests on at least
_BLOCKS, _TREND = "▁▂▃▄▅▆▇█", 10  # what a trend is drawn with, and its columns at most


def duration(seconds: float) -> str:
    """Seconds as people read them.

    >>> [duration(s) for s in (7, 75, 3720)]
    ['0:07', '1:15', '1:02:00']
    """
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def sparkline(values: Sequence[float]) -> str:
    """A small chart of positive numbers on a logarithmic scale, a column each; others leave a gap.

    >>> sparkline([8, 4, 2, 1, 1])
    '█▆▃▁▁'
    """
    logs = [math.log(v) if v > 0 and math.isfinite(v) else None for v in values]
    known = [log for log in logs if log is not None]
    low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    scale = (len(_BLOCKS) - 1) / span if span > 0 else 0.0
    return "".join(" " if log is None else _BLOCKS[round((log - low) * scale)] for log in logs)


class Trend:
    """The course of a value from its first number to its last, in means of equally many."""

    def __init__(self) -> None:
        self._means: list[float] = []
        self._part: list[float] = []
        self._each = 1

    def add(self, value: float) -> None:
        """The next number."""
        self._part.append(value)
        if len(self._part) < self._each:
            return
        self._means.append(sum(self._part) / len(self._part))
        self._part = []
        if len(self._means) == 2 * _TREND:  # pairs become one, so that the whole course keeps its columns
            self._means = [(a + b) / 2 for a, b in zip(self._means[::2], self._means[1::2])]
            self._each *= 2

    def __str__(self) -> str:
        means = self._means
        if len(means) > _TREND:
            means = [*[(a + b) / 2 for a, b in zip(means[::2], means[1::2])], *means[len(means) // 2 * 2 :]]
        return sparkline(means[-_TREND:])


class Progress:
    """Counts towards `total`, showing the recent rate, the time left and a few values.

    No time left is promised before the rate is known: not from the first counts, which hold whatever was compiled or loaded
    on the way. What does not fit beside the bar of a narrow terminal is left out, the last values first.

    Args:
        total: count at the end.
        label: first word of the line.
        unit: what is counted.
        initial: count already done, left out of the rate.
        every_s: seconds between plain lines when the stream is not a terminal.
        stream: where it is shown; None is stderr.
        trend: the first value of a bar is shown with its course.
    """

    def __init__(
        self,
        total: int,
        label: str,
        unit: str = "step",
        initial: int = 0,
        every_s: float = 15,
        stream: TextIO | None = None,
        trend: bool = False,
    ) -> None:
        self.total, self.label, self.unit, self.count = total, label, unit, initial
        self.every_s, self.stream = every_s, stream or sys.stderr
        self.start = time.monotonic()
        self._shown = self.start
        self._recent: deque[tuple[float, int]] = deque([(self.start, initial)])
        self._first: float | None = None  # when the first count came
        self._trend = Trend() if trend else None
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
                colour="green" if terminal.coloured(self.stream) else None,
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
        told = [f"{k} {_short(v)}" for k, v in values.items()]
        if self._trend is not None and values:
            self._trend.add(float(next(iter(values.values()))))
        if self._bar is not None:
            course = [f"{told[0]} {self._trend}", *told[1:]] if self._trend is not None and told else told
            self._bar.set_postfix_str(self._fitting([self._rate(), *course]), refresh=False)
            self._bar.update(count)
        elif now - self._shown >= self.every_s or self.count >= self.total:
            self._shown = now
            line = f"{self.label} {self.count}/{self.total} {self.unit}s  elapsed {duration(now - self.start)}"
            print("  ".join(part for part in (line, self._rate(), *told) if part), file=self.stream, flush=True)

    def note(self, text: str) -> None:
        """Print a line without breaking the bar."""
        text = terminal.fitted(text, self.stream, indent=4)
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def pause(self) -> None:
        """What comes next takes a time of its own, such as compiling: the rate is measured anew after it."""
        self._first = None

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _rate(self) -> str:
        (then, before), (now, count) = self._recent[0], self._recent[-1]
        early = now - then < 1 or (count - before < _FEWEST and now - then < _RECENT_S)
        if (early and self.count < self.total) or count == before:
            return ""
        rate = (count - before) / max(now - then, 1e-9)
        shown = f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"
        return shown if self.count >= self.total else f"{shown}  left {duration((self.total - self.count) / rate)}"

    def _fitting(self, parts: Sequence[str]) -> str:
        """As many parts as fit beside the bar, the first ones first."""
        number = len(str(self.total))
        room = terminal.columns(self.stream) - 1 - len(f"{self.label}: 100% |{'':12}| {'':{number}}/{self.total} ")
        shown = ""
        for part in filter(None, parts):
            longer = f"{shown}  {part}" if shown else part
            if len(longer) > room:
                break
            shown = longer
        return shown


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"
