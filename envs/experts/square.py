"""A scripted expert for Square: take the nut by its handle, turn it square to the peg, put it over the peg."""

from __future__ import annotations

import math

import numpy as np

from isdt_policy.envs.experts import arm
from isdt_policy.envs.experts.arm import CLOSE, NEUTRAL, OPEN, Array, Style, View, downward, horizontal, up, yaw_of
from isdt_policy.envs.protocol import Info, Observation

PEG = np.array([0.23, 0.1])  # m; its top is at 0.95 m
HANDLE = 0.066  # from the nut's middle to where its handle is taken, m: nearer, the fingers would come down on the ring
ABOVE = 0.002  # of the fingers' place above the nut's middle, m
CARRY_HEIGHT = 1.0  # of the nut while it is carried, m
DONE_HEIGHT = 0.86


class SquareExpert(arm.ArmExpert):
    """Approach, close, carry, insert, release; once more if the nut is lost."""

    near = 0.005
    final = 0.0  # turn of the wrist with which the nut is put over the peg

    def decide(self, view: View) -> tuple[Array, Array, float]:
        """Return the wanted position (3,), orientation (3, 3) and gripper command."""
        yaw = yaw_of(view.object_matrix[:, 0])
        handle = horizontal(yaw)
        grip = self.choose(yaw)
        down = self.pointing_down(grip)
        place = view.object + (HANDLE + 0.003 * self.style.side) * handle + up(ABOVE + self.style.depth)
        if self.phase == "begin":
            self.enter("detour" if any(self.style.detour) else "approach")
        if self.phase in ("detour", "approach"):
            point = self.approach(view, place, grip)
            if point is not None:
                return point, down, OPEN
            self.enter("close")
        if self.phase == "close":
            if self.since < 7 + self.style.pause:
                return place, down, CLOSE
            self.enter("carry")
        if self.phase == "release":
            if self.since > 12:
                self.enter("approach")
            return view.position + up(0.02 if self.since > 3 else 0.0), view.matrix, OPEN
        held = float(np.linalg.norm(view.object + HANDLE * handle - view.position)) < 0.035 and view.opening > 0.01
        if not held:
            self.enter("approach")
            return view.position + up(0.05), view.matrix, OPEN
        return self.carry(view, yaw)

    def choose(self, yaw: float) -> float:
        """Return the turn of the wrist that grips the handle of a nut at `yaw`, so that it can be brought to the peg.

        On the peg the handle has to point at the robot: elsewhere the hand would be at the end of the arm's reach. With the
        fingers one way round the wrist is then at its neutral place, with the other half a circle from there.
        """
        ways = {turn: 0.0 for turn in arm.turns_to(yaw - math.pi / 2)}
        others = {turn: math.pi for turn in arm.turns_to(yaw + math.pi / 2)}
        if self.grip is None:
            easy = [turn for turn in others if 0.5 < turn < 2.0] if self.style.grip else []
            usual = min(ways or others, key=abs)
            self.grip = easy[0] if easy else usual
            self.final = math.pi if easy or not ways else 0.0
        allowed = ways if self.final == 0.0 else others
        self.grip = min(allowed, key=lambda turn: abs(turn - float(self.grip or 0.0)), default=self.grip)
        return float(self.grip)

    def carry(self, view: View, yaw: float) -> tuple[Array, Array, float]:
        """Bring the held nut over the peg and down; the hand is moved by what the nut has still to move."""
        turn = math.remainder(math.pi - yaw, 2 * math.pi)
        # By the wrist's way round, and the nut's own angle in the end: it may sit askew between the fingers.
        ahead = self.final - self.turn
        if abs(ahead) > 0.5:
            turn = ahead
        matrix = downward(NEUTRAL + self.turn + float(np.clip(turn, -1.2, 1.2)))
        rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        # Turning the hand swings the nut around it; where the nut will be once it is turned:
        nut = view.position[:2] + rotation @ (view.object[:2] - view.position[:2])
        aside = PEG - nut
        off = float(np.linalg.norm(aside))
        lift = view.position[2] - view.object[2]
        if self.phase == "carry":
            risen = np.clip((view.object[2] - (CARRY_HEIGHT - 0.06)) / 0.04, 0.0, 1.0)
            if off < 0.004 and abs(turn) < 0.04 and risen == 1.0:
                self.enter("insert")
            return np.array([*(view.position[:2] + risen * aside), CARRY_HEIGHT + lift]), matrix, CLOSE
        if view.object[2] < DONE_HEIGHT:
            self.enter("release")
            return view.position, view.matrix, OPEN
        if self.since > 40 or (off > 0.02 and view.object[2] > 0.95):
            self.enter("carry")  # beside the peg: up and try again
        # Down as long as it is well over the peg; a nut that is already around it guides itself.
        height = view.object[2] - (0.04 if off < 0.005 or view.object[2] < 0.94 else 0.0)
        return np.array([*(view.position[:2] + aside), height + lift]), matrix, CLOSE


def expert(seed: int = 0, task: str = "square") -> arm.ExpertPolicy:
    """Return the expert as a policy; seed 0 is the plain style, others are drawn."""
    style = Style() if seed == 0 else arm.draw_style(np.random.default_rng(seed))
    return arm.ExpertPolicy(lambda: SquareExpert(style), arm.is_absolute(task))


facts = arm.facts


def episode(seed: int, index: int, task: str = "square") -> tuple[Observation, Info]:
    """Return demonstration number `index` of the set `seed`; see `arm.record`."""
    return arm.record(task, SquareExpert, seed, index)
