"""A quasi-static model of pushing the T, compiled: what a straight push does to the block, and ways around the block.

gym-pusht damps all velocity between physics steps and has no friction, so the block moves only while it is touched, along
the contact's normal, and turns in proportion to the lever arm. The model places the agent step by step and moves the
block by just enough to end each overlap. It disagrees with the simulator by a few per cent of the motion, which
re-planning absorbs, and costs about a hundredth.

Frames: poses are (x, y, angle) of the block's centre of mass in the world, px and rad; outlines are in the block's frame
(origin at the middle of the bar's upper edge, y towards the stem).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

AGENT_RADIUS = 15.0
CENTRE_OF_MASS = 45.0  # on the block's y axis
INERTIA = 3000.0  # px^2 per unit mass, as in gym-pusht
CENTROID = 40.714  # of the area, on the block's y axis
AREA_RADIUS_SQ = 1931.0  # mean squared distance of the area from its centroid, px^2
GOAL_X, GOAL_Y, GOAL_ANGLE = 256.0, 256.0, math.pi / 4

# The T as two rectangles: x low, x high, y low, y high.
RECTANGLES = np.array([[-60.0, 60.0, 0.0, 30.0], [-15.0, 15.0, 30.0, 120.0]])
CORNERS = np.array([[-60.0, 0.0], [60.0, 0.0], [60.0, 30.0], [-60.0, 30.0], [15.0, 120.0], [-15.0, 120.0]])


@njit(cache=True)
def distance_to_block(x: float, y: float) -> float:
    """Distance of a point from the T, both in the block's frame; 0 inside."""
    best = 1e9
    for i in range(2):
        dx = max(RECTANGLES[i, 0] - x, 0.0, x - RECTANGLES[i, 1])
        dy = max(RECTANGLES[i, 2] - y, 0.0, y - RECTANGLES[i, 3])
        best = min(best, math.hypot(dx, dy))
    return best


@njit(cache=True)
def pose_error(x: float, y: float, angle: float, turn_weight: float) -> float:
    """Root mean squared distance of the block's area from its place in the goal, px, rotation weighted."""
    shift = CENTROID - CENTRE_OF_MASS
    cx = x - shift * math.sin(angle) - (GOAL_X - CENTROID * math.sin(GOAL_ANGLE))
    cy = y + shift * math.cos(angle) - (GOAL_Y + CENTROID * math.cos(GOAL_ANGLE))
    turn = 2.0 * AREA_RADIUS_SQ * turn_weight * (1.0 - math.cos(angle - GOAL_ANGLE))
    return math.sqrt(cx * cx + cy * cy + turn)


@njit(cache=True)
def resolve_contact(pose: np.ndarray, agent_x: float, agent_y: float) -> None:
    """Move the block (pose, in place) just out of the agent."""
    for _ in range(2):
        for i in range(2):
            c, s = math.cos(pose[2]), math.sin(pose[2])
            dx, dy = agent_x - pose[0], agent_y - pose[1]
            px, py = c * dx + s * dy, -s * dx + c * dy + CENTRE_OF_MASS
            qx = min(max(px, RECTANGLES[i, 0]), RECTANGLES[i, 1])
            qy = min(max(py, RECTANGLES[i, 2]), RECTANGLES[i, 3])
            gap = math.hypot(px - qx, py - qy)
            if gap >= AGENT_RADIUS or gap < 1e-6:
                continue
            nx, ny = (qx - px) / gap, (qy - py) / gap  # from the agent into the block
            lever = qx * ny - (qy - CENTRE_OF_MASS) * nx
            impulse = (AGENT_RADIUS - gap) / (1.0 + lever * lever / INERTIA)
            pose[0] += impulse * (c * nx - s * ny)
            pose[1] += impulse * (s * nx + c * ny)
            pose[2] += impulse * lever / INERTIA


@njit(cache=True)
def outside_walls(pose: np.ndarray) -> float:
    """How far the block's farthest corner reaches beyond the walls, px; 0 inside."""
    c, s = math.cos(pose[2]), math.sin(pose[2])
    worst = 0.0
    for i in range(6):
        px, py = CORNERS[i, 0], CORNERS[i, 1] - CENTRE_OF_MASS
        x, y = pose[0] + c * px - s * py, pose[1] + s * px + c * py
        worst = max(worst, 8.0 - x, x - 503.0, 8.0 - y, y - 503.0)
    return worst


@njit(cache=True)
def push(
    pose: np.ndarray, x: float, y: float, ux: float, uy: float, step: float, turn_weight: float, errors: np.ndarray
):
    """Fill errors[k] with the pose error after a straight push of (k + 1) * step px from (x, y) along (ux, uy).

    From the step on where the agent leaves the window or the block is driven further into a wall, errors are infinite.
    """
    block = pose.copy()
    wall = outside_walls(block) + 0.5
    errors[:] = np.inf
    for k in range(errors.shape[0]):
        x += ux * step
        y += uy * step
        if x < 2.0 or y < 2.0 or x > 510.0 or y > 510.0:
            return
        resolve_contact(block, x, y)
        if outside_walls(block) > wall:
            return
        errors[k] = pose_error(block[0], block[1], block[2], turn_weight)


