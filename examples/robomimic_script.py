"""robomimic's own scripts, with our policies as agents and MuJoCo's own bindings: pip install '.[robomimic]'

    python examples/robomimic_script.py run_trained_agent --agent outputs/lift --n_rollouts 20 --seed 0
    python examples/robomimic_script.py playback_dataset --dataset lift.hdf5 --n 2 --video_path lift.mp4

The first word is a script in robomimic/scripts, the rest are its own flags. --agent takes a run, an exported .onnx file or
ws://HOST:PORT of `isdt serve` if it was trained in one of robomimic's tasks; robomimic's .pth files are loaded as always.
"""

import argparse
import runpy
import sys
from types import ModuleType, SimpleNamespace

import numpy as np

from isdt_policy.datasets.formats.robomimic_env import rewritten_rotation
from isdt_policy.deploy.loading import load_policy, task_of
from isdt_policy.envs import robosuite_compat
from isdt_policy.envs.robomimic_args import env_args
from isdt_policy.envs.robomimic_specs import IMAGE_SIZE, SPECS
from isdt_policy.envs.robomimic_view import RolloutPolicyView
from isdt_policy.shared.errors import InputError

CAMERA = "_image"  # at the end of the keys of pictures


def main(script: str, words: list[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--agent", default=".pth")
    agent = parser.parse_known_args(words)[0].agent
    policy = None if agent.endswith(".pth") else load_policy(agent)
    pictures = [key for key in policy.obs_keys if key.endswith(CAMERA)] if policy else []
    # robomimic 0.3.0 imports mujoco_py for the name of one exception, which MuJoCo's own bindings never raise.
    stub = ModuleType("mujoco_py")
    stub.builder = SimpleNamespace(MujocoException=FloatingPointError)
    sys.modules.setdefault("mujoco_py", stub)
    robosuite_compat.load(rendering=bool(pictures or {"--video_path", "--camera_names", "--render"} & {*words}))
    if policy is not None:
        from robomimic.utils import file_utils

        file_utils.policy_from_checkpoint = lambda **_: (as_agent(policy), as_checkpoint(policy, pictures))
    sys.argv = [script, *words]
    runpy.run_module(f"robomimic.scripts.{script}", run_name="__main__", alter_sys=True)


def as_agent(policy):
    """What robomimic calls once a step."""
    from robomimic.algo import RolloutPolicy

    # Absolute commands have 6D rotations here and axis-angle there.
    convert = rewritten_rotation(policy.task, 10, task_of(policy, None).action.shape[0])

    class Agent(RolloutPolicyView, RolloutPolicy):
        def __call__(self, ob, goal=None):
            action = super().__call__({key: _bytes(ob[key]) if key.endswith(CAMERA) else ob[key] for key in ob}, goal)
            return action if convert is None else convert(action[None])[0]

    return Agent(policy)


def as_checkpoint(policy, pictures):
    """What a checkpoint of robomimic says beside its weights: environment, kinds of observations, horizon."""
    from robomimic.config import config_factory
    from robomimic.utils import obs_utils

    spec = task_of(policy, None)
    if spec.id not in SPECS:
        raise InputError(
            f"the policy was trained in '{spec.id}', which is none of robomimic's tasks: {', '.join(SPECS)}."
        )
    states = [key for key in policy.obs_keys if key not in pictures]
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": states, "rgb": pictures}})
    environment = env_args(spec.id)
    if pictures:
        cameras = [key.removesuffix(CAMERA) for key in pictures]
        environment["env_kwargs"] |= dict(camera_names=cameras, camera_heights=IMAGE_SIZE, camera_widths=IMAGE_SIZE)
    config = config_factory("bc")  # of its settings only the horizon is read
    config.experiment.rollout.horizon = spec.max_episode_steps
    return {
        "algo_name": "bc", "config": config.dump(), "env_metadata": environment,
        "shape_metadata": {"use_images": bool(pictures)},
    }  # fmt: skip


def _bytes(picture):
    """Floats with their channels first, as they are there, as bytes with their channels last."""
    return np.round(255 * picture.transpose(1, 2, 0)).astype(np.uint8)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    try:
        main(sys.argv[1], sys.argv[2:])
    except InputError as error:
        raise SystemExit(f"robomimic_script: {error}") from None
