"""A run of `isdt train` as a policy that LeRobot loads, and back.

python -m lerobot_policy_isdt.convert outputs/my_robot lerobot_policy agent_pos=observation.state
python -m lerobot_policy_isdt.convert outputs/train/checkpoints/last/pretrained_model isdt_policy
"""

from __future__ import annotations

import sys
from pathlib import Path

from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.utils.constants import OBS_ENV_STATE

from isdt_policy.method.policy import Policy
from isdt_policy.shared.errors import InputError
from lerobot_policy_isdt.configuration_isdt import IsdtConfig
from lerobot_policy_isdt.modeling_isdt import IsdtPolicy, plain
from lerobot_policy_isdt.processor_isdt import make_isdt_pre_post_processors


def to_lerobot(checkpoint: str, names: dict[str, str]) -> IsdtPolicy:
    """The averaged weights of a run, as LeRobot's policy.

    Args:
        checkpoint: run, checkpoint, folder of save_pretrained or zoo:NAME.
        names: {key of the policy: feature of LeRobot}; others are called observation.KEY, pictures observation.images.KEY.

    Raises:
        InputError: no policy there, or a name of a key that it does not read.
    """
    policy = Policy.from_pretrained(checkpoint)
    unknown = sorted(set(names) - set(policy.obs_keys))
    if unknown:
        raise InputError(f"the policy reads no '{unknown[0]}'; it reads {', '.join(policy.obs_keys)}.")
    inputs, back = {}, {}
    for key, spec in policy.config.observations.items():
        seen = spec.kind == "image"
        name = names.get(key, f"observation.{'images.' if seen else ''}{key}")
        shape = (spec.shape[2], *spec.shape[:2]) if seen else spec.shape
        kind = FeatureType.VISUAL if seen else FeatureType.ENV if name == OBS_ENV_STATE else FeatureType.STATE
        inputs[name], back[name] = PolicyFeature(kind, shape), key
    config = IsdtConfig(
        n_obs_steps=policy.n_obs_steps, horizon=policy.horizon, n_action_steps=policy.n_action_steps, names=back,
        isdt=plain(policy.config), input_features=inputs, push_to_hub=False,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (policy.config.action_dim,))},
    )  # fmt: skip
    made = IsdtPolicy(config)
    made.policy.load_state_dict(policy.state_dict())
    made.averaged.load_state_dict(policy.state_dict())
    made.steps += config.diagonal_steps + 1
    return made.eval()


def main(words: list[str]) -> None:
    if len(words) < 2:
        raise InputError(
            "give a policy, a folder to write, and KEY=FEATURE where names differ; see --help of this module."
        )
    source, out, pairs = words[0], Path(words[1]), [word.partition("=") for word in words[2:]]
    if out.exists():
        raise InputError(f"'{out}' exists; give another name.")
    if (Path(source) / "policy_preprocessor.json").exists():  # LeRobot's
        IsdtPolicy.from_pretrained(source).averaged.save_pretrained(out)
        print(f"{out}: isdt eval data checkpoint={out}, isdt export checkpoint={out}")
        return
    policy = to_lerobot(source, {key: name for key, _, name in pairs})
    policy.save_pretrained(out)
    for pipeline in make_isdt_pre_post_processors(policy.config):
        pipeline.save_pretrained(out)
    print(f"{out}: lerobot-eval --policy.path={out} ...")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        raise SystemExit(f"convert: {error}") from None
