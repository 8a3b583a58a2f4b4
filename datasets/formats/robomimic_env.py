"""What a robomimic file says about its environment and its actions, checked against what its numbers can be."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from isdt_policy.envs import rotations
from isdt_policy.envs.robomimic_args import task_of
from isdt_policy.envs.robomimic_specs import SCENES, SPECS
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import Array, Json, JsonObject

# Commands to an arm: position (3), rotation (3), gripper. As displacements they lie in [-1, 1].
_ARM = 7


def environment(given: JsonObject, actions: Array, said: str | None) -> tuple[JsonObject, list[str]]:
    """Our attributes (env, action_space, task) from those of a file, and notes.

    Args:
        given: attributes of the file; `env_args` is taken out.
        actions: (n, width) of some demos.
        said: "delta" or "absolute", where somebody knows better than the file.

    Raises:
        InputError: the numbers fit neither kind of action and nobody says which it is.
    """
    arguments = given.pop("env_args", None)
    env = _object(arguments)
    kwargs = env.get("env_kwargs")
    kwargs = copy.deepcopy(kwargs) if isinstance(kwargs, dict) else {}
    notes = []
    if not env:
        reason = "is missing" if arguments is None else "holds no JSON object"
        notes.append(f"env_args {reason}: which environment and controller were recorded is not known")
    controller = _controller(kwargs)
    kind = _kind(controller, env)
    numbers = _kind_by_numbers(actions, said) if str(controller.get("type", "OSC")).startswith("OSC") else None
    if said or (numbers and kind != numbers):
        if said is None and kind != "absolute":
            says = (
                "env_args says that the actions are displacements"
                if kind
                else "the file does not say what the actions are"
            )
            notes.append(
                f"{says}, but their rotations lie beyond -1 .. 1: they are taken as absolute, as in the *_abs.hdf5 of "
                "Diffusion Policy"
            )
        kind = said or numbers
        controller["control_delta"] = kind == "delta"
    attributes: JsonObject = {}
    if env:
        further = {k: v for k, v in env.items() if k not in ("env_name", "type", "env_kwargs")}
        attributes["env"] = {
            "id": env.get("env_name"), "kwargs": kwargs, "type": env.get("type"), "further": further,
        }  # fmt: skip
        attributes["task"] = _task({**env, "env_kwargs": kwargs})
    space = {
        "type": kind, "controller": controller.get("type"), "rate_hz": kwargs.get("control_freq"),
        "rotation": "axis-angle" if kind and actions.shape[-1] % _ARM == 0 else None,
    }  # fmt: skip
    if kind or space["controller"]:
        attributes["action_space"] = {key: value for key, value in space.items() if value is not None}
    return attributes, notes


def rewritten_rotation(task: str, per_arm: int, width: int) -> Callable[[Array], Array] | None:
    """Return what rewrites absolute actions of `per_arm` numbers per arm, 7 as 10 or 10 as 7; None where nothing is to do."""
    if task not in SPECS or SPECS[task].action_space["type"] != "absolute":
        return None
    if width != per_arm * SCENES[task.removesuffix("_abs")].n_arms:
        return None

    def rewritten(actions: Array) -> Array:
        parts = actions.reshape(len(actions), -1, per_arm)
        if per_arm == 10:
            turned = rotations.matrix_to_axis_angle(rotations.six_to_matrix(parts[..., 3:9]))
        else:
            turned = rotations.matrix_to_six(rotations.axis_angle_to_matrix(parts[..., 3:6]))
        joined = np.concatenate([parts[..., :3], turned, parts[..., -1:]], axis=-1)
        return joined.reshape(len(actions), -1).astype(actions.dtype)

    return rewritten


def _object(text: object) -> JsonObject:
    """A JSON object, or an empty one."""
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _controller(kwargs: Json) -> JsonObject:
    """The settings of the (first) arm's controller, in place; robosuite 1.5 nests them."""
    config: Any = kwargs.get("controller_configs")
    if isinstance(config, list):
        config = config[0] if config else {}
    while isinstance(config, dict):
        inner = next(
            (config[key] for key in ("body_parts", "arms", "right") if isinstance(config.get(key), dict)), None
        )
        if inner is None:
            return config
        config = inner
    return {}


def _kind(controller: Json, env: Json) -> str | None:
    if "control_delta" in controller:
        return "delta" if controller["control_delta"] else "absolute"
    if "input_type" in controller:
        return str(controller["input_type"])
    return "delta" if controller or (env and env.get("type") == 1) else None  # robosuite's default


def _kind_by_numbers(actions: Array, said: str | None) -> str | None:
    """ "absolute" where the rotations cannot be displacements; None where they can.

    Raises:
        InputError: some can and some cannot, and nobody says which it is.
    """
    if said or not actions.size or actions.shape[-1] % _ARM or actions.dtype.kind != "f":
        return None
    turns = actions.reshape(len(actions), -1, _ARM)[..., 3:6]
    # A hand that points down has an absolute rotation of about pi; a displacement is clipped to 1 by the controller.
    share = float((np.abs(turns) > 1 + 1e-6).any(axis=(1, 2)).mean())
    if 0.05 < share < 0.5:
        raise InputError(
            f"rotations of the actions lie beyond -1 .. 1 in {share:.0%} of the steps: too many for displacements, too few for "
            "absolute rotations. Say what the actions are: actions=delta or actions=absolute."
        )
    return "absolute" if share >= 0.5 else None


def _task(env: Json) -> str | None:
    """Our task, where the file was recorded in one of them; else the environment's own name."""
    name = env.get("env_name")
    try:
        return task_of(env)
    except (InputError, AttributeError, KeyError, TypeError, ValueError):  # settings of any shape
        return name if isinstance(name, str) else None
