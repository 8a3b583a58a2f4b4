"""What a recording does not say, said once and kept in the store: for training, for LeRobot, for whoever opens it later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.values import JsonObject

ORDERS = ("xyzw", "wxyz")


@dataclass(frozen=True)
class Said:
    """What is said; empty where nothing is.

    Attributes:
        rate_hz: steps per second.
        actions: "absolute" or "delta".
        action_key: key that holds the commanded action.
        obs_keys: what a policy reads unless it is told otherwise.
        gripper: entries of the action, from 0, that keep their last value when an answer is missing.
        quaternions: {key: "xyzw" or "wxyz"}.
        units: {key: unit}.
        robot_type: as LeRobot's datasets name it.
        names: {key: names of its entries, in order, with a / between them}; LeRobot's datasets have them too.
    """

    rate_hz: float = 0.0
    actions: str = ""
    action_key: str = ""
    obs_keys: tuple[str, ...] = ()
    gripper: tuple[int, ...] = ()
    quaternions: tuple[tuple[str, str], ...] = ()
    units: tuple[tuple[str, str], ...] = ()
    robot_type: str = ""
    names: tuple[tuple[str, str], ...] = ()


def describe(path: str | Path, said: Said) -> list[str]:
    """Write it into the attributes of a store of ours; returns what is known now, a line each.

    Raises:
        InputError: not a store of ours, a key that it has not, an entry that its action has not, or an unknown order.
    """
    store = DemoStore.open(path)
    if "isdt_schema" not in store.attrs or store.path.suffix == ".zip":
        raise InputError(
            f"'{path}' is not a .zarr folder of ours, and is only read: isdt data convert {path} TARGET.zarr"
        )
    attributes = _changed(store, said)
    if attributes:
        with DemoWriter(store.path) as writer:
            writer.describe(attributes)
    return _known({**store.attrs, **attributes})


def _changed(store: DemoStore, said: Said) -> JsonObject:
    """The attributes that change."""
    for key in (said.action_key, *said.obs_keys, *dict(said.quaternions), *dict(said.units), *dict(said.names)):
        if key and key not in store.keys:
            raise InputError(
                f"'{store.path}' has no key '{key}'.{nearest(key, store.keys)} It has: {', '.join(store.keys)}."
            )
    for key, order in said.quaternions:
        if order not in ORDERS:
            raise InputError(
                f"quaternion={key}:{order} must be {key}:xyzw or {key}:wxyz (which entry is the real part)."
            )
        if store.shape(key)[-1:] == () or store.shape(key)[-1] % 4:
            raise InputError(
                f"quaternion={key}:{order}: '{key}' has shape {store.shape(key)}, which are no quaternions."
            )
    for key, names in said.names:
        each, size = names.split("/"), int(np.prod(store.shape(key)))
        if not len(each) == len(set(each)) == size or not all(each):
            raise InputError(f"names={key}:{names}: '{key}' has {size} entries, which need {size} different names.")
    action_key = said.action_key or str(store.attrs.get("action_key") or "action")
    size = int(store.shape(action_key)[-1]) if said.gripper and action_key in store.keys else 0
    if any(not 0 <= entry < size for entry in said.gripper):
        raise InputError(f"gripper={list(said.gripper)}: entries of '{action_key}' are 0 to {size - 1}.")
    space = dict(store.attrs.get("action_space") or {})
    told = {"rate_hz": said.rate_hz, "type": said.actions, "gripper": list(said.gripper)}
    keys = {key: dict(facts) for key, facts in store.attrs.get("keys", {}).items()}
    for what, pairs in (("quaternion", said.quaternions), ("unit", said.units)):
        for key, value in pairs:
            keys.setdefault(key, {})[what] = value
    for key, names in said.names:
        keys.setdefault(key, {})["names"] = names.split("/")
    found: JsonObject = {"action_space": space | {name: value for name, value in told.items() if value}, "keys": keys}
    found |= {"action_key": said.action_key, "obs_keys": list(said.obs_keys), "robot_type": said.robot_type}
    return {name: value for name, value in found.items() if value and value != store.attrs.get(name)}


def _known(attributes: JsonObject) -> list[str]:
    space = attributes.get("action_space") or {}
    asked = {"rate_hz": "rate_hz=N", "type": "actions=absolute or delta"}
    lines = [f"{name:<14}{space.get(name, f'not known: {how}')}" for name, how in asked.items()]
    lines += [f"{'gripper':<14}entries {space['gripper']}"] if "gripper" in space else []
    lines += [
        f"{name:<14}{attributes[name]}" for name in ("action_key", "obs_keys", "robot_type") if name in attributes
    ]
    return lines + [f"{key:<14}{facts}" for key, facts in attributes.get("keys", {}).items()]
