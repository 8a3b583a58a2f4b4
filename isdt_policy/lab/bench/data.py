"""Windows, images, memory and import, against the straightforward way of doing the same."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from isdt_policy.datasets.convert import convert
from isdt_policy.datasets.frames import ImageMemory
from isdt_policy.datasets.store import NOT_OBSERVED, DemoStore, DemoWriter, resolve_path
from isdt_policy.datasets.summary import is_low_dim
from isdt_policy.datasets.windows import WindowDataset, epoch_order, window_indices
from isdt_policy.lab.bench.measure import summary
from isdt_policy.lab.bench.report import Measured
from isdt_policy.lab.bench.settings import Data
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import Array, Json, JsonObject

HORIZON, N_OBS, N_ACTION = 16, 2, 8
PARTS = ("windows", "images", "memory", "import")
SIDE = 96
# {way: milliseconds per call, one number a turn}
Rounds = dict[str, list[float]]


@dataclass(frozen=True)
class _Found:
    """What the parts fill in.

    Attributes:
        facts: about what was measured.
        ms: {way: milliseconds per call, one number a turn}.
        ratios: {name: (median, lowest, highest turn)}.
    """

    facts: dict[str, object]
    ms: Rounds
    ratios: dict[str, tuple[float, float, float]]


class PerItemSampler:
    """One window at a time in plain NumPy: what is compared against, and the semantics both have."""

    def __init__(self, arrays: Json, ends: NDArray[np.int64]) -> None:
        self.arrays = arrays
        self.indices = window_indices(ends, HORIZON, N_OBS - 1, N_ACTION - 1)

    def item(self, index: int) -> dict[str, Array]:
        """One window, read by itself: what a loader that works item by item does."""
        begin, end, sample_begin, sample_end = self.indices[index].tolist()
        result = {}
        for key, array in self.arrays.items():
            length = HORIZON if key == "action" else N_OBS
            stop = min(sample_end, length)
            # A window may hold fewer real steps than observations are asked for; those that follow are then padding.
            sample = array[begin : begin + max(stop - sample_begin, 1)]
            window = np.empty((length, *array.shape[1:]), array.dtype)
            first = min(sample_begin, length)
            window[:first] = sample[0]
            window[first:stop] = sample[: stop - first]
            if stop < length:
                window[stop:] = array[end - 1 : end]
            result[key] = window
        return result

    def batch(self, indices: NDArray[np.int64]) -> dict[str, Array]:
        items = [self.item(int(index)) for index in indices]
        return {key: np.stack([item[key] for item in items]) for key in self.arrays}


def measure(what: Data) -> Measured:
    """Run the parts. The time of a turn is the mean of its calls.

    Raises:
        InputError: `what.data` cannot be opened, or does not suit a part.
    """
    store = DemoStore.open(what.data)
    foreign = "isdt_schema" not in store.attrs
    if "import" in (what.parts or ()) and not foreign:
        raise InputError(f"'{what.data}' is a store of ours; the import is measured on somebody else's.")
    found = _Found({"path": Path(what.data).name, "batch": what.batch}, {}, {})
    for part in what.parts or (PARTS if foreign else PARTS[:3]):
        if part == "windows":
            _windows(found, store, what)
        elif part == "import":
            _import(found, store, min(what.rounds, 3))
        else:
            for kind in ("smooth", "noise"):
                with tempfile.TemporaryDirectory() as folder, _decoded_in(folder):
                    source = _image_store(Path(folder) / "images.zarr", kind, what.frames)
                    if part == "images":
                        _images(found, kind, source, what)
                    else:
                        _memory(found, kind, source, min(what.batch, 64))
    timings = {name: summary([[ms] for ms in times]) for name, times in found.ms.items()}
    return Measured("data", timings, found.ratios, found.facts)


def _windows(found: _Found, store: DemoStore, what: Data) -> None:
    batch = what.batch
    chosen = what.keys or tuple(k for k in store.keys if k not in NOT_OBSERVED and is_low_dim(store, k))
    ours = WindowDataset(store, chosen, horizon=HORIZON, n_obs_steps=N_OBS, n_action_steps=N_ACTION)
    arrays = {k: store.read(k).reshape(store.n_steps, -1).astype(np.float32) for k in (*chosen, "action")}
    plain = PerItemSampler(arrays, store.episode_ends)
    example = ours.batch(np.arange(min(batch, ours.n_windows)))
    copied = [*example["obs"].values(), example["action"], example["is_pad"]]
    ways = {
        "windows: ours": _over(ours.batch, ours.n_windows, batch),
        "windows: per item": _over(plain.batch, ours.n_windows, batch),
        "windows: copy of as many bytes": lambda: [part.copy() for part in copied],
    }
    # Processor time of this thread: another program on the machine does not count, and all three use one thread.
    times = turns(ways, what.rounds, what.seconds, time.thread_time)
    found.facts["keys"] = ", ".join(chosen)
    found.facts["windows"] = ours.n_windows
    found.facts["bytes per batch of windows"] = sum(part.nbytes for part in copied)
    found.facts["windows per second"] = round(1e3 * len(example["action"]) / float(np.median(times["windows: ours"])))
    _keep(found, times, ("windows: per item", "windows: ours"), ("windows: ours", "windows: copy of as many bytes"))


def _images(found: _Found, kind: str, source: Path, what: Data) -> None:
    store = DemoStore.open(source)
    frames = store.read("image")
    limit = frames.nbytes // 4
    with contextlib.redirect_stderr(io.StringIO()):  # says which mode was chosen
        ours = {
            "ours, in memory": WindowDataset(store, ["image"], HORIZON, N_OBS, N_ACTION, images=ImageMemory("ram")),
            "ours, mapped": WindowDataset(
                store, ["image"], HORIZON, N_OBS, N_ACTION, images=ImageMemory("mmap", limit)
            ),
            "ours, left in the store": WindowDataset(
                store, ["image"], HORIZON, N_OBS, N_ACTION, images=ImageMemory("disk")
            ),
        }
    plain = {
        "per item, in memory": PerItemSampler({"image": frames, "action": store.read("action")}, store.episode_ends),
        "per item, from the store": PerItemSampler(
            {key: _InStore(store, key) for key in ("image", "action")}, store.episode_ends
        ),
    }
    samplers: dict[str, WindowDataset | PerItemSampler] = {**ours, **plain}
    n = ours["ours, in memory"].n_windows
    prefix = f"images ({kind}): "
    ways = {prefix + name: _over(way.batch, n, what.batch) for name, way in samplers.items()}
    found.facts["MB of generated frames"] = frames.nbytes // 10**6
    _keep(
        found,
        turns(ways, what.rounds, what.seconds),
        (prefix + "per item, in memory", prefix + "ours, in memory"),
        (prefix + "per item, in memory", prefix + "ours, mapped"),
        (prefix + "per item, from the store", prefix + "ours, mapped"),
        (prefix + "per item, from the store", prefix + "ours, left in the store"),
    )


class _InStore:
    """A key that is decoded whenever it is sliced."""

    def __init__(self, store: DemoStore, key: str) -> None:
        self.store, self.key = store, key
        self.shape, self.dtype = (store.n_steps, *store.shape(key)), store.dtype(key)

    def __getitem__(self, steps: slice) -> Array:
        return self.store.read(self.key, steps.start, steps.stop)


def _memory(found: _Found, kind: str, source: Path, batch: int) -> None:
    if not Path("/proc/self/status").exists():
        raise InputError("parts=memory reads /proc, which is found on Linux alone.")
    store = DemoStore.open(source)
    limit = store.n_steps * SIDE * SIDE * 3 // 4
    # A process of its own, whose memory nothing else has filled; spawned, so that it does not begin with a copy of ours.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        grown = process.submit(resident_growth, str(source), limit, batch).result()
    found.facts[f"memory ({kind})"] = {
        "decoded_mb": 4 * limit / 1e6, "limit_mb": limit / 1e6, "batch": batch, "resident_growth_mb": grown / 1e6,
    }  # fmt: skip
    name = f"memory ({kind}): growth of resident memory / memory_limit, at most 1"
    found.ratios[name] = (grown / limit, grown / limit, grown / limit)


def resident_growth(path: str, limit: int, batch: int) -> int:
    """Bytes by which this process's resident memory grows at most while it reads an epoch with memory_limit=limit.

    Counted is everything resident: what is allocated and the pages of mapped files. Not counted is what was there before:
    the interpreter, the libraries and the threads that decode.
    """
    store = DemoStore.open(path)
    for _ in range(3):
        store.read("image", 0, 1)
        WindowDataset(store, ["action"]).batch(np.arange(8))
    with contextlib.suppress(
        OSError
    ):  # where it is not allowed the peak so far counts too, which errs on the safe side
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    windows = WindowDataset(store, ["image"], images=ImageMemory("mmap", limit))  # whatever is free on this disk
    order = epoch_order(windows.n_windows, seed=0, epoch=0)
    for start in range(0, len(order), batch):
        windows.batch(order[start : start + batch])
    return _status("VmHWM") - before


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def _import(found: _Found, store: DemoStore, rounds: int) -> None:
    path = resolve_path(store.path)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "target.zarr"

        def ours() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                convert(str(path), str(target))

        # Processor time beside the clock's, of the same calls: it does not count what else runs on the machine.
        ways = {
            "ours": ours,
            "key by key": lambda: _key_by_key(store, target, as_source=False),
            "key by key, source's codec": lambda: _key_by_key(store, target, as_source=True),
        }
        wall: Rounds = {f"import: {name}": [] for name in ways}
        spent: Rounds = {f"import, processor: {name}": [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                shutil.rmtree(target, ignore_errors=True)
                clock, processor = time.perf_counter(), time.process_time()
                way()
                wall[f"import: {name}"].append(1e3 * (time.perf_counter() - clock))
                spent[f"import, processor: {name}"].append(1e3 * (time.process_time() - processor))
                if way is ours:
                    found.facts["import, bytes of the source and of the result"] = [_size(path), _size(target)]
        for times in (wall, spent):
            first, *others = times
            _keep(found, times, *((name, first) for name in others))


def _key_by_key(store: DemoStore, target: Path, as_source: bool) -> None:
    """What one writes without a tool: every key read whole as float32, and written."""
    group = zarr.open_group(target, mode="w", zarr_format=2 if as_source else 3)
    for key, array in store.arrays().items():
        values = np.asarray(array[:], np.float32)
        how: JsonObject = {"chunks": array.chunks, "compressors": array.compressors} if as_source else {}
        group.create_array(f"data/{key}", data=values, **how)
    group.create_array("meta/episode_ends", data=store.episode_ends)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _image_store(path: Path, kind: str, frames: int) -> Path:
    """96x96x3 bytes: moving waves, or noise, which no codec makes smaller. Episodes of 100 frames."""
    rng = np.random.default_rng(0)
    x, y = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = (9 * y + 5 * x)[None, :, :, None] * np.array([1, 2, 3])
    with DemoWriter(path) as writer:
        for start in range(0, frames, 100):
            steps = min(100, frames - start)
            if kind == "noise":
                image = rng.integers(0, 256, (steps, SIDE, SIDE, 3), np.uint8)
            else:
                time = np.arange(start, start + steps)[:, None, None, None] / 20
                image = (127 + 127 * np.sin(waves + time)).astype(np.uint8)
            writer.append({"image": image, "action": rng.random((steps, 2), np.float32)})
    return path


@contextlib.contextmanager
def _decoded_in(folder: str) -> Iterator[None]:
    """Decoded frames go to `folder`, and with it."""
    before = os.environ.get("ISDT_DATA")
    os.environ["ISDT_DATA"] = folder
    try:
        yield
    finally:
        os.environ.pop("ISDT_DATA")
        if before is not None:
            os.environ["ISDT_DATA"] = before


def _over(way: Callable[[NDArray[np.int64]], object], n: int, batch: int) -> Callable[[], object]:
    """A function that makes the next batch of a shuffled order whenever it is called."""
    order = epoch_order(n, seed=0, epoch=0)
    batches = [order[i : i + batch] for i in range(0, max(1, n - batch + 1), batch)]
    at = -1

    def call() -> object:
        nonlocal at
        at = (at + 1) % len(batches)
        return way(batches[at])

    return call


def turns(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Milliseconds per call of every way, one number a turn; a turn is as many calls as fill `seconds`, at least one."""
    for way in ways.values():
        way()
    times: Rounds = {name: [] for name in ways}
    for _ in range(rounds):  # turn by turn, so that a busy moment of the machine falls on all of them
        for name, way in ways.items():
            done, start = 0, clock()
            while (elapsed := clock() - start) < seconds or not done:
                way()
                done += 1
            times[name].append(1e3 * elapsed / done)
    return times


def _keep(found: _Found, times: Rounds, *pairs: tuple[str, str]) -> None:
    """Note the times, and how much longer the first of each pair took than the second, turn by turn."""
    found.ms.update(times)
    for slower, faster in pairs:
        ratios = np.array(times[slower]) / np.array(times[faster])
        shown = faster.split(": ", 1)[1]
        found.ratios[f"{slower} / {shown}"] = (float(np.median(ratios)), float(ratios.min()), float(ratios.max()))
