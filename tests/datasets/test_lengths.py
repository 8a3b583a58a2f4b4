"""Keys of different lengths, at every door through which recordings come in: one line that names them, and nothing is written."""

import json

import h5py
import numpy as np
import pytest
import zarr

from isdt_policy.cli import main
from isdt_policy.datasets.convert import convert
from isdt_policy.datasets.recorder import Recorder
from isdt_policy.datasets.store import DemoWriter
from isdt_policy.shared.errors import InputError


@pytest.fixture
def store(tmp_path):
    """Two episodes, of 8 and 9 steps."""
    rng = np.random.default_rng(0)
    with DemoWriter(tmp_path / "own.zarr", attributes={"action_space": {"rate_hz": 10}}) as writer:
        for steps in (8, 9):
            writer.append({
                "state": rng.normal(size=(steps, 3)).astype(np.float32), "action": rng.normal(size=(steps, 2)).astype(np.float32),
                "reward": np.zeros(steps, np.float32),
            })  # fmt: skip
    return tmp_path / "own.zarr"


def cut_hdf5(path, name):
    with h5py.File(path, "a") as file:
        values = file[name][:-2]
        del file[name]
        file[name] = values


def robomimic_observation(store, tmp_path):
    convert(str(store), str(tmp_path / "a.hdf5"))
    cut_hdf5(tmp_path / "a.hdf5", "data/demo_1/obs/state")
    return tmp_path / "a.hdf5", "/data/demo_1/obs/state has 7 rows, actions have 9"


def robomimic_actions(store, tmp_path):
    convert(str(store), str(tmp_path / "a.hdf5"))
    cut_hdf5(tmp_path / "a.hdf5", "data/demo_1/actions")
    return tmp_path / "a.hdf5", "/data/demo_1/obs/state has 9 rows, actions have 7"


def minari_observation(store, tmp_path):
    convert(str(store), str(tmp_path / "a"), to="minari")
    cut_hdf5(tmp_path / "a/data/main_data.hdf5", "episode_1/observations/state")
    return tmp_path / "a", "episode_1 has 8 observations of 'state' for 9 actions"


def minari_reward(store, tmp_path):
    convert(str(store), str(tmp_path / "a"), to="minari")
    cut_hdf5(tmp_path / "a/data/main_data.hdf5", "episode_1/rewards")
    return tmp_path / "a", "must be equally long, given {'action': 9, 'reward': 7"


def minari_in_one(store, tmp_path):
    """Observations of a Box, in which 'observation' is the one key."""
    with DemoWriter(tmp_path / "one.zarr") as writer:
        writer.append({"observation": np.zeros((8, 3), np.float32), "action": np.zeros((8, 2), np.float32)})
    convert(str(tmp_path / "one.zarr"), str(tmp_path / "a"), to="minari")
    cut_hdf5(tmp_path / "a/data/main_data.hdf5", "episode_0/actions")
    return tmp_path / "a", "'observation' for 6 actions"


def diffusion_policy(store, tmp_path):
    convert(str(store), str(tmp_path / "a.zarr"), to="diffusion_policy")
    zarr.open_group(tmp_path / "a.zarr", mode="r+")["data/state"].resize((15, 3))
    return tmp_path / "a.zarr", "data/state has 15 steps but"


def lerobot_table(store, tmp_path):
    import pyarrow.parquet as parquet

    convert(str(store), str(tmp_path / "a"), to="lerobot")
    path = tmp_path / "a/data/chunk-000/file-000.parquet"
    parquet.write_table(parquet.read_table(path).slice(0, 15), path)
    return tmp_path / "a", "episode 1"


def lerobot_feature(store, tmp_path):
    """Rows of a feature that have other sizes than info.json says."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    convert(str(store), str(tmp_path / "a"), to="lerobot")
    path = tmp_path / "a/data/chunk-000/file-000.parquet"
    table = parquet.read_table(path)
    rows = table["observation.state"].to_pylist()
    rows[3] = rows[3][:2]
    place = table.column_names.index("observation.state")
    parquet.write_table(table.set_column(place, "observation.state", pa.array(rows, pa.list_(pa.float32()))), path)
    return tmp_path / "a", "observation.state"


def d3il(store, tmp_path):
    steps = np.cumsum(np.full((12, 2), 0.01, np.float32), 0)
    np.savez(tmp_path / "a.npz", des_c_pos=steps, c_pos=steps[:10], episode_ends=np.array([12]))
    return tmp_path / "a.npz", "for 12 and 10 rows"


DOORS = (
    robomimic_observation, robomimic_actions, minari_observation, minari_reward, minari_in_one, diffusion_policy, lerobot_table,
    lerobot_feature, d3il,
)  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_a_file_whose_keys_differ_is_one_line_and_leaves_no_target(door, store, tmp_path, capsys):
    source, said = door(store, tmp_path)
    capsys.readouterr()
    assert main(["data", "convert", str(source), str(tmp_path / "out.zarr")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert str(source) in line
    assert not list(tmp_path.glob("*out.zarr*"))


@pytest.mark.parametrize("verb", ["train", "data doctor", "data inspect", "data convert"])
def test_a_store_whose_keys_differ_is_one_line_in_every_verb(verb, store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    zarr.open_group(store, mode="r+")["data/state"].resize((15, 3))
    words = {"train": [f"data.path={store}", "data.actions=absolute"], "data convert": [str(store), "out.zarr"]}
    assert main([*verb.split(), *words.get(verb, [str(store)])]) in (1, 2)
    told = capsys.readouterr()
    assert "15" in told.out + told.err
    assert "Traceback" not in told.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.zarr"]


def test_what_a_loop_records_is_refused_where_it_is_given(tmp_path):
    with DemoWriter(tmp_path / "a.zarr") as writer:
        with pytest.raises(InputError, match=r"must be equally long, given \{'state': 4, 'action': 3\}"):
            writer.append({"state": np.zeros((4, 2)), "action": np.zeros((3, 1))})
        recorder = Recorder(writer)
        recorder.step({"state": np.zeros(2)}, np.zeros(1))
        with pytest.raises(InputError, match="step 1 has keys action; before: state, action"):
            recorder.step({}, np.zeros(1))
        recorder.step({"state": np.zeros(3)}, np.zeros(1))
        with pytest.raises(InputError, match="'state' changes its shape within an episode"):
            recorder.end()
        assert json.loads((tmp_path / "a.zarr/zarr.json").read_text())["attributes"]["n_episodes"] == 0
