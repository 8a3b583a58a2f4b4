"""Frames of LeRobot's videos, found by their time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.formats import images
from isdt_policy.datasets.opening import inside
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import Json

_PATTERN = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_SEEK_S = 5.0  # a jump ahead that is shorter is decoded


class Video:
    """The frames of one feature.

    Args:
        root: folder of the dataset.
        name: of the feature.
        info: meta/info.json.
        fps: steps per second of the tables; the video may have more frames.
    """

    def __init__(self, root: Path, name: str, info: Json, fps: float) -> None:
        self._root, self._name, self._fps = root, name, fps
        self._pattern = str(info.get("video_path") or _PATTERN)
        self._path: Path | None = None
        self._container: Any = None
        self._decoded: Iterator[Any] = iter(())
        self._ahead: Any = None  # decoded, and of a later step

    def frames(self, row: Json, times: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The frames of an episode, (T, height, width, 3).

        Args:
            row: of the episode's metadata.
            times: (T,) seconds since the episode began, ascending.

        Raises:
            InputError: the video is not there, damaged, or has no frame within half a step of one of the times.
        """
        self._open(self._file(row))
        times = times + float(row[f"videos/{self._name}/from_timestamp"])
        slack = 0.5 / self._fps
        found = self._between(times[0] - slack, times[-1] + slack)
        at = np.array([frame.time for frame in found])
        near = np.searchsorted(at, times).clip(1, max(len(at) - 1, 1)) if len(at) else np.zeros(len(times), np.int64)
        if len(at) > 1:
            near = near - (times - at[near - 1] <= at[near] - times)
        elif len(at):
            near = np.zeros(len(times), np.int64)
        off = np.abs(at[near] - times) if len(at) else np.full(len(times), np.inf)
        if (off >= slack).any():
            step = int(np.argmax(off >= slack))
            raise InputError(
                f"'{self._path}' has no frame within half a step of step {step} of episode {row['episode_index']} "
                f"({times[step]:.3f} s): one was dropped, or the video has another rate than {self._fps:g} Hz. Leave out the "
                f"episode (isdt data split SOURCE TARGET exclude={row['episode_index']}), or the video (keys=...)."
            )
        return np.stack([found[place].to_ndarray(format="rgb24") for place in near])

    def _file(self, row: Json) -> Path:
        try:
            place = {part: int(row[f"videos/{self._name}/{part}"]) for part in ("chunk_index", "file_index")}
            path = self._root / self._pattern.format(video_key=self._name, **place)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"'{self._root}' does not say where the frames of '{self._name}' are ({error}); download it again."
            ) from None
        if not path.exists():
            raise InputError(f"'{path}' is missing: download the videos too, or leave '{self._name}' out with keys=...")
        if not inside(path, self._root):
            raise InputError(f"'{self._root}' names the video '{path}', which is outside of it; it is not opened.")
        return path

    def _open(self, path: Path) -> None:
        if path == self._path:
            return
        av = images.pyav()
        try:
            self._container = av.open(str(path))
            stream = self._container.streams.video[0]
        except (OSError, IndexError, av.error.FFmpegError) as error:
            raise InputError(f"'{path}' cannot be decoded ({error}); download it again.") from error
        images.check_size(stream.codec_context.height, stream.codec_context.width)
        self._path, self._decoded, self._ahead = path, self._container.decode(stream), None

    def _between(self, start: float, stop: float) -> list[Any]:
        """Frames with times from `start` to `stop`; the first one after them is kept for the next call."""
        av = images.pyav()
        found: list[Any] = []
        try:
            ahead = self._ahead or next(self._decoded, None)
            if ahead is None or not start - _SEEK_S <= ahead.time <= start:
                stream = self._container.streams.video[0]
                self._container.seek(max(0, int(start / stream.time_base)), stream=stream)
                self._decoded = self._container.decode(stream)
                ahead = next(self._decoded, None)
            self._ahead = None
            while ahead is not None:
                if ahead.time is None:
                    raise InputError(f"'{self._path}' has frames without a time; encode it again.")
                if ahead.time > stop:
                    self._ahead = ahead
                    break
                if ahead.time >= start:
                    found.append(ahead)
                ahead = next(self._decoded, None)
        except (OSError, av.error.FFmpegError) as error:
            raise InputError(f"'{self._path}' cannot be decoded ({error}); download it again.") from error
        return found
