"""Everything that depends on which robosuite and which MuJoCo are installed.

Tested: robosuite 1.4.1 with MuJoCo 3.1.6 to 3.8. robosuite 1.5 names controllers, observables and grippers differently and is
refused by name rather than half supported.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import logging
import os
import random
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs.registry import installed_version
from isdt_policy.errors import InputError

ROBOSUITE = "1.4.1"
MUJOCO_FROM, MUJOCO_BELOW = (3, 1, 6), (3, 9)

# robosuite's own default for OSC_POSE (controllers/config/osc_pose.json), and robomimic's.
OSC_POSE: Mapping[str, Any] = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1, "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5], "kp": 150, "damping_ratio": 1, "impedance_mode": "fixed",
    "kp_limits": [0, 300], "damping_ratio_limits": [0, 10], "position_limits": None, "orientation_limits": None,
    "uncouple_pos_ori": True, "control_delta": True, "interpolation": None, "ramp_ratio": 0.2,
}  # fmt: skip


def check_versions() -> None:
    """Raise InputError unless robosuite and MuJoCo are installed in versions that were tested; imports neither."""
    found = {name: installed_version(name) for name in ("robosuite", "mujoco")}
    hint = "Install it with: pip install 'isdt-policy[robosuite]'"
    for name, version in found.items():
        if version is None:
            raise InputError(f"robomimic's tasks need the package '{name}', which is not installed. {hint}")
    if found["robosuite"] != ROBOSUITE:
        raise InputError(
            f"robosuite {found['robosuite']} is installed, but only {ROBOSUITE} is tested: scenes, controllers and seeds "
            f"differ between versions. {hint}"
        )
    numbers = tuple(int(n) for n in re.findall(r"\d+", str(found["mujoco"]))[:3])
    if not MUJOCO_FROM <= numbers < MUJOCO_BELOW:
        raise InputError(
            f"mujoco {found['mujoco']} is installed, but robosuite {ROBOSUITE} is tested with 3.1.6 to 3.8 and breaks outside. "
            "Install it with: pip install 'mujoco>=3.1.6,<3.9'"
        )


def load(rendering: bool) -> Any:
    """Import robosuite without its advice about macro files, on a machine with or without OpenGL.

    Raises:
        InputError: an untested version, or rendering without a library that renders off screen.
    """
    check_versions()
    if "MUJOCO_GL" not in os.environ:
        usable = [name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if ctypes.util.find_library(library)]
        if rendering and not usable:
            raise InputError(
                "camera images need OpenGL without a display, and neither EGL nor OSMesa is installed. "
                "Install one with: sudo apt-get install -y libegl1 libosmesa6 libgl1-mesa-dri"
            )
        # robosuite insists on EGL unless told otherwise, and then cannot even be imported without it; "glx" asks for
        # glfw, whose wheel brings its library along.
        os.environ["MUJOCO_GL"] = usable[0] if usable else "glx"
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import robosuite

    return robosuite


def build(name: str, arguments: Mapping[str, Any], delta: bool, rendering: bool) -> Any:
    """Build a robosuite environment as robomimic does: OSC_POSE, 20 Hz, sparse reward, no time limit of its own."""
    robosuite = load(rendering)
    env = robosuite.make(
        name,
        **arguments,
        controller_configs={**OSC_POSE, "control_delta": delta},
        control_freq=20,
        has_renderer=False,
        has_offscreen_renderer=rendering,
        use_camera_obs=False,  # images are drawn by whoever wants them, when they are wanted
        use_object_obs=True,
        reward_shaping=False,
        ignore_done=True,
    )
    # Off by default, on in robomimic's recordings.
    for observable in env.observation_names:
        if "joint_pos" in observable or "eef_vel" in observable:
            env.modify_observable(observable, "active", True)
    return env


@contextlib.contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators, from which robosuite 1.4 draws, and give them back as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - robosuite's own generator
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def step(env: Any, action: NDArray[np.float64]) -> None:
    """Advance by one control step, leaving the derived quantities in agreement with the new state.

    robosuite samples its observables in every physics step and returns values from before the last one; here they are read
    once, after `forward`, so that an observation is a function of the state, as in robomimic's recordings.
    """
    env._update_observables = env._get_observations = _nothing
    try:
        env.step(action)
    finally:
        del env._update_observables, env._get_observations
    env.sim.forward()


def _nothing(force: bool = False) -> None:
    """Stands in for the update and the reading of observables."""


def observations(env: Any) -> dict[str, NDArray[np.float64]]:
    """Return every active observable of the present state; "object-state" is robomimic's "object"."""
    return env._get_observations(force_update=True)  # type: ignore[no-any-return]


