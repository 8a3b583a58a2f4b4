"""Formats: what comes out is what went in, bit for bit; what is damaged is refused, the target absent, the source as it was."""

import json
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from isdt_policy.cli import main
from isdt_policy.datasets.convert import convert, sha256
from isdt_policy.datasets.formats import Reading, detect, read
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.shared.errors import InputError

ENV_ARGS = {"env_name": "Lift", "type": 1, "env_version": "1.4.1", "env_kwargs": {"control_freq": 20}}


def robomimic_file(path, demos=(2, 10, 1), **attributes):
    """A file as robomimic writes it, demos created out of order."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(attributes)
        for number in demos:
            steps = 3 + number
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"], demo.attrs["model_file"] = steps, f"<mujoco {number}/>"
            demo["obs/eef_pos"] = rng.normal(size=(steps, 3))
            demo["obs/camera_image"] = rng.integers(0, 255, (steps, 8, 8, 3), np.uint8)
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
            demo["rewards"], demo["dones"] = np.zeros(steps), np.zeros(steps, np.int64)
            demo["states"] = rng.normal(size=(steps, 9))
        file["mask/train"] = np.array(["demo_10", "demo_2"], "S")
        file["mask/valid"] = np.array(["demo_1", "demo_77"], "S")
    return path


def same_episodes(first, second):
    a, b = read(first), read(second)
    assert a.n_episodes == b.n_episodes
    for one, other in zip(a.episodes(), b.episodes(), strict=True):
        assert set(one) == set(other)
        for key, value in one.items():
            assert value.dtype == other[key].dtype
            np.testing.assert_array_equal(value, other[key])


def test_robomimic_round_trip_is_bit_equal_and_keeps_names_masks_and_environment(tmp_path):
    source = robomimic_file(tmp_path / "a.hdf5", env_args=json.dumps(ENV_ARGS), date="today")
    before = sha256(source)
    convert(str(source), str(tmp_path / "b.zarr"))
    convert(str(tmp_path / "b.zarr"), str(tmp_path / "c.hdf5"))
    assert sha256(source) == before

    store = DemoStore.open(tmp_path / "b.zarr")
    assert [info["name"] for info in store.episode_info()] == ["demo_1", "demo_2", "demo_10"]  # 2 before 10
    assert {name: mask.tolist() for name, mask in store.masks.items()} == {"train": [1, 2], "valid": [0]}
    assert store.attrs["env"]["id"] == "Lift"
    assert store.attrs["action_space"]["rate_hz"] == 20

    with h5py.File(source) as a, h5py.File(tmp_path / "c.hdf5") as c:
        assert json.loads(c["data"].attrs["env_args"]) == ENV_ARGS
        assert c["data"].attrs["date"] == "today"
        assert c["data"].attrs["total"] == store.n_steps
        assert sorted(c["mask/train"][()]) == [b"demo_10", b"demo_2"]
        for name, demo in a["data"].items():
            again = c["data"][name]
            assert dict(again.attrs) == dict(demo.attrs)
            for key in ("actions", "rewards", "dones", "states", "obs/eef_pos", "obs/camera_image"):
                assert again[key].dtype == demo[key].dtype
                np.testing.assert_array_equal(again[key][()], demo[key][()])
            np.testing.assert_array_equal(again["next_obs/eef_pos"][:-1], demo["obs/eef_pos"][1:])


@pytest.mark.slow
def test_the_human_recordings_of_pusht_round_trip(real_data, tmp_path):
    """Without their images, for which see test_float_images_become_bytes_only_where_nothing_is_lost."""
    source = real_data / "pusht_human" / "pusht_cchi_v7_replay.zarr"
    keys = ("state",)
    convert(str(source), str(tmp_path / "a.zarr"), task="pusht", how=Reading(keys=keys))
    original = DemoStore.open(source)
    for target, format in all_targets(tmp_path / "there"):
        if target.endswith(".zip"):
            continue
        convert(str(tmp_path / "a.zarr"), target, to=format)
        convert(target, str(tmp_path / "back.zarr"), overwrite=True)
        back = DemoStore.open(tmp_path / "back.zarr")
        np.testing.assert_array_equal(back.episode_ends, original.episode_ends)
        for key in (*keys, "action"):
            assert back.dtype(key) == original.dtype(key)
            np.testing.assert_array_equal(back.read(key), original.read(key))


@pytest.mark.parametrize("name", ["lift_ph_low_dim", "lift_ph_test", "lift_mh_image", "can_mg_low_dim"])
def test_real_robomimic_files_round_trip(name, real_data, tmp_path):
    source = real_data / "robomimic_samples" / f"{name}.hdf5"
    convert(str(source), str(tmp_path / "b.zarr"))
    convert(str(tmp_path / "b.zarr"), str(tmp_path / "c.hdf5"))
    same_episodes(source, tmp_path / "c.hdf5")
    with h5py.File(source) as a, h5py.File(tmp_path / "c.hdf5") as c:
        for demo in a["data"]:
            for key in a["data"][demo]["obs"]:
                np.testing.assert_array_equal(a["data"][demo]["obs"][key][()], c["data"][demo]["obs"][key][()])
            np.testing.assert_array_equal(a["data"][demo]["actions"][()], c["data"][demo]["actions"][()])


def test_raw_states_of_an_unknown_environment_are_refused(tmp_path):
    source = robomimic_file(tmp_path / "a.hdf5")
    with h5py.File(source, "r+") as file:
        for demo in file["data"].values():
            del demo["obs"]
    with pytest.raises(InputError, match="cannot be replayed"):
        convert(str(source), str(tmp_path / "b.zarr"))
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.parametrize("target", ["d.zarr", "d.zarr.zip"])
def test_diffusion_policy_round_trip(target, tmp_path):
    source = robomimic_file(tmp_path / "a.hdf5")
    convert(str(source), str(tmp_path / target), to="diffusion_policy")
    store = DemoStore.open(tmp_path / target)
    assert "isdt_schema" not in store.attrs
    same_episodes(source, tmp_path / target)
    convert(str(tmp_path / target), str(tmp_path / "e.zarr"))
    same_episodes(source, tmp_path / "e.zarr")
    if target == "d.zarr":
        assert json.loads((tmp_path / target / "data" / "action" / ".zarray").read_text())["zarr_format"] == 2


def test_float_images_become_bytes_only_where_nothing_is_lost(tmp_path):
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 256, (10, 8, 8, 3)).astype(np.float32)
    for name, image, expected in (
        ("whole", whole, np.uint8),
        ("broken", whole + np.float32(0.25) * (whole > 250), np.float32),
    ):
        group = zarr.open_group(tmp_path / f"{name}.zarr", mode="w", zarr_format=2)
        group.create_array("data/img", data=image)
        group.create_array("data/action", data=np.zeros((10, 2), np.float32))
        group.create_array("meta/episode_ends", data=np.array([4, 10]))
        convert(str(tmp_path / f"{name}.zarr"), str(tmp_path / f"{name}_ours.zarr"))
        read_back = DemoStore.open(tmp_path / f"{name}_ours.zarr").read("img")
        assert read_back.dtype == expected
        np.testing.assert_array_equal(read_back, image)


def test_filled_in_rewards_do_not_become_data(tiny_store, tmp_path):
    convert(str(tiny_store), str(tmp_path / "a.hdf5"))
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file["data/demo_0/dones"][-1] == 1
    same_episodes(tiny_store, tmp_path / "a.hdf5")
    assert read(tmp_path / "a.hdf5").task == "pusht"


def truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])


def remove(name):
    def change(path):
        with h5py.File(path, "a") as file:
            del file[name]

    return change


def replaced(name, value):
    def change(path):
        with h5py.File(path, "a") as file:
            del file[name]
            file[name] = value

    return change


BAD_FILES = {
    "cut short": (truncated, "not a complete HDF5 file"),
    "empty": (lambda path: path.write_bytes(b""), "The file is empty"),
    "of another kind": (lambda path: path.write_text("hello"), "no format that is known"),
    "without demos": (remove("data"), "no data/demo_N"),
    "without actions": (remove("data/demo_2/actions"), "data/demo_2 has no actions"),
    "with a key missing in one demo": (remove("data/demo_2/obs/eef_pos"), "eef_pos"),
    "with unequal lengths": (replaced("data/demo_2/obs/eef_pos", np.zeros((2, 3))), "eef_pos has 2 rows"),
    "with text": (replaced("data/demo_2/obs/eef_pos", np.array([b"x"] * 5)), "dtype"),
    "with another dtype in one demo": (replaced("data/demo_2/obs/eef_pos", np.zeros((5, 3), np.float32)), "alike"),
    "with another action size": (replaced("data/demo_2/actions", np.zeros((5, 6))), "alike"),
    "with NaN actions": (replaced("data/demo_2/actions", np.full((5, 7), np.nan)), "not finite"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_one_line_and_leaves_no_target(case, tmp_path, capsys):
    damage, expected = BAD_FILES[case]
    source = robomimic_file(tmp_path / "a.hdf5")
    damage(source)
    before = sha256(source)
    assert main(["data", "convert", str(source), str(tmp_path / "b.zarr")]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("isdt")]
    assert len(error) == 1
    assert expected in error[0]
    assert [p.name for p in tmp_path.iterdir()] == ["a.hdf5"]
    assert sha256(source) == before


def all_targets(tmp_path):
    """One of each format and form that is written."""
    names = ("a.zarr", "a.zarr.zip", "a.hdf5", "dp.zarr", "dp.zarr.zip", "lerobot", "minari")
    formats = ("zarr", "zarr", "robomimic", "diffusion_policy", "diffusion_policy", "lerobot", "minari")
    return [(str(tmp_path / name), format) for name, format in zip(names, formats)]


def test_episodes_of_one_step_survive_every_format(tmp_path):
    rng = np.random.default_rng(0)
    with DemoWriter(tmp_path / "short.zarr", task="pusht", attributes={"action_space": {"rate_hz": 10}}) as writer:
        for steps in (1, 1, 4, 1):
            writer.append({key: rng.random((steps, d), np.float32) for key, d in (("state", 5), ("action", 2))})
    for target, format in all_targets(tmp_path):
        convert(str(tmp_path / "short.zarr"), target, to=format)
        same_episodes(tmp_path / "short.zarr", target)


def test_a_full_disk_leaves_no_target_or_the_old_one(tmp_path):
    rng = np.random.default_rng(0)
    with DemoWriter(tmp_path / "big.zarr", task="pusht", attributes={"action_space": {"rate_hz": 10}}) as writer:
        for _ in range(3):
            writer.append({"state": rng.random((10_000, 5)), "action": rng.random((10_000, 2))})
    before = sha256(tmp_path / "big.zarr")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for target, format in all_targets(tmp_path):
        for there_already in (False, True):
            if there_already:
                convert(str(tmp_path / "big.zarr"), target, to=format, how=Reading(keys=("action",)))
                old = sha256(Path(target))
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            try:
                with pytest.raises(InputError, match=r"cannot be written|could not be written") as caught:
                    convert(str(tmp_path / "big.zarr"), target, to=format, overwrite=there_already)
                assert len(str(caught.value).splitlines()) == 1
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert Path(target).exists() == there_already
            assert not there_already or sha256(Path(target)) == old
    assert sha256(tmp_path / "big.zarr") == before
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("span", [1, 4, 7, 1000])
def test_episodes_are_cut_from_spans_where_they_began(span, tmp_path, monkeypatch):
    """Episodes within a span, across two, across many, and ending with one."""
    lengths = [3, 1, 9, 8, 7, 1, 25, 2]
    steps = np.arange(sum(lengths), dtype=np.float32)[:, None]
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("data/action", data=steps)
    group.create_array("data/state", data=-steps)
    group.create_array("meta/episode_ends", data=np.cumsum(lengths))
    monkeypatch.setattr(DemoStore, "span", lambda self, n_bytes: span)
    episodes = list(read(tmp_path / "a.zarr").episodes())
    assert [len(episode["action"]) for episode in episodes] == lengths
    np.testing.assert_array_equal(np.concatenate([episode["action"] for episode in episodes]), steps)
    np.testing.assert_array_equal(np.concatenate([episode["state"] for episode in episodes]), -steps)


def test_an_existing_target_stays_unless_told(tiny_store, tmp_path):
    target = tmp_path / "b.zarr"
    convert(str(tiny_store), str(target), how=Reading(keys=("state",)))
    with pytest.raises(InputError, match="overwrite=true"):
        convert(str(tiny_store), str(target))
    with pytest.raises(InputError, match="no key 'keypoint'"):
        convert(str(tiny_store), str(target), how=Reading(keys=("keypoint",)), overwrite=True)
    same_episodes(tiny_store, target)  # the failed attempt did not touch it
    convert(str(tiny_store), str(target), overwrite=True)
    provenance = DemoStore.open(target).attrs["provenance"]
    assert provenance["sha256"] == sha256(tiny_store)
    assert provenance["source_format"] == "zarr"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["convert", "{store}", "x.parquet"], ".hdf5"),
        (["convert", "{store}", "x.zarr", "to=robomimc"], "Did you mean 'robomimic'?"),
        (["convert", "{store}"], "target= missing"),
        (["convert", "/nowhere.hdf5", "x.zarr"], "/nowhere.hdf5"),
        (["split", "{store}", "x.zarr"], "exactly one of"),
        (["split", "{store}", "x.zarr", "episodes=0-12"], "episodes 0 to 11"),
        (["split", "{store}", "x.zarr", "episodes=a"], "'a' is not an episode number"),
        (["split", "{store}", "x.zarr", "mask=train"], "no mask 'train'"),
        (["split", "{store}", "x.zarr", "val_ratio=lots"], "val_ratio must be a number, got 'lots'"),
        (["merge", "{store}", "out=x.zarr"], "at least two"),
        (["inspect", "{store}", "format=jsn"], "table, json"),
        (["view", "{store}", "frames=-1"], "at least 0"),
        (["doctor", "{store}", "images=maybe"], "images must be true or false"),
        (["doctor", "{store}", "task=pushed"], "Did you mean 'pusht'?"),
        (["konvert"], "Did you mean 'convert'?"),
    ],
)
def test_bad_arguments_are_one_line(arguments, expected, tiny_store, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *(a.format(store=tiny_store) for a in arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert expected in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["inspect", "doctor", "view"])
@pytest.mark.parametrize("format", ["robomimic", "lerobot", "minari"])
def test_where_a_store_is_needed_another_format_is_named_with_the_command_that_converts_it(
    verb, format, tiny_store, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    name = "there.hdf5" if format == "robomimic" else "there"
    convert(tiny_store, name, to=format, task="pusht")
    capsys.readouterr()
    assert main(["data", verb, name]) in (1, 2)
    said = "".join(capsys.readouterr())
    assert f"in the format '{format}'" in said
    assert f"isdt data convert {name} there.zarr" in said
    assert "complete" not in said
    assert "cut short" not in said


def test_detection_looks_inside(tiny_store, tmp_path):
    assert detect(tiny_store) == "zarr"
    assert detect(robomimic_file(tmp_path / "named_wrongly.zarr")) == "robomimic"
    (tmp_path / "folder").mkdir()
    with DemoWriter(tmp_path / "folder" / "inside.zarr"):
        pass
    with pytest.raises(InputError, match=r"Did you mean .*inside\.zarr"):
        detect(tmp_path / "folder")
