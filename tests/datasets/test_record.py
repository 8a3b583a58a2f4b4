"""Recording: interrupted and continued is as in one go; the recorder keeps copies and refuses what does not fit."""

import numpy as np
import pytest

from isdt_policy.cli import command
from isdt_policy.cli.data_record import Record
from isdt_policy.datasets.recorder import Recorder
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.deploy.record import carried_out
from isdt_policy.shared.errors import InputError


def test_recording_goes_on_where_it_stopped(tmp_path):
    def record(name, *how):
        return command.parse(
            Record, [f"out={tmp_path / name}", "policy=expert", "task=pusht", "max_steps=6", *how]
        ).run("")

    record("a.zarr", "episodes=1")
    record("a.zarr", "episodes=3")
    record("b.zarr", "episodes=3")
    a, b = DemoStore.open(tmp_path / "a.zarr"), DemoStore.open(tmp_path / "b.zarr")
    assert a.episode_ends.tolist() == b.episode_ends.tolist() == [6, 12, 18]
    assert [info["seed"] for info in a.episode_info()] == [0, 1, 2]
    for key in a.keys:
        np.testing.assert_array_equal(a.read(key), b.read(key))
    with pytest.raises(InputError, match="was begun with seed_start=0, now it is 7"):
        record("a.zarr", "seed_start=7")


def test_a_recorder_keeps_copies_and_refuses_other_keys(tmp_path):
    position = np.zeros(2, np.float32)
    with DemoWriter(tmp_path / "a.zarr") as writer:
        recorder = Recorder(writer)
        for step in range(3):
            position[:] = step
            recorder.step({"position": position}, np.float32([step]))
        with pytest.raises(InputError, match="step 3 has keys other, action"):
            recorder.step({"other": position}, np.float32([0]))
        assert recorder.end() == 0
        recorder.step({"position": position}, np.float32([0]))
        recorder.discard()
        with pytest.raises(InputError, match="no step to record"):
            recorder.end()
    assert DemoStore.open(tmp_path / "a.zarr").read("position").tolist() == [[0, 0], [1, 1], [2, 2]]


def test_actions_beyond_the_limits_are_recorded_as_the_environment_carries_them_out():
    action = np.array([[-3, 200.5], [513.3, 512]], np.float32)
    kept = carried_out({"state": np.ones((2, 5)), "action": action}, "pusht")
    assert kept["action"].tolist() == [[0, 200.5], [512, 512]]
    assert kept["action"].dtype == np.float32
    assert kept["state"].shape == (2, 5)
