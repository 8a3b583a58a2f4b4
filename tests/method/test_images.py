"""Encoders of pictures, and what a policy says to pictures it cannot read."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from isdt_policy.envs.protocol import ObsSpec
from isdt_policy.method.networks.image_encoder import Cameras, ImageEncoderConfig, Keypoints, Look
from isdt_policy.method.networks.unet1d import UNet1dConfig
from isdt_policy.method.policy import Policy
from isdt_policy.method.policy_config import PolicyConfig
from isdt_policy.shared.errors import InputError

SMALL = ImageEncoderConfig(width=0.1, keypoints=4, features=4, crop=0.75)


def policy(images=SMALL, states=True, **sizes):
    """Reads a state and two cameras of different sizes."""
    torch.manual_seed(0)
    cameras = {"front": images.seen((48, 64, 3), "front"), "wrist": images.seen((32, 32, 3), "wrist"), **sizes}
    observations = {**({"hand": ObsSpec((2,))} if states else {}), **cameras}
    network = UNet1dConfig(down_dims=(8, 16), embed_dim=16, time_dim=8)
    config = PolicyConfig("", observations, 2, network=network, cond_dim=8, encoder_hidden=(8,), image_encoder=images)
    built = Policy(config)
    for buffer in built.normalizer.buffers():
        buffer.fill_(1.0)
    with torch.no_grad():
        for parameter in built.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built.eval()


def observed(batch, seed=0):
    rng = np.random.default_rng(seed)
    pictures = {
        key: rng.integers(0, 256, (batch, 2, *size, 3), np.uint8)
        for key, size in (("front", (48, 64)), ("wrist", (32, 32)))
    }
    return {"hand": rng.normal(size=(batch, 2, 2)), **pictures}


def act(policy, obs, nfe=1):
    batch = len(obs["front"])
    return policy.predict_action(obs, nfe=nfe, noise_seeds=np.arange(2 * batch).reshape(batch, 2))["action_pred"]


@pytest.mark.parametrize(
    "images",
    [SMALL, dataclasses.replace(SMALL, head="pool"), dataclasses.replace(SMALL, shared=True),
     ImageEncoderConfig("resnet", width=0.1, keypoints=4, features=4, crop=1)],
)  # fmt: skip
def test_a_policy_that_sees_is_saved_and_loaded(tmp_path, images):
    if images.trunk == "resnet":
        size = {key: images.seen((96, 96, 3), key) for key in ("front", "wrist")}
        seen = {key: np.random.default_rng(0).integers(0, 256, (3, 2, 96, 96, 3), np.uint8) for key in size}
        before, obs = policy(dataclasses.replace(images, trunk="conv")), {**observed(3), **seen}
        torch.manual_seed(0)
        before = Policy(
            dataclasses.replace(before.config, observations={"hand": ObsSpec((2,)), **size}, image_encoder=images)
        ).eval()
        for buffer in before.normalizer.buffers():
            buffer.fill_(1.0)
    else:
        before, obs = policy(images), observed(3)
    before.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["format_version"] == 2
    after = Policy.from_pretrained(tmp_path)
    assert after.config == before.config
    np.testing.assert_array_equal(act(after, obs), act(before, obs))


def test_one_network_for_all_cameras_is_one_network():
    apart, shared = policy(), policy(dataclasses.replace(SMALL, shared=True))
    sizes = [sum(p.numel() for p in p_.cameras.parameters()) for p_ in (apart, shared)]
    assert sizes[0] == 2 * sizes[1]


def test_every_camera_and_every_frame_counts():
    acts, obs = policy(), observed(1)
    base = act(acts, obs)
    for key in ("front", "wrist"):
        for frame in (0, 1):
            other = {**obs, key: obs[key].copy()}
            other[key][:, frame] = 255 - other[key][:, frame]
            assert not np.array_equal(act(acts, other), base)


def test_outside_of_the_middle_nothing_is_read():
    acts, obs = policy(), observed(1)
    other = {**obs, "front": obs["front"].copy()}
    other["front"][:, :, :6] = 0  # 36 of 48 rows are read
    np.testing.assert_array_equal(act(acts, other), act(acts, obs))
    other["front"][:, :, 6] = 255 - other["front"][:, :, 6]
    assert not np.array_equal(act(acts, other), act(acts, obs))


def test_a_row_does_not_depend_on_its_neighbours():
    acts, obs = policy(), observed(21)
    whole = act(acts, obs)
    order = np.random.default_rng(1).permutation(21)
    seeds = np.arange(42).reshape(21, 2)
    shuffled = acts.predict_action({k: v[order] for k, v in obs.items()}, noise_seeds=seeds[order])["action_pred"]
    np.testing.assert_array_equal(shuffled, whole[order])


def test_a_policy_may_read_pictures_alone():
    acts = policy(states=False)
    assert acts.obs_keys == ("front", "wrist")
    assert np.isfinite(act(acts, observed(2))).all()


def test_keypoints_are_where_a_map_is_bright():
    head = Keypoints(1, 1)
    torch.nn.init.constant_(head.maps.weight, 100.0)
    torch.nn.init.zeros_(head.maps.bias)
    picture = torch.zeros(1, 1, 5, 9)
    picture[0, 0, 4, 2] = 1
    torch.testing.assert_close(head(picture), torch.tensor([[-0.5, 1.0]]), atol=1e-4, rtol=0)


def test_bfloat16_is_for_convolutions_alone():
    cameras = Cameras({"wrist": SMALL.seen((32, 32, 3), "wrist")}, 2, SMALL)
    obs = {"wrist": torch.from_numpy(observed(2)["wrist"])}
    full, rounded = cameras(obs), cameras(obs, Look(bf16=True))
    assert rounded.dtype == torch.float32
    assert 0 < (full - rounded).abs().max() < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: None, "the policy reads observation 'front', given: hand, wrist"),
        (lambda x: x / 255.0, "'front' is float64, and pictures are bytes, 0 to 255 .uint8.. If they are between 0 and 1: "),
        (lambda x: x.astype(np.int64), r"'front' is int64, .* Convert it: x.astype\(np.uint8\)"),
        (lambda x: x[..., 0], r"shape \(48, 64\), expected \(48, 64, 3\): it is grey"),
        (lambda x: x[..., :1], r"shape \(48, 64, 1\), expected \(48, 64, 3\): it is grey"),
        (lambda x: np.concatenate([x, x[..., :1]], -1), r"alpha channel. Leave it out: x\[..., :3\]"),
        (lambda x: np.moveaxis(x, -1, -3), r"shape \(3, 48, 64\), expected \(48, 64, 3\): the channels come first"),
        (lambda x: x[:, :, ::2], r"shape \(24, 64, 3\), expected \(48, 64, 3\): it is of another size"),
        (lambda x: x[:, :1], r"shape \(1, 1, 48, 64, 3\), expected \(batch, n_obs_steps=2, 48, 64, 3\)"),
    ],
)  # fmt: skip
def test_pictures_that_cannot_be_read_are_one_line(change, message):
    obs = {**observed(1), "front": change(observed(1)["front"])}
    given = {key: value for key, value in obs.items() if value is not None}
    with pytest.raises(InputError, match=message) as error:
        policy().predict_action(given)
    assert "\n" not in str(error.value)


def test_an_encoder_larger_than_the_picture_is_refused():
    with pytest.raises(
        InputError, match=r"'front' has pictures of 48x48 px, of which images.crop=0.875 leaves 42x42; .* needs 64"
    ):
        ImageEncoderConfig("resnet").seen((48, 48, 3), "front")
    with pytest.raises(InputError, match=r"images.trunk=conv needs 16"):
        ImageEncoderConfig().seen((8, 8, 3), "front")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_encoder": {"trunks": "conv"}}, "image_encoder has no 'trunks'. Did you mean 'trunk'?"),
        ({"images": {"front": {"shape": [48, 64, 3]}}}, "images.front must have 'shape' and 'crop'"),
        ({"images": {"front": {"shape": [48, 64, 3], "crop": [49, 64]}}}, "the crop must fit"),
        ({"images": 3}, "'images' must be an object"),
        ({"format_version": 3}, "policy format 3, this version reads 1 and 2"),
    ],
)
def test_a_damaged_config_of_a_policy_that_sees_is_one_line(change, message):
    with pytest.raises(InputError) as error:
        PolicyConfig.from_json({**json.loads(json.dumps(policy().config.to_json())), **change})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