def get_state(env: Any) -> NDArray[np.float64]:
    """Return time (s), qpos and qvel in one array, as robomimic stores them."""
    return np.array(env.sim.get_state().flatten())


def set_state(env: Any, state: NDArray[np.float64], restart: bool) -> None:
    """Put the simulator in a state; `restart` also makes controllers and grippers start from there.

    What a state does not hold: the controller's goal (becomes the present pose), its resting posture (the present one) and
    the gripper's command (the one that holds the fingers where they are, unless they are as after a reset).
    """
    env.sim.set_state_from_flattened(state)
    env.sim.forward()
    if not restart:
        return
    for robot in env.robots:
        robot.controller.update_initial_joints(env.sim.data.qpos[robot._ref_joint_pos_indexes])
        fingers = env.sim.data.qpos[robot._ref_gripper_joint_pos_indexes]
        if np.allclose(fingers, robot.gripper.init_qpos, atol=1e-6):
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        else:
            # Panda: fingers at +-0.04 m (open) are a command of -+1; see PandaGripper.format_action.
            robot.gripper.current_action = np.clip((np.abs(fingers) - 0.02) / 0.02, -1, 1) * np.array([1.0, -1.0])


def arms(env: Any) -> list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """Per arm: position and orientation of the controlled frame, position and orientation of the controller's goal."""
    result = []
    for robot in env.robots:
        controller = robot.controller
        controller.update(force=True)
        result.append((controller.ee_pos, controller.ee_ori_mat, controller.goal_pos, controller.goal_ori))
    return result


def goals_of(env: Any, action: NDArray[np.float64]) -> list[tuple[NDArray[np.float64], NDArray[np.float64], float]]:
    """Return what a delta action means in the present state: per arm goal position, goal orientation, gripper command.

    Changes the controllers' goals, as executing the action would.
    """
    result = []
    for robot, part in zip(env.robots, np.split(action, len(env.robots))):
        robot.controller.update(force=True)
        robot.controller.set_goal(part[:6])
        result.append((robot.controller.goal_pos.copy(), robot.controller.goal_ori.copy(), float(part[6])))
    return result


def image(env: Any, camera: str, size: int) -> NDArray[np.uint8]:
    """Draw what a camera sees, (size, size, 3) uint8, row 0 at the top."""
    drawn = env.sim.render(camera_name=camera, width=size, height=size)
    return np.ascontiguousarray(drawn[::-1], np.uint8)


def success(env: Any) -> bool:
    """Say whether the task is done in the present state."""
    return bool(env._check_success())


# --- drawn geometry -------------------------------------------------------------------------------------------------

# What distinguishes one episode's model from another's: sizes and places of the movable objects' parts.
_GEOMETRY = ("size", "pos", "quat", "density")


def geometry_of(env: Any, model_file: str) -> dict[str, dict[str, str]]:
    """Read the geometry of the movable objects from a recorded model (XML), for `reset_with_geometry`.

    Only numbers are taken. The recorded model itself is never loaded: it comes from an untrusted file, may name any other
    file, and those of robosuite before 1.4 call the robot's parts by other names.

    Raises:
        InputError: not XML.
    """
    try:
        root = ElementTree.fromstring(model_file)
    except ElementTree.ParseError as error:
        raise InputError(f"model_file is not XML ({error}).") from None
    names = _movable(env)
    found: dict[str, dict[str, str]] = {}
    for geom in root.iter("geom"):
        name = geom.get("name", "")
        if name in names:
            kept = {key: geom.get(key, "") for key in _GEOMETRY if key in geom.attrib}
            if all(re.fullmatch(r"[-+.\deE\s]+", value) for value in kept.values()):
                found[name] = kept
    return found


def reset_with_geometry(env: Any, geometry: Mapping[str, Mapping[str, str]]) -> None:
    """Reset, with the objects' parts as in `geometry` instead of drawn."""

    def edit(xml: str) -> str:
        root = ElementTree.fromstring(xml)
        for geom in root.iter("geom"):
            for key, value in geometry.get(geom.get("name", ""), {}).items():
                geom.set(key, value)
        return ElementTree.tostring(root, encoding="unicode")

    before = env.hard_reset
    env.set_xml_processor(edit)
    env.hard_reset = True
    try:
        env.reset()
    finally:
        env.set_xml_processor(None)
        env.hard_reset = before


def _movable(env: Any) -> set[str]:
    return {name for item in env.model.mujoco_objects for name in (*item.contact_geoms, *item.visual_geoms)}
