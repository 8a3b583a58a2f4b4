"""From pixels to actions in less than a minute: two demonstrations are learnt and acted out."""

import pytest

from isdt_policy.cli import main
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.eval.episode import Start
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.rollout import Scene, evaluate
from isdt_policy.method.policy import Policy
from isdt_policy.training.config import compose_config
from isdt_policy.training.run import train

pytestmark = pytest.mark.slow


def test_two_episodes_are_learnt_from_pixels_and_acted_out(tmp_path):
    """Expert demonstrations of which the policy sees a small picture and where its own hand is."""
    store = DemoStore.open("bundled:pusht_expert")
    seen, ends = tmp_path / "seen.zarr", [0, *store.episode_ends[:2]]
    with DemoWriter(tmp_path / "two.zarr", task="pusht") as writer:
        for start, stop in zip(ends, ends[1:]):
            writer.append({key: store.read(key, start, stop) for key in ("state", "action")})
    options = ["task=pusht", "render=[pixels]", "resize=48x48"]
    assert main(["data", "convert", str(tmp_path / "two.zarr"), str(seen), *options]) == 0
    run = train(compose_config([
        f"run_dir={tmp_path / 'run'}", f"data.path={seen}", "data.val_ratio=0", "data.obs_keys=[pixels,agent_pos]",
        "objective=flow_matching", "network.down_dims=[32,64]", "policy.action_reference=agent_pos", "images.width=0.5",
        "policy.action_normalization=gaussian_per_step", "images.crop=1", "training.steps=400", "training.batch_size=32",
        "training.draws_per_obs=2", "training.ema_decay=0.98", "training.lr=2e-3", "training.threads=1", "training.loggers=[]",
        "training.warmup_steps=30", "training.checkpoint_every=400",
    ]))  # fmt: skip
    starts = {k: Start(tuple(store.read("state", ends[k], ends[k] + 1)[0].astype(float))) for k in range(2)}
    policy = Policy.from_pretrained(run)
    protocol = Protocol("pusht", init="train:x", max_steps=150)
    result = evaluate(policy, protocol, [0, 1], ["euler4"], scene=Scene(init_states=starts))
    # 0.86 and 0.85 here. Other processors round otherwise, and where the block begins it covers next to nothing.
    assert all(store.read("coverage", start, start + 1).item() < 0.3 for start in ends[:2])
    assert min(record.max_coverage for record in result.episodes) > 0.6
