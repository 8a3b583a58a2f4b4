"""Everything that depends on which robosuite and which MuJoCo are installed.

Tested: robosuite 1.4.1 with MuJoCo 3.1.6 to 3.8; 1.5.1 with MuJoCo 3.8.1 (Lift, Can) and
1.5.2 (Lift), by rollouts of the experts; other tasks are refused there. robosuite 1.5 puts an
arm's controller into a composite one, names the kind and the frame of its input, and from 1.5.2 on draws from a generator
of its own. Here both versions take the same actions, in the world frame, and observe the same keys; scenes, grippers and
what a seed draws still differ, so that recordings of one are refused in the other.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import re
import warnings
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs import opengl
from isdt_policy.envs.robosuite_substeps import SimObject, Substeps, forward_leaves_no_trace
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import installed_version

ROBOSUITE = "1.4.1"  # the version that the package installs
TESTED = (ROBOSUITE, "1.5.1", "1.5.2")
TESTED_15 = ("Lift", "PickPlaceCan")
ARM = "right"  # robosuite 1.5 calls the only arm of a robot so
MUJOCO_FROM, MUJOCO_BELOW = (3, 1, 6), (3, 9)

# robosuite's own default for OSC_POSE (controllers/config/osc_pose.json), and robomimic's.
OSC_POSE: Mapping[str, object] = {
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
    if found["robosuite"] not in TESTED:
        raise InputError(
            f"robosuite {found['robosuite']} is installed, but only {', '.join(TESTED)} are tested: scenes, controllers and seeds "
            f"differ between versions. {hint}"
        )
    numbers = tuple(int(n) for n in re.findall(r"\d+", str(found["mujoco"]))[:3])
    if not MUJOCO_FROM <= numbers < MUJOCO_BELOW:
        raise InputError(
            f"mujoco {found['mujoco']} is installed, but robosuite {found['robosuite']} is tested "
            "with 3.1.6 to 3.8 and breaks outside. "
            "Install it with: pip install 'mujoco>=3.1.6,<3.9'"
        )


def version() -> str:
    """Return the installed robosuite's version; without one, the version that the package installs."""
    return installed_version("robosuite") or ROBOSUITE


@functools.cache  # looking a version up reads files, and every observation asks
def is_composite() -> bool:
    """Say whether the installed robosuite is 1.5, whose robots have composite controllers."""
    return version().startswith("1.5")


def controller_configs(delta: bool) -> dict[str, object]:
    """Return the controller, as the installed robosuite wants it described."""
    if not is_composite():
        return {**OSC_POSE, "control_delta": delta}
    arm = {key: value for key, value in OSC_POSE.items() if key != "control_delta"}
    frame = {"input_type": "delta" if delta else "absolute", "input_ref_frame": "world", "gripper": {"type": "GRIP"}}
    return {"type": "BASIC", "body_parts": {ARM: {**arm, **frame}}}


