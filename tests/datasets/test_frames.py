"""Images in windows: the same from memory and from a mapped file, at bounded memory."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from isdt_policy.datasets.frames import ImageMemory, _free_cache, frames
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.datasets.windows import WindowDataset
from isdt_policy.shared.errors import InputError

pytestmark = pytest.mark.slow


def image_store(path, steps, side, dtype=np.uint8):
    """Frame t holds t everywhere (modulo 256)."""
    group = zarr.open_group(path, mode="w", zarr_format=3)
    array = group.create_array("data/image", shape=(steps, side, side, 3), chunks=(64, side, side, 3), dtype=dtype)
    for start in range(0, steps, 64):
        numbers = np.arange(start, min(start + 64, steps)) % 256
        array[start : start + 64] = np.broadcast_to(numbers[:, None, None, None], (len(numbers), side, side, 3))
    group.create_array("data/action", data=np.arange(steps, dtype=np.float32)[:, None])
    group.create_array("meta/episode_ends", data=np.array([steps // 3, steps]))
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mapped_images_are_those_in_memory(dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("ISDT_DATA", str(tmp_path / "cache"))
    store = DemoStore.open(image_store(tmp_path / "a.zarr", 150, 12, dtype))
    modes = ("ram", "mmap", "mmap", "disk")
    ram, mapped, again, disk = (WindowDataset(store, ["image"], images=ImageMemory(mode)) for mode in modes)
    order = np.random.default_rng(0).permutation(ram.n_windows)
    expected = ram.batch(order)
    assert expected["obs"]["image"].shape == (len(order), 2, 12, 12, 3)
    assert expected["obs"]["image"].dtype == dtype
    # The newest of two observations is that of the action it stands beside.
    np.testing.assert_array_equal(expected["obs"]["image"][:, 1, 0, 0, 0], expected["action"][:, 1, 0])
    for other in (mapped, again, disk):
        np.testing.assert_array_equal(other.batch(order)["obs"]["image"], expected["obs"]["image"])
    assert len(list((tmp_path / "cache" / "frames").iterdir())) == 1  # decoded once


def test_a_store_that_changed_is_decoded_again(tmp_path, monkeypatch):
    monkeypatch.setenv("ISDT_DATA", str(tmp_path / "cache"))
    frames(DemoStore.open(image_store(tmp_path / "a.zarr", 30, 12)), ["image"], ImageMemory("mmap"))
    store = DemoStore.open(image_store(tmp_path / "a.zarr", 60, 12))
    assert frames(store, ["image"], ImageMemory("mmap"))["image"].array.shape == (60, 432)
    with pytest.raises(InputError, match="Did you mean 'mmap'"):
        frames(store, ["image"], ImageMemory("map"))


def test_the_mode_follows_from_the_room_there_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ISDT_DATA", str(tmp_path / "cache"))
    store = DemoStore.open(image_store(tmp_path / "a.zarr", 30, 12))
    size = 30 * 12 * 12 * 3
    for limit, room, mode in ((size, 0, "ram"), (size - 1, 10 * size, "mmap"), (size - 1, size, "disk")):
        monkeypatch.setattr("isdt_policy.datasets.frames._free_cache", lambda room=room: room)
        frames(store, ["image"], ImageMemory(limit=limit))
        assert f"mode {mode}" in capsys.readouterr().err


def test_a_large_disk_need_not_be_a_tenth_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("ISDT_DATA", str(tmp_path / "cache"))
    for total, free, room in ((2000, 180, 176), (20, 5, 3)):  # GiB
        monkeypatch.setattr(
            "shutil.disk_usage",
            lambda _, total=total, free=free: SimpleNamespace(total=total * 2**30, free=free * 2**30),
        )
        assert _free_cache() == room * 2**30


def test_a_mapping_that_is_let_go_of_gives_the_same_frames(tmp_path, monkeypatch):
    monkeypatch.setenv("ISDT_DATA", str(tmp_path / "cache"))
    store = DemoStore.open(image_store(tmp_path / "a.zarr", 600, 96))
    small, large = (WindowDataset(store, ["image"], images=ImageMemory("mmap", n)) for n in (6 * 2**20, 2**40))
    order = np.random.default_rng(0).permutation(small.n_windows)
    for part in np.array_split(order, 9):
        np.testing.assert_array_equal(small.batch(part)["obs"]["image"], large.batch(part)["obs"]["image"])
    dropped = small._frames["image"]
    assert (dropped._fits, large._frames["image"]._fits) == (False, True)
    assert dropped._held < dropped._pages == 1


@pytest.mark.parametrize("noise", [False, True])
def test_a_store_four_times_memory_limit_is_read_with_resident_memory_under_it(noise, tmp_path, monkeypatch):
    """Mapped pages count: resident memory is what Linux says of the process, at its peak."""
    from isdt_policy.lab.bench.data import _Found, _memory

    monkeypatch.setenv("ISDT_DATA", str(tmp_path / "cache"))
    if noise:  # no codec makes it smaller: chunks are as large as what they hold
        path = tmp_path / "noise.zarr"
        rng = np.random.default_rng(0)
        with DemoWriter(path) as writer:
            for _ in range(48):
                images = rng.integers(0, 256, (100, 96, 96, 3), np.uint8)
                writer.append({"image": images, "action": np.zeros((100, 2), np.float32)})
    else:
        path = image_store(tmp_path / "big.zarr", 4800, 96)
    found = _Found({}, {}, {})
    _memory(found, "test", path, 64)
    (ratio,) = found.ratios.values()
    assert 0 < ratio[0] < 1
    assert len(list((tmp_path / "cache" / "frames").glob("*.npy"))) == 1  # it was read through the mapping


# The limit counts what the process allocates, not pages of a mapped file, which the system takes back when it needs them.
LIMITED = """
import re, resource, sys
import numpy as np
from isdt_policy.datasets.frames import ImageMemory
from isdt_policy.datasets.store import DemoStore
from isdt_policy.datasets.windows import WindowDataset
store = DemoStore.open(sys.argv[1])
store.read("image", 0, 640)  # starts the threads that decode
WindowDataset(store, ["action"]).batch(np.arange(8))
allocated = int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (allocated + int(sys.argv[3]),) * 2)
windows = WindowDataset(store, ["image"], images=ImageMemory(sys.argv[2]))
for part in np.array_split(np.random.default_rng(0).permutation(windows.n_windows), 200):
    batch = windows.batch(part)
    assert (batch["obs"]["image"][:, 1, 0, 0, 0] == batch["action"][:, 1, 0] % 256).all()
print("read", windows.n_windows)
"""


def test_a_store_four_times_the_allowed_memory_is_read_through_the_mapping(tmp_path, monkeypatch):
    monkeypatch.setenv("ISDT_DATA", str(tmp_path / "cache"))
    path = image_store(tmp_path / "big.zarr", 14_000, 96)
    size = 14_000 * 96 * 96 * 3

    def read(mode):
        command = [sys.executable, "-c", LIMITED, str(path), mode, str(size // 4)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    mapped = read("mmap")
    assert mapped.returncode == 0, mapped.stderr
    assert "read" in mapped.stdout
    assert "MemoryError" in read("ram").stderr
