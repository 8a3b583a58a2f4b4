"""Diffusion Policy's replay buffer: Zarr v2 with data/<key> and meta/episode_ends, a directory or a .zip."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc

from isdt_policy.datasets.formats import Recording
from isdt_policy.datasets.formats.native import read, recognises
from isdt_policy.datasets.store import pack_zip
from isdt_policy.datasets.writer import put_episode_info
from isdt_policy.shared.values import JsonObject

__all__ = ["ENDINGS", "LOOK", "read", "recognises", "write"]

LOOK = "a Zarr v2 store for the code of Diffusion Policy"
ENDINGS = ()


def write(recording: Recording, path: Path, provenance: JsonObject) -> None:
    """Write Zarr v2 that Diffusion Policy's ReplayBuffer reads; further attributes stand where it does not look."""
    directory = path.with_suffix("") if path.suffix == ".zip" else path
    root = zarr.open_group(directory, mode="w-", zarr_format=2)
    root.attrs.update({**recording.attributes, "task": recording.task, "provenance": provenance})
    data, meta = root.create_group("data"), root.create_group("meta")
    ends: list[int] = []
    for episode in recording.episodes():
        start = ends[-1] if ends else 0
        ends.append(start + len(episode["action"]))
        for key, value in episode.items():
            if key not in data:
                step_bytes = max(1, value[0].nbytes)
                data.create_array(
                    key,
                    shape=(0, *value.shape[1:]),
                    chunks=(int(np.clip(2**20 // step_bytes, 1, 4096)), *value.shape[1:]),
                    dtype=value.dtype,
                    compressors=Blosc("zstd", clevel=5, shuffle=Blosc.NOSHUFFLE),
                )
            array: Any = data[key]
            array.resize((ends[-1], *value.shape[1:]))
            array[start:] = value
    meta.create_array("episode_ends", data=np.array(ends, np.int64))
    put_episode_info(meta, recording.info)
    if directory != path:
        pack_zip(directory, path)
        shutil.rmtree(directory)
