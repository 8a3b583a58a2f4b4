"""Injected latency: a distribution written as text."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from isdt_policy.shared.errors import InputError, nearest

Draw = Callable[[np.random.Generator], float]
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
ALLOWED = "none, 30ms, uniform(10ms,50ms), normal(30ms,5ms), lognormal(30ms,0.5) (median, sigma of the logarithm)"


def parse_latency(text: str) -> Draw:
    """Turn a description into a function that draws seconds, at least 0.

    >>> parse_latency("uniform(10ms,50ms)")(np.random.default_rng(0)) * 1e3 # doctest: +ELLIPSIS
    35.47...
    >>> parse_latency("20ms")(np.random.default_rng(0))
    0.02

    Raises:
        InputError: another form, a missing unit, a negative time.
    """
    text = text.strip().lower()
    if text in ("none", "0"):
        return lambda rng: 0.0
    match = re.fullmatch(r"(?:([a-z]+)\(([^()]*)\)|(.*))", text)
    assert match
    name, parts = match[1] or "", [part.strip() for part in (match[2] or match[3]).split(",")]
    sigma = _number(parts[1]) if len(parts) == 2 else 0.5
    match (name, *map(_seconds, parts)):
        case ("", float(a)):
            return lambda rng: a
        case ("uniform", float(a), float(b)) if a <= b:
            return lambda rng: float(rng.uniform(a, b))
        case ("normal", float(a), float(b)):
            return lambda rng: max(0.0, float(rng.normal(a, b)))
        case ("lognormal", float(a)) | ("lognormal", float(a), _) if a > 0 and 0 <= sigma <= 5:
            return lambda rng: float(a * np.exp(sigma * rng.standard_normal()))
    known = ("uniform", "normal", "lognormal")
    hint = "" if name in known else nearest(name or text, known)
    raise InputError(f"latency='{text}' is not understood.{hint} Allowed: {ALLOWED}.")


def _seconds(text: str) -> float | None:
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s)", text)
    return float(match[1]) * _UNITS[match[2]] if match else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0
