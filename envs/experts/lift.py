"""A scripted expert for Lift: take the cube by two of its faces and lift it."""

from __future__ import annotations

import math

import numpy as np

from isdt_policy.envs.experts import arm
from isdt_policy.envs.experts.arm import CLOSE, OPEN, Array, View, up, yaw_of
from isdt_policy.envs.protocol import Info, Observation


class LiftExpert(arm.ArmExpert):
    """Approach, close, lift; once more if the cube is lost."""

    def decide(self, view: View) -> tuple[Array, Array, float]:
        """Return the wanted position (3,), orientation (3, 3) and gripper command."""
        face = yaw_of(view.object_matrix[:, 0])
        grip = self.choose_grip([face, face + math.pi / 2])
        down = self.pointing_down(grip)
        place = view.object + up(self.style.depth)
        if self.phase == "begin":
            self.enter("detour" if any(self.style.detour) else "approach")
        if self.phase in ("detour", "approach"):
            point = self.approach(view, place, grip)
            if point is not None:
                return point, down, OPEN
            self.enter("close")
        if self.phase == "close":
            if self.since < 5 + self.style.pause:
                return place, down, CLOSE
            self.enter("lift")
            self.top = view.position + up(0.12)
        if view.opening < 0.03 or float(np.linalg.norm(view.object - view.position)) > 0.04:
            self.enter("approach")  # the fingers hold nothing
        return self.top, view.matrix, CLOSE


def expert(seed: int = 0, task: str = "lift") -> arm.ExpertPolicy:
    """Return the expert as a policy; seed 0 is the plain style, others are drawn."""
    style = arm.Style() if seed == 0 else arm.draw_style(np.random.default_rng(seed))
    return arm.ExpertPolicy(lambda: LiftExpert(style), arm.is_absolute(task))


facts = arm.facts


def episode(seed: int, index: int, task: str = "lift") -> tuple[Observation, Info]:
    """Return demonstration number `index` of the set `seed`; see `arm.record`."""
    return arm.record(task, LiftExpert, seed, index)
