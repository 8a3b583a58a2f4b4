"""The store: what was appended is what is read, whatever happened in between; what is damaged is refused in one line."""

import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr

from isdt_policy.datasets.store import DemoStore, DemoWriter, pack_zip, resolve_path
from isdt_policy.shared.errors import InputError


def episode(number, steps=None):
    """Episode whose every entry tells its number."""
    steps = 1 + number % 4 if steps is None else steps
    return {
        "state": np.full((steps, 3), number, np.float32),
        "action": np.full((steps, 2), -number, np.float32),
        "image": np.full((steps, 4, 4, 3), number % 256, np.uint8),
    }


@pytest.fixture
def ours(tmp_path):
    with DemoWriter(tmp_path / "ours.zarr", task="pusht", provenance={"source": "test"}) as writer:
        for number in range(6):
            assert writer.append(episode(number)) == number
    return tmp_path / "ours.zarr"


def foreign(path, zarr_format=2, **changes):
    """A store as Diffusion Policy writes it: no attributes of ours."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    arrays = {
        "data/state": np.arange(20, dtype=np.float32).reshape(10, 2),
        "data/action": np.arange(10, dtype=np.float64).reshape(10, 1),
        "meta/episode_ends": np.array([1, 4, 10]),
    }
    for name, value in {**arrays, **changes}.items():
        if value is not None:
            group.create_array(name, data=value)
    return path


def zipped(folder, target, prefix=""):
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return target


def test_what_is_appended_is_what_is_read(ours):
    store = DemoStore.open(ours)
    assert (store.n_episodes, store.n_steps, store.task) == (6, 13, "pusht")
    assert store.keys == ("action", "image", "state")
    assert store.attrs["provenance"] == {"source": "test"}
    for number in range(6):
        for key, value in episode(number).items():
            read = store.episode(number)[key]
            assert read.dtype == value.dtype
            np.testing.assert_array_equal(read, value)
    with pytest.raises(InputError, match="episodes 0 to 5, asked for 6"):
        store.episode(6)
    with pytest.raises(InputError, match="Did you mean 'action'"):
        store.read("actions")


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("form", ["directory", "zip", "zip with a leading folder"])
def test_stores_of_others_open_as_they_are(zarr_format, form, tmp_path):
    path = foreign(tmp_path / "dp.zarr", zarr_format)
    if form != "directory":
        path = zipped(path, tmp_path / "dp.zarr.zip", "pusht/pusht.zarr/" if "folder" in form else "")
    store = DemoStore.open(path)
    assert store.episode_ends.tolist() == [1, 4, 10]
    assert store.episode_ends.dtype == np.int64
    np.testing.assert_array_equal(store.episode(0)["state"], [[0, 1]])  # an episode of one step
    np.testing.assert_array_equal(store.read("action", 1, 4)[:, 0], [1, 2, 3])


def test_our_own_store_packs_into_a_zip_that_is_the_same_every_time(ours, tmp_path):
    first, second = (pack_zip(ours, tmp_path / name) for name in ("a.zarr.zip", "b.zarr.zip"))
    assert first.read_bytes() == second.read_bytes()
    np.testing.assert_array_equal(DemoStore.open(first).read("image"), DemoStore.open(ours).read("image"))


# The writer is killed by itself at the n-th file it opens, renames or removes: every point between two file operations
# can be hit, and which one does not depend on how busy the machine is.
CRASHES = """
import os, random, signal, sys
import numpy as np
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.shared.errors import InputError

def episode(number):
    steps = 1 + number % 4
    return {"state": np.full((steps, 3), number, np.float32), "action": np.full((steps, 2), -number, np.float32)}

def write_until_killed(path, fatal, pipe):
    seen = 0
    def count(event, _):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            seen += 1
            if seen == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    writer = DemoWriter(path)
    while True:
        writer.append(episode(writer.n_episodes))
        os.write(pipe, b".")

path, rounds = sys.argv[1], int(sys.argv[2])
rng = random.Random(0)
known = 0
for _ in range(rounds):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write_until_killed(path, rng.randint(1, 220), write)
        finally:
            os._exit(1)
    os.close(write)
    acknowledged = 0
    while chunk := os.read(read, 4096):
        acknowledged += len(chunk)
    os.close(read)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "the writer failed by itself"
    rng.random()
    try:
        store = DemoStore.open(path)
    except InputError as error:
        assert known + acknowledged == 0, error
        continue
    # An append that returned is never lost; one that was under way is there completely or not at all.
    assert store.n_episodes in (known + acknowledged, known + acknowledged + 1), (store.n_episodes, known, acknowledged)
    known = store.n_episodes
    expected = np.repeat(np.arange(known), 1 + np.arange(known) % 4)
    assert (store.read("state") == expected[:, None]).all() and (store.read("action") == -expected[:, None]).all()
    assert len(store.read("state")) == len(expected) == store.episode_ends[-1]
