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
    if constant := _seconds(text):
        return lambda rng: constant
    match = re.fullmatch(r"([a-z]+)\(([^()]*)\)", text)
    names = ("uniform", "normal", "lognormal")
    if not match or match[1] not in names:
        name = match[1] if match else text
        raise InputError(f"latency='{text}' is not understood.{nearest(name, names)} Allowed: {ALLOWED}.")
    parts = [part.strip() for part in match[2].split(",")]
    times = [_seconds(part) for part in parts]
    if match[1] == "lognormal" and 1 <= len(parts) <= 2 and times[0]:
        median, sigma = times[0], 0.5
        if len(parts) == 2:
            try:
                sigma = float(parts[1])
            except ValueError:
                sigma = -1.0
        if 0 <= sigma <= 5:
            return lambda rng: float(median * np.exp(sigma * rng.standard_normal()))
    elif match[1] != "lognormal" and len(times) == 2:
        a, b = times
        if a is not None and b is not None:
            first, second = a, b
            if match[1] == "normal":
                return lambda rng: max(0.0, float(rng.normal(first, second)))
            if first <= second:
                return lambda rng: float(rng.uniform(first, second))
    raise InputError(f"latency='{text}' is not understood. Allowed: {ALLOWED}.")


def _seconds(text: str) -> float | None:
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s)", text)
    return float(match[1]) * _UNITS[match[2]] if match else None
