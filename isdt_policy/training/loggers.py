"""Where a run's numbers go: one JSON line per record always, and to the loggers that `training.loggers` names.

To add one: a class with the three methods of `Logger`, and a line in `LOGGERS`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.extras import require
from isdt_policy.shared.files import named, write_text


class Logger(Protocol):
    """Takes the numbers of a run."""

    def __init__(self, run: Path, step: int) -> None:
        """Begin, or go on at `step`: what was logged of later steps is void, since they will be done again."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take one record."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Events in <run>/tensorboard; `tensorboard --logdir outputs` shows them."""

    def __init__(self, run: Path, step: int) -> None:
        require("tensorboard", "tensorboard", "training.loggers=[tensorboard]")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take one record."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard}


class Log:
    """Appends records {"step": n, name: value} to <run>/log.jsonl, and hands them to other loggers.

    Opening a log at `step` cuts the records of later steps: a killed run may have logged some after its last checkpoint, and
    the run that goes on will log them again.

    Raises:
        InputError: a logger whose package is not installed.
    """

    def __init__(self, run: Path, step: int, loggers: Sequence[str] = ()) -> None:
        path = run / "log.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            write_text(path, "".join(line + "\n" for line in kept))
        self._others = [LOGGERS[name](run, step) for name in meant(loggers)]
        self._path, self._file = path, path.open("a", buffering=1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log one record."""
        with named(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            for logger in self._others:
                logger.write(step, values)

    def close(self) -> None:
        """Write what is left."""
        self._file.close()
        for logger in self._others:
            logger.close()


class Silence:
    """The log of a process that writes nothing, because another one does."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take one record."""

    def close(self) -> None:
        """Nothing is left."""


def meant(names: Sequence[str]) -> list[str]:
    """The loggers that `training.loggers` names; "auto" is TensorBoard if it is installed.

    Raises:
        InputError: a name that is no logger.
    """
    found = []
    for name in names:
        if name == "auto":
            found += ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
        elif name in LOGGERS:
            found.append(name)
        else:
            known = ["auto", *LOGGERS]
            raise InputError(f"training.loggers: '{name}' is not one of {', '.join(known)}.{nearest(str(name), known)}")
    return found


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line cut short by a kill
