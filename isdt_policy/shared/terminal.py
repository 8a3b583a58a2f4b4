"""What a terminal can show: its width, and colour where it has any."""

from __future__ import annotations

import os
import shutil
import textwrap
from typing import Literal, TextIO

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
