"""Zarr stores: any is read, our own layout is written; what it is stands in `store.py`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from isdt_policy.datasets.formats import Episode, Reading, Recording
from isdt_policy.datasets.store import DemoStore, DemoWriter, pack_zip
from isdt_policy.shared.values import JsonObject

# Read and written at once: several shards of frames, and little memory.
_BLOCK_BYTES = 64 * 2**20
_OWN = ("isdt_schema", "n_episodes", "task", "episode_info", "attempts", "recorded", "next_attempt", "next_seed")


LOOK = ".zarr folder or .zarr.zip file, ours or Diffusion Policy's"
ENDINGS = (".zarr", ".zarr.zip")


def recognises(path: Path) -> bool:
    if path.is_file():
        return path.open("rb").read(4) == b"PK\x03\x04" or path.suffix == ".zip"
    return any((path / name).exists() for name in ("zarr.json", ".zgroup", "meta/episode_ends"))


def read(path: Path, how: Reading) -> Recording:
    """A store as a recording."""
    store = DemoStore.open(path)
    keys = [key for key in store.keys if how.wants(key)]
    return Recording(
        "zarr" if "isdt_schema" in store.attrs else "diffusion_policy", store.path, range(store.n_episodes),
        lambda numbers: _episodes(store, keys, numbers), store.task,
        {k: v for k, v in store.attrs.items() if k not in _OWN}, store.episode_info(), store.notes,
    )  # fmt: skip


def _episodes(store: DemoStore, keys: Sequence[str], numbers: Sequence[int]) -> Iterator[Episode]:
    """Episodes in order, cut from spans of whole chunks: one by one, episodes that share a chunk decode it twice."""
    span, wanted = store.span(_BLOCK_BYTES), set(numbers)
    spans = _spans(store, keys, span)
    begin, first, held = 0, 0, next(spans)  # held: rows [first, first + span) of every key
    for number, end in enumerate(store.episode_ends.tolist()):
        pieces = []
        while end > first + span:
            pieces.append({key: rows[begin - first :] for key, rows in held.items()})
            begin = first = first + span
            held = next(spans)
        pieces.append({key: rows[begin - first : end - first] for key, rows in held.items()})
        if number in wanted:
            yield pieces[0] if len(pieces) == 1 else {key: np.concatenate([p[key] for p in pieces]) for key in held}
        begin = end


def _spans(store: DemoStore, keys: Sequence[str], span: int) -> Iterator[Episode]:
    """Steps [0, span), [span, 2 span), ... of every key; the next is decoded while the caller works on this one."""

    def load(start: int) -> Episode:
        return {key: store.read(key, start, start + span) for key in keys}

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(load, 0)
        for start in range(span, store.n_steps + span, span):
            held = ahead.result()
            if start < store.n_steps:
                ahead = reader.submit(load, start)
            yield held


def write(recording: Recording, path: Path, provenance: JsonObject) -> None:
    """Write our layout: a .zarr directory, or one .zarr.zip file. `path` must not exist."""
    directory = path.with_suffix("") if path.suffix == ".zip" else path
    attributes = {k: v for k, v in recording.attributes.items() if k not in _OWN}
    with DemoWriter(directory, recording.task, provenance, attributes=attributes, durable=False) as writer:
        waiting: list[Episode] = []
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
