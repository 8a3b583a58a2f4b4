"""LeRobot datasets, v3: parquet tables of many episodes each, images in them or as videos beside them.

    meta/info.json                        version, fps, features {name: {dtype, shape, names}}
    meta/tasks.parquet                    task text -> task_index
    meta/episodes/chunk-C/file-F.parquet  one row per episode: length, tasks, where its rows and frames are
    data/chunk-C/file-F.parquet           one row per step
    videos/NAME/chunk-C/file-F.mp4        frames of features of dtype `video`

How keys are called here and there:

    observation.<key>  <key>     action  action     next.reward  reward     next.done  done     next.success  success
    observation.images.<camera>  <camera>, or images.<camera> where a state is called so
    any other feature keeps its name; timestamp and the index columns follow from the rest and are not stored

Images are written as PNG inside the tables, so that they come back bit by bit; videos are read, and hold what their codec left.
The frame of a step is the one whose time in the video is nearest; it must be within half a step, or the dataset is refused.
Keys of several axes are written flat, as LeRobot's statistics and policies want them, and come back in their shape.
What LeRobot has no place for (that shape, masks, units, provenance) goes to meta/isdt.json, where it does not look. v2.x keeps
one file per episode and other metadata; it is refused with the command that converts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.formats import Episode, Reading, Recording, images
from isdt_policy.datasets.formats.lerobot_names import BACK, CHUNK, IMPLIED, keys_of, pyarrow
from isdt_policy.datasets.formats.lerobot_video import Video
from isdt_policy.datasets.formats.lerobot_write import Writer
from isdt_policy.datasets.opening import inside
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import Array, Json, JsonObject, parse_json

LOOK = "folder with meta/info.json, version 3"
ENDINGS = ()
_NUMBERS = ("bool", "int", "uint", "float")


def recognises(path: Path) -> bool:
    return (path / "meta" / "info.json").exists()


def read(path: Path, how: Reading) -> Recording:
    """Open a LeRobot v3 dataset.

    Raises:
        InputError: another version, cut short, or tables that do not agree.
    """
    info = _json(path / "meta" / "info.json")
    version = str(info.get("codebase_version", "unknown"))
    if not version.startswith("v3"):
        raise InputError(
            f"'{path}' is a LeRobot dataset of version {version}; v3 is read. Older ones keep one file per episode and other "
            "metadata: convert it with LeRobot's own script, python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME."
        )
    features, fps = _features(path, info)
    rows = _rows(path)
    texts = [name for name, f in features.items() if not str(f["dtype"]).startswith((*_NUMBERS, "image", "video"))]
    notes = [f"not carried over: {', '.join(texts)} (no numbers)"] if texts else []
    keys = keys_of(name for name in features if name not in texts)
    features = {n: features[n] for n, key in keys.items() if how.wants(key, features[n]["dtype"] in ("image", "video"))}
    videos = [name for name, f in features.items() if f["dtype"] == "video"]
    if videos:
        notes.append(f"{', '.join(videos)}: frames are what the video's codec left of them")
    own = _json(path / "meta" / "isdt.json") if (path / "meta" / "isdt.json").exists() else {}
    flat, shapes = set(own.get("flat", BACK)), own.get("shapes", {})
    attributes = {
        "action_space": {"rate_hz": fps},
        **own.get("attributes", {}),
        "lerobot": {
            "robot_type": info.get("robot_type"), "fps": info["fps"],
            "features": {name: {k: v for k, v in f.items() if k != "info"} for name, f in features.items()},
        },
    }  # fmt: skip

    def load(numbers: Sequence[int]) -> Iterator[Episode]:
        streams = {name: Video(path, name, info, fps) for name in videos}
        chosen = [rows[number] for number in numbers]
        for row, columns in zip(chosen, _tables(path, chosen)):
            stored = {name: _column(path, name, f, columns) for name, f in features.items() if name not in streams}
            times = _times(columns, fps) if streams else np.zeros(0)
            seen = {name: stream.frames(row, times) for name, stream in streams.items()}
            yield {keys[name]: shaped(keys[name], value) for name, value in (stored | seen).items()}

    def shaped(key: str, value: Array) -> Array:
        size = () if key in flat and value.shape[1:] == (1,) else shapes.get(key, value.shape[1:])
        return value.reshape(len(value), *size)

    entries = own.get("info") or []
    if len(entries) != len(rows):  # none, or of before episodes were added or taken out
        entries = [{"tasks": list(row["tasks"])} for row in rows]
    return Recording("lerobot", path, range(len(rows)), load, own.get("task"), attributes, entries, notes)


def write(recording: Recording, path: Path, provenance: JsonObject) -> None:
    """Write LeRobot v3. `path` must not exist."""
    writer = Writer(recording, path)
    for number, episode in enumerate(recording.episodes()):
        writer.add(number, episode)
    writer.finish(provenance)


def _json(path: Path) -> JsonObject:
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read ({error}); download the dataset again.") from None
    if not isinstance(value, dict):
        raise InputError(f"'{path}' holds no JSON object; download the dataset again.")
    return value


def _features(path: Path, info: Json) -> tuple[dict[str, JsonObject], float]:
    """Features that are stored, and the rate."""
    try:
        features = {str(name): dict(f) for name, f in info["features"].items() if name not in IMPLIED}
        for feature in features.values():
            feature["dtype"], feature["shape"] = str(feature["dtype"]), [int(size) for size in feature["shape"]]
        fps = float(info["fps"])
        if not 0 < fps < 1e6:
            raise ValueError(f"fps={fps:g}")
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"'{path}': meta/info.json lacks or damages {error}, of features and fps; download the dataset again."
        ) from None
    return features, fps


def _table(path: Path) -> Any:
    _, parquet = pyarrow()
    try:
        return parquet.read_table(path)
    except Exception as error:  # pyarrow raises OSError, ArrowInvalid and others for a damaged file
        raise InputError(f"'{path}' cannot be read ({str(error).splitlines()[0]}); download it again.") from None


def _rows(root: Path) -> list[JsonObject]:
    rows: list[JsonObject] = []
    for file in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
        table = _table(file)
        rows += table.select([n for n in table.column_names if not n.startswith("stats/")]).to_pylist()
    if not rows:
        raise InputError(f"'{root}' holds no episodes.")
    absent = [
        n for n in ("episode_index", "length", "tasks", "data/chunk_index", "data/file_index") if n not in rows[0]
    ]
    if absent:
        raise InputError(f"'{root}': '{absent[0]}' is missing from its metadata; download the dataset again.")
    return sorted(rows, key=lambda row: int(row["episode_index"]))


def _tables(root: Path, rows: Sequence[Json]) -> Iterator[Any]:
    """The rows of every episode, one file in memory at a time."""
    import pyarrow.compute as compute

    path, table = None, None
    for row in rows:
        wanted = root / "data" / (CHUNK.format(row["data/chunk_index"], row["data/file_index"]) + ".parquet")
        if wanted != path:
            path, table = wanted, _table(wanted)
        part = table.filter(compute.equal(table["episode_index"], row["episode_index"]))  # type: ignore[index, union-attr]
        if len(part) != row["length"]:
            raise InputError(
                f"'{wanted}' has {len(part)} rows of episode {row['episode_index']}, its metadata say {row['length']}; "
                "download the dataset again."
            )
        yield part.sort_by("frame_index")


def _times(table: Any, fps: float) -> NDArray[np.float64]:
    """Seconds of every step since the episode began."""
    name, unit = ("timestamp", 1.0) if "timestamp" in table.column_names else ("frame_index", fps)
    return np.asarray(table[name].to_numpy(), np.float64) / unit


def _column(root: Path, name: str, feature: Json, table: Any) -> Array:
    shape = tuple(feature["shape"])
    if name not in table.column_names:
        raise InputError(f"'{root}': feature '{name}' of meta/info.json is not in its data files.")
    if feature["dtype"] == "image":
        pictures = [_image(root, cell) for cell in table[name].to_pylist()]
        return np.stack(pictures)[..., : shape[-1]]
    values = table[name].combine_chunks()
    while hasattr(values, "flatten") and hasattr(values.type, "value_type"):
        values = values.flatten()
    try:
        return np.asarray(values.to_numpy(zero_copy_only=False), feature["dtype"]).reshape(len(table), *shape)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"'{root}': feature '{name}' is not {feature['dtype']} of shape {list(shape)} in its data files, as meta/info.json "
            f"says ({error})."
        ) from error


def _image(root: Path, cell: Json) -> NDArray[np.uint8]:
    if cell["bytes"] is not None:
        return images.decode(cell["bytes"])
    file = root / cell["path"]
    if not inside(file, root):
        raise InputError(f"'{root}' names the image '{cell['path']}', which is outside of it; it is not opened.")
    return images.decode(file.read_bytes())
