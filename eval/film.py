"""Films of episodes: run again with a camera, written as H.264."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs import make, task_spec
from isdt_policy.envs.protocol import Policy
from isdt_policy.eval.episode import Start
from isdt_policy.eval.result import EpisodeRecord, Result
from isdt_policy.eval.rollout import Scene, Workers, evaluate
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import require

PLAYBACK_SPEED = 2
VIDEO_SIZE = 320


@dataclass(frozen=True)
class Video:
    """One filmed episode.

    Attributes:
        record: its numbers.
        path: the MP4 file.
        same: whether filming reproduced the evaluated episode exactly.
    """

    record: EpisodeRecord
    path: Path
    same: bool


def film(policy: Policy, result: Result, count: int, init_states: Mapping[int, Start] | None, out: Path) -> list[Video]:
    """Run up to `count` failures and `count` successes again with a camera; failures first.

    They come from the first arm, or from the next that has any, and are spread over the outcomes: for failures from the
    lowest score to the nearest miss, for successes from the quickest to the slowest.

    Raises:
        InputError: PyAV is not installed, or the environment does not draw pictures.
    """
    protocol = result.protocol
    spec = task_spec(protocol.task)
    keys = tuple(dict.fromkeys([*policy.obs_keys, *({"state"} & set(spec.observations))]))
    size = {"render_size": VIDEO_SIZE} if spec.extra in ("pusht", "robosuite") else {}
    make_env = partial(make, protocol.task, keys, seed_protocol=protocol.seed_protocol, render_mode="rgb_array", **size)
    scene = Scene(make_env, init_states=init_states, keep=("frames",))
    videos = []
    for record in choose(result, count):
        filmed = evaluate(policy, protocol, [record.seed], [record.arm], workers=Workers(n_envs=1), scene=scene)
        (again,) = filmed.episodes
        if not again.ok:
            raise InputError(f"seed {record.seed} could not be filmed: {again.error}.")
        path = out / "videos" / f"{_outcome(record)}_seed{record.seed}_steps{record.arm}.mp4"
        write_mp4(path, filmed.kept[record.key].frames, round(spec.rate_hz) * PLAYBACK_SPEED)
        videos.append(Video(record, path, again.digest == record.digest))
    return videos


def choose(result: Result, count: int) -> list[EpisodeRecord]:
    """The episodes worth filming, failures first; where success is not reported, from the lowest score to the highest."""
    chosen: list[EpisodeRecord] = []
    for success, order in ((False, "max_reward"), (True, "length")):
        for arm in result.arms:
            found = [r for r in result.of(arm) if bool(r.success) is success and r.ok]
            if found:
                found.sort(key=lambda r: (getattr(r, order), r.seed))
                index = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int))
                chosen += [found[i] for i in index]
                break
    return chosen


def write_mp4(path: Path, frames: Sequence[NDArray[np.uint8]], fps: int) -> None:
    """Write frames (h, w, 3) as H.264, 4:2:0, index first: plays in every browser.

    Raises:
        InputError: PyAV is not installed.
    """
    av = require("av", "report", "Videos")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as container:
            height, width = (side - side % 2 for side in frames[0].shape[:2])  # 4:2:0 needs even sides
            stream = container.add_stream("libx264", rate=fps, options={"crf": "26", "preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.thread_count = 1
            # The last frame stays for a second, so that the end can be seen.
            for frame in [*frames, *[frames[-1]] * fps]:
                image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
                container.mux(stream.encode(image))
            container.mux(stream.encode())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _outcome(record: EpisodeRecord) -> str:
    return "episode" if record.success is None else "success" if record.success else "failure"
