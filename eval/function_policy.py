"""A plain function as a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray


class FunctionPolicy:
    """A plain function as a policy: observation dict -> action (action_dim,) or chunk (k, action_dim).

    >>> policy = FunctionPolicy(lambda obs: obs["agent_pos"], obs_keys=("agent_pos",))
    >>> policy.predict_action({"agent_pos": np.zeros((3, 1, 2))})["action"].shape
    (3, 1, 2)
    """

    n_obs_steps = 1

    def __init__(
        self,
        function: Callable[[dict[str, NDArray[np.floating]]], ArrayLike],
        obs_keys: Iterable[str],
        n_action_steps: int = 1,
    ) -> None:
        self.function, self.obs_keys, self.n_action_steps = function, tuple(obs_keys), n_action_steps

    def reset(self) -> None:
        """Nothing to forget."""

    def predict_action(
        self,
        obs: Mapping[str, NDArray[np.generic]],
        *,
        nfe: int | str = 1,
        noise_seeds: NDArray[np.int64] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Call the function on each row's newest observation."""
        batch = len(next(iter(obs.values())))
        rows = [self.function({key: value[i, -1] for key, value in obs.items()}) for i in range(batch)]
        action = np.stack([np.atleast_2d(np.asarray(row, np.float32)) for row in rows])
        return {"action": action, "action_pred": action}
