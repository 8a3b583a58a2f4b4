"""LeRobot datasets, v3: parquet tables of many episodes each, images in them or as videos beside them.

    meta/info.json                        version, fps, features {name: {dtype, shape, names}}
    meta/tasks.parquet                    task text -> task_index
    meta/episodes/chunk-C/file-F.parquet  one row per episode: length, tasks, where its rows and frames are
    data/chunk-C/file-F.parquet           one row per step
    videos/NAME/chunk-C/file-F.mp4        frames of features of dtype `video`

How keys are called here and there:

    observation.<key>  <key>     action  action     next.reward  reward     next.done  done     next.success  success
    any other feature keeps its name; timestamp and the index columns follow from the rest and are not stored

Images are written as PNG inside the tables, so that they come back bit by bit; videos are read, and hold what their codec left.
What LeRobot has no place for (masks, units, provenance) goes to meta/isdt.json, where it does not look. v2.x keeps one file per
episode and other metadata; it is refused with the command that converts it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.formats import Recording, images
from isdt_policy.datasets.view import png
from isdt_policy.shared.errors import InputError

_NAMES = {"next.reward": "reward", "next.done": "done", "next.success": "success"}
_BACK = {ours: theirs for theirs, ours in _NAMES.items()}
_IMPLIED = {
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64",
}  # fmt: skip
_CHUNK = "chunk-{0:03d}/file-{1:03d}"
_FILE_BYTES = 100 * 2**20
_FILES_PER_CHUNK = 1000


LOOK = "folder with meta/info.json, version 3"
ENDINGS = ()


def recognises(path: Path) -> bool:
    return (path / "meta" / "info.json").exists()


def read(path: Path) -> Recording:
    """Open a LeRobot v3 dataset.

    Raises:
        InputError: another version, cut short, or tables that do not agree.
    """
    root = path
    info = _json(root / "meta" / "info.json")
    version = str(info.get("codebase_version", "unknown"))
    if not version.startswith("v3"):
        raise InputError(
            f"'{path}' is a LeRobot dataset of version {version}; v3 is read. Older ones keep one file per episode and other "
            "metadata: convert it with lerobot's own script (lerobot.datasets.v30.convert_dataset_v21_to_v30)."
        )
    try:
        features = {name: f for name, f in info["features"].items() if name not in _IMPLIED}
        rows = sorted(_rows(root / "meta" / "episodes"), key=lambda row: row["episode_index"])
        fps = float(info["fps"])
    except KeyError as error:
        raise InputError(f"'{path}': {error} is missing from its metadata; download the dataset again.") from None
    if not rows:
        raise InputError(f"'{path}' holds no episodes.")
    if "action" not in features:
        raise InputError(f"'{path}' has no feature 'action'; it has {', '.join(features)}.")
    own = _json(root / "meta" / "isdt.json") if (root / "meta" / "isdt.json").exists() else {}
    flat = set(own.get("flat", _BACK))
    about = {name: {k: v for k, v in f.items() if k != "info"} for name, f in features.items()}
    attributes = {
        "action_space": {"rate_hz": fps},
        **own.get("attributes", {}),
        "lerobot": {"robot_type": info.get("robot_type"), "fps": info["fps"], "features": about},
    }
    videos = [name for name, f in features.items() if f["dtype"] == "video"]
    notes = [f"{', '.join(videos)}: frames are what the video's codec left of them"] if videos else []

    def episodes() -> Iterator[dict[str, NDArray[Any]]]:
        streams = {name: _Video(root, name, info, fps) for name in videos}
        for row, columns in zip(rows, _tables(root, rows)):
            length = int(row["length"])
            episode = {_ours(n): _column(root, n, f, columns, flat) for n, f in features.items() if n not in streams}
            episode |= {_ours(name): stream.frames(row, length) for name, stream in streams.items()}
            yield episode

    entries = own.get("info") or [{"tasks": list(row["tasks"])} for row in rows]
    return Recording("lerobot", root, len(rows), episodes, own.get("task"), attributes, entries, notes)


def write(recording: Recording, path: Path, provenance: dict[str, Any]) -> None:
    """Write LeRobot v3. `path` must not exist."""
    writer = _Writer(recording, path)
    for number, episode in enumerate(recording.episodes()):
        writer.add(number, episode)
    writer.finish(provenance)


def _ours(name: str) -> str:
    return _NAMES.get(name) or name.removeprefix("observation.")


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text())
        return value
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read ({error}); download the dataset again.") from None


def _table(path: Path) -> Any:
    _, parquet = _pyarrow()
    try:
        return parquet.read_table(path)
    except Exception as error:  # pyarrow raises OSError, ArrowInvalid and others for a damaged file
        raise InputError(f"'{path}' cannot be read ({str(error).splitlines()[0]}); download it again.") from None


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for file in sorted(folder.glob("*/*.parquet")):
        table = _table(file)
        rows += table.select([n for n in table.column_names if not n.startswith("stats/")]).to_pylist()
    return rows


def _tables(root: Path, rows: list[dict[str, Any]]) -> Iterator[Any]:
    """The rows of every episode, one file in memory at a time."""
    import pyarrow.compute as compute

    path, table = None, None
    for row in rows:
        wanted = root / "data" / (_CHUNK.format(row["data/chunk_index"], row["data/file_index"]) + ".parquet")
        if wanted != path:
            path, table = wanted, _table(wanted)
        part = table.filter(compute.equal(table["episode_index"], row["episode_index"]))  # type: ignore[index, union-attr]
        if len(part) != row["length"]:
            raise InputError(
                f"'{wanted}' has {len(part)} rows of episode {row['episode_index']}, its metadata say {row['length']}; "
                "download the dataset again."
            )
        yield part.sort_by("frame_index")


def _column(root: Path, name: str, feature: Mapping[str, Any], table: Any, flat: set[str]) -> NDArray[Any]:
    shape = tuple(feature["shape"])
    if name not in table.column_names:
        raise InputError(f"'{root}': feature '{name}' of meta/info.json is not in its data files.")
    if feature["dtype"] == "image":
        pictures = [_image(root, cell) for cell in table[name].to_pylist()]
        return np.stack(pictures)[..., : shape[-1]]
    if feature["dtype"] == "string":
        raise InputError(f"'{root}': feature '{name}' is text; a store holds numbers. Choose others with keys=...")
    values = table[name].combine_chunks()
    while hasattr(values, "flatten") and hasattr(values.type, "value_type"):
        values = values.flatten()
    array = np.asarray(values.to_numpy(zero_copy_only=False), feature["dtype"])
    return array if _ours(name) in flat and shape == (1,) else array.reshape(len(table), *shape)


def _image(root: Path, cell: Mapping[str, Any]) -> NDArray[np.uint8]:
    if cell["bytes"] is not None:
        return images.decode(cell["bytes"])
    file = (root / cell["path"]).resolve()
    if not file.is_relative_to(root.resolve()):
        raise InputError(f"'{root}' names the image '{cell['path']}', which is outside of it; it is not opened.")
    return images.decode(file.read_bytes())


class _Video:
    """Frames of one feature in the order of the episodes, decoded once."""

    def __init__(self, root: Path, name: str, info: Mapping[str, Any], fps: float) -> None:
        self._root, self._name, self._fps = root, name, fps
        self._pattern = (
            info.get("video_path") or "videos/{video_key}/" + "chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        )
        self._path: Path | None = None
        self._decoded: Iterator[Any] = iter(())

    def frames(self, row: Mapping[str, Any], length: int) -> NDArray[np.uint8]:
        """(length, height, width, 3) of the episode in `row`."""
        where = {k: row[f"videos/{self._name}/{k}"] for k in ("chunk_index", "file_index")}
        path = self._root / self._pattern.format(video_key=self._name, **where)
        if not path.resolve().is_relative_to(self._root.resolve()):
            raise InputError(f"'{self._root}' names the video '{path}', which is outside of it; it is not opened.")
        if path != self._path:
            self._path, self._decoded = path, self._decode(path)
        start = row[f"videos/{self._name}/from_timestamp"] - 0.5 / self._fps
        found: list[NDArray[Any]] = []
        while len(found) < length:
            seconds, frame = next(self._decoded, (None, None))
            if seconds is None or frame is None:
                raise InputError(f"'{path}' ends before episode {row['episode_index']} does; download it again.")
            if seconds >= start:
                found.append(frame)
        return np.stack(found)

    @staticmethod
    def _decode(path: Path) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        av = images.pyav()
        try:
            with av.open(str(path)) as container:
                for frame in container.decode(video=0):
                    yield frame.time, frame.to_ndarray(format="rgb24")
        except (OSError, av.error.FFmpegError) as error:
            raise InputError(f"'{path}' cannot be decoded ({error}); download it again.") from error


class _Writer:
    """Files of a dataset under construction."""

    def __init__(self, recording: Recording, path: Path) -> None:
        self.recording, self.path = recording, path
        known = recording.attributes.get("lerobot", {})
        self.fps = known.get("fps") or recording.attributes.get("action_space", {}).get("rate_hz")
        if not self.fps:
            raise InputError(f"'{recording.path}' does not say its rate in Hz, which LeRobot needs; give task=NAME.")
        self.known: Mapping[str, Any] = known.get("features", {})
        self.robot_type = known.get("robot_type")
        self.names: dict[str, str] = {}
        self.features: dict[str, dict[str, Any]] = {}
        self.flat: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.tasks: dict[str, int] = {}
        self.sums: dict[str, list[NDArray[np.float64]]] = {}
        self.index = self.file = self.bytes = 0
        self.table_file: Any = None

    def add(self, number: int, episode: Mapping[str, NDArray[Any]]) -> None:
        """Append one episode."""
        pa, parquet = _pyarrow()
        if not self.features:
            self._describe(episode)
        steps = len(episode["action"])
        entry = self.recording.info[number] if self.recording.info else {}
        tasks = [str(t) for t in entry.get("tasks", [self.recording.task or "unknown"])]
        for task in tasks:
            self.tasks.setdefault(task, len(self.tasks))
        frame = np.arange(steps)
        columns = {
            "timestamp": pa.array((frame / self.fps).astype(np.float32)), "frame_index": pa.array(frame),
            "episode_index": pa.array(np.full(steps, number)), "index": pa.array(self.index + frame),
            "task_index": pa.array(np.full(steps, self.tasks[tasks[0]])),
        }  # fmt: skip
        for key, value in episode.items():
            self._count(self.names[key], value)
            columns[self.names[key]] = self._to_column(key, value)
        table = pa.table(columns)
        if self.table_file is not None and self.bytes + table.nbytes > _FILE_BYTES:
            self.table_file.close()
            self.table_file, self.bytes, self.file = None, 0, self.file + 1
        chunk = divmod(self.file, _FILES_PER_CHUNK)
        if self.table_file is None:
            target = self.path / "data" / (_CHUNK.format(*chunk) + ".parquet")
            target.parent.mkdir(parents=True, exist_ok=True)
            self.table_file = parquet.ParquetWriter(target, table.schema)
        self.table_file.write_table(table)
        self.bytes += table.nbytes
        self.rows.append({
            "episode_index": number, "tasks": tasks, "length": steps, "data/chunk_index": chunk[0],
            "data/file_index": chunk[1], "dataset_from_index": self.index, "dataset_to_index": self.index + steps,
            "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
        })  # fmt: skip
        self.index += steps

    def _describe(self, episode: Mapping[str, NDArray[Any]]) -> None:
        theirs = {_ours(name): name for name in self.known}
        for key, value in episode.items():
            name = theirs.get(key) or _BACK.get(key) or ("action" if key == "action" else f"observation.{key}")
            shape = list(value.shape[1:]) or [1]
            if value.ndim == 1:
                self.flat.append(key)
            names = ["height", "width", "channels"] if _is_image(value) else self.known.get(name, {}).get("names")
            dtype = "image" if _is_image(value) else str(value.dtype)
            self.names[key] = name
            self.features[name] = {"dtype": dtype, "shape": shape, "names": names}

    def _to_column(self, key: str, value: NDArray[Any]) -> Any:
        pa, _ = _pyarrow()
        if _is_image(value):
            cells = [{"bytes": png(picture), "path": None} for picture in value]
            return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        column = pa.array(value.reshape(-1))
        shape = self.features[self.names[key]]["shape"]
        if len(shape) == 1:
            return column if shape == [1] else pa.FixedSizeListArray.from_arrays(column, shape[0])
        for size in reversed(shape):
            column = pa.ListArray.from_arrays(np.arange(0, len(column) + 1, size, dtype=np.int32), column)
        return column

    def _count(self, name: str, value: NDArray[Any]) -> None:
        picture = _is_image(value)
        flat = (value.reshape(-1, value.shape[-1]) / 255 if picture else value.reshape(len(value), -1)).astype(
            np.float64
        )
        now = [flat.min(0), flat.max(0), flat.sum(0), (flat**2).sum(0), np.array([len(flat)], np.float64)]
        old = self.sums.get(name)
        joined = [np.minimum(old[0], now[0]), np.maximum(old[1], now[1])] if old else now[:2]
        self.sums[name] = joined + ([a + b for a, b in zip(old[2:], now[2:])] if old else now[2:])

    def finish(self, provenance: dict[str, Any]) -> None:
        """Close the tables and write the metadata."""
        pa, parquet = _pyarrow()
        self.table_file.close()
        meta = self.path / "meta"
        episodes = meta / "episodes" / (_CHUNK.format(0, 0) + ".parquet")
        episodes.parent.mkdir(parents=True)
        parquet.write_table(pa.Table.from_pylist(self.rows), episodes)
        parquet.write_table(self._task_table(), meta / "tasks.parquet")
        implied = {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in _IMPLIED.items()}
        info = {
            "codebase_version": "v3.0", "robot_type": self.robot_type, "total_episodes": len(self.rows),
            "total_frames": self.index, "total_tasks": len(self.tasks), "chunks_size": _FILES_PER_CHUNK,
            "data_files_size_in_mb": _FILE_BYTES // 2**20, "video_files_size_in_mb": 500, "fps": self.fps,
            "splits": {"train": f"0:{len(self.rows)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "video_path": None,
            "features": {**self.features, **implied},
        }  # fmt: skip
        own = {
            "task": self.recording.task, "flat": self.flat, "info": self.recording.info, "provenance": provenance,
            "attributes": {k: v for k, v in self.recording.attributes.items() if k != "lerobot"},
        }  # fmt: skip
        for name, content in (("info", info), ("stats", self._statistics()), ("isdt", own)):
            (meta / f"{name}.json").write_text(json.dumps(content, indent=1))

    def _task_table(self) -> Any:
        """Task texts as the index of a pandas table, as LeRobot looks them up."""
        pa, _ = _pyarrow()
        index = "__index_level_0__"
        described = [
            {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}
            for name, field, kind, numpy_kind in (
                ("task_index", "task_index", "int64", "int64"),
                (None, index, "unicode", "object"),
            )
        ]
        pandas = {"index_columns": [index], "column_indexes": [], "columns": described, "pandas_version": "2.0.0"}
        table = pa.table({"task_index": pa.array(list(self.tasks.values())), index: pa.array(list(self.tasks))})
        return table.replace_schema_metadata({"pandas": json.dumps(pandas)})

    def _statistics(self) -> dict[str, Any]:
        result = {}
        for name, (low, high, total, squares, count) in self.sums.items():
            mean = total / count
            std = np.sqrt(np.maximum(squares / count - mean**2, 0))
            shape = (-1, 1, 1) if self.features[name]["dtype"] == "image" else (-1,)
            values = {"min": low, "max": high, "mean": mean, "std": std}
            result[name] = {k: v.reshape(shape).tolist() for k, v in values.items()} | {"count": [self.index]}
        return result


def _is_image(value: NDArray[Any]) -> bool:
    return value.ndim == 4 and value.dtype == np.uint8 and value.shape[-1] in (1, 3)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError("LeRobot datasets need pyarrow. Install it with: pip install 'isdt-policy[formats]'") from None
    return pyarrow, pyarrow.parquet
