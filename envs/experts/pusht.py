"""A scripted PushT expert: pick the straight push that improves the block's pose fastest, walk there, push, re-plan.

At every step each contact point on the block's outline, with a few directions, is tried in a compiled model of pushing
(`pusht_model`); the score is the improvement of the pose per unit of time, the way around the block included. The choice
depends on the state and, by a preference for going on with the push under way, on the last choice. Near the goal pushes
become short by themselves, because the best length ends where the pose is best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from isdt_policy.envs.experts import pusht_model as model
from numpy.typing import NDArray

Array = NDArray[np.float64]

CLEARANCE = 18.0  # kept from the block while walking, centre of the agent, px
BEFORE_CONTACT = 5.0  # a push begins this far from touching, px
DIRECTIONS = np.deg2rad([-24.0, -12.0, 0.0, 12.0, 24.0])  # against the inward normal


@dataclass(frozen=True)
class Style:
    """How an expert moves. All are readable from its motion, so a learner can tell them apart.

    Attributes:
        walk_lead: distance of the target ahead of the agent while walking, px (speed is about half of it per step).
        push_lead: the same while pushing.
        push_cost: fixed cost of a push, steps; higher means fewer and longer pushes.
        turn_weight: weight of rotation in the pose error; above 1 rotation is corrected earlier.
        loyalty: factor on the score of the push under way.
    """

    walk_lead: float = 36.0
    push_lead: float = 22.0
    push_cost: float = 5.0
    turn_weight: float = 1.5
    loyalty: float = 1.25


@cache
def _outline() -> tuple[Array, Array]:
    """Contact points and outward normals in the block's frame, (n, 2) each."""
    points, normals = [], []
    for x in (-56, -45, -34, -23, -12, 0, 12, 23, 34, 45, 56):
        points.append((x, 0)), normals.append((0, -1))
    for side in (-1, 1):
        for y in (4, 15, 26):
            points.append((60 * side, y)), normals.append((side, 0))
        for x in (34, 45, 56):
            points.append((x * side, 30)), normals.append((0, 1))
        for y in (50, 64, 78, 92, 106, 117):
            points.append((15 * side, y)), normals.append((side, 0))
    for x in (-11, 0, 11):
        points.append((x, 120)), normals.append((0, 1))
    return np.array(points, np.float64), np.array(normals, np.float64)


@cache
def _roads() -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_], Array, Array]:
    """Nodes around the block, which pairs see each other, and the push starts with their directions (block's frame)."""
    c = CLEARANCE + 2.0
    half = [(-60 - c, -c), (-60 - c, 30 + c), (-15 - c, 30 + c), (-15 - c, 120 + c)]
    nodes = np.array(half + [(-x, y) for x, y in half], np.float64)
    points, normals = _outline()
    starts, directions = [], []
    for point, normal in zip(points, normals):
        start = point + normal * (model.AGENT_RADIUS + BEFORE_CONTACT)
        for angle in DIRECTIONS:
            cos, sin = math.cos(angle), math.sin(angle)
            starts.append(start)
            directions.append((-cos * normal[0] + sin * normal[1], -sin * normal[0] - cos * normal[1]))
    starts_array = np.array(starts)
    edges = np.array([[model.free(*a, *b, CLEARANCE) for b in nodes] for a in nodes])
    # From the start of a push outwards, since a start may be closer than the clearance.
    goal_edges = np.array([[model.free(*s, *a, CLEARANCE) for s in starts_array] for a in nodes])
    return nodes, edges, goal_edges, starts_array, np.array(directions)


