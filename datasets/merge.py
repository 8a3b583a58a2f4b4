"""Several sets of demonstrations in one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from isdt_policy.datasets import formats
from isdt_policy.datasets.convert import sha256, write
from isdt_policy.datasets.formats import Episode, Recording
from isdt_policy.datasets.store import resolve_path
from isdt_policy.datasets.writer import unlike
from isdt_policy.shared.errors import InputError


def merge(sources: Sequence[str | Path], out: str | Path, overwrite: bool = False, command: str = "") -> None:
    """Write the episodes of all sources, one after another, to `out`.

    Raises:
        InputError: a source cannot be read, they do not agree, or the target exists.
    """
    recordings = [formats.read(resolve_path(source)) for source in sources]
    write(joined(recordings), Path(out), None, overwrite, {"command": command})


def joined(parts: list[Recording]) -> Recording:
    """One recording after another.

    Raises:
        InputError: they differ in task, keys, shapes or dtypes.
    """
    tasks = {part.task for part in parts}
    if len(tasks) > 1:
        raise InputError(f"the sources are of different tasks ({', '.join(map(str, sorted(map(str, tasks))))}).")
    firsts = [next(part.episodes()) for part in parts]
    looks = [{key: (value.shape[1:], value.dtype) for key, value in first.items()} for first in firsts]
    for part, look in zip(parts, looks):
        if look != looks[0]:
            raise InputError(
                f"'{part.path}' differs from '{parts[0].path}': {unlike(looks[0], look)}. Convert both with the same keys= first."
            )
    places = [(index, number) for index, part in enumerate(parts) for number in part.numbers]

    def load(numbers: Sequence[int]) -> Iterator[Episode]:
        for index, group in itertools.groupby((places[number] for number in numbers), key=lambda place: place[0]):
            yield from parts[index].load([number for _, number in group])

    masks: dict[str, list[int]] = {}
    first = 0
    for number, part in enumerate(parts):
        for name, mask in part.attributes.get("masks", {}).items():
            masks.setdefault(name, []).extend(first + i for i in mask)
        masks[f"source_{number}"] = list(range(first, first + part.n_episodes))
        first += part.n_episodes
    sources = [{"path": str(p.path), "sha256": sha256(p.path), **p.attributes.get("provenance", {})} for p in parts]
    attributes = {**parts[0].attributes, "masks": masks, "provenance": {"merged": sources}}
    info = [entry for part in parts for entry in (part.info or [{}] * part.n_episodes)]
    return Recording(
        "merge", parts[0].path, range(first), load, parts[0].task, attributes, info, [n for p in parts for n in p.notes]
    )
