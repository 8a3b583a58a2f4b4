"""Checks of actions against what follows them: frozen sensors, shifted rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.doctor.demos import Demos, Finding, runs


def frozen(demos: Demos) -> Iterator[Finding]:
    """Observations that stand still, bit for bit, while the action goes on: a sensor that hung."""
    if "action" not in demos.low_dim:
        return
    action = demos.low_dim["action"]
    moved = np.abs(np.diff(action, axis=0)) > 0.01 * np.maximum(np.ptp(action, axis=0), 1e-9)
    for key, value in demos.observations.items():
        if np.ptp(value, axis=0).max(initial=0) == 0:
            continue
        changing = (np.diff(value, axis=0) != 0).any(axis=1)
        # A scene may rest while a robot moves; a key that changes almost always has no reason to rest for five steps.
        if np.mean(changing[demos.within]) < 0.95:
            continue
        found = runs(~changing & demos.within, moved.any(axis=1), 4)
        if found:
            yield Finding(
                "warning", "frozen", key, "stands still for 5 steps or more while the action changes",
                "a sensor or its driver hung; drop the episode or those steps", count=len(found), **demos.place(found[0]),
            )  # fmt: skip


def copies_of_the_action(demos: Demos) -> list[str]:
    """Observations that hold the action of the same step."""
    action = demos.low_dim.get("action", np.zeros((0, 0)))
    same = (key for key, value in demos.observations.items() if value.shape == action.shape)
    return [key for key in same if np.ptp(action, axis=0).any() and equal_rows(demos.low_dim[key], action) > 0.99]


def equal_rows(values: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Share of the rows that are equal, but for the rounding of a float32."""
    return float(np.isclose(values, others, rtol=1e-6, atol=0).all(axis=1).mean())


def leak(demos: Demos) -> Iterator[Finding]:
    """Observations that give the action away: a policy learns to copy them, and has nothing to copy when it acts."""
    for key in copies_of_the_action(demos):
        yield Finding(
            "error", "leak", key, "is a copy of the action of the same step",
            "leave it out: isdt data convert SOURCE TARGET keys=..., or data.obs_keys=...",
        )  # fmt: skip


def alignment(demos: Demos) -> Iterator[Finding]:
    """Actions shifted against the observations: the motion from step t to t + 1 must answer the action of step t."""
    lag, strength, key = best_lag(demos)
    if lag > 0 or lag < -1:
        yield Finding(
            "error" if lag > 0 else "warning", "alignment", key,
            f"motion is explained best by the action {abs(lag)} step(s) {'later' if lag > 0 else 'earlier'} "
            f"(correlation {strength:.2f})",
            "an effect before its cause: shift the action rows by that many steps" if lag > 0 else
            "either the controller is that slow, or action rows stand too early",
        )  # fmt: skip


def best_lag(demos: Demos, reach: int = 3) -> tuple[int, float, str]:
    """(lag, correlation, observation key) at which actions explain motion best; lag 0 if none explains it well.

    An action is taken as a displacement, or as a position to go to: whichever fits some observation better.
    """
    action = demos.low_dim.get("action", np.zeros((0, 0)))
    keep = demos.within.copy()
    for shift in range(1, reach + 1):  # steps whose neighbours up to `reach` lie in the same episode
        keep[:-shift] &= demos.within[shift:]
        keep[shift:] &= demos.within[:-shift]
    keep[:reach], keep[-reach:] = False, False
    rows = np.flatnonzero(keep)
    best: tuple[int, float, str] = (0, 0.0, "")
    if len(rows) < 50:
        return best
    copies = copies_of_the_action(demos)
    for key, value in demos.observations.items():
        if value.shape[1] > 40 or key in copies:
            continue
        motion = value[rows + 1] - value[rows]
        for relative in (False, True):
            table = np.stack([_correlations(action[rows + s], value[rows], motion, relative) for s in _lags(reach)])
            lag, a, o = np.unravel_index(np.argmax(table), table.shape)
            here, there = float(table[lag, a, o]), float(table[reach, a, o])
            if here > max(best[1], 0.6):
                # Smooth motion correlates at every lag: a neighbour has to be clearly better than lag 0.
                best = (int(lag) - reach if here > there + 0.03 else 0, here, key)
    return best


def _lags(reach: int) -> range:
    return range(-reach, reach + 1)


def _correlations(
    action: NDArray[np.float64], position: NDArray[np.float64], motion: NDArray[np.float64], relative: bool
) -> NDArray[np.float64]:
    """Correlation of each action dimension (minus the position, if relative) with the motion of each observation one."""
    result = np.zeros((action.shape[1], motion.shape[1]))
    y = motion - motion.mean(axis=0)
    for a in range(action.shape[1]):
        x = action[:, a : a + 1] - position if relative else np.broadcast_to(action[:, a : a + 1], motion.shape)
        x = x - x.mean(axis=0)
        scale = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
        result[a] = np.divide((x * y).sum(axis=0), scale, out=np.zeros(len(scale)), where=scale > 1e-12)
    return result
