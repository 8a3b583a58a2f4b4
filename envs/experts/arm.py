"""What the scripted experts for robosuite's arms share: reading observations, servoing, acting as a policy, recording.

An expert looks at observations only and decides anew in every step, so that a dropped object is picked up again. It thinks
in delta actions; where the environment takes absolute ones, the same target is written as a pose. The styles differ in
what a demonstrator is free to choose: the face that is gripped, the side from which the object is approached, how high, how
fast, how deep, a detour that is corrected on the way, and an unsteady hand: noise in the actions of a long way, which later
actions correct. What is recorded is what was carried out, noise included.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs import rotations
from isdt_policy.envs.protocol import Arrays, Info, Observation
from isdt_policy.envs.registry import make, task_spec
from isdt_policy.envs.robomimic import RobosuiteEnv

Array = NDArray[np.float64]

OBS_KEYS = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
OPEN, CLOSE = -1.0, 1.0
STEP_M, STEP_RAD = 0.05, 0.5  # what a delta action of 1 means
# The observed orientation is the hand's, the controlled one the grip site's, a quarter turn about their common z.
HAND_TO_SITE = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
NEUTRAL = math.pi / 2  # yaw of the fingers' direction when the last joint is in its usual place
TURNS = -1.6, 3.3  # from there, rad, as far as that joint goes (seen from above, further counter-clockwise)
WOBBLE = 0.7  # correlation of the noise between steps
SEED_RANGE = 2**31  # reset seeds of demonstrations


@dataclass(frozen=True)
class Style:
    """How an expert moves.

    Attributes:
        grip: number of the preferred way to grip among those that are equal by symmetry, 0 being the one nearest by.
        side: sideways shift of the approach, as a share of its height: -1 left, 0 straight, 1 right.
        hover: height above the object from which it is approached, m.
        speed: largest delta action, 1 being the fastest.
        depth: where the fingers close below (-) or above (+) the usual place, m.
        detour: point passed on the way to the object, relative to the straight way, m.
        pause: further steps given to closing the fingers.
        noise: of the hand, as a share of its motion: standard deviation in each direction. It fades as the hand slows down,
            so that grasping and inserting are steady.
        noise_seed: of that noise.
    """

    grip: int = 0
    side: float = 0.0
    hover: float = 0.08
    speed: float = 1.0
    depth: float = 0.0
    detour: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pause: int = 0
    noise: float = 0.0
    noise_seed: int = 0


def draw_style(rng: np.random.Generator) -> Style:
    """Draw one of many styles."""
    (hand,) = rng.spawn(1)  # takes nothing from rng: what is drawn from it afterwards stays the same
    detour = rng.uniform(-0.06, 0.06, 3) * (rng.random() < 0.5)
    return Style(
        grip=int(rng.random() < 0.35),
        side=float(rng.choice([-1.0, 0.0, 1.0]) * rng.uniform(0.5, 1.0)),
        hover=float(rng.uniform(0.05, 0.11)),
        speed=float(rng.uniform(0.6, 1.0)),
        depth=float(rng.uniform(-0.004, 0.006)),
        detour=(float(detour[0]), float(detour[1]), float(abs(detour[2]))),
        pause=int(rng.integers(0, 3)),
        noise=float(hand.uniform(0.1, 0.5) * (hand.random() < 0.5)),
        noise_seed=int(hand.integers(SEED_RANGE)),
    )


@dataclass(frozen=True)
class View:
    """An observation in the terms an expert thinks in.

    Attributes:
        position: of the grip site, m.
        matrix: orientation of the grip site; x is the direction in which the fingers open, z points out of the hand.
        opening: distance between the fingers, m (0.08 open).
        object: position of the object, m.
        object_matrix: its orientation.
    """

    position: Array
    matrix: Array
    opening: float
    object: Array
    object_matrix: Array

    @classmethod
    def of(cls, obs: Arrays) -> View:
        """Read an observation with the keys OBS_KEYS."""
        hand = rotations.quaternion_to_matrix(obs["robot0_eef_quat"])
        fingers = np.asarray(obs["robot0_gripper_qpos"], np.float64)
        return cls(
            np.asarray(obs["robot0_eef_pos"], np.float64),
            hand @ HAND_TO_SITE,
            float(fingers[0] - fingers[1]),
            np.asarray(obs["object"][:3], np.float64),
            rotations.quaternion_to_matrix(obs["object"][3:7]),
        )


def horizontal(yaw: float) -> Array:
    """Horizontal unit vector at this angle from x, rad."""
    return np.array([math.cos(yaw), math.sin(yaw), 0.0])


def yaw_of(vector: Array) -> float:
    """Angle of a vector's horizontal part from x, rad."""
    return math.atan2(vector[1], vector[0])


