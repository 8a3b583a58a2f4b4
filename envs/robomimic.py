"""robomimic's tasks in robosuite: Lift, Can, Square, ToolHang, Transport, under robomimic's observation keys.

Spec sheet
    Robots       one Panda, or two for Transport; OSC_POSE at 20 Hz (25 physics steps of 2 ms).
    Tasks        lift, can, square, tool_hang, transport take delta actions, 7 numbers per arm, as robomimic's datasets;
                 lift_abs, ... take absolute actions with 6D rotation, 10 numbers per arm, as Diffusion Policy's.
    Delta        x, y, z in 0.05 m, axis-angle in 0.5 rad, both in the world frame, relative to the present pose; -1 .. 1.
    Absolute     x, y, z in m, world frame; orientation of the grip site as 6D (two rows of the matrix) or axis-angle.
    Gripper      last number of each arm: above 0 closes, below 0 opens; only its sign counts.
    Reward       1 while the task is done, else 0.
    Termination  success. Truncation after 400 steps (ToolHang and Transport: 700), as robomimic evaluates.
    Seeds        "robosuite": the seed is handed to NumPy's global generator, then robosuite resets, which is what `seed`
                 means in Diffusion Policy's and robomimic's scripts. Where the model itself is drawn (Lift: size of the
                 cube; Transport: shape of the hammer) it is drawn anew in every reset, so that a seed is an episode.
    Bounds       of observations are wide enough for anything but a simulation that has gone wrong; beyond, they are clipped.
    State        time, qpos, qvel in one array, as in the `states` of robomimic's files.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs import robosuite_compat, rotations
from isdt_policy.envs.protocol import Info, Observation
from isdt_policy.envs.registry import Env, checked_array, observation_space
from isdt_policy.envs.robomimic_specs import ABSOLUTE, CONTROLS, IMAGE_SIZE, ROTATIONS, SCENES, SPECS, action_spec
from isdt_policy.shared.errors import InputError, nearest

Array = NDArray[np.float64]


class RobosuiteEnv(Env):
    """One of robomimic's tasks as described at the top of this file.

    `reset(seed=..., options={"reset_to_state": state, "model_file": xml})` starts from a recorded state (time, qpos, qvel);
    `model_file`, robomimic's attribute of the demo, gives the drawn sizes and may be left out.

    Args:
        task: id in the registry.
        obs_keys: keys of the Dict observation; None gives all but images.
        seed_protocol: "robosuite".
        render_mode: None or "rgb_array".
        control: "delta" or "absolute"; None is the task's own.
        rotation: "axis-angle" or "6d"; None is the task's own.
        render_size: side of the square images of `render()`, px. Image observations are always 84.
        end_on_success: False lets an episode go on to the step limit.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - Gymnasium's contract

    def __init__(
        self,
        task: str,
        obs_keys: tuple[str, ...] | None = None,
        seed_protocol: str = "robosuite",
        render_mode: str | None = None,
        control: str | None = None,
        rotation: str | None = None,
        render_size: int = 256,
        end_on_success: bool = True,
    ) -> None:
        spec = SPECS[task]
        self.control = _one_of(control or str(spec.action_space["type"]), CONTROLS, "control")
        self.rotation = _one_of(rotation or str(spec.action_space["rotation"]), ROTATIONS, "rotation")
        if render_size < 1:
            raise InputError(f"render_size must be at least 1 px, got {render_size}.")
        self.task, self.scene = task, SCENES[task.removesuffix(ABSOLUTE)]
        self.obs_keys = (
            tuple(k for k in spec.observations if not k.endswith("_image")) if obs_keys is None else obs_keys
        )
        self.seed_protocol, self.render_mode = seed_protocol, render_mode
        self.render_size, self.end_on_success = render_size, end_on_success
        self.draw_images = True  # False leaves pictures empty, for steps whose pictures nobody reads
        self.max_episode_steps = spec.max_episode_steps
        self.observation_space = observation_space(spec, self.obs_keys)
        action = action_spec(self.scene.n_arms, self.control, self.rotation)
        self.action_space = action.space()
        self._low, self._high = (np.asarray(bound, np.float64) for bound in action.bounds())
        self._bounds = {key: spec.observations[key].bounds() for key in self.obs_keys}
        rendering = render_mode is not None or any(k.endswith("_image") for k in self.obs_keys)
        with robosuite_compat.global_seed(0):
            self.sim = robosuite_compat.build(self.scene.name, self.scene.arguments, self.control == "delta", rendering)
        self._model_is_usual = True
        self._steps: int | None = None  # None: not running

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        """Start an episode; without a seed, from the running generator's next draw."""
        super().reset(seed=seed)
        options = options or {}
        drawn = seed if seed is not None else int(self.np_random.integers(2**32))
        model_file = options.get("model_file")
        state = options.get("reset_to_state")
        with robosuite_compat.global_seed(drawn % 2**32):
            robosuite_compat.reseed(self.sim, drawn % 2**32)
            if model_file is not None:
                robosuite_compat.reset_with_geometry(self.sim, robosuite_compat.geometry_of(self.sim, model_file))
            else:
                # A soft reset gives the same episode where the model is not drawn (a test compares), 200 times faster.
                self.sim.hard_reset = self.scene.drawn_model or not self._model_is_usual
                if self.sim.hard_reset:
                    robosuite_compat.release(self.sim)
                self.sim.reset()
        self._model_is_usual = model_file is None
        if state is not None:
            robosuite_compat.set_state(self.sim, self._checked_state(state), restart=True)
        self._steps = 0
        return self.observe(), {"is_success": robosuite_compat.success(self.sim)}

    def reset_to(self, state: NDArray[np.floating], model_file: str | None = None) -> tuple[Observation, Info]:
        """Start an episode from a recorded state; see `reset`."""
        return self.reset(seed=0, options={"reset_to_state": state, "model_file": model_file})

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, Info]:
        """Carry out an action for 0.05 s. Numbers outside the action space are clipped to it.

        Raises:
            InputError: if the action has another shape, is not finite, or holds a 6D rotation that is none.
            gymnasium.error.ResetNeeded: before the first reset and after the end of an episode.
        """
        if self._steps is None:
            raise gymnasium.error.ResetNeeded("the episode has ended or not begun: call reset() before step().")
        robosuite_compat.step(self.sim, self._command(action))
        self._steps += 1
        success = robosuite_compat.success(self.sim)
        terminated = success and self.end_on_success
        truncated = not terminated and self._steps >= self.max_episode_steps
        if terminated or truncated:
            self._steps = None
        return self.observe(), float(success), terminated, truncated, {"is_success": success}

    def observe(self) -> Observation:
        """Return the observation of the present state."""
        values = robosuite_compat.observations(self.sim)
        result: Observation = {}
        for key in self.obs_keys:
            if key.endswith("_image") and not self.draw_images:
                result[key] = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
            elif key.endswith("_image"):
                result[key] = robosuite_compat.image(self.sim, key.removesuffix("_image"), IMAGE_SIZE)
            else:
                name = "object-state" if key == "object" else key
                result[key] = np.clip(np.asarray(values[name], np.float32), *self._bounds[key])
        return result

    def observations_of(
        self, states: NDArray[np.floating], model_file: str | None = None, seed: int = 0
    ) -> Observation:
        """Compute the observations of recorded states (T, 1 + nq + nv), {key: (T, *shape)}; ends any running episode.

        Args:
            states: of one episode.
            model_file: robomimic's attribute of the demonstration, which holds sizes that were drawn.
            seed: of the reset that drew them, where there is no `model_file`.
        """
        self.reset(seed=seed, options={"reset_to_state": states[0], "model_file": model_file})
        rows = []
        for state in states:
            robosuite_compat.set_state(self.sim, self._checked_state(state), restart=False)
            rows.append(self.observe())
        self._steps = None
        return {key: np.stack([row[key] for row in rows]) for key in self.obs_keys}

    def absolute_actions(
        self, states: NDArray[np.floating], actions: NDArray[np.floating], model_file: str | None = None
    ) -> NDArray[np.float32]:
        """Turn recorded delta actions (T, 7 per arm) into the absolute actions (T, 10 per arm) with the same targets.

        Only for an environment with delta control, which knows what a delta means; ends any running episode.
        """
        if self.control != "delta":
            raise InputError("absolute_actions needs an environment with control='delta'.")
        self.reset_to(states[0], model_file)
        result = []
        for state, action in zip(states, np.asarray(actions, np.float64), strict=True):
            robosuite_compat.set_state(self.sim, self._checked_state(state), restart=False)
            parts = [
                np.concatenate([position, rotations.matrix_to_six(matrix), [gripper]])
                for position, matrix, gripper in robosuite_compat.goals_of(self.sim, action)
            ]
            result.append(np.concatenate(parts))
        self._steps = None
        return np.array(result, np.float32)

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Return agentview (render_size, render_size, 3), uint8 RGB; None without a render mode."""
        return None if self.render_mode is None else robosuite_compat.image(self.sim, "agentview", self.render_size)

    def state(self) -> Array:
        """Return time (s), qpos and qvel in one array."""
        return robosuite_compat.get_state(self.sim)

    def model_xml(self) -> str:
        """Return the scene in MuJoCo's XML, as robomimic keeps it in `model_file`."""
        return str(self.sim.sim.model.get_xml())

    def close(self) -> None:
        """Release the simulator."""
        self.sim.close()

    def _command(self, action: NDArray[np.float32]) -> Array:
        """Check an action and return what robosuite's controller takes, 7 numbers per arm."""
        given = checked_array(action, self.action_space.shape or (), "action")
        parts = np.clip(given, self._low, self._high).reshape(self.scene.n_arms, -1)
        if self.rotation == "6d":
            # Not clipped: six numbers mean a direction, whatever their length.
            matrix = rotations.six_to_matrix(given.reshape(self.scene.n_arms, -1)[:, 3:9])
            vector = rotations.matrix_to_axis_angle(matrix)
            if self.control == "delta":
                vector = vector / 0.5
            parts = np.concatenate([parts[:, :3], vector, parts[:, 9:]], axis=1)
        return np.asarray(parts.ravel())

    def _checked_state(self, state: object) -> Array:
        return checked_array(state, self.state().shape, f"a state of task '{self.task}' (time, qpos, qvel)")


def make_env(task: str, **kwargs: Any) -> RobosuiteEnv:
    """Build the environment; `isdt_policy.envs.make` has checked the arguments."""
    return RobosuiteEnv(task, **kwargs)


def _one_of(value: str, allowed: tuple[str, ...], name: str) -> str:
    if value not in allowed:
        raise InputError(f"unknown {name} '{value}'.{nearest(value, allowed)} Allowed: {', '.join(allowed)}.")
    return value
