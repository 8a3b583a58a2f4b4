"""Limits of the commands that reach a robot: what they are, how they are written, and what several of them allow together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.files import write_text
from isdt_policy.shared.values import parse_json

FILE = "limits.json"
Bound = tuple[float, ...] | None


@dataclass(frozen=True)
class Limits:
    """Limits per entry of a command; None where there is none. Written as limits.json beside a policy's weights.

    Attributes:
        low, high: bounds, in units of the action; infinite where an entry has none.
        step: largest change from one command to the next, same units.
        velocity, acceleration, jerk: largest rates of the command, units / s, / s^2, / s^3.
        position: observation key that holds the robot's position in units of the action: the command it starts from
            after a reset. Without it the first command is bounded only by low and high.
        neutral: the command that means no motion: a number per entry, such as 0 for a displacement, or None for an entry
            that keeps its last value, such as a gripper. Without it every entry keeps its last value, which is right for
            positions and wrong for displacements.
    """

    low: Bound = None
    high: Bound = None
    step: Bound = None
    velocity: Bound = None
    acceleration: Bound = None
    jerk: Bound = None
    position: str | None = None
    neutral: tuple[float | None, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high", "step", "velocity", "acceleration", "jerk"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _numbers(name, value))
        if self.neutral is not None:
            entries = (self.neutral,) if isinstance(self.neutral, str | float | int) else tuple(self.neutral)
            numbers = _numbers("neutral", [0.0 if entry is None else entry for entry in entries])
            if not np.isfinite(numbers).all():
                raise InputError(f"limit 'neutral' must be finite, got {self.neutral}.")
            neutral = tuple(None if e is None else n for e, n in zip(entries, numbers, strict=True))
            object.__setattr__(self, "neutral", neutral)
        if self.position is not None and not isinstance(self.position, str):
            raise InputError(f"limit 'position' must be the key of an observation, got {self.position!r}.")
        sizes = {len(v) for name, v in self.as_dict().items() if name != "position" and isinstance(v, tuple)}
        if len(sizes) > 1:
            raise InputError(
                f"the limits are of different lengths ({sorted(sizes)}): one number per entry of an action."
            )
        if self.low is not None and self.high is not None and any(a > b for a, b in zip(self.low, self.high)):
            raise InputError(f"limit 'low' {self.low} is above 'high' {self.high}.")

    @property
    def size(self) -> int | None:
        """Entries of a command; None if nothing is limited."""
        return next((len(v) for v in self.as_dict().values() if isinstance(v, tuple)), None)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Limits:
        """Build from JSON values; an unknown name is refused, as a limit that is not obeyed is worse than none."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(f"unknown limit '{name}'.{nearest(name, known)} Limits: {', '.join(known)}.")
        return cls(**values)  # type: ignore[arg-type]  # checked there

    @classmethod
    def load(cls, path: str | Path) -> Limits:
        """Read a JSON file, or the limits.json in a folder."""
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        try:
            values = parse_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"limits at '{path}' cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise InputError(f'{path} must hold an object such as {{"low": [0, 0], "high": [512, 512]}}.')
        return cls.from_dict(values)

    def save(self, folder: str | Path) -> Path:
        """Write limits.json into a folder."""
        path = Path(folder) / FILE
        write_text(path, json.dumps(self.as_dict(), indent=1) + "\n")
        return path

    def as_dict(self) -> dict[str, object]:
        """The limits that are set."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def and_also(self, other: Limits, whose: str = "the other limits") -> Limits:
        """What both allow. `other` says what a neutral command is if it says so at all.

        Raises:
            InputError: they are of different robots, or leave nothing allowed; `whose` names the others.
        """
        if None not in (self.size, other.size) and self.size != other.size:
            raise InputError(f"{whose} have {other.size} numbers per limit, an action has {self.size}.")
        if self.position and other.position and self.position != other.position:
            raise InputError(f"{whose} start from '{other.position}', the others from '{self.position}'.")
        joined = {name: _stricter(name, getattr(self, name), getattr(other, name)) for name in _PICK}
        if joined["low"] and joined["high"] and any(a > b for a, b in zip(joined["low"], joined["high"])):
            raise InputError(f"{whose} allow nothing that the others do: low {joined['low']}, high {joined['high']}.")
        return Limits(**joined, position=other.position or self.position, neutral=other.neutral or self.neutral)


_PICK = {"low": max, "high": min, "step": min, "velocity": min, "acceleration": min, "jerk": min}


def _stricter(name: str, a: Bound, b: Bound) -> Bound:
    if a is None or b is None:
        return a if b is None else b
    return tuple(_PICK[name](x, y) for x, y in zip(a, b, strict=True))


def _numbers(name: str, value: object) -> tuple[float, ...]:
    try:
        array: NDArray[np.float64] = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"limit '{name}' must be a list of numbers, got {value!r}.") from None
    if array.ndim != 1 or np.isnan(array).any():
        raise InputError(f"limit '{name}' must be a list of numbers, one per entry of an action; got {value}.")
    if name not in ("low", "high", "neutral") and (array <= 0).any():
        raise InputError(f"limit '{name}' must be above 0, got {value}.")
    if (name == "low" and (array == np.inf).any()) or (name == "high" and (array == -np.inf).any()):
        raise InputError(f"limit '{name}' is {value}, which no command can keep.")
    return tuple(float(number) for number in array)


def no_motion(action_type: str, size: int) -> tuple[float | None, ...] | None:
    """What a neutral command is by the words in which a task describes its actions; None for positions.

    >>> no_motion("displacement, m", 2)
    (0.0, 0.0)
    >>> no_motion("absolute position target, px", 2)
    """
    words = action_type.lower()
    moving = any(word in words for word in ("displacement", "delta", "velocit", "relative"))
    return (0.0,) * size if moving and "absolute" not in words else None