class PushTExpert:
    """Closed-loop expert for one episode at a time: `act(state)` gives the next target.

    Args:
        style: how it moves.
    """

    def __init__(self, style: Style | None = None) -> None:
        self.style = style or Style()
        self.reset()

    def reset(self) -> None:
        """Forget the push under way."""
        self._current: int | None = None
        self._line: tuple[Array, Array] | None = None  # start and direction of the push under way, world

    def act(self, state: Array) -> Array:
        """Return the target (2,), px, for a state (5,): agent x, y, block x, y (px), block angle (rad)."""
        style = self.style
        agent, angle = np.asarray(state[:2], np.float64), float(state[4])
        rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        origin = np.asarray(state[2:4], np.float64)
        pose = np.array([*(origin + rotation @ [0.0, model.CENTRE_OF_MASS]), angle])
        nodes, edges, goal_edges, starts, directions = _roads()
        local_agent = rotation.T @ (agent - origin)

        world_nodes = nodes @ rotation.T + origin
        usable = ((world_nodes > 3.0) & (world_nodes < 509.0)).all(1)
        node_dist, node_next = model.node_distances(nodes, usable, edges)
        length, first, last = model.ways(local_agent, starts, nodes, node_dist, goal_edges, usable, CLEARANCE)

        world_starts = starts @ rotation.T + origin
        world_directions = directions @ rotation.T
        inside = ((world_starts > 3.0) & (world_starts < 509.0)).all(1)
        walk_speed, push_speed = style.walk_lead / 2, style.push_lead / 2
        lead = np.where(inside & (length < 1e8), length / walk_speed + style.push_cost, 1e9)

        # Pushes that begin where the agent is: going on in the present line, or turning off it a little.
        here = np.deg2rad(np.arange(0.0, 360.0, 12.0)) + angle
        turns = [np.array([math.cos(a), math.sin(a)]) for a in here]
        on_line = self._line is not None
        if on_line:
            base = math.atan2(self._line[1][1], self._line[1][0])
            turns = [np.array([math.cos(base + d), math.sin(base + d)]) for d in np.deg2rad([0.0, -4.0, 4.0])] + turns
        n_far = len(starts)
        all_starts = np.concatenate([world_starts, np.tile(agent, (len(turns), 1))])
        all_directions = np.concatenate([world_directions, np.array(turns)])
        all_leads = np.concatenate([lead, np.full(len(turns), style.push_cost)])
        rate, reach, _ = model.best_pushes(
            pose, all_starts, all_directions, all_leads, push_speed, 2.0, 90, style.turn_weight
        )
        score = rate.copy()
        if on_line:
            score[n_far] *= style.loyalty
            score[n_far + 1 : n_far + 3] *= style.loyalty * 0.97
        elif self._current is not None:
            score[self._current] *= style.loyalty
        best = int(np.argmax(score))

        if best >= n_far:
            self._current, self._line = None, (agent, all_directions[best])
            path = [agent, agent + all_directions[best] * reach[best]]
            return self._carrot(path, 0.0, local=None)
        self._current, self._line = best, None
        path = [local_agent]
        node = int(first[best])
        if node >= 0:
            path.append(nodes[node])
            while node != last[best]:
                node = int(node_next[node, last[best]])
                path.append(nodes[node])
        path.append(starts[best])
        walk = sum(float(np.linalg.norm(b - a)) for a, b in zip(path, path[1:]))
        path.append(starts[best] + directions[best] * reach[best])
        target = self._carrot(path, walk, local=local_agent)
        return np.clip(rotation @ target + origin, 0.0, 512.0)

    def _carrot(self, path: list[Array], walk: float, local: Array | None) -> Array:
        """Return the point a lead ahead on the path that the agent can reach in a straight line."""
        lead = min(self.style.walk_lead, walk + self.style.push_lead)
        while True:
            point = _along(path, lead)
            # Beyond the start of the push touching is meant.
            if local is None or lead < 3.0:
                return point
            check = _along(path, min(lead, walk))
            if model.free(local[0], local[1], check[0], check[1], CLEARANCE - 1.5):
                return point
            lead *= 0.8


def _along(path: list[Array], distance: float) -> Array:
    """Return the point `distance` along a polyline, or its end."""
    for a, b in zip(path, path[1:]):
        span = float(np.linalg.norm(b - a))
        if distance <= span and span > 0:
            return a + (b - a) * (distance / span)
        distance -= span
    return path[-1]


