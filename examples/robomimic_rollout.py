"""A policy of ours in robomimic's own rollout: pip install '.[robomimic]' onnxruntime

    python examples/robomimic_rollout.py CHECKPOINT DEMOS.hdf5 EPISODES

CHECKPOINT is a run or an exported .onnx file; DEMOS.hdf5 says in env_args which environment was recorded.
"""

import sys
from types import ModuleType, SimpleNamespace

# robomimic 0.3.0 imports mujoco_py for the name of one exception. robosuite 1.4 uses mujoco and raises none of that name.
stub = ModuleType("mujoco_py")
stub.builder = SimpleNamespace(MujocoException=RuntimeError)
sys.modules.setdefault("mujoco_py", stub)

import numpy as np  # noqa: E402
from robomimic.algo import RolloutPolicy  # noqa: E402
from robomimic.scripts.run_trained_agent import rollout  # noqa: E402
from robomimic.utils import env_utils, file_utils, obs_utils  # noqa: E402

from isdt_policy.deploy.loading import load_policy  # noqa: E402
from isdt_policy.deploy.runtime import Runtime  # noqa: E402


class Ours(RolloutPolicy):
    """Asks a runtime of ours once a step; robomimic's pictures, floats with their channels first, become bytes again."""

    def __init__(self, checkpoint: str) -> None:
        self.policy = load_policy(checkpoint)
        self.runtime, self.episode = Runtime(self.policy), 0

    def start_episode(self) -> None:
        self.runtime.reset(seed=self.episode)
        self.episode += 1

    def __call__(self, ob, goal=None):
        seen = {key: np.asarray(ob[key]) for key in self.policy.obs_keys}
        return self.runtime.act({k: _bytes(v) if v.ndim == 3 else v.astype(np.float32) for k, v in seen.items()})


def _bytes(picture):
    return np.round(255 * picture.transpose(1, 2, 0)).astype(np.uint8)


def main(checkpoint: str, demos: str, episodes: int) -> None:
    policy = Ours(checkpoint)
    pictures = [key for key in policy.policy.obs_keys if "image" in key]
    states = [key for key in policy.policy.obs_keys if key not in pictures]
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": states, "rgb": pictures}})
    meta = file_utils.get_env_metadata_from_dataset(demos)
    env = env_utils.create_env_from_metadata(
        meta, render=False, render_offscreen=bool(pictures), use_image_obs=bool(pictures)
    )
    done = [rollout(policy, env, horizon=400)[0] for _ in range(episodes)]
    print("successes:", sum(stats["Success_Rate"] for stats in done), "of", episodes, done[-1:])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
