"""robomimic's own interfaces over ours, so that its users keep their scripts.

`EnvView` is a robomimic `EnvBase` over our environment; `RolloutPolicyView` is a policy of ours under the calls of
robomimic's `RolloutPolicy`: `start_episode()` and `policy(ob)` -> one action. Together they run in robomimic's
`rollout_with_stats` and in playback loops. Needs robomimic 0.3 (`pip install --no-deps robomimic==0.3.0`); of it only
`robomimic.envs.env_base` is imported, which needs no torchvision.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs import robosuite_compat
from isdt_policy.envs.protocol import Arrays, Info, Observation, Policy
from isdt_policy.envs.registry import make, task_spec
from isdt_policy.envs.robomimic import RobosuiteEnv
from isdt_policy.envs.robomimic_args import env_args, task_of
from isdt_policy.envs.robomimic_specs import IMAGE_SIZE, SCENES
from isdt_policy.shared.errors import InputError

try:
    from robomimic.envs.env_base import EnvBase, EnvType
except ImportError:
    raise InputError("robomimic's interfaces need robomimic: pip install --no-deps robomimic==0.3.0") from None


class EnvView(EnvBase):  # type: ignore[misc]
    """One of our robomimic tasks as robomimic's `EnvBase`.

    Args:
        env: from `make("lift", end_on_success=False)` and the like; robomimic runs episodes to the horizon by itself.
    """

    def __init__(self, env: RobosuiteEnv) -> None:
        self.env = env
        self._last: Observation | None = None

    def step(self, action: NDArray[np.floating]) -> tuple[Observation, float, bool, Info]:
        """Return observation, reward, done (False: robomimic stops by its horizon) and info."""
        self._last, reward, _, _, info = self.env.step(np.asarray(action))
        return self._last, float(reward), self.is_done(), info

    def reset(self) -> Observation:
        """Start an episode from the next draw."""
        self._last = self.env.reset()[0]
        return self._last

    def reset_to(self, state: Mapping[str, Any]) -> Observation | None:
        """Go to {"states": flat state, "model": xml}; "model" alone is prepared for and answered with None, as there."""
        if "states" not in state:
            self.env.reset(seed=0, options={"model_file": state.get("model")})
            return None
        self._last = self.env.reset_to(state["states"], state.get("model"))[0]
        return self._last

    def render(
        self,
        mode: str = "rgb_array",
        height: int | None = None,
        width: int | None = None,
        camera_name: str = "agentview",
    ) -> NDArray[np.uint8]:
        """Return an image (height, width, 3)."""
        if mode != "rgb_array":
            raise InputError(f"render mode '{mode}' is not supported; allowed: rgb_array.")
        if height != width:
            raise InputError(f"images are square, got height={height}, width={width}.")
        return robosuite_compat.image(self.env.sim, camera_name, height or self.env.render_size)

    def get_observation(self) -> Observation:
        """Return the observation of the present state."""
        return self.env.observe()

    def get_state(self) -> Info:
        """Return {"model": xml, "states": flat state}, which `reset_to` takes."""
        return {"model": self.env.model_xml(), "states": self.env.state()}

    def get_reward(self) -> float:
        """Return 1 if the task is done, else 0."""
        return float(self.is_success()["task"])

    def get_goal(self) -> None:
        """There are no goals."""
        raise NotImplementedError("these tasks have no goals")

    def set_goal(self, **kwargs: object) -> None:
        """There are no goals."""
        raise NotImplementedError("these tasks have no goals")

    def is_done(self) -> bool:
        """Return False: an episode ends at robomimic's horizon or on success, which it asks for."""
        return False

    def is_success(self) -> dict[str, bool]:
        """Return {"task": whether the task is done}."""
        return {"task": robosuite_compat.success(self.env.sim)}

    @property
    def action_dimension(self) -> int:
        """Length of an action."""
        return int(np.prod(self.env.action_space.shape or ()))

    @property
    def name(self) -> str:
        """robosuite's name of the task."""
        return self.env.scene.name

    @property
    def type(self) -> int:
        """robomimic's number for robosuite environments."""
        return int(EnvType.ROBOSUITE_TYPE)

    def serialize(self) -> Info:
        """Return `env_args`."""
        return env_args(self.env.task)

    @classmethod
    def create_for_data_processing(
        cls,
        env_name: str,
        camera_names: list[str],
        camera_height: int,
        camera_width: int,
        reward_shaping: bool,
        **kwargs: object,
    ) -> EnvView:
        """Build the environment for computing observations of recorded states."""
        if reward_shaping:
            raise InputError("the reward is sparse; reward_shaping=True is not supported.")
        if camera_names and (camera_height, camera_width) != (IMAGE_SIZE, IMAGE_SIZE):
            raise InputError(f"images are {IMAGE_SIZE} x {IMAGE_SIZE}, asked for {camera_height} x {camera_width}.")
        task = task_of({"env_name": env_name, "env_kwargs": kwargs})
        low_dim = [key for key in task_spec(task).observations if not key.endswith("_image")]
        keys = [*low_dim, *(f"{camera}_image" for camera in camera_names)]
        return cls(make(task, keys, end_on_success=False))  # type: ignore[arg-type]

    @property
    def rollout_exceptions(self) -> tuple[builtins.type[Exception], ...]:
        """Exceptions that end a rollout without ending a training run: none, since the simulator does not raise."""
        return ()

    @property
    def base_env(self) -> Any:
        """robosuite's environment."""
        return self.env.sim

    def __repr__(self) -> str:
        return f"EnvView({self.env.task}, one of {', '.join(SCENES)})"


class RolloutPolicyView:
    """A policy behind our protocol under the calls of robomimic's `RolloutPolicy`.

    Keeps the history of observations and the queue of actions that one answer gives.

    Args:
        policy: any policy with the members of `isdt_policy.envs.protocol.Policy`.
        steps: network evaluations per chunk, or a named sampler.
        seed: of the policy's noise; episode i uses (seed + i).
    """

    def __init__(self, policy: Policy, nfe: int | str = 1, seed: int = 0) -> None:
        self.policy, self.nfe = policy, nfe
        self._episode = seed - 1
        self.start_episode()

    def start_episode(self) -> None:
        """Forget the last episode."""
        self._episode += 1
        self._decision = 0
        self._history: list[Observation] = []
        self._queue: list[NDArray[np.float32]] = []
        self.policy.reset()

    def __call__(self, ob: Arrays, goal: Mapping[str, object] | None = None) -> NDArray[np.float32]:
        """Return the action (action_dim,) for the newest observation of an episode."""
        if goal is not None:
            raise InputError("this policy takes no goal.")
        now = {key: np.asarray(ob[key]) for key in self.policy.obs_keys}
        self._history = ([*self._history, now] if self._history else [now] * self.policy.n_obs_steps)[
            -self.policy.n_obs_steps :
        ]
        if not self._queue:
            stacked = {key: np.stack([o[key] for o in self._history])[None] for key in now}
            noise = np.array([[self._episode, self._decision]])
            self._queue = list(self.policy.predict_action(stacked, nfe=self.nfe, noise_seeds=noise)["action"][0])
            self._decision += 1
        return self._queue.pop(0)
