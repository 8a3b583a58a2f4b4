"""The fast path (compiled, bfloat16) against the plain one (eager, float32): loss and gradient of every objective."""

from dataclasses import replace
from importlib import resources

import pytest
import torch

from isdt_policy.method.interpolants import INTERPOLANTS
from isdt_policy.training.config import compose_config
from isdt_policy.training.run import build_trainer

pytestmark = pytest.mark.slow

NAMES = sorted(p.name[:-5] for p in (resources.files("isdt_policy.configs") / "objective").iterdir() if p.is_file())
TINY = [
    "network.down_dims=[8,16]", "network.embed_dim=16", "network.time_dim=8", "policy.cond_dim=8", "policy.horizon=8",
    "policy.n_action_steps=4", "policy.encoder_hidden=[16]", "training.batch_size=16", "training.threads=1",
    "training.loggers=[]", "data.obs_keys=[agent_pos]", "policy.action_reference=''",
]  # fmt: skip

# Relative error of the loss, and of the gradient as a vector. Compiled float32 differs by the order of its sums alone.
# bfloat16 keeps 8 bits: a gradient through twenty layers loses a few per cent, more where the loss differentiates twice.
FLOAT32 = {"loss": 1e-5, "gradient": 1e-3}
BFLOAT16 = {"loss": 0.05, "gradient": 0.15}


@pytest.fixture(scope="module")
def machinery(tiny_store, tmp_path_factory):
    """One policy, with its eager and its compiled flow map, and a batch."""
    run = tmp_path_factory.mktemp("fast") / "run"
    config = compose_config([f"data.path={tiny_store}", f"run_dir={run}", *TINY, "training.compile=true"])
    trainer, _ = build_trainer(config)
    assert trainer.compile_note == "on"
    torch.manual_seed(1)
    torch.nn.init.normal_(trainer.policy.network.network.out.weight, std=0.3)
    batch = trainer.train.batch(trainer.indices(0))
    obs, action = trainer._to_device(batch)
    return trainer, obs, trainer.policy.normalizer.normalize_action(action, obs).detach()


def loss_and_gradient(machinery, objective, flow_map, amp):
    trainer, obs, action = machinery
    policy = trainer.policy
    policy.zero_grad(set_to_none=True)
    cond = policy.encode(obs)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        loss = objective(flow_map, action, cond, policy.null, torch.Generator().manual_seed(3)).total
    loss.backward()
    gradient = torch.cat(
        [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in policy.parameters()]
    )
    return loss.item(), gradient


def objective_of(name, tiny_store, tmp_path):
    path = "policy.interpolant=trigonometric" if name == "diffusion" else "policy.interpolant=linear"
    config = compose_config([f"objective={name}", f"data.path={tiny_store}", f"run_dir={tmp_path}", *TINY, path])
    return build_trainer(config)[0].objective


def assert_close(actual, expected, limits):
    (loss, gradient), (plain_loss, plain_gradient) = actual, expected
    assert abs(loss - plain_loss) <= limits["loss"] * abs(plain_loss)
    assert (gradient - plain_gradient).norm() <= limits["gradient"] * plain_gradient.norm()


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_agrees_with_float32(machinery, tiny_store, tmp_path, name):
    objective, eager = objective_of(name, tiny_store, tmp_path), machinery[0].policy.flow_map
    if name == "diffusion":
        eager = replace(eager, path=INTERPOLANTS["trigonometric"]())
    plain = loss_and_gradient(machinery, objective, eager, amp=False)
    assert_close(loss_and_gradient(machinery, objective, eager, amp=True), plain, BFLOAT16)


@pytest.mark.parametrize("name", ["isd_t"])
def test_the_compiled_network_agrees_with_the_eager_one(machinery, tiny_store, tmp_path, name):
    """What all objectives are made of: the network, and the network with a tangent."""
    objective, trainer = objective_of(name, tiny_store, tmp_path), machinery[0]
    eager = trainer.policy.flow_map
    plain = loss_and_gradient(machinery, objective, eager, amp=False)
    assert_close(loss_and_gradient(machinery, objective, trainer.flow_map, amp=False), plain, FLOAT32)
    assert trainer.compile_note == "on"
