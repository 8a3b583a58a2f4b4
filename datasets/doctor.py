"""What is wrong with demonstrations, where, and what to do about it.

Each check is a generator of findings over a `Demos`; thresholds stand beside the reason for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.store import DemoStore
from isdt_policy.datasets.summary import blocks, is_low_dim
from isdt_policy.envs import TaskSpec, task_ids, task_spec
from isdt_policy.shared.errors import InputError


@dataclass(frozen=True)
class Finding:
    """One thing found. `step` counts within the episode; `count` is how many such places there are."""

    level: str
    check: str
    key: str
    message: str
    advice: str
    episode: int | None = None
    step: int | None = None
    count: int = 1


@dataclass(frozen=True)
class Demos:
    """What the checks read: low-dimensional keys as float64 (n_steps, d), images from the store piece by piece."""

    store: DemoStore
    low_dim: dict[str, NDArray[np.float64]]
    spec: TaskSpec | None

    @property
    def ends(self) -> NDArray[np.int64]:
        return self.store.episode_ends

    @property
    def observations(self) -> dict[str, NDArray[np.float64]]:
        return {key: value for key, value in self.low_dim.items() if key not in ("action", *_OUTCOMES)}

    @property
    def within(self) -> NDArray[np.bool_]:
        """(n_steps - 1,): steps t and t + 1 belong to one episode."""
        inside = np.ones(self.store.n_steps - 1, np.bool_)
        inside[self.ends[:-1] - 1] = False
        return inside

    def place(self, step: int) -> dict[str, int]:
        """Episode and step within it of a step of the store."""
        episode = int(np.searchsorted(self.ends, step, side="right"))
        return {"episode": episode, "step": int(step - (self.ends[episode - 1] if episode else 0))}


# Keys that say how it went rather than what was seen; they may be constant or jump.
_OUTCOMES = ("reward", "rewards", "done", "dones", "coverage", "success", "n_contacts")


def examine(path: str, task: str | None = None, images: bool = True) -> list[Finding]:
    """Every finding, errors first. A store that cannot be opened is one finding."""
    try:
        store = DemoStore.open(path)
        low_dim = {
            key: np.concatenate([b.reshape(len(b), -1).astype(np.float64) for _, b in blocks(store, key)])
            for key in store.keys
            if is_low_dim(store, key)
        }
    except InputError as error:
        return [Finding("error", "structure", "", str(error), "convert or download the store again")]
    name = task or store.task
    known = name is not None and (task is not None or name in task_ids())
    demos = Demos(store, low_dim, task_spec(name) if known and name else None)
    findings = [Finding("note", "structure", "", note, "see docs/data.md") for note in store.notes]
    findings += not_finite(demos)
    finite = {key: value for key, value in low_dim.items() if np.isfinite(value).all()}
    demos = Demos(store, finite, demos.spec)
    for check in CHECKS:
        findings += check(demos)
    if images:
        findings += image_frames(demos)
    order = ("error", "warning", "note")
    return sorted(findings, key=lambda finding: order.index(finding.level))


def table(found: list[Finding], path: str) -> str:
    """The findings for people, and how many there are."""
    levels = [finding.level for finding in found]
    counts = ", ".join(f"{levels.count(level)} {level}s" for level in ("error", "warning", "note"))
    lines = "\n".join(map(_line, found)) or "nothing found"
    return f"{lines}\n\n{path}: {counts}"


def _line(f: Finding) -> str:
    where = "" if f.episode is None else f" episode {f.episode}" + ("" if f.step is None else f" step {f.step}")
    more = f" (and {f.count - 1} more)" if f.count > 1 else ""
    place = f"{f.key}{where}{more}".strip()
    return f"{f.level:<8} {f.check}: {place}{': ' if place else ''}{f.message}\n         -> {f.advice}"


def not_finite(demos: Demos) -> Iterator[Finding]:
    """NaN and infinity."""
    for key, value in demos.low_dim.items():
        bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
        if len(bad):
            yield Finding(
                "error", "finite", key, "NaN or infinity", "drop the episodes concerned: isdt data split ... episodes=",
                count=len(bad), **demos.place(int(bad[0])),
            )  # fmt: skip


def episode_lengths(demos: Demos) -> Iterator[Finding]:
    """Episodes too short to learn from, and ones far longer than the rest."""
    lengths = np.diff(demos.ends, prepend=0)
    short = np.flatnonzero(lengths < 3)
    if len(short):
        yield Finding(
            "warning", "episode_ends", "", f"only {lengths[short[0]]} step(s) long",
            "a recording that was stopped at once? drop it", int(short[0]), count=len(short),
        )  # fmt: skip
    median = np.median(lengths)
    long = np.flatnonzero(lengths > 8 * median)
    if len(long):
        yield Finding(
            "warning", "episode_ends", "", f"{lengths[long[0]]} steps, the median is {median:g}",
            "several episodes joined into one? look at it: isdt data view", int(long[0]), count=len(long),
        )  # fmt: skip


def ends_in_failure(demos: Demos) -> Iterator[Finding]:
    """Episodes whose last observation is no success: what a policy that imitates them perfectly cannot count on either."""
    spec = demos.spec
    if spec is None or spec.success_fn is None or not all(key in demos.low_dim for key in spec.stored_keys):
        return
    good = spec.success_fn({key: demos.low_dim[key][demos.ends - 1] for key in spec.stored_keys})
    failed = np.flatnonzero(~good)
    if 2 * len(failed) > len(good):
        yield Finding(
            "warning", "success", "", f"{good.sum()} of {len(good)} episodes end in a success ({spec.success})",
            "name goals in hindsight, data.hindsight=true, so that they show how to reach one" if spec.hindsight_fn
            else "a policy that imitates them perfectly fails too; record demonstrations that go on to the goal",
            episode=int(failed[0]), count=len(failed),
        )  # fmt: skip


def jumps(demos: Demos) -> Iterator[Finding]:
    """Observations that leap inside an episode, as they do where an episode boundary is missing or misplaced."""
    inside = demos.within
    worst: dict[int, str] = {}
    for key, value in demos.observations.items():
        if "vel" in key or key == "states":
            continue  # velocities do leap at contacts, alone and within a simulator's state
        span = np.ptp(value, axis=0)
        change = np.abs(np.diff(value, axis=0))
        turn = np.abs(change - 2 * np.pi) < 1.0  # an angle that wraps
        change = np.where(turn & (span <= 2 * np.pi + 0.1), 0, change)
        for first in _quaternion_columns(key, value):
            change[:, first : first + 4] = 0  # they have a check of their own
        # A leap is a quarter of the range in one step, several times beyond the fastest regular motion.
        usual = np.quantile(change[inside], 0.99, axis=0) if inside.any() else np.zeros(value.shape[1])
        # What stays within a thousandth of the key's widest range rests; a body that settles when it is put down is no leap.
        leap = (change > 0.25 * span) & (change > 5 * usual) & (span > 1e-6) & (span > 1e-3 * span.max())
        for step in np.flatnonzero(leap.any(axis=1) & inside):
            worst.setdefault(int(step), key)
    if worst:
        first_leap = min(worst)
        yield Finding(
            "warning", "episode_ends", worst[first_leap], "the observation leaps from this step to the next",
            "an episode boundary is missing here, or meta/episode_ends is shifted; compare with the recording",
            count=len(worst), **demos.place(first_leap),
        )  # fmt: skip


def constant(demos: Demos) -> Iterator[Finding]:
    """Dimensions that never change: harmless if meant, a dead sensor if not."""
    for key, value in demos.low_dim.items():
        still = np.flatnonzero(np.ptp(value, axis=0) == 0)
        if len(still) and key not in _OUTCOMES and demos.store.n_steps > 1:
            yield Finding(
                "warning" if key == "action" else "note", "constant", key,
                f"dimension(s) {_few(still)} never change (value {value[0, still[0]]:g})",
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
        runs = _runs(~changing & demos.within, moved.any(axis=1), 4)
        if runs:
            yield Finding(
                "warning", "frozen", key, "stands still for 5 steps or more while the action changes",
                "a sensor or its driver hung; drop the episode or those steps", count=len(runs), **demos.place(runs[0]),
            )  # fmt: skip


def repeated_episodes(demos: Demos) -> Iterator[Finding]:
    """Episodes recorded twice: they weigh double, and one may be held out while the other is trained on."""
    seen: dict[bytes, int] = {}
    for episode, (start, end) in enumerate(zip([0, *demos.ends[:-1]], demos.ends)):
        content = hashlib.sha256()
        for value in demos.low_dim.values():
            content.update(np.ascontiguousarray(value[start:end]).tobytes())
        first = seen.setdefault(content.digest(), episode)
        if first != episode and end - start > 1:
            yield Finding(
                "warning", "repeated", "", f"the same as episode {first}", "keep one: isdt data split", episode
            )


def quaternions(demos: Demos) -> Iterator[Finding]:
    """Quaternions that change sign between two steps (the same rotation, a leap for a network), or are no rotations."""
    for key, value in demos.observations.items():
        for first in _quaternion_columns(key, value):
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


def _quaternion_columns(key: str, value: NDArray[np.float64]) -> list[int]:
    """First columns of the quaternions in a key: by its name, or four columns whose norm is 1 all along."""
    if "quat" in key and value.shape[1] % 4 == 0:
        return list(range(0, value.shape[1], 4))
    firsts, first = [], 0
    while first + 4 <= value.shape[1]:
        four = value[:, first : first + 4]
        if (np.abs(np.linalg.norm(four, axis=1) - 1) < 1e-4).all() and (np.ptp(four, axis=0) > 1e-3).all():
            firsts.append(first)
            first += 3
        first += 1
    return firsts


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
    for key, value in demos.observations.items():
        if value.shape[1] > 40:
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
                    "degrees in place of radians, or another scale? store what the environment gives",
                    count=len(out), **demos.place(int(out[0])),
                )  # fmt: skip
            elif demos.store.n_steps > 50 and (np.ptp(value, axis=0) < 0.01 * (high - low)).all():
                yield Finding(
                    "error", "units", key, f"covers less than 1 % of the range of its unit ({specs[key].unit})",
                    "normalised already? store raw values; training normalises by itself",
                )  # fmt: skip
        if key in _OUTCOMES:
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


def image_frames(demos: Demos) -> Iterator[Finding]:
    """Frames that repeat while the scene moves, dark frames, and images not stored as uint8."""
    for key in demos.store.keys:
        if is_low_dim(demos.store, key):
            continue
        dtype, repeats, dark, previous = demos.store.dtype(key), [], [], None
        for start, block in blocks(demos.store, key):
            if not np.isfinite(block[..., :1, :1, :]).all() if block.ndim == 4 else False:
                yield Finding("error", "finite", key, "NaN or infinity", "render again", **demos.place(start))
            flat = block.reshape(len(block), -1)
            digests = [hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=8).digest() for row in flat]
            before = [previous, *digests[:-1]]
            repeats += [start + i - 1 for i, (a, b) in enumerate(zip(before, digests)) if a == b]
            dark += [start + i for i, row in enumerate(flat) if row[:: max(1, len(row) // 512)].std() == 0]
            previous = digests[-1]
        if dtype != np.uint8:
            yield Finding(
                "note", "images", key, f"stored as {dtype}: {dtype.itemsize} times the space of uint8",
                "isdt data convert stores images as uint8 where that loses nothing",
            )  # fmt: skip
        if dark:
            yield Finding(
                "warning", "images", key, "one colour throughout", "a camera that was off; drop those steps",
                count=len(dark), **demos.place(dark[0]),
            )  # fmt: skip
        same = np.zeros(len(demos.within), np.bool_)
        same[repeats] = True
        runs = _runs(same & demos.within, _scene_moves(demos), 3)
        if runs:
            yield Finding(
                "warning", "frozen", key, "the image repeats for 4 frames or more while the scene moves",
                "the camera is slower than the control rate, or it hung", count=len(runs), **demos.place(runs[0]),
            )  # fmt: skip


def _scene_moves(demos: Demos) -> NDArray[np.bool_]:
    """(n_steps - 1,): some observation changes by more than a hundredth of its range."""
    moves = np.zeros(demos.store.n_steps - 1, np.bool_)
    for value in demos.observations.values():
        moves |= (np.abs(np.diff(value, axis=0)) > 0.01 * np.maximum(np.ptp(value, axis=0), 1e-9)).any(axis=1)
    return moves


def _runs(still: NDArray[np.bool_], active: NDArray[np.bool_], length: int) -> list[int]:
    """First steps of runs of `still` at least `length` long during most of which something is `active`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], still.astype(np.int8), [0]])))
    return [int(a) for a, b in zip(edges[::2], edges[1::2]) if b - a >= length and active[a:b].mean() > 0.5]


def _few(numbers: NDArray[Any]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (f", ... ({len(numbers)})" if len(numbers) > 8 else "")


CHECKS = (
    episode_lengths, ends_in_failure, jumps, constant, saturated, outliers, frozen, repeated_episodes, quaternions,
    alignment, units,
)  # fmt: skip
