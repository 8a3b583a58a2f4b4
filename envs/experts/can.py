"""A scripted expert for Can: take the can from above, carry it over the wall between the bins, let go in its corner."""

from __future__ import annotations

import numpy as np

from isdt_policy.envs.experts import arm
from isdt_policy.envs.experts.arm import CLOSE, OPEN, Array, Style, View, up
from isdt_policy.envs.protocol import Info, Observation

BIN = np.array([0.1975, 0.4025])  # middle of the can's compartment, m
CARRY_HEIGHT = 1.04  # of the hand while it carries, m: the can clears the bins' walls (0.9 m)
RELEASE_HEIGHT = 0.93


class CanExpert(arm.ArmExpert):
    """Approach, close, lift, carry, release, withdraw; once more if the can is lost."""

    def __init__(self, style: Style) -> None:
        super().__init__(style)
        # Anywhere in the near part of the compartment: the far corner is at the end of the arm's reach.
        self.target = BIN + np.array([-0.025 + 0.025 * style.side, -0.02 if style.grip else -0.055])

    def decide(self, view: View) -> tuple[Array, Array, float]:
        """Return the wanted position (3,), orientation (3, 3) and gripper command."""
        grip = 0.5 * self.style.side + (0.6 if self.style.grip else 0.0)
        matrix = self.pointing_down(grip)
        place = view.object + up(0.02 + self.style.depth)
        if self.phase == "begin":
            self.enter("detour" if any(self.style.detour) else "approach")
        if self.phase in ("detour", "approach"):
            point = self.approach(view, place, grip)
            if point is not None:
                return point, matrix, OPEN
            self.enter("close")
        if self.phase == "close":
            if self.since < 6 + self.style.pause:
                return place, matrix, CLOSE
            self.enter("carry")
        if self.phase == "carry":
            aside = self.target - view.object[:2]
            if view.opening < 0.02 or float(np.linalg.norm(view.object - view.position)) > 0.07:
                self.enter("approach")  # the fingers hold nothing
                return view.position + up(0.05), matrix, OPEN
            if float(np.linalg.norm(aside)) < 0.03:
                self.enter("lower")
            # Up first, then across: sideways only as far as the height allows.
            risen = np.clip((view.position[2] - (CARRY_HEIGHT - 0.09)) / 0.05, 0.0, 1.0)
            return np.array([*(view.position[:2] + risen * aside), CARRY_HEIGHT]), matrix, CLOSE
        if self.phase == "lower":
            if view.position[2] > RELEASE_HEIGHT + 0.01 and self.since < 30:
                return np.array([*(view.position[:2] + self.target - view.object[:2]), RELEASE_HEIGHT]), matrix, CLOSE
            self.enter("release")
        if self.phase == "release" and self.since < 4:
            return view.position, matrix, OPEN
        in_bin = float(np.abs(view.object[:2] - BIN).max()) < 0.09
        if not in_bin and self.since > 15:
            self.enter("approach")
        return np.array([*view.position[:2], CARRY_HEIGHT]), matrix, OPEN


def expert(seed: int = 0, task: str = "can") -> arm.ExpertPolicy:
    """Return the expert as a policy; seed 0 is the plain style, others are drawn."""
    style = Style() if seed == 0 else arm.draw_style(np.random.default_rng(seed))
    return arm.ExpertPolicy(lambda: CanExpert(style), arm.is_absolute(task))


facts = arm.facts


def episode(seed: int, index: int, task: str = "can") -> tuple[Observation, Info]:
    """Return demonstration number `index` of the set `seed`; see `arm.record`."""
    return arm.record(task, CanExpert, seed, index)
