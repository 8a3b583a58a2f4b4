"""`isdt data describe`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from isdt_policy.cli.command import PathText
from isdt_policy.datasets.describe import Said, describe
from isdt_policy.shared.errors import InputError


@dataclass(frozen=True)
class Describe:
    """Say what a recording does not say, once: it is kept in the store, and training takes it from there.

    Without anything to say it shows what is known and what is not.

    Examples:
        isdt data describe my_robot.zarr
        isdt data describe my_robot.zarr rate_hz=20 actions=delta 'gripper=[6]'
        isdt data describe my_robot.zarr quaternion=hand_quat:xyzw unit=hand_pos:m robot_type=franka

    What is described:
        path: a store of ours.
        rate_hz: control steps per second.
        actions: absolute for positions to go to, delta for displacements and velocities.
        action_key: key that holds the commanded action, if it is not called action.
        obs_keys: what a policy reads unless data.obs_keys says otherwise.
        gripper: entries of the action, from 0, that keep their last value when an answer is missing.
        quaternion: KEY:xyzw or KEY:wxyz. It is asked for, and never guessed; the robot must give the same order.
        unit: KEY:UNIT, such as hand_pos:m.
        robot_type: as LeRobot's datasets name it.
        names: KEY:A/B/C, the names of its entries in order, such as action:x/y/z/gripper. LeRobot's datasets get them too.
    """

    path: PathText
    rate_hz: float | None = None
    actions: Literal["absolute", "delta"] | None = None
    action_key: str | None = None
    obs_keys: tuple[str, ...] = ()
    gripper: tuple[int, ...] = ()
    quaternion: tuple[str, ...] = ()
    unit: tuple[str, ...] = ()
    robot_type: str | None = None
    names: tuple[str, ...] = ()

    positional: ClassVar = ("path",)

    def __post_init__(self) -> None:
        if self.rate_hz is not None and not 0 < self.rate_hz < 1e6:
            raise InputError(f"rate_hz={self.rate_hz:g} must be above 0.")
        for name, what in (("quaternion", "xyzw"), ("unit", "UNIT"), ("names", "A/B/C")):
            for pair in getattr(self, name):
                if not all(pair.partition(":")[::2]):
                    raise InputError(f"{name}='{pair}' must be KEY:{what}.")

    def run(self, command: str) -> int:
        said = Said(
            self.rate_hz or 0.0, self.actions or "", self.action_key or "", self.obs_keys, self.gripper,
            _pairs(self.quaternion), _pairs(self.unit), self.robot_type or "", _pairs(self.names),
        )  # fmt: skip
        print(*describe(self.path, said), sep="\n")
        return 0


def _pairs(given: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((key, value) for key, _, value in (pair.partition(":") for pair in given))
