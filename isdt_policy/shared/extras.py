"""Packages that only some features need."""

from __future__ import annotations

import importlib
from importlib import metadata
from types import ModuleType

from isdt_policy.shared.errors import InputError

# extra -> the distributions it installs; pyproject.toml has their versions, and a test compares the two.
EXTRAS: dict[str, tuple[str, ...]] = {
    "pusht": ("gym-pusht", "pymunk"),
    "report": ("matplotlib", "av"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "robosuite": ("robosuite", "mujoco", "h5py"),
    "robomimic": ("robomimic", "six"),
    "gymnasium-robotics": ("gymnasium-robotics", "mujoco"),
    "formats": ("h5py", "pyarrow", "av"),
    "diffusers": ("diffusers",),
    "runtime": ("onnxruntime", "ruckig"),
    "serve": ("websockets", "msgpack"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "hub": ("huggingface_hub",),
    "tune": ("optuna", "scipy"),
    "ray": ("ray",),
    "vision": ("timm", "torchvision"),
    "docs": ("mkdocs-material", "jupytext", "nbclient", "ipykernel"),
}


def installed_version(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None; imports nothing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a package of an optional feature.

    Args:
        module: name to import, such as "h5py" or "matplotlib.pyplot".
        extra: the extra of this package that installs it.
        purpose: what needs it, as the beginning of a sentence ("HDF5 files").

    Raises:
        InputError: it is not installed, with the command that installs it; or it does not import, with its own reason.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == module.split(".")[0]
        reason = "is not installed" if missing else f"does not import ({error})"
        raise InputError(
            f"{purpose} need{'' if purpose.endswith('s') else 's'} {module.split('.')[0]}, which {reason}: "
            f"pip install 'isdt-policy[{extra}]'."
        ) from error
