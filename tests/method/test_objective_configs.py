"""Every objective by its name on the command line: trains, resumes to the same bits, saves a policy that acts."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from isdt_policy.method.objectives import OBJECTIVES
from isdt_policy.method.policy import Policy
from isdt_policy.shared.errors import InputError
from isdt_policy.training.config import compose_config
from isdt_policy.training.run import build_trainer

pytestmark = pytest.mark.slow

NAMES = sorted(p.name[:-5] for p in (resources.files("isdt_policy.configs") / "objective").iterdir() if p.is_file())
TINY = [
    "network.down_dims=[8,16]", "network.embed_dim=16", "network.time_dim=8", "policy.cond_dim=8", "policy.horizon=8",
    "policy.n_action_steps=4", "policy.encoder_hidden=[16]", "training.batch_size=16", "training.threads=1",
    "training.log_every=1", "training.warmup_steps=1", "training.loggers=[]", "training.compile=false",
    "training.mask_padding=true", "data.val_ratio=0.1", "data.obs_keys=[agent_pos]", "policy.action_reference=''",
]  # fmt: skip
SETTINGS = ("training.steps=2", "training.checkpoint_every=1", "training.validate_every=2")


def trainer_of(store, run, name):
    config = compose_config([f"objective={name}", f"data.path={store}", f"run_dir={run}", *TINY, *SETTINGS])
    trainer, _ = build_trainer(config)
    trainer.run.mkdir(exist_ok=True)
    return trainer


def tensors(run: Path) -> dict[str, torch.Tensor]:
    last = run / "checkpoints" / "last"
    files = ("policy/model", "state/model", "state/optimizer")
    return {f"{f}:{k}": v for f in files for k, v in load_file(last / f"{f}.safetensors").items()}


def test_every_objective_has_a_config():
    used = {compose_config([f"objective={name}"])["objective"]["name"] for name in NAMES}
    assert used == set(OBJECTIVES)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_two_steps_and_resumes_to_the_same_bits(tiny_store, tmp_path, name):
    straight = trainer_of(tiny_store, tmp_path / "straight", name)
    before = {k: v.clone() for k, v in straight.policy.state_dict().items()}
    straight.fit()
    assert any(not torch.equal(v, before[k]) for k, v in straight.policy.state_dict().items())

    halted = trainer_of(tiny_store, tmp_path / "halted", name)
    halted.train_step()
    halted.save(None)
    resumed = trainer_of(tiny_store, tmp_path / "halted", name)
    resumed.resume()
    assert resumed.step == 1
    resumed.fit()
    expected, actual = tensors(tmp_path / "straight"), tensors(tmp_path / "halted")
    assert expected.keys() == actual.keys()
    assert [k for k in expected if not torch.equal(expected[k], actual[k])] == []

    policy = Policy.from_pretrained(tmp_path / "halted")
    assert policy.sampling == resumed.objective.sampling
    obs = {"agent_pos": np.full((2, 2, 2), 256.0)}
    for steps in (1, policy.sampling.usual_nfe):
        assert np.isfinite(policy.predict_action(obs, nfe=steps)["action"]).all()


def test_an_experiments_warm_start_is_left_out_where_it_means_nothing():
    assert compose_config(["experiment=pusht_demo"])["training"]["diagonal_steps"] == 3000
    assert compose_config(["experiment=pusht_demo", "objective=meanflow"])["training"]["diagonal_steps"] == 3000
    assert compose_config(["experiment=pusht_demo", "objective=mip"])["training"]["diagonal_steps"] == 0
    asked = compose_config(["objective=mip", "training.diagonal_steps=5"])
    assert asked["training"]["diagonal_steps"] == 5  # and the trainer says that it needs a diagonal term


def test_settings_of_the_objective_reach_the_policy():
    config = compose_config(["objective=diffusion", "objective.prediction=sample", "objective.train_steps=50"])
    assert config["policy"]["interpolant"] == "trigonometric"
    assert config["policy"]["sampling"] == {
        "kind": "diffusion", "prediction": "sample", "train_steps": 50, "beta_schedule": "squaredcos_cap_v2",
    }  # fmt: skip
    assert compose_config(["objective=mip"])["policy"]["sampling"] == {"kind": "regression", "refine_time": 0.1}
    assert "sampling" not in compose_config([])["policy"]
    with pytest.raises(InputError, match="Did you mean 'epsilon'"):
        compose_config(["objective=diffusion", "objective.prediction=epsilonn"])
