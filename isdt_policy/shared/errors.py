"""The one exception users meet: a clear line about what was given, what is allowed and the likely fix.

The command line prints it without a traceback and exits with code 2.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable


class InputError(ValueError):
    """Input from outside (a file, an option, an array) that cannot be used; one line says why and what to do.

    >>> str(InputError("key 'a\\nb' is not known."))
    "key 'a b' is not known."
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(" ".join(str(message).split("\n"))))


def printable(text: str) -> str:
    """Text from a file as it may be shown: what would command the terminal is written as an escape.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the closest allowed name, or an empty string if none is close.

    >>> nearest("pushtt", ["pusht", "lift"])
    " Did you mean 'pusht'?"
    >>> nearest("zebra", ["pusht", "lift"])
    ''
    """
    # Names may come from outside, in any number and length; the search takes time in proportion to both.
    bounded = (str(other) for other in itertools.islice(allowed, 500))
    matches = difflib.get_close_matches(name[:100], [other for other in bounded if len(other) <= 100], n=1)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def at_least(least: float, **values: float) -> None:
    """Check numbers that must not be smaller than `least`, by their names.

    >>> at_least(1, rounds=7, calls=3)

    Raises:
        InputError: the first one that is smaller.
    """
    for name, value in values.items():
        if value < least:
            raise InputError(f"{name}={value:g} must be at least {least:g}.")
