"""`isdt doctor`."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import dataclass
from typing import ClassVar, Literal

from isdt_policy import __version__
from isdt_policy.shared.extras import EXTRAS, installed_version

CORE = (
    "torch",
    "numpy",
    "gymnasium",
    "zarr",
    "numba",
    "hydra-core",
    "safetensors",
    "tqdm",
    "jinja2",
    "filelock",
    "jaxtyping",
)
# purpose -> (packages of the core, extras)
NEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "everything": (CORE, tuple(EXTRAS)),
    "pusht": (CORE, ("pusht", "report")),
    "robomimic": (CORE, ("robosuite", "report")),
    "training": (CORE, ("tensorboard",)),
    "data": (("numpy", "gymnasium", "zarr", "numba"), ("formats", "hub")),
    "deploy": (("numpy",), ("runtime", "serve")),  # a robot computer needs no torch
}
SIMULATORS = {"everything": None, "pusht": "pusht", "robomimic": "robosuite"}


@dataclass(frozen=True)
class Doctor:
    """Say what this machine can run, and how to install what is missing for your purpose.

    The exit code is 1 if something that the purpose needs is missing, or if a simulator that is installed does not run.

    Examples:
        isdt doctor                everything, whether you need it or not
        isdt doctor for=robomimic  robosuite, MuJoCo and how they draw without a display
        isdt doctor for=deploy     a robot computer: acting without torch

    What for:
        purpose: training is that of any demonstrations; data reads and writes other formats; deploy acts and serves.
    """

    purpose: Literal["everything", "pusht", "robomimic", "training", "deploy", "data"] = "everything"

    positional: ClassVar = ("purpose",)
    another: ClassVar = {"for": "purpose"}
    bare: ClassVar = True

    def run(self, command: str) -> int:
        print(
            f"isdt-policy {__version__}, Python {platform.python_version()} ({sys.executable}), {platform.platform()}\n"
        )
        missing = self._packages()
        if "torch" in NEEDS[self.purpose][0]:
            print(f"device: {_device()}")
        broken = self._simulators() if self.purpose in SIMULATORS else False
        return int(broken or (missing and self.purpose != "everything"))

    def _packages(self) -> bool:
        """Print what is installed and what installs the rest; return whether anything is missing."""
        core, extras = NEEDS[self.purpose]
        found = {
            name: installed_version(name) for name in [*core, *(name for extra in extras for name in EXTRAS[extra])]
        }
        width = max(map(len, found))
        for name, version in found.items():
            print(f"{name:<{width}}  {version or 'missing'}")
        absent = [name for name, version in found.items() if version is None]
        lacking = [extra for extra in extras if any(name in absent for name in EXTRAS[extra])]
        if absent and self.purpose == "deploy":  # without what the core would bring along
            print(f"to install: pip install {' '.join(absent)}")
        elif absent:
            if "robosuite" in absent and shutil.which("gcc") is None:
                print(
                    "first: sudo apt-get install -y gcc python3-dev linux-libc-dev   (robosuite's keyboard driver is compiled)"
                )
            print(f"to install: pip install 'isdt-policy{'[' + ','.join(lacking) + ']' if lacking else ''}'")
        return bool(absent)

    def _simulators(self) -> bool:
        """Print how the simulators do; return whether one that is installed does not run."""
        if installed_version("gymnasium") is None:
            print("simulators: none can be tried without gymnasium")
            return self.purpose != "everything"
        from isdt_policy.envs import doctor

        checkups = doctor.examine(SIMULATORS[self.purpose])
        print(*checkups, sep="\n")
        if self.purpose != "pusht":  # which draws without OpenGL
            print("OpenGL without a display, for pictures of MuJoCo (egl or osmesa is enough)")
            for name, library in doctor.drawing().items():
                print(f"  {name:<8} {library or 'not found: sudo apt-get install -y ' + doctor.GL_BACK_ENDS[name][1]}")
        return any(checkup.problem for checkup in checkups)


def _device() -> str:
    try:
        import torch
    except Exception as error:  # a broken torch raises anything; the report has to go on
        return f"torch does not import ({type(error).__name__}: {error})"
    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name(0)})"
    return f"cpu, {torch.get_num_threads()} threads"
