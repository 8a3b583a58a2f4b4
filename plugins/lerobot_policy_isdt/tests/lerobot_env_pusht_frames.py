"""PushT with the observations that zoo:pusht_human reads, as an environment of LeRobot's: --env.type=pusht_frames."""

from dataclasses import dataclass, field

import gymnasium as gym
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

from isdt_policy.envs import make

SIZES = {"agent_frame": 4, "agent_in_block": 2, "goal_in_block": 4}
ID = "isdt_pusht/PushT-v0"


class Frames(gym.Wrapper):
    """Our environment; LeRobot resets with an option of its own."""

    task_description = task = "push"

    def __init__(self, render_mode=None):
        super().__init__(make("pusht", SIZES, render_mode=render_mode))

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=seed)


gym.register(ID, entry_point=Frames, max_episode_steps=300)


@EnvConfig.register_subclass("pusht_frames")
@dataclass
class PushtFrames(EnvConfig):
    task: str | None = "PushT-v0"
    fps: int = 10
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (2,)),
            **{key: PolicyFeature(FeatureType.STATE, (size,)) for key, size in SIZES.items()},
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {"action": "action", **{key: f"observation.{key}" for key in SIZES}}
    )

    @property
    def package_name(self) -> str:
        return ID.split("/")[0]

    @property
    def gym_kwargs(self) -> dict:
        return {"render_mode": "rgb_array"}
