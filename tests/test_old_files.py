"""What version 0.1.0 wrote opens today and does what it did: policies, runs, stores, results, exports."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from isdt_policy.cli import main as isdt
from isdt_policy.datasets.store import DemoStore
from isdt_policy.method.policy import Policy

OLD = Path(__file__).parent / "fixtures" / "v0_1"
ACTIONS = json.loads((OLD / "actions.json").read_text())


def observations(obs_dims: dict[str, int], n_obs_steps: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {key: rng.uniform(0, 1, (2, n_obs_steps, size)).astype(np.float32) for key, size in obs_dims.items()}


@pytest.mark.parametrize("name", ACTIONS)
def test_a_policy_acts_as_it_did(name):
    objective, arm = name.rsplit(" ", 1)
    policy = Policy.from_pretrained(OLD / f"run_{objective}")
    obs = observations({"agent_frame": 4, "agent_in_block": 2, "goal_in_block": 4}, policy.n_obs_steps)
    steps = int(arm) if arm.isdigit() else arm
    action = policy.predict_action(obs, nfe=steps, noise_seeds=np.array([[1, 2], [3, 4]]))["action"]
    np.testing.assert_allclose(
        action.reshape(2, -1)[:, :6], ACTIONS[name], atol=2e-2
    )  # px; processors round differently


def test_a_run_goes_on_where_it_stopped(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(OLD / "run_isd_t", run, symlinks=True)
    checkpoints = run / "checkpoints"
    finished = load_file(checkpoints / "0000020" / "policy" / "model.safetensors")
    shutil.rmtree(checkpoints / "0000020")
    for name in ("last", "best"):
        (checkpoints / name).unlink()
        (checkpoints / name).symlink_to("0000010")
    config = json.loads((run / "config.json").read_text())
    config["data"]["path"] = str(OLD / "demos.zarr.zip")
    (run / "config.json").write_text(json.dumps(config))
    assert isdt(["train", f"resume={run}"]) == 0
    again = load_file(checkpoints / "last" / "policy" / "model.safetensors")
    assert json.loads((checkpoints / "last" / "state" / "trainer.json").read_text())["step"] == 20
    for key, value in finished.items():
        np.testing.assert_allclose(again[key], value, rtol=1e-3, atol=1e-4, err_msg=key)


def test_a_store_opens():
    store = DemoStore.open(OLD / "demos.zarr.zip")
    assert store.episode_ends.tolist() == [95, 171, 334]
    assert store.task == "pusht"
    assert store.read("action", 0, 1).tolist() == [[229.2803192138672, 48.295989990234375]]


def test_a_result_is_read_compared_and_repeated(capsys, monkeypatch):
    monkeypatch.chdir(OLD)
    assert isdt(["compare", str(OLD / "eval"), str(OLD / "eval")]) == 0
    capsys.readouterr()
    isdt(["eval", "repeat", str(OLD / "eval" / "eval_info.json"), f"checkpoint={OLD / 'run_isd_t'}"])
    assert "9 of 9 with the same outcome" in capsys.readouterr().out


def test_an_export_acts(tmp_path):
    assert (
        isdt(
            ["deploy", f"checkpoint={OLD / 'policy.onnx'}", "clock=virtual", "episodes=1", f"out={tmp_path / 'd.json'}"]
        )
        == 0
    )
    assert json.loads((tmp_path / "d.json").read_text())
