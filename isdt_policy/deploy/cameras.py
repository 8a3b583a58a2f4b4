"""Cameras of a running robot: pictures made as small as the policy reads them, and watched. Imports NumPy only."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from isdt_policy.shared.looks import doubts, image_looks
from isdt_policy.shared.pixels import fitted, image_shapes, image_sources

log = logging.getLogger("isdt_policy.deploy")

STALE = 10  # control steps with the same picture, while something else changes


def stamps(taken_s: float | Mapping[str, float] | None) -> tuple[float | None, float | None]:
    """When the oldest and the newest part of an observation were taken.

    >>> stamps({"front": 1.0, "wrist": 1.2})
    (1.0, 1.2)
    """
    if isinstance(taken_s, Mapping):
        return (min(taken_s.values()), max(taken_s.values())) if taken_s else (None, None)
    return taken_s, taken_s


class CameraWatch:
    """Says, once each, what seems to be wrong with pictures.

    Args:
        policy: that reads them.

    Attributes:
        same: {camera: how many control steps it has given the same picture by now, while something else changed}.
        stale: {camera: most of them in a row}, of those that reached `STALE`.
    """

    def __init__(self, policy: object) -> None:
        self._shapes, self._sources, self._looks = image_shapes(policy), image_sources(policy), image_looks(policy)
        self._looked = not self._looks
        self.same: dict[str, int] = {}
        self.stale: dict[str, int] = {}

    def fitted(self, key: str, value: NDArray[np.generic]) -> NDArray[np.generic]:
        """An observation as the policy reads it; what is no picture of the camera is as before."""
        return fitted(value, self._shapes[key], self._sources[key]) if key in self._sources else value

    def first(self, pictures: Mapping[str, NDArray[np.generic]]) -> None:
        """Compare the first pictures (height, width, 3) with those that were recorded."""
        if self._looked:
            return
        self._looked = True
        seen = {key: pictures[key][None].view(np.uint8) for key in self._looks if self._is_one(key, pictures)}
        for doubt in doubts(self._looks, seen):
            log.warning("%s", doubt)

    def _is_one(self, key: str, pictures: Mapping[str, NDArray[np.generic]]) -> bool:
        value = pictures.get(key)
        return value is not None and value.dtype == np.uint8 and value.shape == self._shapes[key]

    def next(self, before: Mapping[str, NDArray[np.generic]], now: Mapping[str, NDArray[np.generic]]) -> None:
        """Count pictures that stay the same while the rest changes: a driver that repeats its last frame."""
        same = {key: np.array_equal(before[key], value) for key, value in now.items()}
        moves = not all(same.values())
        for key in self._shapes:
            self.same[key] = self.same.get(key, 0) + 1 if same.get(key) and moves else 0
            if self.same[key] == STALE and key not in self.stale:
                log.warning(
                    "the camera '%s' has given the same picture for %d steps, while other observations changed",
                    key,
                    STALE,
                )
            if self.same[key] >= STALE:
                self.stale[key] = max(self.stale.get(key, 0), self.same[key])
