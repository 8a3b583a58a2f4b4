"""Packages that only some features need."""

from __future__ import annotations

import importlib
from types import ModuleType

from isdt_policy.shared.errors import InputError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a package of an optional feature.

    Args:
        module: name to import, such as "h5py" or "matplotlib.pyplot".
        extra: of this package's extras, the one that installs it.
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
