"""What recordings say about a robot for which no task is registered; it travels in a policy's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from isdt_policy.shared.errors import InputError

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Recorded:
    """A robot as its demonstrations show it. Numbers are one per entry of an action, in units of the action.

    Attributes:
        rate_hz: control steps per second.
        low, high: commands that were sent lie between these, with a margin of a twentieth of their range.
        step: largest change from one command to the next.
        position: observation key that holds the robot's position in units of the action; "" if there is none.
        neutral: the command that means no motion, None for an entry that keeps its last value; None as a whole: all do.
    """

    rate_hz: float
    low: Numbers
    high: Numbers
    step: Numbers
    position: str = ""
    neutral: tuple[float | None, ...] | None = None

    @classmethod
    def read(cls, values: object, source: str = "config.json") -> Recorded:
        """From JSON values, as `dataclasses.asdict` gives them.

        Raises:
            InputError: something is missing, unknown, or of another kind; `source` names the file.
        """
        try:
            if not isinstance(values, Mapping) or not {*values} <= {field.name for field in fields(cls)}:
                raise TypeError("names that are not known")
            low, high, step = (tuple(float(v) for v in values[name]) for name in ("low", "high", "step"))
            neutral = values.get("neutral")
            still = None if neutral is None else tuple(None if v is None else float(v) for v in neutral)
            rate = float(values["rate_hz"])
            if not (rate > 0 and len({len(low), len(high), len(step)} | ({len(still)} if still else set())) == 1):
                raise ValueError("numbers that do not fit each other")
            return cls(rate, low, high, step, str(values.get("position", "")), still)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{source}: what it says of the recorded robot is damaged ({error}). Copy it again."
            ) from error

    @classmethod
    def of(cls, policy: object) -> Recorded | None:
        """What a policy knows of its robot: a trained one, an exported file, or a server's.

        Raises:
            InputError: what an exported file or a server says is damaged.
        """
        metadata = getattr(policy, "metadata", None) or {}
        if metadata.get("recorded"):
            return cls.read(metadata["recorded"], "the policy's metadata")
        found: Recorded | None = getattr(getattr(policy, "config", None), "recorded", None)
        return found
