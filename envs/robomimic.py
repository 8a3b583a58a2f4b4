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

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs import rotations
from isdt_policy.envs.registry import ActionPart, ArraySpec, TaskSpec, checked_array
from isdt_policy.shared.errors import InputError, nearest

Array = NDArray[np.float64]

IMAGE_SIZE = 84
CONTROLS = ("delta", "absolute")
ROTATIONS = ("axis-angle", "6d")
# Recordings of these robosuite versions replay and observe alike in 1.4.1 (checked on robomimic's v0.1 files); those of 1.5
# belong to 1.5 alone.
COMPATIBLE = {"1.4": ("1.2", "1.3", "1.4"), "1.5": ("1.5",)}
# Far enough for every scene, near enough that no target throws the arm about: x, y, z in m.
WORKSPACE = ((-1.0, -1.2, 0.6), (1.0, 1.2, 1.8))


@dataclass(frozen=True)
class Scene:
    """One of robomimic's tasks in robosuite's terms.

    Attributes:
        name: robosuite's name.
        success: criterion in words.
        object: what the key "object" holds, in order.
        object_dim: its length.
        cameras: cameras that robomimic records.
        n_arms: robots.
        max_episode_steps: robomimic's horizon.
        drawn_model: whether the model differs between episodes.
    """

    name: str
    success: str
    object: str
    object_dim: int
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    n_arms: int = 1
    max_episode_steps: int = 400
    drawn_model: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """What robosuite is asked for beside the name."""
        if self.n_arms == 1:
            return {"robots": ["Panda"]}
        return {"robots": ["Panda", "Panda"], "env_configuration": "single-arm-opposed"}


_POSE = "position (m) and quaternion x, y, z, w"
SCENES: dict[str, Scene] = {
    "lift": Scene(
        "Lift", "cube more than 4 cm above the table", f"cube: {_POSE}; gripper minus cube (m)", 10, drawn_model=True
    ),
    "can": Scene(
        "PickPlaceCan",
        "can in its bin, gripper withdrawn",
        f"can: {_POSE}; the same relative to the gripper",
        14,
    ),
    "square": Scene(
        "NutAssemblySquare",
        "nut around the square peg, gripper withdrawn",
        f"nut: {_POSE}; the same relative to the gripper",
        14,
    ),
    "tool_hang": Scene(
        "ToolHang",
        "frame stands in its base, tool hangs on the frame",
        f"base, frame, tool: {_POSE}, each also relative to the gripper; frame assembled; tool on frame",
        44,
        cameras=("agentview", "sideview", "robot0_eye_in_hand"),
        max_episode_steps=700,
    ),
    "transport": Scene(
        "TwoArmTransport",
        "hammer in the target bin, trash in the trash bin",
        f"payload, trash, lid handle: {_POSE}; bins (m); grippers to objects (m); payload in bin; trash in bin",
        41,
        cameras=("agentview", "shouldercamera0", "shouldercamera1", "robot0_eye_in_hand", "robot1_eye_in_hand"),
        n_arms=2,
        max_episode_steps=700,
        drawn_model=True,
    ),
}
ABSOLUTE = "_abs"


def derive(stored: Mapping[str, NDArray[Any]], key: str) -> NDArray[np.float32]:
    """Nothing of these tasks follows from other stored arrays without the simulator."""
    raise InputError(f"observation '{key}' has to be recorded, or computed by replaying `states` (isdt data convert).")


def _robot_observations(prefix: str) -> dict[str, ArraySpec]:
    def box(size: int, unit: str, bound: float, text: str) -> ArraySpec:
        return ArraySpec((size,), "float32", unit, -bound, bound, text)

    entries = {
        "eef_pos": box(3, "m", 3.0, "grip site x, y, z"),
        "eef_quat": box(4, "1", 1.001, "orientation of the hand, quaternion x, y, z, w"),
        "eef_vel_lin": box(3, "m/s", 10.0, "velocity of the hand"),
        "eef_vel_ang": box(3, "rad/s", 20.0, "angular velocity of the hand"),
        "gripper_qpos": box(2, "m", 0.1, "fingers; 0.04 and -0.04 is open"),
        "gripper_qvel": box(2, "m/s", 5.0, "velocities of the fingers"),
        "joint_pos": box(7, "rad", 7.0, "joint angles"),
        "joint_pos_cos": box(7, "1", 1.0, "their cosines"),
        "joint_pos_sin": box(7, "1", 1.0, "their sines"),
        "joint_vel": box(7, "rad/s", 20.0, "joint velocities"),
    }
    return {f"{prefix}_{key}": value for key, value in entries.items()}


