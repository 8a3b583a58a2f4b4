"""Pictures in rollouts: drawn where a policy reads them, and the same results however many run at a time."""

import numpy as np
import pytest
from isdt_eval_toys import Chaos, evaluate

from isdt_policy.eval.protocol import Protocol

SEEDS = [100_000, 100_001, 100_002]


class Camera(Chaos):
    """Draws its step into a picture."""

    def __init__(self, asks: bool = True) -> None:
        super().__init__(40)
        self.drawn = 0
        if asks:
            self.draw_images = True

    def _obs(self):
        draw = getattr(self, "draw_images", True)
        self.drawn += draw
        return {**super()._obs(), "front": np.full((4, 4, 3), self.t + 1 if draw else 0, np.uint8)}


class Watcher:
    """Acts on what it sees, and writes it down."""

    obs_keys, n_action_steps = ("front",), 8

    def __init__(self, n_obs_steps=2):
        self.n_obs_steps, self.seen = n_obs_steps, []

    def reset(self):
        pass

    def predict_action(self, obs, *, nfe=1, noise_seeds=None):
        assert obs["front"].dtype == np.uint8
        self.seen.append(obs["front"][:, :, 0, 0, 0].tolist())
        action = np.repeat(obs["front"][:, -1, 0, 0, :2].astype(np.float32)[:, None], 8, axis=1)
        return {"action": action, "action_pred": action}


@pytest.mark.parametrize(("n_obs_steps", "n_latency_steps", "drawn"), [(1, 0, 5), (2, 0, 9), (2, 1, 16), (10, 0, 33)])
def test_pictures_are_drawn_where_they_are_read(n_obs_steps, n_latency_steps, drawn):
    """40 steps in chunks of 8 (of 7 behind a latency): the last ones of each chunk, and the first picture."""
    results, cameras = [], []
    for asks in (True, False):
        watcher, camera = Watcher(n_obs_steps), Camera(asks)
        protocol = Protocol("camera", n_latency_steps=n_latency_steps)
        results.append((evaluate(watcher, protocol, SEEDS[:1], make_env=lambda: camera).episodes, watcher.seen))  # noqa: B023
        cameras.append(camera)
    assert results[0] == results[1]
    assert cameras[1].drawn == 41
    assert cameras[0].drawn <= drawn + n_obs_steps + n_latency_steps  # the last chunk ends with the episode
    assert cameras[0].drawn >= drawn


def test_a_kept_trajectory_holds_every_picture():
    result = evaluate(Watcher(), Protocol("camera"), SEEDS[:1], make_env=Camera, keep=("trajectory",))
    (kept,) = result.kept.values()
    assert kept.trajectory["front"][:, 0, 0, 0].tolist() == list(range(1, 41))


@pytest.fixture(scope="module")
def sees():
    """An untrained policy that reads PushT's pixels."""
    import torch

    from isdt_policy.envs.protocol import ObsSpec
    from isdt_policy.method.networks.image_encoder import ImageEncoderConfig
    from isdt_policy.method.networks.unet1d import UNet1dConfig
    from isdt_policy.method.policy import Policy
    from isdt_policy.method.policy_config import PolicyConfig

    torch.manual_seed(0)
    images = ImageEncoderConfig(width=0.1, keypoints=4, features=4)
    observations = {"agent_pos": ObsSpec((2,)), "pixels": images.seen((96, 96, 3), "pixels")}
    network = UNet1dConfig(down_dims=(8, 16), embed_dim=16, time_dim=8)
    policy = Policy(PolicyConfig("pusht", observations, 2, network=network, cond_dim=8, image_encoder=images)).eval()
    with torch.no_grad():
        for name, buffer in policy.normalizer.named_buffers():
            buffer.fill_(256.0 if "offset" in name else 0.01)
        for parameter in policy.network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return policy


def test_pusht_from_pixels_does_not_depend_on_how_many_run_at_a_time(sees):
    protocol = Protocol("pusht", max_steps=25)
    reference, *others = [evaluate(sees, protocol, SEEDS, n_envs=n).episodes for n in (1, 2, 3)]
    assert len({r.digest for r in reference}) == len(SEEDS)
    assert all(other == reference for other in others)
