"""First states of demonstrations, as beginnings of episodes."""

from __future__ import annotations

from collections.abc import Sequence

from isdt_policy.datasets.store import DemoStore
from isdt_policy.eval.episode import Start
from isdt_policy.shared.errors import InputError


def initial_states(store: str, episodes: int, numbers: Sequence[int] = ()) -> dict[int, Start]:
    """Where the demonstrations of a store begin.

    Args:
        store: a demonstration store.
        episodes: how many of them, from the first.
        numbers: of the episodes, in place of the first ones.

    Raises:
        InputError: the store does not hold states of the simulator, or has no such episode.
    """
    demos = DemoStore.open(store)
    key = next((key for key in ("state", "states") if key in demos.keys), None)  # PushT's; the simulator's
    if key is None:
        raise InputError(
            f"{store} has neither 'state' nor 'states', so its initial states are unknown; it has {', '.join(demos.keys)}."
        )
    begins = [0, *(int(end) for end in demos.episode_ends[:-1])]
    chosen = list(numbers) or list(range(min(episodes, len(begins))))
    if unknown := [number for number in chosen if not 0 <= number < len(begins)]:
        raise InputError(f"{store} has no episode {unknown[0]}; it has 0 to {len(begins) - 1}.")
    info = demos.episode_info()
    found = {}
    for number in chosen:
        state = tuple(float(v) for v in demos.read(key, begins[number], begins[number] + 1)[0])
        found[number] = Start(state, info[number].get("reset_seed"), info[number].get("model_file"))
    return found
