"""robomimic's `env_args`: what a dataset says of the environment it was recorded in, as a task of ours and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from isdt_policy.envs import robosuite_compat
from isdt_policy.envs.registry import make
from isdt_policy.envs.robomimic import RobosuiteEnv
from isdt_policy.envs.robomimic_specs import ABSOLUTE, SCENES, SPECS
from isdt_policy.shared.errors import InputError, nearest

# Recordings of these robosuite versions replay and observe alike in 1.4.1 (checked on robomimic's v0.1 files); those of 1.5
# belong to 1.5 alone.
COMPATIBLE = {"1.4": ("1.2", "1.3", "1.4"), "1.5": ("1.5",)}


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
        if not np.array_equal(np.asarray(theirs), np.asarray(ours)):
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


def env_args(task: str) -> dict[str, object]:
    """Return robomimic's `env_args` of a task, for files that robomimic's own scripts read."""
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
    task = task_of(env_args)
    # robomimic's own absolute files keep axis-angle rotation.
    rotation = {"rotation": "axis-angle"} if task.endswith(ABSOLUTE) else {}
    return make(task, **{**rotation, **options})  # type: ignore[return-value]
