"""A window that shows what the simulator shows, while a policy drives it."""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np

from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import require


class Drawn(Protocol):
    """An environment that can be drawn."""

    def render(self) -> object:
        """Its picture, (height, width, 3)."""
        ...


class Window:
    """Frames of an environment in a window. Drawing costs time of the loop that calls `show`.

    Args:
        env: environment with render_mode "rgb_array".
        title: the window's title.

    Raises:
        InputError: pygame is missing, or there is no display.
    """

    def __init__(self, env: Drawn, title: str) -> None:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        pygame = require("pygame", "pusht", "A window")
        self._pygame, self._env, self._title = pygame, env, title
        self._surface: object = None

    def show(self) -> bool:
        """Draw the environment as it is now; False once the window was closed."""
        if self._surface is not None and any(e.type == self._pygame.QUIT for e in self._pygame.event.get()):
            return False
        frame = np.asarray(self._env.render(), np.uint8)
        if self._surface is None:
            try:
                self._pygame.display.init()
                self._surface = self._pygame.display.set_mode(frame.shape[1::-1])
            except self._pygame.error as error:
                raise InputError(f"no window can be opened ({error}); video=out.mp4 needs no display.") from error
            self._pygame.display.set_caption(self._title)
        self._pygame.surfarray.blit_array(self._surface, frame.swapaxes(0, 1))
        self._pygame.display.flip()
        return True

    def close(self) -> None:
        """Close it."""
        if self._surface is not None:
            self._pygame.display.quit()
            self._surface = None
