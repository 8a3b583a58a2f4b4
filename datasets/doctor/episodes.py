"""Checks of episodes as a whole: lengths, boundaries, endings, repetitions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from isdt_policy.datasets.doctor.demos import Demos, Finding, few, quaternion_columns
from isdt_policy.envs import TaskSpec


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
    limit = demos.spec.max_episode_steps if demos.spec is not None else lengths.max(initial=0)
    late = np.flatnonzero(lengths > limit)
    if len(late):
        yield Finding(
            "warning" if 2 * len(late) > len(lengths) else "note", "episode_ends", "",
            f"{lengths[late[0]]} steps, and the task ends after {limit}",
            "a policy as slow as this demonstration fails in time", int(late[0]), count=len(late),
        )  # fmt: skip


def ends_in_failure(demos: Demos) -> Iterator[Finding]:
    """Episodes whose last observation is no success: what a policy that imitates them perfectly cannot count on either."""
    spec = demos.spec
    if spec is None or spec.success_fn is None or not all(key in demos.low_dim for key in spec.stored_keys):
        return
    good = spec.success_fn({key: demos.low_dim[key][demos.ends - 1] for key in spec.stored_keys})
    failed = np.flatnonzero(~good)
    if 2 * len(failed) > len(good):
        place = _another_goal(demos, spec) if not good.any() else ""
        if spec.hindsight_fn:
            advice = "name goals in hindsight, data.hindsight=true, so that they show how to reach one"
        else:
            advice = "a policy that imitates them perfectly fails too; record demonstrations that go on to the goal"
        yield Finding(
            "warning", "success", "", f"{good.sum()} of {len(good)} episodes end in a success ({spec.success}){place}",
            f"recorded for another goal? {advice}" if place else advice, episode=int(failed[0]), count=len(failed),
        )  # fmt: skip


def _another_goal(demos: Demos, spec: TaskSpec) -> str:
    """Where all episodes end, if they end alike, and that is no success; "" otherwise."""
    starts = np.concatenate([[0], demos.ends[:-1]])
    ends = {key: demos.low_dim[key][demos.ends - 1] for key in spec.stored_keys}
    middle = {key: np.median(value, axis=0) for key, value in ends.items()}
    if len(starts) < 3 or spec.success_fn is None or spec.success_fn({k: v[None] for k, v in middle.items()}).any():
        return ""
    for key, value in ends.items():
        # A tenth of what they differ by at first: what was brought to one place.
        alike = np.flatnonzero(value.std(axis=0) < 0.1 * demos.low_dim[key][starts].std(axis=0))
        if len(alike):
            where = ", ".join(f"{number:.3g}" for number in middle[key][alike])
            return f", but all end with {key} {few(alike)} near {where}"
    return ""


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
        for first in quaternion_columns(key, value):
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
