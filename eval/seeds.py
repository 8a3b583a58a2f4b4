"""Which seeds are for what: three ranges that cannot meet.

| range             | purpose                                                                            |
|-------------------|------------------------------------------------------------------------------------|
| 0 .. 99999        | demonstrations, training, anything a policy may have seen                          |
| 100000 .. 199999  | final evaluation: the reported numbers (100000 is where Diffusion Policy starts)   |
| 200000 .. 299999  | selection: choosing checkpoints and hyper-parameters                               |

A checkpoint chosen on the seeds it is reported on is reported too high; with 50 episodes by several points of success.
"""

from __future__ import annotations

from collections.abc import Sequence

from isdt_policy.shared.errors import InputError

FINAL_START = 100_000
SELECTION_START = 200_000
RANGE = 100_000


def final_seeds(n: int, offset: int = 0) -> list[int]:
    """Return n seeds of the final-evaluation range, beginning `offset` after its start.

    >>> final_seeds(3)
    [100000, 100001, 100002]
    """
    return _take(FINAL_START, n, offset, "final")


def selection_seeds(n: int, offset: int = 0) -> list[int]:
    """Return n seeds of the selection range, beginning `offset` after its start.

    >>> selection_seeds(2)
    [200000, 200001]
    """
    return _take(SELECTION_START, n, offset, "selection")


def purpose(seeds: Sequence[int]) -> str:
    """Name the range the seeds lie in: "final", "selection", "training", "other".

    Raises:
        InputError: if they lie in more than one range, or a seed is negative.

    >>> purpose([100000, 100049])
    'final'
    """
    if not seeds:
        raise InputError("no seeds: episodes=0 evaluates nothing. Give at least one episode.")
    if min(seeds) < 0:
        raise InputError(f"seeds must not be negative, got {min(seeds)}.")
    names = {0: "training", FINAL_START // RANGE: "final", SELECTION_START // RANGE: "selection"}
    low, high = min(seeds), max(seeds)
    if low // RANGE != high // RANGE:
        raise InputError(
            f"seeds {low} to {high} cross from one range into another (ranges are {RANGE} wide: training from 0, "
            f"final from {FINAL_START}, selection from {SELECTION_START}). Use fewer episodes or another seed_start."
        )
    return names.get(low // RANGE, "other")


def consecutive(start: int, n: int) -> list[int]:
    """`n` seeds from `start` on.

    Raises:
        InputError: more than any range holds; they are not made first.
    """
    if n > RANGE:
        raise InputError(f"episodes={n} are more than the {RANGE} seeds of a range.")
    return list(range(start, start + n))


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise InputError unless the seeds are non-empty, distinct and within one range."""
    purpose(seeds)
    seen: set[int] = set()
    for seed in seeds:
        if seed in seen:
            raise InputError(
                f"seed {seed} is listed twice: a repeated seed is the same episode again, so it would count one "
                "outcome twice. Remove it, or raise the number of episodes instead."
            )
        seen.add(seed)


def _take(start: int, n: int, offset: int, name: str) -> list[int]:
    if n < 1:
        raise InputError(f"episodes={n} evaluates nothing. Give at least one episode.")
    if offset < 0 or offset + n > RANGE:
        raise InputError(f"the {name} range holds {RANGE} seeds; {n} from offset {offset} do not fit.")
    return list(range(start + offset, start + offset + n))
