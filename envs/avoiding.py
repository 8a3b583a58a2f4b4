"""Avoiding: steer a rod through three rows of cylinders, by any of 24 ways (D3IL's task, its kinematics without the arm).

The benchmark is Jia et al., "Towards Diverse Behaviors: A Benchmark for Imitation Learning with Human Demonstrations", ICLR
2024: a Franka arm in MuJoCo holds a rod at a fixed height, and people steered it with a gamepad. Here the rod follows its
command as the recordings say that the arm does, and nothing else of the arm is simulated.

Spec sheet
    Scene        metres. The rod starts at (0.525, -0.28) in every episode and has to reach y > 0.35. Cylinders: one at
                 y = -0.1, two at 0.08, three at 0.26. Rod radius 10 mm: the recorded rods come within 11.9 mm of a surface.
    Action       displacement of the commanded position in one step of 35 ms, at most 12.5 mm along each axis.
    Motion       the measured position is a second-order filter of the commanded one, fitted to the 96 recordings: replayed
                 open loop it is 5.6 mm off in the median, and takes the recorded way in all 96.
    Success      y > 0.35. Touching a cylinder ends the episode as a failure. Truncation after 250 steps.
    Reward       share of the way to the finish, at most 1.
    Seeds        name nothing of the scene: what differs between episodes is what the policy draws.
    Mode         which of the 24 ways was taken, in `info["mode"]` at a success: side of the first row x gap of the second
                 x gap of the third. A policy that averages or commits to one way is found out by the entropy of its modes.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs.protocol import Arrays, Info, Observation
from isdt_policy.envs.registry import ActionPart, ArraySpec, Env, TaskSpec, checked_array, observation_space
from isdt_policy.shared.errors import InputError

START = np.array([0.524928, -0.279737])
FINISH = 0.35
ROD_RADIUS = 0.01
LARGEST_STEP = 0.0125
# Cylinders: x, y, radius.
CYLINDERS = np.array(
    [
        [0.5, -0.1, 0.03],
        [0.425, 0.08, 0.025],
        [0.575, 0.08, 0.025],
        [0.35, 0.26, 0.025],
        [0.5, 0.26, 0.025],
        [0.65, 0.26, 0.025],
    ]
)
ROWS: tuple[tuple[float, tuple[float, ...]], ...] = ((-0.1, (0.5,)), (0.08, (0.425, 0.575)), (0.26, (0.35, 0.5, 0.65)))
N_MODES = 24

# x[t+1] = A0 x[t] + A1 x[t-1] + B0 d[t+1] + B1 d[t], with the gain at rest fixed to 1: least squares of the simulated
# positions over the 96 recordings up to y = 0.33. Beyond it the arm nears its reach and no longer follows.
A0, A1, B0 = 1.692, -0.759, 0.1967
B1 = 1 - A0 - A1 - B0


def follow(
    measured: NDArray[np.float64], before: NDArray[np.float64], desired: NDArray[np.float64], now: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Measured position (2,) one step later.

    Args:
        measured, before: measured position now and one step ago, (2,).
        desired, now: commanded position of the step that ends and of the step that begins, (2,).
    """
    return A0 * measured + A1 * before + B0 * now + B1 * desired


def replay(desired: NDArray[np.float64]) -> NDArray[np.float64]:
    """Measured positions (T, 2) of an episode whose commands (T, 2) are known, from rest at the first."""
    measured = np.empty_like(desired)
    x = before = measured[0] = desired[0]
    for t in range(1, len(desired)):
        x, before = follow(x, before, desired[t - 1], desired[t]), x
        measured[t] = x
    return measured


def touches(start: NDArray[np.float64], end: NDArray[np.float64]) -> bool:
    """Whether the rod touches a cylinder on the straight line between two measured positions (2,)."""
    line = end - start
    length = float(line @ line)
    along = np.clip((CYLINDERS[:, :2] - start) @ line / length, 0, 1) if length else np.zeros(len(CYLINDERS))
    nearest = start + along[:, None] * line
    return bool((np.linalg.norm(CYLINDERS[:, :2] - nearest, axis=1) < CYLINDERS[:, 2] + ROD_RADIUS).any())


def mode_of(path: NDArray[np.float64]) -> int | None:
    """The way, 0 to 23, that measured positions (T, 2) take through the three rows; None if they do not pass all of them."""
    mode = 0
    for y, cylinders in ROWS:
        beyond = np.flatnonzero(path[:, 1] > y)
        if not len(beyond) or not beyond[0]:
            return None
        a, b = path[beyond[0] - 1], path[beyond[0]]
        x = a[0] + (b[0] - a[0]) * (y - a[1]) / (b[1] - a[1])
        mode = mode * (len(cylinders) + 1) + int(np.searchsorted(cylinders, x))
    return mode


def derive(stored: Arrays, key: str) -> NDArray[np.float32]:
    """Compute an observation key from `stored["state"]` (..., 6)."""
    state = np.asarray(stored["state"], np.float32)
    columns = {"state": slice(0, 6), "desired_pos": slice(0, 2), "measured_pos": slice(2, 4)}
    if state.shape[-1:] != (6,):
        raise InputError(f"Avoiding's 'state' must have 6 entries on its last axis, but its shape is {state.shape}.")
    return state[..., columns[key]]


def mirror(episode: Arrays) -> dict[str, NDArray[np.float32]]:
    """Reflect {"state": (..., 6), "action": (..., 2)} about x = 0.5, the cylinders' axis of symmetry.

    The reflected start is 5 cm beside the start of every episode; the rest of the way is as good as a demonstrated one.
    """
    state, action = (np.asarray(episode[key], np.float64) for key in ("state", "action"))
    across = np.array([1.0, 0.0] * 3)
    return {
        "state": (across + state * (1 - 2 * across)).astype(np.float32),
        "action": (action * [-1.0, 1.0]).astype(np.float32),
    }


