"""How LeRobot v3 calls things, for reading and for writing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from types import ModuleType

from isdt_policy.shared.extras import require

NAMES = {"next.reward": "reward", "next.done": "done", "next.success": "success"}
BACK = {ours: theirs for theirs, ours in NAMES.items()}
# Columns that follow from the rest.
IMPLIED = {
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64",
}  # fmt: skip
CHUNK = "chunk-{0:03d}/file-{1:03d}"


def ours(name: str) -> str:
    """The key of a feature, alone."""
    return NAMES.get(name) or name.removeprefix("observation.").removeprefix("images.")


def keys_of(names: Iterable[str]) -> dict[str, str]:
    """{feature: key}; where a camera is called like a state, it keeps the prefix `images.`."""
    found = {name: ours(name) for name in names}
    often = Counter(found.values())
    return {name: key if often[key] == 1 else name.removeprefix("observation.") for name, key in found.items()}


def pyarrow() -> tuple[ModuleType, ModuleType]:
    """The package pyarrow and its part for parquet."""
    return require("pyarrow", "formats", "LeRobot datasets"), require("pyarrow.parquet", "formats", "LeRobot datasets")
