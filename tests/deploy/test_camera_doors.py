"""Cameras at the door: of the size that they have, of the looks that they had, and alive."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from isdt_deploy_server import Running

from isdt_policy.deploy.client import PolicyClient
from isdt_policy.deploy.export import export
from isdt_policy.deploy.runner import OnnxPolicy
from isdt_policy.deploy.runtime import Runtime
from isdt_policy.deploy.session import Contract
from isdt_policy.envs.protocol import ObsSpec
from isdt_policy.method.networks.image_encoder import ImageEncoderConfig
from isdt_policy.method.networks.mlp import MLPConfig
from isdt_policy.method.policy import Policy
from isdt_policy.method.policy_config import PolicyConfig
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.looks import Looks, doubts
from isdt_policy.shared.pixels import resized

SMALL, LARGE = (32, 32, 3), (96, 64, 3)
rng = np.random.default_rng(0)


def scenes(n, shape=SMALL, tint=(0, 0, 0), seed=0):
    """A bright table below, a red block somewhere, noise; as a camera would see a workspace."""
    rng = np.random.default_rng(seed)
    height, width, _ = shape
    pictures = np.full((n, *shape), 60.0) + rng.normal(0, 3, (n, *shape)) + rng.normal(0, 2, (n, 1, 1, 1))
    pictures[:, height // 2 :] += 80
    for picture in pictures:
        y, x = rng.integers(0, height * 3 // 4), rng.integers(0, width * 3 // 4)
        picture[y : y + height // 5, x : x + width // 5] = (200, 30, 20)
    return np.clip(pictures + np.array(tint), 0, 255).astype(np.uint8)


WRIST = (25, -20, -10)  # its light is another


@pytest.fixture(scope="module")
def looks():
    return {"front": Looks.of(scenes(256)), "wrist": Looks.of(scenes(256, tint=WRIST, seed=1))}


@pytest.fixture(scope="module")
def policy(looks):
    images = ImageEncoderConfig(width=0.1, keypoints=4, features=4)
    cameras = {key: dataclasses.replace(images.seen(SMALL, key), looks=looks[key]) for key in ("front", "wrist")}
    cameras["front"] = dataclasses.replace(cameras["front"], source=LARGE)
    config = PolicyConfig(
        "", {"hand": ObsSpec((2,)), **cameras}, 2, network=MLPConfig(width=16), cond_dim=8, image_encoder=images
    )
    built = Policy(config).eval()
    for buffer in built.normalizer.buffers():
        buffer.fill_(1.0)
    return built


def now(seed=5, shape=LARGE):
    return {"hand": np.zeros(2), "front": scenes(1, shape, seed=seed)[0], "wrist": scenes(1, tint=WRIST, seed=seed)[0]}


def row(step):
    return {key: np.stack([value, value])[None] for key, value in step.items()}


# Its own size.


def test_every_door_takes_the_cameras_own_size_and_resizes_it_as_conversion_did(policy, tmp_path):
    large = now()
    small = {**large, "front": resized(large["front"], SMALL[:2])}
    seeds = np.array([[3, 0]])
    expected = policy.predict_action(row(small), noise_seeds=seeds)["action"]
    np.testing.assert_array_equal(policy.predict_action(row(large), noise_seeds=seeds)["action"], expected)
    file = OnnxPolicy(export(policy, tmp_path / "p.onnx"))
    assert (file.image_sources, file.image_looks) == (
        {"front": LARGE},
        {k: s.looks for k, s in policy.config.images.items()},
    )
    for acts in (policy, file):
        a, b = (acts.predict_action(row(step), noise_seeds=seeds)["action"] for step in (large, small))
        np.testing.assert_array_equal(a, b)
        runtime = Runtime(acts)
        runtime.reset(seed=3)
        np.testing.assert_array_equal(runtime.act(large), a[0, 0])
        assert runtime._history[-1]["front"].shape == SMALL
    assert Contract.of(policy).max_bytes >= 1 << 20
    with Running(policy) as running, PolicyClient(running.uri) as client:
        assert client.image_sources == {"front": LARGE}
        for step in (large, small):
            np.testing.assert_array_equal(client.predict_action(row(step), noise_seeds=seeds)["action"], expected)


def test_other_sizes_stay_refused(policy):
    with pytest.raises(InputError, match=r"'front' has pictures of shape \(64, 64, 3\).* it is of another size"):
        policy.predict_action(row(now(shape=(64, 64, 3))))


def test_size_and_looks_are_in_config_json(policy):
    raw = json.loads(json.dumps(policy.config.to_json()))
    assert PolicyConfig.from_json(raw) == policy.config
    for damage, message in [
        ({"source": [96, 64]}, "images.front has source (96, 64), which is no (height, width, 3)"),
        ({"looks": {"mean": "00"}}, "images.front.looks is damaged"),
        ({"looks": {**raw["images"]["front"]["looks"], "mean": "zz"}}, "images.front.looks is damaged"),
        ({"looks": 3}, "images.front.looks is damaged"),
    ]:
        changed = {**raw, "images": {**raw["images"], "front": {**raw["images"]["front"], **damage}}}
        with pytest.raises(InputError) as error:
            PolicyConfig.from_json(changed)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


# Its looks.

WRONG = {
    "red and blue are swapped": lambda o: {**o, "front": o["front"][..., ::-1]},
    "it is upside down": lambda o: {**o, "wrist": o["wrist"][::-1]},
    "are the two cameras swapped": lambda o: {**o, "front": o["wrist"], "wrist": o["front"]},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_was_done_to_pictures_is_named_once(policy, caplog, what):
    with caplog.at_level(logging.WARNING, "isdt_policy.deploy"):
        runtime = Runtime(policy)
        for episode in range(2):
            runtime.reset()
            runtime.act(WRONG[what](now(episode, SMALL)))
    said = [record.getMessage() for record in caplog.records]
    assert sum(what in text for text in said) == (2 if "swapped" in what and "cameras" in what else 1)


def test_pictures_like_the_recorded_ones_are_not_doubted(looks):
    for seed in range(40):
        seen = {"front": scenes(1, seed=100 + seed), "wrist": scenes(1, tint=WRIST, seed=100 + seed)}
        assert doubts(looks, seen) == []
    dark = {"front": scenes(1) // 3, "wrist": 255 - scenes(1, tint=WRIST)}  # strange, and nobody knows why
    assert doubts(looks, dark) == []


def test_the_looks_of_pusht_are_known_by_its_colours():
    """A white field, whose red and blue differ by what the agent and the block are painted with."""
    from isdt_policy.envs import make

    env = make("pusht", obs_keys=["pixels"])
    draw = np.stack([env.reset(seed=seed)[0]["pixels"] for seed in range(40)])
    known = {"pixels": Looks.of(draw[:30])}
    assert doubts(known, {"pixels": draw[30:]}) == []
    assert "BGR" in doubts(known, {"pixels": draw[30:, ..., ::-1]})[0]


def test_a_server_says_it_of_a_client(policy, caplog):
    swapped = WRONG["it is upside down"](now(0, SMALL))
    with (
        caplog.at_level(logging.WARNING, "isdt_policy.deploy"),
        Running(policy) as running,
        PolicyClient(running.uri) as client,
    ):
        for _ in range(2):
            client.predict_action(row(swapped))
    assert sum("a client: the pictures 'wrist'" in record.getMessage() for record in caplog.records) == 1


def test_an_evaluation_says_it_of_an_environment(policy, caplog):
    from isdt_policy.eval.inference import Inference
    from isdt_policy.shared.arm import Arm

    inference = Inference(policy, 16)
    with caplog.at_level(logging.WARNING, "isdt_policy.eval"):
        for seed in range(2):
            inference.ask(row(WRONG["it is upside down"](now(seed, SMALL))), Arm.parse(1), np.array([[0, seed]]))
    assert len(caplog.records) == 1


# Alive.


def test_a_camera_that_repeats_its_picture_is_named_once_and_counted(policy, caplog):
    runtime = Runtime(policy)
    frozen = now()["front"]
    with caplog.at_level(logging.WARNING, "isdt_policy.deploy"):
        for step in range(25):
            runtime.step({"hand": np.full(2, step), "front": frozen, "wrist": now(step)["wrist"]})
    said = [r.getMessage() for r in caplog.records if "same picture" in r.getMessage()]
    assert said == ["the camera 'front' has given the same picture for 10 steps, while other observations changed"]
    assert runtime.cameras.stale == {"front": 24}


def test_with_a_time_per_key_an_observation_is_as_old_as_its_oldest_part(policy):
    runtime = Runtime(policy)
    steps = [{**now(step), "hand": np.full(2, step)} for step in range(6)]
    ages = []
    for step, obs in enumerate(steps):
        times = {"hand": float(step), "front": min(step, 2.0), "wrist": float(step)}
        runtime.execute = 1
        decision = runtime.step(obs, times)
        ages.append(step - decision.taken_s)
        assert decision.age == 0  # the rest is new: it is not taken for lost
    assert ages == [0, 0, 0, 1, 2, 3]
