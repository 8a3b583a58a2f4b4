"""Some episodes of a store, or a training and a validation part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from isdt_policy.datasets import formats
from isdt_policy.datasets.convert import chosen, write
from isdt_policy.datasets.formats import Recording
from isdt_policy.datasets.store import resolve_path
from isdt_policy.datasets.windows import train_val_split
from isdt_policy.shared.errors import InputError, nearest


@dataclass(frozen=True)
class Which:
    """Which episodes: exactly one of the first four is given.

    Attributes:
        episodes: their numbers, such as "0-9,12"; ranges include both ends.
        exclude: all but these numbers.
        mask: those of a named mask.
        val_ratio: share of a random validation part; the others are the training part.
        seed: seed of that part.
    """

    episodes: str | None = None
    exclude: str | None = None
    mask: str | None = None
    val_ratio: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        ways = ("episodes", "exclude", "mask", "val_ratio")
        given = [f"{name}=" for name in ways if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(
                f"give exactly one of {', '.join(f'{name}=' for name in ways)}; given: {' and '.join(given) or 'none'}."
            )
        if self.val_ratio is not None and not 0 < self.val_ratio < 1:
            raise InputError(f"val_ratio={self.val_ratio:g} must lie between 0 and 1.")

    def numbers(self, recording: Recording) -> list[int]:
        """The episodes that `episodes`, `exclude` or `mask` names.

        Raises:
            InputError: there is no such mask or episode, or none is left.
        """
        if self.mask is not None:
            masks = recording.attributes.get("masks", {})
            if self.mask not in masks:
                known = ", ".join(masks) or "none"
                raise InputError(f"there is no mask '{self.mask}'.{nearest(self.mask, masks)} Masks: {known}.")
            numbers = list(masks[self.mask])
        elif self.episodes is not None:
            numbers = parse_ranges(self.episodes, recording.n_episodes)
        else:
            left_out = parse_ranges(self.exclude or "", recording.n_episodes)
            numbers = sorted(set(range(recording.n_episodes)) - set(left_out))
        if not numbers:
            raise InputError(f"no episode of '{recording.path}' is left.")
        return numbers


def split(source: str | Path, out: str | Path, which: Which, overwrite: bool = False, command: str = "") -> None:
    """Write some episodes of `source` to `out`; with val_ratio all of them, to out/train.zarr and out/valid.zarr.

    Raises:
        InputError: the source cannot be read, the choice does not fit it, or the target exists.
    """
    recording = formats.read(resolve_path(source))
    if which.val_ratio is None:
        numbers = which.numbers(recording)
        write(chosen(recording, numbers), Path(out), None, overwrite, {"command": command, "episodes": numbers})
        return
    parts = dict(zip(("train", "valid"), train_val_split(recording.n_episodes, which.val_ratio, which.seed)))
    for name, numbers_ in parts.items():
        if not len(numbers_):
            raise InputError(
                f"the {name} part would be empty: {recording.n_episodes} episodes, val_ratio={which.val_ratio:g}."
            )
    made = {"command": command, "val_ratio": which.val_ratio, "seed": which.seed}
    for name, numbers_ in parts.items():
        write(chosen(recording, numbers_.tolist()), Path(out) / f"{name}.zarr", None, overwrite, made)


def parse_ranges(text: str, n: int) -> list[int]:
    """Episode numbers from "0-3,7".

    >>> parse_ranges("0-3,7", 10)
    [0, 1, 2, 3, 7]

    Raises:
        InputError: not numbers, or not below n.
    """
    numbers: set[int] = set()
    for part in text.strip("[]").split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise InputError(f"'{part}' is not an episode number or a range such as 0-9.")
        numbers |= set(range(int(first), int(last or first) + 1))
    if numbers and max(numbers) >= n:
        raise InputError(f"episode {max(numbers)} does not exist; there are episodes 0 to {n - 1}.")
    return sorted(numbers)
