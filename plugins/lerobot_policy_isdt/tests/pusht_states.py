"""PushT as LeRobot's environment `pusht` shows its states: agent_pos and the eight corners of the block, environment_state."""

import gym_pusht  # noqa: F401 - registers the environment
import gymnasium as gym
import numpy as np

from isdt_policy.datasets.store import DemoStore, DemoWriter


def corners():
    """Corners of the block in its own frame, (8, 2), from the environment itself."""
    env = gym.make("gym_pusht/PushT-v0", obs_type="environment_state_agent_pos")
    seen, _ = env.reset(seed=0, options={"reset_to_state": [100.0, 100.0, 300.0, 250.0, 0.0]})
    block = env.unwrapped.block
    return np.asarray(seen["environment_state"], np.float64).reshape(8, 2) - np.array(block.position), block.angle


def write(path, source="bundled:pusht_expert", episodes=None):
    """Recordings of PushT as a store with the keys `state` (2) and `environment_state` (16)."""
    shape, angle = corners()
    store = DemoStore.open(source)
    with DemoWriter(path, attributes={"action_space": {"rate_hz": 10, "type": "absolute"}}) as writer:
        for number in range(min(episodes or store.n_episodes, store.n_episodes)):
            recorded = store.episode(number)
            x = np.asarray(recorded["state"], np.float64)
            turn = x[:, 4] - angle
            cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
            points = np.stack([cos * shape[:, 0] - sin * shape[:, 1], sin * shape[:, 0] + cos * shape[:, 1]], -1)
            points = (points + x[:, None, 2:4]).reshape(len(x), 16)
            writer.append({
                "state": x[:, :2].astype(np.float32), "environment_state": points.astype(np.float32),
                "action": np.asarray(recorded["action"], np.float32),
            })  # fmt: skip
