"""Policies that see: from recorded or drawn pictures to a policy that acts on them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from isdt_policy.datasets.pictures import with_pictures
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.envs import make, task_spec
from isdt_policy.method.policy import Policy
from isdt_policy.training.config import compose_config
from isdt_policy.training.run import build_trainer, train

TINY = [
    "network.down_dims=[8,16]", "network.embed_dim=16", "network.time_dim=8", "policy.cond_dim=8", "data.val_ratio=0.1",
    "policy.encoder_hidden=[16]", "training.batch_size=16", "training.threads=1", "training.loggers=[]",
]  # fmt: skip
SEES = ["data.obs_keys=[image,agent_pos]", "images.width=0.1", "images.keypoints=4", "images.features=4"]


def tensors(run):
    files = ("policy/model", "state/model", "state/optimizer")
    return {f"{f}:{k}": v for f in files for k, v in load_file(run / f"checkpoints/last/{f}.safetensors").items()}


def settings(store, run, *more):
    return compose_config([f"data.path={store}", f"run_dir={run}", *TINY, *SEES, *more])


@pytest.fixture(scope="module")
def seen_store(tmp_path_factory):
    """Three episodes as Diffusion Policy recorded PushT: states, actions, and pictures as whole-numbered floats named img."""
    rng, draw = np.random.default_rng(0), task_spec("pusht").draw_fn
    path = tmp_path_factory.mktemp("seen") / "seen.zarr"
    with DemoWriter(path, task="pusht") as writer:
        for _ in range(3):
            state = np.cumsum(rng.uniform(0, 9, (20, 5)), axis=0) + np.array([100, 100, 200, 200, 0])
            state[:, 4] = 1
            state = state.astype(np.float32)
            pictures = draw({"state": state}, "pixels")
            writer.append({"state": state, "action": state[:, :2] + 5, "img": pictures.astype(np.float32)})
    return path


def test_recorded_pictures_become_bytes_under_the_tasks_name(seen_store):
    store = DemoStore.open(seen_store)
    seen = with_pictures(store, task_spec("pusht"), ["pixels"])
    assert seen.read("pixels").dtype == np.uint8
    np.testing.assert_array_equal(seen.read("pixels"), store.read("img"))
    np.testing.assert_array_equal(seen.read("pixels", 7, 9), store.read("img", 7, 9))


def test_pictures_that_were_not_recorded_are_drawn_from_states(tiny_store):
    seen = with_pictures(DemoStore.open(tiny_store), task_spec("pusht"), ["pixels"])
    state = seen.read("state", 30, 31)[0]
    env = make("pusht", obs_keys=["pixels"])
    there = env.reset(options={"reset_to_state": state})[0]["pixels"]
    np.testing.assert_array_equal(seen.read("pixels", 30, 31)[0], there)


def test_a_run_from_pixels_goes_on_to_the_last_bit(seen_store, tmp_path):
    """bfloat16 convolutions, channels last, crops and two draws per picture included."""
    more = ("training.steps=6", "training.draws_per_obs=2", "training.amp=bf16", "training.checkpoint_every=3")
    whole = train(settings(seen_store, tmp_path / "whole", *more))
    trainer, _ = build_trainer(config := settings(seen_store, tmp_path / "parts", *more))
    trainer.run.mkdir()
    (trainer.run / "config.json").write_text(json.dumps(config))
    trainer.fit(until=3)
    parts = train({**config, "if_exists": "resume"})
    expected, actual = tensors(whole), tensors(parts)
    assert [k for k in expected if not torch.equal(expected[k], actual[k])] == []
    assert Policy.from_pretrained(whole).obs_keys == ("agent_pos", "pixels")


@pytest.mark.parametrize("objective", ["isd_t_quarter", "meanflow", "flow_matching", "isd_t_endpoint"])
def test_pictures_are_encoded_once_a_step_and_once_a_call(seen_store, tmp_path, objective):
    more = ("training.steps=4", "training.diagonal_steps=0", f"objective={objective}", "training.draws_per_obs=3")
    trainer, _ = build_trainer(settings(seen_store, tmp_path, *more))
    calls = []
    trainer.policy.cameras.register_forward_hook(lambda *_: calls.append(1))
    trainer.train_step()
    assert len(calls) == 1
    policy = trainer.policy.eval()
    obs = {"agent_pos": np.zeros((3, 2, 2)), "pixels": np.zeros((3, 2, 96, 96, 3), np.uint8)}
    for nfe in (1, 4, "euler10"):
        calls.clear()
        policy.predict_action(obs, nfe=nfe)
        assert len(calls) == 1


def test_the_crop_is_a_function_of_seed_and_step_and_the_same_for_all_frames_of_a_window(seen_store, tmp_path):
    trainer, _ = build_trainer(settings(seen_store, tmp_path, "training.steps=9"))
    corners = [trainer._look(512).corners["pixels"] for _ in range(2)]
    assert torch.equal(*corners)
    assert (corners[0].min(), corners[0].max()) == (0, 12)  # 96 - 84, both ends
    trainer.step = 1
    assert not torch.equal(trainer._look(512).corners["pixels"], corners[0])
    frames = torch.arange(96 * 96 * 3).reshape(1, 1, 96, 96, 3).expand(2, 2, -1, -1, -1)
    from isdt_policy.method.networks.image_encoder import cropped

    part = cropped(frames, (84, 84), torch.tensor([[0, 0], [3, 12]]))
    assert torch.equal(part[1, 0], part[1, 1])
    assert torch.equal(part[1, 0], frames[1, 0, 3:87, 12:96])
    assert torch.equal(cropped(frames, (84, 84))[0, 0], frames[0, 0, 6:90, 6:90])


def test_what_a_policy_without_pictures_draws_is_as_before(tiny_store, tmp_path):
    """Pictures have a generator of their own."""
    numbers = compose_config([f"data.path={tiny_store}", f"run_dir={tmp_path}", *TINY, "training.steps=9"])
    trainer, _ = build_trainer(numbers)
    assert trainer.policy.cameras is None
    assert "images" not in trainer.policy.config.to_json()
    assert trainer.policy.config.to_json()["format_version"] == 1


def test_the_light_changes_with_seed_and_step_alike_for_all_frames_of_a_window(seen_store, tmp_path):
    trainer, _ = build_trainer(settings(seen_store, tmp_path, "training.steps=9", "images.jitter=0.5"))
    looks = [trainer._look(6) for _ in range(2)]
    assert torch.equal(looks[0].tints["pixels"], looks[1].tints["pixels"])
    factors, offsets = looks[0].tints["pixels"].unbind(1)
    assert 0.25 < factors.min() < factors.max() < 1.9
    assert 0 < offsets.abs().max() <= 0.5
    trainer.step = 1
    assert not torch.equal(trainer._look(6).tints["pixels"], looks[0].tints["pixels"])
    still = torch.full((6, 2, 96, 96, 3), 100, dtype=torch.uint8)
    features = trainer.policy.cameras({"pixels": still}, looks[0]).unflatten(1, (2, -1))
    assert torch.equal(features[:, 0], features[:, 1])
    assert not torch.equal(features[0], features[1])
    plain, _ = build_trainer(settings(seen_store, tmp_path, "training.steps=9"))
    assert plain._look(6).tints == {}
    assert torch.equal(plain._look(6).corners["pixels"], looks[0].corners["pixels"])


def test_a_policy_of_resized_pictures_takes_those_of_the_environment(seen_store, tmp_path):
    """One resize for conversion, evaluation and deployment; and it remembers how they looked."""
    from isdt_policy.cli import main
    from isdt_policy.eval.protocol import Protocol
    from isdt_policy.eval.rollout import evaluate

    small = tmp_path / "small.zarr"
    assert main(["data", "convert", str(seen_store), str(small), "resize=48x48"]) == 0
    run = train(settings(small, tmp_path / "run", "training.steps=1"))
    policy = Policy.from_pretrained(run)
    pixels = policy.config.images["pixels"]
    assert (pixels.shape, pixels.source) == ((48, 48, 3), (96, 96, 3))
    assert 0 < pixels.looks.usual < 10
    assert evaluate(policy, Protocol("pusht", max_steps=9), [100_000]).episodes[0].length == 9
    assert (
        main(["eval", f"checkpoint={run}", "episodes=1", "max_steps=9", f"out={tmp_path / 'out'}", "report=false"]) == 0
    )
