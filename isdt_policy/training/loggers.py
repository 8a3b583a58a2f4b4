"""Where a run's numbers go: one JSON line per record always, and to the loggers that `training.loggers` names.

To add one: a class with the three methods of `Logger`, and a line in `LOGGERS`.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.extras import require
from isdt_policy.shared.files import named, write_text

Value = float | Path  # a number, or a film: an mp4


class Logger(Protocol):
    """Takes the numbers of a run."""

    def __init__(self, run: Path, step: int) -> None:
        """Begin, or go on at `step`: what was logged of later steps is void, since they will be done again."""

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Take one record. It may be of an earlier step than the last: episodes beside a training end when they end."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Events in <run>/tensorboard; `tensorboard --logdir outputs` shows them."""

    def __init__(self, run: Path, step: int) -> None:
        require("tensorboard", "tensorboard", "training.loggers=[tensorboard]")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Take one record; films become moving pictures."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for name, value in values.items():
            if not isinstance(value, Path):
                self._writer.add_scalar(name, value, step)
            elif (picture := _moving_picture(value)) is not None:
                shown = Summary.Image(encoded_image_string=picture, colorspace=3)
                self._writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=shown)]), step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases in <run>/wandb; WANDB_MODE=offline sends nothing, WANDB_PROJECT and the like are its own."""

    def __init__(self, run: Path, step: int) -> None:
        wandb = require("wandb", "wandb", "training.loggers=[wandb]")
        self._film = wandb.Video
        # A run that goes on is a run of its own there: nothing that was sent can be taken back.
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "isdt-policy"), dir=str(run), name=run.name, group=run.name
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Take one record, with films as they are."""
        shown = {
            name: self._film(str(value), format="mp4") if isinstance(value, Path) else value
            for name, value in values.items()
        }
        self._run.log({"step": step, **shown})

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


class Trackio:
    """A run of trackio, on this machine; `trackio show` shows it. TRACKIO_DIR, TRACKIO_PROJECT and TRACKIO_SPACE_ID say where."""

    def __init__(self, run: Path, step: int) -> None:
        trackio = require("trackio", "trackio", "training.loggers=[trackio]")
        self._film = trackio.Video
        # A run that goes on is a run of its own here too, of the same name.
        self._run = trackio.init(
            os.environ.get("TRACKIO_PROJECT", "isdt-policy"), name=run.name, group=run.name,
            space_id=os.environ.get("TRACKIO_SPACE_ID"), embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Take one record, with films as they are."""
        self._run.log(
            {k: self._film(v, format="mp4") if isinstance(v, Path) else v for k, v in values.items()}, step=step
        )

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


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

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Log one record; a path is one of a film."""
        with named(self._path):
            self._file.write(json.dumps({"step": step, **values}, default=str) + "\n")
            for logger in self._others:
                logger.write(step, values)

    def sync(self) -> None:
        """Have log.jsonl on the disk: before a checkpoint, after which its steps are not done again."""
        with named(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write what is left."""
        self._file.close()
        for logger in self._others:
            logger.close()


class Silence:
    """The log of a process that writes nothing, because another one does."""

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Take one record."""

    def sync(self) -> None:
        """Nothing is to be kept."""

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
        elif str(name) in LOGGERS:  # anything may stand in a file
            found.append(name)
        else:
            known = ["auto", *LOGGERS]
            raise InputError(f"training.loggers: '{name}' is not one of {', '.join(known)}.{nearest(str(name), known)}")
    return found


def _moving_picture(film: Path, width: int = 160, most: int = 60) -> bytes | None:
    """A film as GIF, which TensorBoard plays; None where it cannot be decoded here."""
    if not all(importlib.util.find_spec(name) for name in ("av", "PIL")):
        return None
    import av

    with av.open(str(film)) as container:
        pictures = [frame.to_image() for frame in container.decode(video=0)]
    size = (width, round(width * pictures[0].height / pictures[0].width))
    small = [picture.resize(size) for picture in pictures[:: -(-len(pictures) // most)]]
    out = io.BytesIO()
    small[0].save(out, "GIF", save_all=True, append_images=small[1:], duration=100, loop=0)
    return out.getvalue()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line cut short by a kill
