"""Writing LeRobot v3; what its files hold stands at the top of lerobot.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from isdt_policy.datasets.formats import Recording, images
from isdt_policy.datasets.formats import lerobot_stats as stats
from isdt_policy.datasets.formats.lerobot_names import BACK, CHUNK, IMPLIED, keys_of, pyarrow
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
            raise InputError(
                f"'{recording.path}' does not say its rate in Hz, which LeRobot needs: isdt data describe {recording.path} "
                "rate_hz=N, if it is a store; or task=NAME."
            )
        self.fps = int(self.fps) if self.fps == int(self.fps) else self.fps
        self.known: Json = known.get("features", {})
        self.robot_type = known.get("robot_type") or recording.attributes.get("robot_type")
        self.names: dict[str, str] = {}
        self.features: dict[str, JsonObject] = {}
        self.flat: list[str] = []
        self.shapes: dict[str, list[int]] = {}  # of keys with several axes; LeRobot's own tools take one
        self.rows: list[JsonObject] = []
        self.tasks: dict[str, int] = {}
        self.numbers: dict[str, list[stats.Numbers]] = {}
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
        implied = {
            "timestamp": (frame / self.fps).astype(np.float32), "frame_index": frame,
            "episode_index": np.full(steps, number), "index": self.index + frame,
            "task_index": np.full(steps, self.tasks[tasks[0]]),
        }  # fmt: skip
        values = {**{self.names[key]: value for key, value in episode.items()}, **implied}
        table = pa.table({name: self._to_column(name, value) for name, value in values.items()})
        table = table.replace_schema_metadata({"huggingface": stats.schema(self.features)})
        for name, value in values.items():
            found = stats.of_pictures(value) if _is_image(value) else stats.of_numbers(value.reshape(steps, -1))
            self.numbers.setdefault(name, []).append(found)
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
        theirs = {key: name for name, key in keys_of(self.known).items()}
        for key, value in episode.items():
            name = theirs.get(key) or BACK.get(key) or ("action" if key == "action" else f"observation.{key}")
            if value.ndim == 1:
                self.flat.append(key)
            elif value.ndim > 2 and not _is_image(value):
                self.shapes[key] = list(value.shape[1:])
            shape = list(value.shape[1:]) if _is_image(value) else [int(np.prod(value.shape[1:]))]
            names = ["height", "width", "channels"] if _is_image(value) else self._names(key, name)
            dtype = "image" if _is_image(value) else str(value.dtype)
            self.names[key] = name
            self.features[name] = {"dtype": dtype, "shape": shape, "names": names}
        self.features |= {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in IMPLIED.items()}

    def _names(self, key: str, feature: str) -> object:
        """Names of the entries: those that were said, else those of the dataset that the recording came from."""
        said = self.recording.attributes.get("keys", {}).get(key, {}).get("names")
        return said or self.known.get(feature, {}).get("names")

    def _to_column(self, name: str, value: Array) -> Any:
        pa, _ = pyarrow()
        if _is_image(value):
            cells = [{"bytes": images.encode(picture), "path": None} for picture in value]
            return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        column, size = pa.array(value.reshape(-1)), self.features[name]["shape"][0]
        return column if size == 1 else pa.FixedSizeListArray.from_arrays(column, size)

    def finish(self, provenance: JsonObject) -> None:
        """Close the tables and write the metadata."""
        pa, parquet = pyarrow()
        self.table_file.close()
        meta = self.path / "meta"
        episodes = meta / "episodes" / (CHUNK.format(0, 0) + ".parquet")
        episodes.parent.mkdir(parents=True)
        parquet.write_table(pa.Table.from_pylist(self._rows()), episodes)
        parquet.write_table(self._task_table(), meta / "tasks.parquet")
        info = {
            "codebase_version": "v3.0", "robot_type": self.robot_type, "total_episodes": len(self.rows),
            "total_frames": self.index, "total_tasks": len(self.tasks), "chunks_size": _FILES_PER_CHUNK,
            "data_files_size_in_mb": _FILE_BYTES // 2**20, "video_files_size_in_mb": 500, "fps": self.fps,
            "splits": {"train": f"0:{len(self.rows)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "video_path": None,
            "features": self.features,
        }  # fmt: skip
        own = {
            "task": self.recording.task, "flat": self.flat, "shapes": self.shapes, "info": self.recording.info,
            "provenance": provenance,
            "attributes": {k: v for k, v in self.recording.attributes.items() if k != "lerobot"},
        }  # fmt: skip
        for name, content in (("info", info), ("stats", self._all_episodes()), ("isdt", own)):
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

    def _rows(self) -> list[JsonObject]:
        """The rows of the episodes, each with its statistics."""
        rows = []
        for number, row in enumerate(self.rows):
            every = {name: stats.as_json(found[number], self._seen(name)) for name, found in self.numbers.items()}
            rows.append(row | {f"stats/{name}/{k}": v for name, found in every.items() for k, v in found.items()})
        return rows

    def _all_episodes(self) -> JsonObject:
        return {name: stats.as_json(stats.together(found), self._seen(name)) for name, found in self.numbers.items()}

    def _seen(self, name: str) -> bool:
        return bool(self.features[name]["dtype"] == "image")


def _is_image(value: Array) -> bool:
    return value.ndim == 4 and value.dtype == np.uint8 and value.shape[-1] in (1, 3)
