"""Between a policy and the hardware: what reaches the robot is bounded, finite and never too old.

Every intervention is counted by kind and logged. Order of the checks: fault (no action, not finite, too old) -> bounds -> how
fast commands may change (see `motion`). No combination of limits is exceeded, and bounds only by a robot that starts outside.

Imports NumPy only; acceleration and jerk limits need ruckig.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from isdt_policy.deploy.limits import Limits
from isdt_policy.deploy.motion import Braking, Steps
from isdt_policy.shared.errors import InputError

log = logging.getLogger("isdt_policy.deploy")

OnFault = Literal["hold", "stop"]


class Safety:
    """The last stage before the hardware: `command = safety(action, age_s)`, once per control step.

    Args:
        limits: what is allowed, and what a command without motion is.
        action_dim: entries of a command.
        rate_hz: commands per second.
        on_fault: "hold" moves no further until good actions come again; "stop" until `reset`. Positions keep the last target,
            which is approached within the limits; entries with a neutral value (displacements) go to that.
        max_age_s: an action based on an observation older than this counts as stale; None allows any age.
        positions: actions are positions, so that keeping the last one is no motion. Not needed where `limits` say what no motion
            is (`neutral`), or which observation the actions are positions of (`position`).

    Attributes:
        counts: interventions by kind: "missing", "not finite", "stale", "bounds", "step", "velocity", "acceleration or
            jerk", "not planned" (the old plan is followed to its end instead), "stopped". One entry per control step and kind.
        stopped: why nothing moves until the next reset, or None.

    Raises:
        InputError: limits of another length, or nothing that says which action is no motion.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        action_dim: int,
        rate_hz: float,
        on_fault: OnFault = "hold",
        max_age_s: float | None = None,
        positions: bool = False,
    ) -> None:
        if on_fault not in ("hold", "stop"):
            raise InputError(f"on_fault='{on_fault}' must be hold or stop.")
        if not (np.isfinite(rate_hz) and rate_hz > 0):
            raise InputError(f"rate_hz={rate_hz} must be above 0.")
        for name, value in limits.as_dict().items():
            if isinstance(value, tuple) and len(value) != action_dim:
                raise InputError(f"limit '{name}' has {len(value)} numbers, an action has {action_dim}.")
        self.limits, self.action_dim = limits, action_dim
        self.on_fault, self.max_age_s = on_fault, max_age_s
        self.counts: Counter[str] = Counter()
        self.stopped: str | None = None
        self.last: NDArray[np.float64] | None = None
        self._low, self._high = _float32_bounds(limits, action_dim)
        if limits.neutral is None and limits.position is None and not positions:
            raise InputError(
                "nothing says which action is no motion: to keep the last one holds a position, but a displacement goes on "
                "moving. Say positions=True, or neutral=[0, ...] in the limits (null for an entry that keeps its value)."
            )
        neutral = limits.neutral or (None,) * action_dim
        self._neutral = np.array([np.nan if value is None else value for value in neutral])  # NaN keeps the last value
        self._brakes = limits.acceleration is not None or limits.jerk is not None
        if self._brakes and limits.position is None:
            raise InputError("acceleration and jerk limits need 'position': the key of the observation to start from.")
        self._motion: Steps | Braking = (Braking if self._brakes else Steps)(limits, action_dim, 1 / rate_hz)
        self._ready = not self._brakes
        self._target: NDArray[np.float64] | None = None

    def reset(self, position: NDArray[np.floating] | None = None) -> None:
        """Begin an episode.

        Args:
            position: where the robot is, in units of the action; with `limits.position` set it is the command that the
                first one is compared with. None: the first command is bounded only by low and high.

        Raises:
            InputError: a position of another shape or not finite, or none although the robot has to brake.
        """
        self.stopped, self.last, self._target = None, None, None
        if position is None:
            if self._brakes:
                raise InputError("acceleration and jerk limits: reset needs the robot's position.")
            self._motion.reset(None)
            return
        start = np.array(position, np.float64)
        if start.shape != (self.action_dim,):
            raise InputError(f"the position has shape {start.shape}, an action ({self.action_dim},).")
        if not np.isfinite(start).all():
            raise InputError("the robot's position is not finite; it cannot be started from there.")
        self.last = self._target = start
        self._motion.reset(start)
        self._ready = True

    def stop(self, reason: str) -> None:
        """Move no further until the next reset; may be called from any thread."""
        if self.stopped is None:
            self.stopped = reason
            log.error("stopped: %s", reason)

    def __call__(self, action: NDArray[np.floating] | None, age_s: float = 0.0) -> NDArray[np.float32] | None:
        """The command to send now.

        Args:
            action: (action_dim,), or None if there is none for this control step.
            age_s: since the observation it is based on was taken.

        Returns:
            (action_dim,), finite; None if nothing can be held: no action has come since a reset without a position.

        Raises:
            InputError: an action of another shape.
        """
        if not self._ready:
            raise InputError("acceleration and jerk limits: call reset(position) before the first command.")
        fault = self._fault(action, age_s)
        if fault is not None:
            self._note(fault)
            if self.on_fault == "stop" and self.stopped is None:
                self.stop(fault)
        if fault is not None or self.stopped is not None:
            if fault is None:
                self._note("stopped")
            wanted = self._held()
            if wanted is None:
                return None
        else:
            wanted = self._bounded(np.asarray(action, np.float64))
        self._target = wanted
        command, kinds = self._motion.next(wanted)
        for kind in kinds:
            self._note(kind)
        self.last = command
        return command.astype(np.float32)

    def _fault(self, action: NDArray[np.floating] | None, age_s: float) -> str | None:
        if action is None:
            return "missing"
        if np.shape(action) != (self.action_dim,):
            raise InputError(f"an action has shape {np.shape(action)}, expected ({self.action_dim},).")
        with np.errstate(over="ignore"):  # too large for the command's type is infinite
            finite = np.isfinite(np.asarray(action).astype(np.float32)).all()
        if not finite:
            return "not finite"
        return "stale" if self.max_age_s is not None and not age_s <= self.max_age_s else None

    def _held(self) -> NDArray[np.float64] | None:
        """The target that means no further motion."""
        free = np.isnan(self._neutral)
        if self._target is None:
            return None if free.any() else np.clip(self._neutral, self._low, self._high)
        return np.clip(np.where(free, self._target, self._neutral), self._low, self._high)

    def _bounded(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        clipped = np.clip(action, self._low, self._high)
        if (np.abs(clipped - action) > 1e-6 * np.abs(action)).any():  # more than the rounding of a bound
            self._note("bounds")
        return clipped

    def _note(self, kind: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] == 1 or self.counts[kind] % 100 == 0:  # the first and every hundredth: a log is read
            log.warning("intervention '%s', %d so far", kind, self.counts[kind])


def _float32_bounds(limits: Limits, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds that are float32 numbers between the given ones, so that rounding a command cannot leave them."""
    most = float(np.finfo(np.float32).max)
    low = np.full(size, -most) if limits.low is None else np.clip(limits.low, -most, most)
    high = np.full(size, most) if limits.high is None else np.clip(limits.high, -most, most)
    near_low, near_high = low.astype(np.float32), high.astype(np.float32)
    inner_low = np.where(near_low < low, np.nextafter(near_low, np.float32(np.inf)), near_low).astype(np.float64)
    inner_high = np.where(near_high > high, np.nextafter(near_high, np.float32(-np.inf)), near_high).astype(np.float64)
    none_between = inner_low > inner_high
    return np.where(none_between, near_low, inner_low), np.where(none_between, near_low, inner_high)
