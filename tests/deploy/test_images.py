"""A policy that sees, behind every door of deployment: exported, served, in the control loop."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from isdt_deploy_server import FromTheDocuments, Running, row

from isdt_policy.deploy.client import PolicyClient
from isdt_policy.deploy.export import FileFormat, describe, export, parity
from isdt_policy.deploy.freezing import PrefixPolicy
from isdt_policy.deploy.hub import model_card
from isdt_policy.deploy.runner import OnnxPolicy
from isdt_policy.deploy.runtime import Runtime
from isdt_policy.deploy.session import Contract
from isdt_policy.envs.protocol import ObsSpec
from isdt_policy.method.networks.image_encoder import ImageEncoderConfig
from isdt_policy.method.networks.mlp import MLPConfig
from isdt_policy.method.policy import Policy
from isdt_policy.method.policy_config import PolicyConfig
from isdt_policy.shared.errors import InputError

pytestmark = pytest.mark.slow

SIZES = {"front": (48, 64, 3), "wrist": (32, 32, 3)}


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    images = ImageEncoderConfig(width=0.1, keypoints=4, features=4, crop=0.75)
    cameras = {key: images.seen(shape, key) for key, shape in SIZES.items()}
    built = Policy(
        PolicyConfig(
            "", {"hand": ObsSpec((2,)), **cameras}, 2, network=MLPConfig(width=16), cond_dim=8, image_encoder=images
        )
    )
    with torch.no_grad():
        for buffer in built.normalizer.buffers():
            buffer.fill_(1.0)
        for parameter in built.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built.eval()


@pytest.fixture(scope="module")
def file(policy, tmp_path_factory):
    return export(policy, tmp_path_factory.mktemp("export") / "p.onnx")


def observed(batch, seed=0):
    rng = np.random.default_rng(seed)
    pictures = {key: rng.integers(0, 256, (batch, 2, *shape), np.uint8) for key, shape in SIZES.items()}
    return {"hand": rng.normal(size=(batch, 2, 2)).astype(np.float32), **pictures}


def answer(acts, obs, **how):
    seeds = np.arange(2 * len(obs["hand"])).reshape(-1, 2)
    return acts.predict_action(obs, noise_seeds=seeds, **how)["action_pred"]


def test_an_exported_file_reads_bytes_and_crops_itself(policy, file):
    assert parity(policy, file, inputs=40) < 1e-5
    runner, obs = OnnxPolicy(file), observed(3)
    assert runner.image_shapes == SIZES
    other = {**obs, "front": obs["front"].copy()}
    other["front"][:, :, :6] = 0  # 36 of 48 rows are read
    np.testing.assert_array_equal(answer(runner, other), answer(runner, obs))


def test_pt2_and_started_chunks_agree_too(policy, tmp_path):
    continues = export(policy, tmp_path / "p.pt2", FileFormat("pt2", nfe=2, prefix=True))
    assert parity(policy, continues, nfe=2, prefix=True, inputs=20) < 1e-5


def test_the_runner_needs_no_torch(file):
    program = (
        "import sys, numpy as np; from isdt_policy.deploy.runner import OnnxPolicy\n"
        f"p = OnnxPolicy({str(file)!r})\n"
        "obs = {k: np.zeros((1, 2, *s), np.uint8) for k, s in p.image_shapes.items()} | {'hand': np.zeros((1, 2, 2))}\n"
        "assert p.predict_action(obs)['action'].shape == (1, 8, 2); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


DOORS = [
    (lambda x: x / 255, ", and pictures are bytes, 0 to 255 (uint8). If they are between 0 and 1: (255 * x)"),
    (lambda x: x[..., 0], "it is grey"),
    (lambda x: np.concatenate([x, x[..., :1]], -1), "alpha channel"),
    (lambda x: np.moveaxis(x, -1, -3), "the channels come first"),
    (lambda x: x[..., ::2, :, :], "it is of another size"),
    (None, "the policy reads observation 'front', given: hand, wrist"),
]


@pytest.mark.parametrize(("change", "message"), DOORS)
def test_every_door_says_in_one_line_what_is_wrong_with_a_picture(policy, file, change, message):
    obs = observed(1)
    front = obs.pop("front")
    if change is not None:
        obs["front"] = change(front)
    alone = {key: value[0, -1] for key, value in obs.items()}
    doors = [
        lambda: policy.predict_action(obs),
        lambda: OnnxPolicy(file).predict_action(obs),
        lambda: Runtime(policy.alone()).act(alone),
        lambda: PrefixPolicy(policy).continue_action(obs, np.zeros((1, 16, 2)), np.zeros((1, 16))),
    ]
    for door in doors:
        with pytest.raises(InputError) as error:
            door()
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_a_served_policy_sees_what_the_policy_sees(policy):
    obs = observed(3)
    with Running(policy) as running, PolicyClient(running.uri) as client:
        assert client.obs_keys == policy.obs_keys
        np.testing.assert_array_equal(answer(client, obs), answer(policy, obs))
        stranger = FromTheDocuments(running.uri)
        assert stranger.metadata["images"] == {key: list(shape) for key, shape in SIZES.items()}
        for given in (row(obs), {key: value[0, -1] for key, value in obs.items()}):  # a history, and one step
            assert stranger.infer(given)["actions"].shape == (8, 2)
        for change, message in DOORS:
            wrong = {key: value for key, value in row(obs).items() if key != "front"}
            if change is not None:
                wrong["front"] = np.ascontiguousarray(change(obs["front"][0]))
            with pytest.raises(RuntimeError, match="InputError") as error:
                stranger.infer(wrong)
            assert message in str(error.value)


def test_frames_of_large_cameras_are_let_in(policy):
    assert Contract.of(policy).max_bytes == 1 << 20
    large = Contract({}, 2, 8, 16, 2, "", False, images={"front": (480, 640, 3), "wrist": (480, 640, 3)})
    assert large.max_bytes == 2 * 2 * 2 * 480 * 640 * 3


def test_the_control_loop_acts_as_evaluation_does(policy):
    """The history is made of single steps, and a picture that is used again by the camera's driver is copied."""
    runtime, obs = Runtime(policy), observed(1)
    runtime.reset(seed=3)
    frames = {key: value[0, 0].copy() for key, value in obs.items()}
    first = runtime.act(frames)
    start = {key: np.repeat(value[:, :1], 2, axis=1) for key, value in obs.items()}
    expected = policy.predict_action(start, noise_seeds=np.array([[3, 0]]))["action"][0, 0]
    np.testing.assert_array_equal(first, expected)
    frames["front"][:] = 0
    assert runtime._history[-1]["front"].dtype == np.uint8
    assert runtime._history[-1]["front"].any()


