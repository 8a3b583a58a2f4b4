"""What people see: progress at 80 columns, no promise before anything is known, colour where it is a terminal."""

import fcntl
import io
import os
import pty
import re
import struct
import termios

import pytest

from isdt_policy.shared import progress, terminal
from isdt_policy.shared.progress import Progress, sparkline


class Screen:
    """A terminal of 80 columns; `text()` is what was written to it, without colour."""

    def __init__(self, columns=80):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = os.fdopen(slave, "w")

    def raw(self):
        self.stream.flush()
        os.set_blocking(self._master, False)
        parts = []
        while True:
            try:
                parts.append(os.read(self._master, 65536))
            except BlockingIOError:
                return b"".join(parts).decode()

    def text(self):
        return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", self.raw())


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


VALUES = {"off_diagonal": 0.123, "diagonal": 0.456, "grad": 1.57, "lr": 0.00097}


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_bar_fits_into_its_terminal(columns):
    screen = Screen(columns)
    bar = Progress(600_000, "train", initial=599_000, stream=screen.stream, trend=True)
    for step in range(400):
        bar._recent[0] = (bar._recent[0][0] - 100, bar._recent[0][1])  # as if it took minutes
        bar.update(1, **{**VALUES, "off_diagonal": 100 / (step + 1)})
    bar.close()
    lines = re.split(r"[\r\n]+", screen.text())
    assert max(map(len, lines)) <= columns
    if columns >= 80:
        assert any("off_diagonal" in line and "█" in line.split("|")[-1] for line in lines)
        assert not any(re.search(r"(off_diagonal|grad|lr) *$", line) for line in lines)  # a value is whole or not there


def test_no_time_left_is_promised_before_a_few_steps(clock):
    out = io.StringIO()
    bar = Progress(6000, "train", stream=out, every_s=0)
    clock.now = 300.0  # the first step compiles
    bar.update(1)
    clock.now += 0.5
    bar.update(1)
    assert "left" not in out.getvalue()
    for _ in range(9):
        clock.now += 0.5
        bar.update(1)
    assert "left 49:" in out.getvalue().splitlines()[-1]


def test_a_pause_does_not_count_for_the_rate(clock):
    """The second part of a run compiles in its first step: three minutes of nothing, which do not lie ahead again."""
    out = io.StringIO()
    bar = Progress(6000, "train", stream=out, every_s=0)
    for wait in [300] + [0.1] * 50:
        clock.now += wait
        bar.update(1)
    bar.pause()
    for wait in [180] + [0.2] * 20:
        clock.now += wait
        bar.update(1)
    lines = out.getvalue().splitlines()
    assert "left" not in lines[51]
    assert "5.0/s" in lines[-1]


def test_slow_counts_are_estimated_from_two(clock):
    out = io.StringIO()
    bar = Progress(10, "cells", "cell", stream=out, every_s=0)
    for _ in range(3):
        clock.now += 100
        bar.update(1)
    assert "left 11:40" in out.getvalue().splitlines()[-1]


def test_a_trend_keeps_the_whole_course():
    trend = progress.Trend()
    for step in range(5000):
        trend.add(10.0 if step < 2500 else 0.1)
    line = str(trend)
    assert len(line) <= 10
    assert line.startswith("███")
    assert line.endswith("▁▁▁")


def test_a_sparkline_of_what_cannot_be_drawn():
    assert sparkline([]) == ""
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([1.0, 0.0, float("nan"), 2.0]) == "▁  █"


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_is_for_terminals_that_want_it(monkeypatch, variable, value):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    assert terminal.styled("next", "bold", screen.stream) == "\x1b[1mnext\x1b[0m"
    assert terminal.styled("next", "bold", io.StringIO()) == "next"
    monkeypatch.setenv(variable, value)
    assert terminal.styled("next", "bold", screen.stream) == "next"
    Progress(3, "train", stream=screen.stream).close()
    assert "\x1b[3" not in screen.raw()


def test_long_lines_are_broken_for_a_terminal_alone():
    line = "policy    " + "word " * 30
    screen = Screen()
    shown = terminal.fitted(line, screen.stream, indent=10).splitlines()
    assert len(shown) > 1
    assert max(map(len, shown)) <= 80
    assert all(part.startswith(" " * 10) for part in shown[1:])
    assert terminal.fitted(line, io.StringIO()) == line


WIDE = """| policy | arm | success | score | difference | p | score |
|---|---|---|---|---|---|---|
| a | 1 | 99.0 (96.4 to 99.7) | 0.990 (0.975 to 1.000) | +0.5 (-1.0 to +2.5) | 0.5 | +0.005 (-0.010 to +0.025) |
| a | 2 | 98.0 (95.4 to 99.7) | 0.980 (0.975 to 1.000) | | 1.0 | +0.001 (-0.010 to +0.025) |

95 % intervals: Wilson for success, bootstrap for the score; differences from the first row on 200 common seeds."""


def test_a_wide_table_comes_in_parts_that_fit_and_lose_nothing():
    screen = Screen()
    shown = terminal.readable(WIDE, screen.stream)
    assert max(map(len, shown.splitlines())) <= 80
    cells = {cell.strip() for line in WIDE.splitlines() if line.startswith("| ") for cell in line.strip("|").split("|")}
    assert all(cell in shown for cell in cells)
    assert len(re.findall(r"^policy  arm", shown, flags=re.MULTILINE)) == 2  # what names a row begins every part
    assert "differences from\nthe first row" in shown


def test_a_file_gets_the_table_as_it_is():
    assert terminal.readable(WIDE, io.StringIO()) == WIDE


def test_a_wide_terminal_gets_the_table_in_one_piece():
    assert terminal.readable(WIDE, Screen(columns=200).stream) == WIDE
