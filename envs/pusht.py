"""PushT: push a T-shaped block onto its goal pose (gym-pusht's physics, a Dict observation, named seed protocols).

Spec sheet
    Scene        512 x 512 px, y downwards; walls at 5 and 506 px; a circular agent (radius 15 px), a T-shaped block.
    Goal         block at (256, 256) px, angle pi/4 rad.
    Action       absolute position target of the agent, px, tracked by a PD controller for 0.1 s (10 physics steps).
    Reward       min(coverage / 0.95, 1); coverage = share of the goal's area covered by the block.
    Termination  success: coverage > 0.95. Truncation after 300 steps.
    Seeds        "pusht": gym-pusht 0.1.8's own draw. "pusht-legacy": the draw of Diffusion Policy and of gym-pusht
                 0.1.5, with that code's order of setting the pose. One seed means different episodes in the two.
    Mirror       the scene is symmetric under (x, y) -> (512 - y, 512 - x), angle -> pi/2 - angle, up to one pixel
                 in the position of the walls.
"""

from __future__ import annotations

import functools
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs.protocol import Arrays, Info, Observation
from isdt_policy.envs.pusht_scene import SUCCESS_COVERAGE, derive, hindsight, legacy_state, mirror, nudges, success
from isdt_policy.envs.registry import (
    ActionPart,
    ArraySpec,
    Env,
    TaskSpec,
    checked_array,
    observation_space,
)
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import installed_version, require

TESTED_GYM_PUSHT = "0.1.8"

# The block can be squeezed out of the walls, so bounds are wide; the agent follows targets inside [0, 512].
_LOW, _HIGH = -512.0, 1024.0


def _draw(stored: Arrays, key: str) -> NDArray[np.uint8]:
    """Pictures (n, 96, 96, 3) of {"state": (n, 5)}."""
    return _artist().draw(np.asarray(stored["state"], np.float64))


@functools.cache
def _artist() -> PushTEnv:
    return PushTEnv(("pixels",))


SPEC = TaskSpec(
    id="pusht",
    observations={
        "state": ArraySpec(
            (5,),
            "float32",
            "px, px, px, px, rad",
            (_LOW, _LOW, _LOW, _LOW, 0.0),
            (_HIGH, _HIGH, _HIGH, _HIGH, float(np.float32(2 * np.pi))),
            "agent x, y; block x, y; block angle in [0, 2 pi)",
        ),
        "agent_pos": ArraySpec((2,), "float32", "px", _LOW, _HIGH, "agent x, y"),
        "block_pose": ArraySpec(
            (4,),
            "float32",
            "px, px, 1, 1",
            (_LOW, _LOW, -1.0, -1.0),
            (_HIGH, _HIGH, 1.0, 1.0),
            "block x, y; cosine and sine of its angle",
        ),
        "keypoints": ArraySpec((18,), "float32", "px", _LOW, _HIGH, "nine points of the block: x0, y0, x1, y1, ..."),
        "agent_in_block": ArraySpec((2,), "float32", "px", -2048.0, 2048.0, "agent x, y in the block's frame"),
        "goal_in_block": ArraySpec(
            (4,),
            "float32",
            "px, px, 1, 1",
            (-2048.0, -2048.0, -1.0, -1.0),
            (2048.0, 2048.0, 1.0, 1.0),
            "goal x, y in the block's frame; cosine and sine of the turn still to be made",
        ),
        "agent_frame": ArraySpec(
            (4,),
            "float32",
            "px, px, 1, 1",
            (_LOW, _LOW, -1.0, -1.0),
            (_HIGH, _HIGH, 1.0, 1.0),
            "agent x, y; cosine and sine of the block's angle: the frame in which motion around the block looks alike",
        ),
        "pixels": ArraySpec((96, 96, 3), "uint8", "8-bit RGB", 0, 255, "image of the scene"),
    },
    action=ArraySpec((2,), "float32", "px", 0.0, 512.0, "target x, y of the agent"),
    action_type="absolute position target, px",
    action_parts=(ActionPart("position", 2),),
    max_episode_steps=300,
    rate_hz=10,
    success="block covers more than 95 % of the goal",
    seed_protocols=("pusht", "pusht-legacy"),
    packages=("gym-pusht", "pymunk"),
    extra="pusht",
    stored_keys=("state",),
    derive_fn=derive,
    # Keypoints rather than the angle's cosine and sine: the network sees in pixels where the edges to push are, at the
    # scale of the actions. The agent in the block's frame says which side it stands on, whatever the block's angle.
    default_obs_keys=("agent_pos", "keypoints", "agent_in_block"),
    mirror_fn=mirror,
    hindsight_fn=hindsight,
    nudges_fn=nudges,
    success_fn=success,
    recorded_as={"pixels": ("img", "image")},
    draw_fn=_draw,
)


