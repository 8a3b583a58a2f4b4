"""robomimic's own scripts run our files and our policies: examples/robomimic_script.py.

`make test-robomimic` runs this file where robomimic is installed whole. Elsewhere there are stand-ins for two packages that it
imports: torchvision, which only networks of its own for pictures need, and egl_probe, which looks for graphics cards.
"""

import importlib.util
import json
import platform
import runpy
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import h5py
import numpy as np
import pytest

from isdt_policy.datasets.convert import convert
from isdt_policy.datasets.generate import generate
from isdt_policy.deploy import loading
from isdt_policy.envs import robosuite_compat
from isdt_policy.envs.experts import expert

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(robosuite_compat.is_composite(), reason="robosuite 1.5 is installed, robomimic 0.3 wants 1.4"),
]
pytest.importorskip("robomimic")
WHOLE = importlib.util.find_spec("torchvision") is not None
EXAMPLE = Path(__file__).parents[2] / "examples/robomimic_script.py"


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    path = tmp_path_factory.mktemp("lift") / "lift.hdf5"
    generate(out=str(path), task="lift", episodes=2, workers=1, format="robomimic")
    return path


@pytest.fixture
def script(monkeypatch):
    """Run a script of robomimic's as the example does."""
    if not WHOLE:
        for name in (
            "torchvision",
            "torchvision.models",
            "torchvision.transforms",
            "torchvision.transforms.functional",
        ):
            stand_in = ModuleType(name)
            stand_in.__getattr__ = lambda attribute: MagicMock()  # type: ignore[method-assign]
            monkeypatch.setitem(sys.modules, name, stand_in)
        probe = ModuleType("egl_probe")
        probe.get_available_devices = list  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "egl_probe", probe)
    monkeypatch.setitem(sys.modules, "mujoco_py", None)
    del sys.modules["mujoco_py"]
    from robomimic.utils import file_utils

    monkeypatch.setattr(file_utils, "policy_from_checkpoint", file_utils.policy_from_checkpoint)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["robomimic_script.py", *map(str, words)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")

    return run


@pytest.mark.parametrize("task", ["lift", "lift_abs"])
def test_its_rollouts_run_what_acts_behind_our_protocol(task, script, tmp_path, monkeypatch, capsys):
    """A scripted expert succeeds there as it does here, so observations, actions and the environment are the same."""
    acting = expert(task)
    acting.task = task
    monkeypatch.setattr(loading, "load_policy", lambda checkpoint: acting)
    script(
        "run_trained_agent", "--agent", "expert", "--n_rollouts", 1, "--seed", 0, "--dataset_path", tmp_path / "a.hdf5"
    )
    stats = json.loads(capsys.readouterr().out.split("Average Rollout Stats\n")[1].split("}")[0] + "}")
    assert stats["Num_Success"] == 1
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file["data/demo_0/actions"].shape[1] == 7
    convert(str(tmp_path / "a.hdf5"), str(tmp_path / "a.zarr"), task=task)  # ours reads what its script recorded


def test_its_rollouts_run_a_trained_policy(generated, script, tmp_path, capsys):
    from isdt_policy.training.config import compose_config
    from isdt_policy.training.run import train

    convert(str(generated), str(tmp_path / "lift.zarr"))
    run = train(compose_config([
        "task=lift", f"data.path={tmp_path / 'lift.zarr'}", "training.steps=2", "training.batch_size=4", "training.compile=false",
        "network.down_dims=[8,16]", "network.embed_dim=16", "network.time_dim=8", f"run_dir={tmp_path / 'run'}",
    ]))  # fmt: skip
    script("run_trained_agent", "--agent", run, "--n_rollouts", "1", "--horizon", "12")
    assert '"Horizon": 12.0' in capsys.readouterr().out


def test_its_scripts_replay_and_observe_what_we_generated(generated, script, capsys):
    """Replayed by states. Played back by actions it differs from the first step: another resting posture, which no state holds."""
    film = ["--video_path", generated.with_suffix(".mp4")] if WHOLE else []  # imageio's own ffmpeg
    script("playback_dataset", "--dataset", generated, "--n", 1, *film)
    assert not film or film[1].stat().st_size > 10_000
    script("dataset_states_to_obs", "--dataset", generated, "--output_name", "theirs.hdf5", "--n", 1, "--done_mode", 2)
    with h5py.File(generated) as ours, h5py.File(generated.parent / "theirs.hdf5") as theirs:
        for key, value in ours["data/demo_0/obs"].items():
            np.testing.assert_allclose(theirs[f"data/demo_0/obs/{key}"][()], value[()], atol=2e-6, err_msg=key)
        assert theirs["data/demo_0/rewards"][-1] == 1


def test_pictures_come_as_we_record_them(script, monkeypatch, capsys):
    class Seeing:
        """Looks, and stands still."""

        obs_keys, task, n_obs_steps, nfe = ("robot0_eef_pos", "agentview_image"), "lift", 2, 1
        pictures: list[np.ndarray] = []  # noqa: RUF012

        def reset(self):
            pass

        def predict_action(self, obs, nfe=1, noise_seeds=None):
            self.pictures.append(obs["agentview_image"][0, -1])
            return {"action": np.zeros((1, 8, 7), np.float32)}

    monkeypatch.setattr(loading, "load_policy", lambda checkpoint: Seeing())
    script("run_trained_agent", "--agent", "seeing", "--n_rollouts", 1, "--seed", 0, "--horizon", 9)
    from isdt_policy.envs import make

    env = make("lift", obs_keys=("agentview_image",))
    drawn = env.reset(seed=0)[0]["agentview_image"].astype(float)
    first, last = (picture.astype(float) for picture in Seeing.pictures)
    assert Seeing.pictures[0].dtype == np.uint8
    assert first.shape == drawn.shape == (84, 84, 3)
    # Another cube lies there, so a few pixels differ; turned over or with other colours, most would.
    assert np.abs(first - drawn).mean() < 3 < np.abs(first[::-1] - drawn).mean()
    assert np.abs(first - last).mean() < 3


def test_a_policy_of_another_task_is_one_line(script):
    with pytest.raises(SystemExit, match="trained in 'pusht', which is none of robomimic's tasks: lift"):
        script("run_trained_agent", "--agent", "zoo:pusht_human", "--n_rollouts", "1")


def test_versions(capsys):
    found = {name: version(name) for name in ("robomimic", "robosuite", "mujoco", "numpy", "torch")}
    with capsys.disabled():
        print(
            f"\nPython {platform.python_version()},",
            ", ".join(f"{k} {v}" for k, v in found.items()),
            "" if WHOLE else "(no torchvision)",
        )
