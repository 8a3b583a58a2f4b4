"""PushT's geometry: what follows from a state, without a simulator. Units and the state are on the spec sheet of `pusht.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs.protocol import Arrays
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import require

GOAL_POSE = np.array([256.0, 256.0, np.pi / 4])
SUCCESS_COVERAGE = 0.95

# Diffusion Policy's nine keypoints in the block's frame, px. Its recordings hold them as float32 in world coordinates;
# these are those arrays carried back into the block's frame and averaged over the steps where the block rests
# (scatter 1e-5 px). While the block moves, that recording's keypoints and its state differ by a common rigid motion
# (0.01 px in the median of such steps), so equality there can be asked of the shape only.
KEYPOINTS = np.array(
    [
        [9.269787, 90.040974],
        [-60.983472, -1.186730],
        [60.912756, -1.393364],
        [-0.270503, 25.543625],
        [-14.064927, 122.815854],
        [39.002738, 32.857404],
        [-39.966414, 32.729655],
        [-16.824344, 62.863179],
        [23.541461, -1.700288],
    ]
)


def derive(stored: Arrays, key: str) -> NDArray[np.float32]:
    """Compute one observation key from `stored["state"]` (..., 5): agent x, y, block x, y (px), block angle (rad)."""
    state = np.asarray(stored["state"], np.float64)
    if state.shape[-1:] != (5,):
        raise InputError(f"PushT's 'state' must have 5 entries on its last axis, but its shape is {state.shape}.")
    agent, block, angle = state[..., :2], state[..., 2:4], state[..., 4]
    cos, sin = np.cos(angle), np.sin(angle)
    if key == "state":
        result = state
    elif key == "agent_pos":
        result = agent
    elif key == "block_pose":
        result = np.concatenate([block, cos[..., None], sin[..., None]], axis=-1)
    elif key == "keypoints":
        x, y = KEYPOINTS[:, 0], KEYPOINTS[:, 1]
        world_x = block[..., :1] + cos[..., None] * x - sin[..., None] * y
        world_y = block[..., 1:] + sin[..., None] * x + cos[..., None] * y
        result = np.stack([world_x, world_y], axis=-1).reshape(*state.shape[:-1], 18)
    elif key == "agent_in_block":
        dx, dy = agent[..., 0] - block[..., 0], agent[..., 1] - block[..., 1]
        result = np.stack([cos * dx + sin * dy, cos * dy - sin * dx], axis=-1)
    elif key == "goal_in_block":
        dx, dy, turn = GOAL_POSE[0] - block[..., 0], GOAL_POSE[1] - block[..., 1], GOAL_POSE[2] - angle
        result = np.stack([cos * dx + sin * dy, cos * dy - sin * dx, np.cos(turn), np.sin(turn)], axis=-1)
    elif key == "agent_frame":
        result = np.concatenate([agent, cos[..., None], sin[..., None]], axis=-1)
    else:
        raise InputError(f"observation '{key}' of PushT cannot be computed from 'state'; it has to be recorded.")
    return result.astype(np.float32)


def mirror(episode: Arrays) -> dict[str, NDArray[np.float32]]:
    """Reflect {"state": (..., 5), "action": (..., 2)} about the goal block's axis of symmetry.

    (x, y) -> (512 - y, 512 - x) and angle -> pi/2 - angle map the goal onto itself and the walls onto themselves up to one
    pixel, so the reflected episode is a demonstration too. Applying it twice gives the episode back (angle modulo 2 pi).
    """
    state, action = (np.asarray(episode[key], np.float64) for key in ("state", "action"))
    angle = np.mod(np.pi / 2 - state[..., 4:], 2 * np.pi)
    reflected = np.concatenate([512 - state[..., [1, 0]], 512 - state[..., [3, 2]], angle], axis=-1)
    return {"state": reflected.astype(np.float32), "action": (512 - action[..., ::-1]).astype(np.float32)}


# Outline of the block in its own frame, px.
OUTLINE = np.array([[-60, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]], float)


def outline(x: float, y: float, angle: float, scale: float = 1.0) -> NDArray[np.float64]:
    """Corners (8, 2), px, of the block at x, y (px), turned by `angle` (rad); `scale` draws it smaller about x, y.

    >>> outline(256.0, 256.0, 0.0)[0].tolist()
    [196.0, 256.0]
    """
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(scale * OUTLINE @ np.array([[cos, sin], [-sin, cos]]) + (x, y))


def success(stored: Arrays) -> NDArray[np.bool_]:
    """Whether the block covers enough of the goal in each row of {"state": (n, 5)}, as the environment judges it.

    Raises:
        InputError: shapely is not installed.
    """
    shapely: Any = require("shapely", "pusht", "Judging success in PushT")
    goal = shapely.Polygon(outline(*GOAL_POSE))
    blocks = [shapely.Polygon(outline(*pose)) for pose in np.asarray(stored["state"], float)[:, 2:5]]
    return np.array([goal.intersection(block).area / goal.area for block in blocks]) > SUCCESS_COVERAGE


# A push: the block moves by more than MOVING px a step, then rests for two, and was carried SHORTEST px or more: jitter at a
# contact is none. Its last CLIP steps hold the way to it (two horizons of 16); pushes that end within APART steps are one.
MOVING, SHORTEST, CLIP, APART = 0.5, 3.0, 32, 8
AGENT_RADIUS = 15.0
# A nudge: the beginning of a push, until the block has been carried as far as this from where it rested, px.
NUDGES = (1.0, 5.0)


def hindsight(episode: Arrays) -> list[dict[str, NDArray[np.float32]]]:
    """What {"state": (T, 5), "action": (T, 2)} demonstrates once its goals are named in hindsight (Andrychowicz et al. 1707.01495).

    The first is the whole episode, the others end each push after which the block came to rest: its last `CLIP` steps. Each
    is moved rigidly so that the block's last pose is the goal. Physics does not change with the place or the turn of a scene,
    walls aside, so it shows how to reach the goal exactly, whatever pose the demonstrator had stopped at. Pushes that the
    move would carry into a wall are left out.
    """
    state, action = (np.asarray(episode[key], np.float64) for key in ("state", "action"))
    found = [_ending_on_goal(state, action)]
    moving = _travel(state[:-1], state[1:]) > MOVING
    last = 0
    for end in (np.flatnonzero(moving[:-2] & ~moving[1:-1] & ~moving[2:]) + 1).tolist():
        start = max(0, end + 1 - CLIP)
        if end - last < APART or _travel(state[start], state[end]) < SHORTEST:
            continue
        if (clip := _inside_walls(_ending_on_goal(state[start : end + 1], action[start : end + 1]))) is not None:
            found.append(clip)
            last = end
    return found


def nudges(episode: Arrays) -> list[dict[str, NDArray[np.float32]]]:
    """The beginnings of pushes, each with the goal where the block has just been carried a few pixels from its rest.

    Whoever has nearly arrived stands before a block that rests a few pixels off, and has to go round it for one short push. Ends
    of pushes (`hindsight`) hardly show that: of their 40 810 steps on the human demonstrations 1 245 have the block at rest 1
    to 8 px from the goal, and a policy trained on them circles there until the time is over. Every push from rest begins
    with it, if the goal is named early; the episode ends on reaching it, so it does not matter that the block moves on.
    """
    state, action = (np.asarray(episode[key], np.float64) for key in ("state", "action"))
    moving = _travel(state[:-1], state[1:]) > MOVING
    found = []
    for onset in (np.flatnonzero(~moving[:-2] & ~moving[1:-1] & moving[2:]) + 2).tolist():
        carried = _travel(state[onset], state[onset:])
        for distance in NUDGES:
            if not (carried >= distance).any():
                continue
            end = onset + int(np.argmax(carried >= distance))
            start = max(0, end + 1 - CLIP)
            clip = _inside_walls(_ending_on_goal(state[start : end + 1], action[start : end + 1]))
            found += [] if clip is None else [clip]
    return found


def _inside_walls(clip: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]] | None:
    """The clip, or None if its move carried the agent or a target into a wall."""
    agent, target = clip["state"][:, :2], clip["action"]
    low, high = min(agent.min() - AGENT_RADIUS, target.min()), max(agent.max() + AGENT_RADIUS, target.max())
    return clip if low >= 0 and high <= 512 else None


def _travel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the block's material moves between two states, px: its turn counts at 60 px from its origin."""
    turn = np.mod(b[..., 4] - a[..., 4] + np.pi, 2 * np.pi) - np.pi
    result: NDArray[np.float64] = np.linalg.norm(b[..., 2:4] - a[..., 2:4], axis=-1) + 60 * np.abs(turn)
    return result


def _ending_on_goal(state: NDArray[np.float64], action: NDArray[np.float64]) -> dict[str, NDArray[np.float32]]:
    last, turn = state[-1, 2:4], GOAL_POSE[2] - state[-1, 4]
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])

    def moved(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return (points - last) @ rotation.T + GOAL_POSE[:2]

    angle = np.mod(state[:, 4:] + turn, 2 * np.pi)
    scene = np.concatenate([moved(state[:, :2]), moved(state[:, 2:4]), angle], axis=-1)
    return {"state": scene.astype(np.float32), "action": moved(action).astype(np.float32)}


def legacy_state(seed: int) -> NDArray[np.float64]:
    """Return the initial state (5,) that Diffusion Policy and gym-pusht 0.1.5 draw for a seed.

    >>> legacy_state(100000).round(3).tolist()
    [235.0, 124.0, 335.0, 128.0, -0.905]
    """
    rng = np.random.RandomState(seed)
    return np.array(
        [
            rng.randint(50, 450),
            rng.randint(50, 450),
            rng.randint(100, 400),
            rng.randint(100, 400),
            rng.randn() * 2 * np.pi - np.pi,
        ]
    )
