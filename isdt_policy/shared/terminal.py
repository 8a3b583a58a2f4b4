"""What a terminal can show: its width, and colour where it has any."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import textwrap
from typing import Literal, TextIO

from isdt_policy.shared import tables

_CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1"}


def columns(stream: TextIO) -> int:
    """Columns of the terminal behind a stream; 80 where it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):  # no terminal, or a stream without a file
        return shutil.get_terminal_size((80, 24)).columns


def coloured(stream: TextIO) -> bool:
    """Whether colour may be written: to a terminal, unless NO_COLOR is set or the terminal is dumb (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, style: Literal["red", "green", "yellow", "bold"], stream: TextIO) -> str:
    """Text in a colour where the stream shows one, and as it is anywhere else."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if coloured(stream) else text


def fitted(text: str, stream: TextIO, indent: int = 0) -> str:
    """Text broken at spaces for a terminal, with later lines indented; as it is for a file or a pipe, where lines are searched."""
    if not stream.isatty():
        return text
    return "\n".join(
        textwrap.fill(
            line, columns(stream), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        )
        for line in text.splitlines()
    )


def readable(text: str, stream: TextIO) -> str:
    """Text with Markdown tables, as a terminal can show it: a table that is too wide comes in parts, one below the other.

    A file or a pipe gets it as it is.
    """
    if not stream.isatty():
        return text
    width, parts = columns(stream), []
    for table, group in itertools.groupby(text.splitlines(), lambda line: line.startswith("|")):
        lines = list(group)
        if not table:
            parts.append(fitted("\n".join(lines), stream))
        elif max(map(len, lines)) <= width:
            parts.append("\n".join(lines))
        else:
            rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines]
            parts.append(_in_parts(rows[0], rows[2:], width))
    return "\n".join(parts)


def show(text: str) -> None:
    """Print text with Markdown tables and long lines, so that a terminal can show them."""
    print(readable(text, sys.stdout), flush=True)


def suggest(command: str) -> None:
    """Print the command that usually comes next, as the last line of a verb."""
    print(styled(f"next: {command}", "bold", sys.stdout), flush=True)


def _in_parts(header: list[str], rows: list[list[str]], width: int) -> str:
    """A table as aligned columns within a width; every part begins with the columns that name the rows."""
    names = next((n for n in range(1, len(header)) if len({tuple(row[:n]) for row in rows}) == len(rows)), 1)
    needed = [max(len(cells[i]) for cells in (header, *rows)) + 2 for i in range(len(header))]
    parts: list[list[int]] = [[]]
    for i in range(names, len(header)):
        if parts[-1] and sum(needed[:names]) + sum(needed[j] for j in parts[-1]) + needed[i] - 2 > width:
            parts.append([])
        parts[-1].append(i)
    shown = ([*range(names), *part] for part in parts)
    return "\n\n".join(
        tables.columns([header[i] for i in part], [[row[i] for i in part] for row in rows]) for part in shown
    )
