"""From one target per control step to one command per control step, within every limit of how it may change.

Limits are those of the commands' differences, which is what a robot is sent: with dt between commands,

    |u_k - u_{k-1}| <= step and <= velocity dt,   |second difference| <= acceleration dt^2,   |third| <= jerk dt^3

in every entry, and low <= u <= high once the robot is there: a start outside the bounds goes back within the other limits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isdt_policy.deploy.limits import Limits
from isdt_policy.shared.extras import require

if TYPE_CHECKING:
    from ruckig import Trajectory

Vector = NDArray[np.float64]
SLACK = 1 + 1e-6  # of a limit, for rounding
FAR = 1e12  # commands are planned up to here; beyond, rounding is larger than any limit


class Steps:
    """Bounds the change from one command to the next; for limits of step and velocity alone."""

    def __init__(self, limits: Limits, size: int, dt: float) -> None:
        self._most = [
            (kind, np.asarray(limit) * scale)
            for kind, limit, scale in (("step", limits.step, 1.0), ("velocity", limits.velocity, dt))
            if limit is not None
        ]
        self._last: Vector | None = None

    def reset(self, position: Vector | None) -> None:
        """Start from a position; None lets the first command be anything."""
        self._last = position

    def next(self, target: Vector) -> tuple[Vector, list[str]]:
        """The command on the way to a target, and the limits that kept it from being the target."""
        kinds = []
        if self._last is not None:
            for kind, most in self._most:
                if (np.abs(target - self._last) > most * (1 + 1e-9)).any():
                    kinds.append(kind)
                    target = self._last + np.clip(target - self._last, -most, most)
        self._last = target
        return target, kinds


class Braking:
    """Bounds acceleration and jerk too, which takes a plan of how to brake (ruckig makes it).

    A plan leads to its target and rests there, within all limits and between the bounds. A new one replaces it only if it was
    checked; if ruckig finds none, the old plan is followed to its end, where the robot rests.

    Args:
        limits: limits that bound acceleration or jerk.
        size: entries of a command.
        dt: seconds between commands.
    """

    def __init__(self, limits: Limits, size: int, dt: float) -> None:
        self._ruckig = require("ruckig", "runtime", "Acceleration and jerk limits")
        low = np.full(size, -np.inf) if limits.low is None else np.asarray(limits.low)
        high, step, velocity, acceleration, jerk = (
            np.full(size, np.inf) if limit is None else np.asarray(limit)
            for limit in (limits.high, limits.step, limits.velocity, limits.acceleration, limits.jerk)
        )
        self._size, self._dt, self._low, self._high = size, dt, low, high
        self._most = (np.minimum(step, velocity * dt), acceleration * dt**2, jerk * dt**3)
        self._planner = self._ruckig.Ruckig(size, dt)
        self._in = self._ruckig.InputParameter(size)
        self._in.max_velocity = np.minimum(velocity, step / dt).tolist()
        self._in.max_acceleration, self._in.max_jerk = acceleration.tolist(), jerk.tolist()
        self._in.synchronization = self._ruckig.Synchronization.No

    def reset(self, position: Vector | None) -> None:
        """Start from rest at a position."""
        assert position is not None, "braking needs to know where the robot is"
        self._path = [position] * 3  # the last commands
        self._state = (position, np.zeros(self._size), np.zeros(self._size))
        self._plan, self._at, self._target = None, 0.0, position

    def next(self, target: Vector) -> tuple[Vector, list[str]]:
        """The command on the way to a target, and the limits that kept it from being the target."""
        kinds = []
        if (target != self._target).any():
            plan = self._planned(target)
            if plan is None:
                kinds.append("not planned")
            else:
                self._plan, self._at, self._target = plan, 0.0, target
        if self._plan is not None:
            self._at += self._dt
            self._state = tuple(map(np.asarray, self._plan.at_time(self._at)))
        last = self._path[-1]
        command = np.clip(self._state[0], np.minimum(self._low, last), np.maximum(self._high, last))  # rounding
        self._path = [*self._path[1:], command]
        if not kinds and np.abs(command - target).max() > 1e-9:
            kinds.append("acceleration or jerk")
        return command, kinds

    def _planned(self, target: Vector) -> Trajectory | None:
        """A plan from where the robot is to the target, or None if there is none that keeps the limits."""
        position, velocity, acceleration = self._state
        if np.abs(target).max() > FAR or np.abs(position).max() > FAR:
            return None
        self._in.current_position, self._in.current_velocity = position.tolist(), velocity.tolist()
        self._in.current_acceleration, self._in.target_position = acceleration.tolist(), target.tolist()
        plan = self._ruckig.Trajectory(self._size)
        try:
            result = self._planner.calculate(self._in, plan)
            if result not in (self._ruckig.Result.Working, self._ruckig.Result.Finished):
                return None
            first = np.asarray(plan.at_time(self._dt))
            end = np.asarray(plan.at_time(plan.duration + self._dt))
            reach = [(bound.min, bound.max) for bound in plan.position_extrema]
        except Exception:  # of kinds that depend on its version; whatever it is, there is no plan
            return None
        return plan if self._keeps_limits(first, end, np.asarray(reach), target) else None

    def _keeps_limits(self, first: Vector, end: Vector, reach: Vector, target: Vector) -> bool:
        """Whether the first command of a plan, its largest reach and its end are what the limits allow."""
        if not (np.isfinite(first).all() and np.isfinite(end).all() and np.isfinite(reach).all()):
            return False
        here = self._path[-1]
        rounding = 1e-9 * (1 + np.abs(here) + np.abs(target))
        path = np.stack([*self._path, first[0]])
        for order, most in enumerate(self._most, start=1):
            if (np.abs(np.diff(path, order, axis=0)[-1]) > most * SLACK + rounding).any():
                return False
        inside = (reach[:, 0] >= np.minimum(self._low, here) - rounding) & (
            reach[:, 1] <= np.maximum(self._high, here) + rounding
        )
        return bool(inside.all() and (np.abs(end[0] - target) <= 1e3 * rounding).all())
