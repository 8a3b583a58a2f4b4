"""A scripted expert of Avoiding: through any of the 24 ways, along a smooth curve, with an unsteady hand.

Demonstration i of a set takes way i modulo 24, so that every way is shown equally often.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs import avoiding
from isdt_policy.envs.protocol import Arrays, Info, Observation

SPEED = 0.0095  # of the commanded position along the curve, m a step; people moved at 12.5 mm along one axis or less
SWAY = 0.006  # standard deviation of where the curve passes a gap, m
WOBBLE = 0.0006  # of the hand, m a step
MARGIN = 0.045  # from the outermost cylinders to where the curve passes outside, m

# Where a curve passes each row, before swaying: between two cylinders in the middle, outside at a distance.
_GAPS: tuple[tuple[float, ...], ...] = (
    (0.5 - 0.03 - MARGIN, 0.5 + 0.03 + MARGIN),
    (0.425 - 0.025 - MARGIN, 0.5, 0.575 + 0.025 + MARGIN),
    (0.35 - 0.025 - MARGIN, 0.425, 0.575, 0.65 + 0.025 + MARGIN),
)


def curve(mode: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Commanded positions (T, 2) of one demonstration of a way, m."""
    gaps = (mode // 12, mode // 4 % 3, mode % 4)
    passes = [(row[gap] + SWAY * rng.standard_normal(), y) for (y, _), row, gap in zip(avoiding.ROWS, _GAPS, gaps)]
    last = (passes[-1][0] + 0.03 * rng.standard_normal(), avoiding.FINISH + 0.08)
    knots = np.array([avoiding.START, *passes, last])
    # Monotone in y: each piece is a cubic in y whose slope at a knot is that of its neighbours (Catmull-Rom).
    slope = np.zeros(len(knots))
    slope[1:-1] = 0.6 * (knots[2:, 0] - knots[:-2, 0]) / (knots[2:, 1] - knots[:-2, 1])
    dense = [_piece(knots[i], knots[i + 1], slope[i], slope[i + 1]) for i in range(len(knots) - 1)]
    points = np.concatenate(dense)
    length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    at = np.arange(0, length[-1], SPEED)
    return np.stack([np.interp(at, length, points[:, k]) for k in range(2)], axis=1)


def _piece(a: NDArray[np.float64], b: NDArray[np.float64], left: float, right: float) -> NDArray[np.float64]:
    u = np.linspace(0, 1, 60, endpoint=False)[:, None]
    height = b[1] - a[1]
    x = (
        (2 * u**3 - 3 * u**2 + 1) * a[0]
        + (u**3 - 2 * u**2 + u) * height * left
        + (3 * u**2 - 2 * u**3) * b[0]
        + (u**3 - u**2) * height * right
    )
    return np.concatenate([x, a[1] + height * u], axis=1)


def episode(seed: int, index: int, task: str = "avoiding") -> tuple[Observation, Info]:
    """Make attempt `index` of a set; arrays with time first ("state" (T, 6), "action" (T, 2)) and what is known of it."""
    rng = np.random.default_rng([seed, index])
    mode = index % avoiding.N_MODES
    path = curve(mode, rng)
    env = avoiding.AvoidingEnv()
    env.reset()
    states, actions = [], []
    info: Info = {}
    for target in path[1:]:
        action = np.clip(target - env.state()[:2] + WOBBLE * rng.standard_normal(2), -0.0125, 0.0125)
        states.append(env.state())
        actions.append(action)
        _, _, terminated, truncated, info = env.step(action.astype(np.float32))
        if terminated or truncated:
            break
    arrays = {"state": np.array(states, np.float32), "action": np.array(actions, np.float32)}
    return arrays, {
        "index": index, "seed": seed, "success": bool(info.get("is_success")), "mode": info.get("mode"), "steps": len(actions),
    }  # fmt: skip


def facts(seed: int, index: int) -> Info:
    """What is known of a demonstration without running it."""
    return {"index": index, "mode": index % avoiding.N_MODES}


class Expert:
    """The expert as a policy: it sees the state, and follows the way that the seed of its episode draws."""

    n_obs_steps = 1
    n_action_steps = 1
    obs_keys = ("state",)
    inference_rows = 1  # no batched arithmetic, so rows need no padding

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._paths: dict[int, NDArray[np.float64]] = {}

    def reset(self) -> None:
        """Forget the curves of earlier episodes."""
        self._paths = {}

    def predict_action(
        self, obs: Arrays, *, nfe: int | str = 1, noise_seeds: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Answer observations (batch, 1, 6) with actions (batch, 1, 2); `nfe` has no meaning here."""
        states = np.asarray(obs["state"], np.float64)[:, -1]
        seeds = np.zeros((len(states), 2), np.int64) if noise_seeds is None else np.asarray(noise_seeds)
        action = np.stack([self._toward(state, int(s), int(k)) for state, (s, k) in zip(states, seeds)])
        chunk = np.asarray(action[:, None], np.float32)
        return {"action": chunk, "action_pred": chunk}

    def _toward(self, state: NDArray[np.float64], episode_seed: int, decision: int) -> NDArray[np.float64]:
        if episode_seed not in self._paths:
            rng = np.random.default_rng([self.seed, abs(episode_seed)])
            self._paths[episode_seed] = curve(int(rng.integers(avoiding.N_MODES)), rng)
        path = self._paths[episode_seed]
        return np.clip(path[min(decision + 1, len(path) - 1)] - state[:2], -0.0125, 0.0125)


def expert(seed: int = 0, task: str = "avoiding") -> Expert:
    """The scripted expert."""
    return Expert(seed)
