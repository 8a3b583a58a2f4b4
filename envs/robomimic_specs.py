"""robomimic's tasks as specs: scenes, observation keys and action arrays; needs no simulator.

Units and conventions are on the spec sheet at the top of `robomimic.py`, which holds the environment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs.protocol import Arrays, Info
from isdt_policy.envs.registry import ActionPart, ArraySpec, TaskSpec
from isdt_policy.shared.errors import InputError

IMAGE_SIZE = 84
CONTROLS = ("delta", "absolute")
ROTATIONS = ("axis-angle", "6d")
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
    def arguments(self) -> Info:
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


def derive(stored: Arrays, key: str) -> NDArray[np.float32]:
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


def _controller(control: str, rotation: str) -> dict[str, object]:
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
