"""A control step of our environments against what they wrap: gym-pusht's, or bare robosuite."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np

from isdt_policy.envs import make
from isdt_policy.lab.bench.measure import interleaved, ratio
from isdt_policy.lab.bench.report import Measured
from isdt_policy.lab.bench.settings import Env
from isdt_policy.shared.extras import require


def measure(what: Env) -> Measured:
    """Time control steps, state observations included."""
    task = what.task
    if task == "pusht":
        require("gym_pusht", "pusht", "PushT")
        name, ours = "gym-pusht", _stepper(make(task, obs_keys=["state"]), 100, 400, 2)
        theirs = _stepper(gymnasium.make("gym_pusht/PushT-v0", obs_type="state"), 100, 400, 2)
    else:
        bare = make(task)
        bare.reset(seed=0)
        simulator = bare.get_wrapper_attr("sim")
        rng = np.random.default_rng(0)
        name, ours = "bare robosuite", _stepper(make(task), -0.5, 0.5, 7)

        def theirs() -> None:
            simulator.step(rng.uniform(-0.5, 0.5, 7))

    timings = interleaved({"ours": ours, name: theirs}, rounds=what.rounds, calls=what.calls)
    return Measured(f"env task={task}", timings, {f"ours / {name}": ratio(timings["ours"], timings[name])}, {}, task)


def _stepper(environment: gymnasium.Env, low: float, high: float, size: int) -> Callable[[], None]:
    """Steps with random actions, and begins an episode anew where it has ended."""
    rng = np.random.default_rng(0)
    environment.reset(seed=0)

    def step() -> None:
        _, _, terminated, truncated, _ = environment.step(rng.uniform(low, high, size).astype(np.float32))
        if terminated or truncated:
            environment.reset(seed=0)

    return step