class Pushes(NamedTuple):
    """How candidate pushes are tried and judged.

    Attributes:
        speed: px per step while pushing.
        step: resolution of the length, px.
        n_steps: longest push / step.
        turn_weight: weight of rotation in the error.
        spread: the outcome is averaged over pushes this far to either side, px, so that pushes that forgive a careless
            agent are preferred; 0 tries the push itself only.
    """

    speed: float
    step: float
    n_steps: int
    turn_weight: float
    spread: float


@njit(cache=True)
def best_pushes(pose, starts, directions, lead_times, pushes):
    """For every candidate push, find the length with the best rate of improvement.

    Args:
        pose: block pose (3,).
        starts: agent positions where the pushes begin, world, (n, 2).
        directions: unit vectors, world, (n, 2).
        lead_times: steps spent before each push begins, plus a fixed cost per push, (n,).
        pushes: a `Pushes`.

    Returns:
        (rate, length, error at the end), each (n,).
    """
    speed, step, n_steps, turn_weight, spread = pushes
    n = starts.shape[0]
    rate, length, final = np.full(n, -1e9), np.zeros(n), np.zeros(n)
    errors, mean = np.empty(n_steps), np.empty(n_steps)
    offsets = np.array([-spread, 0.0, spread]) if spread > 0.0 else np.zeros(1)
    now = pose_error(pose[0], pose[1], pose[2], turn_weight)
    for i in range(n):
        if lead_times[i] > 1e6:
            continue
        ux, uy = directions[i, 0], directions[i, 1]
        mean[:] = 0.0
        for offset in offsets:
            push(pose, starts[i, 0] - offset * uy, starts[i, 1] + offset * ux, ux, uy, step, turn_weight, errors)
            mean += errors / len(offsets)
        for k in range(n_steps):
            if mean[k] == np.inf:
                break
            r = (now - mean[k]) / (lead_times[i] + (k + 1) * step / speed)
            if r > rate[i]:
                rate[i], length[i], final[i] = r, (k + 1) * step, mean[k]
    return rate, length, final


@njit(cache=True)
def free(ax: float, ay: float, bx: float, by: float, clearance: float) -> bool:
    """Whether the segment a-b (block's frame) keeps `clearance` from the T; where a is closer, whether it moves away."""
    near = distance_to_block(ax, ay) - 0.3
    span = math.hypot(bx - ax, by - ay)
    n = int(span / 4.0) + 1
    for k in range(1, n + 1):
        f = k / n
        least = min(clearance, near + 0.6 * f * span)
        if distance_to_block(ax + f * (bx - ax), ay + f * (by - ay)) < least:
            return False
    return True


@njit(cache=True)
def node_distances(nodes: np.ndarray, usable: np.ndarray, edges: np.ndarray):
    """All-pairs shortest distances between usable nodes, and the next node on each way (Floyd-Warshall)."""
    n = nodes.shape[0]
    dist = np.full((n, n), 1e9)
    step = np.full((n, n), -1)
    for i in range(n):
        for j in range(n):
            if usable[i] and usable[j] and (edges[i, j] or i == j):
                dist[i, j] = math.hypot(nodes[i, 0] - nodes[j, 0], nodes[i, 1] - nodes[j, 1])
                step[i, j] = j
    for k in range(n):
        for i in range(n):
            for j in range(n):
                if dist[i, k] + dist[k, j] < dist[i, j] - 1e-9:
                    dist[i, j] = dist[i, k] + dist[k, j]
                    step[i, j] = step[i, k]
    return dist, step


@njit(cache=True)
def ways(agent, goals, nodes, node_dist, goal_edges, usable, clearance):
    """Shortest way from the agent to each goal, straight or over nodes, all in the block's frame.

    Returns:
        length (m,), first node (m,) and last node (m,); -1 and -1 for a straight way.
    """
    n, m = nodes.shape[0], goals.shape[0]
    to_node = np.full(n, 1e9)
    for a in range(n):
        if usable[a] and free(agent[0], agent[1], nodes[a, 0], nodes[a, 1], clearance):
            to_node[a] = math.hypot(agent[0] - nodes[a, 0], agent[1] - nodes[a, 1])
    length, first, last = np.full(m, 1e9), np.full(m, -1), np.full(m, -1)
    for g in range(m):
        if free(agent[0], agent[1], goals[g, 0], goals[g, 1], clearance):
            length[g] = math.hypot(agent[0] - goals[g, 0], agent[1] - goals[g, 1])
        for b in range(n):
            if not (goal_edges[b, g] and usable[b]):
                continue
            end = math.hypot(nodes[b, 0] - goals[g, 0], nodes[b, 1] - goals[g, 1])
            for a in range(n):
                total = to_node[a] + node_dist[a, b] + end
                if total < length[g] - 1e-9:
                    length[g], first[g], last[g] = total, a, b
    return length, first, last
