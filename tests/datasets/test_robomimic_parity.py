"""robomimic's own reader and our windows agree on a file that we wrote."""

import numpy as np
import pytest

from isdt_policy.datasets.convert import convert
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.datasets.windows import WindowDataset

HORIZON = 8


def generated(tmp_path):
    rng = np.random.default_rng(0)
    with DemoWriter(tmp_path / "generated.zarr") as writer:
        for steps in [3, *range(8, 18)]:  # more than ten, so that demo_10 has to come after demo_9
            arrays = {key: rng.normal(size=(steps, d)) for key, d in (("eef_pos", 3), ("object", 10), ("action", 7))}
            writer.append({key: value.astype(np.float32) for key, value in arrays.items()})
    return tmp_path / "generated.zarr", ("eef_pos", "object")


def agree(source, keys, tmp_path):
    """What robomimic reads from our HDF5 file of a recording are the windows that we cut from our store of it."""
    import robomimic.utils.dataset as dataset
    import robomimic.utils.obs_utils as obs_utils

    convert(str(source), str(tmp_path / "ours.zarr"))
    convert(str(tmp_path / "ours.zarr"), str(tmp_path / "theirs.hdf5"))
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(keys), "rgb": []}})
    theirs = dataset.SequenceDataset(
        hdf5_path=str(tmp_path / "theirs.hdf5"), obs_keys=keys, dataset_keys=("actions", "rewards", "dones"),
        frame_stack=2, seq_length=HORIZON - 1, pad_frame_stack=True, pad_seq_length=True, hdf5_use_swmr=False,
    )  # fmt: skip
    # Its sequence at step t begins with step t - 1; some versions begin its actions there too, some at step t.
    ours = WindowDataset(
        DemoStore.open(tmp_path / "ours.zarr"), keys, horizon=HORIZON, n_obs_steps=2, n_action_steps=HORIZON - 1
    )
    assert len(theirs) == ours.n_windows
    batch = ours.batch(np.arange(ours.n_windows))
    for i in range(len(theirs)):
        item = theirs[i]
        assert len(item["actions"]) >= HORIZON - 1
        expected = batch["action"][i, -len(item["actions"]) :]
        np.testing.assert_array_equal(np.float32(item["actions"]), expected)
        for key in keys:
            np.testing.assert_array_equal(np.float32(item["obs"][key][:2]), batch["obs"][key][i])


def test_robomimics_sequences_are_our_windows(tmp_path):
    agree(*generated(tmp_path), tmp_path)


@pytest.mark.parametrize("name", ["lift_ph_low_dim", "lift_ph_test", "can_mg_low_dim"])
def test_robomimics_sequences_of_real_recordings_are_our_windows(name, real_data, tmp_path):
    source = real_data / "robomimic_samples" / f"{name}.hdf5"
    agree(source, ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"), tmp_path)
