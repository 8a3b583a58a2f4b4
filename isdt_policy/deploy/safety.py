"""Limits between a policy and the hardware: what reaches the robot is bounded, finite and never too old.

Every intervention is counted by kind and logged. Order of the checks: fault (no action, NaN, too old) -> bounds -> step and
velocity -> acceleration and jerk. Bounds are never exceeded, whatever the other limits ask.

Imports NumPy only; acceleration and jerk limits need ruckig, which plans the braking that a plain clamp of the third
difference would miss (it overshoots its target and swings).
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.extras import require
from isdt_policy.shared.files import write_text

log = logging.getLogger("isdt_policy.deploy")

FILE = "limits.json"
OnFault = Literal["hold", "stop"]
Bound = tuple[float, ...] | None


@dataclass(frozen=True)
class Limits:
    """Limits per entry of a command; None where there is none. Written as limits.json beside a policy's weights.

    Attributes:
        low, high: bounds, in units of the action.
        step: largest change from one command to the next, same units.
        velocity, acceleration, jerk: largest rates of the command, units / s, / s^2, / s^3.
        position: observation key that holds the robot's position in units of the action: the command it starts from
            after a reset. Without it the first command is bounded only by low and high.
    """

    low: Bound = None
    high: Bound = None
    step: Bound = None
    velocity: Bound = None
    acceleration: Bound = None
    jerk: Bound = None
    position: str | None = None

    def __post_init__(self) -> None:
        sizes = set()
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "position" or value is None:
                continue
            try:
                array = np.asarray(value, np.float64)
            except (TypeError, ValueError):
                raise InputError(f"limit '{field.name}' must be a list of numbers, got {value!r}.") from None
            if array.ndim != 1 or np.isnan(array).any():
                raise InputError(
                    f"limit '{field.name}' must be a list of numbers, one per entry of an action; got {value}."
                )
            if field.name not in ("low", "high") and (array <= 0).any():
                raise InputError(f"limit '{field.name}' must be above 0, got {value}.")
            sizes.add(len(array))
            object.__setattr__(self, field.name, tuple(float(v) for v in array))
        if len(sizes) > 1:
            raise InputError(
                f"the limits are of different lengths ({sorted(sizes)}): one number per entry of an action."
            )
        if self.low is not None and self.high is not None and any(a > b for a, b in zip(self.low, self.high)):
            raise InputError(f"limit 'low' {self.low} is above 'high' {self.high}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Limits:
        """Build from JSON values; an unknown name is refused, as a limit that is not obeyed is worse than none."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(f"unknown limit '{name}'.{nearest(name, known)} Limits: {', '.join(known)}.")
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> Limits:
        """Read a JSON file, or the limits.json in a folder."""
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        try:
            values = json.loads(path.read_text())
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

    def as_dict(self) -> dict[str, Any]:
        """Return the limits that are set."""
        return {key: value for key, value in asdict(self).items() if value is not None}