def downward(yaw: float) -> Array:
    """Orientation of a grip site that points straight down, its fingers opening along `yaw`."""
    x, z = horizontal(yaw), np.array([0.0, 0.0, -1.0])
    return np.stack([x, np.cross(z, x), z], axis=1)


def turns_to(yaw: float) -> list[float]:
    """Turns of the wrist from its neutral place that its joint allows and that bring the fingers' direction to `yaw`."""
    turns = [yaw - NEUTRAL + 2 * math.pi * k for k in (-2, -1, 0, 1, 2)]
    return [turn for turn in turns if TURNS[0] <= turn <= TURNS[1]]


def up(height: float) -> Array:
    """Vector of this height, m."""
    return np.array([0.0, 0.0, height])


class ArmExpert:
    """One episode of a task; `decide` says where the hand should be and what the fingers should do.

    Args:
        style: how to move.
    """

    near = 0.008  # height above the place at which the fingers begin to close, m

    def __init__(self, style: Style) -> None:
        self.style = style
        self.phase = "begin"
        self.since = 0  # steps in the present phase
        self.grip: float | None = None  # wanted turn of the wrist, settled at the first look
        self.turn = 0.0  # present turn, rad; beyond half a circle where the joint went there
        self._rng = np.random.default_rng(style.noise_seed)
        self._wobble = np.zeros(6)

    def enter(self, phase: str) -> None:
        """Go over to another phase."""
        self.phase, self.since = phase, -1

    def decide(self, view: View) -> tuple[Array, Array, float]:
        """Return the wanted position (3,), orientation (3, 3) and gripper command."""
        raise NotImplementedError

    def act(self, view: View) -> Array:
        """Return a delta action (7,)."""
        change = yaw_of(view.matrix[:, 0]) - NEUTRAL - self.turn
        self.turn += math.remainder(change, 2 * math.pi)
        position, matrix, grip = self.decide(view)
        self.since += 1
        move = 1.6 * (position - view.position) / STEP_M
        move *= min(1.0, self.style.speed / max(1e-9, float(np.abs(move).max())))
        turn = 1.6 * rotations.matrix_to_axis_angle(matrix @ view.matrix.T) / STEP_RAD
        turn *= min(1.0, 0.6 * self.style.speed / max(1e-9, float(np.abs(turn).max())))
        return np.concatenate([self._unsteady(np.concatenate([move, turn])), [grip]])

    def _unsteady(self, motion: Array) -> Array:
        """Add the style's noise to a motion (6,); it lasts about three steps, so that it leads astray instead of averaging."""
        if not self.style.noise:
            return motion
        self._wobble = WOBBLE * self._wobble + math.sqrt(1 - WOBBLE**2) * self._rng.normal(size=6)
        share = np.repeat([np.linalg.norm(motion[:3]), np.linalg.norm(motion[3:])], 3)
        return np.clip(motion + self.style.noise * share * self._wobble, -1.0, 1.0)

    # --- shared pieces of tasks

    def choose_grip(self, yaws: list[float]) -> float:
        """Settle on a turn of the wrist that brings the fingers' direction to one of `yaws`, rad, or its opposite.

        Returns the turn: the style's choice, counted from the smallest change; later calls follow the object.
        """
        turns = [turn for yaw in yaws for turn in turns_to(yaw) + turns_to(yaw + math.pi)]
        if self.grip is None:
            turns.sort(key=lambda turn: abs(turn - self.turn))
            easy = [turn for turn in turns if abs(turn - self.turn) < 1.9] or turns[:1]
            self.grip = easy[min(self.style.grip, len(easy) - 1)]
        self.grip = min(turns, key=lambda turn: abs(turn - float(self.grip or 0.0)))
        return self.grip

    def pointing_down(self, turn: float) -> Array:
        """Orientation on the way to this turn of the wrist, the hand pointing down.

        At most 1.2 rad ahead, so that a turn of more than half a circle goes the way the joint allows.
        """
        return downward(NEUTRAL + self.turn + float(np.clip(turn - self.turn, -1.2, 1.2)))

    def approach(self, view: View, place: Array, grip: float) -> Array | None:
        """Return the next point on the way to `place` with open fingers, None when they are around it."""
        offset = place - view.position
        aside = float(np.hypot(offset[0], offset[1]))
        turn = max(abs(grip - self.turn), 1.0 + float(view.matrix[2, 2]))
        above = view.position[2] - place[2]
        if self.phase == "detour":
            point = place + up(self.style.hover) + np.array(self.style.detour)
            if float(np.linalg.norm(point - view.position)) < 0.03 or self.since > 25:
                self.enter("approach")
            return np.asarray(point)
        if self.since > 80:
            self.enter("detour")  # something is in the way: up, and once more
        if aside < 0.006 and above < self.near and turn < 0.12:
            return None
        # A funnel: the further to the side or the more turned, the higher the hand has to be.
        height = min(self.style.hover, max(0.0, 3.0 * (aside - 0.008)) + max(0.0, 0.3 * (turn - 0.1)))
        # The approach comes in from one side: shifted in proportion to the height that is left.
        sideways = horizontal(NEUTRAL + grip + math.pi / 2) * self.style.side * 0.25 * max(0.0, above - 0.03)
        return np.asarray(place + up(height) + sideways)


