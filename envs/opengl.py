"""OpenGL without a display, for pictures of MuJoCo."""

from __future__ import annotations

import ctypes.util
import os

from isdt_policy.shared.errors import InputError


def choose(rendering: bool) -> None:
    """Name a back end that is installed, in MUJOCO_GL, unless the user has named one: a wrong one ends the whole process.

    Raises:
        InputError: pictures are wanted, and no library draws without a display.
    """
    if "MUJOCO_GL" in os.environ:
        return
    usable = [name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if ctypes.util.find_library(library)]
    if rendering and not usable:
        raise InputError(
            "camera images need OpenGL without a display, and neither EGL nor OSMesa is installed. "
            "Install one with: sudo apt-get install -y libegl1 libosmesa6 libgl1-mesa-dri"
        )
    os.environ["MUJOCO_GL"] = usable[0] if usable else "glx"  # asks for glfw, whose wheel brings its library along
