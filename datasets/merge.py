"""Several sets of demonstrations in one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from isdt_policy.datasets import formats
from isdt_policy.datasets.convert import sha256, write
from isdt_policy.datasets.formats import Recording
from isdt_policy.datasets.store import resolve_path
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
    looks = [{key: (value.shape[1:], str(value.dtype)) for key, value in next(p.episodes()).items()} for p in parts]
    for part, look in zip(parts, looks):
        if look != looks[0]:
            differing = sorted(k for k in look.keys() | looks[0].keys() if look.get(k) != looks[0].get(k))
            raise InputError(
                f"'{part.path}' and '{parts[0].path}' differ in {', '.join(differing)}; "
                "convert both with the same keys= first."
            )

    def episodes() -> Iterator[dict[str, NDArray[Any]]]:
        for part in parts:
            yield from part.episodes()

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
        "merge", parts[0].path, first, episodes, parts[0].task, attributes, info, [n for p in parts for n in p.notes]
    )
