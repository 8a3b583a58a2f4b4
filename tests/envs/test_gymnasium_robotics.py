"""gymnasium-robotics under our spec: the contract, seeds, success, refusals."""

import ctypes.util
import os
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from isdt_policy.envs import gymnasium_robotics as ours
from isdt_policy.envs import make, task_spec
from isdt_policy.shared.errors import InputError

pytest.importorskip("gymnasium_robotics")


@pytest.mark.parametrize("task", ours.SPECS)
def test_contract_and_seeds(task):
    env = make(task)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
    first = env.reset(seed=3)[0]["observation"]
    env.step(env.action_space.sample())
    assert np.array_equal(env.reset(seed=3)[0]["observation"], first)
    assert np.array_equal(make(task).reset(seed=3)[0]["observation"], first)
    assert not np.array_equal(env.reset(seed=4)[0]["observation"], first)
    assert first.shape == task_spec(task).observations["observation"].shape


def test_the_share_of_things_done_is_the_reward(monkeypatch):
    env = make("franka_kitchen", end_on_success=True)
    obs, _ = env.reset(seed=0)
    raw = {"observation": obs["observation"]}

    def pretend(done, left):
        info = {"episode_task_completions": ["x"] * done, "tasks_to_complete": ["y"] * left}
        monkeypatch.setattr(env.sim, "step", lambda action: (raw, 0.0, False, False, info))
        return env.step(np.zeros(9, np.float32))[1:4]

    assert pretend(0, 7) == (0.0, False, False)
    assert pretend(3, 4) == (pytest.approx(3 / 7), False, False)
    assert pretend(7, 0) == (1.0, True, False)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(9, np.float32))


def test_bad_input_is_refused(monkeypatch):
    env = make("adroit_door")
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"shape \(28,\)"):
        env.step(np.zeros(3))
    with pytest.raises(InputError, match="finite"):
        env.step(np.full(28, np.inf))
    with pytest.raises(InputError, match="give a seed"):
        env.reset(options={"reset_to_state": np.zeros(3)})
    monkeypatch.setattr(ours, "installed_version", lambda name: "1.3.0")
    with pytest.raises(InputError, match=r"only 1\.4\.2 is tested"):
        make("adroit_door")


@pytest.mark.slow  # a process of its own, since MuJoCo reads the variable once
def test_it_draws_without_a_display_or_says_what_to_install():
    code = """
from isdt_policy.envs import make
env = make("adroit_door", render_mode="rgb_array")
env.reset(seed=0)
print(env.render().std() > 10)
env.close()
"""
    bare = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "DISPLAY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=bare)
    if any(ctypes.util.find_library(name) for name in ("EGL", "OSMesa")):
        assert done.stdout.strip() == "True", done.stderr
    else:
        assert "apt-get install" in done.stderr
