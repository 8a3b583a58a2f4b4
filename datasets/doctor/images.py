"""Checks of images: frames that repeat, frames of one colour, images not stored as bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.doctor.demos import Demos, Finding, runs
from isdt_policy.datasets.summary import blocks, is_low_dim


def image_frames(demos: Demos) -> Iterator[Finding]:
    """Frames that repeat while the scene moves, dark frames, and images not stored as uint8."""
    for key in demos.store.keys:
        if is_low_dim(demos.store, key):
            continue
        dtype, repeats, dark, previous = demos.store.dtype(key), [], [], None
        for start, block in blocks(demos.store, key):
            if not np.isfinite(block[..., :1, :1, :]).all() if block.ndim == 4 else False:
                yield Finding("error", "finite", key, "NaN or infinity", "render again", **demos.place(start))
            flat = block.reshape(len(block), -1)
            digests = [hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=8).digest() for row in flat]
            before = [previous, *digests[:-1]]
            repeats += [start + i - 1 for i, (a, b) in enumerate(zip(before, digests)) if a == b]
            dark += [start + i for i, row in enumerate(flat) if row[:: max(1, len(row) // 512)].std() == 0]
            previous = digests[-1]
        if dtype != np.uint8:
            yield Finding(
                "note", "images", key, f"stored as {dtype}: {dtype.itemsize} times the space of uint8",
                "isdt data convert stores images as uint8 where that loses nothing",
            )  # fmt: skip
        if dark:
            yield Finding(
                "warning", "images", key, "one colour throughout", "a camera that was off; drop those steps",
                count=len(dark), **demos.place(dark[0]),
            )  # fmt: skip
        same = np.zeros(len(demos.within), np.bool_)
        same[repeats] = True
        found = runs(same & demos.within, _scene_moves(demos), 3)
        if found:
            yield Finding(
                "warning", "frozen", key, "the image repeats for 4 frames or more while the scene moves",
                "the camera is slower than the control rate, or it hung", count=len(found), **demos.place(found[0]),
            )  # fmt: skip


def _scene_moves(demos: Demos) -> NDArray[np.bool_]:
    """(n_steps - 1,): some observation changes by more than a hundredth of its range."""
    moves = np.zeros(demos.store.n_steps - 1, np.bool_)
    for value in demos.observations.values():
        moves |= (np.abs(np.diff(value, axis=0)) > 0.01 * np.maximum(np.ptp(value, axis=0), 1e-9)).any(axis=1)
    return moves
