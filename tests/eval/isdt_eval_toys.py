"""Small environments and policies for the tests, importable by spawned workers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from isdt_policy.eval.journal import Journal
from isdt_policy.eval.rollout import Scene, Workers
from isdt_policy.eval.rollout import evaluate as bundled


def evaluate(policy: Any, protocol: Any, seeds: Any, arms: Any = (1,), **options: Any) -> Any:
    """`isdt_policy.eval.evaluate` with the fields of `Workers`, `Scene` and `Journal` given beside each other."""
    workers = Workers(**{k: options.pop(k) for k in list(options) if k in Workers.__dataclass_fields__})
    scene = Scene(**{k: options.pop(k) for k in list(options) if k in Scene.__dataclass_fields__})
    out, fingerprint = options.pop("out", None), options.pop("fingerprint", None)
    journal = None if out is None else Journal(out, fingerprint)
    return bundled(policy, protocol, seeds, arms, workers=workers, scene=scene, journal=journal, **options)


class Chaos(gymnasium.Env):
    """Five numbers under the logistic map, nudged by the action: one wrong bit is another episode 50 steps later."""

    def __init__(self, length: int = 40, faults: dict[int, str] | None = None, marks: str | None = None) -> None:
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict({"state": box(-1, 1, (5,), np.float32)})
        self.action_space = box(-10, 10, (2,), np.float32)
        self.length, self.faults, self.marks = length, faults or {}, marks

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.x = self.np_random.uniform(0.1, 0.9, 5)
        if options and options.get("reset_to_state") is not None:
            self.x = np.array(options["reset_to_state"], float)
        self.t, self.seed_now = 0, seed
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        assert action.shape == (2,)
        self.t += 1
        self._fault()
        self.x = (3.99 * self.x * (1 - self.x) + 1e-3 * np.tanh(float(action.sum()))) % 1.0
        reward = float(self.x[0])
        success = reward > 0.98
        return self._obs(), reward, False, self.t >= self.length, {"is_success": success, "coverage": reward}

    def _obs(self) -> dict[str, Any]:
        return {"state": self.x.astype(np.float32)}

    def _fault(self) -> None:
        kind = self.faults.get(int(self.seed_now or 0))
        if kind is None or self.t != 3:
            return
        if kind.endswith("_once"):
            mark = Path(str(self.marks)) / f"{self.seed_now}"
            if mark.exists():
                return
            mark.touch()
        if kind.startswith("hang"):
            time.sleep(1000)
        elif kind.startswith("crash"):
            os._exit(3)
        elif kind.startswith("raise"):
            raise RuntimeError("the simulator is unwell")
        elif kind.startswith("nan"):
            self.x = np.full(5, np.nan)


class SlowChaos(Chaos):
    """Slow enough to be interrupted."""

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        time.sleep(0.02)
        return super().step(action)


class Clock(gymnasium.Env):
    """Observes the step number, and remembers the actions it was given."""

    def __init__(self, length: int = 12) -> None:
        self.observation_space = gymnasium.spaces.Dict({"t": gymnasium.spaces.Box(0, 1e6, (1,), np.float32)})
        self.action_space = gymnasium.spaces.Box(-1e6, 1e6, (1,), np.float32)
        self.length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return {"t": np.zeros(1, np.float32)}, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.t += 1
        done = self.t == self.length
        return {"t": np.full(1, self.t, np.float32)}, float(action[0]), False, done, {"is_success": done}


class NoisyPolicy:
    """Acts by its noise: a function of (episode seed, decision) and of the newest observation."""

    n_obs_steps, n_action_steps, obs_keys = 2, 4, ("state",)
    inference_rows = 1

    def reset(self) -> None:
        pass

    def predict_action(self, obs: Any, *, nfe: Any = 1, noise_seeds: Any = None) -> dict[str, np.ndarray]:
        scale = nfe if isinstance(nfe, int) else 7
        noise = [np.random.default_rng(row.tolist()).standard_normal((6, 2)) for row in noise_seeds]
        pred = np.stack([scale * n + o[-1, :2] for n, o in zip(noise, obs["state"])]).astype(np.float32)
        return {"action": pred[:, 1:5], "action_pred": pred}


def torch_policy(low: float = -1.0, high: float = 1.0, **changes: Any) -> Any:
    """A real, untrained policy whose actions depend on every bit of the state."""
    import torch

    from isdt_policy.envs.protocol import ObsSpec
    from isdt_policy.method.networks.unet1d import UNet1dConfig
    from isdt_policy.method.policy import Policy
    from isdt_policy.method.policy_config import PolicyConfig

    torch.manual_seed(0)
    network = UNet1dConfig((32, 64), embed_dim=64, time_dim=32)
    policy = Policy(
        PolicyConfig(task="pusht", observations={"state": ObsSpec((5,))}, action_dim=2, network=network, **changes)
    )
    one = {"min": np.full(5, low), "max": np.full(5, high), "mean": np.zeros(5), "std": np.ones(5)}
    policy.normalizer.fit({"state": one, "action": {k: v[:2] for k, v in one.items()}})
    for parameter in policy.parameters():
        if parameter.ndim == 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return policy.eval()
