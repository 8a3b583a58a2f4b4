"""D3IL's Avoiding demonstrations as one .npz file: des_c_pos and c_pos (n_steps, 2) in metres, episode_ends (n_episodes,).

D3IL itself publishes one pickle an episode, which is not read here: a pickle can execute code. Its arrays are put into one
.npz with `numpy.savez(path, des_c_pos=..., c_pos=..., episode_ends=...)`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from isdt_policy.datasets.formats import Episode, Reading, Recording
from isdt_policy.datasets.store import task_attributes
from isdt_policy.envs import avoiding
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import Array

NAMES = ("des_c_pos", "c_pos", "episode_ends")
LARGEST = 2**28  # bytes that one array may claim


LOOK = ".npz file with des_c_pos, c_pos and episode_ends"
ENDINGS = ()


def recognises(path: Path) -> bool:
    return path.is_file() and path.suffix == ".npz"


def read(path: Path, how: Reading) -> Recording:
    """The recording, with the state that the environment would have had under the recorded commands.

    Raises:
        InputError: arrays are missing, of other shapes, not finite, too large, or the file is not an .npz.
    """
    arrays = _arrays(path)
    desired, measured, ends = (arrays[name] for name in NAMES)
    starts = [0, *ends[:-1].tolist()]
    spans = list(zip(starts, ends.tolist()))

    def load(numbers: Sequence[int]) -> Iterator[Episode]:
        for start, end in (spans[number] for number in numbers):
            commands = desired[start:end].astype(np.float64)
            replayed = avoiding.replay(commands)
            state = np.concatenate([commands, replayed, np.vstack([replayed[:1], replayed[:-1]])], axis=1)
            yield {
                "state": state[:-1].astype(np.float32),
                "action": np.diff(commands, axis=0).astype(np.float32),
                "recorded_pos": measured[start : end - 1].astype(np.float32),
            }

    info = [{"mode": avoiding.mode_of(measured[start:end].astype(np.float64))} for start, end in spans]
    attributes = {k: v for k, v in task_attributes("avoiding").items() if k != "env"}
    note = "'state' holds positions as the environment's kinematics give them; the arm's own are in 'recorded_pos'."
    return Recording("d3il", path, range(len(spans)), load, "avoiding", attributes, info, [note])


def _arrays(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in NAMES if name not in file]
            if missing:
                raise InputError(
                    f"'{path}' has no array '{missing[0]}'; it has {', '.join(file.files)}. The .npz files that are read hold "
                    f"D3IL's Avoiding: {', '.join(NAMES)}."
                )
            for info in file.zip.infolist():
                if info.file_size > LARGEST:
                    raise InputError(
                        f"'{path}': {info.filename} claims {info.file_size >> 20} MB; at most {LARGEST >> 20} are read."
                    )
            arrays = {name: np.asarray(file[name]) for name in NAMES}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"'{path}' is not a complete .npz file ({str(error).splitlines()[0]}).") from error
    desired, measured, ends = (arrays[name] for name in NAMES)
    for name, array in (("des_c_pos", desired), ("c_pos", measured)):
        if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind != "f" or not np.isfinite(array).all():
            raise InputError(
                f"'{path}': {name} must be finite numbers (n_steps, 2), found {array.dtype} {array.shape}."
            )
    steps = np.diff(ends, prepend=0) if ends.ndim == 1 and ends.dtype.kind in "iu" else np.zeros(1)
    if len(desired) != len(measured) or not len(steps) or (steps < 2).any() or ends[-1] != len(desired):
        raise InputError(
            f"'{path}': episode_ends must increase by two steps or more and end at {len(desired)}, the number of rows of both "
            f"arrays; found {ends.ravel()[:5].tolist()} ... for {len(desired)} and {len(measured)} rows."
        )
    return arrays
