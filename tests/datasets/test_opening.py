"""Stores of unknown origin: nothing is read as zeros that was lost on the way, no claimed size is believed."""

import json
import zipfile

import numpy as np
import pytest
import zarr

from isdt_policy.cli import main
from isdt_policy.datasets import opening
from isdt_policy.datasets.convert import convert
from isdt_policy.datasets.store import DemoStore, DemoWriter, pack_zip
from isdt_policy.shared.errors import InputError


def ours(path, episodes=40, steps=30):
    rng = np.random.default_rng(0)
    with DemoWriter(path) as writer:
        writer.extend([
            {"state": rng.random((steps, 3)), "action": rng.random((steps, 2)), "image": np.zeros((steps, 64, 64, 3), np.uint8)}
            for _ in range(episodes)
        ])  # fmt: skip
    return path


def foreign(path, zarr_format, separator="."):
    """A store as others write it: small chunks, empty ones left out."""
    rng = np.random.default_rng(0)
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    key = {"name": "v2" if zarr_format == 2 else "default", "separator": separator}
    group.create_array("meta/episode_ends", data=np.array([60, 100]))
    for name, value in {
        "state": rng.random((100, 3)),
        "action": rng.random((100, 2)),
        "reward": np.eye(100)[99],
    }.items():
        chunks = (16, *value.shape[1:])
        group.create_array(f"data/{name}", data=value, chunks=chunks, chunk_key_encoding=key)
    return path


def chunks(path, key):
    return sorted(f for f in (path / "data" / key).rglob("*") if f.is_file() and not f.name.startswith(("zarr", ".z")))


def packed(folder, target):
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder).as_posix())
    return target


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("loss", ["removed", "emptied"])
@pytest.mark.parametrize("layout", ["ours", "v2 .", "v2 /", "v3 /"])
def test_a_chunk_that_was_not_copied_is_named_with_its_steps_and_episodes(layout, loss, form, tmp_path):
    if layout == "ours":
        path, key, steps, where = ours(tmp_path / "a.zarr"), "image", "steps 680 to 1199", "episodes 22 to 39"
    else:
        path = foreign(tmp_path / "a.zarr", int(layout[1]), layout[-1])
        key, steps, where = "action", "steps 64 to 79", "episodes 1 to 1"
    lost = chunks(path, key)[-1 if layout == "ours" else 4]
    if loss == "removed":
        lost.unlink()
    else:
        lost.write_bytes(b"")
    if form == "zip":
        path = packed(path, tmp_path / "a.zarr.zip")
    with pytest.raises(InputError, match=f"no file holds {steps} of data/{key}.*{where}"):
        DemoStore.open(path)


