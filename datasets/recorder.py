"""A recorder for a loop of your own: teleoperation, another simulator."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isdt_policy.datasets.store import DemoWriter
from isdt_policy.shared.errors import InputError


class Recorder:
    """Collects the steps of an episode and appends it to a store when it ends.

    Args:
        writer: where episodes go.

    Example:
        with DemoWriter("demos.zarr", task="pusht") as writer:
            recorder = Recorder(writer)
            obs, _ = env.reset()
            while not done:
                action = teleoperate(obs)
                recorder.step(obs, action)  # what was seen, and what was commanded after seeing it
                obs, *_, done = ...
            recorder.end()
    """

    def __init__(self, writer: DemoWriter) -> None:
        self.writer = writer
        self._rows: list[dict[str, NDArray[np.generic]]] = []

    @property
    def n_steps(self) -> int:
        """Steps of the current episode."""
        return len(self._rows)

    def step(self, obs: Mapping[str, ArrayLike], action: ArrayLike, **more: ArrayLike) -> None:
        """Add one step. Arrays are copied, as environments like to reuse theirs.

        Args:
            obs: {key: array} seen at this step.
            action: commanded after seeing it.
            **more: further keys, such as reward.

        Raises:
            InputError: other keys than in the step before, or a key given twice.
        """
        given = [*obs, "action", *more]
        if len(set(given)) < len(given):
            raise InputError(f"a step gives a key twice: {', '.join(given)}.")
        if self._rows and set(given) != set(self._rows[0]):
            raise InputError(f"step {self.n_steps} has keys {', '.join(given)}; before: {', '.join(self._rows[0])}.")
        self._rows.append({key: np.array(value) for key, value in {**obs, "action": action, **more}.items()})

    def end(self) -> int:
        """Append the episode and return its number; the recorder is ready for the next.

        Raises:
            InputError: what `DemoWriter.append` refuses; the episode is then still here.
        """
        if not self._rows:
            raise InputError("there is no step to record.")
        for key in self._rows[0]:
            shapes = {row[key].shape for row in self._rows}
            if len(shapes) > 1:
                raise InputError(f"'{key}' changes its shape within an episode: {sorted(shapes)}.")
        number = self.writer.append({key: np.stack([row[key] for row in self._rows]) for key in self._rows[0]})
        self._rows = []
        return number

    def discard(self) -> None:
        """Forget the current episode."""
        self._rows = []