class ExpertPolicy:
    """An expert under the policy protocol: one per episode of a batch, told apart by `noise_seeds`."""

    n_obs_steps = 1
    n_action_steps = 1
    inference_rows = 1  # no batched arithmetic: a row does not depend on the rows beside it
    obs_keys = OBS_KEYS

    def __init__(self, make_expert: Callable[[], ArmExpert], absolute: bool) -> None:
        self._make, self._absolute = make_expert, absolute
        self.reset()

    def reset(self) -> None:
        """Forget everything about earlier episodes."""
        self._experts: dict[int, ArmExpert] = {}

    def predict_action(
        self, obs: Arrays, *, nfe: int | str = 1, noise_seeds: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Answer observations (batch, 1, ...) with actions (batch, 1, 7 or 10); `nfe` has no meaning here."""
        batch = len(obs["object"])
        names = range(batch) if noise_seeds is None else [int(s) for s in noise_seeds[:, 0]]
        actions = []
        for row, name in enumerate(names):
            if noise_seeds is not None and noise_seeds[row, 1] == 0:
                self._experts.pop(name, None)
            if name not in self._experts:
                self._experts[name] = self._make()
            view = View.of({key: np.asarray(obs[key])[row, -1] for key in OBS_KEYS})
            actions.append(command(self._experts[name].act(view), view, self._absolute))
        action = np.array(actions, np.float32)[:, None]
        return {"action": action, "action_pred": action}


def command(delta: Array, view: View, absolute: bool) -> Array:
    """Return a delta action (7,) as it is, or as the absolute action (10,) with the same target."""
    if not absolute:
        return delta
    matrix = rotations.axis_angle_to_matrix(STEP_RAD * delta[3:6]) @ view.matrix
    return np.concatenate([view.position + STEP_M * delta[:3], rotations.matrix_to_six(matrix), delta[6:]])


def is_absolute(task: str) -> bool:
    """Say whether a task takes absolute actions."""
    return bool(task_spec(task).action_space["type"] == "absolute")


@functools.cache
def _environment(task: str) -> RobosuiteEnv:
    """One environment per process: building one takes longer than an episode."""
    return cast("RobosuiteEnv", make(task, end_on_success=False))


def facts(seed: int, index: int) -> Info:
    """Return what is decided about demonstration `index` of the set `seed` before it begins."""
    rng = np.random.default_rng([seed, index])
    style = draw_style(rng)
    return {"index": index, "seed": seed, "reset_seed": int(rng.integers(SEED_RANGE)), "style": asdict(style)}


def record(
    task: str, make_expert: Callable[[Style], ArmExpert], seed: int, index: int, after: int = 4
) -> tuple[Observation, Info]:
    """Return demonstration number `index` of the set `seed`: arrays with time first, and facts about it.

    The arrays are every low-dimensional observation (float32), "action", "reward", and "states" (float64), from which an
    episode can be replayed after `reset(seed=info["reset_seed"])`.
    """
    decided = facts(seed, index)
    env, absolute = _environment(task), is_absolute(task)
    obs, _ = env.reset(seed=decided["reset_seed"])
    expert = make_expert(Style(**decided["style"]))
    rows: list[Observation] = []
    success, since, done = False, 0, False
    while not done:
        view = View.of(obs)
        action = command(expert.act(view), view, absolute).astype(np.float32)
        state = env.state()
        following, reward, _, truncated, info = env.step(action)
        rows.append({**obs, "action": action, "reward": np.array(reward, np.float32), "states": state})
        success = success or info["is_success"]
        since += success
        done = truncated or since > after
        obs = following
    arrays = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return arrays, {**decided, "success": success, "steps": len(rows)}