def test_the_card_names_the_cameras(policy):
    card = model_card(policy, None)
    assert "front (48x64x3 uint8)" in card
    assert "'front': (48, 64, 3)" in card


def test_a_policy_without_pictures_is_exported_as_before():
    from isdt_deploy_toys import tiny_policy

    said = describe(tiny_policy(), 1, False, None, "")
    assert said["format"] == 2
    assert "images" not in said


def test_openpis_client_sends_its_own_names_and_pictures(policy):
    """A nested map of cameras, a slash in a name, and a prompt that nobody reads; what is absent is asked for by its name."""
    from openpi_client import image_tools, websocket_client_policy

    names = ("observation/joint_position:hand", "images/cam_high:front", "images/cam_right:wrist")
    obs = observed(1, seed=3)
    now = {key: value[0, 1] for key, value in obs.items()}
    wide = np.repeat(now["front"], 2, axis=0).repeat(2, axis=1)  # as a camera gives it
    small = image_tools.resize_with_pad(wide, 48, 64)
    still = {key: np.stack([value, value])[None] for key, value in {**now, "front": small}.items()}
    with Running(policy, history="chunks", names=names) as server:
        client = websocket_client_policy.WebsocketClientPolicy(server.uri)
        assert client.get_server_metadata()["names"]["front"] == "images/cam_high"
        sent = {"observation/joint_position": now["hand"], "images": {"cam_high": small, "cam_right": now["wrist"]}}
        answered = client.infer({**sent, "prompt": "pick", "noise_seeds": np.array([[0, 1]])})["actions"]
        assert np.array_equal(answered, policy.predict_action(still, noise_seeds=np.array([[0, 1]]))["action"][0])
        with pytest.raises(
            RuntimeError, match="reads observation 'images/cam_high', given: observation/joint_position"
        ):
            client.infer({"observation/joint_position": now["hand"]})
