"""`isdt data split`: some episodes of a store, or a training and a validation part."""

from __future__ import annotations

from pathlib import Path

from isdt_policy.datasets import formats
from isdt_policy.datasets.convert import chosen, write
from isdt_policy.datasets.formats import Recording
from isdt_policy.datasets.store import resolve_path
from isdt_policy.datasets.windows import train_val_split
from isdt_policy.shared.errors import InputError, nearest

HELP = """
usage: isdt data split SOURCE OUT (episodes=... | exclude=... | mask=NAME | val_ratio=R [seed=0]) [overwrite=false]

Write some episodes of SOURCE to OUT; with val_ratio, all of them to OUT/train.zarr and OUT/valid.zarr.

  episodes=0-99,120   these episodes; ranges include both ends
  exclude=7,9         all but these
  mask=NAME           those of a named mask (isdt data inspect lists them)
  val_ratio=0.1       a seeded random split, the same that training makes
  seed=0              seed of that split

examples
  isdt data split demos.zarr small.zarr episodes=0-9
  isdt data split demos.zarr clean.zarr exclude=17,42
  isdt data split demos.zarr parts val_ratio=0.1
"""


def split(
    source: str,
    out: str,
    episodes: str | None = None,
    exclude: str | None = None,
    mask: str | None = None,
    val_ratio: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> int:
    """Write a subset, or two complementary ones; see HELP."""
    given = [name for name, value in locals().items() if name in _WAYS and value is not None]
    if len(given) != 1:
        raise InputError(f"give exactly one of {', '.join(_WAYS)}; given: {', '.join(given) or 'none'}.")
    recording = formats.read(resolve_path(source))
    if val_ratio is not None:
        train, valid = train_val_split(recording.n_episodes, val_ratio, seed)
        for name, part_numbers in (("train", train), ("valid", valid)):
            if not len(part_numbers):
                raise InputError(
                    f"the {name} part would be empty: {recording.n_episodes} episodes, val_ratio={val_ratio}."
                )
        for name, part_numbers in (("train", train), ("valid", valid)):
            part = chosen(recording, part_numbers.tolist())
            write(part, Path(out) / f"{name}.zarr", None, overwrite, val_ratio=val_ratio, seed=seed)
        return 0
    numbers = _numbers(recording, episodes, exclude, mask)
    write(chosen(recording, numbers), Path(out), None, overwrite, episodes=numbers)
    return 0


_WAYS = ("episodes", "exclude", "mask", "val_ratio")


def _numbers(recording: Recording, episodes: str | None, exclude: str | None, mask: str | None) -> list[int]:
    n = recording.n_episodes
    if mask is not None:
        masks = recording.attributes.get("masks", {})
        if mask not in masks:
            raise InputError(f"there is no mask '{mask}'.{nearest(mask, masks)} Masks: {', '.join(masks) or 'none'}.")
        numbers = list(masks[mask])
    elif episodes is not None:
        numbers = parse_ranges(episodes, n)
    else:
        numbers = sorted(set(range(n)) - set(parse_ranges(exclude or "", n)))
    if not numbers:
        raise InputError(f"no episode of '{recording.path}' is left.")
    return numbers


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
