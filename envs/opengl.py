"""OpenGL without a display, for pictures of MuJoCo."""

from __future__ import annotations

import ctypes.util
import os
from collections.abc import Sequence

from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import installed_version


def choose(rendering: bool) -> None:
    """Name a back end that is installed, in MUJOCO_GL, unless the user has named one: a wrong one ends the whole process.

    Raises:
        InputError: pictures are wanted, and no library draws without a display.
    """
    if "MUJOCO_GL" in os.environ:
        return
    usable = _usable()
    if rendering and not usable:
        raise InputError(
            "camera images need OpenGL without a display, and neither EGL nor OSMesa is installed. "
            "Install one with: sudo apt-get install -y libegl1 libosmesa6 libgl1-mesa-dri"
        )
    os.environ["MUJOCO_GL"] = usable[0] if usable else "glx"  # asks for glfw, whose wheel brings its library along


def renderer(packages: Sequence[str]) -> dict[str, str]:
    """What draws the pictures of a task: versions of its packages, and the OpenGL back end of MuJoCo's.

    Two renderers, or two versions of one, draw the same state differently: it belongs to recordings and to results.
    """
    found = {name: installed_version(name) or "not installed" for name in packages}
    if "mujoco" in packages:
        found["gl"] = os.environ.get("MUJOCO_GL") or next(iter(_usable()), "none")
    return found


def _usable() -> list[str]:
    """Back ends that are installed, the one to be taken first."""
    return [name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if ctypes.util.find_library(library)]