_LOW, _HIGH = -2.0, 2.0

SPEC = TaskSpec(
    id="avoiding",
    observations={
        "state": ArraySpec(
            (6,), "float32", "m", _LOW, _HIGH, "commanded x, y; measured x, y; measured x, y one step before"
        ),
        "desired_pos": ArraySpec((2,), "float32", "m", _LOW, _HIGH, "commanded x, y of the rod"),
        "measured_pos": ArraySpec((2,), "float32", "m", _LOW, _HIGH, "measured x, y of the rod"),
    },
    action=ArraySpec((2,), "float32", "m", -LARGEST_STEP, LARGEST_STEP, "displacement of the commanded x, y"),
    action_type="displacement of the commanded position, m",
    neutral=(0.0, 0.0),
    action_parts=(ActionPart("position", 2),),
    max_episode_steps=250,
    rate_hz=28.571,
    success="the rod is beyond y = 0.35 m and has touched no cylinder",
    seed_protocols=("fixed",),
    stored_keys=("state",),
    derive_fn=derive,
    mirror_fn=mirror,
    default_obs_keys=("desired_pos", "measured_pos"),
    modes=N_MODES,
)

SPECS = {SPEC.id: SPEC}


class AvoidingEnv(Env):
    """Avoiding as described at the top of this file.

    `reset(options={"reset_to_state": state})` starts from that state (6,).

    Args:
        obs_keys: keys of the Dict observation; None gives all.
        seed_protocol: "fixed".
        render_mode: None or "rgb_array".
        render_size: side of the square images of `render()`, px.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 28}  # noqa: RUF012 - Gymnasium's contract

    def __init__(
        self,
        obs_keys: tuple[str, ...] | None = None,
        seed_protocol: str = "fixed",
        render_mode: str | None = None,
        render_size: int = 256,
    ) -> None:
        if render_size < 16:
            raise InputError(f"render_size must be at least 16 px, got {render_size}.")
        self.obs_keys = tuple(SPEC.observations) if obs_keys is None else obs_keys
        self.seed_protocol, self.render_mode, self.render_size = seed_protocol, render_mode, render_size
        self.observation_space = observation_space(SPEC, self.obs_keys)
        self.action_space = SPEC.action.space()
        self._path: list[NDArray[np.float64]] = []
        self._running = False

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        """Start an episode at the one place where every episode starts."""
        super().reset(seed=seed)
        state = None if options is None else options.get("reset_to_state")
        start = np.tile(START, 3) if state is None else checked_array(state, (6,), "reset_to_state")
        self._desired, self._measured, self._before = start[:2].copy(), start[2:4].copy(), start[4:].copy()
        self._path, self._running, self._steps = [self._measured], True, 0
        return self._observation(), {"is_success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, Info]:
        """Move the commanded position by `action` (2,), m, clipped to 12.5 mm along each axis, and wait 35 ms.

        Raises:
            InputError: the action has another shape or is not finite.
            gymnasium.error.ResetNeeded: before the first reset and after the end of an episode.
        """
        if not self._running:
            raise gymnasium.error.ResetNeeded("the episode has ended or not begun: call reset() before step().")
        now = self._desired + np.clip(checked_array(action, (2,), "action"), -LARGEST_STEP, LARGEST_STEP)
        moved = follow(self._measured, self._before, self._desired, now)
        self._desired, self._before, self._measured = now, self._measured, moved
        self._path.append(moved)
        self._steps += 1
        touched = touches(self._before, moved)
        success = not touched and moved[1] > FINISH
        truncated = not (touched or success) and self._steps >= SPEC.max_episode_steps
        self._running = not (touched or success or truncated)
        info: Info = {"is_success": success, "touched": touched}
        if success:
            info["mode"] = mode_of(np.array(self._path))
        share = (moved[1] - START[1]) / (FINISH - START[1])
        return (
            self._observation(),
            1.0 if success else float(np.clip(share, 0, 0.99)),
            touched or success,
            truncated,
            info,
        )

    def state(self) -> NDArray[np.float64]:
        """Commanded x, y, measured x, y and measured x, y one step before, m."""
        return np.concatenate([self._desired, self._measured, self._before])

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Return the scene from above as an image (render_size, render_size, 3), uint8 RGB; None without a render mode."""
        return None if self.render_mode is None else draw(np.array(self._path), self._desired, self.render_size)

    def _observation(self) -> Observation:
        state = {"state": self.state()}
        return {key: derive(state, key) for key in self.obs_keys}


def draw(path: NDArray[np.float64], desired: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """The scene from above: cylinders, finish, the way so far (T, 2), the rod, and the commanded position (2,)."""
    scale = size / 0.9  # 0.9 m from side to side
    image = np.full((size, size, 3), 255, np.uint8)
    rows, columns = np.mgrid[:size, :size]
    x, y = columns / scale + 0.05, 0.55 - rows / scale

    def disc(centre: NDArray[np.float64], radius: float, colour: tuple[int, int, int]) -> None:
        image[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2] = colour

    image[y > FINISH] = (228, 243, 238)
    for cylinder in CYLINDERS:
        disc(cylinder[:2], cylinder[2], (209, 73, 91))
    for point in path[-200:]:
        disc(point, 0.004, (150, 170, 190))
    disc(desired, 0.006, (224, 159, 62))
    disc(path[-1], ROD_RADIUS, (29, 39, 51))
    return image


def make_env(task: str, **kwargs: Any) -> AvoidingEnv:
    """Build the environment; `isdt_policy.envs.make` has checked the arguments."""
    return AvoidingEnv(**kwargs)
