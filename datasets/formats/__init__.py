"""Other people's demonstration formats, read and written, one file each.

A reader turns a path into a `Recording`; `FORMATS` says how each is recognised. Everything downstream sees recordings only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from isdt_policy.shared.errors import InputError, nearest

# format -> (module, how a path of it looks)
FORMATS: dict[str, tuple[str, str]] = {
    "zarr": ("isdt_policy.datasets.formats.native", ".zarr directory or .zarr.zip, ours or Diffusion Policy's"),
    "diffusion_policy": (
        "isdt_policy.datasets.formats.diffusion_policy",
        "a Zarr v2 store for Diffusion Policy's code",
    ),
    "robomimic": ("isdt_policy.datasets.formats.robomimic", ".hdf5 file with data/demo_N/obs"),
    "lerobot": ("isdt_policy.datasets.formats.lerobot", "directory with meta/info.json, version 3"),
    "d3il": ("isdt_policy.datasets.formats.d3il", ".npz file with des_c_pos, c_pos and episode_ends"),
    "minari": ("isdt_policy.datasets.formats.minari", "directory with data/metadata.json and data/main_data.hdf5"),
}


@dataclass(frozen=True)
class Recording:
    """Demonstrations on their way from one format to another.

    Attributes:
        format: name in FORMATS.
        path: where they are.
        n_episodes: how many.
        episodes: called for a fresh pass over the episodes, {key: (T, *shape)} each.
        task: task id, if known.
        attributes: attributes of our store (keys, action_space, env, masks, ...), as far as the format has them.
        info: one object per episode, as in meta/episode_info; may be empty.
        notes: what could not be carried over, for people.
    """

    format: str
    path: Path
    n_episodes: int
    episodes: Callable[[], Iterator[dict[str, NDArray[Any]]]]
    task: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    info: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def detect(path: str | Path) -> str:
    """Name the format of what is at `path`, by looking inside.

    Raises:
        InputError: nothing there, or no format that is known.
    """
    where = Path(path)
    if str(path).startswith("bundled:"):
        return "zarr"
    if not where.exists():
        raise InputError(f"no demonstrations at '{path}': the path does not exist.")
    if where.is_dir():
        if (where / "meta" / "info.json").exists():
            return "lerobot"
        if (where / "data" / "metadata.json").exists() or (where / "main_data.hdf5").exists():
            return "minari"
        if any((where / name).exists() for name in ("zarr.json", ".zgroup", "meta/episode_ends")):
            return "zarr"
        inside = sorted(child for child in where.iterdir() if child.suffix in (".zarr", ".hdf5", ".zip"))
        hint = f" Did you mean '{inside[0]}'?" if inside else ""
    else:
        head = where.open("rb").read(8)
        if head == b"\x89HDF\r\n\x1a\n":
            return "robomimic"
        if where.suffix == ".npz":
            return "d3il"
        if head[:4] == b"PK\x03\x04" or where.suffix == ".zip":
            return "zarr"
        hint = " The file is empty." if not head else " It may be cut short: download it again."
    known = "; ".join(f"{name}: {look}" for name, (_, look) in FORMATS.items())
    raise InputError(f"'{path}' is in no format that is known ({known}).{hint}")


def read(path: str | Path, format: str | None = None) -> Recording:
    """Open demonstrations of any format."""
    return module(format or detect(path)).read(path)  # type: ignore[no-any-return]


def module(format: str) -> Any:
    """The module that reads and writes a format."""
    if format not in FORMATS:
        raise InputError(f"format '{format}' is not known.{nearest(format, FORMATS)} Formats: {', '.join(FORMATS)}.")
    return importlib.import_module(FORMATS[format][0])