# --- demonstrations -------------------------------------------------------------------------------------------------

STOP_COVERAGE = 0.985  # demonstrations go on beyond success, so that a learner aims at the middle of it
KINDS = {"protocol": 0.6, "beside": 0.2, "near": 0.2}


def start_state(rng: np.random.Generator, kind: str) -> Array:
    """Draw the initial state (5,) of a demonstration.

    "protocol" is the distribution of evaluation; "beside" has the agent close to a block that lies anywhere, as after a
    push that went wrong; "near" has the block almost in place, where the last corrections are to be learnt.
    """
    while True:
        agent, block, angle = rng.uniform(50, 450, 2), rng.uniform(100, 400, 2), rng.uniform(-math.pi, math.pi)
        if kind == "near":
            angle = model.GOAL_ANGLE + rng.uniform(-0.45, 0.45)
            block = np.array([model.GOAL_X, model.GOAL_Y]) + rng.uniform(-40, 40, 2)
        if kind in ("near", "beside"):
            agent = block + rng.uniform(-170, 170, 2)
        cos, sin = math.cos(angle), math.sin(angle)
        dx, dy = agent - block
        gap = model.distance_to_block(cos * dx + sin * dy, cos * dy - sin * dx)
        pose = np.array([block[0] - 45 * sin, block[1] + 45 * cos, angle])
        if gap < 16.0 or (kind != "protocol" and gap > 60.0) or model.outside_walls(pose) > 0:
            continue
        if agent.min() > 10 and agent.max() < 502:
            return np.array([*agent, *block, angle])


def episode(seed: int, index: int, style: Style | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return demonstration number `index` of the set `seed`: arrays with time first, and facts about it."""
    from isdt_policy.envs.registry import make

    rng = np.random.default_rng([seed, index])
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    env = make("pusht", obs_keys=["state"], end_on_success=False)
    env.reset(options={"reset_to_state": start_state(rng, kind)})
    states, actions, coverages = [], [], []
    pusher, success, since = PushTExpert(style), False, 0
    done = False
    while not done:
        state = env.unwrapped.state()  # type: ignore[attr-defined]
        action = pusher.act(state).astype(np.float32)
        _, _, _, truncated, info = env.step(action)
        states.append(state.astype(np.float32)), actions.append(action), coverages.append(info["coverage"])
        success = success or info["is_success"]
        since += success
        done = truncated or info["coverage"] > STOP_COVERAGE or since > 60
    arrays = {
        "state": np.array(states, np.float32),
        "action": np.array(actions, np.float32),
        "coverage": np.array(coverages, np.float32),
    }
    return arrays, {"index": index, "seed": seed, "success": success, "kind": kind, "steps": len(actions)}


class ExpertPolicy:
    """The expert under the policy protocol: one expert per episode of a batch, told apart by `noise_seeds`."""

    n_obs_steps = 1
    n_action_steps = 1
    obs_keys = ("state",)

    def __init__(self, style: Style) -> None:
        self._style = style
        self.reset()

    def reset(self) -> None:
        """Forget everything about earlier episodes."""
        self._experts: dict[int, PushTExpert] = {}

    def predict_action(
        self, obs: Any, *, steps: int | str = 1, noise_seeds: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Answer obs["state"] (batch, 1, 5) with actions (batch, 1, 2); `steps` has no meaning here."""
        state = np.asarray(obs["state"])[:, -1]
        names = range(len(state)) if noise_seeds is None else [int(s) for s in noise_seeds[:, 0]]
        actions = []
        for row, name in enumerate(names):
            if noise_seeds is not None and noise_seeds[row, 1] == 0:
                self._experts.pop(name, None)
            pusher = self._experts.setdefault(name, PushTExpert(self._style))
            actions.append(pusher.act(state[row]))
        action = np.array(actions, np.float32)[:, None]
        return {"action": action, "action_pred": action}


def expert(seed: int = 0) -> ExpertPolicy:
    """Return the expert as a policy; the seed chooses its style."""
    return ExpertPolicy(Style())