class Safety:
    """The last stage before the hardware: `command = safety(action, age_s)`, once per control step.

    Args:
        limits: what is allowed.
        action_dim: entries of a command.
        rate_hz: commands per second.
        on_fault: "hold" repeats the last command until good actions come again; "stop" repeats it until `reset`.
        max_age_s: an action based on an observation older than this counts as stale; None allows any age.

    Attributes:
        counts: interventions by kind: "missing", "not finite", "stale", "bounds", "step", "velocity", "acceleration or
            jerk", "stopped". One entry per control step and kind.
        stopped: why nothing moves until the next reset, or None.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        action_dim: int,
        rate_hz: float,
        on_fault: OnFault = "hold",
        max_age_s: float | None = None,
    ) -> None:
        if on_fault not in ("hold", "stop"):
            raise InputError(f"on_fault='{on_fault}' must be hold or stop.")
        for name, value in limits.as_dict().items():
            if name != "position" and len(value) != action_dim:
                raise InputError(f"limit '{name}' has {len(value)} numbers, an action has {action_dim}.")
        self.limits, self.action_dim, self.dt = limits, action_dim, 1 / rate_hz
        self.on_fault, self.max_age_s = on_fault, max_age_s
        self.counts: Counter[str] = Counter()
        self._trajectory = _Trajectory(limits, action_dim, self.dt) if limits.acceleration or limits.jerk else None
        if self._trajectory is not None and limits.position is None:
            raise InputError("acceleration and jerk limits need 'position': the key of the observation to start from.")
        self.stopped: str | None = None
        self.last: NDArray[np.float64] | None = None
        self._target: NDArray[np.float64] | None = None

    def reset(self, position: NDArray[np.floating] | None = None) -> None:
        """Start anew from a robot at rest at `position` (action_dim,); None if that is unknown. Counts are kept."""
        start = None if position is None else np.asarray(position, np.float64)
        if start is not None and (start.shape != (self.action_dim,) or not np.isfinite(start).all()):
            raise InputError(f"position must be {self.action_dim} finite numbers, got {position}.")
        if start is None and self._trajectory is not None:
            raise InputError("acceleration and jerk limits need the position to start from.")
        self.stopped = None
        self.last = self._target = start
        if self._trajectory is not None and start is not None:
            self._trajectory.reset(start)

    def stop(self, reason: str) -> None:
        """Hold the last command until `reset`; may be called from any thread."""
        if self.stopped is None:
            self.stopped = reason
            log.error("stopped: %s", reason)

    def __call__(self, action: NDArray[np.floating] | None, age_s: float = 0.0) -> NDArray[np.float32] | None:
        """Return the command for this control step, (action_dim,) float32.

        Args:
            action: what the policy wants; None if it has nothing for this step.
            age_s: time since the observation the action is based on, seconds.

        Returns:
            None only if there is a fault before the first command and no position to hold.

        Raises:
            InputError: the action has another shape.
        """
        if self._trajectory is not None and self.last is None:
            raise InputError("acceleration and jerk limits: call reset(position) before the first command.")
        fault = self._fault(action, age_s)
        if fault is not None:
            self._note(fault)
            if self.on_fault == "stop" and self.stopped is None:
                self.stop(fault)
        elif self.stopped is not None:
            self._note("stopped")
        else:
            self._target = self._bounded(np.asarray(action, np.float64))
        if self._target is None:
            return None
        command = self._target if self.last is None else self._slowed(self._target, self.last)
        if self._trajectory is not None:
            planned = self._trajectory.step(command)
            if np.abs(planned - command).max() > 1e-9:
                self._note("acceleration or jerk")
            command = self._clip(planned)  # the planner's rounding
        self.last = command
        return command.astype(np.float32)

    def _fault(self, action: NDArray[np.floating] | None, age_s: float) -> str | None:
        if action is None:
            return "missing"
        if np.shape(action) != (self.action_dim,):
            raise InputError(f"an action has shape {np.shape(action)}, expected ({self.action_dim},).")
        if not np.isfinite(action).all():
            return "not finite"
        return "stale" if self.max_age_s is not None and age_s > self.max_age_s else None

    def _bounded(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        clipped = self._clip(action)
        if (clipped != action).any():
            self._note("bounds")
        return clipped

    def _clip(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        low = -np.inf if self.limits.low is None else np.asarray(self.limits.low)
        high = np.inf if self.limits.high is None else np.asarray(self.limits.high)
        return np.clip(action, low, high)

    def _slowed(self, target: NDArray[np.float64], last: NDArray[np.float64]) -> NDArray[np.float64]:
        for kind, limit, scale in (("step", self.limits.step, 1.0), ("velocity", self.limits.velocity, self.dt)):
            if limit is None or (
                kind == "velocity" and self._trajectory is not None
            ):  # the trajectory obeys it as well
                continue
            most = np.asarray(limit) * scale
            change = np.clip(target - last, -most, most)
            if (np.abs(target - last) > most * (1 + 1e-9)).any():
                self._note(kind)
                target = last + change
        return target

    def _note(self, kind: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] == 1 or self.counts[kind] % 100 == 0:  # the first and every hundredth: a log is read
            log.warning("intervention '%s', %d so far", kind, self.counts[kind])


class _Trajectory:
    """Moves towards a target within velocity, acceleration and jerk limits, one control step at a time."""

    def __init__(self, limits: Limits, size: int, dt: float) -> None:
        ruckig: Any = require("ruckig", "runtime", "Acceleration and jerk limits")
        self._ruckig, self._size = ruckig, size
        self._otg = ruckig.Ruckig(size, dt)
        self._in, self._out = ruckig.InputParameter(size), ruckig.OutputParameter(size)
        unlimited = (float("inf"),) * size
        self._in.max_velocity = list(limits.velocity or unlimited)
        self._in.max_acceleration = list(limits.acceleration or unlimited)
        self._in.max_jerk = list(limits.jerk or unlimited)
        self._in.synchronization = ruckig.Synchronization.No

    def reset(self, position: NDArray[np.float64]) -> None:
        self._in.current_position = position.tolist()
        self._in.current_velocity = self._in.current_acceleration = [0.0] * self._size

    def step(self, target: NDArray[np.float64]) -> NDArray[np.float64]:
        self._in.target_position = target.tolist()
        result = self._otg.update(self._in, self._out)
        if result not in (self._ruckig.Result.Working, self._ruckig.Result.Finished):
            raise RuntimeError(f"ruckig could not plan from {self._in.current_position} to {target.tolist()}: {result}")
        self._out.pass_to_input(self._in)
        return np.asarray(self._out.new_position)


class Watchdog:
    """Calls `on_silence` once, from its own thread, when `beat` has not been called for `timeout_s`; again after a new beat.

    Example:
        with Watchdog(0.5, lambda: safety.stop("the control loop is silent")) as watchdog:
            while running:
                watchdog.beat()
    """

    def __init__(self, timeout_s: float, on_silence: Callable[[], None]) -> None:
        if timeout_s <= 0:
            raise InputError(f"watchdog timeout must be above 0 s, got {timeout_s}.")
        self.timeout_s, self.on_silence = timeout_s, on_silence
        self.silences = 0
        self._beat, self._closing = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._beat.set()
        self._thread.join()

    def beat(self) -> None:
        """The loop lives."""
        self._beat.set()

    def _watch(self) -> None:
        while not self._closing:
            heard = self._beat.wait(self.timeout_s)
            if not heard:
                self.silences += 1
                log.error("watchdog: silence for %.3g s", self.timeout_s)
                self.on_silence()
                self._beat.wait()
            self._beat.clear()
