"""Checks of the numbers themselves: not finite, constant, saturated, outliers, units, quaternions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.doctor.demos import OUTCOMES, Demos, Finding, few, quaternion_columns
from isdt_policy.envs import ArraySpec


def not_finite(demos: Demos) -> Iterator[Finding]:
    """NaN and infinity."""
    for key, value in demos.low_dim.items():
        bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
        if len(bad):
            yield Finding(
                "error", "finite", key, "NaN or infinity", "drop the episodes concerned: isdt data split ... episodes=",
                count=len(bad), **demos.place(int(bad[0])),
            )  # fmt: skip


def constant(demos: Demos) -> Iterator[Finding]:
    """Dimensions that never change: harmless if meant, a dead sensor if not."""
    for key, value in demos.low_dim.items():
        still = np.flatnonzero(np.ptp(value, axis=0) == 0)
        if len(still) and key not in OUTCOMES and demos.store.n_steps > 1:
            yield Finding(
                "warning" if key == "action" else "note", "constant", key,
                f"dimension(s) {few(still)} never change (value {value[0, still[0]]:g})",
                "fine if the task does not use them; otherwise a sensor or controller was not connected",
            )  # fmt: skip


def saturated(demos: Demos) -> Iterator[Finding]:
    """Actions that often stand exactly at their limit, so that more was asked for than was allowed."""
    action = demos.low_dim.get("action", np.zeros((0, 0)))
    for d in range(action.shape[1]):
        values, counts = np.unique(action[:, d], return_counts=True)
        # Few different values are a switch (a gripper), not a limit.
        if len(values) <= 10:
            continue
        for value, share in ((values[0], counts[0] / len(action)), (values[-1], counts[-1] / len(action))):
            if share > 0.05:
                yield Finding(
                    "note" if share < 0.25 else "warning", "saturated", "action",
                    f"dimension {d} stands at {value:g} in {share:.0%} of the steps",
                    "the demonstrator asked for more than the limit; a wider limit or slower motion loses less",
                    **demos.place(int(np.argmax(action[:, d] == value))),
                )  # fmt: skip


def outliers(demos: Demos) -> Iterator[Finding]:
    """Single actions far outside the range of the others: one of them ruins a min-max normaliser."""
    if "action" not in demos.low_dim:
        yield Finding("error", "structure", "action", "there is no key 'action'", "name the commanded action 'action'")
        return
    action = demos.low_dim["action"]
    low, high = np.quantile(action, [0.005, 0.995], axis=0)
    # Dimensions that rest most of the time are measured by the liveliest dimension, not by their own narrow band.
    width = np.maximum(high - low, 0.2 * (high - low).max(initial=0))
    far = np.flatnonzero(((action < low - 1.5 * width) | (action > high + 1.5 * width)).any(axis=1))
    if len(far):
        yield Finding(
            "warning", "outlier", "action", f"{np.round(action[far[0]], 3).tolist()} lies far outside the rest",
            "min-max normalisation would squeeze all others; drop the episode or clip the action",
            count=len(far), **demos.place(int(far[0])),
        )  # fmt: skip


def units(demos: Demos) -> Iterator[Finding]:
    """Numbers outside what the task allows, ranges far too small for their unit, and episodes on another scale."""
    specs = {} if demos.spec is None else {**demos.spec.observations, "action": demos.spec.action}
    for key, value in demos.low_dim.items():
        if key in specs and value.shape[1] == np.prod(specs[key].shape):
            low, high = (np.broadcast_to(bound, value.shape[1:]) for bound in (specs[key].low, specs[key].high))
            slack = 1e-3 * (high - low)
            out = np.flatnonzero(((value < low - slack) | (value > high + slack)).any(axis=1))
            if len(out):
                d = int(np.argmax((value[out[0]] < low - slack) | (value[out[0]] > high + slack)))
                yield Finding(
                    "error", "units", key,
                    f"dimension {d} is {value[out[0], d]:g}, but must be in [{low[d]:g}, {high[d]:g}] ({specs[key].unit})",
                    f"an angle that was unwrapped? store it modulo 2 pi: numpy.mod({key}[:, {d}], 2 * numpy.pi)"
                    if _unwrapped(demos, value[:, d], high[d] - low[d])
                    else "degrees in place of radians, or another scale? store what the environment gives",
                    count=len(out), **demos.place(int(out[0])),
                )  # fmt: skip
            elif (
                demos.store.n_steps > 50
                and _is_range(specs[key])
                and (np.ptp(value, axis=0) < 0.01 * (high - low)).all()
            ):
                yield Finding(
                    "error", "units", key, f"covers less than 1 % of the range of its unit ({specs[key].unit})",
                    "normalised already? store raw values; training normalises by itself",
                )  # fmt: skip
        if key in OUTCOMES:
            continue
        largest = np.maximum.reduceat(np.abs(value).max(axis=1), [0, *demos.ends[:-1]])
        usual = np.median(largest)
        other = np.flatnonzero((largest > 20 * usual) & (usual > 0) & (len(largest) > 2))
        if len(other):
            yield Finding(
                "warning", "units", key,
                f"reaches {largest[other[0]]:g} in this episode, {usual:.3g} in a usual one",
                "episodes from a recorder with other units?", int(other[0]), count=len(other),
            )  # fmt: skip


def _is_range(spec: ArraySpec) -> bool:
    """One bound for numbers of several units is a safeguard, and says nothing of what they usually are."""
    return "," not in spec.unit or np.ndim(spec.low) > 0


def _unwrapped(demos: Demos, value: NDArray[np.float64], span: float) -> bool:
    """An angle that goes on past its full turn: a few turns at most, without the leaps that degrees would make of them."""
    change = np.abs(np.diff(value))[demos.within]
    return abs(span - 2 * np.pi) < 0.01 and np.abs(value).max() < 10 * np.pi and change.max(initial=0) < 2


def quaternions(demos: Demos) -> Iterator[Finding]:
    """Quaternions that change sign between two steps (the same rotation, a leap for a network), or are no rotations."""
    for key, value in demos.observations.items():
        for first in quaternion_columns(key, value):
            quat = value[:, first : first + 4]
            bad = np.flatnonzero(np.abs(np.linalg.norm(quat, axis=1) - 1) > 1e-2)
            if len(bad):
                yield Finding(
                    "error", "quaternion", key, f"has norm {np.linalg.norm(quat[bad[0]]):.3g}, not 1",
                    "wrong columns, or a damaged recording", count=len(bad), **demos.place(int(bad[0])),
                )  # fmt: skip
            flips = np.flatnonzero(((quat[1:] * quat[:-1]).sum(axis=1) < 0) & demos.within)
            if len(flips):
                yield Finding(
                    "warning", "quaternion", key, "changes its sign from this step to the next",
                    "q and -q are one rotation: make the sign continuous, or use a 6D rotation as observation",
                    count=len(flips), **demos.place(int(flips[0])),
                )  # fmt: skip