def action_spec(n_arms: int, control: str, rotation: str) -> ArraySpec:
    """Return the action array of a control mode: 7 numbers per arm, or 10 with 6D rotation."""
    turn = {"axis-angle": "axis-angle", "6d": "6D rotation (two rows of the matrix)"}[rotation]
    size = 10 if rotation == "6d" else 7
    if control == "delta":
        low, high = [-1.0] * size, [1.0] * size
        unit, text = (
            "0.05 m, 1, 1" if rotation == "6d" else "0.05 m, 0.5 rad, 1",
            f"per arm: displacement x, y, z; {turn}; gripper (above 0 closes)",
        )
    else:
        bound = [1.0] * 6 if rotation == "6d" else [float(np.float32(np.pi))] * 3
        low = [*WORKSPACE[0], *(-b for b in bound), -1.0]
        high = [*WORKSPACE[1], *bound, 1.0]
        unit, text = "m, 1, 1" if rotation == "6d" else "m, rad, 1", f"per arm: target x, y, z; {turn}; gripper"
    return ArraySpec((size * n_arms,), "float32", unit, tuple(low * n_arms), tuple(high * n_arms), text)


def _neutral(n_arms: int, control: str, rotation: str) -> tuple[float | None, ...] | None:
    """No displacement, no turn, the gripper as it was; targets stay where they are."""
    if control != "delta":
        return None
    turn = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0) if rotation == "6d" else (0.0, 0.0, 0.0)
    return (0.0, 0.0, 0.0, *turn, None) * n_arms


def _controller(control: str, rotation: str) -> dict[str, Any]:
    return {"type": control, "controller": "OSC_POSE", "rotation": rotation}


def _spec(task: str, scene: Scene, control: str, rotation: str) -> TaskSpec:
    robots = [f"robot{i}" for i in range(scene.n_arms)]
    observations = {"object": ArraySpec((scene.object_dim,), "float32", "m, 1", -3.0, 3.0, scene.object)}
    for robot in robots:
        observations.update(_robot_observations(robot))
    for camera in scene.cameras:
        observations[f"{camera}_image"] = ArraySpec(
            (IMAGE_SIZE, IMAGE_SIZE, 3), "uint8", "8-bit RGB", 0, 255, f"image from {camera}"
        )
    low_dim = [f"{robot}_{key}" for robot in robots for key in ("eef_pos", "eef_quat", "gripper_qpos")]
    return TaskSpec(
        id=task,
        observations=observations,
        action=action_spec(scene.n_arms, control, rotation),
        action_type=f"{control} OSC_POSE, {rotation}",
        max_episode_steps=scene.max_episode_steps,
        rate_hz=20,
        success=scene.success,
        seed_protocols=("robosuite",),
        packages=("robosuite", "mujoco"),
        extra="robosuite",
        stored_keys=(),
        derive_fn=derive,
        default_obs_keys=("object", *low_dim),
        neutral=_neutral(scene.n_arms, control, rotation),
        action_parts=(
            ActionPart("position", 3),
            ActionPart("rotation", 6 if rotation == "6d" else 3),
            ActionPart("gripper", 1),
        )
        * scene.n_arms,
        action_space=_controller(control, rotation),
    )


SPECS: dict[str, TaskSpec] = {
    **{task: _spec(task, scene, "delta", "axis-angle") for task, scene in SCENES.items()},
    **{f"{task}{ABSOLUTE}": _spec(f"{task}{ABSOLUTE}", scene, "absolute", "6d") for task, scene in SCENES.items()},
}