SPECS = {SPEC.id: SPEC}


class PushTEnv(Env):
    """PushT as described at the top of this file.

    `reset(seed=..., options={"reset_to_state": state})` starts from exactly that state (5,), at rest: the first
    observation equals it (gym-pusht's own option of that name shifts the block, because it sets position before angle).

    Args:
        obs_keys: keys of the Dict observation; None gives all but "pixels".
        seed_protocol: "pusht" or "pusht-legacy".
        render_mode: None or "rgb_array".
        render_size: side of the square images of `render()`, px. The "pixels" observation is always 96.
        end_on_success: False lets a demonstrator go on improving after success, up to the step limit.
    """

    # False leaves pictures in an observation empty, for steps whose pictures nobody reads.
    draw_images: bool

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's contract

    def __init__(
        self,
        obs_keys: tuple[str, ...] | None = None,
        seed_protocol: str = "pusht",
        render_mode: str | None = None,
        render_size: int = 96,
        end_on_success: bool = True,
    ) -> None:
        if render_size < 1:
            raise InputError(f"render_size must be at least 1 px, got {render_size}.")
        self._sim = _simulator()
        self.obs_keys = tuple(k for k in SPEC.observations if k != "pixels") if obs_keys is None else obs_keys
        self.seed_protocol = seed_protocol
        self.render_mode = render_mode
        self.render_size = render_size
        self.end_on_success = end_on_success
        self.observation_space = observation_space(SPEC, self.obs_keys)
        self.action_space = SPEC.action.space()
        self.draw_images = True
        self._steps: int | None = None  # None: not running

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        """Start an episode; without a seed, from the running generator's next state."""
        super().reset(seed=seed)
        state = None if options is None else options.get("reset_to_state")
        if state is not None:
            self._set_exactly(checked_array(state, (5,), "reset_to_state"))
        elif self.seed_protocol == "pusht-legacy":
            drawn = seed if seed is not None else int(self.np_random.integers(2**31))
            self._sim.reset(options={"reset_to_state": legacy_state(drawn)})
        else:
            # Handing over our generator makes `seed` mean what it means in gym-pusht.
            self._sim.np_random = self.np_random
            self._sim.reset()
        self._sim._last_action = None
        self._steps = 0
        coverage = float(self._sim._get_coverage())
        return self._observation(), {"is_success": coverage > SUCCESS_COVERAGE, "coverage": coverage}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, Info]:
        """Track the target `action` (2,), px, for 0.1 s. Targets outside [0, 512] are clipped to it.

        Raises:
            InputError: if the action has another shape or is not finite.
            gymnasium.error.ResetNeeded: before the first reset and after the end of an episode.
        """
        if self._steps is None:
            raise gymnasium.error.ResetNeeded("the episode has ended or not begun: call reset() before step().")
        target = np.clip(checked_array(action, (2,), "action"), 0.0, 512.0)
        _, _, _, _, sim_info = self._sim.step(target)
        self._steps += 1
        coverage = float(sim_info["coverage"])
        success = coverage > SUCCESS_COVERAGE
        terminated = success and self.end_on_success
        truncated = not terminated and self._steps >= SPEC.max_episode_steps
        if terminated or truncated:
            self._steps = None
        info = {"is_success": success, "coverage": coverage}
        return self._observation(), min(max(coverage / SUCCESS_COVERAGE, 0.0), 1.0), terminated, truncated, info

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Return the scene as an image (render_size, render_size, 3), uint8 RGB; None without a render mode."""
        return None if self.render_mode is None else self._image(self.render_size, mark_action=True)

    def state(self) -> NDArray[np.float64]:
        """Return agent x, y, block x, y (px) and block angle in [0, 2 pi), in full precision."""
        return np.asarray(self._sim.get_obs(), np.float64)

    def draw(self, states: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Pictures (n, 96, 96, 3) of states (n, 5) at rest. It ends the episode, if one runs."""
        self._steps = None
        pictures = np.empty((len(states), 96, 96, 3), np.uint8)
        self._sim._setup()
        for picture, state in zip(pictures, states):
            self._place(checked_array(state, (5,), "state"))
            picture[:] = self._image(96)
        return pictures

    def _observation(self) -> Observation:
        state = {"state": self.state()}
        # Rounding 2 pi - tiny to float32 gives float32(2 pi): inside the space's bound.
        low_dim = {key: derive(state, key) for key in self.obs_keys if key != "pixels"}
        return {key: low_dim[key] if key in low_dim else self._seen() for key in self.obs_keys}

    def _seen(self) -> NDArray[np.uint8]:
        return self._image(96) if self.draw_images else np.zeros((96, 96, 3), np.uint8)

    def _image(self, size: int, mark_action: bool = False) -> NDArray[np.uint8]:
        image = self._sim._get_img(self._sim._draw(), width=size, height=size, render_action=mark_action)
        return np.ascontiguousarray(image, np.uint8)

    def _set_exactly(self, state: NDArray[np.float64]) -> None:
        self._sim._setup()
        self._place(state)

    def _place(self, state: NDArray[np.float64]) -> None:
        sim = self._sim
        sim.agent.position = state[:2].tolist()
        # The angle turns the block about its centre of mass and so moves its origin: position has to come last.
        sim.block.angle = float(state[4])
        sim.block.position = state[2:4].tolist()
        sim.agent.velocity = (0.0, 0.0)
        sim.block.velocity = (0.0, 0.0)
        sim.block.angular_velocity = 0.0
        for body in (sim.agent, sim.block):  # otherwise pymunk moves the shapes that are drawn in the next physics step
            sim.space.reindex_shapes_for_body(body)


