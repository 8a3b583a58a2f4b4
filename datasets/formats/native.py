"""Zarr stores: any is read, our own layout is written; what it is stands in `store.py`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from isdt_policy.datasets.formats import Recording
from isdt_policy.datasets.store import DemoStore, DemoWriter, pack_zip

# Written at once: several shards of frames, and little memory.
_BLOCK_BYTES = 64 * 2**20
_OWN = ("isdt_schema", "n_episodes", "task")


def read(path: str | Path) -> Recording:
    """A store as a recording."""
    store = DemoStore.open(path)

    def episodes() -> Iterator[dict[str, NDArray[Any]]]:
        for index in range(store.n_episodes):
            yield store.episode(index)

    return Recording(
        "zarr" if "isdt_schema" in store.attrs else "diffusion_policy", store.path, store.n_episodes, episodes,
        store.task, {k: v for k, v in store.attrs.items() if k not in _OWN}, store.episode_info(),
    )  # fmt: skip


def write(recording: Recording, path: Path, provenance: dict[str, Any]) -> None:
    """Write our layout: a .zarr directory, or one .zarr.zip file. `path` must not exist."""
    directory = path.with_suffix("") if path.suffix == ".zip" else path
    with DemoWriter(directory, recording.task, provenance, attributes=recording.attributes) as writer:
        waiting: list[dict[str, NDArray[Any]]] = []
        size = 0
        for episode in recording.episodes():
            waiting.append(episode)
            size += sum(value.nbytes for value in episode.values())
            if size > _BLOCK_BYTES:
                writer.extend(waiting)
                waiting, size = [], 0
        writer.extend(waiting)
        writer.set_episode_info(recording.info)
    if directory != path:
        pack_zip(directory, path)
        shutil.rmtree(directory)
