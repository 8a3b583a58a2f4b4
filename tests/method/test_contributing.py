"""The worked examples of CONTRIBUTING.md run as they are printed."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from isdt_policy.method import closed_forms, samplers
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import INTERPOLANTS
from isdt_policy.method.networks import NETWORKS
from isdt_policy.method.objectives import OBJECTIVES
from isdt_policy.method.policy import Policy
from isdt_policy.method.samplers import SAMPLERS, Sampler
from isdt_policy.shared import arm
from isdt_policy.training.config import build, compose_config
from isdt_policy.training.run import train

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()


def example(heading: str) -> str:
    """The Python under a heading."""
    return re.search(rf"## {heading}\n.*?```python\n(.*?)```", TEXT, re.DOTALL)[1]


def module_of(code: str, name: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    return module


def test_the_objective_in_the_worked_example_works(monkeypatch):
    module = module_of(example("Add an objective"), "huber", monkeypatch)
    objective = module.Huber(delta=0.2)

    path = INTERPOLANTS["trigonometric"]()
    location = torch.tensor([0.2, -0.4])
    exact = FlowMap(closed_forms.point_mass(path, location), path)
    x, cond = location.expand(16, 4, 2), torch.zeros(16, 3)
    generator = torch.Generator().manual_seed(0)
    assert objective(exact, x, cond, cond[0], generator, keep=torch.ones(16, 4, dtype=torch.bool)).total < 1e-6
    off = FlowMap(lambda *a: exact.network(*a) + 10.0, path)
    assert abs(objective(off, x, cond, cond[0], generator).total - 9.8) < 0.01  # linear, not 100

    monkeypatch.setitem(OBJECTIVES, "huber", module.Huber)
    built = build("objective", OBJECTIVES["huber"], {"delta": 0.3})
    assert built.delta == 0.3
    assert built.sampling.kind == "velocity"


def test_the_network_in_the_worked_example_trains_saves_and_acts(tiny_store, tmp_path, monkeypatch):
    module = module_of(example("Add a network"), "mixer", monkeypatch)
    monkeypatch.setitem(NETWORKS, "mixer", module.MixerConfig)
    settings = [f"data.path={tiny_store}", f"run_dir={tmp_path / 'run'}", "network=mixer", "network.width=8"]
    run = train(compose_config([*settings, "training.steps=2", "training.batch_size=8", "training.threads=1"]))
    policy = Policy.from_pretrained(run)
    assert policy.config.network == module.MixerConfig(width=8)
    obs = {key: np.zeros((1, 2, size)) for key, size in policy.config.obs_dims.items()}
    assert policy.predict_action(obs, nfe=2)["action"].shape == (1, 8, 2)


def test_the_network_in_the_worked_example_has_a_derivative_in_forward_mode(monkeypatch):
    network = module_of(example("Add a network"), "mixer", monkeypatch).MixerConfig(width=8).build(2, 3, 4).double()
    torch.nn.init.normal_(network.out.weight)
    x, cond = torch.randn(2, 5, 4, 2, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    t = torch.full((5,), 0.6, dtype=torch.float64)

    def along(step):
        return network(x[0] + step * x[1], t + step, t / 2, cond)

    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    exact = torch.func.jvp(along, (zero,), (one,))[1]
    torch.testing.assert_close(exact, (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-6)


def test_the_sampler_in_the_worked_example_is_of_second_order(monkeypatch):
    namespace = dict(vars(samplers))
    exec(compile(example("Add a sampler"), "CONTRIBUTING.md", "exec"), namespace)
    monkeypatch.setitem(SAMPLERS, "midpoint", Sampler(namespace["midpoint"], ("velocity", "flow_map")))
    monkeypatch.setitem(arm._DEARER, "midpoint", (2, 0))
    mean, std = torch.tensor([0.3, -0.5], dtype=torch.float64), torch.tensor([0.4, 0.7], dtype=torch.float64)
    noise, cond = torch.randn(64, 1, 2, dtype=torch.float64), torch.zeros(64, 1, dtype=torch.float64)
    for path in (INTERPOLANTS["linear"](), INTERPOLANTS["trigonometric"]()):
        flow_map = FlowMap(closed_forms.gaussian(path, mean, std), path)
        ones = torch.ones(64, dtype=torch.float64)
        exact = closed_forms.gaussian_map(path, mean, std)(noise, ones, 0 * ones)
        plans = [samplers.plan(f"midpoint{n}") for n in (20, 40)]
        assert [plan.evaluations for plan in plans] == [40, 80]
        coarse, fine = ((plan.run(flow_map, noise, cond) - exact).abs().mean() for plan in plans)
        assert coarse / fine > 3.5  # Euler: 2
