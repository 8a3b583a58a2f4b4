"""The registry's doors: names, missing and untested packages, the doctor's report."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from isdt_policy.envs import ActionPart, make, registry, task_ids, task_spec
from isdt_policy.shared.errors import InputError


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'pusht'"):
        task_spec("pushtt")
    with pytest.raises(InputError, match="Did you mean 'keypoints'"):
        make("pusht", obs_keys=["keypoint"])
    with pytest.raises(InputError, match="Did you mean 'pusht-legacy'"):
        make("pusht", seed_protocol="pusht-legcy")
    with pytest.raises(InputError, match="render_mode"):
        make("pusht", render_mode="human")
    with pytest.raises(InputError, match="list of keys"):
        make("pusht", obs_keys="state")
    with pytest.raises(TypeError):
        make("pusht", rendersize=3)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(registry, "installed_version", lambda name: None)
    with pytest.raises(InputError, match=r"isdt-policy\[pusht\]"):
        make("pusht")
    assert task_spec("pusht").versions()["pymunk"] == "not installed"


@pytest.mark.parametrize(("name", "version"), [("gym-pusht", "0.1.5"), ("pymunk", "7.0.0")])
def test_an_untested_simulator_version_is_refused(monkeypatch, name, version):
    from isdt_policy.envs import pusht

    real = registry.installed_version
    monkeypatch.setattr(pusht, "installed_version", lambda package: version if package == name else real(package))
    with pytest.raises(InputError, match=version):
        make("pusht")


def test_derive_says_what_is_missing():
    with pytest.raises(InputError, match="computed from state"):
        task_spec("pusht").derive({"action": np.zeros((3, 2))}, ["keypoints"])
    with pytest.raises(InputError, match="5 entries"):
        task_spec("pusht").derive({"state": np.zeros((3, 4))}, ["keypoints"])
    with pytest.raises(InputError, match="has to be recorded"):
        task_spec("pusht").derive({"state": np.zeros((3, 5))}, ["pixels"])


@pytest.mark.parametrize("task", ["pusht", "can"])
def test_spec_and_environment_agree(task):
    spec = task_spec(task)
    env = make(task)
    obs, _ = env.reset(seed=0)
    for key, array in obs.items():
        assert array.shape == spec.observations[key].shape
        assert array.dtype == np.dtype(spec.observations[key].dtype)
    assert env.action_space.shape == spec.action.shape


def test_every_task_has_a_spec_of_its_own_name_and_default_keys_it_gives():
    for task in task_ids():
        spec = task_spec(task)
        assert spec.id == task
        assert set(spec.default_obs_keys) <= set(spec.observations)
        assert spec.action.space().shape == spec.action.shape


def test_an_action_is_described_entry_by_entry():
    def sizes(task: str) -> list[tuple[str, int]]:
        return [(part.kind, part.size) for part in task_spec(task).action_parts]

    assert sizes("pusht") == [("position", 2)]
    assert sizes("lift_abs") == [("position", 3), ("rotation", 6), ("gripper", 1)]
    assert sizes("transport") == [("position", 3), ("rotation", 3), ("gripper", 1)] * 2
    assert sizes("adroit_door") == [("joints", 28)]  # not four arms of seven
    assert task_spec("franka_kitchen").neutral == (0.0,) * 9  # joint velocities
    assert task_spec("adroit_door").neutral is None  # joint targets


def test_a_description_that_does_not_fit_the_action_is_refused():
    spec = task_spec("pusht")
    with pytest.raises(InputError, match="action_parts have 3 entries, the action has 2"):
        dataclasses.replace(spec, action_parts=(ActionPart("position", 3),))
    with pytest.raises(InputError, match="neutral has 1 entries, the action has 2"):
        dataclasses.replace(spec, neutral=(0.0,))
    (whole,) = dataclasses.replace(spec, action_parts=()).action_parts
    assert whole.size == 2


def test_specs_need_neither_torch_nor_a_simulator():
    code = (
        "import sys; from isdt_policy.envs import task_spec; task_spec('pusht'); task_spec('lift');"
        "sys.exit(any(m in sys.modules for m in ('torch', 'pymunk', 'gym_pusht', 'pygame', 'mujoco', 'robosuite')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
