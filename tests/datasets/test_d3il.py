"""D3IL's Avoiding, from one .npz file."""

import numpy as np
import pytest

from isdt_policy.datasets import formats
from isdt_policy.datasets.convert import convert
from isdt_policy.datasets.store import DemoStore
from isdt_policy.envs import avoiding
from isdt_policy.envs.experts.avoiding import curve
from isdt_policy.shared.errors import InputError


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    desired = [curve(mode, rng) for mode in (3, 17)]
    path = tmp_path / "avoiding.npz"
    ends = np.cumsum([len(d) for d in desired])
    np.savez(
        path, des_c_pos=np.vstack(desired), c_pos=np.vstack([avoiding.replay(d) for d in desired]), episode_ends=ends
    )
    return path


def test_commands_become_displacements_and_the_state_is_that_of_the_environment(file, tmp_path):
    convert(str(file), str(tmp_path / "store.zarr"))
    store = DemoStore.open(tmp_path / "store.zarr")
    assert store.task == "avoiding"
    assert [info["mode"] for info in store.episode_info()] == [3, 17]
    env = avoiding.AvoidingEnv()
    env.reset()
    episode = store.episode(0)
    for t, action in enumerate(episode["action"]):
        assert np.allclose(env.state(), episode["state"][t], atol=1e-5)
        if env.step(action)[2]:
            break
    assert t > 60


def test_all_recorded_ways_are_read(real_data):
    recording = formats.read(real_data / "d3il_avoiding" / "avoiding_human.npz")
    counts = np.bincount([info["mode"] for info in recording.info], minlength=24)
    assert recording.n_episodes == 96
    assert counts.min() >= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c_pos": None}, "no array 'c_pos'"),
        ({"episode_ends": np.array([5, 3])}, "episode_ends must increase"),
        ({"episode_ends": np.array([0.5])}, "episode_ends must increase"),
        ({"des_c_pos": np.full((4, 3), 1.0)}, "des_c_pos must be finite numbers"),
        ({"c_pos": np.array([["a", "b"]])}, "c_pos must be finite numbers"),
    ],
)
def test_what_is_wrong_is_said(file, tmp_path, change, message):
    arrays = {**np.load(file), **change}
    np.savez(tmp_path / "bad.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(InputError, match=message):
        formats.read(tmp_path / "bad.npz")


def test_an_object_array_is_refused_and_nothing_in_it_runs(tmp_path):
    np.savez(
        tmp_path / "bad.npz", des_c_pos=np.array([object()], object), c_pos=np.zeros((1, 2)), episode_ends=np.array([1])
    )
    with pytest.raises(InputError, match="not a complete"):
        formats.read(tmp_path / "bad.npz")


def test_half_a_file_is_refused(file, tmp_path):
    (tmp_path / "half.npz").write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match="not a complete"):
        formats.read(tmp_path / "half.npz")