def test_every_verb_refuses_an_incomplete_store(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chunks(ours(tmp_path / "a.zarr"), "action")[0].unlink()
    for line in (["inspect", "a.zarr"], ["convert", "a.zarr", "b.zarr"], ["view", "a.zarr"], ["doctor", "a.zarr"]):
        assert main(["data", *line]) == (1 if line[0] == "doctor" else 2)
        assert "is incomplete" in "".join(capsys.readouterr())


def test_chunks_that_other_writers_leave_out_are_zeros_and_noted(tmp_path):
    """zarr-python 3 writes no chunk that holds nothing but zeros."""
    path = foreign(tmp_path / "a.zarr", 3)
    zarr.open_group(path, mode="r+").create_array("data/still", data=np.zeros((100, 2)), chunks=(16, 2))
    store = DemoStore.open(path)
    assert [note.split(":")[0] for note in store.notes] == ["data/reward", "data/still"]
    assert store.read("reward").sum() == 1


def test_every_chunk_of_a_store_of_ours_is_there_even_where_all_is_zero(tmp_path):
    with DemoWriter(tmp_path / "a.zarr") as writer:
        for _ in range(3):
            writer.append({"action": np.zeros((9, 2)), "reward": np.zeros(9)}, info={"name": "x"})
    assert not DemoStore.open(tmp_path / "a.zarr").notes
    chunks(tmp_path / "a.zarr", "reward")[0].unlink()
    with pytest.raises(InputError, match="data/reward"):
        DemoStore.open(tmp_path / "a.zarr")


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


CLAIMS = {
    "a million million rows": (
        "data/action/zarr.json",
        lambda c: c.update(shape=[10**12, 2]),
        "is incomplete",
    ),
    "a row of a terabyte": ("data/action/zarr.json", lambda c: c.update(shape=[100, 10**12]), "incomplete"),
    "a chunk of a terabyte": (
        "data/action/zarr.json",
        lambda c: c["chunk_grid"]["configuration"].update(chunk_shape=[10**12, 2]),
        "a chunk of data/action claims",
    ),
    "a million million episodes": (
        "meta/episode_ends/zarr.json",
        lambda c: c.update(shape=[10**12]),
        "meta/episode_ends",
    ),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_no_claimed_size_is_allocated(case, tmp_path, monkeypatch):
    name, change, expected = CLAIMS[case]
    path = foreign(tmp_path / "a.zarr", 3)
    if case == "a million million rows":  # together with ends that say so too
        group = zarr.open_group(path, mode="r+")
        del group["meta/episode_ends"]
        group.create_array("meta/episode_ends", data=np.array([60, 10**12]))
        for key in ("state", "reward"):
            edit(path / "data" / key / "zarr.json", lambda c: c.update(shape=[10**12, *c["shape"][1:]]))
    edit(path / name, change)
    with pytest.raises(InputError, match=expected):
        DemoStore.open(path)


def test_a_zip_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "_ZIP_FREE", 10**6)
    path = packed(foreign(tmp_path / "a.zarr", 3), tmp_path / "a.zarr.zip")
    DemoStore.open(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/action/c/99/0", bytes(20_000_000))
    with pytest.raises(InputError, match="claims to unpack to 19 MB"):
        DemoStore.open(path)


def test_metadata_of_a_hundred_megabytes_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "_LARGEST_JSON", 10**5)
    path = foreign(tmp_path / "a.zarr", 3)
    edit(path / "zarr.json", lambda c: c["attributes"].update(x="y" * 200_000))
    with pytest.raises(InputError, match="which no metadata need"):
        DemoStore.open(path)


BROKEN = {
    "n_episodes is text": lambda a: a.update(n_episodes="many"),
    "n_episodes is negative": lambda a: a.update(n_episodes=-1),
    "no n_episodes": lambda a: a.pop("n_episodes"),
    "task is a number": lambda a: a.update(task=3),
    "keys are a list": lambda a: a.update(keys=["state"]),
    "a mask holds text": lambda a: a.update(masks={"train": ["demo_0"]}),
    "provenance is text": lambda a: a.update(provenance="me"),
    "the span of the information": lambda a: a.update(episode_info=[0, "x"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damaged_attributes_are_one_line(case, tmp_path):
    path = ours(tmp_path / "a.zarr", 2)
    edit(path / "zarr.json", lambda content: BROKEN[case](content["attributes"]))
    with pytest.raises(InputError, match="is damaged"):
        DemoStore.open(path)


def test_what_is_no_array_of_numbers_is_left_out_and_noted(tmp_path, capsys):
    path = foreign(tmp_path / "a.zarr", 2)
    group = zarr.open_group(path, mode="r+")
    group["data"].create_array("label", data=np.array(["push"] * 100))
    group["data"].create_group("nested").create_array("x", data=np.zeros(100))
    for line in (["inspect", str(path)], ["convert", str(path), str(tmp_path / "b.zarr")], ["doctor", str(path)]):
        assert main(["data", *line]) in (0, 1)  # the doctor may find more in random numbers
        said = capsys.readouterr().out
        assert "data/label is left out" in said
        assert "data/nested is left out" in said
    assert DemoStore.open(tmp_path / "b.zarr").keys == ("action", "reward", "state")


def test_no_control_character_of_a_file_reaches_the_terminal(tmp_path, capsys):
    path = foreign(tmp_path / "a.zarr", 3)
    edit(path / "zarr.json", lambda c: c["attributes"].update(task="\x1b]0;owned\x07", env={"\x1b[2J": 1}))
    zarr.open_group(path, mode="r+")["data"].create_group("\x1b[31mred")
    for line in (["inspect", str(path)], ["convert", str(path), str(tmp_path / "b.zarr")], ["doctor", str(path)]):
        main(["data", *line])
        said = "".join(capsys.readouterr())
        assert "x1b" in said
        assert "\x1b" not in said
        assert "\x07" not in said


def test_the_links_of_a_hub_cache_are_followed_and_no_others(tmp_path):
    source = foreign(tmp_path / "dp.zarr", 2)
    repository = tmp_path / "datasets--me--dp"
    snapshot = repository / "snapshots" / "0123abcd"
    (repository / "blobs").mkdir(parents=True)
    for number, file in enumerate(p for p in source.rglob("*") if p.is_file()):
        blob = repository / "blobs" / str(number)
        blob.write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    store = DemoStore.open(snapshot)
    np.testing.assert_array_equal(store.read("action"), DemoStore.open(source).read("action"))
    (tmp_path / "secret").write_text("x")
    (snapshot / "data" / "more").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="points out of the store"):
        DemoStore.open(snapshot)


def test_data_and_information_of_an_episode_appear_together(tmp_path, monkeypatch):
    """The last file that an append replaces decides on both; before it neither is seen."""
    from isdt_policy.shared import files

    path = tmp_path / "a.zarr"
    with DemoWriter(path) as writer:
        for number in range(3):
            writer.append({"action": np.full((4, 1), float(number))}, {"next": number + 1}, {"number": number})
        before = DemoStore.open(path)
        monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(InputError, match="the 3 before it are safe"):
            writer.append({"action": np.full((4, 1), 3.0)}, {"next": 4}, {"number": 3})
        monkeypatch.undo()
        after = DemoStore.open(path)
        assert (after.n_episodes, after.attrs["next"]) == (3, 3)
        assert after.episode_info() == before.episode_info() == [{"number": i} for i in range(3)]
        writer.append({"action": np.full((4, 1), 3.0)}, {"next": 4}, {"number": 3})
        writer.append({"action": np.full((4, 1), 4.0)})
        writer.append({"action": np.full((4, 1), 5.0)}, info={"number": 5})
    with DemoWriter(path) as writer:
        writer.append({"action": np.full((4, 1), 6.0)}, info={"number": 6})
    assert DemoStore.open(path).episode_info() == [{"number": i} if i != 4 else {} for i in range(7)]
    with DemoWriter(path) as writer:
        writer.set_episode_info([{"name": str(i)} for i in range(7)])
        writer.append({"action": np.full((4, 1), 7.0)}, info={"name": "7"})
    assert DemoStore.open(path).episode_info() == [{"name": str(i)} for i in range(8)]
    packed_ = DemoStore.open(pack_zip(path, tmp_path / "a.zarr.zip"))
    assert packed_.episode_info() == DemoStore.open(path).episode_info()
    convert(path, tmp_path / "b.zarr")
    assert DemoStore.open(tmp_path / "b.zarr").episode_info() == packed_.episode_info()


def test_information_written_by_version_0_1_is_kept_when_episodes_are_added(tmp_path):
    from isdt_policy.datasets.writer import put_episode_info

    path = tmp_path / "a.zarr"
    with DemoWriter(path) as writer:
        for number in range(2):
            writer.append({"action": np.full((4, 1), float(number))})
    group = zarr.open_group(path, mode="r+")
    put_episode_info(group["meta"], [{"number": 0}, {"number": 1}])
    del group.attrs["episode_info"]  # that version had none
    with DemoWriter(path) as writer:
        writer.append({"action": np.full((4, 1), 2.0)}, info={"number": 2})
    assert DemoStore.open(path).episode_info() == [{"number": i} for i in range(3)]


def test_an_append_is_on_the_disk_before_it_returns(tmp_path, monkeypatch):
    """Data first, then the attributes that make them count; every file that was written, and its folders."""
    from isdt_policy.shared import files

    synced = []
    path = tmp_path / "a.zarr"
    with DemoWriter(path) as writer:
        writer.append({"action": np.zeros((4, 1))}, info={"number": 0})
        monkeypatch.setattr(files, "sync", lambda p: synced.append(p.relative_to(path).as_posix()))
        start = max(p.stat().st_mtime_ns for p in path.rglob("*"))
        writer.append({"action": np.zeros((4, 1))}, info={"number": 1})
    written = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and p.stat().st_mtime_ns > start}
    assert len(written) == 7  # a shard, the ends, the information, the metadata of each, and the attributes
    assert written - {"zarr.json"} <= set(synced)
    assert synced[-2:] == ["zarr.json.part", "."]
    assert "zarr.json.part" not in synced[:-2]
