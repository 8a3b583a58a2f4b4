"""`isdt doctor`: versions of Python, torch and simulators, rendering back ends, and how to install what is missing."""

from __future__ import annotations

import ctypes.util
import platform
import sys

from isdt_policy.envs.registry import installed_version, task_ids, task_spec
from isdt_policy.shared.errors import InputError

HELP = """usage: isdt doctor

Report what this machine can run: versions of Python, torch and the simulators, which tasks can be built, and which
OpenGL back ends can render without a display. Missing parts come with the line that installs them.

example
  isdt doctor
"""

LIBRARIES = (
    "torch",
    "numpy",
    "gymnasium",
    "zarr",
    "numba",
    "hydra-core",
    "safetensors",
    "gym-pusht",
    "pymunk",
    "mujoco",
    "robosuite",
    "av",
    "matplotlib",
)
# back end -> (shared library, Debian package)
GL_BACK_ENDS = {"egl": ("EGL", "libegl1"), "osmesa": ("OSMesa", "libosmesa6"), "glfw": ("glfw", "libglfw3")}


def main(args: list[str]) -> int:
    """Print the report. Returns 0 if every installed simulator works, else 1."""
    if any(arg in ("-h", "--help", "help") for arg in args):
        print(HELP)
        return 0
    if args:
        raise InputError(f"doctor takes no arguments, got '{args[0]}'. Usage: isdt doctor")
    print(f"python      {platform.python_version()} ({sys.executable})")
    print(f"platform    {platform.platform()}")
    for name in LIBRARIES:
        print(f"{name:<11} {installed_version(name) or '-'}")
    print(f"device      {_device()}")
    problems = [problem for tasks in _by_simulator() if (problem := _try_task(*tasks))]
    print("\nOpenGL without a display (PushT draws on the CPU and needs none; MuJoCo tasks need egl or osmesa)")
    missing = []
    for name, (library, package) in GL_BACK_ENDS.items():
        found = ctypes.util.find_library(library)
        print(f"  {name:<8} {found or 'not found'}")
        missing += [] if found else [package]
    if missing:
        print(f"  to add them: sudo apt-get install -y {' '.join(missing)}")
    return 1 if problems else 0


def _device() -> str:
    try:
        import torch
    except Exception as error:  # a broken torch build raises many things; the report has to go on
        return f"torch cannot be imported: {error}"
    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name(0)})"
    return f"cpu, {torch.get_num_threads()} threads"


def _by_simulator() -> list[list[str]]:
    """Tasks that run or fail together, because the same packages make them."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for task in task_ids():
        groups.setdefault(task_spec(task).packages, []).append(task)
    return list(groups.values())


def _try_task(task: str, *others: str) -> str | None:
    """Build, reset and step one task for all of its simulator; print and return what went wrong."""
    from isdt_policy.envs.registry import make

    spec = task_spec(task)
    if any(version == "not installed" for version in spec.versions().values()):
        # Not a fault: simulators are optional.
        print(f"task {task:<6} is not installed: pip install 'isdt-policy[{spec.extra}]'")
        return None
    try:
        env = make(task)
        env.reset(seed=0)
        env.step(env.action_space.sample())
        env.close()
    except InputError as error:
        print(f"task {task:<6} cannot run: {error}")
        return str(error)
    except Exception as error:  # the point of the report is to survive a broken simulator
        print(f"task {task:<6} fails: {type(error).__name__}: {error}")
        return str(error)
    versions = ", ".join(f"{name} {version}" for name, version in spec.versions().items())
    print(f"task {task:<6} works ({versions}){'; also ' if others else ''}{', '.join(others)}")
    return None
