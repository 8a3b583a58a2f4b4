"""Writing LeRobot v3; what its files hold stands at the top of lerobot.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.formats import Recording, images
from isdt_policy.datasets.formats.lerobot_names import BACK, CHUNK, IMPLIED, ours, pyarrow
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import Array, Json, JsonObject

_FILE_BYTES = 100 * 2**20
_FILES_PER_CHUNK = 1000


class Writer:
    """Files of a dataset under construction."""

    def __init__(self, recording: Recording, path: Path) -> None:
        self.recording, self.path = recording, path
        known = recording.attributes.get("lerobot", {})
        self.fps = known.get("fps") or recording.attributes.get("action_space", {}).get("rate_hz")
        if not self.fps:
            raise InputError(f"'{recording.path}' does not say its rate in Hz, which LeRobot needs; give task=NAME.")
        self.known: Json = known.get("features", {})
        self.robot_type = known.get("robot_type")
        self.names: dict[str, str] = {}
        self.features: dict[str, JsonObject] = {}
        self.flat: list[str] = []
        self.rows: list[JsonObject] = []
        self.tasks: dict[str, int] = {}
        self.sums: dict[str, list[NDArray[np.float64]]] = {}
        self.index = self.file = self.bytes = 0
        self.table_file: Any = None

    def add(self, number: int, episode: Mapping[str, Array]) -> None:
        """Append one episode."""
        pa, parquet = pyarrow()
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
            target = self.path / "data" / (CHUNK.format(*chunk) + ".parquet")
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

    def _describe(self, episode: Mapping[str, Array]) -> None:
        theirs = {ours(name): name for name in self.known}
        for key, value in episode.items():
            name = theirs.get(key) or BACK.get(key) or ("action" if key == "action" else f"observation.{key}")
            shape = list(value.shape[1:]) or [1]
            if value.ndim == 1:
                self.flat.append(key)
            names = ["height", "width", "channels"] if _is_image(value) else self.known.get(name, {}).get("names")
            dtype = "image" if _is_image(value) else str(value.dtype)
            self.names[key] = name
            self.features[name] = {"dtype": dtype, "shape": shape, "names": names}

    def _to_column(self, key: str, value: Array) -> Any:
        pa, _ = pyarrow()
        if _is_image(value):
            cells = [{"bytes": images.encode(picture), "path": None} for picture in value]
            return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        column = pa.array(value.reshape(-1))
        shape = self.features[self.names[key]]["shape"]
        if len(shape) == 1:
            return column if shape == [1] else pa.FixedSizeListArray.from_arrays(column, shape[0])
        for size in reversed(shape):
            column = pa.ListArray.from_arrays(np.arange(0, len(column) + 1, size, dtype=np.int32), column)
        return column

    def _count(self, name: str, value: Array) -> None:
        picture = _is_image(value)
        flat = (value.reshape(-1, value.shape[-1]) / 255 if picture else value.reshape(len(value), -1)).astype(
            np.float64
        )
        now = [flat.min(0), flat.max(0), flat.sum(0), (flat**2).sum(0), np.array([len(flat)], np.float64)]
        old = self.sums.get(name)
        joined = [np.minimum(old[0], now[0]), np.maximum(old[1], now[1])] if old else now[:2]
        self.sums[name] = joined + ([a + b for a, b in zip(old[2:], now[2:])] if old else now[2:])

    def finish(self, provenance: JsonObject) -> None:
        """Close the tables and write the metadata."""
        pa, parquet = pyarrow()
        self.table_file.close()
        meta = self.path / "meta"
        episodes = meta / "episodes" / (CHUNK.format(0, 0) + ".parquet")
        episodes.parent.mkdir(parents=True)
        parquet.write_table(pa.Table.from_pylist(self.rows), episodes)
        parquet.write_table(self._task_table(), meta / "tasks.parquet")
        implied = {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in IMPLIED.items()}
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
        pa, _ = pyarrow()
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

    def _statistics(self) -> JsonObject:
        result = {}
        for name, (low, high, total, squares, count) in self.sums.items():
            mean = total / count
            std = np.sqrt(np.maximum(squares / count - mean**2, 0))
            shape = (-1, 1, 1) if self.features[name]["dtype"] == "image" else (-1,)
            values = {"min": low, "max": high, "mean": mean, "std": std}
            result[name] = {k: v.reshape(shape).tolist() for k, v in values.items()} | {"count": [self.index]}
        return result


def _is_image(value: Array) -> bool:
    return value.ndim == 4 and value.dtype == np.uint8 and value.shape[-1] in (1, 3)