def load(rendering: bool) -> SimObject:
    """Import robosuite without its advice about macro files, on a machine with or without OpenGL.

    Raises:
        InputError: an untested version, or rendering without a library that renders off screen.
    """
    check_versions()
    # robosuite insists on EGL unless told otherwise, and then cannot even be imported without it.
    opengl.choose(rendering)
    logging.getLogger("robosuite_logs").addFilter(_is_error)  # a level would be set anew by robosuite's import
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import robosuite

    return robosuite


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def build(name: str, arguments: Mapping[str, object], delta: bool, rendering: bool) -> SimObject:
    """Build a robosuite environment as robomimic does: OSC_POSE, 20 Hz, sparse reward, no time limit of its own."""
    robosuite = load(rendering)
    if is_composite() and name not in TESTED_15:
        raise InputError(
            f"robosuite's {name} is tested with robosuite {ROBOSUITE} only, and {version()} is installed; with 1.5 there are: "
            f"{', '.join(TESTED_15)}. Install it with: pip install 'isdt-policy[robosuite]'"
        )
    env = robosuite.make(
        name,
        **arguments,
        controller_configs=controller_configs(delta),
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


def reseed(env: SimObject, seed: int) -> None:
    """Give an environment of robosuite 1.5 a fresh generator; 1.4 has none of its own."""
    if not hasattr(env, "rng"):
        return
    env.seed, env.rng = seed, np.random.default_rng(seed)
    holders = [*env.robots, getattr(env, "placement_initializer", None)]
    holders += getattr(holders[-1], "samplers", {}).values()
    for holder in holders:
        if hasattr(holder, "rng"):
            holder.rng = env.rng


def release(env: SimObject) -> None:
    """Let go of the simulation ahead of a hard reset.

    robosuite's own way of doing so collects the garbage of the whole process: 0.3 s of a reset of 0.5 s beside PyTorch.
    Counting references frees model and data as well. Where images are drawn its way stays: it closes the context.
    """
    if not env.has_offscreen_renderer:
        env.sim = None


def step(env: SimObject, action: NDArray[np.float64]) -> None:
    """Advance by one control step, leaving the derived quantities in agreement with the new state.

    robosuite samples its observables in every physics step and returns values from before the last one; here they are read
    once, after `forward`, so that an observation is a function of the state, as in robomimic's recordings.
    """
    substeps = _substeps(env)
    if substeps is not None:
        substeps.step(action)
    else:
        step_as_robosuite(env, action)
    env.sim.forward()


def step_as_robosuite(env: SimObject, action: NDArray[np.float64]) -> None:
    """Advance by one control step with robosuite's own code, observables left out."""
    env._update_observables = env._get_observations = _nothing
    try:
        env.step(action)
    finally:
        del env._update_observables, env._get_observations


def _substeps(env: SimObject) -> SimObject:
    """What carries out control steps until the next reset; None where robosuite's own code has to."""
    if is_composite():
        return None
    if not hasattr(env, "substeps") or (env.substeps is not None and not env.substeps.fits()):
        env.substeps = Substeps(env) if forward_leaves_no_trace(env.sim.model._model) else None
    return env.substeps


def _nothing(force: bool = False) -> None:
    """Stands in for the update and the reading of observables."""


def observations(env: SimObject) -> dict[str, NDArray[np.float64]]:
    """Return every active observable of the present state; "object-state" is robomimic's "object"."""
    values: dict[str, NDArray[np.float64]] = env._get_observations(force_update=True)
    if is_composite():  # robosuite 1.5 observes no velocity of the hand; as 1.4 does it:
        for index, robot in enumerate(env.robots):
            name = _of_arm(robot.robot_model.eef_name)
            values[f"robot{index}_eef_vel_lin"] = np.array(env.sim.data.get_body_xvelp(name))
            values[f"robot{index}_eef_vel_ang"] = np.array(env.sim.data.get_body_xvelr(name))
        for name in ("Can", "SquareNut"):  # 1.5 puts the relative pose first
            if f"{name}_pos" in values:
                order = ("pos", "quat", "to_robot0_eef_pos", "to_robot0_eef_quat")
                values["object-state"] = np.concatenate([values[f"{name}_{part}"] for part in order])
    return values


def get_state(env: SimObject) -> NDArray[np.float64]:
    """Return time (s), qpos and qvel in one array, as robomimic stores them."""
    return np.array(env.sim.get_state().flatten())


def set_state(env: SimObject, state: NDArray[np.float64], restart: bool) -> None:
    """Put the simulator in a state; `restart` also makes controllers and grippers start from there.

    What a state does not hold: the controller's goal (becomes the present pose), its resting posture (the present one) and
    the gripper's command (the one that holds the fingers where they are, unless they are as after a reset).
    """
    env.sim.set_state_from_flattened(state)
    env.sim.forward()
    if not restart:
        return
    for robot in env.robots:
        controller, gripper = _controller(robot), _of_arm(robot.gripper)
        controller.update_initial_joints(env.sim.data.qpos[robot._ref_joint_pos_indexes])
        fingers = env.sim.data.qpos[_of_arm(robot._ref_gripper_joint_pos_indexes)]
        if np.allclose(fingers, gripper.init_qpos, atol=1e-6):
            gripper.current_action = np.zeros(gripper.dof)
        else:
            # Panda: fingers at +-0.04 m (open) are a command of -+1; see PandaGripper.format_action.
            gripper.current_action = np.clip((np.abs(fingers) - 0.02) / 0.02, -1, 1) * np.array([1.0, -1.0])


def _of_arm(value: SimObject) -> SimObject:
    """robosuite 1.5 keeps what belongs to an arm in a dict over arms."""
    return value[ARM] if isinstance(value, dict) else value


def _controller(robot: SimObject) -> SimObject:
    return robot.part_controllers[ARM] if is_composite() else robot.controller


def arms(
    env: SimObject,
) -> list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """Per arm: position and orientation of the controlled frame, position and orientation of the controller's goal."""
    result = []
    for robot in env.robots:
        controller = _controller(robot)
        controller.update(force=True)
        names = ("ref_pos", "ref_ori_mat") if is_composite() else ("ee_pos", "ee_ori_mat")
        position, matrix = (getattr(controller, name) for name in names)
        result.append((position, matrix, controller.goal_pos, controller.goal_ori))
    return result


def goals_of(
    env: SimObject, action: NDArray[np.float64]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64], float]]:
    """Return what a delta action means in the present state: per arm goal position, goal orientation, gripper command.

    Changes the controllers' goals, as executing the action would.
    """
    result = []
    for robot, part in zip(env.robots, np.split(action, len(env.robots))):
        controller = _controller(robot)
        controller.update(force=True)
        controller.set_goal(part[:6])
        result.append((controller.goal_pos.copy(), controller.goal_ori.copy(), float(part[6])))
    return result


def image(env: SimObject, camera: str, size: int) -> NDArray[np.uint8]:
    """Draw what a camera sees, (size, size, 3) uint8, row 0 at the top."""
    # OpenGL draws with whatever was made current last: that of another environment, if there are several.
    env.sim._render_context_offscreen.gl_ctx.make_current()
    drawn = env.sim.render(camera_name=camera, width=size, height=size)
    return np.ascontiguousarray(drawn[::-1], np.uint8)


def success(env: SimObject) -> bool:
    """Say whether the task is done in the present state."""
    return bool(env._check_success())


# --- drawn geometry -------------------------------------------------------------------------------------------------

# What distinguishes one episode's model from another's: sizes and places of the movable objects' parts.
_GEOMETRY = ("size", "pos", "quat", "density")


def geometry_of(env: SimObject, model_file: str) -> dict[str, dict[str, str]]:
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


def reset_with_geometry(env: SimObject, geometry: Mapping[str, Mapping[str, str]]) -> None:
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
        if hasattr(env, "_xml_processors"):  # robosuite 1.5 adds to a list
            env._xml_processors.remove(edit)
        else:
            env.set_xml_processor(None)
        env.hard_reset = before


def _movable(env: SimObject) -> set[str]:
    return {name for item in env.model.mujoco_objects for name in (*item.contact_geoms, *item.visual_geoms)}
