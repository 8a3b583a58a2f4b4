"""What a recording does not say is said once, kept in the store, and taken from there."""

import json

import numpy as np
import pytest

from isdt_policy import cli
from isdt_policy.datasets.own_task import Told, own_task
from isdt_policy.datasets.store import DemoStore, DemoWriter


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    with DemoWriter(tmp_path / "arm.zarr") as writer:
        for _ in range(3):
            path = np.cumsum(rng.normal(size=(30, 2)), 0).astype(np.float32)
            turn = rng.normal(size=(30, 4)).astype(np.float32)
            writer.append({
                "hand": path, "hand_quat": turn / np.linalg.norm(turn, axis=1, keepdims=True), "force": path**2,
                "ctrl_a": np.hstack([path + 1, path[:, :1]]), "ctrl_b": path - 1, "action": path,
            })  # fmt: skip
    return tmp_path / "arm.zarr"


def test_training_takes_it_from_the_store(store, capsys):
    said = [
        "rate_hz=20",
        "actions=delta",
        "action_key=ctrl_a",
        "obs_keys=hand,hand_quat",
        "gripper=[2]",
        "quaternion=hand_quat:wxyz",
    ]
    assert cli.main(["data", "describe", str(store), *said]) == 0
    made = own_task(DemoStore.open(store), Told())
    assert made.action_key == "ctrl_a"
    assert made.recorded.rate_hz == 20
    assert made.recorded.neutral == (0.0, 0.0, None)  # the third entry would be one that is 0 when an answer is missing
    assert made.spec.default_obs_keys == ("hand", "hand_quat")
    assert not any("xyzw" in note for note in made.notes)
    assert own_task(DemoStore.open(store), Told(obs_keys=("force",))).spec.default_obs_keys == ("force",)
    np.testing.assert_array_equal(DemoStore.open(store).episode(2)["hand"].shape, (30, 2))


def test_the_order_of_a_quaternion_is_asked_for_and_not_guessed(store):
    notes = own_task(DemoStore.open(store), Told(actions="delta", rate_hz=5)).notes
    assert any("hand_quat: nobody says whether it is xyzw or wxyz" in note for note in notes)


def test_what_is_not_known_is_shown(store, capsys):
    assert cli.main(["data", "describe", str(store)]) == 0
    out = capsys.readouterr().out
    assert "not known: rate_hz=N" in out
    assert "not known: actions=absolute or delta" in out


def test_names_of_entries_go_to_lerobot_and_come_back(store, tmp_path):
    said = ["rate_hz=20", "names=action:x/y", "names=ctrl_a:a/b/c"]
    assert cli.main(["data", "describe", str(store), *said]) == 0
    for source, target in ((store, tmp_path / "there"), (tmp_path / "there", tmp_path / "back.zarr")):
        to = ["to=lerobot"] if target.name == "there" else []
        assert cli.main(["data", "convert", str(source), str(target), *to]) == 0
    features = json.loads((tmp_path / "there/meta/info.json").read_text())["features"]
    assert features["action"]["names"] == ["x", "y"]
    assert features["observation.ctrl_a"]["names"] == ["a", "b", "c"]
    assert features["observation.hand"]["names"] is None
    assert DemoStore.open(tmp_path / "back.zarr").attrs["keys"]["ctrl_a"] == {"names": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["action_key=ctrl"], "no key 'ctrl'. Did you mean 'ctrl_"),
        (["quaternion=hand_quat:xyz"], "must be hand_quat:xyzw or hand_quat:wxyz"),
        (["quaternion=hand:xyzw"], "which are no quaternions"),
        (["quaternion=hand_quat"], "must be KEY:xyzw"),
        (["gripper=[2]"], "entries of 'action' are 0 to 1"),
        (["names=action:x"], "names=action:x: 'action' has 2 entries, which need 2 different names"),
        (["names=action:x/x"], "which need 2 different names"),
        (["names=actions:x/y"], "no key 'actions'. Did you mean 'action'"),
        (["names=action"], "must be KEY:A/B/C"),
        (["rate_hz=0"], "must be above 0"),
        (["actions=relative"], "actions"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(words, expected, store, capsys):
    before = (store / "zarr.json").read_bytes()
    assert cli.main(["data", "describe", str(store), *words]) == 2
    said = capsys.readouterr().err.strip()
    assert expected in said
    assert "\n" not in said
    assert (store / "zarr.json").read_bytes() == before