def make_env(task: str, **kwargs: Any) -> PushTEnv:
    """Build the environment; `isdt_policy.envs.make` has checked the arguments."""
    return PushTEnv(**kwargs)


def _simulator() -> Any:
    versions = {name: installed_version(name) for name in SPEC.packages}
    if versions["gym-pusht"] != TESTED_GYM_PUSHT:
        raise InputError(
            f"gym-pusht {versions['gym-pusht']} is installed, but only {TESTED_GYM_PUSHT} is tested: the rule from "
            f"seed to initial state differs between versions. Install it with: pip install 'isdt-policy[{SPEC.extra}]'"
        )
    if int(str(versions["pymunk"]).split(".", maxsplit=1)[0]) >= 7:
        raise InputError(
            f"pymunk {versions['pymunk']} is installed, but gym-pusht {TESTED_GYM_PUSHT} needs 6.x "
            "(7 removed the collision interface it uses). Install it with: pip install 'pymunk>=6.6,<7'"
        )
    gym_pusht: Any = require("gym_pusht.envs.pusht", SPEC.extra, "PushT")
    pymunk_to_shapely = gym_pusht.pymunk_to_shapely

    class RepeatableSimulator(gym_pusht.PushTEnv):  # type: ignore[misc]
        """The simulator with a coverage that repeats to the last bit.

        The original iterates over `body.shapes`, a set whose order depends on memory addresses, so the same pose gave
        rewards that differ by 1e-16 from one episode to the next. The goal does not move, so its outline is built
        once: the original builds it in every step, a sixth of the time of a step.
        """

        _goal: Any = None

        def _get_coverage(self) -> float:
            if self._goal is None:
                self._goal = pymunk_to_shapely(self.get_goal_pose_body(self.goal_pose), self._block_shapes)
            block = pymunk_to_shapely(self.block, self._block_shapes)
            return float(self._goal.intersection(block).area / self._goal.area)

    return RepeatableSimulator(obs_type="state", render_mode="rgb_array")
