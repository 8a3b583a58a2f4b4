"""Whether the simulators that are installed work here: each is built, reset and stepped once."""

from __future__ import annotations

import ctypes.util
from dataclasses import dataclass

from isdt_policy.envs.registry import make, task_ids, task_spec
from isdt_policy.shared.errors import InputError

# How MuJoCo may draw without a display -> (shared library, Debian package)
GL_BACK_ENDS = {"egl": ("EGL", "libegl1"), "osmesa": ("OSMesa", "libosmesa6"), "glfw": ("glfw", "libglfw3")}


@dataclass(frozen=True)
class Checkup:
    """How a simulator does.

    Attributes:
        tasks: what runs or fails together, because the same packages make it; the first was tried.
        installed: whether all of those packages are there.
        problem: what went wrong, or "".
    """

    tasks: tuple[str, ...]
    installed: bool
    problem: str = ""

    def __str__(self) -> str:
        spec, others = task_spec(self.tasks[0]), f"; also {', '.join(self.tasks[1:])}" if self.tasks[1:] else ""
        if not self.installed:
            return f"task {spec.id} is not installed: pip install 'isdt-policy[{spec.extra}]'"
        if self.problem:
            return f"task {spec.id} does not run: {self.problem}"
        return f"task {spec.id} works ({', '.join(f'{n} {v}' for n, v in spec.versions().items()) or 'no simulator'}){others}"


def examine(extra: str | None = None) -> list[Checkup]:
    """Try one task of every simulator, or of those that an extra installs."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for task in task_ids():
        if extra in (None, task_spec(task).extra):
            groups.setdefault(task_spec(task).packages, []).append(task)
    return [_try(tuple(tasks)) for tasks in groups.values()]


def drawing() -> dict[str, str | None]:
    """OpenGL back end -> its library, or None where it is not installed."""
    return {name: ctypes.util.find_library(library) for name, (library, _) in GL_BACK_ENDS.items()}


def _try(tasks: tuple[str, ...]) -> Checkup:
    if "not installed" in task_spec(tasks[0]).versions().values():
        return Checkup(tasks, installed=False)
    try:
        env = make(tasks[0])
        env.reset(seed=0)
        env.step(env.action_space.sample())
        env.close()
    except InputError as error:
        return Checkup(tasks, True, str(error))
    except Exception as error:  # a broken simulator raises anything; the report has to go on
        return Checkup(tasks, True, f"{type(error).__name__}: {error}")
    return Checkup(tasks, installed=True)
