"""Two tasks of gymnasium-robotics under the same spec: FrankaKitchen and Adroit's door.

Spec sheet
    franka_kitchen  nine-joint arm in a kitchen; 7 things to do (all of the environment's default); reward is the share done
                    so far, success all of them; 280 steps at 12.5 Hz. Actions are joint velocities, -1 .. 1.
    adroit_door     a 28-joint hand opens a door; reward 1 while it is open, which is success; 200 steps at 100 Hz / 5.
                    Actions are joint targets, -1 .. 1.
    Seeds           "gymnasium": Gymnasium's own `reset(seed=...)`.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs import opengl
from isdt_policy.envs.protocol import Info, Observation
from isdt_policy.envs.registry import (
    ActionPart,
    ArraySpec,
    Env,
    TaskSpec,
    checked_array,
    observation_space,
)
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import installed_version

TESTED = "1.4.2"
_NAMES = {"franka_kitchen": "FrankaKitchen-v1", "adroit_door": "AdroitHandDoor-v1"}


def _spec(
    task: str, obs: int, action: int, steps: int, rate: int, action_type: str, success: str, text: str
) -> TaskSpec:
    return TaskSpec(
        id=task,
        observations={"observation": ArraySpec((obs,), "float32", "m, rad, m/s, rad/s", -200.0, 200.0, text)},
        action=ArraySpec((action,), "float32", "1", -1.0, 1.0, action_type),
        action_type=action_type,
        action_parts=(ActionPart("joints", action),),
        neutral=(0.0,) * action if "velocities" in action_type else None,
        max_episode_steps=steps,
        rate_hz=rate,
        success=success,
        default_obs_keys=("observation",),
        seed_protocols=("gymnasium",),
        packages=("gymnasium-robotics", "mujoco"),
        extra="gymnasium-robotics",
    )


SPECS = {
    "franka_kitchen": _spec(
        "franka_kitchen", 59, 9, 280, 12, "joint velocities, scaled to -1 .. 1", "all seven things are done",
        "positions and velocities of the arm (18) and of the kitchen's movable parts (41)",
    ),
    "adroit_door": _spec(
        "adroit_door", 39, 28, 200, 20, "joint targets, scaled to -1 .. 1", "door more than 1.35 rad open",
        "joints of arm and hand (27), latch, door, palm, handle, palm to handle, whether the door is open",
    ),
}  # fmt: skip


class RoboticsEnv(Env):
    """A task of gymnasium-robotics as described at the top of this file.

    Args:
        task: id in the registry.
        obs_keys: keys of the Dict observation; there is one, "observation".
        seed_protocol: "gymnasium".
        render_mode: None or "rgb_array".
        end_on_success: False lets an episode go on to the step limit.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012 - Gymnasium's contract

    def __init__(
        self,
        task: str,
        obs_keys: tuple[str, ...] | None = None,
        seed_protocol: str = "gymnasium",
        render_mode: str | None = None,
        end_on_success: bool = True,
    ) -> None:
        version = installed_version("gymnasium-robotics")
        if version != TESTED:
            raise InputError(
                f"gymnasium-robotics {version} is installed, but only {TESTED} is tested. "
                "Install it with: pip install 'isdt-policy[gymnasium-robotics]'"
            )
        self.task, self.spec_sheet = task, SPECS[task]
        self.obs_keys = obs_keys or ("observation",)
        self.seed_protocol, self.render_mode, self.end_on_success = seed_protocol, render_mode, end_on_success
        self.observation_space = observation_space(self.spec_sheet, self.obs_keys)
        self.action_space = self.spec_sheet.action.space()
        self.sim = _build(_NAMES[task], render_mode)
        self._steps: int | None = None  # None: not running

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        """Start an episode; without a seed, from the running generator's next draw."""
        super().reset(seed=seed)
        if options and options.get("reset_to_state") is not None:
            raise InputError(f"task '{self.task}' cannot be reset to a state; give a seed.")
        drawn = seed if seed is not None else int(self.np_random.integers(2**31))
        observation, _ = self.sim.reset(seed=drawn)
        self._steps = 0
        return self._observation(observation), {"is_success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, Info]:
        """Carry out an action; numbers outside -1 .. 1 are clipped.

        Raises:
            InputError: if the action has another shape or is not finite.
            gymnasium.error.ResetNeeded: before the first reset and after the end of an episode.
        """
        if self._steps is None:
            raise gymnasium.error.ResetNeeded("the episode has ended or not begun: call reset() before step().")
        array = checked_array(action, self.spec_sheet.action.shape, "action")
        observation, _, _, _, info = self.sim.step(np.clip(array, -1.0, 1.0))
        self._steps += 1
        if self.task == "franka_kitchen":
            done, left = len(info["episode_task_completions"]), len(info["tasks_to_complete"])
            reward = done / (done + left)
        else:
            reward = float(info["success"])
        success = reward == 1.0
        terminated = success and self.end_on_success
        truncated = not terminated and self._steps >= self.spec_sheet.max_episode_steps
        if terminated or truncated:
            self._steps = None
        return self._observation(observation), reward, terminated, truncated, {"is_success": success}

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Return an image (height, width, 3), uint8 RGB; None without a render mode."""
        return None if self.render_mode is None else self.sim.render()

    def close(self) -> None:
        """Release the simulator."""
        self.sim.close()

    def _observation(self, given: Observation | NDArray[np.float64]) -> Observation:
        array = given["observation"] if isinstance(given, dict) else given
        return {"observation": np.clip(np.asarray(array, np.float32), -200.0, 200.0)}


def make_env(task: str, **kwargs: Any) -> RoboticsEnv:
    """Build the environment; `isdt_policy.envs.make` has checked the arguments."""
    return RoboticsEnv(task, **kwargs)


def _build(name: str, render_mode: str | None) -> Any:
    opengl.choose(render_mode is not None)
    # Its import speaks of versions of tasks that are not used here.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gymnasium_robotics

        gymnasium.register_envs(gymnasium_robotics)
        # The bare environment: the wrappers' checks and the time limit are ours.
        return gymnasium.make(name, render_mode=render_mode, disable_env_checker=True).unwrapped