print(known)
"""


@pytest.mark.slow
def test_a_writer_killed_at_fifty_points_loses_no_finished_episode(tmp_path):
    command = [sys.executable, "-c", CRASHES, str(tmp_path / "crashed.zarr"), "50"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 25  # it did get on between the crashes


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("left", [b"", b"\0" * 9, b'{"number": 0}\n', b'{"numb'])
def test_the_first_information_of_an_episode_that_was_never_finished_is_not_in_the_way(before, left, tmp_path):
    """A writer is killed after the bytes of the information, before the episode counts."""
    path = tmp_path / "a.zarr"
    with DemoWriter(path) as writer:
        for number in range(before):
            writer.append(episode(number))
    meta = zarr.open_group(path, mode="r+")["meta"]
    meta.create_array("episode_info", shape=(len(left),), chunks=(2**20,), dtype="uint8")[:] = np.frombuffer(
        left, np.uint8
    )
    if before:
        assert DemoStore.open(path).episode_info() == [{}] * before
    with DemoWriter(path) as writer:
        writer.append(episode(before), info={"number": before})
    assert DemoStore.open(path).episode_info() == [*[{}] * before, {"number": before}]


def test_one_writer_at_a_time(ours):
    with DemoWriter(ours) as writer:
        with pytest.raises(InputError, match="being written by another process"):
            DemoWriter(ours)
        DemoStore.open(ours)  # readers are welcome
        writer.append(episode(6))
    with DemoWriter(ours) as writer:
        assert writer.n_episodes == 7


def test_a_full_disk_leaves_the_store_valid(ours):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    rng = np.random.default_rng(0)
    big = {
        "state": rng.random((2**18, 3), np.float32),
        "action": rng.random((2**18, 2), np.float32),
        "image": np.zeros((2**18, 4, 4, 3), np.uint8),
    }
    with DemoWriter(ours) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(InputError, match="the 6 before it are safe"):
                writer.append(big)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert DemoStore.open(ours).n_episodes == 6
        writer.append(episode(6))
    store = DemoStore.open(ours)
    assert store.n_episodes == 7
    np.testing.assert_array_equal(store.episode(6)["state"], episode(6)["state"])


BAD_EPISODES = {
    "no keys": ({}, "at least one step"),
    "no steps": ({"action": np.zeros((0, 2))}, "at least one step"),
    "unequal lengths": ({"action": np.zeros((3, 2)), "state": np.zeros((4, 2))}, "equally long"),
    "text": ({"action": np.array(["a", "b"])}, "dtype"),
    "NaN in the action": ({"action": np.array([[0.0], [np.nan]])}, "not finite at step 1"),
    "another shape": (episode(0) | {"action": np.zeros((1, 3), np.float32)}, "must be alike"),
    "another dtype": (episode(0) | {"action": np.zeros((1, 2))}, "must be alike"),
    "a key less": ({"action": np.zeros((1, 2), np.float32)}, "must be alike"),
    "a path as key": ({"../action": np.zeros((1, 2))}, "cannot be a key"),
}


@pytest.mark.parametrize("case", BAD_EPISODES)
def test_a_bad_episode_is_refused_and_nothing_changes(case, ours):
    bad, expected = BAD_EPISODES[case]
    with DemoWriter(ours) as writer, pytest.raises(InputError, match=expected):
        writer.append(bad)
    assert DemoStore.open(ours).n_episodes == 6


def test_a_writer_refuses_what_it_did_not_write(tmp_path):
    path = foreign(tmp_path / "dp.zarr")
    with pytest.raises(InputError, match="not written by this package"):
        DemoWriter(path)
    with pytest.raises(InputError, match="pack it with pack_zip"):
        DemoWriter(tmp_path / "x.zarr.zip")


def test_attributes_given_with_an_episode_appear_with_it(ours):
    with DemoWriter(ours) as writer:
        writer.append(episode(6), attributes={"next_attempt": 11})
        assert writer.attrs["next_attempt"] == 11
    assert DemoStore.open(ours).attrs["next_attempt"] == 11


BAD_STORES = {
    "unequal lengths": ({"data/action": np.zeros((9, 1))}, "9 steps"),
    "ends that decrease": ({"meta/episode_ends": np.array([4, 1, 10])}, "entry 1 is 1 after 4"),
    "an episode without steps": ({"meta/episode_ends": np.array([4, 4, 10])}, "must increase"),
    "ends that overrun": ({"meta/episode_ends": np.array([4, 11])}, "says 11"),
    "ends that stop short": ({"meta/episode_ends": np.array([4, 9])}, "says 9"),
    "fractional ends": ({"meta/episode_ends": np.array([4.0, 10.0])}, "integers"),
    "no episodes": ({"meta/episode_ends": np.array([], np.int64)}, "no episodes"),
    "no ends": ({"meta/episode_ends": None, "meta/other": np.zeros(2)}, "no meta/episode_ends"),
    "no data": ({"data/state": None, "data/action": None}, "no group data/"),
}


@pytest.mark.parametrize("case", BAD_STORES)
def test_a_store_that_contradicts_itself_is_refused(case, tmp_path):
    changes, expected = BAD_STORES[case]
    with pytest.raises(InputError, match=expected):
        DemoStore.open(foreign(tmp_path / "bad.zarr", **changes))


def _truncate_zip(path, tmp_path):
    whole = zipped(path, tmp_path / "cut.zarr.zip").read_bytes()
    (tmp_path / "cut.zarr.zip").write_bytes(whole[: len(whole) // 2])
    return tmp_path / "cut.zarr.zip"


def _climbing_zip(path, tmp_path):
    with zipfile.ZipFile(zipped(path, tmp_path / "climb.zarr.zip"), "a") as archive:
        archive.writestr("data/../../outside", b"x")
    return tmp_path / "climb.zarr.zip"


def _link_out(path, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shutil.move(path / "data" / "state", tmp_path / "elsewhere" / "state")
    (path / "data" / "state").symlink_to(tmp_path / "elsewhere" / "state")
    return path


def _unknown_codec(path, tmp_path):
    meta = path / "data" / "state" / ".zarray"
    meta.write_text(
        json.dumps(json.loads(meta.read_text()) | {"compressor": {"id": "imagecodecs_jpeg2k", "level": 50}})
    )
    return path


def _no_metadata(path, tmp_path):
    (path / ".zgroup").unlink()
    return path


def _a_text(path, tmp_path):
    (tmp_path / "demos.hdf5").write_text("no HDF5")
    return tmp_path / "demos.hdf5"


DAMAGE = {
    "a zip cut short": (_truncate_zip, "not a complete .zip"),
    "a zip member outside": (_climbing_zip, "points outside"),
    "a link out of the store": (_link_out, "points out of the store"),
    "no group metadata": (_no_metadata, "not a Zarr store"),
    "another file": (_a_text, "is no file of demonstrations; a store is a folder"),
    "not there": (lambda path, tmp_path: tmp_path / "nowhere.zarr", "does not exist"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_store_is_refused_in_one_line(case, tmp_path):
    damage, expected = DAMAGE[case]
    path = damage(foreign(tmp_path / "dp.zarr"), tmp_path)
    with pytest.raises(InputError, match=expected) as caught:
        DemoStore.open(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_key_with_an_unknown_codec_is_refused_and_the_others_can_be_read(tmp_path):
    store = DemoStore.open(_unknown_codec(foreign(tmp_path / "dp.zarr"), tmp_path))
    assert store.keys == ("action",)
    assert "data/state is left out" in store.notes[0]
    np.testing.assert_array_equal(store.read("action")[:, 0], np.arange(10))
    with pytest.raises(InputError, match="pip install imagecodecs") as caught:
        store.read("state")
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_chunk_is_named_when_it_is_read(tmp_path):
    path = foreign(tmp_path / "dp.zarr")
    (path / "data" / "state" / "0.0").write_bytes(b"\x00" * 40)
    store = DemoStore.open(path)
    with pytest.raises(InputError, match="data/state cannot be read"):
        store.read("state")


def test_links_inside_the_store_are_followed(tmp_path):
    path = foreign(tmp_path / "dp.zarr")
    os.symlink("state", path / "data" / "twin")
    assert "state" in DemoStore.open(path).keys


def test_an_unknown_bundled_name_is_refused():
    with pytest.raises(InputError, match="no bundled demonstrations named 'nothing'"):
        resolve_path("bundled:nothing")
    assert resolve_path("a/b.zarr") == Path("a/b.zarr")


def test_a_key_without_numbers_in_its_steps_is_refused(tmp_path):
    with DemoWriter(tmp_path / "a.zarr") as writer, pytest.raises(InputError, match=r"'x' has no number in a step"):
        writer.append({"x": np.zeros((3, 0), np.float32), "action": np.zeros((3, 2), np.float32)})
