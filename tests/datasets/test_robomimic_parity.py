"""robomimic's own reader and our windows agree on a file that we wrote."""

import numpy as np

from isdt_policy.datasets.convert import convert
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.datasets.windows import WindowDataset

HORIZON = 8


def test_robomimics_sequences_are_our_windows(tmp_path):
    import robomimic.utils.dataset as dataset
    import robomimic.utils.obs_utils as obs_utils

    rng = np.random.default_rng(0)
    with DemoWriter(tmp_path / "ours.zarr") as writer:
        for steps in [3, *range(8, 18)]:  # more than ten, so that demo_10 has to come after demo_9
            arrays = {key: rng.normal(size=(steps, d)) for key, d in (("eef_pos", 3), ("object", 10), ("action", 7))}
            writer.append({key: value.astype(np.float32) for key, value in arrays.items()})
    convert(str(tmp_path / "ours.zarr"), str(tmp_path / "theirs.hdf5"))

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["eef_pos", "object"], "rgb": []}})
    theirs = dataset.SequenceDataset(
        hdf5_path=str(tmp_path / "theirs.hdf5"), obs_keys=("eef_pos", "object"), dataset_keys=("actions", "rewards", "dones"),
        frame_stack=2, seq_length=HORIZON - 1, pad_frame_stack=True, pad_seq_length=True, hdf5_use_swmr=False,
    )  # fmt: skip
    # Its sequence at step t begins with step t - 1; some versions begin its actions there too, some at step t.
    ours = WindowDataset(
        DemoStore.open(tmp_path / "ours.zarr"),
        ["eef_pos", "object"],
        horizon=HORIZON,
        n_obs_steps=2,
        n_action_steps=HORIZON - 1,
    )
    assert len(theirs) == ours.n_windows
    batch = ours.batch(np.arange(ours.n_windows))
    for i in range(len(theirs)):
        item = theirs[i]
        assert len(item["actions"]) >= HORIZON - 1
        np.testing.assert_array_equal(item["actions"], batch["action"][i, -len(item["actions"]) :])
        for key in ("eef_pos", "object"):
            np.testing.assert_array_equal(item["obs"][key][:2], batch["obs"][key][i])