class RobosuiteEnv(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
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
        from isdt_policy.envs import robosuite_compat

        spec = SPECS[task]
        self.control = _one_of(control or spec.action_space["type"], CONTROLS, "control")
        self.rotation = _one_of(rotation or spec.action_space["rotation"], ROTATIONS, "rotation")
        if render_size < 1:
            raise InputError(f"render_size must be at least 1 px, got {render_size}.")
        self.task, self.scene = task, SCENES[task.removesuffix(ABSOLUTE)]
        self.obs_keys = (
            tuple(k for k in spec.observations if not k.endswith("_image")) if obs_keys is None else obs_keys
        )
        self.seed_protocol, self.render_mode = seed_protocol, render_mode
        self.render_size, self.end_on_success = render_size, end_on_success
        self.max_episode_steps = spec.max_episode_steps
        spaces: dict[str, Any] = {k: spec.observations[k].space() for k in self.obs_keys}
        self.observation_space = gymnasium.spaces.Dict(spaces)
        box = action_spec(self.scene.n_arms, self.control, self.rotation).space()
        self.action_space: gymnasium.Space[Any] = box
        self._low, self._high = (np.asarray(bound, np.float64) for bound in (box.low, box.high))
        self._bounds = {key: (space.low, space.high) for key, space in spaces.items()}
        self._compat = robosuite_compat
        rendering = render_mode is not None or any(k.endswith("_image") for k in self.obs_keys)
        with robosuite_compat.global_seed(0):
            self.sim = robosuite_compat.build(self.scene.name, self.scene.arguments, self.control == "delta", rendering)
        self._model_is_usual = True
        self._steps: int | None = None  # None: not running

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; without a seed, from the running generator's next draw."""
        super().reset(seed=seed)
        options = options or {}
        drawn = seed if seed is not None else int(self.np_random.integers(2**32))
        model_file = options.get("model_file")
        state = options.get("reset_to_state")
        with self._compat.global_seed(drawn % 2**32):
            self._compat.reseed(self.sim, drawn % 2**32)
            if model_file is not None:
                self._compat.reset_with_geometry(self.sim, self._compat.geometry_of(self.sim, model_file))
            else:
                # A soft reset gives the same episode where the model is not drawn (a test compares), 200 times faster.
                self.sim.hard_reset = self.scene.drawn_model or not self._model_is_usual
                if self.sim.hard_reset:
                    self._compat.release(self.sim)
                self.sim.reset()
        self._model_is_usual = model_file is None
        if state is not None:
            self._compat.set_state(self.sim, self._checked_state(state), restart=True)
        self._steps = 0
        return self.observe(), {"is_success": self._compat.success(self.sim)}

    def reset_to(
        self, state: NDArray[np.floating], model_file: str | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode from a recorded state; see `reset`."""
        return self.reset(seed=0, options={"reset_to_state": state, "model_file": model_file})

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Carry out an action for 0.05 s. Numbers outside the action space are clipped to it.

        Raises:
            InputError: if the action has another shape, is not finite, or holds a 6D rotation that is none.
            gymnasium.error.ResetNeeded: before the first reset and after the end of an episode.
        """
        if self._steps is None:
            raise gymnasium.error.ResetNeeded("the episode has ended or not begun: call reset() before step().")
        self._compat.step(self.sim, self._command(action))
        self._steps += 1
        success = self._compat.success(self.sim)
        terminated = success and self.end_on_success
        truncated = not terminated and self._steps >= self.max_episode_steps
        if terminated or truncated:
            self._steps = None
        return self.observe(), float(success), terminated, truncated, {"is_success": success}

    def observe(self) -> dict[str, Any]:
        """Return the observation of the present state."""
        values = self._compat.observations(self.sim)
        result: dict[str, Any] = {}
        for key in self.obs_keys:
            if key.endswith("_image"):
                result[key] = self._compat.image(self.sim, key.removesuffix("_image"), IMAGE_SIZE)
            else:
                name = "object-state" if key == "object" else key
                result[key] = np.clip(np.asarray(values[name], np.float32), *self._bounds[key])
        return result

    def observations_of(self, states: NDArray[np.floating], model_file: str | None = None) -> dict[str, NDArray[Any]]:
        """Compute the observations of recorded states (T, 1 + nq + nv), {key: (T, *shape)}; ends any running episode."""
        self.reset_to(states[0], model_file)
        rows = []
        for state in states:
            self._compat.set_state(self.sim, self._checked_state(state), restart=False)
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
            self._compat.set_state(self.sim, self._checked_state(state), restart=False)
            parts = [
                np.concatenate([position, rotations.matrix_to_six(matrix), [gripper]])
                for position, matrix, gripper in self._compat.goals_of(self.sim, action)
            ]
            result.append(np.concatenate(parts))
        self._steps = None
        return np.array(result, np.float32)

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Return agentview (render_size, render_size, 3), uint8 RGB; None without a render mode."""
        return None if self.render_mode is None else self._compat.image(self.sim, "agentview", self.render_size)

    def state(self) -> Array:
        """Return time (s), qpos and qvel in one array."""
        return self._compat.get_state(self.sim)

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

    def _checked_state(self, state: Any) -> Array:
        return checked_array(state, self.state().shape, f"a state of task '{self.task}' (time, qpos, qvel)")


def make_env(task: str, **kwargs: Any) -> RobosuiteEnv:
    """Build the environment; `isdt_policy.envs.make` has checked the arguments."""
    return RobosuiteEnv(task, **kwargs)


# --- datasets -------------------------------------------------------------------------------------------------------


def task_of(env_args: Mapping[str, Any] | str) -> str:
    """Return the task that a dataset's `env_args` (dict or JSON) describes.

    Raises:
        InputError: another environment, robot, controller, rate or version than ours; the message names both.
    """
    given: Mapping[str, Any] = json.loads(env_args) if isinstance(env_args, str) else env_args
    name = str(given.get("env_name"))
    names = {scene.name: task for task, scene in SCENES.items()}
    if name not in names:
        raise InputError(f"no task is robosuite's '{name}'.{nearest(name, names)} There are: {', '.join(names)}.")
    kwargs = given.get("env_kwargs", {})
    scene = SCENES[names[name]]
    version = str(given.get("env_version") or "")
    from isdt_policy.envs import robosuite_compat

    installed = robosuite_compat.version()
    compatible = COMPATIBLE["1.5" if robosuite_compat.is_composite() else "1.4"]
    if version and ".".join(version.split(".")[:2]) not in compatible:
        raise InputError(
            f"the dataset was recorded with robosuite {version}, the environment is robosuite {installed}; compatible are "
            f"{', '.join(compatible)}. Record it again, or evaluate with its own version."
        )
    config = kwargs.get("controller_configs") or {}
    if isinstance(config, list):
        config = config[0]
    # robosuite 1.5 nests the arm's controller, in its own files once more.
    parts = config.get("body_parts", {})
    config = parts.get("arms", parts).get(robosuite_compat.ARM, config)
    limits = {key: robosuite_compat.OSC_POSE[key] for key in ("output_max", "output_min", "kp")}
    for key, ours in {"type": "OSC_POSE", **limits}.items():
        theirs = config.get(key, ours)
        if np.shape(theirs) != np.shape(ours) or np.any(np.asarray(theirs) != np.asarray(ours)):
            raise InputError(f"the dataset's controller has {key}={theirs}, the environment's has {key}={ours}.")
    if config.get("impedance_mode", "fixed") != "fixed":
        raise InputError(f"the dataset's controller has impedance_mode={config['impedance_mode']}, ours is fixed.")
    robots = kwargs.get("robots", scene.arguments["robots"])
    robots = [robots] if isinstance(robots, str) else list(robots)
    if robots != scene.arguments["robots"]:
        raise InputError(f"the dataset's robots are {robots}, the environment's are {scene.arguments['robots']}.")
    rate = kwargs.get("control_freq", 20)
    if rate != 20:
        raise InputError(f"the dataset was recorded at {rate} Hz, the environment runs at 20 Hz.")
    absolute = config.get("control_delta", True) is False or config.get("input_type") == "absolute"
    # The base of a single Panda stands straight: a change is the same in its frame, a place is not.
    frame = config.get("input_ref_frame", "world")
    if frame != "world" and (absolute or scene.n_arms > 1):
        raise InputError(f"the dataset's controller has input_ref_frame={frame}, the environment's has world.")
    return names[name] + (ABSOLUTE if absolute else "")


def env_args(task: str) -> dict[str, Any]:
    """Return robomimic's `env_args` of a task, for files that robomimic's own scripts read."""
    from isdt_policy.envs import robosuite_compat

    scene = SCENES[task.removesuffix(ABSOLUTE)]
    delta = SPECS[task].action_space["type"] == "delta"
    kwargs = {
        **scene.arguments, "controller_configs": robosuite_compat.controller_configs(delta), "control_freq": 20,
        "has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False, "use_object_obs": True,
        "ignore_done": True, "reward_shaping": False, "camera_depths": False,
    }  # fmt: skip
    return {"env_name": scene.name, "env_version": robosuite_compat.version(), "type": 1, "env_kwargs": kwargs}


def make_from_env_args(env_args: Mapping[str, Any] | str, **options: Any) -> RobosuiteEnv:
    """Build the environment a dataset was recorded in, with the same action space; options as in `make`."""
    from isdt_policy.envs.registry import make

    task = task_of(env_args)
    # robomimic's own absolute files keep axis-angle rotation.
    rotation = {"rotation": "axis-angle"} if task.endswith(ABSOLUTE) else {}
    return make(task, **{**rotation, **options})  # type: ignore[return-value]


def _one_of(value: str, allowed: tuple[str, ...], name: str) -> str:
    if value not in allowed:
        raise InputError(f"unknown {name} '{value}'.{nearest(value, allowed)} Allowed: {', '.join(allowed)}.")
    return value
